"""What a fitted VAE computes from its posterior: draws, likelihood, denoised expression.

Shapes: N cells, G genes, P latent dimensions, D draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from scmedley import keys
from scmedley.data.design import OWN, POPULATION_MEAN
from scmedley.data.evidence import TARGET_SUM
from scmedley.data.reader import Cells
from scmedley.data.resident import Minibatch
from scmedley.device import modes, seeded
from scmedley.errors import ScmedleyError, check_seed, listed, warn
from scmedley.io.blocks import write_in_blocks
from scmedley.nn.likelihoods import kl_of_units

if TYPE_CHECKING:
    from scmedley.models.vae import VAE

CELLS = 1024  # decoded at once
LARGEST = 4 * 1024**3  # largest denoised matrix, bytes


@modes(grad=False)
def draws(model: VAE, adata: Cells, n_draws: int, seed: int) -> np.ndarray:
    """Return draws of q(z|x), D x N x P."""
    check_seed(seed)
    check_posterior(model)
    _check_draws(n_draws)
    parts = []
    with seeded(seed):
        for cells in minibatches(model, adata):
            mean_NP, log_variance_NP = model.network.posterior(cells.x_NG)
            sd_NP = (0.5 * log_variance_NP).exp()
            parts.append(mean_NP + sd_NP * _noise((n_draws, *mean_NP.shape), mean_NP))
    return np.asarray(torch.cat(parts, dim=1).cpu().numpy())


@modes(grad=False)
def log_likelihood(model: VAE, adata: Cells, n_draws: int, seed: int) -> np.ndarray:
    """Return the importance-weighted estimate of log p(x) of each cell, in nats.

    log p(x) ~ log 1/D sum_d p(x | z_d) p(z_d) / q(z_d | x), with z_d from q(z|x) (Burda et al. 2016). It rises to
    the true value with the number of draws, and one draw gives the evidence lower bound on average. Batch effects
    are at their posterior mean. For counts, x is the counts of the model's genes given their total; for the
    Gaussian the scaled values, so the two cannot be compared.
    """
    check_seed(seed)
    check_posterior(model)
    _check_draws(n_draws)
    found = []
    with seeded(seed):
        for cells in minibatches(model, adata):
            mean_NP, log_variance_NP = model.network.posterior(cells.x_NG)
            weights = []
            for _ in range(n_draws):
                noise_NP = _noise(mean_NP.shape, mean_NP)
                z_NP = mean_NP + (0.5 * log_variance_NP).exp() * noise_NP
                prior_N = -0.5 * z_NP.square().sum(1)
                proposal_N = -0.5 * (noise_NP.square() + log_variance_NP).sum(1)
                weights.append(model.network.log_p(cells, z_NP) + prior_N - proposal_N)
            found.append(torch.logsumexp(torch.stack(weights), 0) - math.log(n_draws))
    return np.asarray(torch.cat(found).cpu().numpy())


@modes(grad=False)
def elbo(model: VAE, adata: Cells, seed: int) -> pd.DataFrame:
    """Return reconstruction (log p(x | z)), KL of the latent and their difference for each cell, in nats."""
    check_seed(seed)
    check_posterior(model)
    rows = []
    with seeded(seed):
        for cells in minibatches(model, adata):
            mean_NP, log_variance_NP = model.network.posterior(cells.x_NG)
            z_NP = mean_NP + (0.5 * log_variance_NP).exp() * _noise(mean_NP.shape, mean_NP)
            kl_N = kl_of_units(mean_NP, log_variance_NP).sum(1)
            rows.append(torch.stack([model.network.log_p(cells, z_NP), kl_N], dim=1).cpu().numpy())
    table = pd.DataFrame(np.concatenate(rows), index=adata.obs.index, columns=["reconstruction", "kl"])
    return table.assign(elbo=table["reconstruction"] - table["kl"])


@modes(grad=False)
def denoise(
    model: VAE,
    adata: Cells,
    *,
    to: str = OWN,
    size: float | None = None,
    use_counts: bool = True,
    out: str | Path | None = None,
) -> AnnData | Path:
    """Return the expected expression of each cell, in counts (``X``, N x G), with the latent at its posterior mean.

    The negative binomial is a Poisson whose rate is a gamma with mean mu. Given the count x of the cell, the mean
    of the rate is (theta + x) mu / (theta + mu): the decoder's mean, and the cell's own count where there are
    many. A Poisson has no such spread, so there it is mu. With zero inflation a zero may come from either part.
    In another batch, mu is replaced by that of the batch and the factor (theta + x) / (theta + mu) stays. For the
    Gaussian it is the decoder's mean of log1p CP10k, converted back, which is less than the mean of the counts.

    ``size`` counts per cell over all genes multiply each cell by size / (its own total); for the Gaussian the
    default is 10,000. With ``out``, a path ending in ``.zarr``, cells are written there in chunks.
    ``uns["scmedley"]["denoised"]`` holds the unit and the settings, so that no step takes the values for counts.
    """
    model.check_fitted()
    if size is not None and not (size > 0 and math.isfinite(size)):
        raise ScmedleyError(f"size={size!r} must be a number of counts per cell, above 0.")
    if to not in (OWN, POPULATION_MEAN):
        model.check_effects("denoise")
    code = None if to == OWN else model.design.code(to)
    if model.has_effects:
        _warn_of_new_batches(model, adata, of_target=to != OWN)
    shape = (len(adata.obs), len(model.genes))
    if out is None and 4 * shape[0] * shape[1] > LARGEST:
        raise ScmedleyError(
            f"{shape[0]:,} cells x {shape[1]:,} genes are too many for one matrix in memory. Write them to disk with "
            "out='denoised.zarr'."
        )
    uns = {keys.UNS: {keys.DENOISED: _described(model, to, size, use_counts)}}
    blocks = _denoised_blocks(model, adata, code, size, use_counts)
    if out is None:
        values_NG = np.concatenate([values for _, values in blocks])
        return AnnData(values_NG, obs=adata.obs.copy(), var=model.var(), uns=uns)
    named = ((rows, {"X": values}) for rows, values in blocks)
    return write_in_blocks(Path(out), named, ["X"], shape, adata.obs.copy(), model.var(), uns)


def _described(model: VAE, to: str, size: float | None, use_counts: bool) -> dict[str, Any]:
    """Return the unit of denoised values, and how they were computed, for ``uns``."""
    own = "the cell's own total over all genes"
    if model.settings.counts:
        unit = f"counts, at {own}" if size is None else f"counts per {size:,g}, over all genes"
    else:
        unit = f"per {size or TARGET_SUM:,g}, from a mean of logarithms"
    return {"unit": unit, "model": type(model).__name__, "to": to, "use_counts": use_counts}


def _denoised_blocks(
    model: VAE, adata: Cells, code: int | None, size: float | None, use_counts: bool
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield rows and their denoised expression, in order."""
    start = 0
    for cells in minibatches(model, adata):
        target_N = cells.b_N if code is None else torch.full_like(cells.b_N, code)
        found_NG = _denoised(model.network, cells, target_N, use_counts)
        if model.settings.counts:
            assert cells.size_N is not None
            if size is not None:
                found_NG = found_NG * (size / cells.size_N.clamp_min(1.0))[:, None]
            values_NG = found_NG.cpu().numpy()
        else:
            log1p_NG = model.scale.inverse(found_NG.cpu().numpy()).clip(0)
            values_NG = np.expm1(log1p_NG) * np.float32((size or TARGET_SUM) / TARGET_SUM)
        yield slice(start, start + len(values_NG)), values_NG
        start += len(values_NG)


def _warn_of_new_batches(model: VAE, adata: Cells, of_target: bool) -> None:
    """Warn that cells of batches that were not in the fit have the population mean, and name the batches."""
    codes_N = model.design.known_codes(adata.obs, POPULATION_MEAN)
    if (codes_N < 0).any():
        new = model.design.names(adata.obs)[codes_N < 0].dropna().unique().tolist()
        where = listed(new) if new else f"obs has no {model.batch_key!r}"
        what = "their noise is that of" if of_target else "they are denoised in"
        warn(
            f"Cells of batches that were not in the fit ({where}): {what} the average batch. To learn the effects "
            "of these batches first: model.adapt(adata)."
        )


def _denoised(network: Any, cells: Minibatch, target_N: Tensor, use_counts: bool) -> Tensor:
    """Return expected counts at the cell's own size; for the Gaussian, the scaled mean."""
    z_NP = network.encode(cells.x_NG, cells.b_N)
    if cells.counts_NG is None or not network.settings.counts:
        decoded: Tensor = network.decode(z_NP, target_N)
        return decoded
    x_NG = cells.counts_NG
    size_N1 = x_NG.sum(1, keepdim=True)
    there_NG: Tensor = size_N1 * network.rates(z_NP, target_N)
    if not use_counts or network.settings.likelihood == "poisson":
        return there_NG
    here_NG = size_N1 * network.rates(z_NP, cells.b_N)
    theta = network.theta(cells.b_N)
    factor_NG = (theta + x_NG) / (theta + here_NG)
    if network.settings.likelihood == "zero-inflated negative binomial":
        # A zero is from the inflation with probability pi / P(x = 0), and then says nothing about the rate.
        logit_NG = network.zero_logits(z_NP, cells.b_N)
        log_zero_NG = -theta * torch.log1p(here_NG / theta)
        inflated_NG = torch.sigmoid(logit_NG - log_zero_NG) * (x_NG == 0)
        factor_NG = inflated_NG + (1 - inflated_NG) * factor_NG
    denoised_NG: Tensor = there_NG * factor_NG
    return denoised_NG


def check_posterior(model: VAE) -> None:
    """Raise if the network has no posterior, as that of the published DeepBID."""
    model.check_fitted()
    if not hasattr(model.network, "posterior"):
        raise ScmedleyError(
            f"The published {type(model).__name__} has no posterior, so it has no draws, likelihoods and differential "
            "expression. Use preset='default'."
        )


def minibatches(model: VAE, adata: Cells) -> Iterator[Minibatch]:
    """Yield all cells in order; those of batches that the model does not know have the population mean."""
    model.check_fitted()
    for reading in model.reader.blocks(adata):
        codes = model.design.known_codes(reading.obs, POPULATION_MEAN)
        yield from reading.resident(codes, model.scale, model.device).in_order(CELLS)


def _noise(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return standard normal noise, the same on every device."""
    return torch.randn(tuple(shape)).to(like.device)


def _check_draws(n_draws: int) -> None:
    if n_draws < 1:
        raise ScmedleyError(f"draws is {n_draws}. Give at least 1.")
