"""Split of the cells: training, validation (early stopping) and test (held-out cells for the scores)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData

from scmedley import keys
from scmedley.data.design import as_categories, column
from scmedley.errors import ScmedleyError

PARTS = ("train", "validation", "test")

Codes = npt.NDArray[np.integer[Any]]

_POOLED = -2  # code of merged strata; -1 is the code of a missing label


def split(
    batch_N: Codes,
    label_N: Codes | None,
    *,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    seed: int,
) -> npt.NDArray[np.str_]:
    """Split the cells into training, validation and test, stratified by batch × label.

    A stratum that is too small to give every part a cell (fewer than 1 / the smallest fraction: 10 by
    default) is merged with the other small strata of its batch. Strata that are still too small are merged
    over all batches. Each stratum, merged or not, is divided by the fractions, rounded to whole cells. The
    first cell drawn of each batch goes to training, even if its stratum then misses the fractions, so that
    every batch can be learnt. With few cells, validation or test may therefore be empty.

    Parameters
    ----------
    batch_N
        Batch codes, none missing.
    label_N
        Label codes, -1 where missing (a stratum of its own); None to stratify by batch alone.
    fractions
        Shares of training (above 0), validation and test; they sum to 1.
    seed
        Random seed; the same seed and codes give the same parts.

    Returns
    -------
    numpy.ndarray
        "train", "validation" or "test" per cell.

    Raises
    ------
    ScmedleyError
        The fractions do not sum to 1, or a batch is missing.
    """
    if min(fractions) < 0 or fractions[0] <= 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise ScmedleyError(
            f"fractions are {fractions}. They must be train (above 0), validation and test, and sum to 1."
        )
    batch_N, label_N = checked(batch_N, label_N)

    smallest = math.ceil(1 / min(f for f in fractions if f > 0) - 1e-9)
    label_N = np.where(_sizes(batch_N, label_N) < smallest, _POOLED, label_N)
    pooled_N = _sizes(batch_N, label_N) < smallest
    stratum_N = _strata(np.where(pooled_N, _POOLED, batch_N), np.where(pooled_N, _POOLED, label_N))

    order = np.random.default_rng(seed).permutation(len(batch_N))
    # The first cell of each batch, in random order, is first in its stratum and so goes to training.
    first_N = np.zeros(len(batch_N), dtype=bool)
    first_N[order[np.unique(batch_N[order], return_index=True)[1]]] = True

    part_N = np.full(len(batch_N), PARTS[0], dtype=f"<U{max(map(len, PARTS))}")
    by_stratum = order[np.lexsort((~first_N[order], stratum_N[order]))]
    for cells in np.split(by_stratum, np.flatnonzero(np.diff(stratum_N[by_stratum])) + 1):
        counts = _shares(len(cells), np.array(fractions))
        kept = int(first_N[cells].sum())
        if kept > counts[0]:
            counts = np.array([kept, *_shares(len(cells) - kept, np.array(fractions[1:]))])
        part_N[cells] = np.repeat(PARTS, counts)
    return part_N


def checked(batch_N: Codes, label_N: Codes | None) -> tuple[Codes, Codes]:
    """Return the codes as arrays, one label for all if ``label_N`` is None; raise if a batch is missing."""
    batch_N = np.asarray(batch_N).astype(np.int64)  # pandas' codes may have 8 bits, too few to number strata
    label_N = np.zeros_like(batch_N) if label_N is None else np.asarray(label_N).astype(np.int64)
    if (batch_N < 0).any():
        cell = int(np.argmax(batch_N < 0))
        raise ScmedleyError(
            f"cell {cell} has no batch. Fill in the batch, or remove such cells before the split."
        )
    return batch_N, label_N


def store_split(adata: AnnData, batch_key: str | None, label_key: str | None, seed: int) -> None:
    """Store a split of the cells in ``obs["scmedley_split"]``, unless that column exists.

    Raises
    ------
    ScmedleyError
        The column exists, but is missing for some cells, for example after joining other cells.
    """
    if keys.SPLIT in adata.obs:
        without = adata.obs_names[adata.obs[keys.SPLIT].isna()]
        if len(without):
            raise ScmedleyError(
                f"{len(without):,} of {adata.n_obs:,} cells have no part in obs[{keys.SPLIT!r}] (the first: "
                f"{without[0]!r}). Fill it in, or delete this column to split all cells again."
            )
        return
    if batch_key is None:
        batch = np.zeros(adata.n_obs, np.int64)
    else:
        batch = as_categories(column(adata, batch_key, "batch")).codes
    label = None if label_key is None else as_categories(column(adata, label_key, "label")).codes
    adata.obs[keys.SPLIT] = pd.Categorical(split(batch, label, seed=seed), categories=PARTS)


def check_split(obs: pd.DataFrame) -> None:
    """Raise if the training or the validation part has too few cells."""
    counts = obs[keys.SPLIT].value_counts()
    for part, least in (("train", 2), ("validation", 1)):
        if counts.get(part, 0) < least:
            raise ScmedleyError(
                f"obs[{keys.SPLIT!r}] has {counts.get(part, 0)} {part!r} cells of {len(obs)}; at least "
                f"{least} are needed. Use more cells or larger batches (the first cell of each batch is for training), "
                "or store your own split in that column."
            )


def _strata(batch_N: Codes, label_N: Codes) -> npt.NDArray[np.int64]:
    """Return the number of each cell's pair of batch and label."""
    pairs_N = (batch_N + 2) * (label_N.max(initial=0) + 3) + (label_N + 2)  # codes start at -2
    return np.unique(pairs_N, return_inverse=True)[1]


def _sizes(batch_N: Codes, label_N: Codes) -> npt.NDArray[np.int64]:
    """Return the size of each cell's stratum."""
    stratum_N = _strata(batch_N, label_N)
    return np.asarray(np.bincount(stratum_N)[stratum_N])


def _shares(n: int, fractions: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return whole numbers that sum to ``n``, each within 1 of its share (largest remainders round up)."""
    share = n * fractions / fractions.sum()
    counts: npt.NDArray[np.int64] = np.floor(share + 1e-9).astype(np.int64)
    counts[np.argsort(counts - share, kind="stable")[: n - counts.sum()]] += 1
    return counts
