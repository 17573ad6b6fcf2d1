"""Figures of distances between samples: a clustered heat map, and a map of the samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scmedley.errors import ScmedleyError, listed
from scmedley.pl._inputs import table_of
from scmedley.pl.donor_map import FEW, PLAIN, paint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELL = 0.19  # side of a square, inches
LARGEST = 60  # samples whose names are written


def sample_distances(
    distances: pd.DataFrame,
    label: str | None = None,
    *,
    columns: pd.DataFrame | None = None,
    color: str | None = None,
) -> Figure:
    """Draw the distances of samples as a heat map, in the order of average-linkage clustering.

    Parameters
    ----------
    distances
        Table of :func:`scmedley.interpret.sample_distances`.
    label
        Label to draw; default: all labels together.
    columns, color
        Table of :func:`scmedley.interpret.sample_columns` or :func:`scmedley.interpret.sample_map`, and its column
        to show beside the samples.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ScmedleyError
        A column is missing or does not hold numbers, or the table does not have the label.
    """
    from scipy.cluster.hierarchy import dendrogram, linkage
    from scipy.spatial.distance import squareform

    from scmedley.interpret.sample_map import sample_matrix
    from scmedley.pl._figure import NotebookFigure, plain, write

    needed = ["label", "sample_1", "sample_2", "distance"]
    table = table_of(distances, "the table of distances", needed, ["distance"], finite=["distance"])
    matrix = sample_matrix(table, label)
    values = None if color is None else _values(list(matrix.index), columns, color)
    n = len(matrix)
    side = max(2.2, CELL * min(n, LARGEST))
    figure: Figure = NotebookFigure(
        figsize=(side + 2.6 + 0.9 * (values is not None), side + 1.3), layout="constrained"
    )
    widths = [0.5, 0.16 if values is not None else 0.01, side, 0.01]
    grid = figure.add_gridspec(1, 4, width_ratios=widths, wspace=0.02)
    tree_ax, strip_ax, ax, legend_ax = (figure.add_subplot(grid[0, i]) for i in range(4))
    tree = linkage(squareform(matrix.to_numpy(), checks=False), "average", optimal_ordering=True)
    drawn = dendrogram(tree, orientation="left", no_plot=True)
    for x, y in zip(drawn["dcoord"], drawn["icoord"], strict=True):
        tree_ax.plot(x, np.array(y) / 10 - 0.5, color="#444", lw=0.8)
    order = drawn["leaves"]
    shown = matrix.iloc[order, order]
    image = ax.imshow(shown, cmap="viridis_r", vmin=0, aspect="auto", interpolation="nearest")
    tree_ax.set_ylim(n - 0.5, -0.5)
    tree_ax.invert_xaxis()
    names = [plain(name, 16) for name in shown.index] if n <= LARGEST else []
    ax.yaxis.tick_right()
    ax.set_yticks(range(len(names)), names, parse_math=False, fontsize=8)
    ax.set_xticks(range(len(names)), names, parse_math=False, fontsize=8, rotation=90)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    write(ax.set_title, "all labels" if label is None else label, fontsize=9, loc="left")
    bar = figure.colorbar(image, ax=ax, shrink=0.6, pad=0.02)
    bar.set_label("distance", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    for empty in (tree_ax, strip_ax, legend_ax):
        empty.axis("off")
    if values is not None:
        colour_D4 = np.asarray(paint(figure, legend_ax, values, color))
        strip_ax.imshow(colour_D4[order][:, None], aspect="auto", interpolation="nearest")
    return figure


def sample_map(places: pd.DataFrame, color: str | None = None, *, ax: Axes | None = None) -> Figure:
    """Draw the map of the samples, coloured by one of their columns.

    Parameters
    ----------
    places
        Table of :func:`scmedley.interpret.sample_map`.
    color
        Column of the table, such as sex or diagnosis. More than six different numbers get a colour bar.
    ax
        Axes of final size to draw in; a new figure if not given.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ScmedleyError
        A column is missing or does not hold numbers.
    """
    from scmedley.pl._figure import axes_of, plain
    from scmedley.pl._labels import place_labels

    needed = ["sample", "x", "y", "share_x", "share_y"]
    table = table_of(places, "the map of samples", needed, ["x", "y"], finite=["x", "y"])
    values = None if color is None else _values(list(table["sample"]), table, color)
    side = 4.4 if len(table) <= 30 else 6.0
    figure, ax = axes_of(ax, (side + (1.4 if color else 0), side))
    colour_D4 = [PLAIN] * len(table) if values is None else paint(figure, ax, values, color)
    ax.scatter(table["x"], table["y"], c=colour_D4, s=30, linewidths=0, zorder=3)
    for axis, share, number in ((ax.xaxis, "share_x", 1), (ax.yaxis, "share_y", 2)):
        axis.set_label_text(
            f"coordinate {number} ({float(table[share].iloc[0]):.0%} of squared distances)", fontsize=8
        )
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_aspect("equal", adjustable="datalim")  # distances are to be compared in all directions
    ax.margins(0.12)
    left_out = place_labels(ax, table[["x", "y"]].to_numpy(), [plain(name, 16) for name in table["sample"]])
    if left_out:
        ax.set_title(f"no room for {left_out} of {len(table)} names", fontsize=8, loc="left")
    return figure


def _values(samples: list[str], columns: pd.DataFrame | None, color: str) -> pd.Series:
    """Return the value of each sample: numbers as floats if there are many, otherwise names."""
    if columns is None:
        raise ScmedleyError(
            "color is given without the table of columns of the samples. Pass both, or neither."
        )
    table = columns.set_index("sample") if "sample" in columns else columns
    if color not in table:
        raise ScmedleyError(
            f"The samples have no column {color!r}. They have {listed(list(map(str, table)), 20)}."
        )
    values = table[color].reindex(samples)
    many = pd.api.types.is_numeric_dtype(values) and values.nunique() > FEW
    return values.astype(float) if many else values.astype(object)
