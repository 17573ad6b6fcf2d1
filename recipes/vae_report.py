"""The grid of the VAE report, with what it left out: held-out donors, seeds, collapse, batch leakage.

python recipes/vae_report.py cells.h5ad --batch batch --label cell_type --donor donor --out vae-grid

Latent 10, 50, 100 x hidden 256, 512, 1024 x input (counts with a negative binomial, log1p CP10k and Pearson residuals
with a Gaussian), and the report's own set-up ("report": squared error and KL as means), with several seeds. No model
sees the batch, as in the report. A fifth of the donors is held out whole; of the others' cells, a fifth. Each fit is
a file in --out, so the same command resumes. grid.csv has mean and standard deviation over seeds, and summary.md the
best and the largest size of each input; the figures show the latent of one model (--draw) by label, donor, batch and
site, by UMAP and by PCA. For the report's data (NeurIPS 2021, GEO GSE194122) give its file and --bmmc.

Likelihoods of different inputs cannot be compared with each other: compare latent and hidden sizes within an input.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

import scmedley as sm
from scmedley import keys
from scmedley.data.design import as_categories
from scmedley.datasets.papers import read_bmmc
from scmedley.errors import ScmedleyError
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
SIZE = ["input", "latent", "hidden"]
LEAKS = ("kNN leak", "logistic leak", "network leak")
DONORS = 0.2  # held-out share of the donors


@dataclass(frozen=True)
class Data:
    """The cells of known donors, with their split, those of held-out donors, and the columns of ``obs``."""

    known: AnnData
    new: AnnData
    batch: str
    label: str


@dataclass(frozen=True)
class Fit:
    """One fit of the grid."""

    kind: str
    latent: int
    hidden: int
    seed: int
    epochs: int | None

    def path(self, out: Path) -> Path:
        """Return the file of its row."""
        return out / f"{self.kind}_{self.latent}_{self.hidden}_{self.seed}.json"

    def model(self, known: AnnData) -> sm.VAE:
        """Fit the model."""
        settings = sm.VAE.preset("paper" if self.kind == "report" else "default")
        settings = settings.replace(n_latent=self.latent, hidden=(self.hidden,), **INPUTS[self.kind])
        model = sm.VAE(settings=settings.replace(max_epochs=self.epochs))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a collapse is in the table
            return model.fit(known, seed=self.seed, threads=1, progress=False)


def hold_out(adata: AnnData, batch: str, label: str, donor: str, seed: int = 0) -> np.ndarray:
    """Store a split of the known donors' cells in ``obs``; return which cells are of held-out donors.

    Cells without a donor may be of any, so they count as those of known donors.
    """
    codes = as_categories(adata.obs[donor]).codes
    names = np.random.default_rng(seed).permutation(np.unique(codes[codes >= 0]))
    if len(names) < 2:
        raise ScmedleyError(
            f"obs[{donor!r}] has {len(names)} donors; two are needed to hold one out. Name another column (--donor)."
        )
    held_out = np.isin(codes, names[: max(1, round(DONORS * len(names)))])
    part = np.full(adata.n_obs, "test", dtype="<U10")
    of = [as_categories(adata.obs[key]).codes[~held_out] for key in (batch, label)]
    part[~held_out] = split(of[0], of[1], seed=seed)
    adata.obs[keys.SPLIT] = pd.Categorical(part)
    return held_out


def measure(fit: Fit, data: Data) -> dict[str, Any]:
    """Fit one model; return its row."""
    began = time.process_time()
    model, known = fit.model(data.known), data.known
    row: dict[str, Any] = {"input": fit.kind, "latent": fit.latent, "hidden": fit.hidden, "seed": fit.seed}
    part = known.obs[keys.SPLIT].to_numpy()
    parts = {
        "train": known[part == "train"],
        "held-out cells": known[part == "test"],
        "held-out donors": data.new,
    }
    for name, cells in parts.items():
        for term, values in model.elbo(cells.copy()).items():
            row[f"{term}, {name}"] = float(values.mean())
    found = diagnose(model, known)
    row |= {"active units": found.n_active, "sensitivity": found.sensitivity}
    row |= {"collapsed": float(found.collapsed)}
    model.embed(known)
    table = scores(known, [keys.VAE], data.batch, data.label, seed=fit.seed)
    for score in LEAKS:
        row[score] = float(table[(table["score"] == score) & (table["of"] == "batch")]["value"].iloc[0])
    row["label accuracy"] = float(table[table["score"] == "kNN accuracy"]["value"].iloc[0])
    return row | {"epochs": model.fitted["epochs"], "seconds": time.process_time() - began}


def measure_and_store(fit: Fit, data: Data, out: Path) -> None:
    """Fit one model and store its row (in a process of its own with --jobs)."""
    torch.set_num_threads(1)
    write_json(measure(fit, data), fit.path(out))
    print(f"{fit.path(out).stem}", flush=True)


def fit_all(fits: list[Fit], data: Data, out: Path, jobs: int) -> pd.DataFrame:
    """Fit what is not yet fitted; return all rows."""
    missing = [fit for fit in fits if not fit.path(out).exists()]
    if jobs == 1:
        for fit in missing:
            measure_and_store(fit, data, out)
    else:
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            for done in [pool.submit(measure_and_store, fit, data, out) for fit in missing]:
                done.result()
    return pd.DataFrame([json.loads(fit.path(out).read_text()) for fit in fits])


def summary(rows: pd.DataFrame) -> str:
    """Return a Markdown table: of each input, the size with the best bound of held-out cells and the largest."""
    rows = rows.assign(leak=rows[list(LEAKS)].max(axis=1))
    bounds = ["elbo, held-out cells", "elbo, held-out donors"]
    lines = [
        "| Input | Size: latent × hidden | Label accuracy | Worst leak | ELBO, held-out cells | ELBO, held-out donors "
        "| Active units | Collapsed | Collapsed, all sizes |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for kind, of_input in rows.groupby("input", sort=False):
        mean = of_input.groupby(["latent", "hidden"])[bounds[0]].mean()
        best, largest = mean.idxmax(), mean.index.max()
        named = {"best and largest": best} if best == largest else {"best": best, "largest": largest}
        for what, size in named.items():
            fits = of_input.set_index(["latent", "hidden"]).loc[[size]]
            cells = [_mean_sd(fits[c], 3) for c in ("label accuracy", "leak")]
            cells += [_mean_sd(fits[c], 1) for c in bounds]
            cells.append(f"{fits['active units'].mean():.0f}")
            cells += [f"{100 * some['collapsed'].mean():.0f} %" for some in (fits, of_input)]
            lines.append(f"| {kind} | {what}: {size[0]} × {size[1]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _mean_sd(values: pd.Series, digits: int) -> str:
    spread = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


def draw(adata: AnnData, colours: list[str], fit: Fit, known: AnnData, out: Path) -> None:
    """Draw UMAP and PCA of one model's latent by each column, if a figure is missing; fit that model again."""
    paths = {colour: out / f"latent_{colour}.png" for colour in colours}
    if all(path.exists() for path in paths.values()):
        return
    fit.model(known).embed(adata)
    z = adata.obsm[keys.VAE] - adata.obsm[keys.VAE].mean(axis=0)
    adata.obsm["X_latent_PCA"] = z @ np.linalg.svd(z, full_matrices=False)[2][:2].T
    umap(adata, keys.VAE)
    for colour, path in paths.items():
        sm.pl.embeddings(adata, [keys.VAE, "X_latent_PCA"], colour).savefig(path, dpi=150)


def drawn(fits: list[Fit], asked: list[str]) -> Fit:
    """Return the fit to draw: the one asked for, else the first."""
    for fit in fits:
        if [fit.kind, str(fit.latent), str(fit.hidden)] == asked:
            return fit
    return fits[0]


def main() -> None:
    """Fit what is not yet fitted; write the tables and the figures."""
    given = _options()
    adata = read_bmmc(given.cells) if given.bmmc else sm.read(given.cells)
    if adata.n_obs > given.most_cells:
        rows = np.random.default_rng(0).choice(adata.n_obs, given.most_cells, replace=False)
        adata = adata[np.sort(rows)].copy()
    site = given.site or ("site" if given.bmmc else None)
    colours = list(dict.fromkeys(filter(None, (given.label, given.donor, given.batch, site))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        held_out = hold_out(adata, given.batch, given.label, given.donor)
        names = adata.obs_names[held_out]
        sm.pp.prepare(adata, None, label_key=given.label, n_top_genes=given.genes)
    for key in set(colours) - {given.label}:
        adata.obs[key] = as_categories(adata.obs[key])
    is_new = adata.obs_names.isin(names)
    data = Data(adata[~is_new].copy(), adata[is_new].copy(), given.batch, given.label)
    given.out.mkdir(parents=True, exist_ok=True)
    grid = product(given.inputs, given.latent, given.hidden, given.seeds)
    fits = [Fit(*one, given.epochs) for one in grid]
    fitted = fit_all(fits, data, given.out, given.jobs)
    table = fitted.drop(columns="seed").groupby(SIZE).agg(["mean", "std"])
    table.to_csv(given.out / "grid.csv", float_format="%.8g")
    text = summary(fitted)
    (given.out / "summary.md").write_text(text, encoding="utf-8")
    print(text)
    draw(adata, colours, drawn(fits, given.draw), data.known, given.out)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("cells", type=Path)
    add("--out", type=Path, default=Path("vae-grid"))
    for name, default in (("batch", "batch"), ("label", "cell_type"), ("donor", "donor")):
        add(f"--{name}", default=default)
    add("--site", help="a further column to colour the figures by (default with --bmmc: site)")
    add("--bmmc", action="store_true", help="the file of GEO GSE194122")
    add("--most-cells", type=int, default=2000, help="drawn at random (default: 2000)")
    add("--genes", type=int, default=1000, help="highly variable genes (default: 1000)")
    add("--epochs", type=int)
    add("--latent", type=int, nargs="+", default=[10, 50, 100])
    add("--hidden", type=int, nargs="+", default=[256, 512, 1024])
    add("--inputs", nargs="+", default=list(INPUTS), choices=INPUTS)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--draw", nargs=3, metavar=("INPUT", "LATENT", "HIDDEN"), default=["counts", "50", "512"])
    add("--jobs", type=int, default=1, help="processes, of one thread each (default: 1)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
