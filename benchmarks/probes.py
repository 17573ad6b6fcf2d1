"""Batch leakage: seconds of the three probes, and agreement with a judge written in plain scikit-learn.

    python benchmarks/probes.py            # both; files that are not shipped: --data FOLDER or $SCMEDLEY_DATA

Seconds: 20,000 cells x 40 batches x 6 labels x 50 dimensions. "Before" is a probe that is fitted anew to
permuted batches for its chance (20 times for kNN, 5 times for the others).

Agreement: sets with many batches of few cells, nested in conditions. The judge uses no code of scMedley: for
each label, balanced accuracy of ``KNeighborsClassifier(15)``, each vote divided by the size of its class, or
of ``LogisticRegression(class_weight="balanced")``, on held-out cells, minus the mean of the same fitted to
permuted batches, over 1 minus that mean; labels are averaged by held-out cells. Scikit-learn draws its split.
Both are means over draws of training and held-out cells.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

import scmedley as sm
from common import BATCH, DATA_VARIABLE, LABEL, record
from scmedley import keys
from scmedley.evaluate.probes import PROBES, ProbeName, batch_leaks
from scmedley.io import write_json
from scmedley.pp.split import split

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Codes = NDArray[np.int64]
    Parts = tuple[np.ndarray, Codes, Codes, np.ndarray, Codes, Codes]

TOLERANCE = 0.03
REFITS = {"kNN": 20, "logistic": 5, "network": 5}  # fits to permuted batches, as in earlier versions


@dataclass(frozen=True)
class Nested:
    """A set of the data folder or of the package; the ``batch`` columns together name a batch."""

    name: str
    file: str
    batch: tuple[str, ...]
    label: str | None = "cell_type"


SETS = (
    Nested("onek1k, B cells, 100 donors", "onek1k_bcell_100donors.h5ad", ("donor",)),
    Nested("onek1k, 40 donors", "onek1k_40donors.h5ad", ("donor",)),
    Nested(
        "glioblastoma, 5 patients x 2",
        "glioblastoma_panobinostat_5patients_300g.h5ad",
        ("donor", "condition"),
        None,
    ),
    Nested("kang, 3 donors x 2", "kang_ifnb_3donors_9517_100g.h5ad", ("donor", "condition")),
    Nested("cell mix, 3 protocols", "cellmix_3protocols_3lines.h5ad", ("batch",)),
)


def main() -> None:
    """Measure both, print them as tables, store the numbers."""
    options = _options()
    with threadpool_limits(options.threads):
        quick = seconds()
        print(quick.round(3).to_string(index=False), flush=True)
        rows = []
        for name, adata in nested_sets(options.data):
            rows += agreement(name, adata, options)
    table = pd.DataFrame(rows)
    print(table.round(3).to_string(index=False))
    if len(table):
        worst = float(table["difference"].abs().max())
        print(
            f"largest difference {worst:.3f}: {'agrees' if worst <= TOLERANCE else 'does NOT agree'} within {TOLERANCE}"
        )
    write_json(
        record(options.threads)
        | {
            "settings": {"draws": options.draws, "epochs": options.epochs, "tolerance": TOLERANCE},
            "seconds": quick.to_dict("records"),
            "agreement": table.to_dict("records"),
        },
        options.results,
    )


def seconds(n: int = 20_000, n_batches: int = 40, n_labels: int = 6, n_latent: int = 50) -> pd.DataFrame:
    """Time the probes on an embedding with a weak batch effect."""
    rng = np.random.default_rng(0)
    share_L = np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])[:n_labels]
    label_N = rng.choice(n_labels, n, p=share_L / share_L.sum())
    batch_N = rng.choice(n_batches, n, p=rng.dirichlet(np.full(n_batches, 5.0)))
    z_NP = rng.normal(size=(n, n_latent)) + 0.3 * rng.normal(size=(n_batches, n_latent))[batch_N]
    parts = _parts(z_NP, batch_N, label_N, split(batch_N, label_N, seed=0))
    rows: list[dict[str, Any]] = []
    for probe in PROBES:
        now = _timed(partial(batch_leaks, *parts, probes=[probe], seed=0))
        before = _timed(partial(_refitted, parts, probe))
        rows.append({"probe": probe, "seconds": now, "before": before})
    total = {name: sum(row[name] for row in rows) for name in ("seconds", "before")}
    table = pd.DataFrame([*rows, {"probe": "all three", **total}])
    return table.assign(ratio=table["before"] / table["seconds"])


def _refitted(parts: Parts, probe: ProbeName) -> None:
    """Fit a probe to the batches and to permutations of them within labels."""
    z_train, batch_train, label_train, *test = parts
    rng = np.random.default_rng(0)
    for _ in range(1 + REFITS[probe]):
        batch_leaks(z_train, batch_train, label_train, *test, probes=[probe], seed=0)
        order = np.lexsort((rng.random(len(batch_train)), label_train))
        permuted = np.empty_like(batch_train)
        permuted[np.argsort(label_train, kind="stable")] = batch_train[order]
        batch_train = permuted


def _timed(work: Callable[[], object]) -> float:
    began = time.process_time()  # of all threads: other work on the machine does not count
    work()
    return time.process_time() - began


def nested_sets(folder: Path | None) -> Any:
    """Yield name and cells of each set that is found, and of a simulation."""
    yield "simulated, 28 plates in 2 conditions", simulate()
    folder = folder or Path(os.environ.get(DATA_VARIABLE, "."))
    shipped = Path(sm.datasets.__file__).parent
    for one in SETS:
        path = next((p for p in (folder / one.file, shipped / one.file) if p.exists()), None)
        if path is None:
            print(
                f"{one.name}: skipped, {folder}/ has no {one.file}. Name its folder with --data or {DATA_VARIABLE}."
            )
            continue
        adata = sm.read(path)
        names = adata.obs[list(one.batch)].astype(str).agg(" ".join, axis=1)
        labels = ["all"] * adata.n_obs if one.label is None else list(adata.obs[one.label].astype(str))
        codes = {BATCH: pd.Categorical(names), LABEL: pd.Categorical(labels)}
        adata.obs = pd.DataFrame(codes, index=adata.obs_names)
        yield one.name, adata


def simulate(n_plates: int = 28, n_genes: int = 400, seed: int = 0) -> AnnData:
    """Draw counts of plates of 30 to 60 cells, nested in two conditions, with 3 types of unequal size."""
    rng = np.random.default_rng(seed)
    plate_N = np.repeat(np.arange(n_plates), rng.integers(30, 61, n_plates))
    type_N = rng.choice(3, len(plate_N), p=[0.5, 0.3, 0.2])
    log_NG = rng.normal(-0.5, 1.2, n_genes) + rng.normal(0, 0.6, (3, n_genes))[type_N]
    log_NG += (
        rng.normal(0, 0.2, (2, n_genes))[plate_N % 2] + rng.normal(0, 0.25, (n_plates, n_genes))[plate_N]
    )
    log_NG += rng.normal(0, 0.5, (len(plate_N), 1))
    x_NG = rng.poisson(rng.gamma(5.0, np.exp(log_NG) / 5.0)).astype(np.float32)
    obs = pd.DataFrame(
        {
            BATCH: pd.Categorical([f"plate{p:02d}" for p in plate_N]),
            LABEL: pd.Categorical(np.array(["A", "B", "C"])[type_N]),
        },
        index=[f"cell{i}" for i in range(len(plate_N))],
    )
    return AnnData(x_NG, obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)]))


def agreement(name: str, adata: AnnData, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Compare ours with the judge on principal components and on a short fit of fixed effects."""
    label_key = LABEL if adata.obs[LABEL].nunique() > 1 else None
    sm.pp.prepare(adata, BATCH, label_key=label_key, min_genes=1, min_cells=1)
    sm.pp.pca(adata)
    settings = sm.FixedEffects.preset("default").replace(max_epochs=options.epochs)
    sm.FixedEffects(BATCH, settings=settings).fit(
        adata, seed=0, threads=options.threads, progress=False
    ).embed(adata)
    batch_N, label_N = (
        np.asarray(adata.obs[k].cat.remove_unused_categories().cat.codes, dtype=np.int64)
        for k in (BATCH, LABEL)
    )
    rows = []
    for title, key in (("PCA", keys.PCA), ("FE", keys.FIXED)):
        z_NP = np.asarray(adata.obsm[key])
        draws = [
            batch_leaks(*_parts(z_NP, batch_N, label_N, split(batch_N, label_N, seed=seed)), seed=seed)
            for seed in range(options.draws)
        ]
        for probe in PROBES:
            ours = float(np.mean([draw[probe].value for draw in draws]))
            row = {"set": name, "cells": adata.n_obs, "batches": int(batch_N.max()) + 1, "embedding": title}
            row |= {
                "probe": probe,
                "ours": ours,
                "null_sd": float(np.mean([d[probe].null_sd for d in draws])),
            }
            if probe != "network":
                judged = [judge(z_NP, batch_N, label_N, probe, seed) for seed in range(options.draws)]
                spread = np.var(judged, ddof=1) + np.var([draw[probe].value for draw in draws], ddof=1)
                row |= {"judge": float(np.mean(judged)), "difference": ours - float(np.mean(judged))}
                row |= {"error_of_difference": float(np.sqrt(spread / options.draws))}
            rows.append(row)
    return rows


def judge(z_NP: np.ndarray, batch_N: Codes, label_N: Codes, probe: str, seed: int) -> float:
    """Measure the leakage on one draw of held-out cells, without any part of scMedley."""
    rng = np.random.default_rng(seed)
    train, test = train_test_split(
        np.arange(len(z_NP)), train_size=0.7, test_size=0.2, stratify=batch_N, random_state=seed
    )
    leaks, weights = [], []
    for label in np.unique(label_N):
        rows = train[label_N[train] == label]
        held_out = test[(label_N[test] == label) & np.isin(batch_N[test], batch_N[rows])]
        true_N = batch_N[held_out]
        if len(np.unique(true_N)) < 2:
            continue

        def accuracy(
            batch_M: Codes, rows: Any = rows, held_out: Any = held_out, true_N: Any = true_N
        ) -> float:
            if probe == "kNN":
                model = KNeighborsClassifier(min(15, len(rows))).fit(z_NP[rows], batch_M)
                size_C = np.unique(batch_M, return_counts=True)[1]
                votes_NC = model.predict_proba(z_NP[held_out]) / size_C
                predicted_N = model.classes_[votes_NC.argmax(axis=1)]
            else:
                pipe = make_pipeline(
                    StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=500)
                )
                predicted_N = pipe.fit(z_NP[rows], batch_M).predict(z_NP[held_out])
            return float(recall_score(true_N, predicted_N, labels=np.unique(true_N), average="macro"))

        chance = float(np.mean([accuracy(rng.permutation(batch_N[rows])) for _ in range(5)]))
        leaks.append((accuracy(batch_N[rows]) - chance) / (1 - chance))
        weights.append(len(held_out))
    return float(np.average(leaks, weights=weights))


def _parts(z_NP: np.ndarray, batch_N: Codes, label_N: Codes, part_N: np.ndarray) -> Parts:
    train, test = part_N == "train", part_N == "test"
    return z_NP[train], batch_N[train], label_N[train], z_NP[test], batch_N[test], label_N[test]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help=f"folder of the sets; default ${DATA_VARIABLE}")
    parser.add_argument("--draws", type=int, default=10, help="of training and held-out cells")
    parser.add_argument("--epochs", type=int, default=5, help="of the fixed-effects fits")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parent / "results" / "probes.json", help="JSON file"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
