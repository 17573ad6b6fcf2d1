"""Do similar cells miss the model in the same way? A test of lack of fit, for each cell.

If a model explains a cell, what is left of its expression is noise, and the noise of two cells is
independent. If cells are of a type or state that the model does not know, neighbours lack the same genes, and
their residuals agree. This is the classical test of lack of fit with replicates, with the nearest cells as the
replicates. It also finds types whose latents lie among those of a known type, which no distance shows.

Shapes: N cells, V validation cells of the fit, G genes, P latent dimensions, K neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array, csr_matrix

from scmedley.data.arrays import Matrix, dense
from scmedley.data.design import POPULATION_MEAN
from scmedley.data.reader import Reading
from scmedley.device import one_thread_if_forked

if TYPE_CHECKING:
    from scmedley.models.base import Model

NEIGHBOURS = 30  # whose residuals are averaged; 15 and 20 find close types less well
BLOCK_CELLS = 10_000  # most cells that are compared with each other at once
BLOCK_VALUES = 30_000_000  # most values of their residuals, which are dense
CLIP = 10.0  # largest residual, in standard deviations of the gene
PRIOR_CELLS = 10.0  # weight of the prior that a new batch has no effect, in cells


def agreement(
    model: Model[Any],
    reading: Reading,
    z_NP: np.ndarray,
    group_N: np.ndarray,
    gene_sd_G: np.ndarray,
) -> np.ndarray:
    """Return how well the residual of each cell agrees with those of its nearest cells, -1 to 1.

    It is the cosine of r_i and the mean of r_j over the 30 cells with the nearest latents among the same
    cells, without i itself; 0 if there is no other cell. More than 10,000 cells (fewer with more than 3,000 genes) are
    compared in random blocks, always the same.

    Parameters
    ----------
    z_NP
        Latents of the cells.
    group_N
        Groups that have equal weight in the effect of a new batch, such as predicted labels.
    gene_sd_G
        Standard deviation of each gene in the training cells, by which residuals are divided.
    """
    order = np.random.default_rng(0).permutation(reading.n_cells)
    block = min(BLOCK_CELLS, BLOCK_VALUES // len(gene_sd_G))
    found_N = np.zeros(reading.n_cells, np.float32)
    for rows in np.array_split(order, -(-reading.n_cells // block)):
        residual_NG = residuals(model, reading.take(rows), group_N[rows], gene_sd_G)
        found_N[rows] = agreement_with_neighbours(residual_NG, z_NP[rows])
    return found_N


def agreement_with_neighbours(residual_NG: np.ndarray, z_NP: np.ndarray) -> np.ndarray:
    """Return the cosine of each residual and the mean residual of the nearest other cells."""
    from sklearn.neighbors import NearestNeighbors

    n_cells = len(z_NP)
    k = min(NEIGHBOURS, n_cells - 1)
    if k < 1:
        return np.zeros(n_cells, np.float32)
    one_thread_if_forked()
    nearest_NK = NearestNeighbors(n_neighbors=k).fit(z_NP).kneighbors(return_distance=False)
    share = (np.full(n_cells * k, 1 / k, np.float32), nearest_NK.ravel(), np.arange(0, n_cells * k + 1, k))
    mean_NG = csr_array(share, shape=(n_cells, n_cells)) @ residual_NG
    length_N = np.linalg.norm(mean_NG, axis=1) * np.linalg.norm(residual_NG, axis=1)
    return np.asarray((mean_NG * residual_NG).sum(axis=1) / np.maximum(length_N, 1e-12), np.float32)


def residuals(model: Model[Any], reading: Reading, group_N: np.ndarray, gene_sd_G: np.ndarray) -> np.ndarray:
    """Return observed minus reconstructed expression in standard deviations of each gene, N x G.

    In batches that the decoder knows, the reconstruction has their effects. In any other batch a scale and a
    bias of each gene take their place. Genes without a value in any cell, because they were not measured, have
    residuals of 0.
    """
    x_NG = dense(reading.log1p_NG)
    xhat_NG = np.asarray(model.reconstruct(reading, unknown=POPULATION_MEAN).X)
    found_NG = (x_NG - xhat_NG) / gene_sd_G
    for rows in unknown_batches(model, reading.obs):
        found_NG[rows] -= effect_of_batch(found_NG[rows], xhat_NG[rows] / gene_sd_G, group_N[rows])
    found_NG[:, ~x_NG.any(axis=0)] = 0
    return np.asarray(found_NG.clip(-CLIP, CLIP))


def effect_of_batch(residual_NG: np.ndarray, xhat_NG: np.ndarray, group_N: np.ndarray) -> np.ndarray:
    """Return a bias plus a scale times ``xhat_NG``, fitted to the residuals of one batch, N x G.

    Least squares, in which groups have nearly equal weight: a large group of a new type would otherwise pass
    for the batch. Both are shrunk towards 0 by a prior worth 10 cells.

    Parameters
    ----------
    residual_NG
        Residuals of the cells of the batch.
    xhat_NG
        Their reconstruction without effects of the batch, in the same units.
    group_N
        Groups of nearly equal weight, such as predicted labels.
    """
    weight_N = _balanced(group_N)
    n_effective = weight_N.sum() ** 2 / np.square(weight_N).sum()
    weight_N /= weight_N.sum()
    shrink = np.float32(n_effective / (n_effective + PRIOR_CELLS))
    centred_NG = xhat_NG - weight_N @ xhat_NG
    variance_G = weight_N @ np.square(centred_NG) + np.float32(0.01)
    scale_G = weight_N @ (centred_NG * residual_NG) / variance_G
    return np.asarray(shrink * (weight_N @ residual_NG + scale_G * centred_NG))


def gene_sd(log1p_NG: Matrix) -> np.ndarray:
    """Return the standard deviation of each gene, at least 0.01."""
    mean_G = np.asarray(log1p_NG.mean(axis=0), np.float64).ravel()
    squares_NG = log1p_NG.multiply(log1p_NG) if isinstance(log1p_NG, csr_matrix) else np.square(log1p_NG)
    square_G = np.asarray(squares_NG.mean(axis=0), np.float64).ravel()
    return np.asarray(np.sqrt(np.maximum(square_G - mean_G**2, 0) + 1e-4), np.float32)


def unknown_batches(model: Model[Any], obs: pd.DataFrame) -> list[np.ndarray]:
    """Return the rows of each batch whose effects the decoder does not know."""
    known_N = (model.design.codes(obs) >= 0) & model.has_effects
    return _by_batch(model, obs, ~known_N)


def adapted_batches(model: Model[Any], obs: pd.DataFrame) -> list[np.ndarray]:
    """Return the rows of each batch whose effects were learnt after the fit (:meth:`Model.adapt`)."""
    n_trained = model.design.n_batches - model.design.n_adapted
    return _by_batch(model, obs, model.design.codes(obs) >= n_trained)


def relative_to_batch(
    agreement_N: np.ndarray, group_N: np.ndarray, null_V: np.ndarray, *, spread: bool = True
) -> np.ndarray:
    """Return the agreement in a batch that was not in training, relative to the other cells of the batch.

    A new protocol changes each type in its own way, and what is removed of its effects does not cover that. All
    cells of the batch then agree more than cells of known batches. Here the median becomes that of ``null_V``
    where it is higher and, with ``spread``, the lower quartile too where it is farther from the median. So only
    cells that stand out from their batch look new.

    Parameters
    ----------
    agreement_N
        Agreement of the cells of the batch.
    group_N
        Groups of nearly equal weight, as in :func:`effect_of_batch`.
    null_V
        Agreement of validation cells.
    spread
        Whether to match the lower quartile too: for batches whose effects the decoder does not know.
    """
    order = np.argsort(agreement_N, kind="stable")
    share_N = np.cumsum(_balanced(group_N)[order])
    low, middle = agreement_N[order][np.searchsorted(share_N, (0.25 * share_N[-1], 0.5 * share_N[-1]))]
    null_low, null_middle = np.quantile(null_V, (0.25, 0.5))
    shrink = min(1.0, (null_middle - null_low) / max(middle - low, 1e-12)) if spread else 1.0
    return np.asarray((agreement_N - middle) * shrink + min(middle, null_middle))


def _by_batch(model: Model[Any], obs: pd.DataFrame, chosen_N: np.ndarray) -> list[np.ndarray]:
    """Return the chosen rows of each batch; cells without a batch, or without such a column, are of one batch."""
    code_N = pd.factorize(model.design.names(obs))[0]
    return [np.flatnonzero(chosen_N & (code_N == code)) for code in np.unique(code_N[chosen_N])]


def _balanced(group_N: np.ndarray) -> np.ndarray:
    """Return weights of cells in which groups of more than a few cells weigh nearly the same."""
    _, inverse_N, size = np.unique(group_N, return_inverse=True, return_counts=True)
    return np.asarray((1 / (size + PRIOR_CELLS))[inverse_N], np.float32)
