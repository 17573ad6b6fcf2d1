"""Does the split of two groups of cells stand? A gap on a discriminant, or few neighbours across the border.

Shapes: N cells, P latent dimensions, F folds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scmedley.clusters.dip import dip
from scmedley.data.neighbors import nearest

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

SMALLEST = 8  # cells; no split of a smaller group stands
FOLDS = 5
MOST_CELLS = 1000  # of each group, drawn at random, for the dip
MOST_CELLS_RATIO = 800  # of both groups, for the neighbour ratio
SHRINKAGE = 0.1  # of the discriminant's covariance towards a sphere
N_NEIGHBORS = 10
DRAWS = 5  # of the Gaussian that the neighbours are compared with
# sqrt(n) times the dip of n uniform values is below these in 99 % and in 80 % of samples; the second is enough
# where the neighbour ratio is low.
STRONG, WEAK = (0.62, 0.36), (0.45, 0.27)
LOW_RATIO = 0.3


@dataclass(frozen=True)
class Split:
    """The evidence for the split of two groups.

    Attributes
    ----------
    dip
        sqrt(n) times the dip of the held-out scores of n cells around the border.
    least_dip
        The dip that it needs; less where the neighbour ratio is low.
    ratio
        Share of the smaller group's neighbours that lie in the other group, over that share in one Gaussian cloud
        cut in the same proportion. 1: as in one cloud; 0: no neighbour across the border. nan: not computed.
    """

    dip: float
    least_dip: float
    ratio: float

    @property
    def stands(self) -> bool:
        """Return whether the split stands."""
        return self.dip >= self.least_dip


def split(x_NP: Floats, second_N: Flags, rng: np.random.Generator, *, always_ratio: bool = False) -> Split:
    """Return the evidence for the split of cells into those of the first and of the second group.

    Parameters
    ----------
    x_NP
        Cells of both groups.
    second_N
        Whether a cell belongs to the second group.
    rng
        Draws cells of large groups, folds, and Gaussian clouds.
    always_ratio
        Compute the neighbour ratio also where it does not decide.
    """
    if min(second_N.sum(), (~second_N).sum()) < SMALLEST:
        return Split(0.0, STRONG[0], float("nan"))
    scaled, n = scaled_dip(x_NP, second_N, rng)
    strong, weak = (a - b / np.sqrt(n) for a, b in (STRONG, WEAK))
    undecided = weak <= scaled < strong
    ratio = neighbour_ratio(x_NP, second_N, rng) if undecided or always_ratio else float("nan")
    return Split(scaled, weak if undecided and ratio <= LOW_RATIO else strong, ratio)


def scaled_dip(x_NP: Floats, second_N: Flags, rng: np.random.Generator) -> tuple[float, int]:
    """Return sqrt(n) times the dip of the held-out scores around the border, and n.

    The larger group is cut to as many cells as the smaller has, those nearest to the border: else the peak of a small
    group is a shoulder of the large one.
    """
    drawn = [rng.permutation(np.flatnonzero(side))[:MOST_CELLS] for side in (second_N, ~second_N)]
    rows = np.concatenate(drawn)
    second_N = second_N[rows]
    n_second, n_first = map(len, drawn)
    score_N = held_out_scores(x_NP[rows], second_N, rng)
    n = 2 * min(n_second, n_first)
    order = np.argsort(score_N, kind="stable")
    near = order[-n:] if n_second <= n_first else order[:n]
    return float(np.sqrt(n) * dip(score_N[near])), n


def held_out_scores(x_NP: Floats, second_N: Flags, rng: np.random.Generator) -> Floats:
    """Return the score of each cell on a linear discriminant learnt on the cells of other folds.

    A discriminant of many dimensions separates the very cells that it was learnt on also where there is no gap.
    """
    fold_N = np.empty(len(x_NP), dtype=np.int64)
    for side in (second_N, ~second_N):
        rows = rng.permutation(np.flatnonzero(side))
        fold_N[rows] = np.arange(len(rows)) % FOLDS
    score_N = np.empty(len(x_NP))
    for fold in range(FOLDS):
        held = fold_N == fold
        direction_P, middle = _discriminant(x_NP[~held], second_N[~held])
        score_N[held] = x_NP[held] @ direction_P - middle
    return score_N


def _discriminant(x_NP: Floats, second_N: Flags) -> tuple[Floats, float]:
    """Return direction and middle of Fisher's linear discriminant; the variance within groups is 1 along it."""
    first_P, last_P = x_NP[~second_N].mean(0), x_NP[second_N].mean(0)
    rest_NP = x_NP - np.where(second_N[:, None], last_P, first_P)
    within_PP = _shrunk(rest_NP.T @ rest_NP / max(len(x_NP) - 2, 1), SHRINKAGE)
    direction_P = np.linalg.solve(within_PP, last_P - first_P)
    variance = float(direction_P @ within_PP @ direction_P)
    direction_P = direction_P / np.sqrt(max(variance, 1e-12))
    return direction_P, float((first_P + last_P) / 2 @ direction_P)


def _shrunk(covariance_PP: Floats, share: float) -> Floats:
    """Return the covariance plus ``share`` of its mean variance on the diagonal."""
    variance = max(np.trace(covariance_PP) / len(covariance_PP), 1e-30)
    return np.asarray(covariance_PP + share * variance * np.eye(len(covariance_PP)))


def neighbour_ratio(x_NP: Floats, second_N: Flags, rng: np.random.Generator) -> float:
    """Return the share of neighbours across the border over that in Gaussian clouds cut in the same proportion."""
    if len(x_NP) > MOST_CELLS_RATIO:
        rows = rng.choice(len(x_NP), MOST_CELLS_RATIO, replace=False)
        x_NP, second_N = x_NP[rows], second_N[rows]
    if min(second_N.sum(), (~second_N).sum()) < 5:
        return 1.0
    covariance_PP = np.atleast_2d(np.cov(x_NP.T, bias=True))
    root_PP = np.linalg.cholesky(_shrunk(covariance_PP, 1e-6))
    apart_P = x_NP[second_N].mean(0) - x_NP[~second_N].mean(0)
    normal_P = np.linalg.solve(_shrunk(covariance_PP, 0.01), apart_P)
    expected = []
    for _ in range(DRAWS):
        cloud_NP = rng.normal(size=x_NP.shape) @ root_PP.T
        height_N = cloud_NP @ normal_P
        expected.append(_across(cloud_NP, height_N > np.quantile(height_N, 1 - second_N.mean())))
    return float(_across(x_NP, second_N) / max(float(np.mean(expected)), 1e-6))


def _across(x_NP: Floats, second_N: Flags) -> float:
    """Return the share of the smaller group's neighbours that lie in the other group."""
    smaller_N = second_N if second_N.sum() <= (~second_N).sum() else ~second_N
    return float(
        (~smaller_N[nearest(x_NP, x_NP, N_NEIGHBORS, exclude_self=True).indices_NK[smaller_N]]).mean()
    )
