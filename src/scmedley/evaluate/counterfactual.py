"""How far the counterfactuals can be trusted: what each batch shifts, and does it agree with what is seen."""

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy.stats import pearsonr

from scmedley import keys
from scmedley.data.resident import Resident
from scmedley.models.base import Model
from scmedley.models.counterfactual import QUANTILES, mean_shift
from scmedley.pp.counts import log_normalised

ALL = "all cells"  # stands for the label where there is none
ROWS = 2048  # cells x targets that are decoded at one time
LEAST = 10  # held-out cells on each side without which a shift is not compared


def gene_shifts(
    model: Model[Any],
    adata: AnnData,
    label_key: str | None = None,
    *,
    draws: int = 30,
    n_top: int = 50,
    max_cells: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """List the genes that each batch shifts most against the population mean, within each label.

    Parameters
    ----------
    model
        A network whose decoder has batch effects.
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
        label, batch, gene, shift, q05, q95 (log1p CP10k; counterfactual in the batch minus population
        mean, mean over cells), n_cells, seen (whether the label was observed in that batch).
    """
    label = _labels(adata, label_key)
    batch = adata.obs[model.batch_key].astype(str)
    seen = set(zip(label, batch, strict=True))
    rng = np.random.default_rng(seed)
    genes = np.asarray(model.genes)
    tables = []
    for name in _names(label):
        rows = np.flatnonzero(label == name)
        rows = np.sort(rng.choice(rows, min(max_cells, len(rows)), replace=False))
        mean_TDG = _decoded_means(model, adata[rows], draws, seed)
        for target, mean_DG in zip(model.design.batches, mean_TDG[:-1], strict=True):
            shift_DG = mean_DG - mean_TDG[-1]
            shift_G = shift_DG.mean(0)
            low_G, high_G = np.quantile(shift_DG, QUANTILES, axis=0)
            top = np.argsort(-np.abs(shift_G), kind="stable")[:n_top]
            columns = {"gene": genes[top], "shift": shift_G[top], "q05": low_G[top], "q95": high_G[top]}
            table = pd.DataFrame({"label": name, "batch": target, **columns})
            tables.append(table.assign(n_cells=len(rows), seen=(name, target) in seen))
    return pd.concat(tables, ignore_index=True)


def counterfactual_check(
    model: Model[Any],
    adata: AnnData,
    label_key: str | None = None,
    *,
    max_cells: int = 300,
    max_others: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare the predicted with the observed shift of the mean, on held-out cells.

    For each label and batch: held-out cells of the label from the other batches are shown in the
    batch, and their mean predicted change is correlated, over genes, with the difference between the
    held-out cells really from there and them.

    Returns
    -------
    DataFrame
        label, batch, pearson, slope (predicted regressed on observed: below 1, predicted too small),
        null_pearson (the same with the prediction for other batches, mean over up to ``max_others``;
        not a number with two batches), additive_pearson (baseline: the plain difference of means on the
        training cells), n_source, n_target. Pairs with under 10 held-out cells on a side are left out.
    """
    label = _labels(adata, label_key)
    batch = adata.obs[model.batch_key].astype(str).to_numpy()
    part = adata.obs[keys.SPLIT].astype(str).to_numpy()
    x_NG, _ = log_normalised(adata, model.genes)
    rng = np.random.default_rng(seed)
    rows = []
    for name in _names(label):
        for target in model.design.batches:
            here, there = (label == name) & (batch != target), (label == name) & (batch == target)
            source, goal = np.flatnonzero(here & (part == "test")), np.flatnonzero(there & (part == "test"))
            if min(len(source), len(goal)) < LEAST:
                continue
            source = np.sort(rng.choice(source, min(max_cells, len(source)), replace=False))
            observed_G = _mean(x_NG, goal) - _mean(x_NG, source)
            cells = adata[source]

            def predicted(to: str, cells: AnnData = cells) -> np.ndarray:
                shift_G: np.ndarray = mean_shift(model, cells, to, reference=None)[0]
                return shift_G

            others = [b for b in model.design.batches if b != target and (batch[source] != b).any()]
            others = list(rng.permutation(others)[:max_others])
            train = part == "train"
            additive_G = _mean(x_NG, np.flatnonzero(there & train)) - _mean(
                x_NG, np.flatnonzero(here & train)
            )
            predicted_G = predicted(target)
            rows.append(
                {
                    "label": name,
                    "batch": target,
                    "pearson": _correlation(predicted_G, observed_G),
                    "slope": _slope(predicted_G, observed_G),
                    "null_pearson": _average([_correlation(predicted(b), observed_G) for b in others]),
                    "additive_pearson": _correlation(additive_G, observed_G),
                    "n_source": len(source),
                    "n_target": len(goal),
                }
            )
    columns = [
        "label",
        "batch",
        "pearson",
        "slope",
        "null_pearson",
        "additive_pearson",
        "n_source",
        "n_target",
    ]
    return pd.DataFrame(rows, columns=columns)


@torch.no_grad()
def _decoded_means(model: Model[Any], adata: AnnData, draws: int, seed: int) -> np.ndarray:
    """Give the cells' mean as decoded in each batch, and last in the population mean: T x D x G, log1p CP10k.

    :func:`mean_shift` gives the differences of these, one pair at a time; here all targets share the draws.
    """
    own_N = model.design.codes(adata.obs)
    cells = Resident(model.read(adata), own_N, torch.device("cpu")).take(torch.arange(adata.n_obs))
    as_target = getattr(model.settings, "encode_as_target", False)
    codes_T = torch.tensor([*range(model.design.n_batches), -1])
    mean_TDG = np.empty((len(codes_T), draws, len(model.genes)), dtype=np.float32)
    blocks = torch.arange(len(codes_T)).split(max(1, ROWS // adata.n_obs))
    with torch.random.fork_rng(devices=[]):
        for draw, block in product(range(draws), blocks):
            torch.manual_seed(seed * 100_003 + draw)
            n = len(block)
            target_N = codes_T[block].repeat_interleave(adata.n_obs)
            if as_target:
                z_NP = model.network.encode(cells.x_MG.repeat(n, 1), target_N, draw=True)
            else:
                z_NP = model.network.encode(cells.x_MG, cells.b_M, draw=True).repeat(n, 1)
            xhat_NG = model.network.decode(z_NP, target_N, draw=True)
            mean_TDG[block.numpy(), draw] = xhat_NG.unflatten(0, (n, -1)).mean(1).numpy() * model.scale.span_G
    return mean_TDG


def _labels(adata: AnnData, key: str | None) -> np.ndarray:
    """Give each cell's label as text; missing ones, which no table counts, as an empty string."""
    if key is None:
        return np.full(adata.n_obs, ALL, dtype=object)
    named = adata.obs[key].astype(object).where(adata.obs[key].notna(), "")
    return np.asarray(named.astype(str), dtype=object)


def _names(label: np.ndarray) -> list[str]:
    return sorted(set(label) - {""})


def _mean(x_NG: Any, rows: np.ndarray) -> np.ndarray:
    if not len(rows):
        return np.full(x_NG.shape[1], np.nan)
    return np.asarray(x_NG[rows].mean(axis=0), dtype=np.float64).ravel()


def _correlation(a_G: np.ndarray, b_G: np.ndarray) -> float:
    if not (np.isfinite(a_G).all() and np.ptp(a_G) > 0 and np.ptp(b_G) > 0):
        return float("nan")
    return float(pearsonr(a_G, b_G).statistic)


def _slope(a_G: np.ndarray, b_G: np.ndarray) -> float:
    return float(a_G @ b_G / (b_G @ b_G)) if b_G.any() else float("nan")


def _average(values: list[float]) -> float:
    finite = [v for v in values if np.isfinite(v)]
    return float(np.mean(finite)) if finite else float("nan")
