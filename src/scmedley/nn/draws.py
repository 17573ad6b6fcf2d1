"""Random numbers of cells. Several processes that share a minibatch draw for all its cells, and each takes its own.

Shapes: N cells, P latent dimensions (or any other second axis).
"""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from scmedley import distributed


def normal_like(x_NP: Tensor) -> Tensor:
    """Return standard normal numbers, N x P."""
    if not distributed.is_shared():
        return torch.randn_like(x_NP)
    return torch.randn_like(_of_all(x_NP))[distributed.rows()]


def uniform(b_N: Tensor) -> Tensor:
    """Return a uniform number for each cell, N, float32."""
    return torch.rand(distributed.n_cells(b_N), device=b_N.device)[distributed.rows()]


def dropout(x_NG: Tensor, p: float, training: bool) -> Tensor:
    """Return the values with a random share ``p`` set to 0 in training, the others divided by 1 - p."""
    if not (distributed.is_shared() and training and p):
        return F.dropout(x_NG, p, training=training)
    return x_NG * F.dropout(torch.ones_like(_of_all(x_NG)), p)[distributed.rows()]


def _of_all(x_NP: Tensor) -> Tensor:
    """Return a tensor in the shape of the whole minibatch, without values of its own."""
    return x_NP.new_empty(distributed.n_cells(x_NP), x_NP.shape[1])
