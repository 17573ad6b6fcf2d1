"""Loss terms over epochs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from scmedley.errors import ScmedleyError
from scmedley.pl._inputs import table_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scmedley.models import MixedEffects

PARTS = {"train": ("#e08214", (0, (4, 1.5))), "validation": ("#2f86c9", "solid")}
COLUMNS = ["network", "epoch", "part", "term", "value"]


def training(
    history: pd.DataFrame, ax: Axes | None = None, *, weighted: MixedEffects | None = None
) -> Figure:
    """Draw every loss term of every network, train and validation, the best epoch marked.

    Parameters
    ----------
    history
        Tidy table with columns network, epoch, part ("train" or "validation"), term, value.
    ax
        Where to draw; then the history must hold one network and one term. A new figure if not given,
        with a row for each network and a column for each term.
    weighted
        The model of that history: its settings turn each term into what it adds to the total. Terms that
        add nothing, such as the adversary's own loss, are then left out.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ScmedleyError
        If a column is missing or holds no numbers, the table is empty, an axis is given for more than one curve, or the
        model has no network of that name.
    """
    from scmedley.pl._figure import NotebookFigure, figure_of, write

    history = table_of(history, "the history", COLUMNS, ["epoch", "value"], finite=["epoch"])
    if weighted is not None:
        history = _weighted(history, weighted)
    terms = {str(name): list(rows["term"].unique()) for name, rows in history.groupby("network", sort=False)}
    if ax is not None:
        if sum(map(len, terms.values())) > 1:
            raise ScmedleyError(
                "one axis shows one network and one term; choose them first, for example "
                'history.query(\'network == "fixed" and term == "total"\')'
            )
        curve(ax, history, best_epoch(history))
        return figure_of(ax)

    width = max(map(len, terms.values()))
    figure: Figure = NotebookFigure(figsize=(3.2 * width, 2.5 * len(terms)), layout="constrained")
    axes = figure.subplots(len(terms), width, squeeze=False)
    for row, (network, names) in zip(axes, terms.items(), strict=True):
        rows = history[history["network"] == network]
        best = best_epoch(rows)
        for panel in row[len(names) :]:
            panel.set_axis_off()
        for panel, term in zip(row, names, strict=False):
            curve(panel, rows[rows["term"] == term], best)
            added = ", weighted" if weighted is not None and term != "total" else ""
            write(panel.set_title, f"{network}: {term}{added}", fontsize=9)
    return figure


def _weighted(history: pd.DataFrame, model: MixedEffects) -> pd.DataFrame:
    """Give the history with each term's contribution to the total as its value."""
    from scmedley.models.contributions import contributions

    settings = {name: network.settings for name, network in model.networks().items()}
    others = sorted(set(map(str, history["network"])) - set(settings))
    if others:
        raise ScmedleyError(
            f"the model has no network {others[0]!r}, so its weights are not known; it has: {', '.join(settings)}. "
            f"Leave the others out: history[history['network'].isin({list(settings)})]"
        )
    values = contributions(history[COLUMNS], settings, "network")
    return values.assign(value=values["weighted"]).dropna(subset="value")


def best_epoch(history: pd.DataFrame) -> int | None:
    """Give the epoch with the lowest validation total of one network; None if it was not validated."""
    total = history[(history["part"] == "validation") & (history["term"] == "total")].dropna(subset="value")
    return None if total.empty else int(total["epoch"].iloc[int(total["value"].argmin())])


def curve(ax: Axes, rows: pd.DataFrame, best: int | None) -> None:
    """Draw one term of one network; ``best`` is marked with a dotted line."""
    from matplotlib.ticker import MaxNLocator

    for part, (colour, line) in PARTS.items():
        one = rows[rows["part"] == part].sort_values("epoch")
        if not one.empty:
            marker = "o" if len(one) == 1 else ""
            ax.plot(
                one["epoch"], one["value"], color=colour, linestyle=line, marker=marker, label=part, lw=1.5
            )
    if best is not None:
        ax.axvline(best, color="#8a8a8a", linestyle=":", lw=1.2, label=f"best epoch: {best}")
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
        Where to draw.
    rows
        Tidy history of that term: split, fold, seed, part, epoch and ``column``. The band is the range over the
        fits; an epoch that not all fits reached is averaged over those that did.
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
