"""The calibrated interval of a shift.

A shift is the mean of a label in a batch minus that of the average batch, in log1p CP10k. The interval should
hold 90 % of the shifts, of all genes and also of the genes with the largest shifts, which are the ones shown.
It does not include the sampling noise of a mean of observed cells. The centre is the mean over posterior
draws of the batch effects. The half width is 1.645 standard deviations of the draws times one factor for the
model, because the posterior alone may be too wide or too narrow. The factor is learnt from validation cells
after training (:mod:`scmedley.models.calibrate`); the coverage is measured on test cells
(:func:`scmedley.interpret.interval_coverage`).

Shapes: G genes, P pairs of label and batch.
"""

from dataclasses import dataclass

import numpy as np

NOMINAL = 0.9  # nominal coverage
LEAST_FACTOR = 0.25
LARGEST = 20  # genes with the largest predicted shifts of a pair; their coverage should be 90 % too
WITHIN_90 = 1.645  # half width in standard deviations that holds 90 % of a Gaussian


@dataclass(frozen=True)
class Calibration:
    """The calibration factor of a model and the data that it was learnt from.

    Attributes
    ----------
    factor
        Multiplies the standard deviation of the draws.
    pairs, cells
        Number of pairs of label and batch, and of the validation cells in them.
    label_key
        ``obs`` column of the labels; ``None``: all cells were one group.
    """

    factor: float
    pairs: int
    cells: int
    label_key: str | None = None


@dataclass(frozen=True)
class Deviations:
    """Deviations of observed from predicted shifts, P x G, with their standard deviations.

    Attributes
    ----------
    shift_PG
        Predicted shift.
    miss_PG
        Observed minus predicted shift.
    sd_PG
        Standard deviation of the draws.
    se_PG
        Standard error of the observed shift (sampling noise).
    n_P
        Number of observed cells of each pair.
    """

    shift_PG: np.ndarray
    miss_PG: np.ndarray
    sd_PG: np.ndarray
    se_PG: np.ndarray
    n_P: np.ndarray

    def inside(self, factor: float) -> np.ndarray:
        """Return whether each observed shift is in its interval widened by sampling noise, P x G."""
        allowed_PG = WITHIN_90 * np.hypot(factor * self.sd_PG, self.se_PG)
        return np.asarray(np.abs(self.miss_PG) <= allowed_PG)

    def coverage(self, factor: float, n_top: int | None = None) -> float:
        """Return the coverage over all genes, or over the ``n_top`` largest shifts of each pair."""
        return float(self._largest(self.inside(factor), n_top).mean())

    def factor(self) -> float:
        """Return the factor with which at least 90 % of the shifts are in their interval.

        Each shift needs a certain factor to be just inside. The result is the 90 % quantile of these factors
        plus its standard error (jackknife over pairs), so that few cells give wide rather than narrow
        intervals. It is computed for all genes and for the ``LARGEST`` of each pair, whose shifts are often
        predicted too small or are large by chance; the larger value is used. If sampling noise explains all
        deviations, the cells do not show how narrow the interval may be, so the result is at least
        ``LEAST_FACTOR``.
        """
        need2_PG = np.maximum((self.miss_PG / WITHIN_90) ** 2 - self.se_PG**2, 0)
        need_PG = np.divide(np.sqrt(need2_PG), self.sd_PG, out=np.zeros_like(need2_PG), where=self.sd_PG > 0)
        return max(_upper(need_PG), _upper(self._largest(need_PG, LARGEST)), LEAST_FACTOR)

    def _largest(self, value_PG: np.ndarray, n_top: int | None) -> np.ndarray:
        """Return the values of the ``n_top`` (or all) genes with the largest predicted shifts of a pair."""
        order_PG = np.argsort(-np.abs(self.shift_PG), axis=1, kind="stable")
        return np.take_along_axis(value_PG, order_PG[:, :n_top], axis=1)


def _upper(need_PG: np.ndarray) -> float:
    """Return the 90 % quantile plus its standard error (jackknife over pairs)."""
    n_pairs = len(need_PG)
    without = [np.quantile(np.delete(need_PG, pair, axis=0), NOMINAL) for pair in range(n_pairs)]
    return float(np.quantile(need_PG, NOMINAL) + np.sqrt((n_pairs - 1) * np.var(without)))


def half_width(drawn: np.ndarray, calibration: Calibration | None, axis: int = 0) -> np.ndarray:
    """Return the half width of the interval; ``axis`` is the axis of the draws (at least 2)."""
    factor = 1.0 if calibration is None else calibration.factor
    return np.asarray(WITHIN_90 * factor * drawn.std(axis=axis, ddof=1))
