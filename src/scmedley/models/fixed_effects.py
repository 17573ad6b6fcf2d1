"""Fixed effects (FE; FEC with a label head): an autoencoder with an adversary that predicts the batch.

Shapes: N cells, G genes, A activations that the adversary sees, P latent dimensions,
B batches, K labels.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from scmedley import keys
from scmedley.data.resident import Minibatch
from scmedley.errors import ScmedleyError
from scmedley.models.autoencoder import AutoencoderNetwork, AutoencoderSettings
from scmedley.models.base import Model
from scmedley.models.settings import named
from scmedley.nn.balance import Balance
from scmedley.nn.bayesian import EffectStart, ScaleAndBias, tables, update_priors
from scmedley.nn.layers import Classifier, TiedDecoder
from scmedley.nn.likelihoods import kl_to_mse_units, mse
from scmedley.train.trainable import Losses, Progress, Stage, Term, TrainingCells

Seen = Literal["activations", "latent"]


@dataclass(frozen=True)
class FixedEffectsSettings(AutoencoderSettings):
    """Settings of :class:`FixedEffects`, in addition to those of the autoencoder.

    Attributes
    ----------
    adversary_weight
        lambda_A.
    adversary_hidden
        Sizes of the adversary's hidden layers.
    adversary_sees
        Input of the adversary. ``"activations"``: all activations of the encoder (published); ``"latent"``:
        the standardised latent.
    adversary_steps
        Steps of the adversary for each step of the autoencoder.
    bounded
        Adversarial loss of the autoencoder. ``True``: KL(batch shares || adversary), at least 0; ``False``:
        the published -CE, which has no lower bound.
    gradient_penalty
        Weight of the squared gradient of the adversary's log-probability with respect to its input (R1). It
        keeps the adversary smooth and prevents oscillations.
    latent_noise
        Standard deviation of Gaussian noise on the latent in training. It limits the batch information in
        differences that are too small for the adversary to detect.
    decoder_effects
        Whether the decoder has random effects of the batch (scales and biases). The latent then does not need
        the batch for the reconstruction, and counterfactuals come from the decoder.
    effects
        Initial posterior and prior of these effects.
    """

    adversary_weight: float = 1.0
    adversary_hidden: tuple[int, ...] = (512, 132)
    adversary_sees: Seen = "latent"
    adversary_steps: int = 3
    bounded: bool = True
    gradient_penalty: float = 0.3
    latent_noise: float = 0.1
    decoder_effects: bool = True
    effects: EffectStart = field(default_factory=lambda: EffectStart(loc_scale=0.01))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adversary_sees not in get_args(Seen):
            raise ScmedleyError(
                f"adversary_sees={self.adversary_sees!r} must be one of {list(get_args(Seen))}."
            )
        if self.adversary_steps < 1:
            raise ScmedleyError(f"adversary_steps={self.adversary_steps} must be at least 1.")

    def as_published(self) -> Self:
        """Return the settings of the preprint: unbounded adversary on all activations, no batch effects."""
        published = super().as_published()
        return published.replace(
            adversary_sees="activations",
            adversary_steps=1,
            bounded=False,
            gradient_penalty=0.0,
            latent_noise=0.0,
            decoder_effects=False,
        )


class FixedEffectsNetwork(AutoencoderNetwork):
    """The autoencoder, its adversary and, by default, random effects of the batch in the decoder.

    With ``n_labels`` it also has a label head, which is trained with the autoencoder.
    """

    share_B: Tensor
    n_cells: Tensor
    settings: FixedEffectsSettings

    def __init__(self, n_genes: int, n_batches: int, settings: FixedEffectsSettings, n_labels: int = 0):
        super().__init__(n_genes, n_batches, settings, n_labels)
        self.register_buffer("share_B", torch.full((n_batches,), 1 / n_batches))
        self.register_buffer("n_cells", torch.tensor(1.0))

    def build_decoder(self, n_genes: int, label_weight: dict[str, float]) -> None:
        """Build the adversary, the decoder with batch effects, and the balance of the losses."""
        s = self.settings
        n_seen = s.n_latent + (sum(s.hidden) if s.adversary_sees == "activations" else 0)
        self.adversary = Classifier(n_seen, s.adversary_hidden, self.n_batches)
        # Without standardisation the autoencoder could hide the batch by shrinking the latent.
        self.standardise = (
            nn.BatchNorm1d(s.n_latent, affine=False) if s.adversary_sees == "latent" else nn.Identity()
        )
        sizes = [*reversed(s.hidden), n_genes] if s.decoder_effects else []
        effects = [ScaleAndBias(self.n_batches, size, s.effects) for size in sizes]
        self.decoder = TiedDecoder(self.encoder, effects)
        self.balance = Balance({"adversarial": s.adversary_weight} | label_weight, s.weights)

    def begin(self, known: TrainingCells, progress: Progress) -> None:
        """Set the shares of the batches and the number of training cells."""
        b_N = known.cells.b_N[known.rows]
        counts_B = torch.bincount(b_N, minlength=self.n_batches).float()
        self.share_B.copy_(counts_B / counts_B.sum())
        self.n_cells.fill_(len(b_N))

    def after_epoch(self, known: TrainingCells, progress: Progress) -> None:
        """Learn the standard deviation of each table's prior (empirical Bayes)."""
        super().after_epoch(known, progress)
        update_priors(self)

    def stages(self) -> list[Stage]:
        """Return one stage with two players: the adversary, then the autoencoder."""
        parts = (self.encoder, self.decoder, self.label_head)
        autoencoder = [p for part in parts for p in part.parameters()]
        return [
            self.settings.stage({"adversary": [*self.adversary.parameters()], "autoencoder": autoencoder})
        ]

    def losses(self, cells: Minibatch, progress: Progress) -> Losses:
        """Yield the loss of the adversary on detached activations, then the loss of the autoencoder.

        Published: L_A = CE(b, adversary), L_FE = lambda_MSE * MSE - lambda_A * L_A, L_FEC = L_FE + lambda_y *
        CE(y). By default the adversarial loss is bounded, and KL(q(U) || p(U)) / N of the decoder's effects
        is added in the unit of the MSE. Both players share one pass through the encoder.
        """
        s = self.settings
        activations = self.encoder(cells.x_NG)
        if self.training and s.latent_noise:
            activations[-1] = activations[-1] + s.latent_noise * torch.randn_like(activations[-1])
        z_NP = activations[-1]
        seen_NA = torch.cat(activations, dim=1) if s.adversary_sees == "activations" else z_NP
        seen_NA = self.standardise(seen_NA.float())
        for _ in range(s.adversary_steps if self.training else 1):
            yield "adversary", self._adversary_terms(seen_NA.detach(), cells.b_N)
        logits_NB = self.adversary(seen_NA)
        adversarial = bounded(logits_NB, self.share_B) if s.bounded else unbounded(logits_NB, cells.b_N)
        error = mse(cells.x_NG, self.decode(z_NP, cells.b_N, draw=self.training))
        others = {"adversarial": adversarial} | self._label_loss(z_NP, cells)
        shared = activations[0] if s.adversary_sees == "activations" else z_NP
        weights = self.balance(shared, s.mse_weight * error, others)
        terms = {"reconstruction": Term(error, s.mse_weight)}
        # The adversarial loss rises as the adversary learns, so epochs are compared without it.
        terms |= {name: Term(v, weights[name], watched=name != "adversarial") for name, v in others.items()}
        if s.decoder_effects:
            terms["kl"] = self.kl(error, cells.x_NG.shape[1])
        yield "autoencoder", terms

    def kl(self, error: Tensor, n_genes: int, n_cells: float | None = None) -> Term:
        """Return KL(q(U) || p(U)) of all tables in nats per cell, weighted relative to the MSE ``error``.

        ``n_cells`` defaults to the number of training cells.
        """
        kl_T = torch.stack([table.kl() for table in tables(self)])
        kl = kl_T.sum() / (self.n_cells if n_cells is None else n_cells)
        return Term(kl, self.settings.mse_weight * kl_to_mse_units(error, n_genes))

    def drawn_error(self, cells: Minibatch) -> Tensor:
        """Return the MSE with drawn effects."""
        return mse(cells.x_NG, self.decode(self.encode(cells.x_NG, cells.b_N), cells.b_N, draw=True))

    def _adversary_terms(self, seen_NA: Tensor, b_N: Tensor) -> dict[str, Term]:
        """Return CE(b, adversary) and, in training, the gradient penalty."""
        penalised = self.training and self.settings.gradient_penalty > 0
        seen_NA.requires_grad_(penalised)
        logits_NB = self.adversary(seen_NA).float()
        terms = {"adversary": Term(F.cross_entropy(logits_NB, b_N), 1.0)}
        if penalised:
            log_p = F.log_softmax(logits_NB, dim=1).gather(1, b_N.unsqueeze(1)).sum()
            (slope_NA,) = torch.autograd.grad(log_p, seen_NA, create_graph=True)
            penalty = slope_NA.float().square().sum(1).mean()
            terms["gradient penalty"] = Term(penalty, 0.5 * self.settings.gradient_penalty, recorded=False)
        return terms


class FixedEffects(Model[FixedEffectsSettings]):
    """What is common to all batches (FE of scMEDAL; FEC with ``label_key``).

    The encoder does not use the batch, so it also embeds cells of batches that the model was not trained on.
    """

    key: ClassVar[str] = keys.FIXED
    settings_type = FixedEffectsSettings
    network_type = FixedEffectsNetwork

    @property
    def has_effects(self) -> bool:
        """Whether the decoder has batch effects, as the settings say."""
        return self.settings.decoder_effects

    @classmethod
    def preset(cls, name: str, labelled: bool = False) -> FixedEffectsSettings:
        """Return the ``"default"`` or ``"paper"`` settings (AML experiment); ``labelled``: those of FEC."""
        paper = FixedEffectsSettings(mse_weight=1000.0, adversary_weight=1.0)
        if labelled:
            paper = FixedEffectsSettings(mse_weight=2000.0, adversary_weight=0.5, label_weight=3.0)
        return named(name, default=FixedEffectsSettings(), paper=paper.as_published())


def unbounded(logits_NB: Tensor, b_N: Tensor) -> Tensor:
    """Return -CE(b, adversary) in nats per cell, the published adversarial loss, which has no lower bound."""
    return -F.cross_entropy(logits_NB.float(), b_N)


def bounded(logits_NB: Tensor, share_B: Tensor) -> Tensor:
    """Return KL(share || adversary) in nats per cell, averaged over cells.

    Its minimum is 0. There the adversary predicts for every cell the shares of the batches among the training
    cells, which is the best prediction if its input holds no information about the batch.
    """
    log_q_NB = F.log_softmax(logits_NB.float(), dim=1)
    entropy = -torch.special.xlogy(share_B, share_B).sum()
    divergence: Tensor = -(log_q_NB @ share_B).mean() - entropy
    return divergence
