"""Simulated counts of donors in studies: the counts follow the effects that are returned."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from scmedley import datasets, io
from scmedley.datasets import simulate, true_log_rates
from scmedley.errors import ScmedleyError


def log_share(adata, rows) -> np.ndarray:
    """Log of the share of each gene in the summed counts of some cells."""
    total_G = np.asarray(adata.X[np.asarray(rows)].sum(0)).ravel()
    return np.log((total_G + 0.5) / total_G.sum())


def test_counts_follow_the_effects_of_the_condition() -> None:
    adata = simulate(3000, 200, n_donors=4, n_labels=1, donor_by_condition=0.0, depth=5000, seed=1)
    treated = adata.obs["condition"] == "stim"
    seen_G = log_share(adata, treated) - log_share(adata, ~treated)
    true_G = adata.varm["condition"]["type0"].to_numpy()
    assert 20 < (true_G != 0).sum() < 60
    often = np.asarray(adata.X.mean(0)).ravel() > 5
    assert np.median(np.abs((seen_G - true_G)[often] - np.median((seen_G - true_G)[often]))) < 0.03
    assert np.corrcoef(seen_G[often], true_G[often])[0, 1] > 0.98


def test_counts_follow_the_effects_of_donor_and_study() -> None:
    adata = simulate(6000, 100, n_donors=6, n_labels=1, condition=None, depth=5000, seed=2)
    assert "condition" not in adata.obs
    often = np.asarray(adata.X.mean(0)).ravel() > 10
    study = adata.obs.groupby("donor", observed=True)["study"].first()
    for one, other in (("d00", "d01"), ("d02", "d04")):
        seen_G = np.subtract(*(log_share(adata, adata.obs["donor"] == d)[often] for d in (one, other)))
        true_G = adata.varm["donor"][one] - adata.varm["donor"][other]
        true_G += adata.varm["study"][study[one]] - adata.varm["study"][study[other]]
        assert np.corrcoef(seen_G, true_G[often])[0, 1] > 0.95


def test_size_of_cells_donors_and_effects() -> None:
    adata = simulate(n_genes=400, n_donors=40, seed=3)
    sizes = adata.obs["donor"].value_counts()
    assert sizes.min() >= 19
    assert sizes.max() <= 501
    assert sizes.max() > 8 * sizes.min()
    assert np.median(np.asarray(adata.X.sum(1))) == pytest.approx(2000, rel=0.3)
    assert adata.X.dtype == np.float32
    assert_array_equal(adata.X.data, np.rint(adata.X.data))
    spread_G = adata.varm["donor"].std(axis=1)
    assert np.median(spread_G) == pytest.approx(0.18, rel=0.2)
    assert np.quantile(spread_G, 0.9) == pytest.approx(0.4, rel=0.3)
    scaled = simulate(1000, 20, seed=3)
    assert scaled.n_obs == 1000
    assert scaled.obs["donor"].value_counts().min() >= 1


def test_true_rates_of_counterfactuals() -> None:
    adata = simulate(300, 50, n_donors=5, per_label=True, age_size=0.2, donor_by_label=0.1, seed=4)
    assert (adata.varm["condition"].nunique(axis=1) > 1).any()  # each label has its own
    stim, ctrl = (true_log_rates(adata, adata.obs.assign(condition=c)) for c in ("stim", "ctrl"))
    for i in (0, 150):
        expected = adata.varm["condition"][adata.obs["cell_type"].iloc[i]]
        expected = expected + adata.varm["donor_condition"][adata.obs["donor"].iloc[i]]
        assert_allclose((stim - ctrl)[i], expected, atol=1e-12)
    mean = true_log_rates(adata, pd.DataFrame({"cell_type": ["type1"], "donor": ["new"]}))
    assert_allclose(mean[0], adata.var["base"] + adata.varm["label"]["type1"])
    older = true_log_rates(adata, adata.obs.assign(age=adata.obs["age"] + 15)) - true_log_rates(adata)
    assert_allclose(older[7], adata.var["age"], atol=1e-12)


def test_designs() -> None:
    def table(condition, column):
        obs = simulate(2000, 5, n_donors=8, condition=condition).obs
        return pd.crosstab(obs[column], obs["condition"]) > 0

    assert table("crossed", "donor").to_numpy().all()
    assert (table("between", "donor").sum(axis=1) == 1).all()
    assert table("between", "study").to_numpy().all()
    assert (table("confounded", "study").sum(axis=1) == 1).all()


def test_null_missing_types_and_composition() -> None:
    adata = simulate(4000, 5, condition_size=0, missing=0.4, shift=2.0, seed=5)
    assert not adata.varm["condition"].to_numpy().any()
    empty = (pd.crosstab(adata.obs["donor"], adata.obs["cell_type"]) == 0).to_numpy()
    assert 0.1 < empty.mean() < 0.5
    assert not empty.all(axis=1).any()
    share = (adata.obs["cell_type"] == "type0").groupby(adata.obs["condition"], observed=True).mean()
    log_odds = np.log(share / (1 - share))
    assert log_odds["stim"] - log_odds["ctrl"] == pytest.approx(2.0, abs=0.8)


def test_same_seed_same_counts_and_a_file_holds_them(tmp_path) -> None:
    one, same, other = (simulate(200, 30, seed=seed) for seed in (0, 0, 1))
    assert_array_equal(one.X.toarray(), same.X.toarray())
    assert (one.X != other.X).nnz
    one.write_h5ad(tmp_path / "cells.h5ad")
    read = io.read(tmp_path / "cells.h5ad")
    assert_allclose(true_log_rates(read), true_log_rates(one))


def test_base_profiles_of_real_cells() -> None:
    like = datasets.onek1k()
    adata = simulate(3000, 300, n_labels=1, like=like, donor_size=0, study_size=0, condition=None, seed=6)
    total_G = np.asarray(like.X.sum(0), np.float64).ravel()
    known = np.unique(np.log(total_G[total_G > 0]))
    base_G = adata.var["base"].to_numpy()
    # The same up to a constant: one of those that make the first gene a known one.
    shifted = base_G + (known - base_G[0])[:, None]
    above = np.searchsorted(known, shifted).clip(1, len(known) - 1)
    gap = np.minimum(np.abs(shifted - known[above]), np.abs(shifted - known[above - 1]))
    assert gap.max(axis=1).min() < 1e-9


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_donors": 1}, "2 studies need as many donors"),
        ({"n_cells": 3}, "20 donors need as many cells"),
        ({"condition": "mixed"}, "'mixed'. Choose one of"),
        ({"condition": "confounded", "n_studies": 1}, "needs 2 studies"),
        ({"missing": 1.5}, "missing is 1.5"),
        ({"donor_size": -1}, "donor_size is -1"),
        ({"depth": 0}, "depth is 0"),
    ],
)
def test_arguments_out_of_range(options, words) -> None:
    with pytest.raises(ScmedleyError, match=words):
        simulate(**options)
