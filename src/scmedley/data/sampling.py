"""Random samples of cells, stratified by group, for numbers that many cells do not make more exact.

Shapes: N cells, S groups of cells (strata).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Array = NDArray[Any]

# With more cells, scores, checks and the null are computed on a sample: probes and nearest neighbours take time with
# the square of the number of cells, and the standard error of a share over 10,000 held-out cells is below 0.005.
MANY = 100_000
DRAWN = 50_000  # cells of a sample
FLOOR = 20  # cells that each group keeps, or all if it has fewer, where groups are compared one by one


def sample(strata_N: Array, n: int, first_N: Array | None = None, seed: int = 0, floor: int = FLOOR) -> Array:
    """Return a random sample of cells that keeps every stratum.

    Each stratum keeps ``floor`` cells, or all if it has fewer; the rest is shared in proportion to size. If
    ``n`` is too small for that, strata keep fewer cells, but at least one.

    Parameters
    ----------
    strata_N
        Code of each cell's stratum.
    n
        Number of cells; the sample is never smaller than the number of strata.
    first_N
        Cells to prefer within their stratum (those with coordinates on a map).
    seed
        Random seed.
    floor
        Number of cells that every stratum keeps.

    Returns
    -------
    ndarray
        Rows of the cells, in ascending order.
    """
    _, code_N, size_S = np.unique(strata_N, return_inverse=True, return_counts=True)
    if len(code_N) <= n:
        return np.arange(len(code_N))
    least_S = np.minimum(size_S, max(1, min(floor, n // max(len(size_S), 1))))
    spare, over_S = max(0, n - least_S.sum()), size_S - least_S
    wanted_S = least_S + (spare * over_S // max(over_S.sum(), 1))
    later_N = np.zeros(len(code_N), bool) if first_N is None else ~np.asarray(first_N, bool)
    order = np.lexsort((np.random.default_rng(seed).random(len(code_N)), later_N, code_N))
    place = np.arange(len(order)) - np.repeat(np.cumsum(size_S) - size_S, size_S)
    return np.sort(order[place < wanted_S[code_N[order]]])


def drawn(obs: pd.DataFrame, columns: Sequence[str], seed: int, floor: int = 1) -> Array | None:
    """Return the rows of a sample of many cells, stratified by columns of ``obs``; ``None``: few cells, use all.

    Parameters
    ----------
    obs
        Table of the cells.
    columns
        Columns whose combinations are the groups; a missing value is a group of its own.
    seed
        Random seed.
    floor
        Number of cells that every group keeps. With 1 the sample has the shares of all cells; with :data:`FLOOR`, more
        of small groups, which are compared one by one.
    """
    if len(obs) <= MANY:
        return None
    strata_N = np.zeros(len(obs), np.int64)
    for column in columns:
        code_N, levels = pd.factorize(obs[column])
        strata_N = strata_N * (len(levels) + 1) + code_N + 1
    return sample(strata_N, DRAWN, seed=seed, floor=floor)
