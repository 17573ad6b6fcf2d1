"""The weights of a network's losses beside the reconstruction: given, or found without tuning.

Automatic weights keep the gradient of each term at a share of the gradient of the reconstruction:

    w_t = share_t * |dR / dh| / |dL_t / dh|,    R = lambda_MSE * MSE

h is the last tensor that all terms go through: the latent, or the encoder's first activations where the
adversary sees all of them. The norms are over a minibatch; the logarithm of their ratio is averaged over
minibatches, at first evenly and then exponentially. The gradient's norm is the measure of balance as in GradNorm
(Chen et al. 2018) and in the adversarial weight of VQGAN (Esser et al. 2021).

A share of 1 gives the adversarial term a gradient as large as that of the reconstruction. The heads for label and
batch get less: their gradient falls as they learn the training cells, and at 1 the weight that makes up for it
grows without bound.

Shapes: N cells of the call at hand, T terms.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

Weights = Literal["given", "auto"]

SHARES = {"adversarial": 1.0, "label": 0.5, "batch": 0.3}  # of the gradient of the reconstruction
EVERY = 10  # minibatches from one measurement to the next; the first of each epoch is measured
RATE = 0.1  # of the exponential average: it remembers about 10 measurements


class Balance(nn.Module):
    """The weights w_t of R + sum of w_t L_t. Automatic weights are buffers, so that a checkpoint holds them.

    Parameters
    ----------
    given
        Weight of each term; with ``"auto"`` only the terms' names count.
    weights
        ``"given"`` or ``"auto"``.
    """

    log_ratio_T: Tensor
    n_seen_T: Tensor

    def __init__(self, given: Mapping[str, float], weights: Weights):
        super().__init__()
        self.given = dict(given)
        self.auto = weights == "auto" and bool(given)
        self.minibatch = 0  # of the epoch
        if self.auto:
            self.register_buffer("log_ratio_T", torch.zeros(len(given)))
            self.register_buffer("n_seen_T", torch.zeros(len(given)))

    def forward(
        self, h: Tensor, reconstruction: Tensor, losses: Mapping[str, Tensor]
    ) -> Mapping[str, float | Tensor]:
        """Return the weight of each term.

        Parameters
        ----------
        h
            Where gradients are compared; all terms depend on it.
        reconstruction
            R, weighted.
        losses
            The other losses by name, unweighted.
        """
        if not self.auto:
            return self.given
        if self.training:
            if self.minibatch % EVERY == 0:
                self._measure(h, reconstruction, losses)
            self.minibatch += 1
        ratios = self.log_ratio_T.exp().unbind()
        return {t: SHARES[t] * ratio for t, ratio in zip(self.given, ratios, strict=True)}

    def after_epoch(self) -> None:
        """Count the minibatches of the next epoch from 0."""
        self.minibatch = 0

    def _measure(self, h: Tensor, reconstruction: Tensor, losses: Mapping[str, Tensor]) -> None:
        """Average the ratios of gradients; a term without one (no cell has a label) keeps its weight."""
        of_reconstruction = _gradient_norm(reconstruction, h)
        of_terms_T = torch.stack([_gradient_norm(losses[t], h) for t in self.given])
        seen_T = (of_terms_T > 0) & (of_reconstruction > 0)
        self.n_seen_T += seen_T
        rate_T = (1 / self.n_seen_T.clamp_min(1)).clamp_min(RATE) * seen_T
        found_T = torch.where(seen_T, of_reconstruction / of_terms_T, 1.0).log()
        self.log_ratio_T.lerp_(found_T, rate_T)


def _gradient_norm(loss: Tensor, h: Tensor) -> Tensor:
    """Return |d loss / d h|, by a backward pass through what lies above ``h`` that leaves weights out."""
    (slope,) = torch.autograd.grad(loss, h, retain_graph=True)
    norm: Tensor = torch.linalg.vector_norm(slope.float())
    return norm
