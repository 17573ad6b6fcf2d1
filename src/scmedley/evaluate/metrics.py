"""Metrics of how compact and how well separated groups of cells (batches or labels) are in an embedding.

Cells with code -1 (value missing) are left out. A metric is nan when the other cells form fewer than two
groups, or as many groups as cells.

Shapes: N cells, P latent dimensions, R sets of codes for the same cells, C groups.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from scmedley.data.neighbors import Codes, Floats

_CHUNK = 2**23  # distances held at once: 64 MB


def asw(z_NP: Floats, codes_N: Codes, seed: int, max_cells: int = 10_000) -> float:
    """Compute the average silhouette width, -1 (groups interleaved) to 1 (groups compact and far apart).

    The silhouette of a cell is (b - a) / max(a, b). Here a is its mean distance to the other cells of its
    group, and b its mean distance to the nearest other group (Rousseeuw 1987). It is not rescaled. The only
    cell of a group counts 0.

    Parameters
    ----------
    z_NP
        Embedding, finite.
    codes_N
        Group of each cell, -1 for none.
    seed
        Random seed of the draw when there are more than ``max_cells`` cells.
    max_cells
        Maximum number of cells; the cost grows with its square.
    """
    z_NP, codes_N = _grouped(z_NP, codes_N)
    cells = draw(len(codes_N), max_cells, seed)
    return float(silhouettes(z_NP[cells], codes_N[None, cells])[0])


def silhouettes(z_NP: Floats, codes_RN: Codes) -> npt.NDArray[np.float64]:
    """Compute the average silhouette widths of several sets of codes (real and permuted) in one pass.

    The distances between cells cost most of the time and do not depend on the codes.

    Parameters
    ----------
    z_NP
        Embedding, finite.
    codes_RN
        R sets of groups, none missing.

    Returns
    -------
    numpy.ndarray
        R widths; nan with fewer than two groups, or as many groups as cells.
    """
    from scipy.sparse import csr_array
    from sklearn.metrics.pairwise import euclidean_distances

    R, N = codes_RN.shape
    if N < 3:
        return np.full(R, np.nan)
    z_NP = np.asarray(z_NP, dtype=np.float64)
    groups, codes_RN = np.unique(codes_RN, return_inverse=True)
    codes_RN = codes_RN.reshape(R, N)
    C = len(groups)
    rows_RN = codes_RN + C * np.arange(R)[:, None]
    size_RC = np.bincount(rows_RN.ravel(), minlength=R * C).reshape(R, C)
    member = csr_array((np.ones(R * N), (rows_RN.ravel(), np.tile(np.arange(N), R))), shape=(R * C, N))

    total_R = np.zeros(R)
    step = max(1, _CHUNK // max(N, R * C))
    for start in range(0, N, step):
        cells = np.arange(start, min(start + step, N))
        distance = euclidean_distances(z_NP, z_NP[cells])  # N × cells of the chunk
        distance[cells, np.arange(len(cells))] = 0.0  # removes rounding errors
        sums = (member @ distance).reshape(R, C, len(cells))
        own = codes_RN[:, None, cells]
        own_size = np.take_along_axis(size_RC, own[:, 0], axis=1)
        a = np.take_along_axis(sums, own, axis=1)[:, 0] / np.maximum(own_size - 1, 1)
        means = np.where(size_RC[:, :, None] > 0, sums / np.maximum(size_RC, 1)[:, :, None], np.inf)
        np.put_along_axis(means, own, np.inf, axis=1)
        b = means.min(axis=1)
        widest = np.maximum(a, b)
        scored = (own_size > 1) & (widest > 0) & np.isfinite(b)
        total_R += np.divide(b - a, widest, out=np.zeros_like(a), where=scored).sum(axis=1)
    n_groups_R = (size_RC > 0).sum(axis=1)
    return np.where((n_groups_R >= 2) & (n_groups_R < N), total_R / N, np.nan)


def bras(z_NP: Floats, batch_N: Codes, label_N: Codes) -> float:
    """Compute the batch-removal-adapted silhouette: 1, batches are mixed; 0, batches are separate.

    Within each label, each cell has s = (b - a) / max(a, b). Here a is its mean cosine distance to the other
    cells of its batch, and b to the cells of all other batches. 1 - abs(s) is averaged over the cells of a
    label, then over labels (Rautenstrauch & Ohler 2025). The plain silhouette takes b from the nearest batch
    only. It thus misses a pair of similar batches that is far from all others. The only cell of a batch has s
    = 0.

    The cosine is that of the angle at the origin of the embedding. The mean cosine distance from a cell to a
    group is 1 - u · mean(u of the group), with u of length 1. This needs no pairs of cells.

    Parameters
    ----------
    z_NP
        Embedding, finite. A cell at the origin has distance 1 to all others.
    batch_N, label_N
        Codes; cells with -1 in either are left out. Labels with one batch, or with as many batches as cells,
        are skipped; the result is nan if all are.
    """
    z_NP = np.asarray(z_NP, dtype=np.float64)
    norm_N1 = np.linalg.norm(z_NP, axis=1, keepdims=True)
    unit_NP = z_NP / np.where(norm_N1 > 0, norm_N1, 1)
    per_label = []
    for label in np.unique(label_N[label_N >= 0]):
        cells = (label_N == label) & (batch_N >= 0)
        codes_N = np.unique(batch_N[cells], return_inverse=True)[1]
        if _comparable(codes_N):
            per_label.append(float((1 - np.abs(_cosine_silhouettes(unit_NP[cells], codes_N))).mean()))
    return float(np.mean(per_label)) if per_label else float("nan")


def _cosine_silhouettes(unit_NP: Floats, codes_N: Codes) -> npt.NDArray[np.float64]:
    """Compute the silhouette of each cell by cosine distance, against all cells of other groups together."""
    N = len(codes_N)
    member_CN = np.arange(codes_N.max() + 1)[:, None] == codes_N
    own_NP = (member_CN.astype(np.float64) @ unit_NP)[codes_N]
    n_own_N = member_CN.sum(axis=1)[codes_N]
    to_own_N = np.einsum("np,np->n", unit_NP, own_NP - unit_NP)
    to_others_N = np.einsum("np,np->n", unit_NP, unit_NP.sum(axis=0) - own_NP)
    a_N = 1 - to_own_N / np.maximum(n_own_N - 1, 1)
    b_N = 1 - to_others_N / (N - n_own_N)
    widest_N = np.maximum(a_N, b_N)
    scored = (n_own_N > 1) & (widest_N > 1e-12)  # smaller values are rounding errors
    silhouette_N = np.zeros(N)
    silhouette_N[scored] = (b_N - a_N)[scored] / widest_N[scored]
    return silhouette_N


def calinski_harabasz(z_NP: Floats, codes_N: Codes) -> float:
    """Compute the Calinski-Harabasz index: between- over within-group variance, each per degree of freedom.

    About 1 for random groups; for real groups it grows with the number of cells. It is 1 (scikit-learn's
    convention) when no group has any variance.

    Parameters
    ----------
    z_NP
        Embedding, finite.
    codes_N
        Group of each cell, -1 for none.
    """
    from sklearn.metrics import calinski_harabasz_score

    z_NP, codes_N = _grouped(z_NP, codes_N)
    return float(calinski_harabasz_score(z_NP, codes_N)) if _comparable(codes_N) else float("nan")


def inverse_davies_bouldin(z_NP: Floats, codes_N: Codes) -> float:
    """Compute the inverse of the Davies-Bouldin index: higher means better separated, at least 0.

    For each group, Davies-Bouldin takes the largest ratio, over the other groups, of the spread of both
    groups to the distance between their centres; it is the mean over groups. The result is nan also where the
    index is 0: no group has any spread, or all centres coincide.

    Parameters
    ----------
    z_NP
        Embedding, finite.
    codes_N
        Group of each cell, -1 for none.
    """
    from sklearn.metrics import davies_bouldin_score

    z_NP, codes_N = _grouped(z_NP, codes_N)
    index = float(davies_bouldin_score(z_NP, codes_N)) if _comparable(codes_N) else 0.0
    return 1.0 / index if index > 0 else float("nan")


def draw(n: int, at_most: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw at most ``at_most`` of ``n`` cells without replacement; return their rows in ascending order."""
    if n <= at_most:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, at_most, replace=False))


def _grouped(z_NP: Floats, codes_N: Codes) -> tuple[Floats, Codes]:
    """Keep the cells that have a group."""
    kept = codes_N >= 0
    return np.asarray(z_NP, dtype=np.float64)[kept], codes_N[kept]


def _comparable(codes_N: Codes) -> bool:
    return 2 <= len(np.unique(codes_N)) < len(codes_N)
