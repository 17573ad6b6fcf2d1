"""The one interval of this package: what it is of, and how wide it is.

It is of the mean shift of a label in a batch against the average batch, in log1p CP10k: 90 % of these shifts are to lie
inside. The sampling noise of a mean of observed cells is no part of it; such a mean scatters by its own standard error.
The middle is the mean over posterior draws of the batch effects. The half width is 1.645 standard deviations of the
draws, times one factor of the model, as the posterior alone may be too wide or too narrow. The factor is learnt from
validation cells after training (:mod:`scmedley.models.calibrate`); test cells show whether 90 % are inside
(:func:`scmedley.evaluate.interval_coverage`).

Shapes: G genes, P pairs of label and batch.
"""

from dataclasses import dataclass

import numpy as np

NOMINAL = 0.9  # share of shifts that intervals are to hold
LEAST_FACTOR = 0.25
WITHIN_90 = 1.645  # standard deviations to either side that hold 90 % of a Gaussian


@dataclass(frozen=True)
class Calibration:
    """The factor of a model's intervals, and from what it was learnt.

    Attributes
    ----------
    factor
        What the standard deviation of the draws is multiplied by.
    pairs, cells
        Pairs of label and batch, and validation cells in them.
    label_key
        ``obs`` column of the labels; ``None``: all cells were one group.
    """

    factor: float
    pairs: int
    cells: int
    label_key: str | None = None


@dataclass(frozen=True)
class Deviations:
    """Observed less predicted shifts, P x G: how far they lie apart, and what would explain it.

    Attributes
    ----------
    miss_PG
        Observed less predicted.
    sd_PG
        Standard deviation of the draws.
    se_PG
        Standard error of the observed shift: sampling noise of means of few cells.
    n_P
        Observed cells of each pair.
    """

    miss_PG: np.ndarray
    sd_PG: np.ndarray
    se_PG: np.ndarray
    n_P: np.ndarray

    def inside(self, factor: float) -> np.ndarray:
        """Return whether each observed shift is in its interval, sampling noise counted: P x G."""
        allowed_PG = WITHIN_90 * np.hypot(factor * self.sd_PG, self.se_PG)
        return np.asarray(np.abs(self.miss_PG) <= allowed_PG)

    def coverage(self, factor: float) -> float:
        """Return the share of observed shifts, of all pairs and genes, that are in their interval."""
        return float(self.inside(factor).mean())

    def factor(self) -> float:
        """Return the factor with which 90 % of the shifts are in their interval.

        Each shift needs a factor of its own to be just inside; the result is their 90 % quantile, and one standard
        error of that (jackknife over pairs): from few cells, rather too wide than too narrow. Where sampling noise
        would explain all deviations, the cells cannot show how narrow the interval may be: at least ``LEAST_FACTOR``.
        """
        need2_PG = np.maximum((self.miss_PG / WITHIN_90) ** 2 - self.se_PG**2, 0)
        need_PG = np.divide(np.sqrt(need2_PG), self.sd_PG, out=np.zeros_like(need2_PG), where=self.sd_PG > 0)
        n_pairs = len(need_PG)
        without = [np.quantile(np.delete(need_PG, pair, axis=0), NOMINAL) for pair in range(n_pairs)]
        found = float(np.quantile(need_PG, NOMINAL) + np.sqrt((n_pairs - 1) * np.var(without)))
        return max(found, LEAST_FACTOR)


def half_width(drawn: np.ndarray, calibration: Calibration | None, axis: int = 0) -> np.ndarray:
    """Return how far the interval's ends lie from its middle; ``axis`` counts the draws (at least 2)."""
    factor = 1.0 if calibration is None else calibration.factor
    return np.asarray(WITHIN_90 * factor * drawn.std(axis=axis, ddof=1))
