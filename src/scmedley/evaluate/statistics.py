"""Statistics whose observations are donors or folds, not cells.

Shapes: N cells, G genes, D donors.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse, stats

from scmedley.data.arrays import Numbers, check_finite, dense, numeric
from scmedley.errors import ScmedleyError, listed


def donor_test(
    x_NG: Numbers,
    genes: Sequence[str],
    donor_N: Sequence[str] | NDArray[Any],
    group_N: Sequence[str] | NDArray[Any],
    groups: tuple[Any, Any],
    *,
    min_cells: int = 10,
) -> pd.DataFrame:
    """Compare two groups of donors, gene by gene: Welch's t-test on donor means, Benjamini-Hochberg over genes.

    Cells of one donor are not independent, so that the number of observations is that of donors, and every donor
    counts once. Give cells of one cell type at a time: over several, a gene also differs where the groups differ in
    how many cells of each type they have.

    Parameters
    ----------
    x_NG
        Expression, N × G; log1p CP10k is meant.
    genes
        Names, G.
    donor_N, group_N
        Donor and group of each cell; a donor has one group. Cells without one of them are left out.
    groups
        The two that are compared, as ``group_N`` has them: the difference is the second less the first.
    min_cells
        Donors with fewer cells are left out: their means are mostly noise.

    Returns
    -------
    pandas.DataFrame
        A row for each gene: ``gene``, ``mean_1``, ``mean_2`` (of donor means), ``difference``, all in the unit of the
        expression, ``t``, ``p``, ``q`` (false discovery rate), ``n_1``, ``n_2`` (donors). A gene without spread in both
        groups has no test.

    Raises
    ------
    ScmedleyError
        Lengths differ, values are not finite, a donor is of two groups, or a group has fewer than two donors.
    """
    x_NG = numeric(x_NG, genes)
    if not x_NG.shape == (len(donor_N), len(genes)) or len(group_N) != len(donor_N):
        raise ScmedleyError(
            f"Values of shape {x_NG.shape} need as many donors and groups as rows and as many genes as columns; there "
            f"are {len(donor_N)}, {len(group_N)} and {len(genes)}."
        )
    if isinstance(groups, str) or len(groups) != 2 or groups[0] == groups[1]:
        raise ScmedleyError(f"groups is {groups!r}; name two different ones.")
    means_DG, group_D, n_cells_D = _donor_means(
        x_NG, np.asarray(donor_N, object), np.asarray(group_N, object)
    )
    means_DG, group_D = means_DG[n_cells_D >= min_cells], group_D[n_cells_D >= min_cells]
    check_finite(means_DG, genes)
    sides = [means_DG[group_D == group] for group in groups]
    for group, side in zip(groups, sides, strict=True):
        if len(side) < 2:
            raise ScmedleyError(
                f"Group {group!r} has {len(side)} donors of {min_cells} cells and more; a test needs 2. Such donors "
                f"are of the groups {listed(sorted(set(group_D), key=str))}."
            )
    spread_G = np.max([np.ptp(side, axis=0) for side in sides], axis=0)
    varies_G = spread_G > 1e-9 * np.abs(means_DG).max(axis=0)  # what is less comes from rounding the means
    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of genes without spread
        t, p = (
            np.where(varies_G, found, np.nan)
            for found in stats.ttest_ind(sides[1], sides[0], equal_var=False)
        )
    q = np.full(len(genes), np.nan)
    tested = np.isfinite(p)
    q[tested] = stats.false_discovery_control(p[tested]) if tested.any() else []
    means = [side.mean(0) for side in sides]
    return pd.DataFrame(
        {
            "gene": list(genes),
            "mean_1": means[0],
            "mean_2": means[1],
            "difference": means[1] - means[0],
            "t": t,
            "p": p,
            "q": q,
            "n_1": len(sides[0]),
            "n_2": len(sides[1]),
        }
    )


def _donor_means(
    x_NG: sparse.csr_matrix | np.ndarray, donor_N: NDArray[Any], group_N: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[Any], NDArray[np.int64]]:
    """Return the mean of each donor's cells, D × G, each donor's group, and how many cells it has."""
    obs = pd.DataFrame({"donor": donor_N, "group": group_N}).dropna()
    of_donor = obs.drop_duplicates()
    twice = of_donor["donor"][of_donor["donor"].duplicated()]
    if len(twice):
        raise ScmedleyError(f"Donor {twice.iloc[0]!r} has cells of two groups. A donor must be of one.")
    codes, donors = pd.factorize(obs["donor"])
    member = sparse.csr_matrix((np.ones(len(codes)), (codes, obs.index)), (len(donors), len(donor_N)))
    n_cells_D = np.bincount(codes, minlength=len(donors))
    means_DG = dense(member @ x_NG) / n_cells_D[:, None]
    return means_DG, of_donor["group"].to_numpy(), n_cells_D  # all in the order in which donors come


def t_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return mean, low and high end of the 95 % t-interval over folds (Student 1908).

    Folds share training cells, so that the interval is too narrow for a claim about new data; it shows how far the
    folds agree.

    Parameters
    ----------
    values
        One value per fold. nan (the score is not defined in that fold) is left out and not counted.

    Returns
    -------
    tuple of float
        Mean, low, high; low and high are nan for fewer than two values, the mean for none.
    """
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    mean = float(known.mean()) if len(known) else float("nan")
    if len(known) < 2:
        return mean, float("nan"), float("nan")
    with np.errstate(divide="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of equal values: their t is not needed here
        low, high = stats.ttest_1samp(known, 0).confidence_interval(0.95)
    return mean, float(low), float(high)
