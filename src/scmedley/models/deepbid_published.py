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

from scmedley.data.resident import ENCODED, Minibatch, Resident
from scmedley.errors import ScmedleyError
from scmedley.models.fixed_effects import subsample
from scmedley.models.settings import Settings
from scmedley.nn import clustering
from scmedley.nn.layers import linear
from scmedley.nn.likelihoods import negative_binomial
from scmedley.train.trainable import Losses, Progress, Stage, Term, Trainable, TrainingCells

LARGE = 10_000  # cells from which the paper uses its settings for large data
EQUAL = 1e-6  # largest difference from 1 / K of memberships that say nothing
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
        Replace ``lambda1``, ``lambda2`` and ``learning_rate`` from 10,000 cells (:meth:`for_cells`).
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
        k = self.n_clusters
        if k is not None and not (isinstance(k, int) and not isinstance(k, bool) and k >= 1):
            raise ScmedleyError(f"n_clusters={k!r} must be a whole number, 1 or more.")
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
        return self.replace(
            lambda1=self.large_lambda1,
            lambda2=self.large_lambda2,
            learning_rate=self.large_learning_rate,
        )


class PublishedDeepBIDNetwork(nn.Module, Trainable):
    """Encoder f-500-300 and decoder 300-500 with tanh; three linear heads: reconstruction, mean, dispersion.

    Where the paper is silent or contradicts itself:

    - Eq. 10 has no gradient to the network if memberships are held constant in an epoch, as the text says. Here
      p_jk of L_KL2 is eq. 14 of the current latent; that of L_A is held constant.
    - Sums over a minibatch, with SGD at a rate of 1e-3, diverge: weights grow to 1e10, and all memberships become
      1/K. So eq. 11 is divided by the number of cells of a minibatch. The minimum stays the same, and a step is
      128 times smaller. A term that is not finite, or memberships that are all 1/K, stop the training.
    - Fuzzy k-means with fuzzifier 2 puts all centres on the mean of the cells, so k-means gives the first centres.
    - Log-normalised values are rounded to whole numbers for the negative binomial, as printed.
    - The text gives no bias for mean and dispersion, exp(W D), but L_O has one for each layer. All layers have one.
    - Centres are those of the training cells; memberships are computed for any cell.
    - The reconstruction is trained before the clustering alone: eq. 11 has no term for it.
    """

    centre_KP: Tensor
    share_B: Tensor
    moved: Tensor
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
        # Of all cells, from the weights and centres at the end of the last epoch: not saved.
        self.register_buffer("membership_NK", torch.zeros(0, s.n_clusters), persistent=False)

    def stages(self) -> list[Stage]:
        """Return the three stages of greedy pre-training with Adam, and the clustering with SGD."""
        outer, inner = (self.outer_encoder, self.reconstruction), (self.inner_encoder, self.inner_decoder)
        rate = self.settings.learning_rate

        def stage(name: str, *layers: nn.Module) -> Stage:
            parameters = [p for layer in layers for p in layer.parameters()]
            sgd = name == CLUSTERING
            return Stage(
                {"autoencoder": parameters}, rate, name, optimiser="sgd" if sgd else "adam", keep="last"
            )

        return [
            stage(OUTER, *outer),
            stage(INNER, *inner),
            stage(WHOLE, *outer, *inner),
            stage(CLUSTERING, self),
        ]

    def losses(self, cells: Minibatch, progress: Progress) -> Losses:
        """Yield sum ||x - xhat||^2 per cell of the layers of a stage of pre-training, then :meth:`objective`."""
        if progress.stage == CLUSTERING:
            yield "autoencoder", self.objective(cells)
            return
        x = cells.x_NG
        if progress.stage == OUTER:
            xhat = self.reconstruction(torch.tanh(self.outer_encoder(x)))
        elif progress.stage == INNER:  # from the activations of the outer encoder to themselves
            x = torch.tanh(self.outer_encoder(x)).detach()
            xhat = self.decode_hidden(torch.tanh(self.inner_encoder(x)), cells.b_N)
        else:
            xhat = self.decode(self.encode(x, cells.b_N), cells.b_N)
        yield "autoencoder", {"reconstruction": Term((x - xhat).float().square().sum(1).mean(), 1.0)}

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
        s = self.settings
        assert cells.rows_N is not None
        h_NP = self.encode(cells.x_NG, cells.b_N)
        d_NH = self.decode_hidden(h_NP, cells.b_N)
        p_NK = clustering.memberships(h_NP, self.centre_KP)
        log_p_N = negative_binomial(
            cells.x_NG.round(), self.log_mean(d_NH).float().exp(), self.log_dispersion(d_NH).float().exp()
        )
        adaptive = clustering.adaptive_loss(h_NP, self.centre_KP, self.membership_NK[cells.rows_N])
        n, size = (len(h_NP), s.batch_size or 128) if s.reduction == "mean" else (1, 1)
        return {
            "negative log-likelihood": Term(-log_p_N.sum() / n, 1.0),
            "adaptive": Term(adaptive / n, s.lambda1),
            "weights": Term(clustering.weight_penalty(self.parameters()), s.lambda2 / size),
            "neighbours": Term(clustering.neighbour_kl(h_NP, cells.b_N) / n, s.kappa1),
            "composition": Term(
                clustering.composition_kl(p_NK, cells.b_N.clamp_min(0), self.share_B), s.kappa2 / size
            ),
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
        h_NP = self._latents(known.cells, subsample(known.rows))
        self.centre_KP.copy_(_k_means(h_NP, len(self.centre_KP)))
        if self.settings.start == "fuzzy":
            p_NK, _ = clustering.fuzzy_k_means(h_NP, self.centre_KP, self.settings.fuzzifier)
            self.centre_KP.copy_(clustering.centres(p_NK, h_NP, self.centre_KP))

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
        self._check_memberships(p_NK)

    def settled(self) -> bool:
        """Return whether the last epoch moved less than ``tolerance`` of the memberships."""
        return float(self.moved) < self.settings.tolerance

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
