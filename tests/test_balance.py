"""Automatic weights: gradients by hand, shares that are kept, the best epoch, and the same bits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from anndata import AnnData

from scmedley.data.resident import Minibatch
from scmedley.errors import ScmedleyError
from scmedley.models import Autoencoder, FixedEffects, RandomEffects
from scmedley.models.adversarial import AdversarialNetwork
from scmedley.nn.balance import EVERY, RATE, SHARES, Balance
from scmedley.train import loop
from scmedley.train.loop import Progress, State, _is_best, _Means
from test_labels import stop_after
from tiny import FIT, MODELS, differing, small, unfitted, weights

TERMS = {"autoencoder": {"label"}, "fixed": {"label"}, "random": {"batch"}}  # of both presets


def automatic(name: str, preset: str = "default", **changes) -> Autoencoder | FixedEffects | RandomEffects:
    """A model with small settings, automatic weights and, where it can have one, a label head."""
    settings = small(name, preset, **{"weights": "auto", **changes})
    return MODELS[name]("donor", None if name == "random" else "cell_type", settings)


def losses(h: torch.Tensor, scale: float = 1.0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """R = 3 sum h, with a gradient of norm 3 sqrt(8); "adversarial" of norm 0.5 scale sqrt(8); "label" of 2."""
    return 3 * h.sum(), {"adversarial": -0.5 * scale * h.sum(), "label": 2 * h[0, 0]}


def test_weights_by_hand() -> None:
    balance = Balance({"adversarial": 9.0, "label": 9.0}, "auto").train()
    h = torch.ones(2, 4, requires_grad=True)
    reconstruction, terms = losses(h)
    found = balance(h, reconstruction, terms)
    total = reconstruction + sum(found[term] * terms[term] for term in terms)
    a, y = SHARES["adversarial"] * 6, SHARES["label"] * 3 * np.sqrt(8) / 2
    assert found["adversarial"].item() == pytest.approx(a, rel=1e-5)
    assert found["label"].item() == pytest.approx(y, rel=1e-5)
    assert total.item() == pytest.approx(24 - a * 4 + y * 2, rel=1e-5)
    (slope,) = torch.autograd.grad(total, h)  # weights are constants to the gradient
    assert slope[1, 1].item() == pytest.approx(3 - 0.5 * a, rel=1e-5)


def test_ratios_are_averaged_evenly_at_first_then_exponentially() -> None:
    balance = Balance({"adversarial": 1.0}, "auto").train()
    h = torch.ones(2, 4, requires_grad=True)
    found, expected, log_ratio = [], [], 0.0
    for n, scale in enumerate([1, 4, 2, 8, 1, 1, 5, 1, 3, 1, 7, 7, 7], start=1):
        balance.after_epoch()  # the first minibatch of an epoch is measured
        terms = losses(h, scale)[1]
        weights = balance(h, 3 * h.sum(), terms)
        log_ratio += max(1 / n, RATE) * (np.log(6 / scale) - log_ratio)
        expected.append(SHARES["adversarial"] * np.exp(log_ratio))
        found.append(weights["adversarial"].item())
    assert found == pytest.approx(expected, rel=1e-4)


def test_every_tenth_minibatch_is_measured() -> None:
    balance = Balance({"adversarial": 1.0}, "auto").train()
    h = torch.ones(2, 4, requires_grad=True)
    for _ in range(2 * EVERY + 1):
        balance(h, *losses(h))
    assert balance.n_seen_T.tolist() == [3]
    balance.eval()
    balance.after_epoch()
    with torch.no_grad():
        balance(h, *losses(h))
    assert balance.n_seen_T.tolist() == [3]


def test_a_term_without_a_gradient_keeps_its_weight() -> None:
    balance = Balance({"label": 1.0}, "auto").train()
    h = torch.ones(2, 4, requires_grad=True)
    for zero in (False, True):
        balance.after_epoch()
        reconstruction, terms = losses(h)
        terms["label"] = terms["label"] * (0.0 if zero else 1.0)
        weight = balance(h, reconstruction, terms)["label"]
        assert weight.item() == pytest.approx(SHARES["label"] * 3 * np.sqrt(8) / 2, rel=1e-5)


def test_given_weights_are_without_state() -> None:
    balance = Balance({"adversarial": 0.7, "label": 2.0}, "fixed").train()
    h = torch.ones(2, 4, requires_grad=True)
    reconstruction, terms = losses(h)
    assert balance(h, reconstruction, terms) == {"adversarial": 0.7, "label": 2.0}
    assert not balance.state_dict()
    assert not Balance({}, "auto").state_dict()


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_weights_stand_in_the_history_and_make_the_total(
    model_name: str, preset: str, prepared: AnnData
) -> None:
    model = automatic(model_name, preset, max_epochs=4).fit(prepared, **FIT)
    wide = model.history[model.history.part == "validation"].pivot(index="epoch", columns="term")
    rows, weights = wide["value"], wide["weight"]
    given = model.settings.mse_weight if hasattr(model.settings, "mse_weight") else len(model.genes) / 2
    assert (weights["reconstruction"] == given).all()
    for term in TERMS[model_name] | ({"adversarial"} & set(rows)):
        assert weights[term].nunique() > 1
        assert (weights[term] > 0).all()
    if model_name == "random" and preset == "default":
        by_nat = 2 * model.settings.mse_weight * rows["reconstruction"] / len(model.genes)
        assert weights["kl"].to_numpy() == pytest.approx(by_nat.to_numpy(), rel=1e-5)
    assert (weights["total"] == 1).all()
    summed = (rows * weights).drop(columns="total").sum(axis=1)
    assert rows["total"].to_numpy() == pytest.approx(summed.to_numpy(), rel=1e-5)


def test_the_scale_of_the_reconstruction_does_not_matter(prepared: AnnData) -> None:
    """With every term a share of the reconstruction's pull, lambda_MSE scales the whole loss."""
    curves = []
    for weight in (10.0, 1000.0):
        model = automatic("fixed", "paper", mse_weight=weight).fit(prepared, **FIT)
        rows = model.history[model.history.term == "adversarial"]
        curves.append(rows.weight.to_numpy() / weight)
    assert curves[0] == pytest.approx(curves[1], rel=0.02)


def test_the_best_epoch_is_judged_by_todays_weights() -> None:
    """By the total of its own day, 1 * 2 + 1 * 3 = 5, epoch 1 is better than 4 * 1 + 1 * 3 = 7; today it is 11."""
    today = _Means("only")
    today.values, today.weights = {"a": 1.0, "b": 3.0, "c": 9.0}, {"a": 4.0, "b": 1.0, "c": 5.0}
    today.watched = {"a", "b"}
    assert _is_best(State(), today)
    assert _is_best(State(best_epoch=1, best_values={"a": 2.0, "b": 3.0, "c": 1.0}), today)
    assert not _is_best(State(best_epoch=1, best_values=today.values), today)
    assert not _is_best(State(best_epoch=1, best_values={"a": 0.5, "b": 4.0, "c": 99.0}), today)


@pytest.mark.parametrize("name", ["fixed", "random"])
def test_a_stopped_fit_goes_on_to_the_same_bits(
    name: str, prepared: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = automatic(name, max_epochs=4).fit(prepared, **FIT)
    path = tmp_path / "c.safetensors"
    with monkeypatch.context() as patched:
        patched.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
        stop_after(2, patched, type(whole.network))
        with pytest.raises(SystemExit):
            automatic(name, max_epochs=4).fit(prepared, **FIT, checkpoint=path)
    resumed = automatic(name, max_epochs=4).fit(prepared, **FIT, checkpoint=path)
    assert not differing(weights(resumed.network), weights(whole.network))
    assert resumed.history.equals(whole.history)
    assert any(key.startswith("balance.") for key in weights(resumed.network))


def test_weights_are_given_or_auto(prepared: AnnData) -> None:
    with pytest.raises(ScmedleyError, match=r"weights='best' must be one of \['given', 'auto'\]"):
        FixedEffects.preset("default").replace(weights="best")
    model = unfitted("autoencoder", weights="auto", max_epochs=1).fit(prepared, **FIT)
    assert model.history.query("term == 'reconstruction'").weight.unique() == [model.settings.mse_weight]


def test_all_that_the_adversary_sees_is_weighed() -> None:
    """It sees all activations of the encoder, so gradients are compared at the first of them."""
    network = AdversarialNetwork(10, 3, small("fixed", "paper", weights="auto")).train()
    seen: list[torch.Tensor] = []
    network.balance.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    cells = Minibatch(torch.rand(9, 10), torch.arange(9) % 3)
    list(network.losses(cells, Progress("training", 0.0)))
    assert seen[0].shape == (9, 16)
