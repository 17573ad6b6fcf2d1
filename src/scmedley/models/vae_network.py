"""Network of the variational autoencoder (:class:`~scmedley.models.vae.VAE`).

The encoder never uses the batch. With batches the decoder has their Bayesian effects, as in the fixed effects.

Shapes: N cells, G genes, P latent dimensions, H hidden units, B batches.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from scmedley import distributed
from scmedley.data.evidence import TARGET_SUM
from scmedley.data.resident import ENCODED, Minibatch
from scmedley.device import without_autocast
from scmedley.errors import ScmedleyError
from scmedley.models.export import Effects, Layer
from scmedley.models.fixed_effects import ramp
from scmedley.models.vae_settings import VAESettings
from scmedley.nn.bayesian import Bias, EffectTable, Levels, ScaleAndBias, tables, update_priors
from scmedley.nn.draws import dropout, normal_like
from scmedley.nn.latent_effects import subsample
from scmedley.nn.layers import Decoder, VariationalEncoder, linear
from scmedley.nn.likelihoods import (
    gaussian,
    kl_of_units,
    negative_binomial,
    poisson,
    zero_inflated_negative_binomial,
)
from scmedley.train.trainable import Losses, Progress, Stage, Term, Trainable, TrainingCells

ACTIVE = 0.01  # least variance over cells of a unit's posterior mean (Burda et al. 2016)
LEAST_SHARE = 1e-4
LEAST_THETA, MOST_THETA = 0.01, 100.0  # of the first estimate
# Adam moves every parameter by about the learning rate in a step, but dispersions change by orders of magnitude.
FASTER = 10.0
FIRST_ZERO_LOGIT = -3.0


class Decoded(NamedTuple):
    """The output of the decoder: the Gaussian's mean, or logits of the genes' shares of a cell's counts."""

    out_NG: Tensor
    h_NH: Tensor


class VAENetwork(nn.Module, Trainable):
    """Variational encoder and decoder, the latter with batch effects if there are batches."""

    n_cells: Tensor
    centre_G: Tensor
    span_G: Tensor
    size_B: Tensor

    def __init__(self, n_genes: int, n_batches: int, settings: VAESettings, levels: Levels | None = None):
        super().__init__()
        s = self.settings = settings
        self.n_batches = n_batches
        self.levels = levels or Levels(n_batches)
        self.unscales = s.counts
        self.encoder = VariationalEncoder(n_genes, s.hidden, s.n_latent, s.batch_norm_momentum, noise=0.0)
        effects: list[ScaleAndBias | Bias] = []
        if n_batches and s.batch_effects:
            effects = [ScaleAndBias(self.levels, size, s.effects) for size in reversed(s.hidden)]
            effects.append(Bias(self.levels, n_genes, s.effects))
        self.decoder = Decoder([s.n_latent, *reversed(s.hidden), n_genes], effects)
        for name, size in (("n_cells", ()), ("centre_G", (n_genes,)), ("span_G", (n_genes,))):
            self.register_buffer(name, torch.ones(size))
        if s.counts:
            self._build_counts(n_genes, n_batches)
        elif s.learn_variance:
            self.slow_variance_G = nn.Parameter(torch.zeros(n_genes))  # of the log variance / FASTER

    def _build_counts(self, n_genes: int, n_batches: int) -> None:
        """Build the dispersions and what converts shares of counts to log1p CP10k."""
        s = self.settings
        # The model's genes as a share of all counts of a cell, and the typical total of each batch (last: of all).
        self.gene_share = linear(s.hidden[0], 1)
        nn.init.zeros_(self.gene_share.weight)
        self.register_buffer("size_B", torch.ones(n_batches + 1))
        if s.likelihood != "poisson":
            self.slow_theta_G = nn.Parameter(torch.zeros(n_genes))  # of log theta / FASTER
            if s.dispersion == "gene x batch" and n_batches and s.batch_effects:
                self.theta_effect = EffectTable(self.levels, n_genes, s.effects)
        if s.likelihood == "zero-inflated negative binomial":
            self.zero = linear(s.hidden[0], n_genes)
            nn.init.zeros_(self.zero.weight)
            nn.init.constant_(self.zero.bias, FIRST_ZERO_LOGIT)

    @torch.no_grad()
    def begin(self, known: TrainingCells, progress: Progress) -> None:
        """Set number of cells, scale and, for counts, the first means and dispersions from training cells."""
        self.n_cells.fill_(len(known.rows))
        scale = known.cells.scale
        if scale is not None:
            self.span_G.copy_(scale.span_G)
            self.centre_G.copy_(torch.zeros_like(scale.span_G) if scale.centre_G is None else scale.centre_G)
        if self.settings.counts:
            self._begin_counts(known)

    def _begin_counts(self, known: TrainingCells) -> None:
        total_G = torch.zeros_like(self.span_G)
        log_sizes, shares, codes = [], [], []
        rows = subsample(known.rows)
        for cells in known.cells.minibatches(rows, ENCODED):
            counts_NG, size_N = _counts(cells)
            total_G += counts_NG.sum(0)
            log_sizes.append(size_N.log())
            shares.append(_share(counts_NG, size_N))
            codes.append(cells.b_N)
        p_G = (total_G + 0.5) / (total_G + 0.5).sum()
        self.decoder.linears[-1].get_parameter("bias").copy_(p_G.log())
        share = float(torch.cat(shares).mean().clamp(LEAST_SHARE, 1 - LEAST_SHARE))
        self.gene_share.bias.fill_(float(np.log(share / (1 - share))))
        log_size_N, b_N = torch.cat(log_sizes), torch.cat(codes)
        self.size_B.fill_(float(log_size_N.mean().exp()))
        for code in range(len(self.size_B) - 1):
            if bool((b_N == code).any()):
                self.size_B[code] = log_size_N[b_N == code].mean().exp()
        if self.settings.likelihood == "poisson":
            return
        excess_G, square_G = torch.zeros_like(p_G), torch.zeros_like(p_G)
        for cells in known.cells.minibatches(rows, ENCODED):
            counts_NG, _ = _counts(cells)
            mean_NG = counts_NG.sum(1, keepdim=True) * p_G
            excess_G += ((counts_NG - mean_NG).square() - mean_NG).sum(0)
            square_G += mean_NG.square().sum(0)
        # Method of moments: the variance is mean + mean^2 / theta.
        theta_G = (square_G / excess_G.clamp_min(1e-12)).clamp(LEAST_THETA, MOST_THETA)
        self.slow_theta_G.copy_(theta_G.log() / FASTER)

    def stages(self) -> list[Stage]:
        """Return one stage with one player, which has all parameters."""
        return [self.settings.stage({"autoencoder": list(self.parameters())})]

    def losses(self, cells: Minibatch, progress: Progress) -> Losses:
        """Yield the negative evidence lower bound, in nats per cell.

        L = -E_q[log p(x | z, b)] + beta w(t) KL(q(z|x) || N(0, I)) + KL(q(U) || p(U)) / N - log p(W) / N

        with z = m + sd * e, drawn in validation too, w(t) the warm-up and W the output weights. With
        ``free_bits`` the KL is sum_p max(free_bits, mean_n KL_np). With ``reduction="mean"`` the first term is
        the mean squared error and the second is divided by P. The unweighted reconstruction and KL are recorded,
        and the number of active units among the cells of the minibatch.
        """
        s = self.settings
        # In standardised input, 0 is the mean of a gene.
        x_NG = dropout(cells.x_NG, s.dropout, self.training)
        mean_NP, log_variance_NP = self.posterior(x_NG)
        z_NP = mean_NP + (0.5 * log_variance_NP).exp() * normal_like(mean_NP)
        decoded = self._decode(z_NP, cells.b_N, draw=self.training)
        kl_NP = kl_of_units(mean_NP, log_variance_NP)
        weight = s.beta * (ramp(progress.share, 0.0, s.warmup) if s.warmup else 1.0)
        if s.reduction == "mean":
            error = (cells.x_NG - decoded.out_NG).square().mean()
            weight /= s.n_latent
        else:
            error = -self._log_p(cells, decoded, draw=self.training).mean()
        # A mean of fewer than two cells has no variance.
        variance_P = distributed.gathered(mean_NP.detach()).var(0, correction=0)
        active = (variance_P > ACTIVE).sum().float()
        terms = {"reconstruction": Term(error, 1.0)}
        if s.free_bits:
            kl_P = distributed.gathered(kl_NP).mean(0)
            terms["latent kl above free bits"] = Term(kl_P.clamp_min(s.free_bits).sum(), weight)
            weight = 0.0
        terms["latent kl"] = Term(kl_NP.mean(0).sum(), weight)
        terms |= self.latent_terms(mean_NP, log_variance_NP, cells.b_N, progress)
        terms["active units"] = Term(active, 0.0, watched=False)
        if s.counts:
            # Its gradient reaches gene_share alone, so it does not change the rest.
            counts_NG, size_N = _counts(cells)
            logit_N = self.gene_share(decoded.h_NH.detach()).float().squeeze(1)
            share = F.binary_cross_entropy_with_logits(logit_N, _share(counts_NG, size_N))
            terms["gene share"] = Term(share, 1.0, watched=False, recorded=False)
        if len(self.decoder.effects):
            terms["kl"] = self.kl(error, cells.x_NG.shape[1])
        if s.shrinkage:
            weight_GH = self.decoder.linears[-1].get_parameter("weight")
            prior = 0.5 * weight_GH.shape[1] * weight_GH.square().sum() / self.n_cells
            terms["decoder prior"] = Term(prior, s.shrinkage, watched=False)
        yield "autoencoder", terms

    def latent_terms(
        self, mean_NP: Tensor, log_variance_NP: Tensor, b_N: Tensor, progress: Progress
    ) -> dict[str, Term]:
        """Return further terms of the loss, of the posterior of the latent: none."""
        return {}

    def after_epoch(self, known: TrainingCells, progress: Progress) -> None:
        """Update the priors of the decoder's effects."""
        update_priors(self)

    def posterior(self, x_NG: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of q(z|x), N x P."""
        return self.hidden_posterior(x_NG)[:2]

    def hidden_posterior(self, x_NG: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and log variance of q(z|x), N x P, and the last hidden layer of the encoder, N x H.

        For counts the encoder reads log1p CP10k that is centred and no longer scaled. Standardised, the many rare
        genes, which are mostly noise, would weigh as much as the markers of the labels.
        """
        found: tuple[Tensor, Tensor, Tensor] = self.encoder(x_NG * self.span_G if self.unscales else x_NG)
        return found

    def encode(self, x_NG: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        """Return the posterior mean z_NP; the batch is not used, and ``draw`` is for effects alone."""
        return self.posterior(x_NG)[0]

    def decode(self, z_NP: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        """Return xhat_NG, scaled like the input, with the effects of batches ``b_N`` (-1: none).

        For a likelihood of counts it is the expected log1p CP10k of a cell with the typical total of its batch
        (:func:`expected_log1p`); of a batch that ``adapt`` added, with that of all batches.
        """
        decoded = self._decode(z_NP, b_N, draw)
        if not self.settings.counts:
            return decoded.out_NG
        trained_N = b_N.where(b_N < len(self.size_B) - 1, -1)
        size_N1 = self.size_B[trained_N].repeat_interleave(len(z_NP) // len(b_N))
        share_N1 = self.gene_share(decoded.h_NH).float().sigmoid()
        mean_NG = size_N1[:, None] * share_N1 * decoded.out_NG.softmax(1)
        mean_NG, second_NG, log_zero_NG = self._moments(mean_NG, decoded.h_NH, b_N, draw)
        log1p_NG = expected_log1p(mean_NG, second_NG, log_zero_NG, TARGET_SUM / size_N1[:, None])
        xhat_NG: Tensor = (log1p_NG - self.centre_G) / self.span_G
        return xhat_NG

    def decode_hidden(self, z_NP: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        """Return what is averaged over cells before :meth:`decode_output`.

        It is the output itself for counts, whose log1p CP10k are not linear in any layer; for the Gaussian it is
        the last hidden layer.
        """
        if self.settings.counts:
            return self.decode(z_NP, b_N, draw)
        return self._decode(z_NP, b_N, draw).h_NH

    def decode_output(self, h_NH: Tensor, b_N: Tensor, draw: bool = False) -> Tensor:
        """Return xhat_NG from :meth:`decode_hidden`."""
        return h_NH if self.settings.counts else self.decoder.output(h_NH, self.levels(b_N), draw).float()

    def decoder_layers(self) -> list[Layer]:
        """Return the layers of the decoder, for the report; only those of a Gaussian give the expression."""
        if self.settings.counts:
            raise ScmedleyError(
                "This page cannot compute counterfactuals of a model of counts. The command scmedley project writes "
                "them. Only the mixed-effects model (--model mixed) has them in its page."
            )
        layers = [
            Layer(layer.get_parameter("weight").t(), layer.get_parameter("bias"))
            for layer in self.decoder.linears
        ]
        *effects, bias = list(self.decoder.effects)
        assert isinstance(bias, Bias)
        none = torch.zeros_like(bias.beta.loc_BH)
        found = [Effects.of(effect) for effect in effects if isinstance(effect, ScaleAndBias)]
        found.append(Effects(none, none, bias.beta.loc_BH, bias.beta.scale_BH()))
        return [layer._replace(effects=one) for layer, one in zip(layers, found, strict=True)]

    def kl(self, error: Tensor, n_genes: int, n_cells: float | None = None) -> Term:
        """Return KL(q(U) || p(U)) of all effect tables, per cell; ``n_cells`` defaults to the training cells."""
        kl_T = torch.stack([table.kl() for table in tables(self)])
        return Term(kl_T.sum() / (self.n_cells if n_cells is None else n_cells), 1.0)

    def drawn_reconstruction(self, cells: Minibatch) -> Term:
        """Return -log p(x | z, b) with drawn effects, and its weight (for ``adapt``)."""
        decoded = self._decode(self.encode(cells.x_NG, cells.b_N), cells.b_N, draw=True)
        return Term(-self._log_p(cells, decoded, draw=True).mean(), 1.0)

    def log_p(self, cells: Minibatch, z_NP: Tensor) -> Tensor:
        """Return log p(x | z, b) of each cell, with effects at their posterior mean."""
        return self._log_p(cells, self._decode(z_NP, cells.b_N, draw=False), draw=False)

    def rates(self, z_NP: Tensor, b_N: Tensor) -> Tensor:
        """Return each gene's share of the counts of the model's genes, N x G."""
        return self._decode(z_NP, b_N, draw=False).out_NG.softmax(1)

    def per_10k(self, z_NP: Tensor, b_N: Tensor) -> Tensor:
        """Return the mean of each gene in counts per 10,000 of all genes, N x G."""
        decoded = self._decode(z_NP, b_N, draw=False)
        share_N1: Tensor = self.gene_share(decoded.h_NH).float().sigmoid()
        return TARGET_SUM * share_N1 * decoded.out_NG.softmax(1)

    def zero_logits(self, z_NP: Tensor, b_N: Tensor) -> Tensor:
        """Return the logits of the zero inflation, N x G."""
        logit_NG: Tensor = self.zero(self._decode(z_NP, b_N, draw=False).h_NH)
        return logit_NG.float()

    def theta(self, b_N: Tensor, draw: bool = False) -> Tensor:
        """Return the dispersions: G, or N x G if each batch has its own (unknown batches: the population mean)."""
        slow: Tensor = self.slow_theta_G
        if hasattr(self, "theta_effect"):
            table = self.theta_effect
            slow = slow + self.levels(b_N) @ (table.draw_BH() if draw else table.loc_BH)
        return (FASTER * slow).exp()

    def _decode(self, z_NP: Tensor, b_N: Tensor, draw: bool) -> Decoded:
        x_NL = self.levels(b_N)
        h_NH = self.decoder.hidden(z_NP, x_NL, draw)
        return Decoded(self.decoder.output(h_NH, x_NL, draw).float(), h_NH)

    def _log_p(self, cells: Minibatch, decoded: Decoded, draw: bool) -> Tensor:
        """Return log p(x | z, b) of each cell, in float32 also where layers compute in bfloat16."""
        with without_autocast(cells.x_NG.device):
            return self._log_p_in_float32(cells, decoded, draw)

    def _log_p_in_float32(self, cells: Minibatch, decoded: Decoded, draw: bool) -> Tensor:
        s = self.settings
        if not s.counts:
            log_variance_G = (
                FASTER * self.slow_variance_G if s.learn_variance else torch.zeros_like(self.span_G)
            )
            return gaussian(cells.x_NG, decoded.out_NG, log_variance_G)
        counts_NG, _ = _counts(cells)
        mean_NG = counts_NG.sum(1, keepdim=True).clamp_min(1.0) * decoded.out_NG.softmax(1)
        if s.likelihood == "poisson":
            return poisson(counts_NG, mean_NG)
        theta = self.theta(cells.b_N, draw)
        if s.likelihood == "negative binomial":
            return negative_binomial(counts_NG, mean_NG, theta)
        return zero_inflated_negative_binomial(counts_NG, mean_NG, theta, self.zero(decoded.h_NH.float()))

    def _moments(
        self, mean_NG: Tensor, h_NH: Tensor, b_N: Tensor, draw: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return E[x], E[x^2] and log P(x = 0)."""
        if self.settings.likelihood == "poisson":
            return mean_NG, mean_NG + mean_NG.square(), -mean_NG
        theta = self.theta(b_N.repeat_interleave(len(mean_NG) // len(b_N)), draw)
        second_NG = mean_NG + mean_NG.square() * (1 + 1 / theta)
        log_zero_NG = -theta * torch.log1p(mean_NG / theta)
        if self.settings.likelihood == "negative binomial":
            return mean_NG, second_NG, log_zero_NG
        zero_NG = self.zero(h_NH).float()
        kept_NG = torch.sigmoid(-zero_NG)
        log_zero_NG = torch.logaddexp(F.logsigmoid(zero_NG), F.logsigmoid(-zero_NG) + log_zero_NG)
        return kept_NG * mean_NG, kept_NG * second_NG, log_zero_NG


def expected_log1p(mean_NG: Tensor, second_NG: Tensor, log_zero_NG: Tensor, c_N1: Tensor) -> Tensor:
    """Return about E[log1p(c x)] of counts with these moments: P(x > 0) E[log1p(c x) | x > 0].

    Given x > 0, x + 1/c is taken as log-normal with its mean m and variance v, so that E[log(x + 1/c)] =
    log(m) - log(1 + v / m^2) / 2. Exact if all counts are 0 or 1; the logarithm of the mean alone would be far too
    large for overdispersed genes.
    """
    nonzero_NG = -torch.expm1(log_zero_NG)
    given_NG = mean_NG / nonzero_NG.clamp_min(1e-12)
    variance_NG = (second_NG / nonzero_NG.clamp_min(1e-12) - given_NG.square()).clamp_min(0)
    log1p_NG = torch.log1p(c_N1 * given_NG) - 0.5 * torch.log1p(variance_NG / (given_NG + 1 / c_N1).square())
    return nonzero_NG * torch.maximum(log1p_NG, torch.log1p(c_N1))  # a count above 0 is at least 1


def _counts(cells: Minibatch) -> tuple[Tensor, Tensor]:
    """Return counts, and totals over all genes, at least 1."""
    assert cells.counts_NG is not None  # the model reads counts
    assert cells.size_N is not None
    return cells.counts_NG, cells.size_N.clamp_min(1.0)


def _share(counts_NG: Tensor, size_N: Tensor) -> Tensor:
    """Return the model's genes as a share of each cell's counts."""
    return (counts_NG.sum(1) / size_N).clamp(0.0, 1.0)
