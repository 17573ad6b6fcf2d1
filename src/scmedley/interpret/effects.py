"""Batches placed by their random effects.

Shapes: B batches, E effects: scales and biases of all units of the decoder.
"""

from typing import Any

import numpy as np
import pandas as pd
import torch

from scmedley.interpret.check import decoder
from scmedley.models import MixedEffects
from scmedley.models.base import Model
from scmedley.models.export import effect_tables
from scmedley.nn.bayesian import EffectTable


@torch.no_grad()
def batch_effects(model: MixedEffects | Model[Any]) -> pd.DataFrame:
    """Place batches in two dimensions by the random effects of the decoder.

    Every effect is taken in units of its table's prior standard deviation, so that one that the data say nothing
    about stays near 0 and none counts for its unit. The two leading principal components of the posterior
    means over batches are the axes; the posterior of a batch, Gaussian and independent between effects, is Gaussian on
    them too.

    Parameters
    ----------
    model
        A fitted model with batch effects in its decoder.

    Returns
    -------
    pandas.DataFrame
        A row for each batch: ``batch``; ``x``, ``y`` (posterior mean); ``var_x``, ``cov_xy``, ``var_y``
        (posterior covariance); ``share_x``, ``share_y`` (of the variance between batches, the same in all rows).

    Raises
    ------
    ScmedleyError
        The model is not fitted, or its decoder has no batch effects.
    """
    network = decoder(model)
    network.check_fitted()
    network.check_effects("batch_effects")
    mean_BE, scale_BE = (
        np.hstack([np.asarray(part, np.float64) for part in parts])
        for parts in zip(*map(_standardised, effect_tables(network.network)), strict=True)
    )
    mean_BE = mean_BE - mean_BE.mean(0)
    _, length, axes = np.linalg.svd(mean_BE, full_matrices=False)
    length, axes = length[:2], axes[:2]
    # An axis has no direction of its own: let its largest loading be positive.
    axes = axes * np.where(axes[[0, 1], np.abs(axes).argmax(1)] < 0, -1, 1)[:, None]
    x, y = axes @ mean_BE.T
    share = length**2 / max((mean_BE**2).sum(), np.finfo(float).tiny)
    variance_BE = scale_BE**2
    return pd.DataFrame(
        {
            "batch": network.design.batches,
            "x": x,
            "y": y,
            "var_x": variance_BE @ axes[0] ** 2,
            "cov_xy": variance_BE @ (axes[0] * axes[1]),
            "var_y": variance_BE @ axes[1] ** 2,
            "share_x": share[0],
            "share_y": share[1],
        }
    )


def _standardised(table: EffectTable) -> tuple[np.ndarray, np.ndarray]:
    """Return posterior means and standard deviations in units of the prior's: B × H each."""
    return (table.loc_BH / table.prior_scale).numpy(), (table.scale_BH() / table.prior_scale).numpy()
