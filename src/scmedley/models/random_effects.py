"""Random effects (RE): a Bayesian autoencoder with batch effects (scales and biases) in its layers.

Shapes: N cells, G genes, H hidden units, P latent dimensions, B batches.
"""

import functools
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from scmedley import keys
from scmedley.data.resident import Minibatch
from scmedley.errors import ScmedleyError, ScmedleyWarning
from scmedley.models.base import Model
from scmedley.models.export import Effects, Layer
from scmedley.models.settings import S, Settings, check_setting, named
from scmedley.nn.balance import Balance
from scmedley.nn.bayesian import EffectStart, Levels, ScaleAndBias, tables, update_priors
from scmedley.nn.draws import uniform
from scmedley.nn.layers import Classifier, batch_norm, linear, linear_before_norm
from scmedley.nn.likelihoods import cross_entropy, kl_to_mse_units, mse
from scmedley.train.trainable import Losses, Progress, Stage, Term, Trainable, TrainingCells


def _current_names(fields: dict[str, Any]) -> dict[str, Any]:
    """Return fields without the names of earlier versions, which settings files and saved models may hold."""
    if "hide_batch" in fields:
        _warn_renamed("hide_batch", "masked_share")
        fields["masked_share"] = fields.pop("hide_batch")
    if "kl_weight" in fields:
        _warn_renamed("kl_weight", "kl_per_cell_weight (if None) or kl_per_table_weight (if a number)")
        weight = fields.pop("kl_weight")
        if weight is not None:
            check_setting("kl_weight", weight, 0.0)
        fields["kl_per_cell_weight"] = 1.0 if weight is None else 0.0
        fields["kl_per_table_weight"] = 0.0 if weight is None else weight
    return fields


def _warn_renamed(old: str, new: str) -> None:
    warnings.warn(f"The setting {old} is now called {new}. Use the new name.", ScmedleyWarning, stacklevel=4)


def _takes_old_names(cls: type[S]) -> type[S]:
    """Let the constructor take the names of earlier versions, which are not attributes."""
    init: Any = cls.__init__

    @functools.wraps(init)
    def construct(self: S, *args: Any, **fields: Any) -> None:
        init(self, *args, **_current_names(fields))

    cls.__init__ = construct  # type: ignore[assignment]
    return cls


@_takes_old_names
@dataclass(frozen=True)
class RandomEffectsSettings(Settings):
    """Settings of :class:`RandomEffects`.

    Attributes
    ----------
    mse_weight, batch_weight
        lambda_MSE, lambda_b.
    batch_head_hidden
        Sizes of the hidden layers of the batch head, which predicts the batch from the latent.
    kl_per_cell_weight
        Weight of the KL in nats per training cell, summed over all tables, in the unit of the MSE. 1 gives
        the evidence lower bound.
    kl_per_table_weight
        The published lambda_KL: weight of the KL in nats, averaged over all ten tables. (The preprint does
        not say whether encoder and decoder are averaged separately, which would double it.)
    masked_share
        Share of training cells that are encoded without batch effects (masked batch). The batch head is
        trained on these cells alone, so the latent must learn the batch from the expression.
    learn_prior
        Whether the standard deviation of the prior is learnt for each table (empirical Bayes).
    encode_as_target
        Whether a counterfactual is encoded with the effects of the target (published) or of the cell's own
        batch.
    output_scale
        Initial scale of the output's BatchNorm.
    effects
        Initial posterior and prior of the effects.
    """

    steps: int = 1000
    mse_weight: float = 1.0
    batch_weight: float = 1.0
    batch_head_hidden: tuple[int, ...] = (64,)
    kl_per_cell_weight: float = 1.0
    kl_per_table_weight: float = 0.0
    masked_share: float = 0.5
    learn_prior: bool = True
    encode_as_target: bool = False
    output_scale: float = 1.0
    effects: EffectStart = field(default_factory=lambda: EffectStart(loc_scale=0.01))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.masked_share > 1:
            raise ScmedleyError(f"masked_share={self.masked_share} must be between 0 and 1.")

    def as_published(self) -> "RandomEffectsSettings":
        """Return the settings of the preprint: a narrow posterior, a weak KL, no masked batches."""
        return self.replace(
            mse_weight=110.0,
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


class RandomEffectsNetwork(nn.Module, Trainable):
    """Encoder, untied decoder and batch head; each of five blocks has a scale table and a bias table."""

    n_cells: Tensor

    def __init__(
        self,
        n_genes: int,
        n_batches: int,
        settings: RandomEffectsSettings,
        levels: Levels | None = None,
    ):
        super().__init__()
        s = self.settings = settings
        self.n_batches = n_batches
        self.levels = levels or Levels(n_batches)
        sizes = [n_genes, *s.hidden, s.n_latent]
        hidden_layers = [linear_before_norm(a, b) for a, b in pairwise(sizes[:-1])]
        self.encoder = nn.ModuleList([*hidden_layers, linear(*sizes[-2:])])
        self.encoder_norms = nn.ModuleList(batch_norm(h, s.batch_norm_momentum) for h in s.hidden)
        self.encoder_effects = nn.ModuleList(ScaleAndBias(self.levels, h, s.effects) for h in s.hidden)
        sizes = sizes[::-1]
        # SELU stands between a hidden layer and its BatchNorm.
        hidden_layers = [linear(a, b) for a, b in pairwise(sizes[:-1])]
        self.decoder = nn.ModuleList([*hidden_layers, linear_before_norm(*sizes[-2:])])
        self.decoder_norms = nn.ModuleList(batch_norm(h, s.batch_norm_momentum) for h in sizes[1:])
        nn.init.constant_(self.decoder_norms[-1].get_parameter("weight"), s.output_scale)
        self.decoder_effects = nn.ModuleList(ScaleAndBias(self.levels, h, s.effects) for h in sizes[1:])
        self.batch_head = Classifier(s.n_latent, s.batch_head_hidden, n_batches)
        self.balance = Balance({"batch": s.batch_weight}, s.weights)
        self.register_buffer("n_cells", torch.tensor(1.0))

    def begin(self, known: TrainingCells, progress: Progress) -> None:
        """Set the number of training cells."""
        self.n_cells.fill_(len(known.rows))

    def after_epoch(self, known: TrainingCells, progress: Progress) -> None:
        """Learn the standard deviation of each table's prior (empirical Bayes), if ``learn_prior``."""
        self.balance.after_epoch()
        if self.settings.learn_prior:
            update_priors(self)

    def stages(self) -> list[Stage]:
        """Return one stage with one player, which has all parameters."""
        return [self.settings.stage({"autoencoder": list(self.parameters())})]

    def encode(self, x_NG: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        """Return z_NP with the effects of batches ``b_N`` (-1: none)."""
        x_NL = self.levels(b_N)
        h = x_NG
        blocks = zip(self.encoder[:-1], self.encoder_norms, self.encoder_effects, strict=True)
        for layer, norm, effects in blocks:
            h = F.selu(effects(norm(layer(h)), x_NL, draw))
        return F.selu(self.encoder[-1](h))

    def decode(self, z_NP: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        """Return xhat_NG, scaled like the input, with the effects of batches ``b_N`` (-1: none)."""
        return self.decode_output(self.decode_hidden(z_NP, b_N, draw), b_N, draw)

    def decode_hidden(self, z_NP: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        """Return the activations before the output layer of the decoder."""
        x_NL = self.levels(b_N)
        h = z_NP
        blocks = zip(self.decoder[:-1], self.decoder_norms[:-1], self.decoder_effects[:-1], strict=True)
        for layer, norm, effects in blocks:
            h = F.selu(effects(norm(F.selu(layer(h))), x_NL, draw))
        return h

    def decode_output(self, h_NH: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        """Return xhat_NG, which in a fitted network is linear in the activations before the output layer."""
        h = self.decoder_norms[-1](self.decoder[-1](h_NH))
        xhat_NG: Tensor = self.decoder_effects[-1](h, self.levels(b_N), draw)
        return xhat_NG

    def decoder_layers(self) -> list[Layer]:
        """Return the layers of the decoder; SELU precedes BatchNorm in all except the last."""
        parts: Iterator[Any] = zip(self.decoder, self.decoder_norms, self.decoder_effects, strict=True)
        last = len(self.decoder) - 1
        return [
            Layer(layer.weight.t(), layer.bias, Effects.of(effects), norm, selu_first=i < last)
            for i, (layer, norm, effects) in enumerate(parts)
        ]

    def losses(self, cells: Minibatch, progress: Progress) -> Losses:
        """Yield L_RE = lambda_MSE * MSE + lambda_b * CE(b, batch head) + lambda_KL * KL(q(U) || p(U))."""
        lambda_mse = self.settings.mse_weight
        encoded = self._encode_training(cells) if self.training else self._encode_validation(cells)
        error = encoded.error
        batch = cross_entropy(self.batch_head(encoded.head_NP), encoded.head_b_N)
        weights = self.balance(encoded.z_NP, lambda_mse * error, {"batch": batch})
        terms = {"reconstruction": Term(error, lambda_mse), "batch": Term(batch, weights["batch"])}
        yield "autoencoder", terms | {"kl": self.kl(error, cells.x_NG.shape[1])}

    def kl(self, error: Tensor, n_genes: int, n_cells: float | None = None) -> Term:
        """Return KL(q(U) || p(U)) of all tables in nats per cell, weighted relative to the MSE ``error``.

        ``n_cells`` defaults to the number of training cells.
        """
        s = self.settings
        kl_T = torch.stack([table.kl() for table in tables(self)])
        n = self.n_cells if n_cells is None else n_cells
        of_bound = s.mse_weight * kl_to_mse_units(error, n_genes) * s.kl_per_cell_weight
        return Term(kl_T.sum() / n, of_bound + s.kl_per_table_weight * n / len(kl_T))

    def drawn_reconstruction(self, cells: Minibatch) -> Term:
        """Return the MSE of a training step (with drawn effects, and some batches masked) and its weight."""
        return Term(self._encode_training(cells).error, self.settings.mse_weight)

    def _encode_training(self, cells: Minibatch) -> "_Encoded":
        """Encode with drawn effects and with the batch masked in a share of the cells."""
        if not self.settings.masked_share:
            z_NP = self.encode(cells.x_NG, cells.b_N, draw=True)
            return _Encoded(z_NP, self._error(cells, z_NP, draw=True), z_NP, cells.b_N)
        masked_N = uniform(cells.b_N) < self.settings.masked_share
        z_NP = self.encode(cells.x_NG, cells.b_N.masked_fill(masked_N, -1), draw=True)
        return _Encoded(z_NP, self._error(cells, z_NP, draw=True), z_NP, cells.b_N.masked_fill(~masked_N, -1))

    def _encode_validation(self, cells: Minibatch) -> "_Encoded":
        """Encode with and without the batch, and average the two errors by the share of masked cells."""
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
    """A minibatch: latent, MSE, and the latent that the batch head reads, with batches (-1: not trained on it)."""

    z_NP: Tensor
    error: Tensor
    head_NP: Tensor
    head_b_N: Tensor


class RandomEffects(Model[RandomEffectsSettings]):
    """What each batch adds (RE of scMEDAL). Each cell needs its batch, or gets the population mean."""

    key: ClassVar[str] = keys.RANDOM
    needs_batch: ClassVar[bool] = True
    has_label_head: ClassVar[bool] = False
    networks: ClassVar[Mapping[type[Settings], type]] = {RandomEffectsSettings: RandomEffectsNetwork}

    @property
    def encodes_as_target(self) -> bool:
        """Whether a counterfactual is encoded with the effects of its target, as the settings say."""
        return self.settings.encode_as_target

    @classmethod
    def preset(cls, name: str, labelled: bool = False) -> RandomEffectsSettings:
        """Return the ``"default"`` or ``"paper"`` settings (AML experiment)."""
        return named(name, default=RandomEffectsSettings(), paper=RandomEffectsSettings().as_published())
