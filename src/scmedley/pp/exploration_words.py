"""What an exploration found, in sentences for the console and the page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmedley.errors import listed
from scmedley.pp.overlap import overlap

if TYPE_CHECKING:
    from scmedley.pp.dispersion import Dispersion
    from scmedley.pp.exploration import Exploration

DEEPER = 2.0  # ratio of the batches' median counts per cell from which a sentence says so
MUCH_MITOCHONDRIAL = 0.2  # share of a cell's counts
PLURAL = {"batch": "batches", "donor": "donors", "site": "sites", "label": "labels"}


def findings(found: Exploration) -> list[str]:
    """Return the findings, the most important for the choice of a model first."""
    return [
        *_values(found),
        *_keys(found),
        *_confounding(found),
        *_depth(found),
        *_quality(found),
        *_noise(found),
    ]


def missing(found: Exploration) -> list[str]:
    """Return a sentence for each table that is missing."""
    return [f"{name.capitalize()}: {reason}" for name, reason in found.missing.items()]


def _values(found: Exploration) -> list[str]:
    if len(set(found.reasons)) == 1:
        return [found.reasons[0]]
    return [f"{name}: {reason}" for name, reason in zip(found.names, found.reasons, strict=True)]


def _keys(found: Exploration) -> list[str]:
    """Return a sentence on the columns of the roles, and one on those that were guessed."""
    if not found.keys:
        return ["No column of obs has the name of a batch, a donor, a site or a label."]
    said = ", ".join(
        f"{role} is obs[{key.column.name!r}] ({key.column.n_levels:,} level{'s' * (key.column.n_levels != 1)})"
        for role, key in found.keys.items()
    )
    guessed = [role for role, key in found.keys.items() if key.why != "given"]
    how = f" Guessed from the names: {', '.join(guessed)}." if guessed else ""
    return [f"{said[0].upper()}{said[1:]}.{how}"]


def _confounding(found: Exploration) -> list[str]:
    sentences = []
    if {"batch", "label"} <= set(found.keys):
        batch, label = (found.keys[role].column.categorical for role in ("batch", "label"))
        shared = overlap(batch, label)
        row = found.confounding.query("one == 'batch' and other == 'label'").iloc[0]
        v, chance = row["cramers_v"], row["by_chance"]
        strength = f" (Cramer's V {v:.2f}, {chance:.2f} by chance)" if np.isfinite(v) else ""
        sentences.append(f"Batch and label are {shared.verdict}{strength}. {shared.words}")
        alone = [f"{name} ({batch})" for name, batch in shared.of_one_batch.items()]
        if alone:
            sentences.append(
                f"{len(alone)} of {len(shared.table)} labels are in one batch only: {listed(alone)}."
            )
        narrow = [str(name) for name in shared.table.columns[(shared.table > 0).sum(axis=0) == 1]]
        if narrow:
            n = shared.table.shape[1]
            sentences.append(f"{len(narrow)} of {n} batches hold one label only: {listed(narrow)}.")
    return [*sentences, *_nested(found)]


def _nested(found: Exploration) -> list[str]:
    """Return sentences on roles of which one determines the other, such as batches of one donor each."""
    sentences = []
    rows: Any = found.confounding[found.confounding["other"] != "label"].itertuples()
    for row in rows:
        n_one, n_other = (found.keys[role].column.n_levels for role in (row.one, row.other))
        if row.with_one_only == n_one and row.of_one_only == n_other:
            sentences.append(f"Each {row.one} is one {row.other}: their effects cannot be told apart.")
        elif row.with_one_only == n_one:
            sentences.append(
                f"Each {row.one} has cells of one {row.other} only: what differs between {PLURAL[row.other]} also "
                f"differs between {PLURAL[row.one]}."
            )
        elif row.of_one_only == n_other:
            sentences.append(
                f"Each {row.other} is in one {row.one} only: what differs between {PLURAL[row.one]} also differs "
                f"between {PLURAL[row.other]}."
            )
    return sentences


def _depth(found: Exploration) -> list[str]:
    rows = found.quality
    rows = rows[~rows["is_all"] & (rows["metric"] == "counts")] if len(rows) else rows
    if len(rows) < 2 or rows["median"].min() <= 0:
        return []
    order = np.argsort(rows["median"].to_numpy(), kind="stable")
    deep, shallow = rows.iloc[order[-1]], rows.iloc[order[0]]
    ratio = deep["median"] / shallow["median"]
    if ratio < DEEPER:
        return []
    return [
        f"Batches differ {ratio:.1f}-fold in depth: the median cell has {deep['median']:,.0f} counts in "
        f"{deep['batch']} and {shallow['median']:,.0f} in {shallow['batch']}."
    ]


def _quality(found: Exploration) -> list[str]:
    sentences = []
    empty = int((found.cells["genes"] == 0).sum())
    if empty:
        sentences.append(f"{empty:,} of {found.n_cells:,} cells have no value above 0.")
    share: pd.Series[float] = found.cells["mitochondrial"]
    if share.notna().any():
        many = int((share > MUCH_MITOCHONDRIAL).sum())
        sentences.append(
            f"Mitochondrial genes hold {share.median():.1%} of the counts of the median cell, and more than "
            f"{MUCH_MITOCHONDRIAL:.0%} in {many:,} cells."
        )
    return sentences


def _noise(found: Exploration) -> list[str]:
    last = found.summary.iloc[-1]
    sentences = [f"{last['zeros']:.1%} of the values are 0."]
    fit = found.dispersion
    if fit is None:
        return sentences
    if fit.value == 0:
        return [*sentences, "The variance of the counts is not larger than Poisson's."]
    return [
        *sentences,
        f"Counts vary more than Poisson's: the common dispersion is {fit.value:.3g}. Different totals of the cells "
        f"alone would give {fit.depth:.3g}, and cells of equal totals would have {fit.beyond_depth:.3g}"
        f"{_product(fit)}.",
    ]


def _product(fit: Dispersion) -> str:
    """Return how the parts of a dispersion are combined: they do not add up."""
    if not fit.depth or not fit.beyond_depth:
        return ""
    return f" (1 + {fit.value:.3g} is the product of 1 + {fit.depth:.3g} and 1 + {fit.beyond_depth:.3g})"
