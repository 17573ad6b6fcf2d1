"""The weights of a network's losses relative to the reconstruction error: given, or automatic without tuning.

Automatic weights keep the gradient of each term at a share of the gradient of the reconstruction error:

    w_t = share_t * |dR / dh| / |dL_t / dh|,    R = lambda_MSE * MSE

h is the last tensor that all terms depend on: the latent, or the first activations of the encoder if the
adversary sees all activations. The norms are over a minibatch. The logarithm of their ratio is averaged over
minibatches, first with equal weights and then exponentially. The gradient norm is also used in GradNorm (Chen
et al. 2018) and in the adversarial weight of VQGAN (Esser et al. 2021).

With a share of 1 the gradient of the adversarial loss is as large as that of the reconstruction error. The
label head and the batch head have smaller shares. Their gradients fall as they learn the training cells, and
with a share of 1 the weights that compensate would grow without bound.

Shapes: N cells, T terms.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from scmedley import distributed

Weights = Literal["given", "auto"]

SHARES = {"adversarial": 1.0, "label": 0.5, "batch": 0.3}  # of the gradient of the reconstruction error
EVERY = 10  # minibatches between measurements; the first of each epoch is measured
RATE = 0.1  # of the exponential average, which covers about 10 measurements


class Balance(nn.Module):
    """The weights w_t in R + sum of w_t L_t. Automatic weights are buffers, so checkpoints include them.

    Parameters
    ----------
    given
        Weight of each term; with ``"auto"`` only the names are used.
    weights
        ``"given"`` or ``"auto"``.
    """

    log_ratio_T: Tensor
    n_seen_T: Tensor

    def __init__(self, given: Mapping[str, float], weights: Weights):
        super().__init__()
        self.given = dict(given)
        self.auto = weights == "auto" and bool(given)
        self.minibatch = 0  # number within the epoch
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
            Tensor at which gradients are compared; all terms depend on it.
        reconstruction
            R, the weighted reconstruction error.
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
        """Reset the count of minibatches."""
        self.minibatch = 0

    def _measure(self, h: Tensor, reconstruction: Tensor, losses: Mapping[str, Tensor]) -> None:
        """Update the mean log ratios; a term without gradient (no cell has a label) keeps its weight."""
        norm_reconstruction, *norms = _gradient_norms([reconstruction, *(losses[t] for t in self.given)], h)
        norm_T = torch.stack(norms)
        seen_T = (norm_T > 0) & (norm_reconstruction > 0)
        self.n_seen_T += seen_T
        rate_T = (1 / self.n_seen_T.clamp_min(1)).clamp_min(RATE) * seen_T
        found_T = torch.where(seen_T, norm_reconstruction / norm_T, 1.0).log()
        self.log_ratio_T.lerp_(found_T, rate_T)


def _gradient_norms(losses: Sequence[Tensor], h: Tensor) -> list[Tensor]:
    """Return |d loss / d h| of each loss over all cells, without computing gradients of the parameters."""
    norms = [torch.linalg.vector_norm(_slope(loss, h).float()) for loss in losses]
    if not distributed.is_shared():
        return norms
    return list(distributed.total(torch.stack(norms).square()).sqrt().unbind())


def _slope(loss: Tensor, h: Tensor) -> Tensor:
    part = loss * distributed.share() if distributed.is_shared() else loss
    (slope,) = torch.autograd.grad(part, h, retain_graph=True)
    return slope
