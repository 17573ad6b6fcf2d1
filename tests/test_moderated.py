"""Linear models with donors as blocks, against statsmodels, and moderated variances, against their definition."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from scipy.linalg import block_diag
from scipy.special import digamma, polygamma

from scmedley.interpret.moderated import (
    LinearModel,
    independent,
    inverse_trigamma,
    moderate,
    precision,
    t_test,
    with_correlation,
)

S, G = 12, 5


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def samples(rng):
    """Six donors, each with and without treatment, and a covariate of the samples; values and weights."""
    donor_S, treated_S = np.repeat(np.arange(6), 2), np.tile([0.0, 1.0], 6)
    other_S = rng.normal(size=S)
    y_SG = rng.normal(size=(6, G))[donor_S] + 0.5 * treated_S[:, None] + 0.3 * rng.normal(size=(S, G))
    return donor_S, treated_S, other_S, y_SG, rng.uniform(0.2, 3, (S, G))


@pytest.mark.parametrize("weighted", [False, True])
def test_paired_donors_are_those_of_a_regression_with_a_level_for_each_donor(rng, weighted):
    donor_S, treated_S, other_S, y_SG, w_SG = samples(rng)
    model = LinearModel(np.column_stack([other_S, treated_S]), donor_S, "fixed")
    found = model.fit(y_SG, w_SG if weighted else None)
    levels = np.eye(6)[donor_S]
    for g in range(G):
        w_S = w_SG[:, g] if weighted else np.ones(S)
        there = sm.WLS(y_SG[:, g], np.column_stack([levels, other_S, treated_S]), w_S).fit()
        assert model.df == there.df_resid == 4
        np.testing.assert_allclose(found.effect_TG[:, g], there.params[-2:], rtol=1e-8)
        se = np.sqrt(found.unscaled_TG[1, g] * found.variance_G[g])
        np.testing.assert_allclose(se, there.bse[-1], rtol=1e-8)
        test = t_test(found.effect_TG[1, [g]], np.array([se]), model.df)
        np.testing.assert_allclose(test["p"], there.pvalues[-1], rtol=1e-7)
        np.testing.assert_allclose([test["q05"][0], test["q95"][0]], there.conf_int(0.10)[-1], rtol=1e-7)


def test_groups_of_donors_are_those_of_a_weighted_regression(rng):
    _, treated_S, other_S, y_SG, w_SG = samples(rng)
    x_ST = np.column_stack([np.ones(S), other_S, treated_S])
    found = LinearModel(x_ST, np.arange(S)).fit(y_SG, w_SG)
    for g in range(G):
        there = sm.WLS(y_SG[:, g], x_ST, w_SG[:, g]).fit()
        np.testing.assert_allclose(found.effect_TG[:, g], there.params, rtol=1e-8)
        np.testing.assert_allclose(found.variance_G[g], there.scale, rtol=1e-8)


def test_random_donors_are_generalised_least_squares(rng):
    donor_S, treated_S, other_S, y_SG, _ = samples(rng)
    kept = np.arange(S) != 3  # a donor without treatment
    donor_S, y_SG = donor_S[kept], y_SG[kept]
    x_ST = np.column_stack([np.ones(S), other_S, treated_S])[kept]
    found = LinearModel(x_ST, donor_S, "random", 0.6).fit(y_SG)
    blocks = [0.6 + 0.4 * np.eye(n) for n in np.bincount(donor_S)]
    for g in range(G):
        there = sm.GLS(y_SG[:, g], x_ST, block_diag(*blocks)).fit()
        np.testing.assert_allclose(found.effect_TG[:, g], there.params, rtol=1e-8)
        np.testing.assert_allclose(found.variance_G[g], there.scale, rtol=1e-8)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
def test_correlation_of_a_donors_samples_is_found(rng, rho):
    donor_S = np.repeat(np.arange(10), 2)[:-2]
    x_ST = np.column_stack([np.ones(18), np.tile([0.0, 1.0], 9)])
    y_SG = np.sqrt(rho) * rng.normal(size=(10, 300))[donor_S] + np.sqrt(1 - rho) * rng.normal(size=(18, 300))
    assert with_correlation(LinearModel(x_ST, donor_S, "random"), y_SG).rho == pytest.approx(rho, abs=0.051)


@pytest.mark.parametrize("block", ["none", "fixed", "random"])
def test_influence_is_that_of_a_fit_without_the_donor(rng, block):
    donor_S, treated_S, other_S, y_SG, w_SG = samples(rng)
    ones = [] if block == "fixed" else [np.ones(S)]
    x_ST = np.column_stack([*ones, other_S, treated_S])
    model = LinearModel(x_ST, donor_S, block, 0.4)
    found = model.fit(y_SG, w_SG)
    change_TG, donor_TG = found.influences([x_ST.shape[1] - 1])
    changes_DG = []
    for d in range(6):
        rest = donor_S != d
        fit = LinearModel(x_ST[rest], donor_S[rest], block, 0.4).fit(y_SG[rest], w_SG[rest])
        changes_DG.append(fit.effect_TG[-1] - found.effect_TG[-1])
    most_G = np.abs(changes_DG).argmax(0)
    np.testing.assert_array_equal(donor_TG[0], most_G)
    np.testing.assert_allclose(change_TG[0], np.array(changes_DG)[most_G, np.arange(G)], rtol=1e-7)


def test_influence_passes_over_donors_without_whom_there_is_no_effect(rng):
    treated_S = np.array([0.0, 0, 0, 1])
    model = LinearModel(np.column_stack([np.ones(4), treated_S]), np.arange(4))
    change_TG, donor_TG = model.fit(rng.normal(size=(4, G))).influences([1])
    assert np.isfinite(change_TG).all()
    assert set(donor_TG[0]) <= {0, 1, 2}
    model = LinearModel(np.column_stack([np.ones(2), treated_S[2:]]), np.arange(2))
    change_TG, donor_TG = model.fit(rng.normal(size=(2, G))).influences([1])
    assert np.isnan(change_TG).all()
    assert (donor_TG == -1).all()


def test_dependent_columns_are_found():
    one, two = np.ones(4), np.arange(4.0)
    x_ST = np.column_stack([one, two, 3 * one - 2 * two, np.zeros(4), two**2])
    assert independent(x_ST) == [0, 1, 4]


def test_moderated_variance_is_smyths(rng):
    df, n = 4, 200
    s_G = rng.chisquare(df, n) / df / (rng.chisquare(6, n) / 6) * 0.5
    moderated_G, total, d0 = moderate(s_G, df)
    e_G = np.log(s_G) - digamma(df / 2) + np.log(df / 2)
    # By hand: trigamma(d0 / 2) is what the variance of log(s) has beyond trigamma(df / 2).
    assert polygamma(1, d0 / 2) == pytest.approx(e_G.var(ddof=1) - polygamma(1, df / 2))
    s0 = np.exp(e_G.mean() + digamma(d0 / 2) - np.log(d0 / 2))
    np.testing.assert_allclose(moderated_G, (d0 * s0 + df * s_G) / (d0 + df))
    assert total == pytest.approx(d0 + df)
    assert d0 == pytest.approx(6, rel=0.5)
    assert s0 == pytest.approx(0.5, rel=0.2)


def test_equal_variances_are_pooled_and_few_are_left_alone(rng):
    s_G = rng.chisquare(3, 400) / 3
    moderated_G, total, d0 = moderate(s_G[:400], 3)
    assert d0 > 30 or np.isinf(d0)
    assert np.ptp(moderated_G) < 0.3
    assert total <= 3 * 400
    few_G, total, d0 = moderate(s_G[:9], 3)
    np.testing.assert_array_equal(few_G, s_G[:9])
    assert (total, d0) == (3, 0)


@pytest.mark.parametrize("x", [1e-4, 0.03, 1.0, 20.0, 1e5])
def test_trigamma_is_inverted(x):
    assert inverse_trigamma(float(polygamma(1, x))) == pytest.approx(x, rel=1e-6)


def test_few_counts_weigh_less(rng):
    count_S = np.tile([20.0, 2000.0], 8)
    count_SG = np.tile(count_S[:, None], (1, 300)) * rng.lognormal(0, 0.5, 300)
    noise_SG = 0.01 + 2.0 / count_SG
    y_SG = rng.normal(size=(16, 300)) * np.sqrt(noise_SG)
    model = LinearModel(np.column_stack([np.ones(16), np.repeat([0.0, 1], 8)]), np.arange(16))
    w_SG = precision(model, y_SG, count_SG)
    ratio_G = w_SG[1] / w_SG[0]
    np.testing.assert_allclose(np.log(ratio_G), np.log(noise_SG[0] / noise_SG[1]), atol=0.6)
    weighted, plain = (model.fit(y_SG, w).effect_TG[1].std() for w in (w_SG, None))
    assert weighted < 0.8 * plain


def test_p_values_are_uniform_with_and_without_weights(rng):
    model = LinearModel(np.column_stack([np.ones(8), np.repeat([0.0, 1], 4)]), np.arange(8))
    y_SG = rng.normal(size=(8, 1000)) / np.sqrt(rng.chisquare(5, 1000) / 5)
    found = model.fit(y_SG)
    variance_G, df, _ = moderate(found.variance_G, model.df)
    p_G = t_test(found.effect_TG[1], np.sqrt(found.unscaled_TG[1] * variance_G), df)["p"]
    assert stats.kstest(p_G, "uniform").pvalue > 0.01
