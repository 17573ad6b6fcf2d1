"""The VAE: its bound by hand, its likelihood against closed forms, its verbs, and its collapse."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from scipy.sparse import csr_matrix

from scmedley import datasets, io, keys
from scmedley.data.resident import Minibatch
from scmedley.errors import ScmedleyError, ScmedleyWarning
from scmedley.interpret import collapse, markers
from scmedley.models import VAE, FixedEffects, VAESettings, load, posterior
from scmedley.models.vae_network import VAENetwork, expected_log1p
from scmedley.nn.bayesian import tables
from scmedley.nn.layers import Decoder
from scmedley.pp import explore, prepare
from scmedley.train import loop
from scmedley.train.loop import Progress
from test_models import dense, norm, numbers, selu
from tiny import FIT, SIZES, differing, nested_design, prepared_design, weights

COUNTS = ("negative binomial", "zero-inflated negative binomial", "poisson")
ALL = (*COUNTS, "gaussian")


def unfitted(batch_key: str | None = "donor", likelihood: Any = "negative binomial", **changes: Any) -> VAE:
    settings = VAESettings(**{**SIZES, "likelihood": likelihood, "shrinkage": 0.1, **changes})
    return VAE(batch_key, settings=settings)


@pytest.fixture(scope="module")
def cells() -> AnnData:
    return prepared_design()


@pytest.fixture(scope="module")
def fitted(cells: AnnData) -> VAE:
    return unfitted(max_epochs=6).fit(cells, **FIT)


@pytest.fixture(scope="module")
def by_likelihood(cells: AnnData, fitted: VAE) -> dict[str, VAE]:
    others = {name: unfitted(likelihood=name).fit(cells, **FIT) for name in ALL[1:]}
    return {ALL[0]: fitted, **others}


# --- the bound by hand ------------------------------------------------------------------------------

N, G, B, P = 7, 10, 3, 2


def by_hand(w: dict[str, np.ndarray], x: np.ndarray, b: np.ndarray, noise: np.ndarray) -> dict[str, Any]:
    """Give latents and the decoder's output from the weights, in numpy."""
    h = selu(norm(w, "encoder.norms.0", dense(w, "encoder.linears.0", x)))
    mean, log_variance = (
        dense(w, "encoder.linears.1", h),
        np.clip(dense(w, "encoder.log_variance", h), -10, 4),
    )
    z = mean + np.exp(log_variance / 2) * noise
    effects = [w[f"decoder.effects.0.{name}.loc_BH"][b] for name in ("gamma", "beta")]
    h = selu(dense(w, "decoder.linears.0", z) * (1 + effects[0]) + effects[1])
    out = dense(w, "decoder.linears.1", h) + w["decoder.effects.1.beta.loc_BH"][b]
    kl = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance)
    return {"out": out, "kl": kl.sum(1).mean(), "kl_P": kl.mean(0), "mean": mean}


@pytest.mark.parametrize("likelihood", ALL)
def test_the_bound_is_that_of_numpy_and_scipy(likelihood: str) -> None:
    rng = np.random.default_rng(0)
    x, counts = rng.normal(size=(N, G)).astype(np.float32), rng.poisson(2.0, (N, G)).astype(np.float32)
    b = np.array([0, 1, 2, 0, 2, 2, 1])
    settings = VAESettings(hidden=(5,), n_latent=P, likelihood=likelihood, beta=2.0, warmup=0.5)  # type: ignore[arg-type]
    network = VAENetwork(G, B, settings).eval()
    w = numbers(network)
    network.n_cells.fill_(100)
    size = counts.sum(1) + 3
    minibatch = Minibatch(
        *(torch.as_tensor(v) for v in (x, b)), counts_NG=torch.as_tensor(counts), size_N=torch.as_tensor(size)
    )
    torch.manual_seed(3)
    ((player, terms),) = network.losses(minibatch, Progress("training", 0.25))
    torch.manual_seed(3)
    if likelihood != "gaussian":
        x = x * w["span_G"]  # the encoder of counts reads values that are centred alone
    hand = by_hand(w, x.astype(np.float64), b, torch.randn(N, P).numpy().astype(np.float64))
    exp = np.exp(hand["out"] - hand["out"].max(1, keepdims=True))
    mu = counts.sum(1, keepdims=True) * exp / exp.sum(1, keepdims=True)
    if likelihood == "gaussian":
        log_p = stats.norm.logpdf(x, hand["out"], np.exp(10 * w["slow_variance_G"] / 2))
    elif likelihood == "poisson":
        log_p = stats.poisson.logpmf(counts, mu)
    else:
        theta = np.exp(10 * (w["slow_theta_G"] + w["theta_effect.loc_BH"][b]))
        log_p = stats.nbinom.logpmf(counts, theta, theta / (theta + mu))
    if likelihood == "zero-inflated negative binomial":
        h = dense(w, "zero", hidden_by_hand(w, x, b))
        zero = 1 / (1 + np.exp(-h))
        log_p = np.log(zero * (counts == 0) + (1 - zero) * np.exp(log_p))
    assert player == "autoencoder"
    assert_allclose(terms["reconstruction"].value.item(), -log_p.sum(1).mean(), rtol=2e-5)
    assert_allclose(terms["latent kl"].value.item(), hand["kl"], rtol=2e-5)
    assert terms["latent kl"].weight == 2.0 * 0.25 / 0.5  # beta, half way through the warm-up
    assert terms["active units"].value.item() == (hand["mean"].var(0) > 0.01).sum()
    effects = sum(table.kl().item() for table in tables(network))
    assert_allclose(terms["kl"].value.item(), effects / 100, rtol=1e-6)
    assert_allclose(
        terms["decoder prior"].value.item(),
        5 / 2 * (w["decoder.linears.1.weight"] ** 2).sum() / 100,
        rtol=1e-5,
    )


def hidden_by_hand(w: dict[str, np.ndarray], x: np.ndarray, b: np.ndarray) -> np.ndarray:
    torch.manual_seed(3)
    noise = torch.randn(N, P).numpy().astype(np.float64)
    h = selu(norm(w, "encoder.norms.0", dense(w, "encoder.linears.0", x.astype(np.float64))))
    z = dense(w, "encoder.linears.1", h)
    z = z + np.exp(np.clip(dense(w, "encoder.log_variance", h), -10, 4) / 2) * noise
    gamma, beta = (w[f"decoder.effects.0.{name}.loc_BH"][b] for name in ("gamma", "beta"))
    return selu(dense(w, "decoder.linears.0", z) * (1 + gamma) + beta)


def test_free_bits_cost_nothing_and_the_kl_is_recorded_without_them() -> None:
    network = VAENetwork(G, 0, VAESettings(hidden=(5,), n_latent=P, free_bits=50.0, likelihood="gaussian"))
    numbers(network.eval())
    ((_, terms),) = network.losses(
        Minibatch(torch.randn(N, G), torch.full((N,), -1)), Progress("training", 1.0)
    )
    assert terms["latent kl above free bits"].value.item() == 50.0 * P
    assert terms["latent kl"].weight == 0
    assert 0 < terms["latent kl"].value.item() < 50.0 * P


# --- the likelihood ----------------------------------------------------------------------------------


def test_the_likelihood_of_a_linear_gaussian_decoder_is_the_closed_form(cells: AnnData) -> None:
    model = unfitted(None, "gaussian", n_latent=2).fit(cells, **FIT)
    n_genes = len(model.genes)
    torch.manual_seed(0)
    decoder = Decoder([2, n_genes])
    with torch.no_grad():
        decoder.linears[0].weight.mul_(0.3)
        model.network.slow_variance_G.copy_((torch.rand(n_genes) - 0.5) / 10)
        for layer in (model.network.encoder.linears[-1], model.network.encoder.log_variance):
            layer.weight.zero_()
            layer.bias.zero_()  # q(z|x) is the prior
    model.network.decoder = decoder
    some = cells[:20].copy()
    found = model.log_likelihood(some, draws=2000)
    x = model.scale.transform(model.read(some).log1p_NG)
    w, b = (p.detach().numpy().astype(np.float64) for p in decoder.linears[0].parameters())
    covariance = w @ w.T + np.diag(np.exp(10 * model.network.slow_variance_G.detach().numpy()))
    assert_allclose(found, stats.multivariate_normal.logpdf(x, b, covariance), atol=0.3)


@pytest.mark.parametrize("likelihood", ALL)
def test_more_draws_are_above_the_bound(
    by_likelihood: dict[str, VAE], cells: AnnData, likelihood: str
) -> None:
    model = by_likelihood[likelihood]
    bound = np.mean([model.elbo(cells, seed=seed)["elbo"].mean() for seed in range(5)])
    one, many = (model.log_likelihood(cells, draws=draws).mean() for draws in (1, 60))
    assert_allclose(one, bound, atol=1.0)
    assert many > bound + 0.3


def test_large_counts_stay_finite() -> None:
    adata = nested_design()
    adata.X = csr_matrix(adata.X * np.float32(40_000))
    assert adata.X.max() > 1e5
    prepare(adata, "donor", label_key="cell_type", min_genes=5, min_cells=1)
    model = unfitted(max_epochs=5).fit(adata, **FIT)
    assert np.isfinite(model.history["value"]).all()
    assert np.isfinite(model.log_likelihood(adata, draws=3)).all()
    assert np.isfinite(model.denoise(adata).X).all()


# --- the same bits -----------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits(cells: AnnData, fitted: VAE) -> None:
    again = unfitted(max_epochs=6).fit(cells, **FIT)
    assert not differing(weights(again.network), weights(fitted.network))
    assert again.history.equals(fitted.history)


def test_training_resumes_to_the_same_bits(
    cells: AnnData, fitted: VAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = []

    after_epoch = VAENetwork.after_epoch

    def stop_in_the_third(*given: Any) -> None:
        epochs.append(0)
        if len(epochs) == 3:
            raise KeyboardInterrupt
        after_epoch(*given)

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    path = tmp_path / "checkpoint.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(VAENetwork, "after_epoch", stop_in_the_third)
        assert unfitted(max_epochs=6).fit(cells, **FIT, checkpoint=path).fitted["stopped"] == "interrupted"
    resumed = unfitted(max_epochs=6).fit(cells, **FIT, checkpoint=path)
    assert not differing(weights(resumed.network), weights(fitted.network))


@pytest.mark.parametrize(
    ("likelihood", "dispersion"), [*((one, "gene x batch") for one in ALL), (ALL[0], "gene")]
)
def test_a_saved_model_gives_the_same_results(
    by_likelihood: dict[str, VAE], cells: AnnData, tmp_path: Path, likelihood: str, dispersion: str
) -> None:
    model = by_likelihood[likelihood]
    if dispersion == "gene":
        model = unfitted(dispersion=dispersion).fit(cells, **FIT)
    if likelihood.endswith("negative binomial"):
        n_batches = 1 if dispersion == "gene" else 3
        theta = dispersions(model, cells)
        assert len(np.unique(theta.reshape(-1, len(model.genes)), axis=0)) == n_batches
    model.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert isinstance(loaded, VAE)
    assert loaded.reads == model.reads
    for verb in ("get_latent_representation", "log_likelihood"):
        assert_array_equal(getattr(loaded, verb)(cells), getattr(model, verb)(cells))
    assert_array_equal(loaded.denoise(cells, to="d2").X, model.denoise(cells, to="d2").X)


# --- batches -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", [ALL[0], ALL[3]])
def test_no_batch_anywhere(tmp_path: Path, likelihood: str) -> None:
    adata = nested_design()
    adata.obs = adata.obs[["cell_type"]]
    prepare(adata, None, min_genes=5, min_cells=1, n_top_genes=30)
    assert adata.var[keys.HVG].sum() == 30
    model = unfitted(None, likelihood).fit(adata, **FIT)
    model.embed(adata)
    model.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert_array_equal(adata.obsm[keys.VAE], loaded.get_latent_representation(adata))
    assert not tables(model.network)
    assert "no batch effects" not in repr(model)
    for verb in (lambda: model.counterfactual(adata, "mean"), lambda: model.adapt(adata)):
        with pytest.raises(ScmedleyError, match="VAE with a batch column"):
            verb()


def test_cells_of_unknown_batches_have_the_population_mean(fitted: VAE, cells: AnnData) -> None:
    new = cells.copy()
    new.obs["donor"] = "elsewhere"
    assert_array_equal(fitted.get_latent_representation(new), fitted.get_latent_representation(cells))
    mean = fitted.denoise(cells, to="mean", use_counts=False)
    with pytest.warns(ScmedleyWarning, match=r"\('elsewhere'\): they are denoised in the average batch"):
        assert_array_equal(fitted.denoise(new, use_counts=False).X, mean.X)
    with pytest.warns(ScmedleyWarning, match=r"\('elsewhere'\): their noise is that of the average batch"):
        fitted.denoise(new, to="mean")
    assert np.abs(mean.X - fitted.denoise(cells, use_counts=False).X).max() > 1e-3
    assert fitted.adapt(new, steps=3).design.batches == ("d1", "d2", "d3", "elsewhere")


def test_adapting_draws_every_effect_of_the_new_batch(fitted: VAE, cells: AnnData) -> None:
    """Not drawn, an effect's standard deviation would be that of the prior, from the KL alone."""
    new = cells[cells.obs["donor"] == "d3"].copy()
    network, settings = fitted.network.eval(), fitted.settings
    assert settings.dispersion == "gene x batch"
    minibatch = next(posterior.minibatches(fitted, new))
    rhos = [table.rho_BH for table in tables(network)]
    assert len(rhos) == 6  # scales and biases of two layers, output, dispersions
    for slope in torch.autograd.grad(network.drawn_reconstruction(minibatch).value, rhos):
        assert (slope[2] != 0).float().mean() > 0.9
    new.obs["donor"] = "elsewhere"
    table = fitted.adapt(new, steps=200).network.theta_effect
    assert table.scale_BH()[3].mean() < 0.9 * table.prior_scale


def test_renamed_batches_give_renamed_results(cells: AnnData) -> None:
    """Names alone must not matter: with the same order of codes all numbers are the same."""
    renamed = cells.copy()
    renamed.obs["donor"] = renamed.obs["donor"].cat.rename_categories({"d1": "x", "d2": "y", "d3": "z"})
    one, other = (unfitted().fit(adata, **FIT) for adata in (cells, renamed))
    assert_array_equal(one.counterfactual(cells, "d2").X, other.counterfactual(renamed, "y").X)


def test_permuted_rows_of_effects_permute_the_results(fitted: VAE, cells: AnnData) -> None:
    """The decoder knows a batch by its row alone."""
    z = torch.as_tensor(fitted.get_latent_representation(cells))
    order = torch.tensor([2, 0, 1])
    own = torch.as_tensor(fitted.design.codes(cells.obs))
    with torch.no_grad():
        before = fitted.network.rates(z, own)
        kept = weights(fitted.network)
        for table in tables(fitted.network):
            table.loc_BH.copy_(table.loc_BH[order])
        inverse = torch.argsort(order)
        assert torch.equal(fitted.network.rates(z, inverse[own]), before)
        fitted.network.load_state_dict(kept)


@pytest.mark.parametrize("likelihood", ALL)
def test_own_batch_as_target_is_the_reconstruction(
    by_likelihood: dict[str, VAE], cells: AnnData, likelihood: str
) -> None:
    model = by_likelihood[likelihood]
    of_d1 = cells[cells.obs["donor"] == "d1"].copy()
    found = model.counterfactual(of_d1, ["d1", "d2"])
    own = found[found.obs[keys.TARGET] == "d1"]
    assert_allclose(own.X, model.reconstruct(of_d1).X, atol=1e-5)
    assert_allclose(own.layers["difference"], 0, atol=1e-6)
    assert np.abs(found.layers["difference"]).max() > 1e-3


@pytest.mark.parametrize(("theta", "least"), [(0.1, 2.0), (1.0, 2.0), (50.0, 1.0)])
def test_the_reconstruction_of_counts_is_near_the_expected_logarithm(theta: float, least: float) -> None:
    """log1p of a mean is above the mean of log1p."""
    mean, c = np.array([0.01, 0.3, 2.0, 30.0, 1000.0]), 1e4 / 2500
    draws = np.random.default_rng(0).negative_binomial(theta, theta / (theta + mean), (100_000, len(mean)))
    expected = np.log1p(c * draws).mean(0)
    log_zero = stats.nbinom.logpmf(0, theta, theta / (theta + mean))
    given = (torch.as_tensor(v) for v in (mean, mean + mean**2 * (1 + 1 / theta), log_zero))
    found = expected_log1p(*given, torch.tensor([[c]], dtype=torch.float64)).numpy()[0]
    assert_allclose(found, expected, rtol=0.25)
    assert np.abs(np.log1p(c * mean) - expected).max() > least * np.abs(found - expected).max()


# --- denoising ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ALL)
def test_denoised_expression_scales_with_the_size(
    by_likelihood: dict[str, VAE], cells: AnnData, likelihood: str
) -> None:
    model = by_likelihood[likelihood]
    one, ten = (model.denoise(cells, size=size).X for size in (1e3, 1e4))
    assert_allclose(10 * one, ten, rtol=1e-5)
    assert (ten >= 0).all()
    if likelihood != "gaussian":  # the decoder's mean has the total of the cell's counts of these genes
        mean = model.denoise(cells, use_counts=False).X
        total = model.read(cells).counts_NG.sum(axis=1)
        assert_allclose(mean.sum(1), np.asarray(total).ravel(), rtol=1e-4)


def test_denoised_cells_are_marked_and_never_taken_for_counts(
    fitted: VAE, cells: AnnData, tmp_path: Path
) -> None:
    denoised, stored = fitted.denoise(cells), fitted.denoise(cells, out=tmp_path / "denoised.zarr")
    assert denoised.uns[keys.UNS]["denoised"]["unit"] == "counts, at the cell's own total over all genes"
    assert (
        fitted.denoise(cells, size=1e4).uns[keys.UNS]["denoised"]["unit"]
        == "counts per 10,000, over all genes"
    )
    for use in (
        lambda: prepare(denoised, "donor"),
        lambda: markers(denoised, "cell_type"),
        lambda: explore(denoised),
        lambda: explore(stored),
    ):
        with pytest.raises(ScmedleyError, match="X holds denoised values"):
            use()


def dispersions(model: VAE, cells: AnnData) -> np.ndarray:
    b_N = torch.cat([some.b_N for some in posterior.minibatches(model, cells)])
    return np.asarray(model.network.theta(b_N).detach().numpy())


def test_the_posterior_mean_is_between_the_count_and_the_decoder(fitted: VAE, cells: AnnData) -> None:
    count = fitted.read(cells).counts_NG.toarray()
    mean, found = fitted.denoise(cells, use_counts=False).X, fitted.denoise(cells).X
    low, high = np.minimum(count, mean), np.maximum(count, mean)
    assert (found >= low - 1e-4).all()
    assert (found <= high + 1e-4).all()
    theta = dispersions(fitted, cells)
    assert_allclose(found, (theta + count) * mean / (theta + mean), rtol=1e-4, atol=1e-5)


def test_a_zero_of_zero_inflation_says_less(by_likelihood: dict[str, VAE], cells: AnnData) -> None:
    model = by_likelihood["zero-inflated negative binomial"]
    zero = model.read(cells).counts_NG.toarray() == 0
    mean, found = model.denoise(cells, use_counts=False).X, model.denoise(cells).X
    theta = dispersions(model, cells)
    plain = theta * mean / (theta + mean)
    assert (found[zero] > plain[zero]).all()
    assert (found[zero] < mean[zero]).all()


# --- other verbs -------------------------------------------------------------------------------------


def test_draws_of_the_latent_have_its_mean(fitted: VAE, cells: AnnData) -> None:
    adata = cells.copy()
    fitted.embed(adata, draws=400)
    z, drawn = adata.obsm[keys.VAE], adata.obsm[f"{keys.VAE}_draws"]
    assert drawn.shape == (*z.shape, 400)
    assert_allclose(drawn.mean(2), z, atol=5 * drawn.std(2).max() / 20)
    again = fitted.get_latent_representation(cells, draws=400)
    assert_array_equal(again.transpose(1, 2, 0), drawn)


def test_differential_expression_finds_what_was_changed() -> None:
    adata = nested_design()
    kind = adata.obs["cell_type"].to_numpy()
    x = np.random.default_rng(1).poisson(3.0, adata.shape).astype(np.float32)
    x[:, :5] *= np.where(kind == "B", 4, 1)[:, None]
    adata.X = csr_matrix(x)
    prepare(adata, "donor", label_key="cell_type", min_genes=5, min_cells=1)
    model = unfitted(max_epochs=60, hidden=(16,), n_latent=2, learning_rate=0.01).fit(adata, **FIT)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ScmedleyWarning)  # three donors are enough
        table = model.differential_expression(
            adata, "cell_type", "B", donor_key="donor", delta=0.5, draws=2000
        )
    assert set(table.index[:5]) == {f"g{i}" for i in range(5)}
    assert (table["lfc"].iloc[:5] > 0.5).all()
    assert table.attrs == {"cells": (45, 135), "donors": (3, 3)}
    assert_allclose(table["expected_fdr"].iloc[9], (1 - table["probability"].iloc[:10]).mean(), rtol=1e-5)
    assert_array_equal(table["changed"], table["expected_fdr"] <= 0.05)
    with pytest.warns(ScmedleyWarning, match="from 1 and 2 donors"):
        model.differential_expression(adata, "donor", "d1", donor_key="donor", draws=50)
    with pytest.raises(ScmedleyError, match="no group 'C'"):
        model.differential_expression(adata, "cell_type", "C")


def test_models_without_a_likelihood_name_one_that_has_it() -> None:
    for verb in ("denoise", "log_likelihood", "differential_expression"):
        with pytest.raises(ScmedleyError, match="VAE"):
            getattr(FixedEffects("donor"), verb)(None)
    prepared = prepared_design()
    model = unfitted(None, "gaussian", max_epochs=1).fit(prepared, **FIT)
    with pytest.raises(ScmedleyError, match="negative binomial"):
        model.differential_expression(prepared, "cell_type", "B")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"likelihood": "normal"}, "likelihood='normal' must be one of"),
        ({"dispersion": "cell"}, "dispersion='cell' must be one of"),
        ({"scale": "pearson"}, "does not fit likelihood='negative binomial'"),
        ({"warmup": 2.0}, "a share of the epochs"),
        ({"reduction": "mean"}, "does not fit likelihood='negative binomial'"),
    ],
)
def test_settings_that_are_not_valid(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ScmedleyError, match=words):
        VAESettings(**changes)


# --- collapse ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> AnnData:
    """500 real cells of one shipped set."""
    adata = io.read(datasets.path("pancreas"))
    prepare(adata, "batch", label_key="cell_type", n_top_genes=300)
    return adata


def test_the_report_s_setup_collapses_and_is_detected(real: AnnData) -> None:
    few = {"max_epochs": 40, "learning_rate": 0.01, "n_latent": 10, "hidden": (64,)}  # so that few steps do
    model = VAE(settings=VAE.preset("paper").replace(**few))
    with pytest.warns(ScmedleyWarning, match="has collapsed: .* Use reduction='sum'"):
        model.fit(real, **FIT)
    found = collapse.diagnose(model, real)
    assert found.collapsed
    assert found.n_active < 5
    assert found.kl_P.sum() < 0.5
    assert found.sensitivity < 0.01
    # The report's losses: means, so small that a few digits show no difference.
    kept = model.history.query("kept and part == 'validation'").set_index("term")
    assert_allclose(
        kept.loc["total", "value"],
        kept.loc["reconstruction", "value"] + kept.loc["latent kl", "value"] / 10,
        rtol=1e-4,
    )


def test_few_validation_cells_do_not_tell_a_collapse(cells: AnnData) -> None:
    few = cells.copy()
    part = np.full(few.n_obs, "train", dtype=object)
    part[0], part[1] = "validation", "test"
    few.obs[keys.SPLIT] = pd.Categorical(part)
    model = unfitted(max_epochs=1).fit(few, **FIT)  # a warning would be an error
    found, of_all = collapse.diagnose(model, few), few.copy()
    del of_all.obs[keys.SPLIT]
    pd.testing.assert_frame_equal(found.units, collapse.diagnose(model, of_all).units)


def test_the_default_does_not_collapse(real: AnnData) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ScmedleyWarning)
        model = VAE(settings=VAESettings(max_epochs=12)).fit(real, **FIT)
    found = collapse.diagnose(model, real)
    assert not found.collapsed
    assert found.n_active >= 5
    assert found.sensitivity > 0.02
    assert found.gap > 0
    assert "no sign of collapse" in found.sentence
