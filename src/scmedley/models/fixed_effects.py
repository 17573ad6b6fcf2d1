"""Fixed effects (FE; FEC with a label head): an autoencoder whose latent tells an adversary nothing of the batch.

Shapes: N cells of the call at hand, G genes, A activations that the adversary sees, P latent dimensions,
B batches, K labels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from scmedley import keys
from scmedley.data.resident import Minibatch
from scmedley.errors import ScmedleyError
from scmedley.models import fixed_effects as adversary
from scmedley.models.autoencoder import AutoencoderNetwork, AutoencoderSettings
from scmedley.models.base import Model
from scmedley.models.settings import named
from scmedley.nn.balance import Balance
from scmedley.nn.bayesian import EffectStart, ScaleAndBias, tables, update_priors
from scmedley.nn.layers import Classifier, TiedDecoder
from scmedley.nn.likelihoods import cross_entropy, mse, nat
from scmedley.train.loop import Move

Seen = Literal["activations", "latent"]


@dataclass(frozen=True)
class FixedEffectsSettings(AutoencoderSettings):
    """Settings of :class:`FixedEffects`, beyond those of the autoencoder.

    Attributes
    ----------
    adversary_weight
        lambda_A.
    adversary_hidden
        Sizes of the adversary's hidden layers.
    adversary_sees
        ``"activations"``: all of the encoder's, as published; ``"latent"``: the standardised latent.
    adversary_steps
        Steps of the adversary for one step of the autoencoder.
    bounded
        Reward for the autoencoder: ``True`` KL(batch shares || adversary) brought to 0, ``False``
        the published -CE, which has no bound.
    gradient_penalty
        Weight of the squared gradient of the adversary's log-probability by what it sees (R1): it
        keeps the adversary smooth, and the game from swinging.
    latent_noise
        Standard deviation of Gaussian noise on the latent in training, which bounds what the latent
        can hide from the adversary.
    decoder_effects
        Whether the decoder has Bayesian scales and biases of the batch. The latent then need not
        carry the batch in order to reconstruct, and counterfactuals come from the decoder.
    effects
        Where those effects begin.
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
            raise ScmedleyError(f"adversary_sees={self.adversary_sees!r} is none of {list(get_args(Seen))}.")
        if self.adversary_steps < 1:
            raise ScmedleyError(f"adversary_steps={self.adversary_steps} must be at least 1.")

    def as_published(self) -> Self:
        """Give the preprint's form: unbounded adversary on all activations, one step each, no effects."""
        return (
            super()
            .as_published()
            .replace(
                adversary_sees="activations",
                adversary_steps=1,
                bounded=False,
                gradient_penalty=0.0,
                latent_noise=0.0,
                decoder_effects=False,
            )
        )


class FixedEffectsNetwork(AutoencoderNetwork):
    """The autoencoder, its adversary and, by default, random effects of the batch in the decoder.

    With ``n_labels`` it has the autoencoder's label head too, which plays on the autoencoder's side.
    """

    share_B: Tensor
    n_cells: Tensor

    def __init__(self, n_genes: int, n_batches: int, settings: FixedEffectsSettings, n_labels: int = 0):
        super().__init__(n_genes, n_batches, settings, n_labels)
        self.settings: FixedEffectsSettings = settings
        n_seen = settings.n_latent + (sum(settings.hidden) if settings.adversary_sees == "activations" else 0)
        self.adversary = Classifier(n_seen, settings.adversary_hidden, n_batches)
        self.balance = Balance(
            {"batch left": settings.adversary_weight} | self.balance.given, settings.weights
        )
        if settings.adversary_sees == "latent":
            # Standardised, or the autoencoder could escape by shrinking the latent.
            self.standardise: nn.Module = nn.BatchNorm1d(settings.n_latent, affine=False)
        else:
            self.standardise = nn.Identity()
        if settings.decoder_effects:
            sizes = [*reversed(settings.hidden), n_genes]
            effects = [ScaleAndBias(n_batches, size, settings.effects) for size in sizes]
            self.decoder = TiedDecoder(self.encoder, effects)
        self.register_buffer("share_B", torch.full((n_batches,), 1 / n_batches))
        self.register_buffer("n_cells", torch.tensor(1.0))

    def begin(self, b_N: Tensor) -> None:
        """Learn the batches' shares and the number of training cells."""
        counts_B = torch.bincount(b_N, minlength=self.n_batches).float()
        self.share_B.copy_(counts_B / counts_B.sum())
        self.n_cells.fill_(len(b_N))

    def after_epoch(self) -> None:
        """Learn the width of each effect table's prior (empirical Bayes)."""
        super().after_epoch()
        update_priors(self)

    def players(self) -> dict[str, Sequence[nn.Parameter]]:
        """Give the adversary's parameters, then the autoencoder's."""
        return {
            "adversary": list(self.adversary.parameters()),
            "autoencoder": [
                *self.encoder.parameters(),
                *self.decoder.parameters(),
                *self.label_head.parameters(),
            ],
        }

    def play(self, cells: Minibatch) -> Iterator[Move]:
        """Yield the adversary's CE(b, adversary) on detached activations, then the autoencoder's total.

        Published: L_FE = lambda_MSE * MSE - lambda_A * CE(b, adversary), and L_FEC = L_FE + lambda_y * CE(y).
        By default the adversary's term is bounded, and KL(q(U) || p(U)) / N of the decoder's effects is
        added, in the unit of the MSE.
        Both players share one pass of the encoder.
        """
        s = self.settings
        activations = self.encoder(cells.x_NG)
        if self.training and s.latent_noise:
            activations[-1] = activations[-1] + s.latent_noise * torch.randn_like(activations[-1])
        seen_NA = torch.cat(activations, dim=1) if s.adversary_sees == "activations" else activations[-1]
        seen_NA = self.standardise(seen_NA.float())
        for _ in range(s.adversary_steps if self.training else 1):
            yield self._adversary_move(seen_NA.detach(), cells.b_N)
        logits_NB = self.adversary(seen_NA)
        if s.bounded:
            reward = adversary.bounded(logits_NB, self.share_B)
        else:
            reward = adversary.unbounded(logits_NB, cells.b_N)
        error = mse(cells.x_NG, self._decode_batch(activations[-1], cells.b_N))
        terms = {"reconstruction": error, "batch left": reward}
        if cells.y_N is not None:
            terms["label"] = cross_entropy(self.label_head(activations[-1]), cells.y_N)
        shared = activations[0] if s.adversary_sees == "activations" else activations[-1]
        total = self.balance(shared, s.mse_weight * error, terms)
        if s.decoder_effects:
            terms["kl"], weighted = self.kl(error, cells.x_NG.shape[1])
            total = total + weighted
        yield Move("autoencoder", total, terms)

    def kl(self, error: Tensor, n_genes: int, n_cells: float | None = None) -> tuple[Tensor, Tensor]:
        """Return KL(q(U) || p(U)) of the effects in nats per cell, and what it adds to the total beside ``error``.

        ``n_cells`` is the number of training cells, unless given.
        """
        kl_T = torch.stack([table.kl() for table in tables(self)])
        kl = kl_T.sum() / (self.n_cells if n_cells is None else n_cells)
        return kl, self.settings.mse_weight * nat(error, n_genes) * kl

    def drawn_error(self, cells: Minibatch) -> Tensor:
        """Return the MSE with drawn effects."""
        return mse(cells.x_NG, self.decode(self.encode(cells.x_NG, cells.b_N), cells.b_N, draw=True))

    def _decode_batch(self, z_NP: Tensor, b_N: Tensor) -> Tensor:
        return self.decode(z_NP, b_N, draw=self.training)

    def _adversary_move(self, seen_NA: Tensor, b_N: Tensor) -> Move:
        """Give CE(b, adversary), with the gradient penalty in training."""
        penalised = self.training and self.settings.gradient_penalty > 0
        seen_NA.requires_grad_(penalised)
        logits_NB = self.adversary(seen_NA).float()
        guess = loss = F.cross_entropy(logits_NB, b_N)
        if penalised:
            log_p = F.log_softmax(logits_NB, dim=1).gather(1, b_N.unsqueeze(1)).sum()
            (slope_NA,) = torch.autograd.grad(log_p, seen_NA, create_graph=True)
            loss = loss + 0.5 * self.settings.gradient_penalty * slope_NA.float().square().sum(1).mean()
        return Move("adversary", loss, {"adversary": guess})


class FixedEffects(Model[FixedEffectsSettings]):
    """What is common to all batches (scMEDAL's FE; FEC with ``label_key``).

    The encoder never sees the batch of a cell, so cells of batches that the model was not trained on embed
    like any others.
    """

    key: ClassVar[str] = keys.FIXED
    settings_type = FixedEffectsSettings
    network_type = FixedEffectsNetwork

    @classmethod
    def preset(cls, name: str, labelled: bool = False) -> FixedEffectsSettings:
        """Give the settings named ``"default"`` or ``"paper"`` (of the AML experiment); ``labelled``: FEC's."""
        paper = FixedEffectsSettings(mse_weight=1000.0, adversary_weight=1.0)
        if labelled:
            paper = FixedEffectsSettings(mse_weight=2000.0, adversary_weight=0.5, label_weight=3.0)
        return named(name, default=FixedEffectsSettings(), paper=paper.as_published())


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
