"""One reader for each format; :func:`scmedley.io.read` is the door to them."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData, read_h5ad, read_zarr
from scipy.io import mmread
from scipy.sparse import csr_matrix, vstack

from scmedley.errors import ScmedleyError

FORMATS = "h5ad, Zarr, a 10x mtx folder, 10x h5, csv or tsv (also .gz)"
_HDF5 = b"\x89HDF\r\n\x1a\n"
_ROWS = 500  # cells of a text file that are dense in memory at one time
# Plain text: a gene may be called NA, and quotes mean nothing.
_TABLE: dict[str, Any] = {
    "sep": "\t",
    "header": None,
    "dtype": str,
    "keep_default_na": False,
    "quoting": csv.QUOTE_NONE,
}


def reader_for(path: Path) -> Callable[[Path], AnnData]:
    """Choose the reader by content, as names lie; by name only for text.

    Raises
    ------
    ScmedleyError
        There is nothing at ``path``, or nothing that scMedley can read.
    """
    if not path.exists():
        raise ScmedleyError(f"{path} does not exist. Look at the spelling, and at the folder you are in.")
    if path.is_dir():
        if any((path / name).exists() for name in (".zgroup", "zarr.json")) or path.suffix == ".zarr":
            return _read_zarr
        if _found(path, "matrix.mtx"):
            return _read_mtx
        raise ScmedleyError(
            f"{path} is a folder without matrix.mtx or Zarr's zarr.json or .zgroup. Give {FORMATS}."
        )
    with path.open("rb") as file:
        start = file.read(8)
    if not start:
        raise ScmedleyError(f"{path} is empty. Copy or write it again.")
    if start == _HDF5:
        return _read_hdf5
    suffixes = path.name.lower().removesuffix(".gz")
    if suffixes.endswith((".csv", ".tsv", ".txt")):
        return _read_text
    raise ScmedleyError(f"{path} is no HDF5 file and its name does not end in .csv or .tsv. Give {FORMATS}.")


def _read_zarr(path: Path) -> AnnData:
    adata: AnnData = read_zarr(path)
    return adata


def _read_hdf5(path: Path) -> AnnData:
    with h5py.File(path, "r") as file:
        h5ad = "obs" in file and "var" in file
        if not h5ad and not any("barcodes" in g for g in file.values() if isinstance(g, h5py.Group)):
            raise ScmedleyError(
                f"{path} is HDF5 but neither h5ad (no obs and var) nor 10x (no matrix). Give {FORMATS}."
            )
    adata: AnnData = read_h5ad(path) if h5ad else _read_10x_h5(path)
    return adata


def _read_10x_h5(path: Path) -> AnnData:
    """Read Cell Ranger's h5: since version 3 one group "matrix", before that one per genome."""
    with h5py.File(path, "r") as file:
        if "matrix" not in file and len(file) > 1:
            raise ScmedleyError(
                f"{path} holds several genomes: {', '.join(file)}. Split it into one file for each."
            )
        group = file["matrix"] if "matrix" in file else next(iter(file.values()))
        n_genes, n_cells = group["shape"][:]
        x = csr_matrix(
            (group["data"][:].astype(np.float32), group["indices"][:], group["indptr"][:]),
            shape=(n_cells, n_genes),
        )
        features = group.get("features", group)
        symbols, ids = (
            features[k].asstr()[:]
            for k in (("name", "id") if "features" in group else ("gene_names", "genes"))
        )
        types = features["feature_type"].asstr()[:] if "feature_type" in features else None
        return _from_10x(x, group["barcodes"].asstr()[:], ids, symbols, types)


def _read_mtx(folder: Path) -> AnnData:
    features = pd.read_csv(_one(folder, "features.tsv", "genes.tsv"), **_TABLE)
    barcodes = pd.read_csv(_one(folder, "barcodes.tsv"), **_TABLE)
    x = csr_matrix(mmread(_one(folder, "matrix.mtx"), spmatrix=False).T, dtype=np.float32)
    if x.shape != (len(barcodes), len(features)):
        raise ScmedleyError(
            f"{folder}: the matrix has {x.shape[1]} genes and {x.shape[0]} cells, but there are "
            f"{len(features)} features and {len(barcodes)} barcodes. Take the three files from one run."
        )
    columns = [features[i].to_numpy() if i in features else None for i in range(3)]
    symbols = columns[0] if columns[1] is None else columns[1]
    return _from_10x(x, barcodes[0].to_numpy(), columns[0], symbols, columns[2])


def _found(folder: Path, *names: str) -> list[Path]:
    """Find these files, gzipped or not, also behind a sample's prefix."""
    return [p for name in names for end in ("", ".gz") for p in sorted(folder.glob(f"*{name}{end}"))]


def _one(folder: Path, *names: str) -> Path:
    found = _found(folder, *names)
    if len(found) > 1:
        raise ScmedleyError(
            f"{folder} has several files like {names[0]} ({found[0].name}, {found[1].name}). Keep one."
        )
    if not found:
        raise ScmedleyError(
            f"{folder} has matrix.mtx but no {' or '.join(names)} (or .gz). Copy the whole folder."
        )
    return found[0]


def _from_10x(x: csr_matrix, cells: Any, ids: Any, symbols: Any, types: Any) -> AnnData:
    """Keep gene expression; a symbol that repeats, as some do in every 10x file, gets its gene id."""
    var = pd.DataFrame({"gene_ids": ids}, index=pd.Index(symbols, dtype=object).astype(str))
    again = var.index.duplicated(keep=False)
    var.index = pd.Index(np.where(again, var.index + "_" + var["gene_ids"], var.index))
    adata = AnnData(x, obs=pd.DataFrame(index=pd.Index(cells, dtype=object)), var=var)
    if types is None or (keep := types == "Gene Expression").all():
        return adata
    if not keep.any():
        raise ScmedleyError(f"No feature is of type 'Gene Expression'; the types are {sorted(set(types))}.")
    return adata[:, keep].copy()


def _read_text(path: Path) -> AnnData:
    """Read csv or tsv in pieces, as sparse rows: a dense table may not fit into memory."""
    options: dict[str, Any] = {
        "sep": "," if ".csv" in path.name.lower() else "\t",
        "header": None,
        "low_memory": False,
    }
    header = [
        str(name) for name in pd.read_csv(path, nrows=1, dtype=str, keep_default_na=False, **options).iloc[0]
    ]
    cells: list[str] = []
    blocks = []
    with pd.read_csv(path, skiprows=1, chunksize=_ROWS, index_col=0, dtype={0: str}, **options) as pieces:
        for piece in pieces:
            names = header[-piece.shape[1] :]  # R leaves the corner out, everyone else writes something there
            for position, kind in enumerate(piece.dtypes):
                if kind.kind not in "biuf":
                    _blame_text(path, piece, position, names[position])
            cells += [str(cell) for cell in piece.index]
            blocks.append(csr_matrix(piece.to_numpy(dtype=np.float32)))
    if not blocks or not blocks[0].shape[1]:
        raise ScmedleyError(
            f"{path} has no cells or no genes. Give one row per cell, its name first, and a header, with commas "
            "between the columns of a .csv and tabs in a .tsv."
        )
    if len(set(cells)) < len(cells) and not any(np.isnan(pd.to_numeric(cells[:_ROWS], errors="coerce"))):
        raise ScmedleyError(
            f"{path}: the first column holds numbers that repeat, so it is a gene and not the cells' names. Put "
            "names there, one for each cell."
        )
    return AnnData(
        vstack(blocks, format="csr"),
        obs=pd.DataFrame(index=pd.Index(cells, dtype=object)),
        var=pd.DataFrame(index=pd.Index(names, dtype=object)),
    )


def _blame_text(path: Path, piece: pd.DataFrame, position: int, gene: str) -> None:
    values = piece.iloc[:, position]
    text = values[pd.to_numeric(values, errors="coerce").isna() & values.notna()]
    raise ScmedleyError(
        f"{path}: cell {str(text.index[0])!r}, column {gene!r} holds {str(text.iloc[0])[:40]!r}, which is no "
        "number. Rows are cells, columns are genes; put batches and labels into obs of an h5ad, or give one "
        "file per batch."
    )
