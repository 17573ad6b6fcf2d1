"""Models with designs of several factors: effects by level, counterfactuals by level, adapt, store."""

import copy
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from scmedley import keys, load
from scmedley.errors import ScmedleyError, ScmedleyWarning
from scmedley.interpret.batch_effects import batch_effects
from scmedley.models import VAE, DeepBID, FixedEffects, MixedEffects, RandomEffects
from scmedley.models.export import export
from scmedley.models.random_effects import RandomEffectsNetwork
from scmedley.nn.bayesian import EffectStart, EffectTable, Levels, tables
from scmedley.pp import prepare
from scmedley.train import loop
from tiny import FIT, SIZES, differing, nested_design, prepared_design, weights

# Two studies and three donors are few, as a fit says (test_a_fit_checks_its_design).
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:(?s).*{said}:scmedley.errors.ScmedleyWarning")
    for said in ("hardly known", "cannot be separated from", "have no cells")
]
DESIGN = "~ stim + age + (1 | study/donor) + (stim | donor)"
KINDS = {"fixed": FixedEffects, "random": RandomEffects, "vae": VAE, "deepbid": DeepBID}


def designed() -> AnnData:
    """Three donors in two studies, two of which have stimulated cells; age is a donor's."""
    adata = prepared_design()
    stim = np.where(np.arange(adata.n_obs) % 2, "s", "c")
    adata.obs["stim"] = pd.Categorical(np.where(adata.obs["donor"] == "d3", "c", stim))
    adata.obs["study"] = np.where(adata.obs["donor"] == "d1", "a", "b")
    adata.obs["age"] = adata.obs["donor"].map({"d1": 20.0, "d2": 30.0, "d3": 55.0}).astype(float)
    return adata


def unfitted(kind: str, design: Any = DESIGN, **how: Any) -> Any:
    cls: Any = KINDS[kind]
    return cls(design, settings=cls.preset("default").replace(**SIZES), **how)


@pytest.fixture(scope="module")
def adata() -> AnnData:
    """Look, do not change."""
    return designed()


@pytest.fixture(scope="module", params=sorted(KINDS))
def model(request, adata: AnnData) -> Any:
    """Fitted, of every kind: look, do not change."""
    return unfitted(request.param).fit(adata.copy(), **FIT)


@pytest.fixture(scope="module")
def random(adata: AnnData) -> RandomEffects:
    return unfitted("random").fit(adata.copy(), **FIT)


def test_a_fit_checks_its_design(adata: AnnData) -> None:
    with pytest.warns(ScmedleyWarning, match="study has 2 levels"):
        unfitted("fixed").fit(adata.copy(), **FIT)
    aliased = adata.copy()
    aliased.obs["site"] = aliased.obs["study"].map({"a": "x", "b": "y"})
    with pytest.raises(ScmedleyError, match="site"):
        unfitted("fixed", "~ site + stim + (1 | study/donor)").fit(aliased, **FIT)


# --- effect tables ----------------------------------------------------------------------------------


def test_every_term_has_its_own_prior() -> None:
    levels = Levels(2, torch.eye(2, 5), torch.tensor([-1, -1, 1, 1, 2]))
    table = EffectTable(levels, 3, EffectStart(loc_scale=0.0, posterior_scale=0.1, prior_scale=0.25))
    with torch.no_grad():
        table.loc_BH[2:4], table.loc_BH[4] = 2.0, 0.5
    table.update_prior()
    expected = [1.0, 1.0, np.sqrt(4.01), np.sqrt(4.01), np.sqrt(0.26)]
    assert_allclose(table.prior_scale.squeeze(1), expected, rtol=1e-5)  # fixed terms: wide, and not learnt


def test_the_effect_of_a_cell_is_the_sum_over_terms(model, adata: AnnData) -> None:
    design, x_BL = model.design, model.network.levels.design_BL
    level_NT, value_NT = design.terms.rows(adata.obs)
    whole_NL = torch.as_tensor(design.terms.matrix(level_NT, value_NT).toarray(), dtype=torch.float32)
    codes_N = torch.as_tensor(design.codes(adata.obs))
    table = tables(model.network)[0]
    assert table.loc_BH.shape[0] == x_BL.shape[1] == sum(design.terms.sizes)
    assert_allclose(
        (model.network.levels(codes_N) @ table.loc_BH).detach(), (whole_NL @ table.loc_BH).detach(), rtol=1e-5
    )
    assert not model.network.levels(torch.tensor([-1])).any()


# --- one factor -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fixed", "random"])
def test_a_formula_of_one_factor_is_its_column(kind, adata: AnnData) -> None:
    models = [unfitted(kind, design).fit(adata.copy(), **FIT) for design in ("donor", "~ (1 | donor)")]
    assert not differing(*(weights(model.network) for model in models))
    assert models[0].design == models[1].design


def test_the_papers_have_one_factor() -> None:
    for cls in (FixedEffects, RandomEffects, VAE):
        with pytest.raises(ScmedleyError, match=r"published models .* have one factor"):
            cls(DESIGN, settings="paper")
    with pytest.raises(ScmedleyError, match=r"published models .* have one factor"):
        MixedEffects("donor", preset="paper", covariates=["stim"])
    assert MixedEffects("~ (1 | donor)", preset="paper").batch_key == "donor"


# --- fit --------------------------------------------------------------------------------------------


def test_renamed_levels_give_the_same_bits(random, adata: AnnData) -> None:
    other = adata.copy()
    other.obs["donor"] = other.obs["donor"].cat.rename_categories({"d1": "x", "d2": "b", "d3": "a"})
    other.obs["stim"] = other.obs["stim"].cat.rename_categories({"c": "z"})
    renamed = unfitted("random").fit(other, **FIT)
    assert not differing(weights(random.network), weights(renamed.network))
    assert renamed.design.batches != random.design.batches


def test_combinations_are_stored_beside_the_split(adata: AnnData) -> None:
    cells = adata.copy()
    del cells.obs[keys.SPLIT]
    model = unfitted("fixed").fit(cells, **FIT)
    assert list(cells.obs[keys.BATCH].cat.categories) == list(model.design.batches)
    assert_array_equal(cells.obs[keys.BATCH].cat.codes, model.design.codes(cells.obs))
    trained = cells.obs[keys.BATCH][cells.obs[keys.SPLIT] == "train"]
    assert set(trained) == set(model.design.batches)


def test_prepare_takes_a_formula(adata: AnnData) -> None:
    cells = AnnData(
        adata.layers[keys.COUNTS].copy(), obs=adata.obs.drop(columns=keys.SPLIT), var=adata.var[[]]
    )
    prepare(cells, "~ stim + (1 | donor)", min_genes=5, min_cells=1)
    assert sorted(cells.obs[keys.BATCH].unique()) == ["d1 · c", "d1 · s", "d2 · c", "d2 · s", "d3 · c"]


def test_a_level_without_training_cells_is_refused(adata: AnnData) -> None:
    cells = adata.copy()
    cells.obs.loc[cells.obs["stim"] == "s", keys.SPLIT] = "test"
    with pytest.raises(ScmedleyError, match="Level 's' of 'stim' has no training cell"):
        unfitted("random").fit(cells, **FIT)


def test_an_interrupted_fit_resumes_to_the_same_bits(random, adata: AnnData, tmp_path, monkeypatch) -> None:
    path, update, done = tmp_path / "checkpoint.safetensors", RandomEffectsNetwork.after_epoch, []

    def interrupted(self, known, progress) -> None:
        update(self, known, progress)
        done.append(progress)
        if len(done) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(RandomEffectsNetwork, "after_epoch", interrupted)
        first = unfitted("random").fit(adata.copy(), **FIT, checkpoint=path)
        assert first.fitted["stopped"] == "interrupted"
    resumed = unfitted("random").fit(adata.copy(), **FIT, checkpoint=path)
    assert not differing(weights(random.network), weights(resumed.network))


# --- counterfactuals --------------------------------------------------------------------------------


def test_own_levels_give_the_reconstruction(model, adata: AnnData) -> None:
    stimulated = adata[adata.obs["stim"] == "s"]
    own = model.reconstruct(stimulated).X
    for to in ({"stim": "s"}, [{"stim": "s", "age": "mean"}, {"stim": "s"}]):
        found = model.counterfactual(stimulated, to)[-stimulated.n_obs :]
        assert_array_equal(found.X, own)
        assert not found.layers["difference"].any()
        assert found.obs[keys.SEEN].all()


def test_an_unseen_combination_is_the_sum_of_its_levels(random, adata: AnnData) -> None:
    cells = adata[adata.obs["donor"] == "d3"].copy()
    with pytest.warns(ScmedleyWarning, match="No cell of the fit is of 'b/d3 · s · age 55'"):
        found = random.counterfactual(cells, [{"stim": "s"}, {"stim": "c"}])
    assert found.obs[keys.SEEN].tolist() == [False] * cells.n_obs + [True] * cells.n_obs
    # By hand: the row of the own combination, with the other condition and without the donor's own response.
    names = [f"{t.name}={level}" for t in random.design.terms.terms for level in t.levels]
    row_L = random.network.levels.design_BL[random.design.codes(cells.obs)[0]].clone()
    row_L[names.index("stim=c")], row_L[names.index("stim=s")] = 0.0, 1.0
    row_L[names.index("study/donor:stim=b/d3:c")] = 0.0
    own = random.network.levels
    random.network.levels = Levels(1, row_L[None], own.term_L)
    reading = random.read(cells)
    x_NG = (
        reading.resident(np.zeros(cells.n_obs, np.int64), random.scale, "cpu")
        .take(torch.arange(cells.n_obs))
        .x_NG
    )
    with torch.no_grad():
        there = random.network.decode(
            _latent(random, cells, own), torch.zeros(cells.n_obs, dtype=torch.int64)
        )
    random.network.levels = own
    assert x_NG.shape == there.shape
    assert_allclose(found.X[: cells.n_obs], random.scale.inverse(there.numpy()), atol=1e-5)


def _latent(model: RandomEffects, cells: AnnData, levels: Levels) -> torch.Tensor:
    now, model.network.levels = model.network.levels, levels
    z_NP = torch.as_tensor(model.get_latent_representation(cells))
    model.network.levels = now
    return z_NP


def test_nested_donors_of_one_name_differ(adata: AnnData) -> None:
    cells = adata.copy()
    cells.obs["donor"] = cells.obs["donor"].astype(str).replace({"d2": "d1"})  # in study b, as d1 in study a
    model = unfitted("random", "~ (1 | study/donor)").fit(cells, **FIT)
    assert model.design.batches == ("a/d1", "b/d1", "b/d3")
    some = cells[cells.obs["donor"] == "d3"]
    one, two = (model.counterfactual(some, {"donor": name}).X for name in ("a/d1", "b/d1"))
    assert np.abs(one - two).max() > 1e-3


def test_all_levels_removed_is_the_population_mean(random, adata: AnnData) -> None:
    removed = dict.fromkeys(("stim", "age", "study", "donor"), "mean")
    assert_array_equal(random.counterfactual(adata, removed).X, random.counterfactual(adata, "mean").X)


def test_a_combination_by_name_is_its_levels(random, adata: AnnData) -> None:
    levels = {"donor": "d2", "stim": "c", "age": 30}
    found = random.counterfactual(adata, ["b/d2 · c · age 30", levels])
    assert_array_equal(*np.split(found.X, 2))
    assert list(found.obs[keys.TARGET].cat.categories) == ["b/d2 · c · age 30", "donor=d2, stim=c, age=30"]


def test_levels_of_one_factor(adata: AnnData) -> None:
    model = unfitted("random", "donor").fit(adata.copy(), **FIT)
    assert_array_equal(model.counterfactual(adata, {"donor": "d1"}).X, model.counterfactual(adata, "d1").X)
    with pytest.raises(ScmedleyError, match="effects of 'donor' alone, not of 'stim'"):
        model.counterfactual(adata, {"stim": "s"})


@pytest.mark.filterwarnings("ignore::scmedley.errors.ScmedleyWarning")  # not calibrated, and unseen
def test_draws_of_several_targets(random, adata: AnnData) -> None:
    some = adata[:6]
    found, again = (drawn(random, some) for _ in range(2))
    assert (found.layers["X_q95"] > found.layers["X_q05"]).any()
    assert_array_equal(found.layers["X_q05"], again.layers["X_q05"])


def drawn(model: RandomEffects, cells: AnnData) -> AnnData:
    found = model.counterfactual(cells, [{"stim": "s"}, {"donor": "mean"}], draws=4)
    assert isinstance(found, AnnData)
    return found


@pytest.mark.filterwarnings("ignore::scmedley.errors.ScmedleyWarning")  # not calibrated, and unseen
def test_the_own_effect_of_an_unseen_combination_is_drawn_from_its_prior(random, adata: AnnData) -> None:
    some = adata[adata.obs["donor"] == "d3"][:6]
    wide = copy.copy(random)
    wide.network = copy.deepcopy(random.network)
    for table in tables(wide.network):
        table.prior_scale *= 10  # of all terms: the posteriors stay
    one, two = (m.counterfactual(some, [{"stim": "s"}, {"stim": "c"}], draws=8) for m in (random, wide))
    widths = [np.split(found.layers["X_q95"] - found.layers["X_q05"], 2) for found in (one, two)]
    assert widths[1][0].mean() > 1.5 * widths[0][0].mean()
    assert_array_equal(widths[1][1], widths[0][1])


@pytest.mark.parametrize(
    ("to", "says"),
    [
        ({}, "A target is empty"),
        ({"donor": "d9"}, "No cell of the fit has donor = 'd9'. Choose 'mean'"),
        ([{"stim": "s"}, {"stim": "s"}], "given more than once"),
        ("nowhere", "no batch 'nowhere'"),
    ],
)
def test_targets_that_cannot_be(random, adata: AnnData, to, says) -> None:
    with pytest.raises(ScmedleyError, match=says):
        random.counterfactual(adata, to)


# --- new cells --------------------------------------------------------------------------------------


def test_a_new_donor_learns_its_own_levels_alone(model, adata: AnnData) -> None:
    new = adata[adata.obs["donor"] == "d1"].copy()
    new.obs["donor"] = "d9"
    new.obs["study"] = np.where(np.arange(new.n_obs) < 30, "a", "new")
    before = weights(model.network)
    adapted = model.adapt(new, steps=2, threads=1)
    assert adapted.design.batches[: model.design.n_batches] == model.design.batches
    assert adapted.design.n_adapted == adapted.design.n_batches - model.design.n_batches == 4
    names = {term.name: term.levels for term in adapted.design.terms.terms}
    assert names["study"] == ("a", "b", "new")
    assert names["study/donor"][-2:] == ("a/d9", "new/d9")
    assert names["stim"] == ("c", "s")
    level_NT, value_NT = adapted.design.terms.rows(adata.obs)
    kept_NL = adapted.design.terms.matrix(level_NT, value_NT).toarray()
    old_NL = model.design.terms.matrix(*model.design.terms.rows(adata.obs)).toarray()
    for one, other in zip(tables(model.network), tables(adapted.network), strict=True):
        assert_array_equal(kept_NL @ other.loc_BH.detach().numpy(), old_NL @ one.loc_BH.detach().numpy())
        assert len(other.loc_BH) == len(one.loc_BH) + 7  # a study, two donors, and four responses
    assert not differing(before, weights(model.network))
    assert_allclose(adapted.reconstruct(adata).X, model.reconstruct(adata).X, atol=1e-5)
    found = adapted.counterfactual(adata[:5], {"donor": "new/d9", "age": 20})
    assert found.obs[keys.SEEN].all()


def test_cells_of_unseen_combinations_are_sums(random, adata: AnnData) -> None:
    cells = adata[adata.obs["donor"] == "d3"].copy()
    expected = random.get_latent_representation(cells)
    cells.obs["stim"] = "s"
    found = random.get_latent_representation(cells)
    assert np.abs(found - expected).max() > 1e-3
    cells.obs["donor"] = "d9"
    with pytest.raises(ScmedleyError, match="does not know the batches"):
        random.get_latent_representation(cells)
    # Without the donor, what the condition and the study do is left.
    known = random.get_latent_representation(cells, unknown="mean")
    assert np.abs(known - random.get_latent_representation(cells, mask_batch=True)).max() > 1e-4


def test_a_saved_design_is_the_same(model, adata: AnnData, tmp_path) -> None:
    new = adata[adata.obs["donor"] == "d1"].copy()
    new.obs["donor"] = "d9"
    for one in (model, model.adapt(new, steps=2, threads=1)):
        one.save(tmp_path / "model")
        loaded = load(tmp_path / "model")
        assert loaded.design == one.design
        assert not differing(weights(loaded.network), weights(one.network))
        assert_array_equal(loaded.reconstruct(adata).X, one.reconstruct(adata).X)


def test_exported_effects_are_those_of_combinations(adata: AnnData) -> None:
    model = unfitted("fixed").fit(adata.copy(), **FIT)
    n = model.design.n_batches
    assert all(len(block.gamma) == len(block.beta_sd) == n for block in export(model).blocks)
    x_BL, table = model.network.levels.design_BL, tables(model.network.decoder_effects)[0]
    assert_allclose(export(model).blocks[0].gamma, (x_BL @ table.loc_BH).detach(), rtol=1e-5)
    assert list(batch_effects(model)["batch"]) == list(model.design.batches)


# --- keep -------------------------------------------------------------------------------------------


def test_keep_leaves_terms_to_the_random_effects(adata: AnnData, tmp_path) -> None:
    settings = {
        "fixed_settings": FixedEffects.preset("default").replace(**SIZES),
        "random_settings": RandomEffects.preset("default").replace(**SIZES),
    }
    model = MixedEffects("donor", nested_in="study", covariates=["stim"], keep="stim", **settings)
    cells = adata.copy()
    model.fit(cells, **FIT)
    assert [term.name for term in model.fixed.design.terms.terms] == ["study", "study/donor"]
    assert [term.name for term in model.random.design.terms.terms] == ["stim", "study", "study/donor"]
    assert list(cells.obs[keys.BATCH].cat.categories) == ["a/d1", "b/d2", "b/d3"]
    model.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    for to, network in (({"donor": "d2"}, model.fixed), ({"stim": "s"}, model.random)):
        with pytest.warns(ScmedleyWarning) if "stim" in to else _quiet():
            found = loaded.counterfactual(adata, to)
            assert_array_equal(found.X, network.counterfactual(adata, to).X)
    alone = MixedEffects("~ stim + (stim | donor)", keep=["stim"], **settings)
    assert (alone.fixed.batch_key, alone.random.batch_key) == ("donor", keys.BATCH)
    new = cells[cells.obs["donor"] == "d3"].copy()
    new.obs["stim"] = "third"
    adapted = model.adapt(new, steps=2, threads=1)
    assert adapted.fixed is model.fixed
    assert adapted.random.design.n_adapted == 1


def test_what_is_kept_is_found_in_the_latent() -> None:
    """A planted condition: a probe finds it in the latent with ``keep``, and not without."""
    cells = nested_design()
    stimulated = np.arange(cells.n_obs) % 2 == 1
    counts = cells.X.toarray()
    counts[np.ix_(stimulated, np.arange(12, 26))] *= 8
    cells.X, cells.obs["stim"] = counts, np.where(stimulated, "s", "c")
    prepare(cells, "~ stim + (1 | donor)", min_genes=5, min_cells=1)
    settings = FixedEffects.preset("default").replace(
        max_epochs=40, hidden=(32, 16), n_latent=8, learning_rate=0.01, batch_size=32
    )
    found = {}
    for keep in ((), ("stim",)):
        model = FixedEffects("~ stim + (1 | donor)", settings=settings, keep=keep).fit(cells, **FIT)
        z_NP = model.get_latent_representation(cells)
        found[keep] = cross_val_score(LogisticRegression(max_iter=1000), z_NP, stimulated, cv=5).mean()
    assert found["stim",] > 0.65  # of the genes themselves: 0.79
    assert found[()] < 0.55


def _quiet() -> Any:
    from contextlib import nullcontext

    return nullcontext()
