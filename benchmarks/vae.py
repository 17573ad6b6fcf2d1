"""The VAE beside scVI: held-out log-likelihood, labels, seconds.

    python benchmarks/vae.py --data FOLDER                       # all sets, three seeds
    python benchmarks/vae.py --data FOLDER --sets pancreas --seeds 0 --cells 3000 --methods VAE
    python benchmarks/vae.py --data FOLDER --sweep               # does it train on every set with counts?

Both have the same sizes (latent 10, one hidden layer of 128, minibatches of 128), the same genes and counts, the
same training, validation and held-out cells, a negative binomial, early stopping on the validation cells, and one
thread. Log-likelihoods are the same importance-weighted estimate with 100 draws per held-out cell (Burda et al.
2016), of the counts of the chosen genes given their total. "Time to the bound": seconds until the evidence lower
bound of the validation cells first reaches scVI's best. Every fit is a file in --results, so a stopped benchmark
resumes. Seconds are those of the processor: with one thread they do not depend on what else runs. Needs scvi-tools
for "scVI"; a method whose package is missing is skipped.

Settings of the VAE were tuned on pancreas_1000, kang_2000, onek1k_bcells and simul1, not on these sets, except the
strength of the prior of the output weights, which was tuned on pancreas (seed 0) too.

``--sweep`` fits the default, for 20 epochs and at most 2,000 cells, to every file of counts in the folder, and fails if
a loss, an embedding or a log-likelihood is not finite.

Shapes: N cells, P latent dimensions, D draws.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from sklearn.neighbors import KNeighborsClassifier

import scmedley as sm
from common import BATCH, DATA_VARIABLE, LABEL, cached, find, record
from scmedley import keys
from scmedley.io import write_json
from scmedley.models import fitting
from scmedley.train import loop

OUT = Path(__file__).parent / "results" / "vae.json"
SETS = ("pancreas", "onek1k", "pbmc_8batches")
DRAWS, NEIGHBOURS, GENES = 100, 15, 2000
HIDDEN, LATENT, BATCH_SIZE = 128, 10, 128
SWEPT_CELLS, SWEPT_EPOCHS = 2000, 20

Parts = dict[str, np.ndarray]


def fit_vae(adata: AnnData, parts: Parts, seed: int) -> dict[str, Any]:
    """Fit scMedley's VAE; return latent, log-likelihoods, and the bound of each epoch."""
    settings = sm.VAE.preset("default").replace(hidden=(HIDDEN,), n_latent=LATENT, batch_size=BATCH_SIZE)
    seconds = 0.0

    def timed(*given: Any) -> Any:
        nonlocal seconds
        began = time.process_time()
        done = loop.fit(*given)
        seconds = time.process_time() - began
        return done

    # Training alone, as of scVI: fit() also reads the cells, calibrates intervals and keeps reference cells.
    with mock.patch.object(fitting, "loop", SimpleNamespace(fit=timed, Plan=loop.Plan)):
        model = sm.VAE(BATCH, settings=settings).fit(
            adata, seed=seed, threads=1, precision="float32", device="cpu", progress=False
        )
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
    began = time.process_time()
    model.train(
        accelerator="cpu",
        batch_size=BATCH_SIZE,
        early_stopping=True,
        check_val_every_n_epoch=1,
        enable_progress_bar=False,
        logger=None,
        datasplitter_kwargs={"external_indexing": [parts[p] for p in ("train", "validation", "test")]},
    )
    seconds = time.process_time() - began
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


def with_time(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the results with seconds per epoch and to scVI's best bound (same set and seed)."""
    best = {(r["set"], r["seed"]): max(r["bound"]) for r in results if r["method"] == "scVI"}
    found = []
    for r in results:
        goal = best.get((r["set"], r["seed"]), math.inf)
        reached = np.flatnonzero(np.array(r["bound"]) >= goal)
        per_epoch = r["seconds"] / r["epochs"]
        until = float(reached[0] + 1) * per_epoch if len(reached) else None
        found.append(r | {"seconds_per_epoch": per_epoch, "seconds_to_bound": until})
    return found


def table(results: list[dict[str, Any]]) -> pd.DataFrame:
    """Return mean and standard deviation over seeds for each set and method."""
    columns = ["cells", "log_likelihood", "accuracy", "epochs", "seconds_per_epoch", "seconds_to_bound"]
    rows = pd.DataFrame(with_time(results)).astype(dict.fromkeys(columns, float))
    return rows.groupby(["set", "method"], sort=False)[columns].agg(["mean", "std"]).round(3)


def sweep(folder: Path) -> pd.DataFrame:
    """Fit the default to every set of counts in a folder; return one row for each."""
    rows = []
    for path in sorted(folder.glob("*.h5ad")):
        adata = sm.read(path)
        if adata.n_obs > SWEPT_CELLS:
            rows_N = np.random.default_rng(0).choice(adata.n_obs, SWEPT_CELLS, replace=False)
            adata = adata[np.sort(rows_N)].copy()
        sm.pp.prepare(adata, BATCH, n_top_genes=GENES, seed=0)
        if keys.COUNTS not in adata.layers:
            print(f"{path.name}: no counts", flush=True)
            continue
        row = {"set": path.stem, "cells": adata.n_obs, "genes": int(adata.var[keys.HVG].sum())}
        row["largest count"] = int(adata.layers[keys.COUNTS].max())
        settings = sm.VAE.preset("default").replace(max_epochs=SWEPT_EPOCHS)
        try:
            model = sm.VAE(BATCH, settings=settings).fit(
                adata, seed=0, threads=1, device="cpu", progress=False
            )
            log_p_N, z_NP = model.log_likelihood(adata, draws=2), model.get_latent_representation(adata)
            found = [model.history["value"].to_numpy(float), log_p_N, z_NP]
            row["finite"] = all(bool(np.isfinite(values).all()) for values in found)
            row["log_likelihood"] = float(log_p_N.mean())
        except sm.ScmedleyError as error:
            row |= {"finite": False, "error": str(error)}
        rows.append(row)
        print(row, flush=True)
    return pd.DataFrame(rows)


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
    parser.add_argument("--out", type=Path, default=OUT, help="summary of all fits (JSON)")
    parser.add_argument("--sweep", action="store_true", help="fit the default to every file of --data")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # the first optimiser imports much of torch
    warnings.simplefilter("ignore")
    if given.sweep:
        swept = sweep(given.data or Path(os.environ.get(DATA_VARIABLE, ".")))
        print(swept.to_string())
        raise SystemExit(0 if len(swept) and swept["finite"].all() else 1)
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
        # The bound of every epoch stays in --results.
        fits = [{k: v for k, v in r.items() if k != "bound"} for r in with_time(results)]
        write_json({"draws": DRAWS, "fits": fits}, given.out)


if __name__ == "__main__":
    main()
