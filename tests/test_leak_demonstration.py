"""Why donor-level targets need donors held out: a code that says nothing but who the donor is "predicts" a coin."""

import numpy as np
import pandas as pd
import pytest

from scmedley.evaluate.classify import LEAKS, target_table

N_DONORS, N_CELLS, N_FOLDS = 30, 30, 3


@pytest.fixture(scope="module")
def scored() -> pd.DataFrame:
    """Mean scores over coins: donor code + noise, a coin thrown for each donor, both ways of holding out."""
    found = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        diagnosis_D = rng.integers(2, size=N_DONORS)
        donor_N = np.repeat(np.arange(N_DONORS), N_CELLS)
        code_DP = rng.normal(size=(N_DONORS, 10))
        z_NP = code_DP[donor_N] + 0.5 * rng.normal(size=(len(donor_N), 10))
        cell_N = np.arange(len(donor_N))
        for fold in range(N_FOLDS):
            for unit_N in (cell_N, donor_N):
                part_N = np.where(unit_N % N_FOLDS == fold, "test", "train")
                table = target_table(
                    {}, {"RE": z_NP}, diagnosis_D[donor_N], donor_N, None, part_N, seed=seed, n_trees=10
                )
                found.append(table)
    return (
        pd.concat(found)
        .groupby("held_out")[["accuracy", "donor_accuracy", "caution", "n_donors"]]
        .agg({"accuracy": "mean", "donor_accuracy": "mean", "caution": "first", "n_donors": "sum"})
    )


def test_with_cells_held_out_a_coin_is_predicted(scored: pd.DataFrame) -> None:
    assert scored.loc["cells", "accuracy"] > 0.85
    assert scored.loc["cells", "donor_accuracy"] > 0.95
    assert scored.loc["cells", "caution"] == LEAKS


def test_with_donors_held_out_it_is_not(scored: pd.DataFrame) -> None:
    assert scored.loc["donors", "accuracy"] == pytest.approx(0.5, abs=0.1)
    assert scored.loc["donors", "donor_accuracy"] == pytest.approx(0.5, abs=0.1)
    assert scored.loc["donors", "n_donors"] == 6 * N_DONORS
    assert scored.loc["donors", "caution"] == ""
