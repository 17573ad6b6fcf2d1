"""How a donor-level target leaks: the same latents scored with cells and with whole donors held out.

    python benchmarks/leak_demonstration.py --out FOLDER

First a simulation: each donor has a code and a diagnosis thrown by a coin, a cell's latent is its donor's
code plus noise. Then the 40 donors of onek1k, with two targets: sex, and a coin thrown once for each donor,
which cannot be predicted. Networks, genes, scaling and PCA are fitted without the held-out cells. Random
latents of held-out donors are computed in two ways: with the population mean, and by ``RandomEffects.adapt``.

Each fold is kept as JSON under ``--out``, so that a stopped run can be resumed.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from sklearn.decomposition import PCA
from sklearn.model_selection import StratifiedGroupKFold

import scmedley as sm
from common import BATCH, LABEL, cached, find, record
from scmedley import keys
from scmedley.evaluate.classify import target_table
from scmedley.io import write_json
from scmedley.pp.split import split

if TYPE_CHECKING:
    from anndata import AnnData

EPOCHS = {"default": 24, "published": 100}  # about 1,000 minibatches of 128 and of 512
PRESETS = {"default": "default", "published": "paper"}
N_FOLDS = 3
N_COMPONENTS = 50
SEED = 0
NULL = "RE, permuted batches"
VALUES = ["accuracy", "balanced_accuracy", "chance", "donor_accuracy", "donor_chance"]


def main() -> None:
    """Run what is missing, print the tables, store the numbers."""
    options = _options()
    simulated = pd.concat([simulate(seed) for seed in range(options.seeds)])
    adata = find("onek1k", None)
    assert adata is not None  # it is shipped
    folds = [("cells", 0, held_out_cells(adata))]
    folds += [("donors", i, fold) for i, fold in enumerate(donor_folds(adata))]
    runs: list[dict[str, Any]] = []
    for form in EPOCHS:
        for held_out, i, test_N in folds:
            file = options.out / f"{held_out}-{i}-{form}.json"
            done = cached(file, partial(fold_tables, adata, test_N, form, options.threads))
            runs.append({"form": form, "held_out": held_out, "fold": i} | done)
            print(f"{form}, {held_out}, fold {i}: done", file=sys.stderr, flush=True)
    rows = pd.concat([pd.DataFrame(run["rows"]) for run in runs])
    means = simulated.groupby("held_out")[VALUES].mean().reset_index()
    summary = summarise(rows)
    print(means.round(3).to_string(index=False), summary.round(3).to_string(index=False), sep="\n\n")
    write_json(
        record(options.threads)
        | {
            "settings": {"epochs": EPOCHS, "folds": N_FOLDS, "seed": SEED, "simulations": options.seeds},
            "simulated": means.to_dict("records"),
            "onek1k": summary.to_dict("records"),
            "runs": runs,
        },
        options.results,
    )


def simulate(seed: int, n_donors: int = 30, n_cells: int = 40, n_latent: int = 10) -> pd.DataFrame:
    """Score latents that are donor code + noise for a coin-flip diagnosis, both ways of holding out."""
    rng = np.random.default_rng(seed)
    diagnosis_D = rng.integers(2, size=n_donors)
    donor_N = np.repeat(np.arange(n_donors), n_cells)
    z_NP = rng.normal(size=(n_donors, n_latent))[donor_N] + 0.5 * rng.normal(size=(len(donor_N), n_latent))
    tables = []
    for held_N in (np.arange(len(donor_N)) % 3 == 0, donor_N % 3 == 0):
        part_N = np.where(held_N, "test", "train")
        random = {"RE": z_NP}
        tables.append(target_table({}, random, diagnosis_D[donor_N], donor_N, None, part_N, seed=seed))
    return pd.concat(tables)


def held_out_cells(adata: AnnData) -> np.ndarray:
    """Draw a third of the cells, stratified by donor and type."""
    codes = (adata.obs[key].cat.codes.to_numpy() for key in (BATCH, LABEL))
    part_N = split(*codes, fractions=(2 / 3, 0.0, 1 / 3), seed=SEED)
    return np.asarray(part_N == "test")


def donor_folds(adata: AnnData) -> list[np.ndarray]:
    """Hold each donor out once, with both sexes in every fold."""
    folds = StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=SEED)
    cells = np.arange(adata.n_obs)
    return [
        np.isin(cells, rows)
        for _, rows in folds.split(cells, adata.obs["sex"].astype(str), adata.obs[BATCH].astype(str))
    ]


def fold_tables(adata: AnnData, test_N: np.ndarray, form: str, threads: int) -> dict[str, Any]:
    """Fit everything without the cells of ``test_N`` and score sex and the coin on them."""
    cells = with_null(adata, test_N)
    learnt = cells[~test_N].copy()
    codes = (learnt.obs[key].cat.codes.to_numpy() for key in (BATCH, LABEL))
    learnt.obs[keys.SPLIT] = split(*codes, fractions=(0.9, 0.1, 0.0), seed=SEED)
    sm.pp.prepare(learnt, BATCH, label_key=LABEL)
    if form == "default":
        fixed = fixed_latents(cells, learnt, test_N, threads)
        random = random_latents(cells, learnt, test_N, "RE", BATCH, form, threads)
        random |= random_latents(cells, learnt, test_N, NULL, keys.PERMUTED, form, threads)
    else:  # a comparison for the row "RE" alone
        fixed, random = {}, random_latents(cells, learnt, test_N, "RE, published", BATCH, form, threads)
    obs = cells.obs[[BATCH, LABEL, "sex"]].astype("category")
    donor_N, label_N, sex_N = (obs[key].cat.codes.to_numpy() for key in obs)
    coin_D = np.random.default_rng(SEED).integers(2, size=donor_N.max() + 1)
    part_N = np.where(test_N, "test", "train")
    types_N = label_N if form == "default" else None
    tables = [
        target_table(fixed, random, target_N, donor_N, types_N, part_N, seed=SEED).assign(target=target)
        for target, target_N in (("sex", sex_N), ("coin", coin_D[donor_N]))
    ]
    return {"rows": pd.concat(tables).to_dict("records")}


def new_donors(cells: AnnData, test_N: np.ndarray) -> bool:
    """Return whether no donor has both held-out and other cells."""
    return not set(cells.obs[BATCH][test_N]) & set(cells.obs[BATCH][~test_N])


def with_null(adata: AnnData, test_N: np.ndarray) -> AnnData:
    """Add batches permuted within labels, separately for held-out donors, whose batches stay unknown."""
    cells = adata.copy()
    if not new_donors(cells, test_N):
        sm.pp.permute_batches(cells, BATCH, LABEL, seed=SEED)
        return cells
    permuted = pd.Series("", index=cells.obs_names)
    for part_N in (test_N, ~test_N):
        part = cells[part_N].copy()
        sm.pp.permute_batches(part, BATCH, LABEL, seed=SEED)
        permuted[part_N] = part.obs[keys.PERMUTED].astype(str).to_numpy()
    cells.obs[keys.PERMUTED] = pd.Categorical(permuted)
    return cells


def fixed_latents(cells: AnnData, learnt: AnnData, test_N: np.ndarray, threads: int) -> dict[str, np.ndarray]:
    """Return PCA and FE of all cells."""
    settings = sm.FixedEffects.preset("default").replace(max_epochs=EPOCHS["default"])
    fe = sm.FixedEffects(BATCH, LABEL, settings).fit(learnt, seed=SEED, threads=threads, progress=False)
    x_NG = sm.pp.log_normalised(cells, fe.genes)[0]
    pca = PCA(N_COMPONENTS, svd_solver="arpack", random_state=SEED).fit(x_NG[np.flatnonzero(~test_N)])
    return {"PCA": pca.transform(x_NG), "FE": fe.get_latent_representation(cells)}


def random_latents(
    cells: AnnData, learnt: AnnData, test_N: np.ndarray, name: str, key: str, form: str, threads: int
) -> dict[str, np.ndarray]:
    """Return RE of all cells; of held-out donors with the population mean (not the null) and by ``adapt``."""
    settings = sm.RandomEffects.preset(PRESETS[form]).replace(max_epochs=EPOCHS[form])
    re = sm.RandomEffects(key, LABEL, settings).fit(learnt, seed=SEED, threads=threads, progress=False)
    if not new_donors(cells, test_N):
        return {name: re.get_latent_representation(cells)}
    adapted = re.adapt(cells[test_N].copy(), seed=SEED, threads=threads)
    found = {f"{name} (adapt)": adapted.get_latent_representation(cells)}
    if name != NULL:
        found = {f"{name} (mean)": re.get_latent_representation(cells, unknown="mean")} | found
    return found


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Average over folds, weighted by donors; add the 95 % interval of the donors predicted right."""
    found = []
    for (target, held_out, name), part in rows.groupby(["target", "held_out", "embedding"], sort=False):
        means = {value: float(np.average(part[value], weights=part["n_donors"])) for value in VALUES}
        n_donors = int(part["n_donors"].sum())
        interval = binomtest(round(means["donor_accuracy"] * n_donors), n_donors).proportion_ci()
        about = {
            "target": target,
            "held_out": held_out,
            "embedding": name,
            "caution": part["caution"].iloc[0],
        }
        found.append(
            about | means | {"donor_low": interval.low, "donor_high": interval.high, "n_donors": n_donors}
        )
    return pd.DataFrame(found)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=20, help="simulations")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("leak-runs"), help="one JSON a fold; goes on there")
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parent / "results" / "leak_demonstration.json"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
