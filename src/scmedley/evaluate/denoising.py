"""How good is a denoised matrix? Molecular cross-validation (Batson et al. 2019), and simple methods to beat.

The molecules of each cell are split at random into two parts. A method denoises one part, and is scored on the
other, which has the same cells and the same expression, but independent noise.

Shapes: N cells, G genes, K neighbours, P components.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, issparse

from scmedley.data.arrays import Matrix, Numbers, dense, log1p_cp10k, numeric, tidy, totals
from scmedley.data.evidence import TARGET_SUM
from scmedley.data.neighbors import Floats, nearest
from scmedley.errors import ScmedleyError, check_seed

OFFSET = 1e-6  # added to means before the logarithm, as by Open Problems
BLOCK = 1024  # cells that are scored at once
NOISE = (
    80,
    100,
)  # ALRA: the first and last singular value taken for noise, each with its distance to the one before
OUTLYING = 6.0  # ALRA: standard deviations above the spacing of noise
NEGATIVE = 0.001  # ALRA: quantile of a gene's values whose size separates zeros from values


def split_counts(counts_NG: Numbers, share: float = 0.9, seed: int = 0) -> tuple[Matrix, Matrix]:
    """Split the molecules of each cell at random; return the part to denoise and the part to score with.

    Every molecule is in the first part with probability ``share`` (a binomial draw for each count), so the parts
    sum to the counts. If counts are Poisson, the parts are independent given the expression.

    Parameters
    ----------
    counts_NG
        Whole numbers, CSR or dense.
    share
        Expected share of the first part, between 0 and 1.
    seed
        Random seed.

    Raises
    ------
    ScmedleyError
        Values that are not counts, or a share that is not between 0 and 1.
    """
    check_seed(seed)
    if not 0 < share < 1:
        raise ScmedleyError(f"share={share!r} must be between 0 and 1.")
    x_NG = numeric(counts_NG)
    x_NG = csr_matrix(x_NG, copy=True) if issparse(x_NG) else np.array(x_NG)
    values = x_NG if isinstance(x_NG, np.ndarray) else x_NG.data
    if values.size and not (
        np.isfinite(values).all() and values.min() >= 0 and (values == np.rint(values)).all()
    ):
        raise ScmedleyError("Molecules are counted in whole numbers. Pass counts, such as layers['counts'].")
    drawn = np.random.default_rng(seed).binomial(values.astype(np.int64), share).astype(np.float32)
    rest = (values - drawn).astype(np.float32)
    if isinstance(x_NG, np.ndarray):
        return drawn, rest
    parts = [
        csr_matrix((data, x_NG.indices.copy(), x_NG.indptr.copy()), x_NG.shape) for data in (drawn, rest)
    ]
    for part in parts:
        part.eliminate_zeros()
    return parts[0], parts[1]


def denoising(denoised_NG: Numbers, train_NG: Numbers, test_NG: Numbers) -> dict[str, float]:
    """Return the two scores of a denoised matrix, as Open Problems defines them (task_denoising); lower is better.

    Parameters
    ----------
    denoised_NG
        Expected counts, made from ``train_NG`` alone and in its unit: its rows have about the same totals.
    train_NG, test_NG
        The two parts of :func:`split_counts`.

    Returns
    -------
    dict
        ``"mse"``: mean squared error between denoised and held-out counts, each divided by the cell's total,
        multiplied by 10,000, and log1p-transformed; it favours the mean of logarithms. ``"poisson"``: mean of
        m - x log(m + 1e-6), where x are the held-out counts and m the denoised ones times the ratio of all
        held-out to all training counts: the negative log-likelihood without log(x!), in nats per cell and gene.

    Raises
    ------
    ScmedleyError
        Matrices of different shapes; values that are negative or not finite; no counts.
    """
    names = ("The denoised matrix", "The training part", "The test part")
    given = [numeric(x) for x in (denoised_NG, train_NG, test_NG)]
    for name, x in zip(names, given, strict=True):
        _check(name, x, given[0].shape)
    denoised, train, test = given
    train_sum, test_sum = (float(x.sum(dtype=np.float64)) for x in (train, test))
    if not (train_sum and test_sum):
        raise ScmedleyError("A part of the molecules is empty. Use more cells, or another share.")
    squares = losses = 0.0
    for start in range(0, test.shape[0], BLOCK):
        rows = slice(start, start + BLOCK)
        d_NG, x_NG = (dense(x[rows]).astype(np.float64) for x in (denoised, test))
        squares += float(np.square(_log_normalised(d_NG) - _log_normalised(x_NG)).sum())
        m_NG = d_NG * (test_sum / train_sum)
        losses += float((m_NG - x_NG * np.log(m_NG + OFFSET)).sum())
    size = test.shape[0] * test.shape[1]
    return {"mse": squares / size, "poisson": losses / size}


def knn_smoothed(counts_NG: Numbers, k: int = 15, n_components: int = 50, seed: int = 0) -> Floats:
    """Return the mean expression of each cell and its neighbours, times the cell's total; dense float32.

    Parameters
    ----------
    counts_NG
        Counts.
    k
        Number of cells in each mean, the cell itself included.
    n_components
        Principal components of log1p CP10k in which neighbours are near; fewer if there are few cells or genes.
    seed
        Random seed of the components.
    """
    from sklearn.decomposition import PCA

    x_NG = tidy(counts_NG)
    total_N = totals(x_NG)
    n_components = min(n_components, min(x_NG.shape) - 1)
    found = PCA(n_components, svd_solver="arpack", random_state=seed)
    z_NP = found.fit_transform(log1p_cp10k(x_NG, total_N))
    indices_NK = nearest(z_NP, z_NP, k - 1, exclude_self=True).indices_NK
    n_cells, n_others = indices_NK.shape
    columns = np.column_stack([np.arange(n_cells), indices_NK]).ravel()
    weights = np.full(columns.size, 1 / (n_others + 1), np.float32)
    mean_NN = csr_matrix((weights, columns, np.arange(0, columns.size + 1, n_others + 1)), (n_cells, n_cells))
    share_NG = (
        x_NG / np.maximum(total_N, 1)[:, None] if isinstance(x_NG, np.ndarray) else _divided(x_NG, total_N)
    )
    smooth: Any = mean_NN @ share_NG
    return np.asarray(dense(smooth) * total_N[:, None], dtype=np.float32)


def low_rank(
    counts_NG: Numbers, rank: int | None = None, *, thresholded: bool = True, seed: int = 0
) -> Floats:
    """Return a low-rank approximation, by default thresholded as by ALRA (Linderman et al. 2022); dense float32.

    log1p CP10k is replaced by its truncated singular value decomposition. In each gene, values that are smaller
    than the size of the most negative ones become 0, since a true zero may come out as far on either side; the
    others get the mean and the standard deviation of the gene's observed values. A value that was observed and
    becomes 0 keeps its observed value. The result is converted to counts of the cell's total.

    Parameters
    ----------
    counts_NG
        Counts.
    rank
        Number of singular values; ``None``: up to the last whose distance to the next exceeds the mean distance
        between those from the 79th to the 100th by six standard deviations.
    thresholded
        Whether to set small values to 0 and to rescale the others, as above; otherwise only negative values become 0.
    seed
        Random seed of the decomposition.
    """
    from sklearn.utils.extmath import randomized_svd

    x_NG = tidy(counts_NG)
    total_N = totals(x_NG)
    log1p: Any = log1p_cp10k(x_NG, total_N)
    n_values = min(NOISE[1], min(x_NG.shape) - 1) if rank is None else min(rank, min(x_NG.shape))
    u_NP, s_P, v_PG = randomized_svd(log1p, n_values, n_iter=10, random_state=seed)
    rank = _rank(s_P) if rank is None else n_values
    low_NG = (u_NP[:, :rank] * s_P[:rank]) @ v_PG[:rank]
    if thresholded:
        low_NG = _thresholded(low_NG, dense(log1p))
    return np.asarray(np.expm1(np.maximum(low_NG, 0)) * (total_N / TARGET_SUM)[:, None], dtype=np.float32)


def _thresholded(low_NG: Floats, seen_NG: Floats) -> Floats:
    """Return ALRA's values from the approximation and the observed values."""
    threshold_G = np.abs(np.quantile(low_NG, NEGATIVE, axis=0))
    low_NG = np.where((low_NG <= threshold_G) | ~(seen_NG > 0).any(0), 0, low_NG)
    mean_G, sd_G = _of_positive(low_NG)
    to_mean_G, to_sd_G = _of_positive(seen_NG)
    ratio_G = np.divide(to_sd_G, sd_G, out=np.ones_like(sd_G), where=(sd_G > 0) & (to_sd_G > 0))
    low_NG = np.where(low_NG > 0, np.maximum((low_NG - mean_G) * ratio_G + to_mean_G, 0), 0)
    return np.where((low_NG == 0) & (seen_NG > 0), seen_NG, low_NG)


def _rank(s_P: Floats) -> int:
    """Return how many singular values stand out from noise (ALRA)."""
    spacing_P = s_P[:-1] - s_P[1:]
    # With too few singular values for the rule, half of them are noise.
    start = NOISE[0] - 2 if len(s_P) >= NOISE[0] + 5 else len(spacing_P) // 2
    noise = spacing_P[start:]
    spread = noise.std(ddof=1) if len(noise) > 1 else 0.0
    above = np.flatnonzero(spacing_P > noise.mean() + OUTLYING * spread)
    return int(above[-1]) + 1 if len(above) else 1


def _of_positive(x_NG: Floats) -> tuple[Floats, Floats]:
    """Return mean and standard deviation of each gene's values above 0."""
    n_G = np.maximum((x_NG > 0).sum(0), 1)
    mean_G = x_NG.sum(0) / n_G
    variance_G = np.where(x_NG > 0, np.square(x_NG - mean_G), 0).sum(0) / n_G
    return mean_G, np.sqrt(variance_G)


def _divided(x_NG: csr_matrix, total_N: Floats) -> csr_matrix:
    """Return each cell's shares."""
    out = x_NG.copy()
    out.data = out.data / np.repeat(np.maximum(total_N, 1), np.diff(out.indptr))
    return out


def _log_normalised(x_NG: Floats) -> Floats:
    total_N1 = x_NG.sum(1, keepdims=True)
    scaled_NG = x_NG * np.divide(TARGET_SUM, total_N1, out=np.zeros_like(total_N1), where=total_N1 > 0)
    return np.asarray(np.log1p(scaled_NG))


def _check(name: str, x_NG: Matrix, shape: tuple[int, ...]) -> None:
    if x_NG.shape != shape:
        raise ScmedleyError(
            f"{name} has shape {x_NG.shape}, and the denoised matrix {shape}. Use the same cells, genes."
        )
    values = x_NG if isinstance(x_NG, np.ndarray) else x_NG.data
    if values.size and not (np.isfinite(values).all() and values.min() >= 0):
        raise ScmedleyError(
            f"{name} has negative values, or values that are not finite. Pass (expected) counts."
        )
