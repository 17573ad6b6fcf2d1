"""The cells that the numbers of a run are computed from: all, or a sample of many."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData

from scmedley import keys
from scmedley.data.reader import Reading
from scmedley.data.sampling import FLOOR, drawn
from scmedley.pipeline.config import RunConfig
from scmedley.pp.maps import MAP_CELLS


@dataclass(frozen=True)
class Sample:
    """Rows of the cells for the numbers of a run; ``None``: all cells.

    Attributes
    ----------
    scored
        For scores and the null, with the shares of all cells.
    paired
        For what is compared one label and batch at a time: gene shifts and their check. Small groups keep more cells.
    n_cells
        Number of all cells.
    """

    scored: np.ndarray | None
    paired: np.ndarray | None
    n_cells: int

    @classmethod
    def of(cls, adata: AnnData, config: RunConfig) -> "Sample":
        """Draw the cells, stratified by batch, label and part of the split."""
        groups = [key for key in (config.batch, config.label, keys.SPLIT) if key is not None]
        rows = [drawn(adata.obs, groups, config.seed, floor) for floor in (1, FLOOR)]
        return cls(rows[0], rows[1], adata.n_obs)

    def described(self) -> dict[str, Any]:
        """Return the fields of the record; empty if all cells are used."""
        if self.scored is None or self.paired is None:
            return {}
        of = f"of {self.n_cells:,} cells, drawn at random within batch, label and part of the split"
        return {
            "cells": self.n_cells,
            "scored": len(self.scored),
            "paired": len(self.paired),
            "scores": f"Computed from {len(self.scored):,} {of}, with the shares of all cells.",
            "null": f"The null of the random effects was trained on the training cells among {len(self.scored):,} "
            f"{of}: fewer than the network that it is compared with, and with fewer steps. It may separate its "
            "batches less for that reason alone, so a leak slightly above it is weak evidence.",
            "pairs": f"Computed from {len(self.paired):,} {of}; each group keeps {FLOOR} cells or all that it has.",
            "maps": f"UMAP was fitted to {MAP_CELLS:,} of {self.n_cells:,} cells, drawn at random. Every other cell is "
            "placed between its nearest neighbours among them.",
        }


def cells_of(adata: AnnData, rows: np.ndarray | None, embeddings: Sequence[str] = ()) -> AnnData:
    """Return some of the cells with their ``obs`` and some embeddings, without a matrix; all cells as they are."""
    if rows is None:
        return adata
    obs = adata.obs.iloc[rows].copy()
    return AnnData(obs=obs, obsm={key: np.asarray(adata.obsm[key])[rows] for key in embeddings})


def taken(reading: Reading, rows: np.ndarray | None) -> Reading:
    """Return some of the cells, in memory; without ``rows`` all cells, from a store too."""
    if rows is None:
        return reading if reading.store is None else reading.take(np.arange(reading.n_cells))
    return reading.take(rows)
