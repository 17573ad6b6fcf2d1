"""From counts to what the models read: filters, log1p CP10k."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix, issparse, vstack

from scmedley import keys
from scmedley.checks import check, check_seed
from scmedley.errors import ScmedleyError, listed
from scmedley.inplace import settle, subset
from scmedley.overlap import as_categories
from scmedley.pp.genes import select_genes
from scmedley.pp.split import store_split
from scmedley.values import (
    TARGET_SUM,
    Checked,
    check_unique,
    find_values,
    kind_of_values,
    log1p_cp10k,
    matrix,
    rescaled,
    tidy,
    totals,
)

DEEPER = 3  # times the median counts per cell of another batch, from which on it is warned of
_NEGATIVE = (
    "{where} has negative values: scaled or centred data cannot be used. Give raw counts (in X or "
    "layers['counts']) or log1p-normalised values."
)
_BLOCK = 20_000_000  # values of a backed file that are read in one go


def prepare(
    adata: AnnData,
    batch_key: str,
    *,
    label_key: str | None = None,
    n_top_genes: int = 3000,
    min_genes: int = 10,
    min_cells: int = 3,
    seed: int = 0,
) -> Checked:
    """Check, filter, normalise and split ``adata`` in place, and flag its highly variable genes.

    ``X`` keeps its values. ``layers["counts"]`` holds a copy of the counts (float32; a copy, so that
    ``scanpy.pp.log1p(adata)`` afterwards leaves it alone), ``layers["log1p_cp10k"]`` the normalised values.
    Data that are log-normalised already get no counts layer; where every cell has the same total, but not 10,000
    (scanpy's default is the median of the cells' totals), they are brought to 10,000.
    ``obs["scmedley_split"]`` says which cells train, validate and test (a column of that name is kept); the
    highly variable genes are chosen on the training cells. A view becomes an AnnData of its own.

    Parameters
    ----------
    adata
        Cells x genes, in memory: counts or log-normalised values in ``layers["counts"]``, ``X`` or ``raw``.
    batch_key, label_key
        ``obs`` columns; they become categorical, without unused categories.
    n_top_genes
        Highly variable genes to flag in ``var["highly_variable"]``; all genes where there are not more.
    min_genes
        Cells with fewer genes found are removed.
    min_cells
        Genes found in fewer of the cells that stay are removed.
    seed
        Seed of the split.

    Returns
    -------
    Checked
        Which matrix was used, what it held, and the warnings for the report.

    Raises
    ------
    ScmedleyError
        As :func:`scmedley.checks.check` does; scaled or centred data; nothing left after the filters; fewer
        than two batches left; all cells identical; a backed file; a setting out of range. What is found
        only after the filters leaves ``adata`` filtered.
    """
    _check_settings(adata, n_top_genes, min_genes, min_cells)
    check_seed(seed)
    checked = check(adata, batch_key, label_key)
    if checked.values == "other":
        raise ScmedleyError(_NEGATIVE.format(where=checked.where))
    settle(adata)
    adata.obs_names_make_unique()
    for key in filter(None, (batch_key, label_key)):
        adata.obs[key] = as_categories(adata.obs[key])
    before = adata.shape
    batches_before = adata.obs[batch_key].cat.categories

    source = matrix(adata, checked.where)
    cells, genes = _passing(source, min_genes, min_cells)
    total_N = totals(source)[cells]  # of all genes, as in cells that come to the fitted model later
    source = _subset(adata, source, checked.where, cells, genes)
    for key in filter(None, (batch_key, label_key)):
        adata.obs[key] = adata.obs[key].cat.remove_unused_categories()
    more = _check_filtered(adata, source, batch_key, batches_before, min_genes)

    if checked.values == "counts":
        adata.layers[keys.COUNTS] = source.copy() if checked.where == "X" else source
        adata.layers[keys.LOGNORM] = log1p_cp10k(source, total_N)
        more += _depth(total_N, adata.obs[batch_key])
    else:
        if keys.COUNTS in adata.layers:  # left where X or raw.X was better: everyone would take it for counts
            del adata.layers[keys.COUNTS]
            more.append("layers['counts'] held no counts and was removed.")
        if checked.total not in (None, TARGET_SUM):
            adata.layers[keys.LOGNORM] = rescaled(source, checked.total)
            more.append(
                f"{checked.where} is log-normalised to {checked.total:,.6g} counts per cell; "
                f"layers[{keys.LOGNORM!r}] holds it brought to {TARGET_SUM:,.0f}."
            )
        else:
            adata.layers[keys.LOGNORM] = source.copy() if checked.where == "X" else source
    store_split(adata, batch_key, label_key, seed)
    select_genes(adata, batch_key, n_top_genes)
    adata.uns[keys.UNS] = {
        **_ours(adata),
        "prepare": {
            "cells_before": before[0],
            "cells_after": adata.n_obs,
            "genes_before": before[1],
            "genes_after": adata.n_vars,
            "n_hvg": int(adata.var[keys.HVG].sum()),
            "values": checked.values,
            **_target_sums(checked),
        },
    }
    return replace(checked, warnings=checked.warnings + more)


def _depth(total_N: np.ndarray, batch: "pd.Series[Any]") -> list[str]:
    """Warn where batches differ much in counts per cell, which no logarithm of shares takes out."""
    medians = pd.Series(total_N, batch.index).groupby(batch, observed=True).median().sort_values()
    (low, *_, high), (least, *_, most) = medians.index, medians
    if most < DEEPER * least:
        return []
    return [
        f"Batches differ in sequencing depth: the median cell has {least:,.0f} counts in {low} and {most:,.0f} in "
        f"{high}. Log-normalised values differ for that alone, so a part of what is found between batches may be depth."
    ]


def log_normalised(adata: AnnData, genes: Sequence[str]) -> tuple[csr_matrix | np.ndarray, int]:
    """Give the values a fitted model reads, aligned by gene name.

    ``layers["log1p_cp10k"]`` where :func:`prepare` put it, else computed from counts, with all genes of the
    file in the size factor, or from log-normalised values, brought to 10,000 where all cells have one other
    total. Views and backed files work; the latter are read in blocks. ``adata`` stays as it is; the result may
    share its memory, so do not write to it.

    Parameters
    ----------
    adata
        Cells x genes.
    genes
        Names of the model's G genes, in its order.

    Returns
    -------
    x_NG : csr_matrix or ndarray of float32
        log1p of counts per 10,000; genes that ``adata`` lacks are 0.
    n_missing : int
        How many genes it lacks.

    Raises
    ------
    ScmedleyError
        Gene names not unique; values that are not finite, or neither counts nor log-normalised.
    """
    check_unique(adata.var_names)
    layer = adata.layers.get(keys.LOGNORM)
    if layer is not None:
        if kind_of_values(layer, adata.obs_names, adata.var_names) == "other":
            raise ScmedleyError(_NEGATIVE.format(where=f"layers[{keys.LOGNORM!r}]"))
        return _aligned(tidy(layer), adata.var_names, genes)
    found = find_values(adata)
    if found.values == "other":
        raise ScmedleyError(_NEGATIVE.format(where=found.where))
    names = adata.raw.var_names if found.where == "raw.X" else adata.var_names
    x = (
        adata.raw.X
        if found.where == "raw.X"
        else adata.layers[keys.COUNTS]
        if found.where != "X"
        else adata.X
    )
    in_memory = issparse(x) or isinstance(x, np.ndarray)
    step = adata.n_obs if in_memory else max(1, _BLOCK // adata.n_vars)
    blocks, n_missing = [], 0
    for start in range(0, adata.n_obs, max(step, 1)):
        block = tidy(x if in_memory else x[start : start + step])
        total_N = totals(block)
        block, n_missing = _aligned(block, names, genes)
        if found.values == "counts":
            block = log1p_cp10k(block, total_N)
        elif found.total not in (None, TARGET_SUM):
            block = rescaled(block, found.total)
        blocks.append(block)
    if len(blocks) == 1:
        return blocks[0], n_missing
    return (vstack(blocks, format="csr") if issparse(blocks[0]) else np.vstack(blocks)), n_missing


def _target_sums(checked: Checked) -> dict[str, float]:
    """Give the counts per cell in ``layers["log1p_cp10k"]``, not a number where not known, and those given."""
    if checked.values == "counts":
        return {"target_sum": TARGET_SUM}
    if checked.total is None:
        return {"target_sum": float("nan"), "target_sum_given": float("nan")}
    return {"target_sum": TARGET_SUM, "target_sum_given": checked.total}


def _ours(adata: AnnData) -> dict[str, Any]:
    """Give what an earlier step kept in ``uns``, unless that key is somebody else's."""
    kept = adata.uns.get(keys.UNS)
    return dict(kept) if isinstance(kept, dict) else {}


def _check_settings(
    adata: AnnData,
    n_top_genes: int,
    min_genes: int,
    min_cells: int,
) -> None:
    if adata.isbacked:
        raise ScmedleyError(
            f"{adata.filename} is open on disk. Read it with adata = adata.to_memory() first."
        )
    for name, value, least in (
        ("n_top_genes", n_top_genes, 1),
        ("min_genes", min_genes, 0),
        ("min_cells", min_cells, 0),
    ):
        if value < least:
            raise ScmedleyError(f"{name} is {value}; give {least} or more.")


def _passing(x: csr_matrix | np.ndarray, min_genes: int, min_cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Give masks of the cells, then of the genes in these cells, that the filters keep."""
    found = x != 0
    cells = np.asarray(found.sum(axis=1)).ravel() >= min_genes
    if not cells.any():
        raise ScmedleyError(
            f"No cell has {min_genes} genes or more: nothing is left. Lower min_genes, or look at the file."
        )
    genes = np.asarray((found if cells.all() else found[cells]).sum(axis=0)).ravel() >= min_cells
    if not genes.any():
        raise ScmedleyError(
            f"No gene is found in {min_cells} cells or more: nothing is left. Lower min_cells, or look at "
            "the file."
        )
    return cells, genes


def _subset(
    adata: AnnData, source: csr_matrix | np.ndarray, where: str, cells: np.ndarray, genes: np.ndarray
) -> csr_matrix | np.ndarray:
    """Keep these cells and genes in ``adata`` and in the source matrix, which is copied once at most."""
    from_x = source is adata.X
    if where == "layers['counts']":
        del adata.layers[keys.COUNTS]  # put back by the caller: what is shared must not be copied twice
    adata.layers.pop(keys.LOGNORM, None)  # an earlier run's
    if not cells.all():
        subset(adata, cells)
        source = source if from_x else source[cells]
    source = adata.X if from_x else source
    if not genes.all():
        subset(adata, (slice(None), genes))
        source = source if from_x else source[:, genes]
    return adata.X if from_x else source


def _check_filtered(
    adata: AnnData, x: csr_matrix | np.ndarray, batch_key: str, batches_before: pd.Index, min_genes: int
) -> list[str]:
    batches = adata.obs[batch_key].cat.categories
    lost = [str(name) for name in batches_before if name not in batches]
    if len(batches) < 2:
        raise ScmedleyError(
            f"Only batch {batches[0]!r} has cells with {min_genes} genes or more; two batches are needed. "
            f"Lower min_genes, or look at {listed(lost)}."
        )
    if _all_same(x):
        raise ScmedleyError(
            f"All {adata.n_obs:,} cells have the same values in every gene: there is nothing to learn. "
            "Look at the step that wrote the file."
        )
    return [f"No cell of {listed(lost)} has {min_genes} genes or more, so they are gone."] if lost else []


def _all_same(x: csr_matrix | np.ndarray) -> bool:
    if isinstance(x, np.ndarray):
        return bool((x[1:] == x[:1]).all())
    lengths = np.diff(x.indptr)
    if (lengths != lengths[0]).any():
        return False
    shape = (x.shape[0], int(lengths[0]))
    return all(bool((a.reshape(shape) == a[: shape[1]]).all()) for a in (x.indices, x.data))


def _aligned(
    x: csr_matrix | np.ndarray, names: pd.Index, genes: Sequence[str]
) -> tuple[csr_matrix | np.ndarray, int]:
    """Give the columns called ``genes``, in that order; 0 for those that are missing."""
    if len(names) == len(genes) and (names == pd.Index(genes)).all():
        return x, 0
    place = names.get_indexer(pd.Index(genes))
    present = np.flatnonzero(place >= 0)
    n_missing = len(genes) - len(present)
    sub = x[:, place[present]]
    if isinstance(sub, np.ndarray):
        out = np.zeros((x.shape[0], len(genes)), dtype=np.float32)
        out[:, present] = sub
        return out, n_missing
    sub.sort_indices()
    shape = (x.shape[0], len(genes))
    return csr_matrix(
        (sub.data, present[sub.indices].astype(sub.indices.dtype), sub.indptr), shape=shape
    ), n_missing
