"""Losses, always computed in float32.

Shapes: N cells, G genes, P latent dimensions, K labels.
"""

from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def mse(x_NG: Tensor, xhat_NG: Tensor) -> Tensor:
    """Return the mean squared error over cells and genes (L_MSE of scMEDAL)."""
    return F.mse_loss(xhat_NG.float(), x_NG.float())


def cross_entropy(logits_NK: Tensor, y_N: Tensor) -> Tensor:
    """Return CE(y) in nats, averaged over cells with a label (not code -1); 0 if no cell has one."""
    total = F.cross_entropy(logits_NK.float(), y_N, ignore_index=-1, reduction="sum")
    return total / (y_N >= 0).sum().clamp_min(1)


def kl_to_standard_normal(mean_NP: Tensor, log_variance_NP: Tensor) -> Tensor:
    """Return KL(N(mean, variance) || N(0, I)) in nats, averaged over cells (Kingma and Welling 2014, appendix B)."""
    kl_NP = 0.5 * (mean_NP.square() + log_variance_NP.exp() - 1 - log_variance_NP)
    return kl_NP.sum(1).mean()


def kl_to_mse_units(mse_value: Tensor, n_genes: int) -> Tensor:
    """Return the factor 2 MSE / G, without gradient, that converts a KL in nats per cell to MSE units.

    A Gaussian whose variance is the current MSE has -log p(x) = G / (2 MSE) * error + constant. Multiplied by
    2 MSE / G, the evidence lower bound is the error plus 2 MSE / G times the KL.
    """
    return 2 * mse_value.detach() / n_genes
