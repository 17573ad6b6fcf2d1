"""Clusters by evidence: what must be found, what must not, and what must not matter."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import linprog

import scmedley as sm
from scmedley.clusters import Clusters, clusters, find
from scmedley.clusters.dip import dip
from scmedley.clusters.evidence import neighbour_ratio, split
from scmedley.clusters.table import wilson
from scmedley.evaluate import ari

SIZES = (300, 120, 40)
TRUTH = np.repeat(np.arange(3), SIZES)


def blobs(seed: int = 0, apart: float = 8.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(len(TRUTH), 6)) + apart * np.eye(6)[TRUTH]


@pytest.fixture(scope="module")
def found() -> Clusters:
    return find(blobs(), batch_N=np.array(["b1", "b2"])[(TRUTH + np.arange(len(TRUTH))) % 2])


def test_blobs_of_unequal_size_are_found_in_order_of_size(found):
    assert found.k == found.found == 3
    np.testing.assert_array_equal(found.code_N, TRUTH)
    np.testing.assert_allclose(found.membership_NK.sum(1), 1)
    assert (found.membership_NK.argmax(1) == TRUTH).all()
    assert sm.evaluate.clusters is find


@pytest.mark.parametrize("shape", ["gaussian", "long", "t", "uniform", "skewed", "ring"])
def test_noise_is_one_cluster(shape):
    counts = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(400, 8))
        if shape == "long":
            x = x * np.array([6, 3, 1, 1, 1, 1, 1, 1])
        elif shape == "t":
            x = x / np.sqrt(rng.chisquare(4, (400, 1)) / 4)
        elif shape == "uniform":
            x = rng.random((400, 8))
        elif shape == "skewed":
            x = rng.gamma(2.0, size=(400, 8))
        elif shape == "ring":
            angle = rng.random(400) * 2 * np.pi
            x = x + 2 * np.stack([np.sin(angle), np.cos(angle)], 1) @ np.eye(2, 8)
        counts.append(find(x, seed=seed).k)
    assert sorted(counts)[1] == 1  # at least 2 of 3; benchmarks/clusters.py counts in more draws


def test_the_order_of_cells_does_not_matter_and_the_same_seed_gives_the_same_bits():
    z = blobs(1, apart=3.0)
    order = np.random.default_rng(0).permutation(len(z))
    first, again, permuted = find(z, seed=2), find(z, seed=2), find(z[order], seed=2)
    np.testing.assert_array_equal(first.code_N, again.code_N)
    np.testing.assert_array_equal(first.membership_NK, again.membership_NK)
    assert first.tree.equals(again.tree)
    assert first.evidence.equals(again.evidence)
    np.testing.assert_array_equal(first.code_N[order], permuted.code_N)
    np.testing.assert_array_equal(first.membership_NK[order], permuted.membership_NK)


def test_moving_and_rotating_the_latent_changes_nothing_that_matters():
    z = blobs(2)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    assert ari(find(1e3 + z @ rotation).code_N, TRUTH) == 1
    assert ari(find((1e4 * z).astype(np.float32)).code_N, TRUTH) == 1


def test_tree_ends_in_one_cluster_and_finer_cuts_are_parts_of_coarser_ones(found):
    n_groups = len(found.tree) + 1
    assert found.tree["clusters left"].tolist() == list(range(n_groups - 1, 0, -1))
    merged = found.tree[["first", "second"]].to_numpy().ravel()
    assert sorted(merged) == list(range(2 * n_groups - 2))  # each node is merged once
    last = found.tree.iloc[-1]
    assert last["cells first"] + last["cells second"] == len(TRUTH)
    cuts = [found.cut(k) for k in range(1, n_groups + 1)]
    for coarse, fine in pairwise(cuts):
        assert fine.k == coarse.k + 1 == len(np.unique(fine.code_N))
        parents = {(a, b) for a, b in zip(fine.code_N, coarse.code_N, strict=True)}
        assert len(parents) == fine.k
        sizes = np.bincount(fine.code_N)
        assert (np.diff(sizes) <= 0).all()
    np.testing.assert_array_equal(found.cut(level=-1).code_N, found.cut(2).code_N)
    np.testing.assert_array_equal(found.cut(2).cut(level=1).code_N, found.code_N)
    assert found.cut(level=-99).k == 1


def test_evidence_says_why(found):
    table = found.evidence
    assert table["cells"].tolist() == list(SIZES)
    assert table["stands"].all()
    assert (table["dip"] >= table["least dip"]).all()
    assert (table["share low"] < table["share"]).all()
    assert (table["share"] < table["share high"]).all()
    assert table["reason"][0].startswith(f"a gap separates it from cluster {table['nearest'][0]} (dip ")
    assert table["reason"][0].endswith("seen in 2 of 2 batches")
    assert found.by_batch.to_numpy().sum(1).tolist() == list(SIZES)
    finer = found.cut(4).evidence
    assert (~finer["stands"]).sum() >= 1
    assert finer["reason"][~finer["stands"]].str.startswith("no gap separates it").all()
    one = found.cut(1).evidence
    assert one["reason"][0].startswith("the only cluster")
    assert one["nearest"].tolist() == [-1]


def test_clusters_that_are_found_stand_in_their_table():
    for seed in range(3):
        result = find(blobs(seed, apart=2.5), seed=seed)
        assert result.evidence["stands"].all()
        standing = result.tree[result.tree["clusters left"] >= result.k]
        assert not standing["stands"].any()


def test_new_cells_get_the_cluster_of_their_neighbours(found):
    code, membership = found.predict(blobs(5))
    np.testing.assert_array_equal(code, TRUTH)
    np.testing.assert_allclose(membership.sum(1), 1)
    np.testing.assert_array_equal(found.predict(blobs())[0], found.code_N)
    with pytest.raises(sm.ScmedleyError, match="3 latent dimensions, the clusters have 6"):
        found.predict(np.ones((2, 3)))


def test_arrays_hold_all_of_it(found):
    again = Clusters.from_arrays({name: a.copy() for name, a in found.arrays().items()})
    assert all(a.dtype.kind in "iufb" for a in found.arrays().values())  # what safetensors can hold
    np.testing.assert_array_equal(again.code_N, found.code_N)
    assert again.evidence.equals(found.evidence)
    assert again.by_batch.equals(found.by_batch)
    np.testing.assert_array_equal(again.cut(2).membership_NK, found.cut(2).membership_NK)
    one_group = find(np.random.default_rng(0).normal(size=(25, 5)))  # a tree without merges
    assert len(one_group.tree) == 0
    assert all(a.dtype.kind in "iufb" for a in one_group.arrays().values())
    assert Clusters.from_arrays(one_group.arrays()).evidence.equals(one_group.evidence)


def test_names_of_batches_are_kept_as_they_are():
    of_batches = find(blobs(), batch_N=["a\nb", ""] * (len(TRUTH) // 2))
    assert Clusters.from_arrays(of_batches.arrays()).by_batch.equals(of_batches.by_batch)


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("near_NS", None, "'near_NS' is missing"),
        ("group_M", lambda a: a[:-1], r"'group_M' has shape \(459,\) instead of \(460,\)"),
        ("cluster_C", lambda a: a - 1, "'cluster_C' has values outside 0"),
        ("group_N", lambda a: a.astype(float), "'group_N' has type float64"),
        ("edges_CC", lambda a: a * np.nan, "'edges_CC' has values that are not finite"),
        ("tree first", lambda a: a * 0, "the merges of the tree do not fit"),
        ("tree becomes", lambda a: a[::-1], "the merges of the tree do not fit"),
        ("batches", lambda a: a[1:], "the names of the batches cannot be read"),
    ],
)
def test_damaged_arrays_are_named(found, name, damage, words):
    arrays = found.arrays()
    arrays = {n: a for n, a in arrays.items() if n != name} | ({name: damage(arrays[name])} if damage else {})
    with pytest.raises(sm.ScmedleyError, match=f"saved clusters are damaged: {words}"):
        Clusters.from_arrays(arrays)


def test_cells_beyond_the_sample_get_theirs_by_neighbours(monkeypatch):
    monkeypatch.setattr(clusters, "MOST_CELLS", 200)
    z = blobs()
    order = np.random.default_rng(0).permutation(len(z))
    result = find(z)
    assert len(result.reference_MP) == 200
    np.testing.assert_array_equal(result.code_N, TRUTH)
    np.testing.assert_array_equal(find(z[order]).code_N, TRUTH[order])
    for coarse, fine in pairwise(result.cut(k) for k in range(1, 8)):
        assert len(set(zip(fine.code_N, coarse.code_N, strict=True))) == len(np.unique(fine.code_N))


def test_k_given():
    z = blobs()
    for k in (1, 2, 7):
        assert len(np.unique(find(z, k).code_N)) == k
    assert len(np.unique(find(z[:50], 20).code_N)) == 20  # more than groups by default
    for k in (0, -1, len(z) + 1):
        with pytest.raises(sm.ScmedleyError, match=f"k={k} clusters of {len(z)} cells: choose k from 1"):
            find(z, k)
    with pytest.raises(sm.ScmedleyError, match="cannot be cut from this tree, which has 1 to"):
        find(z).cut(len(z))
    for wrong in (1.5, True, "1", math.nan):
        with pytest.raises(sm.ScmedleyError, match=r"k=.* must be a whole number"):
            find(z[:50], wrong)
        for name in ("k", "level"):
            with pytest.raises(sm.ScmedleyError, match=rf"{name}=.* must be a whole number"):
                find(z[:50]).cut(**{name: wrong})
    with pytest.raises(sm.ScmedleyError, match=r"level=100 of 1 clusters .* 1 to \d+: .* between these\.$"):
        find(z[:50]).cut(level=100)
    with pytest.raises(sm.ScmedleyError, match=r"k=-1 clusters .* between these\.$"):
        find(z[:50]).cut(-1)
    assert find(z[:50], np.int32(2)).cut(level=np.int64(-1)).k == 1
    for wrong in ({}, {"k": 2, "level": 1}):
        with pytest.raises(sm.ScmedleyError, match="one of k"):
            find(z[:50]).cut(**wrong)


def test_few_equal_and_repeated_cells():
    for n in (1, 2, 3):
        few = find(blobs()[:n])
        assert (few.k, few.membership_NK.tolist()) == (1, [[1.0]] * n)
    assert find(np.ones((50, 3))).k == 1
    with pytest.raises(sm.ScmedleyError, match="k=2 clusters, but the cells form only 1"):
        find(np.ones((50, 3)), 2)
    twice = find(np.repeat(blobs(), 2, axis=0))
    np.testing.assert_array_equal(twice.code_N, np.repeat(TRUTH, 2))


def test_bad_input_is_named():
    z = blobs()
    z[7, 2] = np.nan
    with pytest.raises(sm.ScmedleyError, match=r"not finite in 1 cell\(s\), the first in row 7"):
        find(z)
    for shape in ((0, 3), (5, 0), (5,)):
        with pytest.raises(sm.ScmedleyError, match="Pass a table of cells x dimensions"):
            find(np.ones(shape))
    for seed in (-1, 1.5, "a", None, True):
        with pytest.raises(sm.ScmedleyError, match=r"seed .* must be between 0 and .*, a whole number"):
            find(blobs(), seed=seed)
    with pytest.raises(sm.ScmedleyError, match="no table of numbers"):
        find([["a", "b"], ["c", "d"]])
    with pytest.raises(sm.ScmedleyError, match="too large for distances"):
        find(blobs() * 1e307)
    with pytest.raises(sm.ScmedleyError, match="batch_N has 2 dimensions"):
        find(blobs(), batch_N=np.ones((len(TRUTH), 1)))
    with pytest.raises(sm.ScmedleyError, match="batch_N has 2 cells, the latent has 460"):
        find(blobs(), batch_N=["a", "b"])


def nearest_unimodal(x: np.ndarray) -> float:
    """The dip by linear programs, one for each place of the mode."""
    u, count = np.unique(x, return_counts=True)
    upto = np.cumsum(count) / count.sum()
    below = upto - count / count.sum()
    best = 1.0
    for mode in range(len(u)):
        # Values of F at u[:mode + 1] (from the left), then at u[mode:] (from the right), and the distance.
        at = np.r_[np.arange(mode + 1), np.arange(mode, len(u))]
        rows = []
        for i, j in enumerate(at):
            if i != mode:  # the limit from the left at the mode is not the value there
                rows.append(({i: -1.0, len(at): -1.0}, -upto[j]))
            if i != mode + 1:
                rows.append(({i: 1.0, len(at): -1.0}, below[j]))
        rows += [({i: 1.0, i + 1: -1.0}, 0.0) for i in range(len(at) - 1)]
        for i in range(1, len(at) - 1):
            if i not in (mode, mode + 1):
                left, right = 1 / (u[at[i]] - u[at[i - 1]]), 1 / (u[at[i + 1]] - u[at[i]])
                sign = 1.0 if i < mode else -1.0  # convex before the mode, concave after it
                rows.append(({i: sign * (left + right), i - 1: -sign * left, i + 1: -sign * right}, 0.0))
        table = np.zeros((len(rows), len(at) + 1))
        for row, (values, _) in zip(table, rows, strict=True):
            row[list(values)] = list(values.values())
        cost = np.eye(len(at) + 1)[-1]
        best = min(best, linprog(cost, A_ub=table, b_ub=[r for _, r in rows], bounds=(0, 1)).fun)
    return max(best, 1 / (2 * len(x)))


def test_dip_is_the_distance_from_the_nearest_unimodal_distribution():
    rng = np.random.default_rng(0)
    for i in range(15):
        x = rng.normal(size=rng.integers(4, 12)) + 4 * rng.integers(0, 2)
        x = np.round(np.r_[x, x[:3] - 5]) if i % 3 == 0 else np.r_[x, x[:3] - 5]
        assert dip(x) == pytest.approx(nearest_unimodal(x), abs=1e-6)


def test_dip_of_cases_by_hand_and_its_quantiles():
    assert dip(np.arange(10.0)) == pytest.approx(1 / 20)  # evenly spread: the smallest possible
    assert dip(np.r_[np.zeros(50), np.ones(50)]) == pytest.approx(1 / 4, abs=1e-6)  # the largest
    assert dip(np.ones(8)) == dip(np.arange(8.0)) == 1 / 16
    x = np.random.default_rng(0).normal(size=300)
    assert dip(5 - 3 * x) == pytest.approx(dip(x))
    scaled = np.sqrt(100) * np.array([dip(x) for x in np.random.default_rng(1).random((500, 100))])
    # The thresholds of the rule: p <= .2 and p <= .01 of uniform values (Hartigan & Hartigan 1985, table 1).
    assert np.quantile(scaled, 0.8) == pytest.approx(0.45 - 0.27 / 10, abs=0.02)
    assert np.quantile(scaled, 0.99) == pytest.approx(0.62 - 0.36 / 10, abs=0.04)


def test_split_of_two_blobs_stands_and_of_one_does_not():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 5))
    second = x[:, 0] > 0
    cut = split(x, second, rng, always_ratio=True)
    assert not cut.stands
    assert cut.ratio == pytest.approx(1, abs=0.2)
    x[second, 0] += 5
    apart = split(x, second, rng, always_ratio=True)
    assert apart.stands
    assert apart.ratio < 0.05
    assert not split(x, np.arange(300) < 7, rng).stands  # too few cells
    assert neighbour_ratio(x[:9], second[:9], rng) >= 0


def test_interval_of_a_share_is_that_of_statsmodels():
    from statsmodels.stats.proportion import proportion_confint

    counts = np.array([0, 3, 40, 100])
    np.testing.assert_allclose(
        wilson(counts, 100), proportion_confint(counts, 100, method="wilson"), atol=1e-6
    )


def test_the_cells_of_the_fit_keep_their_clusters() -> None:
    z_NP = np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32)
    z_NP[:200] += 3.0
    found = find(z_NP, 4)  # clusters without gaps, so that neighbours disagree at their borders
    code_N, membership_NK = found.predict(z_NP + np.float32(1e-6))
    np.testing.assert_array_equal(code_N, found.code_N)
    np.testing.assert_array_equal(membership_NK, found.membership_NK)
