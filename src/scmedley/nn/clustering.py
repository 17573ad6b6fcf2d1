"""The clustering losses of DeepBID and the closed forms between them: pure functions of latents.

Equations are those of the publication (:mod:`scmedley.models.deepbid_published` puts them together). Losses are sums,
as printed there.

Shapes: N cells, P latent dimensions, K clusters, B batches.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

TEMPERATURE = 0.1  # of the soft assignment of cells to directions
SPHERICAL_ROUNDS = 10
FUZZY_ROUNDS = 100
TINY = 1e-12


def distances(z_NP: Tensor, centre_KP: Tensor) -> Tensor:
    """Return ||h_j - c_k||, N x K; its gradient is 0 where a cell is on a centre."""
    # Through the matrix product, distances of latents that are close to each other lose their digits.
    return torch.cdist(z_NP, centre_KP, compute_mode="donot_use_mm_for_euclid_dist")


def memberships(z_NP: Tensor, centre_KP: Tensor) -> Tensor:
    """Return p_jk = exp(-||h_j - c_k||) / sum_l exp(-||h_j - c_l||) (eq. 14), N x K; rows sum to 1."""
    return (-distances(z_NP, centre_KP)).softmax(1)


def centres(weight_NK: Tensor, z_NP: Tensor, before_KP: Tensor) -> Tensor:
    """Return c_k = sum_j p_jk h_j / sum_j p_jk (eq. 13), K x P; a cluster without any weight stays ``before_KP``."""
    weight_K1 = weight_NK.sum(0)[:, None]
    found_KP = weight_NK.t() @ z_NP / weight_K1.clamp_min(TINY)
    return torch.where(weight_K1 > TINY, found_KP, before_KP)


def entropy(membership_NK: Tensor) -> Tensor:
    """Return the entropy of each cell's memberships in nats, N: from 0 to log K, where all clusters are equal."""
    return -torch.xlogy(membership_NK, membership_NK).sum(1)


def information(membership_NK: Tensor) -> Tensor:
    """Return what memberships say about a cell, in nats: the entropy of their mean minus their mean entropy.

    It is 0 if all cells have the same memberships, and log K if each cell is in one cluster and clusters are equal in
    size.
    """
    return entropy(membership_NK.mean(0, keepdim=True)).sum() - entropy(membership_NK).mean()


def adaptive_loss(z_NP: Tensor, centre_KP: Tensor, membership_NK: Tensor) -> Tensor:
    """Return L_A = sum_jk d_jk p_jk ||h_j - c_k||^2, with d_jk = (||h_j - c_k|| + 2) / (||h_j - c_k|| + 1)^2 (eq. 3).

    Near a centre that is 2 ||h_j - c_k||^2 and far from it ||h_j - c_k||, so that outliers pull less. The gradient
    passes through d_jk too, which is part of the printed loss.
    """
    distance_NK = distances(z_NP, centre_KP)
    d_NK = (distance_NK + 2) / (distance_NK + 1).square()
    return (d_NK * membership_NK * distance_NK.square()).sum()


def weight_penalty(parameters: Iterable[Tensor]) -> Tensor:
    """Return L_O = sum_m ||W_m||^2 + ||b_m||^2 over the layers (eq. 4)."""
    return torch.stack([parameter.square().sum() for parameter in parameters]).sum()


def neighbour_kl(z_NP: Tensor, b_N: Tensor) -> Tensor:
    """Return L_KL1 = sum_i sum_j p_(j|i) log(p_(j|i) / q_(j|i)) over the pairs of cells of one batch (eq. 7-9).

    q_(j|i) is (1 + ||h_i - h_j||^2)^-1 over the sum of the same for all other cells of the batch of i. The target
    p_(j|i) is q_(j|i)^2 / sum_l q_(j|l), divided by its sum over j. It sharpens q and is held constant. A cell that is
    alone in its batch adds nothing.
    """
    square_NN = torch.cdist(z_NP, z_NP, compute_mode="donot_use_mm_for_euclid_dist").square()
    alike_NN = (b_N[:, None] == b_N) & ~torch.eye(len(b_N), dtype=torch.bool, device=b_N.device)
    kernel_NN = alike_NN / (1 + square_NN)
    q_NN = kernel_NN / kernel_NN.sum(1, keepdim=True).clamp_min(TINY)  # row i, column j: q_(j|i)
    with torch.no_grad():
        target_NN = q_NN.square() / q_NN.sum(0).clamp_min(TINY)
        target_NN /= target_NN.sum(1, keepdim=True).clamp_min(TINY)
    # TINY only keeps the logarithm finite for pairs of different batches, whose target is 0.
    return (torch.xlogy(target_NN, target_NN) - target_NN * q_NN.clamp_min(TINY).log()).sum()


def composition_kl(membership_NK: Tensor, b_N: Tensor, share_B: Tensor) -> Tensor:
    """Return L_KL2 = sum_k sum_B u_Bk log(u_Bk / v_B) (eq. 10).

    u_Bk = sum_(j in B) p_jk / sum_j p_jk is the share of batch B in cluster k, and v_B its share of all cells,
    which is above 0. A batch without a cell among these adds nothing.
    """
    one_hot_NB = F.one_hot(b_N, len(share_B)).to(membership_NK)
    u_BK = one_hot_NB.t() @ membership_NK / membership_NK.sum(0).clamp_min(TINY)
    return (u_BK * (u_BK.clamp_min(TINY) / share_B[:, None]).log()).sum()


def fuzzy_k_means(
    z_NP: Tensor, centre_KP: Tensor, fuzzifier: float = 2.0, rounds: int = FUZZY_ROUNDS
) -> tuple[Tensor, Tensor]:
    """Return memberships, N x K, and centres, K x P, of fuzzy k-means (Bezdek 1981) from the given centres.

    It alternates p_jk = ||h_j - c_k||^(-2 / (m - 1)), divided by its sum over k, and c_k = sum_j p_jk^m h_j / sum_j
    p_jk^m, m being the fuzzifier (above 1). With many dimensions and m = 2 all centres move to the mean of the cells.
    """
    for _ in range(rounds):
        membership_NK = _fuzzy(z_NP, centre_KP, fuzzifier)
        centre_KP = centres(membership_NK.pow(fuzzifier), z_NP, centre_KP)
    return _fuzzy(z_NP, centre_KP, fuzzifier), centre_KP


def _fuzzy(z_NP: Tensor, centre_KP: Tensor, fuzzifier: float) -> Tensor:
    # As a softmax: powers of a distance near 0 would overflow when the fuzzifier is close to 1.
    log_NK = distances(z_NP, centre_KP).clamp_min(TINY).log()
    return (-2 / (fuzzifier - 1) * log_NK).softmax(1)


def spherical_k_means(unit_NP: Tensor, n_clusters: int) -> Tensor:
    """Return the centres of spherical k-means after a k-means++ start (Arthur and Vassilvitskii 2007).

    Rows of ``unit_NP``, and the centres, have length 1.
    """
    chosen = [int(torch.randint(len(unit_NP), (1,)))]
    far_N = 2 * (1 - unit_NP @ unit_NP[chosen[0]])
    for _ in range(n_clusters - 1):
        chosen.append(int(torch.multinomial(far_N.clamp_min(1e-9).cpu(), 1)))
        far_N = torch.minimum(far_N, 2 * (1 - unit_NP @ unit_NP[chosen[-1]]))
    direction_KP = unit_NP[chosen]
    for _ in range(SPHERICAL_ROUNDS):
        nearest_N = (unit_NP @ direction_KP.t()).argmax(1)
        sum_KP = torch.zeros_like(direction_KP).index_add_(0, nearest_N, unit_NP)
        direction_KP = F.normalize(sum_KP + 1e-6 * direction_KP, dim=1)  # an empty cluster keeps its centre
    return direction_KP


def spherical_shares(z_NP: Tensor, direction_KP: Tensor) -> Tensor:
    """Return the share of each cluster in each cell, N x K: a softmax of the cosine distance.

    Clusters that are not used (their direction is 0) have a share of 0.
    """
    logit_NK = 2 * (F.normalize(z_NP, dim=1) @ direction_KP.t() - 1) / TEMPERATURE
    return logit_NK.masked_fill(~direction_KP.any(1), -1e9).softmax(1)
