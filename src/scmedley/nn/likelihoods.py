"""Reconstruction losses, in float32 whatever the precision of the network.

Shapes: N cells of a minibatch, G genes.
"""

from torch import Tensor


def mse(x_NG: Tensor, xhat_NG: Tensor) -> Tensor:
    """Give the squared error, averaged over cells and genes (scMEDAL, L_MSE)."""
    error_NG = xhat_NG.float() - x_NG.float()
    # sum / n and this order of the difference each save backward a walk through all of N x G.
    return error_NG.square().sum() / error_NG.numel()


def nat(mse_value: Tensor, n_genes: int) -> Tensor:
    """Give the worth of one nat per cell in units of the MSE: 2 MSE / G, without gradient.

    A Gaussian with its variance at the current MSE has -log p(x) = G / (2 MSE) * error + constant, so
    a KL in nats weighs 2 MSE / G as much as the error does.
    """
    return 2 * mse_value.detach() / n_genes
