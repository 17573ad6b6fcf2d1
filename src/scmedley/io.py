"""Read what people have; write so that nothing is ever left half-written."""

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix, issparse

from scmedley import keys
from scmedley.errors import ScmedleyError, ScmedleyWarning, listed, warn
from scmedley.features import genes_alone, genomes
from scmedley.formats import reader_for
from scmedley.gene_names import GeneNames
from scmedley.tables import dialect
from scmedley.values import check_unique


def read(path: str | Path) -> AnnData:
    """Read a file of cells x genes into memory, whatever its format.

    Parameters
    ----------
    path
        h5ad; a Zarr folder; a 10x folder with matrix.mtx, features and barcodes; 10x h5; csv or tsv with a header
        of gene names, cell names first in each row, and numbers only, or its transpose.

    Returns
    -------
    AnnData
        ``X`` is CSR or dense, float32; names are strings. Of features of several types (10x) gene expression is
        kept; gene symbols that repeat get their gene id. What was changed is said as a ``ScmedleyWarning``.

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
    except (ScmedleyError, ScmedleyWarning):
        raise
    except PermissionError as error:
        raise ScmedleyError(
            f"{path} may not be read by you ({error.strerror}). Change its permissions."
        ) from error
    except Exception as error:  # readers raise anything on a broken file: OSError, KeyError, zlib.error ...
        raise ScmedleyError(
            f"{path} cannot be read: {_one_line(error)}. It may be cut short, or not be what "
            "its name says; copy or write it again."
        ) from error


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
    try:
        how = dialect(path)
        text |= {"sep": how.separator, "encoding": how.encoding}
        # The second row says how many columns there are: R leaves out the corner of the header.
        n_columns = pd.read_csv(path, skiprows=1, nrows=1, **text).shape[1]
        table = pd.read_csv(path, names=range(n_columns), index_col=False if n_columns > 1 else None, **text)
    except ScmedleyError:
        raise
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


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that takes its place if, and only if, all goes well.

    Works for files and folders (such as Zarr). On any failure, Ctrl-C included, the temporary one is removed
    and what was at ``path`` stays as it was.

    Raises
    ------
    ScmedleyError
        The disk is full, or the folder cannot be written to.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:80]}.{secrets.token_hex(4)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        _take_place(temporary, path)
    except BaseException as error:
        _remove(temporary)
        if _disk_full(error):
            raise ScmedleyError(
                f"The disk is full: {path} was not written, and what was there before is unchanged. "
                "Make room, or choose another folder."
            ) from error
        if isinstance(error, OSError) and (type(error) in _PLACES or error.errno in _LIMITS):
            reason = os.strerror(error.errno) if error.errno else error
            raise ScmedleyError(f"{path} cannot be written ({reason}). Choose another folder.") from error
        raise


# What a place that cannot be written to raises; FileNotFoundError where not even a folder can be made.
_PLACES = (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError, FileNotFoundError)
_LIMITS = (errno.EFBIG, errno.ENAMETOOLONG, errno.EROFS)


def write_h5ad(adata: AnnData, path: str | Path) -> None:
    """Write ``adata`` as a compressed h5ad, all or nothing.

    Raises
    ------
    ScmedleyError
        The disk is full, the folder cannot be written to, or h5ad cannot hold some entry (named).
    """
    adata = adata.copy() if adata.is_view else adata  # writing makes strings categorical, in place
    with replacing(path) as temporary:
        try:
            adata.write_h5ad(temporary, compression="gzip", compression_opts=1)
        except OSError:
            raise
        except Exception as error:  # anndata raises TypeError, ValueError, its own IORegistryError ...
            raise ScmedleyError(
                f"{path}: an h5ad cannot hold this: {_one_line(error)}. Convert or remove that entry."
            ) from error


def write_csv(df: pd.DataFrame, path: str | Path) -> None:
    """Write a table without its index, all or nothing."""
    with replacing(path) as temporary:
        df.to_csv(temporary, index=False)


def write_json(obj: Any, path: str | Path) -> None:
    """Write JSON, all or nothing; numpy scalars and arrays become plain numbers and lists.

    NaN and infinity become null: JSON has no name for them.
    """
    text = json.dumps(_plain(obj), indent=2, ensure_ascii=False, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def sha256(path: str | Path) -> str:
    """Give the SHA-256 of a file, or of a folder's sorted relative names and contents."""
    path = Path(path)
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for name in sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()):
        digest.update(f"{name}\0{sha256(path / name)}\n".encode())
    return digest.hexdigest()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _plain(obj: Any) -> Any:
    if isinstance(obj, dict):
        return {str(key): _plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_plain(value) for value in obj]
    if isinstance(obj, np.ndarray | np.generic):
        return _plain(obj.tolist())
    if isinstance(obj, float) and not math.isfinite(obj):
        return None
    return str(obj) if isinstance(obj, Path) else obj


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_file():
        with suppress(OSError):
            path.unlink()
    for _ in range(10):
        if not path.is_dir():
            return
        # Zarr writes in threads of its own: when one fails, the others may make the folder once more.
        shutil.rmtree(path, ignore_errors=True)
        time.sleep(0.2)


def _sync(path: Path) -> None:
    """Make sure that the file, or each file of the folder, is on the disk and not only in memory."""
    for p in [path, *path.rglob("*")]:
        handle = os.open(p, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _take_place(new: Path, path: Path) -> None:
    """Put ``new`` where ``path`` is: a file in one step, a folder in two.

    A process killed between the two steps of a folder leaves the old one beside it, under a hidden name.
    """
    if not (path.is_dir() and new.is_dir()):
        os.replace(new, path)
        return
    old = new.with_name(f"{new.name}.old")  # a folder with something in it cannot be replaced in one step
    path.rename(old)
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _disk_full(error: BaseException) -> bool:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(seen):  # h5py and wrappers keep the words, not the number
            return True
        seen = seen.__cause__ or seen.__context__
    return False


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
    adata, left_out = genes_alone(adata)
    for said in (left_out, genomes(adata.var), _named_apart(adata)):
        if said:
            warn(f"{path.name}: {said}")
    return adata


def _named_apart(adata: AnnData) -> str:
    """Add the id to gene symbols that repeat, where that makes them unique; say so."""
    again = adata.var_names.duplicated(keep=False)
    ids = GeneNames.of(adata.var).ids
    if not again.any() or ids is None:
        return ""
    names = np.where(again, adata.var_names + "_" + pd.Index(ids), adata.var_names)
    if pd.Index(names).duplicated().any():
        return ""
    first = adata.var_names[again][0]
    adata.var_names = names
    return (
        f"{int(again.sum())} genes share their symbol with another ({first!r}); these got their id, "
        f"{names[again][0]!r}."
    )
