"""Fixed effects (FE; FEC with a label head): a variational latent that batches do not move.

The encoder never uses the batch. The batch has random effects in two places: in the decoder, which adds what
each batch adds to the expression, and in the latent, where they are the measure of how far a batch is from the
others. Training reduces the latter.

Shapes: N cells, G genes, Q principal components, P latent dimensions, B batches, K clusters or labels, H hidden
units, F features of the correction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from scmedley import keys
from scmedley.data.resident import ENCODED, Minibatch, Resident
from scmedley.data.scale import ScaleName
from scmedley.errors import ScmedleyError
from scmedley.models.adversarial import AdversarialNetwork, AdversarialSettings
from scmedley.models.base import Model
from scmedley.models.export import Effects, Layer, tied_layers
from scmedley.models.settings import Settings, named
from scmedley.nn.balance import Balance
from scmedley.nn.bayesian import Bias, EffectStart, Levels, ScaleAndBias, tables, update_priors
from scmedley.nn.draws import normal_like
from scmedley.nn.latent_effects import Correction, LatentEffects, subsample
from scmedley.nn.layers import Classifier, Components, TiedDecoder, VariationalEncoder
from scmedley.nn.likelihoods import cross_entropy, kl_to_standard_normal, mse
from scmedley.train.trainable import Losses, Progress, Stage, Term, Trainable, TrainingCells

KL_FULL = 0.3  # share of training after which the KL has its full weight
# Shares of training at which the offset term begins, and has its full weight.
OFFSET_START, OFFSET_FULL = 0.1, 0.4


@dataclass(frozen=True)
class FixedEffectsSettings(Settings):
    """Settings of :class:`FixedEffects`.

    Attributes
    ----------
    scale
        ``"pareto"`` or ``"standard"``, which gives all genes the same weight, also those that are mostly noise.
    kl_weight
        Weight of KL(q(z) || N(0, I)). 1 gives the evidence lower bound.
    offset_weight
        Weight of the offset term. 1 gives the KL of the posterior from the one without its batch's offset.
    n_clusters
        K, the largest number of clusters of the latent; each has its own offset of every batch.
    n_components
        Q, the number of principal components of the genes that the networks read and reconstruct.
    noise
        Standard deviation of Gaussian noise on the components in training.
    effects
        Initial posterior and prior of the random effects in the decoder.
    label_weight
        Weight of the cross entropy of the labels, used only with a label head.
    label_head_hidden
        Sizes of the hidden layers of the label head.
    """

    scale: ScaleName = "pareto"
    kl_weight: float = 1.0
    offset_weight: float = 1.0
    n_clusters: int = 100
    n_components: int = 300
    noise: float = 0.5
    effects: EffectStart = field(default_factory=lambda: EffectStart(loc_scale=0.01))
    label_weight: float = 10.0
    label_head_hidden: tuple[int, ...] = (64,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale not in ("pareto", "standard"):
            raise ScmedleyError(
                f"scale={self.scale!r} does not fit the default FixedEffects, whose likelihood has variance 1. Use "
                "scale='pareto' or scale='standard'."
            )


class FixedEffectsNetwork(nn.Module, Trainable):
    """Variational encoder, tied decoder with batch effects, latent random effects, and perhaps a label head."""

    n_cells: Tensor

    def __init__(
        self,
        n_genes: int,
        n_batches: int,
        settings: FixedEffectsSettings,
        n_labels: int = 0,
        levels: Levels | None = None,
    ):
        super().__init__()
        s = self.settings = settings
        self.n_batches = self.n_trained = n_batches
        self.levels = levels or Levels(n_batches)
        self.components = Components(n_genes, s.n_components)
        n_components = self.components.rotation_GQ.shape[1]
        self.encoder = VariationalEncoder(n_components, s.hidden, s.n_latent, s.batch_norm_momentum, s.noise)
        effects = [ScaleAndBias(self.levels, size, s.effects) for size in reversed(s.hidden)]
        self.decoder = TiedDecoder(self.encoder, [*effects, Bias(self.levels, n_components, s.effects)])
        self.latent_effects = LatentEffects(n_batches, s.n_clusters, s.n_latent)
        self.correction = Correction(n_components + s.hidden[-1], s.n_latent)
        self.label_head = Classifier(s.n_latent, s.label_head_hidden, n_labels) if n_labels else None
        self.balance = Balance({"label": s.label_weight} if n_labels else {}, s.weights)
        self.register_buffer("n_cells", torch.tensor(1.0))

    def begin(self, known: TrainingCells, progress: Progress) -> None:
        """Set the number of training cells, and learn the principal components."""
        self.n_cells.fill_(len(known.rows))
        cells = known.cells.minibatches(subsample(known.rows), ENCODED)
        self.components.fit(torch.cat([minibatch.x_NG for minibatch in cells]))

    @torch.no_grad()
    def inputs(self, cells: Resident) -> Resident:
        """Return the principal components of the cells: they do not change in training."""
        return cells.mapped(self.components, self.components.rotation_GQ.shape[1])

    def stages(self) -> list[Stage]:
        """Return one stage; it keeps the last epoch, because the loss changes while its weights rise."""
        return [self.settings.stage({"autoencoder": list(self.parameters())}, keep="last")]

    def losses(self, cells: Minibatch, progress: Progress) -> Losses:
        """Yield the loss, in nats per cell; ``cells`` are principal components (:meth:`inputs`).

        L = Q/2 MSE + w(t) KL(q(z|x) || N(0, I)) + KL(q(U) || p(U)) / N + r(t) 1/2 sum_p delta_p^2 / v_p

        with x the principal components, q(z|x) = N(m, diag v), x | z, b ~ N(decoder_b(z), 1), and delta the latent
        offset of the cell's batch. The last term is KL(N(m, v) || N(m - delta, v)): the posterior against what it
        would be without its batch. delta and v are constants in it, so its gradient moves m. With labels,
        label_weight * CE(y) is added.
        """
        s = self.settings
        x_NQ = cells.x_NG
        half_q = x_NQ.shape[1] / 2
        mean_NP, log_variance_NP, _ = self.encoder(x_NQ)
        z_NP = mean_NP
        if self.training:
            self.latent_effects.remember(mean_NP, cells.b_N)
            z_NP = mean_NP + (0.5 * log_variance_NP).exp() * normal_like(mean_NP)
        error = mse(x_NQ, self._decode(z_NP, cells.b_N, draw=self.training))
        terms = {
            "reconstruction": Term(error, half_q),
            "latent kl": Term(
                kl_to_standard_normal(mean_NP, log_variance_NP),
                s.kl_weight * ramp(progress.share, 0.0, KL_FULL),
            ),
            "offset": Term(
                self.latent_effects.kl(mean_NP, log_variance_NP, cells.b_N),
                s.offset_weight * ramp(progress.share, OFFSET_START, OFFSET_FULL),
            ),
        }
        if self.label_head is not None and cells.y_N is not None:
            label = {"label": cross_entropy(self.label_head(z_NP), cells.y_N)}
            weights = self.balance(z_NP, half_q * error, label)
            terms["label"] = Term(label["label"], weights["label"])
        yield "autoencoder", terms | {"kl": self.kl(error, x_NQ.shape[1])}

    def after_epoch(self, known: TrainingCells, progress: Progress) -> None:
        """Update clusters and offsets of the latent, and the priors of the decoder's effects."""
        self.balance.after_epoch()
        update_priors(self)
        self.latent_effects.update_remembered()

    @torch.no_grad()
    def finish(self, known: TrainingCells) -> None:
        """Fit the correction of the latent; ``known`` has principal components (:meth:`inputs`)."""
        self.latent_effects.forget()
        rows = subsample(known.rows)
        parts = [self._encode(cells.x_NG) for cells in known.cells.minibatches(rows, ENCODED)]
        mean_NP, features_NF = (torch.cat(part) for part in zip(*parts, strict=True))
        self.correction.fit(features_NF, mean_NP, known.cells.b_N[rows], self.latent_effects)

    def encode(self, x_NG: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        """Return the posterior mean of the latent less its correction, N x P.

        The batch is not used, except for batches that ``adapt`` added: the encoder has not learnt to remove their
        offset, so it is subtracted.
        """
        mean_NP, features_NF = self._encode(self.components(x_NG))
        z_NP: Tensor = mean_NP - self.correction(features_NF)
        if self.n_batches > self.n_trained:
            z_NP = z_NP - self.latent_effects.offset(z_NP, b_N.where(b_N >= self.n_trained, -1))
        return z_NP

    def _encode(self, x_NQ: Tensor) -> tuple[Tensor, Tensor]:
        """Return the posterior mean, and the features of its correction: components and last hidden layer."""
        mean_NP, _, h_NH = self.encoder(x_NQ)
        return mean_NP, torch.cat([x_NQ, h_NH], dim=1)

    def decode(self, z_NP: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        """Return xhat_NG, scaled like the input, with the effects of batches ``b_N`` (-1: none)."""
        return self.components.inverse(self._decode(z_NP, b_N, draw))

    def decode_hidden(self, z_NP: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        """Return the activations before the output layer of the decoder."""
        return self.decoder.hidden(z_NP, self.encoder, self.levels(b_N), draw)

    def decode_output(self, h_NH: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        """Return xhat_NG, which is linear in the activations before the output layer."""
        return self.components.inverse(self.decoder.output(h_NH, self.encoder, self.levels(b_N), draw))

    @property
    def decoder_effects(self) -> nn.ModuleList:
        """The batch effects of the decoder, layer by layer."""
        return self.decoder.effects

    def decoder_layers(self) -> list[Layer]:
        """Return the layers of the decoder; the last one is rotated from components to genes.

        Genes of the rotated layer have the means and the variances of their effects, not their covariances.
        """
        *hidden, last = tied_layers(self.decoder, self.encoder)
        *effects, bias = cast(Sequence[Any], self.decoder.effects)
        rotation_QG = self.components.rotation_GQ.t()
        beta, variance = bias.beta.loc_BH @ rotation_QG, bias.beta.scale_BH().square() @ rotation_QG.square()
        none = torch.zeros_like(beta)
        layers = [layer._replace(effects=Effects.of(e)) for layer, e in zip(hidden, effects, strict=True)]
        rotated = Layer(
            last.weight_IO @ rotation_QG,
            last.bias_O @ rotation_QG,
            Effects(none, none, beta, variance.sqrt()),
        )
        return [*layers, rotated]

    def _decode(self, z_NP: Tensor, b_N: Tensor, draw: bool) -> Tensor:
        """Return the reconstructed components, N x Q."""
        xhat_NQ: Tensor = self.decoder(z_NP, self.encoder, self.levels(b_N), draw)
        return xhat_NQ

    def kl(self, error: Tensor, n_genes: int, n_cells: float | None = None) -> Term:
        """Return KL(q(U) || p(U)) of all effect tables, per cell; ``n_cells`` defaults to the training cells."""
        kl_T = torch.stack([table.kl() for table in tables(self)])
        return Term(kl_T.sum() / (self.n_cells if n_cells is None else n_cells), 1.0)

    def drawn_reconstruction(self, cells: Minibatch) -> Term:
        """Return the reconstruction error with drawn effects, and its weight."""
        x_NQ = self.components(cells.x_NG)
        xhat_NQ = self._decode(self.encode(cells.x_NG, cells.b_N), cells.b_N, draw=True)
        return Term(mse(x_NQ, xhat_NQ), x_NQ.shape[1] / 2)


class FixedEffects(Model[FixedEffectsSettings | AdversarialSettings]):
    """What is common to all batches (FE of scMEDAL in the ``paper`` preset; FEC with ``label_key``).

    The encoder does not use the batch, so it also embeds cells of batches that the model was not trained on.
    """

    key: ClassVar[str] = keys.FIXED
    networks: ClassVar[Mapping[type[Settings], type]] = {
        FixedEffectsSettings: FixedEffectsNetwork,
        AdversarialSettings: AdversarialNetwork,
    }

    @property
    def has_effects(self) -> bool:
        """Whether the decoder has batch effects, as in all but the ``paper`` preset."""
        return isinstance(self.settings, FixedEffectsSettings)

    @classmethod
    def preset(cls, name: str, labelled: bool = False) -> FixedEffectsSettings | AdversarialSettings:
        """Return the ``"default"`` or ``"paper"`` settings (AML experiment); ``labelled``: those of FEC."""
        paper = AdversarialSettings()
        if labelled:
            paper = AdversarialSettings(mse_weight=2000.0, adversary_weight=0.5, label_weight=3.0)
        default: FixedEffectsSettings | AdversarialSettings = FixedEffectsSettings()
        return named(name, default, paper.as_published())


def ramp(share: float, start: float, full: float) -> float:
    """Return a weight that rises linearly from 0 at ``start`` to 1 at ``full``, shares of the training."""
    return min(1.0, max(0.0, (share - start) / (full - start)))
