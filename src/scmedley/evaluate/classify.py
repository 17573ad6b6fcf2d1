"""The mixed-effects classifier (scMEDAL): a random forest on the fixed embedding, the random one, and both.

A donor has one diagnosis and many cells. A classifier trained on some cells of a donor can recognise the
donor. A donor-level target must therefore be scored on donors without training cells; ``target_table`` marks
leaks.

Shapes: N cells, M training cells, P latent dimensions, K classes or labels, D donors. Codes are integers per
cell, -1 where the value is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
import pandas as pd

from scmedley.data.neighbors import Codes, Floats
from scmedley.errors import ScmedleyError

LEAKS = "leaks: donors are in train and test"
COMPOSITION = "composition only"
COLUMNS = [
    *("embedding", "held_out", "caution", "accuracy", "balanced_accuracy", "chance", "chance_balanced"),
    *("n_cells", "donor_accuracy", "donor_chance", "n_donors"),
]


@dataclass(frozen=True)
class Classified:
    """Accuracy of a classifier on held-out cells, and its expected value by chance.

    Attributes
    ----------
    accuracy
        Share of cells with the right class.
    balanced_accuracy
        Mean of the recall over the classes of the held-out cells.
    chance, chance_balanced
        Expected values of both for classes drawn with their frequencies among the training cells
        (scikit-learn's ``DummyClassifier("stratified")``, in closed form).
    n_cells
        Number of scored held-out cells.
    """

    accuracy: float
    balanced_accuracy: float
    chance: float
    chance_balanced: float
    n_cells: int


def classify(
    z_train: Floats, y_train: Codes, z_test: Floats, y_test: Codes, *, seed: int, n_trees: int = 100
) -> Classified:
    """Train a random forest on the embedding of training cells and score it on held-out cells.

    Parameters
    ----------
    z_train, z_test
        Embedding of the training cells (M × P) and of the held-out cells (N × P).
    y_train, y_test
        Classes. Cells with code -1 are left out. A class without training cells counts as wrong.
    seed
        Random seed of the forest.
    n_trees
        Number of trees; 100 in the publication.

    Returns
    -------
    Classified
        Accuracies are nan without training cells or without held-out cells.
    """
    test = y_test >= 0
    predicted_N = predict(z_train, y_train, z_test[test], seed=seed, n_trees=n_trees)
    return _score(predicted_N, y_train, y_test[test])


def predict(
    z_train: Floats, y_train: Codes, z_test: Floats, *, seed: int, n_trees: int = 100
) -> npt.NDArray[np.int64]:
    """Predict classes with a random forest on embeddings standardised on the training cells.

    The parameters are those of :func:`classify`. Without training cells all predictions are -1.
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train = y_train >= 0
    if not (train.any() and len(z_test)):
        return np.full(len(z_test), -1)
    forest = RandomForestClassifier(n_trees, n_jobs=1, random_state=seed)
    fitted = make_pipeline(StandardScaler(), forest).fit(z_train[train], y_train[train])
    return np.asarray(fitted.predict(z_test), dtype=np.int64)


def donor_accuracy(predicted_N: Codes, y_N: Codes, donor_N: Codes) -> tuple[float, int]:
    """Return the share of donors whose cells vote for the right class, and the number of donors.

    A tie counts as the probability that a random draw among the tied classes is right.

    Parameters
    ----------
    predicted_N, y_N, donor_N
        Predicted class, true class and donor of the held-out cells. Cells without class or donor are left
        out.

    Raises
    ------
    ScmedleyError
        A donor has cells of two true classes.
    """
    known = (y_N >= 0) & (donor_N >= 0)
    donors = np.unique(donor_N[known])
    right = 0.0
    for donor in donors:
        own = known & (donor_N == donor)
        if len(np.unique(y_N[own])) > 1:
            raise ScmedleyError(
                f"Donor {donor} has cells of classes {np.unique(y_N[own]).tolist()}. All cells of a donor must have "
                "the same class. Correct the column, or score by cell."
            )
        classes, votes = np.unique(predicted_N[own], return_counts=True)
        winners = classes[votes == votes.max()]
        right += (y_N[own][0] in winners) / len(winners)
    return (right / len(donors) if len(donors) else float("nan")), len(donors)


def composition(label_N: Codes, donor_N: Codes) -> npt.NDArray[np.float64]:
    """Return the label proportions of each cell's donor, N × K: the baseline for donor-level targets.

    Proportions alone, such as more monocytes, can predict the target; an embedding should do better. Cells
    without a label are not counted. The proportions are 0 for a donor without labelled cells and for a cell
    without donor.
    """
    size = int(label_N.max(initial=-1)) + 1
    counts_DK = np.zeros((int(donor_N.max(initial=-1)) + 2, size))  # the last row is that of donor -1
    known = (label_N >= 0) & (donor_N >= 0)
    np.add.at(counts_DK, (donor_N[known], label_N[known]), 1)
    shares_DK = counts_DK / np.maximum(counts_DK.sum(1, keepdims=True), 1)
    return np.asarray(shares_DK[donor_N])


def target_table(
    fixed: Mapping[str, Floats],
    random: Mapping[str, Floats],
    target_N: Codes,
    donor_N: Codes,
    label_N: Codes | None,
    part_N: npt.NDArray[np.str_],
    *,
    seed: int,
    n_trees: int = 100,
    joins: Sequence[tuple[str, str]] | None = None,
) -> pd.DataFrame:
    """Classify a target from each embedding, alone and joined with each random-effects embedding.

    Parameters
    ----------
    fixed
        Embeddings by name, each N × P: ``{"PCA": ..., "FE": ...}``.
    random
        Random-effects embeddings, each N × P, and their null: ``{"RE": ..., "RE, permuted batches": ...}``.
        Each is scored alone and joined with those of ``fixed`` (``"FE + RE"``).
    target_N, donor_N
        The class to predict, and the donor. The target is donor-level if each donor has one class only.
    label_N
        Cell types, for the row ``"composition only"`` of a donor-level target; ``None``: no such row.
    part_N
        "train" or "test"; other cells are not used.
    seed, n_trees
        Random seed and number of trees of each forest.
    joins
        Pairs of names, one of ``fixed`` and one of ``random``; all pairs by default.

    Returns
    -------
    pandas.DataFrame
        One row per embedding. ``embedding``: its name. ``held_out``: "donors" if no donor has both training
        and held-out cells, else "cells". ``caution``: "leaks: donors are in train and test" for a donor-level
        target with cells held out, else empty. Then the values of :class:`Classified`. ``n_donors``: number
        of held-out donors. For a donor-level target, else nan: ``donor_accuracy`` (:func:`donor_accuracy`)
        and ``donor_chance`` (expected for classes drawn with their frequencies among the training donors).

    Raises
    ------
    ScmedleyError
        A name occurs twice, an embedding does not have one row per cell, or a part is empty.
    """
    train, test = (np.flatnonzero((part_N == part) & (target_N >= 0)) for part in ("train", "test"))
    if not (len(train) and len(test)):
        raise ScmedleyError(
            f"{len(train)} training cells and {len(test)} held-out cells have a target; both are needed. Check the "
            "split and the missing values of the target."
        )
    donor_level = _is_donor_level(target_N, donor_N)
    if joins is None:
        joins = list(product(fixed, random))
    embeddings = _joined(fixed, random, joins, len(target_N))
    if donor_level and label_N is not None:
        embeddings[COMPOSITION] = composition(label_N, donor_N)
    donors_train, donors_test = (np.unique(donor_N[p][donor_N[p] >= 0]) for p in (train, test))
    held_out = "cells" if np.isin(donors_test, donors_train).any() else "donors"
    caution = LEAKS if donor_level and held_out == "cells" else ""
    rows = []
    for name, z_NP in embeddings.items():
        predicted = predict(z_NP[train], target_N[train], z_NP[test], seed=seed, n_trees=n_trees)
        values = asdict(_score(predicted, target_N[train], target_N[test]))
        by_donor = float("nan")
        if donor_level:
            by_donor, _ = donor_accuracy(predicted, target_N[test], donor_N[test])
        rows.append(
            {"embedding": name, "held_out": held_out, "caution": caution, "donor_accuracy": by_donor} | values
        )
    table = pd.DataFrame(rows)
    table["n_donors"] = len(donors_test)
    table["donor_chance"] = float("nan")
    if donor_level:
        target_train_D, target_test_D = (_by_donor(target_N[p], donor_N[p]) for p in (train, test))
        table["donor_chance"] = _chance(target_train_D, target_test_D)[0]
    return table[COLUMNS]


def _score(predicted_N: Codes, y_train: Codes, y_N: Codes) -> Classified:
    """Compare predictions with the known classes ``y_N``."""
    from sklearn.metrics import accuracy_score, recall_score

    if not (len(y_N) and (y_train >= 0).any()):
        nan = float("nan")
        return Classified(nan, nan, nan, nan, len(y_N))
    # Not balanced_accuracy_score: it warns of predicted classes that no held-out cell has.
    balanced = recall_score(y_N, predicted_N, labels=np.unique(y_N), average="macro")
    accuracy = float(accuracy_score(y_N, predicted_N))
    return Classified(accuracy, float(balanced), *_chance(y_train, y_N), len(y_N))


def _chance(y_train: Codes, y_N: Codes) -> tuple[float, float]:
    """Return the expected accuracy and balanced accuracy of classes drawn with their training frequencies."""
    y_train = y_train[y_train >= 0]
    if not (len(y_train) and len(y_N)):
        return float("nan"), float("nan")
    size = int(max(y_train.max(), y_N.max())) + 1
    share_K = np.bincount(y_train, minlength=size) / len(y_train)
    return float(share_K[y_N].mean()), float(share_K[np.unique(y_N)].mean())


def _joined(
    fixed: Mapping[str, Floats], random: Mapping[str, Floats], joins: Sequence[tuple[str, str]], n_cells: int
) -> dict[str, Floats]:
    """Return each embedding, alone and joined, in float32."""
    twice = sorted(fixed.keys() & random.keys())
    if twice:
        raise ScmedleyError(f"{twice[0]!r} is both a fixed and a random embedding. Use each name once.")
    for name, z_NP in {**fixed, **random}.items():
        if np.ndim(z_NP) != 2 or len(z_NP) != n_cells:
            raise ScmedleyError(
                f"{name!r} has shape {np.shape(z_NP)}; {n_cells} rows are needed, one per cell."
            )
    embeddings: dict[str, Floats] = {}
    for name, z_NP in fixed.items():
        embeddings[name] = np.asarray(z_NP, dtype=np.float32)
        for other in (second for first, second in joins if first == name):
            pair = [embeddings[name], np.asarray(random[other], dtype=np.float32)]
            embeddings[f"{name} + {other}"] = np.hstack(pair)
    return embeddings | {name: np.asarray(z_NP, dtype=np.float32) for name, z_NP in random.items()}


def _is_donor_level(target_N: Codes, donor_N: Codes) -> bool:
    """Return whether each donor has one value of the target only."""
    known = (target_N >= 0) & (donor_N >= 0)
    pairs = np.unique(np.stack([donor_N[known], target_N[known]]), axis=1)
    return bool(known.any()) and len(np.unique(pairs[0])) == pairs.shape[1]


def _by_donor(target_N: Codes, donor_N: Codes) -> Codes:
    """Return the target of each donor, D."""
    known = donor_N >= 0
    return np.asarray(target_N[known][np.unique(donor_N[known], return_index=True)[1]])
