"""The closed-form mixed model, against dense algebra and statsmodels' REML."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy.sparse import csr_matrix

from scmedley.nn.mixed import EPSILON, H_K, TAIL_J, Columns, Posterior, Statistics, Variances, learn

CONDITION, DONORS, GENES = 2, 6, 4
CENTRING = np.eye(CONDITION) - 1 / CONDITION
COLUMNS = Columns(np.array([-1] * (1 + CONDITION) + [0] * DONORS), ((1, CENTRING),))


def design(n_cells: int = 120, seed: int = 0) -> tuple[csr_matrix, np.ndarray]:
    """The constant, two conditions and six donors; values of four genes."""
    rng = np.random.default_rng(seed)
    condition, donor = rng.integers(CONDITION, size=n_cells), np.sort(rng.integers(DONORS, size=n_cells))
    x = np.zeros((n_cells, 1 + CONDITION + DONORS))
    x[:, 0] = 1
    x[np.arange(n_cells), 1 + condition] = 1
    x[np.arange(n_cells), 1 + CONDITION + donor] = 1
    y = (
        rng.normal(0, 0.6, (DONORS, GENES))[donor]
        + 0.5 * condition[:, None]
        + rng.normal(3, 1, (n_cells, GENES))
    )
    return csr_matrix(x), y


def given(share_K: np.ndarray, y: np.ndarray) -> Variances:
    ratio = np.array([0.3])
    return Variances(ratio, ratio, share_K[None], np.array([0.5, 1.0, 1.5, 2.0]), y.mean(0))


def dense_posterior(x: np.ndarray, y: np.ndarray, v: Variances, h: float) -> tuple[np.ndarray, ...]:
    """Mean, covariance and log evidence of all genes by dense algebra, from the prior covariance of the effects."""
    means, covariances, evidence = [], [], []
    for g in range(GENES):
        prior = np.zeros((x.shape[1],) * 2)
        prior[0, 0] = v.noise_G[g] / EPSILON
        prior[1 : 1 + CONDITION, 1 : 1 + CONDITION] = CENTRING * v.noise_G[g] / EPSILON
        prior[3:, 3:] = np.eye(DONORS) * v.ratio_T[0] * h * v.noise_G[g]
        total = x @ prior @ x.T + v.noise_G[g] * np.eye(len(x))
        gain, r = prior @ x.T @ np.linalg.inv(total), y[:, g] - v.mean_G[g]
        means.append(gain @ r)
        covariances.append(prior - gain @ x @ prior)
        evidence.append(-0.5 * (np.linalg.slogdet(total)[1] + r @ np.linalg.solve(total, r)))
    return np.array(means), np.array(covariances), np.array(evidence)


@pytest.mark.parametrize("values", [[6], [4, 6, 8]])
def test_posterior_is_that_of_dense_algebra(values):
    x, y = design()
    share_K = np.zeros(len(H_K))
    share_K[values] = 1 / len(values)
    v = given(share_K, y)
    found, sd = Posterior(Statistics.of(x, y), COLUMNS, v).effects
    parts = [dense_posterior(x.toarray(), y, v, H_K[k]) for k in values]
    log_p = np.array([part[2] for part in parts])
    p = np.exp(log_p - log_p.max(0))
    p /= p.sum(0)
    mean = sum(w[:, None] * part[0] for w, part in zip(p, parts, strict=True))
    second = sum(
        w[:, None] * (np.diagonal(part[1], axis1=1, axis2=2) + part[0] ** 2)
        for w, part in zip(p, parts, strict=True)
    )
    assert_allclose(found.T, mean, atol=1e-10)
    assert_allclose(sd.T, np.sqrt(second - mean**2), rtol=1e-6)


def test_statistics_add_up_and_take_sparse_values():
    x, y = design()
    y = np.maximum(y, 0)
    whole, halves = (
        Statistics.of(x, csr_matrix(y)),
        Statistics.of(x[:50], y[:50]) + Statistics.of(x[50:], y[50:]),
    )
    for name in ("xx_LL", "xy_LG", "yy_G", "cells_L"):
        assert_allclose(getattr(whole, name), getattr(halves, name), rtol=1e-12)


def test_pooled_variances_are_those_of_reml():
    from statsmodels.regression.mixed_linear_model import MixedLM

    rng = np.random.default_rng(0)
    donor = np.repeat(np.arange(15), 12)
    scale = rng.uniform(0.5, 2, 12)
    y = (rng.normal(0, 0.5, (15, 12))[donor] + rng.normal(0, 1, (len(donor), 12))) * scale
    x = csr_matrix(np.hstack([np.ones((len(donor), 1)), pd.get_dummies(donor).to_numpy(float)]))
    found = learn(Statistics.of(x, y), Columns(np.array([-1] + [0] * 15)))
    fits = [MixedLM(y[:, g], np.ones(len(donor)), donor).fit(reml=True, method="powell") for g in range(12)]
    ratios = [float(fit.cov_re[0, 0] / fit.scale) for fit in fits]
    assert_allclose(found.noise_G, [fit.scale for fit in fits], rtol=1e-3)
    assert_allclose(found.pooled_T[0], np.mean(ratios), rtol=0.05)


def test_no_effects_give_no_variance():
    x, _ = design()
    y = np.random.default_rng(1).normal(size=(x.shape[0], 60))
    found = learn(Statistics.of(x, y), COLUMNS)
    assert found.pooled_T[0] < 0.01
    effect = Posterior(Statistics.of(x, y), COLUMNS, found).effects[0][3:]
    assert np.abs(effect).mean() < 0.02


def test_too_few_cells_are_refused():
    x, y = design()
    first = np.unique(x.toarray()[:, 3:].argmax(axis=1), return_index=True)[1]  # one cell of each donor
    with pytest.raises(ValueError, match="6 cells are too few for 9 columns"):
        learn(Statistics.of(x[first], y[first]), COLUMNS)


def test_a_constant_gene_has_neither_effects_nor_noise():
    x, y = design()
    y[:, 0] = 3.0
    found = learn(Statistics.of(x, y), COLUMNS)
    whole, rest = Statistics.of(x, y), Statistics.of(x, y[:, 1:])
    effect, sd = Posterior(whole, COLUMNS, found).effects
    assert np.abs(effect[:, 0]).max() < 1e-6
    assert sd[1:, 0].max() < 1e-2
    assert_allclose(found.pooled_T, learn(rest, COLUMNS).pooled_T)


def test_factors_of_tailed_groups_have_the_likelihood_of_dense_algebra():
    """Also where the effects of a small factor are far below those of the donors."""
    x, y = design()
    columns = Columns(np.array([-1] + [0] * CONDITION + [1] * DONORS), tailed=(0,))
    ratio, noise = np.array([1e-8, 0.3]), np.array([0.5, 1.0, 1.5, 2.0])
    share_JK = np.outer(np.full(len(TAIL_J), 1 / len(TAIL_J)), H_K == 1)
    found = Posterior(Statistics.of(x, y), columns, Variances(ratio, ratio, share_JK, noise, y.mean(0)))
    log_p = np.empty((GENES, len(TAIL_J)))
    for j, factor in enumerate(TAIL_J):
        w = np.r_[1 / EPSILON, [ratio[0] * factor] * CONDITION, [ratio[1]] * DONORS]
        total = (x.toarray() * w) @ x.toarray().T + np.eye(len(y))
        r = y - y.mean(0)
        log_p[:, j] = -0.5 * (r * np.linalg.solve(total, r)).sum(0) / noise
        log_p[:, j] -= 0.5 * np.linalg.slogdet(total)[1]
    p = np.exp(log_p - log_p.max(1, keepdims=True))
    assert_allclose(found.p_GJK.sum(2), p / p.sum(1, keepdims=True), atol=1e-6)
