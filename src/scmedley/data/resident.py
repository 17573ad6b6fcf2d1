"""Cells that stay on the device during training, read by row index.

Shapes: N cells of the call at hand (a minibatch, or all), G genes, B batches, K labels.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from scmedley.data.order import WHOLE, Shares, consecutive
from scmedley.data.scale import Scale
from scmedley.data.store import StoredMatrix, Values

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


class Rows:
    """Values of all cells on one device: log1p CP10k and, if a model needs them, counts and totals."""

    def __init__(
        self,
        x_NG: Values,
        device: torch.device,
        counts_NG: Values | None = None,
        total_N: np.ndarray | None = None,
    ):
        self.n_cells, self.n_genes = x_NG.shape
        self.x = _Table(x_NG, device)
        self.counts = None if counts_NG is None else _Table(counts_NG, device)
        self.size_N = (
            None if total_N is None else torch.as_tensor(np.asarray(total_N, np.float32), device=device)
        )


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
        x_NG: Values | Rows,
        b_N: np.ndarray,
        device: torch.device,
        y_N: np.ndarray | None = None,
        scale: Scale | None = None,
        missing_G: np.ndarray | None = None,
    ):
        self.scale = None if scale is None else scale.on(device, missing_G)
        self.rows = x_NG if isinstance(x_NG, Rows) else Rows(x_NG, device)
        self.n_cells, self.n_genes, self.device = self.rows.n_cells, self.rows.n_genes, device
        self.b_N = torch.as_tensor(np.asarray(b_N, dtype=np.int64), device=device)
        self.y_N = None if y_N is None else torch.as_tensor(np.asarray(y_N, dtype=np.int64), device=device)

    def replaced(self, x_NI: Tensor) -> "Resident":
        """Return the same cells with other values, which are not scaled."""
        other = copy.copy(self)
        other.rows, other.scale = copy.copy(self.rows), None
        other.rows.x, other.n_genes = _Table(x_NI, self.device), x_NI.shape[1]
        return other

    def take(self, rows_N: Tensor) -> Minibatch:
        """Return the cells of these rows, in this order, dense and scaled."""
        of = self.rows
        x_NG = of.x.take(rows_N)
        size_N = None if of.size_N is None else of.size_N[rows_N]
        return Minibatch(
            x_NG if self.scale is None else self.scale.apply_(x_NG, size_N),
            self.b_N[rows_N],
            None if self.y_N is None else self.y_N[rows_N],
            rows_N,
            None if of.counts is None else of.counts.take(rows_N),
            size_N,
        )

    def in_order(self, size: int = ENCODED) -> Iterator[Minibatch]:
        """Yield all cells in order, at most ``size`` at once."""
        return self.minibatches(torch.arange(self.n_cells, device=self.device), size)

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
        for rows_n in consecutive(rows_N, batch_size, shares):
            yield self.take(torch.from_numpy(rows_n).to(self.device))


class _Table:
    """A table of numbers on a device, CSR or dense; :meth:`take` returns some rows."""

    def __init__(self, x_NG: Values | Tensor, device: torch.device):
        self.device, self.n_columns = device, x_NG.shape[1]
        self.csr: sparse.csr_matrix | StoredMatrix | None = None
        self.dense: Tensor | None = None
        if isinstance(x_NG, StoredMatrix):
            self.csr = x_NG
            return
        if sparse.issparse(x_NG) and device.type == "cpu":
            self.csr = sparse.csr_matrix(x_NG, dtype=np.float32)
        elif sparse.issparse(x_NG):
            x_NG = sparse.csr_matrix(x_NG)
            self.indptr = torch.as_tensor(x_NG.indptr.astype(np.int64), device=device)
            self.indices = torch.as_tensor(x_NG.indices.astype(np.int32, copy=False), device=device)
            self.values = torch.as_tensor(x_NG.data.astype(np.float32, copy=False), device=device)
        elif isinstance(x_NG, Tensor):
            self.dense = x_NG
        else:
            self.dense = torch.as_tensor(np.ascontiguousarray(x_NG, dtype=np.float32), device=device)

    def take(self, rows_N: Tensor) -> Tensor:
        if self.dense is not None:
            return self.dense[rows_N]
        if self.csr is not None:  # on a CPU eight times as fast as PyTorch
            return torch.from_numpy(self.csr[rows_N.cpu().numpy()].toarray()).to(self.device)
        start, stop = self.indptr[rows_N], self.indptr[rows_N + 1]
        counts = stop - start
        ends = counts.cumsum(0)
        # Position in the CSR arrays of every non-zero value of these rows, row by row.
        where = torch.arange(int(counts.sum()), device=self.device)
        where += torch.repeat_interleave(start - (ends - counts), counts)
        row = torch.repeat_interleave(torch.arange(len(rows_N), device=self.device), counts)
        x_NG = torch.zeros(len(rows_N), self.n_columns, device=self.device)
        x_NG.view(-1)[row * self.n_columns + self.indices[where]] = self.values[where]
        return x_NG
