"""One reader for each file format; :mod:`scmedley.io.reading` calls them."""

import csv
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData, read_h5ad, read_zarr
from scipy.io import mmread
from scipy.sparse import csr_matrix

from scmedley.errors import ScmedleyError, warn
from scmedley.io.tables import ENDINGS, PACKED, read_table

FORMATS = "h5ad, Zarr, a 10x mtx folder, 10x h5, csv or tsv (also .gz)"
_HDF5 = b"\x89HDF\r\n\x1a\n"
# Plain text: a gene may have the name NA, and quotes have no meaning.
_TABLE: dict[str, Any] = {
    "sep": "\t",
    "header": None,
    "dtype": str,
    "keep_default_na": False,
    "quoting": csv.QUOTE_NONE,
}


def reader_for(path: Path) -> Callable[[Path], AnnData]:
    """Return the reader for a path, chosen by file content; by extension for text.

    Raises
    ------
    ScmedleyError
        ``path`` does not exist, or scMedley cannot read its format.
    """
    if not path.exists():
        raise ScmedleyError(f"{path} does not exist. Check the spelling and the current folder.")
    if path.is_dir():
        return _reader_for_folder(path)
    if not path.is_file():
        raise ScmedleyError(
            f"{path} is a pipe or a device, which can be read only once. Write its content to a file first."
        )
    with path.open("rb") as file:
        start = file.read(8)
    if not start:
        raise ScmedleyError(f"{path} is empty. Copy or write it again.")
    if start == _HDF5:
        return _read_hdf5
    name = path.name.lower()
    packed = name.endswith((".gz", ".bz2", ".xz")) or start.startswith(tuple(PACKED))
    if (name.rpartition(".")[0] if packed and not name.endswith(ENDINGS) else name).endswith(ENDINGS):
        return read_table
    raise ScmedleyError(f"{path} is {_what(path, packed)} Give {FORMATS}.")


def _reader_for_folder(path: Path) -> Callable[[Path], AnnData]:
    if any((path / name).exists() for name in (".zgroup", "zarr.json")) or path.suffix == ".zarr":
        return _read_zarr
    if _found(path, "matrix.mtx"):
        return _read_mtx
    inside = [p for p in sorted(path.glob("*")) if p.is_dir() and _found(p, "matrix.mtx")]
    found = f" Its folder {inside[0].name} has: give {inside[0]}." if inside else ""
    raise ScmedleyError(
        f"{path} is a folder without matrix.mtx or Zarr's zarr.json or .zgroup.{found} Give {FORMATS}."
    )


def _what(path: Path, packed: bool) -> str:
    """Return what an unreadable file is, and what to do with it."""
    name = path.name.lower()
    if name.endswith((".rds", ".rdata", ".rda", ".h5seurat")):
        return "a file of R. Write it as h5ad in R (zellkonverter::writeH5AD)."
    if tarfile.is_tarfile(path):
        return f"an archive: unpack it first (tar -xf {path.name})."
    if packed:
        return f"compressed: decompress it first (gunzip {path.name})."
    if zipfile.is_zipfile(path):
        return f"a zip archive: unpack it first (unzip {path.name}); save a spreadsheet as csv."
    if name.endswith(".mtx"):
        return "only the matrix. Give its folder, with features and barcodes."
    return "not an HDF5 file, and its name does not end in .csv or .tsv."


def _read_zarr(path: Path) -> AnnData:
    adata: AnnData = read_zarr(path)
    return adata


def _read_hdf5(path: Path) -> AnnData:
    with h5py.File(path, "r") as file:
        reason = _why_unreadable(file, path)
        if reason:
            raise ScmedleyError(f"{path} {reason}")
        h5ad = "obs" in file and "var" in file
    adata: AnnData = read_h5ad(path) if h5ad else _read_10x_h5(path)
    return adata


def _why_unreadable(file: h5py.File, path: Path) -> str:
    """Return which other kind of HDF5 file this is, and what to do with it; "" for h5ad and 10x."""
    if file.attrs.get("encoding-type") == "MuData" or "mod" in file:
        names = ", ".join(f"mod/{name}" for name in file.get("mod", ()))
        return (
            f"is MuData of {names or 'several modalities'}. Save one of them as h5ad: "
            f"mudata.read_h5ad('{path.name}', mod='rna').write_h5ad('rna.h5ad')."
        )
    if "obs" in file and "var" in file:
        return ""
    if "row_attrs" in file and "col_attrs" in file:
        return f"is a loom file. Save it as h5ad: scanpy.read_loom('{path.name}').write_h5ad('cells.h5ad')."
    if "cell.names" in file:
        return "is h5Seurat. Write it as h5ad in R (zellkonverter::writeH5AD)."
    if "barcode_idx" in file:
        return "is Cell Ranger's molecule_info.h5. Give filtered_feature_bc_matrix.h5 from the same folder."
    if not any("barcodes" in g for g in file.values() if isinstance(g, h5py.Group)):
        return f"is HDF5 but neither h5ad (no obs and var) nor 10x (no matrix). Give {FORMATS}."
    return ""


def _read_10x_h5(path: Path) -> AnnData:
    """Read Cell Ranger's h5: one group "matrix" since version 3, before that one group per genome.

    scanpy.read_10x_h5 needs "feature_type", which other writers leave out, and names in ASCII.
    """
    with h5py.File(path, "r") as file:
        genomes = [name for name, g in file.items() if isinstance(g, h5py.Group) and "barcodes" in g]
        if "matrix" not in file and len(genomes) > 1:
            raise ScmedleyError(
                f"{path} holds several genomes: {', '.join(genomes)}. Split it into one file for each."
            )
        group = file["matrix"] if "matrix" in file else file[genomes[0]]
        n_genes, n_cells = group["shape"][:]
        x = csr_matrix(
            (group["data"][:].astype(np.float32), group["indices"][:], group["indptr"][:]),
            shape=(n_cells, n_genes),
        )
        features = group.get("features", group)
        new = "features" in group
        var = pd.DataFrame({"gene_ids": features["id" if new else "genes"].asstr()[:]})
        symbols = features["name" if new else "gene_names"].asstr()[:]
        for key, column in (("feature_type", "feature_types"), ("genome", "genome")):
            if new and key in features:
                var[column] = features[key].asstr()[:]
        return _from_10x(x, group["barcodes"].asstr()[:], symbols, var)


def _read_mtx(folder: Path) -> AnnData:
    features = pd.read_csv(_one(folder, "features.tsv", "genes.tsv"), **_TABLE)
    barcodes = pd.read_csv(_one(folder, "barcodes.tsv"), **_TABLE)
    x = csr_matrix(mmread(_one(folder, "matrix.mtx"), spmatrix=False).T, dtype=np.float32)
    # Some files have a header.
    features, barcodes = (
        t.iloc[int(len(t) - 1 in x.shape and len(t) not in x.shape) :] for t in (features, barcodes)
    )
    if x.shape == (len(features), len(barcodes)) and x.shape[0] != x.shape[1]:
        warn(f"{folder.name}: the matrix is cells x genes, but 10x writes genes x cells; it was transposed.")
        x = csr_matrix(x.T)
    if x.shape != (len(barcodes), len(features)):
        raise ScmedleyError(
            f"{folder}: the matrix has {x.shape[1]} genes and {x.shape[0]} cells, but there are "
            f"{len(features)} features and {len(barcodes)} barcodes. Use the three files of one run."
        )
    var = pd.DataFrame({"gene_ids": features[0].to_numpy()})
    if 2 in features:
        var["feature_types"] = features[2].to_numpy()
    return _from_10x(x, barcodes[0].to_numpy(), features[1 if 1 in features else 0].to_numpy(), var)


def _found(folder: Path, *names: str) -> list[Path]:
    """Return the files with these names, gzipped or not, also after the prefix of a sample."""
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


def _from_10x(x: csr_matrix, cells: Any, symbols: Any, var: pd.DataFrame) -> AnnData:
    """Return the AnnData; repeated gene symbols, which every 10x file has, get their gene id."""
    names = pd.Index(symbols, dtype=object).astype(str)
    kinds = var.get("feature_types", "")  # an antibody may have the name of its gene
    is_repeated = (pd.Series(names) + "\t" + kinds).duplicated(keep=False).to_numpy()
    var.index = pd.Index(np.where(is_repeated, names + "_" + var["gene_ids"].to_numpy(), names))
    return AnnData(x, obs=pd.DataFrame(index=pd.Index(cells, dtype=object)), var=var)
