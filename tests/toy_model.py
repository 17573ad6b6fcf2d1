"""A model as another package brings it: one file with its class, and its row in the catalogue."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from scmedley.data.resident import Minibatch
from scmedley.keys import Embedding
from scmedley.models.base import Model
from scmedley.models.catalogue import Row
from scmedley.models.settings import Settings, named
from scmedley.nn.layers import linear
from scmedley.nn.likelihoods import mse
from scmedley.train.loop import Losses, Progress, Stage, Term, Trainable


@dataclass(frozen=True)
class LinearSettings(Settings):
    """Settings of :class:`LinearAutoencoder`: lambda_MSE beside what all networks share."""

    mse_weight: float = 100.0


class LinearNetwork(nn.Module, Trainable):
    """One layer to the latent and one back: close to principal components."""

    def __init__(self, n_genes: int, n_batches: int, settings: LinearSettings):
        super().__init__()
        self.settings, self.n_batches = settings, n_batches
        self.encoder, self.decoder = linear(n_genes, settings.n_latent), linear(settings.n_latent, n_genes)

    def stages(self) -> list[Stage]:
        return [Stage({"autoencoder": list(self.parameters())}, self.settings.learning_rate)]

    def losses(self, cells: Minibatch, progress: Progress) -> Losses:
        error = mse(cells.x_NG, self.decode(self.encode(cells.x_NG, cells.b_N), cells.b_N))
        yield "autoencoder", {"reconstruction": Term(error, self.settings.mse_weight)}

    def encode(self, x_NG: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        return self.encoder(x_NG)

    def decode(self, z_NP: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        return self.decoder(z_NP)


class LinearAutoencoder(Model[LinearSettings]):
    """A linear autoencoder of all cells."""

    key = "X_toy_linear"
    has_label_head = False
    networks: ClassVar = {LinearSettings: LinearNetwork}

    @classmethod
    def preset(cls, name: str, labelled: bool = False) -> LinearSettings:
        return named(name, default=LinearSettings(), paper=LinearSettings().as_published())


ROW = Row(
    LinearAutoencoder,
    "LIN",
    (Embedding("X_toy_linear", "Linear autoencoder", batch=-1, label=1),),
    command="linear",
)
