"""Write a matrix that is computed in blocks of cells as an AnnData Zarr store, without holding it in memory."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from anndata.io import write_elem

from scmedley.errors import ScmedleyError, listed, warn
from scmedley.io.storable import storable_obs
from scmedley.io.writing import replacing

CELLS = 512  # in a chunk
ZARR = (".zgroup", "zarr.json")  # one of these makes a folder a Zarr group
# All that the folder of an AnnData in Zarr may hold.
PARTS = {
    *ZARR,
    ".zattrs",
    ".zmetadata",
    *("X", "layers", "obs", "obsm", "obsp", "raw", "uns", "var", "varm", "varp"),
}


def write_in_blocks(
    path: Path,
    blocks: Iterable[tuple[slice, dict[str, np.ndarray]]],
    layers: Sequence[str],
    shape: tuple[int, int],
    obs: pd.DataFrame,
    var: pd.DataFrame,
    uns: dict[str, Any] | None = None,
) -> Path:
    """Write blocks of cells as they are computed; on an error nothing is written.

    Parameters
    ----------
    path
        Ends in ``.zarr``.
    blocks
        Rows, and the values of each of ``layers`` in them.
    layers
        ``"X"`` and names of layers.
    shape
        Cells x genes.
    obs, var
        Tables of the cells and of the genes.
    uns
        What else to say about the values; numbers and text.

    Returns
    -------
    pathlib.Path
        The path.

    Raises
    ------
    ScmedleyError
        Another ending, or the path exists and is no Zarr store with cells: it may hold other files. An earlier
        store is replaced, with a warning.
    """
    if path.suffix != ".zarr":
        raise ScmedleyError(f"out={str(path)!r} must end in .zarr. Choose such a path.")
    if path.exists():
        if not path.is_dir() or not any((path / name).is_file() for name in ZARR):
            raise ScmedleyError(
                f"{path} exists and is no Zarr store: writing there would delete it. Choose another path, or remove it."
            )
        if others := sorted(part.name for part in path.iterdir() if part.name not in PARTS):
            raise ScmedleyError(
                f"{path} holds more than an AnnData ({listed(others, 3)}), which would be deleted. Choose another path."
            )
        warn(f"{path} is replaced: it held an earlier Zarr store.")
    obs, messages = storable_obs(obs)
    for message in messages:
        warn(f"{path.name}: {message}")
    with replacing(path) as temporary:
        # write_zarr would need the whole arrays in memory; here they are filled in chunks.
        store = zarr.open_group(temporary, mode="w", zarr_format=2)
        store.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        for name, value in (("obs", obs), ("var", var), ("layers", {}), ("uns", uns or {})):
            write_elem(store, name, value)
        arrays = {}
        for name in layers:
            arrays[name] = store.create_array(
                "X" if name == "X" else f"layers/{name}",
                shape=shape,
                chunks=(min(CELLS, shape[0]), shape[1]),
                dtype="float32",
                attributes={"encoding-type": "array", "encoding-version": "0.2.0"},
            )
        for rows, parts in blocks:
            for name in layers:
                arrays[name][rows] = parts[name]
    return path
