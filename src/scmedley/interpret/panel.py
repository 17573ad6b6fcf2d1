"""Cells and their counterfactuals in other batches: the numbers of the counterfactual figure.

Shapes: R cells (rows of the figure), T targets, G genes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from scmedley.data.arrays import dense
from scmedley.data.design import POPULATION_MEAN
from scmedley.data.reader import Cells
from scmedley.data.targets import Target, named_targets, target_name
from scmedley.errors import ScmedleyError
from scmedley.interpret.genomap import Layout
from scmedley.models import MixedEffects
from scmedley.models.base import Model

FIXED = "fixed effects"  # name of the population mean if the network's latent contains no batch


@dataclass(frozen=True)
class Panel:
    """Some cells as measured, reconstructed, and predicted without batch effects and in other batches.

    Values are log1p CP10k.

    Attributes
    ----------
    cells, own
        Names of the cells and of their batches, R.
    targets
        The population mean, then the batches, T. The first is "fixed effects" if the fixed-effects network
        makes the counterfactuals, else "population mean", because the latent of the random-effects network
        (``paper`` preset, given fixed part) contains the batch.
    input_RG, own_RG
        Measured values; reconstruction in the cell's own batch.
    shown_RTG
        Prediction for each target.
    difference_RTG
        Prediction minus the reconstruction in the own batch.
    layout
        Position of each gene in an image.
    """

    cells: tuple[str, ...]
    own: tuple[str, ...]
    targets: tuple[str, ...]
    input_RG: np.ndarray
    own_RG: np.ndarray
    shown_RTG: np.ndarray
    difference_RTG: np.ndarray
    layout: Layout


def panel(
    model: MixedEffects | Model[Any],
    adata: Cells,
    to: Target | Sequence[Target],
    layout: Layout,
    *,
    unknown: str = "error",
) -> Panel:
    """Predict cells in other batches, for :func:`scmedley.pl.counterfactuals`.

    Parameters
    ----------
    model
        A fitted model.
    adata
        A few cells with their batch.
    to
        Target batches, or levels as in :meth:`MixedEffects.counterfactual`. The population mean is always added.
    layout
        Layout of the model's genes (:func:`scmedley.interpret.genomap_of`).
    unknown
        Treatment of cells of unknown batches: ``"error"``, or ``"mean"`` for the population mean.

    Raises
    ------
    ScmedleyError
        The layout has other genes, a target or batch is unknown, or a target occurs twice.
    """
    network = model.decoder_of(to) if isinstance(model, MixedEffects) else model
    if layout.genes != tuple(network.genes):
        raise ScmedleyError("The genes of the layout are not the model's. Use genomap_of(model, adata).")
    targets = [POPULATION_MEAN, *(target for target in named_targets(to) if target != POPULATION_MEAN)]
    reading = model.read(adata).in_memory("panel")
    made: Any = model.counterfactual(reading, targets, unknown=unknown)
    shape = (len(targets), reading.n_cells, len(network.genes))
    shown, difference = (
        np.asarray(values).reshape(shape).swapaxes(0, 1) for values in (made.X, made.layers["difference"])
    )
    return Panel(
        tuple(map(str, reading.obs.index)),
        _batches(network, reading.obs),
        (
            "population mean" if network.needs_batch or not isinstance(model, MixedEffects) else FIXED,
            *map(target_name, targets[1:]),
        ),
        dense(reading.log1p_NG),
        np.asarray(network.reconstruct(reading, unknown=unknown).X),
        shown,
        difference,
        replace(layout, genes=network.gene_names.shown),
    )


def _batches(model: Model[Any], obs: pd.DataFrame) -> tuple[str, ...]:
    """Return each cell's batch as text; empty if the model does not know it."""
    known: tuple[str, ...] = model.design.batches
    return tuple(name if name in known else "" for name in map(str, model.design.names(obs)))
