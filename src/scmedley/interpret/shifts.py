"""Batch shifts: the genes that each batch shifts, and the distance of each batch from the average batch.

Shapes: N cells, G genes, B batches, D posterior draws or permutations.
"""

from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix

from scmedley import keys
from scmedley.data.arrays import dense
from scmedley.data.design import as_categories
from scmedley.data.reader import Cells
from scmedley.errors import ScmedleyError
from scmedley.interpret.check import LEAST, decoder, labels_of, names_of
from scmedley.models import MixedEffects
from scmedley.models.base import Model
from scmedley.models.calibrate import deviations
from scmedley.models.counterfactual import drawn_means
from scmedley.models.interval import LARGEST, half_width

N_PERMUTATIONS = 10
DISTANCES = ["batch", "distance", "observed", "null", "null_sd"]
# The cells of an observed mean; "all cells" includes training cells.
HELD_OUT, ALL_CELLS = "held-out cells", "all cells"


def gene_shifts(
    model: MixedEffects | Model[Any],
    adata: Cells,
    label_key: str | None = None,
    *,
    draws: int = 30,
    n_top: int = 50,
    max_cells: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the genes that each batch shifts most from the average batch, within each label.

    Cells of a label are predicted in each batch. The shift is their mean in the batch minus the average of
    these means over the batches in which the label was observed, with equal weight for each batch (over all
    batches if the label was observed in fewer than two). The population mean (all effects zero) is not this
    average, because the decoder's biases need not be at the centre of the batches.

    Parameters
    ----------
    model
        A fitted model with batch effects in its decoder.
    adata
        Prepared cells with their batch.
    label_key
        Column of ``obs`` with the labels; by default all cells are one label.
    draws
        Number of posterior draws of the effects for the interval.
    n_top
        Number of genes for each label and batch, those with the largest shifts.
    max_cells
        Maximum number of cells of a label, from any batch, for the mean shift.
    seed
        Random seed of all draws.

    Returns
    -------
    DataFrame
        label, batch, gene (and its symbol, if genes are named by identifiers), and in log1p CP10k: shift, its
        q05 and q95 (:mod:`scmedley.models.interval`), observed (the same difference between the means of the
        label's cells from each batch; nan without cells). The same for all genes of a pair: size (root mean
        square of the shift over all genes of the model), observed_size (of the observed difference),
        null_size and null_sd (mean and standard deviation of observed_size with cells permuted among the
        label's batches); n_cells (predicted cells), n_observed (cells of the observed mean), observed_from
        ("held-out cells", or "all cells", including training cells, if any batch of the label has fewer than
        10 held-out cells), seen (whether the batch has cells of the label).
    """
    if draws < 2:
        raise ScmedleyError(f"draws is {draws}, but an interval needs at least 2.")
    network = decoder(model)
    reading = network.read(adata).in_memory("gene_shifts")
    x_NG, obs = reading.log1p_NG, reading.obs
    label, batch = labels_of(obs, label_key), network.design.codes(obs)
    cells = reading.resident(batch, network.scale, network.device)
    rng, permuting = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    batches = network.design.batches
    held_out = obs[keys.SPLIT] == "test" if keys.SPLIT in obs else np.zeros(len(obs))
    held_out_N = np.asarray(held_out, dtype=bool)
    tables = []
    for name in names_of(label):
        rows = np.flatnonzero(label == name)
        own = [rows[batch[rows] == code] for code in range(len(batches))]
        seen_B = np.array([len(these) > 0 for these in own])
        compared_B = seen_B if seen_B.sum() > 1 else np.ones_like(seen_B)
        # An observed shift depends on all batches of the label: use training cells in all of them or in none.
        enough = all(np.sum(held_out_N[these]) >= LEAST for these in own if len(these))
        own = [these[held_out_N[these]] for these in own] if enough else own
        observed_BG = _observed(x_NG, own)
        null_DB = [_size(_observed(x_NG, _permuted(own, permuting))) for _ in range(N_PERMUTATIONS)]
        rows = np.sort(rng.choice(rows, min(max_cells, len(rows)), replace=False))
        shown = cells.take(torch.as_tensor(rows, device=network.device))
        mean_BDG = drawn_means(network, shown, draws, seed, range(len(batches)))
        mean_BDG -= mean_BDG[compared_B].mean(axis=0)
        pairs = pd.DataFrame(
            {
                "size": _size(mean_BDG.mean(axis=1)),
                "observed_size": _size(observed_BG),
                "null_size": np.mean(null_DB, axis=0),
                "null_sd": np.std(null_DB, axis=0),
                "n_cells": len(rows),
                "n_observed": [len(these) for these in own],
                "observed_from": np.where(seen_B, HELD_OUT if enough else ALL_CELLS, ""),
                "seen": seen_B,
            }
        )
        for target, shift_DG, observed_G, pair in zip(
            batches, mean_BDG, observed_BG, pairs.to_dict("records"), strict=True
        ):
            table = _largest(network, shift_DG, observed_G, n_top)
            table.insert(0, "label", name)
            table.insert(1, "batch", target)
            tables.append(table.assign(**{str(key): value for key, value in pair.items()}))
    return pd.concat(tables, ignore_index=True)


def _largest(network: Model[Any], shift_DG: np.ndarray, observed_G: np.ndarray, n_top: int) -> pd.DataFrame:
    """Return the genes with the largest shifts of one pair, with intervals and observed shifts."""
    shift_G, half_G = shift_DG.mean(0), half_width(shift_DG, network.calibration)
    symbols = network.gene_names.symbols_beside
    columns = {
        **{"gene": np.asarray(network.genes)},
        **({} if symbols is None else {"symbol": np.asarray(symbols)}),
        **{"shift": shift_G, "q05": shift_G - half_G, "q95": shift_G + half_G, "observed": observed_G},
    }
    return pd.DataFrame(columns).iloc[np.argsort(-np.abs(shift_G), kind="stable")[:n_top]]


def interval_coverage(
    model: MixedEffects | Model[Any],
    adata: Cells,
    label_key: str | None = None,
    *,
    n_top: int = LARGEST,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the share of shifts of held-out cells that are inside their 90 % interval.

    The first number is for all genes of each pair of label and batch, the second for the ``n_top`` genes with
    the largest predicted shifts. Both include the sampling noise of the observed means
    (:mod:`scmedley.models.interval`). They are nan if no label has held-out cells in two batches, or if the
    model's intervals are not calibrated.
    """
    network = decoder(model)
    reading = network.read(adata)
    label_N = None if label_key is None else as_categories(reading.obs[label_key]).codes
    found = deviations(network, reading, label_N, "test", seed=seed)
    if found is None or network.calibration is None:
        return float("nan"), float("nan")
    factor = network.calibration.factor
    return found.coverage(factor), found.coverage(factor, n_top)


def batch_distances(shifts: pd.DataFrame) -> pd.DataFrame:
    """Return the distance of each batch from the average batch, the largest observed distance first.

    Batches are compared on the labels that occur in all of them, because each label has its own average
    batch.

    Parameters
    ----------
    shifts
        Table of :func:`gene_shifts`.

    Returns
    -------
    DataFrame
        batch, and in log1p CP10k, as means over those labels: distance (the size of the model's shift, which
        is shrunk towards 0 and has no interval); observed, the distance of the observed means; null and
        null_sd, of the observed distance with batches permuted within labels; observed_from, the cells of the
        observed means ("held-out cells", "all cells", or "held-out and all cells" if labels differ). Sorted
        by observed² - null², because noise alone increases the distance of means of few cells. Empty with
        fewer than two batches or without a label that occurs in all of them. With two batches, the distance
        of each from their average is half the distance between them.
    """
    pairs = shifts.drop_duplicates(["batch", "label"])
    n_seen = pairs[pairs["seen"]].groupby("label")["batch"].nunique()
    n_batches = pairs["batch"].nunique()
    shared = pairs[pairs["label"].isin(n_seen.index[n_seen == n_batches])]
    if n_batches < 2 or shared.empty:
        return pd.DataFrame(columns=[*DISTANCES, "observed_from"])
    sizes = ["size", "observed_size", "null_size", "null_sd"]
    groups = shared.groupby("batch", sort=True)
    found = groups[sizes].mean().reset_index().set_axis(DISTANCES, axis=1)
    found["observed_from"] = groups["observed_from"].agg(source_of).to_numpy()
    order = (found["null"] ** 2 - found["observed"] ** 2).argsort(kind="stable")
    return found.iloc[order].reset_index(drop=True)


def source_of(observed_from: "pd.Series[str]") -> str:
    """Return in words which cells were used for several observed means."""
    used = [name for name in (HELD_OUT, ALL_CELLS) if (observed_from == name).any()]
    return "held-out and all cells" if len(used) > 1 else (used or [""])[0]


def _observed(x_NG: Any, own: list[np.ndarray]) -> np.ndarray:
    """Return each batch's mean minus the average of these means, B × G; nan without cells."""
    shift_BG = np.full((len(own), x_NG.shape[1]), np.nan)
    n_B = np.array([len(cells) for cells in own])
    seen_B = n_B > 0
    if seen_B.sum() > 1:
        rows, code_N = np.concatenate(own), np.repeat(np.arange(len(own)), n_B)
        member = csr_matrix((1 / n_B[code_N], (code_N, rows)), (len(own), x_NG.shape[0]))
        shift_BG[seen_B] = dense(member @ x_NG)[seen_B]
        shift_BG -= shift_BG[seen_B].mean(axis=0)
    return shift_BG


def _permuted(own: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Permute the cells of one label among its batches; the batch sizes stay the same."""
    ends = np.cumsum([len(cells) for cells in own])
    return np.split(rng.permutation(np.concatenate(own)), ends[:-1])


def _size(shift_G: np.ndarray) -> np.ndarray:
    """Return the root mean square over genes (the last axis)."""
    return np.asarray(np.sqrt(np.square(shift_G, dtype=np.float64).mean(axis=-1)))
