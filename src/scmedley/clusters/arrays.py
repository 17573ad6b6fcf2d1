"""Check the arrays of saved clusters: a damaged file must not lead to wrong clusters later.

Shapes: as in ``clusters.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from scmedley.clusters.tree import COLUMNS
from scmedley.errors import ScmedleyError

Array = npt.NDArray[Any]
CODES = ("group_N", "near_NS", "group_M", "cluster_C", "batch_N")  # attributes that hold codes
KINDS = {
    **dict.fromkeys(CODES, "iu"),
    **{"reference_MP": "f", "edges_CC": "f", "seed": "iu", "batches": "u"},
    **{f"tree {name}": "iu" if kind is np.int64 else np.dtype(kind).kind for name, kind in COLUMNS.items()},
}


def read_arrays(arrays: Mapping[str, Array]) -> dict[str, Any]:
    """Return the attributes of the clusters whose ``arrays()`` these are; raise if they do not fit together."""
    for name, kinds in KINDS.items():
        if name not in arrays:
            raise _damaged(f"{name!r} is missing")
        if arrays[name].dtype.kind not in kinds or arrays[name].ndim != _dimensions(name):
            found = arrays[name]
            raise _damaged(f"{name!r} has type {found.dtype} and {found.ndim} dimension(s)")
    try:
        batches = tuple(map(str, json.loads(arrays["batches"].tobytes())))
    except (ValueError, TypeError) as error:
        raise _damaged("the names of the batches cannot be read") from error
    _check_shapes(arrays)
    _check_values(arrays, len(batches))
    return {
        "tree": pd.DataFrame({name: arrays[f"tree {name}"] for name in COLUMNS}),
        "seed": int(arrays["seed"][0]),
        "batches": batches,
        "reference_MP": arrays["reference_MP"],
        "edges_CC": arrays["edges_CC"],
        **{name: arrays[name].astype(np.int64) for name in CODES},
    }


def _dimensions(name: str) -> int:
    return 2 if name in ("near_NS", "reference_MP", "edges_CC") else 1


def _check_shapes(arrays: Mapping[str, Array]) -> None:
    n_cells, n_reference, n_groups = (len(arrays[name]) for name in ("group_N", "reference_MP", "cluster_C"))
    if min(n_cells, n_reference, n_groups, *arrays["near_NS"].shape, *arrays["reference_MP"].shape) < 1:
        raise _damaged("there are no cells")
    expected = {"near_NS": (n_cells, arrays["near_NS"].shape[1]), "group_M": (n_reference,), "seed": (1,)}
    expected |= {"edges_CC": (n_groups, n_groups)}
    expected |= {f"tree {name}": (n_groups - 1,) for name in COLUMNS}
    if len(arrays["batch_N"]):
        expected["batch_N"] = (n_cells,)
    for name, shape in expected.items():
        if arrays[name].shape != shape:
            raise _damaged(f"{name!r} has shape {arrays[name].shape} instead of {shape}")


def _check_values(arrays: Mapping[str, Array], n_batches: int) -> None:
    n_groups = len(arrays["cluster_C"])
    ranges = dict.fromkeys(("group_N", "near_NS", "group_M", "cluster_C"), (0, n_groups - 1))
    ranges["batch_N"] = (-1, n_batches - 1)
    for name, (least, most) in ranges.items():
        values = arrays[name]
        if values.size and not (values.min() >= least and values.max() <= most):
            raise _damaged(f"{name!r} has values outside {least} to {most}")
    for name in ("reference_MP", "edges_CC"):
        if not np.isfinite(arrays[name]).all():
            raise _damaged(f"{name!r} has values that are not finite")
    used = np.unique(arrays["cluster_C"])
    if len(used) != used[-1] + 1 or len(np.unique(arrays["group_M"])) != n_groups:
        raise _damaged("a group or a cluster has no cells")
    becomes = n_groups + np.arange(n_groups - 1)
    first, second = arrays["tree first"], arrays["tree second"]
    in_order = (arrays["tree becomes"] == becomes).all() and (np.maximum(first, second) < becomes).all()
    merged_once = (np.sort(np.concatenate([first, second])) == np.arange(2 * n_groups - 2)).all()
    counted = (arrays["tree clusters left"] == 2 * n_groups - 1 - becomes).all()
    if not (in_order and merged_once and counted):
        raise _damaged("the merges of the tree do not fit together")


def _damaged(what: str) -> ScmedleyError:
    return ScmedleyError(f"The saved clusters are damaged: {what}.")
