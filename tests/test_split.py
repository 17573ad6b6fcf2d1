"""The split: each cell in one part, every batch learnt, shares kept, for any design."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scmedley.errors import ScmedleyError
from scmedley.pp.split import PARTS, split

FRACTIONS = (0.7, 0.1, 0.2)
SMALLEST = 10  # cells of a stratum that is cut by itself at these fractions

# Any nested design: sizes of (batch, label) strata, many of them small or empty; label -1 is missing.
designs = st.dictionaries(
    st.tuples(st.integers(0, 6), st.integers(-1, 4)),
    st.one_of(st.integers(1, 3), st.integers(1, 60)),
    min_size=1,
    max_size=20,
)
seeds = st.integers(0, 2**32 - 1)


def codes(design: dict[tuple[int, int], int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Batch and label codes of a design, the cells shuffled."""
    pairs = np.repeat(np.array(list(design)), list(design.values()), axis=0)
    pairs = np.random.default_rng(seed).permutation(pairs)
    return pairs[:, 0], pairs[:, 1]


@given(designs, seeds)
def test_each_cell_has_a_part_and_every_batch_is_learnt(
    design: dict[tuple[int, int], int], seed: int
) -> None:
    batch, label = codes(design, seed)
    parts = split(batch, label, seed=seed)
    assert parts.shape == batch.shape
    assert set(parts) <= set(PARTS)
    assert set(batch[parts == "train"]) == set(batch)
    np.testing.assert_array_equal(parts, split(batch, label, seed=seed))


@given(designs, seeds)
def test_shares_of_large_strata_are_kept(design: dict[tuple[int, int], int], seed: int) -> None:
    batch, label = codes(design, seed)
    parts = split(batch, label, seed=seed)
    for (b, k), size in design.items():
        counts = Counter(parts[(batch == b) & (label == k)])
        if size >= SMALLEST:
            for part, fraction in zip(PARTS, FRACTIONS, strict=True):
                assert abs(counts[part] - size * fraction) < 1
                assert counts[part] > 0


@given(designs, seeds)
def test_small_strata_are_merged_within_their_batch(design: dict[tuple[int, int], int], seed: int) -> None:
    batch, label = codes(design, seed)
    parts = split(batch, label, seed=seed)
    for b in set(batch):
        small = [k for (b2, k), size in design.items() if b2 == b and size < SMALLEST]
        merged = parts[(batch == b) & np.isin(label, small)]
        if len(merged) >= SMALLEST:
            for part, fraction in zip(PARTS, FRACTIONS, strict=True):
                assert abs((merged == part).sum() - len(merged) * fraction) < 1


@given(st.lists(st.integers(1, 9), min_size=12, max_size=40), seeds)
def test_small_batches_are_merged_with_each_other(sizes: list[int], seed: int) -> None:
    batch = np.repeat(np.arange(len(sizes)), sizes)
    parts = split(batch, None, seed=seed)
    n = len(batch)
    if len(sizes) <= int(
        n * FRACTIONS[0]
    ):  # else training takes the first cell of each batch and more than 70 %
        for part, fraction in zip(PARTS, FRACTIONS, strict=True):
            assert abs((parts == part).sum() - n * fraction) < 1


def test_a_batch_of_one_cell_is_learnt() -> None:
    batch = np.r_[np.zeros(50, int), 1]
    assert all(split(batch, None, seed=seed)[-1] == "train" for seed in range(20))
    assert set(split(np.arange(30), None, seed=0)) == {"train"}


def test_leftovers_of_a_large_batch_are_held_out_too() -> None:
    """30 batches with one odd cell each: the odd cells are shared out, not all kept for training."""
    batch = np.repeat(np.arange(30), 21)
    label = np.tile(np.r_[np.zeros(20, int), 1], 30)
    parts = split(batch, label, seed=0)
    assert Counter(parts[label == 1]) == {"train": 21, "validation": 3, "test": 6}


def test_small_codes_do_not_overflow() -> None:
    """60 batches x 10 labels, as pandas' 8-bit codes: as many strata as with large ones."""
    batch, label = (codes.ravel() for codes in np.indices((60, 10)).repeat(10, axis=2))
    parts = split(batch.astype(np.int8), label.astype(np.int8), seed=0)
    np.testing.assert_array_equal(parts, split(batch, label, seed=0))
    assert Counter(parts[(batch == 40) & (label == 7)]) == {"train": 7, "validation": 1, "test": 2}


def test_the_largest_remainders_are_rounded_up() -> None:
    parts = split(np.zeros(14, int), None, seed=0)  # 9.8, 1.4 and 2.8 cells
    assert Counter(parts) == {"train": 10, "validation": 1, "test": 3}


def test_the_seed_matters_and_the_order_of_cells_does_not_bias() -> None:
    batch = np.zeros(100, int)
    assert (split(batch, None, seed=0) != split(batch, None, seed=1)).any()
    trained = np.mean([split(batch, None, seed=s) == "train" for s in range(300)], axis=0)
    assert np.abs(trained - 0.7).max() < 0.12  # 4.5 standard errors


def test_two_parts_and_missing_labels() -> None:
    batch, label = np.repeat([0, 1], 50), np.tile([0, -1], 50)
    parts = split(batch, label, fractions=(0.8, 0.0, 0.2), seed=0)
    for b in (0, 1):
        for k in (0, -1):
            assert Counter(parts[(batch == b) & (label == k)]) == {"train": 20, "test": 5}
    assert split(np.empty(0, int), None, seed=0).shape == (0,)


@pytest.mark.parametrize("fractions", [(0.7, 0.1, 0.1), (0.0, 0.5, 0.5), (1.1, -0.1, 0.0)])
def test_fractions_that_are_no_shares(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(ScmedleyError, match="fractions are"):
        split(np.zeros(5, int), None, fractions=fractions, seed=0)


def test_missing_batch() -> None:
    with pytest.raises(ScmedleyError, match="cell 2 has no batch"):
        split(np.array([0, 1, -1]), None, seed=0)
