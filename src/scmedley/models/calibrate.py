"""Calibrate the intervals of a fitted model: compare predicted with observed shifts of validation cells.

Shapes: N cells, G genes, T batches, D posterior draws, P pairs of label and batch.
"""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from scmedley import keys
from scmedley.data.design import as_categories
from scmedley.data.reader import Reading
from scmedley.models.counterfactual import drawn_means
from scmedley.models.interval import Calibration, Deviations

DRAWS, DECODED = 20, 20  # posterior draws, and training cells of a label that are decoded in each batch
MOST_LABELS, MOST_BATCHES = 8, 20  # compared; enough to learn one factor
PRIOR_CELLS = 10  # weight of the pooled variance in the variance of a gene in one batch, in cells
MOST_CELLS = 20_000  # of a label in one batch, of which means and variances are taken
LEAST_PAIRS = 2  # pairs of label and batch with validation cells; with fewer the factor is not learnt


def learn(model: Any, reading: Reading, label: "pd.Series[Any] | None", seed: int) -> Calibration | None:
    """Return the calibration learnt from the validation cells; ``None`` if they are too few."""
    label_N = None if label is None else as_categories(label).codes
    found = deviations(model, reading, label_N, "validation", seed=seed)
    if found is None or len(found.n_P) < LEAST_PAIRS or not (found.sd_PG > 0).any(axis=1).all():
        return None
    key = None if label is None else str(label.name)
    return Calibration(found.factor(), len(found.n_P), int(found.n_P.sum()), key)


def deviations(
    model: Any, reading: Reading, label_N: np.ndarray | None, part: str, *, seed: int = 0
) -> Deviations | None:
    """Compare predicted with observed shifts of the cells of one part of the split.

    Parameters
    ----------
    reading
        The cells of the fit with their split.
    label_N
        Codes of labels, -1 for none. ``None``: all cells are one group.
    part
        Part of the split that the observed cells come from. Predictions are for training cells.

    Returns
    -------
    Deviations or None
        Up to 8 labels, each in up to 20 batches; ``None`` if no label has observed cells in two batches.
    """
    x_NG, part_N = reading.log1p_NG, reading.obs[keys.SPLIT].to_numpy()
    batch_N = model.design.codes(reading.obs)
    resident = reading.resident(batch_N, model.scale, model.device, counts=False)
    label_N = np.zeros(len(batch_N), np.int64) if label_N is None else label_N
    labels, sizes = np.unique(label_N[label_N >= 0], return_counts=True)
    rng = np.random.default_rng(seed)
    found = []
    for name in labels[np.argsort(-sizes, kind="stable")][:MOST_LABELS]:
        here, observed = label_N == name, part_N == part
        codes_T = np.unique(batch_N[here & observed & (batch_N >= 0)])
        codes_T = np.sort(rng.permutation(codes_T)[:MOST_BATCHES])
        trained = np.flatnonzero(here & (part_N == "train"))
        if len(codes_T) < 2 or not len(trained):
            continue
        decoded = np.sort(rng.permutation(trained)[:DECODED])
        cells = resident.take(torch.as_tensor(decoded, device=model.device))
        shift_TDG = drawn_means(model, cells, DRAWS, seed, codes_T)
        shift_TDG -= shift_TDG.mean(axis=0)
        own = [_drawn(np.flatnonzero(here & observed & (batch_N == code)), rng) for code in codes_T]
        seen = [_drawn(trained[batch_N[trained] == code], rng) for code in codes_T]
        n_T = np.array([len(rows) for rows in own])
        mean_TG = np.stack([_mean(x_NG[rows]) for rows in own])
        variance_TG = _variances(x_NG, seen) / n_T[:, None]
        # Standard error of a mean minus the average of all T means, which includes it.
        error_TG = np.sqrt((1 - 2 / len(n_T)) * variance_TG + variance_TG.sum(axis=0) / len(n_T) ** 2)
        predicted_TG = shift_TDG.mean(axis=1)
        miss_TG = mean_TG - mean_TG.mean(axis=0) - predicted_TG
        found.append(Deviations(predicted_TG, miss_TG, shift_TDG.std(axis=1, ddof=1), error_TG, n_T))
    if not found:
        return None
    names = [field.name for field in dataclasses.fields(Deviations)]
    return Deviations(*(np.concatenate([getattr(one, name) for one in found]) for name in names))


def _drawn(rows_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the rows, or a draw if there are too many to hold their values in memory."""
    return rows_N if len(rows_N) <= MOST_CELLS else np.sort(rng.permutation(rows_N)[:MOST_CELLS])


def _mean(x_NG: Any) -> np.ndarray:
    return np.asarray(x_NG.mean(axis=0), dtype=np.float64).ravel()


def _variances(x_NG: Any, rows: list[np.ndarray]) -> np.ndarray:
    """Return the variance of each gene in each batch (T x G), shrunk towards the pooled variance."""
    squares, free = [], np.array([max(len(own) - 1, 0) for own in rows])
    for own in rows:
        own_NG = x_NG[own]
        mean_G = _mean(own_NG) if len(own) else 0.0
        x2_NG = own_NG.power(2) if sparse.issparse(own_NG) else np.square(own_NG, dtype=np.float64)
        squares.append((_mean(x2_NG) - mean_G**2) * len(own) if len(own) else np.zeros(x_NG.shape[1]))
    squares_TG = np.maximum(np.stack(squares), 0)
    pooled_G = squares_TG.sum(axis=0) / max(free.sum(), 1)
    return np.asarray((squares_TG + PRIOR_CELLS * pooled_G) / (free + PRIOR_CELLS)[:, None])
