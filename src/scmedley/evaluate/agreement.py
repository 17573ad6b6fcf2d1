"""Agreement of clusters of an embedding with the labels, and k-means clusters.

Shapes: N cells, P latent dimensions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt

from scmedley.data.neighbors import Codes, Floats


def kmeans_clusters(z_NP: Floats, n_clusters: int, seed: int) -> npt.NDArray[np.int64]:
    """Cluster cells by k-means (scikit-learn; the best of 10 starts).

    Parameters
    ----------
    z_NP
        Embedding, finite.
    n_clusters
        Usually the number of labels; at most the number of cells.
    seed
        Random seed of the starts.

    Returns
    -------
    numpy.ndarray
        Cluster of each cell. There are fewer clusters if fewer cells are distinct.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    kmeans = KMeans(n_clusters, n_init=10, random_state=seed)
    with warnings.catch_warnings(), threadpool_limits(1):  # threads change the order of sums
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct cells than clusters
        return np.asarray(kmeans.fit_predict(np.asarray(z_NP, dtype=np.float64)), dtype=np.int64)


def ari(clusters_N: Codes, codes_N: Codes) -> float:
    """Compute the adjusted Rand index (Hubert & Arabie 1985): 0 by chance, 1 if clusters equal labels.

    It counts the pairs of cells for which clusters and labels agree on whether both cells are in one group,
    and corrects for the number expected from the group sizes.

    Parameters
    ----------
    clusters_N, codes_N
        Cluster and label of each cell; cells with -1 in either are left out. nan with fewer than two labels.
    """
    from sklearn.metrics import adjusted_rand_score

    return _scored(adjusted_rand_score, clusters_N, codes_N)


def nmi(clusters_N: Codes, codes_N: Codes, mean: Literal["arithmetic", "max"] = "arithmetic") -> float:
    """Compute the normalised mutual information: 1 if clusters equal labels, above 0 by chance.

    I(clusters, labels) / mean(H(clusters), H(labels)).

    Parameters
    ----------
    clusters_N, codes_N
        Cluster and label of each cell; cells with -1 in either are left out. nan with fewer than two labels.
    mean
        "arithmetic", or "max" (the larger entropy, as in DeepBID; the value is never above that of
        "arithmetic").
    """
    from sklearn.metrics import normalized_mutual_info_score

    return _scored(partial(normalized_mutual_info_score, average_method=mean), clusters_N, codes_N)


def homogeneity(clusters_N: Codes, codes_N: Codes) -> float:
    """Compute the homogeneity (Rosenberg & Hirschberg 2007): 1 if every cluster has cells of one label only.

    1 - H(labels | clusters) / H(labels). Splitting a label costs nothing, so read it with the completeness.

    Parameters
    ----------
    clusters_N, codes_N
        Cluster and label of each cell; cells with -1 in either are left out. nan with fewer than two labels.
    """
    from sklearn.metrics import homogeneity_score

    return _scored(homogeneity_score, clusters_N, codes_N)


def completeness(clusters_N: Codes, codes_N: Codes) -> float:
    """Compute the completeness: 1 if all cells of a label are in one cluster.

    1 - H(clusters | labels) / H(clusters). Merging labels costs nothing, so read it with the homogeneity.

    Parameters
    ----------
    clusters_N, codes_N
        Cluster and label of each cell; cells with -1 in either are left out. nan with fewer than two labels.
    """
    from sklearn.metrics import completeness_score

    return _scored(completeness_score, clusters_N, codes_N)


def _scored(score: Callable[[Codes, Codes], float], clusters_N: Codes, codes_N: Codes) -> float:
    """Return the score of the cells that have a cluster and a label; nan with fewer than two labels."""
    kept = (clusters_N >= 0) & (codes_N >= 0)
    clusters_N, codes_N = clusters_N[kept], codes_N[kept]
    return float(score(codes_N, clusters_N)) if len(np.unique(codes_N)) > 1 else float("nan")
