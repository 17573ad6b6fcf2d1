"""The figures of deepbid.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from deepbid_donors import CELLS, CLUSTERS, LABELS
from deepbid_methods import EVIDENCE, KMEANS, LEIDEN, MEMBERSHIPS, OWN
from deepbid_tables import K_GIVEN, PUBLISHED_SECONDS, slopes
from scmedley.pl._figure import NotebookFigure, plain, save, write
from scmedley.pl._palette import BASE, MISSING
from scmedley.pl.embedding import legend, levels, scatter

GIVEN, NOT_GIVEN, PAPER = BASE[1], BASE[0], BASE[4]
SHOWN = (MEMBERSHIPS, EVIDENCE, OWN, LEIDEN, KMEANS)  # of the clusters on a map, the first that a method has


def _figure(width: float, height: float) -> Any:
    return NotebookFigure(figsize=(width, height), layout="constrained")


def _clean(ax: Any, title: str = "") -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8, length=2)
    if title:
        write(ax.set_title, title, fontsize=9, loc="left")


def lisi_boxes(arrays: dict[str, dict[str, dict[str, np.ndarray]]], path: Path) -> None:
    """Draw box plots of the cells' iLISI and cLISI by method: one column each data set."""
    methods = list(dict.fromkeys(method for of in arrays.values() for method in of))
    figure = _figure(1.3 + 2.3 * len(arrays), 1.2 + 0.5 * len(methods))
    axes = figure.subplots(2, len(arrays), squeeze=False)
    for column, (name, of) in zip(axes.T, arrays.items(), strict=True):
        for ax, score in zip(column, ("iLISI", "cLISI"), strict=True):
            here = [(place, of[m][score]) for place, m in enumerate(methods) if m in of]
            here = [(place, values[np.isfinite(values)]) for place, values in here]
            boxes = ax.boxplot(
                [values for _, values in here],
                positions=[place for place, _ in here],
                orientation="horizontal",
                widths=0.6,
                patch_artist=True,
                flierprops={"marker": ".", "markersize": 1.5, "markeredgecolor": MISSING},
                medianprops={"color": "#222", "linewidth": 1.4},
            )
            for box, (place, _) in zip(boxes["boxes"], here, strict=True):
                box.set(facecolor=BASE[place % len(BASE)], alpha=0.75, linewidth=0.6)
            names = [plain(m, 24) for m in methods] if ax in axes[:, 0] else []
            ax.set_yticks(range(len(methods)), names or [""] * len(methods), parse_math=False)
            ax.set_ylim(len(methods) - 0.5, -0.5)
            ax.grid(axis="x", alpha=0.25)
            _clean(ax, name if score == "iLISI" else "")
            write(
                ax.set_xlabel, f"{score} ({'higher' if score == 'iLISI' else 'lower'} is better)", fontsize=8
            )
    save(figure, path)


def bars(table: pd.DataFrame, given: pd.DataFrame, path: Path) -> None:
    """Draw ARI and NMI ("max") of all clusters, means over seeds, with the published values."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    done = table[table["status"] == "done"]
    of = done.groupby(["method", "clusters"], sort=False).size().index
    order = sorted(of, key=lambda pair: list(done["method"].unique()).index(pair[0]))
    sets = list(done["set"].unique())
    figure = _figure(2.6 + 2.1 * len(sets), 1.6 + 2 * (0.6 + 0.16 * len(order)))
    axes = figure.subplots(2, len(sets), squeeze=False)
    for column, name in zip(axes.T, sets, strict=True):
        rows = done[done["set"] == name]
        for ax, score in zip(column, ("ARI", "NMI max"), strict=True):
            mean = rows.groupby(["method", "clusters"])[score].mean()
            values = [mean.get(pair, np.nan) for pair in order]
            paint = [GIVEN if clusters in K_GIVEN else NOT_GIVEN for _, clusters in order]
            ax.barh(range(len(order)), np.nan_to_num(values), color=paint, height=0.7)
            for row in given[(given["set"] == name) & (given["score"] == score)].to_dict("records"):
                here = [place for place, pair in enumerate(order) if ", ".join(pair) == row["as"]]
                if here:
                    ax.plot(row["value"], here[0], "D", mfc="white", mec=PAPER, ms=5, zorder=3)
            names = [plain(f"{m}: {c}", 48) for m, c in order] if ax in axes[:, 0] else [""] * len(order)
            ax.set_yticks(range(len(order)), names, parse_math=False)
            ax.set_ylim(len(order) - 0.4, -0.6)
            ax.set_xlim(min(0, np.nanmin(values)), 1.03)
            ax.grid(axis="x", alpha=0.25)
            _clean(ax, name if score == "ARI" else "")
            ax.tick_params(axis="y", labelsize=6.5)
            write(ax.set_xlabel, score, fontsize=8)
    handles: list[Any] = [Patch(color=NOT_GIVEN), Patch(color=GIVEN)]
    handles.append(Line2D([], [], marker="D", ls="", mfc="white", mec=PAPER))
    words = ["number of clusters found", "number of clusters given", "published (text of the paper)"]
    figure.legend(handles, words, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    save(figure, path)


def maps(
    of: dict[str, dict[str, np.ndarray]], obs: pd.DataFrame, colours: dict[str, str], path: Path
) -> None:
    """Draw the UMAP of each method (rows; the first is before integration) by type, batch and cluster.

    ``colours``: title of each column of ``obs``. Clusters are numbered by size, so their colours are of one method.
    """
    columns = [*colours, ""]
    figure = _figure(2.6 * len(columns) + 0.8, 2.3 * len(of) + 1.6)
    axes = figure.subplots(len(of) + 1, len(columns), squeeze=False, height_ratios=[1] * len(of) + [0.55])
    for row, (method, arrays) in zip(axes, of.items(), strict=False):
        found = next(f"clusters {name}" for name in SHOWN if f"clusters {name}" in arrays)
        for ax, column in zip(row, columns, strict=True):
            if column:
                codes, names = levels(obs[column])
            else:
                codes = arrays[found]
                names = [str(k) for k in range(int(codes.max()) + 1)]
            scatter(ax, arrays["umap"], codes, len(names))
            ax.spines[:].set(visible=True, color="#d5d5d5", linewidth=0.6)
            if column == columns[0]:
                write(ax.set_ylabel, method, fontsize=9)
            if not column:
                n = len(np.unique(codes))
                title = f"{n} cluster{'s' * (n > 1)}: {found.removeprefix('clusters ')}"
                write(ax.set_title, title, fontsize=8, loc="left")
            elif ax in axes[0]:
                write(ax.set_title, colours[column], fontsize=9, loc="left")
    for ax, column in zip(axes[-1], columns, strict=True):
        ax.set_axis_off()
        if column:
            names = levels(obs[column])[1]
            legend(ax, colours[column], names, 1 + (len(names) - 1) // 7)
            ax.get_legend().set_loc("upper left")
            ax.get_legend().set_bbox_to_anchor((0.0, 1.0))
    save(figure, path)


def seconds(table: pd.DataFrame, path: Path) -> None:
    """Draw seconds against cells with the fitted slope of each method, and what the paper reports."""
    figure = _figure(6.4, 4.2)
    ax = figure.subplots()
    fitted = slopes(table).set_index("method")
    for place, method in enumerate(table["method"].unique()):
        some, colour, label = table[table["method"] == method], BASE[place % len(BASE)], str(method)
        if method in fitted.index:
            slope, start = fitted["slope"][method], fitted["intercept"][method]
            ends = np.array([some["cells"].min(), some["cells"].max()])
            ax.plot(ends, np.exp(start) * ends**slope, color=colour, lw=1.2, alpha=0.7)
            label += f", slope {slope:.2f}"
        ax.plot(some["cells"], some["seconds"], "o", color=colour, ms=5, label=plain(label, 48))
    cells = np.array(list(PUBLISHED_SECONDS))
    values = np.array(list(PUBLISHED_SECONDS.values()))
    slope = np.diff(np.log(values))[0] / np.diff(np.log(cells))[0]
    label = f"DeepBID, published (GPU), slope {slope:.2f}"
    ax.plot(cells, values, "D--", mfc="white", mec=PAPER, color=PAPER, ms=5, lw=0.8, label=label)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.grid(alpha=0.25)
    _clean(ax)
    write(ax.set_xlabel, "cells", fontsize=9)
    write(ax.set_ylabel, "seconds of the fit", fontsize=9)
    ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    save(figure, path)


def sensitivity(table: pd.DataFrame, path: Path) -> None:
    """Draw ARI and NMI ("max") of the published model as heat maps: lambda1 x lambda2, kappa1, kappa2."""
    scores = ("ARI", "NMI max")
    weights = table[table["grid"] == "lambda"]
    size = weights["lambda1"].nunique(), weights["lambda2"].nunique()
    width = 1.4 + 0.62 * max(2 * size[1] + 2, 9)
    figure = _figure(width, 3.2 + 0.36 * size[0] + 1.6)
    top, bottom = figure.subfigures(2, 1, height_ratios=[0.9 + 0.36 * size[0], 2.9])
    low = min(0.0, float(table[list(scores)].min().min()))
    for ax, score in zip(top.subplots(1, 2), scores, strict=True):
        grid = weights.groupby(["lambda1", "lambda2"])[score].mean().unstack()
        _heat(ax, grid, score, low)
        write(ax.set_ylabel, "lambda1", fontsize=8)
        write(ax.set_xlabel, "lambda2", fontsize=8)
    for ax, name in zip(bottom.subplots(2, 1), ("kappa1", "kappa2"), strict=True):
        grid = table[table["grid"] == name].groupby(name)[list(scores)].mean().T
        _heat(ax, grid, "", low)
        write(ax.set_xlabel, name, fontsize=8)
    save(figure, path)


def _heat(ax: Any, grid: pd.DataFrame, title: str, low: float) -> None:
    ax.imshow(grid.to_numpy(dtype=float), cmap="viridis", vmin=low, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(grid.to_numpy(dtype=float)):
        text = "failed" if np.isnan(value) else f"{value:.3f}"
        ax.text(j, i, text, ha="center", va="center", fontsize=7, color="white" if value < 0.6 else "#222")
    for axis, names in ((ax.xaxis, grid.columns), (ax.yaxis, grid.index)):
        axis.set_ticks(range(len(names)), [n if isinstance(n, str) else f"{n:g}" for n in names])
    _clean(ax, title)
    ax.tick_params(labelsize=8, length=0)
    ax.spines[:].set_visible(False)


def donors(counts: pd.DataFrame, replicated: pd.DataFrame, path: Path) -> None:
    """Draw the numbers of genes by type, and what replicates in held-out donors: one row each contrast."""
    contrasts = list(counts["contrast"].unique())
    types = list(counts["type"].unique())
    figure = _figure(9.5, len(contrasts) * (1.1 + 0.24 * max(len(types), 6)) + 0.5)
    axes = figure.subplots(len(contrasts), 2, squeeze=False)
    for row, contrast in zip(axes, contrasts, strict=True):
        found = counts[(counts["contrast"] == contrast) & (counts["test"] == CELLS)].set_index("type")
        found = found.reindex(types).fillna(0)
        common = found["common"]
        alone = {"labels alone": found[LABELS] - common, "clusters alone": found[CLUSTERS] - common}
        left = np.zeros(len(types))
        for (name, values), colour in zip({"common": common, **alone}.items(), BASE[2::-1], strict=True):
            row[0].barh(range(len(types)), values, left=left, color=colour, height=0.7, label=name)
            left = left + values.to_numpy()
        row[0].set_yticks(range(len(types)), [plain(name, 24) for name in types], parse_math=False)
        row[0].set_ylim(len(types) - 0.4, -0.6)
        write(row[0].set_xlabel, "genes found by cells", fontsize=8)
        _clean(row[0], contrast)
        _shares(row[1], replicated, contrast)
    bars = axes[0, 0].get_legend_handles_labels()
    figure.legend(*bars, loc="outside lower left", ncols=3, frameon=False, fontsize=8)
    save(figure, path)


def _shares(ax: Any, replicated: pd.DataFrame, contrast: str) -> None:
    """Draw the shares of genes that replicate, by test and set of genes, held-out cells as the judge."""
    if not len(replicated):  # no donors to hold out
        ax.set_axis_off()
        return
    rows = replicated[(replicated["contrast"] == contrast) & (replicated["held-out test"] == CELLS)]
    rows = rows.set_index(["test", "genes"])
    order = list(rows.index)
    places = np.arange(len(order))
    paint = [BASE[0] if test == CELLS else BASE[1] for test, _ in order]
    ax.barh(places, rows["share"].fillna(0), color=paint, height=0.7)
    ax.plot(rows["share of others"].where(rows["found"] > 0), places, "|", color="#222", ms=9, mew=2)
    for place, row in zip(places, rows.to_dict("records"), strict=True):
        text = f"{row['replicated']} of {row['found']}"
        ax.text(1.02, place, text, fontsize=7, va="center", transform=ax.get_yaxis_transform())
    ax.set_yticks(places, [f"{genes}, by {test}" for test, genes in order])
    ax.set_ylim(len(order) - 0.4, -0.6)
    ax.set_xlim(0, 1)
    ax.set_xlabel("share that replicates; line: genes that were not found", fontsize=8)
    _clean(ax)
    ax.set_title("held-out donors: same sign and p < .05 by cells", fontsize=9, loc="left")
    ax.tick_params(axis="y", labelsize=7)
