"""Losses, in float32 whatever the precision of the network.

Shapes: N cells of the call at hand, G genes, K labels.
"""

from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def mse(x_NG: Tensor, xhat_NG: Tensor) -> Tensor:
    """Return the squared error, averaged over cells and genes (scMEDAL, L_MSE)."""
    return F.mse_loss(xhat_NG.float(), x_NG.float())


def cross_entropy(logits_NK: Tensor, y_N: Tensor) -> Tensor:
    """Return CE(y) in nats, averaged over the cells that have a label; 0 if none has (code -1)."""
    total = F.cross_entropy(logits_NK.float(), y_N, ignore_index=-1, reduction="sum")
    return total / (y_N >= 0).sum().clamp_min(1)


def kl_to_mse_units(mse_value: Tensor, n_genes: int) -> Tensor:
    """Return the weight of a KL in nats per cell beside the MSE: 2 MSE / G, without gradient.

    A Gaussian with its variance at the current MSE has -log p(x) = G / (2 MSE) * error + constant, so
    a KL in nats weighs 2 MSE / G as much as the error does: the evidence lower bound's own weight.
    """
    return 2 * mse_value.detach() / n_genes
