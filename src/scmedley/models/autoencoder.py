"""The plain autoencoder (AE): tied decoder, reconstruction alone.

Shapes: N cells of a minibatch, G genes, P latent dimensions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from scmedley import keys
from scmedley.data.resident import Minibatch
from scmedley.models.base import Model
from scmedley.models.settings import Settings, named
from scmedley.nn.bayesian import one_hot
from scmedley.nn.layers import Encoder, TiedDecoder
from scmedley.nn.likelihoods import mse
from scmedley.train.loop import Move


@dataclass(frozen=True)
class AutoencoderSettings(Settings):
    """Settings of :class:`Autoencoder`; ``mse_weight`` is lambda_MSE."""

    mse_weight: float = 100.0


class AutoencoderNetwork(nn.Module):
    """Encoder and tied decoder: x_NG to z_NP to xhat_NG."""

    decoder: TiedDecoder

    def __init__(self, n_genes: int, n_batches: int, settings: AutoencoderSettings):
        super().__init__()
        self.settings = settings
        self.n_batches = n_batches
        self.encoder = Encoder(n_genes, settings.hidden, settings.n_latent, settings.batch_norm_momentum)
        self.decoder = TiedDecoder(self.encoder)

    def players(self) -> dict[str, Sequence[nn.Parameter]]:
        """Give the parameters of each player, in playing order."""
        return {"autoencoder": list(self.parameters())}

    def play(self, cells: Minibatch) -> Iterator[Move]:
        """Yield L_AE = lambda_MSE * MSE(x, xhat)."""
        error = mse(cells.x_MG, self.decode(self.encode(cells.x_MG, cells.b_M), cells.b_M))
        yield Move("autoencoder", self.settings.mse_weight * error, {"reconstruction": error})

    def begin(self, b_N: Tensor) -> None:
        """Learn what does not change in training from the batch codes of the training cells: nothing."""

    def after_epoch(self) -> None:
        """Do nothing between epochs."""

    def encode(self, x_NG: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        """Give z_NP; the batch is not looked at."""
        z_NP: Tensor = self.encoder(x_NG)[-1]
        return z_NP

    def decode(self, z_NP: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        """Give xhat_NG, scaled like the input, with the batch's effects if the decoder has any."""
        xhat_NG: Tensor = self.decoder(z_NP, self.encoder, one_hot(b_N, self.n_batches), draw)
        return xhat_NG


class Autoencoder(Model[AutoencoderSettings]):
    """Plain autoencoder of all cells: the baseline that knows nothing of batches (scMEDAL's AE)."""

    key: ClassVar[str] = keys.AUTOENCODER
    settings_type = AutoencoderSettings
    network_type = AutoencoderNetwork

    @classmethod
    def preset(cls, name: str) -> AutoencoderSettings:
        """Give the settings named ``"default"`` or ``"paper"``."""
        return named(
            name, default=AutoencoderSettings(), paper=AutoencoderSettings(mse_weight=1.0).as_published()
        )
