"""A folder for Vitessce: a view config (JSON) and the cells as an AnnData in Zarr, written in blocks.

The matrix is dense and cut into chunks of cells and genes, so that the viewer fetches one gene without the others.

Shapes: N cells, M cells of a block, G genes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from anndata.io import write_elem
from scipy.sparse import csc_matrix, vstack

from scmedley import io, keys
from scmedley.errors import ScmedleyError, listed
from scmedley.export.source import (
    MISSING,
    ROWS,
    Matrix,
    groups,
    is_grouping,
    level_colours,
    levels,
    matrix,
    name_of,
    named,
    obs_of,
    shown_maps,
)
from scmedley.io.storable import storable_obs
from scmedley.runs.read import Run

CONFIG, CELLS = "vitessce.json", "cells.zarr"
ADDRESS = "http://localhost:8000"  # where the folder is served; Vitessce takes absolute addresses only
VERSION = "1.0.16"  # of the view config
GENES = 64  # genes of a chunk
LONGEST = 200  # bytes of the name of a column, which is that of a folder
COLUMNS = 12  # of the grid of views


def write(run: Run, folder: Path, address: str = ADDRESS) -> list[str]:
    """Write the config and the cells; return notes about what is not in them.

    Parameters
    ----------
    run
        The run.
    folder
        An empty folder.
    address
        Where the folder will be served.
    """
    drawn_N = np.logical_and.reduce([np.isfinite(xy).all(axis=1) for _, _, xy in shown_maps(run)] or [True])
    obs, notes = storable_obs(obs_of(run)[drawn_N])
    if long := [str(name) for name in obs if len(str(name).encode()) > LONGEST]:
        obs = obs.drop(columns=long)
        notes.append(
            f"Without {listed([f'{name[:40]}...' for name in long])}: the name is too long for a file."
        )
    if not len(obs):
        raise ScmedleyError(
            f"No cell of {run.folder} has a place on all of its maps, so there is nothing to show."
        )
    if not drawn_N.all():
        notes.append(f"{len(obs):,} of {len(drawn_N):,} cells, those that have a place on the maps.")
    obs = obs.assign(**{str(name): named(obs[name]) for name in obs if is_grouping(obs[name])})
    with matrix(run) as found:
        _write_cells(run, obs, found, drawn_N, folder / CELLS)
        has_variable = bool(found.variable.any() and not found.variable.all())
        notes += [found.note] * bool(found.note)
    io.write_json(_config(run, obs, has_variable, address.rstrip("/")), folder / CONFIG)
    return notes


def _write_cells(run: Run, obs: pd.DataFrame, found: Matrix, drawn_N: np.ndarray, path: Path) -> None:
    """Write obs, var, the maps and, in blocks of cells, the matrix."""
    store = zarr.open_group(path, mode="w", zarr_format=2)
    store.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    var = pd.DataFrame({keys.HVG: found.variable}, index=pd.Index(found.genes, dtype=object))
    maps = {key: np.ascontiguousarray(xy[drawn_N]) for _, key, xy in shown_maps(run)}
    for name, part in (("obs", obs), ("var", var), ("obsm", maps), ("layers", {}), ("uns", {})):
        write_elem(store, name, part)
    shape = (len(obs), len(found.genes))
    array = store.create_array(
        "X",
        shape=shape,
        chunks=(min(ROWS, shape[0]), min(GENES, shape[1])),
        dtype="float32",
        attributes={"encoding-type": "array", "encoding-version": "0.2.0"},
    )
    for at, x_MG in _whole_chunks(found, drawn_N):
        for gene in range(0, shape[1], GENES):  # as dense values, all genes would not fit into memory
            array[at : at + x_MG.shape[0], gene : gene + GENES] = x_MG[:, gene : gene + GENES].toarray()
    zarr.consolidate_metadata(store.store, zarr_format=2)


def _whole_chunks(found: Matrix, drawn_N: np.ndarray) -> Iterator[tuple[int, csc_matrix]]:
    """Yield the drawn cells in blocks that fill the chunks of the store, with their first place in it."""
    at, waiting = 0, []
    for rows, x_MG in found.blocks():
        waiting.append(x_MG[drawn_N[rows]])
        if sum(x.shape[0] for x in waiting) >= ROWS or rows.stop == len(drawn_N):
            joined, last = vstack(waiting, format="csr"), rows.stop == len(drawn_N)
            full = joined.shape[0] if last else joined.shape[0] // ROWS * ROWS
            yield at, csc_matrix(joined[:full])
            at, waiting = at + full, [joined[full:]]


def _config(run: Run, obs: pd.DataFrame, has_variable: bool, address: str) -> dict[str, Any]:
    """Return the view config: a scatter plot for each map, sets of cells, genes, sizes of the sets."""
    sets = [name for name in obs if is_grouping(obs[name])]
    maps = shown_maps(run)
    file = {
        "fileType": "anndata.zarr",
        "url": f"{address}/{CELLS}",
        "options": {
            "obsEmbedding": [
                {"path": f"obsm/{key}", "dims": [0, 1], "embeddingType": title} for title, key, _ in maps
            ],
            "obsSets": [{"name": name, "path": f"obs/{name}"} for name in sets],
            "obsFeatureMatrix": {
                "path": "X",
                **({"initialFeatureFilterPath": f"var/{keys.HVG}"} if has_variable else {}),
            },
        },
        "coordinationValues": {"obsType": "cell", "featureType": "gene", "featureValueType": "expression"},
    }
    space: dict[str, Any] = {
        "dataset": {"A": "A"},
        "obsType": {"A": "cell"},
        "featureType": {"A": "gene"},
        "featureValueType": {"A": "expression"},
        "embeddingType": {f"map{i}": title for i, (title, _, _) in enumerate(maps)},
        "obsColorEncoding": {"A": "cellSetSelection"},
    }
    shared = {name: "A" for name in space if name != "embeddingType"}
    if sets:
        space["obsSetSelection"] = {"A": [[sets[0], level] for level in levels(obs[sets[0]])]}
        space["obsSetColor"] = {"A": _set_colours(run, obs[[name for name in groups(run) if name in sets]])}
        shared |= {"obsSetSelection": "A", "obsSetColor": "A"}
    width = COLUMNS // max(len(maps), 1)
    views = [
        _view("scatterplot", (i * width, 0, width, 6), shared | {"embeddingType": f"map{i}"})
        for i in range(len(maps))
    ]
    below = ("obsSets", "featureList", "obsSetSizes") if sets else ("featureList",)
    views += [_view(name, (i * 4, 6, 4, 6), shared) for i, name in enumerate(below)]
    return {
        "version": VERSION,
        "name": f"scMedley: {name_of(run)}",
        "description": "Maps of a run of scMedley.",
        "datasets": [{"uid": "A", "name": name_of(run), "files": [file]}],
        "initStrategy": "auto",
        "coordinationSpace": space,
        "layout": views,
    }


def _view(component: str, place: tuple[int, int, int, int], scopes: dict[str, str]) -> dict[str, Any]:
    x, y, width, height = place
    return {
        "component": component,
        "coordinationScopes": scopes,
        "x": x,
        "y": y,
        "w": width,
        "h": height,
    }


def _set_colours(run: Run, obs: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the colour of each level of the columns, as red, green and blue from 0 to 255."""
    from scmedley.pl import _palette

    return [
        {"path": [name, level], "color": [int(colour[i : i + 2], 16) for i in (1, 3, 5)]}
        for name in obs
        for level, colour in ({MISSING: _palette.MISSING} | level_colours(run, str(name))).items()
        if level in obs[name].cat.categories
    ]
