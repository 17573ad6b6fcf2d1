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


def over_clusters(z_NP: Floats, n_groups: int, seed: int) -> Codes:
    """Return the group of each cell: k-means with many centres."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    kmeans = KMeans(n_groups, n_init=1, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct cells than groups
        group_N = np.asarray(kmeans.fit_predict(z_NP), dtype=np.int64)
    return np.unique(group_N, return_inverse=True)[1]


def number_of_groups(n_cells: int) -> int:
    """Return the number of groups of so many cells."""
    return min(n_cells, int(np.clip(n_cells // CELLS_PER_GROUP, FEWEST, MOST)))


def counts(code_NK: Codes, n_codes: int) -> Codes:
    """Return how often each code occurs in each row, N x C."""
    rows_N = np.arange(len(code_NK))[:, None]
    flat = np.bincount((rows_N * n_codes + code_NK).ravel(), minlength=len(code_NK) * n_codes)
    return np.asarray(flat.reshape(len(code_NK), n_codes))


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
