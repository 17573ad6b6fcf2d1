"""The page of an exploration: what the cells, obs and the values hold, before any model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmedley.report.build import check_extra, render, write

if TYPE_CHECKING:
    from scmedley.pp.columns import Column
    from scmedley.pp.exploration import Exploration

MOST_ROWS = 200  # levels or batches that a table of the page shows
MOST_LABELS = 24  # colours that a reader can tell apart; rarer labels are drawn together
STRIP = 100.0  # width of the small drawings in their own units


def write_exploration(found: Exploration, path: str | Path, name: str = "") -> Path:
    """Write the page of an exploration: one HTML file with figures and tables that opens offline.

    Parameters
    ----------
    found
        Result of :func:`scmedley.pp.explore`.
    path
        The new file; an existing one is replaced.
    name
        Title of the page (default: the names of the files).

    Returns
    -------
    pathlib.Path
        The page.

    Raises
    ------
    ScmedleyError
        The packages of the extra ``report`` are not installed, or the file cannot be written.
    """
    check_extra()
    from scmedley.pp.exploration_words import PLURAL, missing
    from scmedley.pp.normalisations import NAMES
    from scmedley.report import explore_figures as figures
    from scmedley.report.figures import drawing

    with drawing():
        context = {
            "name": name or ", ".join(found.names[:3]),
            "files": found.names,
            "tiles": _tiles(found),
            "findings": found.findings(),
            "warnings": found.warnings,
            "absent": missing(found),
            "columns": [
                _column(column, row) for column, row in zip(found.obs, _rows(found.columns), strict=True)
            ],
            "roles": _roles(found),
            "composition": _composition(found),
            "confounding": _rows(found.confounding),
            "plural": PLURAL,
            "quality": _quality(found),
            "cells": figures.cells(found),
            "summary": _rows(found.summary),
            "titles": figures.titles(found),
            "histograms": figures.values(found),
            "noise": figures.noise(found),
            "dispersion": found.dispersion,
            "n_genes": found.n_genes,
            "comparison": None if found.comparison is None else _rows(found.comparison.table),
            "normalisations": NAMES,
            "comparison_figures": []
            if found.comparison is None
            else figures.normalisations(found.comparison, found.levels),
            "compared": None if found.comparison is None else len(found.comparison.maps["log1p"]),
            "compared_genes": None if found.comparison is None else len(found.comparison.genes),
            "most_rows": MOST_ROWS,
        }
    return write(render(context, "explore.html.j2", ("style.css", "explore.css")), Path(path))


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _tiles(found: Exploration) -> list[tuple[str, str]]:
    from scmedley.pp.exploration_words import PLURAL
    from scmedley.report.numbers import count, number

    tiles = [("cells", count(found.n_cells)), ("genes", count(found.n_genes))]
    tiles += [(PLURAL[role], count(key.column.n_levels)) for role, key in found.keys.items()]
    if "counts" in found.cells:
        tiles.append(("counts in the median cell", count(float(found.cells["counts"].median()))))
    tiles.append(("genes in the median cell", count(float(found.cells["genes"].median()))))
    return [*tiles, ("zeros", number(100 * float(found.summary["zeros"].iloc[-1]), 1) + " %")]


def _column(column: Column, row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the table of columns, with a small drawing: shares of the levels, or a histogram."""
    from scmedley.pl._palette import colours

    row = row | {"strip": [], "bars": []}
    if column.kind in ("categorical", "text", "constant") and column.codes is not None:
        sizes = np.sort(column.sizes)[::-1][:MOST_LABELS]
        widths = STRIP * sizes / max(column.sizes.sum() + column.n_missing, 1)
        starts = np.concatenate([[0.0], np.cumsum(widths)[:-1]])
        row["strip"] = list(zip(starts.tolist(), widths.tolist(), colours(len(sizes)), strict=True))
    elif column.histogram is not None:
        heights = column.histogram / max(column.histogram.max(), 1)
        width = STRIP / len(heights)
        row["bars"] = [(i * width, 10 * float(h), width * 0.86) for i, h in enumerate(heights)]
    return row


def _roles(found: Exploration) -> list[dict[str, Any]]:
    """Return the levels of each role as rows with a bar."""
    from scmedley.pl._palette import colours

    roles = []
    for role, key in found.keys.items():
        rows = found.levels[found.levels["role"] == role]
        most = max(int(rows["cells"].max()), 1)
        lines = [line | {"width": STRIP * line["cells"] / most} for line in _rows(rows.head(MOST_ROWS))]
        for line, shade in zip(lines, colours(min(len(lines), MOST_LABELS)), strict=False):
            line["colour"] = shade
        roles.append(
            {
                "role": role,
                "column": key.column.name,
                "why": "given" if key.why == "given" else f"guessed: {key.why}",
                "rows": lines,
                "hidden": len(rows) - len(lines),
                "with_counts": "counts_total" in rows,
            }
        )
    return roles


def _composition(found: Exploration) -> dict[str, Any] | None:
    """Return the shares of labels in each batch as coloured strips, and the table of cells."""
    from scmedley.pl._palette import MISSING, colours

    table = found.composition
    if table.empty:
        return None
    order = np.argsort(-table.sum(axis=1).to_numpy(), kind="stable")
    table = table.iloc[order]
    drawn, others = table.iloc[:MOST_LABELS], table.iloc[MOST_LABELS:]
    shades = colours(len(drawn))
    legend = [
        {"name": str(name), "colour": shade, "cells": int(n)}
        for name, shade, n in zip(drawn.index, shades, drawn.sum(axis=1), strict=True)
    ]
    values = drawn.to_numpy()
    if len(others):
        shades = [*shades, MISSING]
        values = np.vstack([values, others.sum(axis=0).to_numpy()])
        rest = f"{len(others):,} rarer labels"
        legend.append({"name": rest, "colour": MISSING, "cells": int(others.to_numpy().sum())})
    strips = []
    for name, cells in list(zip(table.columns, values.T, strict=True))[:MOST_ROWS]:
        widths = STRIP * cells / max(cells.sum(), 1)
        starts = np.concatenate([[0.0], np.cumsum(widths)[:-1]])
        parts = [(s, w, c) for s, w, c in zip(starts.tolist(), widths.tolist(), shades, strict=True) if w > 0]
        strips.append(
            {"name": str(name), "parts": parts, "cells": int(cells.sum()), "n": int((cells > 0).sum())}
        )
    # The longer side becomes the rows: a page is longer than wide.
    turned = table.T if table.shape[1] > table.shape[0] else table
    most = int(turned.to_numpy().max())
    shown = turned.iloc[:MOST_ROWS]
    return {
        "legend": legend,
        "strips": strips,
        "hidden": max(table.shape[1] - MOST_ROWS, 0),
        "rows_are": "batch" if table.shape[1] > table.shape[0] else "label",
        "columns": [str(name) for name in turned.columns],
        "rows": [
            (
                str(name),
                [(int(n), math.ceil(4 * math.sqrt(n / most)) if n else 0) for n in row],
                int(row.sum()),
            )
            for name, row in zip(shown.index, shown.to_numpy(), strict=True)
        ],
    }


SCALES = {"counts": "log", "genes": "log", "mitochondrial": "linear", "ribosomal": "linear"}
HEADS = {
    "counts": "counts per cell",
    "genes": "genes per cell",
    "mitochondrial": "mitochondrial share",
    "ribosomal": "ribosomal share",
}


def _quality(found: Exploration) -> dict[str, Any]:
    """Return, for each batch and metric, the places of a box (quartiles, median, 5 % to 95 %)."""
    table = found.quality
    metrics = [name for name in SCALES if name in set(table["metric"])]
    ends = {}
    for name in metrics:
        own = table[table["metric"] == name]
        ends[name] = (_scaled(own["q05"].min(), name), _scaled(own["q95"].max(), name))
    names = list(dict.fromkeys(table["batch"]))
    rows = []
    for name in names[: MOST_ROWS + 1]:
        own = table[table["batch"] == name].set_index("metric")
        boxes: dict[str, Any] = {}
        for metric in metrics:
            boxes[metric] = None
            if metric in own.index:
                boxes[metric] = _box(own.loc[metric], metric, *ends[metric])
        rows.append(
            {
                "name": name,
                "cells": int(own["cells"].iloc[0]),
                "boxes": boxes,
                "all": bool(own["is_all"].iloc[0]),
            }
        )
    return {
        "metrics": [(m, HEADS[m], SCALES[m]) for m in metrics],
        "rows": rows,
        "hidden": len(names) - len(rows),
    }


def _scaled(value: float, metric: str) -> float:
    return math.log10(max(value, 1)) if SCALES[metric] == "log" else value


def _box(row: pd.Series[Any], metric: str, low: float, high: float) -> dict[str, Any]:
    from scmedley.report.numbers import count, number

    names = ("q05", "q25", "median", "q75", "q95")
    span = max(high - low, 1e-9)
    places = {name: STRIP * (_scaled(row[name], metric) - low) / span for name in names}
    shown = {
        name: count(row[name]) if SCALES[metric] == "log" else number(100 * row[name], 1) + " %"
        for name in names
    }
    alt = f"median {shown['median']}, half of the cells {shown['q25']} to {shown['q75']}"
    return places | {"text": shown["median"], "alt": alt}
