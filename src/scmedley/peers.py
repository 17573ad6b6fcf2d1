"""Rival methods of batch correction, each with its published defaults and given the same cells and genes.

They are other people's packages (the extra ``peers``), some of them copyleft: imported where used, never copied.

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

UNKNOWN = "unknown"  # what scANVI is told of a cell whose label it must not see
LIGER_FACTORS = 20  # of its published default; each factor is a cluster too, so many of them align nothing

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Task:
    """What a peer is given: prepared cells, which columns of ``obs`` to use, and how large a latent."""

    adata: AnnData
    batch_key: str
    label_key: str | None
    n_latent: int
    seed: int
    threads: int

    @property
    def pca_NP(self) -> Floats:
        """Principal components, fitted on the training cells."""
        return np.asarray(self.adata.obsm[keys.PCA], dtype=np.float32)[:, : self.n_latent]

    @property
    def batch_N(self) -> pd.Categorical:
        """Batch of each cell."""
        return as_categories(column(self.adata, self.batch_key, "batch"))

    def labels_N(self, package: str) -> npt.NDArray[np.object_]:
        """Label of each training cell; of the others, and where it is missing, ``UNKNOWN``."""
        if self.label_key is None:
            raise ScmedleyError(f"{package} learns from labels: name their column of obs as label_key.")
        label_N = column(self.adata, self.label_key, "label").astype(object)
        seen_N = (self.adata.obs[keys.SPLIT] == "train") & label_N.notna()
        return label_N.where(seen_N, UNKNOWN).astype(str).to_numpy(dtype=object)

    def of_genes(self, layer: str, genes_G: npt.NDArray[np.bool_]) -> AnnData:
        """Give these genes of a layer as ``X`` of a new AnnData, its obs with the batch and nothing else."""
        from anndata import AnnData

        obs = pd.DataFrame({"batch": self.batch_N}, index=self.adata.obs_names.rename("cell"))
        var = pd.DataFrame(index=self.adata.var_names[genes_G].rename("gene"))
        return AnnData(self.adata.layers[layer][:, np.flatnonzero(genes_G)], obs=obs, var=var)

    @property
    def hvg_G(self) -> npt.NDArray[np.bool_]:
        """Highly variable genes, chosen on the training cells."""
        return np.asarray(self.adata.var[keys.HVG], dtype=bool)


@dataclass(frozen=True)
class Peer:
    """A rival method.

    Attributes
    ----------
    package, module
        Its name for pip, and for import.
    licence
        Of the package.
    labels
        Whether it learns from the training cells' labels.
    transductive
        Whether it is fitted on all cells, as it has no way to embed others: an advantage over those that
        have never seen the test cells. No transductive peer sees a label.
    counts
        Whether it needs ``layers["counts"]``.
    embed
        Gives the embedding, N x P.
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
        """Whether the package is there; it is not imported."""
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
    """Embed all cells with a rival method.

    Parameters
    ----------
    name
        One of :data:`PEERS`.
    adata
        Cells after :func:`scmedley.pp.prepare` and :func:`scmedley.pp.maps`. Not changed.
    batch_key, label_key
        Columns of ``obs``. Labels are read by peers with ``labels`` only, and only those of training cells.
    n_latent
        Latent dimensions P, where the method leaves the choice: LIGER has at most 20 factors, and what is made
        of principal components has no more than there are of those.
    seed, threads
        Passed on; the random states of numpy, Python and torch are the caller's again afterwards. What uses the
        library annoy (BBKNN, Scanorama) builds its index with all cores. Nothing here uses a GPU.

    Returns
    -------
    ndarray
        N x P float32, in the order of ``adata``.

    Raises
    ------
    ScmedleyError
        No such peer, not installed, no counts where it needs them, no labels where it needs those, or the
        peer's own failure in its own words.
    """
    if name not in PEERS:
        raise ScmedleyError(f"There is no peer {name!r}; there are {', '.join(PEERS)}.")
    peer = PEERS[name]
    check_seed(seed)
    _check_prepared(adata, batch_key)
    if not peer.installed:
        raise ScmedleyError(
            f"{name} is not installed: pip install {peer.package}, or 'scmedley[peers]' for all rivals but LIGER."
        )
    if peer.counts and keys.COUNTS not in adata.layers:
        raise ScmedleyError(
            f"{name} failed: it models counts, and these data have none (layers[{keys.COUNTS!r}])."
        )
    task = Task(adata, batch_key, label_key, n_latent, seed, threads)
    try:
        with _apart(seed, threads):
            z_NP = np.asarray(peer.embed(task), dtype=np.float32)
    except ScmedleyError:
        raise
    except Exception as error:  # what others raise
        words = " ".join(str(error).split())[:300] or type(error).__name__
        raise ScmedleyError(f"{name} failed: {words}") from error
    if z_NP.ndim != 2 or len(z_NP) != adata.n_obs or not np.isfinite(z_NP).all():
        raise ScmedleyError(
            f"{name} failed: it gave an embedding of shape {z_NP.shape} with {(~np.isfinite(z_NP)).sum():,} "
            f"values that are not finite, for {adata.n_obs:,} cells."
        )
    return z_NP


def harmony(task: Task) -> Any:
    """Harmony (Korsunsky et al. 2019, Nature Methods): principal components, shifted cluster by cluster."""
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
    """Embed with scVI (Lopez et al. 2018, Nature Methods), a variational autoencoder of counts, told the batch."""
    cells = task.of_genes(keys.COUNTS, task.hvg_G)
    return _scvi_fitted(task, _not_test(task, cells)).get_latent_representation(cells)


def scanvi(task: Task) -> Any:
    """Embed with scANVI (Xu et al. 2021, Molecular Systems Biology), scVI fitted further with the labels."""
    from scvi.model import SCANVI

    cells = task.of_genes(keys.COUNTS, task.hvg_G)
    cells.obs["label"] = pd.Categorical(task.labels_N("scANVI"))
    fit = _not_test(task, cells)
    model = SCANVI.from_scvi_model(_scvi_fitted(task, fit), UNKNOWN, labels_key="label", adata=fit)
    model.train(accelerator="cpu", enable_progress_bar=False)
    return model.get_latent_representation(cells)


def scanorama(task: Task) -> Any:
    """Scanorama (Hie et al. 2019, Nature Biotechnology): batches stitched by mutual nearest neighbours."""
    import scanorama as package

    cells = task.of_genes(keys.LOGNORM, task.hvg_G)
    rows = _rows_by_batch(task)
    # It wants scipy's matrices, in the order of the batches, and changes the list that it is given.
    parts = [cells.X[row] for row in rows]
    genes = [list(cells.var_names)] * len(rows)
    z, _ = package.integrate(parts, genes, dimred=task.n_latent, seed=task.seed, verbose=False)
    return _in_order(z, rows)


def liger(task: Task) -> Any:
    """LIGER (Welch et al. 2019, Cell): non-negative factors, shared and of the batch, quantile-normalised.

    Its factors can only be shared over genes that are found in every batch.
    """
    import pyliger

    cells = task.of_genes(keys.COUNTS, np.ones(task.adata.n_vars, dtype=bool))
    rows = _rows_by_batch(task)
    parts = []
    found_G = task.hvg_G
    for row in rows:
        part = cells[row].copy()
        part.uns["sample_name"] = str(part.obs["batch"].iloc[0])
        found_G = found_G & (np.asarray(part.X.sum(axis=0)).ravel() > 0)
        parts.append(part)
    if not found_G.any():
        raise ScmedleyError("LIGER failed: no highly variable gene is found in every batch.")
    whole = pyliger.create_liger(parts, remove_missing=False)  # it would remove genes batch by batch
    pyliger.normalize(whole, remove_missing=False)
    whole.var_genes = cells.var_names[found_G]
    pyliger.scale_not_center(whole, remove_missing=False)
    pyliger.optimize_ALS(whole, k=min(LIGER_FACTORS, task.n_latent), rand_seed=task.seed + 1)
    pyliger.quantile_norm(whole, rand_seed=task.seed + 1)
    return _in_order([part.obsm["H_norm"] for part in whole.adata_list], rows)


def bbknn(task: Task) -> Any:
    """BBKNN (Polański et al. 2020, Bioinformatics): a graph with neighbours from every batch; its diffusion map.

    The method ends with a graph, and scores here are of coordinates. The diffusion map gives the graph's own:
    eigenvectors of its random walk, each times its eigenvalue, the constant one left out. That step is ours.
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


def _scvi_fitted(task: Task, fit: AnnData) -> Any:
    import scvi as package
    from scvi.model import SCVI

    package.settings.seed = task.seed
    SCVI.setup_anndata(fit, batch_key="batch")
    model = SCVI(fit, n_latent=task.n_latent)
    model.train(accelerator="cpu", enable_progress_bar=False)
    return model


def _not_test(task: Task, cells: AnnData) -> AnnData:
    """Give the cells that a method with a way to embed others may be fitted on."""
    return cells[(task.adata.obs[keys.SPLIT] != "test").to_numpy()].copy()


def _rows_by_batch(task: Task) -> list[npt.NDArray[np.intp]]:
    batch_N = task.batch_N
    return [np.flatnonzero(batch_N.codes == code) for code in range(len(batch_N.categories))]


def _in_order(parts: list[Any], rows: list[npt.NDArray[np.intp]]) -> Any:
    """Put the batches' cells back into the order of the data."""
    return np.concatenate(parts)[np.argsort(np.concatenate(rows))]


def _check_prepared(adata: AnnData, batch_key: str) -> None:
    missing = [
        place
        for place, there in (
            (f"layers[{keys.LOGNORM!r}]", keys.LOGNORM in adata.layers),
            (f"var[{keys.HVG!r}]", keys.HVG in adata.var),
            (f"obs[{keys.SPLIT!r}]", keys.SPLIT in adata.obs),
            (f"obsm[{keys.PCA!r}]", keys.PCA in adata.obsm),
        )
        if not there
    ]
    if missing:
        raise ScmedleyError(f"The data has no {missing[0]}: run sm.pp.prepare and sm.pp.pca first.")
    if as_categories(column(adata, batch_key, "batch")).isna().any():
        raise ScmedleyError(f"Some cells have no batch in obs[{batch_key!r}]: fill it in or remove them.")


@contextmanager
def _apart(seed: int, threads: int) -> Iterator[None]:
    """Let a package print, log, warn, seed and set threads as it likes; the caller does not notice."""
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
            warnings.simplefilter("ignore")  # those of its insides, which nobody here can mend
            logging.disable(logging.WARNING)
            np.random.seed(seed)  # noqa: NPY002
            random.seed(seed)
            torch.manual_seed(seed)
            yield
    finally:
        logging.disable(silenced)
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
