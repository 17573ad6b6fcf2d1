"""Network of the default DeepBID: a variational autoencoder of counts whose latent batches do not move.

Encoder and decoder are those of :class:`~scmedley.models.vae_network.VAENetwork`; the latter has Bayesian effects of
the batch. The batch has random effects in the latent too, and a correction of what is left of them after training, as
in the default fixed effects (:mod:`scmedley.models.fixed_effects`).

Shapes: N cells, G genes, P latent dimensions, H hidden units.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from scmedley.data.resident import ENCODED
from scmedley.models.fixed_effects import OFFSET_FULL, OFFSET_START, ramp
from scmedley.models.settings import check_n_clusters
from scmedley.models.vae_network import VAENetwork
from scmedley.models.vae_settings import VAESettings
from scmedley.nn.bayesian import Levels
from scmedley.nn.latent_effects import Correction, LatentEffects, subsample
from scmedley.train.trainable import Progress, Stage, Term, TrainingCells


@dataclass(frozen=True)
class DeepBIDSettings(VAESettings):
    """Settings of the default :class:`~scmedley.models.deepbid.DeepBID`.

    Attributes
    ----------
    n_clusters
        K, the number of clusters; ``None``: as many as the evidence supports.
    offset_weight
        Weight of the offset term. 1 gives the KL of the posterior from the one without its batch's offset.
    n_offset_clusters
        Largest number of clusters of the latent that have their own offset of every batch.
    """

    n_latent: int = 20
    steps: int = 1500
    n_clusters: int | None = None
    offset_weight: float = 1.0
    n_offset_clusters: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_n_clusters(self.n_clusters)


class DeepBIDNetwork(VAENetwork):
    """The network of the VAE with latent random effects of the batch."""

    settings: DeepBIDSettings

    def __init__(self, n_genes: int, n_batches: int, settings: DeepBIDSettings, levels: Levels | None = None):
        super().__init__(n_genes, n_batches, settings, levels)
        self.unscales = True
        self.n_trained = n_batches
        self.latent_effects = LatentEffects(n_batches, settings.n_offset_clusters, settings.n_latent)
        self.correction = Correction(settings.hidden[-1], settings.n_latent)

    def stages(self) -> list[Stage]:
        """Return one stage; it keeps the last epoch, because the loss changes while its weights rise."""
        return [self.settings.stage({"autoencoder": list(self.parameters())}, keep="last")]

    def latent_terms(
        self, mean_NP: Tensor, log_variance_NP: Tensor, b_N: Tensor, progress: Progress
    ) -> dict[str, Term]:
        """Return r(t) 1/2 sum_p delta_p^2 / v_p, the KL of the posterior from the one without its batch's offset."""
        if not self.n_batches:
            return {}
        if self.training:
            self.latent_effects.remember(mean_NP, b_N)
        weight = self.settings.offset_weight * ramp(progress.share, OFFSET_START, OFFSET_FULL)
        return {"offset": Term(self.latent_effects.kl(mean_NP, log_variance_NP, b_N), weight)}

    def after_epoch(self, known: TrainingCells, progress: Progress) -> None:
        """Update clusters and offsets of the latent, and the priors of the decoder's effects."""
        super().after_epoch(known, progress)
        if self.n_batches:
            self.latent_effects.update_remembered()

    @torch.no_grad()
    def finish(self, known: TrainingCells) -> None:
        """Fit the correction of the latent."""
        if not self.n_batches:
            return
        self.latent_effects.forget()
        rows = subsample(known.rows)
        found = [self.hidden_posterior(cells.x_NG) for cells in known.cells.minibatches(rows, ENCODED)]
        mean_NP, _, h_NH = (torch.cat(parts) for parts in zip(*found, strict=True))
        self.correction.fit(h_NH, mean_NP, known.cells.b_N[rows], self.latent_effects)

    def posterior(self, x_NG: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean, less its correction, and log variance of q(z|x), N x P."""
        mean_NP, log_variance_NP, h_NH = self.hidden_posterior(x_NG)
        return mean_NP - self.correction(h_NH), log_variance_NP

    def encode(self, x_NG: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        """Return the posterior mean of the latent, N x P.

        The batch is used for batches that ``adapt`` added alone: the encoder has not learnt to remove their offset.
        """
        z_NP = self.posterior(x_NG)[0]
        if self.n_batches > self.n_trained:
            z_NP = z_NP - self.latent_effects.offset(z_NP, b_N.where(b_N >= self.n_trained, -1))
        return z_NP
