"""Heatmap of the gene shifts of batches."""

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
MOST_GENES = 60  # shown by default
ROW = 0.17  # height of a gene, inches
UNKNOWN = "#d4d4d4"  # not a colour of the scale, where white means no shift


def batch_shifts(
    shifts: pd.DataFrame, label: str | None = None, *, n_top: int | None = None, ax: Axes | None = None
) -> Figure:
    """Draw the shifts of genes (rows) in batches (columns), for one label.

    A dot marks a shift whose 5-95 % interval includes 0. For each batch, the table holds only the genes with
    the largest shifts. The shifts of other genes are not known; they are grey, which does not mean 0. Batches
    in which the label was never observed are hatched: their shifts are extrapolated.

    Parameters
    ----------
    shifts
        Table of :func:`scmedley.interpret.gene_shifts`, or ``gene_shifts.csv`` of a run.
    label
        Label to draw; may be left out if the table has only one.
    n_top
        The heatmap shows the genes with the ``n_top`` largest shifts of any batch. Default: the largest
        number up to 10 that gives at most 60 genes. Genes are ordered by average-linkage clustering, with
        unknown shifts as 0.
    ax
        Axes to draw in; a new figure if not given.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ScmedleyError
        A column is missing or does not hold numbers; the table is empty or does not have the label; or
        ``label`` is missing and the table has several.
    """
    from scmedley.pl._figure import axes_of, plain, write

    rows = _of_label(shifts, label)
    batches = list(dict.fromkeys(rows["batch"]))
    value_GB, unsure_GB = _tables(rows, batches, _top(rows, n_top))
    seen_B = rows.groupby("batch")["seen"].first().loc[batches].to_numpy(dtype=bool)
    names = [
        plain(name, 22) + ("" if seen else ", never observed")
        for name, seen in zip(batches, seen_B, strict=True)
    ]
    below = 0.075 * max(map(len, names)) + 1.2
    size = (max(4.2, 2.6 + 0.24 * len(batches)), ROW * len(value_GB) + below)
    figure, ax = axes_of(ax, size)
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
        raise ScmedleyError(f"The table has several labels: {', '.join(labels)}. Choose one with label=...")
    rows = rows[rows["label"] == (labels[0] if label is None else label)]
    if rows.empty:
        raise ScmedleyError(f"The table has no label {label!r}. Choose one of: {', '.join(labels)}.")
    return rows


def _top(rows: pd.DataFrame, n_top: int | None) -> list[str]:
    """Return the genes with the largest shifts of any batch."""
    if n_top is not None and not (is_whole(n_top) and n_top >= 1):
        raise ScmedleyError(f"n_top is {n_top!r}; it must be an integer, 1 or more.")
    place = rows["shift"].abs().groupby(rows["batch"]).rank(ascending=False, method="first")
    genes: list[str] = []
    for n in (n_top,) if n_top else range(1, 11):
        more = list(dict.fromkeys(rows.loc[place <= n, "gene"]))
        if not genes or n_top or len(more) <= MOST_GENES:
            genes = more
    return genes


def _tables(rows: pd.DataFrame, batches: list[str], genes: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the shifts (NaN if not known) and whether their sign is uncertain, both genes x batches."""
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
    """Write what dots and grey mean, if there are any."""
    words = ["dot: the 5–95 % interval includes 0"] * unsure + ["grey: not known"] * unknown
    if words:
        ax.set_xlabel("; ".join(words), fontsize=8, loc="left")
