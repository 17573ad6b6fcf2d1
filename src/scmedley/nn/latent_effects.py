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
CORRECTION_ROUNDS, OF_FEW = 4, 2  # of a correction, and of one that is learnt from fewer than 1,000 cells
LEAST_SD = (
    0.01  # of a feature, relative to all: one that hardly varies in training must not count in new cells
)
PENALTIES = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)  # of the ridge regression, per cell
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


class Correction(nn.Module):
    """A linear map from activations of an encoder to the offset of a cell: it needs no batch.

    An encoder that has learnt from a cell and its batch has removed more of the batch from this cell than it
    would from a new one. The map is a ridge regression of the offsets on the activations, and in each round the
    offsets are computed from latents that are corrected by leave-one-out predictions, as those of new cells.
    """

    weight_FP: Tensor
    bias_P: Tensor

    def __init__(self, n_features: int, n_latent: int):
        super().__init__()
        self.register_buffer("weight_FP", torch.zeros(n_features, n_latent))
        self.register_buffer("bias_P", torch.zeros(n_latent))

    def forward(self, features_NF: Tensor) -> Tensor:
        """Return the predicted offset, N x P."""
        offset_NP: Tensor = features_NF @ self.weight_FP + self.bias_P
        return offset_NP

    @torch.no_grad()
    def fit(self, features_NF: Tensor, z_NP: Tensor, b_N: Tensor, effects: LatentEffects) -> None:
        """Fit to training cells; ``effects`` are updated to the corrected latents."""
        mean_F, sd_F = features_NF.mean(0), features_NF.std(0)
        sd_F = sd_F.clamp_min(LEAST_SD * float(sd_F.square().mean().sqrt()) + 1e-12)
        ridge = Ridge((features_NF - mean_F) / sd_F)
        offset_NP, corrected_NP = torch.zeros_like(z_NP), z_NP
        for _ in range(CORRECTION_ROUNDS if len(z_NP) >= 1000 else OF_FEW):  # more rounds would fit noise
            effects.update(corrected_NP, b_N)
            offset_NP = offset_NP + effects.offset(corrected_NP, b_N)
            corrected_NP = z_NP - ridge.left_out(offset_NP)
        weight_FP = ridge.weights(offset_NP) / sd_F[:, None]
        self.weight_FP.copy_(weight_FP)
        self.bias_P.copy_(offset_NP.mean(0) - mean_F @ weight_FP)


class Ridge:
    """Ridge regression on standardised features and a constant, with exact leave-one-out predictions.

    The penalty is that with the smallest leave-one-out error of the first response (Hastie et al. 2009,
    section 7.10).
    """

    def __init__(self, features_NF: Tensor):
        x_NF = features_NF.double()
        self.values_F, self.vectors_FF = torch.linalg.eigh(x_NF.t() @ x_NF)
        self.rotated_NF = x_NF @ self.vectors_FF
        self.inverse_F: Tensor | None = None

    def weights(self, y_NP: Tensor) -> Tensor:
        """Return the coefficients of the features, F x P."""
        weights_FP: Tensor = self.vectors_FF @ self._rotated_weights(y_NP)
        return weights_FP.to(y_NP.dtype)

    def left_out(self, y_NP: Tensor) -> Tensor:
        """Return the prediction of each row by a regression on all others, N x P."""
        if self.inverse_F is None:
            self.inverse_F = min(self._inverses(), key=lambda inverse_F: self._error(y_NP, inverse_F))
        return self._left_out(y_NP.double(), self.inverse_F).to(y_NP.dtype)

    def _inverses(self) -> list[Tensor]:
        n_cells = len(self.rotated_NF)
        return [1 / (self.values_F.clamp_min(0) + penalty * n_cells) for penalty in PENALTIES]

    def _error(self, y_NP: Tensor, inverse_F: Tensor) -> float:
        return float((y_NP - self._left_out(y_NP.double(), inverse_F)).square().sum())

    def _left_out(self, y_NP: Tensor, inverse_F: Tensor) -> Tensor:
        leverage_N1 = ((self.rotated_NF.square() * inverse_F).sum(1) + 1 / len(y_NP)).unsqueeze(1)
        mean_P = y_NP.mean(0)
        fitted_NP = mean_P + self.rotated_NF @ (inverse_F[:, None] * (self.rotated_NF.t() @ (y_NP - mean_P)))
        left_out_NP: Tensor = y_NP - (y_NP - fitted_NP) / (1 - leverage_N1)
        return left_out_NP

    def _rotated_weights(self, y_NP: Tensor) -> Tensor:
        assert self.inverse_F is not None
        centred_NP = y_NP.double() - y_NP.double().mean(0)
        weights_FP: Tensor = self.inverse_F[:, None] * (self.rotated_NF.t() @ centred_NP)
        return weights_FP


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
