"""How good is a denoised matrix? Molecular cross-validation of scMedley's VAE, rivals and simple methods.

    python benchmarks/denoising.py [--sets pbmc_8batches pancreas onek1k] [--data FOLDER] [--out FOLDER]
    python benchmarks/denoising.py --methods scVI --out FOLDER     # in an environment with scvi-tools
    python benchmarks/denoising.py --null                          # false positives of tests on denoised matrices

The molecules of every cell are split 90/10 at random. Methods see the first part, are scored on the second
(:func:`scmedley.evaluate.denoising`), on the same cells and the same highly variable genes, chosen on the first
part. Data sets with more than ``--cells`` cells are sampled, another sample with each seed.

Each (data set, seed, method) leaves a file under ``--out``; the same command resumes a stopped run, and several
environments can share the folder. The table is printed as Markdown, with mean and standard deviation over seeds.

With ``--null``, a tenth of the genes are drawn anew from a Poisson whose mean is the cell's total of the others times
one number for all cells: they differ between no groups of cells. The share of them with p < 0.05 in Welch's t-test
between the two most frequent labels, on each cell's shares, should be 5 %.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

import scmedley as sm
from common import BATCH, DATA_SETS, LABEL, find, record
from scmedley import keys
from scmedley.data.arrays import dense, log1p_cp10k, totals
from scmedley.errors import ScmedleyWarning
from scmedley.evaluate import denoising, knn_smoothed, low_rank, split_counts
from scmedley.io import sha256, write_json

if TYPE_CHECKING:
    from anndata import AnnData

HERE = Path(__file__).parent
SHARE = 0.9  # of the molecules that methods see
VALIDATION = 0.1  # of the cells, for the methods that stop early or keep their best epoch
DRAWS = 25  # of scVI's posterior, whose expected expression is averaged over them
SCORES = {"mse": "log-MSE", "poisson": "Poisson loss"}
NULL = {"false_positives": "null genes with p < 0.05"}

Denoised = dict[str, np.ndarray]  # by name in the table: expected counts of each cell and gene


@dataclass(frozen=True)
class Cells:
    """Prepared training molecules of the chosen genes, and the held-out molecules of the same cells and genes."""

    train: AnnData
    test_NG: Any

    @property
    def counts_NG(self) -> Any:
        """Return the training molecules."""
        return self.train.layers[keys.COUNTS]


def as_they_are(cells: Cells, seed: int) -> Denoised:
    """Return the counts."""
    return {"no denoising": dense(cells.counts_NG)}


def neighbours(cells: Cells, seed: int) -> Denoised:
    """Return the mean of 15 cells in 50 principal components."""
    return {"kNN smoothing (15 cells, 50 PCs)": knn_smoothed(cells.counts_NG, seed=seed)}


def svd(cells: Cells, seed: int) -> Denoised:
    """Return the truncated SVD of log1p CP10k, and ALRA's thresholded one, as we have written it."""
    return {
        "truncated SVD": low_rank(cells.counts_NG, thresholded=False, seed=seed),
        "thresholded SVD (after ALRA)": low_rank(cells.counts_NG, seed=seed),
    }


def negative_binomial(cells: Cells, seed: int) -> Denoised:
    """Return the posterior mean (the default of ``denoise``) and the decoder's mean of the same fit."""
    model = sm.VAE(BATCH, likelihood="negative binomial").fit(
        cells.train, seed=seed, threads=1, progress=False
    )
    return {
        "VAE, NB posterior mean": _x(model.denoise(cells.train), cells),
        "VAE, NB mean": _x(model.denoise(cells.train, use_counts=False), cells),
    }


def deepbid(cells: Cells, seed: int) -> Denoised:
    """Return the posterior mean of DeepBID, whose latent batches do not move."""
    model = sm.DeepBID(BATCH).fit(cells.train, seed=seed, threads=1, progress=False)
    return {"DeepBID, NB posterior mean": _x(model.denoise(cells.train), cells)}


def gaussian(cells: Cells, seed: int) -> Denoised:
    """Return the decoder's mean of log1p CP10k as counts of each cell's total."""
    model = sm.VAE(BATCH, likelihood="gaussian").fit(cells.train, seed=seed, threads=1, progress=False)
    x_NG = _x(model.denoise(cells.train), cells)
    return {"VAE, Gaussian decoder": x_NG * _ratio(totals(cells.counts_NG), x_NG.sum(1))[:, None]}


def scvi(cells: Cells, seed: int) -> Denoised:
    """Return scVI's expected shares times each cell's counts, at the defaults of scvi-tools."""
    import scvi as package
    from anndata import AnnData
    from scvi.model import SCVI

    package.settings.seed = seed
    adata = AnnData(cells.counts_NG.copy(), obs=cells.train.obs[[BATCH]].copy())
    SCVI.setup_anndata(adata, batch_key=BATCH)
    model = SCVI(adata)
    model.train(accelerator="cpu", enable_progress_bar=False, logger=False)
    share_NG = np.asarray(model.get_normalized_expression(n_samples=DRAWS, return_numpy=True))
    return {"scVI": share_NG * totals(cells.counts_NG)[:, None]}


METHODS: dict[str, Callable[[Cells, int], Denoised]] = {
    "none": as_they_are,
    "kNN": neighbours,
    "SVD": svd,
    "NB": negative_binomial,
    "DeepBID": deepbid,
    "Gaussian": gaussian,
    "scVI": scvi,
}
NEEDS = {"scVI": ("scvi-tools", "scvi")}  # package, module


def _x(denoised: AnnData | Path, cells: Cells) -> np.ndarray:
    """Return the matrix with the genes in our order."""
    assert not isinstance(denoised, Path)  # which denoise returns with out=
    return np.asarray(denoised[:, cells.train.var_names].X)


def _ratio(a_N: np.ndarray, b_N: np.ndarray) -> np.ndarray:
    return np.asarray(a_N / np.maximum(b_N, 1e-9))


@lru_cache(maxsize=1)
def prepared(name: str, folder: Path | None, seed: int, n_cells: int, n_genes: int) -> Cells | None:
    """Return the two parts of a data set's molecules; ``None`` if its file is missing."""
    adata = find(name, folder)
    if adata is None:
        return None
    adata = sm.read(DATA_SETS[name].path(folder)) if adata.X is None else adata
    rng = np.random.default_rng(seed)
    if adata.n_obs > n_cells:
        adata = adata[np.sort(rng.choice(adata.n_obs, n_cells, replace=False))].copy()
    train_NG, test_NG = split_counts(adata.X, SHARE, seed)
    train = adata.copy()
    train.X = train_NG
    train.raw = None
    train.layers.clear()
    part = np.where(rng.random(train.n_obs) < VALIDATION, "validation", "train").astype(object)
    part[~train.obs[BATCH].duplicated().to_numpy()] = "train"  # each batch needs a cell for training
    train.obs[keys.SPLIT] = part
    sm.pp.prepare(train, BATCH, n_top_genes=n_genes)
    train = train[:, train.var[keys.HVG].to_numpy()].copy()
    place = adata.obs_names.get_indexer(train.obs_names), adata.var_names.get_indexer(train.var_names)
    test_NG = test_NG[place[0]][:, place[1]]
    seen = (totals(train.layers[keys.COUNTS]) > 0) & (totals(test_NG) > 0)
    return Cells(train[seen].copy(), test_NG[np.flatnonzero(seen)])


def with_null_genes(cells: Cells, seed: int) -> tuple[Cells, np.ndarray]:
    """Return the cells with a tenth of their genes replaced by genes that do not differ; and which genes."""
    rng = np.random.default_rng(seed)
    counts_NG = dense(cells.counts_NG).copy()
    sum_G = counts_NG.sum(0)
    often_G = np.flatnonzero(sum_G >= np.median(sum_G))  # of rare genes, no test finds anything
    null_G = np.sort(rng.choice(often_G, counts_NG.shape[1] // 10, replace=False))
    rest_N = counts_NG.sum(1) - counts_NG[:, null_G].sum(1)  # with these, also the shares are equal
    counts_NG[:, null_G] = rng.poisson(rest_N[:, None] * (sum_G[null_G] / rest_N.sum()))
    train = cells.train.copy()
    train.layers[keys.COUNTS] = csr_matrix(counts_NG)
    train.layers[keys.LOGNORM] = log1p_cp10k(train.layers[keys.COUNTS], counts_NG.sum(1))
    return Cells(train, cells.test_NG), null_G


def false_positives(denoised_NG: np.ndarray, cells: Cells, null_G: np.ndarray) -> float:
    """Return the share of the null genes with p < 0.05 between the two most frequent labels."""
    share_NG = denoised_NG / np.maximum(denoised_NG.sum(1, keepdims=True), 1e-9)
    label_N = cells.train.obs[LABEL].astype(str).to_numpy()
    one, other = pd.Series(label_N).value_counts().index[:2]
    groups = (share_NG[label_N == name][:, null_G] for name in (one, other))
    return float((stats.ttest_ind(*groups, equal_var=False).pvalue < 0.05).mean())


def run(name: str, seed: int, method: str, path: Path, options: argparse.Namespace) -> None:
    """Denoise, score and store."""
    cells = prepared(name, options.data, seed, options.cells, options.genes)
    assert cells is not None
    if options.null:
        cells, null_G = with_null_genes(cells, seed)
    start, cpu = time.perf_counter(), time.process_time()
    found = METHODS[method](cells, seed)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    facts: dict[str, Any] = {
        "set": name,
        "seed": seed,
        "method": method,
        "seconds": seconds,
        "cpu_seconds": cpu,
    }
    facts |= {"cells": cells.train.n_obs, "genes": cells.train.n_vars}
    facts |= {"counts_per_cell": float(np.median(totals(cells.counts_NG)))}
    facts |= {"version": version(NEEDS[method][0]) if method in NEEDS else sm.__version__}
    scored: dict[str, dict[str, float]] = {}
    for title, x_NG in found.items():
        if options.null:
            scored[title] = {"false_positives": false_positives(x_NG, cells, null_G)}
        else:
            scored[title] = denoising(x_NG, cells.counts_NG, cells.test_NG)
    facts["scores"] = scored
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(facts, path)
    for title, scores in scored.items():
        numbers = " / ".join(f"{score:.4f}" for score in scores.values())
        print(f"{name} seed {seed} {title}: {numbers} ({cpu:.0f} s)", flush=True)


def table(rows: pd.DataFrame, columns: dict[str, str]) -> str:
    """Return a Markdown table of each data set: mean and standard deviation over seeds, the best in bold."""
    parts: list[str] = []
    of_set: Any
    for name, of_set in rows.groupby("set", sort=False):
        about = of_set.iloc[0]
        parts.append(
            f"**{name}**: {about['cells']:,} cells, {about['genes']:,} genes, median of "
            f"{about['counts_per_cell']:,.0f} counts per cell in these genes\n\n"
            f"| Method | {' | '.join(columns.values())} | seeds | CPU seconds |\n|---|{'--:|' * (len(columns) + 2)}"
        )
        means: Any = of_set.groupby("title", sort=False)[[*columns, "cpu_seconds"]].mean()
        sds: Any = of_set.groupby("title", sort=False)[[*columns]].std()
        n_seeds: Any = of_set.groupby("title", sort=False).size()
        for title in means.index:
            mean: Any = means.loc[title]
            texts = []
            for score in columns:
                text = f"{mean[score]:.4f}" + (
                    f" ± {sds.loc[title, score]:.4f}" if n_seeds[title] > 1 else ""
                )
                texts.append(
                    f"**{text}**" if columns is SCORES and mean[score] == means[score].min() else text
                )
            parts.append(f"| {title} | {' | '.join(texts)} | {n_seeds[title]} | {mean['cpu_seconds']:.0f} |")
        parts.append("")
    return "\n".join(parts)


def collected(options: argparse.Namespace) -> pd.DataFrame:
    """Return all stored scores of these data sets, in the order of the methods."""
    rows: list[dict[str, Any]] = []
    for name in options.sets:
        for path in sorted((options.out / name).glob("seed*/*.json")):
            facts = json.loads(path.read_text(encoding="utf-8"))
            if path.name != _name(facts["method"], name, options) or facts["seed"] >= options.seeds:
                continue
            scored = facts.pop("scores")
            rows += [{**facts, "title": title, **scores} for title, scores in scored.items()]
    order = {name: i for i, name in enumerate(METHODS)}
    rows.sort(key=lambda row: (options.sets.index(row["set"]), order[row["method"]]))
    return pd.DataFrame(rows)


@cache
def _digest(path: Path) -> str:
    return sha256(path)


def _name(method: str, name: str, options: argparse.Namespace) -> str:
    """Return the name of a result's file; another data file, sample size or number of genes gives another."""
    what = (_digest(DATA_SETS[name].path(options.data)), options.cells, options.genes)
    return f"{'null-' * options.null}{method}-{hashlib.sha256(repr(what).encode()).hexdigest()[:8]}.json"


def main() -> None:
    """Run what is missing; print and store the table."""
    options = _options()
    warnings.filterwarnings("ignore", category=ScmedleyWarning)
    torch.set_num_threads(1)
    options.sets = [name for name in options.sets if _there(name, options.data)]
    with threadpool_limits(1):
        for name in options.sets:
            for seed in range(options.seeds):
                for method in options.methods:
                    path = options.out / name / f"seed{seed}" / _name(method, name, options)
                    if not path.exists():
                        run(name, seed, method, path, options)
    rows = collected(options)
    if rows.empty:
        print("Nothing is finished.")
        return
    text = table(rows, NULL if options.null else SCORES)
    print("\n" + text)
    about = record(threads=1) | {"share": SHARE, "seeds": options.seeds}
    write_json(about | {"runs": rows.to_dict("records")}, options.results)
    options.results.with_suffix(".md").write_text(text, encoding="utf-8")


def _there(name: str, folder: Path | None) -> bool:
    """Return whether the file of a data set is there; print where it is missing."""
    path = DATA_SETS[name].path(folder)
    if not path.exists():
        print(f"{name}: skipped, there is no {path}. Name its folder with --data.")
    return path.exists()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--sets", nargs="+", default=["pbmc_8batches", "pancreas", "onek1k"], choices=DATA_SETS)
    add("--methods", nargs="+", choices=METHODS, help="default: all that are installed")
    add("--seeds", type=int, default=3)
    add("--cells", type=int, default=1500, help="largest number of cells (default: 1500)")
    add("--genes", type=int, default=2000, help="highly variable genes (default: 2000)")
    add("--data", type=Path, help="folder of the data sets that are not shipped")
    add("--null", action="store_true", help="count false positives of tests instead")
    add("--out", type=Path, default=Path("denoising-runs"), help="one file a result; goes on there")
    add("--results", type=Path, help="default: results/denoising.json (-null); the table (.md) is beside it")
    options = parser.parse_args()
    options.results = options.results or HERE / "results" / f"denoising{'-null' * options.null}.json"
    missing = [name for name, (_, module) in NEEDS.items() if find_spec(module) is None]
    if options.methods is None:
        options.methods = [name for name in METHODS if name not in missing]
    elif set(missing) & set(options.methods):
        parser.error("scVI: not installed here (pip install scvi-tools).")
    return options


if __name__ == "__main__":
    main()
