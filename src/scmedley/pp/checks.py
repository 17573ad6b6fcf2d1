"""Is this AnnData usable? Errors that say what is wrong, where, and what to do next."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scmedley.data.design import as_categories, column, oddly_named
from scmedley.data.evidence import Checked
from scmedley.data.gene_names import check_unique, oddities, rows_are_genes
from scmedley.data.matrix import find_values
from scmedley.errors import ScmedleyError, listed
from scmedley.keys import ValueKind
from scmedley.pp.overlap import overlap

MOST_VALUES = 0.5  # batches or labels for each cell, from which on they are names of cells
FEW_VALUES = 10  # that a handful of cells may have all the same
MOST_DOSES = 20  # values with fractions that may be groups
MOST_NUMBERS = 200  # whole numbers that may be labels, such as those of clusters
FEW_CELLS = 20  # a batch below this gets a warning, and its genes are not ranked on their own


def check(
    adata: AnnData, batch_key: str, label_key: str | None = None, values: ValueKind = "auto"
) -> Checked:
    """Say whether ``adata`` can be used, and how. Nothing is changed or copied; backed files work.

    Parameters
    ----------
    adata
        Cells x genes.
    batch_key
        ``obs`` column of the batches (donors, samples, protocols).
    label_key
        ``obs`` column of the cell types, where there is one.
    values
        What the values are, where the evidence should not decide.

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
    if label_key is not None and label_key == batch_key:
        raise ScmedleyError(
            f"Batch and label are the same column, obs[{batch_key!r}]. The label is the cell type, or what else is "
            "to be kept; name its column, or leave the label out."
        )
    found = find_values(adata, values)
    warnings = list(found.warnings) + oddities(adata.var_names)
    if rows_are_genes(adata.obs_names, adata.var_names):
        warnings.append(
            f"The cells are called like genes ({listed(list(adata.obs_names[:2]))}) and the genes are not "
            f"({listed(list(adata.var_names[:2]))}): swap rows and columns (adata.T) if this is genes x cells."
        )
    n_duplicate = int(adata.obs_names.duplicated().sum())
    if n_duplicate:
        first = adata.obs_names[adata.obs_names.duplicated()][0]
        warnings.append(
            f"{n_duplicate:,} cell names occur a second time (the first: {first!r}); "
            "preparing the data adds a number to them."
        )
    warnings += oddly_named(adata.obs[batch_key], "batch") + _batch_warnings(batch, batch_key)
    if label_key is not None:
        warnings += _label_warnings(adata, batch, label_key)
    return replace(found, warnings=warnings)


def _batches(adata: AnnData, key: str) -> pd.Categorical:
    values = column(adata, key, "batch")
    batch = as_categories(_no_measurements(values, "batch", "batch, donor or sample"))
    missing = np.flatnonzero(batch.codes < 0)
    if len(missing):
        raise ScmedleyError(
            f"{len(missing):,} of {len(batch):,} cells have no batch in obs[{key!r}] (the first: "
            f"{adata.obs_names[missing[0]]!r}, which holds {values.iloc[missing[0]]!r}). Fill them in, "
            "or drop those cells."
        )
    if len(batch.categories) < 2:
        raise ScmedleyError(
            f"obs[{key!r}] holds one batch only, {batch.categories[0]!r}. "
            "Two or more are needed to tell batch effects from the rest."
        )
    _no_cell_names(batch, key, "batches", "which batch or donor a cell comes from")
    return batch


def _no_cell_names(values: pd.Categorical, key: str, what: str, meant: str) -> None:
    """Raise where most cells have a value of their own."""
    n_cells, n = int((values.codes >= 0).sum()), len(values.categories)
    if n <= max(2 if n == n_cells else FEW_VALUES, n_cells * MOST_VALUES):
        return
    every = "Every cell has its own value" if n == n_cells else f"The {n_cells:,} cells have {n:,} values"
    raise ScmedleyError(
        f"{every} in obs[{key!r}] (such as {values.categories[0]!r}): these are names of cells or measurements, not "
        f"{what}. Name the column that says {meant}."
    )


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
    """Raise for a column of measurements; a few numbers that repeat, such as doses, are groups."""
    numbers = values.dropna()
    n = numbers.nunique()
    few = n <= MOST_DOSES and n <= len(numbers) / FEW_CELLS
    if pd.api.types.is_float_dtype(values) and not few and not (numbers % 1 == 0).all():
        raise ScmedleyError(
            f"The {what} column {values.name!r} holds measurements (such as {numbers.iloc[0]!s}). "
            f"Name the column that says which {meant} a cell is from or of; turn numbers that are groups into text."
        )
    return values


def _label_warnings(adata: AnnData, batch: pd.Categorical, key: str) -> list[str]:
    warnings = []
    values = column(adata, key, "label")
    label = as_categories(_no_measurements(values, "label", "type"))
    n_missing = int((label.codes < 0).sum())
    if n_missing == len(label):
        raise ScmedleyError(
            f"No cell has a label in obs[{key!r}]. Name another column, or leave the label out."
        )
    _no_cell_names(label, key, "labels", "of which type a cell is")
    if pd.api.types.is_numeric_dtype(values) and len(label.categories) > MOST_NUMBERS:
        raise ScmedleyError(
            f"obs[{key!r}] holds {len(label.categories):,} different numbers (such as {label.categories[0]}): these "
            "are measurements, not labels. Name the column that says of which type a cell is."
        )
    warnings += oddly_named(values, "label")
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
    of_one = [f"{name} ({batch})" for name, batch in found.of_one_batch.items()]
    if of_one and found.verdict != "not identifiable":  # then all labels are, and that was said
        warnings.append(
            f"{len(of_one)} of {len(found.table)} labels are found in one batch only, so what is particular to them "
            f"and what the batch does to them cannot be told apart: {listed(of_one)}."
        )
    return warnings
