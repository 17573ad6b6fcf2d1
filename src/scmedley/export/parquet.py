"""Tables in Parquet: ``obs``, and one file for each embedding. Needs pyarrow, an extra."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from scmedley import __version__
from scmedley.errors import ScmedleyError
from scmedley.export.source import obs_of, with_names
from scmedley.io.storable import storable_obs
from scmedley.runs.read import Run, cells_file

OBS = "obs.parquet"
CELL = "cell"  # the column of the names
ROWS = 65_536  # cells of a row group


def check_extra() -> None:
    """Raise if pyarrow is not installed."""
    if find_spec("pyarrow") is None:
        raise ScmedleyError("Parquet needs pyarrow: pip install 'scmedley[export]'")


def write(run: Run, folder: Path) -> list[str]:
    """Write obs.parquet and a file for each embedding, named by its key; return notes."""
    check_extra()
    obs, notes = storable_obs(obs_of(run))
    _write([_table(with_names(obs, CELL))], folder / OBS)
    for key in _embeddings(run):
        _write(_blocks(run, key, obs.index), folder / f"{key}.parquet")
    return notes


def _embeddings(run: Run) -> list[str]:
    """Return the keys of the embeddings: dense matrices in ``obsm``."""
    with cells_file(run.folder) as file:
        return [
            key
            for key, values in file.get("obsm", {}).items()
            if isinstance(values, h5py.Dataset) and values.ndim == 2 and values.shape[1]
        ]


def _blocks(run: Run, key: str, cells: pd.Index) -> Iterator[Any]:
    """Yield the cells and one column for each dimension, counted from 0, in blocks."""
    with cells_file(run.folder) as file:
        values = file["obsm"][key]
        for start in range(0, len(values), ROWS):
            z_NP = np.asarray(values[start : start + ROWS])
            table = pd.DataFrame(z_NP, columns=[f"dim_{i}" for i in range(z_NP.shape[1])])
            table.insert(0, CELL, cells[start : start + ROWS].astype(str))
            yield _table(table)


def _table(frame: pd.DataFrame) -> Any:
    import pyarrow

    return pyarrow.Table.from_pandas(frame, preserve_index=False)


def _write(tables: Any, path: Path) -> None:
    """Write tables of one schema as the row groups of one file."""
    from pyarrow import parquet

    writer = None
    try:
        for table in tables:
            if writer is None:
                about = {**(table.schema.metadata or {}), b"scmedley": __version__.encode()}
                writer = parquet.ParquetWriter(path, table.schema.with_metadata(about), compression="zstd")
            writer.write_table(table.cast(writer.schema), row_group_size=ROWS)
    finally:
        if writer is not None:
            writer.close()
