"""The one interval of this package: what it is of, and how wide it is.

It is of the mean shift of a label in a batch against the average batch, in log1p CP10k: 90 % of these shifts are to lie
inside, of all genes and of those with the largest shifts too, which are the ones shown. The sampling noise of a mean of
observed cells is no part of it; such a mean scatters by its own standard error.
The middle is the mean over posterior draws of the batch effects. The half width is 1.645 standard deviations of the
draws, times one factor of the model, as the posterior alone may be too wide or too narrow. The factor is learnt from
validation cells after training (:mod:`scmedley.models.calibrate`); test cells show whether 90 % are inside
(:func:`scmedley.interpret.interval_coverage`).

Shapes: G genes, P pairs of label and batch.
"""

from dataclasses import dataclass

import numpy as np

NOMINAL = 0.9  # share of shifts that intervals are to hold
LEAST_FACTOR = 0.25
LARGEST = 20  # genes of a pair by predicted shift, of which 90 % are to be inside too
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
    shift_PG
        Predicted.
    miss_PG
        Observed less predicted.
    sd_PG
        Standard deviation of the draws.
    se_PG
        Standard error of the observed shift: sampling noise of means of few cells.
    n_P
        Observed cells of each pair.
    """

    shift_PG: np.ndarray
    miss_PG: np.ndarray
    sd_PG: np.ndarray
    se_PG: np.ndarray
    n_P: np.ndarray

    def inside(self, factor: float) -> np.ndarray:
        """Return whether each observed shift is in its interval, sampling noise counted: P x G."""
        allowed_PG = WITHIN_90 * np.hypot(factor * self.sd_PG, self.se_PG)
        return np.asarray(np.abs(self.miss_PG) <= allowed_PG)

    def coverage(self, factor: float, n_top: int | None = None) -> float:
        """Return the share of observed shifts in their interval, of all genes or the ``n_top`` largest of each pair."""
        return float(self._largest(self.inside(factor), n_top).mean())

    def factor(self) -> float:
        """Return the factor with which at least 90 % of the shifts are in their interval.

        Each shift needs a factor of its own to be just inside; the result is their 90 % quantile, and one standard
        error of that (jackknife over pairs): from few cells, rather too wide than too narrow. That of all genes or that
        of the ``LARGEST`` of each pair, whichever is larger: large shifts are predicted too small, or are large by
        chance. Where sampling noise would explain all deviations, the cells cannot show how narrow the interval may be:
        at least ``LEAST_FACTOR``.
        """
        need2_PG = np.maximum((self.miss_PG / WITHIN_90) ** 2 - self.se_PG**2, 0)
        need_PG = np.divide(np.sqrt(need2_PG), self.sd_PG, out=np.zeros_like(need2_PG), where=self.sd_PG > 0)
        return max(_upper(need_PG), _upper(self._largest(need_PG, LARGEST)), LEAST_FACTOR)

    def _largest(self, value_PG: np.ndarray, n_top: int | None) -> np.ndarray:
        """Return the values of the genes with the largest predicted shifts of each pair; all without ``n_top``."""
        order_PG = np.argsort(-np.abs(self.shift_PG), axis=1, kind="stable")
        return np.take_along_axis(value_PG, order_PG[:, :n_top], axis=1)


def _upper(need_PG: np.ndarray) -> float:
    """Return the 90 % quantile and one standard error of it, by a jackknife over pairs."""
    n_pairs = len(need_PG)
    without = [np.quantile(np.delete(need_PG, pair, axis=0), NOMINAL) for pair in range(n_pairs)]
    return float(np.quantile(need_PG, NOMINAL) + np.sqrt((n_pairs - 1) * np.var(without)))


def half_width(drawn: np.ndarray, calibration: Calibration | None, axis: int = 0) -> np.ndarray:
    """Return how far the interval's ends lie from its middle; ``axis`` counts the draws (at least 2)."""
    factor = 1.0 if calibration is None else calibration.factor
    return np.asarray(WITHIN_90 * factor * drawn.std(axis=axis, ddof=1))
