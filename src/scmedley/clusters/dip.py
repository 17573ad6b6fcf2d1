"""The dip of a sample (Hartigan & Hartigan 1985, Annals of Statistics 13:70-84): how far it is from one peak.

Shapes: N values.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

CLOSEST = 1e-9  # of the range: equal values are kept that far apart, so that all slopes are finite


def dip(x_N: Floats) -> float:
    """Return the largest distance of the empirical distribution from the nearest one with a single peak.

    A distribution has a single peak (mode) if its cumulative function is convex up to the mode and concave after
    it. The algorithm is that of the paper, section 4. The mode lies in an interval, at first that of all values. Take
    the largest convex function below the steps of the empirical distribution and the smallest concave function
    above them: where they are furthest apart, the mode has to be, so the interval shrinks to the knots on both sides.
    Stop when they are closer than the distance that was found before.

    Parameters
    ----------
    x_N
        Values in any order.

    Returns
    -------
    float
        From 1 / (2 N) to 1/4.
    """
    n = len(x_N)
    width = np.diff(np.sort(np.asarray(x_N, dtype=np.float64)))
    if n < 4 or not width.any():
        return 1 / (2 * n)
    u_N = np.append(0.0, np.cumsum(np.maximum(width, CLOSEST * width.sum())))
    below_N = np.arange(n, dtype=np.float64)  # both ends of each step, in values
    low, high, distance = 0, n - 1, 1.0  # distance: twice the dip, in steps
    while high - low > 1:
        u, below = u_N[low : high + 1], below_N[low : high + 1]
        upto = below + 1
        convex, concave = _knots(u, below, increasing=True), _knots(u, upto, increasing=False)
        under, over = np.interp(u, u[convex], below[convex]), np.interp(u, u[concave], upto[concave])
        apart = over - under
        at_convex, at_concave = convex[apart[convex].argmax()], concave[apart[concave].argmax()]
        if apart[at_convex] > apart[at_concave]:
            left, right = at_convex, concave[np.searchsorted(concave, at_convex)]
        else:
            left, right = convex[np.searchsorted(convex, at_concave, side="right") - 1], at_concave
        if max(apart[at_convex], apart[at_concave]) <= distance:
            break
        distance = max(distance, (upto - under)[: left + 1].max(), (over - below)[right:].max())
        if (left, right) == (0, high - low):
            break
        low, high = low + int(left), low + int(right)
    return distance / (2 * n)


def _knots(u: Floats, y: Floats, *, increasing: bool) -> Rows:
    """Return the points on the largest convex function below all (slopes increase) or the smallest concave above."""
    from scipy.optimize import isotonic_regression

    width = np.diff(u)
    slopes = isotonic_regression(np.diff(y) / width, weights=width, increasing=increasing)
    return np.asarray(slopes.blocks, dtype=np.int64)
