"""Are effects of permuted levels nothing, and do corrected cells of women gain genes of the Y chromosome?

    python benchmarks/permuted_effects.py --data FOLDER
    python benchmarks/permuted_effects.py --data FOLDER --networks 0      # LinearMixed alone: minutes

Conditions (inside each donor), donors or batches are permuted over cells. The size of effects is the mean over cells,
levels and genes of the absolute difference between a cell as one level and the mean of the same cell as all levels, in
standard deviations of the gene. It should be at most 5 % of the size with the true levels.

Genes of the Y chromosome are not among the 1,000 genes of onek1k, so a few are planted: Poisson counts in the cells of
men alone, some of them present in each donor with a rate of its own. Donors are then corrected (``to`` the mean of
donors), with sex in the design and without.
"""

from __future__ import annotations

import argparse
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, hstack

import scmedley as sm
from common import DATA_VARIABLE, find, record
from scmedley.data.arrays import dense, totals
from scmedley.data.evidence import TARGET_SUM
from scmedley.io import write_json

if TYPE_CHECKING:
    from anndata import AnnData

EPOCHS = 30  # of networks
CELLS = 500  # cells whose effects are measured
SMALLEST_SD = 1e-6
PLANTED_RATES = (0.05, 0.2, 0.5, 1.0, 2.0)  # counts of a planted gene in a cell with the median total
MAN = "1"  # in obs["sex"] of onek1k


@dataclass(frozen=True)
class Case:
    """A data set, the column that is permuted, inside which other column, and the design of LinearMixed."""

    data: str
    column: str
    design: str
    inside: str = ""


CASES = (
    Case("kang_2donors", "condition", "~ condition + (condition | donor)", inside="donor"),
    Case("kang_3donors", "condition", "~ condition + (condition | donor)", inside="donor"),
    Case("onek1k", "donor", "~ (1 | donor)"),
    Case("pbmc_3technologies", "batch", "~ (1 | batch)"),
)


def permuted(obs: pd.DataFrame, column: str, inside: str, rng: np.random.Generator) -> pd.Series[Any]:
    """Return a column permuted over cells, or over the cells of each value of another column."""
    values = obs[column].to_numpy().copy()
    groups = obs.groupby(inside, observed=True).indices.values() if inside else [np.arange(len(obs))]
    for rows in groups:
        values[rows] = values[rng.permutation(rows)]
    return pd.Series(pd.Categorical(values), index=obs.index)


def linear_size(adata: AnnData, case: Case, *, learn_fixed: bool) -> float:
    """Return the size of the effects of a LinearMixed."""
    settings = sm.LinearMixedSettings(learn_fixed=learn_fixed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two or three levels
        model = sm.LinearMixed(case.design, settings=settings).fit(adata)
        targets = [{case.column: level} for level in adata.obs[case.column].cat.categories]
        return _size(model.counterfactual(_some(adata), to=targets), adata, len(targets))


def network_size(adata: AnnData, case: Case, seed: int) -> float:
    """Return the size of the effects of the default network."""
    adata = adata.copy()
    sm.pp.prepare(adata, batch_key=case.column, min_genes=0, min_cells=0, seed=seed)
    settings = sm.FixedEffectsSettings(max_epochs=EPOCHS)
    model = sm.FixedEffects(case.column, settings=settings).fit(adata, seed=seed, threads=1, progress=False)
    targets = [str(level) for level in adata.obs[case.column].cat.categories]
    shown: Any = model.counterfactual(_some(adata), to=targets)
    return _size(shown, adata, len(targets))


def _some(adata: AnnData) -> AnnData:
    rows = np.random.default_rng(0).choice(adata.n_obs, min(CELLS, adata.n_obs), replace=False)
    return adata[np.sort(rows)].copy()


def _size(shown: AnnData, adata: AnnData, n_targets: int) -> float:
    x_TNG = np.asarray(shown.X, np.float64).reshape(n_targets, -1, shown.n_vars)
    counts = csr_matrix(adata[:, shown.var_names].X, dtype=np.float64)
    sd_G = dense(counts.multiply(TARGET_SUM / totals(csr_matrix(adata.X))[:, None]).log1p()).std(axis=0)
    size_G = np.abs(x_TNG - x_TNG.mean(axis=0)).mean(axis=(0, 1))
    varies_G = sd_G > SMALLEST_SD
    return float((size_G[varies_G] / sd_G[varies_G]).mean())


def score(adata: AnnData, case: Case, n: int, n_networks: int) -> list[dict[str, Any]]:
    """Return the sizes of true and permuted effects, one row a method."""
    rng, sizes = np.random.default_rng(0), {}
    copies = [adata.copy() for _ in range(n + 1)]
    for copy in copies[1:]:
        copy.obs[case.column] = permuted(adata.obs, case.column, case.inside, rng)
    # Without fixed terms both settings are the same model.
    for learn in (True, False) if case.inside else (True,):
        name = "LinearMixed, learnt prior of the condition" if learn and case.inside else "LinearMixed"
        sizes[name] = [linear_size(copy, case, learn_fixed=learn) for copy in copies]
    if n_networks:
        sizes["default network"] = [network_size(c, case, 0) for c in copies[: n_networks + 1]]
    rows = []
    for method, (true, *nulls) in sizes.items():
        mean, largest = float(np.mean(nulls)), float(np.max(nulls))
        row = {"set": case.data, "column": case.column, "method": method, "n": len(nulls), "true": true}
        row |= {"permuted": mean, "permuted_max": largest, "share": mean / true, "share_max": largest / true}
        rows.append(row)
        print(rows[-1], flush=True)
    return rows


def planted(adata: AnnData) -> AnnData:
    """Return onek1k with genes that men alone express, each at a rate that differs between donors."""
    from anndata import AnnData

    rng = np.random.default_rng(0)
    counts = csr_matrix(adata.X)
    total_N = np.asarray(counts.sum(axis=1)).ravel()
    man_N = (adata.obs["sex"].astype(str) == MAN).to_numpy()
    donor_N = adata.obs["donor"].cat.codes.to_numpy()
    own_N = rng.lognormal(0, 0.2, donor_N.max() + 1)[donor_N]
    rate_N = man_N * own_N * total_N / np.median(total_N)
    y_NY = rng.poisson(np.outer(rate_N, PLANTED_RATES)).astype(np.float32)
    names = [*adata.var_names, *(f"planted Y {rate}" for rate in PLANTED_RATES)]
    x_NG = csr_matrix(hstack([counts, csr_matrix(y_NY)]))
    return AnnData(x_NG, obs=adata.obs[["donor", "sex"]].copy(), var=pd.DataFrame(index=names))


def of_women(adata: AnnData) -> list[dict[str, Any]]:
    """Return what corrected cells of women gain in planted genes, as a share of the difference of the sexes."""
    adata, rows = planted(adata), []
    man_N = (adata.obs["sex"].astype(str) == MAN).to_numpy()
    for design in ("~ sex + (1 | donor)", "~ (1 | donor)"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shown = sm.LinearMixed(design).fit(adata).counterfactual(adata, to={"donor": "mean"})
        change_NG = np.asarray(shown.layers["difference"], np.float64)
        before_NG = np.asarray(shown.X, np.float64) - change_NG
        for g in range(adata.n_vars - len(PLANTED_RATES), adata.n_vars):
            difference = before_NG[man_N, g].mean() - before_NG[~man_N, g].mean()
            row = {"design": design, "gene": str(shown.var_names[g]), "difference": float(difference)}
            rows.append(row | {"gain_share": float(change_NG[~man_N, g].mean() / difference)})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Score all cases, print and store the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(os.environ.get(DATA_VARIABLE, ".")))
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parent / "results" / "permuted_effects.json"
    )
    parser.add_argument("--permutations", type=int, default=20)
    parser.add_argument("--networks", type=int, default=3, help="permutations for which networks are fitted")
    options = parser.parse_args()
    rows, women = [], []
    for case in CASES:
        adata = find(case.data, options.data)
        if adata is not None:
            rows += score(adata, case, options.permutations, options.networks)
            if case.data == "onek1k":
                women = of_women(adata)
    print(pd.DataFrame(rows).round(4).to_string(index=False))
    write_json(record(1) | {"effects": rows, "planted": women}, options.results)


if __name__ == "__main__":
    main()
