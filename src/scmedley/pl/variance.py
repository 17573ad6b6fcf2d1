"""Figures of shares of variance: each term over all genes, and the genes that each term explains most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmedley.errors import ScmedleyError, listed
from scmedley.pl._inputs import is_whole, table_of
from scmedley.pl._palette import colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RESIDUAL, REST = "residual", "#cfcfcf"


def variance_split(shares: pd.DataFrame, *, ax: Axes | None = None) -> Figure:
    """Draw the distribution over genes of each term's share of variance.

    The violin is as wide as genes are many; the box holds the middle half of the genes, the line is the median. The
    gene with the largest share is named. Terms are in order of their mean share; the residual is last.

    Parameters
    ----------
    shares
        Table of :func:`scmedley.interpret.variance_split`.
    ax
        Axes to draw in; a new figure if not given.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ScmedleyError
        The table has no terms or no genes, or a value is not a number.
    """
    from scmedley.pl._figure import axes_of, plain

    known, names = _known(shares)
    terms = _ordered(known)
    figure, ax = axes_of(ax, (1.4 + 1.05 * len(terms), 3.6))
    for x, (term, colour) in enumerate(zip(terms, _colours(terms), strict=True)):
        share_G = known[term].to_numpy()
        if np.ptp(share_G) > 1e-9:  # a violin of equal values has no width
            parts: Any = ax.violinplot(share_G, [x], widths=0.85, showextrema=False, points=200)
            parts["bodies"][0].set(facecolor=colour, edgecolor=colour, alpha=0.55)
        ax.boxplot(
            share_G,
            positions=[x],
            widths=0.14,
            patch_artist=True,
            showfliers=False,
            boxprops={"facecolor": "white", "edgecolor": "#444", "linewidth": 0.8},
            medianprops={"color": "#222", "linewidth": 1.6},
            whiskerprops={"color": "#444", "linewidth": 0.8},
            capprops={"linewidth": 0},
        )
        top = int(share_G.argmax())
        if term != RESIDUAL:
            how: Any = {"textcoords": "offset points", "ha": "center", "va": "bottom", "parse_math": False}
            ax.annotate(plain(names[top], 14), (x, share_G[top]), (0, 2), fontsize=7, **how)
    ax.set_xticks(range(len(terms)), [_wrapped(term) for term in terms], parse_math=False, fontsize=8)
    ax.set_ylim(-0.02, 1.06)
    ax.set_yticks(np.linspace(0, 1, 6), [f"{share:.0%}" for share in np.linspace(0, 1, 6)], fontsize=8)
    ax.set_ylabel("share of variance", fontsize=8)
    ax.set_title(f"{len(known):,} genes", fontsize=8, loc="left")
    ax.tick_params(axis="x", length=0)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def variance_genes(
    shares: pd.DataFrame, terms: Sequence[str] | None = None, *, n_top: int = 5, ax: Axes | None = None
) -> Figure:
    """Draw the genes that each term explains most as stacked bars.

    Parameters
    ----------
    shares
        Table of :func:`scmedley.interpret.variance_split`.
    terms
        Terms whose genes are shown; default: all but the residual. A gene is shown once, for the first of its terms.
    n_top
        Genes of each term.
    ax
        Axes to draw in; a new figure if not given.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ScmedleyError
        A term is not in the table, ``n_top`` is below 1, or a value is not a number.
    """
    from scmedley.pl._figure import axes_of, plain

    known, names = _known(shares)
    if not (is_whole(n_top) and n_top >= 1):
        raise ScmedleyError(f"n_top is {n_top!r}; it must be an integer, 1 or more.")
    order = _ordered(known)
    chosen = [term for term in order if term != RESIDUAL] if terms is None else list(terms)
    if unknown := [term for term in chosen if term not in known]:
        raise ScmedleyError(f"The table has no term {listed(unknown)}. It has {listed(order, 20)}.")
    rows: list[tuple[str, int]] = []
    for term in chosen:
        free = [
            g for g in np.argsort(-known[term].to_numpy(), kind="stable") if g not in {g for _, g in rows}
        ]
        rows += [(term, int(g)) for g in free[:n_top]]
    place = [i + 0.7 * chosen.index(term) for i, (term, _) in enumerate(rows)]
    figure, ax = axes_of(ax, (6.2, 0.9 + 0.19 * (place[-1] + 1)))
    left = np.zeros(len(rows))
    for term, colour in zip(order, _colours(order), strict=True):
        width = known[term].to_numpy()[[g for _, g in rows]]
        ax.barh(place, width, 0.82, left=left, color=colour, label=plain(term, 24), linewidth=0)
        left += width
    ax.set_yticks(place, [plain(names[g], 18) for _, g in rows], parse_math=False, fontsize=8)
    for term in chosen:
        mine = [y for y, (other, _) in zip(place, rows, strict=True) if other == term]
        ax.text(1.015, float(np.mean(mine)), _wrapped(term), fontsize=8, va="center", parse_math=False)
    ax.set_ylim(place[-1] + 0.7, -0.7)
    ax.set_xlim(0, 1)
    ax.set_xticks(np.linspace(0, 1, 6), [f"{share:.0%}" for share in np.linspace(0, 1, 6)], fontsize=8)
    ax.set_xlabel("share of variance; at the right, the term whose top genes these are", fontsize=8)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    legend = ax.legend(
        fontsize=8,
        frameon=False,
        ncols=3,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderpad=0.2,
        handlelength=1,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _known(shares: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return the shares of genes that have them, and the genes' names."""
    terms = [str(term) for term in getattr(shares, "columns", [])]
    known = table_of(shares, "the table of shares", [RESIDUAL], terms).dropna()
    if known.empty or len(terms) < 2:
        raise ScmedleyError(
            "The table of shares has no gene with shares, or no term but the residual. Pass the result of "
            "scmedley.interpret.variance_split."
        )
    return known, [str(name) for name in known.index]


def _ordered(known: pd.DataFrame) -> list[str]:
    """Return the terms by their mean share, the largest first, and the residual last."""
    return [*known.drop(columns=RESIDUAL).mean().sort_values(ascending=False, kind="stable").index, RESIDUAL]


def _colours(terms: list[str]) -> list[str]:
    return [*colours(len(terms) - 1), REST]


def _wrapped(term: str) -> str:
    """Return a term's name with a line break after its separators, if it is long."""
    from scmedley.pl._figure import plain

    name = plain(term, 40)
    return name if len(name) <= 12 else name.replace("/", "/\n").replace(":", ":\n").replace(" | ", " |\n")
