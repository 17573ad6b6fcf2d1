"""How much memory the matrices of a file take."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from scmedley.io.lazy import group_of
from scmedley.io.reading import reading_errors


def matrices_bytes(paths: Sequence[Path]) -> int:
    """Return the bytes of all matrices of cells x genes of the files, once in memory; 0 if not known.

    They are known for h5ad and Zarr, without reading a value.
    """
    total = 0
    for path in paths:
        with ExitStack() as stack, reading_errors(path):
            group = group_of(path, stack)
            if group is not None:
                total += sum(part.size * part.dtype.itemsize for part in _arrays(group))
    return total


def _arrays(group: Any) -> Iterator[Any]:
    """Yield the arrays of X, of the layers and of raw."""
    layers = group.get("layers", {})
    raw = group.get("raw", {})
    for matrix in [
        *(held["X"] for held in (group, raw) if "X" in held),
        *(layers[name] for name in layers),
    ]:
        yield from [matrix[name] for name in matrix] if hasattr(matrix, "keys") else [matrix]
