"""Fresh classifiers that try to read a label or the batch from an embedding, and what they read by chance.

A probe is a function ``(z_train, z_test) -> (codes_train -> predicted codes of the test cells)``: what does
not depend on the codes (the neighbours, the standardising) is done in the first step, so that the
permutations that give the chance repeat the second step only. Another classifier is another such function.
All answer with the class that is most probable for its size, which is what balanced accuracy rewards: a
batch of few cells can still be found, and a large batch does not win everywhere.

Shapes: N cells, M training cells, P latent dimensions, K neighbours, C classes, R permutations.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from scmedley.evaluate.neighbors import Codes, Floats, nearest

Predict = Callable[[Codes], npt.NDArray[np.int64]]
Probe = Callable[[Floats, Floats], Predict]
ProbeName = Literal["kNN", "logistic", "network"]

# Behind chance; the latter two probes are fitted anew for each.
PERMUTATIONS = {"kNN": 20, "logistic": 5, "network": 5}
MAX_TRAIN = 2_000  # training cells of a label for the probes that are fitted
_STEPS = 300  # of the network, about


@dataclass(frozen=True)
class Leak:
    """How much of the batch can be read from an embedding, within labels.

    In a label leak, "batch" and "label" below trade places.

    Attributes
    ----------
    value
        0: nothing is left. 1: the batch of every held-out cell is read. nan: no label could be scored.
    null, null_sd
        Mean and standard deviation of the same statistic with the training batches permuted.
        The mean is 0 by construction; the spread says how far from 0 chance alone can take ``value``.
    per_label
        Value of each label (in a label leak, of each batch) that could be scored, by its code.
    n_cells
        Held-out cells scored.
    se
        Standard error of ``value``: how much it would vary with other held-out cells of the same batches and
        labels. How much it would vary with another fit of the embedding is not in it.
    """

    value: float
    null: float
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


def knn_probe(z_train: Floats, z_test: Floats, k: int = 15) -> Predict:
    """Predict by the ``k`` nearest training cells, each vote divided by the size of its class."""
    return partial(_vote, nearest(z_test, z_train, k).indices_NK, by_size=True)


def logistic_probe(z_train: Floats, z_test: Floats) -> Predict:
    """Predict by logistic regression on standardised inputs: what can be read by a plane.

    Penalised (scikit-learn's C = 1). Probabilities are divided by the classes' shares of the training cells.
    """
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=100)
    return partial(_fitted, model, *_standardised(z_train, z_test))


def network_probe(z_train: Floats, z_test: Floats, *, seed: int) -> Predict:
    """Predict by a network of one hidden layer of 64 on standardised inputs: what can be read by a curve.

    Adam, about 300 steps of up to 200 cells. Probabilities are divided by the classes' shares of the
    training cells.
    """
    from sklearn.neural_network import MLPClassifier

    batch_size = min(200, len(z_train))
    epochs = -(-_STEPS // -(-len(z_train) // batch_size))
    model = MLPClassifier(
        64, batch_size=batch_size, learning_rate_init=0.01, max_iter=epochs, random_state=seed
    )
    return partial(_fitted, model, *_standardised(z_train, z_test))


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
    n_permutations: int | None = None,
    seed: int,
) -> Leak:
    """Measure how well the batch of held-out cells is read from their embedding, within each label.

    For each label, a fresh probe learns the batch from the training cells of that label; its balanced
    accuracy on the held-out cells is compared with the mean over permutations of the training batches
    within the label: leak = (accuracy - chance) / (1 - chance). The leaks of the labels are averaged by
    their numbers of held-out cells.

    Within a label, held-out cells of a batch that has no training cell there cannot be predicted and are
    left out. Labels with fewer than two batches left are skipped.

    Parameters
    ----------
    z_train, z_test
        Embedding of the training and of the held-out cells, M × P and N × P.
    batch_train, batch_test, label_train, label_test
        Codes; cells with -1 in either are left out. Give one constant label to score all cells
        together: a difference in composition between the batches then counts as leak.
    probe
        "kNN" (``knn_probe``), "logistic" (``logistic_probe``) or "network" (``network_probe``). The latter
        two learn from at most 2,000 cells of a label, drawn with the seed in proportion to its batches.
    k
        Neighbours of the kNN probe, clipped to the number of training cells of the label.
    n_permutations
        Permutations behind chance and its spread, at least 2; without it 20, or 5 for the probes that are
        fitted anew for each.
    seed
        Seed of the permutations, the draw and the network.
    """
    probes: dict[str, Probe] = {
        "kNN": partial(knn_probe, k=k),
        "logistic": logistic_probe,
        "network": partial(network_probe, seed=seed),
    }
    if probe not in probes:
        raise ValueError(f"there is no probe {probe!r}; choose one of: {', '.join(probes)}")
    return _leak(
        probes[probe],
        (z_train, batch_train, label_train),
        (z_test, batch_test, label_test),
        n_permutations=PERMUTATIONS[probe] if n_permutations is None else n_permutations,
        max_train=None if probe == "kNN" else MAX_TRAIN,
        seed=seed,
    )


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
    n_permutations: int | None = None,
    seed: int,
) -> Leak:
    """Measure how well the label of held-out cells is read from their embedding, within each batch.

    The mirror of :func:`batch_leak`, with batch and label in each other's place: a random-effects embedding
    should tell the batch, and within a batch not the label.

    Parameters
    ----------
    z_train, batch_train, label_train, z_test, batch_test, label_test, probe, k, n_permutations, seed
        As in :func:`batch_leak`, in the same order.
    """
    return batch_leak(
        z_train,
        label_train,
        batch_train,
        z_test,
        label_test,
        batch_test,
        probe=probe,
        k=k,
        n_permutations=n_permutations,
        seed=seed,
    )


Cells = tuple[Floats, Codes, Codes]  # embedding, batch and label of the same cells


def _leak(
    probe: Probe,
    train_cells: Cells,
    test_cells: Cells,
    *,
    n_permutations: int,
    max_train: int | None,
    seed: int,
) -> Leak:
    """``batch_leak`` for any probe."""
    if n_permutations < 2:
        raise ValueError(f"n_permutations is {n_permutations}; chance and its spread need at least 2")
    (z_train, batch_train, label_train), (z_test, batch_test, label_test) = train_cells, test_cells
    per_label: dict[int, float] = {}
    nulls: list[npt.NDArray[np.float64]] = []  # per label, R
    variances: list[float] = []
    weights: list[int] = []
    for label in np.unique(label_train[label_train >= 0]).tolist():
        train = np.flatnonzero((label_train == label) & (batch_train >= 0))
        if max_train is not None and len(train) > max_train:
            train = train[_stratified(batch_train[train], max_train, [seed, label, 1])]
        batches, codes_train = np.unique(batch_train[train], return_inverse=True)
        test = (label_test == label) & np.isin(batch_test, batches)
        codes_test = np.searchsorted(batches, batch_test[test])
        if len(np.unique(codes_test)) < 2:  # then the training cells have two batches as well
            continue
        predict = probe(z_train[train], z_test[test])
        rng = np.random.default_rng([seed, label])  # a label's chance does not hang on the other labels
        predicted = predict(codes_train)
        accuracy = _balanced_accuracy(codes_test, predicted)
        chance_R = np.array(
            [
                _balanced_accuracy(codes_test, predict(rng.permutation(codes_train)))
                for _ in range(n_permutations)
            ]
        )
        chance = float(chance_R.mean())
        if chance >= 1:  # so few cells that no permutation changed anything: nothing can be said
            continue
        per_label[label] = (accuracy - chance) / (1 - chance)
        nulls.append((chance_R - chance) / (1 - chance))
        variances.append(_variance(codes_test, predicted) / (1 - chance) ** 2)
        weights.append(len(codes_test))
    if not per_label:
        return Leak(float("nan"), float("nan"), float("nan"), {}, 0, float("nan"))
    null_R = np.average(nulls, axis=0, weights=weights)
    return Leak(
        value=float(np.average(list(per_label.values()), weights=weights)),
        null=round(float(null_R.mean()), 9) + 0.0,  # 0 but for rounding; no negative zero
        null_sd=float(null_R.std(ddof=1)),
        per_label=per_label,
        n_cells=sum(weights),
        se=float(np.sqrt(np.square(weights) @ np.array(variances)) / sum(weights)),
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


def _fitted(model: Any, z_train: Floats, z_test: Floats, codes_train: Codes) -> npt.NDArray[np.int64]:
    """Fit a classifier of scikit-learn and give the class that is most probable for its size."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a fixed, small effort is what is wanted
        model.fit(z_train, codes_train)
    share_C = np.bincount(codes_train) / len(codes_train)
    return np.asarray((model.predict_proba(z_test) / share_C).argmax(axis=1))


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


def _balanced_accuracy(true_N: Codes, predicted_N: Codes) -> float:
    """Mean over the classes of ``true_N`` of the share predicted right."""
    size_C = np.bincount(true_N)
    hits_C = np.bincount(true_N, weights=true_N == predicted_N)
    return float(np.mean(hits_C[size_C > 0] / size_C[size_C > 0]))


def _variance(true_N: Codes, predicted_N: Codes) -> float:
    """Give the sampling variance of the balanced accuracy: p (1 - p) / (n - 1), summed over C classes, / C².

    It is that of a bootstrap of the cells within each class, in closed form and unbiased. The one cell of a
    class says nothing of its spread: it gets that of a cell that is right as often as the average.
    """
    size_C = np.bincount(true_N)
    hits_C = np.bincount(true_N, weights=true_N == predicted_N)[size_C > 0]
    size_C = size_C[size_C > 0]
    right_C = hits_C / size_C
    mean = right_C.mean()
    var_C = np.where(size_C > 1, right_C * (1 - right_C) / np.maximum(size_C - 1, 1), mean * (1 - mean))
    return float(var_C.sum()) / len(size_C) ** 2
