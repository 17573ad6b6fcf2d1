"""Labels for new cells, and how far each cell can be placed among the training cells.

Shapes: N new cells, M reference cells, V of them validation cells, P latent dimensions, K labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scmedley import keys
from scmedley.data.design import as_categories, column
from scmedley.data.reader import Cells, Reading
from scmedley.device import modes, one_thread_if_forked
from scmedley.errors import ScmedleyError, warn
from scmedley.models import residuals
from scmedley.models.reference import (
    LEAST_PROBABILITY,
    MOST_NOVELTY,
    LabelClassifier,
    Reference,
    detected,
    log_probabilities,
)

if TYPE_CHECKING:
    from scmedley.models.base import Model

NEAREST = 15  # training cells whose distance gives the mapping confidence
# Of a rare label, at most a quarter of its training cells: the 15 nearest of a label with 10 are not its own.
SHARE_NEAREST = 4
LEAST_CONFIDENCE = 0.01  # cells with a lower mapping confidence are unassigned
SHARE_DETECTED = 0.5  # of the genes of the training cell with the fewest
HELD_OUT_EVERY = 5  # every fifth cell of a reference of the user's own calibrates the probabilities


@modes(grad=False)
def transfer(
    model: Model[Any],
    adata: Cells,
    *,
    reference: AnnData | None = None,
    label_key: str | None = None,
    least_probability: float = LEAST_PROBABILITY,
    most_novelty: float = MOST_NOVELTY,
) -> pd.DataFrame:
    """Return the most probable label of new cells, and how far each cell resembles the training cells.

    One row for each new cell:

    ``label``, ``probability``: the most probable label and its calibrated probability, among the labels of the
    reference. They assume that the cell is of one of these; the next two columns say whether that is so.
    ``mapping_confidence``: the share of validation cells that are as far from their nearest training cells, or
    farther (latents, mean of 15, or of a quarter of the label's training cells if that is fewer). Low values mean
    that no training cell is close. Nearly empty cells have 0 (fewer genes than half of the training cell with the
    fewest): their latent says nothing about them.
    ``novelty``: the share of validation cells whose residuals agree less with those of similar cells
    (:mod:`scmedley.models.residuals`). Values near 1 mean that the cell and its neighbours among the new cells
    have expression in common that the model does not explain. In a batch that was not in training, a cell counts
    as novel only if it stands out from its batch.
    ``assigned``: the label, or "unassigned" if ``probability`` < ``least_probability``, ``novelty`` >
    ``most_novelty`` or ``mapping_confidence`` < 0.01.

    Without labels in the fit, and none given, there are only ``mapping_confidence`` and ``novelty``.

    Parameters
    ----------
    adata
        New cells, of batches that the model knows or not.
    reference, label_key
        Cells of your own and their ``obs`` column of labels, instead of the labels of the fit.
    least_probability, most_novelty
        Cells with a less probable label, or with a higher novelty, are "unassigned".

    Raises
    ------
    ScmedleyError
        The latent of the model holds the batch; an earlier version saved the model; only one of ``reference``
        and ``label_key`` is given; ``least_probability`` or ``most_novelty`` is not from 0 to 1.

    Notes
    -----
    ``mapping_confidence`` and 1 - ``novelty`` are conformal p-values (:func:`share_below`). With fewer than 100
    validation cells no novelty is above 0.99 and no confidence below 0.01; a warning says so. Without anything
    new, novelty is approximately uniform from 0 to 1, for queries of similar size as the up to 5,000 cells that
    validation cells were compared with: their neighbours are among cells that the network was fitted to.
    """
    model.check_fitted()
    _check(model, reference, label_key, least_probability, most_novelty)
    reading = model.read(adata)
    z_NP = model.get_latent_representation(reading)
    known: Reference = model.reference  # type: ignore[assignment]  # checked
    z_MP, held_out_M, classifier = known.z_MP, known.held_out_M, known.classifier
    if reference is not None and label_key is not None:
        z_MP, held_out_M, classifier = _own(model, reference, label_key)
    columns: dict[str, Any] = {}
    group_N = np.zeros(len(z_NP), np.int64)
    if classifier is not None:
        p_NK = _probabilities(model, classifier, reading, z_NP)
        group_N = p_NK.argmax(axis=1)
        columns["label"] = pd.Categorical.from_codes(group_N, pd.Index(classifier.names))
        columns["probability"] = p_NK.max(axis=1)
    k_N = n_nearest(classifier)[group_N]
    columns["mapping_confidence"] = mapping_confidence(z_NP, z_MP, held_out_M, k_N)
    columns["mapping_confidence"][_nearly_empty(known, reading)] = 0
    columns["novelty"] = _novelty(model, known, reading, z_NP, group_N)
    _warn_if_few(len(known.agreement_V), int(held_out_M.sum()), most_novelty)
    table = pd.DataFrame(columns, index=reading.obs.index)
    if classifier is not None:
        table["assigned"] = _assigned(table, classifier.names, group_N, least_probability, most_novelty)
    return table


def _nearly_empty(known: Reference, reading: Reading) -> np.ndarray:
    """Return which cells have fewer genes with a value than half of the training cell that has the fewest.

    Their latent is that of an empty input. Genes that were not measured are not counted against a cell.
    """
    measured = 1.0 if reading.missing_G is None else 1 - reading.missing_G.mean()
    return np.asarray(detected(reading) < max(1.0, SHARE_DETECTED * measured * known.detected_M.min()))


def n_nearest(classifier: LabelClassifier | None) -> np.ndarray:
    """Return for each label the number of nearest training cells that its mapping confidence looks at."""
    if classifier is None or classifier.n_train_K is None:
        return np.full(1 if classifier is None else len(classifier.names), NEAREST)
    return np.asarray(np.clip(np.array(classifier.n_train_K) // SHARE_NEAREST, 1, NEAREST))


def mapping_confidence(
    z_NP: np.ndarray, z_MP: np.ndarray, held_out_M: np.ndarray, k_N: np.ndarray
) -> np.ndarray:
    """Return the share of held-out cells as far from their k nearest training cells as each new cell, or farther."""
    distance_NK, null_VK = (distances(z, z_MP[~held_out_M]) for z in (z_NP, z_MP[held_out_M]))
    nth_N = np.minimum(k_N, distance_NK.shape[1]) - 1
    found_N = np.empty(len(z_NP))
    for nth in np.unique(nth_N):
        rows = nth_N == nth
        found_N[rows] = 1 - share_below(null_VK[:, nth], distance_NK[rows, nth])
    return found_N


def distances(z_NP: np.ndarray, z_MP: np.ndarray) -> np.ndarray:
    """Return the mean distance of each latent to its 1, 2, ... 15 nearest training cells, N x 15."""
    from sklearn.neighbors import NearestNeighbors

    one_thread_if_forked()
    index = NearestNeighbors(n_neighbors=min(NEAREST, len(z_MP))).fit(z_MP)
    near_NK = index.kneighbors(z_NP)[0]
    return np.asarray(near_NK.cumsum(axis=1) / np.arange(1, near_NK.shape[1] + 1))


def share_below(null_V: np.ndarray, values_N: np.ndarray) -> np.ndarray:
    """Return the share of the null that is below each value, where the value itself counts: below / (V + 1).

    It is 1 - p, with the conformal p-value p = (1 + number of the null at or above the value) / (V + 1). If the
    value and the null are exchangeable, P(p <= a) <= a for every a, however small V is.
    """
    below_N = np.searchsorted(np.sort(null_V), values_N, side="left")
    return np.asarray(below_N / (len(null_V) + 1), np.float64)


def _novelty(
    model: Model[Any], known: Reference, reading: Reading, z_NP: np.ndarray, group_N: np.ndarray
) -> np.ndarray:
    """Return the novelty of each cell; in batches that were not in training, relative to the batch."""
    agreement_N = residuals.agreement(model, reading, z_NP, group_N, known.gene_sd_G)
    for rows in residuals.unknown_batches(model, reading.obs):
        agreement_N[rows] = residuals.relative_to_batch(agreement_N[rows], group_N[rows], known.agreement_V)
    for rows in residuals.adapted_batches(model, reading.obs):
        own = (agreement_N[rows], group_N[rows], known.agreement_V)
        agreement_N[rows] = residuals.relative_to_batch(*own, spread=False)
    return share_below(known.agreement_V, agreement_N)


def _assigned(
    table: pd.DataFrame,
    labels: tuple[str, ...],
    code_N: np.ndarray,
    least_probability: float,
    most_novelty: float,
) -> pd.Categorical[str]:
    """Return the label of each cell, or "unassigned" where one of the three scores is beyond its limit."""
    doubtful_N = (
        (table["probability"] < least_probability)
        | (table["novelty"] > most_novelty)
        | (table["mapping_confidence"] < LEAST_CONFIDENCE)
    )
    names = list(dict.fromkeys([*labels, keys.UNASSIGNED]))
    code_N = np.where(doubtful_N, names.index(keys.UNASSIGNED), code_N)
    return pd.Categorical.from_codes(code_N, pd.Index(names))


def _warn_if_few(n_of_novelty: int, n_of_confidence: int, most_novelty: float) -> None:
    """Warn if no cell can be beyond the limit of novelty or of mapping confidence: shares end at V / (V + 1)."""
    what = {
        f"novelty above {most_novelty:g}": (n_of_novelty, most_novelty),
        f"mapping confidence below {LEAST_CONFIDENCE}": (n_of_confidence, 1 - LEAST_CONFIDENCE),
    }
    void = [
        f"no {name} (there are {n}, it takes {int(1 / (1 - limit) + 1e-6)})"
        for name, (n, limit) in what.items()
        if n / (n + 1) <= limit < 1
    ]
    if void:
        warn(
            f"With so few validation cells a cell can have {' and '.join(void)}. Fit with more cells; in Python, a "
            "lower most_novelty takes fewer."
        )


def _check(
    model: Model[Any],
    reference: AnnData | None,
    label_key: str | None,
    least_probability: float,
    most_novelty: float,
) -> None:
    name = type(model).__name__
    if model.needs_batch:
        raise ScmedleyError(
            f"The latent of {name} holds the batch, so it cannot place cells of other batches. Use FixedEffects, "
            "MixedEffects or Autoencoder for transfer()."
        )
    if model.reference is None:
        raise ScmedleyError(
            f"This {name} was saved by a version that did not keep reference cells, which transfer() needs. Fit it "
            "again."
        )
    if (reference is None) != (label_key is None):
        given, missing = ("reference", "label_key") if label_key is None else ("label_key", "reference")
        raise ScmedleyError(f"transfer() has {given} but no {missing}. Give both, or neither.")
    for limit, value in (("least_probability", least_probability), ("most_novelty", most_novelty)):
        if not 0 <= value <= 1:  # nan too
            raise ScmedleyError(f"{limit} is {value}. Give a number from 0 to 1.")


def _own(model: Model[Any], adata: AnnData, label_key: str) -> tuple[np.ndarray, np.ndarray, LabelClassifier]:
    """Return latents, held-out cells and classifier of a reference of the user's own."""
    labels = as_categories(column(adata, label_key, "label"))
    code_M, names = np.asarray(labels.codes, np.int64), tuple(map(str, labels.categories))
    rows = np.flatnonzero(code_M >= 0)
    z_MP = model.get_latent_representation(adata)[rows]
    held_out_M = np.random.default_rng(0).permutation(len(rows)) % HELD_OUT_EVERY == 0
    classifier = LabelClassifier.fit(z_MP, code_M[rows], held_out_M, names, label_key)
    if classifier is None:
        raise ScmedleyError(
            f"obs[{label_key!r}] of the reference has {len(names)} label(s). Give a column with two or more, each on "
            "several cells."
        )
    return z_MP, held_out_M, classifier


def _probabilities(
    model: Model[Any], classifier: LabelClassifier, reading: Reading, z_NP: np.ndarray
) -> np.ndarray:
    if classifier.weight_KP is not None:
        return classifier.probabilities(z_NP)
    return classifier.calibrated(log_probabilities(model, reading))
