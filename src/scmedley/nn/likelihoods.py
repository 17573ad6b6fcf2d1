"""Losses and log-likelihoods, computed in float32 (the log-likelihoods keep float64 if they are given it).

A log-likelihood is in nats per cell, summed over genes. Most counts are zero, and at zero a count distribution
needs no log Gamma: the functions evaluate its short form for all genes, and the long one at the non-zeros only. On
a GPU the long form is evaluated for all genes too: the CPU would have to wait for it, to know how many non-zeros
there are.

Shapes: N cells, G genes, P latent dimensions, K labels, E non-zero counts.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812

from scmedley.device import without_autocast
from scmedley.distributed import mean_of_known

FOUND_ON = ("cpu",)  # devices on which non-zeros are found
LEAST_MEAN = 1e-12  # a softmax can round to 0, whose logarithm is not finite


def mse(x_NG: Tensor, xhat_NG: Tensor) -> Tensor:
    """Return the mean squared error over cells and genes (L_MSE of scMEDAL)."""
    return F.mse_loss(xhat_NG.float(), x_NG.float())


def cross_entropy(logits_NK: Tensor, y_N: Tensor) -> Tensor:
    """Return CE(y) in nats, averaged over cells with a label (not code -1); 0 if no cell has one."""
    total = F.cross_entropy(logits_NK.float(), y_N, ignore_index=-1, reduction="sum")
    return mean_of_known(total, (y_N >= 0).sum())


def kl_to_standard_normal(mean_NP: Tensor, log_variance_NP: Tensor) -> Tensor:
    """Return KL(N(mean, variance) || N(0, I)) in nats, averaged over cells (Kingma and Welling 2014, appendix B)."""
    return kl_of_units(mean_NP, log_variance_NP).sum(1).mean()


def kl_of_units(mean_NP: Tensor, log_variance_NP: Tensor) -> Tensor:
    """Return KL(N(mean, variance) || N(0, 1)) of each cell and dimension in nats, N x P."""
    return 0.5 * (mean_NP.square() + log_variance_NP.exp() - 1 - log_variance_NP)


def kl_to_mse_units(mse_value: Tensor, n_genes: int) -> Tensor:
    """Return the factor 2 MSE / G, without gradient, that converts a KL in nats per cell to MSE units.

    A Gaussian whose variance is the current MSE has -log p(x) = G / (2 MSE) * error + constant. Multiplied by
    2 MSE / G, the evidence lower bound is the error plus 2 MSE / G times the KL.
    """
    return 2 * mse_value.detach() / n_genes


def gaussian(x_NG: Tensor, mean_NG: Tensor, log_variance_G: Tensor) -> Tensor:
    """Return log N(x; mean, variance) of each cell, in nats, summed over genes; the variance is one per gene."""
    x_NG, mean_NG, log_variance_G = _precise(x_NG, mean_NG, log_variance_G)
    error_N = ((x_NG - mean_NG).square() * torch.exp(-log_variance_G)).sum(1)
    constant = math.log(2 * math.pi) * x_NG.shape[1]
    return -0.5 * (error_N + log_variance_G.expand_as(x_NG).sum(1) + constant)


def poisson(x_NG: Tensor, mean_NG: Tensor) -> Tensor:
    """Return log Poisson(x; mean) of each cell, in nats, summed over genes.

    The term -mean is needed for all genes, x log(mean) - log(x!) at the non-zeros only.
    """
    x_NG, mean_NG = _precise(x_NG, mean_NG)
    at = _nonzeros(x_NG)
    mean_E = at.of(mean_NG).clamp_min(LEAST_MEAN)
    mode_E = at.x_E - 0.5 * torch.log(2 * math.pi * at.x_E) - _stirling_remainder(at.x_E)  # x log x - log x!
    nonzero_E = at.x_E * torch.log(mean_E / at.x_E) + mode_E
    return at.add_to(-mean_NG.sum(1), nonzero_E)


def negative_binomial(x_NG: Tensor, mean_NG: Tensor, theta: Tensor) -> Tensor:
    """Return log NB(x; mean, theta) of each cell, in nats, summed over genes; the variance is mean + mean^2 / theta.

    The term -theta log(1 + mean / theta) is needed for all genes, the others at the non-zeros only.

    Parameters
    ----------
    x_NG, mean_NG
        Counts, and their means (above 0).
    theta
        Inverse dispersion, above 0: one per gene, or one per cell and gene. Towards infinity the distribution
        becomes a Poisson.
    """
    x_NG, mean_NG, theta = _precise(x_NG, mean_NG, theta)
    at = _nonzeros(x_NG)
    if theta.dim() == 1:
        flat_E = at.flat_E if isinstance(at, _NonZeros) else None
        zero_N, mean_E = _ZeroTerm.apply(mean_NG, theta, flat_E)  # type: ignore[no-untyped-call]
    else:
        zero_N, mean_E = _log_zero(mean_NG, theta).sum(1), at.of(mean_NG)
    return at.add_to(zero_N, _nb_nonzero(at, mean_E, theta))


def zero_inflated_negative_binomial(
    x_NG: Tensor, mean_NG: Tensor, theta: Tensor, zero_logit_NG: Tensor
) -> Tensor:
    """Return log ZINB(x; mean, theta, zero logit) of each cell, in nats, summed over genes.

    A count is zero with the probability sigmoid(zero logit), and is otherwise drawn from
    :func:`negative_binomial`, which can be zero as well.
    """
    x_NG, mean_NG, theta, logit_NG = _precise(x_NG, mean_NG, theta, zero_logit_NG)
    at = _nonzeros(x_NG)
    zero_NG = _log_zero(mean_NG, theta)
    # log(pi + (1 - pi) e^zero) = zero + softplus(logit - zero) - softplus(logit), which never exponentiates zero
    inflated_NG = F.softplus(logit_NG - zero_NG).masked_fill(x_NG != 0, 0)
    dense_N = (zero_NG + inflated_NG - F.softplus(logit_NG)).sum(1)
    return at.add_to(dense_N, _nb_nonzero(at, at.of(mean_NG), theta))


class _NonZeros(NamedTuple):
    """Values of the non-zero counts, and where they are: in the flat matrix, in which cell, of which gene."""

    x_E: Tensor
    flat_E: Tensor
    row_E: Tensor
    gene_E: Tensor

    def of(self, values: Tensor) -> Tensor:
        """Return the values (per cell and gene, or per gene) at the non-zeros."""
        return values.reshape(-1).index_select(0, self.flat_E if values.dim() == 2 else self.gene_E)

    def add_to(self, dense_N: Tensor, nonzero_E: Tensor) -> Tensor:
        """Return the sum of each cell: its dense terms, and those of its non-zeros."""
        # Summed one after the other, hundreds of terms in float32 would lose a digit.
        exact = torch.float64
        return dense_N.to(exact).index_add(0, self.row_E, nonzero_E.to(exact)).to(dense_N.dtype)


class _Everywhere(NamedTuple):
    """Values of all counts, in place of :class:`_NonZeros`: those of zeros are 1, and what follows is left out."""

    x_E: Tensor
    is_nonzero_NG: Tensor

    def of(self, values: Tensor) -> Tensor:
        """Return the values (per cell and gene, or per gene) of all counts."""
        return values.expand_as(self.is_nonzero_NG).reshape(-1)

    def add_to(self, dense_N: Tensor, all_E: Tensor) -> Tensor:
        """Return the sum of each cell: its dense terms, and those of its non-zeros."""
        return dense_N + all_E.view_as(self.is_nonzero_NG).masked_fill(~self.is_nonzero_NG, 0).sum(1)


def _nonzeros(x_NG: Tensor) -> _NonZeros | _Everywhere:
    flat = x_NG.detach().reshape(-1)
    found = flat != 0
    if found.device.type not in FOUND_ON:
        return _Everywhere(flat.masked_fill(~found, 1), found.view_as(x_NG))
    flat_E = torch.from_numpy(np.flatnonzero(found.numpy()))  # four times faster than torch's
    row_E = flat_E // x_NG.shape[1]
    return _NonZeros(flat.index_select(0, flat_E), flat_E, row_E, flat_E - row_E * x_NG.shape[1])


def _log_zero(mean_NG: Tensor, theta: Tensor) -> Tensor:
    """Return log NB(0) = theta (log theta - log(theta + mean)), exact for small means and for large theta."""
    return -theta * torch.log1p(mean_NG * (1 / theta))


class _ZeroTerm(torch.autograd.Function):
    """log NB(0) summed over genes, and the means at the non-zeros.

    Both need a dense gradient of the means. Together they share one, which halves the time: at this size, a pass
    over a dense matrix costs more than the arithmetic. Without ``flat_E`` the second are all means.
    """

    @staticmethod
    def forward(ctx: Any, mean_NG: Tensor, theta_G: Tensor, flat_E: Tensor | None) -> tuple[Tensor, Tensor]:
        ratio_NG = mean_NG * (1 / theta_G)
        log_NG = torch.log1p(ratio_NG)
        ctx.save_for_backward(ratio_NG, log_NG, *(() if flat_E is None else (flat_E,)))
        with without_autocast(mean_NG.device):
            zero_N = -(log_NG @ theta_G)
        mean_E = mean_NG.reshape(-1)
        return zero_N, mean_E.clone() if flat_E is None else mean_E.index_select(0, flat_E)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient_N, gradient_E = gradients
        ratio_NG, log_NG, *found = ctx.saved_tensors
        share_NG = (1 + ratio_NG).reciprocal_()  # theta / (theta + mean)
        with without_autocast(ratio_NG.device):
            theta_G = -(gradient_N @ log_NG.addcmul(ratio_NG, share_NG, value=-1))
        mean_NG = share_NG.mul_(-gradient_N[:, None])
        if found:
            mean_NG.view(-1).index_add_(0, found[0], gradient_E)
        else:
            mean_NG.view(-1).add_(gradient_E)
        return mean_NG, theta_G, None


def _nb_nonzero(at: _NonZeros | _Everywhere, mean_E: Tensor, theta: Tensor) -> Tensor:
    """Return log NB(x) - log NB(0) of each non-zero count."""
    theta_E = at.of(theta)
    term_E: Tensor = _NonZeroTerm.apply(at.x_E, mean_E.clamp_min(LEAST_MEAN), theta_E)  # type: ignore[no-untyped-call]
    # One theta per gene: fewer genes than non-zeros. One per cell and gene: fewer non-zeros.
    return term_E - (at.of(_stirling_remainder(theta)) if theta.dim() == 1 else _stirling_remainder(theta_E))


class _NonZeroTerm(torch.autograd.Function):
    """log NB(x) - log NB(0) + r(theta) of each non-zero count; r is the remainder of Stirling's formula.

    log Gamma(x + theta) - log Gamma(theta) loses all digits in float32 when theta is large. With Stirling's formula
    the large terms cancel on paper (Loader 2000). What remains is

    x log(ratio) + (theta - 1/2) log(1 + x / theta) - log(2 pi x) / 2 + r(theta + x) - r(x)

    with ratio = mean (theta + x) / (x (theta + mean)). The gradient is written out because torch's digamma takes
    longer than all of this.
    """

    @staticmethod
    def forward(ctx: Any, x_E: Tensor, mean_E: Tensor, theta_E: Tensor) -> Tensor:
        sum_E, odds_E = theta_E + x_E, x_E / theta_E
        inverse_E = 1 / (theta_E + mean_E)
        ratio_E = mean_E / x_E * (sum_E * inverse_E)
        near_E = torch.log1p(theta_E * (mean_E - x_E) / x_E * inverse_E)  # exact where x is close to the mean
        log_E = torch.where(ratio_E > 0.5, near_E, torch.log(ratio_E))
        log_odds_E = torch.log1p(odds_E)
        slope_E = x_E / sum_E - x_E * inverse_E + log_odds_E - (theta_E - 0.5) * odds_E / sum_E
        ctx.save_for_backward(x_E / mean_E * (theta_E * inverse_E), slope_E, sum_E)
        constant_E = 0.5 * torch.log(2 * math.pi * x_E) + _stirling_remainder(x_E)
        return x_E * log_E + (theta_E - 0.5) * log_odds_E - constant_E + _stirling_remainder(sum_E)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        mean_E, slope_E, a = ctx.saved_tensors
        b = a + 4
        inverse, square = 1 / b, 1 / b.square()
        shifted = (4 + 2 / a) + 3 / (a + 1) + 2 / (a + 2) + 1 / (a + 3)
        series = square * (
            1 / 12 - square * (1 / 120 - square * (1 / 252 - square * (1 / 240 - square / 132)))
        )
        slope_E = slope_E + torch.log1p(4 / a) - shifted * inverse - series
        return None, gradients[0] * mean_E, gradients[0] * slope_E


def _stirling_remainder(a: Tensor) -> Tensor:
    """Return r(a) = log Gamma(a) - ((a - 1/2) log a - a + log(2 pi) / 2), from Stirling's series at a + 4."""
    square = 1 / (a + 4).square()
    series = 1 / 12 - square * (1 / 360 - square * (1 / 1260 - square * (1 / 1680 - square / 1188)))
    shifted = (1 + 3 / (a + 1)) * (1 + 2 / (a + 2)) * (1 + 1 / (a + 3))
    return (a + 0.5) * torch.log1p(4 / a) - 4 + torch.log(shifted) + series / (a + 4)


def _precise(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors in float64 if one of them is, else in float32."""
    double = any(tensor.dtype == torch.float64 for tensor in tensors)
    return tuple(tensor.to(torch.float64 if double else torch.float32) for tensor in tensors)
