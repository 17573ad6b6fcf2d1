"""Statistics whose observations are donors or cross-validation folds, not cells.

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


def adjusted(p_G: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return p-values adjusted by Benjamini and Hochberg; missing ones stay missing and do not count."""
    q_G = np.full(len(p_G), np.nan)
    known = np.isfinite(p_G)
    if known.any():
        q_G[known] = stats.false_discovery_control(p_G[known])
    return q_G


def donor_test(
    x_NG: Numbers,
    genes: Sequence[str],
    donor_N: Sequence[str] | NDArray[Any],
    group_N: Sequence[str] | NDArray[Any],
    groups: tuple[Any, Any],
    *,
    min_cells: int = 10,
) -> pd.DataFrame:
    """Test each gene between two groups of donors: Welch's t-test on donor means, Benjamini-Hochberg.

    Cells of one donor are not independent, so the observations are donors, each with equal weight. Pass cells
    of one cell type at a time: across several types, a gene also differs if the groups differ in cell type
    proportions.

    Parameters
    ----------
    x_NG
        Expression, N × G, usually log1p CP10k.
    genes
        Names of the G genes.
    donor_N, group_N
        Donor and group of each cell; each donor has one group. Cells without donor or group are left out.
    groups
        The two values of ``group_N`` to compare: the difference is the second minus the first.
    min_cells
        Donors with fewer cells are left out, because their means are mostly noise.

    Returns
    -------
    pandas.DataFrame
        One row per gene: ``gene``, ``mean_1``, ``mean_2`` (of donor means), ``difference`` (in the unit of
        the expression), ``t``, ``p``, ``q`` (false discovery rate), ``n_1``, ``n_2`` (donors). Tests are nan
        for a gene that is constant in both groups.

    Raises
    ------
    ScmedleyError
        Lengths differ, values are not finite, a donor is in two groups, or a group has fewer than two donors.
    """
    x_NG = numeric(x_NG, genes)
    if not x_NG.shape == (len(donor_N), len(genes)) or len(group_N) != len(donor_N):
        raise ScmedleyError(
            f"The values have shape {x_NG.shape}, but there are {len(donor_N)} donors, {len(group_N)} groups and "
            f"{len(genes)} genes. Give one donor and one group per row, and one gene per column."
        )
    if isinstance(groups, str) or len(groups) != 2 or groups[0] == groups[1]:
        raise ScmedleyError(f"groups is {groups!r}. Give two different groups.")
    means_DG, group_D, n_cells_D = _donor_means(
        x_NG, np.asarray(donor_N, object), np.asarray(group_N, object)
    )
    means_DG, group_D = means_DG[n_cells_D >= min_cells], group_D[n_cells_D >= min_cells]
    check_finite(means_DG, genes)
    sides = [means_DG[group_D == group] for group in groups]
    for group, side in zip(groups, sides, strict=True):
        if len(side) < 2:
            raise ScmedleyError(
                f"Group {group!r} has {len(side)} donors with at least {min_cells} cells; the test needs 2. Groups "
                f"with such donors: {listed(sorted(set(group_D), key=str))}. Choose among them or lower min_cells."
            )
    spread_G = np.max([np.ptp(side, axis=0) for side in sides], axis=0)
    varies_G = spread_G > 1e-9 * np.abs(means_DG).max(axis=0)  # smaller differences are rounding errors
    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # constant genes
        t, p = (
            np.where(varies_G, values_G, np.nan)
            for values_G in stats.ttest_ind(sides[1], sides[0], equal_var=False)
        )
    means = [side.mean(0) for side in sides]
    return pd.DataFrame(
        {
            "gene": list(genes),
            "mean_1": means[0],
            "mean_2": means[1],
            "difference": means[1] - means[0],
            "t": t,
            "p": p,
            "q": adjusted(p),
            "n_1": len(sides[0]),
            "n_2": len(sides[1]),
        }
    )


def _donor_means(
    x_NG: sparse.csr_matrix | np.ndarray, donor_N: NDArray[Any], group_N: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[Any], NDArray[np.int64]]:
    """Return each donor's mean, D × G, its group, and its number of cells."""
    obs = pd.DataFrame({"donor": donor_N, "group": group_N}).dropna()
    of_donor = obs.drop_duplicates()
    twice = of_donor["donor"][of_donor["donor"].duplicated()]
    if len(twice):
        raise ScmedleyError(
            f"Donor {twice.iloc[0]!r} has cells of two groups. Give each donor one group, or one name per group."
        )
    codes, donors = pd.factorize(obs["donor"])
    member = sparse.csr_matrix((np.ones(len(codes)), (codes, obs.index)), (len(donors), len(donor_N)))
    n_cells_D = np.bincount(codes, minlength=len(donors))
    means_DG = dense(member @ x_NG) / n_cells_D[:, None]
    return means_DG, of_donor["group"].to_numpy(), n_cells_D  # all in order of each donor's first cell


def t_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and both ends of the 95 % t-interval over cross-validation folds (Student 1908).

    Folds share training cells, so the interval is too narrow for a claim about new data. It shows how well
    the folds agree.

    Parameters
    ----------
    values
        One value per fold. nan (the score is not defined in that fold) is left out.

    Returns
    -------
    tuple of float
        Mean, low, high. Low and high are nan for fewer than two values; the mean is nan for none.
    """
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    mean = float(known.mean()) if len(known) else float("nan")
    if len(known) < 2:
        return mean, float("nan"), float("nan")
    with np.errstate(divide="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # equal values have no t, but an interval
        low, high = stats.ttest_1samp(known, 0).confidence_interval(0.95)
    return mean, float(low), float(high)
