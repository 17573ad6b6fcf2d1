"""Open a file of cells without reading its matrices: blocks of rows are read from the disk when they are used."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import h5py
import zarr
from anndata import AnnData
from anndata.io import read_elem, sparse_dataset

from scmedley import keys
from scmedley.data.features import genes_alone
from scmedley.errors import ScmedleyError
from scmedley.io.formats import reader_for
from scmedley.io.reading import read, reading_errors, with_tidy_names

_BY_ROW, _DENSE = "csr_matrix", "array"  # encodings of which a block of rows is read quickly
_BY_COLUMN = "csc_matrix"


@contextmanager
def opened(path: str | Path) -> Iterator[AnnData]:
    """Yield the cells of a file; its matrices stay on disk if blocks of their rows can be read.

    That is so for h5ad and Zarr with matrices by row (CSR) or dense. Other files are read whole: 10x, csv, files
    of early versions of anndata, matrices by column (CSC), and files that hold other features beside genes.

    Parameters
    ----------
    path
        File in any format that :func:`scmedley.read` reads.

    Yields
    ------
    AnnData
        As from :func:`scmedley.read`, but ``X``, ``layers`` and ``raw.X`` may be matrices on disk. ``obsm``,
        ``varm``, ``obsp`` and ``uns`` are left out, but for the mark of denoised values.

    Raises
    ------
    ScmedleyError
        As :func:`scmedley.read`.
    """
    path = Path(path)
    with ExitStack() as stack:
        with reading_errors(path):
            reader_for(path)  # raises for what is not a file of cells
            group = group_of(path, stack)
            adata = None if group is None else _on_disk(group, path)
        yield read(path) if adata is None else adata


def group_of(path: Path, stack: ExitStack) -> Any:
    """Return the opened h5ad or Zarr, None for other formats."""
    if path.is_dir():
        is_zarr = (path / "zarr.json").exists() or (path / ".zgroup").exists()
        return zarr.open_group(str(path), mode="r") if is_zarr else None
    if not h5py.is_hdf5(path):
        return None
    group = stack.enter_context(h5py.File(path, "r"))
    return group if "obs" in group and "var" in group else None


def _on_disk(group: Any, path: Path) -> AnnData | None:
    """Return the cells with their matrices on disk, None if one of them cannot be read by rows."""
    if "X" not in group or not all(_is_new(group[name]) for name in ("obs", "var")):
        return None
    raw = group["raw"] if "raw" in group and "X" in group["raw"] else None
    stored = {name: group["layers"][name] for name in group.get("layers", {})}
    found = [group["X"], *stored.values(), *([] if raw is None else [raw["X"]])]
    if not all(_by_rows(matrix) for matrix in found):
        return None
    obs, var = read_elem(group["obs"]), read_elem(group["var"])
    if genes_alone(AnnData(obs=obs.iloc[:0, :0], var=var))[1]:
        return None
    layers = {name: _matrix(matrix) for name, matrix in stored.items()}
    adata = AnnData(_matrix(group["X"]), obs=obs, var=var, layers=layers)
    if raw is not None and _is_new(raw["var"]):
        adata.raw = AnnData(_matrix(raw["X"]), obs=obs.iloc[:, :0], var=read_elem(raw["var"]))
    mark = f"uns/{keys.UNS}/{keys.DENOISED}"
    if mark in group:
        adata.uns[keys.UNS] = {keys.DENOISED: read_elem(group[mark])}
    if 0 in adata.shape:
        raise ScmedleyError(
            f"{path} has {adata.n_obs} cells and {adata.n_vars} genes. Check the step that wrote it."
        )
    return with_tidy_names(adata, path)


def stored_by_column(path: Path) -> list[str]:
    """Return the matrices of an h5ad or Zarr that are stored by column (CSC), of which no block of rows can be read."""
    with ExitStack() as stack, reading_errors(path):
        group = group_of(path, stack)
        if group is None:
            return []
        layers = group.get("layers", {})
        found = {f"layers[{name!r}]": layers[name] for name in layers}
        found |= {"X": group["X"]} if "X" in group else {}
        found |= {"raw.X": group["raw/X"]} if "raw" in group and "X" in group["raw"] else {}
        return [name for name, x in found.items() if x.attrs.get("encoding-type") == _BY_COLUMN]


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


def _is_new(table: Any) -> bool:
    return bool(table.attrs.get("encoding-type") == "dataframe")


def _by_rows(matrix: Any) -> bool:
    return matrix.attrs.get("encoding-type") in (_BY_ROW, _DENSE)


def _matrix(stored: Any) -> Any:
    return sparse_dataset(stored) if stored.attrs.get("encoding-type") == _BY_ROW else stored


def read_obsm(path: str | Path, key: str) -> Any:
    """Read one embedding of a file of cells, N x P, without its matrices.

    Raises
    ------
    ScmedleyError
        The file has no such embedding.
    """
    path = Path(path)
    with ExitStack() as stack, reading_errors(path):
        group = group_of(path, stack)
        held = read(path).obsm if group is None else group.get("obsm", {})
        if key not in held:
            raise ScmedleyError(f"{path} has no obsm[{key!r}]. It has: {', '.join(held) or 'none'}.")
        return held[key] if group is None else read_elem(held[key])


def _arrays(group: Any) -> Iterator[Any]:
    """Yield the arrays of X, of the layers and of raw."""
    layers = group.get("layers", {})
    raw = group.get("raw", {})
    for matrix in [
        *(held["X"] for held in (group, raw) if "X" in held),
        *(layers[name] for name in layers),
    ]:
        yield from [matrix[name] for name in matrix] if hasattr(matrix, "keys") else [matrix]
