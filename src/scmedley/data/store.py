"""A store of cells on disk: a compact sparse matrix of the chosen genes, from which models train.

A folder with

- ``store.json``: version, sizes, types, checksums by block of cells, and what the store was made from; written last;
- ``cells.h5ad``: obs, var (the chosen genes) and uns, without a matrix;
- ``rows.bin`` (int64, N + 1), ``genes.bin`` (uint16, or uint32 with more than 65,536 genes) and ``values.bin``: the
  matrix by row (CSR). Whole counts are stored as uint8, uint16 or uint32, as the largest one needs; corrected counts
  and log-normalised values as float32;
- if the values are counts, ``totals.bin`` (float64, N): each cell's total over all counted genes, from which log1p
  CP10k is computed; and ``sizes.bin`` (float64, N): the same totals as models of counts read them, which are computed
  back from log1p CP10k and therefore rounded, as for cells in memory.

Genes and values stay on the disk until rows of them are read; row pointers and totals (24 bytes a cell) are read once.

Shapes: N cells, G genes.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from scipy.sparse import csr_matrix

from scmedley.data.arrays import Matrix
from scmedley.data.compact import Compact
from scmedley.errors import ScmedleyError

VERSION = 1
HEADER, CELLS = "store.json", "cells.h5ad"
ROWS, GENES, VALUES = "rows.bin", "genes.bin", "values.bin"
TOTALS, SIZES = "totals.bin", "sizes.bin"

Part = Literal["counts", "log1p"]


@dataclass(frozen=True)
class Store:
    """The arrays of a store.

    Attributes
    ----------
    folder
        The folder of the store.
    about
        The content of ``store.json``.
    """

    folder: Path
    about: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> "Store":
        """Open a store that was written completely.

        Raises
        ------
        ScmedleyError
            There is no store, another version wrote it, or one of its files has another size than it should.
        """
        folder = Path(folder)
        try:
            about = dict(json.loads((folder / HEADER).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ScmedleyError(
                f"{folder} is not a complete store of cells: {HEADER} cannot be read ({error}). Check the folder (that "
                f"of a run is its folder {folder.name}/store), or prepare the cells again: {HEADER} is written last."
            ) from error
        if about.get("version") != VERSION:
            raise ScmedleyError(
                f"{folder} has version {about.get('version')} of the store, and this scmedley reads version {VERSION}. "
                "Prepare the cells again."
            )
        store = cls(folder, about)
        try:
            sizes = store.file_bytes()
        except (KeyError, TypeError, ValueError) as error:
            raise ScmedleyError(
                f"{folder / HEADER} is damaged ({type(error).__name__}: {error}). Delete the folder and prepare the "
                "cells again."
            ) from error
        for name, size in sizes.items():
            found = (folder / name).stat().st_size if (folder / name).exists() else 0
            if found != size:
                raise ScmedleyError(
                    f"{folder / name} has {found:,} bytes and should have {size:,}: the store is damaged. Delete the "
                    "folder and prepare the cells again."
                )
        return store

    @property
    def shape(self) -> tuple[int, int]:
        """Return N and G."""
        return self.about["n_cells"], self.about["n_genes"]

    @property
    def nnz(self) -> int:
        """Return the number of stored values."""
        return int(self.about["n_values"])

    @property
    def has_counts(self) -> bool:
        """Return whether the values are counts, not log-normalised values."""
        return bool(self.about["values"] == "counts")

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the checksums of all blocks."""
        return hashlib.sha256(json.dumps(self.about["checksums"]["blocks"]).encode()).hexdigest()

    def file_bytes(self) -> dict[str, int]:
        """Return the number of bytes of each array."""
        sizes = {
            ROWS: 8 * (self.shape[0] + 1),
            GENES: self.nnz * np.dtype(self.about["gene_type"]).itemsize,
            VALUES: self.nnz * np.dtype(self.about["value_type"]).itemsize,
        }
        return sizes | (dict.fromkeys((TOTALS, SIZES), 8 * self.shape[0]) if self.has_counts else {})

    def check(self) -> None:
        """Read all files, and raise unless their checksums are those of ``store.json``.

        Raises
        ------
        ScmedleyError
            Some cells, or the table of the cells, have changed since the store was written.
        """
        sums, first = self.about["checksums"], 0
        for stop, wanted in zip(sums["stops"], sums["blocks"], strict=True):
            found = hashlib.sha256()
            parts = [self.row_N1[first + 1 : stop + 1]]
            parts += self.runs(self.row_N1[first : first + 1], self.row_N1[stop : stop + 1])
            parts += [self.total_N[first:stop], self.size_N[first:stop]] if self.has_counts else []
            for part in parts:
                found.update(np.ascontiguousarray(part).data)
            if found.hexdigest() != wanted:
                self._raise_damaged(f"cells {first + 1:,} to {stop:,}")
            first = stop
        try:
            with (self.folder / CELLS).open("rb") as file:
                same = hashlib.file_digest(file, "sha256").hexdigest() == sums["cells"]
        except OSError as error:
            raise self.damaged(f"{CELLS} cannot be read ({error.strerror})") from error
        if not same:
            self._raise_damaged(CELLS)

    def damaged(self, why: str) -> ScmedleyError:
        """Return the error of a store that is damaged."""
        return ScmedleyError(
            f"{self.folder} is damaged: {why}. Delete the folder and prepare the cells again."
        )

    def _raise_damaged(self, what: str) -> None:
        raise self.damaged(f"the checksum of {what} is not the one of {HEADER}")

    @cached_property
    def row_N1(self) -> np.ndarray:
        """The row pointers, in memory, N + 1."""
        row_N1 = np.fromfile(self.folder / ROWS, dtype=np.int64)
        # A wrong one would be read as other cells.
        if row_N1[0] != 0 or row_N1[-1] != self.nnz or (np.diff(row_N1) < 0).any():
            raise self.damaged(f"{ROWS} holds wrong numbers")
        return row_N1

    @cached_property
    def total_N(self) -> np.ndarray:
        """The totals of the cells, in memory; only if the values are counts."""
        return np.fromfile(self.folder / TOTALS, dtype=np.float64)

    @cached_property
    def size_N(self) -> np.ndarray:
        """The totals as models of counts read them, in memory; only if the values are counts."""
        return np.fromfile(self.folder / SIZES, dtype=np.float64)

    def runs(self, first_R: np.ndarray, last_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read genes and values from place ``first`` to ``last`` of each run.

        Raises
        ------
        ScmedleyError
            A file cannot be read, or is shorter than it should be.
        """
        genes, values = (
            self._read(name, np.dtype(self.about[kind]), first_R, last_R)
            for name, kind in ((GENES, "gene_type"), (VALUES, "value_type"))
        )
        if genes.max(initial=0) >= max(self.shape[1], 1):
            raise self.damaged(f"{GENES} holds wrong numbers")
        return genes, values

    def matrix(self, part: Part) -> "StoredMatrix":
        """Return the counts, or log1p CP10k, as a matrix on disk."""
        if part == "counts" and not self.has_counts:
            raise ScmedleyError(f"{self.folder} holds log-normalised values, and no counts.")
        return StoredMatrix(self, part)

    def _read(self, name: str, dtype: np.dtype[Any], first_R: np.ndarray, last_R: np.ndarray) -> np.ndarray:
        found_Z = np.empty(int((last_R - first_R).sum()), dtype=dtype)
        path, at, wanted = self.folder / name, 0, found_Z.view(np.uint8).data
        try:
            with path.open("rb", buffering=0) as file:
                for first, last in zip(first_R.tolist(), last_R.tolist(), strict=True):
                    file.seek(first * dtype.itemsize)
                    end = at + (last - first) * dtype.itemsize
                    while at < end:
                        n = file.readinto(wanted[at:end])
                        if not n:
                            raise ScmedleyError(
                                f"{path} ends after {path.stat().st_size:,} bytes and should have "
                                f"{self.file_bytes()[name]:,}: it was changed while it was read. Prepare the cells "
                                "again."
                            )
                        at += n
        except OSError as error:
            raise ScmedleyError(
                f"{path} cannot be read: {error.strerror or error}. If its disk is back, run the same command again; "
                "it resumes from the checkpoint."
            ) from error
        return found_Z


@dataclass(frozen=True)
class StoredMatrix:
    """Counts or log1p CP10k of a store: rows are read from the disk when they are taken.

    ``matrix[rows]``, with a slice or an array of row numbers, returns them in memory (CSR, float32), with the same
    bits as cells that were prepared in memory.
    """

    store: Store
    part: Part

    @property
    def shape(self) -> tuple[int, int]:
        """Return N and G."""
        return self.store.shape

    @property
    def nnz(self) -> int:
        """Return the number of stored values."""
        return self.store.nnz

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> csr_matrix:
        """Return some of the cells, in this order."""
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        rows = np.flatnonzero(rows) if rows.dtype == bool else np.asarray(rows, dtype=np.int64)
        if (np.diff(rows) == 1).all():
            place_N, cells = np.arange(len(rows)), Compact.read(self.store, rows)
            x_NG = cells.all_values()
        else:
            sorted_N, place_N = np.unique(rows, return_inverse=True)
            cells = Compact.read(self.store, sorted_N)
            x_NG = cells.values(place_N)
        return x_NG if self.part == "counts" else cells.log1p(place_N, x_NG)


Values: TypeAlias = Matrix | StoredMatrix  # of cells, in memory or on disk: index it by rows
