"""Write a store of cells (:mod:`scmedley.data.store`), block by block."""

import hashlib
import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from anndata import AnnData
from scipy.sparse import csr_matrix

from scmedley.data import store
from scmedley.io.writing import write_h5ad


class StoreWriter:
    """Write the cells of a store in order, a block of any number of cells at a time.

    Parameters
    ----------
    folder
        An empty folder; it is a store only after :meth:`finish`.
    n_genes
        G.
    value_type
        Type of the values: uint8, uint16, uint32 or float32.
    """

    def __init__(self, folder: str | Path, n_genes: int, value_type: str):
        self.folder, self.n_genes, self.value_type = Path(folder), n_genes, np.dtype(value_type)
        self.gene_type = np.dtype(np.uint16 if n_genes <= 1 << 16 else np.uint32)
        self.n_cells = self.n_values = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        names = (store.ROWS, store.GENES, store.VALUES, store.TOTALS)
        self._files = {name: (self.folder / name).open("wb") for name in names}
        self._sums: dict[str, Any] = {name: hashlib.sha256() for name in names}
        self._write(store.ROWS, np.zeros(1, np.int64))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()

    def append(self, x_NG: csr_matrix, total_N: np.ndarray | None) -> None:
        """Add cells; ``total_N`` are their totals if the values are counts."""
        self._write(store.ROWS, x_NG.indptr[1:].astype(np.int64) + self.n_values)
        self._write(store.GENES, x_NG.indices.astype(self.gene_type))
        self._write(store.VALUES, x_NG.data.astype(self.value_type))
        if total_N is not None:
            self._write(store.TOTALS, total_N.astype(np.float64))
        self.n_cells += x_NG.shape[0]
        self.n_values += x_NG.nnz

    def finish(self, cells: AnnData, has_counts: bool, **about: Any) -> store.Store:
        """Write ``cells`` (obs, var, uns) and the header; return the store."""
        for file in self._files.values():
            file.close()
        write_h5ad(cells, self.folder / store.CELLS)
        header = {
            "version": store.VERSION,
            "n_cells": self.n_cells,
            "n_genes": self.n_genes,
            "n_values": self.n_values,
            "values": "counts" if has_counts else "log-normalised",
            "value_type": self.value_type.name,
            "gene_type": self.gene_type.name,
            "checksums": {name: found.hexdigest() for name, found in self._sums.items()},
            **about,
        }
        (self.folder / store.HEADER).write_text(json.dumps(header, indent=1), encoding="utf-8")
        return store.Store.open(self.folder)

    def _write(self, name: str, values: np.ndarray) -> None:
        data = np.ascontiguousarray(values).data
        self._files[name].write(data)
        self._sums[name].update(data)
