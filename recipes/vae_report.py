"""The grid of the VAE report, with what it left out: held-out donors, seeds, collapse, batch leakage.

python recipes/vae_report.py cells.h5ad --batch batch --label cell_type --donor donor --out vae-grid

Latent 10, 50, 100 x hidden 256, 512, 1024 x input (counts with a negative binomial, log1p CP10k and Pearson residuals
with a Gaussian), and the report's own set-up ("report": squared error and KL as means), with several seeds. No model
sees the batch, as in the report. A fifth of the donors is held out whole; of the others' cells, a fifth. Each fit is
a file in --out, so the same command resumes. grid.csv has mean and standard deviation over seeds; the figures show
the latent of one model by label, donor and batch, by UMAP and by PCA. For the report's data (NeurIPS 2021, GEO
GSE194122) give its file and --bmmc.

Likelihoods of different inputs cannot be compared with each other: compare latent and hidden sizes within an input.
"""

from __future__ import annotations

import argparse
import json
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

import scmedley as sm
from scmedley import keys
from scmedley.data.design import as_categories
from scmedley.datasets.papers import read_bmmc
from scmedley.evaluate.scores import scores
from scmedley.interpret.collapse import diagnose
from scmedley.io import write_json
from scmedley.pp.maps import umap
from scmedley.pp.split import split

INPUTS: dict[str, dict[str, Any]] = {
    "counts": {"likelihood": "negative binomial"},
    "log1p": {"likelihood": "gaussian"},
    "pearson": {"likelihood": "gaussian", "scale": "pearson"},
    "report": {},  # preset "paper"
}
DONORS, SHOWN = 0.2, (50, 512, "counts")  # held-out share of the donors; the model that is drawn


def hold_out(adata: AnnData, batch: str, label: str, donor: str, seed: int = 0) -> np.ndarray:
    """Store a split of the known donors' cells in ``obs``; return which cells are of held-out donors."""
    codes = as_categories(adata.obs[donor]).codes
    names = np.random.default_rng(seed).permutation(np.unique(codes))
    held_out = np.isin(codes, names[: max(1, round(DONORS * len(names)))])
    part = np.full(adata.n_obs, "test", dtype="<U10")
    of = [as_categories(adata.obs[key]).codes[~held_out] for key in (batch, label)]
    part[~held_out] = split(of[0], of[1], seed=seed)
    adata.obs[keys.SPLIT] = pd.Categorical(part)
    return held_out


def fit(
    known: AnnData,
    new: AnnData,
    latent: int,
    hidden: int,
    kind: str,
    seed: int,
    epochs: int | None,
    keys_: Any,
) -> tuple[dict[str, Any], Any]:
    """Fit one model; return its row and the model."""
    batch, label = keys_
    settings = sm.VAE.preset("paper" if kind == "report" else "default")
    settings = settings.replace(n_latent=latent, hidden=(hidden,), max_epochs=epochs, **INPUTS[kind])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a collapse is in the table
        model = sm.VAE(settings=settings).fit(known, seed=seed, progress=False)
        part = known.obs[keys.SPLIT].to_numpy()
        cells = {
            "train": known[part == "train"],
            "held-out cells": known[part == "test"],
            "held-out donors": new,
        }
        row: dict[str, Any] = {"latent": latent, "hidden": hidden, "input": kind, "seed": seed}
        for name, some in cells.items():
            for term, values in model.elbo(some.copy()).items():
                row[f"{term}, {name}"] = float(values.mean())
        found = diagnose(model, known)
    row |= {
        "active units": found.n_active,
        "sensitivity": found.sensitivity,
        "collapsed": float(found.collapsed),
    }
    model.embed(known)
    table = scores(known, [keys.VAE], batch, label, seed=seed)
    for score in ("kNN leak", "logistic leak", "network leak"):
        row[score] = float(table[(table["score"] == score) & (table["of"] == "batch")]["value"].iloc[0])
    row["label accuracy"] = float(table[table["score"] == "kNN accuracy"]["value"].iloc[0])
    return row | {"epochs": model.fitted["epochs"]}, model


def draw(adata: AnnData, colours: list[str], out: Path) -> None:
    """Draw UMAP and PCA of the latent by each column."""
    z = adata.obsm[keys.VAE] - adata.obsm[keys.VAE].mean(axis=0)
    adata.obsm["X_latent_PCA"] = z @ np.linalg.svd(z, full_matrices=False)[2][:2].T
    umap(adata, keys.VAE)
    for colour in colours:
        sm.pl.embeddings(adata, [keys.VAE, "X_latent_PCA"], colour).savefig(
            out / f"latent_{colour}.png", dpi=150
        )


def main() -> None:
    """Fit what is not yet fitted; write the table and the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cells", type=Path)
    parser.add_argument("--out", type=Path, default=Path("vae-grid"))
    for name, default in (("batch", "batch"), ("label", "cell_type"), ("donor", "donor")):
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--bmmc", action="store_true", help="the file of GEO GSE194122")
    parser.add_argument("--most-cells", type=int, default=4000, help="drawn at random")
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--latent", type=int, nargs="+", default=[10, 50, 100])
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--inputs", nargs="+", default=list(INPUTS), choices=INPUTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    adata = read_bmmc(given.cells) if given.bmmc else sm.read(given.cells)
    if adata.n_obs > given.most_cells:
        rows = np.random.default_rng(0).choice(adata.n_obs, given.most_cells, replace=False)
        adata = adata[np.sort(rows)].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        held_out = hold_out(adata, given.batch, given.label, given.donor)
        names = adata.obs_names[held_out]
        sm.pp.prepare(adata, None, label_key=given.label, n_top_genes=given.genes)
    for key in (given.batch, given.donor):
        adata.obs[key] = as_categories(adata.obs[key])
    new = adata[adata.obs_names.isin(names)].copy()
    known = adata[~adata.obs_names.isin(names)].copy()
    given.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for latent, hidden, kind, seed in product(given.latent, given.hidden, given.inputs, given.seeds):
        path = given.out / f"{kind}_{latent}_{hidden}_{seed}.json"
        if not path.exists():
            how = (given.epochs, (given.batch, given.label))
            row, model = fit(known, new, latent, hidden, kind, seed, *how)
            if (latent, hidden, kind) == SHOWN and seed == given.seeds[0]:
                model.embed(adata)
                draw(adata, [given.label, given.donor, given.batch], given.out)
            write_json(row, path)
        rows.append(json.loads(path.read_text()))
        print({k: rows[-1][k] for k in ("input", "latent", "hidden", "seed", "collapsed")}, flush=True)
    table = (
        pd.DataFrame(rows).drop(columns="seed").groupby(["input", "latent", "hidden"]).agg(["mean", "std"])
    )
    table.to_csv(given.out / "grid.csv", float_format="%.8g")
    print(table.T.to_string(float_format="%.6g"))


if __name__ == "__main__":
    main()
