"""The decoder of a fitted model as plain arrays, for the report and for programs without torch.

A network describes its decoder in ``decoder_layers``, which :func:`export` and the figure of batches read.

Shapes: G genes, B batches, I inputs and O outputs of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from scmedley.errors import ScmedleyError
from scmedley.nn.bayesian import Levels, ScaleAndBias
from scmedley.nn.layers import Encoder, TiedDecoder, VariationalEncoder

if TYPE_CHECKING:
    from scmedley.models.base import Model

Array = NDArray[np.float32]


class Effects(NamedTuple):
    """Effects of a layer, all B x O: scales and biases, posterior means and standard deviations.

    With several factors they are those of the levels, until :func:`export` adds them up for each batch.
    """

    gamma: Tensor
    gamma_sd: Tensor
    beta: Tensor
    beta_sd: Tensor

    @classmethod
    def of(cls, module: ScaleAndBias) -> Effects:
        """Return the effects of a layer of a network."""
        tables = (module.gamma, module.beta)
        return cls(*(part for table in tables for part in (table.loc_BH, table.scale_BH())))


class Layer(NamedTuple):
    """One decoder layer: h W + b, then SELU if ``selu_first``, BatchNorm and batch effects if present.

    SELU follows all layers except the last.
    """

    weight_IO: Tensor
    bias_O: Tensor
    effects: Effects | None = None
    norm: nn.BatchNorm1d | None = None
    selu_first: bool = False


@dataclass(frozen=True)
class Block:
    """A layer as arrays: h W + b, SELU if ``pre_selu``, times s plus t, times (1 + gamma_b) plus beta_b.

    SELU follows all blocks except the last. ``w`` is I x O; effects and their posterior standard deviations
    are B x O; s and t are the folded BatchNorm.
    """

    w: Array
    b: Array
    pre_selu: bool
    s: Array
    t: Array
    gamma: Array
    gamma_sd: Array
    beta: Array
    beta_sd: Array


@dataclass(frozen=True)
class Decoder:
    """The network that counterfactuals come from.

    Attributes
    ----------
    genes, shown
        Names of the genes in the model, and as shown in the report.
    blocks
        Layers from the latent to the scaled genes.
    scale
        Centre and span of each gene, 2 x G.
    kind
        ``"fixed"``: the latent is free of the batch; ``"random"``: it holds the batch.
    factor
        Calibration factor of the intervals (:mod:`scmedley.models.interval`); ``None``: not calibrated.
    """

    genes: tuple[str, ...]
    shown: tuple[str, ...]
    blocks: tuple[Block, ...]
    scale: Array
    kind: str
    factor: float | None = None


def export(model: Model[Any]) -> Decoder:
    """Return the decoder of a fitted model, with BatchNorm folded into scale and shift.

    Raises
    ------
    ScmedleyError
        The latent of a counterfactual depends on its target (``encodes_as_target``, the paper preset), the
        decoder has no batch effects, or the network does not export its layers (``decoder_layers``).
    """
    if model.encodes_as_target:
        raise ScmedleyError(
            "In the paper preset cells are encoded again for each target batch, so the report cannot compute "
            "counterfactuals. Use the command scmedley project instead."
        )
    if not model.has_effects:
        raise ScmedleyError("The decoder of this model has no batch effects, so it has no counterfactuals.")
    if not hasattr(model.network, "decoder_layers"):
        raise ScmedleyError(
            f"This page cannot compute counterfactuals of {type(model).__name__}, whose network has no decoder_layers. "
            "The command scmedley project writes them."
        )
    levels: Levels = model.network.levels
    layers = [layer._replace(effects=_of_batches(layer, levels)) for layer in model.network.decoder_layers()]
    return Decoder(
        tuple(model.genes),
        model.gene_names.shown,
        tuple(map(_block, layers)),
        np.stack([model.scale.centre_G, model.scale.span_G]),
        "random" if model.needs_batch else "fixed",
        None if model.calibration is None else model.calibration.factor,
    )


def tied_layers(decoder: TiedDecoder, encoder: Encoder | VariationalEncoder) -> list[Layer]:
    """Return the layers of a tied decoder: transposed encoder weights and own biases."""
    weights = [layer.get_parameter("weight") for layer in reversed(encoder.linears)]
    return [Layer(*parts) for parts in zip(weights, decoder.biases, strict=True)]


def _of_batches(layer: Layer, levels: Levels) -> Effects:
    """Return the effects of each batch, from those of its levels."""
    assert layer.effects is not None  # checked in export
    gamma, gamma_sd, beta, beta_sd = layer.effects
    return Effects(*levels.of_batches(gamma, gamma_sd), *levels.of_batches(beta, beta_sd))


def _block(layer: Layer) -> Block:
    w, b, norm = _numpy(layer.weight_IO), _numpy(layer.bias_O), layer.norm
    s, t = np.ones_like(b), np.zeros_like(b)
    if norm is not None:
        assert norm.running_var is not None
        s = _numpy(norm.weight / (norm.running_var + norm.eps).sqrt())
        t = _numpy(norm.bias) - _numpy(norm.running_mean) * s
    assert layer.effects is not None  # checked in export
    return Block(w, b, layer.selu_first, s, t, *map(_numpy, layer.effects))


def _numpy(tensor: Any) -> Array:
    return np.asarray(tensor.detach().cpu().numpy())
