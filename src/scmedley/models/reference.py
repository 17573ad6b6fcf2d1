"""What a fitted model keeps of its training cells in order to place and label new cells.

Shapes: N new cells, M reference cells, V validation cells, P latent dimensions, G genes, K labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from scmedley import keys
from scmedley.data.blocks import blocks
from scmedley.data.design import as_categories
from scmedley.data.reader import Reading
from scmedley.models import residuals

if TYPE_CHECKING:
    from scmedley.models.base import Model

MOST_TRAINING, MOST_HELD_OUT = 20_000, 2_500  # cells that are kept, drawn with the seed
POOL = 5_000  # validation and training cells among which validation cells have their neighbours
LEAST_FOR_TEMPERATURE = 10  # held-out cells with a label; with fewer the temperature stays 1
LEAST_PROBABILITY, MOST_NOVELTY = 0.5, 0.99  # cells beyond either are unassigned
ARRAYS = ("z_MP", "held_out_M", "gene_sd_G", "agreement_V", "detected_M")  # of a reference, as they are saved
WEIGHT_POWER = 1 / 3  # of the weights of labels in that regression
ROUNDS = 1_000  # of the optimiser of the logistic regression


@dataclass(frozen=True)
class LabelClassifier:
    """A calibrated classifier of latents: softmax((z W' + b) / temperature).

    The multinomial logistic regression (W, b) is fitted to the training cells, and the temperature (Guo et
    al. 2017) to held-out cells. It was chosen over votes of the nearest cells because it was more accurate and
    better calibrated, most of all for batches that were not in training. A label of n training cells has the weight
    (mean n / n) ** ``WEIGHT_POWER``: without weights the penalty of the regression falls on rare labels most, and
    with a power of 1 the probabilities are less well calibrated.

    Attributes
    ----------
    label_key
        ``obs`` column of the labels.
    names
        The K labels.
    temperature
        Above 1: the probabilities of the classifier were too extreme.
    weight_KP, bias_K
        ``None``: the model's own label head takes the place of the regression.
    n_train_K
        Training cells of each label; ``None`` if an earlier version saved the model.
    """

    label_key: str
    names: tuple[str, ...]
    temperature: float
    weight_KP: np.ndarray | None = None
    bias_K: np.ndarray | None = None
    n_train_K: tuple[int, ...] | None = None

    @classmethod
    def fit(
        cls, z_MP: np.ndarray, label_M: np.ndarray, held_out_M: np.ndarray, names: tuple[str, ...], key: str
    ) -> LabelClassifier | None:
        """Fit the regression to the training cells and its temperature to the held-out cells.

        Parameters
        ----------
        z_MP
            Latents.
        label_M
            Codes of ``names``, -1 for none.
        held_out_M
            Which cells are held out.
        names
            All labels. Those without a training cell are left out.
        key
            ``obs`` column of the labels.

        Returns
        -------
        LabelClassifier or None
            ``None`` if the training cells have fewer than two labels.
        """
        from sklearn.linear_model import LogisticRegression

        train = ~held_out_M & (label_M >= 0)
        seen = np.unique(label_M[train])
        if len(seen) < 2:
            return None
        code_M = np.where(np.isin(label_M, seen), np.searchsorted(seen, label_M), -1)
        z_MP = np.asarray(z_MP, np.float64)
        # In units of the spread, the penalty does not depend on the scale of the latents.
        spread = float(np.sqrt(z_MP[train].var(axis=0).mean())) or 1.0
        n_K = np.bincount(code_M[train])
        weights = dict(enumerate((n_K.mean() / n_K) ** WEIGHT_POWER))
        fitted = LogisticRegression(max_iter=ROUNDS, class_weight=weights).fit(
            z_MP[train] / spread, code_M[train]
        )
        weight_KP, bias_K = fitted.coef_ / spread, fitted.intercept_
        if len(seen) == 2:  # scikit-learn then has the weights of the second label alone
            weight_KP, bias_K = np.vstack([np.zeros_like(weight_KP), weight_KP]), np.append(0.0, bias_K)
        held = held_out_M & (code_M >= 0)
        temperature = best_temperature(z_MP[held] @ weight_KP.T + bias_K, code_M[held])
        found = tuple(names[code] for code in seen)
        return cls(key, found, temperature, weight_KP, bias_K, tuple(n_K.tolist()))

    def probabilities(self, z_NP: np.ndarray) -> np.ndarray:
        """Return the probability of each label for each latent, N x K."""
        assert self.weight_KP is not None
        return self.calibrated(np.asarray(z_NP, np.float64) @ self.weight_KP.T + self.bias_K)

    def calibrated(self, logits_NK: np.ndarray) -> np.ndarray:
        """Return probabilities from logits of the classifier."""
        return np.asarray(np.exp(log_softmax(logits_NK / self.temperature, axis=1)))


def best_temperature(logits_MK: np.ndarray, label_M: np.ndarray) -> float:
    """Return the temperature, 1 or more, with the smallest negative log-likelihood; 1 with too few cells.

    Below 1 it would make the probabilities more extreme. A few hundred held-out cells without an error would
    then give every cell a probability of 1, and cells of new batches are not that certain.
    """
    from scipy.optimize import minimize_scalar

    if len(label_M) < LEAST_FOR_TEMPERATURE:
        return 1.0
    rows = np.arange(len(label_M))

    def loss(log_temperature: float) -> float:
        log_p_MK = log_softmax(logits_MK / np.exp(log_temperature), axis=1)
        return float(-log_p_MK[rows, label_M].mean())

    return float(np.exp(minimize_scalar(loss, bounds=(0.0, 3.0), method="bounded").x))


@dataclass(frozen=True)
class Reference:
    """Cells that new cells are compared with.

    Attributes
    ----------
    z_MP
        Latents of training and validation cells.
    held_out_M
        Which of them are validation cells.
    gene_sd_G
        Standard deviation of each gene in the training cells, in log1p CP10k.
    agreement_V
        :func:`residuals.agreement` of the validation cells: novelty when nothing is new.
    detected_M
        Number of the model's genes with a value above 0 in each cell.
    classifier
        ``None`` if the model knows no labels.
    """

    z_MP: np.ndarray
    held_out_M: np.ndarray
    gene_sd_G: np.ndarray
    agreement_V: np.ndarray
    detected_M: np.ndarray
    classifier: LabelClassifier | None = None


def learn(
    model: Model[Any], reading: Reading, label: pd.Series[Any] | None, seed: int, most: int = MOST_TRAINING
) -> Reference:
    """Return the reference of a model that has just been fitted; test cells are not used.

    Parameters
    ----------
    reading
        The cells of the fit with their split.
    label
        Their labels, if they have any.
    most
        Maximum number of training cells.
    """
    part_N, rng = reading.obs[keys.SPLIT].to_numpy(), np.random.default_rng(seed)
    held_out, train = (
        np.sort(rng.permutation(np.flatnonzero(part_N == name))[:n])
        for name, n in (("validation", MOST_HELD_OUT), ("train", most))
    )
    rows = np.concatenate([held_out, train])
    cells, held_out_M = reading.take(rows), np.arange(len(rows)) < len(held_out)
    z_MP = model.get_latent_representation(cells)
    gene_sd_G = residuals.gene_sd(cells.log1p_NG[len(held_out) :])
    classifier, group_M = None, np.zeros(len(rows), np.int64)
    if label is not None:
        labels = as_categories(label.iloc[rows])
        group_M = np.asarray(labels.codes, np.int64)
        classifier = _classifier(model, cells, z_MP, labels, held_out_M)
    # Neighbours come from validation and training cells, so that a validation cell has close ones.
    pool = np.arange(min(len(rows), POOL))
    agreement_N = residuals.agreement(model, cells.take(pool), z_MP[pool], group_M[pool], gene_sd_G)
    agreement_V = agreement_N[held_out_M[pool]]
    return Reference(z_MP, held_out_M, gene_sd_G, agreement_V, detected(cells), classifier)


def detected(cells: Reading) -> np.ndarray:
    """Return the number of the model's genes with a value above 0 in each cell, N."""
    found = [np.asarray((x_NG > 0).sum(axis=1)).ravel() for _, x_NG in blocks(cells.log1p_NG)]
    return np.concatenate(found).astype(np.int64)


def _classifier(
    model: Model[Any], cells: Reading, z_MP: np.ndarray, labels: pd.Categorical, held_out_M: np.ndarray
) -> LabelClassifier | None:
    names, code_M = tuple(map(str, labels.categories)), np.asarray(labels.codes, np.int64)
    key = model.label_key or cells.label_key or ""
    if model.labels is None:
        return LabelClassifier.fit(z_MP, code_M, held_out_M, names, key)
    head = model.labels.codes(cells.obs)
    held = np.flatnonzero(held_out_M & (head >= 0))
    logits = log_probabilities(model, cells.take(held)) if len(held) else np.zeros((0, 1))
    n_K = np.bincount(head[~held_out_M & (head >= 0)], minlength=len(model.labels.names))
    temperature = best_temperature(logits, head[held])
    return LabelClassifier(key, model.labels.names, temperature, n_train_K=tuple(n_K.tolist()))


def log_probabilities(model: Model[Any], cells: Reading) -> np.ndarray:
    """Return the logarithms of the label head's probabilities, finite."""
    p_NK = np.maximum(model.predict(cells).to_numpy(np.float64), 1e-12)
    return np.asarray(np.log(p_NK))


def arrays_of(reference: Reference | None) -> dict[str, np.ndarray]:
    """Return the arrays of a reference by name, to save; empty without a reference."""
    if reference is None:
        return {}
    found = {name: getattr(reference, name) for name in ARRAYS}
    classifier = reference.classifier
    if classifier is not None and classifier.weight_KP is not None:
        found |= {"weight_KP": classifier.weight_KP, "bias_K": np.asarray(classifier.bias_K)}
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


def described_classifier(reference: Reference | None) -> dict[str, Any] | None:
    """Return the fields of a classifier that are no arrays, to save."""
    if reference is None or reference.classifier is None:
        return None
    fields = ("label_key", "names", "temperature", "n_train_K")
    return {name: getattr(reference.classifier, name) for name in fields}


def reference_of(arrays: dict[str, np.ndarray], about: dict[str, Any] | None) -> Reference | None:
    """Return the reference that was saved as ``arrays`` and the fields of its classifier."""
    if not arrays:
        return None
    classifier = None
    if about is not None:
        weights = (arrays.get("weight_KP"), arrays.get("bias_K"))
        n_train_K = about.get("n_train_K")  # not in models of earlier versions
        classifier = LabelClassifier(
            about["label_key"],
            tuple(about["names"]),
            float(about["temperature"]),
            *weights,
            None if n_train_K is None else tuple(n_train_K),
        )
    return Reference(**{name: arrays[name] for name in ARRAYS}, classifier=classifier)
