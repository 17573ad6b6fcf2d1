"""What each batch shifts: its genes, and how far it lies from the average batch.

Shapes: N cells, G genes, T batches, D posterior draws.
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
HELD_OUT, ALL_CELLS = (
    "held-out cells",
    "all cells",
)  # what an observed mean is of; the second includes training cells


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
    """List the genes that each batch shifts most against the average batch, within each label.

    Cells of a label are shown in each batch. The shift is their mean there, less the average of those means
    over the batches in which the label was observed, each batch counted once (over all batches, where that is
    fewer than two). The population mean, all effects at zero, is no such average: a decoder's biases may
    lie off the middle of its batches.

    Parameters
    ----------
    model
        A fitted model with batch effects in its decoder.
    adata
        Prepared cells with their batch.
    draws
        Posterior draws of the effects for the interval.
    n_top
        Genes kept for each label and batch, by the size of their shift.
    max_cells
        Cells of a label, of any batch, over which the shift is averaged.

    Returns
    -------
    DataFrame
        label, batch, gene (and its symbol, where genes are called by ids), and in log1p CP10k: shift, its q05
        and q95 (:mod:`scmedley.models.interval`), observed (the same difference between the means of the
        label's cells that are from each batch; not a number where there are none). The same for all genes of
        a pair: size (root mean square of the shift over all genes of the model), observed_size (of the
        observed difference), null_size and null_sd (mean and standard deviation of that over permutations of
        the same cells among the label's batches); n_cells (shown), n_observed (cells that the observed mean
        is of), observed_from ("held-out cells", or "all cells", training cells included, where fewer than 10
        are held out in any batch of the label), seen (whether the label is in the batch at all).
    """
    if draws < 2:
        raise ScmedleyError(f"draws is {draws}; give 2 or more, or there is no interval.")
    network = decoder(model)
    reading = network.read(adata)
    x_NG, obs = reading.log1p_NG, reading.obs
    label, batch = labels_of(obs, label_key), network.design.codes(obs)
    cells = reading.resident(batch, network.device)
    rng, permuting = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    genes, batches = np.asarray(network.genes), network.design.batches
    beside = network.gene_names.symbols_beside
    symbols = {} if beside is None else {"symbol": np.asarray(beside)}
    held_out = obs[keys.SPLIT] == "test" if keys.SPLIT in obs else np.zeros(len(obs))
    held_out_N = np.asarray(held_out, dtype=bool)
    tables = []
    for name in names_of(label):
        rows = np.flatnonzero(label == name)
        own = [rows[batch[rows] == code] for code in range(len(batches))]
        seen_T = np.array([len(these) > 0 for these in own])
        compared_T = seen_T if seen_T.sum() > 1 else np.ones_like(seen_T)
        # Each observed shift is against all batches of the label, so that one with training cells brings them into all.
        enough = all(np.sum(held_out_N[these]) >= LEAST for these in own if len(these))
        own = [these[held_out_N[these]] for these in own] if enough else own
        observed_TG = _observed(x_NG, own)
        null_KT = [_size(_observed(x_NG, _permuted(own, permuting))) for _ in range(N_PERMUTATIONS)]
        rows = np.sort(rng.choice(rows, min(max_cells, len(rows)), replace=False))
        shown = cells.take(torch.as_tensor(rows, device=network.device))
        mean_TDG = drawn_means(network, shown, draws, seed, range(len(batches)))
        mean_TDG -= mean_TDG[compared_T].mean(axis=0)
        pairs = pd.DataFrame(
            {
                "size": _size(mean_TDG.mean(axis=1)),
                "observed_size": _size(observed_TG),
                "null_size": np.mean(null_KT, axis=0),
                "null_sd": np.std(null_KT, axis=0),
                "n_cells": len(rows),
                "n_observed": [len(these) for these in own],
                "observed_from": np.where(seen_T, HELD_OUT if enough else ALL_CELLS, ""),
                "seen": seen_T,
            }
        )
        for target, shift_DG, observed_G, pair in zip(
            batches, mean_TDG, observed_TG, pairs.to_dict("records"), strict=True
        ):
            shift_G, half_G = shift_DG.mean(0), half_width(shift_DG, network.calibration)
            top = np.argsort(-np.abs(shift_G), kind="stable")[:n_top]
            columns = {
                "gene": genes,
                **symbols,
                "shift": shift_G,
                "q05": shift_G - half_G,
                "q95": shift_G + half_G,
            }
            table = pd.DataFrame(columns | {"observed": observed_G}).iloc[top]
            table.insert(0, "label", name)
            table.insert(1, "batch", target)
            tables.append(table.assign(**{str(key): value for key, value in pair.items()}))
    return pd.concat(tables, ignore_index=True)


def interval_coverage(
    model: MixedEffects | Model[Any],
    adata: Cells,
    label_key: str | None = None,
    *,
    n_top: int = LARGEST,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the share of shifts of held-out cells that are in their interval of 90 %.

    The first number is of all genes of each pair of label and batch, the second of the ``n_top`` with the largest
    predicted shifts. The sampling noise of the observed means is counted (:mod:`scmedley.models.interval`). Not a
    number where no label has held-out cells in two batches, or the model's intervals are not calibrated.
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
    """Return how far each batch lies from the average batch, the farthest in its own cells first.

    Batches are compared on the labels that all of them have: the average batch of another label is another one.

    Parameters
    ----------
    shifts
        Table of :func:`gene_shifts`.

    Returns
    -------
    DataFrame
        batch, and in log1p CP10k, means over those labels: distance (the size of the model's shift, which is drawn
        towards 0 and has no interval); observed, the distance of the cells' own means; null and null_sd, of that with
        batches permuted within labels; observed_from, which cells these are ("held-out cells", "all cells", or
        "held-out and all cells" where labels differ). Ordered by observed² - null², as means of fewer cells lie
        farther apart by noise alone. Empty where fewer than two batches share a label with all others. Of two batches
        each lies half as far from their average as from the other.
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
    """Return in words which cells several observed means are of."""
    used = [name for name in (HELD_OUT, ALL_CELLS) if (observed_from == name).any()]
    return "held-out and all cells" if len(used) > 1 else (used or [""])[0]


def _observed(x_NG: Any, own: list[np.ndarray]) -> np.ndarray:
    """Return the mean of each batch's cells less the average of those means, T x G; not a number without cells."""
    found_TG = np.full((len(own), x_NG.shape[1]), np.nan)
    n_T = np.array([len(cells) for cells in own])
    seen_T = n_T > 0
    if seen_T.sum() > 1:
        rows, code_N = np.concatenate(own), np.repeat(np.arange(len(own)), n_T)
        member = csr_matrix((1 / n_T[code_N], (code_N, rows)), (len(own), x_NG.shape[0]))
        found_TG[seen_T] = dense(member @ x_NG)[seen_T]
        found_TG -= found_TG[seen_T].mean(axis=0)
    return found_TG


def _permuted(own: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Return the cells of one label dealt out anew, as many to each batch as it has."""
    ends = np.cumsum([len(cells) for cells in own])
    return np.split(rng.permutation(np.concatenate(own)), ends[:-1])


def _size(shift_G: np.ndarray) -> np.ndarray:
    """Return the root mean square over genes, the last axis."""
    return np.asarray(np.sqrt(np.square(shift_G, dtype=np.float64).mean(axis=-1)))
