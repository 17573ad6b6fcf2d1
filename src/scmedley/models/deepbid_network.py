"""Network of the default DeepBID: a variational autoencoder of counts whose latent batches do not move.

The decoder is that of :class:`~scmedley.models.vae_network.VAENetwork`: a negative binomial with Bayesian effects of
the batch. The encoder, the offset of each batch in the latent and its correction are those of the default fixed effects
(:mod:`scmedley.models.fixed_effects`).

Shapes: N cells, G genes, Q principal components, P latent dimensions, F features of the correction.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from scmedley.data.resident import ENCODED
from scmedley.data.scale import ScaleName
from scmedley.models.fixed_effects import OFFSET_FULL, OFFSET_START, ramp, subsample
from scmedley.models.vae_network import VAENetwork
from scmedley.models.vae_settings import VAESettings
from scmedley.nn.latent_effects import Correction, LatentEffects
from scmedley.nn.layers import Components, VariationalEncoder
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
    n_components
        Q, the number of principal components of the genes that the encoder reads.
    noise
        Standard deviation of Gaussian noise on the components in training.
    """

    scale: ScaleName = "pareto"
    hidden: tuple[int, ...] = (256, 128)
    n_latent: int = 20
    learning_rate: float = 2e-3
    steps: int = 2000
    dropout: float = 0.0
    n_clusters: int | None = None
    offset_weight: float = 1.0
    n_offset_clusters: int = 100
    n_components: int = 300
    noise: float = 0.5


class DeepBIDNetwork(VAENetwork):
    """Encoder of principal components, latent random effects of the batch, decoder of counts."""

    settings: DeepBIDSettings

    def __init__(self, n_genes: int, n_batches: int, settings: DeepBIDSettings):
        s = settings
        super().__init__(n_genes, n_batches, s)
        self.n_trained = n_batches
        self.components = Components(n_genes, s.n_components)
        n_components = self.components.rotation_GQ.shape[1]
        self.encoder = VariationalEncoder(n_components, s.hidden, s.n_latent, s.batch_norm_momentum, s.noise)
        self.latent_effects = LatentEffects(n_batches, s.n_offset_clusters, s.n_latent)
        self.correction = Correction(n_components + s.hidden[-1], s.n_latent)
        self._seen: list[tuple[Tensor, Tensor]] = []  # posterior means and batches of this epoch

    def begin(self, known: TrainingCells, progress: Progress) -> None:
        """Set scale, first means and dispersions, and learn the principal components."""
        super().begin(known, progress)
        cells = known.cells.minibatches(subsample(known.rows), ENCODED)
        self.components.fit(torch.cat([minibatch.x_NG for minibatch in cells]))

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
            self._seen.append((mean_NP.detach(), b_N))
        weight = self.settings.offset_weight * ramp(progress.share, OFFSET_START, OFFSET_FULL)
        return {"offset": Term(self.latent_effects.kl(mean_NP, log_variance_NP, b_N), weight)}

    def after_epoch(self, known: TrainingCells, progress: Progress) -> None:
        """Update clusters and offsets of the latent, and the priors of the decoder's effects."""
        super().after_epoch(known, progress)
        if not self.n_batches:
            return
        z_NP, b_N = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        self._seen = []
        rows = subsample(torch.arange(len(z_NP), device=z_NP.device))
        self.latent_effects.update(z_NP[rows], b_N[rows])

    @torch.no_grad()
    def finish(self, known: TrainingCells) -> None:
        """Fit the correction of the latent."""
        self._seen = []
        if not self.n_batches:
            return
        rows = subsample(known.rows)
        parts = [self._encode(cells.x_NG)[::2] for cells in known.cells.minibatches(rows, ENCODED)]
        mean_NP, features_NF = (torch.cat(part) for part in zip(*parts, strict=True))
        self.correction.fit(features_NF, mean_NP, known.cells.b_N[rows], self.latent_effects)

    def posterior(self, x_NG: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean, less its correction, and log variance of q(z|x), N x P."""
        mean_NP, log_variance_NP, features_NF = self._encode(x_NG)
        return mean_NP - self.correction(features_NF), log_variance_NP

    def encode(self, x_NG: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        """Return the posterior mean of the latent, N x P; the batch is used for batches that ``adapt`` added alone."""
        z_NP = self.posterior(x_NG)[0]
        if self.n_batches > self.n_trained:
            z_NP = z_NP - self.latent_effects.offset(z_NP, b_N.where(b_N >= self.n_trained, -1))
        return z_NP

    def _encode(self, x_NG: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean, log variance, and the features of the correction: components and last hidden layer."""
        x_NQ = self.components(x_NG)
        mean_NP, log_variance_NP, h_NH = self.encoder(x_NQ)
        return mean_NP, log_variance_NP, torch.cat([x_NQ, h_NH], dim=1)
