"""What the class of a model and its network must have (docs/adding-a-model.md), and the errors if a part is missing.

Shapes: N cells, G genes, P latent dimensions, H hidden units.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from scmedley.data.resident import Minibatch
from scmedley.errors import ScmedleyError
from scmedley.models.adapt import levels_of
from scmedley.nn.bayesian import Levels, tables, update_priors
from scmedley.train.trainable import Progress, Term, Trainable, TrainingCells

if TYPE_CHECKING:
    from scmedley.models.base import Model

GUIDE = "docs/adding-a-model.md lists what a model needs"
OF_NETWORK = ("stages", "losses", "encode", "decode")
WITH_EFFECTS = ("decode_hidden", "decode_output", "kl", "drawn_reconstruction")  # methods, with batch effects
SET_BY_INIT = ("levels", "n_batches", "n_cells")  # attributes, with batch effects


class Network(Trainable, Protocol):
    """A network of a model: an ``nn.Module`` that the loop trains, with an encoder and a decoder.

    It is built as ``Network(n_genes, n_batches, settings)``; with a label head also ``n_labels=...``, and with batch
    effects and a design of several factors also ``levels=...``.
    """

    @abstractmethod
    def encode(self, x_NG: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        """Return z_NP. ``draw`` uses one posterior draw of batch effects, if the encoder has any."""

    @abstractmethod
    def decode(self, z_NP: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        """Return xhat_NG, scaled like the input, with the effects of batches ``b_N`` (-1: none)."""


class EffectsNetwork(Network, Protocol):
    """A network with batch effects in its decoder, which counterfactuals, their intervals and ``adapt`` need.

    The effects are in :class:`~scmedley.nn.bayesian.ScaleAndBias` and :class:`~scmedley.nn.bayesian.Bias` modules.

    Attributes
    ----------
    levels
        Which rows of the effect tables a batch has.
    n_batches
        Number of batches; ``adapt`` changes it.
    n_cells
        Buffer with the number of training cells, which :meth:`begin` sets.

    Notes
    -----
    A network whose layers are exported, ``decoder_layers()`` (:mod:`scmedley.models.export`), also has its
    counterfactuals in the report's page.
    """

    levels: Levels
    n_batches: int
    n_cells: Tensor

    @abstractmethod
    def drawn_reconstruction(self, cells: Minibatch) -> Term:
        """Return the reconstruction error with drawn effects and its weight, as in ``losses``; for ``adapt``."""

    def begin(self, known: TrainingCells, progress: Progress) -> None:
        """Set the number of training cells. A network that overrides it does this too."""
        self.n_cells.fill_(len(known.rows))

    def after_epoch(self, known: TrainingCells, progress: Progress) -> None:
        """Update the priors of the effects."""
        assert isinstance(self, nn.Module)
        update_priors(self)

    def decode_hidden(self, z_NP: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        """Return what is averaged over cells before :meth:`decode_output`. Default: the output itself.

        A decoder whose last layer is linear returns the activations before it: they are fewer than the genes.
        """
        return self.decode(z_NP, b_N, draw)

    def decode_output(self, h_NH: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        """Return xhat_NG from :meth:`decode_hidden`. Default: its argument."""
        return h_NH

    def kl(self, error: Tensor, n_genes: int, n_cells: float | None = None) -> Term:
        """Return KL(q(U) || p(U)) of all effect tables in nats, over the training cells (or ``n_cells``).

        It has weight 1, which suits a loss in nats per cell. ``error`` and ``n_genes`` are for networks whose weight
        depends on them.
        """
        assert isinstance(self, nn.Module)
        kl_T = torch.stack([table.kl() for table in tables(self)])
        return Term(kl_T.sum() / (self.n_cells if n_cells is None else n_cells), 1.0)


def check_class(model: Model[Any]) -> None:
    """Raise if the class of a model lacks what all models have."""
    name = type(model).__name__
    for part, example in (("key", '"X_mine"'), ("networks", "{MySettings: MyNetwork}")):
        if not hasattr(model, part):
            raise ScmedleyError(f"The class {name} has no {part!r}. Add {part} = {example} to it. {GUIDE}.")


def network_type(model: Model[Any]) -> type:
    """Return the class of the network that belongs to the settings of a model.

    Raises
    ------
    ScmedleyError
        The settings are those of another model.
    """
    for kind, network in model.networks.items():
        if isinstance(model.settings, kind):
            return network
    taken = " or ".join(kind.__name__ for kind in model.networks)
    raise ScmedleyError(f"{type(model).__name__} takes {taken}, not {type(model.settings).__name__}.")


def built(model: Model[Any]) -> nn.Module:
    """Return the untrained network of a model; raise before a fit if it lacks what the model needs."""
    kind = network_type(model)
    _check_network_type(model, kind)
    trained = model.design.trained()
    sizes: dict[str, Any] = {"n_labels": len(model.labels.names)} if model.labels else {}
    if trained.terms is not None and model.has_effects:
        sizes["levels"] = levels_of(trained)
    network: nn.Module = kind(len(model.genes), trained.n_batches, model.settings, **sizes)
    if model.has_effects:
        _check_effects(model, network)
    return network


def _check_network_type(model: Model[Any], network: type) -> None:
    """Raise if the class of a network lacks a method, or an argument that this model gives it."""
    name = type(model).__name__
    if not issubclass(network, nn.Module):
        raise ScmedleyError(
            f"{network.__name__}, the network of {name}, is no torch module. Derive it from nn.Module. {GUIDE}."
        )
    wanted = OF_NETWORK + (WITH_EFFECTS if model.has_effects else ())
    abstract: frozenset[str] = getattr(network, "__abstractmethods__", frozenset())
    missing = [part for part in wanted if part in abstract or not hasattr(network, part)]
    if missing:
        why = ", whose decoder has batch effects (has_effects)" if set(missing) <= set(WITH_EFFECTS) else ""
        raise ScmedleyError(
            f"{network.__name__}, the network of {name}{why}, has no {', '.join(missing)}. Add it. {GUIDE}."
        )
    taken = inspect.signature(network).parameters
    if model.label_key is not None and "n_labels" not in taken:
        raise ScmedleyError(
            f"{network.__name__} takes no n_labels, so {name} cannot learn labels. Set has_label_head = False in "
            f"{name}, or give the network a label head. {GUIDE}."
        )
    if model.has_effects and model.factors.formula and "levels" not in taken:
        raise ScmedleyError(
            f"{network.__name__} takes no levels, so {name} has one factor alone. Give a batch column instead of a "
            f"design, or give the network's effects its levels. {GUIDE}."
        )


def _check_effects(model: Model[Any], network: nn.Module) -> None:
    """Raise if a network with batch effects lacks an attribute or has no effects."""
    if missing := [part for part in SET_BY_INIT if not hasattr(network, part)]:
        raise ScmedleyError(
            f"{type(network).__name__}, whose decoder has batch effects, has no {', '.join(missing)}. Set it in "
            f"__init__. {GUIDE}."
        )
    if not tables(network):
        raise ScmedleyError(
            f"{type(model).__name__} has batch effects (has_effects), but {type(network).__name__} has no effect "
            f"tables. Make its effects of ScaleAndBias or Bias, or let has_effects be False. {GUIDE}."
        )
