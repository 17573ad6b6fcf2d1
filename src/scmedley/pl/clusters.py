"""Figures of clusters: the tree of merges, cells by batch or label, marker genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmedley import keys
from scmedley.data.design import column
from scmedley.errors import ScmedleyError
from scmedley.pl._inputs import table_of
from scmedley.pl._palette import colours

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scmedley.clusters import Clusters

STANDS, MERGED = "#2f86c9", "#8a8a8a"
NODES = ("first", "second", "clusters left", "dip")
NUMBERED = 40  # most clusters whose splits get their number written


def cluster_tree(
    clusters: Clusters | pd.DataFrame, names: Mapping[str, str] | None = None, *, ax: Axes | None = None
) -> Figure:
    """Draw the tree of merges of clusters, and where it is cut.

    Read from right to left: at the right are the groups before the first merge, at the left is all in one. Each
    join is at the number of clusters that are left after it. A filled dot is a split that stands by the evidence,
    with its dip; an open dot is one that does not. The dashed line is the cut: its clusters are in colour.

    Parameters
    ----------
    clusters
        Clusters, or the table of :func:`scmedley.interpret.tree_table` (``cluster_tree.csv`` of a run).
    names
        Names of clusters, such as those of :func:`scmedley.interpret.cluster_names`; default: their numbers.
    ax
        Axes to draw in; a new figure if not given.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ScmedleyError
        A tree without merges, or a table that lacks a column.
    """
    from scmedley.interpret.clusters import tree_table
    from scmedley.pl._figure import axes_of

    tree = clusters if isinstance(clusters, pd.DataFrame) else tree_table(clusters)
    tree = table_of(
        tree, "the tree of merges", (*NODES, "stands", "cluster first", "cluster second"), NODES[:3]
    )
    n_leaves = len(tree) + 1
    height = min(0.9 + max(0.09 * n_leaves, 0.25 * _leaves(tree)["cluster"].nunique()), 14.0)
    figure, ax = axes_of(ax, (6.4, height))
    draw_tree(ax, tree, names or {})
    return figure


def draw_tree(ax: Axes, tree: pd.DataFrame, names: Mapping[str, str], *, sizes: bool = True) -> None:
    """Draw the tree of :func:`scmedley.interpret.tree_table` in these axes; ``sizes``: with numbers of cells."""
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

    from scmedley.pl._figure import plain

    leaves = _leaves(tree)
    order = sorted(leaves["cluster"].unique(), key=lambda name: (len(name), name))
    colour = dict(zip(order, colours(len(order)), strict=True))
    n_leaves, k = len(leaves), len(order)
    place = {node: (float(n_leaves), float(y)) for y, node in enumerate(leaves.index)}  # of each node
    inside: dict[int, str] = dict(leaves["cluster"])
    for i, row in enumerate(tree.to_dict("records")):
        ends = [place[int(row[side])] for side in ("first", "second")]
        both = [inside[int(row[side])] for side in ("first", "second")]
        x, y = float(row["clusters left"]), (ends[0][1] + ends[1][1]) / 2
        node = n_leaves + i
        place[node], inside[node] = (x, y), both[0] if both[0] == both[1] else ""
        for (end_x, end_y), cluster in zip(ends, both, strict=True):
            ax.plot([x, x, end_x], [y, end_y, end_y], color=colour.get(cluster, MERGED), lw=1.2, zorder=1)
        stands = bool(row["stands"])
        face, edge = (STANDS, STANDS) if stands else ("white", MERGED)
        ax.plot(x, y, "o", ms=5.5 if x < k else 3, mfc=face, mec=edge, mew=0.9, zorder=3)
        if x < k <= NUMBERED and np.isfinite(row["dip"]):
            where: Any = {"textcoords": "offset points", "ha": "right", "va": "bottom"}
            ax.annotate(f"{row['dip']:.2f}", (x, y), (-4, 3), fontsize=7, **where)
    for label, face, edge in (("split stands", STANDS, STANDS), ("no gap", "white", MERGED)):
        ax.plot([], [], "o", ms=5, mfc=face, mec=edge, label=label)
    ax.legend(fontsize=7, frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), borderpad=0)
    for cluster in order:
        mine = np.flatnonzero(leaves["cluster"] == cluster)
        ax.plot([n_leaves * 1.03] * 2, [mine.min() - 0.3, mine.max() + 0.3], color=colour[cluster], lw=4)
        text = plain(names.get(cluster, cluster), 28)
        if sizes:  # of the cells that the clusters were found in
            text += f"  ({int(leaves['cells'].iloc[mine].sum()):,})"
        ax.text(n_leaves * 1.07, mine.mean(), text, fontsize=8, va="center", parse_math=False)
    if k > 1:
        ax.axvline(np.sqrt(k * (k - 1)), color="#b03030", lw=1, ls="--", zorder=0)
    ax.set_xscale("log")
    ticks = [n for n in (1, 2, 3, 5, 10, 20, 50, 100) if n <= n_leaves]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xticks(ticks, [str(n) for n in ticks])
    ax.set_xlim(0.75, n_leaves * 1.05)
    ax.set_ylim(n_leaves - 0.3, -0.9)
    ax.set_yticks([])
    ax.set_xlabel("clusters left after the merge", fontsize=8)
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right", "left"]].set_visible(False)


def _leaves(tree: pd.DataFrame) -> pd.DataFrame:
    """Return cluster and number of cells of the groups before the first merge, so that no two lines cross."""
    n_leaves = len(tree) + 1
    about: dict[int, tuple[str, float]] = {}
    below: dict[int, list[int]] = {node: [node] for node in range(n_leaves)}
    for i, row in enumerate(tree.to_dict("records")):
        parts = []
        for side in ("first", "second"):
            node = int(row[side])
            about[node] = str(row[f"cluster {side}"]), float(row[f"cells {side}"])
            parts.append((about[node][1], below.pop(node)))
        below[n_leaves + i] = [leaf for _, part in sorted(parts, key=lambda p: -p[0]) for leaf in part]
    (order,) = below.values()
    return pd.DataFrame([about[leaf] for leaf in order], index=order, columns=["cluster", "cells"])


def cluster_shares(
    adata: AnnData, key: str, cluster_key: str = keys.CLUSTER, *, ax: Axes | None = None
) -> Figure:
    """Draw of each batch (or label) the share of its cells in each cluster; a column adds up to 100 %.

    Parameters
    ----------
    adata
        Cells with clusters.
    key
        ``obs`` column of the batches or of the labels.
    cluster_key
        ``obs`` column of the clusters.
    ax
        Axes to draw in; a new figure if not given.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ScmedleyError
        A missing column.
    """
    from scmedley.interpret.clusters import cluster_table
    from scmedley.pl._figure import axes_of, plain

    table = cluster_table(
        column(adata, cluster_key, "cluster"), column(adata, key, "batch or label"), "group"
    )
    if table.empty:
        raise ScmedleyError(
            f"No cell has both a cluster and a value of {key!r}, so there is nothing to draw."
        )
    clusters, groups = list(dict.fromkeys(table["cluster"])), list(dict.fromkeys(table["group"]))
    share_KB = table["share_of_group"].to_numpy(dtype=float).reshape(len(clusters), len(groups))
    size = (1.6 + 0.55 * len(groups), 1.3 + 0.26 * len(clusters))
    figure, ax = axes_of(ax, size)
    ax.imshow(share_KB, cmap="Blues", vmin=0, vmax=1.15, aspect="auto")
    for (i, j), share in np.ndenumerate(share_KB):
        text = "0" if share == 0 else "<1" if share < 0.01 else f"{100 * share:.0f}"
        ax.text(j, i, text, ha="center", va="center", fontsize=7, color="white" if share > 0.6 else "#222")
    texts: Any = {"parse_math": False}
    longest = max(len(plain(name, 18)) for name in groups)
    turned: Any = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if longest > 6 else {}
    ax.set_xticks(range(len(groups)), [plain(name, 18) for name in groups], **texts, **turned)
    ax.set_yticks(range(len(clusters)), [plain(name, 24) for name in clusters], **texts)
    ax.tick_params(labelsize=8, length=0)
    ax.set_ylabel("cluster", fontsize=8)
    ax.set_title(f"% of {plain(key)}", fontsize=8, loc="left", **texts)
    ax.spines[:].set_visible(False)
    return figure


def markers(
    adata: AnnData,
    table: pd.DataFrame,
    n_genes: int = 3,
    cluster_key: str = keys.CLUSTER,
    *,
    ax: Axes | None = None,
) -> Figure:
    """Draw the first marker genes of each cluster in all clusters.

    The size of a dot is the share of cells that express the gene, its colour the mean per 10,000 (of counts, not of
    denoised values) relative to the cluster in which it is highest.

    Parameters
    ----------
    adata
        Cells with clusters and counts.
    table
        Of :func:`scmedley.interpret.markers`, for the same clusters.
    n_genes
        Genes of each cluster.
    cluster_key
        ``obs`` column of the clusters.
    ax
        Axes to draw in; a new figure if not given.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ScmedleyError
        An empty table, or a gene that the cells do not have.
    """
    from scmedley.interpret.markers import expression
    from scmedley.pl._figure import axes_of, plain

    table = table_of(table, "the table of markers", ["cluster", "gene"], [])
    genes = list(dict.fromkeys(table.groupby("cluster", sort=False).head(n_genes)["gene"]))
    mean_KG, share_KG = expression(adata, genes, cluster_key)
    clusters = list(mean_KG.index)
    size = (1.9 + 0.22 * len(genes), 1.3 + 0.25 * len(clusters))
    figure, ax = axes_of(ax, size)
    relative_KG = (mean_KG / mean_KG.max().replace(0, 1)).to_numpy()
    y, x = np.indices(relative_KG.shape)
    style: Any = {"cmap": "Blues", "vmin": -0.1, "vmax": 1, "edgecolors": "#666", "linewidths": 0.3}
    share = share_KG.to_numpy().ravel()
    points = ax.scatter(x.ravel(), y.ravel(), s=1 + 90 * share, c=relative_KG.ravel(), **style)
    bar = figure.colorbar(points, ax=ax, shrink=0.6, aspect=12)
    bar.set_ticks([0, 0.5, 1])
    bar.set_label("mean / highest", fontsize=7)
    bar.ax.tick_params(labelsize=7)
    handles = [ax.scatter([], [], s=1 + 90 * s, c="#9ab", label=f"{100 * s:.0f} %") for s in (0.25, 0.5, 1.0)]
    ax.legend(
        handles=handles,
        title="cells that express it",
        ncols=3,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        frameon=False,
        fontsize=7,
        title_fontsize=7,
    )
    texts: Any = {"parse_math": False}
    ax.set_xticks(
        range(len(genes)), [plain(name, 16) for name in genes], rotation=90, style="italic", **texts
    )
    ax.set_yticks(range(len(clusters)), [plain(name, 24) for name in clusters], **texts)
    ax.tick_params(labelsize=8, length=2)
    ax.set_xlim(-0.7, len(genes) - 0.3)
    ax.set_ylim(len(clusters) - 0.4, -0.6)
    ax.spines[["top", "right"]].set_visible(False)
    return figure
