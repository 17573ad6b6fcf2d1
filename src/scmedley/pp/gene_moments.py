"""Highly variable genes from sums over cells: one pass over the cells for all batches at once.

The rule is "seurat" of ``scanpy.pp.highly_variable_genes`` (Satija et al. 2015). In each group of cells, the
dispersion of a gene is the logarithm of variance / mean of its counts per 10,000. Genes are binned by the logarithm
of their mean (20 bins), and dispersions are standardised within each bin. The genes with the highest standardised
dispersion are chosen in each group. Genes that are chosen in more groups come first; of those chosen in equally
many, the ones whose mean standardised dispersion over the groups is higher; of equal ones, the first in the matrix.

Shapes: N cells of a block, B groups of cells (batches, small ones pooled), G genes, S genes of one group.
"""

import numpy as np
import pandas as pd

from scmedley.data.arrays import Matrix
from scmedley.data.blocks import add_rows
from scmedley.errors import ScmedleyError
from scmedley.keys import Method

LEAST_CELLS = 3  # of a batch, in which a gene of DeepBID is found
_BINS = 20


class GroupMoments:
    """Sums of counts per 10,000 and of their squares, for each gene in each group of cells.

    :meth:`add` takes the cells in any number of blocks. Neither their size nor sparse or dense values change a bit.

    Attributes
    ----------
    sum_BG, squares_BG
        Float64. Squares are rounded to float32 before they are added, as in scanpy.
    found_BG
        Number of cells in which each gene was found.
    cells_B
        Number of cells.
    """

    def __init__(self, n_groups: int, n_genes: int):
        self.sum_BG = np.zeros((n_groups, n_genes))
        self.squares_BG = np.zeros((n_groups, n_genes))
        self.found_BG = np.zeros((n_groups, n_genes), dtype=np.int32)
        self.cells_B = np.zeros(n_groups, dtype=np.int64)

    def add(self, log1p_NG: Matrix, group_N: np.ndarray) -> None:
        """Add cells, in log1p CP10k (float32), with the number of each one's group; -1: not counted."""
        if not (group_N >= 0).all():
            log1p_NG, group_N = log1p_NG[group_N >= 0], group_N[group_N >= 0]
        self.cells_B += np.bincount(group_N, minlength=len(self.cells_B))
        # Scanpy squares in float32, and the same rounding gives the same genes.
        parts = (
            (self.sum_BG, np.expm1),
            (self.squares_BG, lambda x: np.square(np.expm1(x))),
            (self.found_BG, lambda x: x != 0),
        )
        add_rows(log1p_NG, group_N, *parts)

    def chosen(self, n_top_genes: int, method: Method = "log1p") -> np.ndarray:
        """Return which genes vary most within the groups, bool, G.

        Parameters
        ----------
        n_top_genes
            Number of genes.
        method
            ``"deepbid"``: ``n_top_genes`` of each group, among genes found in at least 3 of its cells. Otherwise
            ``n_top_genes`` in all.

        Raises
        ------
        ScmedleyError
            No gene varies between the cells. If none varies in one group, all cells are taken as one group.
        """
        flags_G = self._union(n_top_genes) if method == "deepbid" else self._of_all_groups(n_top_genes)
        if flags_G is None:
            every = np.s_[:]
            flags_G = self._pooled()._of_group(0, every, n_top_genes)[1]
        if flags_G is None:
            raise ScmedleyError(
                "No gene varies between the training cells, so none can be chosen. Check the input file."
            )
        return flags_G

    def _of_all_groups(self, n_top_genes: int) -> np.ndarray | None:
        """Return the genes chosen in most groups; None if no gene can be ranked in some group."""
        n_genes = self.sum_BG.shape[1]
        times_G, total_G, known_G = (np.zeros(n_genes) for _ in range(3))
        for group in range(len(self.cells_B)):
            found = np.flatnonzero(self.sum_BG[group] > 0)
            norm_S, flags_S = self._of_group(group, found, n_top_genes)
            if flags_S is None:
                return None
            times_G[found] += flags_S
            # Genes that are not found in a group count there as 0, those whose dispersion is not known do not count.
            known_G += 1
            known_G[found[np.isnan(norm_S)]] -= 1
            total_G[found] += np.nan_to_num(norm_S, nan=0.0, posinf=np.inf, neginf=-np.inf)
        mean_G = np.divide(total_G, known_G, out=np.full(n_genes, np.nan), where=known_G > 0)
        order = np.lexsort((-mean_G, -times_G))  # NaN is last
        chosen_G = np.zeros(n_genes, dtype=bool)
        chosen_G[order[:n_top_genes]] = True
        return chosen_G

    def _union(self, n_top_genes: int) -> np.ndarray | None:
        """Return the genes that are among the ``n_top_genes`` of any group; None if no group can rank them."""
        chosen_G = np.zeros(self.sum_BG.shape[1], dtype=bool)
        for group in range(len(self.cells_B)):
            found = np.flatnonzero(self.found_BG[group] >= LEAST_CELLS)
            if len(found) > n_top_genes:
                flags_S = self._of_group(group, found, n_top_genes)[1]
                found = found[:0] if flags_S is None else found[flags_S]
            chosen_G[found] = True
        return chosen_G if chosen_G.any() else None

    def _of_group(
        self, group: int, genes: np.ndarray | slice, n_top_genes: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return standardised dispersions of some genes, and which are the highest; None if all are unknown."""
        n = int(self.cells_B[group])
        sum_S, squares_S = self.sum_BG[group, genes], self.squares_BG[group, genes]
        norm_S = _standardised_dispersion(sum_S, squares_S, n)
        known = np.sort(norm_S[~np.isnan(norm_S)])
        if not len(known):
            return norm_S, None
        least = known[-min(n_top_genes, len(known))]
        return norm_S, np.nan_to_num(norm_S, nan=-np.inf) >= least

    def _pooled(self) -> "GroupMoments":
        """Return the moments of all groups together."""
        pooled = GroupMoments(0, self.sum_BG.shape[1])
        for name in ("sum_BG", "squares_BG", "found_BG", "cells_B"):
            setattr(pooled, name, getattr(self, name).sum(axis=0, keepdims=True))
        return pooled


def _standardised_dispersion(sum_S: np.ndarray, squares_S: np.ndarray, n_cells: int) -> np.ndarray:
    """Return dispersions of genes, standardised within bins of genes of similar mean; NaN if not known.

    A gene that is alone in its bin has 1, a gene that does not vary has none.
    """
    if not n_cells or not len(sum_S):
        return np.full(len(sum_S), np.nan)
    mean_S = sum_S / n_cells
    variance_S = squares_S / n_cells - mean_S**2
    if n_cells > 1:
        variance_S *= n_cells / (n_cells - 1)
    mean_S[mean_S == 0] = 1e-12
    with np.errstate(divide="ignore", invalid="ignore"):  # genes that do not vary, or by rounding below 0
        dispersion_S = variance_S / mean_S
        dispersion_S[dispersion_S == 0] = np.nan
        dispersion_S = np.log(dispersion_S)
        bin_S = pd.cut(np.log1p(mean_S), bins=_BINS, labels=False)
        # pandas' own sums: rounding decides in bins of two genes, where all are standardised to 1 / sqrt(2).
        binned = pd.Series(dispersion_S).groupby(bin_S)
        centre_S, spread_S = (binned.transform(how).to_numpy() for how in ("mean", "std"))
        alone = np.isnan(spread_S)
        spread_S = np.where(alone, centre_S, spread_S)
        standardised: np.ndarray = (dispersion_S - np.where(alone, 0.0, centre_S)) / spread_S
    return standardised
