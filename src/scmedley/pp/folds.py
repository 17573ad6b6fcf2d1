"""Cross-validation folds of cells or of donors, and pairs of batch and label to hold out.

Shapes: N cells, F folds, D donors, B batches, K labels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from scmedley.errors import ScmedleyError, listed
from scmedley.pp.split import PARTS, Codes, checked, split

Parts = npt.NDArray[np.str_]

_FEWEST = 3  # a fold holds out two blocks, so what is in three blocks is always in training
_ORDERS = 100  # orders of the donors' blocks to try


def rotating_folds(batch_N: Codes, label_N: Codes | None, *, n_folds: int = 5, seed: int) -> Parts:
    """Return cross-validation folds of the cells, stratified by batch × label.

    Fold f tests on block f, validates on block f + 1 (the first after the last) and trains on the others:
    60/20/20 with five folds. The cells of a batch are dealt to the blocks one by one, label by label and
    otherwise in random order: the blocks' numbers of cells of each stratum and of each batch differ by at
    most one. A stratum with fewer cells than folds is so merged with the next stratum of its batch. A batch
    starts with the block that best balances the labels, and all cells, over the batches dealt so far.

    scikit-learn's StratifiedKFold of batch × label is not used, because it deals all strata in one round. If
    a label has a single cell in each batch, these could all fall into one fold, without a training cell of
    the label.

    A batch of three or more cells has a training cell in every fold. A batch of one or two cells is in
    training in every fold and never held out: otherwise some fold would test a batch without training cells.

    Parameters
    ----------
    batch_N
        Batch codes, none missing.
    label_N
        Label codes, -1 where missing (a stratum of its own); None to stratify by batch alone.
    n_folds
        F, three or more.
    seed
        Random seed; the same seed and codes give the same folds. The number of cells of a stratum in each
        block depends on the seed and the sizes of the strata, not on the order of the cells.

    Returns
    -------
    numpy.ndarray
        F x N: "train", "validation" or "test".

    Raises
    ------
    ScmedleyError
        Fewer than three folds, a missing batch, or too few cells to test some in every fold.
    """
    _check_folds(n_folds)
    batch_N, label_N = checked(batch_N, label_N)
    _, batch_N, size_B = np.unique(batch_N, return_inverse=True, return_counts=True)
    labels, label_N = np.unique(label_N, return_inverse=True)

    rng = np.random.default_rng(seed)
    label_order_N = rng.permutation(len(labels))[label_N]
    by_batch = np.lexsort((rng.random(len(batch_N)), label_order_N, batch_N))
    cells_B = np.split(by_batch, np.cumsum(size_B)[:-1])
    block_N = np.full(len(batch_N), -1)
    counts_FK = np.zeros((n_folds, len(labels)), dtype=np.int64)
    for batch in rng.permutation(np.flatnonzero(size_B >= _FEWEST)):
        cells = cells_B[batch]
        block = np.arange(len(cells)) % n_folds
        new_FK = np.zeros_like(counts_FK)
        np.add.at(new_FK, (block, label_N[cells]), 1)
        starts = [int(start) for start in rng.permutation(n_folds)]
        start = min(starts, key=lambda s: _unevenness(counts_FK + np.roll(new_FK, s, axis=0)))
        counts_FK += np.roll(new_FK, start, axis=0)
        block_N[cells] = (block + start) % n_folds
    if not counts_FK.any(axis=1).all():
        raise ScmedleyError(
            f"The {counts_FK.sum()} cells in batches of {_FEWEST} or more do not fill {n_folds} folds. "
            "Use fewer folds, or more cells."
        )
    return _take_turns(block_N, n_folds)


def donor_folds(
    donor_N: npt.ArrayLike, target_N: npt.ArrayLike | None, *, n_folds: int = 5, seed: int
) -> Parts:
    """Return cross-validation folds of whole donors; blocks take turns as in :func:`rotating_folds`.

    Donors are dealt in order of decreasing size, each to the block with the fewest donors of its target level
    and, among those, to the block with the fewest cells (greedy). So the blocks' numbers of donors of a level
    differ by at most one, no block is empty, and cells are balanced as far as this allows. Of 100 random
    orders of the blocks, the one with the fewest levels missing from training is used.

    A level of three or more donors is in training in every fold. A level of two may be missing from training
    in one fold; with four or more folds and few such levels it is not.

    Parameters
    ----------
    donor_N
        Donors, as names or codes, none missing.
    target_N
        Target to predict for a donor (diagnosis, patient group), as names or codes: one value for all cells
        of a donor. None to balance only donors and cells.
    n_folds
        F, three or more, and at most the number of donors.
    seed
        Random seed for the order of the blocks and for ties. The sizes of donors decide which share a block.

    Returns
    -------
    numpy.ndarray
        F x N: "train", "validation" or "test".

    Raises
    ------
    ScmedleyError
        Fewer than three folds or fewer donors than folds; a cell without donor or target; a donor with two
        target values; a target level with a single donor, which cannot be both in training and in test.
    """
    _check_folds(n_folds)
    donor_N, donors = _coded(donor_N, "donor")
    if len(donors) < n_folds:
        raise ScmedleyError(
            f"{len(donors)} donors cannot be dealt to {n_folds} folds. "
            + (f"Use n_folds={len(donors)}." if len(donors) >= _FEWEST else "At least 3 donors are needed.")
        )
    level_D = np.zeros(len(donors), dtype=np.int64)
    if target_N is not None:
        level_D = _levels(donor_N, donors, target_N)
    size_D = np.bincount(donor_N, minlength=len(donors))
    rng = np.random.default_rng(seed)
    block_D = _dealt(level_D, size_D, n_folds, rng)
    orders = [rng.permutation(n_folds) for _ in range(_ORDERS)]
    donors_FK = np.zeros((n_folds, level_D.max() + 1), dtype=np.int64)
    np.add.at(donors_FK, (block_D, level_D), 1)
    order_F = min(orders, key=lambda order_F: _untrained(donors_FK[np.argsort(order_F)]))
    return _take_turns(order_F[block_D][donor_N], n_folds)


def held_out_pairs(
    batch_N: Codes,
    label_N: Codes,
    *,
    n_pairs: int,
    seed: int,
    least: int = 20,
    batches: Sequence[int] | None = None,
) -> list[tuple[int, int]]:
    """Return (batch, label) pairs to hold out, one at a time, for tests of counterfactuals.

    The batch must have another label, and the label must be in another batch, each with a stratum of
    ``least`` cells or more. Batches that are linked by shared labels must stay linked without the pair
    (:func:`scmedley.pp.overlap.overlap`). Pairs are drawn at random from the batches and labels drawn least
    often so far; the first pairs are the same for every ``n_pairs``.

    Parameters
    ----------
    batch_N, label_N
        Codes; cells without a label (-1) are left out.
    n_pairs
        Number of pairs.
    seed
        Random seed; the order of the cells does not matter.
    least
        Smallest number of cells of a pair.
    batches
        Codes of the batches to choose from; all by default.

    Returns
    -------
    list of (int, int)
        Codes of batch and label, as in the input.

    Raises
    ------
    ScmedleyError
        There are fewer such pairs than ``n_pairs``, or a batch is missing.
    """
    batch_N, label_N = checked(batch_N, label_N)
    labelled = label_N >= 0
    wanted = None if batches is None else set(batches)
    codes_B, batch_N = np.unique(batch_N[labelled], return_inverse=True)
    labels, label_N = np.unique(label_N[labelled], return_inverse=True)
    counts_BK = np.zeros((len(codes_B), len(labels)), dtype=np.int64)
    np.add.at(counts_BK, (batch_N, label_N), 1)

    large_BK = counts_BK >= max(least, 1)
    known_BK = (large_BK.sum(axis=1, keepdims=True) > 1) & (large_BK.sum(axis=0) > 1)
    if wanted is not None:
        large_BK &= np.isin(codes_B, list(wanted))[:, None]
    found = [(int(b), int(k)) for b, k in np.argwhere(large_BK & known_BK) if _links(counts_BK > 0, b, k)]
    if len(found) < n_pairs:
        raise ScmedleyError(
            f"{len(found)} pairs of batch and label can be held out, not {n_pairs}: all others have fewer than "
            f"{least} cells, or training would lose the batch, the label or the link between batches. "
            "Choose fewer or smaller pairs."
        )
    order = np.random.default_rng(seed).permutation(len(found))
    left = [found[i] for i in order]
    chosen: list[tuple[int, int]] = []
    for _ in range(n_pairs):
        pair = min(left, key=lambda pair: sum((pair[0] == b) + (pair[1] == k) for b, k in chosen))
        left.remove(pair)
        chosen.append(pair)
    return [(int(codes_B[b]), int(labels[k])) for b, k in chosen]


def held_out_parts(batch_N: Codes, label_N: Codes, pair: tuple[int, int], *, seed: int) -> Parts:
    """Hold out one (batch, label) pair: all its cells are tested, the others split 7 : 1.

    Parameters
    ----------
    batch_N, label_N
        Codes; labels may be missing (-1), batches not.
    pair
        Batch and label, as from :func:`held_out_pairs`.
    seed
        Random seed of the :func:`~scmedley.pp.split.split` of the other cells into training and validation.

    Returns
    -------
    numpy.ndarray
        "train", "validation" or "test" per cell.

    Raises
    ------
    ScmedleyError
        The pair has no cells, or its batch or its label has no other cells for training.
    """
    batch_N, label_N = checked(batch_N, label_N)
    batch, label = pair
    held_N = (batch_N == batch) & (label_N == label)
    if not held_N.any():
        raise ScmedleyError(f"No cell has batch {batch} and label {label}. Hold out another pair.")
    for name, code, codes_N in (("batch", batch, batch_N), ("label", label, label_N)):
        if not (codes_N[~held_N] == code).any():
            raise ScmedleyError(
                f"All cells of {name} {code} are in the pair {pair}, so no cell of this {name} is left for training. "
                "Hold out another pair."
            )
    part_N = np.full(len(batch_N), PARTS[2], dtype=f"<U{max(map(len, PARTS))}")
    part_N[~held_N] = split(batch_N[~held_N], label_N[~held_N], fractions=(0.875, 0.125, 0.0), seed=seed)
    return part_N


def _check_folds(n_folds: int) -> None:
    if n_folds < _FEWEST:
        raise ScmedleyError(f"n_folds={n_folds} must be 3 or more: for training, validation and test.")


def _unevenness(counts_FK: npt.NDArray[np.int64]) -> int:
    """Return the sum of squared cell numbers of blocks, by label and in total; lowest for equal blocks."""
    return int((counts_FK**2).sum() + (counts_FK.sum(axis=1) ** 2).sum())


def _take_turns(block_N: npt.NDArray[np.int64], n_folds: int) -> Parts:
    """Return each cell's part in each fold, F x N; block -1 is always in training."""
    fold_F1 = np.arange(n_folds)[:, None]
    part_FN = np.full((n_folds, len(block_N)), PARTS[0], dtype=f"<U{max(map(len, PARTS))}")
    part_FN[block_N == (fold_F1 + 1) % n_folds] = PARTS[1]
    part_FN[block_N == fold_F1] = PARTS[2]
    return part_FN


def _coded(values_N: npt.ArrayLike, what: str) -> tuple[npt.NDArray[np.int64], "pd.Index[Any]"]:
    """Return codes from 0 and their names; raise if a value is missing (None, NaN, or the code -1)."""
    values: pd.Series[Any] = pd.Series(np.asarray(values_N))
    missing_N = values.isna()
    if values.dtype.kind == "i":
        missing_N = missing_N | (values < 0)
    if missing_N.any():
        raise ScmedleyError(
            f"cell {int(missing_N.to_numpy().argmax())} has no {what}. Fill it in, or leave such cells out."
        )
    codes_N, names = pd.factorize(values, sort=True)
    return codes_N, pd.Index(names)


def _levels(
    donor_N: npt.NDArray[np.int64], donors: "pd.Index[Any]", target_N: npt.ArrayLike
) -> npt.NDArray[np.int64]:
    """Return each donor's target level; raise if a level has only one donor."""
    level_N, levels = _coded(target_N, "target")
    pairs = pd.DataFrame({"donor": donor_N, "level": level_N}).drop_duplicates().sort_values("donor")
    twice = pairs["donor"].duplicated()
    if twice.any():
        donor = int(pairs.loc[twice, "donor"].iloc[0])
        both = [str(name) for name in levels[pairs.loc[pairs["donor"] == donor, "level"].to_numpy()]]
        raise ScmedleyError(
            f"donor {str(donors[donor])!r} has {len(both)} target values ({listed(both)}), but folds of "
            "donors need one value per donor. Correct them, or use folds of cells."
        )
    level_D = pairs["level"].to_numpy()
    alone = np.flatnonzero(np.bincount(level_D) == 1)
    if len(alone):
        raise ScmedleyError(
            f"only one donor is {listed([str(name) for name in levels[alone]])}, so it cannot be both in training and "
            "in test. Leave such donors out, or merge their level with another."
        )
    return level_D


def _dealt(
    level_D: npt.NDArray[np.int64], size_D: npt.NDArray[np.int64], n_folds: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Return each donor's block: the one with fewest donors of its level, then with fewest cells."""
    block_D = np.zeros(len(size_D), dtype=np.int64)
    donors_FK = np.zeros((n_folds, level_D.max() + 1), dtype=np.int64)
    cells_F = np.zeros(n_folds, dtype=np.int64)
    for donor in np.lexsort((rng.random(len(size_D)), -size_D)):
        level = int(level_D[donor])
        block = np.lexsort((rng.random(n_folds), cells_F, donors_FK[:, level]))[0]
        block_D[donor] = block
        donors_FK[block, level] += 1
        cells_F[block] += size_D[donor]
    return block_D


def _untrained(donors_FK: npt.NDArray[np.int64]) -> int:
    """Return the number of levels without a training donor, summed over all folds."""
    held_FK = donors_FK + np.roll(donors_FK, -1, axis=0)
    return int((held_FK == donors_FK.sum(axis=0)).sum())


def _links(seen_BK: npt.NDArray[np.bool_], batch: int, label: int) -> bool:
    """Return whether batches and labels stay linked without this pair."""
    without_BK = seen_BK.copy()
    without_BK[batch, label] = False
    return _n_components(without_BK) == _n_components(seen_BK)


def _n_components(seen_BK: npt.NDArray[np.bool_]) -> int:
    n_batches, n_labels = seen_BK.shape
    graph = np.zeros((n_batches + n_labels,) * 2, dtype=np.int8)
    graph[:n_batches, n_batches:] = seen_BK
    return int(connected_components(csr_array(graph), directed=False)[0])
