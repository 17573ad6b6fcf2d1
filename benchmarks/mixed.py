"""Do the intervals of LinearMixed cover the truth, and are its effects closer to it than pseudobulk's?

    python benchmarks/mixed.py

Simulated cells of 20 donors (20 to 500 cells each) in 2 studies under 2 conditions, with known effects: Gaussian
values, and negative-binomial counts normalised to log1p CP10k. How much donors and studies differ varies from gene to
gene, as measured on public sets. The same with 6 donors. Then a nested simulation against REML of statsmodels, and the
time of a large fit. Pseudobulk is the mean of a sample, minus that of all cells.

Shapes: N cells, G genes, D donors, K conditions, S studies.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

import scmedley as sm
from common import record
from scmedley import keys
from scmedley.errors import ScmedleyWarning
from scmedley.io import write_json
from scmedley.models.linear_counterfactual import extended, with_interval

FORMULA = "~ condition + (condition | study/donor)"
CTRL, STIM = {"condition": "ctrl"}, {"condition": "stim"}
SMALL = 50  # cells: donors below are small
N_STUDIES, N_GENES, MANY = 2, 300, 200  # MANY more donors, of other studies, stand for the population
PLENTY = 1500  # cells whose mean is the truth of a sample, for counts
LIFT = 20.0  # added to Gaussian values: log1p values are not negative
SETTINGS = {
    "default": sm.LinearMixedSettings(),
    "same variances": sm.LinearMixedSettings(heterogeneous=False),
    "learn fixed": sm.LinearMixedSettings(learn_fixed=True),
    "no samples": sm.LinearMixedSettings(samples=False),
}
CASES = [(kind, n, name) for kind in ("gaussian", "counts") for n in (20, 6) for name in list(SETTINGS)[:3]]
# A design that leaves out the donors' responses: the term of samples has to make up for them.
CASES += [("gaussian", 20, name) for name in ("left out, default", "left out, no samples")]


@dataclass(frozen=True)
class World:
    """A population of donors whose samples have known means.

    Attributes
    ----------
    kind
        "gaussian" or "counts".
    eta_DKG
        Of each donor and condition: the mean (Gaussian), or the log share of counts.
    depth_D
        Log depth of each donor; counts only.
    noise_G
        Residual standard deviation (Gaussian), or dispersion (counts).
    n_fitted
        Number of donors of the fit.
    """

    kind: str
    eta_DKG: np.ndarray
    depth_D: np.ndarray
    noise_G: np.ndarray
    n_fitted: int

    @classmethod
    def drawn(cls, kind: str, n_fitted: int, rng: np.random.Generator) -> World:
        """Draw donors: first those of the fit, then MANY others."""
        n_donors = n_fitted + MANY
        spread_2G = np.exp(rng.normal(np.log([[0.3], [0.18]]), [[0.54], [0.62]], (2, N_GENES)))
        study_SG = rng.normal(0, 1, (N_STUDIES + MANY, N_GENES)) * spread_2G[0]
        donor_DG = rng.normal(0, 1, (n_donors, N_GENES)) * spread_2G[1]
        own_DG = rng.normal(0, 0.5, (n_donors, N_GENES)) * spread_2G[1]
        response_G = rng.choice([-1, 0, 1], N_GENES, p=[0.1, 0.8, 0.1]) * rng.uniform(0.25, 0.75, N_GENES)
        study_D = np.r_[np.arange(n_fitted) % N_STUDIES, N_STUDIES + np.arange(MANY)]
        base_G = rng.normal(0, 1.3, N_GENES) - np.log(N_GENES) if kind == "counts" else np.zeros(N_GENES)
        eta_DG = base_G + study_SG[study_D] + donor_DG
        noise_G = (
            rng.lognormal(np.log(0.2), 1, N_GENES) if kind == "counts" else rng.uniform(0.5, 1.5, N_GENES)
        )
        eta_DKG = np.stack([eta_DG, eta_DG + response_G + own_DG], axis=1)
        return cls(kind, eta_DKG, np.log(1500) + rng.normal(0, 0.35, n_donors), noise_G, n_fitted)

    def cells(self, donor_N: np.ndarray, k_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw the values of cells, N x G."""
        eta_NG = self.eta_DKG[donor_N, k_N]
        if self.kind == "gaussian":
            return np.asarray(LIFT + eta_NG + self.noise_G * rng.normal(size=eta_NG.shape))
        depth_N1 = np.exp(self.depth_D[donor_N] + rng.normal(0, 0.55, len(donor_N)))[:, None]
        shape_G = 1 / self.noise_G
        mean_NG = depth_N1 * np.exp(eta_NG) * rng.gamma(shape_G, self.noise_G, eta_NG.shape)
        return np.asarray(np.log1p(1e4 * rng.poisson(mean_NG) / depth_N1))

    def truth(self, rng: np.random.Generator) -> np.ndarray:
        """Return the true mean of every sample, D x K x G."""
        if self.kind == "gaussian":
            return LIFT + self.eta_DKG
        mean_DKG = np.empty_like(self.eta_DKG)
        for d, k in np.ndindex(*self.eta_DKG.shape[:2]):
            n = PLENTY if d < self.n_fitted + 5 else 200
            mean_DKG[d, k] = self.cells(np.full(n, d), np.full(n, k), rng).mean(0)
        return mean_DKG


def as_adata(y_NG: np.ndarray, donor_N: np.ndarray, k_N: np.ndarray, study: str = "") -> AnnData:
    """Return cells as they look after ``prepare``."""
    obs = pd.DataFrame(
        {
            "donor": [f"d{d:03d}" for d in donor_N],
            "study": [study or f"s{d % N_STUDIES}" for d in donor_N],
            "condition": np.array(["ctrl", "stim"])[k_N],
        },
        index=[f"cell{i}" for i in range(len(donor_N))],
    )
    y, var = csr_matrix(y_NG.astype(np.float32)), pd.DataFrame(index=[f"g{i}" for i in range(y_NG.shape[1])])
    return AnnData(y, obs=obs, var=var, layers={keys.LOGNORM: y})


def one(kind: str, n_donors: int, name: str, seed: int) -> list[dict[str, Any]]:
    """Fit one simulated set; return one row for every effect with its error and how often its interval covers it."""
    rng = np.random.default_rng(seed)
    world = World.drawn(kind, n_donors, rng)
    size_D = np.exp(rng.uniform(np.log(20), np.log(500), n_donors)).astype(int)
    donor_N = np.repeat(np.arange(n_donors), size_D)
    k_N = rng.integers(2, size=len(donor_N))
    y_NG = world.cells(donor_N, k_N, rng)
    truth_DKG = world.truth(rng)
    left_out = name.startswith("left out")
    formula = "~ condition + (1 | study/donor)" if left_out else FORMULA
    settings = SETTINGS[name.removeprefix("left out, ")]
    model = sm.LinearMixed(formula, settings=settings).fit(as_adata(y_NG, donor_N, k_N))
    population_KG, mean_G = truth_DKG[n_donors:].mean(0), y_NG.mean(0)
    bulk_DKG = np.stack(
        [[y_NG[(donor_N == d) & (k_N == k)].mean(0) for k in (0, 1)] for d in range(n_donors)]
    )
    response_G = population_KG[1] - population_KG[0]
    found = model.contrast(STIM, CTRL)
    rows = [scored("condition", found, response_G, (bulk_DKG[:, 1] - bulk_DKG[:, 0]).mean(0))]
    strong_G = np.abs(response_G) > np.quantile(np.abs(response_G), 0.8)
    rows.append(scored("condition, strongest fifth of genes", found[strong_G], response_G[strong_G], None))
    varied_G = (truth_DKG[:, 1] - truth_DKG[:, 0]).std(0)
    varied_G = varied_G > np.quantile(varied_G, 0.8)
    rows.append(scored("condition, most varied fifth of genes", found[varied_G], response_G[varied_G], None))
    for d in range(n_donors):
        levels = {"study": f"s{d % N_STUDIES}", "donor": f"d{d:03d}"}
        size = "small" if size_D[d] < SMALL else "large"
        true_G = truth_DKG[d].mean(0) - population_KG.mean(0)
        bulk_G = y_NG[donor_N == d].mean(0) - mean_G
        rows.append(scored(f"donor, {size}", deviation(model, levels), true_G, bulk_G))
        found = model.contrast(levels | STIM, levels | CTRL)
        true_G, bulk_G = (x_DKG[d, 1] - x_DKG[d, 0] for x_DKG in (truth_DKG, bulk_DKG))
        rows.append(scored(f"response of a donor, {size}", found, true_G, bulk_G))
    for d in range(n_donors, n_donors + 5):
        levels = {"study": "new", "donor": f"d{d:03d}"}
        true_G = truth_DKG[d].mean(0) - population_KG.mean(0)
        rows.append(scored("new donor and study, 0 cells", deviation(model, levels, "prior"), true_G, None))
        for n in (20, 100):
            new_NG = world.cells(np.full(n, d), np.arange(n) % 2, rng)
            adapted = model.adapt(as_adata(new_NG, np.full(n, d), np.arange(n) % 2, "new"))
            bulk_G = new_NG.mean(0) - mean_G
            rows.append(scored(f"new donor and study, {n} cells", deviation(adapted, levels), true_G, bulk_G))
    return rows


def scored(what: str, found: pd.DataFrame, true_G: np.ndarray, bulk_G: np.ndarray | None) -> dict[str, Any]:
    """Return mean squared errors, of ours and of pseudobulk, and how many intervals cover the truth."""
    inside_G = (found["q05"] <= true_G) & (true_G <= found["q95"])
    row = {"what": what, "covered": float(inside_G.mean())}
    row["mse"] = float(((found["effect"] - true_G) ** 2).mean())
    row["pseudobulk"] = np.nan if bulk_G is None else float(((bulk_G - true_G) ** 2).mean())
    return row | {"width": float((found["q95"] - found["q05"]).mean())}


def deviation(model: sm.LinearMixed, levels: dict[str, str], unknown: str = "error") -> pd.DataFrame:
    """Return the effect of a donor, averaged over conditions: its samples minus the population."""
    own, population = (
        [pd.DataFrame(levels_ | k, index=["one"]) for k in (CTRL, STIM)] for levels_ in (levels, {})
    )
    design, posterior = extended(model, own, unknown)
    rows = [
        (design.matrix(o, None) - design.matrix(p, None)).toarray()
        for o, p in zip(own, population, strict=True)
    ]
    effect_1G, sd_1G = posterior.contrasts(np.mean(rows, axis=0))
    return pd.DataFrame(with_interval(effect_1G[0], sd_1G[0]))


def against_reml(n_genes: int = 40, seed: int = 0) -> dict[str, dict[str, float]]:
    """Return the variances of studies, donors and cells in the mean gene: ours, and the mean over genes of REML's."""
    import statsmodels.formula.api as smf

    rng = np.random.default_rng(seed)
    n_studies, n_donors, n_cells = 8, 5, 12
    donor_N = np.repeat(np.arange(n_studies * n_donors), n_cells)
    study_N, sd_G = donor_N // n_donors, rng.lognormal(0, 0.3, n_genes)
    y_NG = (
        rng.normal(0, 0.5, (n_studies, n_genes))[study_N]
        + rng.normal(0, 0.4, (donor_N.max() + 1, n_genes))[donor_N]
    )
    y_NG = LIFT + (y_NG + rng.normal(0, 1, y_NG.shape)) * sd_G
    adata = as_adata(y_NG, donor_N, np.zeros(len(donor_N), int))
    adata.obs["study"] = [f"s{s}" for s in study_N]
    ours = sm.LinearMixed("~ (1 | study/donor)").fit(adata).variances().set_index("term")["variance"]
    reml = []
    for g in range(n_genes):
        table = adata.obs.assign(y=y_NG[:, g])
        fit = smf.mixedlm(
            "y ~ 1", table, groups="study", vc_formula={"donor": "0 + C(donor)"}, re_formula="1"
        )
        found = fit.fit(reml=True, method="powell")
        reml.append([float(found.cov_re.iloc[0, 0]), float(found.vcomp[0]), float(found.scale)])
    names = ("study", "study/donor", "residual")
    return {
        n: {"ours": float(ours[n]), "reml": float(r)}
        for n, r in zip(names, np.mean(reml, axis=0), strict=True)
    }


def cost() -> dict[str, float]:
    """Return the seconds of a fit, its effects and its counterfactuals, of 20,000 cells x 2,000 genes x 40 donors."""
    rng = np.random.default_rng(0)
    donor_N = rng.integers(40, size=20_000)
    rate_NG = np.exp(rng.normal(-2.5, 1.2, 2000) + rng.normal(0, 0.3, (40, 2000))[donor_N])
    adata = as_adata(rng.poisson(rate_NG), donor_N, rng.integers(2, size=20_000))
    del adata.layers[keys.LOGNORM]
    seconds, model = {}, sm.LinearMixed(FORMULA)
    steps: dict[str, Callable[[], object]] = {
        "fit": lambda: model.fit(adata),
        "effects": model.effects,
        "counterfactual": lambda: model.counterfactual(adata, STIM),
        "counterfactual with intervals": lambda: model.counterfactual(adata, STIM, interval=True),
    }
    for name, step in steps.items():
        began = time.perf_counter()
        step()
        seconds[name] = round(time.perf_counter() - began, 2)
    return seconds


def summary(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return coverage and root mean squared errors by kind of effect."""
    table = pd.DataFrame(rows)
    found = table.groupby("what", sort=False).mean(numeric_only=True)
    found["rmse"], found["pseudobulk"] = np.sqrt(found.pop("mse")), np.sqrt(found["pseudobulk"])
    return found[["covered", "rmse", "pseudobulk", "width"]].assign(effects=table.groupby("what").size())


def main() -> None:
    """Measure everything, print the tables, store the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "mixed.json")
    options = parser.parse_args()
    warnings.simplefilter("ignore", ScmedleyWarning)
    simulations = []
    for kind, n_donors, name in CASES:
        rows = [row for seed in range(options.seeds) for row in one(kind, n_donors, name, seed)]
        table = summary(rows).round(4)
        print(f"\n{kind}, {n_donors} donors, {name}\n{table.round(3).to_string()}", flush=True)
        about = {"values": kind, "donors": n_donors, "settings": name}
        simulations.append(about | {"effects": table.reset_index().to_dict("records")})
    reml, seconds = against_reml(), cost()
    print(pd.DataFrame(reml).T.round(4), seconds, sep="\n")
    write_json(record(1) | {"simulations": simulations, "reml": reml, "seconds": seconds}, options.results)


if __name__ == "__main__":
    main()
