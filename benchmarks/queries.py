"""Do queries know when they are lost? Leave a label or a batch out of training, and query it.

    python benchmarks/queries.py --data FOLDER --out FOLDER

Each (data set, what is left out, seed) is fitted once and kept as JSON under ``--out``, so that a stopped run
can be resumed. Cells are prepared, genes chosen and networks fitted without what is left out.

- nothing left out: the query is the test cells. Accuracy and calibration of the transferred labels.
- a label left out: the query is the test cells and the cells of that label. Does novelty separate them?
- a batch left out: the query is that batch. Accuracy, calibration, and the share called novel by mistake.

"FE, adapted" first learns the effects of the batch that was left out. Baselines: PCA with the same two scores;
the distance alone; the largest label for every cell.

Shapes: N cells of the query, G genes, P latent dimensions.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

import scmedley as sm
from common import BATCH, DATA_SETS, LABEL, DataSet, cached, find, record
from scmedley import keys
from scmedley.data.arrays import dense
from scmedley.evaluate import novelty_auroc
from scmedley.evaluate.calibration import calibration_bins, error_of_bins
from scmedley.io import write_json
from scmedley.models import reference, residuals
from scmedley.models.transfer import mapping_confidence, n_nearest, share_below

if TYPE_CHECKING:
    from anndata import AnnData

    from scmedley.data.reader import Reading

N_COMPONENTS = 50
NEW, LOST = 0.99, 0.01  # novelty above, mapping confidence below: as in transfer()
ECE_BAR, DISTINCT_BAR, CLOSE_BAR = 0.05, 0.9, 0.7

DATA_SETS.setdefault("pbmc_3tech", DataSet("pbmc_3tech", file="pbmc_3tech_symphony_1200.h5ad"))
DATA_SETS.setdefault("pancreas_1000", DataSet("pancreas_1000", file="pancreas_8datasets_1000x1000.h5ad"))
DATA_SETS.setdefault(
    "pbmc_8batches_fine", DataSet("pbmc_8batches_fine", "cell_type", "pbmc_8batches_14k.h5ad")
)


class Left(NamedTuple):
    """What is left out of training: a label, a batch, or nothing. ``close``: a similar type stays."""

    what: str = "nothing"
    name: str = ""
    close: bool = False

    @property
    def title(self) -> str:
        """Name in tables."""
        return f"{self.what} {self.name}".strip() + (" (close)" if self.close else "")


def label(name: str, close: bool = False) -> Left:
    """Leave a label out."""
    return Left("label", name, close)


def batch(name: str) -> Left:
    """Leave a batch out."""
    return Left("batch", name)


CASES: dict[str, list[Left]] = {
    "sc_mixology": [label("H2228"), batch("sc_celseq2"), batch("sc_dropseq")],
    "pancreas": [label("beta"), label("ductal"), batch("smartseq2"), batch("celseq2")],
    "onek1k": [label("memory_B"), label("nonclassical_monocyte", close=True), batch("SAMP3")],
    "pbmc_3tech": [
        label("B"),
        label("Mono_CD16", close=True),
        label("T_CD8", close=True),
        batch("5p"),
        batch("3pv1"),
    ],
    "pancreas_1000": [label("beta"), label("ductal"), batch("smartseq2"), batch("indrop3"), batch("indrop1")],
    "pbmc_8batches_fine": [
        label("B"),
        label("FCGR3A Mono", close=True),
        label("CD8 T", close=True),
        batch("pbmc1k_v3"),
        batch("frozen_donorA"),
    ],
}


def main() -> None:
    """Run what is missing, print the tables and the PASS and FAIL lines, store the summary."""
    options = _options()
    runs = []
    for name in options.sets:
        raw = find(name, options.data)
        if raw is None:
            continue
        raw = _drawn(raw, options.cells)
        for left in [Left(), *CASES[name]]:
            for seed in range(options.seeds):
                file = f"{left.what}-{left.name}-{seed}.json".replace(" ", "_").replace("/", "_")
                compute = partial(run, raw, left, seed, options.threads, options.epochs)
                found = cached(options.out / name / file, compute)
                runs += [
                    {"set": name, "left out": left.title, "seed": seed} | one for one in found["methods"]
                ]
                print(f"{name}, {left.title} left out, seed {seed}: done", file=sys.stderr, flush=True)
    if not runs:
        sys.exit("No data set was found.")
    summary = summarise(pd.DataFrame(runs))
    print(as_text(summary))
    lines = accept(summary)
    print("\n".join(lines))
    about = record(options.threads) | {"seeds": options.seeds, "acceptance": lines}
    write_json(about | {"summary": summary.to_dict("records"), "runs": runs}, options.results)


def run(raw: AnnData, left: Left, seed: int, threads: int, epochs: int | None) -> dict[str, Any]:
    """Fit without what is left out, query, and score FE and its baselines."""
    column = {"label": LABEL, "batch": BATCH}.get(left.what)
    out_N = np.zeros(raw.n_obs, bool) if column is None else (raw.obs[column].astype(str) == left.name)
    if column is not None and not out_N.any():
        sys.exit(f"No cell has the {left.what} {left.name!r}.")
    known = raw[~np.asarray(out_N)].copy()
    sm.pp.prepare(known, BATCH, label_key=LABEL, seed=seed)
    settings = sm.FixedEffects.preset("default").replace(max_epochs=epochs)
    model = sm.FixedEffects(BATCH, settings=settings)
    model.fit(known, seed=seed, threads=threads, progress=sys.stderr.isatty())
    test = set(known.obs_names[known.obs[keys.SPLIT] == "test"]) if left.what != "batch" else set()
    chosen_N = np.asarray(out_N) | raw.obs_names.isin(test)
    query = raw[chosen_N].copy()
    new_N = np.asarray(out_N)[chosen_N] & (left.what == "label")
    truth_N = query.obs[LABEL].astype(str).to_numpy()
    table = model.transfer(query)
    rows = [("FE", table), ("PCA", by_pca(model.read(known), model.read(query), seed))]
    if left.what == "batch":
        rows.append(("FE, adapted", model.adapt(query, seed=seed, threads=threads).transfer(query)))
    largest = known.obs[LABEL][known.obs[keys.SPLIT] == "train"].astype(str).value_counts(normalize=True)
    rows.append(
        (
            "largest label",
            pd.DataFrame({"label": largest.index[0], "probability": largest.iloc[0]}, index=query.obs_names),
        )
    )
    return {"methods": [{"method": name} | score(t, truth_N, new_N) for name, t in rows]}


def by_pca(known: Reading, query: Reading, seed: int) -> pd.DataFrame:
    """Return the same table from principal components in place of the network."""
    from sklearn.decomposition import PCA

    part = known.obs[keys.SPLIT].to_numpy()
    used = np.flatnonzero(part != "test")
    x_MG, x_NG = dense(known.log1p_NG)[used], dense(query.log1p_NG)
    held_out = part[used] == "validation"
    sd_G = residuals.gene_sd(x_MG[~held_out])
    n_components = min(N_COMPONENTS, int((~held_out).sum()) - 1, x_MG.shape[1] - 1)
    fitted = PCA(n_components, svd_solver="arpack", random_state=seed).fit((x_MG / sd_G)[~held_out])
    z_MP, z_NP = fitted.transform(x_MG / sd_G), fitted.transform(x_NG / sd_G)
    labels = known.obs[LABEL].iloc[used].astype("category")
    names = tuple(map(str, labels.cat.categories))
    classifier = reference.LabelClassifier.fit(
        z_MP, labels.cat.codes.to_numpy(np.int64), held_out, names, LABEL
    )
    assert classifier is not None
    p_NK = classifier.probabilities(z_NP)
    own = residuals.agreement_with_neighbours(x_MG / sd_G - fitted.inverse_transform(z_MP), z_MP)[held_out]
    found = residuals.agreement_with_neighbours(x_NG / sd_G - fitted.inverse_transform(z_NP), z_NP)
    k_N = n_nearest(classifier)[p_NK.argmax(axis=1)]
    return pd.DataFrame(
        {
            "label": np.array(classifier.names)[p_NK.argmax(axis=1)],
            "probability": p_NK.max(axis=1),
            "mapping_confidence": mapping_confidence(z_NP, z_MP, held_out, k_N),
            "novelty": share_below(own, found),
        },
        index=query.obs.index,
    )


def score(table: pd.DataFrame, truth_N: np.ndarray, new_N: np.ndarray) -> dict[str, Any]:
    """Score a table of transferred labels; accuracy and calibration are of cells that are not new."""
    right_N = table["label"].astype(str).to_numpy() == truth_N
    known_N = ~new_N
    found: dict[str, Any] = {
        "n_known": int(known_N.sum()),
        "n_new": int(new_N.sum()),
        "accuracy": float(right_N[known_N].mean()),
        "bins": calibration_bins(table["probability"].to_numpy()[known_N], right_N[known_N]).tolist(),
    }
    if "novelty" in table:
        novelty_N, confidence_N = table["novelty"].to_numpy(), table["mapping_confidence"].to_numpy()
        lost_N = (novelty_N > NEW) | (confidence_N < LOST)
        found |= {
            "auroc": novelty_auroc(novelty_N, new_N),
            "auroc_distance": novelty_auroc(-confidence_N, new_N),
            "false_novel": float((novelty_N > NEW)[known_N].mean()),
            "found_novel": float(lost_N[new_N].mean()) if new_N.any() else float("nan"),
        }
    return found


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """Return means over seeds; the calibration error is of the cells of all seeds together."""
    rows = []
    for (name, left, method), own in runs.groupby(["set", "left out", "method"], sort=False):
        row = {"set": name, "left out": left, "method": method}
        for column in ("auroc", "auroc_distance", "accuracy", "false_novel", "found_novel"):
            row[column] = float(own[column].mean())
        sums = np.sum([np.array(bins) for bins in own["bins"]], axis=0)
        row |= {"ece": error_of_bins(sums), "ece_chance": error_by_chance(sums)}
        row["n_known"] = int(own["n_known"].sum())
        rows.append(row)
    return pd.DataFrame(rows)


def error_by_chance(sums: np.ndarray) -> float:
    """Return the expected calibration error of probabilities that are right, from the number of cells alone."""
    n, p = sums[:, 0], sums[:, 1] / np.maximum(sums[:, 0], 1)
    return float(np.sqrt(2 / np.pi * n * p * (1 - p)).sum() / n.sum())


def as_text(summary: pd.DataFrame) -> str:
    """Return the summary as one Markdown table."""
    titles = {
        "auroc": "AUROC novelty",
        "auroc_distance": "AUROC distance",
        "accuracy": "accuracy",
        "ece": "ECE",
        "ece_chance": "ECE by chance",
        "false_novel": "known called novel",
        "found_novel": "new noticed",
    }
    rows = [
        "| set | left out | method | " + " | ".join(titles.values()) + " |",
        "|---" * (3 + len(titles)) + "|",
    ]
    for _, row in summary.iterrows():
        cells = [f"{row[name]:.3f}" if np.isfinite(row[name]) else "" for name in titles]
        rows.append(f"| {row['set']} | {row['left out']} | {row['method']} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def accept(summary: pd.DataFrame) -> list[str]:
    """Return which bars FE reaches."""
    lines = []
    for _, row in summary[summary["method"] == "FE"].iterrows():
        where = f"{row['set']}, {row['left out']} left out"
        claims = []
        if row["left out"].startswith("label"):
            bar = CLOSE_BAR if "(close)" in row["left out"] else DISTINCT_BAR
            claims.append((f"AUROC {row['auroc']:.3f} >= {bar}", row["auroc"] >= bar))
        else:
            claims.append(
                (f"ECE {row['ece']:.3f} (chance {row['ece_chance']:.3f}) <= {ECE_BAR}", row["ece"] <= ECE_BAR)
            )
        lines += [f"{'PASS' if holds else 'FAIL'}  {where}: {claim}" for claim, holds in claims]
    return lines


def _drawn(adata: AnnData, most: int) -> AnnData:
    rows = np.sort(np.random.default_rng(0).permutation(adata.n_obs)[:most])
    return adata[rows].copy() if len(rows) < adata.n_obs else adata


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sets", nargs="+", default=list(CASES), choices=CASES, help="default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cells", type=int, default=5_000, help="most cells of a set, drawn at random")
    parser.add_argument("--epochs", type=int, help="for a quick look (default: those of the preset)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, help="folder of the data sets that are not shipped")
    parser.add_argument("--out", type=Path, default=Path("query-runs"), help="one JSON a fit; goes on there")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "queries.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
