"""Cells that stay on the device during training, read by row index.

Shapes: N cells of the call at hand (a minibatch, or all), G genes, B batches, K labels.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from scmedley.data.arrays import Matrix
from scmedley.data.compact import Compact, OnDevice, places
from scmedley.data.order import WHOLE, Shares, consecutive
from scmedley.data.scale import Scale

ENCODED = 4096  # cells that a fitted network encodes at once


@dataclass(frozen=True)
class Minibatch:
    """Cells of one training step.

    Attributes
    ----------
    x_NG
        Scaled expression, float32.
    b_N
        Batch codes (int64), -1 if the batch is unknown or masked.
    y_N
        Label codes, -1 for a cell without a label; ``None`` if no labels are learnt.
    rows_N
        Row numbers among all cells.
    counts_NG, size_N
        Counts, and each cell's total over all genes, float32, for a model with a likelihood of counts.
    """

    x_NG: Tensor
    b_N: Tensor
    y_N: Tensor | None = None
    rows_N: Tensor | None = None
    counts_NG: Tensor | None = None
    size_N: Tensor | None = None


class Taken(NamedTuple):
    """Some rows: dense log1p CP10k (or other inputs of a network), and counts and totals if a model needs them."""

    x_NG: Tensor
    counts_NG: Tensor | None
    size_N: Tensor | None


class Rows(Protocol):
    """Values of all cells, from which some rows can be taken."""

    n_cells: int
    n_genes: int

    def take(self, rows_N: np.ndarray, on_N: Tensor) -> Taken:
        """Return some cells, dense. ``rows_N`` and ``on_N`` are the same rows on the CPU and on the device."""


class MemoryRows:
    """Values of all cells on one device: log1p CP10k and, if a model needs them, counts and totals."""

    def __init__(
        self,
        x_NG: Matrix | Tensor,
        device: torch.device,
        counts_NG: Matrix | None = None,
        total_N: np.ndarray | None = None,
    ):
        self.n_cells, self.n_genes = int(x_NG.shape[0]), int(x_NG.shape[1])
        self.x = _Table(x_NG, device)
        self.counts = None if counts_NG is None else _Table(counts_NG, device)
        self.size_N = _sizes(total_N, device)

    def take(self, rows_N: np.ndarray, on_N: Tensor) -> Taken:
        """Return some cells, dense."""
        return Taken(
            self.x.take(rows_N, on_N),
            None if self.counts is None else self.counts.take(rows_N, on_N),
            None if self.size_N is None else self.size_N[on_N],
        )


class CompactRows:
    """Cells of a store on one device; values are decoded when they are taken.

    Parameters
    ----------
    cells
        The cells as they are stored.
    device
        The device.
    total_N
        Totals as models of counts read them, or ``None``.
    counts
        Whether counts are taken too.
    """

    def __init__(
        self, cells: Compact, device: torch.device, total_N: np.ndarray | None = None, counts: bool = False
    ):
        self.n_cells, self.n_genes, self.counts = len(cells.n_N), cells.n_genes, counts
        self.cells = cells if device.type == "cpu" else OnDevice(cells, device)
        self.size_N = _sizes(total_N, device)

    def take(self, rows_N: np.ndarray, on_N: Tensor) -> Taken:
        """Return some cells, dense."""
        size_N = None if self.size_N is None else self.size_N[on_N]
        if isinstance(self.cells, OnDevice):
            return Taken(*self.cells.take(rows_N, on_N, self.counts), size_N)
        values_NG = self.cells.values(rows_N)
        x_NG = torch.from_numpy(self.cells.log1p(rows_N, values_NG).toarray())
        return Taken(x_NG, torch.from_numpy(values_NG.toarray()) if self.counts else None, size_N)


def _sizes(total_N: np.ndarray | None, device: torch.device) -> Tensor | None:
    return None if total_N is None else torch.as_tensor(np.asarray(total_N, np.float32), device=device)


class Resident:
    """All cells on one device, with the codes of their batches and labels.

    Sparse input stays sparse (a tenth of the memory); only the rows of a minibatch become dense.

    Parameters
    ----------
    x_NG
        float32, CSR or dense; or shared rows that are on the device already.
    b_N
        Batch codes 0..B-1; -1 if the batch is unknown.
    device
        Device that holds the cells.
    y_N
        Label codes 0..K-1, -1 if missing; ``None`` if no labels are learnt.
    scale
        Scale of the minibatches; ``None``: values are not scaled.
    missing_G
        Genes that were not measured (:class:`~scmedley.data.scale.TensorScale`).
    """

    def __init__(
        self,
        x_NG: Matrix | Rows,
        b_N: np.ndarray,
        device: torch.device,
        y_N: np.ndarray | None = None,
        scale: Scale | None = None,
        missing_G: np.ndarray | None = None,
    ):
        self.scale = None if scale is None else scale.on(device, missing_G)
        self.rows: Rows = (
            MemoryRows(x_NG, device)
            if isinstance(x_NG, np.ndarray | sparse.spmatrix | sparse.sparray)
            else x_NG
        )
        self.n_cells, self.n_genes, self.device = self.rows.n_cells, self.rows.n_genes, device
        self.b_N = torch.as_tensor(np.asarray(b_N, dtype=np.int64), device=device)
        self.y_N = None if y_N is None else torch.as_tensor(np.asarray(y_N, dtype=np.int64), device=device)

    def mapped(self, of: Callable[[Tensor], Tensor], n_columns: int) -> "Resident":
        """Return the same cells with other values, ``of`` their scaled expression, computed once."""
        x_NI = torch.empty(self.n_cells, n_columns, device=self.device)
        for rows, minibatch in self._slices():
            x_NI[rows] = of(minibatch.x_NG)
        return self._replaced(MemoryRows(x_NI, self.device))

    def _replaced(self, rows: Rows) -> "Resident":
        """Return the same cells with other values, which are not scaled."""
        other = copy.copy(self)
        other.rows, other.n_genes, other.scale = rows, rows.n_genes, None
        return other

    def _slices(self) -> Iterator[tuple[slice, Minibatch]]:
        """Yield all cells in order, with their rows."""
        start = 0
        for minibatch in self.in_order():
            stop = start + len(minibatch.x_NG)
            yield slice(start, stop), minibatch
            start = stop

    def take(self, rows_N: Tensor) -> Minibatch:
        """Return the cells of these rows, in this order, dense and scaled."""
        on_N = rows_N.to(self.device)
        return self._minibatch(self.rows, rows_N.cpu().numpy(), on_N, on_N)

    def _minibatch(self, source: Rows, place_N: np.ndarray, on_N: Tensor, rows_N: Tensor) -> Minibatch:
        """Return cells at these places of a source; ``rows_N`` are their rows among all cells."""
        x_NG, counts_NG, size_N = source.take(place_N, on_N)
        return Minibatch(
            x_NG if self.scale is None else self.scale.apply_(x_NG, size_N),
            self.b_N[rows_N],
            None if self.y_N is None else self.y_N[rows_N],
            rows_N,
            counts_NG,
            size_N,
        )

    def in_order(self, size: int = ENCODED) -> Iterator[Minibatch]:
        """Yield all cells in order, at most ``size`` at once."""
        return self.minibatches(torch.arange(self.n_cells), size)

    def minibatches(
        self, rows: Tensor, batch_size: int, shuffle: bool = False, shares: Shares = WHOLE
    ) -> Iterator[Minibatch]:
        """Yield all ``rows`` once, in minibatches of nearly equal size, at most ``batch_size``.

        ``shuffle`` draws the order from PyTorch's global CPU generator. With ``shares``, a minibatch has only the
        part that this process reads.
        """
        rows_N = rows.cpu().numpy()
        if shuffle:
            rows_N = rows_N[torch.randperm(len(rows_N)).numpy()]
        on_N = torch.from_numpy(rows_N).to(self.device)  # once: a copy in each step would wait for the device
        for part in consecutive(len(rows_N), batch_size, shares):
            yield self._minibatch(self.rows, rows_N[part], on_N[part], on_N[part])


class _Table:
    """A table of numbers on a device, CSR or dense; :meth:`take` returns some rows."""

    def __init__(self, x_NG: Matrix | Tensor, device: torch.device):
        self.device, self.n_columns = device, x_NG.shape[1]
        self.csr: sparse.csr_matrix | None = None
        self.dense: Tensor | None = None
        if sparse.issparse(x_NG):
            self.csr = sparse.csr_matrix(x_NG, dtype=np.float32)
            if device.type != "cpu":
                self.move(self.csr)
        elif isinstance(x_NG, Tensor):
            self.dense = x_NG
        else:
            self.dense = torch.as_tensor(np.ascontiguousarray(x_NG, dtype=np.float32), device=device)

    def move(self, csr: sparse.csr_matrix) -> None:
        """Hold a sparse table on the device."""
        row_N1, self.csr = csr.indptr.astype(np.int64), None
        self.n_N = np.diff(row_N1)
        self.start_N = torch.as_tensor(row_N1[:-1], device=self.device)
        self.length_N = torch.as_tensor(self.n_N, device=self.device)
        self.indices = torch.as_tensor(csr.indices.astype(np.int32, copy=False), device=self.device)
        self.values = torch.as_tensor(csr.data, device=self.device)

    def take(self, rows_N: np.ndarray, on_N: Tensor) -> Tensor:
        """Return rows, dense, without waiting for the device."""
        if self.dense is not None:
            return self.dense[on_N]
        if self.csr is not None:  # on a CPU eight times as fast as PyTorch
            return torch.from_numpy(self.csr[rows_N].toarray())
        row_z, place_z = places(self.start_N[on_N], self.length_N[on_N], int(self.n_N[rows_N].sum()))
        x_NG = torch.zeros(len(on_N), self.n_columns, device=self.device)
        x_NG.view(-1)[row_z * self.n_columns + self.indices[place_z]] = self.values[place_z]
        return x_NG
