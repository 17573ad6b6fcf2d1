"""What each page of the docs takes for granted before its first block: cells, a model, files in the current folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scipy.sparse import csr_matrix

import scmedley as sm

PROTOCOLS = ("sc_10x", "sc_celseq2", "sc_dropseq")
Names = dict[str, Any]


def cells(
    donors: tuple[str, ...] = ("d1", "d2", "d3", "d4", "d7", "d8"),
    labels: tuple[str, ...] = ("B cell", "T cell"),
    studies: tuple[str, ...] = ("lung", "colon"),
    batches: tuple[str, ...] = PROTOCOLS,
    each: int = 6,
    seed: int = 0,
) -> AnnData:
    """Draw counts: donors (nested in studies) x conditions x labels x batches, each with as many cells; 40 genes."""
    rng = np.random.default_rng(seed)
    levels = pd.MultiIndex.from_product(
        [donors, ("ctrl", "stim"), labels, batches, range(each)],
        names=["donor", "condition", "cell_type", "batch", "nth"],
    )
    obs = levels.to_frame(index=False).drop(columns="nth")
    donor, batch = obs["donor"].map(donors.index), obs["batch"].map(batches.index)
    obs["study"] = donor.map(lambda i: studies[i % len(studies)])
    obs["age"] = donor.map(lambda i: 30 + 7 * (i * 5 % len(donors))).astype(float)
    obs["sex"] = (batch % 2).map({0: "f", 1: "m"})  # one value for each batch, as a map of batches needs
    obs["sample"] = obs["condition"] + obs["donor"]
    log_rate = rng.normal(0, 1, 40) + 0.2 * rng.normal(size=(len(obs), 1))
    for column in ("cell_type", "donor", "condition", "batch"):
        codes, names = pd.factorize(obs[column])
        log_rate = log_rate + rng.normal(0, 0.7, (len(names), 40))[codes]
    counts = rng.poisson(np.exp(log_rate)).astype(np.float32)
    names = [f"GENE{i}" for i in range(39)] + ["CD74"]
    obs.index = [f"cell{i}" for i in range(len(obs))]
    adata = AnnData(csr_matrix(counts), obs, pd.DataFrame(index=names))
    by_label = 8 * np.eye(5)[pd.factorize(obs["cell_type"])[0]]
    for key in ("X_pca_harmony", "X_pca", "X_scmedley_fixed"):
        adata.obsm[key] = (by_label + rng.normal(size=(len(obs), 5))).astype(np.float32)
    return adata


def prepared(batch_key: str = "donor", **options: Any) -> AnnData:
    """Return such cells after :func:`scmedley.pp.prepare`."""
    adata = cells(**options)
    sm.pp.prepare(adata, batch_key, label_key="cell_type")
    return adata


def fitted(batch_key: str = "donor", **options: Any) -> Names:
    """Return prepared cells, a model of both networks, and cells of a new donor."""
    adata = prepared(batch_key, **options)
    new = cells(donors=("new1",), seed=1)
    model = sm.MixedEffects(batch_key, "cell_type").fit(adata, progress=False)
    return {"adata": adata, "model": model, "new": new}


def run_folder(batch_key: str) -> Names:
    """Write ``results/`` as a run does, without its report, and return what the folder was made from."""
    names = fitted(batch_key)
    adata, model, results = names["adata"], names["model"], Path("results")
    model.embed(adata)
    sm.pp.pca(adata)
    results.mkdir()
    model.save(results / "model")
    adata.write_h5ad(results / "integrated.h5ad")
    model.history.to_csv(results / "history.csv", index=False)
    sm.interpret.gene_shifts(model, adata, "cell_type", draws=2).to_csv(
        results / "gene_shifts.csv", index=False
    )
    sm.evaluate.scores(adata, ["X_scmedley_fixed"], batch_key, "cell_type").to_csv(
        results / "scores.csv", index=False
    )
    sm.interpret.genomap_of(model, adata).save(results / "genomap.json")
    return names


def of_readme() -> Names:
    return {"adata": prepared()}


def of_atlas() -> Names:
    cells().write_h5ad("atlas.h5ad")
    return {}


def of_clusters() -> Names:
    adata = cells()
    return {"adata": adata, "z_new": adata.obsm["X_scmedley_fixed"][:5]}


def of_counterfactuals() -> Names:
    return fitted("batch") | {"cells": slice(0, 10)}


def of_denoising() -> Names:
    adata = cells()
    return {"adata": adata, "counts": adata.X}


def of_designs() -> Names:
    adata = prepared("~ condition + (1 | study/donor)")
    return {"adata": adata, "cells": adata[adata.obs["donor"] == "d1"]}


def of_explore() -> Names:
    cells().write_h5ad("cells.h5ad")
    return {}


def of_leakage() -> Names:
    names = fitted(donors=("donor1", "donor2", "donor3", "donor4"))
    adata = names["adata"]
    adata.obs["sex"] = np.where(adata.obs["donor"].isin(["donor1", "donor2"]), "f", "m")
    part = np.where(adata.obs["donor"].isin(["donor1", "donor3"]), "train", "test")
    return names | dict.fromkeys(("pca", "fixed", "random", "null"), adata.obsm["X_pca"]) | {"part": part}


def of_linear_mixed() -> Names:
    labels, studies = ("CD14+ Monocytes", "B cells"), ("s1", "s2")
    adata = cells(("d7", "d2", "d3", "d4", "101", "102"), labels, studies)
    sm.pp.prepare(adata, "donor", label_key="cell_type")
    return {"adata": adata, "cells_of_new_donors": cells(("n1", "n2"), labels, studies, seed=1)}


def of_peers() -> Names:
    adata = sm.datasets.sc_mixology()
    pd.DataFrame(adata.X[:, :4].toarray(), adata.obs_names).to_csv("seurat.csv")
    return {}


def of_queries() -> Names:
    names = run_folder("donor")
    atlas = names["adata"].copy()
    atlas.obs["fine_type"] = atlas.obs["cell_type"].astype(str) + " 1"
    return names | {"atlas": atlas}


def of_outputs() -> Names:
    adata = cells(labels=("memory_B", "T cell"))
    adata.write_h5ad("cells.h5ad")
    Path("results").mkdir()
    adata.obsm["X_umap_scmedley_fixed"] = adata.obsm["X_scmedley_fixed"][:, :2]
    adata.write_h5ad("results/integrated.h5ad")
    sm.pp.prepare_store("cells.h5ad", "results/store", batch_key="donor", label_key="cell_type")
    return {}


def of_quickstart() -> Names:
    return {"new": run_folder("donor")["new"]}


def of_vae() -> Names:
    return {"adata": cells(labels=("B", "T"))}


def of_variance() -> Names:
    names = fitted()
    donor = names["adata"].obs["donor"]
    names["adata"].obs["sex"] = donor.map(lambda name: "f" if name in ("d1", "d2", "d3") else "m").astype(str)
    return names


PAGES: dict[str, Callable[[], Names]] = {
    "README.md": of_readme,
    "docs/adding-a-model.md": lambda: {"adata": prepared()},
    "docs/api/index.md": dict,
    "docs/atlas.md": of_atlas,
    "docs/clusters.md": of_clusters,
    "docs/counterfactuals.md": of_counterfactuals,
    "docs/deepbid.md": lambda: {"adata": cells()},
    "docs/denoising.md": of_denoising,
    "docs/designs.md": of_designs,
    "docs/effects.md": lambda: {"adata": cells(labels=("CD14+ Monocytes", "B cells"))},
    "docs/explore.md": of_explore,
    "docs/index.md": dict,
    "docs/leakage.md": of_leakage,
    "docs/linear_mixed.md": of_linear_mixed,
    "docs/outputs.md": of_outputs,
    "docs/peers.md": of_peers,
    "docs/plots.md": lambda: run_folder("batch") and {},
    "docs/queries.md": of_queries,
    "docs/quickstart.md": of_quickstart,
    "docs/vae.md": of_vae,
    "docs/variance.md": of_variance,
}


def without_umap(adata: AnnData) -> None:
    """Stand for ``sc.tl.umap``, whose compilation takes longer than all blocks together."""
    adata.obsm["X_umap"] = np.asarray(adata.obsm["X_scmedley_fixed"][:, :2])


def without_neighbors(adata: AnnData, use_rep: str) -> None:
    """Stand for ``sc.pp.neighbors``, for the same reason; the key must exist."""
    assert use_rep in adata.obsm


STAND_INS = {(sc.tl, "umap"): without_umap, (sc.pp, "neighbors"): without_neighbors}
