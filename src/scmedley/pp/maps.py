"""Principal components, the baseline beside every embedding, and UMAP coordinates for plots."""

import os
import sys
import warnings
from typing import Any

import numpy as np
from anndata import AnnData
from scipy.sparse import issparse

from scmedley import caches, keys
from scmedley.device import threads_kept
from scmedley.errors import ScmedleyError


def pca(adata: AnnData, n_components: int = 50, seed: int = 0) -> None:
    """Store the principal components of the highly variable genes in ``obsm["X_scmedley_pca"]``.

    They are fitted on the training cells (``obs["scmedley_split"]``) alone, on log1p CP10k, centred, and
    applied to all cells: N x ``n_components`` (fewer with few cells or genes), float32.
    """
    from sklearn.decomposition import PCA

    x_NG = adata.layers[keys.LOGNORM][:, np.flatnonzero(adata.var[keys.HVG])]
    train = np.flatnonzero(adata.obs[keys.SPLIT] == "train")
    if x_NG.shape[1] == 1:  # a single gene is its own component
        x_N1 = np.asarray(x_NG.todense() if issparse(x_NG) else x_NG, dtype=np.float32)
        adata.obsm[keys.PCA] = x_N1 - x_N1[train].mean(axis=0)
        return
    n_components = min(n_components, len(train) - 1, x_NG.shape[1] - 1)
    # "covariance_eigh" would be exact, but dense in the genes twice over; arpack works on sparse input.
    fitted = PCA(max(n_components, 1), svd_solver="arpack", random_state=seed).fit(x_NG[train])
    adata.obsm[keys.PCA] = fitted.transform(x_NG).astype(np.float32)


_used_by_parent = False  # numba's OpenMP threads, before this process was forked


def _remember() -> None:
    global _used_by_parent
    _used_by_parent = _numba_layer() == "omp"


def _numba_layer() -> str:
    """Return the threads that numba has started, "" where there are none."""
    numba: Any = sys.modules.get("numba")
    try:
        return "" if numba is None else str(numba.threading_layer())
    except (AttributeError, ValueError):  # half imported, or not used yet
        return ""


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_remember)


def load_umap() -> Any:
    """Import UMAP, which takes seconds and may fail, and return its class."""
    caches.ensure()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has no TensorFlow, and what its compiler has to say
        from umap import UMAP
    return UMAP


def umap(adata: AnnData, basis: str, *, max_cells: int = 30_000, seed: int = 0) -> None:
    """Store the UMAP of ``obsm[basis]`` under :func:`scmedley.keys.umap`, N x 2 float32.

    With more than ``max_cells`` cells it is made of a random draw of them, and the others are NaN. For
    looking only: distances and densities in it are not to be measured.
    """
    from sklearn.neighbors import NearestNeighbors

    make = load_umap()
    z_NP = np.asarray(adata.obsm[basis])
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(adata.n_obs, min(max_cells, adata.n_obs), replace=False))
    xy_N2 = np.full((adata.n_obs, 2), np.nan, dtype=np.float32)
    if len(rows) > 4:  # below that UMAP has no neighbourhoods to draw
        z_NP = z_NP[rows]
        k = min(15, len(rows) - 1)
        _check_not_forked()
        spread = z_NP.shape[1] > 1 and np.ptp(z_NP, axis=0).any()
        with warnings.catch_warnings(), threads_kept():
            # Exact and in numpy: UMAP's own search takes ten times as long.
            distances_NK, indices_NK = NearestNeighbors(n_neighbors=k).fit(z_NP).kneighbors(z_NP)
            warnings.filterwarnings("ignore", message="precomputed_knn")  # that it cannot place new cells
            xy_N2[rows] = make(
                n_neighbors=k,
                precomputed_knn=(indices_NK, distances_NK),
                min_dist=0.3,
                init="pca" if spread else "random",
                random_state=seed,
                n_jobs=1,  # with a seed UMAP runs on one thread, and says so unless it was asked to
            ).fit_transform(z_NP)
    adata.obsm[keys.umap(basis)] = xy_N2


def _check_not_forked() -> None:
    """Raise where numba would end the process: in a forked child of one that has used its OpenMP threads."""
    if _used_by_parent:
        raise ScmedleyError(
            "UMAP was used before this process was forked, and cannot be used in the fork as well. Start processes by "
            "'spawn' (multiprocessing.get_context('spawn'))."
        )
