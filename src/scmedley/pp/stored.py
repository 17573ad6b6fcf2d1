"""Prepared cells in a store on disk, for data that do not fit in memory."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from anndata import AnnData, read_h5ad

from scmedley import keys
from scmedley.data import store as stores
from scmedley.data.arrays import tidy, totals_of_cp10k
from scmedley.data.differences import trained_on
from scmedley.data.gene_names import GeneNames
from scmedley.data.reader import Reader, Reading
from scmedley.data.store import Store
from scmedley.io.store import StoreWriter
from scmedley.keys import Reads

BLOCK = 10_000  # cells that are written at once


def write_store(adata: AnnData, folder: str | Path) -> Store:
    """Write the highly variable genes of prepared cells, in memory, to a store."""
    genes = np.flatnonzero(adata.var[keys.HVG].to_numpy(dtype=bool))
    has_counts = keys.COUNTS in adata.layers
    values = adata.layers[keys.COUNTS if has_counts else keys.LOGNORM]
    value_type = "float32"
    if has_counts and not (values.data % 1).any():
        largest = values.data.max()
        value_type = next(name for name in ("uint8", "uint16", "uint32") if largest <= np.iinfo(name).max)
    with StoreWriter(folder, len(genes), value_type) as writer:
        for start in range(0, adata.n_obs, BLOCK):
            rows = slice(start, start + BLOCK)
            x = tidy(values[rows])
            total_N = totals_of_cp10k(x, tidy(adata.layers[keys.LOGNORM][rows])) if has_counts else None
            writer.append(x[:, genes], total_N)
        cells = AnnData(obs=adata.obs, var=adata.var.iloc[genes], uns=dict(adata.uns))
        about = trained_on(adata, adata.layers[keys.LOGNORM][:, genes])
        return writer.finish(cells, has_counts, trained_on=about)


def read_store(folder: str | Path, *, memory_gb: float | None = None) -> Reading:
    """Open a store as a reading, which models take in place of an AnnData: ``model.fit(read_store(folder))``.

    Parameters
    ----------
    folder
        Folder of the store.
    memory_gb
        Memory (of the device) that the cells may take, in GB; if they take more, each epoch reads them from the disk.
        ``None``: a quarter of what is free.
    """
    store = Store.open(folder)
    cells = read_h5ad(store.folder / stores.CELLS)
    kind: Reads = "counts" if store.has_counts else "log1p"
    reader = Reader(GeneNames.of(cells.var), kind, store.about["trained_on"])
    ours = cells.uns.get(keys.UNS, {})
    return Reading(
        reader,
        store.matrix("log1p"),
        cells.obs,
        ours.get("label_key") or None,
        store.matrix("counts") if store.has_counts else None,
        store.total_N if store.has_counts else None,
        memory_gb=memory_gb,
    )


def with_reads(reading: Reading, kind: Reads) -> Reading:
    """Return the reading of a store as a model of this kind reads it: counts only for a model of counts."""
    if kind == "counts":
        return reading
    return replace(reading, reader=replace(reading.reader, kind=kind), counts_NG=None, total_N=None, _rows={})
