"""Models: losses by hand, reading of other data, embeddings of the user's own, golden loss curves."""

import copy
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from anndata import AnnData
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_matrix

from scmedley import keys
from scmedley.data.resident import Minibatch, Resident
from scmedley.errors import ScmedleyError, ScmedleyWarning
from scmedley.models import (
    VAE,
    Autoencoder,
    FixedEffects,
    MixedEffects,
    RandomEffects,
    RandomEffectsSettings,
    load,
)
from scmedley.models.adversarial import AdversarialNetwork
from scmedley.models.autoencoder import AutoencoderNetwork
from scmedley.models.fixed_effects import FixedEffectsNetwork
from scmedley.models.random_effects import RandomEffectsNetwork
from scmedley.nn.bayesian import EffectStart, tables
from scmedley.pp import prepare
from scmedley.train.loop import Progress, TrainingCells, total
from tiny import FIT, MODELS, SIZES, differing, nested_design, small, unfitted, weights

GOLDEN = Path(__file__).parent / "golden"

# --- losses by hand: numpy alone, from the weights' names and the equations -------------------------

N, G, B = 7, 10, 3
Q = 8  # principal components


def numbers(network: torch.nn.Module) -> dict[str, np.ndarray]:
    """Give all weights random values, BatchNorm's statistics too, and return them in double precision."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point() and name not in ("share_B", "n_cells"):
                value = torch.randn_like(tensor) * (0.6 if tensor.ndim == 2 else 0.3)
                positive = name.endswith(("running_var", "prior_scale")) or (
                    "norms" in name and "weight" in name
                )
                tensor.copy_(value.abs() + 0.2 if positive else value)
    return {name: tensor.numpy().astype(np.float64) for name, tensor in network.state_dict().items()}


@pytest.fixture
def cells() -> tuple[Minibatch, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x, b = rng.random((N, G)).astype(np.float32), np.array([0, 1, 2, 0, 2, 2, 1])
    return Minibatch(torch.as_tensor(x), torch.as_tensor(b)), x.astype(np.float64), b


def selu(h: np.ndarray) -> np.ndarray:
    return 1.0507009873554805 * np.where(h > 0, h, 1.6732632423543772 * (np.exp(np.minimum(h, 0)) - 1))


def norm(w: dict[str, np.ndarray], at: str, h: np.ndarray) -> np.ndarray:
    """BatchNorm in evaluation mode, eps 1e-3."""
    scaled = (h - w[f"{at}.running_mean"]) / np.sqrt(w[f"{at}.running_var"] + 1e-3)
    return scaled * w[f"{at}.weight"] + w[f"{at}.bias"]


def dense(w: dict[str, np.ndarray], at: str, h: np.ndarray) -> np.ndarray:
    return h @ w[f"{at}.weight"].T + w[f"{at}.bias"]


def encoded(w: dict[str, np.ndarray], x: np.ndarray) -> list[np.ndarray]:
    h1 = selu(norm(w, "encoder.norms.0", dense(w, "encoder.linears.0", x)))
    h2 = selu(norm(w, "encoder.norms.1", dense(w, "encoder.linears.1", h1)))
    return [h1, h2, selu(dense(w, "encoder.linears.2", h2))]


def affected(w: dict[str, np.ndarray], at: str, h: np.ndarray, b: np.ndarray | None) -> np.ndarray:
    """h * (1 + gamma_b) + beta_b, or h + beta_b if there are no scales; without a batch, h."""
    if b is None:
        return h
    scale = 1 + w[f"{at}.gamma.loc_BH"][b] if f"{at}.gamma.loc_BH" in w else 1
    return h * scale + w[f"{at}.beta.loc_BH"][b]


def tied(w: dict[str, np.ndarray], z: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
    h = z
    for i, layer in enumerate((2, 1, 0)):
        h = h @ w[f"encoder.linears.{layer}.weight"] + w[f"decoder.biases.{i}"]
        h = affected(w, f"decoder.effects.{i}", h, b)
        h = h if layer == 0 else selu(h)
    return h


def log_softmax(h: np.ndarray) -> np.ndarray:
    return h - np.log(np.exp(h).sum(1, keepdims=True))


def mlp(w: dict[str, np.ndarray], at: str, h: np.ndarray, n_layers: int) -> np.ndarray:
    """[Linear, ReLU] ..., Linear, log of the softmax."""
    for i in range(n_layers - 1):
        h = np.maximum(dense(w, f"{at}.linears.{i}", h), 0)
    return log_softmax(dense(w, f"{at}.linears.{n_layers - 1}", h))


def ce(log_p: np.ndarray, b: np.ndarray) -> float:
    return -log_p[np.arange(len(b)), b].mean()


def kls(w: dict[str, np.ndarray]) -> list[float]:
    """KL(q || p) in nats of each table, summed over its entries."""
    found = []
    for at in [name.removesuffix(".loc_BH") for name in w if name.endswith(".loc_BH")]:
        mean, scale, prior = w[f"{at}.loc_BH"], np.log1p(np.exp(w[f"{at}.rho_BH"])), w[f"{at}.prior_scale"]
        found.append(0.5 * (np.log(prior**2 / scale**2) - 1 + (scale**2 + mean**2) / prior**2).sum())
    return found


NOW = Progress("training", 0.0)


def training_cells(codes: list[int]) -> TrainingCells:
    x_NG = np.zeros((len(codes), G), np.float32)
    return TrainingCells(Resident(x_NG, np.array(codes), torch.device("cpu")), torch.arange(len(codes)))


def moves(
    network: torch.nn.Module, cells: Minibatch, progress: Progress = NOW
) -> list[tuple[str, float, dict[str, float]]]:
    network.eval()
    with torch.no_grad():
        played = list(network.losses(cells, progress))
    return [
        (player, total(terms).item(), {k: t.value.item() for k, t in terms.items()})
        for player, terms in played
    ]


def nearly(value: float) -> object:
    return pytest.approx(value, rel=2e-5)


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_autoencoder_loss_by_hand(preset: str, cells) -> None:
    minibatch, x, _ = cells
    settings = small("autoencoder", preset, hidden=(6, 5), n_latent=3, mse_weight=12.0)
    network = AutoencoderNetwork(G, B, settings)
    w = numbers(network)
    mse = ((x - tied(w, encoded(w, x)[-1])) ** 2).mean()
    ((player, loss, terms),) = moves(network, minibatch)
    assert player == "autoencoder"
    assert terms == {"reconstruction": nearly(mse)}
    assert loss == nearly(12 * mse)


def test_published_fixed_effects_losses_by_hand(cells) -> None:
    """Adversary on all activations; L_FE = lambda_MSE * MSE - lambda_A * CE."""
    minibatch, x, b = cells
    settings = small("fixed", "paper", hidden=(6, 5), n_latent=3, adversary_hidden=(8, 4))
    network = AdversarialNetwork(G, B, settings.replace(mse_weight=30.0, adversary_weight=0.7))
    w = numbers(network)
    activations = encoded(w, x)
    assert w["adversary.linears.0.weight"].shape == (8, 6 + 5 + 3)
    guess = ce(mlp(w, "adversary", np.hstack(activations), 3), b)
    mse = ((x - tied(w, activations[-1])) ** 2).mean()
    first, second = moves(network, minibatch)
    assert first == ("adversary", nearly(guess), {"adversary": nearly(guess)})
    assert second[0] == "autoencoder"
    assert second[1] == nearly(30 * mse - 0.7 * guess)
    assert second[2] == {"reconstruction": nearly(mse), "adversarial": nearly(-guess)}


LATER = Progress("training", 0.2)  # two thirds of the ramp of the latent's KL, one third of the offset term's


def test_default_fixed_effects_loss_by_hand(cells) -> None:
    """In nats: Q/2 MSE + w KL(q(z)) + KL(q(U)) / N + r KL(N(m, v) || N(m - delta, v))."""
    minibatch, x, b = cells
    sizes = {"hidden": (6, 5), "n_latent": 3, "n_clusters": 2, "n_components": Q}
    settings = small("fixed", **sizes, kl_weight=0.7, offset_weight=0.9)
    network = FixedEffectsNetwork(G, B, settings)
    network.begin(training_cells([0] * 10), NOW)
    w = numbers(network)
    x = x @ w["components.rotation_GQ"]
    minibatch = Minibatch(torch.as_tensor(x, dtype=torch.float32), minibatch.b_N)
    h = selu(norm(w, "encoder.norms.0", dense(w, "encoder.linears.0", x)))
    h = selu(norm(w, "encoder.norms.1", dense(w, "encoder.linears.1", h)))
    m, log_v = dense(w, "encoder.linears.2", h), dense(w, "encoder.log_variance", h)
    mse = ((x - tied(w, m, b)) ** 2).mean()
    latent = 0.5 * (m**2 + np.exp(log_v) - 1 - log_v).sum(1).mean()
    delta = np.zeros_like(m)
    for _ in range(2):
        unit = (m - delta) / np.linalg.norm(m - delta, axis=1, keepdims=True)
        share = np.exp(2 * unit @ w["latent_effects.centre_KP"].T / 0.1)
        share /= share.sum(1, keepdims=True)
        delta = np.einsum("nk,nkp->np", share, w["latent_effects.offset_BKP"][b])
    offset = 0.5 * (delta**2 / np.exp(log_v)).sum(1).mean()
    kl = sum(kls(w)) / 10
    assert len(kls(w)) == 5  # scales and biases of two hidden layers, biases of the components
    ((player, loss, terms),) = moves(network, minibatch, LATER)
    assert player == "autoencoder"
    expected = {"reconstruction": mse, "latent kl": latent, "offset": offset, "kl": kl}
    assert terms == {name: nearly(value) for name, value in expected.items()}
    assert loss == nearly(Q / 2 * mse + 2 / 3 * 0.7 * latent + kl + 1 / 3 * 0.9 * offset)


def test_the_offset_term_moves_the_mean_alone(cells) -> None:
    """Its gradient is delta / v at the mean, and none at the variance, the offsets and the clusters."""
    minibatch, _, _ = cells
    network = FixedEffectsNetwork(G, B, small("fixed", n_latent=3))
    network.latent_effects.update(torch.randn(60, 3), torch.arange(60) % B)
    mean, log_variance = (torch.randn(N, 3, requires_grad=True) for _ in range(2))
    network.latent_effects.kl(mean, log_variance, minibatch.b_N).backward()
    delta = network.latent_effects.offset(mean.detach(), minibatch.b_N)
    assert delta.abs().max() > 0
    assert_allclose(mean.grad, delta / log_variance.detach().exp() / N, rtol=1e-5, atol=1e-7)
    assert log_variance.grad is None


def random_encoded(w: dict[str, np.ndarray], x: np.ndarray, b: np.ndarray | None) -> np.ndarray:
    h = x
    for i in range(2):
        h = norm(w, f"encoder_norms.{i}", dense(w, f"encoder.{i}", h))
        h = selu(affected(w, f"encoder_effects.{i}", h, b))
    return selu(dense(w, "encoder.2", h))


def random_decoded(w: dict[str, np.ndarray], z: np.ndarray, b: np.ndarray) -> np.ndarray:
    h = z
    for i in range(3):
        h = dense(w, f"decoder.{i}", h)
        if i == 2:
            return affected(w, "decoder_effects.2", norm(w, "decoder_norms.2", h), b)
        h = selu(affected(w, f"decoder_effects.{i}", norm(w, f"decoder_norms.{i}", selu(h)), b))


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_random_effects_loss_by_hand(preset: str, cells) -> None:
    minibatch, x, b = cells
    settings = small("random", preset, hidden=(6, 5), n_latent=3, mse_weight=11.0, batch_weight=0.4)
    settings = settings if preset == "paper" else settings.replace(masked_share=0.3)
    network = RandomEffectsNetwork(G, B, settings)
    network.begin(training_cells([0] * 20), NOW)
    w = numbers(network)
    assert len(kls(w)) == 10
    z, masked = random_encoded(w, x, b), random_encoded(w, x, None)
    mse, mse_masked = (((x - random_decoded(w, latent, b)) ** 2).mean() for latent in (z, masked))
    assert mse != nearly(mse_masked)
    kl = sum(kls(w)) / 20  # nats per cell
    if preset == "paper":  # the batch head answers for cells whose batch the encoder was told
        told = ce(mlp(w, "batch_head", z, 2), b)
        loss_by_hand = 11 * mse + 0.4 * told + 1e-5 * np.mean(kls(w))
    else:  # validation does the task of training, which masks the batch of 3 cells in 10
        told = ce(mlp(w, "batch_head", masked, 2), b)
        mse = 0.7 * mse + 0.3 * mse_masked
        loss_by_hand = 11 * mse + 0.4 * told + 11 * (2 * mse / G) * kl
    ((player, loss, terms),) = moves(network, minibatch)
    assert player == "autoencoder"
    assert terms == {"reconstruction": nearly(mse), "batch": nearly(told), "kl": nearly(kl)}
    assert loss == nearly(loss_by_hand)


def test_the_batch_head_hears_only_of_cells_whose_batch_was_hidden(cells) -> None:
    """With all hidden in training the batch codes cannot change the head's loss but through the target."""
    minibatch, _, _ = cells
    network = RandomEffectsNetwork(G, B, small("random", hidden=(6, 5), n_latent=3, masked_share=1.0)).train()
    heard: list[torch.Tensor] = []
    network.batch_head.register_forward_hook(lambda _, given, __: heard.append(given[0]))
    flipped = Minibatch(minibatch.x_NG, 2 - minibatch.b_N)
    for one in (minibatch, flipped):
        next(network.losses(one, NOW))
    assert torch.equal(heard[0], heard[1])
    part = RandomEffectsNetwork(G, B, small("random", hidden=(6, 5), n_latent=3, masked_share=0.5)).train()
    part.batch_head.register_forward_hook(lambda _, given, __: heard.append(given[0]))
    many = Minibatch(torch.rand(400, G), torch.zeros(400, dtype=torch.int64))
    _, terms = next(part.losses(many, NOW))
    (slope_NP,) = torch.autograd.grad(terms["batch"].value, heard[-1])
    assert 150 < int(slope_NP.any(dim=1).sum()) < 250


def test_the_fixed_encoder_never_sees_the_batch(fitted, prepared: AnnData) -> None:
    z = fitted("fixed").get_latent_representation(prepared)
    prepared.obs["donor"] = "somebody new"
    assert_array_equal(fitted("fixed").get_latent_representation(prepared), z)
    del prepared.obs["donor"]
    assert_array_equal(fitted("fixed").get_latent_representation(prepared), z)


# --- golden loss curves -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_name", "preset"), [*itertools.product(MODELS, ["default", "paper"]), ("vae", "default")]
)
def test_golden_loss_curves(
    model_name: str, preset: str, prepared: AnnData, request: pytest.FixtureRequest
) -> None:
    """A refactor gives the same losses. ``pytest tests/test_models.py --write-golden`` writes them anew.

    Another CPU's vector units round otherwise, and Adam makes the most of it where gradients are all but
    zero: the files name the vector units that they were made with, and others are given more room.
    """
    if model_name == "vae":
        model = VAE("donor", settings=VAE.preset(preset).replace(**{**SIZES, "max_epochs": 5}))
    else:
        model = unfitted(model_name, preset, max_epochs=5)
    history = model.fit(prepared, **FIT).history
    curves = {
        f"{part} {term}": table.value.tolist() for (part, term), table in history.groupby(["part", "term"])
    }
    units = torch.backends.cpu.get_cpu_capability()
    path = GOLDEN / f"{model_name}_{preset}.json"
    if request.config.getoption("--write-golden"):
        path.write_text(json.dumps({"units": units, "curves": curves}, indent=1) + "\n")
        pytest.fail(f"{path.name} was written; run again without --write-golden")
    golden = json.loads(path.read_text())
    room = {"rel": 1e-5} if units == golden["units"] else {"rel": 3e-3, "abs": 1e-4}
    assert golden["curves"].keys() == curves.keys()
    for name, values in golden["curves"].items():
        assert curves[name] == pytest.approx(values, **room), name


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_training_learns(model_name: str, preset: str, prepared: AnnData) -> None:
    model = unfitted(model_name, preset, max_epochs=40, learning_rate=5e-3).fit(prepared, **FIT)
    error = model.history[model.history.term == "reconstruction"].pivot(index="epoch", columns="part")[
        "value"
    ]
    # Standardised, the noise of every gene counts as much as its signal, and most of it cannot be learnt.
    assert error["train"].iloc[-1] < (0.5 if preset == "paper" else 0.8) * error["train"].iloc[0]
    given = model.scale.transform(model.read(prepared).log1p_NG)
    spread = given.var(axis=0).mean()  # the error of a network that knows but the genes' means
    assert error["validation"][model.fitted["best_epoch"]] < 1.3 * spread


# --- reading ----------------------------------------------------------------------------------------


def test_genes_are_aligned_by_name(model_name: str, fitted, prepared: AnnData) -> None:
    model = fitted(model_name)
    z = model.get_latent_representation(prepared)
    rng = np.random.default_rng(0)
    reordered = prepared[:, rng.permutation(prepared.n_vars)].copy()
    assert_array_equal(model.get_latent_representation(reordered), z)
    more = AnnData(
        csr_matrix((prepared.n_obs, prepared.n_vars + 3)),
        obs=prepared.obs,
        var=prepared.var.reindex([*reordered.var_names, "x", "y", "z"])[[]],
        layers={
            keys.LOGNORM: csr_matrix(np.hstack([reordered.layers[keys.LOGNORM].toarray(), np.ones((180, 3))]))
        },
        uns=prepared.uns,
    )
    assert_array_equal(model.get_latent_representation(more), z)


def test_missing_genes_are_left_out_up_to_a_limit(fitted, prepared: AnnData) -> None:
    model = fitted("fixed")
    allowed = int(0.2 * len(model.genes))
    average = prepared.copy()
    x = average.layers[keys.LOGNORM].toarray()
    x[:, :allowed] = model.scale.centre_G[:allowed]
    average.layers[keys.LOGNORM] = x
    z = model.get_latent_representation(average)
    with pytest.warns(
        ScmedleyWarning, match=rf"{allowed} of the model's {len(model.genes)} genes are missing"
    ):
        found = model.get_latent_representation(prepared[:, allowed:])
    assert_allclose(found, z, rtol=1e-4, atol=1e-5)
    lost = [model.genes[i] for i in range(3)]
    with pytest.raises(
        ScmedleyError, match=rf"{allowed + 1} of the model's {len(model.genes)} genes.*{lost[0]}"
    ):
        model.embed(prepared[:, allowed + 1 :].copy())


def test_raw_counts_are_normalised_on_the_way(fitted, prepared: AnnData) -> None:
    raw = nested_design()[:, prepared.var_names].copy()
    for name in ("autoencoder", "fixed", "random"):
        assert_allclose(
            fitted(name).get_latent_representation(raw),
            fitted(name).get_latent_representation(prepared),
            rtol=1e-5,
            atol=1e-6,
        )


def test_a_masked_batch_is_no_part_of_the_latent(fitted, prepared: AnnData) -> None:
    """As if nothing were known of the batch: no name of ``obs`` matters, and no effect is added."""
    random, mixed = fitted("random"), fitted("mixed")
    told, masked = (random.get_latent_representation(prepared, mask_batch=mask) for mask in (False, True))
    assert np.abs(told - masked).max() > 1e-3
    without = prepared.copy()
    del without.obs["donor"]
    assert_array_equal(random.get_latent_representation(without, mask_batch=True), masked)
    assert_array_equal(random.get_latent_representation(without, unknown="mean"), masked)
    for model in (fitted("fixed"), fitted("autoencoder"), mixed):  # whose encoders never see it
        assert_array_equal(
            model.get_latent_representation(without, mask_batch=True),
            model.get_latent_representation(prepared),
        )


def test_unknown_batches(fitted, prepared: AnnData) -> None:
    cells = prepared.copy()
    cells.obs["donor"] = np.where(np.arange(180) < 4, "d9", cells.obs["donor"].astype(str))
    fitted("fixed").embed(cells)
    random, mixed = fitted("random"), fitted("mixed")
    for model in (fitted("fixed"), random, mixed):
        with pytest.raises(ScmedleyError, match="unknown='avg' must be 'error', or 'mean'"):
            model.get_latent_representation(cells, unknown="avg")
    with pytest.raises(ScmedleyError, match=r"4 cells are of batches \['d9'\].*unknown='mean'"):
        random.embed(cells)
    with pytest.raises(ScmedleyError, match="d9"):
        mixed.embed(cells)
    assert keys.RANDOM not in cells.obsm
    without = copy.deepcopy(random)
    with torch.no_grad():
        for table in tables(without.network):
            table.loc_BH.zero_()
    z = random.get_latent_representation(cells, unknown="mean")
    assert_allclose(z[:4], without.get_latent_representation(prepared)[:4], rtol=1e-5, atol=1e-6)
    assert_allclose(z[4:], random.get_latent_representation(prepared)[4:], rtol=1e-5, atol=1e-6)
    mixed.embed(cells, unknown="mean")
    assert cells.obsm[keys.RANDOM].shape == (180, 4)


def test_no_cells_are_said(model_name: str, fitted, prepared: AnnData) -> None:
    with pytest.raises(ScmedleyError, match="There are no cells"):
        fitted(model_name).get_latent_representation(prepared[:0])


def test_empty_cells_are_said(fitted, prepared: AnnData) -> None:
    prepared.layers[keys.LOGNORM] = prepared.layers[keys.LOGNORM].copy()
    prepared.layers[keys.LOGNORM][:3] *= 0
    with pytest.warns(ScmedleyWarning, match="3 cells have no value above 0"):
        fitted("fixed").get_latent_representation(prepared)


def test_a_spoilt_layer_is_said(fitted, prepared: AnnData) -> None:
    prepared.layers[keys.LOGNORM] = prepared.layers[keys.LOGNORM].toarray()
    prepared.layers[keys.LOGNORM][2, 5] = np.nan
    with pytest.raises(ScmedleyError, match=f"{prepared.obs_names[2]}.*{prepared.var_names[5]}"):
        fitted("fixed").get_latent_representation(prepared)


def test_a_batch_without_training_cells_is_said(prepared: AnnData) -> None:
    prepared.obs[keys.SPLIT] = np.where(prepared.obs["donor"] == "d2", "test", "train")
    prepared.obs.iloc[:5, prepared.obs.columns.get_loc(keys.SPLIT)] = "validation"
    with pytest.raises(ScmedleyError, match="Batch 'd2' has no training cell"):
        unfitted("fixed").fit(prepared, **FIT)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (FixedEffects, {"n_latent": 2.5}),
        (FixedEffects, {"n_latent": "5"}),
        (FixedEffects, {"learning_rate": float("nan")}),
        (FixedEffects, {"hidden": (16.5,)}),
        (FixedEffects, {"hidden": 16}),
        (FixedEffects, {"offset_weight": "high"}),
        (FixedEffects, {"offset_weight": -1.0}),
        (FixedEffects, {"n_clusters": "3"}),
        (FixedEffects, {"n_clusters": 2.5}),
        (FixedEffects, {"scale": "log"}),
        (FixedEffects, {"n_latent": True}),
        (FixedEffects, {"batch_size": 12.5}),
        (FixedEffects, {"effects": 3}),
        (RandomEffects, {"masked_share": 1.5}),
        (RandomEffects, {"kl_per_cell_weight": "low"}),
        (RandomEffects, {"kl_per_table_weight": True}),
        (RandomEffects, {"kl_per_table_weight": float("inf")}),
    ],
)
def test_settings_are_of_their_kind(kind: type, change: dict) -> None:
    with pytest.raises(ScmedleyError, match=f"{next(iter(change))}="):
        kind.preset("default").replace(**change)


def test_settings_take_what_files_and_numpy_have() -> None:
    made = FixedEffects.preset("default").replace(
        hidden=[16, 8], n_latent=np.int64(4), offset_weight=np.float32(2), effects={"loc_scale": 0.5}
    )
    assert (made.hidden, made.n_latent, made.offset_weight) == ((16, 8), 4, 2.0)
    assert made.effects == EffectStart(loc_scale=0.5)
    assert type(made.n_latent) is int


def test_reconstruction_is_in_the_unit_of_the_input(prepared: AnnData) -> None:
    model = unfitted("autoencoder", max_epochs=60, learning_rate=3e-3).fit(prepared, **FIT)
    shown = model.reconstruct(prepared)
    given = prepared.layers[keys.LOGNORM].toarray()
    assert list(shown.var_names) == list(prepared.var_names)
    assert_allclose(shown.X.mean(0), given.mean(0), atol=0.5)
    assert np.corrcoef(shown.X.ravel(), given.ravel())[0, 1] > 0.6


def test_only_highly_variable_genes_are_used(prepared: AnnData) -> None:
    prepared.var[keys.HVG] = np.arange(prepared.n_vars) % 2 == 0
    model = unfitted("autoencoder", max_epochs=1).fit(prepared, **FIT)
    assert model.genes == list(prepared.var_names[::2])
    assert model.reconstruct(prepared).n_vars == len(model.genes)
    prepared.var[keys.HVG] = False
    with pytest.raises(ScmedleyError, match="highly_variable"):
        unfitted("autoencoder").fit(prepared, **FIT)


@pytest.mark.parametrize("part", ["layer", "flag"])
def test_data_must_be_prepared(part: str, prepared: AnnData) -> None:
    if part == "layer":
        prepared.layers.clear()
    else:
        del prepared.var[keys.HVG]
    with pytest.raises(ScmedleyError, match=r"not prepared.*sm\.pp\.prepare\(adata, batch_key='donor'\)"):
        unfitted("fixed").fit(prepared, **FIT)


def test_columns_must_be_there(prepared: AnnData) -> None:
    with pytest.raises(ScmedleyError, match="obs has no column 'patient'"):
        Autoencoder("patient", None, small("autoencoder")).fit(prepared, **FIT)
    del prepared.obs[keys.SPLIT]
    with pytest.raises(ScmedleyError, match="label key 'kind' is not a column of obs"):
        Autoencoder("donor", "kind", small("autoencoder")).fit(prepared, **FIT)
    prepared.obs["donor"] = "d1"
    with pytest.raises(ScmedleyError, match="has only one batch"):
        unfitted("autoencoder").fit(prepared, **FIT)


def test_cells_without_a_batch_are_said(model_name: str, prepared: AnnData) -> None:
    prepared.obs.loc[prepared.obs_names[:3], "donor"] = np.nan
    with pytest.raises(ScmedleyError, match="3 cells have no batch"):
        unfitted(model_name).fit(prepared, **FIT)


def test_what_is_not_fitted_cannot_embed(model_name: str, prepared: AnnData) -> None:
    with pytest.raises(ScmedleyError, match="not fitted"):
        unfitted(model_name).embed(prepared)


def test_the_whole_way_from_counts(design: AnnData) -> None:
    before = design.to_df()
    prepare(design, "donor", label_key="cell_type")
    mixed = MixedEffects("donor", fixed_settings=small("fixed"), random_settings=small("random"))
    assert mixed.fit(design, **FIT) is mixed
    mixed.embed(design)
    assert design.obsm[keys.FIXED].dtype == design.obsm[keys.RANDOM].dtype == np.float32
    assert design.obsm[keys.FIXED].shape == design.obsm[keys.RANDOM].shape == (design.n_obs, 4)
    assert design.to_df().equals(before[design.var_names])
    shown = mixed.reconstruct(design)
    assert shown.X.shape == shown.layers["random"].shape == design.shape
    assert set(mixed.history.network) == {"fixed", "random"}


# --- an embedding of the user's own, views, settings ------------------------------------------------


def test_an_embedding_of_ones_own(prepared: AnnData) -> None:
    mixed = MixedEffects("donor", fixed="X_pca", random_settings=small("random"))
    prepared.obsm["X_other"] = np.zeros((180, 2))
    with pytest.raises(ScmedleyError, match=r"obsm\['X_pca'\], is missing\. obsm has \['X_other'\]"):
        mixed.fit(prepared, **FIT)
    prepared.obsm["X_pca"] = np.random.default_rng(0).normal(size=(180, 3))
    mixed.fit(prepared, **FIT)
    mixed.embed(prepared)
    assert_array_equal(prepared.obsm[keys.FIXED], prepared.obsm["X_pca"].astype(np.float32))
    assert prepared.obsm[keys.RANDOM].shape == (180, 4)
    assert mixed.decoder is mixed.random
    assert mixed.counterfactual(prepared[:5], to="d1").shape == (5, prepared.n_vars)
    assert set(mixed.history.network) == {"random"}
    del prepared.obsm["X_pca"]
    with pytest.raises(ScmedleyError, match="X_pca"):
        mixed.embed(prepared)


def test_views_become_data_of_their_own_when_something_is_stored(fitted, prepared: AnnData) -> None:
    view = prepared[20:60]
    fitted("mixed").embed(view)
    assert not view.is_view
    assert view.obsm[keys.FIXED].shape == (40, 4)
    assert keys.FIXED not in prepared.obsm
    whole = fitted("mixed").get_latent_representation(prepared)
    assert_allclose(view.obsm[keys.FIXED], whole[20:60], rtol=1e-5, atol=1e-6)


def test_a_view_can_be_fitted(prepared: AnnData) -> None:
    del prepared.obs[keys.SPLIT]
    view = prepared[prepared.obs["donor"] != "d3"]
    model = unfitted("random").fit(view, **FIT)
    assert model.design.batches == ("d1", "d2")
    assert keys.SPLIT in view.obs
    assert keys.SPLIT not in prepared.obs


def test_train_is_fit(prepared: AnnData, fitted) -> None:
    model = unfitted("fixed").train(prepared, **FIT)
    assert not differing(weights(model.network), weights(fitted("fixed").network))


def test_settings_are_checked() -> None:
    settings = FixedEffects.preset("default")
    for changes, words in (
        ({"n_latent": 0}, "n_latent=0 must be a whole number, 1 or more"),
        ({"n_clusters": 0}, "n_clusters=0"),
        ({"n_components": 0}, "n_components=0"),
        ({"hidden": ()}, "at least one whole number"),
        ({"patience": -1}, "patience=-1"),
        ({"batch_size": 2}, "batch_size=2 must be"),
        ({"latent": 3}, "settings are .*n_latent"),
    ):
        with pytest.raises(ScmedleyError, match=words):
            settings.replace(**changes)
    with pytest.raises(ScmedleyError, match=r"no preset 'best'.*default"):
        FixedEffects("donor", settings="best")
    with pytest.raises(
        ScmedleyError, match="RandomEffects takes RandomEffectsSettings, not FixedEffectsSettings"
    ):
        RandomEffects("donor", settings=settings)


def test_published_settings() -> None:
    for cls, weight in ((Autoencoder, 1), (FixedEffects, 1000), (RandomEffects, 110)):
        s = cls.preset("paper")
        assert (s.hidden, s.n_latent, s.mse_weight) == ((512, 132), 50, weight)
        assert (s.learning_rate, s.decay, s.batch_norm_momentum) == (1e-4, False, 0.01)
        assert s.sizes(10**5) == (512, 500, 30)
        assert s.settling_steps == 1000
        assert s.scale == "min-max"
    assert RandomEffects.preset("paper").encode_as_target


def test_sizes_follow_the_number_of_cells() -> None:
    settings = Autoencoder.preset("default")
    assert settings.sizes(1280) == (128, 200, 40)
    assert settings.sizes(100) == (128, 300, 60)
    assert settings.sizes(10**6) == (256, 15, 5)
    assert settings.replace(patience=2).sizes(100).patience == 2


def test_old_names_of_settings_are_taken_with_a_warning() -> None:
    default, paper = (RandomEffects.preset(name) for name in ("default", "paper"))
    with pytest.warns(ScmedleyWarning, match="hide_batch is now called masked_share"):
        assert default.replace(hide_batch=0.2) == default.replace(masked_share=0.2)
    with pytest.warns(ScmedleyWarning, match="kl_weight is now called kl_per_cell_weight"):
        assert RandomEffectsSettings(kl_weight=None) == default
    with pytest.warns(ScmedleyWarning, match="kl_weight"):
        assert paper.replace(kl_weight=2.0) == paper.replace(kl_per_table_weight=2.0)
    with (
        pytest.warns(ScmedleyWarning),
        pytest.raises(ScmedleyError, match="kl_weight='low' must be a number"),
    ):
        default.replace(kl_weight="low")
    for name in ("hide_batch", "kl_weight"):
        with pytest.raises(AttributeError, match=f"no attribute '{name}'"):
            getattr(default, name)


def test_a_model_of_an_earlier_version_loads(fitted, tmp_path: Path) -> None:
    """With the old names of its settings, and a history without weights."""
    model = fitted("random", "paper")
    model.save(tmp_path)
    about = json.loads((tmp_path / "model.json").read_text())
    settings = about["settings"]
    del settings["kl_per_cell_weight"], about["history"]["weight"]
    settings |= {"kl_weight": settings.pop("kl_per_table_weight"), "hide_batch": settings.pop("masked_share")}
    (tmp_path / "model.json").write_text(json.dumps(about))
    assert load(tmp_path).settings == model.settings


def test_progress_bar_is_asked_for(prepared: AnnData, capsys: pytest.CaptureFixture[str]) -> None:
    unfitted("autoencoder", max_epochs=1).fit(prepared, **FIT)
    assert capsys.readouterr().err == ""
    unfitted("autoencoder", max_epochs=1).fit(prepared, **{**FIT, "progress": True})
    assert "Autoencoder" in capsys.readouterr().err


def test_a_model_says_what_it_is(fitted) -> None:
    assert repr(MixedEffects("donor", "cell_type")) == (
        "MixedEffects(batch_key='donor', label_key='cell_type'): not fitted"
    )
    assert repr(unfitted("random")) == "RandomEffects(batch_key='donor'): not fitted"
    n_genes = len(fitted("fixed").genes)
    for name in ("mixed", "fixed"):
        model = fitted(name)
        assert (
            repr(model) == f"{type(model).__name__}(batch_key='donor'): fitted to 3 batches, {n_genes} genes"
        )
