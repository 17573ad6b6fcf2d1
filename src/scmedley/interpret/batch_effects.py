"""A map of the batches by their random effects.

Shapes: B batches, H effects (scales and biases of all hidden units of the decoder).
"""

from typing import Any

import numpy as np
import pandas as pd
import torch

from scmedley.interpret.check import decoder
from scmedley.models import MixedEffects
from scmedley.models.base import Model
from scmedley.nn.bayesian import EffectTable, Levels, tables


@torch.no_grad()
def batch_effects(model: MixedEffects | Model[Any]) -> pd.DataFrame:
    """Compute coordinates of the batches in two dimensions from the random effects of the decoder.

    Every effect is divided by the prior standard deviation of its table (with several factors: of its term).
    Effects thus have comparable units, and an effect without evidence in the data stays near 0. The axes are the
    two leading principal components of the posterior means over batches. The posterior of a batch, Gaussian and
    independent between effects, is Gaussian on these axes too.

    Parameters
    ----------
    model
        A fitted model with batch effects in its decoder.

    Returns
    -------
    pandas.DataFrame
        One row per batch: ``batch``; ``x``, ``y`` (posterior mean); ``var_x``, ``cov_xy``, ``var_y``
        (posterior covariance); ``share_x``, ``share_y`` (share of the variance between batches, the same in
        all rows).

    Raises
    ------
    ScmedleyError
        The model is not fitted, or its decoder has no batch effects.
    """
    network = decoder(model)
    network.check_fitted()
    network.check_effects("batch_effects")
    levels, effects = network.network.levels, tables(network.network.decoder_effects)
    mean_BH, scale_BH = (
        np.hstack([np.asarray(part, np.float64) for part in parts])
        for parts in zip(*(_standardised(table, levels) for table in effects), strict=True)
    )
    mean_BH = mean_BH - mean_BH.mean(0)
    _, length, axes = np.linalg.svd(mean_BH, full_matrices=False)
    length, axes = length[:2], axes[:2]
    # The sign of an axis is arbitrary: make its largest loading positive.
    axes = axes * np.where(axes[[0, 1], np.abs(axes).argmax(1)] < 0, -1, 1)[:, None]
    x, y = axes @ mean_BH.T
    share = length**2 / max((mean_BH**2).sum(), np.finfo(float).tiny)
    variance_BH = scale_BH**2
    return pd.DataFrame(
        {
            "batch": network.design.batches,
            "x": x,
            "y": y,
            "var_x": variance_BH @ axes[0] ** 2,
            "cov_xy": variance_BH @ (axes[0] * axes[1]),
            "var_y": variance_BH @ axes[1] ** 2,
            "share_x": share[0],
            "share_y": share[1],
        }
    )


def _standardised(table: EffectTable, levels: Levels) -> tuple[np.ndarray, np.ndarray]:
    """Return posterior means and standard deviations in units of the prior standard deviation, B × H each."""
    mean, sd = levels.of_batches(table.loc_BH / table.prior_scale, table.scale_BH() / table.prior_scale)
    return mean.numpy(), sd.numpy()
