"""Other methods of batch correction, with their published defaults, on the same cells and genes.

Their packages (the extra ``peers``) are imported where used and never copied; some are copyleft.

Shapes: N cells, G genes, P latent dimensions.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from scmedley import keys
from scmedley.data.design import as_categories, column
from scmedley.errors import ScmedleyError, check_seed

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["PEERS", "embed_peer"]

UNKNOWN = "unknown"  # label for scANVI of cells whose label it must not use
LIGER_FACTORS = 20  # published default; each factor is also a cluster, so a large number aligns nothing

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Task:
    """The input of a peer: prepared cells, columns of ``obs``, and the number of latent dimensions."""

    adata: AnnData
    batch_key: str
    label_key: str | None
    n_latent: int
    seed: int
    threads: int

    @property
    def pca_NP(self) -> Floats:
        """Return the principal components, fitted on the training cells."""
        return np.asarray(self.adata.obsm[keys.PCA], dtype=np.float32)[:, : self.n_latent]

    @property
    def batch_N(self) -> pd.Categorical:
        """Return the batch of each cell."""
        return as_categories(column(self.adata, self.batch_key, "batch"))

    def labels_N(self, package: str) -> npt.NDArray[np.object_]:
        """Return the label of each training cell; ``UNKNOWN`` for other cells and missing labels."""
        if self.label_key is None:
            raise ScmedleyError(f"{package} learns from labels. Pass their column of obs as label_key.")
        label_N = column(self.adata, self.label_key, "label").astype(object)
        seen_N = (self.adata.obs[keys.SPLIT] == "train") & label_N.notna()
        return label_N.where(seen_N, UNKNOWN).astype(str).to_numpy(dtype=object)

    def of_genes(self, layer: str, genes_G: npt.NDArray[np.bool_]) -> AnnData:
        """Return these genes of a layer as ``X`` of a new AnnData; its obs holds the batch only."""
        from anndata import AnnData

        obs = pd.DataFrame({"batch": self.batch_N}, index=self.adata.obs_names.rename("cell"))
        var = pd.DataFrame(index=self.adata.var_names[genes_G].rename("gene"))
        return AnnData(self.adata.layers[layer][:, np.flatnonzero(genes_G)], obs=obs, var=var)

    @property
    def hvg_G(self) -> npt.NDArray[np.bool_]:
        """Return which genes are highly variable, as selected on the training cells."""
        return np.asarray(self.adata.var[keys.HVG], dtype=bool)


@dataclass(frozen=True)
class Peer:
    """Another method of batch correction.

    Attributes
    ----------
    package, module
        Names for pip and for import.
    licence
        Licence of the package.
    labels
        Whether it learns from the labels of training cells.
    transductive
        Whether it is fitted on all cells because it cannot embed new cells. This is an advantage over methods
        that are not fitted on the held-out cells. No transductive peer uses labels.
    counts
        Whether it needs ``layers["counts"]``.
    embed
        Function that returns the embedding, N × P.
    """

    package: str
    module: str
    licence: str
    labels: bool
    transductive: bool
    counts: bool
    embed: Callable[[Task], Any]

    @property
    def installed(self) -> bool:
        """Return whether the package is installed, without importing it."""
        return importlib.util.find_spec(self.module) is not None


def embed_peer(
    name: str,
    adata: AnnData,
    batch_key: str,
    label_key: str | None,
    *,
    n_latent: int = 50,
    seed: int,
    threads: int,
) -> Floats:
    """Embed all cells with another method.

    Parameters
    ----------
    name
        One of :data:`PEERS`.
    adata
        Cells after :func:`scmedley.pp.prepare` and :func:`scmedley.pp.pca`. Not changed.
    batch_key, label_key
        Columns of ``obs``. Only peers with ``labels`` use labels, and only those of training cells.
    n_latent
        Number of latent dimensions P, if the method allows a choice. LIGER has at most 20 factors; a method
        that starts from principal components has at most as many dimensions.
    seed, threads
        For the peer. The random states of numpy, Python and torch are restored afterwards. BBKNN and Scanorama
        build their index (library annoy) with all cores. No peer uses a GPU.

    Returns
    -------
    ndarray
        N × P float32, in the order of ``adata``.

    Raises
    ------
    ScmedleyError
        The peer is unknown or not installed, needs counts or labels that are missing, or fails itself.
    """
    if name not in PEERS:
        raise ScmedleyError(f"There is no peer {name!r}; there are {', '.join(PEERS)}.")
    peer = PEERS[name]
    check_seed(seed)
    _check_prepared(adata, batch_key)
    if not peer.installed:
        raise ScmedleyError(
            f"{name} is not installed: pip install {peer.package}, or 'scmedley[peers]' for all peers except LIGER."
        )
    if peer.counts and keys.COUNTS not in adata.layers:
        raise ScmedleyError(
            f"{name} failed: it models counts, and these data have none. Add layers[{keys.COUNTS!r}]."
        )
    task = Task(adata, batch_key, label_key, n_latent, seed, threads)
    try:
        with _isolated(seed, threads):
            z_NP = np.asarray(peer.embed(task), dtype=np.float32)
    except ScmedleyError:
        raise
    except Exception as error:  # a peer may raise anything
        words = " ".join(str(error).split())[:300] or type(error).__name__
        raise ScmedleyError(f"{name} failed: {words}") from error
    if z_NP.ndim != 2 or len(z_NP) != adata.n_obs or not np.isfinite(z_NP).all():
        raise ScmedleyError(
            f"{name} failed: it returned an embedding of shape {z_NP.shape} with {(~np.isfinite(z_NP)).sum():,} "
            f"values that are not finite, for {adata.n_obs:,} cells."
        )
    return z_NP


def harmony(task: Task) -> Any:
    """Embed with Harmony (Korsunsky et al. 2019, Nature Methods): principal components corrected by cluster."""
    import harmonypy

    return harmonypy.run_harmony(
        task.pca_NP,
        pd.DataFrame({"batch": task.batch_N}),
        "batch",
        random_state=task.seed,
        ncores=task.threads,
        verbose=False,
    ).Z_corr


def scvi(task: Task) -> Any:
    """Embed with scVI (Lopez et al. 2018, Nature Methods), a variational autoencoder of counts and batch."""
    cells = task.of_genes(keys.COUNTS, task.hvg_G)
    return _fitted_scvi(task, _without_test(task, cells)).get_latent_representation(cells)


def scanvi(task: Task) -> Any:
    """Embed with scANVI (Xu et al. 2021, Molecular Systems Biology), scVI trained further with labels."""
    from scvi.model import SCANVI

    cells = task.of_genes(keys.COUNTS, task.hvg_G)
    cells.obs["label"] = pd.Categorical(task.labels_N("scANVI"))
    fit = _without_test(task, cells)
    model = SCANVI.from_scvi_model(_fitted_scvi(task, fit), UNKNOWN, labels_key="label", adata=fit)
    model.train(accelerator="cpu", enable_progress_bar=False)
    return model.get_latent_representation(cells)


def scanorama(task: Task) -> Any:
    """Embed with Scanorama (Hie et al. 2019, Nature Biotechnology), by mutual nearest neighbours."""
    import scanorama as package

    cells = task.of_genes(keys.LOGNORM, task.hvg_G)
    rows = _rows_by_batch(task)
    # Scanorama needs scipy matrices, one per batch, and changes the list of them.
    parts = [cells.X[row] for row in rows]
    genes = [list(cells.var_names)] * len(rows)
    z, _ = package.integrate(parts, genes, dimred=task.n_latent, seed=task.seed, verbose=False)
    return _in_order(z, rows)


def liger(task: Task) -> Any:
    """Embed with LIGER (Welch et al. 2019, Cell): shared and batch-specific factors, quantile-normalised.

    Batches can share factors only over genes that are detected in all batches.
    """
    import pyliger

    cells = task.of_genes(keys.COUNTS, np.ones(task.adata.n_vars, dtype=bool))
    rows = _rows_by_batch(task)
    parts = []
    detected_G = task.hvg_G
    for row in rows:
        part = cells[row].copy()
        part.uns["sample_name"] = str(part.obs["batch"].iloc[0])
        detected_G = detected_G & (np.asarray(part.X.sum(axis=0)).ravel() > 0)
        parts.append(part)
    if not detected_G.any():
        raise ScmedleyError("LIGER failed: no highly variable gene is detected in every batch.")
    whole = pyliger.create_liger(parts, remove_missing=False)  # else it removes different genes per batch
    pyliger.normalize(whole, remove_missing=False)
    whole.var_genes = cells.var_names[detected_G]
    pyliger.scale_not_center(whole, remove_missing=False)
    pyliger.optimize_ALS(whole, k=min(LIGER_FACTORS, task.n_latent), rand_seed=task.seed + 1)
    pyliger.quantile_norm(whole, rand_seed=task.seed + 1)
    return _in_order([part.obsm["H_norm"] for part in whole.adata_list], rows)


def bbknn(task: Task) -> Any:
    """Embed with BBKNN (Polański et al. 2020, Bioinformatics) and a diffusion map of its graph.

    BBKNN returns a graph with neighbours from every batch, but scores need coordinates. We add the diffusion
    map: eigenvectors of the graph's random walk, each times its eigenvalue, without the constant one.
    """
    import bbknn as package
    import scanpy as sc
    from anndata import AnnData

    cells = AnnData(obs=pd.DataFrame({"batch": task.batch_N}, index=task.adata.obs_names))
    cells.obsm[keys.PCA] = task.pca_NP
    package.bbknn(cells, batch_key="batch", use_rep=keys.PCA)
    sc.tl.diffmap(cells, n_comps=min(task.n_latent + 1, task.adata.n_obs - 2), random_state=task.seed)
    return (cells.obsm["X_diffmap"] * cells.uns["diffmap_evals"])[:, 1:]


PEERS: dict[str, Peer] = {
    "Harmony": Peer("harmonypy", "harmonypy", "GPL-3.0-or-later", False, True, False, harmony),
    "scVI": Peer("scvi-tools", "scvi", "BSD-3-Clause", False, False, True, scvi),
    "scANVI": Peer("scvi-tools", "scvi", "BSD-3-Clause", True, False, True, scanvi),
    "Scanorama": Peer("scanorama", "scanorama", "MIT", False, True, False, scanorama),
    "LIGER": Peer("pyliger", "pyliger", "GPL-3.0-only", False, True, True, liger),
    "BBKNN (diffusion map)": Peer("bbknn", "bbknn", "MIT", False, True, False, bbknn),
}


def _fitted_scvi(task: Task, fit: AnnData) -> Any:
    import scvi as package
    from scvi.model import SCVI

    package.settings.seed = task.seed
    SCVI.setup_anndata(fit, batch_key="batch")
    model = SCVI(fit, n_latent=task.n_latent)
    model.train(accelerator="cpu", enable_progress_bar=False)
    return model


def _without_test(task: Task, cells: AnnData) -> AnnData:
    """Return all but the held-out cells, to fit a method that can embed new cells."""
    return cells[(task.adata.obs[keys.SPLIT] != "test").to_numpy()].copy()


def _rows_by_batch(task: Task) -> list[npt.NDArray[np.intp]]:
    batch_N = task.batch_N
    return [np.flatnonzero(batch_N.codes == code) for code in range(len(batch_N.categories))]


def _in_order(parts: list[Any], rows: list[npt.NDArray[np.intp]]) -> Any:
    """Return the cells of all batches in the order of the data."""
    return np.concatenate(parts)[np.argsort(np.concatenate(rows))]


def _check_prepared(adata: AnnData, batch_key: str) -> None:
    needed = {"layers": keys.LOGNORM, "var": keys.HVG, "obs": keys.SPLIT, "obsm": keys.PCA}
    missing = [f"{part}[{key!r}]" for part, key in needed.items() if key not in getattr(adata, part)]
    if missing:
        raise ScmedleyError(f"The data have no {missing[0]}: run sm.pp.prepare and sm.pp.pca first.")
    if as_categories(column(adata, batch_key, "batch")).isna().any():
        raise ScmedleyError(f"Some cells have no batch in obs[{batch_key!r}]. Fill it in or remove them.")


@contextmanager
def _isolated(seed: int, threads: int) -> Iterator[None]:
    """Silence a package's output, logs and warnings; restore random states and threads afterwards."""
    import torch
    from threadpoolctl import threadpool_limits

    from scmedley.device import engine

    numpy_state = np.random.get_state()  # noqa: NPY002 - the state that older packages draw from
    python_state, silenced = random.getstate(), logging.root.manager.disable
    try:
        with (
            engine(threads, torch.device("cpu")),
            threadpool_limits(threads),
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")  # the user cannot fix warnings inside a package
            logging.disable(logging.WARNING)
            np.random.seed(seed)  # noqa: NPY002
            random.seed(seed)
            torch.manual_seed(seed)
            yield
    finally:
        logging.disable(silenced)
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
