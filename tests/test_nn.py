"""Modules: KL and empirical Bayes against torch and numbers, effects, losses, layers."""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.optimize import minimize_scalar
from sklearn.decomposition import PCA
from torch import nn
from torch.distributions import Normal, kl_divergence

from scmedley.models import Autoencoder, FixedEffects, RandomEffects
from scmedley.models.adversarial import AdversarialNetwork
from scmedley.models.autoencoder import AutoencoderNetwork
from scmedley.models.random_effects import RandomEffectsNetwork
from scmedley.nn.bayesian import (
    EffectStart,
    EffectTable,
    ScaleAndBias,
    inverse_softplus,
    one_hot,
    tables,
    update_priors,
)
from scmedley.nn.layers import Classifier, Components, Encoder, TiedDecoder, batch_norm, linear
from scmedley.nn.likelihoods import kl_to_mse_units, mse


@pytest.fixture(autouse=True)
def _own_random_state():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def table() -> EffectTable:
    """A table with unequal means and scales."""
    table = EffectTable(3, 5, EffectStart(loc_scale=0.4, posterior_scale=0.1, prior_scale=0.3))
    with torch.no_grad():
        table.rho_BH += torch.randn(3, 5)
    return table


@pytest.mark.parametrize(
    ("model", "network", "published"),
    [
        (Autoencoder, AutoencoderNetwork, 1_617_098),
        (FixedEffects, AdversarialNetwork, 2_044_644),
        (RandomEffects, RandomEffectsNetwork, 3_756_853),
    ],
)
def test_paper_networks_have_the_published_number_of_parameters(model, network, published: int) -> None:
    built = network(3000, 30, model.preset("paper"))
    running = [
        b.numel() for name, b in built.named_buffers() if name.endswith(("running_mean", "running_var"))
    ]
    assert sum(p.numel() for p in built.parameters()) + sum(running) == published


@pytest.mark.parametrize("value", [1e-3, 0.05, 1.0, 3.0])
def test_inverse_softplus(value: float) -> None:
    assert math.log1p(math.exp(inverse_softplus(value))) == pytest.approx(value, rel=1e-12)


def test_effects_start_where_they_are_told() -> None:
    table = EffectTable(200, 50, EffectStart(loc_scale=0.2, posterior_scale=0.05, prior_scale=0.7))
    assert_allclose(table.scale_BH().detach(), 0.05, rtol=1e-5)
    assert table.loc_BH.std().item() == pytest.approx(0.2, rel=0.03)
    assert table.prior_scale.item() == pytest.approx(0.7)


def test_kl_is_torchs(table: EffectTable) -> None:
    posterior = Normal(table.loc_BH.double(), table.scale_BH().double())
    oracle = kl_divergence(posterior, Normal(0.0, table.prior_scale.double())).sum()
    assert table.kl().item() == pytest.approx(oracle.item(), rel=1e-5)


def test_kl_is_zero_for_the_prior_alone() -> None:
    table = EffectTable(2, 3, EffectStart(loc_scale=0.0, posterior_scale=0.25, prior_scale=0.25))
    assert table.kl().item() == pytest.approx(0.0, abs=1e-5)


def test_update_prior_minimises_the_kl(table: EffectTable) -> None:
    def kl(log_scale: float) -> float:
        posterior = Normal(table.loc_BH.double(), table.scale_BH().double())
        return kl_divergence(posterior, Normal(0.0, math.exp(log_scale))).sum().item()

    best = minimize_scalar(kl, bounds=(-6, 3), method="bounded", options={"xatol": 1e-8})
    table.update_prior()
    assert table.prior_scale.item() == pytest.approx(math.exp(best.x), rel=1e-4)
    assert table.kl().item() == pytest.approx(best.fun, rel=1e-5)


def test_prior_never_closes(table: EffectTable) -> None:
    with torch.no_grad():
        table.loc_BH.zero_()
        table.rho_BH.fill_(-30)
    table.update_prior(floor=1e-3)
    assert table.prior_scale.item() == pytest.approx(1e-3)
    assert math.isfinite(table.kl().item())


def test_draws_have_the_posteriors_mean_and_scale(table: EffectTable) -> None:
    draws = torch.stack([table.draw_BH() for _ in range(4000)]).detach()
    error = 4 * table.scale_BH().detach() / 4000**0.5
    assert ((draws.mean(0) - table.loc_BH.detach()).abs() < 1.3 * error).all()
    assert_allclose(draws.std(0), table.scale_BH().detach(), rtol=0.1)


def test_scale_and_bias_by_hand() -> None:
    effects = ScaleAndBias(3, 4, EffectStart())
    h, b = torch.randn(5, 4), torch.tensor([0, 2, 1, -1, 2])
    out = effects(h, one_hot(b, 3), draw=False).detach().numpy()
    gamma, beta = effects.gamma.loc_BH.detach().numpy(), effects.beta.loc_BH.detach().numpy()
    for i, code in enumerate(b.tolist()):
        by_hand = h[i].numpy() if code < 0 else h[i].numpy() * (1 + gamma[code]) + beta[code]
        assert_allclose(out[i], by_hand, rtol=1e-6)


def test_one_draw_serves_the_whole_minibatch() -> None:
    effects = ScaleAndBias(2, 4, EffectStart(posterior_scale=1.0))
    h = torch.ones(6, 4)
    b_NB = one_hot(torch.tensor([0, 1, 0, 1, 0, -1]), 2)
    one, other = effects(h, b_NB, draw=True), effects(h, b_NB, draw=True)
    assert torch.equal(one[0], one[2])
    assert torch.equal(one[1], one[3])
    assert not torch.isclose(one[0], other[0]).any()
    assert torch.equal(one[5], h[5])  # the population mean has no effect to draw


def test_tables_and_priors_of_a_network() -> None:
    network = nn.ModuleList(
        [ScaleAndBias(2, 3, EffectStart()), nn.Linear(2, 2), ScaleAndBias(2, 4, EffectStart())]
    )
    assert len(tables(network)) == 4
    update_priors(network)
    learnt = [t.prior_scale.item() for t in tables(network)]
    assert len(set(learnt)) == 4  # each table its own


def test_mse_is_the_mean_over_cells_and_genes() -> None:
    x, xhat = torch.randn(3, 5, dtype=torch.bfloat16), torch.randn(3, 5)
    assert mse(x, xhat).dtype == torch.float32
    assert mse(x, xhat).item() == pytest.approx(np.square(x.float().numpy() - xhat.numpy()).mean(), rel=1e-6)


def test_a_nat_makes_the_gradient_that_of_the_evidence_lower_bound() -> None:
    """With the variance at the MSE, d(mse + kl_to_mse_units * kl) is d(-log p + kl) times 2 MSE / G."""
    g, theta = 7, torch.tensor(0.3, requires_grad=True)
    x = torch.randn(4, g)
    error, kl = mse(x, theta * x), theta.square()
    variance = error.item()
    (ours,) = torch.autograd.grad(error + kl_to_mse_units(error, g) * kl, theta, retain_graph=True)
    minus_log_p = -Normal(theta * x, variance**0.5).log_prob(x).sum(1).mean()
    (elbo,) = torch.autograd.grad(minus_log_p + kl, theta)
    assert ours.item() == pytest.approx(elbo.item() * 2 * variance / g, rel=1e-5)


def test_linear_is_glorot_with_zero_bias() -> None:
    layer = linear(300, 200)
    bound = math.sqrt(6 / 500)
    assert layer.weight.abs().max().item() <= bound
    assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not layer.bias.any()


def test_batch_norm_is_keras_in_torchs_sense() -> None:
    norm = batch_norm(3, 0.01)
    x = torch.randn(50, 3) * 2 + 1
    norm(x)
    assert norm.eps == 1e-3
    assert_allclose(norm.running_mean, 0.01 * x.mean(0), rtol=1e-5)


def test_encoder_gives_all_activations_and_has_no_norm_on_the_latent() -> None:
    encoder = Encoder(10, (6, 5), 3, 0.1)
    assert [a.shape for a in encoder(torch.randn(4, 10))] == [(4, 6), (4, 5), (4, 3)]
    assert [norm.num_features for norm in encoder.norms] == [6, 5]


def test_tied_decoder_holds_biases_only_and_follows_the_encoders_kernels() -> None:
    encoder = Encoder(10, (6, 5), 3, 0.1)
    decoder = TiedDecoder(encoder)
    assert sorted(p.shape[0] for p in decoder.parameters()) == [5, 6, 10]
    assert not any(p.any() for p in decoder.parameters())
    z = torch.randn(4, 3)
    before = decoder(z, encoder, torch.zeros(4, 2)).detach()
    with torch.no_grad():
        encoder.linears[0].weight.mul_(2)
    out = decoder(z, encoder, torch.zeros(4, 2))
    assert_allclose(out.detach(), 2 * before, rtol=1e-6)
    out.sum().backward()
    assert encoder.linears[1].weight.grad.abs().sum() > 0


def test_classifier_by_hand() -> None:
    head = Classifier(4, (6,), 3)
    h = torch.randn(5, 4)
    first, last = head.linears
    hidden = np.maximum(h.numpy() @ first.weight.detach().numpy().T, 0)
    assert_allclose(head(h).detach(), hidden @ last.weight.detach().numpy().T, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("draw", [False, True])
def test_small_effects_survive_bfloat16(draw: bool) -> None:
    """1.0018 in bfloat16 is 1: effects are computed in float32, whatever the precision of the layers."""
    effects = ScaleAndBias(2, 3, EffectStart(posterior_scale=1e-6))
    with torch.no_grad():
        effects.gamma.loc_BH.fill_(0.0018)
        effects.beta.loc_BH.fill_(1 / 3)
    h_NH, b_NB = torch.full((4, 3), 2.0), one_hot(torch.tensor([0, 1, 1, -1]), 2)
    with torch.autocast("cpu", torch.bfloat16):
        found = effects(h_NH.bfloat16(), b_NB, draw=draw)
    assert_allclose(found[:3].detach(), 2 * 1.0018 + 1 / 3, atol=2e-5)
    assert_allclose(found[3].detach(), 2.0)
    assert_allclose(effects(h_NH, b_NB, draw=draw).detach(), found.detach(), atol=2e-5)


def test_components_are_those_of_scikit_learn() -> None:
    x = torch.randn(80, 30) @ torch.diag(torch.linspace(3, 0.5, 30)) @ torch.randn(30, 30)
    x = x - x.mean(0)
    components = Components(30, 6)
    components.fit(x)
    oracle = PCA(6).fit(x.numpy())
    signs = np.sign((components(x).numpy() * oracle.transform(x.numpy())).sum(0))
    assert_allclose(components(x).numpy(), oracle.transform(x.numpy()) * signs, rtol=1e-3, atol=1e-3)
    inside = components.inverse(components(x))
    assert_allclose(components(inside), components(x), rtol=1e-4, atol=1e-4)
    loadings = components.rotation_GQ
    assert (loadings.gather(0, loadings.abs().argmax(0, keepdim=True)) > 0).all()


def test_few_cells_have_few_components() -> None:
    components = Components(30, 20)
    components.fit(torch.randn(10, 30))
    assert int(components.rotation_GQ.any(0).sum()) == 8
