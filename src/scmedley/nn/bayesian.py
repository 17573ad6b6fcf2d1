"""Random effects of batches: Gaussian posteriors of scales and biases for the units of a layer.

With one factor every batch has a row of effects. With several factors (a design) every level of every term has one,
and the effect of a batch is the sum of its levels' rows, each times a value: a row of the design matrix.

Shapes: N cells, B batches, L levels (rows of a table; one factor: the batches), H units of the layer.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from scmedley.device import without_autocast
from scmedley.errors import ScmedleyError


def inverse_softplus(value: float) -> float:
    """Return rho such that softplus(rho) equals ``value``."""
    return math.log(math.expm1(value))


@dataclass(frozen=True)
class EffectStart:
    """Initial standard deviations of effects.

    Attributes
    ----------
    loc_scale
        Standard deviation of the random initial posterior means.
    posterior_scale
        Standard deviation of each posterior.
    prior_scale
        Standard deviation of the prior.
    """

    loc_scale: float = 0.1
    posterior_scale: float = 0.05
    prior_scale: float = 0.25

    def __post_init__(self) -> None:
        if min(self.posterior_scale, self.prior_scale) <= 0 or self.loc_scale < 0:
            raise ScmedleyError(
                f"{self} must have posterior_scale and prior_scale above 0, and loc_scale 0 or more."
            )


WIDE = 4.0  # standard deviation of the prior of a fixed term, relative to the first one of a random term


class Levels(nn.Module):
    """Which rows of the effect tables a batch has.

    Parameters
    ----------
    n_batches
        B.
    design_BL
        Design matrix of several factors; ``None``: one factor, in which batch i has row i.
    term_L
        Term of each level, whose levels share the standard deviation of their prior; -1 for fixed terms, whose prior
        is wide and does not change.
    """

    design_BL: Tensor | None
    term_L: Tensor | None

    def __init__(self, n_batches: int, design_BL: Tensor | None = None, term_L: Tensor | None = None):
        super().__init__()
        self.n_batches = n_batches
        self.register_buffer("design_BL", design_BL)
        self.register_buffer("term_L", term_L)

    @property
    def n_levels(self) -> int:
        """Return L."""
        return self.n_batches if self.design_BL is None else self.design_BL.shape[1]

    def forward(self, b_N: Tensor) -> Tensor:
        """Return the rows of the design matrix, N x L; code -1 gives zeros, the population mean."""
        if self.design_BL is None:
            return one_hot(b_N, max(self.n_batches, 1))
        return self.design_BL[b_N.clamp_min(0)] * (b_N >= 0).unsqueeze(1)

    def of_batches(self, mean_LH: Tensor, sd_LH: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the effects of each batch, B x H, from those of the levels."""
        if self.design_BL is None:
            return mean_LH, sd_LH
        return self.design_BL @ mean_LH, (self.design_BL.square() @ sd_LH.square()).sqrt()


class EffectTable(nn.Module):
    """One effect for every level and unit: q(u) = N(loc, softplus(rho)^2), prior N(0, prior_scale^2).

    Parameters
    ----------
    levels
        Levels of a design, or the number of batches of one factor.
    n_units
        H.
    start
        Initial posterior and prior. The prior's scale is a buffer that :meth:`update_prior` changes: one number, or
        with several factors one for each level (L x 1), the same for all levels of a term.
    """

    prior_scale: Tensor
    term_L: Tensor | None

    def __init__(self, levels: Levels | int, n_units: int, start: EffectStart):
        super().__init__()
        levels = Levels(levels) if isinstance(levels, int) else levels
        n_levels, term_L = levels.n_levels, levels.term_L
        self.loc_BH = nn.Parameter(torch.randn(n_levels, n_units) * start.loc_scale)
        self.rho_BH = nn.Parameter(torch.full((n_levels, n_units), inverse_softplus(start.posterior_scale)))
        prior_scale = torch.tensor(start.prior_scale)
        if term_L is not None:
            prior_scale = torch.where(term_L < 0, WIDE * start.prior_scale, start.prior_scale)[:, None]
        self.register_buffer("prior_scale", prior_scale)
        self.register_buffer("term_L", None if term_L is None else term_L.clone())

    def scale_BH(self) -> Tensor:
        """Return the posterior standard deviations."""
        return F.softplus(self.rho_BH)

    def draw_BH(self) -> Tensor:
        """Draw the table from the posterior (reparametrised)."""
        return self.loc_BH + self.scale_BH() * torch.randn_like(self.loc_BH)

    def kl(self) -> Tensor:
        """Return KL(q || prior) in nats, summed over the table.

        Per entry: 1/2 [log(s0^2 / s^2) - 1 + (s^2 + m^2) / s0^2] for q = N(m, s^2), p = N(0, s0^2).
        """
        scale = self.scale_BH()
        ratio = (scale.square() + self.loc_BH.square()) / self.prior_scale.square()
        return (torch.log(self.prior_scale / scale) + 0.5 * (ratio - 1)).sum()

    @torch.no_grad()
    def update_prior(self, floor: float = 1e-3) -> None:
        """Set the prior's variance to the mean of E_q[u^2], the closed-form empirical-Bayes step.

        If batches do not differ, the prior becomes narrow and shrinks their effects further towards 0. Each random
        term has its own.
        """
        second_moment_BH = self.loc_BH.square() + self.scale_BH().square()
        if self.term_L is None:
            self.prior_scale.copy_(second_moment_BH.mean().sqrt().clamp_min(floor))
            return
        for term in sorted(set(self.term_L.tolist())):
            if term >= 0:
                own_L = self.term_L == term
                self.prior_scale[own_L] = second_moment_BH[own_L].mean().sqrt().clamp_min(floor)


class Bias(nn.Module):
    """h + beta_b, with a bias effect for every batch and unit."""

    def __init__(self, levels: Levels | int, n_units: int, start: EffectStart):
        super().__init__()
        self.beta = EffectTable(levels, n_units, start)

    def forward(self, h_NH: Tensor, x_NL: Tensor, draw: bool) -> Tensor:
        """Apply the effects of each cell's batch, as :meth:`ScaleAndBias.forward` does."""
        beta_BH = self.beta.draw_BH() if draw else self.beta.loc_BH
        with without_autocast(h_NH.device):
            bias_NH = x_NL @ beta_BH
        if len(x_NL) < len(h_NH):
            return (h_NH.view(len(x_NL), -1, h_NH.shape[1]) + bias_NH[:, None]).view_as(h_NH)
        return h_NH + bias_NH


class ScaleAndBias(nn.Module):
    """h * (1 + gamma_b) + beta_b, with a scale effect and a bias effect for every batch and unit."""

    def __init__(self, levels: Levels | int, n_units: int, start: EffectStart):
        super().__init__()
        self.gamma = EffectTable(levels, n_units, start)
        self.beta = EffectTable(levels, n_units, start)

    def forward(self, h_NH: Tensor, x_NL: Tensor, draw: bool) -> Tensor:
        """Apply the effects of each cell's batch.

        ``x_NL`` holds a row of the design matrix for each cell, which is one-hot for one factor; a row of zeros is
        the population mean (no effect). With fewer rows than cells, each row applies to an equal block of
        consecutive cells. ``draw`` uses one draw of each table for the whole minibatch instead of the posterior
        means.
        """
        gamma_BH = self.gamma.draw_BH() if draw else self.gamma.loc_BH
        beta_BH = self.beta.draw_BH() if draw else self.beta.loc_BH
        with without_autocast(h_NH.device):  # bfloat16 has no number between 1 and 1.0078
            scale_NH, bias_NH = 1 + x_NL @ gamma_BH, x_NL @ beta_BH
        if len(x_NL) < len(h_NH):
            blocks = h_NH.view(len(x_NL), -1, h_NH.shape[1])
            return (blocks * scale_NH[:, None] + bias_NH[:, None]).view_as(h_NH)
        return h_NH * scale_NH + bias_NH


def one_hot(b_N: Tensor, n_batches: int) -> Tensor:
    """Return b_NB (float32) of one-hot rows; code -1 gives a row of zeros, the population mean."""
    b_NB = F.one_hot(b_N.clamp_min(0), n_batches).float()
    return b_NB * (b_N >= 0).unsqueeze(1)


def tables(network: nn.Module) -> list[EffectTable]:
    """Return all effect tables of a network."""
    return [module for module in network.modules() if isinstance(module, EffectTable)]


@torch.no_grad()
def add_rows(table: EffectTable, kept: Tensor, levels: Levels) -> None:
    """Add rows for new levels to a table, at the prior of their term: mean 0, and its standard deviation.

    ``kept``: the new places of the rows that the table has.
    """
    prior_scale, shape = table.prior_scale, (levels.n_levels, table.loc_BH.shape[1])
    if levels.term_L is not None:
        assert table.term_L is not None
        same_LK = levels.term_L[:, None] == table.term_L
        prior_scale = table.prior_scale[same_LK.int().argmax(1)]  # of the first level of the term
        table.term_L = levels.term_L.clone()
    rho = prior_scale.expm1().log().expand(shape).clone()  # softplus(rho) is the prior's standard deviation
    loc = table.loc_BH.new_zeros(shape)
    loc[kept], rho[kept] = table.loc_BH, table.rho_BH
    table.loc_BH, table.rho_BH, table.prior_scale = nn.Parameter(loc), nn.Parameter(rho), prior_scale


def update_priors(network: nn.Module) -> None:
    """Update the prior of every effect table of a network."""
    for table in tables(network):
        table.update_prior()
