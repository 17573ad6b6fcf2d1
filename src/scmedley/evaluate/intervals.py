"""The interval that goes with a mean over folds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def t_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Give mean, low and high end of the 95 % t-interval over folds.

    mean ± t s / √n, with s the standard deviation (n - 1) and t the 97.5 % quantile of Student's t with
    n - 1 degrees of freedom (Student 1908). Folds share training cells, so that the interval is too narrow
    for a claim about new data; it says how far the folds agree.

    Parameters
    ----------
    values
        One value per fold. nan (the score is not defined in that fold) is left out and not counted in n.

    Returns
    -------
    tuple of float
        Mean, low, high; low and high are nan for fewer than two values, the mean for none.
    """
    from scipy.stats import t

    known = np.array([value for value in values if not np.isnan(value)], dtype=np.float64)
    n = len(known)
    mean = float(known.mean()) if n else float("nan")
    if n < 2:
        return mean, float("nan"), float("nan")
    half = float(t.ppf(0.975, n - 1) * known.std(ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half
