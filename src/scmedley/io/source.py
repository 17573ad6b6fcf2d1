"""What a store of cells is made from: the files, by size, time and parts of their content, and the tables."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scmedley.data.inplace import layers_of
from scmedley.data.stacked import Computed, Stacked

_BYTES = 1 << 16  # at the beginning and at the end of a file


def made_from(adata: AnnData, paths: Sequence[Path], settings: dict[str, Any]) -> dict[str, Any]:
    """Return what identifies cells and settings, as JSON, without reading the values in large files.

    Parameters
    ----------
    adata
        Cells; matrices that are not in memory are known by their files.
    paths
        Files of the cells that are known.
    settings
        Numbers and text.
    """
    matrices = [adata.X, *layers_of(adata).values(), *([] if adata.raw is None else [adata.raw.X])]
    tables = [adata.obs, adata.var, *([] if adata.raw is None else [adata.raw.var])]
    files, digest = {path.absolute() for path in paths}, hashlib.sha256()
    for table in tables:
        digest.update(np.ascontiguousarray(pd.util.hash_pandas_object(_hashable(table))).data)
        digest.update("\0".join(map(str, table.columns)).encode(errors="replace"))
    for matrix in matrices:
        if matrix is None:
            continue
        own = _files(matrix)
        files |= own
        if not own and not paths:
            dense = isinstance(matrix, np.ndarray)
            for part in (matrix,) if dense else (matrix.data, matrix.indices, matrix.indptr):
                digest.update(np.ascontiguousarray(part).data)
    return {
        "files": {str(path): _identity(path) for path in sorted(files)},
        "tables": digest.hexdigest(),
        "settings": settings,
    }


def _files(matrix: Any) -> set[Path]:
    """Return the files of a matrix on disk."""
    if isinstance(matrix, Stacked):
        return set().union(*(_files(part) for part in matrix.parts))
    matrix = matrix.of if isinstance(matrix, Computed) else matrix
    stored = getattr(matrix, "group", matrix)
    name = getattr(getattr(stored, "file", None), "filename", None)
    root = getattr(getattr(stored, "store", None), "root", None)
    return {Path(place).absolute() for place in (name, root) if place is not None}


def _identity(path: Path) -> list[Any]:
    """Return size, time of the last change, and SHA-256 of the beginning and the end; for a folder, of its list."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            about = file.stat()
            digest.update(f"{file.relative_to(path)}\0{about.st_size}\0{about.st_mtime_ns}\n".encode())
        return [digest.hexdigest()]
    about = path.stat()
    with path.open("rb") as opened:
        digest.update(opened.read(_BYTES))
        opened.seek(max(0, about.st_size - _BYTES))
        digest.update(opened.read(_BYTES))
    return [about.st_size, about.st_mtime_ns, digest.hexdigest()]


def _hashable(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with columns that pandas can hash."""
    objects = table.select_dtypes(object).columns
    return table.astype(dict.fromkeys(objects, str))
