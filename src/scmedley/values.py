"""Which matrix of an AnnData is used, what it holds, and log1p CP10k of it; tables of numbers made ready."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike
from scipy.sparse import csr_matrix, issparse, sparray, spmatrix

from scmedley import keys
from scmedley.errors import ScmedleyError, listed

Values = Literal["counts", "log-normalised", "other"]
Numbers: TypeAlias = ArrayLike | sparray | spmatrix  # a table of them, cells x genes

TARGET_SUM = 1e4  # counts per cell after normalisation, before log1p
_LARGEST_LOG = 20.0  # no logarithm of a count, in base e or 2, is larger (2^20 reads of one gene in a cell)
_BLOCK = 500_000  # values looked at in one go: about 20 MB of scratch memory


@dataclass(frozen=True)
class Checked:
    """Which matrix can be used, and what it holds.

    Attributes
    ----------
    values
        What the usable matrix holds.
    where
        Which matrix that is: ``"X"``, ``"layers['counts']"`` or ``"raw.X"``.
    warnings
        Whole sentences for the report.
    total
        Of log-normalised values: the counts per cell that the logarithm was taken of, 10,000 where they are
        CP10k. ``None`` where the cells differ in it, and for counts.
    """

    values: Values
    where: str
    warnings: list[str]
    total: float | None = None


def kind_of_values(x: Any, cells: Sequence[str] | None = None, genes: Sequence[str] | None = None) -> Values:
    """Say whether a matrix holds counts, log-normalised values or something else.

    The whole matrix is read once, in blocks, and never made dense. Whole numbers are counts. Other values
    are log-normalised when none exceeds 20 (no logarithm of a count does), non-integer counts when some do.
    Negative values make it ``"other"``: scaled or centred data.

    Parameters
    ----------
    x
        Cells x genes: dense, CSR or CSC, in memory or on disk.
    cells, genes
        Names for the error message; numbers are used without them.

    Raises
    ------
    ScmedleyError
        A value is not a number or infinite; the first such cell and gene are named.
    """
    return _examine(x, "The matrix", cells, genes)[0]


def check_unique(
    names: pd.Index, what: str = "gene", way_out: str = "Make them unique with adata.var_names_make_unique()."
) -> None:
    """Raise :class:`ScmedleyError` where a name occurs more than once."""
    duplicated = names[names.duplicated()].unique()
    if len(duplicated):
        raise ScmedleyError(
            f"{len(duplicated):,} {what} names occur more than once: {listed([str(n) for n in duplicated])}. "
            + way_out
        )


def find_values(adata: AnnData) -> Checked:
    """Find the first matrix of counts, else of log-normalised values, in layers['counts'], X, raw.X.

    ``"other"`` only where all of them have negative values.
    """
    seen: list[Checked] = []
    for where in ("layers['counts']", "X", "raw.X"):
        x, genes = _matrix(adata, where)
        if x is None:
            continue
        values, warning, total = _examine(x, where, adata.obs_names, genes)
        found = Checked(values, where, [warning] if warning else [], total)
        if values == "counts":
            return found
        seen.append(found)
    if not seen:
        raise ScmedleyError("The data has no matrix: X is empty and there is no layers['counts'].")
    return next((found for found in seen if found.values == "log-normalised"), seen[0])


def matrix(adata: AnnData, where: str) -> csr_matrix | np.ndarray:
    """Give the matrix that :func:`find_values` found, tidy, with the genes of ``adata``."""
    if where == "X":
        return tidy(adata.X)
    if where == "raw.X":
        return tidy(adata.raw[:, adata.var_names].X)
    return tidy(adata.layers[keys.COUNTS])


def _matrix(adata: AnnData, where: str) -> tuple[Any, pd.Index]:
    if where == "layers['counts']":
        return adata.layers.get(keys.COUNTS), adata.var_names
    if where == "X":
        return adata.X, adata.var_names
    raw = adata.raw
    if raw is None or not adata.var_names.isin(raw.var_names).all():
        return None, adata.var_names  # raw cannot stand in for genes that it does not have
    check_unique(
        raw.var_names, "gene", "These are in raw: remove it with `del adata.raw`, or make them unique."
    )
    return raw.X, raw.var_names


def _examine(
    x: Any, where: str, cells: Sequence[str] | pd.Index | None, genes: Sequence[str] | pd.Index | None
) -> tuple[Values, str | None, float | None]:
    """Give the kind, a warning, and the total behind log-normalised values."""
    if x.dtype.kind not in "biuf":
        raise ScmedleyError(
            f"{where} holds values of type {x.dtype}, not numbers. Mend the step that wrote it."
        )
    largest, lowest, whole = 0.0, 0.0, True
    totals_N = np.zeros(x.shape[0])
    for values, rows, cols in _blocks(x):
        if not len(values):
            continue
        bad = ~(np.abs(values) <= np.finfo(np.float32).max)  # NaN fails every comparison
        if bad.any():
            i = int(bad.argmax())
            cell, gene = _called(cells, rows[i], "cell"), _called(genes, cols[i], "gene")
            what = (
                "missing (NaN)" if np.isnan(values[i]) else f"infinite or beyond 32-bit floats ({values[i]})"
            )
            raise ScmedleyError(
                f"{where} has a value that is {what} in {cell}, {gene}. "
                "Mend the step that wrote it, or drop those cells or genes."
            )
        largest, lowest = max(largest, float(values.max())), min(lowest, float(values.min()))
        if lowest < 0:
            return "other", None, None
        whole = whole and bool((values == np.rint(values)).all())
        if not whole and largest <= _LARGEST_LOG:
            totals_N += np.bincount(rows, weights=np.expm1(values), minlength=len(totals_N))
    if whole:
        return "counts", None, None
    if largest > _LARGEST_LOG:
        message = (
            f"{where} holds non-integer counts (the largest value is {largest:.6g}); they are used as counts."
        )
        return "counts", message, None
    total = _total(totals_N[totals_N > 0])
    if total is not None:
        return "log-normalised", None, total
    message = (
        f"{where} is taken to be log-normalised, as no value exceeds {_LARGEST_LOG:g}, but the cells' totals "
        "differ after undoing the logarithm: a part of the genes, another logarithm than log1p, or corrected "
        "counts. Give raw counts where you have them."
    )
    return "log-normalised", message, None


def _total(totals_N: np.ndarray) -> float | None:
    """Give the counts per cell before the logarithm, None where cells differ in them.

    Near 10,000, a spread of 5 % is that of CP10k with some genes left out since. Any other total must be met by
    every cell to 0.1 %, and by two at least: a part of the genes of like cells has nearly the same total too.
    """
    mean, spread = float(totals_N.mean()), float(totals_N.std() / totals_N.mean())
    off = abs(mean / TARGET_SUM - 1)
    if off > 0.01 and spread <= 1e-3 and len(totals_N) > 1:
        return mean
    return TARGET_SUM if off <= 0.05 and spread <= 0.05 else None


def _blocks(x: Any) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield the stored values with their rows and columns, some millions at a time."""
    by_column = getattr(x, "format", "") == "csc"
    n = x.shape[1] if by_column else x.shape[0]
    n_values = x.nnz if issparse(x) else x.shape[0] * x.shape[1]
    step = max(1, int(_BLOCK * n / max(n_values, 1)))
    for start in range(0, n, step):
        block = x[:, start : start + step] if by_column else x[start : start + step]
        if issparse(block):
            block = block.tocoo()
            values, rows, cols = block.data, block.row, block.col
        else:
            block = np.asarray(block)
            values = block.ravel()
            rows, cols = (grid.ravel() for grid in np.indices(block.shape))
        yield values, rows + (0 if by_column else start), cols + (start if by_column else 0)


def _called(names: Sequence[str] | pd.Index | None, i: int, what: str) -> str:
    return f"{what} {names[i]!r}" if names is not None else f"{what} number {i}"


def tidy(x: Any) -> csr_matrix | np.ndarray:
    """Give canonical CSR or dense float32; the very same object where it is so already."""
    # A value beyond float32 becomes infinite here; the checks have named it by then.
    if not issparse(x):
        return np.asarray(x, dtype=np.float32)
    if not (type(x) is csr_matrix and x.dtype == np.float32):
        x = csr_matrix(x, dtype=np.float32)
    if not x.has_canonical_format:
        x = x.copy()
        x.sum_duplicates()
    return x


def totals(x: csr_matrix | np.ndarray) -> np.ndarray:
    """Give the sum of each cell, in double precision."""
    return np.asarray(x.sum(axis=1, dtype=np.float64)).ravel()


def log1p_cp10k(x: csr_matrix | np.ndarray, total: np.ndarray) -> csr_matrix | np.ndarray:
    """Give ``log1p(TARGET_SUM * x / total)`` as a new matrix; empty cells stay 0."""
    scale = np.where(total > 0, TARGET_SUM / np.where(total > 0, total, 1.0), 0.0)
    if isinstance(x, np.ndarray):
        dense = (x * scale[:, None]).astype(np.float32)
        return np.log1p(dense, out=dense)
    # In double precision: a huge count times 10,000 would leave float32's range before it is divided.
    data = (x.data * np.repeat(scale, np.diff(x.indptr))).astype(np.float32)
    np.log1p(data, out=data)
    # Index arrays of its own: sharing them would let an in-place change of one layer spoil the other.
    return csr_matrix((data, x.indices.copy(), x.indptr.copy()), shape=x.shape)


def rescaled(x: csr_matrix | np.ndarray, total: float) -> csr_matrix | np.ndarray:
    """Give log1p CP10k of values that are log1p of counts per ``total``, as a new matrix."""
    undone = np.expm1(x) if isinstance(x, np.ndarray) else x.expm1()
    return log1p_cp10k(undone, np.full(x.shape[0], total))


def numeric(x: Numbers, genes: Sequence[str] | None = None) -> csr_matrix | np.ndarray:
    """Give a table of numbers, of any sparse format, list or frame, as CSR or a dense array of its own precision.

    Raises
    ------
    ScmedleyError
        No table, not of numbers, or one whose columns have other names than ``genes``, or another order.
    """
    if isinstance(x, pd.DataFrame) and genes is not None and not pd.api.types.is_integer_dtype(x.columns):
        named, wanted = [str(name) for name in x.columns], [str(name) for name in genes]
        if named != wanted:
            raise ScmedleyError(
                f"The table's columns ({listed(named, 3)}) are not the genes ({listed(wanted, 3)}), or in another "
                "order. Give table[genes]."
            )
    if isinstance(x, AnnData):
        raise ScmedleyError(
            "A table of numbers is needed, not an AnnData: give adata.layers['log1p_cp10k'] or adata.X."
        )
    try:
        found: Any = csr_matrix(x) if issparse(x) else np.asarray(x)
    except (ValueError, TypeError) as error:
        raise ScmedleyError(f"A table of numbers, cells x genes, is needed ({error}).") from error
    if found.ndim != 2 or found.dtype.kind not in "biuf":
        raise ScmedleyError(
            f"A table of numbers, cells x genes, is needed, not one of shape {found.shape} and type {found.dtype}."
        )
    return found


def dense(x: csr_matrix | np.ndarray) -> np.ndarray:
    """Give a dense array."""
    return x if isinstance(x, np.ndarray) else np.asarray(x.toarray())


def check_finite(x: csr_matrix | np.ndarray, genes: Sequence[str]) -> None:
    """Raise :class:`ScmedleyError` with the first gene that has a value that is not finite."""
    if isinstance(x, np.ndarray):
        columns = np.nonzero(~np.isfinite(x))[1]
    else:
        columns = x.indices[~np.isfinite(x.data)]
    if len(columns):
        name = str(genes[int(columns.min())])
        raise ScmedleyError(f"Gene {name!r} has values that are not finite. Replace or remove them.")
