"""Shares of variance and distances of samples, for the page of ``scmedley effects``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scmedley.data.design import as_categories, column
from scmedley.data.formulas import NESTED
from scmedley.data.terms import BETWEEN, is_missing
from scmedley.errors import ScmedleyError, heard
from scmedley.interpret.donors import is_number
from scmedley.interpret.sample_map import sample_association, sample_columns, sample_map
from scmedley.interpret.samples import GENES, sample_distances
from scmedley.interpret.variance import variance_split

MOST_GENES = 1000  # of which shares of variance are computed: those with the highest mean
PERMUTATIONS = 100  # of the distances
SAMPLE, DONOR = "scmedley_sample", "scmedley_donor"


@dataclass
class Between:
    """What differs between samples; a table that could not be made is ``None``, and ``why`` says why.

    Attributes
    ----------
    shares
        Of :func:`scmedley.interpret.variance_split`.
    distances
        Of :func:`scmedley.interpret.sample_distances`, over genes.
    places
        Of :func:`scmedley.interpret.sample_map`.
    association
        Of :func:`scmedley.interpret.sample_association`, of condition, covariates and study.
    notes
        Warnings.
    """

    shares: pd.DataFrame | None = None
    distances: pd.DataFrame | None = None
    places: pd.DataFrame | None = None
    association: pd.DataFrame | None = None
    why: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def between_samples(
    adata: AnnData,
    effects: pd.DataFrame,
    *,
    condition: str,
    donor: str,
    label: str | None,
    covariates: Sequence[str],
    nested_in: str | None,
    min_cells: int,
) -> Between:
    """Return shares of variance, distances and map of the samples; ``effects`` says which genes were tested."""
    found = Between()
    with heard() as found.notes:
        try:
            found.shares = _shares(adata, effects, condition, donor, label, covariates, nested_in)
        except ScmedleyError as error:
            found.why["shares"] = str(error)
        try:
            cells = _with_samples(adata, condition, donor, nested_in)
            how: dict[str, Any] = {"use": GENES, "permutations": PERMUTATIONS, "min_cells": max(min_cells, 2)}
            found.distances = sample_distances(cells, SAMPLE, label, **how)
            found.places = sample_map(found.distances, cells.obs, SAMPLE)
            # A condition that names each sample, such as one donor's treatment, cannot be tested.
            known = sample_columns(cells.obs, SAMPLE)
            asked = (condition, *covariates, *([] if nested_in is None else [nested_in]))
            if columns := [key for key in asked if key in known]:
                found.association = sample_association(
                    found.distances, cells.obs, SAMPLE, columns, donor_key=DONOR
                )
        except ScmedleyError as error:
            found.why["distances"] = str(error)
    return found


def _shares(
    adata: AnnData,
    effects: pd.DataFrame,
    condition: str,
    donor: str,
    label: str | None,
    covariates: Sequence[str],
    nested_in: str | None,
) -> pd.DataFrame:
    """Return shares of variance over samples (averages of the cells of a donor, condition and label)."""
    tested = effects[effects["p"].notna()]
    if tested.empty:
        raise ScmedleyError("No gene has a test, so there are no genes to split the variance of.")
    label = label if effects["label"].nunique() > 1 else None  # one label explains nothing
    mean = tested.groupby("gene", sort=False)["mean_expression"].max()
    genes = [str(gene) for gene in mean.sort_values(ascending=False, kind="stable").index[:MOST_GENES]]
    terms = [_term(adata, key) for key in (*([] if label is None else [label]), condition, *covariates)]
    path = f"`{donor}`" if nested_in is None else f"`{nested_in}`/`{donor}`"
    by = [key for key in (nested_in, donor, condition, label) if key is not None]
    known = ~np.any([is_missing(adata.obs[key]) for key in (*by, *covariates)], axis=0)
    formula = "~ " + " + ".join([*terms, f"(1 | {path})"])
    return variance_split(adata[known], formula, genes=genes, by=by, progress=False)


def _term(adata: AnnData, key: str) -> str:
    """Return a column as a term: a slope of numbers, and otherwise random levels."""
    return f"`{key}`" if is_number(column(adata, key, "condition")) else f"(1 | `{key}`)"


def _with_samples(adata: AnnData, condition: str, donor: str, nested_in: str | None) -> AnnData:
    """Return the cells with columns of donors (in their study) and samples; ``X`` is not copied."""

    def names(key: str) -> pd.Series[Any]:
        return pd.Series(as_categories(adata.obs[key]), adata.obs_names).astype("string")

    # A joined name is missing if one of its parts is.
    own = names(donor) if nested_in is None else names(nested_in) + NESTED + names(donor)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(Observation|Variable) names are not unique")
        cells = AnnData(adata.X, adata.obs.copy(), adata.var, layers=dict(adata.layers), uns=dict(adata.uns))
    cells.raw = adata.raw.to_adata() if adata.raw is not None else None
    for key, joined in ((DONOR, own), (SAMPLE, own + BETWEEN + names(condition))):
        cells.obs[key] = joined.astype(object).where(joined.notna(), None).astype("category")
    return cells
