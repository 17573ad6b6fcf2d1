"""The table of evidence for each cluster, with a reason in words.

Shapes: N cells, K clusters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from scmedley.clusters.evidence import LOW_RATIO, SMALLEST, STRONG, Split
from scmedley.clusters.tree import Forest
from scmedley.errors import listed

if TYPE_CHECKING:
    from scmedley.clusters.clusters import Clusters

Floats = npt.NDArray[np.float64]


def evidence_table(clusters: Clusters) -> pd.DataFrame:
    """Return one row a cluster: size, nearest cluster, and the evidence for the split from it."""
    k = clusters.k
    cells_K = np.bincount(clusters.code_N, minlength=k)
    low_K, high_K = wilson(cells_K, len(clusters.code_N))
    one_KC = (clusters.cluster_C == np.arange(k)[:, None]).astype(np.float64)
    edges_KK = one_KC @ clusters.edges_CC @ one_KC.T
    np.fill_diagonal(edges_KK, 0)
    x_MP = clusters.reference_MP.astype(np.float64)
    x_MP -= x_MP.mean(axis=0)
    forest = Forest(x_MP, clusters.cluster_C[clusters.group_M], edges_KK, clusters.seed)
    nearest_K: dict[int, int] = {}
    for a, b in forest.pairs():  # the most joined first
        nearest_K.setdefault(a, b)
        nearest_K.setdefault(b, a)
    records = []
    for cluster in range(k):
        other = nearest_K.get(cluster, -1)
        pair = (min(cluster, other), max(cluster, other))
        found = forest.split(*pair, always_ratio=True) if other >= 0 else Split(np.nan, np.nan, np.nan)
        smallest = int(min(len(forest.rows[i]) for i in pair)) if other >= 0 else 0
        record: dict[str, Any] = {
            "cluster": cluster,
            "cells": int(cells_K[cluster]),
            "share": cells_K[cluster] / len(clusters.code_N),
            "share low": low_K[cluster],
            "share high": high_K[cluster],
            "nearest": other,
            "dip": found.dip,
            "least dip": found.least_dip,
            "neighbour ratio": found.ratio,
            "stands": found.stands or other < 0,
        }
        words = reason(found, other, smallest)
        if clusters.batches:
            seen = int((clusters.by_batch.iloc[cluster] > 0).sum())
            record["batches"] = seen
            words += f"; seen in {seen} of {len(clusters.batches)} batches"
            if seen < len(clusters.batches):
                names = [
                    b for b, n in zip(clusters.batches, clusters.by_batch.iloc[cluster], strict=True) if n
                ]
                words += f" ({listed(names)})"
        records.append(record | {"reason": words})
    return pd.DataFrame.from_records(records)


def reason(found: Split, other: int, smallest: int) -> str:
    """Return why a cluster stands, or why it does not, in words."""
    if other < 0:
        return "the only cluster"
    if smallest < SMALLEST:
        return f"too small to be told from cluster {other} (a split needs {SMALLEST} cells on each side)"
    numbers = f"dip {found.dip:.2f}, at least {found.least_dip:.2f} needed"
    if not found.stands:
        return f"no gap separates it from cluster {other} ({numbers}): one cluster with it by the evidence"
    if found.least_dip < LEAST_STRONG:
        few = f"neighbour ratio {found.ratio:.2f}, at most {LOW_RATIO:.2f} allowed"
        return f"a weak gap and few neighbours across it separate it from cluster {other} ({numbers}; {few})"
    return f"a gap separates it from cluster {other} ({numbers})"


LEAST_STRONG = STRONG[0] - STRONG[1] / np.sqrt(2 * SMALLEST)  # the lowest threshold of a strong gap


def wilson(counts_K: npt.NDArray[np.int64], total: int) -> tuple[Floats, Floats]:
    """Return the 95 % interval of shares (Wilson 1927)."""
    from scipy.stats import binomtest

    found = [binomtest(int(count), total).proportion_ci(method="wilson") for count in counts_K]
    return np.array([one.low for one in found]), np.array([one.high for one in found])
