"""Latent random effects: the offset of each batch in each cluster of the latent, in closed form.

A mixture of linear mixed models (Korsunsky et al. 2019, Nature Methods). In cluster k a cell of batch b has the
latent

    z = centre_k + D_kb + noise,    D_kb ~ N(0, variance / lambda_kb)

so that the posterior mean of the batch effect D_kb is a ridge regression. Clusters are soft spherical k-means of
the latent without its offset. The offset of a cell is the mean of D_kb over the clusters, weighted by its shares.

Shapes: N cells, P latent dimensions, B batches, K clusters.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

TEMPERATURE = 0.1  # of the soft assignment of cells to clusters
SHRINKAGE = 0.2  # lambda_kb per expected cell of batch b in cluster k
SWEEPS, ROUNDS = 3, 3  # of an update, and of k-means in each sweep
LOOKUPS = 2  # a cell's clusters depend on its offset, which depends on its clusters
CELLS_PER_CLUSTER = 30  # at least: fewer clusters are used for few cells
FIRST_ROUNDS = 10  # of k-means at the start
QUERY_ROUNDS = 10  # of the offsets of a batch that was not in training


class LatentEffects(nn.Module):
    """Offsets D_BKP of the batches in clusters with unit centres. Clusters that are not used have the centre 0.

    Parameters
    ----------
    n_batches, n_clusters, n_latent
        B, the largest K, and P.
    """

    centre_KP: Tensor
    offset_BKP: Tensor
    middle_KP: Tensor
    share_K: Tensor

    def __init__(self, n_batches: int, n_clusters: int, n_latent: int):
        super().__init__()
        self.register_buffer("centre_KP", torch.zeros(n_clusters, n_latent))
        self.register_buffer("offset_BKP", torch.zeros(n_batches, n_clusters, n_latent))
        self.register_buffer(
            "middle_KP", torch.zeros(n_clusters, n_latent)
        )  # mean of a cluster, over batches
        self.register_buffer("share_K", torch.zeros(n_clusters))  # of the training cells

    @torch.no_grad()
    def offset(self, z_NP: Tensor, b_N: Tensor) -> Tensor:
        """Return the offset of each cell's batch at its place in the latent, N x P; 0 before the first update.

        A cell with the code -1 has no batch and the offset 0.
        """
        offset_NP = torch.zeros_like(z_NP)
        offset_NKP = self.offset_BKP[b_N.clamp_min(0)]
        known_N1 = (b_N >= 0).unsqueeze(1)
        for _ in range(LOOKUPS):
            share_NK = shares(z_NP - offset_NP, self.centre_KP)
            offset_NP = torch.einsum("nk,nkp->np", share_NK, offset_NKP) * known_N1
        return offset_NP

    @torch.no_grad()
    def update(self, z_NP: Tensor, b_N: Tensor) -> None:
        """Compute clusters and offsets from training cells, starting from those of the last update."""
        order_N = torch.argsort(b_N, stable=True)
        z_NP = z_NP[order_N]
        n_B = torch.bincount(b_N, minlength=len(self.offset_BKP))
        centre_KP, offset_BKP = self.centre_KP, self.offset_BKP
        if not centre_KP.any():
            n_clusters = min(len(centre_KP), max(2, round(len(z_NP) / CELLS_PER_CLUSTER)), len(z_NP))
            centre_KP[:n_clusters] = first_centres(F.normalize(z_NP, dim=1), n_clusters)
        z_B, n_cells = torch.split(z_NP, n_B.tolist()), len(z_NP)
        for _ in range(SWEEPS):
            unit_NP = F.normalize(z_NP - _offsets(z_B, centre_KP, offset_BKP), dim=1)
            for _ in range(ROUNDS):
                share_NK = shares(unit_NP, centre_KP)
                centre_KP.copy_(F.normalize(share_NK.t() @ unit_NP, dim=1))
            share_B = torch.split(share_NK, n_B.tolist())
            n_BK = torch.stack([share.sum(0) for share in share_B])
            sum_BKP = torch.stack([share.t() @ z for share, z in zip(share_B, z_B, strict=True)])
            mean_BKP = sum_BKP / n_BK.clamp_min(1e-8)[..., None]
            lambda_BK = SHRINKAGE * n_BK.sum(0) * (n_B / n_cells)[:, None] + 1e-6
            kept_BK1 = (n_BK / (n_BK + lambda_BK))[..., None]
            precision_BK1 = kept_BK1 * lambda_BK[..., None]
            middle_KP = (precision_BK1 * mean_BKP).sum(0) / precision_BK1.sum(0).clamp_min(1e-12)
            offset_BKP.copy_(kept_BK1 * (mean_BKP - middle_KP))
        self.middle_KP.copy_(middle_KP)
        self.share_K.copy_(share_NK.mean(0))

    def extend(self, n_new: int) -> None:
        """Add rows of zeros for ``n_new`` batches."""
        zeros = self.offset_BKP.new_zeros(n_new, *self.centre_KP.shape)
        self.offset_BKP = torch.cat([self.offset_BKP, zeros])

    @torch.no_grad()
    def learn(self, z_NP: Tensor, b_N: Tensor) -> None:
        """Compute the offsets of the batches ``b_N``, from these cells alone; all else stays the same.

        As a query is mapped in Symphony (Kang et al. 2021, Nature Communications): the clusters and their means
        are those of the training cells.
        """
        for b in torch.unique(b_N).tolist():
            z_nP = z_NP[b_N == b]
            lambda_K1 = (SHRINKAGE * self.share_K * len(z_nP) + 1e-6)[:, None]
            for _ in range(QUERY_ROUNDS):
                offset_nP = _offsets((z_nP,), self.centre_KP, self.offset_BKP[[b]])
                share_nK = shares(z_nP - offset_nP, self.centre_KP)
                n_K1 = share_nK.sum(0)[:, None]
                mean_KP = share_nK.t() @ z_nP / n_K1.clamp_min(1e-8)
                self.offset_BKP[b] = n_K1 / (n_K1 + lambda_K1) * (mean_KP - self.middle_KP)


def shares(z_NP: Tensor, centre_KP: Tensor) -> Tensor:
    """Return the share of each cluster in each cell, N x K: a softmax of the cosine distance.

    Clusters that are not used have a share of 0.
    """
    logit_NK = 2 * (F.normalize(z_NP, dim=1) @ centre_KP.t() - 1) / TEMPERATURE
    return logit_NK.masked_fill(~centre_KP.any(1), -1e9).softmax(1)


def first_centres(unit_NP: Tensor, n_clusters: int) -> Tensor:
    """Return the centres of spherical k-means after a k-means++ start (Arthur and Vassilvitskii 2007)."""
    chosen = [int(torch.randint(len(unit_NP), (1,)))]
    far_N = 2 * (1 - unit_NP @ unit_NP[chosen[0]])
    for _ in range(n_clusters - 1):
        chosen.append(int(torch.multinomial(far_N.clamp_min(1e-9).cpu(), 1)))
        far_N = torch.minimum(far_N, 2 * (1 - unit_NP @ unit_NP[chosen[-1]]))
    centre_KP = unit_NP[chosen]
    for _ in range(FIRST_ROUNDS):
        nearest_N = (unit_NP @ centre_KP.t()).argmax(1)
        sum_KP = torch.zeros_like(centre_KP).index_add_(0, nearest_N, unit_NP)
        centre_KP = F.normalize(sum_KP + 1e-6 * centre_KP, dim=1)  # an empty cluster keeps its centre
    return centre_KP


def _offsets(z_B: tuple[Tensor, ...], centre_KP: Tensor, offset_BKP: Tensor) -> Tensor:
    """Return the offsets of cells that are sorted by batch, as :meth:`LatentEffects.offset` does."""
    parts = []
    for z_nP, offset_KP in zip(z_B, offset_BKP, strict=True):
        offset_nP = torch.zeros_like(z_nP)
        for _ in range(LOOKUPS):
            offset_nP = shares(z_nP - offset_nP, centre_KP) @ offset_KP
        parts.append(offset_nP)
    return torch.cat(parts)
