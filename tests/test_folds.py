"""Folds: each cell and each donor tested once, strata and donors kept whole, for any design."""

from collections import Counter
from contextlib import suppress

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scmedley import datasets
from scmedley.errors import ScmedleyError
from scmedley.pp.folds import donor_folds, held_out_pairs, held_out_parts, rotating_folds
from scmedley.pp.overlap import overlap
from scmedley.pp.split import PARTS

designs = st.dictionaries(
    st.tuples(st.integers(0, 6), st.integers(-1, 4)),
    st.one_of(st.integers(1, 3), st.integers(1, 60)),
    min_size=1,
    max_size=20,
)
designs = designs.map(lambda design: {**design, (9, 0): 8})  # enough to fill seven folds
crossed = st.dictionaries(
    st.tuples(st.integers(0, 3), st.integers(-1, 2)), st.integers(1, 40), min_size=9, max_size=16
)
seeds = st.integers(0, 2**32 - 1)
n_folds = st.integers(3, 7)
# Donors of 1 to 60 cells with a level each; every level has two donors or more.
donors = st.lists(st.lists(st.integers(1, 60), min_size=2, max_size=9), min_size=1, max_size=4)


def codes(design: dict[tuple[int, int], int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Batch and label codes of a design, the cells shuffled."""
    pairs = np.repeat(np.array(list(design)), list(design.values()), axis=0)
    pairs = np.random.default_rng(seed).permutation(pairs)
    return pairs[:, 0], pairs[:, 1]


def cells_of(levels: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Donor and target of each cell, from the donors' sizes by level."""
    size = np.concatenate(levels)
    level = np.repeat(np.arange(len(levels)), [len(sizes) for sizes in levels])
    donor = np.repeat(np.arange(len(size)), size)
    return donor, level[donor]


def turns_are_taken(parts: np.ndarray, held: np.ndarray) -> None:
    """Held cells are tested in one fold and validated in the fold before; the others are always trained."""
    n = len(parts)
    assert set(np.unique(parts)) <= set(PARTS)
    np.testing.assert_array_equal((parts == "test").sum(axis=0), held)
    np.testing.assert_array_equal((parts == "validation").sum(axis=0), held)
    tested, validated = (parts == "test").argmax(axis=0), (parts == "validation").argmax(axis=0)
    np.testing.assert_array_equal(tested[held], (validated[held] + 1) % n)


@settings(deadline=None)
@given(designs, n_folds, seeds)
def test_each_cell_is_tested_once_and_every_batch_is_learnt_in_every_fold(
    design: dict[tuple[int, int], int], n: int, seed: int
) -> None:
    batch, label = codes(design, seed)
    size = np.bincount(batch)[batch]
    parts = rotating_folds(batch, label, n_folds=n, seed=seed)
    assert parts.shape == (n, len(batch))
    turns_are_taken(parts, size >= 3)  # a batch of one or two cells is always in training
    for fold in parts:
        assert set(batch[fold == "train"]) == set(batch)
    np.testing.assert_array_equal(parts, rotating_folds(batch, label, n_folds=n, seed=seed))


@settings(deadline=None)
@given(designs, n_folds, seeds)
def test_shares_of_strata_and_batches_are_kept(design: dict[tuple[int, int], int], n: int, seed: int) -> None:
    batch, label = codes(design, seed)
    size = np.bincount(batch)[batch]
    parts = rotating_folds(batch, label, n_folds=n, seed=seed)
    for b in set(batch[size >= 3]):
        for cells in [batch == b, *((batch == b) & (label == k) for k in set(label[batch == b]))]:
            for part, blocks in (("train", n - 2), ("validation", 1), ("test", 1)):
                n_cells = (parts[:, cells] == part).sum(axis=1)
                assert (n_cells >= cells.sum() // n * blocks).all()
                assert (n_cells <= -(-cells.sum() // n) * blocks).all()


@settings(deadline=None)
@given(designs, seeds, seeds)
def test_the_order_of_cells_does_not_change_the_numbers(
    design: dict[tuple[int, int], int], seed: int, shuffle: int
) -> None:
    def numbers(batch: np.ndarray, label: np.ndarray) -> Counter:
        parts = rotating_folds(batch, label, n_folds=3, seed=seed)
        return Counter(zip(batch, label, *parts, strict=True))

    batch, label = codes(design, seed)
    order = np.random.default_rng(shuffle).permutation(len(batch))
    assert numbers(batch, label) == numbers(batch[order], label[order])


@pytest.mark.parametrize("common", [20, 24])
def test_a_label_with_one_cell_a_batch_is_spread_over_the_blocks(common: int) -> None:
    batch = np.repeat(np.arange(30), common + 1)
    label = np.tile(np.r_[np.zeros(common, int), 1], 30)
    for seed in range(5):
        parts = rotating_folds(batch, label, seed=seed)
        rare = (parts[:, label == 1] == "test").sum(axis=1)
        assert rare.max() - rare.min() <= 2
        all_cells = (parts == "test").sum(axis=1)
        assert all_cells.max() - all_cells.min() <= 2


def test_seeds_and_folds_differ() -> None:
    batch = np.zeros(100, int)
    assert (rotating_folds(batch, None, seed=0) != rotating_folds(batch, None, seed=1)).any()
    for fold in rotating_folds(batch, None, seed=0):
        assert Counter(fold) == {"train": 60, "validation": 20, "test": 20}
    tested = np.mean([rotating_folds(batch, None, seed=s)[0] == "test" for s in range(300)], axis=0)
    assert np.abs(tested - 0.2).max() < 0.11  # 4.7 standard errors


def test_a_design_too_small() -> None:
    with pytest.raises(ScmedleyError, match="n_folds=2 must be 3 or more"):
        rotating_folds(np.zeros(50, int), None, n_folds=2, seed=0)
    with pytest.raises(ScmedleyError, match="The 4 cells in batches of 3 or more do not fill 5 folds"):
        rotating_folds(np.array([0, 0, 0, 0, 1, 1]), None, seed=0)
    with pytest.raises(ScmedleyError, match="cell 2 has no batch"):
        rotating_folds(np.array([0, 1, -1]), None, seed=0)


@settings(deadline=None, max_examples=50)
@given(donors, n_folds, seeds)
def test_donors_are_whole_and_tested_once(levels: list[list[int]], n: int, seed: int) -> None:
    donor, target = cells_of(levels)
    if len(set(donor)) < n:
        with pytest.raises(ScmedleyError, match="donors cannot be dealt"):
            donor_folds(donor, target, n_folds=n, seed=seed)
        return
    parts = donor_folds(donor, target, n_folds=n, seed=seed)
    turns_are_taken(parts, np.ones(len(donor), dtype=bool))
    first = np.unique(donor, return_index=True)[1]
    np.testing.assert_array_equal(parts, parts[:, first[donor]])  # one part a donor and fold
    target_D = target[first]
    for fold in parts:
        assert set(fold) == set(PARTS)
        for k, sizes in enumerate(levels):
            tested = (target_D[fold[first] == "test"] == k).sum()
            assert len(sizes) // n <= tested <= -(-len(sizes) // n)
            if len(sizes) >= 3:
                assert (target[fold == "train"] == k).any()
    np.testing.assert_array_equal(parts, donor_folds(donor, target, n_folds=n, seed=seed))
    order = np.random.default_rng(seed).permutation(len(donor))
    np.testing.assert_array_equal(
        parts[:, order], donor_folds(donor[order], target[order], n_folds=n, seed=seed)
    )


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), min_size=5, max_size=40), seeds)
def test_without_a_target_cells_are_balanced_to_one_donor(sizes: list[int], seed: int) -> None:
    """Dealt from large to small, in rounds: blocks differ by less than the largest donor."""
    donor = np.repeat(np.arange(len(sizes)), sizes)
    cells = (donor_folds(donor, None, seed=seed) == "test").sum(axis=1)
    assert cells.max() - cells.min() <= max(sizes)


def test_real_donors_are_better_balanced_than_at_random() -> None:
    """OneK1K, by sex: no random deal of 200, stratified too, is as even in cells."""
    obs = datasets.onek1k().obs
    donor, sex = obs["batch"].astype(str).to_numpy(), obs["sex"].astype(str).to_numpy()
    sizes = pd.Series(donor).value_counts()
    sex_of = pd.Series(sex, index=donor).groupby(level=0).first()
    spread = np.ptp((donor_folds(donor, sex, seed=0) == "test").sum(axis=1))
    rng = np.random.default_rng(0)
    for _ in range(200):
        order = np.lexsort((rng.random(len(sex_of)), sex_of.to_numpy()))
        block = pd.Series(np.arange(len(order)) % 5, index=sex_of.index[order])
        assert spread <= np.ptp(sizes.groupby(block).sum())


def test_a_level_of_two_donors_is_learnt_in_every_fold() -> None:
    """The AML design: 12 patients, 5 healthy donors and 2 cell lines."""
    group = np.repeat(["AML", "healthy", "cell line"], [12, 5, 2])
    for seed in range(20):
        for fold in donor_folds(np.arange(19), group, seed=seed):
            assert set(group[fold == "train"]) == set(group)
    several = {tuple(donor_folds(np.arange(19), group, seed=s)[0]) for s in range(5)}
    assert len(several) == 5


@pytest.mark.parametrize(
    ("donor", "target", "message"),
    [
        (["a", "b", "b", "c"], [0, 0, 1, 1], r"donor 'b' has 2 target values \('0', '1'\)"),
        (["a", "b", "c"], ["ill", "ill", "well"], "only one donor is 'well'"),
        (["a", "b"], [0, 0], "2 donors cannot be dealt to 3 folds. At least 3"),
        (["a", "b", "c", None], None, "cell 3 has no donor"),
        ([0, 1, 2, -1], None, "cell 3 has no donor"),
        (["a", "b", "c"], ["ill", float("nan"), "ill"], "cell 1 has no target"),
    ],
)
def test_donors_that_cannot_be_dealt(donor: list, target: list | None, message: str) -> None:
    target = None if target is None else np.array(target, dtype=object)
    with pytest.raises(ScmedleyError, match=message):
        donor_folds(np.array(donor), target, n_folds=3, seed=0)


def test_the_way_out_with_few_donors() -> None:
    with pytest.raises(ScmedleyError, match="Use n_folds=4"):
        donor_folds(np.arange(4), None, seed=0)
    assert donor_folds(np.arange(4), None, n_folds=4, seed=0).shape == (4, 4)


@settings(deadline=None, max_examples=50)
@given(crossed, st.integers(1, 20), seeds)
def test_a_pair_held_out_is_known_from_elsewhere(
    design: dict[tuple[int, int], int], least: int, seed: int
) -> None:
    batch, label = codes(design, seed)
    pairs: list[tuple[int, int]] = []
    before = overlap(pd.Series(batch), pd.Series(label).where(label >= 0))
    with suppress(ScmedleyError):  # there are fewer than two
        pairs = held_out_pairs(batch, label, n_pairs=2, seed=seed, least=least)
    assert len(set(pairs)) in (0, 2)
    for pair in pairs:
        parts = held_out_parts(batch, label, pair, seed=seed)
        held = (batch == pair[0]) & (label == pair[1])
        np.testing.assert_array_equal(parts == "test", held)
        assert held.sum() >= least
        learnt = parts == "train"
        assert pair[0] in batch[learnt]
        assert pair[1] in label[learnt]
        assert abs((parts == "validation").sum() - (~held).sum() / 8) <= len(design) + len(set(batch))
        after = overlap(pd.Series(batch[~held]), pd.Series(label[~held]).where(label[~held] >= 0))
        assert len(after.parts) == len(before.parts)


def test_pairs_that_are_the_only_link_stay() -> None:
    """Batches 0 and 1 share label 0 only, 1 and 2 share labels 1 and 2: six pairs are needed, two are not."""
    design = {(0, 0): 30, (0, 3): 30, (1, 0): 30, (1, 1): 30, (1, 2): 30, (2, 1): 30, (2, 2): 30}
    batch, label = codes(design, 0)
    free = {(1, 1), (1, 2), (2, 1), (2, 2)}
    assert set(held_out_pairs(batch, label, n_pairs=4, seed=0)) == free
    with pytest.raises(ScmedleyError, match="4 pairs of batch and label can be held out, not 5"):
        held_out_pairs(batch, label, n_pairs=5, seed=0)
    first = held_out_pairs(batch, label, n_pairs=2, seed=0)
    assert first == held_out_pairs(batch[::-1], label[::-1], n_pairs=2, seed=0)
    assert first[0][0] != first[1][0]  # another batch and another label the second time
    assert first[0][1] != first[1][1]
    assert len({held_out_pairs(batch, label, n_pairs=1, seed=s)[0] for s in range(30)}) == 4


def test_pairs_that_cannot_be_held_out() -> None:
    batch, label = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    for pair, message in [
        ((1, 0), "No cell has batch 1 and label 0"),
        ((0, 0), "All cells of label 0"),
        ((1, 1), "All cells of batch 1"),
    ]:
        with pytest.raises(ScmedleyError, match=message):
            held_out_parts(batch, label, pair, seed=0)
