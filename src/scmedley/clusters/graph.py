"""The graph of nearest neighbours, and its over-clustering into more groups than there can be clusters.

Shapes: N cells, P latent dimensions, K neighbours, C groups.
"""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]

N_NEIGHBORS = 15
CELLS_PER_GROUP = 40
FEWEST, MOST = 20, 100  # groups
ROUNDS = 3  # of moving each cell to the group of most of its neighbours
MOST_POINTS = 2000  # of Ward's method, which takes the square of their number in time and memory


def over_clusters(z_NP: Floats, near_NK: Codes, n_groups: int, seed: int, least: int = 1) -> Codes:
    """Return the group of each cell: Ward's method, then borders are moved to where few neighbours are.

    Of many cells, Ward's method clusters the centres of k-means. Moving stops before fewer than ``least`` groups are
    left.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    point_N, x_MP = np.arange(len(z_NP)), z_NP
    if len(z_NP) > MOST_POINTS:
        point_N, x_MP = _centres(z_NP, seed)
    if len(x_MP) < 2:
        return np.zeros(len(z_NP), dtype=np.int64)
    group_N = fcluster(linkage(x_MP, "ward"), n_groups, "maxclust")[point_N].astype(np.int64)
    for _ in range(ROUNDS):
        moved_N = majority(group_N[near_NK], group_N)
        if len(np.unique(moved_N)) < least:
            break
        group_N = moved_N
    return np.unique(group_N, return_inverse=True)[1]


def _centres(z_NP: Floats, seed: int) -> tuple[Codes, Floats]:
    """Return the k-means centre of each cell, and the centres."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    kmeans = KMeans(MOST_POINTS // 2, n_init=1, init="random", max_iter=10, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct cells than centres
        point_N = kmeans.fit_predict(z_NP)
    used, point_N = np.unique(point_N, return_inverse=True)
    return point_N, np.asarray(kmeans.cluster_centers_[used], dtype=np.float64)


def number_of_groups(n_cells: int) -> int:
    """Return the number of groups of so many cells."""
    return min(n_cells, int(np.clip(n_cells // CELLS_PER_GROUP, FEWEST, MOST)))


def counts(code_NK: Codes, n_codes: int) -> Codes:
    """Return how often each code occurs in each row, N x C."""
    rows_N = np.arange(len(code_NK))[:, None]
    flat = np.bincount((rows_N * n_codes + code_NK).ravel(), minlength=len(code_NK) * n_codes)
    return np.asarray(flat.reshape(len(code_NK), n_codes))


def majority(code_NK: Codes, own_N: Codes) -> Codes:
    """Return the most frequent code of each row; a cell's own where none is more frequent."""
    count_NC = counts(code_NK, int(max(code_NK.max(), own_N.max())) + 1)
    best_N = count_NC.argmax(axis=1)
    rows_N = np.arange(len(own_N))
    return np.where(count_NC[rows_N, own_N] >= count_NC[rows_N, best_N], own_N, best_N)


def edges(group_N: Codes, near_NK: Codes) -> Floats:
    """Return the number of neighbours that two groups have in each other, C x C, symmetric, diagonal 0.

    ``near_NK`` are the groups of each cell's neighbours.
    """
    n_groups = int(group_N.max()) + 1
    pair_NK = group_N[:, None] * n_groups + near_NK
    count_CC = np.bincount(pair_NK.ravel(), minlength=n_groups**2).reshape(n_groups, n_groups)
    count_CC = count_CC + count_CC.T
    np.fill_diagonal(count_CC, 0)
    return count_CC.astype(np.float64)
