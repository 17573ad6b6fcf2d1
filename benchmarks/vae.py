"""The VAE beside scVI: held-out log-likelihood, labels, seconds.

    python benchmarks/vae.py --data FOLDER                       # all sets, three seeds
    python benchmarks/vae.py --data FOLDER --sets pancreas --seeds 0 --cells 3000 --methods VAE

Both have the same sizes (latent 10, one hidden layer of 128, minibatches of 128), the same genes and counts, the
same training, validation and held-out cells, a negative binomial, early stopping on the validation cells, and one
thread. Log-likelihoods are the same importance-weighted estimate with 100 draws per held-out cell (Burda et al.
2016), of the counts of the chosen genes given their total. "Time to the bound": seconds until the evidence lower
bound of the validation cells first reaches scVI's best. Every fit is a file in --results, so a stopped benchmark
resumes. Needs scvi-tools for "scVI"; a method whose package is missing is skipped.

Settings of the VAE were tuned on pancreas and simul1 (seed 0), not on the other sets.

Shapes: N cells, P latent dimensions, D draws.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from sklearn.neighbors import KNeighborsClassifier

import scmedley as sm
from common import BATCH, LABEL, cached, find, record
from scmedley import keys

SETS = ("pancreas", "onek1k", "pbmc_8batches")
DRAWS, NEIGHBOURS, GENES = 100, 15, 2000
HIDDEN, LATENT, BATCH_SIZE = 128, 10, 128

Parts = dict[str, np.ndarray]


def fit_vae(adata: AnnData, parts: Parts, seed: int) -> dict[str, Any]:
    """Fit scMedley's VAE; return latent, log-likelihoods, and the bound of each epoch."""
    settings = sm.VAE.preset("default").replace(hidden=(HIDDEN,), n_latent=LATENT, batch_size=BATCH_SIZE)
    began = time.perf_counter()
    model = sm.VAE(BATCH, settings=settings).fit(
        adata, seed=seed, threads=1, precision="float32", device="cpu", progress=False
    )
    seconds = time.perf_counter() - began
    rows = model.history[model.history["part"] == "validation"]
    terms = rows.pivot(index="epoch", columns="term", values="value")
    return {
        "z_NP": model.get_latent_representation(adata),
        "log_p": model.log_likelihood(adata[parts["test"]].copy(), draws=DRAWS),
        "bound": -(terms["reconstruction"] + terms["latent kl"]).to_numpy(),
        "seconds": seconds,
    }


def fit_scvi(adata: AnnData, parts: Parts, seed: int) -> dict[str, Any]:
    """Fit scVI to the same cells; return the same."""
    import scvi

    scvi.settings.seed, scvi.settings.verbosity = seed, logging.ERROR
    genes = adata.var[keys.HVG].to_numpy()
    cells = AnnData(adata.layers[keys.COUNTS][:, genes].tocsr().copy(), obs=adata.obs[[BATCH]].copy())
    scvi.model.SCVI.setup_anndata(cells, batch_key=BATCH)
    model = scvi.model.SCVI(cells, n_hidden=HIDDEN, n_latent=LATENT, gene_likelihood="nb")
    began = time.perf_counter()
    model.train(
        accelerator="cpu",
        batch_size=BATCH_SIZE,
        early_stopping=True,
        check_val_every_n_epoch=1,
        enable_progress_bar=False,
        logger=None,
        datasplitter_kwargs={"external_indexing": [parts[p] for p in ("train", "validation", "test")]},
    )
    seconds = time.perf_counter() - began
    return {
        "z_NP": model.get_latent_representation(),
        "log_p": _log_p_of_scvi(model, parts["test"]),
        "bound": -model.history["elbo_validation"].to_numpy(float).ravel(),
        "seconds": seconds,
    }


@torch.no_grad()
def _log_p_of_scvi(model: Any, rows: np.ndarray) -> np.ndarray:
    """Return the importance-weighted log-likelihood of cells, as ``VAE.log_likelihood`` computes it."""
    module, found = model.module.eval(), []
    torch.manual_seed(0)
    prior: Any = torch.distributions.Normal(0, 1)
    for tensors in model._make_data_loader(adata=model.adata, indices=rows, batch_size=512):
        inputs, weights = module._get_inference_input(tensors), []
        for _ in range(DRAWS):
            encoded = module.inference(**inputs)
            decoded = module.generative(**module._get_generative_input(tensors, encoded))
            z_NP = encoded["z"]
            log_p_N = decoded["px"].log_prob(tensors["X"]).sum(1)
            weights.append(log_p_N + (prior.log_prob(z_NP) - encoded["qz"].log_prob(z_NP)).sum(1))
        found.append(torch.logsumexp(torch.stack(weights), 0) - math.log(DRAWS))
    return np.asarray(torch.cat(found).numpy())


METHODS: dict[str, Callable[[AnnData, Parts, int], dict[str, Any]]] = {"VAE": fit_vae, "scVI": fit_scvi}


def measure(name: str, folder: Path | None, method: str, seed: int, cells: int | None) -> dict[str, Any]:
    """Fit one method to one set; return what is stored."""
    adata = find(name, folder)
    if adata is None:
        raise SystemExit(f"{name} is missing.")
    if cells is not None and adata.n_obs > cells:
        adata = adata[np.sort(np.random.default_rng(0).choice(adata.n_obs, cells, replace=False))].copy()
    sm.pp.prepare(adata, BATCH, label_key=LABEL, n_top_genes=GENES, seed=0)
    part_N = adata.obs[keys.SPLIT].to_numpy()
    parts = {part: np.flatnonzero(part_N == part) for part in ("train", "validation", "test")}
    found = METHODS[method](adata, parts, seed)
    label_N, z_NP = adata.obs[LABEL].astype(str).to_numpy(), found["z_NP"]
    nearest = KNeighborsClassifier(NEIGHBOURS).fit(z_NP[parts["train"]], label_N[parts["train"]])
    return {
        "set": name,
        "method": method,
        "seed": seed,
        "cells": adata.n_obs,
        "genes": int(adata.var[keys.HVG].sum()),
        "log_likelihood": float(found["log_p"].mean()),
        "accuracy": float(nearest.score(z_NP[parts["test"]], label_N[parts["test"]])),
        "epochs": len(found["bound"]),
        "seconds": found["seconds"],
        "bound": found["bound"].tolist(),
        "record": record(threads=1),
    }


def table(results: list[dict[str, Any]]) -> pd.DataFrame:
    """Return one row for each set and method: means over seeds, and the time to scVI's best bound."""
    rows = []
    best = {(r["set"], r["seed"]): max(r["bound"]) for r in results if r["method"] == "scVI"}
    for r in results:
        goal, bound = best.get((r["set"], r["seed"])), np.array(r["bound"])
        reached = np.flatnonzero(bound >= (math.inf if goal is None else goal))
        row = {name: r[name] for name in ("set", "method", "cells", "log_likelihood", "accuracy", "epochs")}
        row["s/epoch"] = r["seconds"] / r["epochs"]
        row["s to scVI's bound"] = (reached[0] + 1) * row["s/epoch"] if len(reached) else math.nan
        rows.append(row)
    return pd.DataFrame(rows).groupby(["set", "method"], sort=False).agg(["mean", "std"]).round(3)


def main() -> None:
    """Fit what is not yet fitted, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--cells", type=int, help="at most so many cells of a set, drawn at random")
    parser.add_argument("--results", type=Path, default=Path("vae-benchmark"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    results = []
    for name in given.sets:
        for seed in given.seeds:
            for method in given.methods:
                if method == "scVI" and find_spec("scvi") is None:
                    print("scVI is skipped: pip install scvi-tools")
                    continue
                cut = f"_{given.cells}" if given.cells else ""
                path = given.results / f"{name}{cut}_{method}_{seed}.json"
                results.append(cached(path, partial(measure, name, given.data, method, seed, given.cells)))
                print({k: v for k, v in results[-1].items() if k not in ("bound", "record")}, flush=True)
    if results:
        print(table(results).T.to_string())


if __name__ == "__main__":
    main()
