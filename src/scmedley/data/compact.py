"""Cells of a store in memory as they are stored: three bytes a value, where CSR of floats has eight.

Shapes: N cells, G genes, Z stored values; n cells that are taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from scmedley.data.arrays import log1p_cp10k
from scmedley.data.evidence import TARGET_SUM

if TYPE_CHECKING:
    from scmedley.data.store import Store

GAP = 8  # rows between two wanted ones that are read rather than skipped


@dataclass(frozen=True)
class Compact:
    """Some cells of a store.

    Attributes
    ----------
    start_N, n_N
        Place of the first value of each cell, and the number of its values.
    gene_Z, value_Z
        Gene and value of each stored value.
    total_N
        Total of each cell if the values are counts; ``None`` if they are log1p CP10k.
    n_genes
        G.
    """

    start_N: np.ndarray
    n_N: np.ndarray
    gene_Z: np.ndarray
    value_Z: np.ndarray
    total_N: np.ndarray | None
    n_genes: int

    @classmethod
    def read(cls, store: Store, rows_N: np.ndarray) -> Compact:
        """Read cells from the disk; ``rows_N`` are sorted, each once.

        Raises
        ------
        ScmedleyError
            A file cannot be read, or is shorter than it should be.
        """
        runs = _runs(rows_N)
        first_R, last_R = store.row_N1[runs[:, 0]], store.row_N1[runs[:, 1]]
        gene_Z, value_Z = store.runs(first_R, last_R)
        # A run begins in memory after the runs before it.
        moved_R = np.concatenate([[0], np.cumsum(last_R - first_R)[:-1]]) - first_R
        run_N = np.searchsorted(runs[:, 0], rows_N, side="right") - 1
        total_N = store.total_N[rows_N] if store.has_counts else None
        start_N = store.row_N1[rows_N]
        n_N = store.row_N1[rows_N + 1] - start_N
        return cls(start_N + moved_R[run_N], n_N, gene_Z, value_Z, total_N, store.shape[1])

    def values(self, rows_n: np.ndarray) -> csr_matrix:
        """Return the stored values of some of the cells, float32."""
        n_n = self.n_N[rows_n]
        row_n1 = np.zeros(len(rows_n) + 1, dtype=np.int64)
        np.cumsum(n_n, out=row_n1[1:])
        place_z = np.arange(row_n1[-1])
        place_z += np.repeat(self.start_N[rows_n] - row_n1[:-1], n_n)
        parts = (self.value_Z[place_z].astype(np.float32), self.gene_Z[place_z].astype(np.int32))
        return csr_matrix((*parts, row_n1.astype(np.int32)), shape=(len(rows_n), self.n_genes))

    def all_values(self) -> csr_matrix:
        """Return the stored values of all cells, which were consecutive rows of the store."""
        row_N1 = np.concatenate([[0], np.cumsum(self.n_N)]).astype(np.int32)
        parts = (self.value_Z.astype(np.float32), self.gene_Z.astype(np.int32), row_N1)
        return csr_matrix(parts, shape=(len(self.n_N), self.n_genes))

    def log1p(self, rows_n: np.ndarray, values_nG: csr_matrix) -> csr_matrix:
        """Return log1p CP10k of :meth:`values`, with the bits of cells that were prepared in memory."""
        return values_nG if self.total_N is None else log1p_cp10k(values_nG, self.total_N[rows_n])


class OnDevice:
    """Compact cells on a device, from which minibatches are taken without waiting for the device."""

    def __init__(self, cells: Compact, device: torch.device):
        self.device, self.n_N, self.n_genes = device, cells.n_N, cells.n_genes
        self.start_N = torch.as_tensor(cells.start_N, device=device)
        self.length_N = torch.as_tensor(cells.n_N, device=device)
        self.gene_Z, self.gene_bits = _signed(cells.gene_Z, device)
        self.value_Z, self.value_bits = _signed(cells.value_Z, device)
        self.scale_N = None
        if cells.total_N is not None:
            total_N = np.where(cells.total_N > 0, cells.total_N, np.inf)
            exact = torch.float32 if device.type == "mps" else torch.float64  # as on a CPU, where it exists
            self.scale_N = torch.as_tensor(TARGET_SUM / total_N, dtype=exact, device=device)

    def take(self, rows_n: np.ndarray, on_n: Tensor, counts: bool) -> tuple[Tensor, Tensor | None]:
        """Return log1p CP10k of some cells and, with ``counts``, the stored values, dense.

        ``rows_n`` and ``on_n`` are the same rows on the CPU and on the device: the number of values is known on the
        CPU, so it need not be read from the device.
        """
        n_values = int(self.n_N[rows_n].sum())
        row_z, place_z = places(self.start_N[on_n], self.length_N[on_n], n_values)
        where_z = row_z * self.n_genes + _unsigned(self.gene_Z[place_z], self.gene_bits)
        value_z = _unsigned(self.value_Z[place_z], self.value_bits).float()
        log1p_z = value_z
        if self.scale_N is not None:
            log1p_z = (value_z * self.scale_N[on_n][row_z]).float().log1p_()
        dense = [log1p_z, value_z] if counts else [log1p_z]
        found = [self._zeros(len(rows_n)).view(-1).index_copy_(0, where_z, one) for one in dense]
        x_nG = [one.view(len(rows_n), self.n_genes) for one in found]
        return x_nG[0], x_nG[1] if counts else None

    def _zeros(self, n: int) -> Tensor:
        return torch.zeros(n, self.n_genes, device=self.device)


def places(start_n: Tensor, length_n: Tensor, n_values: int) -> tuple[Tensor, Tensor]:
    """Return the row (0 ... n - 1) and the place among all values of each value of these cells."""
    device = start_n.device
    row_z = torch.repeat_interleave(torch.arange(len(start_n), device=device), length_n, output_size=n_values)
    before_n = length_n.cumsum(0) - length_n
    return row_z, torch.arange(n_values, device=device) + (start_n - before_n)[row_z]


def _signed(array: np.ndarray, device: torch.device) -> tuple[Tensor, int | None]:
    """Return an array on a device and the bits of its unsigned type, with which PyTorch hardly computes."""
    bits = {np.dtype(np.uint16): 0xFFFF, np.dtype(np.uint32): 0xFFFFFFFF}.get(array.dtype)
    signed = {0xFFFF: np.int16, 0xFFFFFFFF: np.int32}
    return torch.as_tensor(array if bits is None else array.view(signed[bits]), device=device), bits


def _unsigned(values: Tensor, bits: int | None) -> Tensor:
    return values if bits is None else values.long() & bits


def _runs(rows_N: np.ndarray) -> np.ndarray:
    """Return first row, and last row + 1, of each run of rows with small gaps."""
    if not len(rows_N):
        return np.zeros((0, 2), dtype=np.int64)
    new = np.flatnonzero(np.diff(rows_N) > GAP)
    first, last = np.concatenate([[0], new + 1]), np.concatenate([new, [len(rows_N) - 1]])
    return np.stack([rows_N[first], rows_N[last] + 1], axis=1)
