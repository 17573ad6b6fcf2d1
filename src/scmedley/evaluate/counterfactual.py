"""Accuracy of predictions for a group of cells that was not in training: measures, baselines and a ceiling.

The held-out group is all cells of a label in a batch (for example, of a patient under a drug). The source is
the label's cells in the other batches. A prediction has two parts: a change of the source's mean, Δ, and the
predicted cells, each source cell with its own change. Values are log1p CP10k.

Shapes: N source cells, M held-out cells, G genes, B batches, K other labels, T batches with training cells of
the label.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

Floats = npt.NDArray[np.floating[Any]]

N_TOP = 50  # number of genes whose direction is scored
CLOUD = 500  # maximum number of cells on each side of an E-distance
LEAST_CELLS = 5  # baselines use the mean of a label in a batch only if it has this many cells
ROUNDING = 1e-6  # a predicted change below this fraction of the observed change counts as no change
N_SPLITS = 5  # number of random halves for the ceiling
MEASURES = (
    *("pearson", "r2", "r2_weighted", "slope", "e_distance", "direction", "rank"),
    "n_targets",  # the number of batches that are ranked
)
BASELINES = ("no change", "mean over batches", "additive", "shrunk additive")
CEILING = "half-split ceiling"


@dataclass(frozen=True)
class HeldOut:
    """The observed cells that a prediction of one held-out group is compared with.

    Attributes
    ----------
    source_NG
        The label's cells in other batches.
    target_MG
        The held-out cells.
    other_TG
        The label's observed mean in each other batch: the wrong batches.
    """

    source_NG: Floats
    target_MG: Floats
    other_TG: Floats

    @property
    def change_G(self) -> Floats:
        """Return the observed change of the mean."""
        return np.asarray(self.target_MG.mean(axis=0) - self.source_NG.mean(axis=0))


def measure(
    held: HeldOut, change_G: Floats, cells_NG: Floats | None = None, *, seed: int = 0
) -> dict[str, float]:
    """Return all :data:`MEASURES` of a predicted change.

    Parameters
    ----------
    held
        The held-out group and its source.
    change_G
        Predicted change of the mean. All measures are nan if it contains nan (no prediction).
    cells_NG
        Predicted cells; by default each source cell plus ``change_G``.
    seed
        Random seed for the cells drawn for the E-distance.
    """
    if not np.isfinite(change_G).all():
        return dict.fromkeys(MEASURES, float("nan"))
    observed_G = held.change_G
    if np.linalg.norm(change_G) <= ROUNDING * np.linalg.norm(observed_G):
        change_G = np.zeros_like(change_G)
    if cells_NG is None:
        cells_NG = held.source_NG + change_G
    mean_G = held.source_NG.mean(axis=0) + change_G
    return {
        "pearson": pearson(observed_G, change_G),
        "r2": r2_change(observed_G, change_G),
        "r2_weighted": r2_change(observed_G, change_G, reliability(held.source_NG, held.target_MG)),
        "slope": slope(observed_G, change_G),
        "e_distance": energy_distance(cells_NG, held.target_MG, seed=seed),
        "direction": direction_accuracy(observed_G, change_G),
        "rank": float(target_rank(mean_G, held.target_MG.mean(axis=0), held.other_TG)),
        "n_targets": float(len(held.other_TG) + 1),
    }


def pearson(observed_G: Floats, predicted_G: Floats) -> float:
    """Return the Pearson correlation of two changes over genes; nan if one is constant or not finite."""
    from scipy.stats import pearsonr

    if not np.isfinite(observed_G).all() or np.ptp(observed_G) == 0 or np.ptp(predicted_G) == 0:
        return float("nan")
    return float(pearsonr(observed_G, predicted_G).statistic)


def correlations(a_TG: Floats, b_G: Floats) -> Floats:
    """Return the Pearson correlation of each row with ``b_G``; nan if one is constant or not finite."""
    a_TG, b_G = a_TG - a_TG.mean(axis=1, keepdims=True), b_G - b_G.mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        r_T = (a_TG @ b_G) / (np.linalg.norm(a_TG, axis=1) * np.linalg.norm(b_G))
    return np.asarray(np.where((np.ptp(a_TG, axis=1) > 0) & (np.ptp(b_G) > 0), r_T, np.nan))


def r2_change(observed_G: Floats, predicted_G: Floats, weight_G: Floats | None = None) -> float:
    """Return R²Δ, the share of the observed change that is predicted.

    R²Δ = 1 - Σ_g w_g (Δobs_g - Δpred_g)² / Σ_g w_g Δobs_g², with w = 1 by default. It is 1 for a perfect
    prediction and 0 for no change. It is below 0 for a change that is much too large or in the wrong genes.
    The R² of the means themselves, by contrast, is high even if no change is predicted.
    """
    w_G = np.ones_like(observed_G) if weight_G is None else weight_G
    size = float(w_G @ observed_G**2)
    return 1 - float(w_G @ (observed_G - predicted_G) ** 2) / size if size > 0 else float("nan")


def reliability(source_NG: Floats, target_MG: Floats) -> Floats:
    """Return the reliability of each gene's change: w_g = max(0, 1 - se_g² / Δ_g²), from 0 to 1.

    Δ is the observed change of the mean and se² = s²(source) / N + s²(target) / M its sampling variance. The
    weight is 0 for a change of at most one standard error, and 3/4 for a change of two.
    """
    change_G = target_MG.mean(axis=0) - source_NG.mean(axis=0)
    variance_G = _variance_of_mean(source_NG) + _variance_of_mean(target_MG)
    noise_G = np.divide(variance_G, change_G**2, out=np.ones_like(change_G), where=change_G != 0)
    return np.asarray(np.maximum(0, 1 - noise_G))


def slope(observed_G: Floats, predicted_G: Floats) -> float:
    """Return the slope of observed on predicted change, Δpred·Δobs / Δpred·Δpred; nan if none is predicted.

    The slope of a correct size is 1. Above 1 the prediction is too small; below 1 it is too large or partly
    in the wrong genes.
    """
    size = float(predicted_G @ predicted_G)
    return float(predicted_G @ observed_G) / size if size > 0 else float("nan")


def direction_accuracy(observed_G: Floats, predicted_G: Floats, n_top: int = N_TOP) -> float:
    """Return the share of right predicted signs among the ``n_top`` genes with the largest observed change.

    A gene without predicted change counts one half: predicting no change gives 0.5, as random signs do. Genes
    without observed change are left out.
    """
    top = np.argsort(-np.abs(observed_G), kind="stable")[:n_top]
    top = top[observed_G[top] != 0]
    if not len(top):
        return float("nan")
    return float((1 + np.sign(observed_G[top]) * np.sign(predicted_G[top])).mean() / 2)


def target_rank(predicted_G: Floats, right_G: Floats, wrong_TG: Floats) -> int:
    """Return the rank of the right batch: 1 + the number of wrong batches with a nearer mean (Euclidean)."""
    distance = np.linalg.norm(right_G - predicted_G)
    return 1 + int((np.linalg.norm(wrong_TG - predicted_G, axis=1) < distance).sum())


def energy_distance(a_NG: Floats, b_MG: Floats, *, max_cells: int = CLOUD, seed: int = 0) -> float:
    """Return the E-distance of two sets of cells; nan if one has fewer than two cells.

    E = 2 mean |a - b| - mean |a - a'| - mean |b - b'| with Euclidean distances (Székely & Rizzo 2004). The
    last two means are over pairs of different cells. The estimate is therefore unbiased: for two samples of
    one population of any size it is about 0, sometimes slightly below.

    Parameters
    ----------
    a_NG, b_MG
        Cells.
    max_cells
        Maximum number of cells drawn from each set.
    seed
        Random seed of the draw.
    """
    from scipy.spatial.distance import cdist, pdist

    rng = np.random.default_rng(seed)
    a_NG, b_MG = (
        x if len(x) <= max_cells else x[np.sort(rng.choice(len(x), max_cells, replace=False))]
        for x in (a_NG, b_MG)
    )
    if min(len(a_NG), len(b_MG)) < 2:
        return float("nan")
    return float(2 * cdist(a_NG, b_MG).mean() - pdist(a_NG).mean() - pdist(b_MG).mean())


def label_shifts(
    x_NG: csr_matrix,
    batch_N: npt.NDArray[np.integer[Any]],
    label_N: npt.NDArray[np.integer[Any]],
    *,
    batch: int,
    label: int,
    weight_B: Floats,
) -> tuple[Floats, Floats]:
    """Return the shift of each other label's mean from the source batches to ``batch``.

    d_k = mean(k in batch) - Σ_b w_b mean(k in b) / Σ_b w_b, over the source batches b with at least
    :data:`LEAST_CELLS` cells of label k. A label with fewer cells in ``batch``, or in all source batches, is
    left out.

    Parameters
    ----------
    x_NG, batch_N, label_N
        Values and codes of the training cells (label -1: missing).
    batch, label
        The held-out pair.
    weight_B
        Number of source cells from each batch, by code; 0 for ``batch``.

    Returns
    -------
    shift_KG, variance_KG
        The shifts of the K labels that have one, and their sampling variances.
    """
    shifts, variances = [], []
    for other in np.unique(label_N[(label_N >= 0) & (label_N != label)]):
        groups = {b: np.flatnonzero((batch_N == b) & (label_N == other)) for b in range(len(weight_B))}
        sources = [
            b for b, rows in groups.items() if b != batch and weight_B[b] > 0 and len(rows) >= LEAST_CELLS
        ]
        if len(groups[batch]) < LEAST_CELLS or not sources:
            continue
        w = weight_B[sources] / weight_B[sources].sum()
        moments = [_moments(x_NG[groups[b]]) for b in (batch, *sources)]
        mean_SG, variance_SG = (np.stack(values) for values in zip(*moments, strict=True))
        shifts.append(mean_SG[0] - w @ mean_SG[1:])
        variances.append(variance_SG[0] + w**2 @ variance_SG[1:])
    empty_KG = np.empty((0, x_NG.shape[1]))
    return (np.stack(shifts), np.stack(variances)) if shifts else (empty_KG, empty_KG)


def shrunk(shift_KG: Floats, variance_KG: Floats) -> Floats:
    """Return the mean of the labels' shifts, shrunk towards no change by empirical Bayes; nan without labels.

    The model for gene g and label k is d_kg = μ_g + a_kg + e_kg, with the shift that all labels share,
    μ_g ~ N(0, σ²), the deviation of one label, a_kg ~ N(0, τ²), and sampling noise, e_kg ~ N(0, s²_kg).
    The shift of a new label is predicted by

        E[μ_g | d̄_g] = σ² / (σ² + v_g) · d̄_g,   v_g = (τ² + mean_k s²_kg) / K,

    with the moments τ² = max(0, mean_g(S²_g - mean_k s²_kg)), S² the variance over labels, and
    σ² = max(0, mean_g(d̄_g² - v_g)) (Efron & Morris 1973). With one label τ² is set to 0.

    Parameters
    ----------
    shift_KG, variance_KG
        From :func:`label_shifts`.
    """
    n_labels, n_genes = shift_KG.shape
    if n_labels == 0:
        return np.full(n_genes, np.nan)
    mean_G, noise_G = shift_KG.mean(axis=0), variance_KG.mean(axis=0)
    between = 0.0 if n_labels == 1 else max(0.0, float((shift_KG.var(axis=0, ddof=1) - noise_G).mean()))
    v_G = (between + noise_G) / n_labels
    shared = max(0.0, float((mean_G**2 - v_G).mean()))
    return np.asarray(
        mean_G * np.divide(shared, shared + v_G, out=np.zeros_like(v_G), where=shared + v_G > 0)
    )


def baselines(held: HeldOut, shift_KG: Floats, variance_KG: Floats) -> dict[str, Floats]:
    """Return the changes that the :data:`BASELINES` predict.

    - no change: the source cells unchanged;
    - mean over batches: the change to the label's mean over the other batches, each with equal weight (the
      reference of Systema); it is no change with one other batch;
    - additive: the mean shift of the other labels;
    - shrunk additive: :func:`shrunk`.
    """
    source_G = held.source_NG.mean(axis=0)
    n_genes = len(source_G)
    return {
        "no change": np.zeros(n_genes),
        "mean over batches": held.other_TG.mean(axis=0) - source_G
        if len(held.other_TG)
        else np.full(n_genes, np.nan),
        "additive": shift_KG.mean(axis=0) if len(shift_KG) else np.full(n_genes, np.nan),
        "shrunk additive": shrunk(shift_KG, variance_KG),
    }


def ceiling(held: HeldOut, *, seed: int = 0, n_splits: int = N_SPLITS) -> dict[str, float]:
    """Return all :data:`MEASURES` for one random half of the held-out cells predicting the other half.

    Each is the mean over ``n_splits`` splits.
    """
    rng = np.random.default_rng(seed)
    splits = []
    for _ in range(n_splits):
        order = rng.permutation(len(held.target_MG))
        first_MG, second_MG = held.target_MG[order[::2]], held.target_MG[order[1::2]]
        half = HeldOut(held.source_NG, second_MG, held.other_TG)
        change_G = first_MG.mean(axis=0) - held.source_NG.mean(axis=0)
        splits.append(measure(half, change_G, first_MG, seed=seed))
    return {name: float(np.mean([values[name] for values in splits])) for name in MEASURES}


def _moments(x_NG: csr_matrix) -> tuple[Floats, Floats]:
    """Return the mean of each gene and the sampling variance of that mean."""
    n = x_NG.shape[0]
    x_NG = x_NG.astype(np.float64)  # scipy's mean of float32 rounds each value, even with another dtype
    mean_G = np.asarray(x_NG.mean(axis=0)).ravel()
    square_G = np.asarray(x_NG.multiply(x_NG).mean(axis=0)).ravel()
    return mean_G, np.maximum(square_G - mean_G**2, 0) / (n - 1)


def _variance_of_mean(x_NG: Floats) -> Floats:
    if len(x_NG) < 2:
        return np.zeros(x_NG.shape[1])
    return np.asarray(x_NG.var(axis=0, ddof=1) / len(x_NG))
