"""Passes over cells on disk, in blocks: totals and filters, moments by gene, and the values that are stored.

Shapes: N cells, G genes.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import issparse, vstack

from scmedley.data.arrays import Matrix, without_zeros
from scmedley.data.blocks import CELLS
from scmedley.data.evidence import Checked
from scmedley.data.matrix import counted, matrix_at, normalised
from scmedley.data.scan import n_stored
from scmedley.io.progress import progress_bar
from scmedley.io.reading import reading_errors
from scmedley.keys import Method
from scmedley.pp.gene_moments import GroupMoments
from scmedley.pp.genes import gene_groups, takes_all

BLOCK = 2_000_000  # stored values of a block: its matrices and temporary arrays take about 150 MB
SMALL = 255  # the largest count in one byte


class FoundMatrix:
    """The matrix that was found, which is read in blocks of cells.

    Parameters
    ----------
    adata
        Cells whose matrices are on disk (or in memory).
    checked
        What was found in them.
    name
        What an error of reading calls them.
    progress
        Whether to show a progress bar for each pass.
    """

    def __init__(self, adata: AnnData, checked: Checked, name: str, progress: bool):
        self.adata, self.checked, self.progress, self._name = adata, checked, progress, Path(name)
        matrix, names = matrix_at(adata, checked.where)
        self.n_counted = len(names)
        self._place_G = None if names.equals(adata.var_names) else names.get_indexer(adata.var_names)
        n = adata.n_obs
        self.step = min(CELLS, max(1, int(BLOCK * n / max(n_stored(matrix), 1))))

    def read(self, rows: slice) -> tuple[Matrix, np.ndarray]:
        """Return some cells with the genes of ``var``, and their totals over all counted genes."""
        with reading_errors(self._name):
            x_NG, total_N, _ = counted(self.adata, self.checked, rows)
        return (x_NG if self._place_G is None else x_NG[:, self._place_G]), total_N

    def all(self, title: str) -> Iterator[tuple[slice, Matrix, np.ndarray]]:
        """Yield all cells: rows, values, totals."""
        n_cells = self.adata.n_obs
        with progress_bar(n_cells, title, "cell", self.progress) as shown:
            for start in range(0, n_cells, self.step):
                rows = slice(start, min(start + self.step, n_cells))
                yield rows, *self.read(rows)
                shown.update(rows.stop - start)

    def kept(
        self, kept_N: np.ndarray, genes_G: np.ndarray, title: str, first: int = 0
    ) -> Iterator[tuple[slice, Matrix, np.ndarray]]:
        """Yield the cells and genes that are kept, from the ``first`` such cell on: places, values, totals."""
        rows_N = np.flatnonzero(kept_N)
        with progress_bar(len(rows_N), title, "cell", self.progress) as shown:
            shown.update(first)
            for start in range(first, len(rows_N), self.step):
                place = slice(start, min(start + self.step, len(rows_N)))
                x_NG, total_N = self._taken(rows_N[place], kept_N)
                yield place, (x_NG if genes_G.all() else x_NG[:, genes_G]), total_N
                shown.update(place.stop - start)

    def _taken(self, rows_n: np.ndarray, kept_N: np.ndarray) -> tuple[Matrix, np.ndarray]:
        """Return these cells; those between them are read too, a block at a time, and dropped."""
        parts, stop = [], int(rows_n[-1]) + 1
        for start in range(int(rows_n[0]), stop, self.step):
            span = slice(start, min(start + self.step, stop))
            kept_n = kept_N[span]
            if kept_n.any():
                x_NG, total_N = self.read(span)
                parts.append((x_NG, total_N) if kept_n.all() else (x_NG[kept_n], total_N[kept_n]))
        if len(parts) == 1:
            return parts[0]
        values, sums = zip(*parts, strict=True)
        joined: Matrix = vstack(values, format="csr") if issparse(values[0]) else np.vstack(values)
        return joined, np.concatenate(sums)


def summed(matrix: FoundMatrix, min_genes: int) -> dict[str, np.ndarray]:
    """Return the sums of the first pass.

    ``total_N`` and ``genes_N``: total and number of detected genes of each cell. Over the cells with ``min_genes``
    genes or more: ``cells_G``, in how many a gene is detected; ``largest_G``, its largest value if that is above 255,
    else 255; ``whole``, whether all values are whole numbers.
    """
    n_cells, n_genes = matrix.adata.shape
    total_N, genes_N = np.zeros(n_cells), np.zeros(n_cells, dtype=np.int64)
    cells_G, largest_G = np.zeros(n_genes, dtype=np.int64), np.full(n_genes, SMALL, dtype=np.float64)
    whole = matrix.checked.values == "counts"
    for rows, x, total_N[rows] in matrix.all("Totals and filters"):
        found = without_zeros(x)
        genes_N[rows] = np.diff(found.indptr)
        kept_n = genes_N[rows] >= min_genes
        found = found if kept_n.all() else found[kept_n]
        cells_G += np.bincount(found.indices, minlength=n_genes)
        large = np.flatnonzero(found.data > SMALL)
        np.maximum.at(largest_G, found.indices[large], found.data[large])
        whole = whole and bool((found.data == np.rint(found.data)).all())
    return {
        "total_N": total_N,
        "genes_N": genes_N,
        "cells_G": cells_G,
        "largest_G": largest_G,
        "whole": np.array(whole),
    }


def all_same(matrix: FoundMatrix, kept_N: np.ndarray, genes_G: np.ndarray, cells_G: np.ndarray) -> bool:
    """Return whether all kept cells have the same values in every kept gene.

    A gene that some kept cells have and others lack, as ``cells_G`` shows, spares the pass.
    """
    n_kept = int(kept_N.sum())
    if not np.isin(cells_G[genes_G], (0, n_kept)).all():
        return False
    first = None
    for _, x_NG, _ in matrix.kept(kept_N, genes_G, "Comparison of cells"):
        dense_NG = x_NG if isinstance(x_NG, np.ndarray) else x_NG.toarray()
        first = dense_NG[:1] if first is None else first
        if (dense_NG != first).any():
            return False
    return True


def chosen_genes(
    matrix: FoundMatrix,
    kept_N: np.ndarray,
    genes_G: np.ndarray,
    obs: pd.DataFrame,
    batch_key: str | None,
    n_top_genes: int,
    method: Method,
) -> np.ndarray:
    """Return which of the kept genes vary most within the batches of the training cells, as ``select_genes``."""
    n_genes = int(genes_G.sum())
    if takes_all(n_genes, n_top_genes, method):
        return np.ones(n_genes, dtype=bool)
    group_N = gene_groups(obs, batch_key)
    moments = GroupMoments(int(group_N.max()) + 1, n_genes)
    for place, x_NG, total_N in matrix.kept(kept_N, genes_G, "Choice of genes"):
        moments.add(normalised(x_NG, total_N, matrix.checked), group_N[place])
    return moments.chosen(n_top_genes, method)
