"""Random effects (RE): a Bayesian autoencoder with scales and biases of the batch in every layer.

Shapes: N cells of the call at hand, G genes, H hidden units, P latent dimensions, B batches.
"""

import warnings
from collections.abc import Iterator
from dataclasses import InitVar, dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from scmedley import keys
from scmedley.data.resident import Minibatch
from scmedley.errors import ScmedleyError, ScmedleyWarning
from scmedley.models.base import Model
from scmedley.models.export import Layer
from scmedley.models.settings import Settings, check_setting, named
from scmedley.nn.balance import Balance
from scmedley.nn.bayesian import EffectStart, ScaleAndBias, one_hot, tables, update_priors
from scmedley.nn.layers import Classifier, batch_norm, linear
from scmedley.nn.likelihoods import kl_to_mse_units, mse
from scmedley.train.loop import Losses, Progress, Stage, Term, Trainable, TrainingCells

_NOT_GIVEN: Any = object()


@dataclass(frozen=True)
class RandomEffectsSettings(Settings):
    """Settings of :class:`RandomEffects`.

    Attributes
    ----------
    mse_weight, batch_weight
        lambda_MSE, lambda_b.
    batch_head_hidden
        Sizes of the hidden layers of the batch head, which reads the batch from the latent.
    kl_per_cell_weight
        Weight of the KL as the evidence lower bound has it: in nats per training cell, summed over all tables, in the
        unit of the MSE. 1 is the bound itself.
    kl_per_table_weight
        The published lambda_KL: weight of the KL of a table in nats, averaged over all ten tables (the preprint leaves
        open whether encoder and decoder are averaged apart, which would double it).
    masked_share
        Share of training cells whose batch is masked in the encoder: they are encoded without batch effects. The batch
        head is trained on these alone, so the latent has to find the batch in the cell's expression.
    learn_prior
        Whether the prior's width is learnt (empirical Bayes), one for each table.
    encode_as_target
        Whether a counterfactual encodes with the target's effects too (published), or with the cell's own.
    output_scale
        Where the scales of the output's BatchNorm begin. At 1, the published value, a fit spends its first
        hundreds of steps on shrinking them to the spread of genes that lie in [0, 1].
    effects
        Where posterior and prior begin.
    """

    mse_weight: float = 110.0
    batch_weight: float = 1.0
    batch_head_hidden: tuple[int, ...] = (64,)
    kl_per_cell_weight: float = 1.0
    kl_per_table_weight: float = 0.0
    masked_share: float = 0.5
    learn_prior: bool = True
    encode_as_target: bool = False
    output_scale: float = 0.1
    effects: EffectStart = field(default_factory=lambda: EffectStart(loc_scale=0.01))
    # Names of earlier versions, which their settings files and saved models have.
    hide_batch: InitVar[Any] = _NOT_GIVEN
    kl_weight: InitVar[Any] = _NOT_GIVEN

    def __post_init__(self, hide_batch: Any, kl_weight: Any) -> None:
        if hide_batch is not _NOT_GIVEN:
            _warn_renamed("hide_batch", "masked_share")
            object.__setattr__(self, "masked_share", hide_batch)
        if kl_weight is not _NOT_GIVEN:
            _warn_renamed("kl_weight", "kl_per_cell_weight (if None) or kl_per_table_weight (if a number)")
            if kl_weight is not None:
                check_setting("kl_weight", kl_weight, 0.0)
            object.__setattr__(self, "kl_per_cell_weight", 1.0 if kl_weight is None else 0.0)
            object.__setattr__(self, "kl_per_table_weight", 0.0 if kl_weight is None else kl_weight)
        super().__post_init__()
        if self.masked_share > 1:
            raise ScmedleyError(f"masked_share={self.masked_share} must be a share, from 0 to 1.")

    def as_published(self) -> "RandomEffectsSettings":
        """Return the preprint's form: a narrow posterior, a weak KL, no batch masked."""
        return self.replace(
            batch_weight=0.1,
            batch_head_hidden=(5,),
            kl_per_cell_weight=0.0,
            kl_per_table_weight=1e-5,
            masked_share=0.0,
            learn_prior=False,
            encode_as_target=True,
            output_scale=1.0,
            effects=EffectStart(loc_scale=0.1, posterior_scale=1e-3, prior_scale=0.25),
            **self.published_training(),
        )


def _warn_renamed(old: str, new: str) -> None:
    warnings.warn(f"The setting {old} is now called {new}; use that name.", ScmedleyWarning, stacklevel=4)


class RandomEffectsNetwork(nn.Module, Trainable):
    """Encoder, untied decoder and batch head; five blocks carry a scale and a bias table each."""

    n_cells: Tensor

    def __init__(self, n_genes: int, n_batches: int, settings: RandomEffectsSettings):
        super().__init__()
        s = self.settings = settings
        self.n_batches = n_batches
        sizes = [n_genes, *s.hidden, s.n_latent]
        self.encoder = nn.ModuleList(linear(a, b) for a, b in pairwise(sizes))
        self.encoder_norms = nn.ModuleList(batch_norm(h, s.batch_norm_momentum) for h in s.hidden)
        self.encoder_effects = nn.ModuleList(ScaleAndBias(n_batches, h, s.effects) for h in s.hidden)
        sizes = sizes[::-1]
        self.decoder = nn.ModuleList(linear(a, b) for a, b in pairwise(sizes))
        self.decoder_norms = nn.ModuleList(batch_norm(h, s.batch_norm_momentum) for h in sizes[1:])
        nn.init.constant_(self.decoder_norms[-1].get_parameter("weight"), s.output_scale)
        self.decoder_effects = nn.ModuleList(ScaleAndBias(n_batches, h, s.effects) for h in sizes[1:])
        self.batch_head = Classifier(s.n_latent, s.batch_head_hidden, n_batches)
        self.balance = Balance({"batch": s.batch_weight}, s.weights)
        self.register_buffer("n_cells", torch.tensor(1.0))

    def begin(self, known: TrainingCells, progress: Progress) -> None:
        """Learn the number of training cells."""
        self.n_cells.fill_(len(known.rows))

    def after_epoch(self, known: TrainingCells, progress: Progress) -> None:
        """Learn the width of each effect table's prior (empirical Bayes), if asked for."""
        self.balance.after_epoch()
        if self.settings.learn_prior:
            update_priors(self)

    def stages(self) -> list[Stage]:
        """Return one stage, in which all parameters are one player's."""
        return [self.settings.stage({"autoencoder": list(self.parameters())})]

    def encode(self, x_NG: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        """Return z_NP with the effects of batches ``b_N`` (-1: none)."""
        b_NB = one_hot(b_N, self.n_batches)
        h = x_NG
        blocks = zip(self.encoder[:-1], self.encoder_norms, self.encoder_effects, strict=True)
        for layer, norm, effects in blocks:
            h = F.selu(effects(norm(layer(h)), b_NB, draw))
        return F.selu(self.encoder[-1](h))

    def decode(self, z_NP: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        """Return xhat_NG, scaled like the input, with the effects of batches ``b_N`` (-1: none)."""
        return self.decode_output(self.decode_hidden(z_NP, b_N, draw), b_N, draw)

    def decode_hidden(self, z_NP: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        """Return the decoder's activations before its output layer."""
        b_NB = one_hot(b_N, self.n_batches)
        h = z_NP
        blocks = zip(self.decoder[:-1], self.decoder_norms[:-1], self.decoder_effects[:-1], strict=True)
        for layer, norm, effects in blocks:
            h = F.selu(effects(norm(F.selu(layer(h))), b_NB, draw))
        return h

    def decode_output(self, h_NH: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        """Return xhat_NG of the activations before the output layer, in which it is linear once trained."""
        h = self.decoder_norms[-1](self.decoder[-1](h_NH))
        xhat_NG: Tensor = self.decoder_effects[-1](h, one_hot(b_N, self.n_batches), draw)
        return xhat_NG

    def decoder_layers(self) -> list[Layer]:
        """Return the decoder's layers; SELU comes before the BatchNorm in all but the last."""
        parts: Iterator[Any] = zip(self.decoder, self.decoder_norms, self.decoder_effects, strict=True)
        last = len(self.decoder) - 1
        return [
            Layer(layer.weight.t(), layer.bias, effects, norm, selu_first=i < last)
            for i, (layer, norm, effects) in enumerate(parts)
        ]

    def losses(self, cells: Minibatch, progress: Progress) -> Losses:
        """Yield L_RE = lambda_MSE * MSE + lambda_b * CE(b, batch head) + lambda_KL * KL(q(U) || p(U))."""
        lambda_mse = self.settings.mse_weight
        encoded = self._encode_training(cells) if self.training else self._encode_validation(cells)
        error, b_K = encoded.error, encoded.b_K
        logits_KB = self.batch_head(encoded.masked_KP).float()
        batch = F.cross_entropy(logits_KB, b_K, reduction="sum") / max(len(b_K), 1)
        weights = self.balance(encoded.z_NP, lambda_mse * error, {"batch": batch})
        yield (
            "autoencoder",
            {
                "reconstruction": Term(error, lambda_mse),
                "batch": Term(batch, weights["batch"]),
                "kl": self.kl(error, cells.x_NG.shape[1]),
            },
        )

    def kl(self, error: Tensor, n_genes: int, n_cells: float | None = None) -> Term:
        """Return KL(q(U) || p(U)) of all tables in nats per cell, with its weight beside the MSE ``error``.

        ``n_cells`` is the number of training cells, unless given.
        """
        s = self.settings
        kl_T = torch.stack([table.kl() for table in tables(self)])
        n = self.n_cells if n_cells is None else n_cells
        of_bound = s.mse_weight * kl_to_mse_units(error, n_genes) * s.kl_per_cell_weight
        return Term(kl_T.sum() / n, of_bound + s.kl_per_table_weight * n / len(kl_T))

    def drawn_error(self, cells: Minibatch) -> Tensor:
        """Return the MSE as in a training step: effects drawn, some cells' batches masked."""
        return self._encode_training(cells).error

    def _encode_training(self, cells: Minibatch) -> "_Encoded":
        """Encode with drawn effects, and with the batch masked in a share of the cells."""
        if not self.settings.masked_share:
            z_NP = self.encode(cells.x_NG, cells.b_N, draw=True)
            return _Encoded(z_NP, self._error(cells, z_NP, draw=True), z_NP, cells.b_N)
        masked_N = torch.rand(len(cells.b_N), device=cells.b_N.device) < self.settings.masked_share
        z_NP = self.encode(cells.x_NG, cells.b_N.masked_fill(masked_N, -1), draw=True)
        return _Encoded(z_NP, self._error(cells, z_NP, draw=True), z_NP[masked_N], cells.b_N[masked_N])

    def _encode_validation(self, cells: Minibatch) -> "_Encoded":
        """Encode every cell both with its batch and masked, and weigh the two errors as training draws them."""
        z_NP = self.encode(cells.x_NG, cells.b_N)
        error = self._error(cells, z_NP)
        if not self.settings.masked_share:
            return _Encoded(z_NP, error, z_NP, cells.b_N)
        masked_NP = self.encode(cells.x_NG, torch.full_like(cells.b_N, -1))
        error = torch.lerp(error, self._error(cells, masked_NP), self.settings.masked_share)
        return _Encoded(z_NP, error, masked_NP, cells.b_N)

    def _error(self, cells: Minibatch, z_NP: Tensor, draw: bool = False) -> Tensor:
        return mse(cells.x_NG, self.decode(z_NP, cells.b_N, draw))


class _Encoded(NamedTuple):
    """A minibatch: its latent, the MSE, and latent and batch of the K cells that the batch head is trained on."""

    z_NP: Tensor
    error: Tensor
    masked_KP: Tensor
    b_K: Tensor


class RandomEffects(Model[RandomEffectsSettings]):
    """What each batch adds (scMEDAL's RE). Needs the batch of a cell, or the population mean for it."""

    key: ClassVar[str] = keys.RANDOM
    needs_batch: ClassVar[bool] = True
    has_label_head: ClassVar[bool] = False
    settings_type = RandomEffectsSettings
    network_type = RandomEffectsNetwork

    @classmethod
    def preset(cls, name: str, labelled: bool = False) -> RandomEffectsSettings:
        """Return the settings named ``"default"`` or ``"paper"`` (weights of the AML experiment)."""
        return named(name, default=RandomEffectsSettings(), paper=RandomEffectsSettings().as_published())
