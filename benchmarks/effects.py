"""Are effects of a condition calibrated over donors, and do they agree with pydeseq2 and with the truth?

    python benchmarks/effects.py --data FOLDER [--parts null simulation pydeseq2] [--results FILE]

- "null": the condition is permuted over donors: where donors have both conditions, they are swapped within some of
  them. Neither the true assignment nor its mirror image is used, so that two donors have one other assignment, three
  have three and five fifteen; else 20 at random. "halves": cells of one condition, split at random in two for each
  donor (20 times): nothing differs, donors have no effects of their own. Reported: distance of the p-values to the
  uniform distribution (Kolmogorov-Smirnov), share of p < .05, and how many permutations have more than 5 % of genes at
  q < .05.
- "simulation": known effects in donors (pairs, groups, groups of unequal depth): power, false discoveries, coverage of
  the 90 % intervals, error of effects. With pydeseq2 (pip install pydeseq2), the same for it.
- "pydeseq2": rank correlation of the effects and overlap of the first 50 genes on real pseudobulk.

Each part that was run replaces that part of the file of results.

Shapes: S samples (a donor under a condition), G genes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import time
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import stats
from threadpoolctl import threadpool_limits

import scmedley as sm
from common import DATA_VARIABLE, record
from scmedley.interpret.condition_effects import labels_of
from scmedley.interpret.donors import read_donors, samples_of
from scmedley.io import write_json

OUT = Path(__file__).parent / "results" / "effects.json"
NEW, FDR, TOP, PERMUTATIONS = "permuted", 0.05, 50, 20
# File, condition, donor, label. The batches of pbmc have no condition: they are split in two groups at random.
SETS: dict[str, tuple[str, str | None, str, str | None]] = {
    "kang_3donors": ("kang_ifnb_3donors_9517_100g.h5ad", "condition", "donor", "cell_type"),
    "kang_2donors": ("kang_ifnb_2donors_1556.h5ad", "condition", "donor", "cell_type"),
    "glioblastoma": ("glioblastoma_panobinostat_5patients_300g.h5ad", "condition", "donor", None),
    "onek1k_sex": ("onek1k_40donors.h5ad", "sex", "donor", "cell_type"),
    "onek1k_bcells_sex": ("onek1k_bcell_100donors.h5ad", "sex", "donor", "cell_type"),
    "pbmc_8batches": ("pbmc_8batches_14k.h5ad", None, "batch", "cell_type_broad"),
}
SEX_GENES = ("XIST", "RPS4Y1", "DDX3Y", "KDM5D", "UTY", "EIF1AY", "USP9Y", "ZFY", "NLGN4Y", "TTTY15")


def main() -> None:
    """Run the parts, print and store their numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = {"null": null, "simulation": simulation, "pydeseq2": agreement}
    parser.add_argument("--data", type=Path, default=Path(os.environ.get(DATA_VARIABLE, ".")))
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--results", type=Path, default=OUT)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    found = json.loads(given.results.read_text()) if given.results.exists() else {}
    with threadpool_limits(1):
        for name in given.parts:
            began = time.perf_counter()
            rows = parts[name](given.data)
            print(f"\n{name}\n{pd.DataFrame(rows).to_string(index=False)}", flush=True)
            found[name] = {"seconds": round(time.perf_counter() - began, 1), "rows": rows}
    write_json(found | record(threads=1), given.results)


def read(folder: Path) -> Iterator[tuple[str, AnnData, str | None, str, str | None]]:
    """Yield the sets that are there: name, cells, condition, donor, label."""
    for name, (file, condition, donor, label) in SETS.items():
        if not (folder / file).exists():
            print(f"{name}: skipped, there is no {folder / file}. Name its folder with --data.")
            continue
        yield name, sm.read(folder / file), condition, donor, label


def null(folder: Path) -> list[dict[str, Any]]:
    """Test permuted conditions."""
    rows = []
    for name, adata, condition, donor, label in read(folder):
        rows.append(
            {"set": name, "null": "permuted"}
            | _called(adata, permutations(adata, condition, donor), donor, label)
        )
        print(rows[-1], flush=True)
        if name.startswith("kang"):
            control = adata[(adata.obs[condition] == "ctrl").to_numpy()].copy()
            rows.append(
                {"set": name, "null": "halves"} | _called(control, halves(control, donor), donor, label)
            )
    return rows


def permutations(adata: AnnData, condition: str | None, donor: str) -> list[np.ndarray]:
    """Return the condition of each cell under up to 20 different assignments to donors, the true one left out."""
    rng = np.random.default_rng(0)
    code_N = adata.obs[donor].astype("category").cat.codes.to_numpy()
    n_donors = code_N.max() + 1
    if condition is None:  # each assignment of half of the donors, its mirror image left out
        chosen = [c for c in combinations(range(n_donors), n_donors // 2) if 0 in c]
        rng.shuffle(chosen)
        return [np.where(np.isin(code_N, c), "a", "b") for c in chosen[:PERMUTATIONS]]
    true_N = adata.obs[condition].astype(str).to_numpy()
    levels = sorted(set(true_N))
    if adata.obs.groupby(donor, observed=True)[condition].nunique().max() > 1:
        other_N = np.where(true_N == levels[0], levels[1], levels[0])
        swaps = [s for s in product([False, True], repeat=n_donors) if not s[0] and any(s)]
        rng.shuffle(swaps)
        return [np.where(np.array(s)[code_N], other_N, true_N) for s in swaps[:PERMUTATIONS]]
    first_D = np.unique(code_N, return_index=True)[1]
    return [rng.permutation(true_N[first_D])[code_N] for _ in range(PERMUTATIONS)]


def halves(adata: AnnData, donor: str) -> list[np.ndarray]:
    """Return random halves of the cells of each donor."""
    rng = np.random.default_rng(0)
    return [np.array(["a", "b"])[rng.integers(0, 2, adata.n_obs)] for _ in range(PERMUTATIONS)]


def _called(adata: AnnData, assigned: list[np.ndarray], donor: str, label: str | None) -> dict[str, Any]:
    """Test each assignment: are p-values uniform, and how many genes and labels are called?"""
    p, shares, shifts = [], [], []
    label_p = []
    for values in assigned:
        adata.obs[NEW] = pd.Categorical(values)
        found = sm.interpret.condition_effects(adata, NEW, donor, label)
        known = found["p"].notna()
        p.append(found.loc[known, "p"].to_numpy())
        by_label = (found.loc[known, "q"] < FDR).groupby(found.loc[known, "label"]).mean()
        shares += by_label.to_list()
        shifts.append(float((found.loc[known, "q"] < FDR).mean()))
        if label is not None:
            label_p.append(sm.interpret.composition(adata, NEW, donor, label)["p"].dropna().to_numpy())
    all_p = np.concatenate(p)
    return {
        "permutations": len(assigned),
        "tests": len(all_p),
        "ks_distance": float(stats.kstest(all_p, "uniform").statistic),
        "ks_distance_median": float(np.median([stats.kstest(own, "uniform").statistic for own in p])),
        "p_below_05": float((all_p < FDR).mean()),
        "over_5_percent_at_q05": float(np.mean(np.array(shifts) > FDR)),
        "of_labels_over_5_percent": float(np.mean(np.array(shares) > FDR)),
        "composition_p_below_05": float((np.concatenate(label_p) < FDR).mean()) if label_p else None,
    }


DESIGNS = {  # donors, paired, cells of a sample at the least and at the most
    "4 pairs": (4, True, (50, 200)),
    "5 + 5 donors": (10, False, (50, 200)),
    "5 + 5 donors, 5 to 500 cells": (10, False, (5, 500)),
}


def simulation(folder: Path, repeats: int = 5, n_genes: int = 1000) -> list[dict[str, Any]]:
    """Find known effects: a tenth of the genes change by log2 of 0.3 to 2, in either direction."""
    rows = []
    for name, design in DESIGNS.items():
        scores: dict[str, list[dict[str, float]]] = {}
        for seed in range(repeats):
            adata, truth_G = simulated(*design, n_genes, seed)
            own = sm.interpret.condition_effects(adata, "condition", "donor", min_cells=1).set_index("gene")
            own = own.loc[adata.var_names]
            scores.setdefault("scmedley", []).append(_scored(own, truth_G, own["p"].notna()))
            if find_spec("pydeseq2"):
                counts = pd.DataFrame(adata.X.astype(int), adata.obs_names, adata.var_names)
                there = deseq(counts, adata.obs, design[1], "stim", "ctrl").loc[adata.var_names]
                scores.setdefault("pydeseq2", []).append(_scored(there, truth_G, own["p"].notna()))
        for method, own_scores in scores.items():
            mean = {key: float(np.nanmean([s[key] for s in own_scores])) for key in own_scores[0]}
            rows.append({"design": name, "method": method, "repeats": len(own_scores)} | mean)
    return rows


def simulated(
    n_donors: int, paired: bool, cells: tuple[int, int], n_genes: int, seed: int
) -> tuple[AnnData, np.ndarray]:
    """Return one row of summed counts a sample, and the true log2 effects.

    Cells of a sample are negative binomial with dispersion 0.5, so their sum is too, with the dispersion over their
    number; donors and samples differ by natural logarithms of standard deviation 0.05 to 0.5, which depend on the gene.
    """
    rng = np.random.default_rng(seed)
    base_G = rng.lognormal(-2, 1.5, n_genes)
    truth_G = np.zeros(n_genes)
    truth_G[: n_genes // 10] = rng.uniform(0.3, 2, n_genes // 10) * rng.choice([-1, 1], n_genes // 10)
    spread_G = rng.uniform(0.05, 0.5, n_genes)
    rows, obs = [], []
    for d in range(n_donors):
        donor_G = rng.normal(0, spread_G)
        for condition in ("ctrl", "stim") if paired else (("ctrl", "stim")[d >= n_donors // 2],):
            n = int(np.exp(rng.uniform(*np.log(cells))))
            log_G = donor_G + rng.normal(0, spread_G / 2) + np.log(2) * truth_G * (condition == "stim")
            noise_G = rng.gamma(n / 0.5, 0.5 / n, n_genes)
            rows.append(rng.poisson(n * base_G * np.exp(log_G) * rng.lognormal(0, 0.3) * noise_G))
            obs.append((f"d{d}", condition))
    table = pd.DataFrame(obs, columns=["donor", "condition"], index=[f"s{i}" for i in range(len(obs))])
    genes = pd.DataFrame(index=[f"g{i}" for i in range(n_genes)])
    return AnnData(np.array(rows, dtype=np.float32), table.astype("category"), genes), truth_G


def _scored(table: pd.DataFrame, truth_G: np.ndarray, shared: pd.Series[bool]) -> dict[str, float]:
    """Return power and false discoveries of all genes; coverage and error of those that both methods test."""
    called, true = (table["q"] < FDR).to_numpy(), truth_G != 0
    known = shared.to_numpy() & table["p"].notna().to_numpy()
    error_G = (table["effect"].to_numpy() - truth_G)[known]
    inside_G = (table["q05"].to_numpy() <= truth_G) & (truth_G <= table["q95"].to_numpy())
    return {
        "tested": float(table["p"].notna().sum()),
        "power": float(called[true].mean()),
        "false_discoveries": float((called & ~true).sum() / max(called.sum(), 1)),
        "p_below_05_of_null": float((table["p"].to_numpy()[known & ~true] < FDR).mean()),
        "coverage_90": float(inside_G[known].mean()),
        "rmse": float(np.sqrt(np.mean(error_G**2))),
        "rmse_of_changed": float(np.sqrt(np.mean(error_G[true[known]] ** 2))),
    }


def deseq(counts: pd.DataFrame, obs: pd.DataFrame, paired: bool, level: str, reference: str) -> pd.DataFrame:
    """Return effects of pydeseq2 on samples x genes."""
    from pydeseq2.dds import DeseqDataSet
    from pydeseq2.ds import DeseqStats

    obs = obs.astype(str)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        dds = DeseqDataSet(
            counts=counts,
            metadata=obs,
            design="~donor + condition" if paired else "~condition",
            refit_cooks=not paired,
            quiet=True,
            n_cpus=1,
        )
        dds.deseq2()
        found = DeseqStats(dds, contrast=["condition", level, reference], quiet=True, n_cpus=1)
        found.summary()
    table = found.results_df
    half = stats.norm.ppf(0.95) * table["lfcSE"]
    return pd.DataFrame(
        {
            "effect": table["log2FoldChange"],
            "p": table["pvalue"],
            "q": table["padj"],
            "q05": table["log2FoldChange"] - half,
            "q95": table["log2FoldChange"] + half,
        }
    )


def agreement(folder: Path) -> list[dict[str, Any]]:
    """Compare with pydeseq2 on the samples of each label."""
    if not find_spec("pydeseq2"):
        print("pydeseq2 is not installed: skipped.")
        return []
    rows = []
    for name, adata, condition, donor, label in read(folder):
        if condition is None:
            continue
        found = sm.interpret.condition_effects(adata, condition, donor, label)
        contrast = found["contrast"].iloc[0]
        level, reference = contrast.split(" - ")
        donors = read_donors(adata, condition, donor)
        code_N, labels = labels_of(adata, label, donors)
        for k, one in enumerate(labels):
            own = found[(found["label"] == one) & found["p"].notna()].set_index("gene")
            if own.empty:
                continue
            cells = np.flatnonzero(code_N == k)
            samples = samples_of(donors, cells, 10)
            kept = samples.code_N >= 0
            x = adata[donors.rows[cells[kept]], list(own.index)].X
            counts = (
                pd.DataFrame(np.asarray(x.todense()), columns=own.index).groupby(samples.code_N[kept]).sum()
            )
            counts.index = samples.table.index = [f"s{i}" for i in range(len(counts))]
            there = deseq(
                counts.astype(int), samples.table, bool((own["design"] == "paired").all()), level, reference
            )
            rows.append(
                {"set": name, "label": one, "donors": int(own["donors"].iloc[0])} | _agree(own, there)
            )
            rows[-1]["first_5"] = ", ".join(own.index[:5])
            rows[-1]["sex_genes"] = (
                sum(gene in adata.var_names for gene in SEX_GENES) if "sex" in name else None
            )
    return rows


def _agree(own: pd.DataFrame, there: pd.DataFrame) -> dict[str, Any]:
    there = there.loc[own.index]
    top = min(TOP, len(own) // 4)
    first = set(own.index[:top]) & set(there["p"].sort_values().index[:top])
    return {
        "genes": len(own),
        "rank_correlation": float(
            stats.spearmanr(own["effect"], there["effect"], nan_policy="omit").statistic
        ),
        "top": top,
        "top_shared": len(first),
        "called": int((own["q"] < FDR).sum()),
        "called_pydeseq2": int((there["q"] < FDR).sum()),
        "called_both": int(((own["q"] < FDR) & (there["q"] < FDR)).sum()),
    }


if __name__ == "__main__":
    main()
