"""Principal components (the baseline of every embedding) and UMAP coordinates for plots."""

import os
import sys
import warnings
from typing import Any, Literal

import numpy as np
from anndata import AnnData

from scmedley import caches, keys
from scmedley.data.arrays import dense
from scmedley.data.blocks import blocks, slices
from scmedley.data.inplace import ensure_not_view
from scmedley.data.reader import Reading
from scmedley.data.store import Values
from scmedley.device import threads_kept
from scmedley.errors import ScmedleyError

PCA_CELLS = 100_000  # training cells from which principal components are fitted, if there are more
MAP_CELLS = 30_000  # cells to which a UMAP is fitted, if there are more
_PLACED = 65_536  # cells that are placed on a map at once


def pca(adata: AnnData, n_components: int = 50, seed: int = 0, *, reading: Reading | None = None) -> None:
    """Store the principal components of the highly variable genes in ``obsm["X_scmedley_pca"]``.

    They are fitted on centred log1p CP10k of the training cells (``obs["scmedley_split"]``; of a random sample of
    100,000 if there are more) and applied to all cells: N x ``n_components`` (fewer if there are few cells or genes),
    float32.

    Parameters
    ----------
    adata
        Prepared cells; with ``reading``, cells whose ``obs`` alone is read.
    n_components
        Number of components.
    seed
        Random seed of the computation and of the sample.
    reading
        The same cells, if their values are in a store: ``read_store(folder)``.
    """
    if reading is not None:
        reading.check_same_cells(adata)
        train = np.flatnonzero(reading.obs[keys.SPLIT] == "train")
        ensure_not_view(adata)
        adata.obsm[keys.PCA] = principal_components(reading.log1p_NG, train, n_components, seed)
        return
    if keys.LOGNORM not in adata.layers:
        raise ScmedleyError(
            f"Principal components need layers[{keys.LOGNORM!r}]. Run sm.pp.prepare with method='log1p' or 'pearson'."
        )
    x_NG = adata.layers[keys.LOGNORM][:, np.flatnonzero(adata.var[keys.HVG])]
    train = np.flatnonzero(adata.obs[keys.SPLIT] == "train")
    adata.obsm[keys.PCA] = principal_components(x_NG, train, n_components, seed)


def principal_components(
    x_NG: Values, train: np.ndarray, n_components: int = 50, seed: int = 0
) -> np.ndarray:
    """Return the principal components of cells, N x ``n_components``, float32, as :func:`pca`.

    Parameters
    ----------
    x_NG
        log1p CP10k of the chosen genes, in memory or in a store, with the same result.
    train
        Numbers of the training cells.
    n_components, seed
        As :func:`pca`; the seed also draws the sample of the training cells.
    """
    from sklearn.decomposition import PCA

    if x_NG.shape[1] == 1:  # a single gene is its own component
        x_N1 = np.concatenate([dense(block) for _, block in blocks(x_NG)])
        return np.asarray(x_N1 - x_N1[train].mean(axis=0), dtype=np.float32)
    n_components = min(n_components, len(train) - 1, x_NG.shape[1] - 1)
    if len(train) > PCA_CELLS:
        train = np.sort(np.random.default_rng(seed).choice(train, PCA_CELLS, replace=False))
    # "covariance_eigh" would be exact, but needs a dense genes x genes matrix; arpack works on sparse input.
    fitted = PCA(max(n_components, 1), svd_solver="arpack", random_state=seed).fit(x_NG[train])
    return np.concatenate([fitted.transform(block).astype(np.float32) for _, block in blocks(x_NG)])


_used_by_parent = False  # whether the parent used numba's OpenMP threads before the fork


def _remember() -> None:
    global _used_by_parent
    _used_by_parent = _numba_layer() == "omp"


def _numba_layer() -> str:
    """Return the threading layer that numba has started, "" if none."""
    numba: Any = sys.modules.get("numba")
    try:
        return "" if numba is None else str(numba.threading_layer())
    except (AttributeError, ValueError):  # half imported, or not used yet
        return ""


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_remember)


def load_umap() -> Any:
    """Return the class UMAP; its import takes seconds and may fail."""
    caches.ensure()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of missing TensorFlow, and of its compiler
        from umap import UMAP
    return UMAP


def umap(
    adata: AnnData,
    basis: str,
    *,
    max_cells: int = MAP_CELLS,
    seed: int = 0,
    rest: Literal["missing", "placed"] = "missing",
) -> None:
    """Store the UMAP of ``obsm[basis]`` under :func:`scmedley.keys.umap`, N x 2 float32.

    It is only for plots: distances and densities in it have no meaning.

    Parameters
    ----------
    adata
        Cells with ``obsm[basis]``.
    basis
        Key of an embedding.
    max_cells
        With more cells, UMAP uses a random sample of so many of them.
    seed
        Random seed of the sample and of UMAP.
    rest
        The other cells: ``"missing"``: their coordinates are NaN. ``"placed"``: they are placed between their
        neighbours of the sample (:func:`place`), and ``obs["scmedley_on_map"]`` holds which cells are in the sample.
    """
    z_NP = np.asarray(adata.obsm[basis])
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(adata.n_obs, min(max_cells, adata.n_obs), replace=False))
    xy_N2 = np.full((adata.n_obs, 2), np.nan, dtype=np.float32)
    if len(rows) > 4:  # UMAP needs more cells than that
        xy_N2[rows] = _umap(z_NP[rows], seed)
        if rest == "placed" and len(rows) < adata.n_obs:
            drawn_N = np.isin(np.arange(adata.n_obs), rows)
            adata.obs[keys.ON_MAP] = drawn_N
            xy_N2[~drawn_N] = place(z_NP[~drawn_N], z_NP[rows], xy_N2[rows])
    adata.obsm[keys.umap(basis)] = xy_N2


def _umap(z_NP: np.ndarray, seed: int) -> np.ndarray:
    """Return the UMAP of all these cells."""
    from sklearn.neighbors import NearestNeighbors

    make = load_umap()
    k = min(15, len(z_NP) - 1)
    _check_not_forked()
    spread = z_NP.shape[1] > 1 and np.ptp(z_NP, axis=0).any()
    with warnings.catch_warnings(), threads_kept():
        # Exact search; UMAP's own search takes ten times as long.
        distances_NK, indices_NK = NearestNeighbors(n_neighbors=k).fit(z_NP).kneighbors(z_NP)
        warnings.filterwarnings("ignore", message="precomputed_knn")  # new cells cannot be added
        xy_N2: np.ndarray = make(
            n_neighbors=k,
            precomputed_knn=(indices_NK, distances_NK),
            min_dist=0.3,
            init="pca" if spread else "random",
            random_state=seed,
            n_jobs=1,  # with a seed UMAP runs on one thread, and otherwise warns of it
        ).fit_transform(z_NP)
    return xy_N2


def place(z_NP: np.ndarray, z_MP: np.ndarray, xy_M2: np.ndarray, k: int = 15) -> np.ndarray:
    """Return coordinates of new cells on an existing map, N x 2 float32.

    Each is the mean coordinate of the ``k`` nearest of the map's cells, weighted by 1 / squared distance.

    Parameters
    ----------
    z_NP, z_MP
        Latents of the new cells and of the cells on the map.
    xy_M2
        Coordinates of the latter.
    """
    from sklearn.neighbors import NearestNeighbors

    # All distances: with more than a few dimensions this takes a fraction of the time of a tree.
    index = NearestNeighbors(n_neighbors=min(k, len(z_MP)), algorithm="brute").fit(z_MP)
    xy_N2 = np.empty((len(z_NP), 2), dtype=np.float32)
    for rows in slices(len(z_NP), _PLACED):
        distances_NK, nearest_NK = index.kneighbors(z_NP[rows])
        weight_NK = 1 / np.maximum(distances_NK, 1e-6) ** 2
        weight_NK /= weight_NK.sum(axis=1, keepdims=True)
        xy_N2[rows] = (weight_NK[:, :, None] * xy_M2[nearest_NK]).sum(axis=1)
    return xy_N2


def _check_not_forked() -> None:
    """Raise where numba would end the process: in a fork of a process that used its OpenMP threads."""
    if _used_by_parent:
        raise ScmedleyError(
            "UMAP was used before this process was forked, so the fork cannot use it. Start processes with 'spawn' "
            "(multiprocessing.get_context('spawn'))."
        )
