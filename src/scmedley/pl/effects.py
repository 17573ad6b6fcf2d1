"""Plots of the effects of a condition: volcano, dots and heat map of genes over labels, and shares of labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmedley.data.gene_names import shown_in
from scmedley.errors import ScmedleyError, listed
from scmedley.pl._inputs import table_of
from scmedley.pl._palette import MISSING, colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UP, DOWN = "#d55e00", "#0079bf"
SCALE = "RdBu_r"  # of effects: blue below 0, red above
LARGEST = 3.0  # effects beyond this many times the middle one do not stretch the scale
SHOWN_Q = 1e-6  # smaller q-values have dots of the same size
COLUMNS = ["label", "contrast", "gene", "effect", "p", "q"]
NUMBERS = ["effect", "p", "q"]


def volcano(
    table: pd.DataFrame,
    label: str | None = None,
    contrast: str | None = None,
    *,
    fdr: float = 0.05,
    n_names: int = 12,
    ax: Axes | None = None,
) -> Figure:
    """Draw effects against p-values, with the names of the first genes.

    Parameters
    ----------
    table
        Of :func:`scmedley.interpret.condition_effects`.
    label, contrast
        Which rows; may be left out if there is one.
    fdr
        False discovery rate up to which a gene is coloured.
    n_names
        Number of genes with a name: the smallest p first, half of them with a negative effect if there are as many.
    ax
        Axes to draw in; a new figure if not given.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ScmedleyError
        An empty table, a label or contrast that is not there, or no gene with a test.
    """
    from scmedley.pl._figure import axes_of, write
    from scmedley.pl._labels import place_labels

    rows = _chosen(table, contrast, label, of_one_label=True)
    rows = rows[rows["p"].notna()]
    if rows.empty:
        raise ScmedleyError("No gene of these rows has a p-value; the column 'reason' says why.")
    figure, ax = axes_of(ax, (5.2, 4.4))
    effect, height = rows["effect"].to_numpy(), -np.log10(np.maximum(rows["p"].to_numpy(), 1e-300))
    called = (rows["q"] <= fdr).to_numpy()
    for chosen, colour, size in (
        (~called, MISSING, 7),
        (called & (effect > 0), UP, 16),
        (called & (effect < 0), DOWN, 16),
    ):
        ax.scatter(effect[chosen], height[chosen], s=size, c=colour, linewidths=0, alpha=0.8, rasterized=True)
    ax.axvline(0, color="#8888", lw=0.8, zorder=0)
    if called.any():
        ax.axhline(height[called].min(), color="#8888", lw=0.8, ls="--", zorder=0)
    reach = 1.15 * np.abs(effect).max() + 1e-9
    ax.set_xlim(-reach, reach)
    ax.set_ylim(0, 1.12 * height.max() + 0.1)
    ax.set_xlabel(f"effect ({_unit(rows)})", fontsize=8, parse_math=False)
    ax.set_ylabel("p-value, −log10", fontsize=8)
    write(ax.set_title, f"{rows['label'].iloc[0]}: {rows['contrast'].iloc[0]}", fontsize=9, loc="left")
    _plain_axes(ax)
    order = np.argsort(-height, kind="stable")
    downs, ups = order[effect[order] < 0][: n_names // 2], order[effect[order] >= 0]
    first = np.concatenate([downs, ups[: n_names - len(downs)]]).astype(int)
    place_labels(ax, np.column_stack([effect, height])[first], rows["gene"].astype(str).to_numpy()[first])
    return figure


def effect_dots(
    table: pd.DataFrame,
    genes: Sequence[str] | None = None,
    contrast: str | None = None,
    *,
    n_genes: int = 5,
    fdr: float = 0.05,
    ax: Axes | None = None,
) -> Figure:
    """Draw genes (columns) over labels (rows): colour is the effect, size the q-value; a ring marks q up to ``fdr``.

    Parameters
    ----------
    table
        Of :func:`scmedley.interpret.condition_effects`.
    genes
        Genes to draw; by default the first ``n_genes`` of each label.
    contrast
        Which contrast; may be left out if there is one.
    fdr
        False discovery rate up to which a dot has a ring.
    ax
        Axes to draw in; a new figure if not given.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ScmedleyError
        An empty table, or a gene or contrast that is not there.
    """
    from scmedley.pl._figure import axes_of

    rows = _chosen(table, contrast)
    genes = first_genes(rows, n_genes) if genes is None else list(genes)
    effect_KG, q_KG = _wide(rows, "effect", genes), _wide(rows, "q", genes)
    n_labels = len(effect_KG)
    figure, ax = axes_of(ax, (2.6 + 0.24 * len(genes), 1.5 + 0.27 * n_labels))
    y, x = np.indices(effect_KG.shape)
    known = effect_KG.notna().to_numpy()
    q = q_KG.to_numpy()
    size = 8 + 92 * -np.log10(np.clip(np.nan_to_num(q, nan=1.0), SHOWN_Q, 1)) / -np.log10(SHOWN_Q)
    limit = _limit(effect_KG)
    rings = np.where(np.nan_to_num(q, nan=1.0) <= fdr, 0.9, 0.0)[known]
    style: Any = {"cmap": SCALE, "vmin": -limit, "vmax": limit, "edgecolors": "#444", "linewidths": rings}
    points = ax.scatter(x[known], y[known], s=size[known], c=effect_KG.to_numpy()[known], **style)
    ax.scatter(x[~known], y[~known], s=10, c=MISSING, marker="x", linewidths=0.6)
    _bar(figure, ax, points, rows, effect_KG)
    sizes = [(value, 8 + 92 * -np.log10(value) / -np.log10(SHOWN_Q)) for value in (0.05, 1e-3, 1e-6)]
    handles = [ax.scatter([], [], s=s, c="#9ab", label=f"{value:g}") for value, s in sizes]
    ax.legend(
        handles=handles,
        title=f"q (ring: up to {fdr:g})",
        ncols=3,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        frameon=False,
        fontsize=7,
        title_fontsize=7,
    )
    _names(ax, effect_KG)
    ax.set_xlim(-0.7, len(genes) - 0.3)
    ax.set_ylim(n_labels - 0.4, -0.6)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def effect_heatmap(
    table: pd.DataFrame,
    contrast: str | None = None,
    *,
    n_genes: int = 40,
    fdr: float = 0.05,
    ax: Axes | None = None,
) -> Figure:
    """Draw the effects on the first genes (rows) in all labels (columns); similar genes are neighbours.

    Parameters
    ----------
    table
        Of :func:`scmedley.interpret.condition_effects`.
    contrast
        Which contrast; may be left out if there is one.
    n_genes
        Number of genes: the smallest p in any label first.
    fdr
        False discovery rate up to which an effect has a dot.
    ax
        Axes to draw in; a new figure if not given.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ScmedleyError
        An empty table, or a contrast that is not there.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage

    from scmedley.pl._figure import axes_of, plain

    rows = _chosen(table, contrast)
    best = rows.groupby("gene", sort=False)["p"].min().sort_values(kind="stable").dropna()
    genes = list(best.index[:n_genes]) or list(dict.fromkeys(rows["gene"]))[:n_genes]
    effect_KG = _wide(rows, "effect", genes)
    if len(genes) > 2:
        order = leaves_list(linkage(effect_KG.fillna(0).to_numpy().T, "average", optimal_ordering=True))
        effect_KG = effect_KG.iloc[:, order]
    q_GK = _wide(rows, "q", list(effect_KG.columns)).T.to_numpy()
    effect_GK = effect_KG.T
    figure, ax = axes_of(ax, (2.6 + 0.42 * len(effect_KG), 1.2 + 0.17 * len(genes)))
    limit = _limit(effect_KG)
    drawn = ax.imshow(
        np.ma.masked_invalid(effect_GK.to_numpy()), cmap=SCALE, vmin=-limit, vmax=limit, aspect="auto"
    )
    ax.set_facecolor("#8884")  # where there is no effect
    y, x = np.nonzero(np.nan_to_num(q_GK, nan=1.0) <= fdr)
    dark = np.abs(effect_GK.to_numpy()[y, x]) > 0.6 * limit
    ax.scatter(x, y, s=5, c=np.where(dark, "#fff", "#222"), linewidths=0)
    _bar(figure, ax, drawn, rows, effect_KG)
    texts: Any = {"parse_math": False}
    names = [plain(name, 22) for name in effect_GK.columns]
    ax.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", **texts)
    ax.set_yticks(range(len(genes)), [plain(name, 16) for name in effect_GK.index], style="italic", **texts)
    ax.tick_params(labelsize=7, length=0)
    ax.set_title(f"dot: q up to {fdr:g}", fontsize=7, loc="left")
    ax.spines[:].set_visible(False)
    return figure


def composition(table: pd.DataFrame, *, ax: Axes | None = None) -> Figure:
    """Draw the share of each label in each sample, and the mean of each level of the condition.

    Parameters
    ----------
    table
        Of :func:`scmedley.interpret.composition`, with its ``attrs``.
    ax
        Axes to draw in; a new figure if not given.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ScmedleyError
        The table has lost its ``attrs``.
    """
    from scmedley.pl._figure import axes_of, plain

    records = table.attrs.get("shares")
    if not records:
        raise ScmedleyError(
            "The table has no shares in attrs['shares']: pass the result of composition() as it was returned."
        )
    shares = pd.DataFrame(records)
    names = list(dict.fromkeys(table["label"]))
    levels = list(dict.fromkeys(shares["condition"].sort_values()))
    continuous = shares["condition"].map(lambda value: isinstance(value, float)).all()
    figure, ax = axes_of(ax, (5.6, 1.2 + 0.34 * len(names)))
    rng = np.random.default_rng(0)
    groups = [(None, MISSING)] if continuous else list(zip(levels, colours(len(levels)), strict=True))
    for i, (level, colour) in enumerate(groups):
        mine = shares if level is None else shares[shares["condition"] == level]
        offset = 0.0 if len(groups) == 1 else 0.5 * (i / (len(groups) - 1) - 0.5)
        y = mine["label"].map({name: k for k, name in enumerate(names)}).to_numpy() + offset
        ax.scatter(
            100 * mine["share"],
            y + rng.uniform(-0.05, 0.05, len(mine)),
            s=14,
            c=colour,
            alpha=0.75,
            linewidths=0,
            label=None if level is None else plain(level, 20),
        )
        mean = mine.groupby("label")["share"].mean().reindex(names)
        ax.scatter(100 * mean, np.arange(len(names)) + offset, s=160, c=colour, marker="|", linewidths=2)
    ax.set_yticks(range(len(names)), [plain(name, 26) for name in names], parse_math=False)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlim(left=0)
    ax.set_xlabel("% of the cells of a sample", fontsize=8)
    if not continuous:
        place: Any = {
            "loc": "lower right",
            "bbox_to_anchor": (1, 1),
            "ncols": 4,
            "frameon": False,
            "fontsize": 7,
        }
        for text in ax.legend(**place).get_texts():
            text.set_parse_math(False)
    _plain_axes(ax)
    ax.grid(axis="y", color="#8883", lw=0.6)
    ax.set_axisbelow(True)
    return figure


def first_genes(rows: pd.DataFrame, n_genes: int) -> list[str]:
    """Return the first genes of each label, each once; without a test, those with the largest effects."""
    found: dict[str, None] = {}
    for _, own in rows.groupby("label", sort=False):
        tested = own[own["p"].notna()].sort_values("p", kind="stable")
        found.update(dict.fromkeys(tested["gene"].head(n_genes)))
    if not found:
        largest = rows.reindex(rows["effect"].abs().sort_values(ascending=False, kind="stable").index)
        found = dict.fromkeys(largest["gene"].head(n_genes))
    return [str(gene) for gene in found]


def _chosen(
    table: pd.DataFrame, contrast: str | None, label: str | None = None, *, of_one_label: bool = False
) -> pd.DataFrame:
    """Return the rows of a contrast, and of a label if it matters."""
    rows = shown_in(table_of(table, "the table of effects", COLUMNS, NUMBERS))
    for column, value in (("contrast", contrast), ("label", label)):
        there = list(dict.fromkeys(rows[column].astype(str)))
        if value is None and len(there) > 1 and (column == "contrast" or of_one_label):
            raise ScmedleyError(
                f"The table has several values of {column!r}: name one of {listed(there, 8)}."
            )
        if value is not None and value not in there:
            raise ScmedleyError(f"The table has no {column} {value!r}. It has {listed(there, 8)}.")
        if value is not None:
            rows = rows[rows[column].astype(str) == value]
    return rows


def _wide(rows: pd.DataFrame, column: str, genes: Sequence[str]) -> pd.DataFrame:
    """Return labels x genes."""
    if missing := [gene for gene in genes if gene not in set(rows["gene"])]:
        raise ScmedleyError(f"The table has no gene {listed(missing)}.")
    own = rows[rows["gene"].isin(genes)].drop_duplicates(["label", "gene"])  # names may be repeated
    wide = own.pivot(index="label", columns="gene", values=column)
    return wide.loc[list(dict.fromkeys(own["label"])), list(genes)]


def _limit(effect_KG: pd.DataFrame) -> float:
    """Return the end of the colour scale: the largest effect, unless a few are much larger than the others."""
    size = np.abs(effect_KG.to_numpy()[effect_KG.notna().to_numpy()])
    if not len(size):
        return 1.0
    return float(max(min(size.max(), LARGEST * max(np.median(size), size.max() / 10)), 1e-3))


def _unit(rows: pd.DataFrame) -> str:
    return (
        "log2 change per unit" if str(rows["contrast"].iloc[0]).endswith(", per unit") else "log2 fold change"
    )


def _plain_axes(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)


def _bar(figure: Figure, ax: Axes, drawn: Any, rows: pd.DataFrame, effect_KG: pd.DataFrame) -> None:
    beyond = effect_KG.abs().max().max() > _limit(effect_KG)  # drawn like the end of the scale
    bar = figure.colorbar(drawn, ax=ax, shrink=0.7, aspect=14, extend="both" if beyond else "neither")
    bar.set_label(_unit(rows), fontsize=7)
    bar.ax.tick_params(labelsize=7)


def _names(ax: Axes, wide: pd.DataFrame) -> None:
    from scmedley.pl._figure import plain

    texts: Any = {"parse_math": False}
    genes = [plain(name, 16) for name in wide.columns]
    ax.set_xticks(range(len(genes)), genes, rotation=90, style="italic", **texts)
    ax.set_yticks(range(len(wide)), [plain(name, 24) for name in wide.index], **texts)
    ax.tick_params(labelsize=8, length=2)
