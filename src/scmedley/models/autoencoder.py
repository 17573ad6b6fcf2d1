"""The autoencoder (AE; AEC with a label head): a tied decoder, no batch effects.

Shapes: N cells, G genes, P latent dimensions, K labels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor, nn

from scmedley import keys
from scmedley.data.resident import Minibatch
from scmedley.models.base import Model
from scmedley.models.export import Layer, tied_layers
from scmedley.models.settings import Settings, named
from scmedley.nn.balance import Balance
from scmedley.nn.bayesian import one_hot
from scmedley.nn.layers import Classifier, Encoder, TiedDecoder
from scmedley.nn.likelihoods import cross_entropy, mse
from scmedley.train.trainable import Losses, Progress, Stage, Term, Trainable, TrainingCells


@dataclass(frozen=True)
class AutoencoderSettings(Settings):
    """Settings of :class:`Autoencoder`.

    Attributes
    ----------
    mse_weight
        lambda_MSE.
    label_weight
        lambda_y, used only with a label head.
    label_head_hidden
        Sizes of the hidden layers of the label head. The published layer of 2 units is too narrow for many
        labels.
    """

    mse_weight: float = 1.0
    label_weight: float = 1.0
    label_head_hidden: tuple[int, ...] = (64,)

    def as_published(self) -> Self:
        """Return the settings of the preprint: its sizes and training, and a label head with 2 hidden units."""
        return self.replace(label_head_hidden=(2,), **self.published_training())


class AutoencoderNetwork(nn.Module, Trainable):
    """Encoder and tied decoder, x_NG to z_NP to xhat_NG; with ``n_labels`` also a label head on z_NP."""

    def __init__(self, n_genes: int, n_batches: int, settings: AutoencoderSettings, n_labels: int = 0):
        super().__init__()
        self.settings = settings
        self.n_batches = n_batches
        self.encoder = Encoder(n_genes, settings.hidden, settings.n_latent, settings.batch_norm_momentum)
        self.label_head: nn.Module = (
            Classifier(settings.n_latent, settings.label_head_hidden, n_labels) if n_labels else nn.Identity()
        )
        self.build_decoder(n_genes, {"label": settings.label_weight} if n_labels else {})

    def build_decoder(self, n_genes: int, label_weight: dict[str, float]) -> None:
        """Build the decoder and the balance of its losses."""
        self.decoder = TiedDecoder(self.encoder)
        self.balance = Balance(label_weight, self.settings.weights)

    def stages(self) -> list[Stage]:
        """Return one stage with one player, which has all parameters."""
        return [self.settings.stage({"autoencoder": list(self.parameters())})]

    def losses(self, cells: Minibatch, progress: Progress) -> Losses:
        """Yield L_AE = lambda_MSE * MSE(x, xhat); with labels, L_AEC = L_AE + lambda_y * CE(y)."""
        lambda_mse = self.settings.mse_weight
        z_NP = self.encode(cells.x_NG, cells.b_N)
        error = mse(cells.x_NG, self.decode(z_NP, cells.b_N))
        others = self._label_loss(z_NP, cells)
        weights = self.balance(z_NP, lambda_mse * error, others)
        terms = {name: Term(loss, weights[name]) for name, loss in others.items()}
        yield "autoencoder", {"reconstruction": Term(error, lambda_mse)} | terms

    def after_epoch(self, known: TrainingCells, progress: Progress) -> None:
        """Reset the minibatch count of the balance."""
        self.balance.after_epoch()

    def encode(self, x_NG: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        """Return z_NP; the batch is not used."""
        z_NP: Tensor = self.encoder(x_NG)[-1]
        return z_NP

    def decoder_layers(self) -> list[Layer]:
        """Return the layers of the decoder."""
        return tied_layers(self.decoder, self.encoder)

    def decode(self, z_NP: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        """Return xhat_NG, scaled like the input; the batch is not used."""
        xhat_NG: Tensor = self.decoder(z_NP, self.encoder, one_hot(b_N, self.n_batches), draw)
        return xhat_NG

    def decode_hidden(self, z_NP: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        """Return the activations before the output layer of the decoder."""
        return self.decoder.hidden(z_NP, self.encoder, one_hot(b_N, self.n_batches), draw)

    def decode_output(self, h_NH: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        """Return xhat_NG, which is linear in the activations before the output layer."""
        return self.decoder.output(h_NH, self.encoder, one_hot(b_N, self.n_batches), draw)

    def _label_loss(self, z_NP: Tensor, cells: Minibatch) -> dict[str, Tensor]:
        """Return CE(y) by name; empty without labels."""
        return {} if cells.y_N is None else {"label": cross_entropy(self.label_head(z_NP), cells.y_N)}


class Autoencoder(Model[AutoencoderSettings]):
    """An autoencoder that does not use the batch (AE of scMEDAL; AEC with ``label_key``)."""

    key: ClassVar[str] = keys.AUTOENCODER
    networks: ClassVar[Mapping[type[Settings], type]] = {AutoencoderSettings: AutoencoderNetwork}

    @classmethod
    def preset(cls, name: str, labelled: bool = False) -> AutoencoderSettings:
        """Return the ``"default"`` or ``"paper"`` settings (AML experiment); ``labelled``: those of AEC."""
        paper = AutoencoderSettings(mse_weight=1.0)
        if labelled:
            paper = AutoencoderSettings(mse_weight=100.0, label_weight=0.6)
        return named(name, default=AutoencoderSettings(), paper=paper.as_published())
