"""Concatenation of several files, one batch each."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
from anndata import AnnData, concat
from scipy.sparse import csr_matrix

from scmedley import keys
from scmedley.data.evidence import Checked
from scmedley.data.gene_names import GeneNames, match
from scmedley.data.inplace import layers_of
from scmedley.data.matrix import matrix_at
from scmedley.data.stacked import Computed, Stacked, StackedCells
from scmedley.errors import ScmedleyError, listed, warn
from scmedley.io import read
from scmedley.io.lazy import opened
from scmedley.keys import ValueKind
from scmedley.pp.one_kind import brought_together, converted, to_convert

FEWEST = 0.1  # share of the genes of the smallest file that must be in all files
_SAME = 0.5  # share of common names that makes two axes the same
_ENDINGS = (".gz", ".bz2", ".xz", ".h5ad", ".h5", ".zarr", ".csv", ".tsv", ".txt")


def read_batches(
    paths: Sequence[str | Path], batch_key: str = "batch", values: ValueKind = "auto"
) -> AnnData:
    """Read several files, one batch each, and keep the genes that all of them have.

    Genes have the names of the first file and are matched by :func:`~scmedley.data.gene_names.match`. If a
    file lacks a column of ``obs``, its cells have missing values. If the usable values are not in the same
    place in all files, or are log-normalised to different totals, ``X`` holds them: counts, or logarithms of
    counts per 10,000 to the base in ``values`` (else natural), so that ``prepare`` accepts the same
    ``values``. Counts stay counts. A ``ScmedleyWarning`` reports what was changed or lost.

    Parameters
    ----------
    paths
        Two or more files. A batch has the name of its file without endings; if names repeat, the shortest
        part of the path that separates the files.
    batch_key
        ``obs`` column for the batch (the file) of a cell; the batch is also the prefix of cell names.
    values
        Kind of the values, as in :func:`scmedley.pp.prepare`.

    Raises
    ------
    ScmedleyError
        As :func:`scmedley.read`; fewer than two files, the same file twice, too few common genes, duplicate
        genes, or counts in one file and log-normalised values in another.
    """
    if len(paths) < 2:
        raise ScmedleyError(f"{len(paths)} file given. Pass two or more files, one per batch.")
    names = batch_names([Path(path) for path in paths])
    parts = _transposed({name: read(path) for name, path in zip(names, paths, strict=True)})
    for path, part in zip(paths, parts.values(), strict=True):
        _check(part, path, batch_key)
    parts = dict(zip(parts, brought_together(list(parts.values()), paths, values), strict=True))
    return _joined(parts, paths, batch_key)[0]


@contextmanager
def opened_batches(
    paths: Sequence[str | Path], batch_key: str = "batch", values: ValueKind = "auto"
) -> Iterator[AnnData]:
    """Yield several files, one batch each, as :func:`read_batches` joins them, with their matrices left on disk.

    Parameters
    ----------
    paths, batch_key, values
        As in :func:`read_batches`. Files whose rows cannot be read in blocks (:func:`scmedley.io.lazy.opened`), or
        that are genes x cells, are read whole.

    Yields
    ------
    StackedCells
        In place of an AnnData, for :func:`scmedley.pp.prepare_store`; without ``obsm``.

    Raises
    ------
    ScmedleyError
        As :func:`read_batches`.
    """
    if len(paths) < 2:
        raise ScmedleyError(f"{len(paths)} file given. Pass two or more files, one per batch.")
    names = batch_names([Path(path) for path in paths])
    with ExitStack() as stack:
        parts = {name: stack.enter_context(opened(path)) for name, path in zip(names, paths, strict=True)}
        parts = _transposed(parts)
        for path, part in zip(paths, parts.values(), strict=True):
            _check(part, path, batch_key)
        findings = to_convert(list(parts.values()), paths, values)
        found: Sequence[Checked | None] = findings or [None] * len(parts)
        matrices = {
            name: _matrices(part, this, values)
            for (name, part), this in zip(parts.items(), found, strict=True)
        }
        shells = {
            name: _shell(part, matrices[name], this)
            for (name, part), this in zip(parts.items(), found, strict=True)
        }
        joined, shells, place = _joined(shells, paths, batch_key)

        def stacked(what: str, places: dict[str, np.ndarray]) -> Stacked:
            return Stacked([matrices[name][what] for name in shells], [places[name] for name in shells])

        cells = StackedCells(
            stacked("X", place),
            joined.obs,
            joined.var,
            {str(name): stacked(f"layers/{name}", place) for name in layers_of(joined)},
        )
        if joined.raw is not None:
            wanted = joined.raw.var_names
            places = {name: shell.raw.var_names.get_indexer(wanted) for name, shell in shells.items()}
            cells.raw = SimpleNamespace(
                X=stacked("raw", places), var=joined.raw.var, var_names=wanted, n_vars=len(wanted)
            )
        yield cast(AnnData, cells)


def _matrices(part: AnnData, found: Checked | None, asked: ValueKind) -> dict[str, Any]:
    """Return the matrices of a file by place; if they must be converted, ones that are computed when read."""
    layers = {f"layers/{name}": x for name, x in layers_of(part).items()}
    if found is None:
        raw = {} if part.raw is None else {"raw": part.raw.X}
        return {"X": part.X, **layers, **raw}
    of, names = matrix_at(part, found.where)
    shape = (part.n_obs, len(names))
    layers.pop(f"layers/{keys.COUNTS}", None)
    if found.where == "raw.X":
        layers = {}
    if found.values == "counts" and found.sizes:
        counts = Computed(shape, of, lambda rows: converted(part, found, asked, rows)[1])
        layers[f"layers/{keys.COUNTS}"] = counts
    return {"X": Computed(shape, of, lambda rows: converted(part, found, asked, rows)[0]), **layers}


def _shell(part: AnnData, matrices: dict[str, Any], found: Checked | None) -> AnnData:
    """Return the tables of a file with empty matrices in all places, which are joined like those of cells in memory."""
    empty = {what: csr_matrix(matrix.shape, dtype=np.float32) for what, matrix in matrices.items()}
    raw = empty.pop("raw", None)
    var = part.raw.var if found is not None and found.where == "raw.X" else part.var
    layers = {what.removeprefix("layers/"): x for what, x in empty.items() if what != "X"}
    shell = AnnData(empty["X"], obs=part.obs.copy(), var=var.copy(), layers=layers)
    if raw is not None:
        shell.raw = AnnData(raw, obs=part.obs.iloc[:, :0], var=part.raw.var)
    return shell


def _joined(
    parts: dict[str, AnnData], paths: Sequence[str | Path], batch_key: str
) -> tuple[AnnData, dict[str, AnnData], dict[str, np.ndarray]]:
    """Return all cells with the shared genes, the cells of each file, and the places of the genes in it."""
    parts, place = _of_shared_genes(parts, paths)
    for name, part in parts.items():
        part.obs_names = [f"{name}_{cell}" for cell in part.obs_names]
    joined = concat(parts, join="inner", label=batch_key, merge="same")
    return _with_all_columns(joined, parts), parts, place


def batch_names(paths: Sequence[Path]) -> list[str]:
    """Return the batch name of each file: its name without endings, with folders if names repeat (and a warning)."""
    names = file_titles(paths)
    if names != [_stem(path.name) for path in paths]:
        said = ", ".join(f"{name!r} ({path})" for name, path in list(zip(names, paths, strict=True))[:3])
        warn(
            f"Files have the same name, so batches are named by the parts of their paths that differ: {said}."
        )
    return names


def file_titles(paths: Sequence[Path]) -> list[str]:
    """Return a short name of each file, which no two have: its name without endings, with folders if names repeat."""
    names = [_stem(path.name) for path in paths]
    if len(set(names)) == len(names):
        return names
    whole = [Path(os.path.abspath(path)).parts for path in paths]
    if len(set(whole)) < len(whole):
        twice = next(path for path, parts in zip(paths, whole, strict=True) if whole.count(parts) > 1)
        raise ScmedleyError(f"{twice} is given more than once. Each file is one batch; pass it once.")
    ends = [(*parts[:-1], name) for parts, name in zip(whole, names, strict=True)]
    if len(set(ends)) < len(ends):  # m.h5ad and m.zarr
        ends = whole
    while len({parts[-1] for parts in ends}) == 1:  # outs/filtered_feature_bc_matrix.h5 of every sample
        ends = [parts[:-1] for parts in ends]
    n = 1
    while len({parts[-n:] for parts in ends}) < len(ends):
        n += 1
    return ["_".join(part.strip("/\\") for part in parts[-n:]) for parts in ends]


def _stem(name: str) -> str:
    while (
        ending := next((e for e in _ENDINGS if name.lower().endswith(e) and len(name) > len(e)), "")
    ) != "":
        name = name[: -len(ending)]
    return name


def _transposed(parts: dict[str, AnnData]) -> dict[str, AnnData]:
    """Transpose files that are genes x cells, judged by the names in the other files, and warn."""
    first, *others = parts
    turn: set[str] = set()
    for name in others:
        one, other = parts[first], parts[name]
        if _shared(one.var_names, other.var_names) >= FEWEST:
            continue
        if _shared(one.var_names, other.obs_names) >= _SAME:
            turn.add(name)
        elif _shared(one.obs_names, other.var_names) >= _SAME:
            turn.add(first)
    if turn:
        warn(
            f"{', '.join(sorted(turn))}: read as genes x cells and transposed, because its rows have names of genes "
            f"of other files ({listed(list(parts[min(turn)].obs_names[:2]))})."
        )
    return {
        name: AnnData(csr_matrix(part.X[:].T), obs=part.var, var=part.obs) if name in turn else part
        for name, part in parts.items()
    }


def _shared(one: pd.Index, other: pd.Index) -> float:
    return len(one.intersection(other)) / max(1, min(len(one), len(other)))


def _check(part: AnnData, path: str | Path, batch_key: str) -> None:
    if not part.var_names.is_unique:
        twice = part.var_names[part.var_names.duplicated()][0]
        raise ScmedleyError(
            f"{path}: gene {twice!r} occurs more than once. Make gene names unique before joining files."
        )
    if batch_key in part.obs:
        raise ScmedleyError(
            f"{path} already has an obs column {batch_key!r}, but each of several files is one batch. Choose "
            "another name with --batch, or join the files yourself to use that column."
        )


def shared_genes(genes: dict[str, GeneNames], paths: Sequence[str | Path]) -> dict[str, np.ndarray]:
    """Return the places in each file of the genes that all files have, in the order of the first file.

    Genes are matched by :func:`~scmedley.data.gene_names.match`; a ``ScmedleyWarning`` lists lost genes.

    Raises
    ------
    ScmedleyError
        Too few genes are in all files.
    """
    first, wanted = next(iter(genes.items()))
    place = {}
    for (name, own), path in zip(genes.items(), paths, strict=True):
        place[name], said = match(wanted, own)
        if said:
            warn(f"{name}: {said}")
        n = int((place[name] >= 0).sum())
        if n < max(1, FEWEST * min(len(wanted.names), len(own.names))):
            raise ScmedleyError(
                f"{path} shares {f'only {n} genes' if n else 'no gene name'} with {first}. Its genes have names "
                f"like {listed(list(own.names[:2]))}, those of {first} like {listed(list(wanted.names[:2]))}. Use "
                "symbols or ids in all files; if these are names of cells, swap rows and columns."
            )
    shared = np.flatnonzero(np.min(list(place.values()), axis=0) >= 0)
    sizes = {name: len(own.names) for name, own in genes.items()}
    if len(shared) < max(1, FEWEST * min(sizes.values())):
        raise ScmedleyError(
            f"Only {len(shared)} genes are in all files, which have {min(sizes.values()):,} or more each. Leave out "
            "the file with fewest common genes, or use one annotation for all files."
        )
    if len(shared) < max(sizes.values()):
        said = ", ".join(
            f"{name} {size - len(shared):,} of {size:,}" for name, size in list(sizes.items())[:5]
        )
        warn(
            f"{len(shared):,} genes are in all files and used. Genes lost: {said}{' ...' * (len(sizes) > 5)}."
        )
    return {name: own[shared] for name, own in place.items()}


def _of_shared_genes(
    parts: dict[str, AnnData], paths: Sequence[str | Path]
) -> tuple[dict[str, AnnData], dict[str, np.ndarray]]:
    """Return the parts with the genes that all files have, named as in the first, and their places."""
    genes = {name: GeneNames.of(part.var) for name, part in parts.items()}
    place = shared_genes(genes, paths)
    first = next(iter(parts))
    kept = genes[first].take(place[first])
    found = {name: _renamed(part[:, place[name]].copy(), list(kept.names)) for name, part in parts.items()}
    for key, values in kept.kinds().items():  # concat drops columns that differ between files
        if key != "names":
            for part in found.values():
                part.var[f"gene_{key}"] = list(values)
    return found, place


def _renamed(part: AnnData, names: list[str]) -> AnnData:
    """Rename genes, also in raw."""
    new = dict(zip(part.var_names, names, strict=True))
    if part.raw is not None and any(old != name for old, name in new.items()):
        taken = set(names)
        var = part.raw.var.copy()
        var.index = [new.get(g, f"{g}_raw" if g in taken else g) for g in var.index]
        part.raw = AnnData(part.raw.X, obs=pd.DataFrame(index=part.obs_names), var=var)
    part.var_names = names
    return part


def _with_all_columns(joined: AnnData, parts: dict[str, AnnData]) -> AnnData:
    """Restore the columns of obs that only some files have, and warn of what is missing."""
    for key in dict.fromkeys(key for part in parts.values() for key in part.obs):
        lacking = [name for name, part in parts.items() if key not in part.obs]
        if not lacking:
            continue
        columns = [part.obs[key] for part in parts.values() if key in part.obs]
        kinds = (pd.CategoricalDtype, np.dtypes.BoolDType)
        texts = [c.astype(object) if isinstance(c.dtype, kinds) else c for c in columns]
        there = np.concatenate([np.full(part.n_obs, key in part.obs) for part in parts.values()])
        values = pd.concat(texts).set_axis(np.flatnonzero(there)).reindex(range(joined.n_obs))
        # In a category, missing values stay missing for any type of the others.
        joined.obs[key] = (
            values if pd.api.types.is_numeric_dtype(values) else values.astype("category")
        ).array
        warn(f"obs[{key!r}] is missing for all cells of {listed(lacking)}.")
    for kind, of in (("obsm", lambda part: part.obsm), ("layers", layers_of)):
        have = [set(of(part)) for part in parts.values()]
        lost = sorted(set.union(*have) - set.intersection(*have))
        if lost:
            warn(f"{kind} {listed(lost)} {'is' if len(lost) == 1 else 'are'} not in all files and left out.")
    return joined
