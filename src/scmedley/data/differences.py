"""The kind of values of the training cells, and how those of new cells differ."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from anndata import AnnData

from scmedley import keys
from scmedley.data.arrays import Matrix
from scmedley.data.evidence import TARGET_SUM, Checked, kind_words

_SAMPLE = 5000  # cells on which shares are computed
_LARGER = 1.25  # ratio of shares above which the new cells lack counted genes
_ANOTHER_SCALE = 3.0  # ratio of shares, or its inverse, that suggests another scale


def trained_on(adata: AnnData, x_NG: Matrix) -> dict[str, Any]:
    """Return what a model stores about its prepared training cells: kind of values, number of genes, share.

    ``share`` is the fraction of a cell's counts that is in the model's genes, in the median cell.
    """
    values = _prepared_from(adata)
    chosen = sampled(x_NG.shape[0], slice(0, x_NG.shape[0]))
    kept = {name: values[name] for name in ("kind", "total", "genes", "doubtful") if name in values}
    return {**{name: _plain(value) for name, value in kept.items()}, "share": share_of([x_NG[chosen]])}


def difference_of_prepared(trained: dict[str, Any] | None, adata: AnnData) -> list[str]:
    """Return a warning if these cells were prepared from another kind of values than the training cells."""
    kind, here = (trained or {}).get("kind"), _prepared_from(adata).get("kind")
    if kind is None or here is None or kind == here:
        return []
    return [
        f"The model was trained on cells prepared from {kind_words(kind)}; these cells were prepared from "
        f"{kind_words(here)}. If that is wrong, prepare them again with values={kind!r}."
    ]


def _prepared_from(adata: AnnData) -> dict[str, Any]:
    """Return what ``prepare`` has stored in ``uns`` about the values."""
    ours = adata.uns.get(keys.UNS)
    prepared = ours.get("prepare", {}) if isinstance(ours, dict) else {}
    values = prepared.get("values") if isinstance(prepared, dict) else {}
    return values if isinstance(values, dict) else {}  # earlier versions stored a string


def differences(trained: dict[str, Any] | None, found: Checked, share: float, n_counted: int) -> list[str]:
    """Return warnings about how new cells differ from the training cells.

    Parameters
    ----------
    trained
        Result of :func:`trained_on`; None or empty in old models.
    found
        What the new cells hold.
    share
        Fraction of a cell's counts in the model's genes, in the median cell (:func:`share_of`).
    n_counted
        Number of genes in their totals.
    """
    trained = trained or {}
    kind = trained.get("kind")
    # A doubt that the training cells share needs no warning.
    same = kind == found.kind and bool(trained.get("doubtful"))
    notes = [words for words in found.warnings if not (same and words == found.caution)]
    if kind is not None and kind != found.kind:
        known = found.values == "counts" or found.total is not None
        notes.append(
            f"The model was trained on {kind_words(kind)}, and {found.where} of these cells holds "
            f"{kind_words(found.kind)}. They are converted to natural logarithms"
            + (f" of {TARGET_SUM:,.0f} counts per cell." if known else ", but their scale is not known.")
        )
    there = trained.get("share")
    if not share or not there:
        return notes
    ratio, n_trained = share / there, trained.get("genes", 0)
    if n_counted < 0.9 * n_trained and ratio > _LARGER:
        notes.append(
            f"These cells have {n_counted:,} genes, the training cells had {n_trained:,}. The model's genes have "
            f"{share:.0%} of the counts here and {there:.0%} in the training cells: values normalised to fewer genes "
            f"are about {ratio:.1f} times too large. Give cells with all genes that were counted."
        )
    elif not 1 / _ANOTHER_SCALE < ratio < _ANOTHER_SCALE:
        notes.append(
            f"In the model's genes these cells have {TARGET_SUM * share:,.0f} of {TARGET_SUM:,.0f} counts, the "
            f"training cells {TARGET_SUM * there:,.0f}: they may have another scale, or be very different cells."
        )
    return notes


def sampled(n_cells: int, rows: slice) -> np.ndarray:
    """Return the positions within a block of the cells used for shares, evenly spaced over all cells."""
    chosen = np.unique(np.linspace(0, n_cells - 1, min(n_cells, _SAMPLE)).astype(int))
    return np.asarray(chosen[(chosen >= rows.start) & (chosen < rows.stop)] - rows.start)


def share_of(blocks: Sequence[Matrix]) -> float:
    """Return the fraction of counts in these genes, in the median cell, from blocks of log1p CP10k."""
    totals = []
    for x_NG in blocks:
        undone = np.expm1(x_NG) if isinstance(x_NG, np.ndarray) else x_NG.expm1()
        totals.append(np.asarray(undone.sum(axis=1, dtype=np.float64)).ravel())
    return float(np.median(np.concatenate(totals))) / TARGET_SUM


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
