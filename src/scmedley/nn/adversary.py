"""What the fixed-effects encoder is rewarded for, given the adversary's logits.

Shapes: N cells of a minibatch, B batches.
"""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def unbounded(logits_NB: Tensor, b_N: Tensor) -> Tensor:
    """Give -CE(b, adversary), the published objective (nats per cell): it has no lower bound."""
    return -F.cross_entropy(logits_NB.float(), b_N)


def bounded(logits_NB: Tensor, share_B: Tensor) -> Tensor:
    """Give KL(share || adversary), in nats per cell, averaged over cells.

    Zero, its minimum, is reached when the adversary answers every cell with the batches' shares of
    the training cells, which is all it can know when the activations hold nothing about the batch.
    """
    log_q_NB = F.log_softmax(logits_NB.float(), dim=1)
    entropy = -torch.special.xlogy(share_B, share_B).sum()
    divergence: Tensor = -(log_q_NB @ share_B).mean() - entropy
    return divergence
