"""Cells beside themselves in other batches: the numbers of the counterfactual figure.

Shapes: R cells, T targets, G genes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from scmedley.data.arrays import dense
from scmedley.data.design import POPULATION_MEAN, as_categories, named_targets
from scmedley.data.reader import Cells
from scmedley.errors import ScmedleyError
from scmedley.interpret.genomap import Layout
from scmedley.models import MixedEffects

FIXED = "fixed effects"  # the population mean, where the network's latent holds no batch


@dataclass(frozen=True)
class Panel:
    """Some cells: as measured, with no batch's effects, in their own batch and in others (log1p CP10k).

    Attributes
    ----------
    cells, own
        Names of the cells and of their batches, R.
    targets
        The population mean, then the batches, T. It is called "fixed effects" where counterfactuals come from the
        fixed-effects network; the latent of the random-effects network (``paper`` preset, given fixed part) holds
        the batch, so that "population mean" is all that can be said.
    input_RG, own_RG
        As measured; reconstructed in the own batch.
    shown_RTG
        As if from each target.
    difference_RTG
        That minus the reconstruction in the own batch.
    layout
        Where the genes lie in a picture.
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
    model: MixedEffects, adata: Cells, to: str | Sequence[str], layout: Layout, *, unknown: str = "error"
) -> Panel:
    """Show cells in other batches, for :func:`scmedley.pl.counterfactuals`.

    Parameters
    ----------
    model
        A fitted model.
    adata
        R cells, a few, with their batch.
    to
        Target batches. The population mean is always shown.
    layout
        Where the model's genes lie in a picture (:func:`scmedley.interpret.genomap_of`).
    unknown
        What to do with cells of batches that the model does not know: ``"error"`` or ``"mean"``.

    Raises
    ------
    ScmedleyError
        A layout of other genes; an unknown target or batch; a target that is named twice.
    """
    if layout.genes != tuple(model.decoder.genes):
        raise ScmedleyError(
            "The layout is of other genes than the model's. Make it with genomap_of(model, adata)."
        )
    targets = [POPULATION_MEAN, *(name for name in named_targets(to) if name != POPULATION_MEAN)]
    reading = model.decoder.read(adata)
    made: Any = model.counterfactual(reading, targets, unknown=unknown)
    shape = (len(targets), reading.n_cells, len(model.decoder.genes))
    shown, difference = (
        np.asarray(values).reshape(shape).swapaxes(0, 1) for values in (made.X, made.layers["difference"])
    )
    return Panel(
        tuple(map(str, reading.obs.index)),
        _batches(model, reading.obs),
        (FIXED if model.decoder is model.fixed else "population mean", *targets[1:]),
        dense(reading.log1p_NG),
        np.asarray(model.decoder.reconstruct(reading, unknown=unknown).X),
        shown,
        difference,
        replace(layout, genes=model.decoder.gene_names.shown),
    )


def _batches(model: MixedEffects, obs: pd.DataFrame) -> tuple[str, ...]:
    """Return each cell's batch as text; empty where the model does not know it."""
    if model.batch_key not in obs:
        return tuple("" for _ in range(len(obs)))
    known: tuple[str, ...] = model.decoder.design.batches
    names = [str(name) for name in as_categories(obs[model.batch_key])]
    own: list[str] = [name if name in known else "" for name in names]
    return tuple(own)
