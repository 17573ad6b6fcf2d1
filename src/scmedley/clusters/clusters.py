"""Find clusters of a latent by evidence.

Shapes: N cells, M reference cells (at most ``MOST_CELLS``) or new cells, P latent dimensions, C groups (of the
over-clustering), K clusters, S neighbours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
from threadpoolctl import threadpool_limits

from scmedley.clusters import tree as trees
from scmedley.clusters.arrays import CODES, read_arrays
from scmedley.clusters.graph import N_NEIGHBORS, counts, edges, number_of_groups, over_clusters
from scmedley.clusters.table import evidence_table
from scmedley.data.neighbors import nearest
from scmedley.errors import ScmedleyError, check_seed, is_whole

Floats = npt.NDArray[np.floating[Any]]
Codes = npt.NDArray[np.int64]

MOST_CELLS = 20_000  # from which clusters are found; more get theirs by their neighbours among these
BLOCK = 2**14  # cells at a time that get their clusters by neighbours
SAME = 1e-4  # distance of two latents of one cell, relative to their spread: rounding differs with the chunks
LARGEST = 1e15  # value of a latent: the square of a larger one may be too large for single precision
GROUPS_PER_CLUSTER = 3  # at least, with the number of clusters given


@dataclass(frozen=True, eq=False)
class Clusters:
    """Clusters of cells, found by :func:`find`.

    Attributes
    ----------
    group_N
        Group of each cell: the clusters before the first merge.
    near_NS
        Groups of the nearest reference cells of each cell, without itself.
    reference_MP, group_M
        Latent and group of the cells from which the clusters were found.
    edges_CC
        Number of neighbours that two groups have in each other.
    tree
        Merges in order, down to one cluster. Groups are nodes 0 to C - 1, merge i makes node C + i. Columns: "first",
        "second", "becomes" (nodes), "cells first", "cells second" (reference cells), "clusters left" after the merge,
        "dip", "least dip", "neighbour ratio" (nan where it did not matter), "stands".
    cluster_C
        Cluster of each group.
    seed
        Random seed of :func:`find`.
    batch_N, batches
        Batch of each cell (-1: none) and names of batches; empty if no batches were given.
    """

    group_N: Codes
    near_NS: Codes
    reference_MP: Floats
    group_M: Codes
    edges_CC: npt.NDArray[np.float64]
    tree: pd.DataFrame
    cluster_C: Codes
    seed: int
    batch_N: Codes
    batches: tuple[str, ...]

    @property
    def k(self) -> int:
        """Return the number of clusters."""
        return int(self.cluster_C.max()) + 1

    @property
    def found(self) -> int:
        """Return the number of clusters at which all splits stand."""
        return trees.number_found(self.tree)

    @cached_property
    def code_N(self) -> Codes:
        """Return the cluster of each cell: 0 is the largest."""
        return self.cluster_C[self.group_N]

    @cached_property
    def membership_NK(self) -> npt.NDArray[np.float64]:
        """Return the share of each cell's nearest cells in each cluster; rows sum to 1."""
        return _memberships(self.cluster_C[self.near_NS], self.k)

    @cached_property
    def evidence(self) -> pd.DataFrame:
        """Return the evidence for each cluster, one row each.

        Columns: "cluster", "cells", "share" of all cells with its 95 % interval ("share low", "share high"; Wilson),
        "nearest" (the cluster that it is most joined with; -1 if there is one cluster), "dip", "least dip",
        "neighbour ratio", "stands", with batches "batches" (the number in which it is seen), and "reason" in words.
        """
        with threadpool_limits(1):
            return evidence_table(self)

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """Return evidence and tree by name, for ``uns``."""
        return {"evidence": self.evidence, "tree": self.tree}

    @cached_property
    def by_batch(self) -> pd.DataFrame:
        """Return the number of cells of each cluster (rows) in each batch."""
        known = self.batch_N >= 0
        flat = np.bincount(
            self.code_N[known] * len(self.batches) + self.batch_N[known], minlength=self.k * len(self.batches)
        )
        index = pd.RangeIndex(self.k, name="cluster")
        return pd.DataFrame(flat.reshape(self.k, -1), index=index, columns=list(self.batches))

    def cut(self, k: int | None = None, level: int | None = None) -> Clusters:
        """Return coarser or finer clusters of the same tree.

        Finer clusters are parts of coarser ones. Splits beyond those that stand are not supported by the evidence:
        see the column "stands" of their ``evidence``.

        Parameters
        ----------
        k
            Number of clusters.
        level
            Number of clusters more (finer) or fewer (coarser, negative) than these; never less than one.

        Raises
        ------
        ScmedleyError
            Both or neither given, or more clusters than the tree has groups.
        """
        if (k is None) == (level is None):
            raise ScmedleyError("cut needs one of k (number of clusters) and level (clusters more or fewer).")
        _check_whole("k", k)
        _check_whole("level", level)
        asked = f"k={k}" if level is None else f"level={level} of {self.k}"
        if k is None:
            k = max(1, self.k + int(level or 0))
        n_groups = len(self.cluster_C)
        if not 1 <= k <= n_groups:
            more = f" For a tree with more, find the clusters again with k={k}." if k > n_groups else ""
            raise ScmedleyError(
                f"{asked} clusters cannot be cut from this tree, which has 1 to {n_groups}: choose a number between "
                f"these.{more if level is None else ''}"
            )
        cluster_C = trees.cluster_of_groups(self.tree, k)
        size_K = np.bincount(cluster_C[self.group_N], minlength=k)
        rank_K = np.empty(k, dtype=np.int64)
        rank_K[np.argsort(-size_K, kind="stable")] = np.arange(k)
        return replace(self, cluster_C=rank_K[cluster_C])

    def predict(self, z_MP: Floats) -> tuple[Codes, npt.NDArray[np.float64]]:
        """Return clusters and memberships of cells, from their nearest reference cells.

        A reference cell (at the place of one) keeps its cluster. A cell far from all clusters gets the nearest one.

        Parameters
        ----------
        z_MP
            Latent of the cells, from the same model.

        Returns
        -------
        code_M, membership_MK
            The cluster with the largest membership; the nearest of these if there are several.

        Raises
        ------
        ScmedleyError
            No cells, values that are not finite, or another number of latent dimensions.
        """
        z_MP = _checked(z_MP)
        if z_MP.shape[1] != self.reference_MP.shape[1]:
            raise ScmedleyError(
                f"The new cells have {z_MP.shape[1]} latent dimensions, the clusters have "
                f"{self.reference_MP.shape[1]}. Embed them with the same model."
            )
        with threadpool_limits(1):
            near_MS = nearest(z_MP, self.reference_MP, N_NEIGHBORS + 1).indices_NK
        cluster_MS = self.cluster_C[self.group_M[near_MS]]
        if cluster_MS.shape[1] == 1:  # one reference cell in all
            return cluster_MS[:, 0], _memberships(cluster_MS, self.k)
        away_M = np.linalg.norm(z_MP - self.reference_MP[near_MS[:, 0]], axis=1)
        is_reference_M = away_M <= SAME * np.linalg.norm(self.reference_MP.std(axis=0))
        others_MS = np.where(is_reference_M[:, None], cluster_MS[:, 1:], cluster_MS[:, :-1])
        code_M = np.where(is_reference_M, cluster_MS[:, 0], _most_frequent(others_MS, self.k))
        return code_M, _memberships(others_MS, self.k)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return all that ``from_arrays`` needs, as arrays of numbers, for safetensors; codes as int32."""
        fixed = {name: getattr(self, name) for name in ("reference_MP", "edges_CC")}
        codes = {name: getattr(self, name).astype(np.int32) for name in CODES}
        columns = {f"tree {name}": self.tree[name].to_numpy() for name in self.tree}
        names = np.frombuffer(json.dumps(self.batches).encode(), dtype=np.uint8)
        return {**fixed, **codes, **columns, "seed": np.array([self.seed]), "batches": names}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Clusters:
        """Return the clusters whose ``arrays`` these are.

        Raises
        ------
        ScmedleyError
            An array is missing, or its type, shape or values do not fit the others.
        """
        return cls(**read_arrays(arrays))


def find(
    z_NP: npt.ArrayLike, k: int | None = None, *, seed: int = 0, batch_N: npt.ArrayLike | None = None
) -> Clusters:
    """Find the clusters of a latent, or any embedding, by evidence.

    Cells are put into many small groups (Ward's method). The pair of groups that have most neighbours in each other,
    and whose split does not stand, is merged, again and again, until all splits stand. A split stands if a gap
    separates the two (dip test on held-out scores of a discriminant), or a weaker gap with few neighbours across
    it (docs/clusters.md).

    Parameters
    ----------
    z_NP
        Latent of the cells: ``adata.obsm["X_scmedley_fixed"]``, principal components, ...
    k
        Number of clusters; ``None``: as many as the evidence supports.
    seed
        Random seed. Same seed, same clusters, whatever the order of the cells.
    batch_N
        Batch of each cell, for the tables only: clusters are found without it.

    Returns
    -------
    Clusters

    Raises
    ------
    ScmedleyError
        No cells, values that are not finite, or ``k`` below 1 or above the number of cells
        or of groups that distinct cells form, or a seed that is no whole number from 0 on.
    """
    check_seed(seed)
    _check_whole("k", k)
    z_NP = _checked(z_NP)
    n_cells = len(z_NP)
    if k is not None and not 1 <= k <= n_cells:
        raise ScmedleyError(f"k={k} clusters of {n_cells} cells: choose k from 1 to {n_cells}.")
    code_N, names = _batches(batch_N, n_cells)
    # In a fixed order, so that the order of the cells does not matter; and repeats once, because a repeat in another
    # fold would tell the discriminant what it is to predict.
    distinct_NP, back_N = np.unique(z_NP, axis=0, return_inverse=True)
    with threadpool_limits(1):  # threads change the order of sums
        found = _found(distinct_NP, k, seed)
    return replace(
        found, group_N=found.group_N[back_N], near_NS=found.near_NS[back_N], batch_N=code_N, batches=names
    ).cut(found.found if k is None else k)


def _found(z_NP: Floats, k: int | None, seed: int) -> Clusters:
    """Return the tree of merges of (a sample of) distinct cells, and all cells' groups; not yet cut."""
    n_cells = len(z_NP)
    reference_M = np.arange(n_cells)
    if n_cells > MOST_CELLS:
        reference_M = np.sort(np.random.default_rng(seed).choice(n_cells, MOST_CELLS, replace=False))
    reference_MP = z_NP[reference_M]
    n_groups = max(number_of_groups(len(reference_M)), GROUPS_PER_CLUSTER * (k or 0))
    # In double precision, and centred: squared distances far from the origin lose their digits.
    x_MP = reference_MP.astype(np.float64)
    x_MP -= x_MP.mean(axis=0)
    if len(x_MP) > 1:
        near_MS = nearest(x_MP, x_MP, N_NEIGHBORS, exclude_self=True).indices_NK
    else:
        near_MS = np.zeros((1, 1), dtype=np.int64)
    group_M = over_clusters(x_MP, near_MS, min(n_groups, len(x_MP)), seed, k or 1)
    near_MS = group_M[near_MS]
    n_groups = int(group_M.max()) + 1
    if k is not None and k > n_groups:
        raise ScmedleyError(f"k={k} clusters, but the cells form only {n_groups} groups. Choose a smaller k.")
    edges_CC = edges(group_M, near_MS)
    tree = trees.merges(x_MP, group_M, edges_CC, seed)
    group_N, near_NS = group_M, near_MS
    if len(z_NP) > len(reference_M):
        others = np.setdiff1d(np.arange(len(z_NP)), reference_M, assume_unique=True)
        group_N = np.empty(len(z_NP), dtype=np.int64)
        near_NS = np.empty((len(z_NP), near_MS.shape[1]), dtype=np.int64)
        group_N[reference_M], near_NS[reference_M] = group_M, near_MS
        cluster_C = trees.cluster_of_groups(tree, k or trees.number_found(tree))
        for rows in np.split(others, range(BLOCK, len(others), BLOCK)):
            near_NS[rows] = group_M[nearest(z_NP[rows], reference_MP, N_NEIGHBORS).indices_NK]
            group_N[rows] = _groups_of_others(near_NS[rows], cluster_C)
    return Clusters(
        group_N,
        near_NS,
        reference_MP,
        group_M,
        edges_CC,
        tree,
        np.arange(n_groups),
        seed,
        np.empty(0, dtype=np.int64),
        (),
    )


def _groups_of_others(near_NS: Codes, cluster_C: Codes) -> Codes:
    """Return the group of cells by their neighbours: of the most frequent cluster, the most frequent group."""
    n_groups = len(cluster_C)
    best_N = _most_frequent(cluster_C[near_NS], int(cluster_C.max()) + 1)
    inside_NS = np.where(cluster_C[near_NS] == best_N[:, None], near_NS, n_groups)
    return _most_frequent(inside_NS, n_groups + 1, excluded=n_groups)


def _most_frequent(code_NS: Codes, n_codes: int, excluded: int = -1) -> Codes:
    """Return the most frequent code of each row, the nearest neighbour's of those that are equally frequent."""
    count_NC = counts(code_NS, n_codes)
    if excluded >= 0:
        count_NC[:, excluded] = 0
    at_NS = np.take_along_axis(count_NC, code_NS, axis=1)
    return np.asarray(code_NS[np.arange(len(code_NS)), at_NS.argmax(axis=1)])


def _memberships(cluster_NS: Codes, k: int) -> npt.NDArray[np.float64]:
    return np.asarray(counts(cluster_NS, k) / cluster_NS.shape[1])


def _check_whole(name: str, value: object) -> None:
    if not (value is None or is_whole(value)):
        raise ScmedleyError(f"{name}={value!r} must be a whole number.")


def _checked(z_NP: npt.ArrayLike) -> Floats:
    """Return the latent as a table of floats, or raise."""
    try:
        table = np.asarray(z_NP)
        table = table if table.dtype in (np.float32, np.float64) else table.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ScmedleyError(
            f"The latent is no table of numbers ({error}). Pass cells x dimensions."
        ) from error
    if table.ndim != 2 or 0 in table.shape:
        raise ScmedleyError(f"The latent has shape {table.shape}. Pass a table of cells x dimensions.")
    wrong = np.flatnonzero(~np.isfinite(table).all(axis=1))
    if len(wrong):
        raise ScmedleyError(
            f"The latent has values that are not finite in {len(wrong)} cell(s), the first in row {wrong[0]}. Remove "
            "these cells, or fit the model again."
        )
    if np.abs(table).max() > LARGEST:
        raise ScmedleyError(
            f"The latent has values up to {np.abs(table).max():.3g}, too large for distances. Divide it by its "
            "standard deviation."
        )
    return table


def _batches(batch_N: npt.ArrayLike | None, n_cells: int) -> tuple[Codes, tuple[str, ...]]:
    """Return codes (-1: missing) and names of batches."""
    if batch_N is None:
        return np.empty(0, dtype=np.int64), ()
    if np.ndim(cast(Any, batch_N)) != 1:
        raise ScmedleyError(f"batch_N has {np.ndim(cast(Any, batch_N))} dimensions. Pass one batch a cell.")
    batches = pd.Categorical(cast(Any, batch_N))
    if len(batches) != n_cells:
        raise ScmedleyError(
            f"batch_N has {len(batches)} cells, the latent has {n_cells}. Pass one batch a cell."
        )
    return np.asarray(batches.codes, dtype=np.int64), tuple(map(str, batches.categories))
