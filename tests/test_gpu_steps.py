"""A training step never waits for a GPU: each network trains on the device "meta", which holds shapes without values.

There, whatever needs a value on the CPU raises: ``.item()``, ``if tensor``, ``nonzero``, boolean indices, ``.cpu()``,
``.numpy()``. :class:`NoCopies` adds copies from the CPU.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scmedley.data.resident import Minibatch
from scmedley.data.scale import Scale
from scmedley.models import VAE, Autoencoder, DeepBID, FixedEffects, RandomEffects
from scmedley.models.adversarial import AdversarialNetwork
from scmedley.models.autoencoder import AutoencoderNetwork
from scmedley.models.counterfactual import Encoded
from scmedley.models.deepbid_network import DeepBIDNetwork
from scmedley.models.deepbid_published import PublishedDeepBIDNetwork
from scmedley.models.fixed_effects import FixedEffectsNetwork
from scmedley.models.random_effects import RandomEffectsNetwork
from scmedley.models.vae_network import VAENetwork
from scmedley.nn import likelihoods
from scmedley.pp.prepared import read_prepared
from scmedley.pp.stored import read_store
from scmedley.train import loop
from scmedley.train.trainable import Progress
from stores import write_store

N, G, B, K, P = 12, 20, 3, 4, 5
META = torch.device("meta")
SIZES = {"hidden": (16, 8), "n_latent": P}


def settings(kind: Any, preset: str = "default", **changes: Any) -> Any:
    return kind.preset(preset).replace(**{**SIZES, **changes})


def vae(likelihood: str, **changes: Any) -> VAENetwork:
    return VAENetwork(G, B, settings(VAE, likelihood=likelihood, dropout=0.1, free_bits=0.1, **changes))


NETWORKS: dict[str, Callable[[], Any]] = {
    "autoencoder": lambda: AutoencoderNetwork(G, B, settings(Autoencoder), K),
    "fixed": lambda: FixedEffectsNetwork(G, B, settings(FixedEffects, n_components=8), K),
    "adversarial": lambda: AdversarialNetwork(
        G, B, settings(FixedEffects, "paper", adversary_hidden=(8, 8), weights="auto"), K
    ),
    "random": lambda: RandomEffectsNetwork(G, B, settings(RandomEffects)),
    "random paper": lambda: RandomEffectsNetwork(G, B, settings(RandomEffects, "paper")),
    "vae poisson": lambda: vae("poisson"),
    "vae nb": lambda: vae("negative binomial", dispersion="gene x batch"),
    "vae zinb": lambda: vae("zero-inflated negative binomial"),
    "vae gaussian": lambda: vae("gaussian"),
    "deepbid": lambda: DeepBIDNetwork(G, B, settings(DeepBID)),
    "deepbid paper": lambda: PublishedDeepBIDNetwork(
        G, B, DeepBID.preset("paper").replace(hidden=(16,), n_latent=P, n_clusters=K)
    ),
}


class NoCopies(TorchDispatchMode):
    """Raise if an operation has tensors with more than one value on the CPU: copying them makes a GPU wait."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = op(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, found)):
            if isinstance(tensor, Tensor) and tensor.device.type == "cpu" and tensor.ndim:
                raise AssertionError(f"{op} has a tensor on the CPU")
        return found


def on_meta(name: str) -> tuple[Any, Minibatch]:
    """Build a network on the device, and a minibatch for it."""
    network = NETWORKS[name]().to(META)
    n_genes = 8 if name == "fixed" else G  # it is given components
    codes_N = torch.zeros(N, dtype=torch.int64, device=META)
    x_NG, counts_NG = torch.zeros(N, n_genes, device=META), torch.zeros(N, G, device=META)
    size_N = torch.ones(N, device=META)
    if name == "deepbid paper":
        network.membership_NK = torch.zeros(N, K, device=META)
    return network, Minibatch(x_NG, codes_N, codes_N, codes_N, counts_NG, size_N)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_training_step_never_waits_for_the_gpu(name: str) -> None:
    network, cells = on_meta(name)
    plan = loop.Plan(batch_size=N, max_epochs=2, patience=1)
    for stage in network.stages():
        steppers = loop._steppers(stage, plan, 2 * N)
        means = loop._Means(list(stage.players)[-1])
        for training in (True, True, False):
            network.train(training)
            with NoCopies(), torch.set_grad_enabled(training):
                for player, terms in loop._losses(network, cells, Progress(stage.name, 0.5), plan):
                    loss = loop.total(terms)
                    if training:
                        steppers[player].step(loss)
                    means.add(player, terms, loss, N)
                    assert loss.shape == ()
                    assert all(term.value.shape == () for term in terms.values())
        assert set(steppers) == set(stage.players)
        assert loop.TOTAL in means._sums


@pytest.mark.parametrize("name", NETWORKS)
def test_encoding_and_decoding_never_wait_for_the_gpu(name: str) -> None:
    network, cells = on_meta(name)
    network.eval()
    x_NG = torch.zeros(N, G, device=META)
    with NoCopies(), torch.no_grad():
        z_NP = network.encode(x_NG, cells.b_N)
        assert z_NP.shape == (N, P)
        assert network.decode(z_NP, cells.b_N).shape == (N, G)
        if not name.startswith(("autoencoder", "adversarial", "deepbid paper")):
            encoded = Encoded(
                SimpleNamespace(network=network, encodes_as_target=False), Minibatch(x_NG, cells.b_N)
            )
            assert encoded.means(torch.zeros(2, dtype=torch.int64, device=META)).shape == (2, G)
            assert encoded.decoded(cells.b_N).shape == (N, G)


@pytest.mark.parametrize("source", ["memory", "store"])
@pytest.mark.parametrize("reads", ["log1p", "counts"])
def test_taking_a_minibatch_never_waits_for_the_gpu(
    source: str, reads: Any, prepared: AnnData, tmp_path: Path
) -> None:
    if source == "store":
        write_store(prepared, tmp_path / "store")
        reading = read_store(tmp_path / "store", reads=reads)
    else:
        reading = read_prepared(prepared, "donor", None, 0, reads)
    scale = Scale.fit(reading.log1p_NG, "standard")
    codes_N = np.zeros(reading.n_cells, np.int64)
    cells = reading.resident(codes_N, scale, META).minibatches(
        torch.arange(reading.n_cells), 20, shuffle=True
    )
    next(cells)  # at the beginning of an epoch the order is copied to the device
    with NoCopies():
        minibatch = next(cells)
    assert minibatch.x_NG.shape == (20, scale.span_G.shape[0])
    assert (minibatch.counts_NG is not None) == (reads == "counts")


def test_what_makes_a_gpu_wait_is_found() -> None:
    x_N = torch.zeros(3, device=META)
    for wait in (
        lambda: x_N.sum().item(),
        lambda: bool(x_N.any()),
        lambda: x_N[x_N > 0],
        lambda: x_N.tolist(),
    ):
        with pytest.raises((RuntimeError, NotImplementedError)):
            wait()
    with NoCopies(), pytest.raises(AssertionError, match="on the CPU"):
        torch.zeros(3)


@pytest.mark.parametrize("kind", ["poisson", "nb", "nb per cell", "zinb"])
def test_counts_have_the_same_likelihood_where_non_zeros_are_not_searched(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    x_NG = torch.as_tensor(rng.poisson(0.7, (N, G)).astype(np.float32))
    raw_NG = torch.as_tensor(rng.normal(size=(N, G)).astype(np.float32))
    raw_theta = torch.as_tensor(rng.normal(size=G if kind == "nb" else (N, G)).astype(np.float32))

    def log_p() -> list[Tensor]:
        mean, theta = raw_NG.clone().requires_grad_(), raw_theta.clone().requires_grad_()
        if kind == "poisson":
            found_N = likelihoods.poisson(x_NG, mean.exp()) + 0 * theta.sum()
        elif kind == "zinb":
            found_N = likelihoods.zero_inflated_negative_binomial(x_NG, mean.exp(), theta.exp(), mean)
        else:
            found_N = likelihoods.negative_binomial(x_NG, mean.exp(), theta.exp())
        return [found_N.detach(), *torch.autograd.grad(found_N.sum(), [mean, theta])]

    usual = log_p()
    monkeypatch.setattr(likelihoods, "FOUND_ON", ())
    for one, other in zip(usual, log_p(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
