"""Several files, one batch each, put together."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData, concat
from scipy.sparse import csr_matrix

from scmedley.data.gene_names import GeneNames, match
from scmedley.data.inplace import layers_of
from scmedley.data.matrix import brought_together
from scmedley.errors import ScmedleyError, listed, warn
from scmedley.io import read
from scmedley.keys import ValueKind

FEWEST = 0.1  # share of the genes of the smallest file that must be in all files
_SAME = 0.5  # share of names from which on two axes hold the same things
_ENDINGS = (".gz", ".bz2", ".xz", ".h5ad", ".h5", ".zarr", ".csv", ".tsv", ".txt")


def read_batches(
    paths: Sequence[str | Path], batch_key: str = "batch", values: ValueKind = "auto"
) -> AnnData:
    """Read several files, one batch each, and keep the genes that all of them have.

    Genes are called as in the first file and found in the others by :func:`~scmedley.data.gene_names.match`. Columns
    of ``obs`` that some files lack are missing for their cells. Where the usable values do not lie in the same place in
    all files, or are log-normalised to different totals, ``X`` holds them: counts, or logarithms of counts per 10,000,
    to the base that ``values`` names (else natural), so that ``prepare`` can be given the same ``values``. Counts
    stay counts. What was changed or lost is said as a ``ScmedleyWarning``.

    Parameters
    ----------
    paths
        Two or more; a batch is called by its file's name without endings or, where names repeat, by the shortest part
        of the path that tells the files apart.
    batch_key
        ``obs`` column that says which file a cell came from; cell names are prefixed with it.
    values
        What the values are, as in :func:`scmedley.pp.prepare`.

    Raises
    ------
    ScmedleyError
        As :func:`scmedley.read` does; fewer than two files, one of them given twice, too few genes in common,
        repeated genes, counts in one file and log-normalised values in another.
    """
    if len(paths) < 2:
        raise ScmedleyError(f"{len(paths)} file given; one file for each of two or more batches is needed.")
    names = batch_names([Path(path) for path in paths])
    parts = _turned({name: read(path) for name, path in zip(names, paths, strict=True)})
    for path, part in zip(paths, parts.values(), strict=True):
        _check(part, path, batch_key)
    parts = dict(zip(parts, brought_together(list(parts.values()), paths, values), strict=True))
    parts = _of_shared_genes(parts, paths)
    for name, part in parts.items():
        part.obs_names = [f"{name}_{cell}" for cell in part.obs_names]
    joined = concat(parts, join="inner", label=batch_key, merge="same")
    return _with_all_columns(joined, parts)


def batch_names(paths: Sequence[Path]) -> list[str]:
    """Return what the batch of each file is called: its name without endings, with folders where names repeat."""
    names = [_stem(path.name) for path in paths]
    if len(set(names)) == len(names):
        return names
    whole = [Path(os.path.abspath(path)).parts for path in paths]
    if len(set(whole)) < len(whole):
        twice = next(path for path, parts in zip(paths, whole, strict=True) if whole.count(parts) > 1)
        raise ScmedleyError(f"{twice} is given more than once. Each file is one batch: give each once.")
    ends = [(*parts[:-1], name) for parts, name in zip(whole, names, strict=True)]
    if len(set(ends)) < len(ends):  # m.h5ad and m.zarr
        ends = whole
    while len({parts[-1] for parts in ends}) == 1:  # outs/filtered_feature_bc_matrix.h5 of every sample
        ends = [parts[:-1] for parts in ends]
    n = 1
    while len({parts[-n:] for parts in ends}) < len(ends):
        n += 1
    names = ["_".join(part.strip("/\\") for part in parts[-n:]) for parts in ends]
    said = ", ".join(f"{name!r} ({path})" for name, path in list(zip(names, paths, strict=True))[:3])
    warn(f"Files have the same name, so batches are called by what tells their paths apart: {said}.")
    return names


def _stem(name: str) -> str:
    while (
        ending := next((e for e in _ENDINGS if name.lower().endswith(e) and len(name) > len(e)), "")
    ) != "":
        name = name[: -len(ending)]
    return name


def _turned(parts: dict[str, AnnData]) -> dict[str, AnnData]:
    """Turn files that are genes x cells, as the names of the others tell, and say so."""
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
            f"{', '.join(sorted(turn))}: taken as genes x cells and turned, as the rows are called like genes of "
            f"other files ({listed(list(parts[min(turn)].obs_names[:2]))})."
        )
    return {
        name: AnnData(csr_matrix(part.X.T), obs=part.var, var=part.obs) if name in turn else part
        for name, part in parts.items()
    }


def _shared(one: pd.Index, other: pd.Index) -> float:
    return len(one.intersection(other)) / max(1, min(len(one), len(other)))


def _check(part: AnnData, path: str | Path, batch_key: str) -> None:
    if not part.var_names.is_unique:
        twice = part.var_names[part.var_names.duplicated()][0]
        raise ScmedleyError(f"{path}: gene {twice!r} occurs more than once, so files cannot be put together.")
    if batch_key in part.obs:
        raise ScmedleyError(
            f"{path} has an obs column {batch_key!r} already, and of several files each is one batch. Choose "
            "another --batch for the files, or put them together first to use that column."
        )


def _of_shared_genes(parts: dict[str, AnnData], paths: Sequence[str | Path]) -> dict[str, AnnData]:
    """Keep the genes that all files have, called as in the first; say how many that are."""
    first = next(iter(parts))
    wanted = GeneNames.of(parts[first].var)
    place = {}
    for (name, part), path in zip(parts.items(), paths, strict=True):
        place[name], said = match(wanted, GeneNames.of(part.var))
        if said:
            warn(f"{name}: {said}")
        n = int((place[name] >= 0).sum())
        if n < max(1, FEWEST * min(len(wanted.names), part.n_vars)):
            raise ScmedleyError(
                f"{path} shares {f'only {n} genes' if n else 'no gene name'} with {first}. Its genes are called like "
                f"{listed(list(part.var_names[:2]))}, those of {first} like {listed(list(wanted.names[:2]))}: use "
                "symbols in all files, or ids in all; if those are names of cells, swap rows and columns."
            )
    shared = np.flatnonzero(np.min(list(place.values()), axis=0) >= 0)
    sizes = {name: part.n_vars for name, part in parts.items()}
    if len(shared) < max(1, FEWEST * min(sizes.values())):
        raise ScmedleyError(
            f"Only {len(shared)} genes are in all files, which have {min(sizes.values()):,} or more each. Leave out "
            "the file that shares least, or use one annotation for all."
        )
    if len(shared) < max(sizes.values()):
        said = ", ".join(
            f"{name} {size - len(shared):,} of {size:,}" for name, size in list(sizes.items())[:5]
        )
        warn(
            f"{len(shared):,} genes are in all files and used; lost are of {said}{' ...' * (len(sizes) > 5)}."
        )
    names = [wanted.names[i] for i in shared]
    found = {name: _renamed(part[:, place[name][shared]].copy(), names) for name, part in parts.items()}
    for key, values in wanted.take(shared).kinds().items():  # concat drops columns that differ between files
        if key != "names":
            for part in found.values():
                part.var[f"gene_{key}"] = list(values)
    return found


def _renamed(part: AnnData, names: list[str]) -> AnnData:
    """Call genes otherwise, in raw too."""
    new = dict(zip(part.var_names, names, strict=True))
    if part.raw is not None and any(old != name for old, name in new.items()):
        taken = set(names)
        var = part.raw.var.copy()
        var.index = [new.get(g, f"{g}_raw" if g in taken else g) for g in var.index]
        part.raw = AnnData(part.raw.X, obs=pd.DataFrame(index=part.obs_names), var=var)
    part.var_names = names
    return part


def _with_all_columns(joined: AnnData, parts: dict[str, AnnData]) -> AnnData:
    """Put back the columns of obs that not all files have, and say what some of them lack."""
    for key in dict.fromkeys(key for part in parts.values() for key in part.obs):
        lacking = [name for name, part in parts.items() if key not in part.obs]
        if not lacking:
            continue
        columns = [part.obs[key] for part in parts.values() if key in part.obs]
        kinds = (pd.CategoricalDtype, np.dtypes.BoolDType)
        texts = [c.astype(object) if isinstance(c.dtype, kinds) else c for c in columns]
        there = np.concatenate([np.full(part.n_obs, key in part.obs) for part in parts.values()])
        values = pd.concat(texts).set_axis(np.flatnonzero(there)).reindex(range(joined.n_obs))
        # As a category a missing value stays one, whatever the type of the others.
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
