"""Loss terms over epochs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from scmedley.errors import ScmedleyError
from scmedley.pl._inputs import table_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PARTS = {"train": ("#e08214", (0, (4, 1.5))), "validation": ("#2f86c9", "solid")}
COLUMNS = ["network", "epoch", "part", "term", "value"]


def training(history: pd.DataFrame, ax: Axes | None = None, *, weighted: bool = False) -> Figure:
    """Draw every loss term of every network for training and validation cells, and mark the kept epoch.

    Parameters
    ----------
    history
        Tidy table with columns network, epoch, part ("train" or "validation"), term, value; weight for
        ``weighted``; kept (of the epoch whose weights the network has) to mark that epoch.
    ax
        Axes to draw in; the history must then hold one network and one term. A new figure if not given,
        with one row per network and one column per term.
    weighted
        Draw weight * value, the contribution of a term to the total. Terms that are only recorded, such as
        the adversary's own loss, are then left out.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ScmedleyError
        If a column is missing or does not hold numbers, the table is empty, or ``ax`` is given for several
        curves.
    """
    from scmedley.pl._figure import NotebookFigure, figure_of, write

    more = ["weight"] if weighted else []
    numbers = ["epoch", "value", *more]
    history = table_of(history, "the history", COLUMNS + more, numbers, finite=["epoch", *more])
    if weighted:
        history = history[history["weight"] != 0].assign(value=lambda rows: rows["value"] * rows["weight"])
    terms = {str(name): list(rows["term"].unique()) for name, rows in history.groupby("network", sort=False)}
    if ax is not None:
        if sum(map(len, terms.values())) > 1:
            raise ScmedleyError(
                "One axis shows one network and one term. Choose them first, for example with "
                'history.query(\'network == "fixed" and term == "total"\')'
            )
        curve(ax, history, kept_epoch(history))
        return figure_of(ax)

    width = max(map(len, terms.values()))
    figure: Figure = NotebookFigure(figsize=(3.2 * width, 2.5 * len(terms)), layout="constrained")
    axes = figure.subplots(len(terms), width, squeeze=False)
    for row, (network, names) in zip(axes, terms.items(), strict=True):
        rows = history[history["network"] == network]
        best = kept_epoch(rows)
        for panel in row[len(names) :]:
            panel.set_axis_off()
        for panel, term in zip(row, names, strict=False):
            curve(panel, rows[rows["term"] == term], best)
            added = ", weighted" if weighted and term != "total" else ""
            write(panel.set_title, f"{network}: {term}{added}", fontsize=9)
    return figure


def kept_epoch(history: pd.DataFrame) -> int | None:
    """Return the epoch of one network that the fit kept; None if the table does not tell."""
    kept = history.loc[history["kept"].eq(True), "epoch"] if "kept" in history else history["epoch"][:0]
    return None if kept.empty else int(kept.iloc[0])


def curve(ax: Axes, rows: pd.DataFrame, best: int | None) -> None:
    """Draw one term of one network, with a dotted line at the epoch ``best``."""
    from matplotlib.ticker import MaxNLocator

    for part, (colour, line) in PARTS.items():
        one = rows[rows["part"] == part].sort_values("epoch")
        if not one.empty:
            marker = "o" if len(one) == 1 else ""
            ax.plot(
                one["epoch"], one["value"], color=colour, linestyle=line, marker=marker, label=part, lw=1.5
            )
    if best is not None:
        ax.axvline(best, color="#8a8a8a", linestyle=":", lw=1.2, label=f"kept epoch: {best}")
    ax.set_xlabel("epoch", fontsize=8)
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    ax.legend(fontsize=8, frameon=False)


def averaged(ax: Axes, rows: pd.DataFrame, column: str = "weighted") -> None:
    """Draw one term of one method, train and validation, averaged over folds and seeds.

    Parameters
    ----------
    ax
        Axes to draw in.
    rows
        Tidy history of that term: split, fold, seed, part, epoch and ``column``. The band is the range over
        the fits; an epoch is averaged over the fits that reached it.
    """
    from matplotlib.ticker import MaxNLocator

    for part, (colour, line) in PARTS.items():
        one = rows[rows["part"] == part].groupby("epoch")[column]
        if len(one):
            mean, low, high = one.mean(), one.min(), one.max()
            ax.plot(mean.index, mean, color=colour, linestyle=line, label=part, lw=1.5)
            ax.fill_between(mean.index, low, high, color=colour, alpha=0.18, lw=0)
    ax.set_xlabel("epoch", fontsize=8)
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    ax.legend(fontsize=8, frameon=False)
