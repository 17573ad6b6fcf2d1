"""Write a store of cells (:mod:`scmedley.data.store`) block by block: completely or not at all, and resumable.

A store is written in a hidden folder beside its own, which takes its place when it is complete. If the process is
killed, the next one goes on after the last complete block.

Shapes: N cells of a block, G genes.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from anndata import AnnData
from filelock import FileLock, Timeout
from scipy.sparse import csr_matrix

from scmedley.data import store
from scmedley.data.differences import trained_on
from scmedley.data.store import Store
from scmedley.errors import ScmedleyError, warn
from scmedley.io.writing import sha256, sync, take_place, write_h5ad, writing_errors

LOCK, MADE_FROM, WRITTEN = "lock", "made_from.json", "written.json"


@contextmanager
def unfinished(folder: str | Path) -> Iterator[Path]:
    """Yield the hidden folder in which a store is written, locked for one process.

    Raises
    ------
    ScmedleyError
        ``folder`` holds other files; another process writes this store; or the place cannot be written.
    """
    folder = Path(folder)
    if (
        folder.exists()
        and not (folder / store.HEADER).exists()
        and (folder.is_file() or any(folder.iterdir()))
    ):
        raise ScmedleyError(f"{folder} exists and is no store of cells. Choose another folder, or remove it.")
    part = folder.with_name(f".{folder.name}.part")
    with writing_errors(folder, _full(folder)):
        part.mkdir(parents=True, exist_ok=True)
        lock = FileLock(part / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ScmedleyError(
                f"Another scmedley process is writing {folder}. Wait for it, or choose another folder."
            ) from error
    try:
        yield part
    finally:
        if part.exists() and not {path.name for path in part.iterdir()} - {LOCK, MADE_FROM}:
            shutil.rmtree(part)  # nothing to go on with
        lock.release()


class Steps:
    """Results of the steps before the cells are written, kept in the unfinished folder.

    Parameters
    ----------
    part
        The unfinished folder. What another source or other settings have left in it is deleted, with a warning.
    made_from
        What the store is made from, as JSON: source and settings.
    """

    def __init__(self, part: Path, made_from: dict[str, Any]):
        self.part = part
        place = part / MADE_FROM
        if place.exists() and (changed := difference(_json(place), made_from)):
            warn(f"A store was being written here, but since then {changed}. Preparation starts again.")
            clear(part)
        if not place.exists():
            clear(part)
            with writing_errors(place, _full(place)):
                _replace(place, json.dumps(made_from).encode())

    def once(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, np.ndarray]:
        """Return the arrays of a step; compute and keep them if no earlier process has done so."""
        place = self.part / f"{name}.npz"
        if not place.exists():
            values = make()
            with writing_errors(place, _full(place)):
                temporary = place.with_suffix(".tmp")
                with temporary.open("wb") as file:
                    np.savez(file, **values)
                sync(temporary)
                temporary.replace(place)
        with np.load(place) as found:
            return dict(found)


class StoreWriter:
    """Write the cells of a store in order, a block of any number of cells at a time.

    Parameters
    ----------
    folder
        Folder of the store; an earlier store in it is replaced by :meth:`finish`.
    part
        The unfinished folder (:func:`unfinished`).
    n_genes
        G.
    value_type
        Type of the values: uint8, uint16, uint32 or float32.
    has_counts
        Whether the values are counts.
    resume
        Go on after the last block that an earlier process wrote with the same arguments.

    Attributes
    ----------
    n_cells, n_values
        Numbers of cells and of stored values that are written.
    """

    def __init__(
        self,
        folder: str | Path,
        part: Path,
        n_genes: int,
        value_type: str,
        has_counts: bool,
        resume: bool = False,
    ):
        self.folder, self.part = Path(folder), part
        self.n_genes, self.value_type, self.has_counts = n_genes, np.dtype(value_type), has_counts
        self.gene_type = np.dtype(np.uint16 if n_genes <= 1 << 16 else np.uint32)
        written = _json(part / WRITTEN) if resume and (part / WRITTEN).exists() else {}
        self.n_cells, self.n_values = written.get("n_cells", 0), written.get("n_values", 0)
        self._sums: dict[str, list[Any]] = written.get("checksums", {"stops": [], "blocks": []})
        self._files: dict[str, Any] = {}
        with writing_errors(self.folder, _full(self.folder)):
            for name, size in Store(part, self._header()).file_bytes().items():
                path = part / name
                path.touch()
                if path.stat().st_size < size and self.n_cells:
                    raise ScmedleyError(
                        f"{path} is shorter than it was. Delete {part} and prepare the cells again."
                    )
                self._files[name] = path.open("r+b")
                self._files[name].truncate(size)  # a block that was not completed
                self._files[name].seek(size)
            if not self.n_cells:
                self._files[store.ROWS].seek(0)
                self._files[store.ROWS].write(np.zeros(1, np.int64).data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            with suppress(OSError):  # what a full disk has left in the buffer
                file.close()

    def append(
        self, x_NG: csr_matrix, total_N: np.ndarray | None = None, size_N: np.ndarray | None = None
    ) -> None:
        """Add cells without stored zeros; with counts, also their totals and the totals as models read them."""
        arrays: dict[str, np.ndarray] = {
            store.ROWS: x_NG.indptr[1:].astype(np.int64) + self.n_values,
            store.GENES: x_NG.indices.astype(self.gene_type),
            store.VALUES: x_NG.data.astype(self.value_type),
        }
        if total_N is not None and size_N is not None:
            arrays |= {store.TOTALS: total_N.astype(np.float64), store.SIZES: size_N.astype(np.float64)}
        block = hashlib.sha256()
        with writing_errors(self.folder, _full(self.folder)):
            for name, values in arrays.items():
                data = np.ascontiguousarray(values).data
                block.update(data)
                file = self._files[name]
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self.n_cells += x_NG.shape[0]
            self.n_values += x_NG.nnz
            self._sums["stops"].append(self.n_cells)
            self._sums["blocks"].append(block.hexdigest())
            written = {"n_cells": self.n_cells, "n_values": self.n_values, "checksums": self._sums}
            _replace(self.part / WRITTEN, json.dumps(written).encode())

    def bytes_left(self, n_cells: int, n_values: int) -> int:
        """Return how many bytes are still to write for so many cells and values in all."""
        whole = Store(self.part, self._header() | {"n_cells": n_cells, "n_values": n_values}).file_bytes()
        return sum(whole.values()) - sum(Store(self.part, self._header()).file_bytes().values())

    def finish(self, cells: AnnData, **about: Any) -> Store:
        """Write ``cells`` (obs, var, uns) and the header, and move the store to its folder."""
        with writing_errors(self.folder, _full(self.folder)):
            for file in self._files.values():
                file.close()
            notes = write_h5ad(cells, self.part / store.CELLS)
            header = self._header() | {"notes": notes} | about
            header["checksums"] = {**self._sums, "cells": sha256(self.part / store.CELLS)}
            header["trained_on"] = trained_on(cells, Store(self.part, header).matrix("log1p"))
            _replace(self.part / store.HEADER, json.dumps(header, indent=1).encode())
            take_place(self.part, self.folder)
            for path in self.folder.iterdir():
                if path.name not in (store.HEADER, store.CELLS, *self._files):
                    path.unlink()
        return Store.open(self.folder)

    def _header(self) -> dict[str, Any]:
        return {
            "version": store.VERSION,
            "n_cells": self.n_cells,
            "n_genes": self.n_genes,
            "n_values": self.n_values,
            "values": "counts" if self.has_counts else "log-normalised",
            "value_type": self.value_type.name,
            "gene_type": self.gene_type.name,
        }


def check_space(folder: Path, n_bytes: int) -> None:
    """Raise if the disk of ``folder`` has not so many bytes left."""
    free = shutil.disk_usage(next(path for path in folder.absolute().parents if path.exists())).free
    if n_bytes > free:
        raise ScmedleyError(
            f"{folder} needs {n_bytes:,} bytes more, and the disk has {free:,} left. Free some space and run the same "
            "again: it goes on from here. Or choose another folder."
        )


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return in words what differs between two sources with settings; "" if nothing does."""
    for path in {**before["files"], **now["files"]}:
        if before["files"].get(path) != now["files"].get(path):
            return f"the input file {path} has changed"
    for name, value in now["settings"].items():
        if (old := before["settings"].get(name)) != value:
            return f"{name} has changed from {old!r} to {value!r}"
    return "" if before == now else "the cells or their tables have changed"


def clear(part: Path) -> None:
    """Delete what is in an unfinished folder, but for its lock."""
    for path in part.iterdir():
        if path.name != LOCK:
            path.unlink()


def _full(path: Path) -> str:
    return (
        f"{path} is not complete, and what is written is kept. Free some space and run the same again: it goes on from "
        "there. Or choose another folder."
    )


def _replace(place: Path, data: bytes) -> None:
    """Write a small file in one step."""
    temporary = place.with_name(f"{place.name}.tmp")
    temporary.write_bytes(data)
    sync(temporary)
    temporary.replace(place)


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
