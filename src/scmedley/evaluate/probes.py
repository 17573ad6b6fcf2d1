"""Fresh classifiers that try to read a label or the batch from an embedding, and what they read by chance.

A probe is a function ``(z_train, codes_train, z_test) -> predicted codes of the test cells``. Another
classifier is another such function. All answer with the class that is most probable for its size, which is
what balanced accuracy rewards: a batch of few cells can still be found, and a large batch does not win
everywhere.

Chance needs no second fit. Batches of held-out cells that are permuted have nothing to do with what a probe
predicts for these cells, so that each of C batches is met once in C times, whatever the probe has learnt and
however unequal the batches are; and how far single permutations lie from that mean has a closed form.

Shapes: N cells, M training cells, P latent dimensions, K neighbours, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from scmedley.evaluate.neighbors import Codes, Floats, nearest

Probe = Callable[[Floats, Codes, Floats], Codes]
ProbeName = Literal["kNN", "logistic", "network"]

PROBES: tuple[ProbeName, ...] = get_args(ProbeName)
MAX_TRAIN = 5_000  # training cells of a label
_STEPS = 300  # of the network, about


@dataclass(frozen=True)
class Leak:
    """How much of the batch can be read from an embedding, within labels.

    In a label leak, "batch" and "label" below trade places.

    Attributes
    ----------
    value
        0: what chance gives. 1: the batch of every held-out cell is read. nan: no label could be scored.
    null_sd
        Standard deviation of ``value`` around 0 when the batches of held-out cells are permuted within labels:
        how far from 0 chance alone can take it.
    per_label
        Value of each label (in a label leak, of each batch) that could be scored, by its code.
    n_cells
        Held-out cells scored.
    se
        Standard error of ``value``: how much it would vary with other held-out cells of the same batches and
        labels. How much it would vary with another fit of the embedding is not in it.
    """

    value: float
    null_sd: float
    per_label: dict[int, float]
    n_cells: int
    se: float


def knn_accuracy(
    z_train: Floats, codes_train: Codes, z_test: Floats, codes_test: Codes, k: int = 15
) -> float:
    """Share of held-out cells whose label is that of most of their ``k`` nearest training cells.

    A tie goes to the nearest neighbour's label if it is among the tied, else to the lowest code.
    A held-out cell whose label no training cell has counts as wrong.

    Parameters
    ----------
    z_train, z_test
        Embedding of the training and of the held-out cells, M × P and N × P.
    codes_train, codes_test
        Labels; cells with code -1 are left out on both sides.
    k
        Neighbours, clipped to the number of training cells.

    Returns
    -------
    float
        0 to 1; nan without training cells or held-out cells.
    """
    train, test = codes_train >= 0, codes_test >= 0
    if not (train.any() and test.any()):
        return float("nan")
    indices_NK = nearest(z_test[test], z_train[train], k).indices_NK
    return float(np.mean(_vote(indices_NK, codes_train[train], by_size=False) == codes_test[test]))


def knn_probe(z_train: Floats, codes_train: Codes, z_test: Floats, k: int = 15) -> Codes:
    """Predict by the ``k`` nearest training cells, each vote divided by the size of its class."""
    return _vote(nearest(z_test, z_train, k).indices_NK, codes_train, by_size=True)


def logistic_probe(z_train: Floats, codes_train: Codes, z_test: Floats) -> Codes:
    """Predict by logistic regression on standardised inputs: what can be read by a plane.

    Penalised (scikit-learn's C = 1), with classes weighted to count the same.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(class_weight="balanced", max_iter=100)
    z_train, z_test = _standardised(z_train, z_test)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a fixed, small effort is what is wanted
        return np.asarray(model.fit(z_train, codes_train).predict(z_test))


def network_probe(z_train: Floats, codes_train: Codes, z_test: Floats, *, seed: int) -> Codes:
    """Predict by a network of one hidden layer of 64 on standardised inputs: what can be read by a curve.

    Adam, about 300 steps of up to 200 cells, penalised (scikit-learn's alpha = 1). Probabilities are divided by
    the classes' shares of the training cells.
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
    """Measure how well the batch of held-out cells is read from their embedding, within each label.

    For each label, a fresh probe learns the batch from the training cells of that label; its balanced
    accuracy on the held-out cells is brought to a scale on which chance, one in as many batches, is 0 and all is
    1: leak = (accuracy - chance) / (1 - chance). The leaks of the labels are averaged by their numbers of
    held-out cells. All probes learn from the same cells and are scored on the same cells.

    Within a label, cells of a batch that has no training cell or no held-out cell there are left out. Labels with
    fewer than two batches left are skipped.

    Parameters
    ----------
    z_train, z_test
        Embedding of the training and of the held-out cells, M × P and N × P.
    batch_train, batch_test, label_train, label_test
        Codes; cells with -1 in either are left out. Give one constant label to score all cells
        together: a difference in composition between the batches then counts as leak.
    probes
        Any of "kNN" (``knn_probe``), "logistic" (``logistic_probe``) and "network" (``network_probe``). They learn
        from at most 5,000 cells of a label, drawn with the seed in proportion to its batches.
    k
        Neighbours of the kNN probe, clipped to the number of training cells of the label.
    seed
        Seed of the draw and the network.

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
    read: dict[ProbeName, dict[int, tuple[Codes, Codes]]] = {name: {} for name in probes}
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
            read[name][label] = codes_test, known[name](z_train[rows], codes_train, z_test[test])
    return {name: _leak(per_label) for name, per_label in read.items()}


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
    """Measure how well one probe reads the batch of held-out cells, within each label.

    Parameters
    ----------
    z_train, batch_train, label_train, z_test, batch_test, label_test, k, seed
        As in :func:`batch_leaks`.
    probe
        "kNN", "logistic" or "network".
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
    """Measure how well the label of held-out cells is read from their embedding, within each batch.

    The mirror of :func:`batch_leak`, with batch and label in each other's place: a random-effects embedding
    should tell the batch, and within a batch not the label.

    Parameters
    ----------
    z_train, batch_train, label_train, z_test, batch_test, label_test, probe, k, seed
        As in :func:`batch_leak`, in the same order.
    """
    train, test = (z_train, label_train, batch_train), (z_test, label_test, batch_test)
    return batch_leak(*train, *test, probe=probe, k=k, seed=seed)


def _leak(per_label: dict[int, tuple[Codes, Codes]]) -> Leak:
    """Average over labels, given the true and the predicted codes of each label's held-out cells."""
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
    weights_L = weights / weights.sum()
    return Leak(
        value=float(weights_L @ values),
        null_sd=float(np.sqrt(weights_L**2 @ null_variances)),
        per_label=dict(zip(per_label, values, strict=True)),
        n_cells=int(weights.sum()),
        se=float(np.sqrt(weights_L**2 @ variances)),
    )


def _stratified(codes_N: Codes, n: int, seed: list[int]) -> npt.NDArray[np.int64]:
    """Draw ``n`` cells, of each class its share, but one at least while there are no more than ``n`` classes."""
    shuffled = np.random.default_rng(seed).permutation(len(codes_N))
    shuffled = shuffled[np.argsort(codes_N[shuffled], kind="stable")]
    _, first, size = np.unique(codes_N[shuffled], return_index=True, return_counts=True)
    place = (np.arange(len(codes_N)) - np.repeat(first, size)) / np.repeat(size, size)  # 0 to 1 in each class
    return np.sort(shuffled[np.argsort(place, kind="stable")[:n]])


def _standardised(z_train: Floats, z_test: Floats) -> tuple[Floats, Floats]:
    """Bring both to the training cells' mean 0 and variance 1."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(np.asarray(z_train, dtype=np.float64))
    return scaler.transform(z_train), scaler.transform(z_test)


def _vote(indices_NK: npt.NDArray[np.int64], codes_M: Codes, *, by_size: bool) -> npt.NDArray[np.int64]:
    """Let the neighbours vote; a tie goes to the nearest one's class if tied, else to the lowest code."""
    n, C = len(indices_NK), int(codes_M.max()) + 1
    near_NK = codes_M[indices_NK]
    cells = np.arange(n)
    votes_NC = (
        np.bincount((cells[:, None] * C + near_NK).ravel(), minlength=n * C).reshape(n, C).astype(float)
    )
    if by_size:
        votes_NC /= np.maximum(np.bincount(codes_M, minlength=C), 1)
    votes_NC[cells, near_NK[:, 0]] *= 1 + 1e-9  # less than any real difference
    return np.asarray(votes_NC.argmax(axis=1))


def _recalls(true_N: Codes, predicted_N: Codes) -> npt.NDArray[np.float64]:
    """Return the share predicted right of each class of ``true_N``."""
    from sklearn.metrics import recall_score

    # Not balanced_accuracy_score: it warns of predicted classes that no held-out cell has.
    return np.asarray(recall_score(true_N, predicted_N, labels=np.unique(true_N), average=None))


def _variance(true_N: Codes, right_C: npt.NDArray[np.float64]) -> float:
    """Return the sampling variance of the balanced accuracy: p (1 - p) / (n - 1), summed over C classes, / C².

    It is that of a bootstrap of the cells within each class, in closed form and unbiased. The one cell of a
    class says nothing of its spread: it gets that of a cell that is right as often as the average.
    """
    _, size_C = np.unique(true_N, return_counts=True)
    mean = right_C.mean()
    var_C = np.where(size_C > 1, right_C * (1 - right_C) / np.maximum(size_C - 1, 1), mean * (1 - mean))
    return float(var_C.sum()) / len(size_C) ** 2


def _null_variance(true_N: Codes, predicted_N: Codes) -> float:
    """Return the variance of the balanced accuracy over permutations of ``true_N``, exactly.

    The hits of class c are hypergeometric: its n_c cells are a draw from N, of which the share q_c is predicted
    to be c. Hits of two classes depend on each other through the draw alone, and all sums to
    N / (N - 1) * sum_c q_c (1 - q_c) / n_c, / C² (Hoeffding's variance of a permutation statistic).
    """
    size_C = np.bincount(true_N)
    share_C = np.bincount(predicted_N, minlength=len(size_C)) / len(true_N)
    variance = np.sum(share_C * (1 - share_C) / size_C) * len(true_N) / (len(true_N) - 1)
    return float(variance) / len(size_C) ** 2
