"""Scores with their nulls."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from scmedley import keys
from scmedley.pl._inputs import table_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ["embedding", "score", "of", "value", "null", "null_sd"]
Z = 1.96  # half-width of a 95 % interval, in standard errors


def scores(df: pd.DataFrame) -> Figure:
    """Draw every score of every embedding with its null.

    Parameters
    ----------
    df
        Tidy table with columns embedding (``obsm`` key), score, of ("batch" or "label"),
        value, null, null_sd (NaN if there is no null) and, optionally, se (standard error of
        the value, NaN if there is none).

    Returns
    -------
    matplotlib.figure.Figure
        One row for batch and one for label, one column per score. A dot is the value, with its 95 %
        interval if it has a standard error. A grey bar is the null ± 2 standard deviations.

    Raises
    ------
    ScmedleyError
        If a column is missing or does not hold numbers, or the table is empty.
    """
    from scmedley.pl._figure import NotebookFigure, write

    numbers = [*COLUMNS[3:], *(name for name in ["se"] if name in df)]
    df = table_of(df, "the table of scores", COLUMNS, numbers)
    names = {str(of): list(rows["score"].unique()) for of, rows in df.groupby("of", sort=False)}
    width = max(map(len, names.values()))
    height = 0.9 + 0.32 * df["embedding"].nunique()
    figure: Figure = NotebookFigure(
        figsize=(2.4 * width + 1.6, height * len(names) + 0.2), layout="constrained"
    )
    axes = figure.subplots(len(names), width, squeeze=False)
    for row, (of, own) in zip(axes, names.items(), strict=True):
        for ax in row[len(own) :]:
            ax.set_axis_off()
        for ax, name in zip(row, own, strict=False):
            rows = df[(df["of"] == of) & (df["score"] == name)]
            panel(ax, rows, list(df["embedding"].unique()), keys.title if ax is row[0] else None)
            write(ax.set_title, f"{name} by {of}", fontsize=9)
    figure.supxlabel(
        "dot: value; line: its 95 % interval, if known; grey: null ± 2 standard deviations",
        fontsize=8,
    )
    return figure


def panel(ax: Axes, rows: pd.DataFrame, embeddings: list[str], name: Callable[[str], str] | None) -> None:
    """Draw one score of each embedding, the first at the top, with names from ``name`` if given."""
    from matplotlib.ticker import MaxNLocator

    from scmedley.pl._figure import plain

    for place, key in enumerate(embeddings):
        here = rows[rows["embedding"] == key].reindex(columns=["value", "null", "null_sd", "se"])
        for value, null, sd, se in here.to_numpy(dtype=float):
            if not math.isnan(null):
                spread = 0.0 if math.isnan(sd) else 2 * sd
                ax.errorbar(
                    null,
                    place,
                    xerr=spread,
                    fmt="|",
                    color="#8a8a8a",
                    ms=9,
                    mew=2,
                    elinewidth=5,
                    alpha=0.6,
                )
            if not math.isnan(se):
                ax.plot([value - Z * se, value + Z * se], [place, place], color="#2f86c9", lw=2, zorder=3)
            ax.plot(value, place, "o", color="#2f86c9", ms=6, zorder=3)
    ax.set_ylim(len(embeddings) - 0.5, -0.5)
    ax.set_yticks(range(len(embeddings)), [])
    if name is not None:
        ax.set_yticks(range(len(embeddings)), [plain(name(key)) for key in embeddings], parse_math=False)
    ax.margins(x=0.15)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.tick_params(labelsize=8, length=2)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", alpha=0.25)
