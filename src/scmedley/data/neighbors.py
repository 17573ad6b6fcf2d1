"""The k nearest neighbours of cells, exact and in a reproducible order.

Shapes: N query cells, M reference cells, P latent dimensions, K neighbours (not labels).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scmedley.device import one_thread_if_forked

Floats = npt.NDArray[np.floating[Any]]
Codes = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Neighbors:
    """The nearest reference cells of each query cell, nearest first.

    Attributes
    ----------
    indices_NK
        Rows of the reference.
    distances_NK
        Euclidean distances.
    """

    indices_NK: npt.NDArray[np.int64]
    distances_NK: npt.NDArray[np.float64]


def nearest(query_NP: Floats, reference_MP: Floats, k: int, *, exclude_self: bool = False) -> Neighbors:
    """Find the ``k`` nearest reference cells of each query cell (Euclidean, exact).

    Parameters
    ----------
    query_NP, reference_MP
        Embeddings of both sets of cells.
    k
        Number of neighbours, at least 1; clipped to the number of reference cells.
    exclude_self
        Exclude each cell from its own neighbours; query and reference must then be equal.

    Returns
    -------
    Neighbors
        Nearest first; neighbours at equal distance are in the order of the reference.

    Raises
    ------
    ValueError
        ``k`` < 1, no reference cells, or ``exclude_self`` with a query that differs from the reference.
    """
    from sklearn.neighbors import NearestNeighbors

    if exclude_self and not np.array_equal(query_NP, reference_MP):
        raise ValueError("exclude_self needs the query to be the reference: pass the same matrix twice")
    k = min(k, len(reference_MP) - exclude_self)
    if k < 1:
        raise ValueError(f"no neighbours to find: k is {k} after clipping to the reference cells")
    one_thread_if_forked()
    index = NearestNeighbors(n_neighbors=k).fit(np.asarray(reference_MP, dtype=np.float64))
    query = None if exclude_self else np.asarray(query_NP, dtype=np.float64)
    distances_NK, indices_NK = index.kneighbors(query)
    order_NK = np.lexsort((indices_NK, distances_NK), axis=-1)
    return Neighbors(
        np.take_along_axis(indices_NK, order_NK, axis=1), np.take_along_axis(distances_NK, order_NK, axis=1)
    )
