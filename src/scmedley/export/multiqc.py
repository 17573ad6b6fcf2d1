"""Custom content for MultiQC: scores with their null, verdicts and warnings of a run, as ``*_mqc.json``.

The sections have the same ids in every run, so one MultiQC page shows many runs below each other. Text is escaped,
because MultiQC puts it into its page as HTML.
"""

from __future__ import annotations

import math
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from scmedley import __version__, io
from scmedley.errors import ScmedleyError
from scmedley.export.source import name_of
from scmedley.runs.folder import SCORES
from scmedley.runs.read import Run

PARENT = {
    "parent_id": "scmedley",
    "parent_name": "scMedley",
    "parent_description": f"Mixed-effects models of single cells (version {__version__}).",
}
MARKS = {"pass": "good", "warn": "weak", "fail": "failed"}  # MultiQC's word: the mark of a verdict
LEAKS = "leak"  # scores of batch leakage end with this word
UNBOUNDED = ("CH", "1/DB")  # scores that are hidden at first, for their scale depends on the data


def write(run: Run, folder: Path) -> list[str]:
    """Write one file for each section that the run has.

    Raises
    ------
    ScmedleyError
        The run was not scored.
    """
    if run.scores is None or run.scores.empty:
        raise ScmedleyError(f"{run.folder / SCORES} is missing: run scmedley evaluate {run.folder} first.")
    name = escape(name_of(run))
    sections = {"general": _general(run, name), "scores": _scores(run, name)}
    if run.settings.get("verdicts"):
        sections["verdicts"] = _verdicts(run, name)
    if run.settings.get("warnings"):
        sections["warnings"] = _warnings(run, name)
    for section, content in sections.items():
        io.write_json(content, folder / f"scmedley_{section}_mqc.json")
    return []


def _general(run: Run, name: str) -> dict[str, Any]:
    """Return columns of MultiQC's general statistics: cells, and the headline scores beside their null."""
    assert run.scores is not None
    judged = run.scores[run.scores["embedding"] == run.shown[0]]
    leaks = judged[(judged["of"] == "batch") & judged["score"].str.endswith(LEAKS) & judged["value"].notna()]
    right = judged[(judged["of"] == "label") & (judged["score"] == "kNN accuracy")]
    values: dict[str, Any] = {"cells": (run.settings.get("input") or {}).get("cells")}
    columns: list[dict[str, Any]] = [{"cells": _column("Cells", "Cells of the input", format="{:,d}")}]
    if not leaks.empty:
        worst = leaks.sort_values("value", kind="stable").iloc[-1]
        values |= {"leak": worst["value"], "leak_null": worst["null"]}
        said = f"Batch leakage by the worst probe ({worst['score']}) in {run.name(run.shown[0])}: 0 is chance"
        columns.append({"leak": _column("Worst leak", said, scale="OrRd", low=0, high=1)})
        columns.append({"leak_null": _column("Null of the leak", "The same score for permuted batches")})
    if not right.empty:
        values["accuracy"] = right["value"].iloc[0]
        said = f"Held-out cells whose neighbours have their label, in {run.name(run.shown[0])}"
        columns.append({"accuracy": _column("Label accuracy", said, scale="Greens", low=0, high=1)})
    return {
        "id": "scmedley_general",
        "plot_type": "generalstats",
        "pconfig": columns,
        "data": {name: _known(values)},
    }


def _scores(run: Run, name: str) -> dict[str, Any]:
    """Return a table: a row for each embedding, each score beside its null."""
    assert run.scores is not None
    headers: dict[str, Any] = {}
    data: dict[str, dict[str, Any]] = {}
    row: Any
    for row in run.scores.itertuples():
        column, title = f"{row.of} {row.score}", escape(f"{row.score} of {row.of}")
        hidden = row.score in UNBOUNDED
        headers.setdefault(column, _column(title, title, hidden=hidden))
        values = data.setdefault(f"{name} | {escape(run.name(str(row.embedding)))}", {})
        values[column] = row.value
        if pd.notna(row.null):
            said = f"The same score after: {escape(str(row.null_kind))}"
            headers.setdefault(f"{column} null", _column(f"{title}, null", said, hidden=hidden))
            values[f"{column} null"] = row.null
    return {
        "id": "scmedley_scores",
        **PARENT,
        "section_name": "Scores of the embeddings",
        "description": "On held-out cells. Each score has the groups further apart where it is higher: a fixed-effects "
        "embedding should have low scores of the batch and high scores of the label. The null is the same score for "
        "permuted groups.",
        "plot_type": "table",
        "pconfig": {"id": "scmedley_scores_table", "title": "scMedley: scores", "col1_header": "Embedding"},
        "headers": headers,
        "data": {row: _known(values) for row, values in data.items()},
    }


def _verdicts(run: Run, name: str) -> dict[str, Any]:
    """Return a table: a row for each of the questions that a run answers."""
    rules = {kind: [{"s_eq": mark}] for kind, mark in MARKS.items()}
    rows = {
        f"{name} | {escape(str(verdict['question']))}": {
            "mark": escape(str(verdict["mark"])),
            "sentence": escape(str(verdict["sentence"])),
        }
        for verdict in run.settings["verdicts"]
    }
    return {
        "id": "scmedley_verdicts",
        **PARENT,
        "section_name": "Verdicts",
        "description": "Three questions about each run: good, weak, failed or unknown.",
        "plot_type": "table",
        "pconfig": {
            "id": "scmedley_verdicts_table",
            "title": "scMedley: verdicts",
            "col1_header": "Question",
        },
        "headers": {
            "mark": {"title": "Mark", "cond_formatting_rules": rules, "scale": False},
            "sentence": {"title": "In words", "scale": False},
        },
        "data": rows,
    }


def _warnings(run: Run, name: str) -> dict[str, Any]:
    """Return a table: a row for each warning of the run."""
    said = run.settings["warnings"]
    return {
        "id": "scmedley_warnings",
        **PARENT,
        "section_name": "Warnings",
        "description": "What the runs warned of.",
        "plot_type": "table",
        "pconfig": {"id": "scmedley_warnings_table", "title": "scMedley: warnings", "col1_header": "Run"},
        "headers": {"warning": {"title": "Warning", "scale": False}},
        "data": {f"{name} | {i}": {"warning": escape(str(line))} for i, line in enumerate(said, 1)},
    }


def _column(
    title: str,
    description: str,
    *,
    scale: str | bool = False,
    low: float | None = None,
    high: float | None = None,
    hidden: bool = False,
    format: str = "{:,.3f}",
) -> dict[str, Any]:
    """Return the settings of a column of numbers."""
    about = {"title": title, "description": description, "scale": scale, "format": format, "hidden": hidden}
    limits = {"min": low, "max": high}
    return about | {name: value for name, value in limits.items() if value is not None}


def _known(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values without missing ones: MultiQC has no empty number."""
    return {
        name: value
        for name, value in values.items()
        if not (isinstance(value, float) and not math.isfinite(value)) and value is not None
    }
