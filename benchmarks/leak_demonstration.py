"""How a donor-level target leaks: the same latents scored with cells held out, and with whole donors held out.

    python benchmarks/leak_demonstration.py --out FOLDER

First a simulation: each donor has a code and a diagnosis thrown by a coin, a cell's latent is her donor's code and
noise. Then the 40 donors of onek1k, with two targets: sex, and a coin thrown once for each donor, of which no cell can
know. Networks, genes, scaling and PCA are fitted without the held-out cells. Random latents of held-out donors are
had in two ways: with the population mean, and by ``RandomEffects.adapt``.

Each fold is kept as JSON under ``--out``, so that a stopped run goes on.
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

EPOCHS = 24  # about 1,000 minibatches: half of what the default takes
N_FOLDS = 3
N_COMPONENTS = 50
SEED = 0
NULL = "RE, permuted batches"
VALUES = ["accuracy", "balanced_accuracy", "chance", "donor_accuracy", "donor_chance"]


def main() -> None:
    """Run what is not there yet, print the tables, store the numbers."""
    options = _options()
    simulated = pd.concat([simulate(seed) for seed in range(options.seeds)])
    adata = find("onek1k", None)
    assert adata is not None  # it is shipped
    folds = donor_folds(adata)
    runs: list[dict[str, Any]] = []
    for held_out, test_N in [("cells", held_out_cells(adata)), *(("donors", fold) for fold in folds)]:
        number = sum(run["held_out"] == held_out for run in runs)
        done = cached(
            options.out / f"{held_out}-{number}.json", partial(fold_tables, adata, test_N, options.threads)
        )
        runs.append({"held_out": held_out, "fold": number} | done)
        print(f"{held_out}, fold {number}: done", file=sys.stderr, flush=True)
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


def fold_tables(adata: AnnData, test_N: np.ndarray, threads: int) -> dict[str, Any]:
    """Fit everything without the cells of ``test_N`` and score sex and the coin on them."""
    fixed, random = latents(adata, test_N, threads)
    donor_N, label_N, sex_N = (
        adata.obs[k].astype("category").cat.codes.to_numpy() for k in (BATCH, LABEL, "sex")
    )
    coin_D = np.random.default_rng(SEED).integers(2, size=donor_N.max() + 1)
    part_N = np.where(test_N, "test", "train")
    rows = []
    for target, target_N in (("sex", sex_N), ("coin", coin_D[donor_N])):
        table = target_table(fixed, random, target_N, donor_N, label_N, part_N, seed=SEED)
        rows += table.assign(target=target).to_dict("records")
    return {"rows": rows}


def latents(
    adata: AnnData, test_N: np.ndarray, threads: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Give the fixed and the random latents of all cells, from what is fitted without the held-out ones."""
    cells = adata.copy()
    new_donors = not set(cells.obs[BATCH][test_N]) & set(cells.obs[BATCH][~test_N])
    if new_donors:  # then the null's batches of the two parts are two sets as well
        permuted = pd.Series("", index=cells.obs_names)
        for part_N in (test_N, ~test_N):
            part = cells[part_N].copy()
            sm.evaluate.permute_batches(part, BATCH, LABEL, seed=SEED)
            permuted[part_N] = part.obs[keys.PERMUTED].astype(str).to_numpy()
        cells.obs[keys.PERMUTED] = pd.Categorical(permuted)
    else:
        sm.evaluate.permute_batches(cells, BATCH, LABEL, seed=SEED)
    learnt = cells[~test_N].copy()
    codes = (learnt.obs[key].cat.codes.to_numpy() for key in (BATCH, LABEL))
    learnt.obs[keys.SPLIT] = split(*codes, fractions=(0.9, 0.1, 0.0), seed=SEED)
    sm.pp.prepare(learnt, BATCH, label_key=LABEL)

    fe = sm.FixedEffects(BATCH, LABEL, sm.FixedEffects.preset("default").replace(max_epochs=EPOCHS))
    fe.fit(learnt, seed=SEED, threads=threads, progress=False)
    x_NG = sm.pp.log_normalised(cells, fe.genes)[0]
    pca = PCA(N_COMPONENTS, svd_solver="arpack", random_state=SEED).fit(x_NG[np.flatnonzero(~test_N)])
    fixed = {"PCA": pca.transform(x_NG), "FE": fe.get_latent_representation(cells)}

    random = {}
    for name, key in (("RE", BATCH), (NULL, keys.PERMUTED)):
        re = sm.RandomEffects(key, LABEL, sm.RandomEffects.preset("default").replace(max_epochs=EPOCHS))
        re.fit(learnt, seed=SEED, threads=threads, progress=False)
        if not new_donors:
            random[name] = re.get_latent_representation(cells)
            continue
        if name == "RE":
            random["RE (mean)"] = re.get_latent_representation(cells, unknown="mean")
        adapted = re.adapt(cells[test_N].copy(), seed=SEED, threads=threads)
        random[f"{name} (adapt)"] = adapted.get_latent_representation(cells)
    return fixed, random


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Average over folds, weighted by donors; add the 95 % interval of the donors told right."""
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
