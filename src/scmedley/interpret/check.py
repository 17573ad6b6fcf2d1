"""Check of counterfactuals: do predicted shifts agree with the observed shifts of held-out cells?

The pairs of label and batch are *seen*: other cells of the pair were in training. ``scmedley experiment``
tests pairs that were held out completely.

Shapes: N cells, G genes, B batches, D jackknife groups.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from scmedley import keys
from scmedley.data.arrays import dense
from scmedley.data.design import as_categories
from scmedley.data.reader import Cells
from scmedley.device import modes
from scmedley.errors import ScmedleyError
from scmedley.evaluate.counterfactual import correlations, pearson, r2_change, slope
from scmedley.models import MixedEffects
from scmedley.models.base import Model
from scmedley.models.counterfactual import Encoded, mean_shifts

ALL = "all cells"  # used as the label if there are no labels
LEAST = 10  # a shift is compared only with this many held-out cells on each side
TOO_FEW = "too little to judge by"  # too few cells, or a shift no larger than their noise
AGREEMENT = ("good", "some", "none", TOO_FEW)
BASELINE = ("better", "tie", "worse")  # than the plain difference of training means
# Good and some: smallest Pearson as a fraction of the pair's ceiling. Margin: by this fraction the Pearson
# must exceed that of the best wrong batch. With it, a wrong batch in place of the right one passes as "some"
# in 4 % of the pairs of onek1k (5 % without a margin, 3 % with 0.2), and the right one fails in 1 of 45 (4
# with 0.2). Ceiling: pairs with a lower ceiling (a Pearson) are not judged. With batches permuted within
# labels there is no shift to predict, and 98 % of the pairs are below it (three data sets of
# scmedley.datasets; with 0.3, 11 to 24 % of them would be judged).
# Baseline: where the plain difference of training means is better and the Pearson is below this fraction of its
# Pearson, the prediction is of no use.
LIMITS = {"good": 0.7, "some": 0.3, "margin": 0.1, "ceiling": 0.5, "baseline": 0.5}
TIE = 0.02  # model and baseline tie if their Pearsons differ by at most this or by two standard errors
GROUPS = 50  # groups of held-out cells in the jackknife for that standard error
# A verdict on a run needs this number of judged pairs (or all pairs, if fewer) and this share of them.
ENOUGH = {"pairs": 3, "share": 0.25}
CHECK_COLUMNS = [
    *("label", "batch", "seen", "pearson", "slope", "ceiling_pearson", "best_wrong_pearson"),
    *("additive_pearson", "gain_se", "r2_delta", "additive_r2_delta", "n_source", "n_target"),
]
MEDIANS = (
    *("pearson", "slope", "ceiling_pearson", "best_wrong_pearson", "additive_pearson"),
    *("r2_delta", "additive_r2_delta"),
)


def counterfactual_check(
    model: MixedEffects | Model[Any],
    adata: Cells,
    label_key: str | None = None,
    *,
    max_cells: int = 300,
    max_others: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare the predicted with the observed shift of the mean, on held-out cells.

    For each label and batch, held-out cells of the label from the other batches (the source) are predicted in
    the batch. Their mean predicted change is correlated, over genes, with the observed shift: the mean of the
    held-out cells of the batch (the target) minus the mean of the source cells.

    Parameters
    ----------
    model
        A fitted model with batch effects in its decoder.
    adata
        The cells of the fit, with ``obs["scmedley_split"]``.
    label_key
        Column of ``obs`` with the labels; by default all cells are one label.
    max_cells
        Maximum number of source cells drawn for a pair.
    max_others
        Maximum number of wrong batches drawn for ``best_wrong_pearson``.
    seed
        Random seed of all draws.

    Returns
    -------
    DataFrame
        One row for each label and batch with at least 10 held-out cells on both sides: label, batch, seen
        (whether other cells of the pair were in training),

        - pearson: predicted with observed shift, over genes;
        - slope: of observed on predicted shift, a.b / a.a with a predicted; above 1, the prediction is too
          small;
        - ceiling_pearson: what a perfect prediction could reach with this number of cells (correlation of the
          observed shifts of random halves, Spearman-Brown correction, square root);
        - best_wrong_pearson: the best Pearson of the predictions for other batches (nan if there are none).
          Their mean would be near 0 for any model, because from the same cells those batches are in opposite
          directions. A batch with training cells about as near to the observed shift as those of the
          right batch (margin of ``LIMITS``), such as the same condition in another donor, is not wrong;
        - additive_pearson: the baseline, the plain difference of means on the training cells;
        - gain_se: standard error of pearson - additive_pearson, by a jackknife over the held-out cells;
        - r2_delta, additive_r2_delta: 1 - ||observed - predicted||^2 / ||observed||^2 of model and baseline.
          It also depends on the size; predicting no change gives 0;
        - n_source, n_target: numbers of held-out cells.
    """
    network = decoder(model)
    reading = network.read(adata).in_memory("counterfactual_check")
    x_NG, obs = reading.log1p_NG, reading.obs
    if keys.SPLIT not in obs:
        raise ScmedleyError(f"obs has no {keys.SPLIT!r}. Pass the cells of the fit, with their split.")
    label, batch = labels_of(obs, label_key), network.design.codes(obs)
    with modes(grad=False):
        encoded = Encoded.all_of(network, reading.resident(batch, network.scale, network.device))
    train, test = (obs[keys.SPLIT].to_numpy() == part for part in ("train", "test"))
    n_batches, rng = network.design.n_batches, np.random.default_rng(seed)
    rows, means = [], None
    for name, (code, target) in product(names_of(label), enumerate(network.design.batches)):
        of_label = test & (label == name)
        source, goal = np.flatnonzero(of_label & (batch != code)), np.flatnonzero(of_label & (batch == code))
        if min(len(source), len(goal)) < LEAST:
            continue
        if means is None or means.label != name:
            means = _TrainingMeans.of(x_NG, batch, (label == name) & train, n_batches, name)
        source = np.sort(rng.choice(source, min(max_cells, len(source)), replace=False))
        observed_G = _difference(x_NG, goal, source)
        shift_BG = means.shifts_from_others(code)
        additive_G = shift_BG[code]
        ceiling, near_B = _ceiling(x_NG, goal, source, rng), correlations(shift_BG, observed_G)
        plain = float(near_B[code])
        # Batches whose training means shift alike: no prediction can be distinguished from theirs.
        alike_B = near_B > plain - LIMITS["margin"] * ceiling
        others = [b for b in range(n_batches) if b != code and not alike_B[b] and (batch[source] != b).any()]
        codes = [code, *rng.permutation(others)[:max_others].astype(int).tolist()]
        predicted_G, *wrong_TG = mean_shifts(encoded.take(source), codes)
        wrong = [pearson(wrong_G, observed_G) for wrong_G in wrong_TG]
        rows.append(
            {
                "label": name,
                "batch": target,
                "seen": bool(means.n_B[code]),
                "pearson": pearson(predicted_G, observed_G),
                "slope": slope(observed_G, predicted_G),
                "ceiling_pearson": ceiling,
                "best_wrong_pearson": pd.Series(wrong, dtype=float).max(),
                "additive_pearson": plain,
                "gain_se": _gain_se(x_NG, goal, source, predicted_G, additive_G, rng),
                "r2_delta": r2_change(observed_G, predicted_G),
                "additive_r2_delta": r2_change(observed_G, additive_G),
                "n_source": len(source),
                "n_target": len(goal),
            }
        )
    return pd.DataFrame(rows, columns=CHECK_COLUMNS)


def agreement(check: pd.DataFrame) -> "pd.Series[str]":
    """Judge each row of :func:`counterfactual_check` by its Pearson as a fraction of the ceiling.

    The result is "good", "some" or "none" by ``LIMITS``, or "too little to judge by". It is "none" if the
    best wrong batch does nearly as well, because the prediction is then not specific to its batch. It is at
    most "some" if the prediction is worse than the plain difference of training means, and "none" if its Pearson
    is then less than half of the difference's.
    """
    reached, specific = check["pearson"] / check["ceiling_pearson"], _specific(check)
    judged = (check["ceiling_pearson"] >= LIMITS["ceiling"]) & check["pearson"].notna()
    good = (reached >= LIMITS["good"]) & (against_baseline(check) != "worse")
    some = (reached >= LIMITS["some"]) & ~_far_worse(check)
    choices = [~judged, good & specific, some & specific]
    return pd.Series(np.select(choices, [TOO_FEW, "good", "some"], "none"), check.index, dtype=object)


def _specific(check: pd.DataFrame) -> "pd.Series[bool]":
    """Return which predictions are better than those for the best wrong batch; all, if there is no third batch."""
    return ~((check["pearson"] - check["best_wrong_pearson"]) / check["ceiling_pearson"] < LIMITS["margin"])


def _far_worse(check: pd.DataFrame) -> "pd.Series[bool]":
    """Return which predictions are far below the plain difference of training means."""
    below = check["pearson"] < LIMITS["baseline"] * check["additive_pearson"]
    return below & (against_baseline(check) == "worse")


def against_baseline(check: pd.DataFrame) -> "pd.Series[str]":
    """Compare each row with the plain difference of training means: "better", "tie", "worse" or ""."""
    gain = check["pearson"] - check["additive_pearson"]
    least = np.fmax(2 * check["gain_se"], TIE)
    choices = [gain.isna(), gain > least, gain < -least]
    return pd.Series(np.select(choices, ["", "better", "worse"], "tie"), check.index, dtype=object)


@dataclass(frozen=True)
class Summary:
    """Summary of :func:`counterfactual_check` over all pairs of label and batch.

    Attributes
    ----------
    tally
        Number of pairs of each :data:`AGREEMENT`.
    against
        Number of judged pairs with a baseline, for each :data:`BASELINE`.
    n_judged
        Number of judged pairs.
    n_shared
        Number of pairs that are "none" only because the prediction for another batch does nearly as well.
    median
        Median over the judged pairs of each of :data:`MEDIANS`; ``None`` if no pair has a value.
    verdict
        "good": at least half of the judged pairs are good. "some": at least half are good or some. "none":
        fewer. "too little to judge by": fewer pairs than ``ENOUGH`` were judged.
    """

    tally: dict[str, int]
    against: dict[str, int]
    n_judged: int
    n_shared: int
    median: dict[str, float | None]
    verdict: str


def summarise(check: pd.DataFrame) -> Summary:
    """Summarise the table of :func:`counterfactual_check`."""
    words = agreement(check)
    tally = {word: int((words == word).sum()) for word in AGREEMENT}
    judged = check[(words != TOO_FEW).to_numpy()]
    median = {name: None if judged[name].isna().all() else float(judged[name].median()) for name in MEDIANS}
    baseline = against_baseline(judged)
    against = {word: int((baseline == word).sum()) for word in BASELINE}
    n = len(judged)
    reached = judged["pearson"] / judged["ceiling_pearson"]
    n_shared = int(((reached >= LIMITS["some"]) & ~_specific(judged) & ~_far_worse(judged)).sum())
    verdict = "none"
    if n < max(1, min(ENOUGH["pairs"], len(check)), ENOUGH["share"] * len(check)):
        verdict = TOO_FEW
    elif tally["good"] * 2 >= n:
        verdict = "good"
    elif (tally["good"] + tally["some"]) * 2 >= n:
        verdict = "some"
    return Summary(tally, against, n, n_shared, median, verdict)


def decoder(model: MixedEffects | Model[Any]) -> Model[Any]:
    """Return the network of ``model`` that makes the counterfactuals."""
    return model.decoder if isinstance(model, MixedEffects) else model


def labels_of(obs: pd.DataFrame, key: str | None) -> np.ndarray:
    """Return each cell's label as text; an empty string if it is missing."""
    if key is None:
        return np.full(len(obs), ALL, dtype=object)
    label = as_categories(obs[key])
    return np.asarray([*label.categories, ""], dtype=object).take(label.codes)


def names_of(label: np.ndarray) -> list[str]:
    """Return the labels that occur, sorted."""
    return sorted(set(label) - {""})


@dataclass(frozen=True)
class _TrainingMeans:
    """Sums over the training cells of one label, in each batch."""

    label: str
    sum_BG: np.ndarray
    n_B: np.ndarray

    @classmethod
    def of(
        cls, x_NG: Any, batch_N: np.ndarray, chosen_N: np.ndarray, n_batches: int, label: str
    ) -> "_TrainingMeans":
        rows = np.flatnonzero(chosen_N & (batch_N >= 0))
        member = csr_matrix((np.ones(len(rows)), (batch_N[rows], rows)), (n_batches, len(batch_N)))
        return cls(label, dense(member @ x_NG), np.bincount(batch_N[rows], minlength=n_batches))

    def shifts_from_others(self, code: int) -> np.ndarray:
        """Return each batch's mean minus the mean outside batch ``code``, B × G; nan without cells."""
        n_others = self.n_B.sum() - self.n_B[code]
        with np.errstate(invalid="ignore", divide="ignore"):
            others_G = (self.sum_BG.sum(0) - self.sum_BG[code]) / n_others
            return np.asarray(self.sum_BG / self.n_B[:, None] - others_G)


def _difference(x_NG: Any, goal: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Return the difference of the means of two sets of cells; nan if one is empty."""
    if not len(goal) or not len(source):
        return np.full(x_NG.shape[1], np.nan)
    goal_G, source_G = (np.asarray(x_NG[rows].mean(axis=0), dtype=np.float64) for rows in (goal, source))
    return (goal_G - source_G).ravel()


def _ceiling(
    x_NG: Any, goal: np.ndarray, source: np.ndarray, rng: np.random.Generator, n_splits: int = 5
) -> float:
    """Return the correlation of the true shift with the observed one, estimated from random halves."""
    goal_NG, source_NG = x_NG[goal], x_NG[source]
    halves = []
    for _ in range(n_splits):
        g, s = rng.permutation(len(goal)), rng.permutation(len(source))
        first_G, second_G = _halves(goal_NG, g) - _halves(source_NG, s)
        halves.append(pearson(first_G, second_G))
    r = max(float(pd.Series(halves).mean()), 0.0)
    return float(np.sqrt(2 * r / (1 + r)))


def _halves(x_NG: Any, order_N: np.ndarray) -> np.ndarray:
    """Return the mean of every second cell of an order and that of the others, 2 × G; nan without cells."""
    weight_2N = np.zeros((2, len(order_N)))
    with np.errstate(invalid="ignore", divide="ignore"):
        for half in (0, 1):
            weight_2N[half, order_N[half::2]] = 1 / len(order_N[half::2])
    return np.asarray(weight_2N @ x_NG)


def _gain_se(
    x_NG: Any,
    goal: np.ndarray,
    source: np.ndarray,
    predicted_G: np.ndarray,
    additive_G: np.ndarray,
    rng: np.random.Generator,
) -> float:
    """Return the standard error of the difference of both correlations, by a jackknife over held-out cells.

    A bootstrap would add the noise of resampling to the observed shift. With few cells, this lowers both
    correlations and their difference.
    """
    both_2G = np.stack([predicted_G, additive_G])
    if not (np.isfinite(both_2G).all() and np.ptp(both_2G, axis=1).all()):
        return float("nan")
    goal_DG, source_DG = (_without_each(x_NG[rng.permutation(rows)]) for rows in (goal, source))
    mean_1G = _difference(x_NG, goal, source)[None]
    variance = 0.0
    for observed_DG in (
        goal_DG - goal_DG.mean(axis=0) + mean_1G,
        mean_1G - source_DG + source_DG.mean(axis=0),
    ):
        if not np.ptp(observed_DG, axis=1).all():
            return float("nan")
        r_2D = np.corrcoef(both_2G, observed_DG)[:2, 2:]
        variance += (len(observed_DG) - 1) * float(np.var(r_2D[0] - r_2D[1]))
    return float(np.sqrt(variance))


def _without_each(x_NG: Any) -> np.ndarray:
    """Return the means of the cells with each of up to ``GROUPS`` equal groups left out in turn, D × G."""
    n = x_NG.shape[0]
    group_N = np.arange(n) % min(n, GROUPS)
    kept_DN = (group_N != np.arange(min(n, GROUPS))[:, None]).astype(np.float32)
    return np.asarray((kept_DN / kept_DN.sum(axis=1, keepdims=True)) @ x_NG, dtype=np.float64)
