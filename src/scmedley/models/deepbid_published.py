"""The published DeepBID (``preset="paper"``): an autoencoder with five losses and closed-form clusters.

Shapes: N cells of the call at hand, G genes, H hidden units, P latent dimensions, K clusters, B batches.
"""

import math
import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor, nn

from scmedley import distributed
from scmedley.data.resident import ENCODED, Minibatch, Resident
from scmedley.device import without_autocast
from scmedley.errors import ScmedleyError, warn
from scmedley.models.settings import Settings, check_n_clusters
from scmedley.nn import clustering
from scmedley.nn.latent_effects import subsample
from scmedley.nn.layers import linear
from scmedley.nn.likelihoods import negative_binomial
from scmedley.train.schedule import OptimiserName
from scmedley.train.trainable import Losses, Progress, Stage, Term, Trainable, TrainingCells

LARGE = 10_000  # cells from which the paper uses its settings for large data
EQUAL = 1e-3  # largest difference from 1 / K of memberships that say nothing
FALLING = 3  # epochs in a row in which memberships lose information, after which training stops
OUTER, INNER, WHOLE, CLUSTERING = "pretrain outer", "pretrain inner", "pretrain whole", "cluster"

Start = Literal["k-means", "fuzzy"]
Reduction = Literal["mean", "sum"]


@dataclass(frozen=True)
class PublishedDeepBIDSettings(Settings):
    """Settings of the published DeepBID, with the values of the paper.

    Attributes
    ----------
    n_clusters
        K, the number of clusters, which must be given: every published result uses the true number of types.
    lambda1, lambda2
        Weights of L_A and L_O.
    kappa1, kappa2
        Weights of L_KL1 and L_KL2.
    large_lambda1, large_lambda2, large_learning_rate
        Replace ``lambda1``, ``lambda2`` and ``learning_rate`` from 10,000 cells (:meth:`for_cells`), but not values
        that were changed.
    start
        First centres: of ``"k-means"`` of the pre-trained latent, or of ``"fuzzy"`` k-means from there, as
        printed. The latter moves all centres to the mean of the cells: with 300 dimensions, distances to all centres
        are nearly equal.
    fuzzifier
        m of fuzzy k-means, above 1.
    reduction
        ``"mean"``: the objective of a minibatch (eq. 11) is divided by its number of cells. ``"sum"``: as printed.
    tolerance
        The clusters have settled, and training ends, when an epoch moves less than this share of the memberships.
        It also ends, with a warning, when memberships lose information in three epochs in a row.
    max_epochs
        Epochs of each of the three stages of pre-training, and most epochs of the clustering.
    """

    counts: ClassVar[bool] = False  # its negative binomial is of rounded logarithms

    scale: Literal["none"] = "none"
    hidden: tuple[int, ...] = (500,)
    n_latent: int = 300
    learning_rate: float = 1e-3
    decay: bool = False
    batch_size: int | None = 128
    max_epochs: int | None = 20
    n_clusters: int | None = None
    lambda1: float = 5.0
    lambda2: float = 0.01
    kappa1: float = 0.01
    kappa2: float = 100.0
    large_lambda1: float = 1.0
    large_lambda2: float = 1e-4
    large_learning_rate: float = 1e-5
    start: Start = "k-means"
    fuzzifier: float = 2.0
    reduction: Reduction = "mean"
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("start", Start), ("reduction", Reduction)):
            if getattr(self, name) not in get_args(known):
                raise ScmedleyError(f"{name}={getattr(self, name)!r} must be one of {list(get_args(known))}.")
        check_n_clusters(self.n_clusters)
        if len(self.hidden) != 1:
            raise ScmedleyError(f"hidden={self.hidden} must be one size: the paper has f-500-300-500-f.")
        if self.fuzzifier <= 1:
            raise ScmedleyError(f"fuzzifier={self.fuzzifier} must be above 1.")
        if self.scale != "none":
            raise ScmedleyError(
                f"scale={self.scale!r} does not fit the published DeepBID, which rounds log1p CP10k to whole "
                "numbers. Use scale='none'."
            )

    def for_cells(self, n_cells: int) -> Self:
        """Return the settings for data of ``n_cells`` cells (training, validation and test together)."""
        if n_cells < LARGE:
            return self
        usual = type(self)()
        large = {
            "lambda1": self.large_lambda1,
            "lambda2": self.large_lambda2,
            "learning_rate": self.large_learning_rate,
        }
        return self.replace(**{k: v for k, v in large.items() if getattr(self, k) == getattr(usual, k)})


class PublishedDeepBIDNetwork(nn.Module, Trainable):
    """Encoder f-500-300 and decoder 300-500 with tanh; three linear heads: reconstruction, mean, dispersion.

    Where the paper is silent or contradicts itself:

    - Eq. 10 has no gradient to the network if memberships are held constant in an epoch, as the text says. Here
      p_jk of L_KL2 is eq. 14 of the current latent; that of L_A is held constant.
    - Sums over a minibatch, with SGD at a rate of 1e-3, diverge in the first epoch. So the sum of a minibatch is
      divided by its number of cells: the weights of the terms stay the same, and a step is 128 times smaller. A
      term that is not finite, or memberships that are all 1/K, stop the training.
    - Eq. 11 sums over all cells, training over minibatches. L_O and L_KL2 are no sums over cells, so they weigh N / 128
      times as much, relative to the others, as in eq. 11 for all N cells.
    - Fuzzy k-means with fuzzifier 2 puts all centres on the mean of the cells, so k-means gives the first centres.
    - Log-normalised values are rounded to whole numbers for the negative binomial, as printed.
    - The text gives no bias for mean and dispersion, exp(W D), but L_O has one for each layer. All layers have one.
    - Centres are those of the training cells; memberships are computed for any cell.
    - L_rec does not reach the heads of the negative binomial, and gradients of untrained heads would destroy the
      latent. So they are pre-trained with the whole autoencoder, by L_NB, whose gradient stops at D.
    - The reconstruction is trained before the clustering alone: eq. 11 has no term for it.
    - Eq. 13 and 14 alone, without any training, move all centres to the mean of the cells where distances within
      a cluster are as long as those between centres: a cell then has a good share in every cluster, and each
      centre is a mean of all cells. The information of the memberships (entropy of their mean minus their mean entropy)
      shows this. When it falls in three epochs in a row, training stops.
    """

    centre_KP: Tensor
    share_B: Tensor
    moved: Tensor
    information: Tensor
    falling: Tensor
    membership_NK: Tensor

    def __init__(self, n_genes: int, n_batches: int, settings: PublishedDeepBIDSettings):
        super().__init__()
        s = self.settings = settings
        if s.n_clusters is None:
            raise ScmedleyError(
                "The published DeepBID needs the number of clusters. Give n_clusters=..., or use preset='default', "
                "which finds it."
            )
        self.n_batches = n_batches
        (n_hidden,) = s.hidden
        self.outer_encoder, self.inner_encoder = linear(n_genes, n_hidden), linear(n_hidden, s.n_latent)
        self.inner_decoder, self.reconstruction = linear(s.n_latent, n_hidden), linear(n_hidden, n_genes)
        self.log_mean, self.log_dispersion = linear(n_hidden, n_genes), linear(n_hidden, n_genes)
        self.register_buffer("centre_KP", torch.zeros(s.n_clusters, s.n_latent))
        self.register_buffer("share_B", torch.ones(max(n_batches, 1)))  # v_B
        self.register_buffer("moved", torch.tensor(math.inf))  # share of the memberships, in the last epoch
        self.register_buffer("information", torch.tensor(0.0))  # of the memberships, in nats
        self.register_buffer("falling", torch.tensor(0))  # epochs in a row in which it has fallen
        # Of all cells, from the weights and centres at the end of the last epoch: not saved.
        self.register_buffer("membership_NK", torch.zeros(0, s.n_clusters), persistent=False)

    def stages(self) -> list[Stage]:
        """Return the three stages of greedy pre-training with Adam, and the clustering with SGD."""
        outer, inner = (self.outer_encoder, self.reconstruction), (self.inner_encoder, self.inner_decoder)
        whole = (*outer, *inner, self.log_mean, self.log_dispersion)
        return [
            self._stage(OUTER, *outer),
            self._stage(INNER, *inner),
            self._stage(WHOLE, *whole),
            self._stage(CLUSTERING, self, optimiser="sgd"),
        ]

    def _stage(self, name: str, *layers: nn.Module, optimiser: OptimiserName = "adam") -> Stage:
        players = {"autoencoder": [p for layer in layers for p in layer.parameters()]}
        return Stage(players, self.settings.learning_rate, name, optimiser=optimiser, keep="last")

    def losses(self, cells: Minibatch, progress: Progress) -> Losses:
        """Yield L_rec = sum ||x - xhat||^2 per cell in the stages of pre-training, then :meth:`objective`."""
        if progress.stage == CLUSTERING:
            yield "autoencoder", self.objective(cells)
            return
        x, terms = cells.x_NG, {}
        if progress.stage == OUTER:
            xhat = self.reconstruction(torch.tanh(self.outer_encoder(x)))
        elif progress.stage == INNER:  # from the activations of the outer encoder to themselves
            x = torch.tanh(self.outer_encoder(x)).detach()
            xhat = self.decode_hidden(torch.tanh(self.inner_encoder(x)), cells.b_N)
        else:
            d_NH = self.decode_hidden(self.encode(x, cells.b_N), cells.b_N)
            xhat = self.decode_output(d_NH, cells.b_N)
            terms = {"negative log-likelihood": Term(-self._log_p(cells, d_NH.detach()).mean(), 1.0)}
        error = (x - xhat).float().square().sum(1).mean()
        yield "autoencoder", {"reconstruction": Term(error, 1.0)} | terms

    def objective(self, cells: Minibatch) -> dict[str, Term]:
        """Return the terms of the objective of a minibatch (eq. 11).

        L = L_NB + lambda1 L_A + lambda2 L_O + kappa1 L_KL1 + kappa2 L_KL2

        - L_NB = -sum log NB([x]; exp(W_mu D), exp(W_theta D)) (eq. 1-2), D the last hidden layer of the decoder;
        - L_A, the distance to the centres, with the memberships of the last epoch (eq. 3);
        - L_O, the squared weights of all layers (eq. 4);
        - L_KL1, the neighbours of a cell in its batch (eq. 7-9);
        - L_KL2, the batches in a cluster, with the memberships of the current latent (eq. 10 and 14).

        With ``reduction="mean"`` all of it is divided by the number of cells: L_NB, L_A and L_KL1 are means over cells,
        and L_O and L_KL2, which are no sums over cells, have their weights divided by the size of a minibatch.
        """
        assert cells.rows_N is not None
        h_NP = self.encode(cells.x_NG, cells.b_N)
        d_NH = self.decode_hidden(h_NP, cells.b_N)
        log_p_N = self._log_p(cells, d_NH)
        with without_autocast(h_NP.device):  # products of memberships in float32
            # Pairs of cells, and clusters, are of the whole minibatch.
            parts = (log_p_N, h_NP, cells.b_N.clamp_min(0), self.membership_NK[cells.rows_N])
            return self._terms(*(distributed.gathered(part) for part in parts))

    def _terms(self, log_p_N: Tensor, h_NP: Tensor, b_N: Tensor, before_NK: Tensor) -> dict[str, Term]:
        s = self.settings
        n, size = (len(h_NP), s.batch_size or 128) if s.reduction == "mean" else (1, 1)
        p_NK = self.memberships(h_NP)
        adaptive = clustering.adaptive_loss(h_NP, self.centre_KP, before_NK)
        composition = clustering.composition_kl(p_NK, b_N, self.share_B)
        return {
            "negative log-likelihood": Term(-log_p_N.sum() / n, 1.0),
            "adaptive": Term(adaptive / n, s.lambda1),
            "weights": Term(clustering.weight_penalty(self.parameters()), s.lambda2 / size),
            "neighbours": Term(clustering.neighbour_kl(h_NP, b_N) / n, s.kappa1),
            "composition": Term(composition, s.kappa2 / size),
            "membership entropy": Term(clustering.entropy(p_NK.detach()).mean(), 0.0, watched=False),
        }

    @torch.no_grad()
    def begin(self, known: TrainingCells, progress: Progress) -> None:
        """Set the shares of the batches and, before the clustering, the first centres."""
        if progress.stage != CLUSTERING:
            self._check_size(len(known.rows))
            return
        b_N = known.cells.b_N[known.rows].clamp_min(0)
        self.share_B.copy_(torch.bincount(b_N, minlength=len(self.share_B)) / len(b_N))
        self.moved.fill_(math.inf)
        self.falling.zero_()
        h_NP = self._latents(known.cells, subsample(known.rows))
        self.centre_KP.copy_(_k_means(h_NP, len(self.centre_KP)))
        if self.settings.start == "fuzzy":
            p_NK, _ = clustering.fuzzy_k_means(h_NP, self.centre_KP, self.settings.fuzzifier)
            self.centre_KP.copy_(clustering.centres(p_NK, h_NP, self.centre_KP))
        self.information.copy_(clustering.information(self.memberships(h_NP)))

    @torch.no_grad()
    def inputs(self, cells: Resident) -> Resident:
        """Return the cells as they are; compute their memberships, which a checkpoint does not hold."""
        if self.centre_KP.any():
            self.membership_NK = self._memberships(cells)
        return cells

    @torch.no_grad()
    def after_epoch(self, known: TrainingCells, progress: Progress) -> None:
        """Update the centres (eq. 13) with the memberships of before, then the memberships (eq. 14)."""
        if progress.stage != CLUSTERING:
            return
        before_NK, rows = self.membership_NK, known.rows
        h_NP = self._latents(known.cells, rows)
        centre_KP = clustering.centres(before_NK[rows], h_NP, self.centre_KP)
        if not centre_KP.isfinite().all():
            return  # the loop stops at the loss that is not finite, and names it
        self.centre_KP.copy_(centre_KP)
        self.membership_NK = self._memberships(known.cells)
        p_NK = self.membership_NK[rows]
        self.moved.copy_(0.5 * (p_NK - before_NK[rows]).abs().sum(1).mean())
        information = clustering.information(p_NK)
        self.falling.copy_((self.falling + 1) * (information < self.information))
        self.information.copy_(information)
        self._check_memberships(p_NK)

    def settled(self) -> bool:
        """Return whether the last epoch moved less than ``tolerance`` of the memberships, or the centres merge."""
        return float(self.moved) < self.settings.tolerance or int(self.falling) >= FALLING

    def finish(self, known: TrainingCells) -> None:
        """Warn if the centres merge, or if there are none."""
        if not self.centre_KP.any():
            warn(
                "DeepBID: training was interrupted before the first epoch of the clustering, so there are no clusters: "
                "every cell has the same membership in all of them. Fit again; with checkpoint=... it resumes."
            )
        if int(self.falling) >= FALLING:
            warn(
                f"DeepBID: the centres merge, because distances within a cluster are as long as those between centres. "
                f"Training stopped after {FALLING} epochs in which memberships lost information (now "
                f"{float(self.information):.2f} of {math.log(len(self.centre_KP)):.2f} nats). The clusters are nearly "
                "those of k-means of the pre-trained latent; preset='default' does not have this defect."
            )

    def encode(self, x_NG: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        """Return z_NP (h in the paper); the batch is not used."""
        return torch.tanh(self.inner_encoder(torch.tanh(self.outer_encoder(x_NG)))).float()

    def decode(self, z_NP: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        """Return xhat_NG, log1p CP10k; the batch is not used."""
        return self.decode_output(self.decode_hidden(z_NP, b_N), b_N)

    def decode_hidden(self, z_NP: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        """Return the last hidden layer of the decoder (D in the paper), N x H."""
        return torch.tanh(self.inner_decoder(z_NP))

    def decode_output(self, h_NH: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        """Return xhat_NG from :meth:`decode_hidden`."""
        xhat_NG: Tensor = self.reconstruction(h_NH)
        return xhat_NG.float()

    def memberships(self, z_NP: Tensor) -> Tensor:
        """Return the memberships of cells (eq. 14), N x K; rows sum to 1."""
        return clustering.memberships(z_NP, self.centre_KP)

    def _log_p(self, cells: Minibatch, d_NH: Tensor) -> Tensor:
        """Return log NB([x]; exp(W_mu D), exp(W_theta D)) of each cell (eq. 1-2)."""
        mean_NG, theta_NG = self.log_mean(d_NH).float().exp(), self.log_dispersion(d_NH).float().exp()
        return negative_binomial(cells.x_NG.round(), mean_NG, theta_NG)

    def _latents(self, cells: Resident, rows: Tensor) -> Tensor:
        parts = cells.minibatches(rows, ENCODED)
        return torch.cat([self.encode(part.x_NG, part.b_N) for part in parts])

    def _memberships(self, cells: Resident) -> Tensor:
        parts = [self.memberships(self.encode(part.x_NG, part.b_N)) for part in cells.in_order()]
        return torch.cat(parts)

    def _check_size(self, n_train: int) -> None:
        if len(self.centre_KP) > n_train:
            raise ScmedleyError(
                f"n_clusters={len(self.centre_KP)} is above the number of training cells, {n_train:,}. Use fewer "
                "clusters."
            )

    def _check_memberships(self, p_NK: Tensor) -> None:
        k = p_NK.shape[1]
        if k > 1 and bool(((p_NK - 1 / k).abs() < EQUAL).all()):
            raise ScmedleyError(
                f"DeepBID: every cell has the membership 1/{k} in every cluster, so the clusters say nothing: training "
                f"with reduction={self.settings.reduction!r} has diverged, or all centres of "
                f"start={self.settings.start!r} are the same. Use reduction='mean', start='k-means' or a lower "
                f"learning rate (now {self.settings.learning_rate:g})."
            )


def _k_means(z_NP: Tensor, n_clusters: int) -> Tensor:
    """Return the centres of k-means (the best of 10 starts), with a seed from torch's generator."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    seed = int(torch.randint(2**31 - 1, (1,)))
    kmeans = KMeans(n_clusters, n_init=10, random_state=seed)
    with warnings.catch_warnings(), threadpool_limits(1):  # threads change the order of sums
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct cells than clusters
        found = kmeans.fit(z_NP.cpu().numpy().astype(np.float64)).cluster_centers_
    return torch.as_tensor(found, dtype=z_NP.dtype, device=z_NP.device)
