"""The mixed-effects classifier: what a random forest reads from a fixed latent, a random one, and both (scMEDAL).

A donor has one diagnosis and many cells. A classifier that has met a donor's other cells can know her by them, so a
donor-level target is scored honestly only on donors that it never met; ``target_table`` marks what is not.

Shapes: N cells, M training cells, P latent dimensions, K classes or labels. Codes are integers per cell,
-1 where the value is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
import pandas as pd

from scmedley.errors import ScmedleyError
from scmedley.evaluate.neighbors import Codes, Floats

LEAKS = "leaks: donors are in train and test"
COMPOSITION = "composition only"
COLUMNS = [
    "embedding",
    "held_out",
    "caution",
    "accuracy",
    "balanced_accuracy",
    "chance",
    "chance_balanced",
    "n_cells",
    "donor_accuracy",
    "donor_chance",
    "n_donors",
]


@dataclass(frozen=True)
class Classified:
    """How many held-out cells are classified right, and how many would be by chance.

    Attributes
    ----------
    accuracy
        Share of cells.
    balanced_accuracy
        Mean over the classes of the held-out cells of each class's share.
    chance, chance_balanced
        Both, to be expected of classes drawn by their shares of the training cells
        (scikit-learn's ``DummyClassifier("stratified")``, in closed form).
    n_cells
        Held-out cells scored.
    """

    accuracy: float
    balanced_accuracy: float
    chance: float
    chance_balanced: float
    n_cells: int


def classify(
    z_train: Floats, y_train: Codes, z_test: Floats, y_test: Codes, *, seed: int, n_trees: int = 100
) -> Classified:
    """Learn classes from the latent of training cells and score them on held-out cells.

    Parameters
    ----------
    z_train, z_test
        Latent of the training and of the held-out cells, M × P and N × P.
    y_train, y_test
        Classes; cells with code -1 are left out. A class that no training cell has counts as wrong.
    seed
        Of the forest.
    n_trees
        Trees of the forest; the published number is 100.

    Returns
    -------
    Classified
        All nan without training cells or held-out cells.
    """
    test = y_test >= 0
    predicted_N = predict(z_train, y_train, z_test[test], seed=seed, n_trees=n_trees)
    return _score(predicted_N, y_train, y_test[test])


def predict(
    z_train: Floats, y_train: Codes, z_test: Floats, *, seed: int, n_trees: int = 100
) -> npt.NDArray[np.int64]:
    """Predict classes by a random forest on latents standardised on the training cells.

    Parameters are those of :func:`classify`. Without training cells all predictions are -1.
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
    """Let each donor's cells vote and give the share of donors that are right, and the number of donors.

    A tie counts by the chance that a draw among the tied classes is right.

    Parameters
    ----------
    predicted_N, y_N, donor_N
        Predicted class, true class and donor of the held-out cells. Cells without class or donor are left out.

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
                f"Donor {donor} has cells of classes {np.unique(y_N[own]).tolist()}. Only a target that is the same "
                "for all cells of a donor can be scored by donor."
            )
        classes, votes = np.unique(predicted_N[own], return_counts=True)
        winners = classes[votes == votes.max()]
        right += (y_N[own][0] in winners) / len(winners)
    return (right / len(donors) if len(donors) else float("nan")), len(donors)


def composition(label_N: Codes, donor_N: Codes) -> npt.NDArray[np.float64]:
    """Give each cell its donor's shares of the labels, N × K: the baseline of donor-level targets.

    A donor who has more monocytes can be told by that alone; an embedding has to beat it. Cells without a label
    are not counted; without any labelled cell the shares are 0, as they are for a cell without a donor.
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
    """Classify a target from each embedding, alone and joined with each random latent.

    Parameters
    ----------
    fixed
        Embeddings by name, each N × P: ``{"PCA": ..., "FE": ...}``.
    random
        Random-effects latents, each N × P, with their null: ``{"RE": ..., "RE, permuted batches": ...}``.
        Each is scored alone and joined with those of ``fixed`` (``"FE + RE"``).
    target_N, donor_N
        What is to be told, and the donor. The target is donor-level if no donor has two values of it.
    label_N
        Cell types, for the row ``"composition only"`` of a donor-level target; ``None``: no such row.
    part_N
        "train" and "test"; other cells are not used.
    seed, n_trees
        Of the forests.
    joins
        Which of ``fixed`` is joined with which of ``random``; all with all by default.

    Returns
    -------
    pandas.DataFrame
        A row for each embedding: ``embedding``; ``held_out``, "donors" if no donor has both training and
        held-out cells, else "cells"; ``caution``, empty, or "leaks: donors are in train and test" for a donor-level
        target with cells held out; the values of :class:`Classified`; and for a donor-level target
        ``donor_accuracy`` (:func:`donor_accuracy`), ``donor_chance`` (to be expected of classes drawn by the shares
        of the training donors), nan otherwise; ``n_donors``, held-out donors.

    Raises
    ------
    ScmedleyError
        A name is given twice, an embedding has not one row a cell, or a part is empty.
    """
    train, test = (np.flatnonzero((part_N == part) & (target_N >= 0)) for part in ("train", "test"))
    if not (len(train) and len(test)):
        raise ScmedleyError(
            f"{len(train)} training cells and {len(test)} held-out cells have a target; both are needed. Look at the "
            "split and at missing values of the target."
        )
    donor_level = _one_target_each(target_N, donor_N)
    if joins is None:
        joins = list(product(fixed, random))
    blocks = _blocks(fixed, random, joins, len(target_N))
    if donor_level and label_N is not None:
        blocks[COMPOSITION] = composition(label_N, donor_N)
    donors_train, donors_test = (np.unique(donor_N[p][donor_N[p] >= 0]) for p in (train, test))
    held_out = "cells" if np.isin(donors_test, donors_train).any() else "donors"
    caution = LEAKS if donor_level and held_out == "cells" else ""
    rows = []
    for name, z_NP in blocks.items():
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
        one_each = (_first(target_N[p], donor_N[p]) for p in (train, test))
        table["donor_chance"] = _chance(*one_each)[0]
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
    """Expect accuracy and balanced accuracy of classes drawn by their training shares."""
    y_train = y_train[y_train >= 0]
    if not (len(y_train) and len(y_N)):
        return float("nan"), float("nan")
    size = int(max(y_train.max(), y_N.max())) + 1
    share_K = np.bincount(y_train, minlength=size) / len(y_train)
    return float(share_K[y_N].mean()), float(share_K[np.unique(y_N)].mean())


def _blocks(
    fixed: Mapping[str, Floats], random: Mapping[str, Floats], joins: Sequence[tuple[str, str]], n_cells: int
) -> dict[str, Floats]:
    """Lay out each embedding, alone and joined, float32."""
    twice = sorted(fixed.keys() & random.keys())
    if twice:
        raise ScmedleyError(f"{twice[0]!r} is both a fixed and a random embedding. Name each once.")
    for name, z_NP in {**fixed, **random}.items():
        if np.ndim(z_NP) != 2 or len(z_NP) != n_cells:
            raise ScmedleyError(
                f"{name!r} has shape {np.shape(z_NP)}; {n_cells} rows, one a cell, are needed."
            )
    blocks: dict[str, Floats] = {}
    for name, z_NP in fixed.items():
        blocks[name] = np.asarray(z_NP, dtype=np.float32)
        for other in (second for first, second in joins if first == name):
            joined = [blocks[name], np.asarray(random[other], dtype=np.float32)]
            blocks[f"{name} + {other}"] = np.hstack(joined)
    return blocks | {name: np.asarray(z_NP, dtype=np.float32) for name, z_NP in random.items()}


def _one_target_each(target_N: Codes, donor_N: Codes) -> bool:
    """Say whether no donor has two values of the target."""
    known = (target_N >= 0) & (donor_N >= 0)
    pairs = np.unique(np.stack([donor_N[known], target_N[known]]), axis=1)
    return bool(known.any()) and len(np.unique(pairs[0])) == pairs.shape[1]


def _first(target_N: Codes, donor_N: Codes) -> Codes:
    """Give each donor's target, once."""
    known = donor_N >= 0
    return np.asarray(target_N[known][np.unique(donor_N[known], return_index=True)[1]])
