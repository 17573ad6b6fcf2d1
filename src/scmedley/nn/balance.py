"""The weighted sum of a network's losses, with weights that are given or that need no tuning.

Automatic weights keep each term's pull on the encoder at a share of the reconstruction's pull:

    w_t = share_t * |dR / dh| / |dL_t / dh|,    R = lambda_MSE * MSE

h is the last tensor that all terms go through: the latent, or the encoder's first activations where the
adversary sees all of them. The norms are over a minibatch; the logarithm of their ratio is averaged over
minibatches, at first evenly and then exponentially. The gradient's norm is the measure of balance as in GradNorm
(Chen et al. 2018) and in the adversarial weight of VQGAN (Esser et al. 2021).

A share of 1 for the adversary lets it pull as hard as the reconstruction does. The heads for label and batch get
less: their gradient falls as they learn the training cells, and at 1 the weight that makes up for it runs away.

Shapes: N cells of the call at hand, T terms.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

Weights = Literal["fixed", "auto"]

SHARES = {"batch left": 1.0, "label": 0.5, "batch": 0.3}  # of the reconstruction's pull
EVERY = 10  # minibatches from one measurement to the next; the first of each epoch is measured
RATE = 0.1  # of the exponential average: it remembers about 10 measurements
ROW = "weight: "  # how a weight is called in the history: ROW and the term's name


class Balance(nn.Module):
    """R + sum of w_t L_t. Automatic weights are buffers, so that a checkpoint holds them.

    Parameters
    ----------
    given
        Weight of each term; with ``"auto"`` only the terms' names count.
    weights
        ``"fixed"`` or ``"auto"``.
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

    def forward(self, h: Tensor, reconstruction: Tensor, terms: dict[str, Tensor]) -> Tensor:
        """Give the sum; automatic weights are put into ``terms``, for the history.

        Parameters
        ----------
        h
            Where pulls are compared; all terms depend on it.
        reconstruction
            R, weighted.
        terms
            The losses by name, unweighted. Only those with a weight are added.
        """
        total, weights = reconstruction, dict[str, float | Tensor](self.given)
        if self.auto:
            if self.training:
                if self.minibatch % EVERY == 0:
                    self._measure(h, reconstruction, terms)
                self.minibatch += 1
            ratios = self.log_ratio_T.exp().unbind()
            learnt = {t: SHARES[t] * ratio for t, ratio in zip(self.given, ratios, strict=True)}
            terms |= {ROW + t: w for t, w in learnt.items()}
            weights |= learnt
        for term, weight in weights.items():
            total = total + weight * terms[term]
        return total

    def after_epoch(self) -> None:
        """Count the minibatches of the next epoch from 0."""
        self.minibatch = 0

    def _measure(self, h: Tensor, reconstruction: Tensor, terms: dict[str, Tensor]) -> None:
        """Average the ratios of gradients; a term without one (no cell has a label) keeps its weight."""
        of_reconstruction = _pull(reconstruction, h)
        of_terms_T = torch.stack([_pull(terms[t], h) for t in self.given])
        seen_T = (of_terms_T > 0) & (of_reconstruction > 0)
        self.n_seen_T += seen_T
        rate_T = (1 / self.n_seen_T.clamp_min(1)).clamp_min(RATE) * seen_T
        found_T = torch.where(seen_T, of_reconstruction / of_terms_T, 1.0).log()
        self.log_ratio_T.lerp_(found_T, rate_T)


def _pull(loss: Tensor, h: Tensor) -> Tensor:
    """Give |d loss / d h|, by a pass through what lies above ``h`` that leaves weights out."""
    (slope,) = torch.autograd.grad(loss, h, retain_graph=True)
    norm: Tensor = torch.linalg.vector_norm(slope.float())
    return norm
