"""Metrics and neighbours against scikit-learn, and what must hold for any embedding."""

import numpy as np
import pytest
from sklearn.metrics import calinski_harabasz_score, davies_bouldin_score, silhouette_score
from sklearn.metrics.pairwise import cosine_distances, euclidean_distances

from scmedley.data.neighbors import nearest
from scmedley.evaluate import metrics
from scmedley.evaluate.metrics import asw, bras, calinski_harabasz, inverse_davies_bouldin, silhouettes

Z = np.random.default_rng(1).normal(size=(60, 4)).astype(np.float32)
CODES = np.random.default_rng(2).integers(0, 4, 60)
ALL = {
    "asw": lambda z, codes: asw(z, codes, seed=0),
    "calinski_harabasz": calinski_harabasz,
    "inverse_davies_bouldin": inverse_davies_bouldin,
}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("codes", [CODES, np.r_[7, CODES[1:]], CODES * 3], ids=["plain", "singleton", "gaps"])
def test_metrics_are_those_of_scikit_learn(codes: np.ndarray) -> None:
    z = Z.astype(float)
    assert asw(Z, codes, seed=0) == pytest.approx(silhouette_score(z, codes), abs=1e-12)
    assert calinski_harabasz(Z, codes) == pytest.approx(calinski_harabasz_score(z, codes))
    assert inverse_davies_bouldin(Z, codes) == pytest.approx(1 / davies_bouldin_score(z, codes))


def test_silhouettes_of_many_codes_are_those_of_each_in_any_chunk(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = np.where(CODES == 3, 0, CODES)  # one group fewer than the other rows
    codes_RN = np.stack([CODES, rng.permutation(CODES), few])
    expected = [silhouette_score(Z.astype(float), codes) for codes in codes_RN]
    np.testing.assert_allclose(silhouettes(Z, codes_RN), expected, atol=1e-12)
    monkeypatch.setattr(metrics, "_CHUNK", 60 * 7)  # 7 cells at once: the last chunk is smaller
    np.testing.assert_allclose(silhouettes(Z, codes_RN), expected, atol=1e-12)


@pytest.mark.parametrize("metric", ALL.values(), ids=ALL.keys())
def test_what_does_not_matter(rng: np.random.Generator, metric) -> None:  # type: ignore[no-untyped-def]
    value = metric(Z, CODES)
    order = rng.permutation(60)
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    assert metric(Z[order], CODES[order]) == pytest.approx(value)
    assert metric(Z, 3 - CODES) == pytest.approx(value)
    assert metric(5 * Z @ rotation + 2, CODES) == pytest.approx(value, rel=1e-4)
    with_missing = np.r_[CODES, [-1, -1]]
    assert metric(np.r_[Z, [[1e3] * 4, [-1e3] * 4]], with_missing) == pytest.approx(value)


@pytest.mark.parametrize("metric", ALL.values(), ids=ALL.keys())
def test_groups_apart_score_higher(metric) -> None:  # type: ignore[no-untyped-def]
    assert metric(Z + 10 * CODES[:, None], CODES) > metric(Z + CODES[:, None], CODES) > metric(Z, CODES)


@pytest.mark.parametrize("metric", ALL.values(), ids=ALL.keys())
@pytest.mark.parametrize(
    "codes",
    [
        np.zeros(60, int),
        np.full(60, -1),
        np.arange(60),
        np.r_[0, 1, np.full(58, -1)],
        np.r_[0, np.full(59, -1)],
    ],
    ids=["one group", "none", "groups of one cell", "two cells", "one cell"],
)
def test_nan_where_there_is_nothing_to_compare(metric, codes: np.ndarray) -> None:  # type: ignore[no-untyped-def]
    assert np.isnan(metric(Z, codes))


def test_collapsed_embedding_shows_no_structure() -> None:
    z = np.ones((60, 4))
    assert asw(z, CODES, seed=0) == 0
    assert calinski_harabasz(z, CODES) == 1
    assert np.isnan(inverse_davies_bouldin(z, CODES))


def test_asw_draws_cells_with_the_seed(rng: np.random.Generator) -> None:
    z, codes = rng.normal(size=(500, 3)) + CODES.repeat(9)[:500, None], CODES.repeat(9)[:500]
    first = asw(z, codes, seed=1, max_cells=100)
    assert first == asw(z, codes, seed=1, max_cells=100)
    assert first != asw(z, codes, seed=2, max_cells=100)
    assert first == pytest.approx(asw(z, codes, seed=0), abs=0.1)


def plain_bras(z: np.ndarray, batch: np.ndarray, label: np.ndarray) -> float:
    """Cell by cell, from all pairs of cells."""
    per_label = []
    for one in np.unique(label):
        z_, batch_ = z[label == one], batch[label == one]
        if not 2 <= len(np.unique(batch_)) < len(batch_):
            continue
        scored = []
        for distance, own in zip(cosine_distances(z_), batch_[:, None] == batch_, strict=True):
            a, b = distance[own].sum() / max(own.sum() - 1, 1), distance[~own].mean()
            scored.append(1 - abs(b - a) / max(a, b) if own.sum() > 1 else 1.0)
        per_label.append(np.mean(scored))
    return float(np.mean(per_label))


# Unequal batches and labels; label 3 has one batch; label 4 a batch of one cell.
BATCH = np.r_[np.random.default_rng(3).choice(3, 45, p=[0.6, 0.25, 0.15]), [1] * 5, [0] * 9, 2]
LABEL = np.r_[np.random.default_rng(4).choice(3, 45, p=[0.5, 0.3, 0.2]), [3] * 5, [4] * 10]


def test_bras_is_that_of_plain_loops() -> None:
    z = Z.astype(float) + np.eye(4)[BATCH]
    assert bras(z, BATCH, LABEL) == pytest.approx(plain_bras(z, BATCH, LABEL), abs=1e-12)
    assert bras(z, BATCH, LABEL) < bras(Z, BATCH, LABEL) - 0.05


def test_bras_is_that_of_scib_metrics() -> None:
    import scib_metrics as scib

    z = Z.astype(float) + np.eye(4)[BATCH]
    assert bras(z, BATCH, LABEL) == pytest.approx(scib.bras(z, LABEL, BATCH), abs=1e-5)


def test_bras_by_hand() -> None:
    z = np.array([[1, 0], [1, 0], [0, 2], [0, 2]])  # distance 0 or 1
    one = np.zeros(4, int)
    assert bras(z, np.array([0, 0, 1, 1]), one) == pytest.approx(0)  # a = 0, b = 1
    assert bras(z, np.array([0, 1, 0, 1]), one) == pytest.approx(1 / 2)  # a = 1, b = 1 / 2
    z = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])
    assert bras(z, np.array([0, 0, 1, 1]), one) == pytest.approx(1 / 2)  # a = 2, b = 1


def test_bras_sees_nested_batches_which_the_silhouette_does_not(rng: np.random.Generator) -> None:
    batch, one = np.repeat(np.arange(4), 100), np.zeros(400, int)
    z = 0.3 * rng.normal(size=(400, 3)) + np.eye(3)[batch // 2]  # batches apart, but two by two
    assert abs(asw(z, batch, seed=0)) < 0.05
    assert bras(z, batch, one) < 0.6
    assert bras(z, rng.permutation(batch), one) > 0.8


def test_bras_what_does_not_matter(rng: np.random.Generator) -> None:
    z = Z.astype(float)
    value, order = bras(z, BATCH, LABEL), rng.permutation(60)
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    assert bras(z[order], BATCH[order], LABEL[order]) == pytest.approx(value)
    assert bras(5 * z @ rotation, 7 - BATCH, 9 - 2 * LABEL) == pytest.approx(value)
    more = np.r_[z, rng.normal(size=(4, 4))]
    with_missing = bras(more, np.r_[BATCH, [-1, -1, 0, 1]], np.r_[LABEL, [0, 1, -1, -1]])
    assert with_missing == pytest.approx(value)


def test_bras_of_what_cannot_be_scored() -> None:
    one = np.zeros(60, int)
    assert np.isnan(bras(Z, one, one))
    assert np.isnan(bras(Z, np.arange(60), one))
    assert np.isnan(bras(Z, CODES, np.full(60, -1)))
    assert bras(np.full((60, 4), 0.1), CODES, one) == 1  # all in one direction
    assert bras(np.zeros((60, 4)), CODES, one) == 1


def test_nearest_against_all_distances() -> None:
    query, reference = Z[:20], Z[20:]
    found = nearest(query, reference, 5)
    distances = euclidean_distances(query.astype(float), reference.astype(float))
    np.testing.assert_array_equal(found.indices_NK, np.argsort(distances, axis=1)[:, :5])
    np.testing.assert_allclose(found.distances_NK, np.sort(distances, axis=1)[:, :5])


def test_nearest_without_self_even_among_copies() -> None:
    z = np.r_[Z[:5], Z[:5]]
    found = nearest(z, z, 3, exclude_self=True)
    np.testing.assert_array_equal(found.indices_NK[:, 0], (np.arange(10) + 5) % 10)
    assert not (found.indices_NK == np.arange(10)[:, None]).any()


def test_nearest_clips_k_and_orders_ties() -> None:
    found = nearest(np.zeros((1, 2)), np.array([[0, 1], [1, 0], [0, 0.5], [0, -1]]), 99)
    assert found.indices_NK.tolist() == [[2, 0, 1, 3]]
    z = np.zeros((3, 2))
    assert nearest(z, z, 99, exclude_self=True).indices_NK.shape == (3, 2)


def test_nearest_says_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="query to be the reference"):
        nearest(Z[:5], Z[5:10], 3, exclude_self=True)
    with pytest.raises(ValueError, match="no neighbours"):
        nearest(Z, Z[:0], 3)
