"""Scores of labels and novelty that a model gives to new cells. Shapes: N cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from scmedley.data.neighbors import Floats

Flags = npt.NDArray[np.bool_]
BINS = 10


def expected_calibration_error(probability_N: Floats, right_N: Flags, bins: int = BINS) -> float:
    """Compute the expected calibration error, 0 (probabilities are right on average) to 1.

    Cells are grouped by the probability of their predicted label into bins of equal width. The error is the
    mean over cells of ``|mean probability - share of right labels|`` of their bin (Guo et al. 2017). With few cells
    it is above 0 by chance: about 0.04 for 200 cells.

    Parameters
    ----------
    probability_N
        Probability of the predicted label, 0 to 1.
    right_N
        Whether the prediction is right.
    bins
        Number of bins.

    Returns
    -------
    float
        nan without cells.
    """
    return error_of_bins(calibration_bins(probability_N, right_N, bins))


def calibration_bins(probability_N: Floats, right_N: Flags, bins: int = BINS) -> npt.NDArray[np.float64]:
    """Return for each bin the number of cells, the sum of probabilities and the number of right labels.

    The sums of several sets of cells can be added, for the error of all of them.
    """
    bin_N = np.clip(np.ceil(np.asarray(probability_N) * bins).astype(int) - 1, 0, bins - 1)
    weights: tuple[Any, ...] = (None, probability_N, right_N)
    return np.stack([np.bincount(bin_N, w, minlength=bins) for w in weights], axis=1).astype(np.float64)


def error_of_bins(sums: npt.NDArray[np.float64]) -> float:
    """Compute the expected calibration error from the sums of :func:`calibration_bins`."""
    n_cells = sums[:, 0].sum()
    return float(np.abs(sums[:, 1] - sums[:, 2]).sum() / n_cells) if n_cells else float("nan")


def novelty_auroc(novelty_N: Floats, new_N: Flags) -> float:
    """Compute how well novelty separates new cells from known ones: 0.5 by chance, 1 perfect.

    The area under the ROC curve: the probability that a new cell has a higher novelty than a known one.

    Parameters
    ----------
    novelty_N
        Novelty of each cell, finite.
    new_N
        Whether the cell is new.

    Returns
    -------
    float
        nan if all cells are new, or none.
    """
    from sklearn.metrics import roc_auc_score

    if new_N.all() or not new_N.any():
        return float("nan")
    return float(roc_auc_score(new_N, novelty_N))
