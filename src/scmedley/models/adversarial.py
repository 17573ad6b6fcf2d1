"""The published fixed effects of scMEDAL (``preset="paper"``): an adversary predicts the batch.

Shapes: N cells, A activations that the adversary sees, B batches.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F  # noqa: N812

from scmedley.data.resident import Minibatch
from scmedley.models.autoencoder import AutoencoderNetwork, AutoencoderSettings
from scmedley.nn.balance import Balance
from scmedley.nn.layers import Classifier, TiedDecoder
from scmedley.nn.likelihoods import mse
from scmedley.train.trainable import Losses, Progress, Stage, Term


@dataclass(frozen=True)
class AdversarialSettings(AutoencoderSettings):
    """Settings of the published :class:`FixedEffects`, in addition to those of the autoencoder.

    Attributes
    ----------
    adversary_weight
        lambda_A.
    adversary_hidden
        Sizes of the adversary's hidden layers.
    """

    mse_weight: float = 1000.0
    adversary_weight: float = 1.0
    adversary_hidden: tuple[int, ...] = (512, 132)


class AdversarialNetwork(AutoencoderNetwork):
    """The autoencoder and its adversary; with ``n_labels`` also a label head, trained with the autoencoder."""

    settings: AdversarialSettings

    def build_decoder(self, n_genes: int, label_weight: dict[str, float]) -> None:
        """Build the adversary, the decoder and the balance of the losses."""
        s = self.settings
        self.adversary = Classifier(sum(s.hidden) + s.n_latent, s.adversary_hidden, self.n_batches)
        self.decoder = TiedDecoder(self.encoder)
        self.balance = Balance({"adversarial": s.adversary_weight} | label_weight, s.weights)

    def stages(self) -> list[Stage]:
        """Return one stage with two players: the adversary, then the autoencoder."""
        parts = (self.encoder, self.decoder, self.label_head)
        autoencoder = [p for part in parts for p in part.parameters()]
        return [
            self.settings.stage({"adversary": [*self.adversary.parameters()], "autoencoder": autoencoder})
        ]

    def losses(self, cells: Minibatch, progress: Progress) -> Losses:
        """Yield the loss of the adversary on detached activations, then the loss of the autoencoder.

        L_A = CE(b, adversary), L_FE = lambda_MSE * MSE - lambda_A * L_A, L_FEC = L_FE + lambda_y * CE(y). The
        adversary sees all activations of the encoder. Both players share one pass through the encoder.
        """
        activations = self.encoder(cells.x_NG)
        z_NP = activations[-1]
        seen_NA = torch.cat(activations, dim=1)
        logits_NB = self.adversary(seen_NA.detach()).float()
        yield "adversary", {"adversary": Term(F.cross_entropy(logits_NB, cells.b_N), 1.0)}
        error = mse(cells.x_NG, self.decode(z_NP, cells.b_N))
        adversarial = -F.cross_entropy(self.adversary(seen_NA).float(), cells.b_N)
        others = {"adversarial": adversarial} | self._label_loss(z_NP, cells)
        weights = self.balance(activations[0], self.settings.mse_weight * error, others)
        # The adversarial loss rises as the adversary learns, so epochs are compared without it.
        terms = {name: Term(v, weights[name], watched=name != "adversarial") for name, v in others.items()}
        yield "autoencoder", {"reconstruction": Term(error, self.settings.mse_weight)} | terms
