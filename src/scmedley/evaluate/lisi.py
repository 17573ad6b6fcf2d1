"""The local inverse Simpson index (LISI): the number of batches, or labels, among a cell's neighbours.

Shapes: N cells, K neighbours, R sets of codes for the same cells, C groups.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from scmedley.data.neighbors import Codes, Neighbors

N_NEIGHBORS = 90  # three neighbours per unit of perplexity, as in Harmony
PERPLEXITY = 30.0
_BISECTIONS = 50  # of log β, from a range of 40: the weights are then exact to the last bit
_BLOCK = 2**14  # cells per block


def lisi(neighbors: Neighbors, codes_RN: Codes, perplexity: float = PERPLEXITY) -> npt.NDArray[np.float64]:
    """Compute the local inverse Simpson index of each cell: the effective number of groups around it.

    The index is 1 / Σ_c p_c², with p_c the summed weights of the neighbours from group c (Korsunsky et al.
    2019). It is 1 if all neighbours are from one group, and the number of groups if all have equal weight.
    Groups of unequal size that are perfectly mixed give less, 1 / Σ_c share_c². It is called iLISI for
    batches and cLISI for labels.

    Parameters
    ----------
    neighbors
        Neighbours of each cell among the same cells without itself, usually 90:
        ``nearest(z_NP, z_NP, 90, exclude_self=True)``.
    codes_RN
        Group of each cell, -1 for none: one set (N), or several (real codes and permutations, R × N) for
        which the weights are computed once.
    perplexity
        Effective number of neighbours; at most a third of the number of neighbours.

    Returns
    -------
    numpy.ndarray
        An index for each cell, in the shape of ``codes_RN``. nan for a cell without a group, or without a
        neighbour that has a group; nan for all cells with fewer than two groups.
    """
    weights_NK = neighbor_weights(neighbors.distances_NK, perplexity)
    sets = [
        _inverse_simpson(neighbors.indices_NK, weights_NK, codes_N) for codes_N in np.atleast_2d(codes_RN)
    ]
    return np.reshape(sets, codes_RN.shape)


def scaled_ilisi(lisi_N: npt.NDArray[np.float64], n_batches: int) -> float:
    """Scale the median index of batches: 0, batches are separate; 1, perfectly mixed (Luecken et al. 2022).

    (median - 1) / (B - 1). Batches of unequal size stay below 1 even if perfectly mixed; compare with the
    null.
    """
    return (median(lisi_N) - 1) / (n_batches - 1) if n_batches > 1 else float("nan")


def scaled_clisi(lisi_N: npt.NDArray[np.float64], n_labels: int) -> float:
    """Scale the median index of K labels: 0, labels are mixed; 1, they are separate (Luecken et al. 2022).

    (K - median) / (K - 1).
    """
    return (n_labels - median(lisi_N)) / (n_labels - 1) if n_labels > 1 else float("nan")


def median(lisi_N: npt.NDArray[np.float64]) -> float:
    """Return the median over the cells that have an index; nan if none has."""
    known = lisi_N[~np.isnan(lisi_N)]
    return float(np.median(known)) if len(known) else float("nan")


def neighbor_weights(distances_NK: npt.NDArray[np.float64], perplexity: float) -> npt.NDArray[np.float64]:
    """Compute weights of each cell's neighbours such that their effective number is the perplexity.

    w_j = exp(-β d_j) / Σ exp(-β d_j), with β of each cell such that the entropy of w is log(perplexity).
    The paper describes Gaussian weights, but its program and all later ones use the distance, not its square;
    so does this function. β is found by bisection of log β.

    Parameters
    ----------
    distances_NK
        Distances to the neighbours; the result does not depend on their unit.
    perplexity
        Effective number of neighbours; clipped to K / 3. If more neighbours than that share the smallest
        distance (copies of a cell), these have equal weights.

    Returns
    -------
    numpy.ndarray
        N × K, each row summing to 1.
    """
    K = distances_NK.shape[1]
    target = np.log(min(perplexity, K / 3))
    weights_NK = np.empty(distances_NK.shape)
    for start in range(0, len(distances_NK), _BLOCK):
        x_NK = distances_NK[start : start + _BLOCK]
        x_NK = x_NK - x_NK.min(axis=1, keepdims=True)  # keeps exp in range; the weights do not change
        mean_N1 = x_NK.mean(axis=1, keepdims=True)
        x_NK = x_NK / np.where(mean_N1 > 0, mean_N1, 1)
        low_N, high_N = np.full(len(x_NK), -15.0), np.full(len(x_NK), 25.0)  # log β
        for _ in range(_BISECTIONS):
            middle_N = (low_N + high_N) / 2
            wide_N = _entropy(x_NK, middle_N) > target
            low_N, high_N = np.where(wide_N, middle_N, low_N), np.where(wide_N, high_N, middle_N)
        w_NK = np.exp(-np.exp(low_N)[:, None] * x_NK)
        weights_NK[start : start + _BLOCK] = w_NK / w_NK.sum(axis=1, keepdims=True)
    return weights_NK


def _entropy(x_NK: npt.NDArray[np.float64], log_beta_N: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the entropy of the weights in nats: log Σ w + β Σ w x / Σ w, with w = exp(-β x)."""
    beta_N = np.exp(log_beta_N)
    w_NK = np.exp(-beta_N[:, None] * x_NK)
    sum_N = w_NK.sum(axis=1)
    entropy_N: npt.NDArray[np.float64] = np.log(sum_N) + beta_N * np.einsum("nk,nk->n", w_NK, x_NK) / sum_N
    return entropy_N


def _inverse_simpson(
    indices_NK: npt.NDArray[np.int64], weights_NK: npt.NDArray[np.float64], codes_N: Codes
) -> npt.NDArray[np.float64]:
    """Compute the inverse Simpson index for one set of codes; neighbours without a group do not count."""
    N, C = len(codes_N), int(codes_N.max(initial=-1)) + 1
    if len(np.unique(codes_N[codes_N >= 0])) < 2:
        return np.full(N, np.nan)
    near_NK = codes_N[indices_NK]
    counted = near_NK >= 0
    rows_NK = np.broadcast_to(np.arange(N)[:, None], near_NK.shape)
    pairs = rows_NK[counted] * C + near_NK[counted]  # of cell and group
    sum_NC = np.bincount(pairs, weights_NK[counted], minlength=N * C).reshape(N, C)
    square_N = (sum_NC**2).sum(axis=1)
    scored = (codes_N >= 0) & (square_N > 0)
    lisi_N = np.full(N, np.nan)
    lisi_N[scored] = sum_NC.sum(axis=1)[scored] ** 2 / square_N[scored]
    return lisi_N
