"""Matrices of several files, one below the other, whose rows are read when they are taken.

Shapes: N cells of all files, G genes that all files have.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import issparse, vstack

from scmedley.data.arrays import Matrix, tidy
from scmedley.data.scan import n_stored


@dataclass(frozen=True)
class Computed:
    """A matrix (float32) whose rows are computed from others when they are taken.

    Attributes
    ----------
    shape
        Cells and genes.
    of
        The matrix on disk from which it is computed.
    read
        Returns some rows.
    """

    shape: tuple[int, int]
    of: Any
    read: Callable[[Any], Matrix]

    @property
    def nnz(self) -> int:
        """Return the number of stored values of the other matrix."""
        return n_stored(self.of)

    def __getitem__(self, rows: Any) -> Matrix:
        return self.read(rows)


class Stacked:
    """Cells of several matrices, in order; ``stacked[rows]``, a slice or an array, is in memory (float32).

    Parameters
    ----------
    parts
        Matrices in memory or on disk.
    places
        For each, its columns that are used, in order.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, parts: Sequence[Any], places: Sequence[np.ndarray]):
        self.parts, self.places = list(parts), list(places)
        self.stop_P = np.cumsum([part.shape[0] for part in self.parts])

    @property
    def shape(self) -> tuple[int, int]:
        """Return N and G."""
        return int(self.stop_P[-1]), len(self.places[0])

    @property
    def nnz(self) -> int:
        """Return the number of stored values, also of columns that are not used."""
        return sum(n_stored(part) for part in self.parts)

    def __getitem__(self, rows: slice | np.ndarray) -> Matrix:
        """Return some of the cells, in this order; sparse if any of their matrices is."""
        # Each row once and in order, as HDF5 needs.
        rows_n, place_n = np.unique(np.arange(self.shape[0])[rows], return_inverse=True)
        part_n = np.searchsorted(self.stop_P, rows_n, side="right")
        blocks = [self._of_part(number, rows_n[part_n == number]) for number in np.unique(part_n)]
        if not blocks:
            blocks = [self._of_part(0, rows_n)]
        x: Matrix = vstack(blocks, format="csr") if any(map(issparse, blocks)) else np.vstack(blocks)
        return x if np.array_equal(place_n, np.arange(x.shape[0])) else x[place_n]

    def _of_part(self, number: int, rows_n: np.ndarray) -> Matrix:
        part, place_G = self.parts[number], self.places[number]
        own_n = rows_n - (self.stop_P[number] - part.shape[0])
        in_a_row = len(own_n) > 0 and own_n[-1] - own_n[0] + 1 == len(own_n)
        x = tidy(part[slice(int(own_n[0]), int(own_n[-1]) + 1) if in_a_row else own_n])
        return x if np.array_equal(place_G, np.arange(x.shape[1])) else x[:, place_G]


@dataclass
class StackedCells:
    """What an AnnData of several files on disk would be: it has the parts that the checks and preparation use.

    An AnnData itself cannot hold matrices of another class.
    """

    X: Stacked
    obs: pd.DataFrame
    var: pd.DataFrame
    layers: dict[str, Stacked]
    raw: SimpleNamespace | None = None
    uns: dict[str, Any] = field(default_factory=dict)
    isbacked: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Return N and G."""
        return len(self.obs), len(self.var)

    @property
    def n_obs(self) -> int:
        """Return N."""
        return len(self.obs)

    @property
    def n_vars(self) -> int:
        """Return G."""
        return len(self.var)

    @property
    def obs_names(self) -> pd.Index:
        """Return the names of the cells."""
        return self.obs.index

    @property
    def var_names(self) -> pd.Index:
        """Return the names of the genes."""
        return self.var.index
