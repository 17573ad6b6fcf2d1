"""Cells of a store: in memory as they are stored while they fit, else read from the disk in each epoch.

Both have the same minibatches, so the bits of a fit do not depend on the memory that is free.

Shapes: N cells of the call at hand (a minibatch, or all), G genes, I inputs of a network.
"""

import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scmedley.data import order
from scmedley.data.compact import Compact
from scmedley.data.order import WHOLE, Shares, consecutive
from scmedley.data.read_ahead import read_ahead
from scmedley.data.resident import CompactRows, MemoryRows, Minibatch, Resident, Rows, Taken
from scmedley.data.store import Store
from scmedley.errors import ScmedleyError


class OnDisk(ABC):
    """Values of all cells on a disk."""

    n_cells: int
    n_genes: int
    device: torch.device
    name: str  # of the file or folder

    @abstractmethod
    def load(self, rows_N: np.ndarray) -> Any:
        """Read cells, sorted and each once, into the memory of the CPU; a thread may do it."""

    @abstractmethod
    def held(self, loaded: Any, rows_N: np.ndarray) -> Rows:
        """Return what was loaded, on the device."""

    def take(self, rows_N: np.ndarray, on_N: Tensor) -> Taken:
        """Return some cells, dense."""
        sorted_N, place_N = np.unique(rows_N, return_inverse=True)
        source = self.held(self.load(sorted_N), sorted_N)
        return source.take(place_N, torch.from_numpy(place_N).to(self.device))


class StoredRows(OnDisk):
    """The cells of a store.

    Parameters
    ----------
    store
        The store.
    device
        Device of the minibatches.
    total_N
        Totals as models of counts read them, or ``None``.
    counts
        Whether minibatches have counts.
    """

    def __init__(
        self, store: Store, device: torch.device, total_N: np.ndarray | None = None, counts: bool = False
    ):
        self.store, self.device, self.total_N, self.counts = store, device, total_N, counts
        self.n_cells, self.n_genes = store.shape
        self.name = str(store.folder)

    @property
    def n_bytes(self) -> int:
        """Return the bytes that all cells take in memory."""
        return sum(self.store.file_bytes().values()) + 16 * self.n_cells

    def load(self, rows_N: np.ndarray) -> Compact:
        """Read cells as they are stored."""
        return Compact.read(self.store, rows_N)

    def held(self, loaded: Compact, rows_N: np.ndarray) -> CompactRows:
        """Return the cells on the device."""
        total_N = None if self.total_N is None else self.total_N[rows_N]
        return CompactRows(loaded, self.device, total_N, self.counts)

    def resident(self) -> CompactRows:
        """Return all cells in memory."""
        rows_N = np.arange(self.n_cells)
        return self.held(self.load(rows_N), rows_N)


class FileRows(OnDisk):
    """Inputs of a network in a temporary file, N x I, float32; the system deletes it when it is closed.

    Parameters
    ----------
    n_cells, n_columns
        N and I.
    device
        Device of the minibatches.
    folder
        Folder of the file, if it can be written to; else the folder for temporary files (``TMPDIR``).
    """

    def __init__(self, n_cells: int, n_columns: int, device: torch.device, folder: Path):
        self.n_cells, self.n_genes, self.device = n_cells, n_columns, device
        try:
            self.file: Any = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - open during the fit
            self.name = f"a temporary file in {folder}"
        except OSError:
            self.file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
            self.name = f"a temporary file in {tempfile.gettempdir()}"
        self.lock = Lock()  # a file has one position
        weakref.finalize(self, self.file.close)

    def append(self, x_NI: np.ndarray) -> None:
        """Write the next cells."""
        data = np.ascontiguousarray(x_NI, dtype=np.float32).ravel().view(np.uint8).data
        try:
            while len(data):
                data = data[self.file.write(data) :]
        except OSError as error:
            raise ScmedleyError(
                f"The inputs of the network, {4 * self.n_cells * self.n_genes / 1e9:.3g} GB, cannot be written to "
                f"{self.name} ({error.strerror or error}). Make room there, or allow them in memory (memory_gb)."
            ) from error

    def load(self, rows_N: np.ndarray) -> np.ndarray:
        """Read cells."""
        x_NI = np.empty((len(rows_N), self.n_genes), dtype=np.float32)
        size, at = 4 * self.n_genes, 0
        for run in np.split(rows_N, np.flatnonzero(np.diff(rows_N) != 1) + 1) if len(rows_N) else []:
            wanted = x_NI[at : at + len(run)].ravel().view(np.uint8).data
            with self.lock:
                self.file.seek(int(run[0]) * size)
                while len(wanted):
                    n = self.file.readinto(wanted)
                    if not n:
                        raise ScmedleyError(f"{self.name} ends too early. Run the same command again.")
                    wanted = wanted[n:]
            at += len(run)
        return x_NI

    def held(self, loaded: np.ndarray, rows_N: np.ndarray) -> MemoryRows:
        """Return the cells on the device."""
        return MemoryRows(torch.from_numpy(loaded).to(self.device), self.device)


class Stream(Resident):
    """Cells of a store, in memory (:class:`~scmedley.data.resident.CompactRows`) or on the disk.

    More than a buffer of them are shuffled in blocks (:mod:`scmedley.data.order`), and fewer as cells that never were
    in a store. From the disk, the next buffers are read in a thread.

    Parameters
    ----------
    rows
        The values.
    room
        Bytes of memory that may still be taken.
    folder
        Folder for a temporary file.
    buffer
        Cells in a buffer.
    codes
        Batches and so on, as of :class:`~scmedley.data.resident.Resident`.
    """

    def __init__(self, rows: Rows, room: int, folder: Path, buffer: int, *codes: Any):
        super().__init__(rows, *codes)
        self.room, self.folder, self.buffer = room, folder, buffer

    def mapped(self, of: Callable[[Tensor], Tensor], n_columns: int) -> Resident:
        """Return the same cells with other values, in memory or in a temporary file."""
        if 4 * self.n_cells * n_columns <= self.room:
            return super().mapped(of, n_columns)
        on_disk = FileRows(self.n_cells, n_columns, self.device, self.folder)
        for minibatch in self.in_order():
            on_disk.append(of(minibatch.x_NG).cpu().numpy())
        return self._replaced(on_disk)

    def minibatches(
        self, rows: Tensor, batch_size: int, shuffle: bool = False, shares: Shares = WHOLE
    ) -> Iterator[Minibatch]:
        """Yield all ``rows`` once, as :class:`~scmedley.data.resident.Resident` does.

        With ``shuffle``, PyTorch's global CPU generator gives the order, or one number from which it follows.
        """
        rows_N = rows.cpu().numpy()
        if not shuffle:
            buffers = _in_groups(rows_N, batch_size, shares, self.buffer)
        elif len(rows_N) <= self.buffer:
            rows_N = rows_N[torch.randperm(len(rows_N)).numpy()]
            buffers = _in_groups(rows_N, batch_size, shares, self.buffer)
        else:
            buffers = order.in_blocks(
                rows_N,
                batch_size,
                int(torch.randint(2**62, ())),
                shares,
                block=order.BLOCK,
                buffer=self.buffer,
            )
        if isinstance(self.rows, OnDisk):
            for sorted_N, loaded, places in read_ahead(_loaded(self.rows, buffers), self.rows.name):
                source = self.rows.held(loaded, sorted_N)
                yield from self._of_buffer(source, places, [sorted_N[place_n] for place_n in places])
        else:
            for parts in buffers:
                yield from self._of_buffer(self.rows, parts, parts)

    def _of_buffer(
        self, source: Rows, places: list[np.ndarray], rows: list[np.ndarray]
    ) -> Iterator[Minibatch]:
        """Yield minibatches: their places in the source, and their rows among all cells."""
        # Once a buffer: a copy in each step would wait for the device.
        on_N, rows_N = (torch.from_numpy(np.concatenate(part)).to(self.device) for part in (places, rows))
        start = 0
        for place_n in places:
            part = slice(start, start + len(place_n))
            yield self._minibatch(source, place_n, on_N[part], rows_N[part])
            start = part.stop


def _loaded(
    disk: OnDisk, buffers: Iterator[list[np.ndarray]]
) -> Iterator[tuple[np.ndarray, Any, list[np.ndarray]]]:
    """Yield each buffer: its rows, sorted; what was read; and the places of each minibatch among the rows."""
    for minibatches in buffers:
        sorted_N = np.unique(np.concatenate(minibatches))
        yield sorted_N, disk.load(sorted_N), [np.searchsorted(sorted_N, rows_n) for rows_n in minibatches]


def _in_groups(
    rows_N: np.ndarray, batch_size: int, shares: Shares, buffer: int
) -> Iterator[list[np.ndarray]]:
    """Yield minibatches in the order of the rows, as many at once as a buffer holds."""
    parts = list(consecutive(len(rows_N), batch_size, shares))
    steps = max(1, buffer // batch_size)
    for first in range(0, len(parts), steps):
        yield [rows_N[part] for part in parts[first : first + steps]]
