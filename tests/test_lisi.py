"""LISI against plain loops and scib-metrics, and what must hold for any neighbourhood."""

import numpy as np
import pytest
from scipy.optimize import brentq

from scmedley.data.neighbors import Neighbors
from scmedley.evaluate import lisi, nearest, scaled_clisi, scaled_ilisi
from scmedley.evaluate.lisi import median, neighbor_weights

BATCH = np.random.default_rng(2).choice(4, 400, p=[0.5, 0.3, 0.15, 0.05])
Z = np.random.default_rng(1).normal(size=(400, 4)) + 0.8 * np.eye(4)[BATCH]
NEAR = nearest(Z, Z, 90, exclude_self=True)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def entropy_excess(log_beta: float, distance_K: np.ndarray, perplexity: float) -> float:
    """Entropy of the weights of one cell less the logarithm of the perplexity."""
    p = np.exp(-np.exp(log_beta) * distance_K)
    p = p[p > 0] / p.sum()
    return float(-(p * np.log(p)).sum() - np.log(perplexity))


def plain_lisi(near: Neighbors, codes: np.ndarray, perplexity: float) -> np.ndarray:
    """Cell by cell, with a root finder of scipy."""
    found = []
    for index_K, distance_K in zip(near.indices_NK, near.distances_NK, strict=True):
        shifted_K = distance_K - distance_K.min()
        beta = np.exp(brentq(entropy_excess, -20, 20, args=(shifted_K, perplexity), xtol=1e-13))
        weight_K = np.exp(-beta * shifted_K)
        share_C = [weight_K[codes[index_K] == c].sum() / weight_K.sum() for c in np.unique(codes)]
        found.append(1 / np.square(share_C).sum())
    return np.array(found)


@pytest.mark.parametrize(("k", "perplexity"), [(90, 30.0), (90, 10.0), (15, 5.0)])
def test_lisi_is_that_of_plain_loops(k: int, perplexity: float) -> None:
    near = nearest(Z, Z, k, exclude_self=True)
    found = lisi(near, BATCH, perplexity)
    np.testing.assert_allclose(found, plain_lisi(near, BATCH, perplexity), rtol=1e-9)
    assert np.ptp(found) > 0.5


def test_lisi_is_that_of_scib_metrics() -> None:
    import scib_metrics as scib
    from scib_metrics.nearest_neighbors import NeighborsResults

    self_N1 = np.arange(len(Z))[:, None]
    theirs = NeighborsResults(
        indices=np.hstack([self_N1, NEAR.indices_NK]), distances=np.hstack([0.0 * self_N1, NEAR.distances_NK])
    )
    ours = lisi(NEAR, BATCH)
    np.testing.assert_allclose(ours, scib.lisi_knn(theirs, BATCH, perplexity=30), atol=1e-4)
    ilisi, clisi = (f(theirs, BATCH, perplexity=30) for f in (scib.ilisi_knn, scib.clisi_knn))
    assert scaled_ilisi(ours, 4) == pytest.approx(ilisi, abs=1e-4)
    assert scaled_clisi(ours, 4) == pytest.approx(clisi, abs=1e-4)


def test_weights_have_the_perplexity_and_fall_with_distance() -> None:
    weights_NK = neighbor_weights(NEAR.distances_NK, 30)
    entropy_N = -(weights_NK * np.log(weights_NK)).sum(axis=1)
    np.testing.assert_allclose(np.exp(entropy_N), 30, rtol=1e-9)
    np.testing.assert_allclose(weights_NK.sum(axis=1), 1)
    assert (np.diff(weights_NK, axis=1) <= 0).all()


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = neighbor_weights(NEAR.distances_NK, 30)
    monkeypatch.setitem(neighbor_weights.__globals__, "_BLOCK", 37)
    np.testing.assert_array_equal(neighbor_weights(NEAR.distances_NK, 30), expected)


def test_mixed_batches_are_counted_by_their_shares(rng: np.random.Generator) -> None:
    """Expected Σ p² of weighted draws: Σ share² (1 - Σ w²) + Σ w²."""
    z = rng.normal(size=(3000, 4))
    near = nearest(z, z, 90, exclude_self=True)
    together_N = np.square(neighbor_weights(near.distances_NK, 30)).sum(axis=1)
    for shares in ([0.25] * 4, [0.7, 0.2, 0.1]):
        found = lisi(near, rng.choice(len(shares), 3000, p=shares))
        even = np.square(shares).sum()
        expected = 1 / (even * (1 - together_N) + together_N)
        assert (1 / found).mean() == pytest.approx((1 / expected).mean(), rel=0.02)
        assert median(found) == pytest.approx(median(expected), rel=0.05)
        assert 0.8 / even < median(found) < 1 / even  # 30 neighbours are never quite even
        assert found.min() >= 1
        assert found.max() <= len(shares) + 1e-9


def test_apart_is_one_and_scaled_tells_which_is_good() -> None:
    z = Z + 100 * np.eye(4)[BATCH]
    near = nearest(z, z, 15, exclude_self=True)
    found = lisi(near, BATCH)
    np.testing.assert_allclose(found, 1)
    assert scaled_ilisi(found, 4) == pytest.approx(0)
    assert scaled_clisi(found, 4) == pytest.approx(1)
    assert scaled_ilisi(np.full(5, 4.0), 4) == 1
    assert scaled_clisi(np.full(5, 4.0), 4) == 0


def test_what_does_not_matter(rng: np.random.Generator) -> None:
    expected = lisi(NEAR, BATCH)
    np.testing.assert_allclose(lisi(NEAR, 7 - 2 * BATCH), expected)
    farther = Neighbors(NEAR.indices_NK, NEAR.distances_NK * 1e6)
    np.testing.assert_allclose(lisi(farther, BATCH), expected, rtol=1e-9)
    order = rng.permutation(400)
    moved = nearest(Z[order], Z[order], 90, exclude_self=True)
    np.testing.assert_allclose(lisi(moved, BATCH[order]), expected[order], rtol=1e-9)
    several = lisi(NEAR, np.stack([BATCH, rng.permutation(BATCH)]))
    assert several.shape == (2, 400)
    np.testing.assert_array_equal(several[0], expected)
    assert median(several[1]) > median(expected)


def test_cells_without_a_group_do_not_count() -> None:
    codes = np.where(BATCH == 3, -1, BATCH)
    found = lisi(NEAR, codes)
    np.testing.assert_array_equal(np.isnan(found), codes < 0)
    weights_NK = neighbor_weights(NEAR.distances_NK, 30)
    cell = int(np.flatnonzero(codes >= 0)[0])
    share_C = np.array([weights_NK[cell][codes[NEAR.indices_NK[cell]] == c].sum() for c in range(3)])
    assert found[cell] == pytest.approx(share_C.sum() ** 2 / np.square(share_C).sum())


def test_copies_and_few_cells_are_no_trouble(rng: np.random.Generator) -> None:
    same = np.zeros((200, 2))
    codes = rng.integers(0, 2, 200)
    near = nearest(same, same, 90, exclude_self=True)
    shares_N2 = np.stack([(codes[near.indices_NK] == c).mean(axis=1) for c in (0, 1)], axis=1)
    np.testing.assert_allclose(lisi(near, codes), 1 / np.square(shares_N2).sum(axis=1))
    pair = nearest(same[:2], same[:2], 90, exclude_self=True)
    np.testing.assert_allclose(lisi(pair, np.array([0, 1])), 1)


@pytest.mark.parametrize("codes", [np.zeros(400, int), np.full(400, -1)], ids=["one group", "none"])
def test_nan_where_there_is_nothing_to_compare(codes: np.ndarray) -> None:
    assert np.isnan(lisi(NEAR, codes)).all()
    assert np.isnan([median(lisi(NEAR, codes)), scaled_ilisi(Z[:, 0], 1), scaled_clisi(Z[:, 0], 1)]).all()
