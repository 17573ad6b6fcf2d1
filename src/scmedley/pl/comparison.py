"""Comparison of methods over folds: means with intervals, nulls and published values."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def comparison(ax: Axes, rows: pd.DataFrame, methods: list[str]) -> None:
    """Draw one score of each method, the first at the top.

    Parameters
    ----------
    ax
        Axes to draw in.
    rows
        One row per method: ``method``, ``value`` with ``value_low`` and ``value_high`` (95 % over folds),
        ``null`` and ``published`` (NaN if there is none).
    methods
        Methods to show, in this order; the place of a method without a row stays empty.
    """
    from matplotlib.ticker import MaxNLocator

    from scmedley.pl._figure import plain

    by_method = {str(row["method"]): row for row in rows.to_dict("records")}
    for place, name in enumerate(methods):
        row = by_method.get(name)
        if row is None:
            continue
        if not math.isnan(row["null"]):
            ax.plot(row["null"], place, "|", color="#8a8a8a", ms=13, mew=3, alpha=0.7)
        if not math.isnan(row["value_low"]):
            ax.plot([row["value_low"], row["value_high"]], [place, place], color="#2f86c9", lw=2)
        ax.plot(row["value"], place, "o", color="#2f86c9", ms=6, zorder=3)
        if not math.isnan(row["published"]):
            ax.plot(row["published"], place, "D", mfc="none", mec="#e08214", ms=6, zorder=2)
    ax.set_ylim(len(methods) - 0.5, -0.5)
    ax.set_yticks(range(len(methods)), [plain(name) for name in methods], parse_math=False)
    ax.margins(x=0.12)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.tick_params(labelsize=8, length=2)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", alpha=0.25)


def confounding(ax: Axes, donors: pd.DataFrame) -> None:
    """Draw how many donors have cells of each label, by group.

    Parameters
    ----------
    ax
        Axes to draw in.
    donors
        Labels x groups: numbers of donors. A label in few donors of a group is weak evidence about the group.
    """
    from scmedley.pl._figure import plain

    values = donors.to_numpy()
    ax.imshow(values, cmap="Blues", vmin=0, vmax=max(1, values.max()) * 1.3, aspect="auto")
    for i, row in enumerate(values):
        for j, n in enumerate(row):
            dark = n > 0.75 * values.max()
            ax.text(j, i, str(n), ha="center", va="center", fontsize=8, color="white" if dark else "#222")
    for axis, names in ((ax.xaxis, donors.columns), (ax.yaxis, donors.index)):
        axis.set_ticks(range(len(names)), [plain(name, 22) for name in names], parse_math=False)
    ax.tick_params(labelsize=8, length=0)
    ax.spines[:].set_visible(False)
