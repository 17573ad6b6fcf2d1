"""Cells in blocks of rows: the one size in which all passes over cells read them, in memory and from disk.

Shapes: N cells of the call at hand, B groups of cells, G genes.
"""

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
from scipy.sparse import csr_matrix

from scmedley.data.arrays import Matrix
from scmedley.data.scan import consecutive
from scmedley.data.store import Values

CELLS = 4096  # cells of a block
_AT_ONCE = 2_000_000  # stored values that are added at once: temporary arrays take about 50 MB

Function: TypeAlias = Callable[[np.ndarray], np.ndarray]


def slices(n_cells: int, size: int = CELLS) -> Iterator[slice]:
    """Yield the rows of each block of ``n_cells`` cells, in order."""
    for start in range(0, n_cells, size):
        yield slice(start, min(start + size, n_cells))


def blocks(x_NG: Values, rows: np.ndarray | None = None) -> Iterator[tuple[slice, Matrix]]:
    """Yield the cells of each block in memory, and their place among all that are read.

    Parameters
    ----------
    x_NG
        Cells, in memory or in a store.
    rows
        Numbers of the cells to read, in this order; all by default.
    """
    for part in slices(x_NG.shape[0] if rows is None else len(rows)):
        if rows is None and isinstance(x_NG, csr_matrix):
            yield part, consecutive(x_NG, part)
        else:
            yield part, x_NG[part if rows is None else rows[part]]


def add_rows(x_NG: Matrix, group_N: np.ndarray, *sums: tuple[np.ndarray, Function]) -> None:
    """Add each cell to the row of its group, in place.

    Cells are added one after the other, so that neither the size of the blocks nor the type of the matrix (sparse or
    dense) changes a bit of the sums.

    Parameters
    ----------
    x_NG
        Cells.
    group_N
        Number of each cell's group.
    sums
        Arrays, B x G, each with the function of the values whose sums it holds: a function that is 0 at 0.
    """
    if isinstance(x_NG, np.ndarray):
        for group, x_G in zip(group_N, x_NG, strict=True):
            for sum_BG, of in sums:
                sum_BG[group] += of(x_G)
        return
    n_cells, n_genes, start = x_NG.shape[0], x_NG.shape[1], 0
    while start < n_cells:
        stop = int(np.searchsorted(x_NG.indptr, x_NG.indptr[start] + _AT_ONCE, side="right")) - 1
        stop = min(max(stop, start + 1), n_cells)
        first_N = np.asarray(group_N[start:stop], np.int64) * n_genes
        chosen = slice(x_NG.indptr[start], x_NG.indptr[stop])
        place = np.repeat(first_N, np.diff(x_NG.indptr[start : stop + 1])) + x_NG.indices[chosen]
        for sum_BG, of in sums:
            np.add.at(sum_BG.reshape(-1), place, of(x_NG.data[chosen]).astype(sum_BG.dtype, copy=False))
        start = stop
