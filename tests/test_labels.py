"""Label heads (AEC, FEC): losses by hand, whose labels are learnt from, prediction, and the same bits."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from numpy.testing import assert_allclose, assert_array_equal

from scmedley import keys, load
from scmedley.data.design import Labels
from scmedley.data.resident import Minibatch, Resident
from scmedley.errors import ScmedleyError
from scmedley.models import Autoencoder, FixedEffects, MixedEffects, RandomEffects
from scmedley.models.adversarial import AdversarialNetwork
from scmedley.models.autoencoder import AutoencoderNetwork
from scmedley.models.fitting import label_codes
from scmedley.models.fixed_effects import FixedEffectsNetwork
from scmedley.nn.likelihoods import cross_entropy
from scmedley.train import loop
from test_models import B, G, N, ce, encoded, kls, mlp, moves, nearly, numbers, tied
from tiny import FIT, MODELS, differing, small, weights

K = 4  # labels
LABELS = np.array([0, 3, 1, -1, 3, 2, -1])
HEADS = ("autoencoder", "fixed")


def labelled(name: str, preset: str = "default", **changes) -> Autoencoder | FixedEffects:
    """A model with small settings that learns the cell types."""
    return MODELS[name]("donor", "cell_type", small(name, preset, **changes))


@pytest.fixture
def cells() -> tuple[Minibatch, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x, b = rng.random((N, G)).astype(np.float32), np.array([0, 1, 2, 0, 2, 2, 1])
    return (
        Minibatch(torch.as_tensor(x), torch.as_tensor(b), torch.as_tensor(LABELS)),
        x.astype(np.float64),
        b,
    )


@pytest.fixture(scope="module")
def learnt(_prepared: AnnData) -> dict[str, Autoencoder | FixedEffects]:
    """AEC and FEC, fitted once: look, do not change."""
    return {name: labelled(name).fit(_prepared.copy(), **FIT) for name in HEADS}


# --- losses and sizes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_autoencoder_with_labels_by_hand(preset: str, cells) -> None:
    """L_AEC = lambda_MSE * MSE + lambda_y * CE(y), the latter over the five cells that have a label."""
    minibatch, x, _ = cells
    settings = small("autoencoder", preset, hidden=(6, 5), n_latent=3, mse_weight=12.0, label_weight=0.8)
    network = AutoencoderNetwork(G, B, settings, K)
    w = numbers(network)
    z = encoded(w, x)[-1]
    has = LABELS >= 0
    label = ce(mlp(w, "label_head", z, 2)[has], LABELS[has])
    mse = ((x - tied(w, z)) ** 2).mean()
    assert w["label_head.linears.0.weight"].shape == ((2, 3) if preset == "paper" else (64, 3))
    ((player, loss, terms),) = moves(network, minibatch)
    assert player == "autoencoder"
    assert terms == {"reconstruction": nearly(mse), "label": nearly(label)}
    assert loss == nearly(12 * mse + 0.8 * label)


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_fixed_effects_with_labels_by_hand(preset: str, cells) -> None:
    """L_FEC = L_FE + lambda_y * CE(y)."""
    minibatch, _, _ = cells
    settings = small("fixed", preset, hidden=(6, 5), n_latent=3, label_weight=0.8)
    network_type = FixedEffects.networks[type(settings)]
    network = network_type(G, B, settings, K)
    w = numbers(network)
    has = LABELS >= 0
    network.eval()
    encode = network.encode if preset == "paper" else lambda x_NG, _: network._encode(x_NG)[0]
    z = encode(minibatch.x_NG, minibatch.b_N).detach().numpy()
    label = ce(mlp(w, "label_head", z, 2)[has], LABELS[has])
    plain = network_type(G, B, settings)
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("label_head")})
    _, without, terms_without = moves(plain, Minibatch(minibatch.x_NG, minibatch.b_N))[-1]
    player, loss, terms = moves(network, minibatch)[-1]
    assert player == "autoencoder"
    assert terms == {**terms_without, "label": nearly(label)}
    assert loss == nearly(without + 0.8 * label)
    assert (len(kls(w)) > 0) == (preset == "default")


def test_no_labelled_cell_in_a_minibatch_is_no_loss() -> None:
    logits = torch.randn(3, K, requires_grad=True)
    nothing = cross_entropy(logits, torch.tensor([-1, -1, -1]))
    nothing.backward()
    assert nothing.item() == 0
    assert_array_equal(logits.grad, np.zeros((3, K)))
    assert cross_entropy(logits, torch.tensor([2, 0, 1])).item() == pytest.approx(
        torch.nn.functional.cross_entropy(logits, torch.tensor([2, 0, 1])).item()
    )


def dense(*sizes: int) -> int:
    """Weights and biases of a chain of dense layers."""
    return sum(a * b + b for a, b in pairwise(sizes))


def test_parameters_of_the_published_networks() -> None:
    """The AML experiment's sizes: 2,916 genes, 19 batches, 21 labels; tied kernels count once."""
    genes, batches, labels = 2916, 19, 21
    encoder = dense(genes, 512, 132, 50) + 2 * (512 + 132)  # BatchNorm's scales and biases
    decoder = 132 + 512 + genes  # biases alone
    head = dense(50, 2, labels)
    adversary = dense(512 + 132 + 50, 512, 132, batches)

    def count(network: torch.nn.Module) -> int:
        return sum(p.numel() for p in network.parameters())

    aec, fec = (MODELS[name].preset("paper", labelled=True) for name in HEADS)
    assert count(AutoencoderNetwork(genes, batches, aec)) == encoder + decoder
    assert count(AutoencoderNetwork(genes, batches, aec, labels)) == encoder + decoder + head
    assert count(AdversarialNetwork(genes, batches, fec, labels)) == encoder + decoder + head + adversary
    assert (head, adversary) == (165, 426_083)


def test_published_weights() -> None:
    aec, fec = (MODELS[name].preset("paper", labelled=True) for name in HEADS)
    assert (aec.mse_weight, aec.label_weight, aec.label_head_hidden) == (100, 0.6, (2,))
    assert (fec.mse_weight, fec.adversary_weight, fec.label_weight) == (2000, 0.5, 3)
    assert FixedEffects("donor", "cell_type", "paper").settings == fec
    assert FixedEffects("donor", settings="paper").settings == FixedEffects.preset("paper")


# --- whose labels are learnt ------------------------------------------------------------------------------


def test_the_head_is_trained_by_the_autoencoders_player(learnt) -> None:
    for name, model in learnt.items():
        players = model.network.stages()[0].players
        played = [id(p) for parameters in players.values() for p in parameters]
        assert len(played) == len(set(played))
        assert set(played) == {id(p) for p in model.network.parameters()}, name
        heads = {id(p) for p in model.network.label_head.parameters()}
        assert len(heads) == 4
        assert heads <= {id(p) for p in players["autoencoder"]}


@pytest.mark.parametrize("name", HEADS)
def test_labels_of_held_out_cells_do_not_reach_training(name: str, learnt, prepared: AnnData) -> None:
    """Neither by value nor by name; those of validation cells change what is validated alone."""
    part = prepared.obs[keys.SPLIT]
    other = prepared.copy()
    other.obs["cell_type"] = other.obs["cell_type"].cat.add_categories(["A new type"])
    other.obs.loc[part == "test", "cell_type"] = "A new type"
    again = labelled(name).fit(other, **FIT)
    assert again.labels == learnt[name].labels
    assert not differing(weights(again.network), weights(learnt[name].network))
    assert again.history.equals(learnt[name].history)
    seen = label_codes(again, other.obs), label_codes(learnt[name], prepared.obs)
    assert seen[0].tolist() == seen[1].tolist()

    other.obs.loc[part == "validation", "cell_type"] = "A new type"
    again, curves = labelled(name).fit(other, **FIT), learnt[name].history
    trained, validated = (m.part == "train" for m in (again.history, curves)), curves.part == "validation"
    one, two = trained
    assert again.history[one].equals(curves[two])
    assert again.history[validated & (curves.term == "label")].value.eq(0).all()


def test_labels_of_training_cells_do(learnt, prepared: AnnData) -> None:
    cells = prepared.obs_names[prepared.obs[keys.SPLIT] == "train"]
    prepared.obs.loc[cells, "cell_type"] = prepared.obs.loc[cells, "cell_type"].to_numpy()[::-1]
    again = labelled("fixed").fit(prepared, **FIT)
    assert "encoder.linears.0.weight" in differing(weights(again.network), weights(learnt["fixed"].network))


def test_cells_without_a_label_train_the_rest(prepared: AnnData) -> None:
    """Their expression counts: the model is another than without those cells; nothing breaks."""
    missing = np.arange(180) % 3 == 0
    prepared.obs.loc[missing, "cell_type"] = np.nan
    model = labelled("autoencoder", max_epochs=40, learning_rate=5e-3).fit(prepared, **FIT)
    assert model.labels.names == ("B", "NK", "T", "mono")
    assert model.history.value.notna().all()
    p = model.predict(prepared)
    assert len(p) == 180
    told = ~missing & (prepared.obs[keys.SPLIT] == "train").to_numpy()
    assert (p.idxmax(axis=1)[told] == prepared.obs["cell_type"][told]).mean() > 0.8
    cells = prepared[told | (prepared.obs[keys.SPLIT] == "validation").to_numpy()].copy()
    of_all, of_fewer = (labelled("autoencoder").fit(adata, **FIT) for adata in (prepared, cells))
    assert of_all.labels == of_fewer.labels
    assert "encoder.linears.0.weight" in differing(weights(of_all.network), weights(of_fewer.network))


def test_label_codes_reach_the_minibatch() -> None:
    y = np.array([2, -1, 0, 1])
    x = np.arange(8, dtype=np.float32).reshape(4, 2)
    taken = Resident(x, np.zeros(4), torch.device("cpu"), y).take(torch.tensor([3, 1]))
    assert taken.y_N.tolist() == [1, -1]
    assert taken.y_N.dtype == torch.int64
    assert Resident(x, np.zeros(4), torch.device("cpu")).take(torch.tensor([3])).y_N is None


def test_labels_are_names_and_codes() -> None:
    obs = pd.DataFrame({"type": ["T", "B", None, " ", "T"]})
    learnt = Labels.of(obs, "type")
    assert learnt == Labels("type", ("B", "T"))
    assert learnt.codes(obs).tolist() == [1, 0, -1, -1, 1]
    assert learnt.codes(pd.DataFrame({"type": ["mono", "B"]})).tolist() == [-1, 0]
    with pytest.raises(ScmedleyError, match=r"no column 'kind'"):
        Labels.of(obs, "kind")
    for few, n in ((["T", "T"], "1 label "), ([None, ""], "0 labels ")):
        with pytest.raises(ScmedleyError, match=f"{n}in obs.*Leave label_key out"):
            Labels.of(pd.DataFrame({"type": few}), "type")


# --- prediction -------------------------------------------------------------------------------------------


def test_predict_gives_probabilities(learnt, prepared: AnnData) -> None:
    for model in learnt.values():
        p = model.predict(prepared)
        assert list(p.columns) == ["B", "NK", "T", "mono"]
        assert p.index.equals(prepared.obs_names)
        assert (p.to_numpy() > 0).all()
        assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
        z = torch.as_tensor(model.get_latent_representation(prepared))
        with torch.no_grad():
            assert_allclose(p, model.network.label_head(z).softmax(1).numpy(), rtol=1e-5)


def test_predict_takes_cells_of_any_batch(learnt, prepared: AnnData) -> None:
    p = learnt["fixed"].predict(prepared)
    prepared.obs["donor"] = "somebody new"
    del prepared.obs["cell_type"]
    assert learnt["fixed"].predict(prepared).equals(p)


def test_without_a_head_there_is_no_prediction(fitted, prepared: AnnData) -> None:
    for name in ("fixed", "autoencoder", "mixed"):
        with pytest.raises(ScmedleyError, match="made without label_key, so it cannot predict"):
            fitted(name).predict(prepared)
    with pytest.raises(ScmedleyError, match="RandomEffects learns no labels, so it cannot predict"):
        fitted("random").predict(prepared)
    with pytest.raises(ScmedleyError, match="not fitted"):
        labelled("fixed").predict(prepared)


def test_who_takes_labels(prepared: AnnData) -> None:
    with pytest.raises(ScmedleyError, match=r"RandomEffects learns no labels.*FixedEffects"):
        RandomEffects("donor", "cell_type")
    with pytest.raises(ScmedleyError, match=r"embedding 'X_mine'.*label_key='cell_type'"):
        MixedEffects("donor", "cell_type", fixed="X_mine")
    with pytest.raises(ScmedleyError, match="obs has no column 'kind'"):
        FixedEffects("donor", "kind", small("fixed")).fit(prepared, **FIT)


def test_mixed_effects_learn_labels_in_the_fixed_part(prepared: AnnData, fitted, tmp_path: Path) -> None:
    settings = {"fixed_settings": small("fixed"), "random_settings": small("random")}
    mixed = MixedEffects("donor", "cell_type", **settings).fit(prepared, **FIT)
    assert not differing(weights(mixed.random.network), weights(fitted("random").network))
    assert "label" in set(mixed.history[mixed.history.network == "fixed"].term)
    mixed.save(tmp_path / "m")
    assert load(tmp_path / "m").predict(prepared).equals(mixed.predict(prepared))


# --- the same bits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HEADS)
def test_labels_come_back_from_disk(name: str, learnt, prepared: AnnData, tmp_path: Path) -> None:
    learnt[name].save(tmp_path / "m")
    loaded = load(tmp_path / "m")
    assert loaded.labels == learnt[name].labels
    assert loaded.label_key == "cell_type"
    assert loaded.predict(prepared).equals(learnt[name].predict(prepared))


def test_bfloat16_is_close_to_float32(learnt, prepared: AnnData) -> None:
    rough = labelled("fixed").fit(prepared, **{**FIT, "precision": "bfloat16"})
    exact = learnt["fixed"].history
    is_label = exact.term == "label"
    assert not rough.history.equals(exact)
    assert rough.history.value[is_label].tolist() == pytest.approx(exact.value[is_label].tolist(), rel=0.05)


def test_a_stopped_fit_goes_on_to_the_same_bits(
    learnt, prepared: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    stop_after(2, monkeypatch)
    path = tmp_path / "c.safetensors"
    with pytest.raises(SystemExit):
        labelled("fixed").fit(prepared, **FIT, checkpoint=path)
    monkeypatch.undo()
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    swapped = prepared.copy()
    swapped.obs["cell_type"] = swapped.obs["cell_type"].to_numpy()[::-1]
    with pytest.raises(ScmedleyError, match="of another fit"):
        labelled("fixed").fit(swapped, **FIT, checkpoint=path)
    resumed = labelled("fixed").fit(prepared, **FIT, checkpoint=path)
    assert not differing(weights(resumed.network), weights(learnt["fixed"].network))
    assert resumed.history.equals(learnt["fixed"].history)


def stop_after(epochs: int, monkeypatch: pytest.MonkeyPatch, cls: type = FixedEffectsNetwork) -> None:
    """End the process, as far as the fit can tell, in a later epoch."""
    done: list[int] = []
    after_epoch = cls.after_epoch

    def stopping(network: torch.nn.Module, *where: object) -> None:
        after_epoch(network, *where)
        done.append(1)
        if len(done) > epochs:
            raise SystemExit

    monkeypatch.setattr(cls, "after_epoch", stopping)
