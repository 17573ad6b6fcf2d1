"""Read files of cells and embeddings."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix, issparse

from scmedley import keys
from scmedley.data.features import genes_alone, genomes
from scmedley.data.gene_names import GeneNames, check_unique
from scmedley.errors import ScmedleyError, ScmedleyWarning, listed, one_line, warn
from scmedley.io.formats import reader_for
from scmedley.io.tables import dialect


def read(path: str | Path, *, needs_values: bool = True) -> AnnData:
    """Read a file of cells x genes, in any of these formats, into memory.

    Parameters
    ----------
    path
        h5ad; a Zarr folder; a 10x folder with matrix.mtx, features and barcodes; 10x h5; csv or tsv of
        numbers with a header of gene names and cell names in the first column, or its transpose.
    needs_values
        Whether a file without any values is an error; else ``X`` is ``None``.

    Returns
    -------
    AnnData
        ``X`` is CSR or dense, float32; names are strings. Only gene expression is kept from 10x files with
        several feature types; repeated gene symbols get their gene id. A ``ScmedleyWarning`` reports each
        change.

    Raises
    ------
    ScmedleyError
        The path does not exist, cannot be read, is truncated, or has none of these formats.
    """
    path = Path(path)
    with reading_errors(path):
        return _tidied(reader_for(path)(path), path, needs_values)


@contextmanager
def reading_errors(path: Path) -> Iterator[None]:
    """Turn any error of reading a file into one that names it, and leave out warnings without use to the user."""
    try:
        with warnings.catch_warnings():
            # Our checks report repeated names.
            warnings.filterwarnings("ignore", message="(Observation|Variable) names are not unique")
            # Warnings about old files do not help the user.
            warnings.filterwarnings("ignore", category=FutureWarning, module="anndata|zarr")
            warnings.filterwarnings("ignore", category=DeprecationWarning, module="anndata|zarr")
            yield
    except (ScmedleyError, ScmedleyWarning):
        raise
    except PermissionError as error:
        raise ScmedleyError(f"{path} cannot be read ({error.strerror}). Change its permissions.") from error
    except BlockingIOError as error:  # h5py could not lock the file
        raise ScmedleyError(
            f"{path} is locked: another program has opened it for writing. Close it there, or wait."
        ) from error
    except Exception as error:  # a broken file may raise anything: OSError, KeyError, zlib.error ...
        raise ScmedleyError(
            f"{path} cannot be read: {one_line(error)}. It may be truncated or have "
            "another format than its name says. Copy or write it again."
        ) from error


def read_embedding(path: str | Path, obs_names: Sequence[str]) -> np.ndarray:
    """Read an embedding from another program, in the order of these cells.

    Parameters
    ----------
    path
        csv or tsv (also .gz): one row per cell, with its name and then one number per dimension. The first
        row is a header unless it starts with the name of a cell.
    obs_names
        Cell names, each once; other cells of the file are ignored.

    Returns
    -------
    ndarray
        N x P float32, for ``obsm``.

    Raises
    ------
    ScmedleyError
        Unreadable; no dimensions; a cell is missing or repeated; a value is not a finite number.
    """
    path, cells = Path(path), pd.Index(obs_names)
    # Read as text: this keeps a name such as 007, and the message can show a wrong value.
    text: dict[str, Any] = {"header": None, "dtype": str, "keep_default_na": False}
    try:
        how = dialect(path)
        text |= {"sep": how.separator, "encoding": how.encoding}
        # The second row has all columns: R omits the corner of the header.
        n_columns = pd.read_csv(path, skiprows=1, nrows=1, **text).shape[1]
        table = pd.read_csv(path, names=range(n_columns), index_col=False if n_columns > 1 else None, **text)
    except ScmedleyError:
        raise
    except Exception as error:  # OSError, zlib.error, pandas' own ...
        raise ScmedleyError(
            f"{path} cannot be read as a table: {one_line(error)}. Give csv or tsv."
        ) from error
    table = table.set_index(table.columns[0])
    if len(table) and table.index[0] not in cells:
        table = table.iloc[1:]
    if table.empty:
        raise ScmedleyError(
            f"{path} has no cells or no dimensions. Separate columns by commas in a .csv, by tabs in a .tsv."
        )
    missing = cells[~cells.isin(table.index)]
    if len(missing):
        raise ScmedleyError(
            f"{path} lacks {len(missing):,} of {len(cells):,} cells: {listed(list(missing))}. Its cells have names "
            f"like {listed([str(name) for name in table.index[:2]])}. Use the same names in both, and embed all cells."
        )
    table = table[table.index.isin(cells)]
    check_unique(table.index, "cell", f"Keep one row for each in {path}.")
    values: np.ndarray = table.loc[cells].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float32)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        cell, dimension = bad[0]
        raise ScmedleyError(
            f"{path}: cell {cells[cell]!r}, dimension {dimension + 1} holds "
            f"{str(table.loc[cells[cell]].iloc[dimension])[:40]!r}, which is not a finite number. Correct the file."
        )
    return values


def _tidied(adata: AnnData, path: Path, needs_values: bool) -> AnnData:
    if adata.X is None:
        if keys.COUNTS in adata.layers:
            adata.X = adata.layers[keys.COUNTS].copy()
        elif adata.raw is not None and set(adata.var_names) <= set(adata.raw.var_names):
            adata.X = adata.raw[:, adata.var_names].X
        elif not needs_values:
            return with_tidy_names(adata, path)
        elif isinstance(ours := adata.uns.get(keys.UNS), dict) and keys.STORE in ours:
            raise ScmedleyError(
                f"{path} is of a run that prepared its cells on disk, and holds no matrix. Give the file that the run "
                "read, or use sm.pp.read_store: docs/outputs.md shows how to join them."
            )
        else:
            raise ScmedleyError(
                f"{path} has no X, no layers['counts'] and no raw: the file has no values. Give one with counts in X."
            )
    x = adata.X
    if type(x) not in (csr_matrix, np.ndarray) or x.dtype != np.float32:
        with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, and the checks find it
            adata.X = csr_matrix(x, dtype=np.float32) if issparse(x) else np.asarray(x, dtype=np.float32)
    return with_tidy_names(adata, path)


def with_tidy_names(adata: AnnData, path: Path) -> AnnData:
    """Return the cells with names that are strings and with genes only; warn of each change to the genes."""
    adata.obs_names = adata.obs_names.astype(str)
    adata.var_names = adata.var_names.astype(str)
    adata, left_out = genes_alone(adata)
    for note in (left_out, genomes(adata.var), _with_unique_symbols(adata)):
        if note:
            warn(f"{path.name}: {note}")
    return adata


def _with_unique_symbols(adata: AnnData) -> str:
    """Add the id to repeated gene symbols, if that makes them unique; return a sentence about it."""
    is_repeated = adata.var_names.duplicated(keep=False)
    ids = GeneNames.of(adata.var).ids
    if not is_repeated.any() or ids is None:
        return ""
    names = np.where(is_repeated, adata.var_names + "_" + pd.Index(ids), adata.var_names)
    if pd.Index(names).duplicated().any():
        return ""
    first = adata.var_names[is_repeated][0]
    adata.var_names = names
    return (
        f"{int(is_repeated.sum())} genes share their symbol with another gene ({first!r}). Their id was added: "
        f"{names[is_repeated][0]!r}."
    )
