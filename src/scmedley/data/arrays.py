"""Matrices of numbers, sparse or dense: conversion, sums, normalisation."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike
from scipy.sparse import csr_matrix, issparse, sparray, spmatrix

from scmedley.data.evidence import TARGET_SUM
from scmedley.data.scan import LN, Base
from scmedley.errors import ScmedleyError, listed

Numbers: TypeAlias = ArrayLike | sparray | spmatrix  # a table of numbers, cells x genes
Matrix: TypeAlias = csr_matrix | np.ndarray  # of 32-bit floats
_ROWS = 4096  # cells that are converted at once: double precision takes three times their memory


def tidy(x: Any) -> csr_matrix | np.ndarray:
    """Return canonical CSR or dense float32; the same object if it is that already."""
    # A value beyond float32 becomes infinite here; the checks have found it before.
    if hasattr(x, "compute"):  # dask
        x = x.compute()
    if not issparse(x):
        return np.asarray(x, dtype=np.float32)
    if not (type(x) is csr_matrix and x.dtype == np.float32):
        x = csr_matrix(x, dtype=np.float32)
    if not x.has_canonical_format:
        x = x.copy()
        x.sum_duplicates()
    return x


def without_zeros(x: Matrix) -> csr_matrix:
    """Return CSR without stored zeros; the same object if it is that already."""
    out = csr_matrix(x)
    if out.nnz and not out.data.all():
        out = out.copy()
        out.eliminate_zeros()
    return out


def totals(x: csr_matrix | np.ndarray) -> np.ndarray:
    """Return the sum of each cell, in double precision."""
    return np.asarray(x.sum(axis=1, dtype=np.float64)).ravel()


def totals_of_cp10k(counts: Matrix, log1p: Matrix) -> np.ndarray:
    """Return the total by which each cell's counts were divided, also over genes that are no longer there."""
    if isinstance(log1p, np.ndarray):
        per_10k_N = totals(np.expm1(log1p))
    else:
        per_10k_N = totals(log1p.expm1())
    return np.asarray(TARGET_SUM * totals(counts) / np.where(per_10k_N > 0, per_10k_N, 1.0))


def aligned(x: Matrix, place_G: np.ndarray) -> Matrix:
    """Return these columns, in this order; 0 for missing ones (-1)."""
    if np.array_equal(place_G, np.arange(x.shape[1])):
        return x
    present = np.flatnonzero(place_G >= 0)
    shape = (x.shape[0], len(place_G))
    sub = x[:, place_G[present]]
    if isinstance(sub, np.ndarray):
        out = np.zeros(shape, dtype=np.float32)
        out[:, present] = sub
        return out
    sub.sort_indices()
    return csr_matrix((sub.data, present[sub.indices].astype(sub.indices.dtype), sub.indptr), shape=shape)


def log1p_cp10k(x: csr_matrix | np.ndarray, total: np.ndarray) -> csr_matrix | np.ndarray:
    """Return ``log1p(TARGET_SUM * x / total)`` as a new matrix; empty cells stay 0."""
    scale = np.where(total > 0, TARGET_SUM / np.where(total > 0, total, 1.0), 0.0)
    if isinstance(x, np.ndarray):
        dense = (x * scale[:, None]).astype(np.float32)
        return np.log1p(dense, out=dense)
    # In double precision: a huge count times 10,000 would exceed the range of float32 before the division.
    data = np.empty(len(x.data), dtype=np.float32)
    for start in range(0, x.shape[0], _ROWS):
        first_n = x.indptr[start : start + _ROWS + 1]
        span = slice(first_n[0], first_n[-1])
        data[span] = x.data[span] * np.repeat(scale[start : start + _ROWS], np.diff(first_n))
    np.log1p(data, out=data)
    # Copied index arrays: an in-place change of one layer must not change the other.
    return csr_matrix((data, x.indices.copy(), x.indptr.copy()), shape=x.shape)


def rescaled(
    x: csr_matrix | np.ndarray, total: float | None, base: Base = "log1p"
) -> csr_matrix | np.ndarray:
    """Return log1p CP10k, as a new matrix, from logarithms of counts per ``total`` plus 1.

    ``base`` is the base of these logarithms. If the total is not known (None), only the base changes.
    """
    if total is None or total == TARGET_SUM:
        return x * np.float32(LN[base])
    if isinstance(x, np.ndarray):
        undone = np.expm1(x * np.float32(LN[base]))
    else:
        undone = (x * np.float32(LN[base])).expm1()
    return log1p_cp10k(undone, np.full(x.shape[0], total))


def numeric(x: Numbers, genes: Sequence[str] | None = None) -> csr_matrix | np.ndarray:
    """Return a table of numbers (sparse, list or data frame) as CSR or dense, in the same precision.

    Raises
    ------
    ScmedleyError
        Not a table of numbers, or its columns are not ``genes`` in this order.
    """
    if isinstance(x, pd.DataFrame) and genes is not None and not pd.api.types.is_integer_dtype(x.columns):
        named, wanted = [str(name) for name in x.columns], [str(name) for name in genes]
        if named != wanted:
            raise ScmedleyError(
                f"The table's columns ({listed(named, 3)}) are not the genes ({listed(wanted, 3)}), or are in another "
                "order. Pass table[genes]."
            )
    if isinstance(x, AnnData):
        raise ScmedleyError(
            "A table of numbers is needed, not an AnnData: pass adata.layers['log1p_cp10k'] or adata.X."
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
    """Return a dense array."""
    return x if isinstance(x, np.ndarray) else np.asarray(x.toarray())


def check_finite(x: csr_matrix | np.ndarray, genes: Sequence[str]) -> None:
    """Raise :class:`ScmedleyError` with the first gene that has a NaN or infinite value."""
    if isinstance(x, np.ndarray):
        columns = np.nonzero(~np.isfinite(x))[1]
    else:
        columns = x.indices[~np.isfinite(x.data)]
    if len(columns):
        name = str(genes[int(columns.min())])
        raise ScmedleyError(f"Gene {name!r} has values that are not finite. Replace or remove them.")
