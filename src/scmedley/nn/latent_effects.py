"""Latent random effects: the offset of each batch in each cluster of the latent, in closed form.

A mixture of linear mixed models (Korsunsky et al. 2019, Nature Methods). In cluster k a cell of batch b has the
latent

    z = centre_k + D_kb + noise

and the batch effect D_kb is estimated by ridge regression, with a penalty of lambda_kb cells (as in Harmony, in
proportion to the cells that the batch would have in the cluster by chance). Clusters are soft spherical k-means of
the latent without its offset. The offset of a cell is the mean of D_kb over the clusters, weighted by its shares.

Shapes: N cells, P latent dimensions, B batches, K clusters.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from scmedley import distributed
from scmedley.device import without_autocast
from scmedley.nn.clustering import spherical_k_means, spherical_shares

SHRINKAGE = 0.2  # lambda_kb per expected cell of batch b in cluster k
# Cells: the least weight of the prior, so that single cells are not taken for a batch effect.
LEAST_LAMBDA = 2.0
SWEEPS, ROUNDS = 3, 3  # of an update, and of k-means in each sweep
OFFSET_ROUNDS = 2  # a cell's clusters depend on its offset, which depends on its clusters
CELLS_PER_CLUSTER = 30  # at least: fewer clusters are used for few cells
ROUNDS_OF_CORRECTION = 6  # at most
LEAST_DECREASE = 0.01  # of a round, as a share of the first offsets; with less, it would fit noise
LARGEST_STEP = 20.0
# Of a feature, relative to all: one that hardly varies in training must not count in new cells.
LEAST_SD = 0.01
PENALTIES = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)  # of the ridge regression, per cell
MOST_CELLS = 15_000  # training cells, drawn anew after each epoch, from which the offsets are computed
QUERY_ROUNDS = 10  # of the offsets of a batch that was not in training


class LatentEffects(nn.Module):
    """Offsets D_BKP of the batches in clusters. Clusters are directions; those that are not used are 0.

    Parameters
    ----------
    n_batches, n_clusters, n_latent
        B, the largest K, and P.
    """

    direction_KP: Tensor
    offset_BKP: Tensor
    centre_KP: Tensor
    share_K: Tensor

    def __init__(self, n_batches: int, n_clusters: int, n_latent: int):
        super().__init__()
        self.register_buffer("direction_KP", torch.zeros(n_clusters, n_latent))
        self.register_buffer("offset_BKP", torch.zeros(n_batches, n_clusters, n_latent))
        # The mean of each cluster, over batches, and its share of the training cells.
        self.register_buffer("centre_KP", torch.zeros(n_clusters, n_latent))
        self.register_buffer("share_K", torch.zeros(n_clusters))
        # Of this epoch: latents, batches, and their places among the cells of all processes.
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self._n_seen = 0

    @torch.no_grad()
    def offset(self, z_NP: Tensor, b_N: Tensor) -> Tensor:
        """Return the offset of each cell's batch at its place in the latent, N x P; 0 before the first update.

        A cell with the code -1 has no batch and the offset 0.
        """
        offset_NP = torch.zeros_like(z_NP)
        offset_NKP = self.offset_BKP[b_N.clamp_min(0)]
        known_N1 = (b_N >= 0).unsqueeze(1)
        for _ in range(OFFSET_ROUNDS):
            share_NK = spherical_shares(z_NP - offset_NP, self.direction_KP)
            offset_NP = torch.einsum("nk,nkp->np", share_NK, offset_NKP) * known_N1
        return offset_NP

    def kl(self, mean_NP: Tensor, log_variance_NP: Tensor, b_N: Tensor) -> Tensor:
        """Return KL(N(m, v) || N(m - offset, v)) in nats, averaged over cells; its gradient is that of m alone."""
        at_NP = mean_NP.detach()
        with without_autocast(at_NP.device):
            target_NP = at_NP - self.offset(at_NP, b_N)
            moved_NP = (mean_NP - target_NP).square() / log_variance_NP.detach().exp()
        return 0.5 * moved_NP.sum(1).mean()

    def remember(self, z_NP: Tensor, b_N: Tensor) -> None:
        """Keep latents of a minibatch for :meth:`update_remembered`."""
        first = self._n_seen + (distributed.rows().start or 0)
        place_N = torch.arange(first, first + len(z_NP), device=z_NP.device)
        self._seen.append((z_NP.detach(), b_N, place_N))
        self._n_seen += distributed.n_cells(z_NP)

    def update_remembered(self) -> None:
        """Update from the latents of the epoch, or from a draw of them if they are many, and forget them."""
        z_NP, b_N, place_N = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        chosen_M = subsample(torch.arange(self._n_seen, device=z_NP.device))
        self.forget()
        self.update(*(distributed.rows_of_all(x, place_N, chosen_M) for x in (z_NP, b_N)))

    def forget(self) -> None:
        """Forget the latents of an epoch that has not ended."""
        self._seen, self._n_seen = [], 0

    @torch.no_grad()
    def update(self, z_NP: Tensor, b_N: Tensor) -> None:
        """Compute clusters and offsets from training cells, starting from those of the last update.

        Parameters
        ----------
        z_NP
            Latents.
        b_N
            Batches, 0..B-1.
        """
        order_N = torch.argsort(b_N, stable=True)
        z_NP = z_NP[order_N]
        n_B = torch.bincount(b_N, minlength=len(self.offset_BKP))
        direction_KP, offset_BKP = self.direction_KP, self.offset_BKP
        if not direction_KP.any():
            n_clusters = min(len(direction_KP), max(2, round(len(z_NP) / CELLS_PER_CLUSTER)), len(z_NP))
            direction_KP[:n_clusters] = spherical_k_means(F.normalize(z_NP, dim=1), n_clusters)
        z_B, n_cells = torch.split(z_NP, n_B.tolist()), len(z_NP)
        for _ in range(SWEEPS):
            unit_NP = F.normalize(z_NP - _offsets(z_B, direction_KP, offset_BKP), dim=1)
            for _ in range(ROUNDS):
                share_NK = spherical_shares(unit_NP, direction_KP)
                direction_KP.copy_(F.normalize(share_NK.t() @ unit_NP, dim=1))
            share_B = torch.split(share_NK, n_B.tolist())
            n_BK = torch.stack([share.sum(0) for share in share_B])
            sum_BKP = torch.stack([share.t() @ z for share, z in zip(share_B, z_B, strict=True)])
            mean_BKP = sum_BKP / n_BK.clamp_min(1e-8)[..., None]
            lambda_BK = SHRINKAGE * n_BK.sum(0) * (n_B / n_cells)[:, None] + 1e-6
            precision_BK1 = (n_BK * lambda_BK / (n_BK + lambda_BK))[..., None]
            centre_KP = (precision_BK1 * mean_BKP).sum(0) / precision_BK1.sum(0).clamp_min(1e-12)
            offset_BKP.copy_(shrunk(mean_BKP - centre_KP, n_BK, lambda_BK))
        self.centre_KP.copy_(centre_KP)
        self.share_K.copy_(share_NK.mean(0))

    def extend(self, n_new: int) -> None:
        """Add rows of zeros for ``n_new`` batches."""
        zeros = self.offset_BKP.new_zeros(n_new, *self.direction_KP.shape)
        self.offset_BKP = torch.cat([self.offset_BKP, zeros])

    @torch.no_grad()
    def learn(self, z_NP: Tensor, b_N: Tensor) -> None:
        """Compute the offsets of the batches ``b_N``, from these cells alone; all else stays the same.

        As a query is mapped in Symphony (Kang et al. 2021, Nature Communications): the clusters and their means
        are those of the training cells.
        """
        for b in torch.unique(b_N).tolist():
            z_nP = z_NP[b_N == b]
            lambda_1K = (SHRINKAGE * self.share_K * len(z_nP) + 1e-6)[None]
            for _ in range(QUERY_ROUNDS):
                offset_nP = _offsets((z_nP,), self.direction_KP, self.offset_BKP[[b]])
                share_nK = spherical_shares(z_nP - offset_nP, self.direction_KP)
                n_1K = share_nK.sum(0)[None]
                mean_KP = share_nK.t() @ z_nP / n_1K.clamp_min(1e-8).t()
                self.offset_BKP[b] = shrunk((mean_KP - self.centre_KP)[None], n_1K, lambda_1K)[0]


def shrunk(found_BKP: Tensor, n_BK: Tensor, lambda_BK: Tensor) -> Tensor:
    """Return the posterior means of the offsets from the raw differences of batches from the clusters' centres.

    An offset is that of the batch in all clusters plus a deviation in this one: a cluster with few cells of a
    batch has the offset that the batch has elsewhere. Weights of the priors are at least ``LEAST_LAMBDA`` cells.
    """
    n_BK1, lambda_BK1 = n_BK[..., None], lambda_BK.clamp_min(LEAST_LAMBDA)[..., None]
    n_B1 = n_BK.sum(1, keepdim=True)
    batch_B1P = ((n_BK1 * found_BKP).sum(1) / (n_B1 + LEAST_LAMBDA)).unsqueeze(1)
    return batch_B1P + n_BK1 / (n_BK1 + lambda_BK1) * (found_BKP - batch_B1P)


class Correction(nn.Module):
    """A linear map from activations of an encoder to the offset of a cell: it does not use the batch.

    An encoder removes more of the batch from cells that it has learnt from than from new ones. What is left can
    be predicted from its activations, by ridge regression of the offsets. In each round the offsets are computed
    from latents that are corrected by leave-one-out predictions of this regression, and added to those of the
    rounds before: they then do not depend on how closely the regression fits its own cells.

    Activations determine the batch only in part, so the regression predicts only a share r of an offset. The step of
    a round, which multiplies its offsets, therefore doubles up to 1 / r. The rounds end when the offsets that are
    left no longer decrease.
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
        """Fit the map to training cells.

        Parameters
        ----------
        features_NF
            Activations of the encoder.
        z_NP
            Latents that are to be corrected.
        b_N
            Batches, 0..B-1.
        effects
            Clusters and offsets of the latents; at the end they are those of the corrected latents.
        """
        mean_F, sd_F = features_NF.mean(0), features_NF.std(0)
        sd_F = sd_F.clamp_min(LEAST_SD * float(sd_F.square().mean().sqrt()) + 1e-12)
        effects.update(z_NP, b_N)
        left_NP = effects.offset(z_NP, b_N)
        ridge = Ridge((features_NF - mean_F) / sd_F, left_NP)
        first = float(left_NP.square().sum()) + 1e-12
        predicted = float((ridge.left_out(left_NP) * left_NP).sum()) / first
        largest_step = max(1.0, min(LARGEST_STEP, 1 / max(predicted, 1e-12)))
        offset_NP, size, step = torch.zeros_like(left_NP), 1.0, 1.0
        for _ in range(ROUNDS_OF_CORRECTION):
            trial_NP = offset_NP + step * left_NP
            corrected_NP = z_NP - ridge.left_out(trial_NP)
            effects.update(corrected_NP, b_N)
            trial_left_NP = effects.offset(corrected_NP, b_N)
            trial_size = float(trial_left_NP.square().sum()) / first
            if trial_size > size - LEAST_DECREASE:
                break
            offset_NP, left_NP, size = trial_NP, trial_left_NP, trial_size
            step = min(2 * step, largest_step)
        weight_FP = ridge.weights(offset_NP) / sd_F[:, None]
        self.weight_FP.copy_(weight_FP)
        self.bias_P.copy_(offset_NP.mean(0) - mean_F @ weight_FP)
        effects.update(z_NP - self(features_NF), b_N)


def subsample(rows: Tensor) -> Tensor:
    """Return the rows, or a draw of 15,000 if there are more."""
    if len(rows) <= MOST_CELLS:
        return rows
    return rows[torch.randperm(len(rows))[:MOST_CELLS].to(rows.device)]


class Ridge:
    """Ridge regression on standardised features and a constant, with exact leave-one-out predictions.

    Computed on the CPU in float64, which not all devices have.

    Parameters
    ----------
    features_NF
        Features with mean 0.
    response_NP
        The penalty has the smallest leave-one-out error for this response (Hastie et al. 2009, section 7.10).
    """

    def __init__(self, features_NF: Tensor, response_NP: Tensor):
        x_NF, y_NP = _precise(features_NF), _precise(response_NP)
        values_F, self.vectors_FF = torch.linalg.eigh(x_NF.t() @ x_NF)
        self.rotated_NF = x_NF @ self.vectors_FF
        inverses = [1 / (values_F.clamp_min(0) + penalty * len(x_NF)) for penalty in PENALTIES]
        errors = [float((y_NP - self._left_out(y_NP, inverse_F)).square().sum()) for inverse_F in inverses]
        self.inverse_F = inverses[errors.index(min(errors))]

    def weights(self, y_NP: Tensor) -> Tensor:
        """Return the coefficients of the features, F x P."""
        weights_FP: Tensor = self.vectors_FF @ self._rotated_weights(_precise(y_NP), self.inverse_F)
        return weights_FP.to(y_NP.dtype).to(y_NP.device)

    def left_out(self, y_NP: Tensor) -> Tensor:
        """Return the prediction of each row by a regression on all others, N x P."""
        return self._left_out(_precise(y_NP), self.inverse_F).to(y_NP.dtype).to(y_NP.device)

    def _rotated_weights(self, y_NP: Tensor, inverse_F: Tensor) -> Tensor:
        weights_FP: Tensor = inverse_F[:, None] * (self.rotated_NF.t() @ (y_NP - y_NP.mean(0)))
        return weights_FP

    def _left_out(self, y_NP: Tensor, inverse_F: Tensor) -> Tensor:
        leverage_N1 = ((self.rotated_NF.square() * inverse_F).sum(1) + 1 / len(y_NP)).unsqueeze(1)
        fitted_NP = y_NP.mean(0) + self.rotated_NF @ self._rotated_weights(y_NP, inverse_F)
        left_out_NP: Tensor = y_NP - (y_NP - fitted_NP) / (1 - leverage_N1)
        return left_out_NP


def _precise(x: Tensor) -> Tensor:
    return x.cpu().double()  # in this order: a device without float64 cannot convert


def _offsets(z_B: tuple[Tensor, ...], direction_KP: Tensor, offset_BKP: Tensor) -> Tensor:
    """Return the offsets of cells that are sorted by batch, as :meth:`LatentEffects.offset` does."""
    parts = []
    for z_nP, offset_KP in zip(z_B, offset_BKP, strict=True):
        offset_nP = torch.zeros_like(z_nP)
        for _ in range(OFFSET_ROUNDS):
            offset_nP = spherical_shares(z_nP - offset_nP, direction_KP) @ offset_KP
        parts.append(offset_nP)
    return torch.cat(parts)
