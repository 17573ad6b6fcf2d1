"""How well is a group of cells predicted that no fit has seen? Measures, simple baselines, and a ceiling.

Held out are all cells of a label in a batch (of a patient under a drug). The source is the label's cells in the
other batches. A prediction is a change of the source's mean, Δ, and each source cell with its own change: the
predicted cells. Values are log1p CP10k.

Shapes: N source cells, M held-out cells, G genes, B batches, L other labels, T batches in which the label was seen.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

Floats = npt.NDArray[np.floating[Any]]

N_TOP = 50  # genes whose direction is judged
CLOUD = 500  # cells on either side of an E-distance, at most
LEAST_CELLS = 5  # cells of a label in a batch without which their mean is in no baseline
ROUNDING = 1e-6  # of the observed change: what is smaller is no change, and has no direction
N_SPLITS = 5  # random halves for the ceiling
MEASURES = (
    *("pearson", "r2", "r2_weighted", "slope", "e_distance", "direction", "rank"),
    "n_targets",  # that the rank is among
)
BASELINES = ("no change", "mean over batches", "additive", "shrunk additive")
CEILING = "half-split ceiling"


@dataclass(frozen=True)
class HeldOut:
    """What a prediction of one held-out group is measured against.

    Attributes
    ----------
    source_NG
        The label's cells in other batches.
    target_MG
        The held-out cells.
    other_TG
        The label's observed mean in each other batch: the wrong targets.
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
        The group and its source.
    change_G
        Predicted change of the mean. Where it holds nan (no such prediction), all measures are nan.
    cells_NG
        Predicted cells; by default the source cells, all with the change added.
    seed
        Of the cells that are drawn for the E-distance.
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
    """Return the correlation of observed and predicted change over genes; nan where one is constant or not finite."""
    from scipy.stats import pearsonr

    if not np.isfinite(observed_G).all() or np.ptp(observed_G) == 0 or np.ptp(predicted_G) == 0:
        return float("nan")
    return float(pearsonr(observed_G, predicted_G).statistic)


def correlations(a_RG: Floats, b_G: Floats) -> Floats:
    """Return the Pearson correlation of each row with ``b_G``; nan where one is constant or not finite."""
    a_RG, b_G = a_RG - a_RG.mean(axis=1, keepdims=True), b_G - b_G.mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        r_R = (a_RG @ b_G) / (np.linalg.norm(a_RG, axis=1) * np.linalg.norm(b_G))
    return np.asarray(np.where((np.ptp(a_RG, axis=1) > 0) & (np.ptp(b_G) > 0), r_R, np.nan))


def r2_change(observed_G: Floats, predicted_G: Floats, weight_G: Floats | None = None) -> float:
    """Return R²Δ, the share of the observed change that is predicted.

    R²Δ = 1 - Σ_g w_g (Δobs_g - Δpred_g)² / Σ_g w_g Δobs_g², with w = 1 by default. No change has 0, a perfect
    prediction 1; a change that is too large, or in other genes, has less than 0. The R² of the means themselves, by
    contrast, is high for no change at all.
    """
    w_G = np.ones_like(observed_G) if weight_G is None else weight_G
    size = float(w_G @ observed_G**2)
    return 1 - float(w_G @ (observed_G - predicted_G) ** 2) / size if size > 0 else float("nan")


def reliability(source_NG: Floats, target_MG: Floats) -> Floats:
    """Return how surely each gene changes: w_g = max(0, 1 - se_g² / Δ_g²), from 0 to 1.

    Δ is the observed change of the mean and se² = s²(source) / N + s²(target) / M its sampling variance. A gene that
    changes by no more than one standard error counts nothing, by two 3/4.
    """
    change_G = target_MG.mean(axis=0) - source_NG.mean(axis=0)
    variance_G = _variance_of_mean(source_NG) + _variance_of_mean(target_MG)
    noise_G = np.divide(variance_G, change_G**2, out=np.ones_like(change_G), where=change_G != 0)
    return np.asarray(np.maximum(0, 1 - noise_G))


def slope(observed_G: Floats, predicted_G: Floats) -> float:
    """Return the observed change regressed on the predicted, Δpred·Δobs / Δpred·Δpred; nan for no change.

    1 is right; above 1 the prediction is too small, below 1 too large or partly in other genes.
    """
    size = float(predicted_G @ predicted_G)
    return float(predicted_G @ observed_G) / size if size > 0 else float("nan")


def direction_accuracy(observed_G: Floats, predicted_G: Floats, n_top: int = N_TOP) -> float:
    """Return the share of the ``n_top`` genes with the largest observed change whose sign is predicted.

    A gene that is predicted not to change counts half, so that no change has 0.5, as a coin has. Genes without an
    observed change are not judged.
    """
    top = np.argsort(-np.abs(observed_G), kind="stable")[:n_top]
    top = top[observed_G[top] != 0]
    if not len(top):
        return float("nan")
    return float((1 + np.sign(observed_G[top]) * np.sign(predicted_G[top])).mean() / 2)


def target_rank(predicted_G: Floats, right_G: Floats, wrong_TG: Floats) -> int:
    """Return the rank of the right batch: 1 + the number of wrong ones whose observed mean is nearer (Euclidean)."""
    distance = np.linalg.norm(right_G - predicted_G)
    return 1 + int((np.linalg.norm(wrong_TG - predicted_G, axis=1) < distance).sum())


def energy_distance(a_NG: Floats, b_MG: Floats, *, max_cells: int = CLOUD, seed: int = 0) -> float:
    """Return the E-distance of two clouds of cells.

    E = 2 mean |a - b| - mean |a - a'| - mean |b - b'| with Euclidean distances (Székely & Rizzo 2004), the last two
    means over pairs of different cells. So it is unbiased: about 0 (and at times a little below) for two samples of
    one population, whatever their sizes. nan with fewer than two cells on a side.

    Parameters
    ----------
    a_NG, b_MG
        Cells.
    max_cells
        Cells drawn of each cloud, at most.
    seed
        Seed of the draw.
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
    """Return how far each other label's mean lies in ``batch`` from its mean in the source batches.

    d_l = mean(l in batch) - Σ_b w_b mean(l in b) / Σ_b w_b, over the source batches b with :data:`LEAST_CELLS` cells of
    the label or more. Labels with fewer in ``batch``, or in all source batches, are left out.

    Parameters
    ----------
    x_NG, batch_N, label_N
        Training cells: values and codes (label -1: missing).
    batch, label
        The held-out pair.
    weight_B
        Cells of the source that are from each batch, by code; 0 for ``batch``.

    Returns
    -------
    shift_LG, variance_LG
        The shifts of the L labels that have one, and their sampling variances.
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
    empty_LG = np.empty((0, x_NG.shape[1]))
    return (np.stack(shifts), np.stack(variances)) if shifts else (empty_LG, empty_LG)


def shrunk(shift_LG: Floats, variance_LG: Floats) -> Floats:
    """Return the mean of the labels' shifts, shrunk towards no change by empirical Bayes.

    The model for gene g and label l: d_lg = μ_g + a_lg + e_lg with μ_g ~ N(0, σ²), what labels share;
    a_lg ~ N(0, τ²), what is a label's own; e_lg ~ N(0, s²_lg), sampling noise. A new label's shift is predicted by

        E[μ_g | d̄_g] = σ² / (σ² + v_g) · d̄_g,   v_g = (τ² + mean_l s²_lg) / L,

    with the moments τ² = max(0, mean_g(S²_g - mean_l s²_lg)), S² the variance over labels, and
    σ² = max(0, mean_g(d̄_g² - v_g)) (Efron & Morris 1973). With one label τ² cannot be told from the data and is
    taken as 0. nan where there is no label.

    Parameters
    ----------
    shift_LG, variance_LG
        From :func:`label_shifts`.
    """
    n_labels, n_genes = shift_LG.shape
    if n_labels == 0:
        return np.full(n_genes, np.nan)
    mean_G, noise_G = shift_LG.mean(axis=0), variance_LG.mean(axis=0)
    between = 0.0 if n_labels == 1 else max(0.0, float((shift_LG.var(axis=0, ddof=1) - noise_G).mean()))
    v_G = (between + noise_G) / n_labels
    shared = max(0.0, float((mean_G**2 - v_G).mean()))
    return np.asarray(
        mean_G * np.divide(shared, shared + v_G, out=np.zeros_like(v_G), where=shared + v_G > 0)
    )


def baselines(held: HeldOut, shift_LG: Floats, variance_LG: Floats) -> dict[str, Floats]:
    """Return the changes that the :data:`BASELINES` predict.

    - no change: the source cells as they are;
    - mean over batches: to the label's mean over the other batches, each counted once (what is common to
      all targets, Systema's reference); with one other batch it is no change;
    - additive: the mean over the other labels of their shifts;
    - shrunk additive: :func:`shrunk`.
    """
    source_G = held.source_NG.mean(axis=0)
    n_genes = len(source_G)
    return {
        "no change": np.zeros(n_genes),
        "mean over batches": held.other_TG.mean(axis=0) - source_G
        if len(held.other_TG)
        else np.full(n_genes, np.nan),
        "additive": shift_LG.mean(axis=0) if len(shift_LG) else np.full(n_genes, np.nan),
        "shrunk additive": shrunk(shift_LG, variance_LG),
    }


def ceiling(held: HeldOut, *, seed: int = 0, n_splits: int = N_SPLITS) -> dict[str, float]:
    """Return all :data:`MEASURES` of a repeated experiment: one random half of the held-out cells predicts the other.

    Mean over ``n_splits`` splits.
    """
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n_splits):
        order = rng.permutation(len(held.target_MG))
        one_MG, other_MG = held.target_MG[order[::2]], held.target_MG[order[1::2]]
        half = HeldOut(held.source_NG, other_MG, held.other_TG)
        change_G = one_MG.mean(axis=0) - held.source_NG.mean(axis=0)
        found.append(measure(half, change_G, one_MG, seed=seed))
    return {name: float(np.mean([one[name] for one in found])) for name in MEASURES}


def _moments(x_NG: csr_matrix) -> tuple[Floats, Floats]:
    """Return mean and sampling variance of the mean of each gene."""
    n = x_NG.shape[0]
    x_NG = x_NG.astype(np.float64)  # scipy's mean of float32 rounds each value, whatever dtype it is told
    mean_G = np.asarray(x_NG.mean(axis=0)).ravel()
    square_G = np.asarray(x_NG.multiply(x_NG).mean(axis=0)).ravel()
    return mean_G, np.maximum(square_G - mean_G**2, 0) / (n - 1)


def _variance_of_mean(x_NG: Floats) -> Floats:
    if len(x_NG) < 2:
        return np.zeros(x_NG.shape[1])
    return np.asarray(x_NG.var(axis=0, ddof=1) / len(x_NG))
