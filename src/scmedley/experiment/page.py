"""Write the report of an experiment (``report.html``) from its folder: findings, tables, figures."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import read_h5ad

from scmedley.evaluate.counterfactual import BASELINES, CEILING
from scmedley.experiment.cells import parts
from scmedley.experiment.config import Experiment
from scmedley.experiment.stored import ALL, read_fold
from scmedley.experiment.tables import read_table
from scmedley.experiment.task import Task
from scmedley.runs.folder import (
    CLASSIFIED_SUMMARY,
    DATA,
    EXPERIMENT,
    FITS,
    HISTORY,
    MAP,
    PREDICTED,
    PREDICTED_SUMMARY,
    REPORT,
    SUMMARY,
    TASKS,
)
from scmedley.runs.record import Record

MAIN = [  # scores of the first table, in this order; the others are collapsed
    *(("kNN leak", "batch"), ("ASW", "batch"), ("iLISI", "batch"), ("BRAS", "batch")),
    *(("kNN accuracy", "label"), ("ASW", "label"), ("cLISI", "label")),
]


def build(folder: Path) -> Path:
    """Write ``report.html`` from the tables of a finished experiment."""
    from scmedley.report import figures
    from scmedley.report.build import check_extra, render, write

    check_extra()
    record = Record.read(folder / EXPERIMENT)
    fields: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in record["experiment"].items()
    }
    experiment = Experiment(**fields)
    summary, read = (_read(folder / name) for name in (SUMMARY, CLASSIFIED_SUMMARY))
    fits = read_table(folder / FITS)
    if "store" in record:
        obs = read_fold(Path(record["store"]["folder"]) / ALL, experiment).obs
    else:
        obs = read_h5ad(folder / DATA, backed="r").obs
    with figures.drawing():
        context = {
            "record": record,
            "experiment": experiment,
            "tables": _tables(summary),
            "pictures": _comparisons(summary, experiment),
            "published": len(summary) > 0 and bool(summary["published"].notna().any()),
            "pairs": _pairs(folder),
            "classified": _classified(read),
            "confounding": _confounding(obs, experiment),
            "maps": _maps(folder, obs, experiment),
            "training": _training(folder),
            "fits": _fits(fits),
            "failures": fits[fits["status"] != "done"].to_dict("records"),
            "n_donors": obs[experiment.donors].nunique(),
            "n_batches": obs[experiment.batch_key].nunique(),
        }
    return write(render(context, "experiment.html.j2"), folder / REPORT)


def _read(path: Path) -> pd.DataFrame:
    """Read a table; empty if the experiment has none."""
    return read_table(path) if path.exists() else pd.DataFrame()


def _tables(summary: pd.DataFrame) -> list[dict[str, Any]]:
    """Arrange the scores of each part of the cells."""
    if summary.empty:
        return []
    return [_table(str(part), rows) for part, rows in summary.groupby("part", sort=False)]


def _pairs(folder: Path) -> dict[str, Any] | None:
    """Arrange the predictions of held-out pairs: means over pairs by method, and R²Δ of each pair."""
    summary, predicted = _read(folder / PREDICTED_SUMMARY), _read(folder / PREDICTED)
    if summary.empty:
        return None
    methods = [m for m in summary["method"] if m not in (*BASELINES, CEILING)]
    methods += [m for m in (*BASELINES, CEILING) if m in set(summary["method"])]
    rows = {row["method"]: row for row in summary.to_dict("records")}
    lines = []
    for fold, one in predicted.groupby("fold", sort=True):
        r2 = one.groupby("method")["r2"].mean()
        first = one.iloc[0]
        lines.append(
            {
                **{"number": fold, "batch": first["batch"], "label": first["label"]},
                **{"n_source": first["n_source"], "n_target": first["n_target"]},
                "r2": [float(r2.get(method, np.nan)) for method in methods],
            }
        )
    return {
        "methods": [rows[method] for method in methods],
        "lines": lines,
        "names": methods,
        "n": len(lines),
        "n_genes": int(predicted["n_genes"].max()),
    }


def _table(part: str, rows: pd.DataFrame) -> dict[str, Any]:
    """Arrange the scores of one part: one row per method, one column per score, main scores first."""
    pairs = list(dict.fromkeys(zip(rows["score"], rows["of"], strict=True)))
    main = [pair for pair in MAIN if pair in pairs]
    cells = {(r["method"], r["score"], r["of"]): r for r in rows.to_dict("records")}
    methods = list(dict.fromkeys(rows["method"]))

    def block(columns: list[tuple[str, str]]) -> dict[str, Any]:
        lines = [(method, [cells.get((method, *pair)) for pair in columns]) for method in methods]
        return {"columns": columns, "lines": lines}

    rest = [pair for pair in pairs if pair not in main]
    n_folds = int(rows["n_folds"].max())
    return {"part": part, "n_folds": n_folds, "main": block(main), "rest": block(rest) if rest else None}


def _comparisons(summary: pd.DataFrame, experiment: Experiment) -> list[Any]:
    from scmedley.pl.comparison import comparison
    from scmedley.report.figures import picture

    if summary.empty:
        return []
    rows = summary[(summary["part"] == "test") & (summary["split"] == "cells")]
    methods = [m for m in experiment.methods if m in set(rows["method"])]
    size = (4.6, 0.7 + 0.3 * len(methods))
    pictures = []
    for score, of in MAIN:
        one = rows[(rows["score"] == score) & (rows["of"] == of)]
        if len(one):
            title = f"{score} by {of}"
            draw = partial(comparison, rows=one, methods=methods)
            pictures.append(picture(draw, size, f"{title}, as in the table.", title))
    return pictures


def _classified(read: pd.DataFrame) -> list[dict[str, Any]]:
    """Group the table of the classifiers by target, then by what was held out."""
    if read.empty:
        return []
    groups = []
    for target, rows in read.groupby("target", sort=False):
        names = list(dict.fromkeys(rows["embedding"]))
        splits = list(dict.fromkeys(rows["held_out"]))
        cells = {(r["embedding"], r["held_out"]): r for r in rows.to_dict("records")}
        cautions = dict(zip(rows["held_out"], rows["caution"], strict=True))
        lines = [(name, [cells.get((name, split)) for split in splits]) for name in names]
        groups.append({"target": target, "splits": splits, "cautions": cautions, "lines": lines})
    return groups


def _confounding(obs: pd.DataFrame, experiment: Experiment) -> list[Any]:
    """Draw the number of donors per label and group, for each donor-level target."""
    from scmedley.pl.comparison import confounding
    from scmedley.report.figures import picture

    pictures = []
    for target in experiment.targets:
        one = obs[[experiment.donors, experiment.label_key, target]].drop_duplicates()
        donors = pd.crosstab(one[experiment.label_key], one[target])
        size = (1.8 + 0.9 * donors.shape[1], 1.0 + 0.3 * donors.shape[0])
        title = f"Donors with cells of each label, by {target}"
        pictures.append(picture(partial(confounding, donors=donors), size, title, title))
    return pictures


def _maps(folder: Path, obs: pd.DataFrame, experiment: Experiment) -> list[dict[str, Any]]:
    """Draw the held-out cells of each fold, by batch and by label, for every method."""
    if "cells" not in experiment.splits:
        return []
    from scmedley.pl._palette import colours

    seed, groups = experiment.seeds[0], []
    for fold in range(experiment.folds):
        rows = []
        for kind, key in (("batch", experiment.batch_key), ("label", experiment.label_key)):
            panels = [
                _map(folder, obs, experiment, Task("cells", fold, seed, m), kind, key)
                for m in experiment.methods
            ]
            names = [str(name) for name in obs[key].cat.categories]
            legend = [
                {"name": n, "colour": c} for n, c in zip(names, colours(obs[key].nunique()), strict=False)
            ]
            rows.append({"kind": kind, "panels": [p for p in panels if p is not None], "legend": legend})
        groups.append({"fold": fold, "rows": rows})
    return groups


def _map(folder: Path, obs: pd.DataFrame, experiment: Experiment, task: Task, kind: str, key: str) -> Any:
    from scmedley.pl._figure import NotebookFigure, png
    from scmedley.pl.embedding import scatter
    from scmedley.report.figures import Picture, as_uri

    path = folder / TASKS / task.name / MAP
    if not path.exists():
        return None
    with np.load(path) as stored:
        xy_N2 = stored["xy"]
    test = parts(obs, experiment, task.split, task.fold) == "test"
    codes = obs[key].cat.codes.to_numpy()[test]
    drawn = np.isfinite(xy_N2).all(axis=1)
    figure = NotebookFigure(figsize=(2.4, 2.4), facecolor="none")
    ax = figure.add_axes((0.01, 0.01, 0.98, 0.98), facecolor="none")
    scatter(ax, xy_N2[drawn], codes[drawn], obs[key].nunique())
    uri = as_uri(png(figure, dpi=110))
    alt = f"UMAP of {drawn.sum():,} held-out cells, {task.method}, coloured by {kind}."
    return Picture(uri, uri, alt, task.method)


def _training(folder: Path) -> list[dict[str, Any]]:
    from scmedley.pl.training import averaged
    from scmedley.report.figures import picture

    try:
        history = pd.read_csv(folder / HISTORY)
    except pd.errors.EmptyDataError:
        return []
    groups = []
    for (split, method), rows in history.groupby(["split", "method"], sort=False):
        panels = []
        for term, one in rows.dropna(subset="weighted").groupby("term", sort=False):
            draw = partial(averaged, rows=one)
            panels.append(
                picture(draw, (3.2, 2.2), f"{term} over epochs, weighted, mean of the fits.", str(term))
            )
        groups.append({"name": f"{method}, {split} split", "panels": panels})
    return groups


def _fits(fits: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the fits, failures and median seconds of each method."""
    grouped = fits.groupby("method", sort=False)
    return [
        {
            "method": method,
            "n": len(rows),
            "failed": int((rows["status"] != "done").sum()),
            "seconds": float(rows["seconds"].median()),
        }
        for method, rows in grouped
    ]
