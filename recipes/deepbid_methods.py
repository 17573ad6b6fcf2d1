"""The data sets and methods of deepbid.py: latents, clusters of them, and their scores.

Shapes: N cells, P latent dimensions.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

import scmedley as sm
from scmedley import keys
from scmedley.clusters import find
from scmedley.data.neighbors import nearest
from scmedley.errors import ScmedleyError
from scmedley.evaluate import ari, completeness, homogeneity, kmeans_clusters, nmi
from scmedley.evaluate.lisi import N_NEIGHBORS, lisi, median
from scmedley.io import replacing, write_json
from scmedley.peers import PEERS, embed_peer
from scmedley.pp.maps import umap

BATCH, LABEL = "batch", "cell_type"
N_COMPONENTS = 30  # of Harmony, and of all methods that let us choose, as in the paper
N_LATENT = {"scVI": 10}  # its own default
QUICK_EPOCHS = 2

EVIDENCE, EVIDENCE_K = "evidence", "evidence, K given"
MEMBERSHIPS, LEIDEN, KMEANS, OWN = "memberships, K given", "Leiden", "k-means, K given", "its own"


@dataclass(frozen=True)
class DataSet:
    """A data set with ``obs["batch"]`` and ``obs["cell_type"]``: shipped, or a file of the data folder (``file``)."""

    name: str
    file: str = ""
    published: str = ""  # its name in the paper

    def path(self, folder: Path | None) -> Path:
        """Return the path of its file."""
        return (folder or Path(".")) / self.file if self.file else sm.datasets.path(self.name)


SETS = {
    data.name: data
    for data in (
        DataSet("sc_mixology", published="Sc_mixology"),
        DataSet("DC", "deepbid_dc_569_lognorm.h5ad", "DC"),
        DataSet("pancreas", published="Pancreas"),  # 500 of the paper's 14,375 cells
        DataSet("pancreas_1000", "pancreas_8datasets_1000x1000.h5ad"),
        DataSet("pbmc_3technologies", "pbmc_3tech_symphony_1200.h5ad", "PBMCs"),  # 1,200 of 21,526
        DataSet("cell_mix", "cellmix_celseq2_dropseq_5batches_fullgenes.h5ad"),  # five cell lines
        DataSet("cell_lines", "cell_lines.h5ad", "Cell_lines"),  # Jurkat and 293T: not at hand
    )
}

PAPER: dict[str, dict[str, Any]] = {
    "DeepBID, paper": {},
    "DeepBID, paper: sums": {"reduction": "sum"},
    "DeepBID, paper: fuzzy start": {"start": "fuzzy"},
    "DeepBID, paper: L_NB alone": dict.fromkeys(("lambda1", "lambda2", "kappa1", "kappa2"), 0.0),
}
PCA, OURS = "PCA", "DeepBID"
METHODS = (PCA, "DeepBID, paper", OURS, "Harmony", "LIGER", "scVI", "Scanorama")
VARIANTS = tuple(PAPER)[1:]


@dataclass(frozen=True)
class Task:
    """A method on a data set with a seed, and its files in ``folder``.

    ``settings`` replace those of the preset. ``latent``: the file of a method that was run elsewhere.
    """

    set: str
    method: str
    seed: int
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    latent: Path | None = None
    name: str = ""

    @property
    def path(self) -> Path:
        """Return the file of its facts and scores, which is written last."""
        words = self.name or f"{self.set} {self.method} seed{self.seed}"
        return self.folder / ("".join(c if c.isalnum() else "_" for c in words) + ".json")

    @property
    def arrays(self) -> Path:
        """Return the file of its latent, map, clusters and LISI of the cells."""
        return self.path.with_suffix(".npz")

    @property
    def done(self) -> bool:
        """Return whether it is stored, and not older than the file of its latent."""
        if not self.path.exists():
            return False
        return self.latent is None or self.latent.stat().st_mtime <= self.path.stat().st_mtime


@dataclass(frozen=True)
class Fitted:
    """A latent with the seconds of its fit, and the method's own clusters, each with whether it got K."""

    z_NP: np.ndarray
    seconds: float = float("nan")
    cpu_seconds: float = float("nan")
    clusters: dict[str, np.ndarray] = field(default_factory=dict)


def read_json(path: Path) -> dict[str, Any]:
    """Return stored facts; null is nan."""
    facts: dict[str, Any] = json.loads(path.read_text(), object_hook=_nan)
    return facts


def _nan(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: float("nan") if value is None else value for name, value in facts.items()}


def left_out(method: str, has_counts: bool = True) -> str:
    """Return why a method cannot be run here, "" if it can."""
    peer = PEERS.get(method)
    if peer is not None and not peer.installed:
        return f"not installed (pip install {peer.package})"
    if peer is not None and peer.counts and not has_counts:
        return "models counts, and this set has none"
    return ""


def few(adata: AnnData, n_cells: int) -> AnnData:
    """Return some cells, drawn at random."""
    rows = np.random.default_rng(0).choice(adata.n_obs, min(n_cells, adata.n_obs), replace=False)
    return adata[np.sort(rows)].copy()


def prepared(adata: AnnData, published: bool, seed: int = 0) -> AnnData:
    """Return prepared cells, with principal components; all methods are fitted to the test cells too.

    With ``published``: the genes of the paper, 1,000 of each batch.
    """
    adata = adata.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few genes or cells; `scmedley run` prints them
        method: Any = "deepbid" if published else "log1p"
        sm.pp.prepare(adata, BATCH, label_key=LABEL, seed=seed, method=method)
        part = adata.obs[keys.SPLIT]
        adata.obs[keys.SPLIT] = part.where(part != "test", "train")
        if not published:
            sm.pp.pca(adata, N_COMPONENTS, seed)
    return adata


def fit(task: Task, adata: AnnData, threads: int, quick: bool) -> Fitted:
    """Fit a method to all cells, as its users do; return its latent."""
    if task.latent is not None:
        return _from_file(task.latent, adata)
    if task.method == PCA:
        return Fitted(np.asarray(adata.obsm[keys.PCA]))
    k = adata.obs[LABEL].nunique()
    if task.method in PEERS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(PEERS[task.method].module)  # its seconds are not part of the fit's
    wall, cpu = time.perf_counter(), time.process_time()
    if task.method in PEERS:
        n_latent = N_LATENT.get(task.method, N_COMPONENTS)
        z_NP = embed_peer(task.method, adata, BATCH, None, n_latent=n_latent, seed=task.seed, threads=threads)
        return Fitted(z_NP, time.perf_counter() - wall, time.process_time() - cpu)
    published = task.method in PAPER
    settings = sm.DeepBID.preset("paper" if published else "default")
    settings = settings.replace(**{**PAPER.get(task.method, {}), **task.settings})
    if quick:
        settings = settings.replace(max_epochs=QUICK_EPOCHS)
    model = sm.DeepBID(BATCH, settings=settings, n_clusters=k if published else None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # log-normalised values: the method says so in the table's note
        model.fit(adata, seed=task.seed, threads=threads, progress=False)
    seconds = time.perf_counter() - wall, time.process_time() - cpu
    if published:
        clusters = {MEMBERSHIPS: model.clusters_of(adata)[0]}
    else:
        clusters = {EVIDENCE: model.clusters_of(adata)[0], EVIDENCE_K: model.clusters_of(adata, k)[0]}
    return Fitted(model.get_latent_representation(adata), *seconds, clusters)


def _from_file(path: Path, adata: AnnData) -> Fitted:
    """Read the latent of a method that was run elsewhere, and its clusters, if the file has them.

    CSV: names of the cells in the first column, one column each dimension, and perhaps "cluster". NPZ: ``cells``,
    ``z``, and perhaps ``cluster``.
    """
    names, z_NP, cluster = read_latent(path)
    order = pd.Index(names).get_indexer(adata.obs_names)
    if (order < 0).any():
        raise ScmedleyError(
            f"{path} lacks {(order < 0).sum():,} of {adata.n_obs:,} cells (the first: "
            f"{adata.obs_names[order < 0][0]!r}). Name cells as in the h5ad file."
        )
    own = {} if cluster is None else {OWN: pd.factorize(cluster[order], sort=True)[0]}
    return Fitted(z_NP[order], clusters=own)


@lru_cache(maxsize=8)
def read_latent(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return the names of the cells, their latent, and their clusters (``None``: the file has none)."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as stored:
            if missing := {"cells", "z"} - set(stored):
                raise ScmedleyError(f"{path} has no array {sorted(missing)[0]!r}; it needs 'cells' and 'z'.")
            return stored["cells"].astype(str), stored["z"], stored.get("cluster")
    table = pd.read_csv(path, index_col=0)
    cluster = table.pop("cluster").astype(str).to_numpy() if "cluster" in table else None
    try:
        z_NP = table.to_numpy(dtype=np.float32)
    except ValueError as error:
        raise ScmedleyError(
            f"{path}: {error}. All columns but the first (cells) and 'cluster' need numbers."
        ) from error
    return table.index.astype(str).to_numpy(), z_NP, cluster


def clusterings(fitted: Fitted, k: int, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield clusters of a latent: the method's own; with K given; by evidence; Leiden at its default resolution."""
    z_NP = fitted.z_NP
    yield from fitted.clusters.items()
    if EVIDENCE not in fitted.clusters and MEMBERSHIPS not in fitted.clusters:
        found = find(z_NP, seed=seed)
        yield EVIDENCE, found.code_N
        try:
            yield EVIDENCE_K, found.cut(k).code_N
        except ScmedleyError:  # more than the tree has groups
            yield EVIDENCE_K, find(z_NP, k, seed=seed).code_N
    if importlib.util.find_spec("igraph"):
        yield LEIDEN, leiden(z_NP, seed)
    yield KMEANS, kmeans_clusters(z_NP, k, seed)


def leiden(z_NP: np.ndarray, seed: int) -> np.ndarray:
    """Return Leiden's clusters at the default resolution of scanpy, 1."""
    import scanpy as sc

    cells = AnnData(obsm={"z": np.asarray(z_NP, dtype=np.float32)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.neighbors(cells, n_neighbors=min(15, len(z_NP) - 1), use_rep="z", random_state=seed)
        sc.tl.leiden(cells, flavor="igraph", n_iterations=2, directed=False, random_state=seed)
    return np.asarray(cells.obs["leiden"].cat.codes)


def agreement(cluster_N: np.ndarray, label_N: np.ndarray) -> dict[str, float]:
    """Return the scores of clusters by labels, both as codes."""
    return {
        "K": float(len(np.unique(cluster_N))),
        "ARI": ari(cluster_N, label_N),
        "NMI": nmi(cluster_N, label_N),
        "NMI max": nmi(cluster_N, label_N, "max"),
        "homogeneity": homogeneity(cluster_N, label_N),
        "completeness": completeness(cluster_N, label_N),
    }


def measure(task: Task, adata: AnnData, threads: int, quick: bool) -> None:
    """Fit, cluster and score one method; store its arrays, then its facts, also of one that failed."""
    facts: dict[str, Any] = {"set": task.set, "method": task.method, "seed": task.seed, "cells": adata.n_obs}
    facts |= {"genes": int(adata.var[keys.HVG].sum()), "threads": threads, **task.settings}
    try:
        fitted = fit(task, adata, threads, quick)
    except ScmedleyError as error:
        write_json(facts | {"status": "failed", "reason": str(error)}, task.path)
        return
    batch_N, label_N = (adata.obs[key].cat.codes.to_numpy() for key in (BATCH, LABEL))
    found = dict(clusterings(fitted, adata.obs[LABEL].nunique(), task.seed))
    z_NP = np.ascontiguousarray(fitted.z_NP, dtype=np.float32)
    near = nearest(z_NP, z_NP, min(N_NEIGHBORS, len(z_NP) - 1), exclude_self=True)
    ilisi_N, clisi_N = lisi(near, np.stack([batch_N, label_N]))
    cells = AnnData(obsm={"z": z_NP})
    umap(cells, "z")
    arrays = {"z": z_NP, "umap": cells.obsm[keys.umap("z")], "iLISI": ilisi_N, "cLISI": clisi_N}
    arrays |= {f"clusters {name}": code_N for name, code_N in found.items()}
    with replacing(task.arrays) as temporary:
        np.savez(temporary, **arrays)
    facts |= {"status": "done", "seconds": fitted.seconds, "cpu seconds": fitted.cpu_seconds}
    facts |= {"iLISI": median(ilisi_N), "cLISI": median(clisi_N)}
    facts["clusters"] = {name: agreement(code_N, label_N) for name, code_N in found.items()}
    write_json(facts, task.path)
