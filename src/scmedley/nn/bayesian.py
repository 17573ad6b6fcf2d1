"""Random effects of batches: Gaussian posteriors of scales and biases for the units of a layer.

Shapes: N cells, B batches, H units of the layer.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

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


class EffectTable(nn.Module):
    """One effect for every batch and unit: q(u) = N(loc, softplus(rho)^2), prior N(0, prior_scale^2).

    Parameters
    ----------
    n_batches, n_units
        B and H.
    start
        Initial posterior and prior. The prior's scale is a buffer that :meth:`update_prior` changes.
    """

    prior_scale: Tensor

    def __init__(self, n_batches: int, n_units: int, start: EffectStart):
        super().__init__()
        self.loc_BH = nn.Parameter(torch.randn(n_batches, n_units) * start.loc_scale)
        self.rho_BH = nn.Parameter(torch.full((n_batches, n_units), inverse_softplus(start.posterior_scale)))
        self.register_buffer("prior_scale", torch.tensor(start.prior_scale))

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

        If batches do not differ, the prior becomes narrow and shrinks their effects further towards 0.
        """
        second_moment = (self.loc_BH.square() + self.scale_BH().square()).mean()
        self.prior_scale.copy_(second_moment.sqrt().clamp_min(floor))


class Bias(nn.Module):
    """h + beta_b, with a bias effect for every batch and unit."""

    def __init__(self, n_batches: int, n_units: int, start: EffectStart):
        super().__init__()
        self.beta = EffectTable(n_batches, n_units, start)

    def forward(self, h_NH: Tensor, b_NB: Tensor, draw: bool) -> Tensor:
        """Apply the effects of each cell's batch, as :meth:`ScaleAndBias.forward` does."""
        beta_BH = self.beta.draw_BH() if draw else self.beta.loc_BH
        with torch.autocast(h_NH.device.type, enabled=False):
            bias_NH = b_NB @ beta_BH
        if len(b_NB) < len(h_NH):
            return (h_NH.view(len(b_NB), -1, h_NH.shape[1]) + bias_NH[:, None]).view_as(h_NH)
        return h_NH + bias_NH


class ScaleAndBias(nn.Module):
    """h * (1 + gamma_b) + beta_b, with a scale effect and a bias effect for every batch and unit."""

    def __init__(self, n_batches: int, n_units: int, start: EffectStart):
        super().__init__()
        self.gamma = EffectTable(n_batches, n_units, start)
        self.beta = EffectTable(n_batches, n_units, start)

    def forward(self, h_NH: Tensor, b_NB: Tensor, draw: bool) -> Tensor:
        """Apply the effects of each cell's batch.

        ``b_NB`` holds a one-hot row for each cell; a row of zeros is the population mean (no effect). With
        fewer rows than cells, each row applies to an equal block of consecutive cells. ``draw`` uses one draw
        of each table for the whole minibatch instead of the posterior means.
        """
        gamma_BH = self.gamma.draw_BH() if draw else self.gamma.loc_BH
        beta_BH = self.beta.draw_BH() if draw else self.beta.loc_BH
        with torch.autocast(h_NH.device.type, enabled=False):  # bfloat16 has no number between 1 and 1.0078
            scale_NH, bias_NH = 1 + b_NB @ gamma_BH, b_NB @ beta_BH
        if len(b_NB) < len(h_NH):
            blocks = h_NH.view(len(b_NB), -1, h_NH.shape[1])
            return (blocks * scale_NH[:, None] + bias_NH[:, None]).view_as(h_NH)
        return h_NH * scale_NH + bias_NH


def one_hot(b_N: Tensor, n_batches: int) -> Tensor:
    """Return b_NB (float32) of one-hot rows; code -1 gives a row of zeros, the population mean."""
    b_NB = F.one_hot(b_N.clamp_min(0), n_batches).float()
    return b_NB * (b_N >= 0).unsqueeze(1)


def tables(network: nn.Module) -> list[EffectTable]:
    """Return all effect tables of a network."""
    return [module for module in network.modules() if isinstance(module, EffectTable)]


def update_priors(network: nn.Module) -> None:
    """Update the prior of every effect table of a network."""
    for table in tables(network):
        table.update_prior()
