"""Encoder and decoders shared by the fixed-effects family (scMEDAL, section 1 of the preprint's methods).

Shapes: N cells, G genes, Q principal components, I inputs, H hidden units, P latent dimensions.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from scmedley import distributed
from scmedley.device import without_autocast
from scmedley.nn.bayesian import Bias, ScaleAndBias
from scmedley.nn.draws import normal_like
from scmedley.nn.matmul import affine

BATCH_NORM_EPS = 1e-3
FIRST_LOG_VARIANCE = -2.0
MOST_OF_CELLS = 0.8  # most components, as a share of the cells they are learnt from
OVERSAMPLED, POWER_ITERATIONS = 20, 4  # of the randomised SVD (Halko et al. 2011)


class Linear(nn.Linear):
    """``nn.Linear`` that computes with :func:`affine`."""

    def forward(self, x_NI: Tensor) -> Tensor:
        """Return x @ weight.T + bias."""
        return affine(x_NI, self.weight, self.bias)


def linear(n_in: int, n_out: int) -> nn.Linear:
    """Return a dense layer with Glorot-uniform weights and zero biases."""
    layer = Linear(n_in, n_out)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def linear_before_norm(n_in: int, n_out: int) -> nn.Linear:
    """Return a dense layer that BatchNorm follows: its bias has no effect, so it stays zero.

    The gradient of such a bias is zero but for rounding errors, of which Adam makes steps of nearly full length. The
    running means of BatchNorm would lag behind them.
    """
    layer = linear(n_in, n_out)
    layer.bias.requires_grad_(False)
    return layer


def batch_norm(n_units: int, momentum: float) -> nn.BatchNorm1d:
    """Return a BatchNorm layer; ``momentum`` is the weight of the new minibatch (as in PyTorch)."""
    return BatchNorm(n_units, eps=BATCH_NORM_EPS, momentum=momentum)


class BatchNorm(nn.BatchNorm1d):
    """``nn.BatchNorm1d``, whose mean and variance are of the whole minibatch if several processes share it."""

    def forward(self, x_NH: Tensor) -> Tensor:
        """Return the units with mean 0 and variance 1, times a scale, plus a bias."""
        if not (self.training and distributed.is_shared()):
            return super().forward(x_NH)
        with without_autocast(x_NH.device):
            y_NH = self._normalised(x_NH.float()) * self.weight + self.bias
        return y_NH.to(x_NH.dtype)

    def _normalised(self, x_NH: Tensor) -> Tensor:
        """Combine the means and variances of all processes (Chan et al. 1979), and update the running ones."""
        own_mean_H = x_NH.mean(0)
        own = torch.stack([own_mean_H, (x_NH - own_mean_H).square().sum(0)])
        mean_KH, square_KH = distributed.stacked(own).unbind(1)
        n_K1, n_cells = distributed.cells_K(x_NH.device), distributed.n_cells(x_NH)
        mean_H = (n_K1 * mean_KH).sum(0) / n_cells
        variance_H = (square_KH + n_K1 * (mean_KH - mean_H).square()).sum(0) / n_cells
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean_H, self.momentum or 0.0)
            self.running_var.lerp_(variance_H * (n_cells / (n_cells - 1)), self.momentum or 0.0)
        return (x_NH - mean_H) * (variance_H + self.eps).rsqrt()


class Encoder(nn.Module):
    """[Linear, BatchNorm, SELU] for each hidden size, then Linear and SELU to the latent."""

    def __init__(self, n_genes: int, hidden: Sequence[int], n_latent: int, momentum: float):
        super().__init__()
        sizes = [n_genes, *hidden, n_latent]
        hidden_layers = [linear_before_norm(a, b) for a, b in pairwise(sizes[:-1])]
        self.linears = nn.ModuleList([*hidden_layers, linear(*sizes[-2:])])
        self.norms = nn.ModuleList(batch_norm(h, momentum) for h in hidden)

    def forward(self, x_NG: Tensor) -> list[Tensor]:
        """Return all activations after SELU, ``[h_NH, ..., z_NP]``."""
        activations = []
        h = x_NG
        for layer, norm in zip(self.linears, [*self.norms, nn.Identity()], strict=True):
            h = F.selu(norm(layer(h)))
            activations.append(h)
        return activations


class Components(nn.Module):
    """Principal components of the (scaled) genes: a fixed rotation, learnt from training cells."""

    rotation_GQ: Tensor

    def __init__(self, n_genes: int, n_components: int):
        super().__init__()
        self.register_buffer("rotation_GQ", torch.zeros(n_genes, min(n_components, n_genes)))

    @torch.no_grad()
    def fit(self, x_NG: Tensor) -> None:
        """Learn the rotation by a randomised SVD.

        With few cells, fewer components are used and the others stay 0: the last ones have almost no variance in
        these cells, but not in new ones.
        """
        n_kept = min(self.rotation_GQ.shape[1], math.ceil(MOST_OF_CELLS * len(x_NG)))
        n_drawn = min(n_kept + OVERSAMPLED, *x_NG.shape)
        found_GQ = torch.svd_lowrank(x_NG.cpu(), n_drawn, niter=POWER_ITERATIONS)[
            2
        ]  # not all devices have it
        # The sign of a component is arbitrary: make its largest loading positive, on every machine.
        largest_1Q = found_GQ.gather(0, found_GQ.abs().argmax(0, keepdim=True))
        self.rotation_GQ.zero_()
        self.rotation_GQ[:, :n_kept] = (found_GQ * largest_1Q.sign())[:, :n_kept]

    def forward(self, x_NG: Tensor) -> Tensor:
        """Return the components of cells, N x Q."""
        return affine(x_NG, self.rotation_GQ.t(), None)

    def inverse(self, x_NQ: Tensor) -> Tensor:
        """Return the genes of components, N x G."""
        return affine(x_NQ, self.rotation_GQ, None)


class VariationalEncoder(nn.Module):
    """Noise on the input, [Linear, BatchNorm, SELU] for each hidden size, then mean and log variance.

    The posterior starts narrow (log variance -2), so that the decoder learns from the first step.
    """

    def __init__(self, n_inputs: int, hidden: Sequence[int], n_latent: int, momentum: float, noise: float):
        super().__init__()
        sizes = [n_inputs, *hidden, n_latent]
        self.noise = noise
        hidden_layers = [linear_before_norm(a, b) for a, b in pairwise(sizes[:-1])]
        self.linears = nn.ModuleList([*hidden_layers, linear(*sizes[-2:])])  # the last: the mean
        self.norms = nn.ModuleList(batch_norm(h, momentum) for h in hidden)
        self.log_variance = linear(sizes[-2], n_latent)
        nn.init.zeros_(self.log_variance.weight)
        nn.init.constant_(self.log_variance.bias, FIRST_LOG_VARIANCE)

    def forward(self, x_NI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and log variance of q(z|x), N x P, and the last hidden layer, N x H, all float32."""
        h = x_NI + self.noise * normal_like(x_NI) if self.training else x_NI
        for layer, norm in zip(self.linears[:-1], self.norms, strict=True):
            h = F.selu(norm(layer(h)))
        return self.linears[-1](h).float(), self.log_variance(h).float().clamp(-10, 4), h.float()


class TiedDecoder(nn.Module):
    """The transposed weights of the encoder with own biases; SELU between layers, linear output.

    The weights are parameters of the encoder alone, so that an optimiser has each of them once. With
    ``effects`` (one module for each layer) every layer has batch effects.
    """

    def __init__(self, encoder: Encoder | VariationalEncoder, effects: Sequence[ScaleAndBias | Bias] = ()):
        super().__init__()
        sizes = [layer.in_features for layer in reversed(encoder.linears) if isinstance(layer, nn.Linear)]
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(size)) for size in sizes)
        self.effects = nn.ModuleList(effects)

    def forward(
        self, z_NP: Tensor, encoder: Encoder | VariationalEncoder, x_NL: Tensor, draw: bool = False
    ) -> Tensor:
        """Return xhat_NG; ``draw`` uses one posterior draw of the effects instead of their means."""
        return self.output(self.hidden(z_NP, encoder, x_NL, draw), encoder, x_NL, draw)

    def hidden(
        self, z_NP: Tensor, encoder: Encoder | VariationalEncoder, x_NL: Tensor, draw: bool = False
    ) -> Tensor:
        """Return the activations h_NH before the output layer."""
        h = z_NP
        for i in range(len(self.biases) - 1):
            h = F.selu(self._layer(i, h, encoder, x_NL, draw))
        return h

    def output(
        self, h_NH: Tensor, encoder: Encoder | VariationalEncoder, x_NL: Tensor, draw: bool = False
    ) -> Tensor:
        """Return xhat_NG, which is linear in the activations before the output layer."""
        return self._layer(len(self.biases) - 1, h_NH, encoder, x_NL, draw)

    def _layer(
        self, i: int, h: Tensor, encoder: Encoder | VariationalEncoder, x_NL: Tensor, draw: bool
    ) -> Tensor:
        weight = encoder.linears[len(self.biases) - 1 - i].get_parameter("weight")
        h = affine(h, weight.t(), self.biases[i])
        return self.effects[i](h, x_NL, draw) if self.effects else h


class Decoder(nn.Module):
    """[Linear, batch effects, SELU] for each hidden size, then Linear and batch effects; own weights.

    ``effects`` has one module for each layer, or is empty.
    """

    def __init__(self, sizes: Sequence[int], effects: Sequence[ScaleAndBias | Bias] = ()):
        super().__init__()
        self.linears = nn.ModuleList(linear(a, b) for a, b in pairwise(sizes))
        self.effects = nn.ModuleList(effects)

    def hidden(self, z_NP: Tensor, x_NL: Tensor, draw: bool = False) -> Tensor:
        """Return the activations h_NH before the output layer; ``draw`` uses one draw of the effects."""
        h = z_NP
        for i in range(len(self.linears) - 1):
            h = F.selu(self._layer(i, h, x_NL, draw))
        return h

    def output(self, h_NH: Tensor, x_NL: Tensor, draw: bool = False) -> Tensor:
        """Return the output layer, which is linear in ``h_NH``."""
        return self._layer(len(self.linears) - 1, h_NH, x_NL, draw)

    def _layer(self, i: int, h: Tensor, x_NL: Tensor, draw: bool) -> Tensor:
        h = self.linears[i](h)
        return self.effects[i](h, x_NL, draw) if self.effects else h


class Classifier(nn.Module):
    """[Linear, ReLU] for each hidden size, then Linear: logits_NK (softmax is in the loss)."""

    def __init__(self, n_in: int, hidden: Sequence[int], n_classes: int):
        super().__init__()
        sizes = [n_in, *hidden, n_classes]
        self.linears = nn.ModuleList(linear(a, b) for a, b in pairwise(sizes))

    def forward(self, h_NH: Tensor) -> Tensor:
        """Return the logits."""
        for layer in self.linears[:-1]:
            h_NH = F.relu(layer(h_NH))
        logits: Tensor = self.linears[-1](h_NH)
        return logits
