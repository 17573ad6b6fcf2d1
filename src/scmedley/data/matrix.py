"""Choice of the matrix of an AnnData to use, and the cells' totals over all counted genes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scmedley import keys
from scmedley.data.arrays import Matrix, dense, log1p_cp10k, rescaled, tidy, totals
from scmedley.data.evidence import CORRECTED, TARGET_SUM, Checked, judge, kind_words
from scmedley.data.gene_names import check_unique
from scmedley.data.inplace import layers_of
from scmedley.data.scan import LN, Base, examine
from scmedley.data.sizes import sizes_known
from scmedley.errors import ScmedleyError
from scmedley.keys import ValueKind

COUNTS_LAYER = f"layers[{keys.COUNTS!r}]"
_ALL_COUNTS = ("count", "raw", "umi")  # in names of layers that may hold all counts
_A_PART = ("unspliced", "ambiguous", "scale")  # in names of layers that do not
_OTHER_LAYER = 5  # rank of counts in a layer without "counts" in its name: after logarithms of a known total
SHARE_CELLS = 10_000  # cells that a gene's share of the counts is computed from
LEAST_CELLS, LEAST_LEVEL = (
    5,
    0.01,
)  # cells, and share of all cells, of a level whose shares of genes are compared
SHARE_DIFFERENCE = 0.25  # between levels, in a gene's share of the counts: a larger one is warned of
_COMPARED = 50  # cells on which two matrices are compared


def find_values(adata: AnnData, asked: ValueKind = "auto") -> Checked:
    """Find the matrix to use.

    Whole counts are best: in ``layers["counts"]``, ``X``, ``raw.X`` or another layer named after counts. Next
    come corrected counts, then log-normalised values of a known total, then less certain kinds. A matrix with
    missing values, or ``raw`` with repeated gene names, is skipped with a warning if another one can be used.
    Counts of a subset of the genes get the cells' totals from ``raw`` or ``X``, if these contain them.

    Parameters
    ----------
    adata
        Cells x genes, in memory or backed.
    asked
        The kind of values that the user asks for; the first matrix that can hold it is used.

    Returns
    -------
    Checked
        Its ``values`` are ``"other"`` only if every matrix holds scaled or centred values.

    Raises
    ------
    ScmedleyError
        There is no matrix, or none that can be used; the message is about the first one. Or it is denoised.
    """
    seen: list[Checked] = []
    unusable: dict[str, ScmedleyError] = {}
    for where in _places(adata, asked):
        if asked == "auto" and not _is_preferred(where) and any(f.rank < _OTHER_LAYER for f in seen):
            continue
        try:
            x, genes = matrix_at(adata, where)
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
        raise next(iter(unusable.values()), _no_matrix(adata, asked))
    if best.where == "X":
        _check_not_denoised(adata)
    best = replace(best, warnings=[*_skipped(best, seen, unusable), *best.warnings])
    return _with_all_genes(adata, best)


def counted(adata: AnnData, found: Checked, rows: Any = None) -> tuple[Matrix, np.ndarray, pd.Index]:
    """Read the matrix that :func:`find_values` found.

    Parameters
    ----------
    adata
        The same cells as in :func:`find_values`.
    found
        Its result.
    rows
        A slice or an array of cells to read; all by default.

    Returns
    -------
    x : csr_matrix or ndarray of float32
        Counts, without negative values, or log-normalised values as stored. It may share memory with
        ``adata``: do not write to it.
    total_N : ndarray
        Each cell's total over all counted genes; meaningful for counts only.
    genes : Index
        Names of its columns: those of ``raw`` if it is ``raw.X``.
    """
    stored, genes = matrix_at(adata, found.where)
    x = _corrected_copy(tidy(stored if rows is None else stored[rows]), found)
    total_N = totals(x)
    if found.sizes is None:
        return x, total_N, genes
    logs, log_genes = matrix_at(adata, found.sizes.where)
    logs = tidy(logs if rows is None else logs[rows])
    undone_N = totals(_undone(_columns(logs, log_genes, genes), found.sizes.base or "log1p"))
    # Sums over the same genes: total_N of k, undone_N of target * k / total.
    ratio = np.divide(total_N, undone_N, out=np.zeros_like(total_N), where=undone_N > 0)
    return x, (found.sizes.total or TARGET_SUM) * ratio, genes


def normalised(x: Matrix, total_N: np.ndarray, found: Checked) -> Matrix:
    """Return log1p CP10k of the result of :func:`counted`; the same object if it is that already."""
    if found.values == "counts":
        return log1p_cp10k(x, total_N)
    if found.base in (None, "log1p") and found.total in (None, TARGET_SUM) and not found.n_negative:
        return x
    return rescaled(x, found.total, found.base or "log1p")


def crowding(log_NG: Any, genes: Sequence[str], levels: Mapping[str, np.ndarray]) -> str:
    """Return a warning if one gene takes far more of the counts in some levels: all others seem to fall there.

    ``log_NG`` is log1p CP10k, in memory or on disk, of which some cells are judged; ``levels`` are the codes of the
    cells in each term of a design. Levels with fewer cells than ``LEAST_CELLS`` or ``LEAST_LEVEL`` are not judged.
    """
    rows = np.unique(np.linspace(0, log_NG.shape[0] - 1, SHARE_CELLS).astype(np.int64))
    log_NG = log_NG[rows]
    cp10k_NG = np.expm1(log_NG) if isinstance(log_NG, np.ndarray) else log_NG.expm1()
    share_G = np.asarray(cp10k_NG.mean(axis=0), np.float64).ravel() / TARGET_SUM
    # A gene with such a share in one level has at least this mean.
    judged = np.flatnonzero(share_G > LEAST_LEVEL * SHARE_DIFFERENCE)
    if share_G.sum() > 1.01 or not len(judged):  # the first: logarithms on a scale of their own
        return ""
    share_NG = pd.DataFrame(np.asarray(dense(cp10k_NG[:, judged]), np.float64) / TARGET_SUM)
    for term, code_N in levels.items():
        by_level = share_NG.groupby(code_N[rows])
        mean_LG = by_level.mean()[by_level.size() >= max(LEAST_CELLS, LEAST_LEVEL * len(rows))]
        low_G, high_G = mean_LG.min(), mean_LG.max()
        g = int(np.argmax(high_G - low_G))
        if high_G[g] - low_G[g] > SHARE_DIFFERENCE:
            return (
                f"The gene {genes[judged[g]]} has {low_G[g]:.0%} to {high_G[g]:.0%} of the counts, by level of {term}. "
                "Values are counts per 10,000 of a cell, so where it rises all other genes seem to fall. Effects of a "
                "condition on sums of counts correct for that (sm.interpret.condition_effects)."
            )
    return ""


def matrix(adata: AnnData, found: Checked) -> Matrix:
    """Return the matrix of :func:`find_values`, with the genes of ``adata``."""
    x, _, genes = counted(adata, found)
    return _columns(x, genes, adata.var_names)


def _places(adata: AnnData, asked: ValueKind) -> Iterator[str]:
    """Yield the places of the matrices, the most preferred first."""
    names = [str(name) for name in layers_of(adata) if not any(word in str(name).lower() for word in _A_PART)]
    by_name = sorted(
        (name for name in names if name not in (keys.COUNTS, keys.LOGNORM)), key=lambda n: not _says_counts(n)
    )
    if keys.COUNTS in adata.layers and asked in ("auto", "counts"):
        yield COUNTS_LAYER
    if adata.X is not None:
        yield "X"
    if adata.raw is not None and adata.var_names.isin(adata.raw.var_names).all():
        yield "raw.X"  # otherwise it lacks genes
    yield from (f"layers[{name!r}]" for name in by_name)
    if keys.LOGNORM in adata.layers:
        yield f"layers[{keys.LOGNORM!r}]"


def _check_not_denoised(adata: AnnData) -> None:
    """Raise if a model's ``denoise`` has made these cells."""
    ours = adata.uns.get(keys.UNS)
    if isinstance(ours, Mapping) and keys.DENOISED in ours:
        raise ScmedleyError(
            f"X holds denoised values (uns[{keys.UNS!r}][{keys.DENOISED!r}]). These are no counts, and as they share "
            "information between cells, tests on them find differences that are not there. Use the cells with their "
            "counts."
        )


def _no_matrix(adata: AnnData, asked: ValueKind) -> ScmedleyError:
    ours = adata.uns.get(keys.UNS)
    if isinstance(ours, Mapping) and keys.STORE in ours:
        return ScmedleyError(
            "These cells were prepared on disk and hold no matrix. Their values are in the folder "
            f"{ours[keys.STORE]!r} (inside that of the run, unless the path is complete): pass "
            "sm.pp.read_store(folder) in place of the cells, or reading=sm.pp.read_store(folder) to embed."
        )
    return ScmedleyError(f"There is no matrix of {kind_words(asked)}. Check X and layers['counts'].")


def _says_counts(name: str) -> bool:
    return any(word in name.lower() for word in _ALL_COUNTS)


def _is_preferred(where: str) -> bool:
    return where in ("X", "raw.X") or _says_counts(where)


def matrix_at(adata: AnnData, where: str) -> tuple[Any, pd.Index]:
    """Return a matrix as stored, and the names of its columns."""
    if where == "X":
        return adata.X, adata.var_names
    if where == "raw.X":
        advice = "These are in raw: remove it with `del adata.raw`, or make them unique."
        check_unique(adata.raw.var_names, "gene", advice)
        return adata.raw.X, adata.raw.var_names
    name = next(name for name in adata.layers if f"layers[{str(name)!r}]" == where)
    return adata.layers[name], adata.var_names


def _check_empty(adata: AnnData, where: str, empty: np.ndarray) -> None:
    """Raise if a layer is empty for cells with values in ``X``: joining files fills missing layers with 0."""
    if where in ("X", "raw.X") or adata.X is None or not len(empty):
        return
    x = tidy(adata.X[empty[:_COMPARED]])
    filled = totals(x) > 0
    if filled.any() and x.min() >= 0:  # in scaled data an empty cell has values other than 0
        first = adata.obs_names[empty[filled.argmax()]]
        raise ScmedleyError(
            f"{where} is empty for cells that have values in X (the first: {first!r}). Joining files may have lost "
            "it: fill the layer for all cells, or remove it."
        )


def _ranked(found: Checked) -> Checked:
    """Rank counts in layers of other names after logarithms of a known total: they may be only a part."""
    if _is_preferred(found.where) or found.rank >= _OTHER_LAYER:
        return found
    return replace(found, rank=_OTHER_LAYER)


def _skipped(best: Checked, seen: list[Checked], unusable: dict[str, ScmedleyError]) -> list[str]:
    """Return warnings about matrices that look suitable but are not used, with the reason."""
    notes = [
        f"{where} is not used; {best.where} is used instead. {error}" for where, error in unusable.items()
    ]
    for found in seen:
        if found.where != best.where and (found.where == COUNTS_LAYER or found.rank == CORRECTED):
            notes.append(f"{found.where} is not used; {best.where} is used instead. {found.reason}")
    if best.where not in ("X", "raw.X", COUNTS_LAYER):
        why = next((found.reason for found in seen if found.where == "X"), "X has no values.")
        notes.append(f"The values are taken from {best.where}. {why}")
    return notes


def _corrected_copy(x: Matrix, found: Checked) -> Matrix:
    """Return usable values: logarithms of counts undone, no negative values, no rounding errors."""
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
    """Find the cells' totals over all genes, if the counts are of a subset of the genes.

    Either ``raw`` holds the same counts and those of more genes; or ``raw`` or ``X`` holds logarithms of the
    same counts, divided by totals over more genes. Some cells are compared value by value.
    """
    if found.values != "counts" or found.rank > CORRECTED or found.where == "raw.X":
        return found
    rows = np.unique(np.linspace(0, adata.n_obs - 1, _COMPARED).astype(int))
    x, total_N, _ = counted(adata, found, rows)
    part = x if isinstance(x, np.ndarray) else x.toarray()
    with_raw = adata.raw is not None and adata.raw.n_vars > adata.n_vars
    for where in ["raw.X"] * with_raw + ["X"] * (found.where != "X" and adata.X is not None):
        try:
            stored, genes = matrix_at(adata, where)
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
        except ScmedleyError as error:  # other genes have values that cannot be logarithms
            words = f"The cells' totals over all genes are not taken from {where}. {error}"
            found = replace(found, warnings=[*found.warnings, words])
            continue
        if sizes is None:
            continue
        if sizes.total is None:
            words = (
                f"{where} holds logarithms of the counts in {found.where}, divided by unknown totals, but not by those "
                f"over its {adata.n_vars:,} genes. The cells' totals are taken over these genes. Give counts of all "
                "counted genes in raw."
            )
            found = replace(found, warnings=[*found.warnings, words])
            continue
        words = f" The cells' totals over all genes are taken from {where}."
        return replace(found, sizes=sizes, reason=found.reason + words)
    return found


def _counts_in_raw(adata: AnnData, found: Checked) -> Checked:
    """Return the finding for the counts of all genes in ``raw``, if they can be used."""
    try:
        raw = judge(examine(adata.raw.X, "raw.X", adata.obs_names, adata.raw.var_names), "raw.X")
    except ScmedleyError as error:
        words = f"raw has more genes than {found.where}, but is not used. {error}"
        return replace(found, warnings=[*found.warnings, words])
    if raw.values != "counts":
        return found
    words = f" {found.where} has the same counts for {adata.n_vars:,} of its {adata.raw.n_vars:,} genes."
    return replace(raw, reason=raw.reason + words, warnings=[*found.warnings, *raw.warnings])
