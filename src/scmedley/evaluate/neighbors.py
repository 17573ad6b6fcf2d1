"""The k nearest neighbours of cells, exact and in one order: one search a pair of query and reference.

A graph of all held-out cells serves iLISI and cLISI; the votes of kNN accuracy and of each label's kNN probe look among
training cells, which differ from one to the next, so that no search is done twice.

Shapes: N query cells, M reference cells, P latent dimensions, K neighbours.
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
        Euclidean distances, in the units of the embedding.
    """

    indices_NK: npt.NDArray[np.int64]
    distances_NK: npt.NDArray[np.float64]


def nearest(query_NP: Floats, reference_MP: Floats, k: int, *, exclude_self: bool = False) -> Neighbors:
    """Find the ``k`` nearest reference cells of each query cell (Euclidean, exact).

    Parameters
    ----------
    query_NP, reference_MP
        Cells × latent dimensions.
    k
        Number of neighbours, at least 1; clipped to the number of reference cells that there are.
    exclude_self
        Leave each cell out of its own neighbours; the query must then be the reference.

    Returns
    -------
    Neighbors
        Nearest first; neighbours at equal distance stand in the order of the reference.

    Raises
    ------
    ValueError
        ``k`` < 1, no reference cells, or ``exclude_self`` with a query that is not the reference.
    """
    from sklearn.neighbors import NearestNeighbors

    if exclude_self and not np.array_equal(query_NP, reference_MP):
        raise ValueError("exclude_self needs the query to be the reference")
    k = min(k, len(reference_MP) - exclude_self)
    if k < 1:
        raise ValueError(f"no neighbours to find: k and the number of reference cells leave {k}")
    one_thread_if_forked()
    index = NearestNeighbors(n_neighbors=k).fit(np.asarray(reference_MP, dtype=np.float64))
    query = None if exclude_self else np.asarray(query_NP, dtype=np.float64)
    distances_NK, indices_NK = index.kneighbors(query)
    order_NK = np.lexsort((indices_NK, distances_NK), axis=-1)
    return Neighbors(
        np.take_along_axis(indices_NK, order_NK, axis=1), np.take_along_axis(distances_NK, order_NK, axis=1)
    )
