"""Which matrix of an AnnData is used, and the cells' totals over all the genes that were counted."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scmedley import keys
from scmedley.data.arrays import Matrix, log1p_cp10k, rescaled, tidy, totals
from scmedley.data.evidence import CORRECTED, TARGET_SUM, Checked, judge, kind_words
from scmedley.data.gene_names import check_unique
from scmedley.data.inplace import layers_of
from scmedley.data.scan import LN, Base, examine
from scmedley.data.sizes import sizes_known
from scmedley.errors import ScmedleyError, warn
from scmedley.keys import ValueKind

COUNTS_LAYER = f"layers[{keys.COUNTS!r}]"
_ALL_COUNTS = ("count", "raw", "umi")  # in names of layers that may hold all counts
_A_PART = ("unspliced", "ambiguous", "scale")  # in names of layers that do not
_OTHER_LAYER = 5  # rank of counts in a layer whose name does not say so: after logarithms of a known total
_COMPARED = 50  # cells that two matrices are compared on


def find_values(adata: AnnData, asked: ValueKind = "auto") -> Checked:
    """Find the matrix to use.

    Whole counts are best: in ``layers["counts"]``, ``X``, ``raw.X`` or another layer named after counts. Next come
    corrected counts, then log-normalised values of a known total, then what is less certain. A matrix with missing
    values, or ``raw`` with repeated gene names, is passed over with a warning where another one can be used. Counts
    of a part of the genes get the cells' totals from ``raw`` or ``X``, where these know them.

    Parameters
    ----------
    adata
        Cells x genes, in memory or backed.
    asked
        What the user says that the values are; the first matrix that can hold this is taken.

    Returns
    -------
    Checked
        Its ``values`` are ``"other"`` only where every matrix holds scaled or centred values.

    Raises
    ------
    ScmedleyError
        There is no matrix, or none that can be used: the first reason is given.
    """
    seen: list[Checked] = []
    unusable: dict[str, ScmedleyError] = {}
    for where in _places(adata, asked):
        if (
            asked == "auto"
            and min((f.rank for f in seen), default=9) < _OTHER_LAYER
            and not _is_wanted(where)
        ):
            continue
        try:
            x, genes = _stored(adata, where)
            meant = where in (COUNTS_LAYER, "X") or (where == "raw.X" and asked != "counts")
            evidence = examine(x, where, adata.obs_names, genes)
            _check_empty(adata, where, np.flatnonzero(evidence.found_N == 0))
            found = _ranked(judge(evidence, where, asked if meant else "auto"))
        except ScmedleyError as error:
            unusable[where] = error
            continue
        seen.append(found)
        if asked == found.kind or (asked == "auto" and found.rank == 0):
            break
    best = min((f for f in seen if asked in ("auto", f.kind)), key=lambda found: found.rank, default=None)
    if best is None:
        none = ScmedleyError(f"There is no matrix of {kind_words(asked)}: look at X and layers['counts'].")
        raise next(iter(unusable.values()), none)
    return _with_all_genes(
        adata, replace(best, warnings=[*_passed_over(best, seen, unusable), *best.warnings])
    )


def counted(adata: AnnData, found: Checked, rows: Any = None) -> tuple[Matrix, np.ndarray, pd.Index]:
    """Read the matrix that :func:`find_values` found.

    Parameters
    ----------
    adata
        The very cells that it was found in.
    found
        What it found.
    rows
        A slice or an array of cells to read; all without it.

    Returns
    -------
    x : csr_matrix or ndarray of float32
        Counts, without negative values, or log-normalised values as they are stored. It may share memory
        with ``adata``: do not write to it.
    total_N : ndarray
        Each cell's total over all genes that were counted (of counts; of no use for other values).
    genes : Index
        Names of its columns: those of ``raw`` where it is ``raw.X``.
    """
    stored, genes = _stored(adata, found.where)
    x = _mended(tidy(stored if rows is None else stored[rows]), found)
    total_N = totals(x)
    if found.sizes is None:
        return x, total_N, genes
    logs, log_genes = _stored(adata, found.sizes.where)
    logs = tidy(logs if rows is None else logs[rows])
    undone_N = totals(_undone(_columns(logs, log_genes, genes), found.sizes.base or "log1p"))
    # Both are sums over the same genes, of k and of target * k / total.
    ratio = np.divide(total_N, undone_N, out=np.zeros_like(total_N), where=undone_N > 0)
    return x, (found.sizes.total or TARGET_SUM) * ratio, genes


def normalised(x: Matrix, total_N: np.ndarray, found: Checked) -> Matrix:
    """Return log1p CP10k of what :func:`counted` read; the very same object where it is that already."""
    if found.values == "counts":
        return log1p_cp10k(x, total_N)
    if found.base in (None, "log1p") and found.total in (None, TARGET_SUM) and not found.n_negative:
        return x
    return rescaled(x, found.total, found.base or "log1p")


def matrix(adata: AnnData, found: Checked) -> Matrix:
    """Return the matrix that was found, with the genes of ``adata``."""
    x, _, genes = counted(adata, found)
    return _columns(x, genes, adata.var_names)


def brought_together(
    parts: Sequence[AnnData], names: Sequence[Any], asked: ValueKind = "auto"
) -> list[AnnData]:
    """Return these cells with their usable values in ``X``, unless they are alike as they are.

    ``X`` then holds counts of all genes that were counted, or logarithms of counts per 10,000: to the base that was
    ``asked`` for, so that the same word is true of the cells put together, and natural ones otherwise. Where each
    file has counts of a part of the genes and knows its cells' totals over all, ``layers["counts"]`` holds the counts
    and ``X`` the logarithms that know the totals. Where files differ, what was decided about each is a warning.

    Raises
    ------
    ScmedleyError
        Counts in one and log-normalised values in another; as :func:`find_values` does, with the name before it.
    """
    found: list[Checked] = []
    for name, part in zip(names, parts, strict=True):
        try:
            found.append(find_values(part, asked))
        except ScmedleyError as error:
            raise ScmedleyError(f"{name}: {error}") from error
    kinds = {this.values: name for this, name in zip(found, names, strict=True)}
    if len(kinds) > 1:
        said = ", ".join(f"{name} holds {_IN_WORDS[kind]}" for kind, name in kinds.items())
        raise ScmedleyError(
            f"{said}: these cannot be put together. Give counts in all files, in X, layers['counts'] or raw."
        )
    alike = len({(this.where, this.base, this.total, _about(this.sizes)) for this in found}) == 1
    if not alike or len({(this.reason, *this.warnings) for this in found}) > 1:
        _tell_of_each(found, names)
    if alike:
        return list(parts)
    unknown = [str(name) for this, name in zip(found, names, strict=True) if not this.sizes]
    if (
        0 < len(unknown) < len(found)
    ):  # totals over all genes in some and over a part in others: another scale
        warn(
            f"Not all files know their cells' totals over genes beside those that they hold counts of ({unknown[0]} "
            "does not): all totals are over the genes of the files."
        )
        found = [replace(this, sizes=None) for this in found]
    return [_with_x(part, this, asked) for part, this in zip(parts, found, strict=True)]


def _tell_of_each(found: Sequence[Checked], names: Sequence[Any]) -> None:
    """Warn of what was decided about each file, unless it holds whole counts: the cells together do not show it."""
    for this, name in zip(found, names, strict=True):
        for words in [this.reason] * (this.rank > 0 or this.nearly_whole) + this.warnings:
            warn(f"{name}: {words}")


def _about(sizes: Checked | None) -> tuple[Any, ...] | None:
    return None if sizes is None else (sizes.where, sizes.base, sizes.total)


def _with_x(part: AnnData, found: Checked, asked: ValueKind) -> AnnData:
    x, total_N, _ = counted(part, found)
    if found.where == "raw.X":
        part = AnnData(obs=part.obs, var=part.raw.var, obsm=dict(part.obsm))
    del part.raw
    part.layers.pop(keys.COUNTS, None)
    logs = normalised(x, total_N, found)
    if found.values != "counts":
        part.X = logs if asked == "auto" else _to_base(logs, asked)
    elif found.sizes:
        part.X, part.layers[keys.COUNTS] = logs, x
    else:
        part.X = x if asked in ("auto", "counts") else _to_base(_log1p(x), asked)
    return part


def _log1p(x: Matrix) -> Matrix:
    return np.log1p(x) if isinstance(x, np.ndarray) else x.log1p()


def _to_base(logs: Matrix, base: Any) -> Matrix:
    return logs * np.float32(1 / LN[base])


_IN_WORDS = {
    "counts": "counts",
    "log-normalised": "log-normalised values",
    "other": "scaled or centred values",
}


def _places(adata: AnnData, asked: ValueKind) -> Iterator[str]:
    """Name the matrices, the most wanted first."""
    names = [str(name) for name in layers_of(adata) if not any(word in str(name).lower() for word in _A_PART)]
    by_name = sorted(
        (name for name in names if name not in (keys.COUNTS, keys.LOGNORM)), key=lambda n: not _says_counts(n)
    )
    if keys.COUNTS in adata.layers and asked in ("auto", "counts"):
        yield COUNTS_LAYER
    if adata.X is not None:
        yield "X"
    if adata.raw is not None and adata.var_names.isin(adata.raw.var_names).all():
        yield "raw.X"  # else it cannot stand in for genes that it does not have
    yield from (f"layers[{name!r}]" for name in by_name)
    if keys.LOGNORM in adata.layers:
        yield f"layers[{keys.LOGNORM!r}]"


def _says_counts(name: str) -> bool:
    return any(word in name.lower() for word in _ALL_COUNTS)


def _is_wanted(where: str) -> bool:
    return where in ("X", "raw.X") or _says_counts(where)


def _stored(adata: AnnData, where: str) -> tuple[Any, pd.Index]:
    """Return a matrix as it is stored, and the names of its columns."""
    if where == "X":
        return adata.X, adata.var_names
    if where == "raw.X":
        check_unique(
            adata.raw.var_names,
            "gene",
            "These are in raw: remove it with `del adata.raw`, or make them unique.",
        )
        return adata.raw.X, adata.raw.var_names
    name = next(name for name in adata.layers if f"layers[{str(name)!r}]" == where)
    return adata.layers[name], adata.var_names


def _check_empty(adata: AnnData, where: str, empty: np.ndarray) -> None:
    """Refuse a layer that is empty for cells with values in ``X``: joining files fills a missing layer with 0."""
    if where in ("X", "raw.X") or adata.X is None or not len(empty):
        return
    x = tidy(adata.X[empty[:_COMPARED]])
    filled = totals(x) > 0
    if filled.any() and x.min() >= 0:  # scaled values of an empty cell are not 0
        first = adata.obs_names[empty[filled.argmax()]]
        raise ScmedleyError(
            f"{where} is empty for cells that have values in X (the first: {first!r}): it may have been lost for some "
            "when files were joined."
        )


def _ranked(found: Checked) -> Checked:
    """Put counts in layers with any other name behind logarithms of a known total: they may be a part of all."""
    if _is_wanted(found.where) or found.rank >= _OTHER_LAYER:
        return found
    return replace(found, rank=_OTHER_LAYER)


def _passed_over(best: Checked, seen: list[Checked], unusable: dict[str, ScmedleyError]) -> list[str]:
    """Say which matrix that looks like the right one is not used, and why."""
    said = [f"{where} is not used, but {best.where}. {error}" for where, error in unusable.items()]
    for found in seen:
        if found.where != best.where and (found.where == COUNTS_LAYER or found.rank == CORRECTED):
            said.append(f"{found.where} is not used, but {best.where}. {found.reason}")
    if best.where not in ("X", "raw.X", COUNTS_LAYER):
        why = next((found.reason for found in seen if found.where == "X"), "X has no values.")
        said.append(f"The values are taken from {best.where}. {why}")
    return said


def _mended(x: Matrix, found: Checked) -> Matrix:
    """Return counts out of what is stored: a logarithm undone, nothing negative, rounding taken back."""
    if found.is_as_stored:
        return x
    if found.values == "counts" and found.base:
        x = _undone(x, found.base)
    out = x.copy()
    data = out if isinstance(out, np.ndarray) else out.data
    np.maximum(data, 0, out=data)
    if found.nearly_whole:
        np.rint(data, out=data)
    if not isinstance(out, np.ndarray):
        out.eliminate_zeros()
    return out


def _undone(x: Matrix, base: Base) -> Matrix:
    scaled = x * np.float32(LN[base])
    return np.expm1(scaled) if isinstance(scaled, np.ndarray) else scaled.expm1()


def _columns(x: Matrix, genes: pd.Index, wanted: pd.Index) -> Matrix:
    return x if genes.equals(wanted) else x[:, genes.get_indexer(wanted)]


def _with_all_genes(adata: AnnData, found: Checked) -> Checked:
    """Find where the cells' totals over all genes can be had, where the counts are of a part of the genes.

    Either ``raw`` holds the same counts of more genes; or ``raw``, or ``X``, holds the logarithms of these very
    counts, divided by totals over more genes. Some cells are compared, value by value.
    """
    if found.values != "counts" or found.rank > CORRECTED or found.where == "raw.X":
        return found
    rows = np.unique(np.linspace(0, adata.n_obs - 1, _COMPARED).astype(int))
    x, total_N, _ = counted(adata, found, rows)
    part = x if isinstance(x, np.ndarray) else x.toarray()
    with_raw = adata.raw is not None and adata.raw.n_vars > adata.n_vars
    for where in ["raw.X"] * with_raw + ["X"] * (found.where != "X" and adata.X is not None):
        try:
            stored, genes = _stored(adata, where)
            other = tidy(stored[rows])
        except (ScmedleyError, TypeError, ValueError):
            continue
        if not adata.var_names.isin(genes).all():
            continue
        shared = _columns(other, genes, adata.var_names)
        shared = shared if isinstance(shared, np.ndarray) else shared.toarray()
        if where == "raw.X" and np.allclose(shared, part, rtol=1e-3):
            return _counts_in_raw(adata, found)
        try:
            sizes = sizes_known(part, total_N, shared, other, where)
        except ScmedleyError as error:  # values that are no logarithms, in other genes
            words = f"The cells' totals over all genes are not taken from {where}. {error}"
            found = replace(found, warnings=[*found.warnings, words])
            continue
        if sizes is None:
            continue
        if sizes.total is None:
            words = (
                f"{where} holds logarithms of the counts in {found.where}, divided by other totals than those over its "
                f"{adata.n_vars:,} genes; which is not known, so the cells' totals are over these genes. Give counts "
                "of all genes that were counted, in raw."
            )
            found = replace(found, warnings=[*found.warnings, words])
            continue
        words = f" Cells' totals are over all genes, as {where} knows them."
        return replace(found, sizes=sizes, reason=found.reason + words)
    return found


def _counts_in_raw(adata: AnnData, found: Checked) -> Checked:
    """Return the counts of all genes in ``raw``, if they can be used."""
    try:
        raw = judge(examine(adata.raw.X, "raw.X", adata.obs_names, adata.raw.var_names), "raw.X")
    except ScmedleyError as error:
        words = f"raw has more genes than {found.where}, but is not used. {error}"
        return replace(found, warnings=[*found.warnings, words])
    if raw.values != "counts":
        return found
    words = f" {found.where} has the same of {adata.n_vars:,} of its {adata.raw.n_vars:,} genes."
    return replace(raw, reason=raw.reason + words, warnings=[*found.warnings, *raw.warnings])
