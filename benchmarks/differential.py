"""What do tests find where nothing differs? Wilcoxon on counts, on a denoised matrix, and differential_expression.

    python benchmarks/differential.py [--sets pbmc_8batches kang_2000 pancreas] [--data FOLDER] [--out FOLDER]

A tenth of the genes are drawn anew with the same expected share in all cells ("null genes", as by
``denoising.py --null``), and a VAE is fitted to all cells, without labels. Then, at a false-discovery rate of 5 %:

- "halves": the largest group of cells of one label and one batch is split at random. Every gene called is false.
- "labels": the two most frequent labels. Most genes may differ, but every null gene called is false.

The tests: Wilcoxon's on log1p CP10k and Welch's on shares of the cell's total, each of the counts and of the denoised
matrix (Benjamini and Hochberg), and ``VAE.differential_expression`` at its defaults. Each fit is a file in --out, so a
stopped benchmark resumes.

Shapes: N cells, G genes.
"""

from __future__ import annotations

import argparse
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from threadpoolctl import threadpool_limits

import scmedley as sm
from common import BATCH, DATA_SETS, LABEL, cached, record
from denoising import prepared, with_null_genes
from scmedley.data.arrays import dense, log1p_cp10k, totals
from scmedley.io import write_json

OUT = Path(__file__).parent / "results" / "differential.json"
FDR, GROUP = 0.05, "group"
TESTS = {
    "wilcoxon_counts": "Wilcoxon, counts",
    "welch_counts": "Welch, counts",
    "wilcoxon_denoised": "Wilcoxon, denoised matrix",
    "welch_denoised": "Welch, denoised matrix",
    "posterior": "`differential_expression`",
}


def called_by(test: str, x_NG: np.ndarray, group_N: np.ndarray) -> np.ndarray:
    """Return which genes of a matrix of counts differ between groups "a" and "b"."""
    total_N = np.maximum(x_NG.sum(1), 1e-9)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # genes of one value
        if test == "wilcoxon":
            log1p_NG = dense(log1p_cp10k(x_NG, total_N))
            found = stats.mannwhitneyu(*_groups(log1p_NG, group_N), method="asymptotic")
        else:
            found = stats.ttest_ind(*_groups(x_NG / total_N[:, None], group_N), equal_var=False)
    called: np.ndarray = stats.false_discovery_control(np.nan_to_num(found.pvalue, nan=1.0)) <= FDR
    return called


def _groups(x_NG: np.ndarray, group_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x_NG[group_N == "a"], x_NG[group_N == "b"]


def halves(obs: pd.DataFrame, seed: int) -> np.ndarray:
    """Return "a" and "b" at random for the cells of the largest group of one label and batch, "" for others."""
    strata = pd.Series(list(zip(obs[LABEL], obs[BATCH], strict=True)), index=obs.index)
    rows = np.flatnonzero((strata == strata.value_counts().index[0]).to_numpy())
    group_N = np.full(len(obs), "", dtype="<U1")
    group_N[rows] = np.random.default_rng(seed).permutation(np.resize(["a", "b"], len(rows)))
    return group_N


def labels(obs: pd.DataFrame) -> np.ndarray:
    """Return "a" and "b" for the cells of the two most frequent labels, "" for others."""
    label_N = obs[LABEL].astype(str)
    names = label_N.value_counts().index[:2]
    return np.asarray(label_N.map(dict(zip(names, "ab", strict=True))).fillna(""), dtype="<U1")


def measure(name: str, folder: Path | None, seed: int, cells: int, genes: int) -> dict[str, Any]:
    """Fit to one data set; return how many genes each test calls in each comparison."""
    found = prepared(name, folder, seed, cells, genes)
    assert found is not None
    changed, null_G = with_null_genes(found, seed)
    adata = changed.train
    model = sm.VAE(BATCH).fit(adata, seed=seed, threads=1, device="cpu", progress=False)
    is_null_G = np.isin(np.arange(adata.n_vars), null_G)
    counts_NG = dense(changed.counts_NG)
    denoised: Any = model.denoise(adata)
    matrices = {"counts": counts_NG, "denoised": dense(denoised[:, adata.var_names].X)}
    row: dict[str, Any] = {"set": name, "seed": seed, "cells": adata.n_obs, "genes": adata.n_vars}
    row |= {"null_genes": int(is_null_G.sum()), "counts_per_cell": float(np.median(totals(counts_NG)))}
    for comparison, group_N in (("halves", halves(adata.obs, seed)), ("labels", labels(adata.obs))):
        adata.obs[GROUP] = pd.Categorical(group_N, categories=["a", "b"])
        called = {
            f"{test}_{of}": called_by(test, x_NG, group_N)
            for of, x_NG in matrices.items()
            for test in ("wilcoxon", "welch")
        }
        table = model.differential_expression(adata, GROUP, "a", "b", fdr=FDR, seed=seed)
        called["posterior"] = table["changed"].reindex(adata.var_names).to_numpy()
        row[f"{comparison}_cells"] = int((group_N != "").sum())
        for test, called_G in called.items():
            row[f"{comparison}_{test}"] = int(called_G.sum())
            row[f"{comparison}_{test}_null"] = int((called_G & is_null_G).sum())
    return row


def table(rows: pd.DataFrame) -> str:
    """Return a Markdown table: means over seeds."""
    lines = [
        "| Set | Test | Random halves: genes called, mean (largest) | Two labels: genes called | of the null genes "
        "| null genes among the called |",
        "|---|---|--:|--:|--:|--:|",
    ]
    of: Any
    for name, of in rows.groupby("set", sort=False):
        for test, title in TESTS.items():
            false, all_called = of[f"labels_{test}_null"].sum(), of[f"labels_{test}"].sum()
            columns = (
                f"{of[f'halves_{test}'].mean():.0f} ({of[f'halves_{test}'].max()})",
                f"{of[f'labels_{test}'].mean():,.0f} of {of['genes'].iloc[0]:,}",
                f"{100 * (of[f'labels_{test}_null'] / of['null_genes']).mean():.1f} %",
                f"{100 * false / max(all_called, 1):.1f} %",
            )
            lines.append(f"| {name} | {title} | {' | '.join(columns)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing; print and store the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--sets", nargs="+", default=["pbmc_8batches", "kang_2000", "pancreas"], choices=DATA_SETS)
    add("--seeds", type=int, default=5)
    add("--cells", type=int, default=1500, help="largest number of cells (default: 1500)")
    add("--genes", type=int, default=2000, help="highly variable genes (default: 2000)")
    add("--data", type=Path, help="folder of the data sets that are not shipped")
    add("--out", type=Path, default=Path("differential-runs"), help="one file a fit")
    add("--results", type=Path, default=OUT)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = []
    with threadpool_limits(1):
        for name in given.sets:
            if not DATA_SETS[name].path(given.data).exists():
                print(f"{name}: skipped, there is no {DATA_SETS[name].path(given.data)}. Use --data.")
                continue
            for seed in range(given.seeds):
                path = given.out / f"{name}_{given.cells}_{given.genes}_{seed}.json"
                how = (name, given.data, seed, given.cells, given.genes)
                rows.append(cached(path, partial(measure, *how)))
                print(rows[-1], flush=True)
    if rows:
        print(table(pd.DataFrame(rows)))
        write_json(record(threads=1) | {"fdr": FDR, "runs": rows}, given.results)


if __name__ == "__main__":
    main()
