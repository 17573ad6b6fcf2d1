"""Write files completely or not at all."""

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import write_elem

from scmedley.errors import ScmedleyError, one_line
from scmedley.io.storable import names_in_file, storable

RESULTS = ("obs", "obsm", "uns")  # parts of an AnnData that a fit changes
COMPRESSION = {"compression": "gzip", "compression_opts": 1}
WIDE = 4000  # number of columns from which the oldest HDF5 format cannot hold all names


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, which replaces ``path`` only if the body succeeds.

    Works for files and folders (such as Zarr). After any failure, Ctrl-C included, the temporary path is
    removed and ``path`` is unchanged.

    Raises
    ------
    ScmedleyError
        The disk is full, or the folder cannot be written to.
    """
    path = Path(path)
    start = os.fsdecode(os.fsencode(path.name)[:80])
    temporary = path.with_name(f".{start}.{secrets.token_hex(4)}{path.suffix}")
    full = f"{path} was not written, and an earlier version is unchanged. Free some space, or choose another folder."
    try:
        with writing_errors(path, full):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            sync(temporary)
            take_place(temporary, path)
    except BaseException:
        _remove(temporary)
        raise


@contextmanager
def writing_errors(path: Path, full: str) -> Iterator[None]:
    """Turn errors of the system into a :class:`ScmedleyError`; ``full`` is what it says of a full disk."""
    try:
        yield
    except ScmedleyError:
        raise
    except BaseException as error:
        refusal = _refusal(error)
        if refusal in _FULL:
            raise ScmedleyError(f"The disk is full: {full}") from error
        if refusal or isinstance(error, _PLACES):
            reason = os.strerror(refusal) if refusal else getattr(error, "strerror", None) or error
            raise ScmedleyError(f"{path} cannot be written ({reason}). Choose another folder.") from error
        raise


# Errors of a path that cannot be written; FileNotFoundError if its folder cannot be created.
_PLACES = (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError, FileNotFoundError)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_LIMITS = (errno.EFBIG, errno.EROFS, errno.ENAMETOOLONG)


def write_h5ad(adata: AnnData, path: str | Path) -> list[str]:
    """Write ``adata`` as a compressed h5ad, completely or not at all; return a sentence for each conversion.

    Parameters
    ----------
    adata
        Any AnnData; :func:`scmedley.io.storable.storable` converts what an h5ad cannot hold.
    path
        Path of the file.

    Raises
    ------
    ScmedleyError
        The disk is full, the folder cannot be written to, or an h5ad cannot hold an entry, which is named.
    """
    path = Path(path)
    with replacing(path) as temporary:
        return _store(adata, temporary, path)


def add_results(adata: AnnData, path: str | Path) -> list[str]:
    """Replace ``obs``, ``obsm`` and ``uns`` of an h5ad by those of ``adata``, completely or not at all."""
    path = Path(path)
    with replacing(path) as temporary:
        shutil.copyfile(path, temporary)
        return _store(adata, temporary, path, only=RESULTS)


@contextmanager
def with_results(adata: AnnData, path: str | Path) -> Iterator[list[str]]:
    """Write ``adata``, then the results of the ``with`` body; most writing errors thus come before the body.

    Yields the sentences of :func:`write_h5ad`. If the body fails, no file is written.
    """
    path = Path(path)
    with replacing(path) as temporary:
        yield _store(adata, temporary, path)
        _store(adata, temporary, path, only=RESULTS)


def check_place(path: str | Path) -> None:
    """Raise if ``path`` cannot be written, before any computation."""
    path = Path(path)
    try:
        tempfile.TemporaryFile(dir=next(p for p in path.parents if p.exists())).close()
    except OSError as error:
        raise ScmedleyError(f"{path} cannot be written ({error.strerror}). Choose another folder.") from error


def check_columns(adata: AnnData, columns: Iterable[str]) -> None:
    """Raise if an h5ad cannot hold a column of ``obs`` under its name, which later steps need."""
    names = names_in_file(adata)
    for column in columns:
        if names[column] != column:
            raise ScmedleyError(
                f"An h5ad with these columns cannot hold obs[{column!r}] under this name, only as {names[column]!r}. "
                "Rename the column, and use the new name."
            )


def _store(adata: AnnData, file: Path, path: Path, *, only: Sequence[str] = ()) -> list[str]:
    """Write all parts, or ``only`` some, into ``file``, which will replace ``path``."""
    parts, notes = storable(adata.copy() if adata.is_view else adata)
    parts = {name: part for name, part in parts.items() if name in only or not only}
    versions = ("v108" if _widest(parts) > WIDE else "earliest", "latest")
    try:
        with h5py.File(file, "r+" if only else "w", libver=versions) as store:
            store.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
            for name, part in parts.items():
                _write(store, name, part)
    except Exception as error:  # anndata raises TypeError, ValueError, its own IORegistryError ...
        if isinstance(error, OSError) or _refusal(error):
            raise
        raise ScmedleyError(
            f"{path}: an h5ad cannot hold this: {one_line(error)}. Convert or remove that entry."
        ) from error
    return notes


def _write(group: h5py.Group, name: str, value: Any) -> None:
    """Write one element in place of an older one; the parts of a dict one by one."""
    if name in group:
        del group[name]
    if isinstance(value, dict):
        kind, version = ("raw", "0.1.0") if group.name == "/" and name == "raw" else ("dict", "0.1.0")
        inner = group.create_group(name)
        inner.attrs.update({"encoding-type": kind, "encoding-version": version})
        for key, part in value.items():
            _write(inner, key, part)
        return
    slashes = [c for c in value.columns if "/" in c] if isinstance(value, pd.DataFrame) else []
    if not slashes:
        write_elem(group, name, value, dataset_kwargs=COMPRESSION)
        return
    # anndata reads columns with a slash, but new versions do not write them.
    plain = {column: f"\N{DIVISION SLASH}{i}" for i, column in enumerate(slashes)}
    write_elem(group, name, value.rename(columns=plain), dataset_kwargs=COMPRESSION)
    for column, stand_in in plain.items():
        group[name].move(stand_in, column)
    group[name].attrs["column-order"] = list(value.columns)


def _widest(value: Any) -> int:
    if isinstance(value, dict):
        return max(map(_widest, value.values()), default=0)
    return value.shape[1] if isinstance(value, pd.DataFrame) else 0


def write_csv(df: pd.DataFrame, path: str | Path) -> None:
    """Write a table without its index, completely or not at all."""
    with replacing(path) as temporary:
        df.to_csv(temporary, index=False, errors="backslashreplace")


def write_json(obj: Any, path: str | Path) -> None:
    """Write JSON, completely or not at all; NumPy scalars and arrays become plain numbers and lists.

    NaN and infinity, which JSON does not have, become null.
    """
    text = json.dumps(_plain(obj), indent=2, ensure_ascii=False, allow_nan=False)
    with replacing(path) as temporary:
        # Half of a surrogate pair, as in file names of old disks, becomes an escape of JSON.
        temporary.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, or of a folder's sorted relative names and contents."""
    path = Path(path)
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for name in sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()):
        digest.update(f"{name}\0{sha256(path / name)}\n".encode())
    return digest.hexdigest()


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
    """Remove a file or a folder, if it exists."""
    if path.is_file():
        with suppress(OSError):
            path.unlink()
    for _ in range(10):
        if not path.is_dir():
            return
        # Zarr writes in several threads: after one fails, others may create the folder again.
        shutil.rmtree(path, ignore_errors=True)
        time.sleep(0.2)


def sync(path: Path) -> None:
    """Write the file, or each file of the folder, from memory to disk."""
    for p in [path, *path.rglob("*")]:
        handle = os.open(p, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def take_place(new: Path, path: Path) -> None:
    """Replace ``path`` by ``new``: a file in one step, a folder in two.

    A process killed between the two steps leaves the old folder under a hidden name in the same place.
    """
    if not (path.is_dir() and new.is_dir()):
        os.replace(new, path)
        return
    old = new.with_name(f"{new.name}.old")  # a folder that is not empty cannot be replaced in one step
    path.rename(old)
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _refusal(error: BaseException | None) -> int | None:
    """Return the error number if the system refused; h5py and safetensors keep only its text."""
    while error is not None:
        for code in (*_FULL, *_LIMITS):
            if (isinstance(error, OSError) and error.errno == code) or os.strerror(code) in str(error):
                return code
        error = error.__cause__ or error.__context__
    return None
