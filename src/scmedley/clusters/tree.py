"""Merge groups of cells until every split stands, and on to one cluster: the tree of merges.

Shapes: N cells, P latent dimensions, C groups.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from scmedley.clusters.evidence import Split, split

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]


class Forest:
    """The clusters so far, each a node: the groups are nodes 0..C-1, merge i makes node C + i."""

    def __init__(self, z_NP: Floats, group_N: Codes, edges_CC: Floats, seed: int):
        self.z_NP, self.seed = z_NP, seed
        n_groups = len(edges_CC)
        self.nodes = list(range(n_groups))  # of the live clusters; the rows of what follows
        self.rows = [np.flatnonzero(group_N == group) for group in range(n_groups)]
        self.centre_CP = np.stack([z_NP[rows].mean(axis=0) for rows in self.rows])
        self.edges_CC = edges_CC
        self.splits: dict[tuple[int, int], Split] = {}

    def pairs(self) -> list[tuple[int, int]]:
        """Return pairs of clusters, the most joined first.

        How joined: the neighbours that two clusters have in each other, relative to those expected by chance. A
        cluster without any such neighbours is paired with the one whose centre is nearest.
        """
        size = np.array([len(rows) for rows in self.rows], dtype=np.float64)
        joined = self.edges_CC / np.outer(size, size)
        for alone in np.flatnonzero(~self.edges_CC.any(axis=1)):
            distance = np.linalg.norm(self.centre_CP - self.centre_CP[alone], axis=1)
            distance[alone] = np.inf
            other = int(distance.argmin())
            joined[alone, other] = joined[other, alone] = 1e-9 / (1.0 + distance[other])
        first, second = np.nonzero(np.triu(joined, 1))
        order = np.argsort(-joined[first, second], kind="stable")
        return list(zip(first[order].tolist(), second[order].tolist(), strict=True))

    def split(self, first: int, second: int, *, always_ratio: bool = False) -> Split:
        """Return the evidence for the split of two clusters: the same whenever they have the same cells."""
        pair = (self.nodes[first], self.nodes[second])
        if pair not in self.splits:
            a, b = sorted((self.rows[first], self.rows[second]), key=lambda rows: int(rows[0]))
            rows = np.sort(np.concatenate([a, b]))
            rng = np.random.default_rng([self.seed, a[0], len(a), b[0], len(b)])
            second_N = np.isin(rows, b, assume_unique=True)
            self.splits[pair] = split(self.z_NP[rows], second_N, rng, always_ratio=always_ratio)
        return self.splits[pair]

    def merge(self, first: int, second: int, node: int) -> None:
        """Merge two clusters; the new one comes last."""
        a, b = self.rows[first], self.rows[second]
        rows = np.sort(np.concatenate([a, b]))
        centre = (len(a) * self.centre_CP[first] + len(b) * self.centre_CP[second]) / len(rows)
        kept = [i for i in range(len(self.nodes)) if i not in (first, second)]
        to_new = (self.edges_CC[first] + self.edges_CC[second])[kept]
        self.edges_CC = np.block([[self.edges_CC[np.ix_(kept, kept)], to_new[:, None]], [to_new[None], 0.0]])
        self.centre_CP = np.vstack([self.centre_CP[kept], centre])
        self.rows = [*(self.rows[i] for i in kept), rows]
        self.nodes = [*(self.nodes[i] for i in kept), node]


def merges(z_NP: Floats, group_N: Codes, edges_CC: Floats, seed: int) -> pd.DataFrame:
    """Return the tree of merges, from groups down to one cluster.

    Each time, the most joined pair whose split does not stand is merged. When all splits stand, the clusters are
    found; from there on the pair with the weakest evidence is merged.
    """
    forest = Forest(z_NP, group_N, edges_CC, seed)
    n_groups = len(edges_CC)
    records = []
    for i in range(n_groups - 1):
        pairs = forest.pairs()
        pair = next((pair for pair in pairs if not forest.split(*pair).stands), None)
        if pair is None:
            pair = min(pairs, key=lambda pair: forest.split(*pair).dip)
        first, second = pair
        found = forest.split(first, second)
        records.append(
            {
                "first": forest.nodes[first],
                "second": forest.nodes[second],
                "becomes": n_groups + i,
                "cells first": len(forest.rows[first]),
                "cells second": len(forest.rows[second]),
                "clusters left": n_groups - i - 1,
                "dip": found.dip,
                "least dip": found.least_dip,
                "neighbour ratio": found.ratio,
                "stands": found.stands,
            }
        )
        forest.merge(first, second, n_groups + i)
    # Types are stated, because a tree without merges (one group of cells) has no values to show them.
    return pd.DataFrame.from_records(records, columns=list(COLUMNS)).astype(COLUMNS)


COLUMNS: dict[str, type] = {
    **dict.fromkeys(("first", "second", "becomes", "cells first", "cells second", "clusters left"), np.int64),
    **dict.fromkeys(("dip", "least dip", "neighbour ratio"), np.float64),
    "stands": np.bool_,
}


def number_found(tree: pd.DataFrame) -> int:
    """Return the number of clusters when all splits stand."""
    standing = tree.index[tree["stands"]]
    return int(tree["clusters left"].iloc[standing[0]]) + 1 if len(standing) else 1


def cluster_of_groups(tree: pd.DataFrame, k: int) -> Codes:
    """Return the cluster of each group after all merges but the last ``k - 1``; clusters in no order."""
    n_groups = len(tree) + 1
    node_C = np.arange(n_groups)
    for row in tree.iloc[: n_groups - k][["first", "second", "becomes"]].itertuples(index=False):
        node_C[(node_C == row[0]) | (node_C == row[1])] = row[2]
    return np.unique(node_C, return_inverse=True)[1]
