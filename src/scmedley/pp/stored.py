"""Prepared cells in a store on disk, for data that do not fit in memory."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from anndata import AnnData, read_h5ad
from scipy.sparse import csr_matrix

from scmedley import keys
from scmedley.data import store as stores
from scmedley.data.arrays import Matrix, totals, totals_of_cp10k, without_zeros
from scmedley.data.evidence import Checked
from scmedley.data.factors import Factors
from scmedley.data.features import genes_alone
from scmedley.data.formulas import is_formula
from scmedley.data.gene_names import GeneNames
from scmedley.data.matrix import COUNTS_LAYER, normalised
from scmedley.data.reader import Reader, Reading
from scmedley.data.stacked import StackedCells
from scmedley.data.store import Store
from scmedley.errors import ScmedleyError, listed, one_line, warn
from scmedley.io.lazy import opened, stored_by_column
from scmedley.io.reading import reading_errors
from scmedley.io.source import made_from
from scmedley.io.store import Steps, StoreWriter, check_space, clear, difference, unfinished
from scmedley.keys import Method, Reads, ValueKind
from scmedley.pp.checks import check
from scmedley.pp.counts import (
    NO_COUNTS,
    check_filtered,
    check_settings,
    depth,
    kept_cells,
    kept_genes,
    note,
    tidy_cells,
    usable,
)
from scmedley.pp.join import opened_batches
from scmedley.pp.passes import FoundMatrix, all_same, chosen_genes, summed
from scmedley.pp.prepared import store_batches
from scmedley.pp.split import store_split


def prepare_store(
    source: str | Path | Sequence[str | Path] | AnnData,
    folder: str | Path,
    batch_key: str | None,
    *,
    label_key: str | None = None,
    n_top_genes: int | None = None,
    min_genes: int = 10,
    min_cells: int = 3,
    values: ValueKind = "auto",
    seed: int = 0,
    method: Method = "log1p",
    progress: bool = True,
) -> Checked:
    """Prepare cells that do not fit in memory: as :func:`scmedley.pp.prepare`, but from disk to a store on disk.

    The cells are read in blocks, three or four times: to find out what the values are; for totals and filters; for
    the choice of genes; and to write the chosen genes of the cells that are kept. Memory does not depend on the number
    of cells, but for a few numbers and the table of each cell. Genes, split, values and warnings are those of
    ``prepare``. If the process ends early, the same call goes on where it was; a complete store of the same source and
    settings is checked and used again.

    Parameters
    ----------
    source
        File of cells in any format that :func:`scmedley.read` reads; or several files, one batch each. Matrices in
        h5ad and Zarr that are dense or stored by row (CSR) are read in blocks, other files are read whole. Or an
        AnnData whose matrices are on disk.
    folder
        Folder of the store. :func:`read_store` opens it.
    batch_key
        As in ``prepare``; with several files, the name of the new ``obs`` column that holds the file of each cell.
    label_key, n_top_genes, min_genes, min_cells, values, seed
        As in ``prepare``.
    method
        As in ``prepare``, but not ``"pearson"``.
    progress
        Whether to show progress bars.

    Returns
    -------
    Checked
        Which matrix was used, what it held, and the warnings for the report.

    Raises
    ------
    ScmedleyError
        As ``prepare``; the folder holds other files, or a store of another source or with other settings; an input
        file cannot be read; or the disk is full.
    """
    settings: dict[str, Any] = {
        "batch_key": batch_key if isinstance(batch_key, str | None) else str(batch_key),
        "label_key": label_key,
        "n_top_genes": check_settings(n_top_genes, min_genes, min_cells, method, seed),
        "min_genes": min_genes,
        "min_cells": min_cells,
        "values": values,
        "seed": seed,
        "method": method,
    }
    if method == "pearson":
        raise ScmedleyError(
            "method='pearson' chooses genes by residuals of all cells, which must be in memory. Use sm.pp.prepare, or "
            "another method."
        )
    folder = Path(folder)
    with _opened(source, batch_key, values) as (adata, paths):
        about = made_from(adata, paths, settings)
        if (folder / stores.HEADER).exists():
            checked = _used_again(folder, about)
        else:
            with unfinished(folder) as part:
                checked = _prepared(adata, folder, part, Factors.of(batch_key), about, progress)
    for line in Store.open(folder).about.get("notes", ()):
        warn(f"{stores.CELLS} of the store: {line}")
    return checked


@contextmanager
def _opened(source: Any, batch_key: str | None, values: ValueKind) -> Iterator[tuple[AnnData, list[Path]]]:
    """Yield the cells, and their files if they are known."""
    if isinstance(source, AnnData | StackedCells):
        yield cast(AnnData, source), []
        return
    paths = [Path(source)] if isinstance(source, str | Path) else [Path(path) for path in source]
    for path in paths:
        if path.exists() and (columns := stored_by_column(path)):
            warn(
                f"{path} is read whole into memory, because {listed(columns, 3)} is stored by column (CSC). If it does "
                "not fit, write it by row once where there is more memory: adata.X = adata.X.tocsr(), the same for "
                "each layer, then adata.write_h5ad(path)."
            )
    if len(paths) == 1:
        with opened(paths[0]) as adata:
            yield adata, paths
        return
    if not isinstance(batch_key, str) or is_formula(batch_key):
        raise ScmedleyError(
            f"Several files are one batch each, and batch_key={batch_key!r} is no name for their column. For other "
            "batches, open them with scmedley.pp.join.opened_batches, and pass what it yields."
        )
    with opened_batches(paths, batch_key, values) as adata:
        yield adata, paths


def _used_again(folder: Path, about: dict[str, Any]) -> Checked:
    """Return the finding of a complete store; raise if it is of another source or damaged."""
    store = Store.open(folder)
    found = store.about.get("made_from")
    if found is None or (changed := difference(found, about)):
        why = "it was not prepared from files" if found is None else changed
        raise ScmedleyError(
            f"{folder} holds a store of other cells or settings: {why}. Choose another folder, or delete this one."
        )
    store.check()
    return _checked(store.about["checked"])


def _prepared(
    adata: AnnData, folder: Path, part: Path, factors: Factors, about: dict[str, Any], progress: bool
) -> Checked:
    """Prepare the cells in an unfinished folder; return the finding."""
    settings, steps, batch_key = about["settings"], Steps(part, about), factors.batch_key
    label_key, method = settings["label_key"], settings["method"]
    store_batches(adata, factors)
    adata, left_out = genes_alone(adata)
    matrix = _found(adata, steps, batch_key, about, progress)
    cells = AnnData(obs=adata.obs.copy(), var=adata.var.copy())
    batches_before = tidy_cells(cells, batch_key, label_key)

    sums = steps.once("sums", lambda: summed(matrix, settings["min_genes"]))
    kept_N = kept_cells(sums["genes_N"], settings["min_genes"])
    genes_G = kept_genes(sums["cells_G"], settings["min_cells"])
    cells = cells[kept_N, genes_G].copy()
    alike = all_same(matrix, kept_N, genes_G, sums["cells_G"])
    more = check_filtered(cells, alike, batch_key, label_key, batches_before, settings["min_genes"])
    has_counts = matrix.checked.values == "counts"
    if not has_counts and keys.COUNTS in adata.layers and matrix.checked.where != COUNTS_LAYER:
        more.append(NO_COUNTS)
    if has_counts and batch_key is not None:
        more += depth(sums["total_N"][kept_N], cells.obs[batch_key])
    store_split(cells, batch_key, label_key, settings["seed"])

    def choose() -> dict[str, Any]:
        n_top = settings["n_top_genes"]
        return {"chosen_G": chosen_genes(matrix, kept_N, genes_G, cells.obs, batch_key, n_top, method)}

    chosen_G = steps.once("genes", choose)["chosen_G"]
    cells.var[keys.HVG] = chosen_G
    checked = note(cells, matrix.checked, label_key, method, adata.shape, matrix.n_counted)
    checked = replace(checked, warnings=[left_out] * bool(left_out) + checked.warnings + more)
    n_values = int(sums["cells_G"][genes_G][chosen_G].sum())
    value_type = _value_type(sums["largest_G"][genes_G][chosen_G].max(), bool(sums["whole"]))
    with StoreWriter(folder, part, int(chosen_G.sum()), value_type, has_counts, resume=True) as writer:
        check_space(folder, writer.bytes_left(cells.n_obs, n_values))
        for _, x_NG, total_N in matrix.kept(kept_N, genes_G, "Writing", writer.n_cells):
            _append(writer, x_NG, total_N, chosen_G, checked, method)
        chosen = AnnData(obs=cells.obs, var=cells.var[chosen_G], uns=dict(cells.uns))
        writer.finish(chosen, made_from=about, checked=asdict(checked))
    return checked


def _found(
    adata: AnnData, steps: Steps, batch_key: str | None, about: dict[str, Any], progress: bool
) -> FoundMatrix:
    """Find the matrix to use, unless an earlier process has done so."""
    settings, name = about["settings"], " or ".join(about["files"]) or "the input"

    def look() -> dict[str, Any]:
        with reading_errors(Path(name)):
            found = check(adata, batch_key, settings["label_key"], settings["values"])
        return {"json": json.dumps(asdict(found))}

    checked = usable(_checked(json.loads(str(steps.once("values", look)["json"]))), settings["method"])
    return FoundMatrix(adata, checked, name, progress)


def _append(
    writer: StoreWriter,
    x_NG: Matrix,
    total_N: np.ndarray,
    chosen_G: np.ndarray,
    checked: Checked,
    method: Method,
) -> None:
    """Write the chosen genes of a block of cells, and the totals over all counted genes."""
    log1p_NG = normalised(x_NG, total_N, checked)
    if not writer.has_counts:
        writer.append(without_zeros(log1p_NG[:, chosen_G]))
        return
    size_N = totals_of_cp10k(x_NG, log1p_NG)
    if method == "counts" and checked.where != "raw.X" and checked.sizes is None:
        total_N = size_N = totals(x_NG)  # over the genes that are left, as the docstring of prepare says
    writer.append(without_zeros(x_NG[:, chosen_G]), total_N, size_N)


def _checked(found: dict[str, Any]) -> Checked:
    """Return a finding from JSON."""
    sizes = found["sizes"]
    return Checked(**{**found, "sizes": None if sizes is None else _checked(sizes)})


def _value_type(largest: float, whole: bool) -> str:
    """Return the smallest type that holds all values."""
    if not whole:
        return "float32"
    return next((name for name in ("uint8", "uint16", "uint32") if largest <= np.iinfo(name).max), "float32")


def read_cells(store: Store) -> AnnData:
    """Read the table of the cells of a store: obs, var and uns, without a matrix.

    Raises
    ------
    ScmedleyError
        The file is missing, damaged, or holds other cells than the store.
    """
    try:
        cells = read_h5ad(store.folder / stores.CELLS)
    except Exception as error:  # h5py and anndata raise many kinds for a damaged file
        raise store.damaged(f"{stores.CELLS} cannot be read ({one_line(error)})") from error
    if cells.shape != store.shape:
        raise store.damaged(f"{stores.CELLS} holds {cells.n_obs:,} cells and {cells.n_vars:,} genes")
    return cells


def read_store(folder: str | Path, *, reads: Reads | None = None, memory_gb: float | None = None) -> Reading:
    """Open a store as a reading, which models take in place of an AnnData: ``model.fit(read_store(folder))``.

    Parameters
    ----------
    folder
        Folder of the store.
    reads
        "log1p" leaves the counts out, which only models of counts read; "counts" raises if there are none. ``None``:
        all that the store holds.
    memory_gb
        Memory (of the device) that the cells may take, in GB; if they take more, each epoch reads them from the disk.
        ``None``: a quarter of what is free.

    Raises
    ------
    ScmedleyError
        There is no complete store, it is damaged, it lacks the counts that were asked for, or ``memory_gb`` is
        negative.
    """
    if memory_gb is not None and not (isinstance(memory_gb, int | float) and 0 <= memory_gb < np.inf):
        raise ScmedleyError(f"memory_gb={memory_gb!r} is no amount of memory in GB. Give 0 or more, or None.")
    store = Store.open(folder)
    cells = read_cells(store)
    kind: Reads = reads or ("counts" if store.has_counts else "log1p")
    counted = kind == "counts"
    reader = Reader(GeneNames.of(cells.var), kind, store.about["trained_on"])
    ours = cells.uns.get(keys.UNS, {})
    return Reading(
        reader,
        store.matrix("log1p"),
        cells.obs,
        ours.get("label_key") or None,
        store.matrix("counts") if counted else None,
        store.size_N if counted else None,
        memory_gb=memory_gb,
    )


def store_new(reader: Reader, adata: AnnData, folder: str | Path, values: ValueKind = "auto") -> Reading:
    """Return new cells as a fitted model reads them, from a store that is written here in blocks.

    Parameters
    ----------
    reader
        The reader of the model.
    adata
        Cells whose matrices may be on disk.
    folder
        New folder of the store.
    values
        What the values are, as in :func:`scmedley.pp.prepare`.

    Raises
    ------
    ScmedleyError
        As :meth:`Reader.blocks`; or the disk is full.
    """
    has_counts, missing_G = reader.kind == "counts", None
    with unfinished(folder) as part:
        clear(part)
        with StoreWriter(folder, part, len(reader.genes.names), "float32", has_counts) as writer:
            for block in reader.blocks(adata, values):
                missing_G = block.missing_G
                x_NG = csr_matrix(block.counts_NG if has_counts else block.log1p_NG)
                writer.append(without_zeros(x_NG), block.total_N, block.total_N)
            store = writer.finish(AnnData(obs=adata.obs, var=reader.genes.var()))
    counts_NG, total_N = (store.matrix("counts"), store.size_N) if has_counts else (None, None)
    return Reading(reader, store.matrix("log1p"), adata.obs, None, counts_NG, total_N, missing_G)
