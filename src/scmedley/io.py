"""Read what people have. The names of :mod:`scmedley.writing` are here as well."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData, concat
from scipy.sparse import csr_matrix, issparse

from scmedley import keys
from scmedley.errors import ScmedleyError, listed
from scmedley.errors import one_line as _one_line
from scmedley.formats import reader_for
from scmedley.values import TARGET_SUM, Checked, check_unique, find_values, matrix, rescaled
from scmedley.writing import (
    add_results,
    check_columns,
    check_place,
    replacing,
    sha256,
    with_results,
    write_csv,
    write_h5ad,
    write_json,
)

__all__ = [
    "add_results",
    "check_columns",
    "check_place",
    "read",
    "read_batches",
    "read_embedding",
    "replacing",
    "sha256",
    "with_results",
    "write_csv",
    "write_h5ad",
    "write_json",
]


def read(path: str | Path) -> AnnData:
    """Read a file of cells x genes into memory, whatever its format.

    Parameters
    ----------
    path
        h5ad; a Zarr folder; a 10x folder with matrix.mtx, features and barcodes; 10x h5 (gene expression is
        kept, repeated gene symbols get their gene id); csv or tsv with a header of gene names, cell names
        first in each row, and numbers only.

    Returns
    -------
    AnnData
        ``X`` is CSR or dense, float32; names are strings.

    Raises
    ------
    ScmedleyError
        No such path, unreadable, cut short, or none of these formats.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            # Names that repeat are said by the checks, in our words.
            warnings.filterwarnings("ignore", message="(Observation|Variable) names are not unique")
            # Old files are no fault of the user's.
            warnings.filterwarnings("ignore", category=FutureWarning, module="anndata|zarr")
            return _tidied(reader_for(path)(path), path)
    except ScmedleyError:
        raise
    except PermissionError as error:
        raise ScmedleyError(
            f"{path} may not be read by you ({error.strerror}). Change its permissions."
        ) from error
    except BlockingIOError as error:  # h5py could not lock the file
        raise ScmedleyError(
            f"{path} is locked: another program has it open for writing. Close it there, or wait."
        ) from error
    except Exception as error:  # readers raise anything on a broken file: OSError, KeyError, zlib.error ...
        raise ScmedleyError(
            f"{path} cannot be read: {_one_line(error)}. It may be cut short, or not be what "
            "its name says; copy or write it again."
        ) from error


def read_batches(paths: Sequence[str | Path], batch_key: str = "batch") -> AnnData:
    """Read several files, one batch each, and keep the genes that all of them have.

    Where the usable values do not lie in the same place in all files, or are log-normalised to different totals,
    ``X`` holds them: counts, or log1p CP10k.

    Parameters
    ----------
    paths
        Two or more; a batch is called by its file's name without endings.
    batch_key
        ``obs`` column that says which file a cell came from; cell names are prefixed with it.

    Raises
    ------
    ScmedleyError
        As :func:`read` does; fewer than two files, two of the same name, no gene in common, repeated genes,
        counts in one file and log-normalised values in another.
    """
    if len(paths) < 2:
        raise ScmedleyError(f"{len(paths)} file given; one file for each of two or more batches is needed.")
    names = [Path(p).name.split(".")[0] for p in paths]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ScmedleyError(
            f"Batches are called by their file, but several files are called {repeated[0]!r}. Rename them."
        )
    parts: dict[str, AnnData] = {}
    shared: pd.Index | None = None
    for name, path in zip(names, paths, strict=True):
        part = read(path)
        if not part.var_names.is_unique:
            twice = part.var_names[part.var_names.duplicated()][0]
            raise ScmedleyError(
                f"{path}: gene {twice!r} occurs more than once, so files cannot be put together."
            )
        if batch_key in part.obs:
            raise ScmedleyError(
                f"{path} has an obs column {batch_key!r} already, and of several files each is one batch. Choose "
                "another --batch for the files, or put them together first to use that column."
            )
        part.obs_names = [f"{name}_{cell}" for cell in part.obs_names]
        shared = part.var_names if shared is None else shared.intersection(part.var_names)
        if not len(shared):
            raise ScmedleyError(
                f"{path} shares no gene name with the files before it. Its genes are called like "
                f"{listed(part.var_names[:2])}, those of {names[0]} like "
                f"{listed(parts[names[0]].var_names[:2])}: use symbols in all files, or ids in all; if those are "
                "names of cells, swap rows and columns."
            )
        parts[name] = part
    _bring_together(parts, paths)
    return concat(parts, join="inner", label=batch_key, merge="same")


def _bring_together(parts: dict[str, AnnData], paths: Sequence[str | Path]) -> None:
    """Put the usable values of all parts in ``X``, unless they are alike as they are."""
    found: list[Checked] = []
    for path, part in zip(paths, parts.values(), strict=True):
        try:
            found.append(find_values(part))
        except ScmedleyError as error:
            raise ScmedleyError(f"{path}: {error}") from error
    kinds = {this.values: path for this, path in zip(found, paths, strict=True)}
    if len(kinds) > 1:
        said = ", ".join(f"{path} holds {_KINDS[kind]}" for kind, path in kinds.items())
        raise ScmedleyError(
            f"{said}: these cannot be put together. Give counts in all files, in X, layers['counts'] or raw."
        )
    if len({(this.where, this.total) for this in found}) == 1:
        return
    for part, this in zip(parts.values(), found, strict=True):
        x = matrix(part, this.where)
        part.X = x if this.total in (None, TARGET_SUM) else rescaled(x, this.total)
        part.layers.pop(keys.COUNTS, None)
        del part.raw


_KINDS = {
    "counts": "counts",
    "log-normalised": "log-normalised values",
    "other": "scaled or centred values",
}


def read_embedding(path: str | Path, obs_names: Sequence[str]) -> np.ndarray:
    """Read an embedding that another program made, in the order of these cells.

    Parameters
    ----------
    path
        csv or tsv (also .gz): a row for each cell, its name first, then one number for each dimension. The first
        row is a header unless it starts with the name of a cell.
    obs_names
        Cell names, each once; those of other cells in the file are passed over.

    Returns
    -------
    ndarray
        N x P float32, as it goes into ``obsm``.

    Raises
    ------
    ScmedleyError
        Unreadable; no dimensions; a cell that is missing or there twice; a value that is no finite number.
    """
    path, cells = Path(path), pd.Index(obs_names)
    # All text at first: a name such as 007 is kept, and a wrong value can be shown.
    text: dict[str, Any] = {"header": None, "dtype": str, "keep_default_na": False}
    text["sep"] = "," if ".csv" in path.name.lower() else "\t"
    try:
        # The second row says how many columns there are: R leaves out the corner of the header.
        n_columns = pd.read_csv(path, skiprows=1, nrows=1, **text).shape[1]
        table = pd.read_csv(path, names=range(n_columns), index_col=False if n_columns > 1 else None, **text)
    except Exception as error:  # OSError, zlib.error, pandas' own ...
        raise ScmedleyError(f"{path} cannot be read as a table: {_one_line(error)}.") from error
    table = table.set_index(table.columns[0])
    if len(table) and table.index[0] not in cells:
        table = table.iloc[1:]
    if table.empty:
        raise ScmedleyError(
            f"{path} has no cells or no dimensions. Put commas between the columns of a .csv, tabs in a .tsv."
        )
    missing = cells[~cells.isin(table.index)]
    if len(missing):
        raise ScmedleyError(
            f"{path} lacks {len(missing):,} of {len(cells):,} cells: {listed(list(missing))}. Its own are called like "
            f"{listed([str(name) for name in table.index[:2]])}: give these the same names, and embed the rest."
        )
    table = table[table.index.isin(cells)]
    check_unique(table.index, "cell", f"Leave one row for each in {path}.")
    values: np.ndarray = table.loc[cells].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float32)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        cell, dimension = bad[0]
        raise ScmedleyError(
            f"{path}: cell {cells[cell]!r}, dimension {dimension + 1} holds "
            f"{str(table.loc[cells[cell]].iloc[dimension])[:40]!r}, which is no finite number."
        )
    return values


def _tidied(adata: AnnData, path: Path) -> AnnData:
    if adata.X is None:
        if keys.COUNTS in adata.layers:
            adata.X = adata.layers[keys.COUNTS].copy()
        elif adata.raw is not None and set(adata.var_names) <= set(adata.raw.var_names):
            adata.X = adata.raw[:, adata.var_names].X
        else:
            raise ScmedleyError(
                f"{path} has no X, no layers['counts'] and no raw: there are no values to work on."
            )
    x = adata.X
    if type(x) not in (csr_matrix, np.ndarray) or x.dtype != np.float32:
        with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, and the checks name it
            adata.X = csr_matrix(x, dtype=np.float32) if issparse(x) else np.asarray(x, dtype=np.float32)
    adata.obs_names = adata.obs_names.astype(str)
    adata.var_names = adata.var_names.astype(str)
    return adata
