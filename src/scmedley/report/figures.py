"""Figures of the report. Names from the data are not drawn; the page holds them as text."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context, rcParamsDefault
from matplotlib.axes import Axes

from scmedley import keys
from scmedley.pl._figure import NotebookFigure, plain, png
from scmedley.pl._palette import DISTINCT, MISSING, colours
from scmedley.pl.clusters import draw_tree
from scmedley.pl.embedding import levels, scatter, thinned
from scmedley.pl.scores import panel
from scmedley.pl.training import curve, kept_epoch
from scmedley.report.numbers import number
from scmedley.runs.folder import CLUSTER_TREE
from scmedley.runs.read import Run

NUMBERED = 30  # most labels that are numbered on the map
INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
BADGE = {"boxstyle": "round,pad=0.18", "facecolor": "white", "edgecolor": "#333", "linewidth": 0.6}
THEMES = {"light": "#333a45", "dark": "#cdd3dd"}  # colour of texts and lines


@dataclass(frozen=True)
class Picture:
    """A figure as data URIs for the light and the dark page, with its text alternative."""

    light: str
    dark: str
    alt: str
    title: str
    note: str = ""


@contextmanager
def drawing() -> Iterator[None]:
    """Draw with matplotlib's defaults, so that the user's settings do not change the report."""
    settings: Any = {key: value for key, value in rcParamsDefault.items() if key != "backend"}
    with rc_context(settings):
        yield


def picture(draw: Callable[[Axes], object], size: tuple[float, float], alt: str, title: str) -> Picture:
    """Draw for the light and for the dark page; ``size`` in inches."""
    images = {}
    for theme, colour in THEMES.items():
        inked: Any = dict.fromkeys(INKED, colour)
        with rc_context(inked):
            figure = NotebookFigure(figsize=size, layout="constrained", facecolor="none")
            ax = figure.add_subplot(facecolor="none")
            draw(ax)
            images[theme] = as_uri(png(figure, dpi=180))
    return Picture(images["light"], images["dark"], alt, title)


def as_uri(image: bytes) -> str:
    """Return a PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(image).decode()


def maps(run: Run) -> list[dict[str, Any]]:
    """Draw the maps: one row for batch and one for label, one panel per embedding."""
    rows = []
    for kind in ("batch", "label"):
        column = run.column(kind)
        row: dict[str, Any] = {"kind": kind, "key": run.config.get(kind), "panels": [], "legend": []}
        if column is not None:
            codes, names = levels(column)
            numbered = kind == "label" and len(names) <= NUMBERED
            marks = [str(code + 1) for code in range(len(names))] if numbered else []
            for key in run.shown:
                row["panels"].append(_map(run, key, codes, names, kind, marks))
            sizes = pd.Series(codes).value_counts()
            row["legend"] = [
                {"name": name, "colour": colour, "cells": int(sizes.get(code, 0)), "number": code + 1}
                for code, (name, colour) in enumerate(zip(names, colours(len(names)), strict=True))
            ]
            if -1 in sizes.index:
                missing = {"name": "no value", "colour": MISSING, "cells": int(sizes[-1]), "number": None}
                row["legend"].append(missing)
            row |= {"numbered": numbered, "n": len(names), "repeats": len(names) > len(DISTINCT)}
            row["n_colours"] = len(DISTINCT)
        rows.append(row)
    return rows


def _map(
    run: Run, key: str, codes: Any, names: list[str], kind: str, marks: list[str]
) -> Picture | dict[str, str]:
    title = run.name(key)
    if run.key(key) != key:
        title += f": {run.key(key)}"
    if key not in run.maps:
        return {"title": title, "missing": f"No map: the run stored no {key}."}
    found, xy = run.maps[key]
    drawn = thinned(xy)  # of many cells a random sample
    if not drawn.any():
        return {"title": title, "missing": f"No map: {found} has no cell with coordinates."}
    n_cells, xy, codes = len(xy), xy[drawn], codes[drawn]
    figure = NotebookFigure(figsize=(3.6, 3.6), facecolor="none")
    ax = figure.add_axes((0.01, 0.01, 0.98, 0.98), facecolor="none")
    scatter(ax, xy, codes, len(names))
    if marks:
        for code in np.unique(codes[codes >= 0]):
            own = xy[codes == code]
            from_middle = ((own - np.median(own, axis=0)) ** 2).sum(axis=1)
            x, y = own[from_middle.argmin()]  # a cell, because the median itself may lie between groups
            ax.text(x, y, marks[code], fontsize=8, ha="center", va="center", color="#111", bbox=BADGE)
    uri = as_uri(png(figure, dpi=200))
    what = "UMAP" if found == keys.umap(key) else "First two dimensions"
    alt = f"{what}, {title}: {len(xy):,} cells coloured by {kind}, {len(names)} levels."
    notes = [] if what == "UMAP" else ["first two dimensions, no UMAP in this run"]
    if len(xy) < n_cells:
        notes.append(f"drawn: {len(xy):,} of {n_cells:,} cells")
    if what == "UMAP" and run.obs is not None and keys.ON_MAP in run.obs:
        n_fitted = int(run.obs[keys.ON_MAP].sum())
        notes.append(f"fitted to {n_fitted:,} cells; the others are placed between their neighbours")
    return Picture(uri, uri, alt, title, "; ".join(notes))


def cluster_maps(run: Run) -> list[Picture | dict[str, str]]:
    """Draw the clusters on each map, each with its name at its middle."""
    if run.obs is None or keys.CLUSTER not in run.obs:
        return []
    codes, names = levels(run.obs[keys.CLUSTER])
    marks = [plain(name, 6) for name in names] if len(names) <= NUMBERED else []
    return [_map(run, key, codes, names, "cluster", marks) for key in run.shown]


def merge_tree(run: Run) -> Picture | None:
    """Draw the tree of merges of the clusters."""
    tree = run.clusters.get(CLUSTER_TREE)
    if tree is None or tree.empty:
        return None
    size = (7.0, min(1.2 + 0.085 * (len(tree) + 1), 10.0))
    alt = (
        f"Tree of {len(tree)} merges of {len(tree) + 1} groups of cells, cut into clusters; the table of evidence "
        "holds the numbers."
    )
    return picture(
        lambda ax: draw_tree(ax, tree, {}, sizes=False), size, alt, "Merges, and where the tree is cut"
    )


def training(run: Run) -> list[dict[str, Any]]:
    """Draw the training curves: one group per network, one panel per loss term."""
    if run.history is None:
        return []
    networks = run.settings.get("networks") or {}
    groups = []
    for name, rows in run.history.groupby("network", sort=False):
        stated = networks.get(str(name)) or {}
        best = stated.get("best_epoch", kept_epoch(rows))
        panels = []
        for term, one in rows.groupby("term", sort=False):
            alt = f"{term}: {_in_words(one, best)}"
            draw = partial(curve, rows=one, best=best)
            panels.append(picture(draw, (3.6, 2.4), alt, str(term)))
        epochs = stated.get("epochs", int(rows["epoch"].nunique()))
        groups.append(
            {
                "name": str(name),
                "epochs": epochs,
                "kept": best,
                "keep": stated.get("keep", "best"),
                "stopped": stated.get("stopped"),
                "terms": [str(term) for term in rows["term"].unique()],
                "panels": panels,
            }
        )
    return groups


def _in_words(rows: pd.DataFrame, best: int | None) -> str:
    parts = []
    for part, one in rows.sort_values("epoch").groupby("part", sort=False):
        parts.append(f"{part} from {number(one['value'].iloc[0])} to {number(one['value'].iloc[-1])}")
    return "; ".join(parts) + (f"; kept epoch {best}." if best is not None else ".")


def scores(run: Run) -> list[Picture]:
    """Draw each score of every embedding with its null."""
    if run.scores is None:
        return []
    embeddings = list(dict.fromkeys(run.scores["embedding"]))
    size = (4.6, 0.7 + 0.3 * len(embeddings))
    pictures = []
    for (of, score), rows in run.scores.groupby(["of", "score"], sort=False):
        alt = f"{score} by {of}, as in the table above."
        draw = partial(panel, rows=rows, embeddings=embeddings, name=run.name)
        pictures.append(picture(draw, size, alt, f"{score} by {of}"))
    return pictures
