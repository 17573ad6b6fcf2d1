"""Is this AnnData usable? Errors that say what is wrong, where, and what to do next."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import issparse

from scmedley import keys
from scmedley.errors import ScmedleyError, listed
from scmedley.overlap import as_categories, overlap

Values = Literal["counts", "log-normalised", "other"]

FEW_CELLS = 20  # a batch below this gets a warning, and its genes are not ranked on their own
_LARGEST_LOG = 20.0  # no logarithm of a count, in base e or 2, is larger (2^20 reads of one gene in a cell)
_BLOCK = 500_000  # values looked at in one go: about 20 MB of scratch memory


@dataclass(frozen=True)
class Checked:
    """What :func:`check` found.

    Attributes
    ----------
    values
        What the usable matrix holds.
    where
        Which matrix that is: ``"X"``, ``"layers['counts']"`` or ``"raw.X"``.
    warnings
        Whole sentences for the report.
    """

    values: Values
    where: str
    warnings: list[str]


def check(adata: AnnData, batch_key: str, label_key: str | None = None) -> Checked:
    """Say whether ``adata`` can be used, and how. Nothing is changed or copied; backed files work.

    Parameters
    ----------
    adata
        Cells x genes.
    batch_key
        ``obs`` column of the batches (donors, samples, protocols).
    label_key
        ``obs`` column of the cell types, where there is one.

    Raises
    ------
    ScmedleyError
        No cells or genes, gene names not unique, a key that is missing, cells without a batch, fewer than
        two batches, values that are not finite.
    """
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ScmedleyError(
            f"The data has {adata.n_obs} cells and {adata.n_vars} genes: nothing to work on. "
            "Look at the step that wrote it."
        )
    check_unique(adata.var_names)
    batch = _batches(adata, batch_key)
    values, where, warnings = find_values(adata)
    n_duplicate = int(adata.obs_names.duplicated().sum())
    if n_duplicate:
        first = adata.obs_names[adata.obs_names.duplicated()][0]
        warnings.append(
            f"{n_duplicate:,} cell names occur a second time (the first: {first!r}); "
            "preparing the data adds a number to them."
        )
    warnings += _batch_warnings(batch, batch_key)
    if label_key is not None:
        warnings += _label_warnings(adata, batch, label_key)
    return Checked(values, where, warnings)


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


def column(adata: AnnData, key: str, what: str) -> "pd.Series[Any]":
    """Give ``obs[key]``; where it is missing, say which columns there are and which is the closest."""
    if key in adata.obs:
        found: pd.Series[Any] = adata.obs[key]
        return found
    names = [str(name) for name in adata.obs.columns]
    lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(key.lower(), lower, n=1)
    hint = f" Did you mean {lower[close[0]]!r}?" if close else ""
    usable = [str(n) for n in adata.obs.columns if not pd.api.types.is_float_dtype(adata.obs[n])]
    raise ScmedleyError(
        f"The {what} key {key!r} is not a column of obs.{hint} "
        + (
            f"Columns with categories: {listed(usable, 20)}."
            if usable
            else "obs has no column with categories. Files without annotation (csv, 10x): give several, one for each "
            "batch, or add the columns in Python and save as h5ad."
        )
    )


def check_seed(seed: int) -> None:
    """Say which seeds there are."""
    if not 0 <= seed < 2**32:
        raise ScmedleyError(f"seed {seed} must lie between 0 and {2**32 - 1}.")


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


def _batches(adata: AnnData, key: str) -> pd.Categorical:
    batch = as_categories(_no_measurements(column(adata, key, "batch"), "batch", "batch, donor or sample"))
    missing = np.flatnonzero(batch.codes < 0)
    if len(missing):
        raise ScmedleyError(
            f"{len(missing):,} of {len(batch):,} cells have no batch in obs[{key!r}] (the first: "
            f"{adata.obs_names[missing[0]]!r}). Fill them in, or drop those cells."
        )
    if len(batch.categories) < 2:
        raise ScmedleyError(
            f"obs[{key!r}] holds one batch only, {batch.categories[0]!r}. "
            "Two or more are needed to tell batch effects from the rest."
        )
    if len(batch.categories) == len(batch):
        raise ScmedleyError(
            f"Every cell has its own value in obs[{key!r}] (such as {batch.categories[0]!r}): these are "
            "names of cells, not batches. Name the column that says which batch or donor a cell comes from."
        )
    return batch


def _batch_warnings(batch: pd.Categorical, key: str) -> list[str]:
    warnings = []
    sizes = np.bincount(batch.codes, minlength=len(batch.categories))
    small = [f"{n} ({size})" for n, size in zip(batch.categories, sizes, strict=True) if size < FEW_CELLS]
    if small:
        warnings.append(
            f"{len(small)} of {len(sizes)} batches have fewer than {FEW_CELLS} cells, so little can be said "
            f"about them: {listed(small)}."
        )
    if len(sizes) < 3:
        warnings.append(
            f"obs[{key!r}] has {len(sizes)} batches only: what is found holds for these, "
            "and says nothing about how batches or donors vary in general."
        )
    return warnings


def _no_measurements(values: "pd.Series[Any]", what: str, meant: str) -> "pd.Series[Any]":
    if pd.api.types.is_float_dtype(values) and not (values.dropna() % 1 == 0).all():
        raise ScmedleyError(
            f"The {what} column {values.name!r} holds measurements (such as {values.dropna().iloc[0]!s}). "
            f"Name the column that says which {meant} a cell is from or of."
        )
    return values


def _label_warnings(adata: AnnData, batch: pd.Categorical, key: str) -> list[str]:
    warnings = []
    label = as_categories(_no_measurements(column(adata, key, "label"), "label", "type"))
    n_missing = int((label.codes < 0).sum())
    if n_missing == len(label):
        raise ScmedleyError(
            f"No cell has a label in obs[{key!r}]. Name another column, or leave the label out."
        )
    if n_missing:
        warnings.append(
            f"{n_missing:,} of {len(label):,} cells have no label in obs[{key!r}]; "
            "they are used for training and left out of every score by label."
        )
    if len(label.categories) == 1:
        warnings.append(f"All labelled cells are {label.categories[0]!r}: scores by label mean nothing here.")
    found = overlap(pd.Series(batch), pd.Series(label))
    if found.verdict != "identifiable":
        warnings.append(f"Batches and labels are {found.verdict}. {found.words}")
    return warnings


def find_values(adata: AnnData) -> tuple[Values, str, list[str]]:
    """Find the first matrix of counts, else of log-normalised values, in layers['counts'], X, raw.X.

    Returns
    -------
    values, where, warnings
        As in :class:`Checked`. ``"other"`` only where all of them have negative values.
    """
    seen: list[tuple[Values, str, list[str]]] = []
    for where in ("layers['counts']", "X", "raw.X"):
        x, genes = _matrix(adata, where)
        if x is None:
            continue
        values, warning = _examine(x, where, adata.obs_names, genes)
        found = (values, where, [warning] if warning else [])
        if values == "counts":
            return found
        seen.append(found)
    if not seen:
        raise ScmedleyError("The data has no matrix: X is empty and there is no layers['counts'].")
    return next((found for found in seen if found[0] == "log-normalised"), seen[0])


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
) -> tuple[Values, str | None]:
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
            return "other", None
        whole = whole and bool((values == np.rint(values)).all())
        if not whole and largest <= _LARGEST_LOG:
            totals_N += np.bincount(rows, weights=np.expm1(values), minlength=len(totals_N))
    if whole:
        return "counts", None
    if largest > _LARGEST_LOG:
        return "counts", (
            f"{where} holds non-integer counts (the largest value is {largest:.6g}); they are used as counts."
        )
    totals = totals_N[totals_N > 0]
    if totals.std() <= 0.05 * totals.mean():
        return "log-normalised", None
    return "log-normalised", (
        f"{where} is taken to be log-normalised, as no value exceeds {_LARGEST_LOG:g}, but the cells' totals "
        "differ after undoing the logarithm: a part of the genes, another logarithm than log1p, or corrected "
        "counts. Give raw counts where you have them."
    )


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
