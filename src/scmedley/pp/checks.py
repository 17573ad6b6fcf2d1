"""Checks of an AnnData before it is prepared."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scmedley import keys
from scmedley.data.design import as_categories, column, oddly_named
from scmedley.data.evidence import Checked
from scmedley.data.gene_names import check_unique, oddities, rows_are_genes
from scmedley.data.matrix import find_values
from scmedley.errors import ScmedleyError, listed
from scmedley.keys import ValueKind
from scmedley.pp.overlap import overlap

MOST_VALUES = 0.5  # batches or labels per cell; more are names of cells
FEW_VALUES = 10  # batches or labels allowed for any number of cells
MOST_DOSES = 20  # different fractional numbers that may be groups
MOST_NUMBERS = 200  # different integers that may be labels, such as clusters
FEW_CELLS = 20  # smaller batches get a warning, and genes are not ranked within them


def check(
    adata: AnnData, batch_key: str | None, label_key: str | None = None, values: ValueKind = "auto"
) -> Checked:
    """Check whether ``adata`` can be used, and how. Nothing is changed or copied; backed files work.

    Parameters
    ----------
    adata
        Cells x genes.
    batch_key
        ``obs`` column of the batches (donors, samples, protocols); ``None``: there are none.
    label_key
        ``obs`` column of the cell types, if there is one.
    values
        Kind of the values, if it should not be detected.

    Raises
    ------
    ScmedleyError
        No cells or genes, gene names that are not unique, a missing key, cells without a batch, fewer than
        two batches, or values that are not finite.
    """
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ScmedleyError(
            f"The data is empty: {adata.n_obs} cells and {adata.n_vars} genes. Check the step that wrote it."
        )
    check_unique(adata.var_names)
    batch = None if batch_key is None else _batches(adata, batch_key)
    if label_key is not None and label_key == batch_key:
        raise ScmedleyError(
            f"Batch and label are the same column, obs[{batch_key!r}]. The label is the cell type or another property "
            "to keep. Choose its column, or leave the label out."
        )
    found = find_values(adata, values)
    warnings = list(found.warnings) + name_warnings(adata)
    n_duplicate = int(adata.obs_names.duplicated().sum())
    if n_duplicate:
        first = adata.obs_names[adata.obs_names.duplicated()][0]
        warnings.append(
            f"{n_duplicate:,} cell names are duplicates (the first: {first!r}). Preparation adds a number to them."
        )
    if batch is not None and batch_key is not None:
        warnings += oddly_named(adata.obs[batch_key], "batch") + _batch_warnings(batch, batch_key)
    if label_key is not None:
        warnings += _label_warnings(adata, batch, label_key)
    return replace(found, warnings=warnings)


def name_warnings(adata: AnnData) -> list[str]:
    """Return warnings about names of genes and cells that look wrong, or exchanged."""
    warnings = oddities(adata.var_names)
    if rows_are_genes(adata.obs_names, adata.var_names):
        warnings.append(
            f"The cells have names of genes ({listed(list(adata.obs_names[:2]))}) and the genes have not "
            f"({listed(list(adata.var_names[:2]))}). If this is genes x cells, swap rows and columns (adata.T)."
        )
    return warnings


def _batches(adata: AnnData, key: str) -> pd.Categorical:
    values = column(adata, key, "batch")
    batch = as_categories(_no_measurements(values, "batch", "batch, donor or sample"))
    missing = np.flatnonzero(batch.codes < 0)
    if len(missing):
        raise ScmedleyError(
            f"{len(missing):,} of {len(batch):,} cells have no batch in obs[{key!r}] (the first: "
            f"{adata.obs_names[missing[0]]!r}, which holds {values.iloc[missing[0]]!r}). "
            "Fill in their batch, or remove these cells."
        )
    if len(batch.categories) < 2:
        raise ScmedleyError(
            f"obs[{key!r}] holds only one batch, {batch.categories[0]!r}. Two or more are needed to estimate "
            "batch effects. Choose another column."
        )
    _no_cell_names(batch, key, "batches", "the batch or donor of a cell")
    return batch


def _no_cell_names(values: pd.Categorical, key: str, what: str, meant: str) -> None:
    """Raise if most cells have a value of their own."""
    n_cells, n = int((values.codes >= 0).sum()), len(values.categories)
    if n <= max(2 if n == n_cells else FEW_VALUES, n_cells * MOST_VALUES):
        return
    every = "Every cell has its own value" if n == n_cells else f"The {n_cells:,} cells have {n:,} values"
    raise ScmedleyError(
        f"{every} in obs[{key!r}] (such as {values.categories[0]!r}): these are names of cells or measurements, not "
        f"{what}. Choose the column that holds {meant}."
    )


def _batch_warnings(batch: pd.Categorical, key: str) -> list[str]:
    warnings = []
    sizes = np.bincount(batch.codes, minlength=len(batch.categories))
    small = [f"{n} ({size})" for n, size in zip(batch.categories, sizes, strict=True) if size < FEW_CELLS]
    if small:
        warnings.append(
            f"{len(small)} of {len(sizes)} batches have fewer than {FEW_CELLS} cells, too few for "
            f"conclusions about them: {listed(small)}."
        )
    if len(sizes) < 3:
        warnings.append(
            f"obs[{key!r}] has only {len(sizes)} batches. The results hold for these batches, and do not show how "
            "batches or donors vary in general. All that differs between the two (people, day, laboratory, "
            "sequencing) is one difference here: nothing can tell which of these caused it."
        )
    return warnings


def _no_measurements(values: "pd.Series[Any]", what: str, meant: str) -> "pd.Series[Any]":
    """Raise for a column of measurements; a few repeated numbers, such as doses, are groups."""
    numbers = values.dropna()
    n = numbers.nunique()
    few = n <= MOST_DOSES and n <= len(numbers) / FEW_CELLS
    if pd.api.types.is_float_dtype(values) and not few and not (numbers % 1 == 0).all():
        raise ScmedleyError(
            f"The {what} column {values.name!r} holds measurements (such as {numbers.iloc[0]!s}). "
            f"Choose the column that holds the {meant} of a cell. If the numbers are groups, convert them to text."
        )
    return values


def may_name_clusters(obs: pd.DataFrame, key: str) -> bool:
    """Return whether all cells of each cluster in ``obs`` have one label, as if labels were names of the clusters."""
    if keys.CLUSTER not in obs:
        return False
    labels_K = obs.groupby(keys.CLUSTER, observed=True)[key].nunique()
    return obs[key].nunique() > 1 and bool((labels_K <= 1).all())


def _label_warnings(adata: AnnData, batch: pd.Categorical | None, key: str) -> list[str]:
    warnings = []
    values = column(adata, key, "label")
    label = as_categories(_no_measurements(values, "label", "type"))
    n_missing = int((label.codes < 0).sum())
    if n_missing == len(label):
        raise ScmedleyError(
            f"No cell has a label in obs[{key!r}]. Choose another column, or leave the label out."
        )
    _no_cell_names(label, key, "labels", "the type of a cell")
    if pd.api.types.is_numeric_dtype(values) and len(label.categories) > MOST_NUMBERS:
        raise ScmedleyError(
            f"obs[{key!r}] holds {len(label.categories):,} different numbers (such as {label.categories[0]}): these "
            "are measurements, not labels. Choose the column that holds the type of a cell."
        )
    warnings += oddly_named(values, "label")
    if may_name_clusters(adata.obs, key):
        warnings.append(
            f"All cells of a cluster in obs[{keys.CLUSTER!r}] have the same label in obs[{key!r}]. If the labels are "
            "names of these clusters, scores by label show how well the clusters are found again, not that they are "
            f"cell types. If they are not, remove obs[{keys.CLUSTER!r}]."
        )
    if n_missing:
        warnings.append(
            f"{n_missing:,} of {len(label):,} cells have no label in obs[{key!r}]. "
            "They are used for training and left out of all scores by label."
        )
    if len(label.categories) == 1:
        warnings.append(f"All labelled cells are {label.categories[0]!r}, so scores by label mean nothing.")
    if batch is None:
        return warnings
    found = overlap(pd.Series(batch), pd.Series(label))
    if found.verdict != "identifiable":
        warnings.append(f"Batches and labels are {found.verdict}. {found.words}")
    of_one = [f"{name} ({batch})" for name, batch in found.of_one_batch.items()]
    if of_one and found.verdict != "not identifiable":  # otherwise all labels are, which the verdict says
        warnings.append(
            f"{len(of_one)} of {len(found.table)} labels are found in one batch only, so the effects of label and "
            f"batch cannot be told apart for them: {listed(of_one)}."
        )
    return warnings
