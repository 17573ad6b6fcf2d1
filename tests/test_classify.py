"""The mixed-effects classifier against scikit-learn, and its guards."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score

from scmedley.errors import ScmedleyError
from scmedley.evaluate.classify import (
    COLUMNS,
    LEAKS,
    classify,
    composition,
    donor_accuracy,
    predict,
    target_table,
)

TREES = 10


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def three_classes(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Three unequal classes that overlap in four dimensions."""
    y = rng.choice(3, n, p=[0.6, 0.3, 0.1])
    return rng.normal(size=(n, 4)) + np.eye(3, 4)[y] * 1.5, y


def test_the_forest_is_scikit_learns_on_standardised_latents(rng: np.random.Generator) -> None:
    z, y = three_classes(rng, 400)
    z = z * [1, 1000, 0.01, 1] + [0, 5, 0, -100]
    ours = classify(z[:300], y[:300], z[300:], y[300:], seed=3, n_trees=TREES)
    mean, sd = z[:300].mean(0), z[:300].std(0)
    forest = RandomForestClassifier(TREES, random_state=3).fit((z[:300] - mean) / sd, y[:300])
    guess = forest.predict((z[300:] - mean) / sd)
    assert ours.accuracy == pytest.approx(
        accuracy_score(y[300:], guess), abs=0.011
    )  # rounding may move a cell
    assert ours.balanced_accuracy == pytest.approx(balanced_accuracy_score(y[300:], guess), abs=0.05)
    assert ours.n_cells == 100
    assert 0.7 < ours.accuracy < 1


def test_chance_is_that_of_the_stratified_dummy(rng: np.random.Generator) -> None:
    z, y = three_classes(rng, 900)
    y_test = np.where(y[300:] == 0, rng.integers(3, size=600), y[300:])  # other shares than in training
    ours = classify(z[:300], y[:300], z[300:], y_test, seed=0, n_trees=1)
    drawn = [
        DummyClassifier(strategy="stratified", random_state=s).fit(z[:300], y[:300]).predict(z[300:])
        for s in range(300)
    ]
    assert ours.chance == pytest.approx(np.mean([accuracy_score(y_test, d) for d in drawn]), abs=0.005)
    balanced = np.mean([balanced_accuracy_score(y_test, d) for d in drawn])
    assert ours.chance_balanced == pytest.approx(balanced, abs=0.005)
    assert abs(ours.chance - ours.chance_balanced) > 0.02  # so that the two cannot be mixed up


def test_chance_with_a_class_that_one_side_lacks() -> None:
    z = np.zeros((4, 1))
    ours = classify(z, np.array([0, 0, 0, 1]), z, np.array([0, 2, 2, 2]), seed=0, n_trees=1)
    assert ours.chance == pytest.approx((0.75 + 0 + 0 + 0) / 4)
    assert ours.chance_balanced == pytest.approx((0.75 + 0) / 2)
    assert ours.accuracy == 0.25  # the class that training lacks counts as wrong
    assert ours.balanced_accuracy == 0.5


def test_cells_without_class_are_left_out(rng: np.random.Generator) -> None:
    z, y = three_classes(rng, 300)
    gone = rng.random(300) < 0.3
    known = np.flatnonzero(~gone)
    train, test = known[known < 200], known[known >= 200]
    masked = np.where(gone, -1, y)
    ours = classify(z[:200], masked[:200], z[200:], masked[200:], seed=0, n_trees=TREES)
    assert ours == classify(z[train], y[train], z[test], y[test], seed=0, n_trees=TREES)
    assert ours.n_cells == len(test)


def test_same_seed_same_bits(rng: np.random.Generator) -> None:
    z, y = three_classes(rng, 300)
    one, same, other = (predict(z[:200], y[:200], z[200:], seed=s, n_trees=3) for s in (0, 0, 1))
    assert_array_equal(one, same)
    assert (one != other).any()


def test_nothing_to_learn_from_or_to_score() -> None:
    z, y = np.zeros((3, 2)), np.array([0, 1, 1])
    for codes in ((y, -np.ones(3, int)), (-np.ones(3, int), y)):
        ours = classify(z, codes[0], z, codes[1], seed=0, n_trees=1)
        assert np.isnan([ours.accuracy, ours.balanced_accuracy, ours.chance, ours.chance_balanced]).all()


def test_cells_of_a_donor_vote() -> None:
    donor = np.array([0, 0, 0, 1, 1, 1, 2, 2, 3, 3, -1])
    truth = np.array([1, 1, 1, 0, 0, 0, 1, 1, -1, -1, 1])
    guess = np.array([1, 1, 0, 1, 1, 0, 0, 1, 1, 1, 1])  # right, wrong, a tie; no class; no donor
    share, n = donor_accuracy(guess, truth, donor)
    assert n == 3
    assert share == pytest.approx((1 + 0 + 0.5) / 3)


def test_a_tie_that_misses_the_truth_is_wrong() -> None:
    share, _ = donor_accuracy(np.array([0, 2]), np.array([1, 1]), np.array([0, 0]))
    assert share == 0


def test_two_classes_of_a_donor_are_an_error() -> None:
    with pytest.raises(ScmedleyError, match=r"Donor 4 has cells of classes \[0, 1\]"):
        donor_accuracy(np.zeros(2, int), np.array([0, 1]), np.array([4, 4]))


def test_composition() -> None:
    label = np.array([0, 2, 2, -1, 0, -1, 1])
    donor = np.array([0, 0, 0, 0, 2, 1, -1])
    third = [1 / 3, 0, 2 / 3]
    expected = [third, third, third, third, [1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert_allclose(composition(label, donor), expected)


@pytest.mark.parametrize("seed", range(5))
def test_shares_sum_to_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    label, donor = rng.integers(5, size=200), rng.integers(7, size=200)
    shares = composition(label, donor)
    assert_allclose(shares.sum(1), 1)
    for d in range(7):
        share = np.bincount(label[donor == d], minlength=5) / (donor == d).sum()
        assert_allclose(shares[donor == d], np.tile(share, ((donor == d).sum(), 1)))


def design(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """12 donors x 20 cells, 3 types; the target is the donor's, and her share of type 0 tells it."""
    donor = np.repeat(np.arange(12), 20)
    target = donor % 2
    label = np.where(rng.random(240) < 0.3 + 0.4 * target, 0, rng.integers(1, 3, 240))
    return {"target_N": target, "donor_N": donor, "label_N": label}


def table(rng: np.random.Generator, codes: dict[str, np.ndarray], part: np.ndarray, **changes):
    z = {name: rng.normal(size=(240, 3)) for name in ("PCA", "FE", "RE", "RE, permuted batches")}
    fixed, random = {n: z[n] for n in ("PCA", "FE")}, {n: z[n] for n in ("RE", "RE, permuted batches")}
    return target_table(fixed, random, **{**codes, **changes}, part_N=part, seed=0, n_trees=TREES)


def test_rows_and_cautions(rng: np.random.Generator) -> None:
    codes = design(rng)
    by_cells = np.where(np.arange(240) % 4 == 0, "test", "train")
    by_donors = np.where(codes["donor_N"] < 4, "test", "train")
    names = ["PCA", "PCA + RE", "PCA + RE, permuted batches", "FE", "FE + RE", "FE + RE, permuted batches"]
    names += ["RE", "RE, permuted batches", "composition only"]
    for part, held_out, caution, n_donors in ((by_cells, "cells", LEAKS, 12), (by_donors, "donors", "", 4)):
        found = table(rng, codes, part)
        assert list(found.columns) == COLUMNS
        assert found["embedding"].tolist() == names
        assert (found["held_out"] == held_out).all()
        assert (found["caution"] == caution).all()
        assert (found["n_donors"] == n_donors).all()
        assert (found["n_cells"] == (part == "test").sum()).all()
        assert (found["donor_chance"] == 0.5).all()
        assert found["donor_accuracy"].between(0, 1).all()
        told = found.set_index("embedding")["donor_accuracy"]
        assert told["composition only"] == 1 > told["PCA"]


def test_one_donor_in_both_parts_is_enough_to_leak(rng: np.random.Generator) -> None:
    codes = design(rng)
    part = np.where(codes["donor_N"] < 4, "test", "train")
    part[0] = "train"
    assert table(rng, codes, part)["caution"].unique().tolist() == [LEAKS]


def test_a_target_of_cells_has_neither_caution_nor_donors(rng: np.random.Generator) -> None:
    codes = design(rng)
    part = np.where(np.arange(240) % 4 == 0, "test", "train")
    found = table(rng, codes, part, target_N=codes["label_N"])
    assert (found["caution"] == "").all()
    assert found[["donor_accuracy", "donor_chance"]].isna().all(axis=None)
    assert "composition only" not in found["embedding"].tolist()


def test_joins_can_be_chosen(rng: np.random.Generator) -> None:
    codes = design(rng)
    part = np.where(np.arange(240) % 4 == 0, "test", "train")
    found = table(np.random.default_rng(1), codes, part, joins=[("FE", "RE")])
    every = table(np.random.default_rng(1), codes, part)
    names = ["PCA", "FE", "FE + RE", "RE", "RE, permuted batches", "composition only"]
    assert found["embedding"].tolist() == names
    kept = every[every["embedding"].isin(names)].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, kept)


def test_rows_are_what_classify_gives(rng: np.random.Generator) -> None:
    codes = design(rng)
    part = np.where(codes["donor_N"] < 4, "test", np.where(codes["donor_N"] < 6, "validation", "train"))
    fe, re = rng.normal(size=(2, 240, 3)).astype(np.float32)
    found = target_table({"FE": fe}, {"RE": re}, **codes, part_N=part, seed=1, n_trees=TREES)
    train, test, y = part == "train", part == "test", codes["target_N"]
    for name, z in (("FE", fe), ("FE + RE", np.hstack([fe, re])), ("RE", re)):
        row = found[found["embedding"] == name].iloc[0]
        alone = classify(z[train], y[train], z[test], y[test], seed=1, n_trees=TREES)
        assert (row["accuracy"], row["chance"], row["n_cells"]) == (
            alone.accuracy,
            alone.chance,
            alone.n_cells,
        )
        guess = predict(z[train], y[train], z[test], seed=1, n_trees=TREES)
        assert row["balanced_accuracy"] == pytest.approx(recall_score(y[test], guess, average="macro"))
        assert row["donor_accuracy"] == donor_accuracy(guess, y[test], codes["donor_N"][test])[0]


def test_without_labels_there_is_no_composition(rng: np.random.Generator) -> None:
    codes = design(rng)
    part = np.where(codes["donor_N"] < 4, "test", "train")
    assert "composition only" not in table(rng, codes, part, label_N=None)["embedding"].tolist()


def test_what_is_wrong_is_said(rng: np.random.Generator) -> None:
    codes = design(rng)
    part = np.where(codes["donor_N"] < 4, "test", "train")
    z = np.zeros((240, 2))
    with pytest.raises(ScmedleyError, match="180 training cells and 0 held-out"):
        table(rng, codes, np.where(np.arange(240) < 180, "train", "validation"))
    with pytest.raises(ScmedleyError, match="'FE' is both"):
        target_table({"FE": z}, {"FE": z}, **codes, part_N=part, seed=0)
    with pytest.raises(ScmedleyError, match=r"'FE' has shape \(239, 2\); 240 rows"):
        target_table({"FE": z[1:]}, {}, **codes, part_N=part, seed=0)
