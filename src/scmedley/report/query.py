"""The page about new cells that were embedded with the model of a run: labels and doubts, on the run's map.

Shapes: N new cells, M training cells of the run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib import colormaps
from matplotlib.colors import to_hex, to_rgb
from numpy.typing import NDArray

from scmedley import keys
from scmedley.models import MixedEffects
from scmedley.models.base import Model
from scmedley.models.reference import LEAST_PROBABILITY, MOST_NOVELTY
from scmedley.models.transfer import LEAST_CONFIDENCE
from scmedley.pl._figure import NotebookFigure, png
from scmedley.pl._palette import MISSING, colours
from scmedley.pp.maps import place
from scmedley.report.build import render, write
from scmedley.report.figures import Picture, as_uri, drawing
from scmedley.runs.read import judged, read_map

WARNING_COLOUR = "#e0115f"  # unassigned and novel cells
STEPS = 50  # of the colour scale of novelty
SCALE = "cividis"


def write_query(
    folder: Path,
    model: MixedEffects | Model[Any],
    adata: AnnData,
    table: pd.DataFrame,
    by_batch: pd.DataFrame,
    in_clusters: list[dict[str, Any]],
    summary: list[str],
    note: str,
    name: str,
    path: Path,
) -> None:
    """Write the page.

    Parameters
    ----------
    folder
        Run folder, whose map is drawn.
    adata
        The new cells with their embeddings.
    table
        Their labels, mapping confidence and novelty (:meth:`MixedEffects.transfer`).
    by_batch
        Number of cells, of novel and of unassigned cells by batch.
    in_clusters
        Cluster, name and number of new cells of the clusters of the run; empty if the model has none.
    summary
        The lines of the console; the last one says what to do next.
    note
        How batches that the model does not know were read; may be empty.
    name
        Title of the page.
    path
        The new file.
    """
    assert model.reference is not None  # the table is of its transfer
    n_validation = len(model.reference.agreement_V)
    known = read_map(folder)
    maps: list[dict[str, Any]] = []
    if known is not None:
        with drawing():
            xy_N2 = place(adata.obsm[judged(folder)], *known)
            maps = [_map(xy_N2, known[1], *one) for one in _colourings(table)]
    novel = int((table["novelty"] > MOST_NOVELTY).sum())
    far = int((table["mapping_confidence"] < LEAST_CONFIDENCE).sum())
    tiles = [("cells", len(table)), ("novel", novel), ("no training cell close", far)]
    if "assigned" in table:
        tiles.insert(1, ("unassigned", int((table["assigned"] == keys.UNASSIGNED).sum())))
    context = {
        "name": name,
        "run": folder.name,
        "tiles": tiles,
        "next": summary[-1].removeprefix("Next: "),
        "note": note,
        "maps": maps,
        "embedding": keys.title(judged(folder)),
        "labels": _by_label(table),
        "clusters": in_clusters,
        "cluster_column": keys.CLUSTER,
        "membership": keys.MEMBERSHIP,
        "batch_key": model.factors.asked or model.batch_key,
        "batches": [{"name": str(name)} | row.to_dict() for name, row in by_batch.iterrows()],
        "least_probability": LEAST_PROBABILITY,
        "most_novelty": MOST_NOVELTY,
        "least_confidence": LEAST_CONFIDENCE,
        "n_validation": n_validation,
        "highest_novelty": n_validation / (n_validation + 1),
        "columns": keys.TRANSFERRED,
    }
    write(render(context, "query.html.j2"), path)


def _by_label(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return one row for each predicted label: how many cells, how sure, and how many are doubtful."""
    if "label" not in table:
        return []
    rows = []
    for name, own in table.groupby("label", observed=True):
        rows.append(
            {
                "name": str(name),
                "cells": len(own),
                "assigned": int((own["assigned"] != keys.UNASSIGNED).sum()),
                "probability": float(own["probability"].mean()),
                "confidence": float(own["mapping_confidence"].median()),
                "improbable": int((own["probability"] < LEAST_PROBABILITY).sum()),
                "novel": int((own["novelty"] > MOST_NOVELTY).sum()),
                "far": int((own["mapping_confidence"] < LEAST_CONFIDENCE).sum()),
            }
        )
    return sorted(rows, key=lambda row: -row["cells"])


def _colourings(table: pd.DataFrame) -> list[tuple[str, NDArray[np.int64], list[tuple[str, str]]]]:
    """Return title, code of each cell, and name and colour of each code, for each map."""
    novelty_N = table["novelty"].to_numpy()
    step_N = np.minimum(novelty_N * STEPS, STEPS - 1).astype(np.int64)
    step_N[novelty_N > MOST_NOVELTY] = STEPS
    shades = [to_hex(colour) for colour in colormaps[SCALE](np.linspace(0, 1, STEPS))]
    found = [("Novelty", step_N, [*(("", colour) for colour in shades), ("novel", WARNING_COLOUR)])]
    if "assigned" in table:
        assigned = table["assigned"].cat
        names = [str(name) for name in assigned.categories]
        pairs = [
            (n, WARNING_COLOUR if n == keys.UNASSIGNED else c)
            for n, c in zip(names, colours(len(names)), strict=True)
        ]
        found.insert(0, ("Assigned label", assigned.codes.to_numpy(np.int64), pairs))
    return found


def _map(
    xy_N2: NDArray[np.float32],
    xy_M2: NDArray[np.float32],
    title: str,
    code_N: NDArray[np.int64],
    pairs: list[tuple[str, str]],
) -> dict[str, Any]:
    """Draw the new cells in colour over the training cells in grey; the last colours lie on top.

    Colours without a name are the steps of a scale from 0 to 1.
    """
    figure = NotebookFigure(figsize=(4.6, 4.6), facecolor="none")
    shades = [colour for name, colour in pairs if not name]
    bottom = 0.09 if shades else 0.01
    ax = figure.add_axes((0.01, bottom, 0.98, 0.99 - bottom), facecolor="none")
    ax.scatter(
        xy_M2[:, 0], xy_M2[:, 1], s=_size(len(xy_M2)), c=MISSING, alpha=0.3, linewidths=0, rasterized=True
    )
    order = np.random.default_rng(0).permutation(len(code_N))
    order = order[np.argsort(np.array([c == WARNING_COLOUR for _, c in pairs])[code_N[order]], kind="stable")]
    colour_N = np.array([colour for _, colour in pairs])[code_N[order]]
    ax.scatter(
        xy_N2[order, 0],
        xy_N2[order, 1],
        s=2 * _size(len(order)),
        c=list(colour_N),
        linewidths=0,
        rasterized=True,
    )
    ax.set_axis_off()
    if shades:
        _scale(figure, shades)
    uri = as_uri(png(figure, dpi=180))
    sizes = np.bincount(code_N, minlength=len(pairs))
    legend = [
        {"name": name, "colour": colour, "cells": int(size)}
        for (name, colour), size in zip(pairs, sizes, strict=True)
        if name and (size or name == "novel")
    ]
    alt = f"{len(xy_N2):,} new cells over {len(xy_M2):,} training cells, coloured by {title.lower()}."
    return {"picture": Picture(uri, uri, alt, title), "legend": legend}


def _scale(figure: NotebookFigure, shades: list[str]) -> None:
    """Draw a scale of colours from 0 to 1 at the bottom of a map."""
    ax = figure.add_axes((0.62, 0.05, 0.33, 0.025))
    ax.imshow(np.array([[to_rgb(colour) for colour in shades]]), aspect="auto", extent=(0, 1, 0, 1))
    ax.set_yticks([])
    ax.set_xticks([0, 0.5, 1])
    ax.tick_params(colors=MISSING, labelsize=8, length=2)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _size(n: int) -> float:
    return min(max(30_000 / max(n, 1), 0.8), 14.0)
