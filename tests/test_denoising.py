"""Molecular cross-validation: scanpy and scikit-learn as oracles, what must beat what, and bad input."""

import statistics
import sys

import anndata
import numpy as np
import pytest
import scanpy as sc
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_matrix
from sklearn.metrics import mean_squared_error

from scmedley.errors import ScmedleyError
from scmedley.evaluate import denoising, knn_smoothed, low_rank, split_counts


@pytest.fixture(scope="module")
def simulated() -> tuple[np.ndarray, np.ndarray]:
    """Expected counts of 300 cells of three types x 80 genes, and Poisson counts."""
    rng = np.random.default_rng(0)
    share_KG = rng.dirichlet(np.full(80, 0.4), 3)
    mean_NG = share_KG[rng.integers(0, 3, 300)] * rng.lognormal(4.5, 0.3, (300, 1))
    return mean_NG, rng.poisson(mean_NG)


def by_open_problems(denoised: np.ndarray, train: np.ndarray, test: np.ndarray) -> tuple[float, float]:
    """The definitions of Open Problems (task_denoising), with scanpy and scikit-learn."""
    pair = [anndata.AnnData(np.array(x, float)) for x in (test, denoised)]
    for adata in pair:
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
    scaled = denoised * test.sum() / train.sum()
    return mean_squared_error(pair[0].X, pair[1].X), float((scaled - test * np.log(scaled + 1e-6)).mean())


@pytest.mark.filterwarnings("ignore:Some cells have zero counts")
@pytest.mark.parametrize("sparse", [True, False])
def test_scores_are_those_of_open_problems(simulated, sparse: bool, monkeypatch) -> None:
    monkeypatch.setattr(sys.modules["scmedley.evaluate.denoising"], "BLOCK", 70)
    mean, counts = simulated
    train, test = split_counts(counts, seed=1)
    given = [csr_matrix(x) if sparse else x for x in (mean * 0.9, train, test)]
    found = denoising(*given)
    mse, poisson = by_open_problems(mean * 0.9, train, test)
    assert_allclose([found["mse"], found["poisson"]], [mse, poisson], rtol=1e-6)


@pytest.mark.parametrize("sparse", [True, False])
def test_split_is_binomial_and_sums_to_the_counts(simulated, sparse: bool) -> None:
    counts = simulated[1]
    train, test = split_counts(csr_matrix(counts) if sparse else counts, 0.7, seed=3)
    train, test = (x.toarray() if sparse else x for x in (train, test))
    assert_array_equal(train + test, counts)
    assert train.sum() / counts.sum() == pytest.approx(0.7, abs=0.01)
    large = counts >= 5
    spread = ((train - 0.7 * counts)[large] ** 2 / (0.21 * counts[large])).mean()
    assert spread == pytest.approx(1, abs=0.15)  # that of a binomial, not of a rounded share
    again = split_counts(csr_matrix(counts) if sparse else counts, 0.7, seed=3)[0]
    assert_array_equal(again.toarray() if sparse else again, train)


@pytest.mark.parametrize("as_type", [np.asarray, csr_matrix])
def test_baselines_come_nearer_to_the_truth_than_the_counts(simulated, as_type) -> None:
    mean, counts = simulated
    train, test = split_counts(as_type(counts), seed=0)
    none = denoising(train, train, test)
    truth = denoising(mean * 0.9, train, test)
    for smooth in (knn_smoothed(train), low_rank(train, 3), low_rank(train, 3, thresholded=False)):
        assert smooth.dtype == np.float32
        assert smooth.min() >= 0
        found = denoising(smooth, train, test)
        assert truth["poisson"] < found["poisson"] < none["poisson"]


def test_neighbours_are_the_cells_of_the_type() -> None:
    """Two types without a common gene: the mean of a cell's neighbours has none of the other type's."""
    rng = np.random.default_rng(0)
    counts = np.zeros((40, 20))
    counts[:20, :10], counts[20:, 10:] = rng.poisson(5, (20, 10)), rng.poisson(5, (20, 10))
    smooth = knn_smoothed(counts, k=5, n_components=3)
    assert (smooth[:20, 10:] == 0).all()
    assert_allclose(smooth.sum(1), counts.sum(1), rtol=1e-5)
    one = knn_smoothed(counts, k=2, n_components=3)
    assert not np.allclose(one, counts)


def test_low_rank_keeps_what_was_observed_and_adds_no_gene(simulated) -> None:
    counts = simulated[1].copy()
    counts[:, 7] = 0
    found = low_rank(counts)
    assert ((found > 0) >= (counts > 0)).all()
    assert (found[:, 7] == 0).all()
    assert np.isfinite(found).all()


@pytest.mark.parametrize("n_values", [40, 100])
def test_rank_is_the_last_singular_value_that_stands_out(n_values: int) -> None:
    spacings = np.random.default_rng(0).uniform(0.9, 1.1, n_values)
    spacings[[0, 2]] = 30, 9
    values = np.cumsum(spacings[::-1])[::-1]
    assert sys.modules["scmedley.evaluate.denoising"]._rank(values) == 3


def test_rank_is_that_of_linderman_s_rule() -> None:
    """Noise: the 21 distances from the 79th to the 100th singular value, with their sample standard deviation."""
    rank = sys.modules["scmedley.evaluate.denoising"]._rank
    rng = np.random.default_rng(0)
    spacings = rng.uniform(0.9, 1.1, 99)
    spacings[78] = 1.4  # between the 79th and the 80th
    mean, sd = statistics.mean(spacings[78:]), statistics.stdev(spacings[78:])
    for distance, expected in ((5.9 * sd, 3), (6.1 * sd, 41)):
        spacings[[2, 40]] = 9, mean + distance
        assert rank(np.append(np.cumsum(spacings[::-1])[::-1], 0)) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, a, b: (d[:5], a, b), "same cells, genes"),
        (lambda d, a, b: (-d - 1, a, b), "denoised matrix has negative values"),
        (lambda d, a, b: (d * np.nan, a, b), "not finite"),
        (lambda d, a, b: (d, a, b * 0), "is empty"),
    ],
)
def test_bad_matrices(simulated, change, message: str) -> None:
    train, test = split_counts(simulated[1])
    with pytest.raises(ScmedleyError, match=message):
        denoising(*change(simulated[0], train, test))


def test_bad_splits() -> None:
    with pytest.raises(ScmedleyError, match="whole numbers"):
        split_counts(np.array([[0.5, 1]]))
    with pytest.raises(ScmedleyError, match="share=1 must"):
        split_counts(np.array([[2, 1]]), share=1)
