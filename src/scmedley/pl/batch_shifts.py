"""Which genes each batch shifts, as a heatmap."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scmedley.data.gene_names import shown_in
from scmedley.errors import ScmedleyError
from scmedley.pl._inputs import is_whole, table_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ["label", "batch", "gene", "shift", "q05", "q95", "seen"]
MOST_GENES = 60  # that a heatmap shows, unless more are asked for
CELL = 0.17  # height of a gene, inches
UNKNOWN = "#d4d4d4"  # neither white, which is no shift, nor a colour of the scale


def batch_shifts(
    shifts: pd.DataFrame, label: str | None = None, *, n_top: int | None = None, ax: Axes | None = None
) -> Figure:
    """Draw the shifts of genes (rows) in batches (columns), for one label.

    A dot marks a shift whose interval from 5 % to 95 % holds 0. The table keeps, for each batch, the genes of its
    largest shifts alone, so that the shift of another gene is not known: its place is grey, which does not mean 0.
    Batches in which the label was never observed are hatched: their shifts are extrapolated.

    Parameters
    ----------
    shifts
        Table of :func:`scmedley.interpret.gene_shifts`, or ``gene_shifts.csv`` of a run.
    label
        Which; may be left out where the table has one.
    n_top
        The genes shown are the ``n_top`` largest shifts of each batch, taken together; by default as many, up to
        10, as make 60 genes. They are ordered by average-linkage clustering, with unknown shifts as 0.
    ax
        Where to draw; a new figure if not given.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ScmedleyError
        A column is missing or holds no numbers, the table is empty, it has no such label, or several and none was
        named.
    """
    from scmedley.pl._figure import NotebookFigure, figure_of, plain, write

    rows = _of_label(shifts, label)
    batches = list(dict.fromkeys(rows["batch"]))
    value_GB, unsure_GB = _tables(rows, batches, _top(rows, n_top))
    seen_B = rows.groupby("batch")["seen"].first().loc[batches].to_numpy(dtype=bool)
    names = [
        plain(name, 22) + ("" if seen else ", never observed")
        for name, seen in zip(batches, seen_B, strict=True)
    ]
    if ax is None:
        below = 0.075 * max(map(len, names)) + 1.2
        size = (max(4.2, 2.6 + 0.24 * len(batches)), CELL * len(value_GB) + below)
        figure: Figure = NotebookFigure(figsize=size, layout="constrained")
        ax = figure.add_subplot()
    else:
        figure = figure_of(ax)
    limit = float(np.nanmax(np.abs(value_GB.to_numpy()))) or 1.0
    drawn = ax.imshow(
        value_GB, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest"
    )
    ax.set_facecolor(UNKNOWN)
    gene, batch = np.nonzero(unsure_GB.to_numpy())
    ax.plot(batch, gene, ".", color="#222", ms=2.5)
    _hatch(ax, ~seen_B, len(value_GB))
    ax.set_yticks(
        range(len(value_GB)), [plain(name, 20) for name in value_GB.index], parse_math=False, fontsize=8
    )
    ax.set_xticks(range(len(batches)), names, parse_math=False, fontsize=8, rotation=90)
    ax.tick_params(length=0)
    write(ax.set_title, rows["label"].iloc[0], fontsize=10)
    bar = figure.colorbar(drawn, ax=ax, shrink=min(1.0, 8 / len(value_GB) + 0.3), pad=0.02)
    bar.set_label("shift, log1p CP10k", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    _explain(ax, bool(len(gene)), bool(value_GB.isna().to_numpy().any()))
    return figure


def _of_label(shifts: pd.DataFrame, label: str | None) -> pd.DataFrame:
    rows = table_of(shifts, "the table of shifts", COLUMNS, ["shift", "q05", "q95"], finite=["shift"])
    rows = shown_in(rows.assign(**{name: rows[name].astype(str) for name in ("label", "batch", "gene")}))
    labels = list(dict.fromkeys(rows["label"]))
    if label is None and len(labels) > 1:
        raise ScmedleyError(f"name one label; the table has: {', '.join(labels)}")
    rows = rows[rows["label"] == (labels[0] if label is None else label)]
    if rows.empty:
        raise ScmedleyError(f"the table of shifts has no label {label!r}; it has: {', '.join(labels)}")
    return rows


def _top(rows: pd.DataFrame, n_top: int | None) -> list[str]:
    """Give the genes of the largest shifts of each batch, taken together."""
    if n_top is not None and not (is_whole(n_top) and n_top >= 1):
        raise ScmedleyError(f"n_top is {n_top!r}; give a whole number, 1 or more.")
    place = rows["shift"].abs().groupby(rows["batch"]).rank(ascending=False, method="first")
    genes: list[str] = []
    for n in (n_top,) if n_top else range(1, 11):
        more = list(dict.fromkeys(rows.loc[place <= n, "gene"]))
        if not genes or n_top or len(more) <= MOST_GENES:
            genes = more
    return genes


def _tables(rows: pd.DataFrame, batches: list[str], genes: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Give shifts, and whether their sign is unsure: genes x batches, not a number where not known."""
    rows = rows.assign(unsure=((rows["q05"] <= 0) & (rows["q95"] >= 0)).astype(float))
    value_GB, unsure_GB = (
        rows.pivot_table(index="gene", columns="batch", values=name).reindex(index=genes, columns=batches)
        for name in ("shift", "unsure")
    )
    if len(genes) > 2:
        from scipy.cluster.hierarchy import leaves_list, linkage

        share_GB = value_GB.fillna(0).to_numpy() / (np.nanmax(np.abs(value_GB.to_numpy())) or 1.0)
        order = leaves_list(linkage(share_GB, "average", optimal_ordering=True))
        value_GB, unsure_GB = value_GB.iloc[order], unsure_GB.iloc[order]
    return value_GB, unsure_GB == 1


def _hatch(ax: Axes, unseen_B: np.ndarray, n_genes: int) -> None:
    from matplotlib.patches import Rectangle

    for batch in np.flatnonzero(unseen_B):
        place = (batch - 0.5, -0.5)
        ax.add_patch(Rectangle(place, 1, n_genes, fill=False, hatch="////", edgecolor="#8a8a8a", linewidth=0))


def _explain(ax: Axes, unsure: bool, unknown: bool) -> None:
    """Say above the picture what dots and grey mean, where there are any."""
    words = ["dot: the 5–95 % interval holds 0"] * unsure + ["grey: not known"] * unknown
    if words:
        ax.set_xlabel("; ".join(words), fontsize=8, loc="left")
