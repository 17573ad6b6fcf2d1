"""Effects of a condition on the composition of samples: the shares of labels, with donors as replicates.

Shapes: S samples (a donor under a condition), K labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmedley.errors import ScmedleyError
from scmedley.evaluate.statistics import adjusted
from scmedley.interpret.condition_effects import fitted, labels_of, of_contrast
from scmedley.interpret.donors import Donors, design_of, read_donors, samples_of
from scmedley.interpret.moderated import Floats

if TYPE_CHECKING:
    from anndata import AnnData

PSEUDOCOUNT = 0.5  # cells that are added to each label of a sample of average size before the logarithm
COLUMNS = (
    *("label", "contrast", "effect", "q05", "q95", "se", "t", "df", "p", "q", "share_reference", "share"),
    *("donors", "donors_by_level", "design", "influence", "influential_donor", "cells", "reason"),
)


def composition(
    adata: AnnData,
    condition_key: str,
    donor_key: str,
    label_key: str,
    *,
    reference: str | None = None,
    covariates: Sequence[str] = (),
    nested_in: str | None = None,
    min_cells: int = 10,
    min_donors: int = 2,
) -> pd.DataFrame:
    """Return the effect of a condition on the share of each label, with donors as the replicates.

    The values of a sample (the cells of a donor under a condition) are centred log ratios: log2 of the number of cells
    of each label, 0.5 added (times the size of the sample over the mean size), minus the mean of these logarithms over
    labels. The model over samples is that of :func:`scmedley.interpret.condition_effects`, with equal weights;
    variances are moderated if there are 10 labels or more.

    If a label becomes rarer, the shares of all others rise, and with few labels so do their ratios. And a change of
    composition alone gives effects on genes if all cells are tested together: genes of the label that becomes rarer
    seem to go down, although no cell has changed.

    Parameters
    ----------
    adata
        Cells; only ``obs`` is read.
    condition_key, donor_key, reference, covariates, nested_in, min_donors
        As in :func:`scmedley.interpret.condition_effects`.
    label_key
        ``obs`` column of the labels, such as cell types; cells without one do not count.
    min_cells
        Samples with fewer cells, of all labels together, are left out.

    Returns
    -------
    pandas.DataFrame
        One row per label and contrast: ``effect`` (log2 change of the label's ratio to the geometric mean of all
        labels, or its slope per unit) with ``q05`` to ``q95`` (90 % interval), ``se``, ``t``, ``df``, ``p``, ``q``
        (Benjamini-Hochberg, over labels); ``share_reference`` and ``share``: mean share over samples in the two levels
        (of a continuous condition: over all samples, twice the same); ``donors``, ``donors_by_level``, ``design``,
        ``influence``, ``influential_donor``, ``cells``, ``reason``. ``attrs["shares"]`` has the share of each label
        in each sample.

    Raises
    ------
    ScmedleyError
        As :func:`scmedley.interpret.condition_effects`; or there is one label only.
    """
    if min_cells < 1 or min_donors < 2:
        raise ScmedleyError(f"min_cells={min_cells}, min_donors={min_donors}: need 1 or more, and 2 or more.")
    how: dict[str, Any] = {"reference": reference, "covariates": covariates, "nested_in": nested_in}
    donors = read_donors(adata, condition_key, donor_key, **how)
    label_N, names = labels_of(adata, label_key, donors)
    rows = np.flatnonzero(label_N >= 0)
    samples = samples_of(donors, rows, min_cells)
    n_SK = np.zeros((len(samples.table), len(names)))
    known = samples.code_N >= 0
    np.add.at(n_SK, (samples.code_N[known], label_N[rows[known]]), 1)
    there = n_SK.sum(0) > 0
    if there.sum() < 2:
        raise ScmedleyError(
            f"obs[{label_key!r}] has {int(there.sum())} label(s) in samples of {min_cells} cells or more; a "
            "composition needs two or more."
        )
    n_SK, names = n_SK[:, there], [name for name, kept in zip(names, there, strict=True) if kept]
    share_SK = n_SK / n_SK.sum(1, keepdims=True)
    table = _tested(centred_log_ratios(n_SK), samples.table, donors, min_donors, names)
    table = table.assign(cells=np.tile(n_SK.sum(0).astype(int), len(donors.contrasts)))
    for name, place in (("share_reference", 0), ("share", 1)):
        table[name] = np.concatenate([m[place] for m in _mean_shares(share_SK, samples.table, donors)])
    table = table[list(COLUMNS)]
    sample = samples.table[["donor", "condition"]].astype(object)
    shares = [
        {"donor": donor, "condition": condition, "label": name, "cells": int(n), "share": float(share)}
        for (donor, condition), n_K, share_K in zip(sample.to_numpy(), n_SK, share_SK, strict=True)
        for name, n, share in zip(names, n_K, share_K, strict=True)
    ]
    table.attrs["shares"] = shares
    return table


def centred_log_ratios(n_SK: Floats) -> Floats:
    """Return log2 of the numbers of cells, each plus a pseudo-count, minus the mean over labels."""
    n_S = n_SK.sum(1, keepdims=True)
    log_SK = np.log2(n_SK + PSEUDOCOUNT * n_S / n_S.mean())
    return np.asarray(log_SK - log_SK.mean(1, keepdims=True))


def _tested(
    y_SK: Floats, samples: pd.DataFrame, donors: Donors, min_donors: int, names: list[str]
) -> pd.DataFrame:
    design = design_of(samples, donors, min_donors)
    found = {} if design.model is None else fitted(y_SK, design, np.ones(len(names), dtype=bool))
    parts = []
    for i, contrast in enumerate(donors.contrasts):
        columns = {"label": names, "contrast": contrast} | of_contrast(found, design, i, len(names))
        columns |= {"q": adjusted(np.asarray(columns["p"]))}
        columns["reason"] = design.reasons[i] or np.where(np.isnan(columns["t"]), "no variance", "")
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def _mean_shares(share_SK: Floats, samples: pd.DataFrame, donors: Donors) -> list[tuple[Floats, Floats]]:
    """Return the mean share of each label in the reference and in the other level, by contrast."""
    if not donors.levels:
        return [(share_SK.mean(0), share_SK.mean(0))]
    condition_S = samples["condition"].astype(str).to_numpy()
    none = np.full(share_SK.shape[1], np.nan)
    means = [
        share_SK[condition_S == level].mean(0) if (condition_S == level).any() else none
        for level in donors.levels
    ]
    return [(means[0], mean) for mean in means[1:]]
