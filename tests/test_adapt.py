"""Batches that a fitted model has not seen: their effects are learnt, all else stays."""

import copy
import warnings
from inspect import signature
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from numpy.testing import assert_allclose, assert_array_equal

from scmedley import keys, load
from scmedley.data.resident import Minibatch, Resident
from scmedley.errors import ScmedleyError, ScmedleyWarning
from scmedley.models import FixedEffects, MixedEffects, RandomEffects
from scmedley.models.adapt import _loss
from scmedley.models.interval import Calibration
from scmedley.models.random_effects import RandomEffectsNetwork
from scmedley.nn.bayesian import tables
from scmedley.train.loop import Progress, TrainingCells, total
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


def test_a_reading_adapts_as_its_cells_do(model: RandomEffects, adapted: RandomEffects) -> None:
    again = model.adapt(model.read(prepared_design()), steps=STEPS, threads=1)
    assert not differing(weights(again.network), weights(adapted.network))


def test_a_known_batch_under_a_new_name_finds_its_effects(model: RandomEffects, prepared: AnnData) -> None:
    copy = prepared[prepared.obs["donor"] == "d2"].copy()
    as_known = error(model, copy)
    copy.obs["donor"] = "d2 again"
    as_mean = error(model, copy, unknown="mean")
    adapted = model.adapt(copy)
    assert as_known < 0.93 * as_mean
    assert error(adapted, copy) < as_known + 0.1 * (as_mean - as_known)
    found, d1, d2 = (rows(adapted, batch) for batch in ("d2 again", "d1", "d2"))
    assert np.linalg.norm(found - d2) < 0.8 * np.linalg.norm(found - d1)
    assert np.corrcoef(found, d2)[0, 1] > 0.8


def test_a_row_starts_at_the_prior(model: RandomEffects, prepared: AnnData) -> None:
    """One step of Adam is as long as its learning rate, no more."""
    with pytest.warns(ScmedleyWarning, match="fewer than 10 cells: 'd3'"):
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
    own = adapted.counterfactual(new_cells(prepared), "d3")
    assert isinstance(own, AnnData)
    assert_allclose(own.X, adapted.reconstruct(new_cells(prepared)).X, atol=1e-6)
    there = adapted.counterfactual(new_cells(prepared), "d1")
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


def test_fixed_effects_adapt_their_decoder(prepared: AnnData, tmp_path: Path) -> None:
    """Latents of known donors stay; the new donor's own reconstruction gets better than without."""
    model: FixedEffects = unfitted("fixed", **TRAINED).fit(known_cells(prepared), **FIT)
    cells, before = new_cells(prepared), weights(model.network)
    adapted = model.adapt(cells[::2].copy(), steps=STEPS, threads=1)
    assert not differing(before, weights(model.network))
    after = weights(adapted.network)
    for name, tensor in before.items():
        of_batches = name.endswith(("_BH", "_BKP"))
        assert torch.equal(after[name][:2] if of_batches else after[name], tensor)
    known = known_cells(prepared)
    assert_array_equal(adapted.get_latent_representation(known), model.get_latent_representation(known))
    masked = adapted.get_latent_representation(cells, mask_batch=True)
    assert_array_equal(masked, model.get_latent_representation(cells))
    held_out = cells[1::2].copy()
    assert error(adapted, held_out) < 0.98 * error(model, held_out)
    adapted.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert_array_equal(loaded.get_latent_representation(cells), adapted.get_latent_representation(cells))
    own = loaded.counterfactual(held_out, "d3")
    assert_allclose(own.X, adapted.reconstruct(held_out).X, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The intervals of")
@pytest.mark.parametrize("preset", ["default", "paper"])
def test_mixed_effects_adapt_both(preset: str, prepared: AnnData, tmp_path: Path) -> None:
    """In the ``paper`` preset the fixed network has no effects, and needs none for a new batch."""
    settings = {f"{name}_settings": small(name, preset) for name in ("fixed", "random")}
    model = MixedEffects("donor", preset=preset, **settings).fit(known_cells(prepared), **FIT)
    cells = new_cells(prepared)
    with pytest.raises(ScmedleyError, match="d3"):
        model.counterfactual(cells, "d1")
    adapted = model.adapt(cells, steps=2, threads=1)
    assert model.random.design.batches == model.fixed.design.batches == ("d1", "d2")
    alone = model.decoder.adapt(cells, steps=2, threads=1)
    assert not differing(weights(alone.network), weights(adapted.decoder.network))
    adapted.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    for one in (adapted, loaded):
        one.embed(cells)
        shown = one.counterfactual(cells, ["d1", "d3"], draws=2)
        assert set(shown.obs["counterfactual_batch"]) == {"d1", "d3"}
        assert (len(tables(one.fixed.network)) == 0) == (preset == "paper")
        assert one.random.design.batches == ("d1", "d2", "d3")


def test_an_embedding_of_your_own_needs_no_adapting(prepared: AnnData) -> None:
    prepared.obsm["X_mine"] = np.zeros((prepared.n_obs, 2))
    model = MixedEffects("donor", fixed="X_mine", random_settings=small("random"))
    adapted = model.fit(known_cells(prepared), **FIT).adapt(new_cells(prepared), steps=1)
    adapted.embed(prepared)
    assert adapted.random.design.batches == ("d1", "d2", "d3")


@pytest.mark.parametrize("published", [False, True])
def test_a_new_row_is_pulled_as_if_it_had_been_trained(published: bool) -> None:
    """The gradient of a row in a training with the new cells, over their share of it, is that of ``adapt``.

    Weights and effects are the same, effects are as good as not drawn, and the batch head is silent. Where the KL
    is in units of the MSE (``kl_per_cell_weight``) the parts' errors differ, so that their weight is compared instead.
    """
    old, new, n_genes = 30, 6, 8
    settings = small("random", masked_share=0.0, batch_weight=0.0)
    if published:
        settings = settings.replace(kl_per_cell_weight=0.0, kl_per_table_weight=10.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = RandomEffectsNetwork(n_genes, 3, settings).eval()
        x_NG = torch.rand(old + new, n_genes)
    for table in tables(network):
        torch.nn.init.constant_(table.rho_BH, -20.0)
    b_N = torch.tensor([0, 1] * (old // 2) + [2] * new)

    def pulls(loss: torch.Tensor) -> np.ndarray:
        slopes = torch.autograd.grad(loss, [table.loc_BH for table in tables(network)])
        return np.concatenate([slope[2].numpy() for slope in slopes])

    now = Progress("training", 0.0)
    resident = Resident(x_NG.numpy(), b_N.numpy(), torch.device("cpu"))
    network.begin(TrainingCells(resident, torch.arange(old + new)), now)
    ((_, terms),) = network.losses(Minibatch(x_NG, b_N), now)
    trained = pulls(total(terms))
    network.begin(TrainingCells(resident, torch.arange(old)), now)
    cells = Minibatch(x_NG[old:], b_N[old:])
    adapting = _loss(network, cells, new)
    if not published:
        kl = sum(table.kl().item() for table in tables(network))
        error = network.drawn_reconstruction(cells).value.item()
        assert adapting.item() == pytest.approx(settings.mse_weight * error * (1 + 2 / n_genes * kl / new))
    else:
        share = new / (old + new)
        found, unshared = pulls(adapting), pulls(_loss(network, cells, 10**9))
        assert_allclose(trained / share, found, rtol=1e-3, atol=1e-4)
        assert np.abs(found - unshared).max() > 0.1  # the weight of the KL matters here


def test_models_without_effects_name_those_that_have_them(fitted, prepared: AnnData) -> None:
    for model in (fitted("autoencoder"), fitted("fixed", "paper"), unfitted("autoencoder")):
        for verb, argument in (("counterfactual", "d1"), ("adapt", None)):
            with pytest.raises(ScmedleyError, match=rf"{verb}\(\) needs. Fit MixedEffects or RandomEffects"):
                getattr(model, verb)(prepared, *([argument] if argument else []))
    for model in (fitted("mixed"), fitted("random"), fitted("fixed")):  # those that the error names
        assert isinstance(model.counterfactual(prepared[:3], "d1"), AnnData)
        new = prepared[:10].copy()
        new.obs["donor"] = "d9"
        assert isinstance(model.adapt(new, steps=1), type(model))


def test_verbs_take_the_same_arguments(fitted) -> None:
    for verb in (
        "fit",
        "embed",
        "get_latent_representation",
        "predict",
        "reconstruct",
        "counterfactual",
        "adapt",
    ):
        takes = [signature(getattr(fitted(name), verb)).parameters for name in ("mixed", "random", "fixed")]
        arguments = {str([(one.name, one.kind, one.default) for one in some.values()]) for some in takes}
        assert len(arguments) == 1, verb


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


def test_intervals_of_new_batches_are_said_not_to_be_calibrated(adapted: RandomEffects) -> None:
    model, adata = copy.copy(adapted), prepared_design()
    model.calibration = Calibration(0.5, 3, 30)
    with pytest.warns(ScmedleyWarning, match="intervals of 'd3' are not calibrated"):
        model.counterfactual(known_cells(adata)[:5], ["d1", "d3"], draws=2)
    with pytest.warns(ScmedleyWarning, match="intervals of 'd3' are not calibrated"):
        model.counterfactual(new_cells(adata)[:5], "d1", draws=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ScmedleyWarning)
        model.counterfactual(known_cells(adata)[:5], "d1", draws=2)
        model.counterfactual(known_cells(adata)[:5], "d3")
