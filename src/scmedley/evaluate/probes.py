"""Probes: classifiers trained to predict the batch or the label from an embedding, compared with chance.

A probe is a function ``(z_train, codes_train, z_test) -> predicted codes of the held-out cells``. All probes
weight the classes equally, as balanced accuracy does. Small batches can thus be predicted, and large batches
are not preferred.

The null (permuted batches) needs no second fit. Permuted batches of held-out cells are independent of the
predictions. The expected balanced accuracy is therefore 1 / C for C batches, for every probe and all batch
sizes. The standard deviation over permutations has a closed form.

Shapes: N held-out cells, M training cells, P latent dimensions, K neighbours (labels in ``_leak``), C
classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from scmedley.data.neighbors import Codes, Floats, nearest

Probe = Callable[[Floats, Codes, Floats], Codes]
ProbeName = Literal["kNN", "logistic", "network"]

PROBES: tuple[ProbeName, ...] = get_args(ProbeName)
MAX_TRAIN = 5_000  # maximum number of training cells per label
_STEPS = 300  # approximate number of training steps of the network


@dataclass(frozen=True)
class Leak:
    """Batch leakage: how well the batch of held-out cells is predicted from an embedding, within labels.

    For a label leak, exchange "batch" and "label" below.

    Attributes
    ----------
    value
        0: as by chance. 1: the batch of every held-out cell is predicted. nan: no label could be scored.
    null_sd
        Standard deviation of ``value`` around 0 when batches of held-out cells are permuted within labels.
    per_label
        Value of each label (in a label leak, of each batch) that could be scored, by its code.
    n_cells
        Number of scored held-out cells.
    se
        Standard error of ``value`` over samples of held-out cells of the same batches and labels. It does not
        include the variation between fits of the embedding.
    """

    value: float
    null_sd: float
    per_label: dict[int, float]
    n_cells: int
    se: float


def knn_accuracy(
    z_train: Floats, codes_train: Codes, z_test: Floats, codes_test: Codes, k: int = 15
) -> float:
    """Return the share of held-out cells whose label is that of most of their ``k`` nearest training cells.

    A tie goes to the nearest neighbour's label if it is among the tied labels, else to the lowest code.
    A held-out cell counts as wrong if no training cell has its label.

    Parameters
    ----------
    z_train, z_test
        Embedding of the training cells (M × P) and of the held-out cells (N × P).
    codes_train, codes_test
        Labels; cells with code -1 are left out.
    k
        Number of neighbours, clipped to the number of training cells.

    Returns
    -------
    float
        0 to 1; nan without training cells or without held-out cells.
    """
    train, test = codes_train >= 0, codes_test >= 0
    if not (train.any() and test.any()):
        return float("nan")
    found_N = knn_probe(z_train[train], codes_train[train], z_test[test], k, by_size=False)
    return float(np.mean(found_N == codes_test[test]))


def knn_probe(
    z_train: Floats, codes_train: Codes, z_test: Floats, k: int = 15, *, by_size: bool = True
) -> Codes:
    """Predict by a vote of the ``k`` nearest training cells, each divided by the size of its class if ``by_size``."""
    return _vote(nearest(z_test, z_train, k).indices_NK, codes_train, by_size=by_size)


def logistic_probe(z_train: Floats, codes_train: Codes, z_test: Floats) -> Codes:
    """Predict by logistic regression on standardised inputs: linear class boundaries.

    Penalised (scikit-learn's C = 1), with equal weight for each class.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(class_weight="balanced", max_iter=100)
    z_train, z_test = _standardised(z_train, z_test)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # few steps are enough for a probe
        return np.asarray(model.fit(z_train, codes_train).predict(z_test))


def network_probe(z_train: Floats, codes_train: Codes, z_test: Floats, *, seed: int) -> Codes:
    """Predict by a network with one hidden layer of 64 units on standardised inputs: non-linear boundaries.

    Trained by Adam, about 300 steps of up to 200 cells, penalised (scikit-learn's alpha = 1). Predicted
    probabilities are divided by the class frequencies among the training cells.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    batch_size = min(200, len(z_train))
    epochs = -(-_STEPS // -(-len(z_train) // batch_size))
    model = MLPClassifier(
        64, alpha=1.0, batch_size=batch_size, learning_rate_init=0.01, max_iter=epochs, random_state=seed
    )
    z_train, z_test = _standardised(z_train, z_test)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(z_train, codes_train)
    classes, size_C = np.unique(codes_train, return_counts=True)
    return np.asarray(classes[(model.predict_proba(z_test) / size_C).argmax(axis=1)])


def batch_leaks(
    z_train: Floats,
    batch_train: Codes,
    label_train: Codes,
    z_test: Floats,
    batch_test: Codes,
    label_test: Codes,
    *,
    probes: Sequence[ProbeName] = PROBES,
    k: int = 15,
    seed: int,
) -> dict[ProbeName, Leak]:
    """Measure the batch leakage of held-out cells, within each label, by several probes.

    For each label, a new probe is trained to predict the batch from the training cells of that label. Its
    balanced accuracy on the held-out cells is scaled so that chance (1 / number of batches) is 0 and perfect
    prediction is 1: leak = (accuracy - chance) / (1 - chance). The result is the mean over labels, weighted
    by their numbers of held-out cells. All probes use the same training cells and the same held-out cells.

    Within a label, a batch without training cells or without held-out cells is left out. Labels with fewer
    than two remaining batches are skipped.

    Parameters
    ----------
    z_train, z_test
        Embedding of the training cells (M × P) and of the held-out cells (N × P).
    batch_train, batch_test, label_train, label_test
        Codes; cells with -1 in either are left out. Pass one constant label to score all cells together: a
        difference in composition between the batches then counts as leakage.
    probes
        Any of "kNN" (``knn_probe``), "logistic" (``logistic_probe``) and "network" (``network_probe``). They
        are trained on at most 5,000 cells of a label, a random draw stratified by batch.
    k
        Number of neighbours of the kNN probe, clipped to the number of training cells of the label.
    seed
        Random seed of the draw and of the network.

    Returns
    -------
    dict of Leak
        By probe.
    """
    known: dict[ProbeName, Probe] = {
        "kNN": partial(knn_probe, k=k),
        "logistic": logistic_probe,
        "network": partial(network_probe, seed=seed),
    }
    for name in probes:
        if name not in known:
            raise ValueError(f"there is no probe {name!r}; choose one of: {', '.join(known)}")
    predicted: dict[ProbeName, dict[int, tuple[Codes, Codes]]] = {name: {} for name in probes}
    for label in np.unique(label_train[label_train >= 0]).tolist():
        train, test = label_train == label, label_test == label
        batches = np.intersect1d(batch_train[train], batch_test[test])
        batches = batches[batches >= 0]
        if len(batches) < 2:
            continue
        rows = np.flatnonzero(train & np.isin(batch_train, batches))
        if len(rows) > MAX_TRAIN:
            rows = rows[_stratified(batch_train[rows], MAX_TRAIN, [seed, label, 1])]
        test &= np.isin(batch_test, batches)
        codes_train, codes_test = (
            np.searchsorted(batches, codes) for codes in (batch_train[rows], batch_test[test])
        )
        for name in probes:
            predicted[name][label] = codes_test, known[name](z_train[rows], codes_train, z_test[test])
    return {name: _leak(per_label) for name, per_label in predicted.items()}


def batch_leak(
    z_train: Floats,
    batch_train: Codes,
    label_train: Codes,
    z_test: Floats,
    batch_test: Codes,
    label_test: Codes,
    *,
    probe: ProbeName = "kNN",
    k: int = 15,
    seed: int,
) -> Leak:
    """Measure the batch leakage of held-out cells, within each label, by one probe.

    ``probe`` is "kNN", "logistic" or "network"; the other parameters are those of :func:`batch_leaks`.
    """
    train, test = (z_train, batch_train, label_train), (z_test, batch_test, label_test)
    return batch_leaks(*train, *test, probes=[probe], k=k, seed=seed)[probe]


def label_leak(
    z_train: Floats,
    batch_train: Codes,
    label_train: Codes,
    z_test: Floats,
    batch_test: Codes,
    label_test: Codes,
    *,
    probe: ProbeName = "kNN",
    k: int = 15,
    seed: int,
) -> Leak:
    """Measure how well the label of held-out cells is predicted from their embedding, within each batch.

    This is :func:`batch_leak` with batch and label exchanged; the parameters keep their order. A
    random-effects embedding should contain the batch and, within a batch, not the label.
    """
    train, test = (z_train, label_train, batch_train), (z_test, label_test, batch_test)
    return batch_leak(*train, *test, probe=probe, k=k, seed=seed)


def _leak(per_label: dict[int, tuple[Codes, Codes]]) -> Leak:
    """Average the leak over labels, given the true and predicted codes of each label's held-out cells."""
    if not per_label:
        return Leak(float("nan"), float("nan"), {}, 0, float("nan"))
    values, null_variances, variances = [], [], []
    for true_N, predicted_N in per_label.values():
        chance = 1 / (int(true_N.max()) + 1)  # every class has held-out cells
        right_C = _recalls(true_N, predicted_N)
        values.append((right_C.mean() - chance) / (1 - chance))  # balanced accuracy
        null_variances.append(_null_variance(true_N, predicted_N) / (1 - chance) ** 2)
        variances.append(_variance(true_N, right_C) / (1 - chance) ** 2)
    weights = np.array([len(true_N) for true_N, _ in per_label.values()])
    weights_K = weights / weights.sum()
    return Leak(
        value=float(weights_K @ values),
        null_sd=float(np.sqrt(weights_K**2 @ null_variances)),
        per_label=dict(zip(per_label, values, strict=True)),
        n_cells=int(weights.sum()),
        se=float(np.sqrt(weights_K**2 @ variances)),
    )


def _stratified(codes_N: Codes, n: int, seed: list[int]) -> npt.NDArray[np.int64]:
    """Draw ``n`` cells in proportion to the classes, at least one per class if ``n`` allows it."""
    shuffled = np.random.default_rng(seed).permutation(len(codes_N))
    shuffled = shuffled[np.argsort(codes_N[shuffled], kind="stable")]
    _, first, size = np.unique(codes_N[shuffled], return_index=True, return_counts=True)
    place = (np.arange(len(codes_N)) - np.repeat(first, size)) / np.repeat(size, size)  # 0 to 1 per class
    return np.sort(shuffled[np.argsort(place, kind="stable")[:n]])


def _standardised(z_train: Floats, z_test: Floats) -> tuple[Floats, Floats]:
    """Standardise both by the mean and standard deviation of the training cells."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(np.asarray(z_train, dtype=np.float64))
    return scaler.transform(z_train), scaler.transform(z_test)


def _vote(indices_NK: npt.NDArray[np.int64], codes_M: Codes, *, by_size: bool) -> npt.NDArray[np.int64]:
    """Return the class with most votes; a tie goes to the nearest neighbour's class, else the lowest code."""
    n, C = len(indices_NK), int(codes_M.max()) + 1
    near_NK = codes_M[indices_NK]
    cells = np.arange(n)
    votes_NC = (
        np.bincount((cells[:, None] * C + near_NK).ravel(), minlength=n * C).reshape(n, C).astype(float)
    )
    if by_size:
        votes_NC /= np.maximum(np.bincount(codes_M, minlength=C), 1)
    votes_NC[cells, near_NK[:, 0]] *= 1 + 1e-9  # decides ties only
    return np.asarray(votes_NC.argmax(axis=1))


def _recalls(true_N: Codes, predicted_N: Codes) -> npt.NDArray[np.float64]:
    """Return the recall of each class of ``true_N``."""
    from sklearn.metrics import recall_score

    # Not balanced_accuracy_score: it warns of predicted classes that no held-out cell has.
    return np.asarray(recall_score(true_N, predicted_N, labels=np.unique(true_N), average=None))


def _variance(true_N: Codes, right_C: npt.NDArray[np.float64]) -> float:
    """Return the sampling variance of the balanced accuracy, p (1 - p) / (n - 1) summed over C classes, / C².

    This is the closed form, unbiased, of a bootstrap of the cells within each class. A class with one cell
    has no estimate of its variance; it gets the variance of a cell with the average recall.
    """
    _, size_C = np.unique(true_N, return_counts=True)
    mean = right_C.mean()
    var_C = np.where(size_C > 1, right_C * (1 - right_C) / np.maximum(size_C - 1, 1), mean * (1 - mean))
    return float(var_C.sum()) / len(size_C) ** 2


def _null_variance(true_N: Codes, predicted_N: Codes) -> float:
    """Return the exact variance of the balanced accuracy over permutations of ``true_N``.

    The number of hits of class c is hypergeometric: its n_c cells are drawn from N, and a share q_c of the N
    is predicted to be c. Hits of two classes are dependent only through the draw. The variance is N / (N - 1)
    * sum_c q_c (1 - q_c) / n_c, / C² (Hoeffding's variance of a permutation statistic).
    """
    size_C = np.bincount(true_N)
    share_C = np.bincount(predicted_N, minlength=len(size_C)) / len(true_N)
    variance = np.sum(share_C * (1 - share_C) / size_C) * len(true_N) / (len(true_N) - 1)
    return float(variance) / len(size_C) ** 2
