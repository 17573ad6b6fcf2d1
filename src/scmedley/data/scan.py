"""One pass over a matrix of numbers that collects evidence about its values, without making it dense."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.sparse import issparse

from scmedley.errors import ScmedleyError

Base = Literal["log1p", "log2", "log10"]

LN: dict[Base, float] = {"log1p": 1.0, "log2": float(np.log(2)), "log10": float(np.log(10))}
LARGEST: dict[Base, float] = {
    "log1p": 20.0,
    "log2": 20.0,
    "log10": 7.0,
}  # logarithms of counts are not larger
NOISE = 1e-3  # negative values above minus this are rounding errors
_MOST = float(np.finfo(np.float32).max)
_FEW = 0.05  # largest share of negative values, in number and in sum, that a subtraction may leave
_OUTLIERS = 5  # at most so many cells above the largest logarithm count as errors
_SAMPLE = 256  # cells whose single values are kept
_BLOCK = 500_000  # values per block: about 20 MB of temporary memory


@dataclass
class Evidence:
    """Evidence from one pass over a matrix of N cells; sums are over positive values."""

    total_N: np.ndarray
    found_N: np.ndarray  # detected genes of each cell
    undone_N: dict[Base, np.ndarray]  # totals after undoing each possible logarithm
    largest: float = 0.0
    lowest: float = 0.0
    n_positive: int = 0
    n_negative: int = 0
    n_whole: int = 0
    n_nearly_whole: int = 0
    negative_sum: float = 0.0
    first_negative: str = ""
    first_above: str = ""  # the first value too large for a logarithm of a count
    nearly_N: dict[Base, np.ndarray] = field(default_factory=dict)  # as undone_N, but infinite in a few cells
    rows: list[np.ndarray] = field(default_factory=list)  # cells of the sampled values
    sample: list[np.ndarray] = field(default_factory=list)

    @property
    def few_negative(self) -> bool:
        """Return whether a subtraction may have left the negative values: they are few and small."""
        few = self.n_negative <= _FEW * self.n_positive or self.lowest > -NOISE
        return few and -self.negative_sum <= _FEW * float(self.total_N.sum())

    def by_cell(self) -> list[np.ndarray]:
        """Return the positive values of each sampled cell."""
        if not self.rows:
            return []
        rows, values = np.concatenate(self.rows), np.concatenate(self.sample)
        order = np.argsort(rows, kind="stable")
        return np.split(values[order], np.flatnonzero(np.diff(rows[order])) + 1)


def examine(
    x: Any,
    where: str,
    cells: Sequence[str] | pd.Index | None,
    genes: Sequence[str] | pd.Index | None,
    logarithms: bool = True,
) -> Evidence:
    """Read a matrix once, in blocks, and never make it dense. ``logarithms`` tests for logarithms too.

    Raises
    ------
    ScmedleyError
        Not numbers; or a value is missing, infinite or masked; the message names its cell and gene.
    """
    _check_type(x.dtype, where)
    # Whole numbers need no test for logarithms, which takes most of the time: other numbers show in the first block.
    seen = _examined(x, where, cells, genes, logarithms=False, whole=logarithms)
    if seen is None:
        seen = _examined(x, where, cells, genes, logarithms, whole=False)
    assert seen is not None
    return seen


def _examined(x: Any, where: str, cells: Any, genes: Any, logarithms: bool, whole: bool) -> Evidence | None:
    """Return the evidence of one pass; ``whole``: None as soon as a value is no whole number."""
    n = x.shape[0]
    seen = Evidence(np.zeros(n), np.zeros(n), {base: np.zeros(n) for base in LN if logarithms})
    sampled_N = np.zeros(n, dtype=bool)
    sampled_N[np.linspace(0, max(n - 1, 0), min(n, _SAMPLE)).astype(int)] = True
    for values, rows, cols, first in _blocks(x, where):
        if not len(values):
            continue
        largest, lowest = float(values.max()), float(values.min())
        if not max(largest, -lowest) <= _MOST:  # NaN fails every comparison
            _raise_first_bad(values, rows + first[0], cols + first[1], where, cells, genes)
        seen.largest, seen.lowest = max(seen.largest, largest), min(seen.lowest, lowest)
        if lowest <= 0:
            kept = values > 0
            seen.n_positive += int(kept.sum())
            if lowest < 0:
                _note_negative(seen, values, rows + first[0], cols + first[1], cells, genes)
                if seen.lowest <= -NOISE and seen.n_negative > max(seen.n_positive, _BLOCK) / 4:
                    break  # enough to know that the data are scaled or centred
            values, rows, cols = values[kept], rows[kept], cols[kept]
        else:
            seen.n_positive += len(values)
        if largest > max(LARGEST.values()) and not seen.first_above:
            i = int((values > max(LARGEST.values())).argmax())
            cell = _name_of(cells, rows[i] + first[0], "cell")
            seen.first_above = f"{values[i]:.6g} in {cell}, {_name_of(genes, cols[i] + first[1], 'gene')}"
        span = slice(first[0], first[0] + int(rows.max()) + 1) if len(rows) else slice(0, 0)
        seen.found_N[span] += np.bincount(rows)
        seen.total_N[span] += np.bincount(rows, weights=values)
        if values.dtype.kind != "f" or (whole and bool((values == np.rint(values)).all())):
            seen.n_whole += len(values)
            seen.n_nearly_whole += len(values)
        elif whole:
            return None
        else:
            _note_floats(seen, values, rows, first[0], span, sampled_N)
    seen.nearly_N = {base: total_N for base, total_N in seen.undone_N.items() if np.isinf(total_N).any()}
    seen.undone_N = {base: total_N for base, total_N in seen.undone_N.items() if base not in seen.nearly_N}
    return seen


def _note_floats(
    seen: Evidence, values: np.ndarray, rows: np.ndarray, first: int, span: slice, sampled_N: np.ndarray
) -> None:
    """Count whole numbers among positive floats, and undo each possible logarithm."""
    off = np.abs(values - np.rint(values))
    n_whole = int((off == 0).sum())
    seen.n_whole += n_whole
    # expm1(log1p(k)) in 32 bits has an error of 1e-6 k; few values are that near to a whole number by chance.
    seen.n_nearly_whole += int((off <= np.minimum(1e-4 + 2e-6 * values, 0.01)).sum())
    few = min(_OUTLIERS, len(seen.total_N) // 10)
    for base, total_N in list(seen.undone_N.items()):
        if seen.largest > LARGEST[base]:
            above = values > LARGEST[base]
            total_N[first + rows[above]] = np.inf
            if int(np.isinf(total_N).sum()) > few:
                del seen.undone_N[base]
                continue
        undone = np.expm1(np.minimum(values, LARGEST[base]) * values.dtype.type(LN[base]))
        total_N[span] += np.bincount(rows, weights=undone)
    if n_whole < len(values) and seen.undone_N:
        chosen = sampled_N[rows + first]
        seen.rows.append(rows[chosen] + first)
        seen.sample.append(values[chosen])


def _check_type(dtype: Any, where: str) -> None:
    if np.dtype(dtype).kind not in "biufO":  # objects may be numbers, which _numbers checks
        raise ScmedleyError(f"{where} holds values of type {dtype}, not numbers. Fix the step that wrote it.")


def _numbers(block: Any, where: str) -> np.ndarray:
    """Return the values of a dense block as plain numbers of 32 bits or more."""
    if isinstance(block, np.ma.MaskedArray) and np.ma.is_masked(block):  # masked values are missing
        block = np.ma.filled(block.astype(np.float64), np.nan)
    block = np.asarray(block)
    if block.dtype.kind in "biu":
        return np.asarray(block)
    try:
        return np.asarray(block, dtype=np.float32 if block.dtype.itemsize <= 4 else np.float64)
    except (TypeError, ValueError) as error:
        raise ScmedleyError(
            f"{where} holds objects that are not numbers ({error}). Fix the step that wrote it."
        ) from error


def _blocks(x: Any, where: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, int]]]:
    """Yield the stored values with their rows and columns in the block, and where the block begins."""
    by_column = getattr(x, "format", "") == "csc"
    n = x.shape[1] if by_column else x.shape[0]
    step = max(1, int(_BLOCK * n / max(n_stored(x), 1)))
    for start in range(0, n, step):
        if issparse(x) and x.format in ("csr", "csc"):
            block = consecutive(x, slice(start, start + step))
        else:
            block = x[:, start : start + step] if by_column else x[start : start + step]
        if hasattr(block, "compute"):  # dask
            block = block.compute()
        if issparse(block):
            if not block.has_canonical_format:
                block = block.copy()
                block.sum_duplicates()
            block = block.tocoo(copy=False)
            values, rows, cols = _numbers(block.data, where), block.row, block.col
        else:
            block = _numbers(block, where)
            values = block.ravel()
            rows, cols = (grid.ravel() for grid in np.indices(block.shape))
        yield values, rows, cols, ((0, start) if by_column else (start, 0))


def consecutive(x: Any, span: slice) -> Any:
    """Return some consecutive rows of a CSR matrix (columns of a CSC matrix) that share its values.

    Slicing by scipy copies the values one by one, which takes ten times as long as what is done with them.
    """
    start, stop, _ = span.indices(len(x.indptr) - 1)
    ends = x.indptr[start : stop + 1]
    chosen = slice(ends[0], ends[-1])
    shape = (stop - start, x.shape[1]) if x.format == "csr" else (x.shape[0], stop - start)
    return type(x)((x.data[chosen], x.indices[chosen], ends - ends[0]), shape=shape)


def n_stored(x: Any) -> int:
    """Count the stored values of a matrix in memory or on disk."""
    if issparse(x):
        return int(x.nnz)
    group = getattr(x, "group", None)  # a sparse matrix on disk
    if group is not None:
        return int(group["data"].shape[0])
    known = getattr(x, "nnz", None)  # of several matrices
    return int(x.shape[0]) * int(x.shape[1]) if known is None else int(known)


def _note_negative(
    seen: Evidence, values: np.ndarray, rows: np.ndarray, cols: np.ndarray, cells: Any, genes: Any
) -> None:
    below = values < 0
    if not seen.n_negative:
        i = int(below.argmax())
        seen.first_negative = (
            f"{values[i]:.6g} in {_name_of(cells, rows[i], 'cell')}, {_name_of(genes, cols[i], 'gene')}"
        )
    seen.n_negative += int(below.sum())
    seen.negative_sum += float(values[below].sum(dtype=np.float64))


def _raise_first_bad(
    values: np.ndarray, rows: np.ndarray, cols: np.ndarray, where: str, cells: Any, genes: Any
) -> None:
    """Raise with the first value that is not a finite number."""
    i = int((~(np.abs(values) <= _MOST)).argmax())
    cell, gene = _name_of(cells, rows[i], "cell"), _name_of(genes, cols[i], "gene")
    what = "missing (NaN)" if np.isnan(values[i]) else f"infinite or beyond 32-bit floats ({values[i]})"
    raise ScmedleyError(
        f"{where} has a value that is {what} in {cell}, {gene}. "
        "Fix the step that wrote it, or drop those cells or genes."
    )


def _name_of(names: Sequence[str] | pd.Index | None, i: int, what: str) -> str:
    return f"{what} {names[i]!r}" if names is not None else f"{what} number {i}"
