"""LinearMixed: exact for own levels, indifferent to order, honest intervals, saved and loaded."""

import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from scipy.sparse import csr_matrix

from scmedley import LinearMixed, LinearMixedSettings, keys, load
from scmedley.errors import ScmedleyError, ScmedleyWarning
from scmedley.models.linear_counterfactual import widths

FORMULA = "~ condition + (condition | study/donor)"
DONORS, GENES = 12, 60


def cells(per_donor: int = 20, seed: int = 0, n_donors: int = DONORS) -> AnnData:
    """Donors in four studies under two conditions, as prepared cells; truths in varm."""
    rng = np.random.default_rng(seed)
    donor = np.repeat(np.arange(n_donors), per_donor)
    stim = np.arange(len(donor)) % 2
    study_SG, donor_DG = rng.normal(0, 0.3, (4, GENES)), rng.normal(0, 0.4, (n_donors, GENES))
    own_DG, response_G = rng.normal(0, 0.2, (n_donors, GENES)), rng.normal(0, 0.4, GENES)
    y = 10 + study_SG[donor % 4] + donor_DG[donor] + stim[:, None] * (response_G + own_DG[donor])
    y = (y + rng.normal(0, 0.8, y.shape)).astype(np.float32)
    obs = pd.DataFrame(
        {
            "donor": [f"d{d}" for d in donor],
            "study": [f"s{d % 4}" for d in donor],
            "condition": np.array(["ctrl", "stim"])[stim],
        },
        index=[f"cell{i}" for i in range(len(donor))],
    )
    adata = AnnData(
        y, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(GENES)]), layers={keys.LOGNORM: y}
    )
    adata.varm["response"], adata.varm["own"] = response_G[:, None], own_DG.T
    adata.obsm["X_pca"] = rng.normal(size=(len(donor), 3))
    return adata


@pytest.fixture(scope="module")
def adata() -> AnnData:
    return cells()


@pytest.fixture(scope="module")
def model(adata: AnnData) -> LinearMixed:
    return LinearMixed(FORMULA).fit(adata)


def test_own_levels_give_the_cells_back(model, adata):
    stim = adata[adata.obs["condition"] == "stim"]
    same = model.counterfactual(stim, {"condition": "stim"}, interval=True)
    assert_array_equal(same.X, stim.X)
    assert_array_equal(same.layers["difference_q95"], 0)
    assert same.obs[keys.SEEN].all()
    assert list(same.obs_names[:1]) == [f"{stim.obs_names[0]} as condition=stim"]


def test_several_targets_follow_each_other(model, adata):
    targets = [{"condition": "stim"}, {"condition": "mean", "study": "mean", "donor": "mean"}]
    found = model.counterfactual(adata, targets)
    n = adata.n_obs
    assert list(found.obs[keys.TARGET].cat.categories) == [
        "condition=stim",
        "condition=mean, study=mean, donor=mean",
    ]
    base_G = model.posterior.variances.mean_G + model.posterior.effects[0][0]
    assert_allclose(found.X[n:] - base_G, adata.X - model.reconstruct(adata).X, atol=1e-4)


def test_intervals_cover_and_effects_beat_means(model, adata):
    contrast = model.contrast({"condition": "stim"}, {"condition": "ctrl"})
    true_G = adata.varm["response"].ravel()
    assert 0.8 <= ((contrast["q05"] <= true_G) & (true_G <= contrast["q95"])).mean() <= 0.99
    inside, errors, means = [], [], []
    for d in range(DONORS):
        name = {"donor": f"s{d % 4}/d{d}"}
        found = model.contrast(name | {"condition": "stim"}, name | {"condition": "ctrl"})
        true_G = adata.varm["response"].ravel() + adata.varm["own"][:, d]
        inside.append(((found["q05"] <= true_G) & (true_G <= found["q95"])).mean())
        own = adata[adata.obs["donor"] == f"d{d}"]
        stim = (own.obs["condition"] == "stim").to_numpy()
        errors.append(found["effect"].to_numpy() - true_G)
        means.append(own.X[stim].mean(0) - own.X[~stim].mean(0) - true_G)
    assert 0.85 <= np.mean(inside) <= 0.95
    assert np.square(errors).mean() < 0.8 * np.square(means).mean()


def test_sparse_cells_give_the_same(model, adata):
    sparse = adata.copy()
    sparse.layers[keys.LOGNORM] = csr_matrix(adata.X)
    again = LinearMixed(FORMULA).fit(sparse)
    assert_allclose(again.posterior.effects[0], model.posterior.effects[0], atol=1e-8)


def test_permuted_names_permute_the_results(model, adata):
    renamed = adata.copy()
    renamed.obs["condition"] = renamed.obs["condition"].map({"ctrl": "z", "stim": "a"}).astype(str)
    found = LinearMixed(FORMULA).fit(renamed).contrast({"condition": "a"}, {"condition": "z"})
    expected = model.contrast({"condition": "stim"}, {"condition": "ctrl"})
    assert_allclose(found["effect"], expected["effect"], atol=1e-8)
    assert_allclose(found["sd"], expected["sd"], rtol=1e-6)


def test_adapt_is_a_refit_with_the_same_variances(adata):
    held = (adata.obs["donor"] == "d11").to_numpy()
    adapted = LinearMixed(FORMULA).fit(adata[~held]).adapt(adata[held])
    whole = LinearMixed(FORMULA).fit(adata)
    same = type(whole.fitted)(whole.statistics, whole.design.columns, adapted.fitted.variances)
    whole.posterior = same
    name = {"donor": "s3/d11"}
    one, two = (m.contrast(name, {}) for m in (adapted, whole))
    assert_allclose(one["effect"], two["effect"], atol=1e-8)
    assert_allclose(one["sd"], two["sd"], atol=1e-8)
    with pytest.raises(ScmedleyError, match="nothing to learn"):
        adapted.adapt(adata[held])


def test_a_new_donor_has_the_width_of_the_prior(model, adata):
    with pytest.raises(ScmedleyError, match=r"No cell of the fit has donor = 'new'"):
        model.counterfactual(adata, {"donor": "new"})
    with pytest.warns(ScmedleyWarning, match="no cell of the fit has"):
        found = model.counterfactual(adata[:3], {"donor": "new"}, interval=True, unknown="prior")
    width = found.layers["difference_q95"] - found.layers["difference_q05"]
    known = model.contrast({"donor": "s1/d1"}, {"donor": "s0/d0"})
    assert width.mean() > 1.5 * (known["q95"] - known["q05"]).mean()
    unknown = adata[:3].copy()
    unknown.obs["donor"] = "new"
    with pytest.raises(ScmedleyError, match=r"3 cells have no known level .*model\.adapt"):
        model.counterfactual(unknown, {"condition": "stim"})


def test_unseen_combinations_are_sums_and_marked(adata):
    held = ((adata.obs["donor"] == "d2") & (adata.obs["condition"] == "stim")).to_numpy()
    with pytest.warns(ScmedleyWarning, match="1 of 24 combinations of condition and donor have no cells"):
        model = LinearMixed("~ condition + (condition | donor)").fit(adata[~held])
    ctrl = adata[(adata.obs["donor"] == "d2") & ~held]
    with pytest.warns(ScmedleyWarning, match="10 of 10 predictions"):
        found = model.counterfactual(ctrl, {"condition": "stim"}, interval=True)
    assert not found.obs[keys.SEEN].any()
    seen = model.counterfactual(adata[adata.obs["donor"] == "d3"], {"condition": "stim"}, interval=True)
    widths = [(x.layers["X_q95"] - x.layers["X_q05"]).max(0).mean() for x in (found, seen)]
    assert widths[0] > 1.1 * widths[1]


def test_few_donors_widen_the_intervals_of_unseen_combinations(model, adata):
    """Student's t of as many donors as there are; a Gaussian where the fit had the combination."""
    terms = model.design.terms
    assert [term.name for term in terms.terms if term.random][-1] == "study/donor:condition"
    obs = adata.obs.iloc[:4]
    assert_allclose(widths(model, obs), 1.645, rtol=1e-3)
    new = obs.assign(donor="new")  # of a study with others
    assert_allclose(widths(model, new), stats.t.ppf(0.95, adata.obs["donor"].nunique() - 1), rtol=1e-5)


def test_saved_and_loaded_gives_the_same_bits(model, adata, tmp_path):
    for one in (model, LinearMixed("donor", covariates=["condition"], use="X_pca").fit(adata)):
        one.save(tmp_path / "model")
        again = load(tmp_path / "model")
        to = {"condition": "stim"}
        assert_array_equal(again.counterfactual(adata, to).X, one.counterfactual(adata, to).X)
        pd.testing.assert_frame_equal(again.effects(), one.effects())
        pd.testing.assert_frame_equal(again.variances(), one.variances())


def test_samples_are_a_term_of_their_own(adata):
    with_samples = LinearMixed("~ condition + (1 | donor)").fit(adata)
    assert [term.name for term in with_samples.design.terms.terms] == [
        "condition",
        "donor",
        "condition:donor",
    ]
    without = LinearMixed("~ condition + (1 | donor)", settings=LinearMixedSettings(samples=False)).fit(adata)
    sds = [
        m.contrast({"condition": "stim"}, {"condition": "ctrl"})["sd"].mean() for m in (with_samples, without)
    ]
    assert sds[0] > sds[1]


def test_interactions_leave_the_main_effect_known(adata):
    crossed = adata.copy()
    crossed.obs["kind"] = np.array(["B", "T", "NK"])[np.arange(adata.n_obs) // 2 % 3]
    model = LinearMixed("~ kind * condition + (condition | donor)").fit(crossed)
    found = model.contrast({"condition": "stim"}, {"condition": "ctrl"})
    alone = (
        LinearMixed("~ condition + (condition | donor)")
        .fit(crossed)
        .contrast({"condition": "stim"}, {"condition": "ctrl"})
    )
    assert_allclose(found["effect"], alone["effect"], atol=0.1)
    assert found["sd"].max() < 2 * alone["sd"].max()
    effects = (
        model.effects().query("term == 'kind:condition' and gene == 'g0'")["effect"].to_numpy().reshape(3, 2)
    )
    assert_allclose(effects.sum(0), 0, atol=1e-8)
    assert_allclose(effects.sum(1), 0, atol=1e-8)


def test_slopes_on_an_embedding_are_found(adata):
    sloped = adata.copy()
    z = adata.obsm["X_pca"][:, :1]
    response = np.where(np.arange(GENES) % 2, 0.8, 0.0)
    y = np.asarray(adata.X) + (adata.obs["condition"] == "stim").to_numpy()[:, None] * z * response
    sloped.layers[keys.LOGNORM] = (y + 5).astype(np.float32)
    model = LinearMixed("~ condition + (condition | donor)", use="X_pca").fit(sloped)
    here = sloped[sloped.obs["condition"] == "ctrl"]
    found = model.counterfactual(here, {"condition": "stim"}, interval=True)
    slope_G = [np.polyfit(here.obsm["X_pca"][:, 0], d, 1)[0] for d in found.layers["difference"].T]
    assert_allclose(slope_G, response, atol=0.3)
    assert np.isfinite(found.layers["X_q95"]).all()


def test_tables_have_every_level(model, adata):
    effects = model.effects()
    assert list(effects.columns) == ["term", "level", "gene", "effect", "sd", "q05", "q95", "cells"]
    assert len(effects) == GENES * (2 + 4 + DONORS + 4 * 2 + DONORS * 2)
    one = effects[effects["term"] == "condition"].pivot(index="gene", columns="level", values="effect")
    assert_allclose(one.sum(axis=1), 0, atol=1e-8)
    assert set(effects.query("term == 'study/donor'")["cells"]) == {20}
    variances = model.variances().set_index("term")["ratio"]
    assert 0.15 < variances["study/donor"] < 0.4  # truth: 0.4**2 / 0.8**2
    assert variances["residual"] == 1


@pytest.mark.parametrize(
    ("formula", "change", "message"),
    [
        ("~ nothing + (1 | donor)", {}, "'nothing', which is not a column"),
        ("~ condition + (1 | donor)", {"condition": "ctrl"}, "All cells have condition = 'ctrl'"),
        ("~ condition + (1 | donor)", {"donor": None}, "have no value in obs"),
        (
            "~ condition + other + (1 | donor)",
            {"other": "condition"},
            "cannot be separated: it is determined by",
        ),
    ],
)
def test_bad_designs_are_refused(adata, formula, change, message):
    wrong = adata.copy()
    for column, value in change.items():
        wrong.obs.loc[wrong.obs_names[:1] if value is None else wrong.obs_names, column] = wrong.obs.get(
            value, value
        )
    with pytest.raises(ScmedleyError, match=message):
        LinearMixed(formula).fit(wrong)


def test_names_with_a_colon_are_no_obstacle_to_interactions(adata):
    """The effects of an interaction sum to zero within the levels of its parts, whatever these are called."""
    named = adata.copy()
    named.obs["kind"] = np.array(["T:CD4", "T:CD8", "B"])[np.arange(adata.n_obs) // 2 % 3]
    effects = LinearMixed("~ kind * condition + (1 | donor)").fit(named).effects()
    one = effects.query("term == 'kind:condition' and gene == 'g0'")["effect"].to_numpy().reshape(3, 2)
    assert_allclose(one.sum(0), 0, atol=1e-8)
    assert_allclose(one.sum(1), 0, atol=1e-8)


def test_other_misuse_has_clear_errors(model, adata):
    with pytest.raises(ScmedleyError, match="not fitted"):
        LinearMixed("donor").effects()
    with pytest.raises(ScmedleyError, match="Fit MixedEffects"):
        model.embed(adata)
    with pytest.raises(ScmedleyError, match="belong into it"):
        LinearMixed(FORMULA, covariates=["age"])
    with pytest.raises(ScmedleyError, match="X_none"):
        LinearMixed("donor", use="X_none").fit(adata)
    with pytest.raises(ScmedleyError, match="no cells"):
        LinearMixed("donor").fit(adata[:0])
    with pytest.raises(ScmedleyError, match="A target is a dict"):
        model.counterfactual(adata, "stim")
    assert LinearMixed("donor", covariates="age").formula == "~ age + (1 | donor)"
    with pytest.raises(ScmedleyError, match="must be one of"):
        model.counterfactual(adata, {"condition": "stim"}, unknown="guess")


def aged(adata: AnnData) -> AnnData:
    adata = adata.copy()
    adata.obs["age"] = np.arange(adata.n_obs) % 7.0
    return adata


def test_weak_designs_are_warned_of(adata):
    with pytest.warns(ScmedleyWarning, match="no random term"):
        numbers = LinearMixed("~ age").fit(aged(adata))
    assert numbers.variances()["term"].tolist() == ["residual"]
    with pytest.warns(ScmedleyWarning, match="condition has 2 levels"):
        LinearMixed("condition").fit(adata)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        LinearMixed("~ condition + (1 | donor)").fit(adata)
    with pytest.warns(ScmedleyWarning, match="no random term"):
        LinearMixed("~ condition").fit(adata)


def test_the_mean_of_a_continuous_column_is_no_new_combination(adata):
    aged = adata.copy()
    aged.obs["age"] = 30.0 + aged.obs["donor"].str[1:].astype(int)
    model = LinearMixed("~ age + (1 | donor)").fit(aged)
    assert model.counterfactual(aged[:5], {"age": "mean"}).obs[keys.SEEN].all()


def test_a_contrast_of_nothing_is_an_error(adata):
    model = LinearMixed("~ condition:label + (1 | donor)")
    adata = adata.copy()
    adata.obs["label"] = np.where(np.arange(adata.n_obs) % 3, "T", "B")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(adata)
        known = {key: {"condition": key, "label": "B"} for key in ("stim", "ctrl")}
        assert model.contrast(known["stim"], known["ctrl"])["sd"].min() > 0
    with pytest.raises(ScmedleyError, match="name all of them in both"):
        model.contrast({"condition": "stim"}, {"condition": "ctrl"})
