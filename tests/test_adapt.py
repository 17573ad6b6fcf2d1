"""Batches that a fitted random-effects model has not seen: their effects are learnt, all else stays."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from numpy.testing import assert_allclose, assert_array_equal

from scmedley import keys, load
from scmedley.errors import ScmedleyError
from scmedley.models import RandomEffects
from scmedley.nn.bayesian import tables
from tiny import FIT, differing, prepared_design, small, unfitted, weights

STEPS = 100
TRAINED = {"max_epochs": 60, "learning_rate": 0.01, "batch_norm_momentum": 0.3}


def known_cells(adata: AnnData) -> AnnData:
    """The cells of the donors that the model is fitted to."""
    return adata[adata.obs["donor"] != "d3"].copy()


def new_cells(adata: AnnData) -> AnnData:
    """The cells of the donor that the model has not seen."""
    return adata[adata.obs["donor"] == "d3"].copy()


@pytest.fixture(scope="module")
def model() -> RandomEffects:
    """A model of d1 and d2: look, do not change."""
    model: RandomEffects = unfitted("random", **TRAINED)
    return model.fit(known_cells(prepared_design()), **FIT)


@pytest.fixture(scope="module")
def adapted(model: RandomEffects) -> RandomEffects:
    """The same after d3: look, do not change."""
    return model.adapt(new_cells(prepared_design()), steps=STEPS, threads=1)


def error(model: RandomEffects, adata: AnnData, unknown: str = "error") -> float:
    """Mean squared error of the reconstruction, log1p CP10k."""
    observed = adata[:, model.genes].layers[keys.LOGNORM].toarray()
    return float(np.square(model.reconstruct(adata, unknown=unknown).X - observed).mean())


def rows(model: RandomEffects, batch: str) -> np.ndarray:
    """All posterior means of a batch's effects."""
    code = model.design.code(batch)
    return np.concatenate([table.loc_BH[code].detach().numpy() for table in tables(model.network)])


def test_all_but_the_new_rows_stays_bit_for_bit(model: RandomEffects, adapted: RandomEffects) -> None:
    before, after = weights(model.network), weights(adapted.network)
    assert before.keys() == after.keys()
    n_tables = 0
    for name, tensor in before.items():
        if name.endswith("_BH"):
            assert after[name].shape == (3, tensor.shape[1])
            assert torch.equal(after[name][:2], tensor)
            n_tables += 1
        else:
            assert torch.equal(after[name], tensor)
    assert n_tables == 2 * len(tables(model.network)) == 20
    assert {"encoder_norms.0.running_mean", "batch_head.linears.1.weight"} <= before.keys()  # not vacuous
    assert (rows(adapted, "d3") != 0).all()


def test_the_old_model_is_not_changed(prepared: AnnData) -> None:
    model = unfitted("random").fit(known_cells(prepared), **FIT)
    before, design, fitted = weights(model.network), model.design, dict(model.fitted)
    model.adapt(new_cells(prepared), steps=2)
    assert not differing(before, weights(model.network))
    assert (model.design, model.fitted) == (design, fitted)


def test_known_cells_embed_as_before(model: RandomEffects, adapted: RandomEffects, prepared: AnnData) -> None:
    cells = known_cells(prepared)
    assert_allclose(
        adapted.get_latent_representation(cells), model.get_latent_representation(cells), atol=1e-6
    )


def test_new_cells_are_reconstructed_better_than_by_the_population_mean(
    model: RandomEffects, adapted: RandomEffects, prepared: AnnData
) -> None:
    cells = new_cells(prepared)
    assert error(adapted, cells) < 0.9 * error(model, cells, unknown="mean")


def test_cells_that_were_not_adapted_to_are_too(model: RandomEffects, prepared: AnnData) -> None:
    cells = new_cells(prepared)
    adapted = model.adapt(cells[::2].copy(), steps=STEPS)
    assert error(adapted, cells[1::2].copy()) < 0.95 * error(model, cells[1::2].copy(), unknown="mean")


def test_a_known_batch_under_a_new_name_finds_its_effects(model: RandomEffects, prepared: AnnData) -> None:
    copy = prepared[prepared.obs["donor"] == "d2"].copy()
    as_known = error(model, copy)
    copy.obs["donor"] = "d2 again"
    as_mean = error(model, copy, unknown="mean")
    adapted = model.adapt(copy)
    assert as_known < 0.9 * as_mean
    assert error(adapted, copy) < as_known + 0.1 * (as_mean - as_known)
    found, d1, d2 = (rows(adapted, batch) for batch in ("d2 again", "d1", "d2"))
    assert np.linalg.norm(found - d2) < 0.6 * np.linalg.norm(found - d1)
    assert np.corrcoef(found, d2)[0, 1] > 0.9


def test_a_row_starts_at_the_prior(model: RandomEffects, prepared: AnnData) -> None:
    """One step of Adam is as long as its learning rate, no more."""
    started = model.adapt(new_cells(prepared)[:1].copy(), steps=1)
    for table in tables(started.network):
        assert_allclose(table.scale_BH()[2].detach(), float(table.prior_scale), rtol=0.02)
        assert table.loc_BH[2].abs().max() <= 0.0101  # one step of Adam


def test_labels_and_other_columns_do_not_matter(adapted: RandomEffects, model: RandomEffects) -> None:
    bare = new_cells(prepared_design())
    bare.obs = bare.obs[["donor"]]
    assert not differing(weights(adapted.network), weights(model.adapt(bare, steps=STEPS, threads=1).network))


def test_cells_of_known_batches_do_not_matter(
    adapted: RandomEffects, model: RandomEffects, prepared: AnnData
) -> None:
    assert not differing(
        weights(adapted.network), weights(model.adapt(prepared, steps=STEPS, threads=1).network)
    )


def test_seeds(adapted: RandomEffects, model: RandomEffects, prepared: AnnData) -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    assert not differing(
        weights(adapted.network), weights(model.adapt(new_cells(prepared), steps=STEPS, threads=1).network)
    )
    assert torch.equal(torch.get_rng_state(), state)
    other = model.adapt(new_cells(prepared), seed=1, steps=STEPS, threads=1)
    assert differing(weights(adapted.network), weights(other.network))


def test_saved_and_loaded(adapted: RandomEffects, prepared: AnnData, tmp_path: Path) -> None:
    adapted.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert loaded.design == adapted.design
    assert loaded.design.batches == ("d1", "d2", "d3")
    assert loaded.fitted["adapted"] == {"batches": 1, "steps": STEPS, "seed": 0}
    assert not differing(weights(adapted.network), weights(loaded.network))
    assert_array_equal(
        loaded.get_latent_representation(prepared), adapted.get_latent_representation(prepared)
    )


def test_a_new_batch_can_be_the_target_of_a_counterfactual(adapted: RandomEffects, prepared: AnnData) -> None:
    from scmedley.models.counterfactual import counterfactual

    own = counterfactual(adapted, new_cells(prepared), "d3")
    assert isinstance(own, AnnData)
    assert_allclose(own.X, adapted.reconstruct(new_cells(prepared)).X, atol=1e-6)
    there = counterfactual(adapted, new_cells(prepared), "d1")
    assert np.abs(there.X - own.X).max() > 0.01


def test_one_after_another(model: RandomEffects, adapted: RandomEffects, prepared: AnnData) -> None:
    more = new_cells(prepared)
    more.obs["donor"] = np.where(more.obs["cell_type"] == "T", "d4", "d3")
    twice = adapted.adapt(more, steps=2)
    assert twice.design.batches == ("d1", "d2", "d3", "d4")
    assert twice.design.n_adapted == 2
    assert_array_equal(rows(twice, "d3"), rows(adapted, "d3"))
    assert len(twice.network.batch_head.linears[-1].bias) == 2


def test_fitted_anew_it_is_a_model_of_those_batches(model: RandomEffects, prepared: AnnData) -> None:
    again = model.adapt(new_cells(prepared), steps=1)
    again.settings = small("random")
    again.fit(prepared, **FIT)
    assert again.design.n_adapted == 0
    assert len(again.network.batch_head.linears[-1].bias) == 3
    assert "adapted" not in again.fitted


def test_the_published_form_adapts_too(prepared: AnnData) -> None:
    model = unfitted("random", "paper", max_epochs=2).fit(known_cells(prepared), **FIT)
    cells = new_cells(prepared)
    assert error(model.adapt(cells, steps=STEPS), cells) < error(model, cells, unknown="mean")


def test_what_is_wrong_is_said(model: RandomEffects, prepared: AnnData) -> None:
    cells = new_cells(prepared)
    with pytest.raises(ScmedleyError, match="not fitted"):
        unfitted("random").adapt(cells)
    with pytest.raises(ScmedleyError, match="nothing to adapt"):
        model.adapt(known_cells(prepared))
    with pytest.raises(ScmedleyError, match="steps is 0"):
        model.adapt(cells, steps=0)
    with pytest.raises(ScmedleyError, match="no column 'donor'"):
        model.adapt(AnnData(cells.X, var=cells.var))
    cells.obs["donor"] = pd.Categorical([None] + ["d3"] * (cells.n_obs - 1))
    with pytest.raises(ScmedleyError, match="1 cells have no batch"):
        model.adapt(cells)
    scaled = new_cells(prepared)
    del scaled.layers[keys.LOGNORM], scaled.layers[keys.COUNTS]
    scaled.X = scaled.X.toarray() - 1.5
    with pytest.raises(ScmedleyError, match="negative values"):
        model.adapt(scaled)
