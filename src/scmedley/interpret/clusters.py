"""What clusters hold: names after labels, cells by batch and label, and clusters of one batch or donor.

Shapes: N cells, K clusters, B batches.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmedley.data.design import as_categories
from scmedley.errors import ScmedleyError, listed

if TYPE_CHECKING:
    from scmedley.clusters import Clusters

NUMBER = re.compile(r"[-+]?[0-9.]+")
CLEAR = 0.6  # share of the most frequent label from which a cluster is named after it alone
LABELLED = 0.9  # share of cells with a label below which the name says how many have one
MISSING = "missing"  # the batch or label of cells without one
ONE_GROUP = 0.99  # share of a cluster's cells from one batch (donor) from which it is said to be of that one


def cluster_names(cluster_N: pd.Series[Any], label_N: pd.Series[Any] | None = None) -> pd.DataFrame:
    """Return a name for each cluster: the label that most of its cells have, with its share.

    Parameters
    ----------
    cluster_N
        Cluster of each cell.
    label_N
        Label of each cell, in the same order, if there are labels. Cells without a label are left out.

    Returns
    -------
    pandas.DataFrame
        One row per cluster, in the order of the categories: ``cluster``, ``name`` ("B cells (93 %)"; clusters of
        the same label get a number: "B cells 2 (88 %)"; where no label has 60 %, of the two most frequent ones:
        "CD4 T / CD8 T (49, 48 %)"; where fewer than 90 % of the cells have a label: "B cells (100 % of 4 labelled)";
        without a label "cluster 3"), ``label``, ``label_share`` (of the labelled cells; rounded down in the name, so
        that 100 % means all), ``labelled_share`` (of all cells of the cluster).
    """
    clusters = list(as_categories(cluster_N).categories)
    unnamed = pd.DataFrame({"cluster": clusters, "name": [f"cluster {name}" for name in clusters]})
    unnamed = unnamed.assign(label="", label_share=np.nan, labelled_share=np.nan)
    if label_N is None:
        return unnamed
    counts_KL = _counts(cluster_N, label_N)
    total_K = counts_KL.sum(axis=1)
    cells_K = as_categories(cluster_N).value_counts()
    named = unnamed.set_index("cluster")
    named["labelled_share"] = [total_K[cluster] / max(cells_K[cluster], 1) for cluster in clusters]
    titles: dict[Any, tuple[str, str]] = {}
    for cluster in total_K.index[total_K > 0]:
        share_L = counts_KL.loc[cluster].sort_values(ascending=False, kind="stable") / total_K[cluster]
        named.loc[cluster, "label"], named.loc[cluster, "label_share"] = (
            str(share_L.index[0]),
            share_L.iloc[0],
        )
        shown_L = share_L[:1] if share_L.iloc[0] >= CLEAR else share_L[:2]
        percents = ", ".join(str(int(100 * share + 1e-9)) for share in shown_L)
        few = f" of {total_K[cluster]:,} labelled" if named.loc[cluster, "labelled_share"] < LABELLED else ""
        titles[cluster] = " / ".join(map(_title, shown_L.index.astype(str))), f"({percents} %{few})"
    how_often, seen = Counter(title for title, _ in titles.values()), Counter[str]()
    for cluster, (title, shares) in titles.items():
        seen[title] += 1
        number = f" {seen[title]}" if how_often[title] > 1 else ""
        named.loc[cluster, "name"] = f"{title}{number} {shares}"
    return named.reset_index()


def _title(label: str) -> str:
    """Return a label as it is named; a number alone would be taken for that of a cluster."""
    return f"label {label!r}" if NUMBER.fullmatch(label) else label


def cluster_table(cluster_N: pd.Series[Any], group_N: pd.Series[Any], what: str = "batch") -> pd.DataFrame:
    """Return the cells of each cluster in each batch (or label).

    Parameters
    ----------
    cluster_N, group_N
        Cluster and batch (or label) of each cell. Cells without a cluster are left out; those without a batch (or
        label), if there are any, are of the batch "missing".
    what
        Name of the second column.

    Returns
    -------
    pandas.DataFrame
        One row per pair, also of those without cells: ``cluster``, ``what``, ``cells``, ``share_of_cluster``,
        ``share_of_<what>``.
    """
    groups_N = as_categories(group_N)
    if len(groups_N.categories) and (groups_N.codes < 0).any():
        names = [*(name for name in groups_N.categories if name != MISSING), MISSING]
        texts = np.array([*groups_N.categories, MISSING], dtype=object)[groups_N.codes]
        group_N = pd.Series(pd.Categorical(texts, names))
    counts_KB = _counts(cluster_N, group_N)
    total_K, total_B = counts_KB.sum(axis=1), counts_KB.sum(axis=0)
    clusters, groups = counts_KB.index, counts_KB.columns
    table = pd.DataFrame(
        {
            "cluster": np.repeat(clusters, len(groups)),
            what: np.tile(groups, len(clusters)),
            "cells": counts_KB.to_numpy().ravel(),
        }
    )
    table["share_of_cluster"] = table["cells"] / table["cluster"].map(total_K.replace(0, np.nan))
    table[f"share_of_{what}"] = table["cells"] / table[what].map(total_B)
    return table


def describe_clusters(
    evidence: pd.DataFrame, cluster_N: pd.Series[Any], groups: Mapping[str, pd.Series[Any]]
) -> pd.DataFrame:
    """Return the evidence of the clusters with their names, sizes, batches and donors.

    Parameters
    ----------
    evidence
        ``Clusters.evidence``: one row per cluster.
    cluster_N
        Cluster of each cell.
    groups
        Columns of ``obs`` by their role: any of ``"batch"``, ``"label"`` and ``"donor"``.

    Returns
    -------
    pandas.DataFrame
        ``evidence``, with clusters as text and "cells" and "share" of these cells, and:

        "name", "label", "label share", "labelled share"
            See :func:`cluster_names`.
        "batches", "donors"
            How many have cells in the cluster.
        "one batch", "one donor"
            The one that 99 % or more of its cells are from; empty if there is none, or only one in the data.
        "lowest share", "highest share"
            Of a donor's cells (of a batch's, if donors are not known). Cells of one donor are not independent, so
            this range, unlike an interval computed from cells, shows how firm the size of the cluster is.
    """
    names = cluster_names(cluster_N, groups.get("label"))
    table = evidence.assign(cluster=evidence["cluster"].map(str))
    if unknown := sorted(set(names["cluster"]) - set(table["cluster"])):
        raise ScmedleyError(
            f"The evidence is not about these cells: it has no cluster {listed(unknown)}. Cluster these cells again."
        )
    sizes = as_categories(cluster_N).value_counts()  # of these cells, which may not be those of the fit
    table["cells"] = [int(sizes.get(name, 0)) for name in table["cluster"]]
    table["share"] = table["cells"] / table["cells"].sum()
    nearest = [str(name) for name in table["nearest"]]
    table["nearest"] = [name if name in set(table["cluster"]) else "" for name in nearest]  # -1: one cluster
    names = names.rename(columns={"label_share": "label share", "labelled_share": "labelled share"})
    table = table.drop(columns="batches", errors="ignore").merge(names, on="cluster", how="left")
    table[["name", "label"]] = table[["name", "label"]].fillna("")  # clusters without any of these cells
    for role, several in (("batch", "batches"), ("donor", "donors")):
        n_K: list[int | None] = [None] * len(table)
        one_K = [""] * len(table)
        if role in groups:
            counts_KB = _counts(cluster_N, groups[role]).reindex(table["cluster"], fill_value=0)
            n_K = list((counts_KB.to_numpy() > 0).sum(1))
            one_K = [_one_group(row) for _, row in counts_KB.iterrows()]
        table[several], table[f"one {role}"] = pd.array(n_K, dtype="Int64"), one_K
    table["lowest share"], table["highest share"] = np.nan, np.nan
    if (unit_N := groups.get("donor", groups.get("batch"))) is not None:
        counts_KB = _counts(cluster_N, unit_N).reindex(table["cluster"], fill_value=0)
        shares_KB = counts_KB / counts_KB.sum(axis=0).replace(0, np.nan)
        # nan if no cell has a donor
        table["lowest share"], table["highest share"] = (
            shares_KB.min(axis=1).array,
            shares_KB.max(axis=1).array,
        )
    return table


def tree_table(clusters: Clusters) -> pd.DataFrame:
    """Return the tree of merges with the clusters it was cut into.

    Returns
    -------
    pandas.DataFrame
        ``clusters.tree`` and "cluster first", "cluster second": the cluster that the node is, or is a part of; empty
        for a node above the cut.
    """
    of_node = {node: str(cluster) for node, cluster in enumerate(clusters.cluster_C)}
    rows = clusters.tree[["first", "second", "becomes"]].itertuples(index=False)
    for first, second, becomes in rows:
        of_node[becomes] = of_node[first] if of_node[first] == of_node[second] else ""
    return clusters.tree.assign(
        **{f"cluster {side}": clusters.tree[side].map(of_node) for side in ("first", "second")}
    )


def _counts(cluster_N: pd.Series[Any], group_N: pd.Series[Any]) -> pd.DataFrame:
    """Return numbers of cells, clusters x groups, with every cluster and every group."""
    clusters, groups = as_categories(cluster_N), as_categories(group_N)
    if len(clusters) != len(groups):
        raise ScmedleyError(f"There are {len(clusters)} clusters of cells, but {len(groups)} values by cell.")
    counts_KB = pd.crosstab(clusters, groups)
    return counts_KB.reindex(index=clusters.categories, columns=groups.categories, fill_value=0)


def _one_group(cells_B: pd.Series[Any]) -> str:
    """Return the name of the group that (nearly) all cells are from, empty if there is none."""
    total = cells_B.sum()
    return str(cells_B.idxmax()) if len(cells_B) > 1 and total and cells_B.max() >= ONE_GROUP * total else ""
