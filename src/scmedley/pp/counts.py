"""Preparation of counts for the models: filters, log1p CP10k, choice of genes."""

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

from scmedley import keys
from scmedley.data.arrays import Matrix
from scmedley.data.blocks import blocks
from scmedley.data.conversion import NEGATIVE
from scmedley.data.design import as_categories
from scmedley.data.evidence import TARGET_SUM, Checked
from scmedley.data.factors import Factors
from scmedley.data.features import genes_alone
from scmedley.data.inplace import become, ensure_not_view, subset
from scmedley.data.matrix import COUNTS_LAYER, counted, normalised
from scmedley.errors import ScmedleyError, check_seed, listed
from scmedley.keys import Method, ValueKind
from scmedley.pp.checks import check
from scmedley.pp.genes import select_genes
from scmedley.pp.prepared import store_batches
from scmedley.pp.split import store_split

TOP_GENES, PER_BATCH = 3000, 1000  # highly variable genes, of all cells and of each batch
NO_COUNTS = f"{COUNTS_LAYER} did not hold counts and was removed."
DEEPER = 3  # ratio of the batches' median counts per cell that gives a warning


def prepare(
    adata: AnnData,
    batch_key: str | None,
    *,
    label_key: str | None = None,
    n_top_genes: int | None = None,
    min_genes: int = 10,
    min_cells: int = 3,
    values: ValueKind = "auto",
    seed: int = 0,
    method: Method = "log1p",
) -> Checked:
    """Check, filter, normalise and split ``adata`` in place, and flag its highly variable genes.

    ``X`` keeps its values. ``layers["counts"]`` holds a copy of the counts (float32), which a later
    ``scanpy.pp.log1p(adata)`` does not change. ``layers["log1p_cp10k"]`` holds the normalised values. Data
    that are already log-normalised get no counts layer. Logarithms to base 2 or 10 become natural ones. If
    all cells have the same total, but not 10,000 (scanpy's default is the median of the cells' totals),
    values are rescaled to 10,000. Totals of counts include all genes that were counted, also those of
    ``raw``. ``obs["scmedley_split"]`` holds the part of each cell: train, validation or test (an existing
    column is kept). Highly variable genes are chosen on the training cells. A view becomes an AnnData of its
    own.

    Parameters
    ----------
    adata
        Cells x genes, in memory: counts or log-normalised values in ``layers["counts"]``, ``X``, ``raw`` or
        another layer; :func:`scmedley.data.matrix.find_values` finds which to use.
    batch_key
        ``obs`` column of the batches; it becomes categorical, without unused categories. Without batches
        (``None``), only a model without them can be fitted: :class:`scmedley.VAE`. A formula of several factors
        stores the names of the combinations of its levels in ``obs["scmedley_batch"]``, which are then the batches.
    label_key
        ``obs`` column of the labels, such as cell types; it becomes categorical too. The split is stratified by it.
    n_top_genes
        Highly variable genes to flag in ``var["highly_variable"]``; all genes if there are not more. ``None``:
        3,000, or 1,000 of each batch if ``method="deepbid"``.
    min_genes
        Cells with fewer detected genes are removed.
    min_cells
        Genes detected in fewer of the remaining cells are removed.
    values
        Kind of the values. Default: detect it (``"auto"``). Else ``"counts"``, ``"log1p"``,
        ``"log2"`` or ``"log10"`` (of counts per total, plus 1).
    seed
        Random seed of the split.
    method
        ``"log1p"``: as above. ``"pearson"``: genes are those whose analytic Pearson residuals vary most
        (Lause et al. 2021); models with ``scale="pearson"`` compute the residuals of each minibatch from the
        counts, and :func:`scmedley.pp.pearson_residuals` returns them: a matrix of them, which is dense, is never
        stored. ``"counts"``: genes are those of ``"log1p"``, and no normalised layer is stored, for models of
        counts; new totals of the cells are those over the genes that are left. These two need counts. ``"deepbid"``:
        as ``"log1p"``, but genes are those of the paper of DeepBID, the union of ``n_top_genes`` of each batch.

    Returns
    -------
    Checked
        Which matrix was used, what it held, and the warnings for the report.

    Raises
    ------
    ScmedleyError
        As :func:`scmedley.pp.checks.check`; scaled or centred data; nothing left after the filters; fewer
        than two batches left; all cells identical; a backed file; a setting out of range; a method that needs
        counts, and there are none. Errors that are found after the filters leave ``adata`` filtered.
    """
    n_top_genes = check_settings(n_top_genes, min_genes, min_cells, method, seed)
    _check_cells(adata)
    factors = Factors.of(batch_key)
    batch_key = factors.batch_key
    store_batches(adata, factors)
    alone, left_out = genes_alone(adata)
    checked = usable(check(alone, batch_key, label_key, values), method)
    if alone is not adata:
        become(adata, alone)
    ensure_not_view(adata)
    batches_before = tidy_cells(adata, batch_key, label_key)
    before = adata.shape

    read, total_N, names = counted(adata, checked)
    n_counted = len(names)
    source = read if names.equals(adata.var_names) else read[:, names.get_indexer(adata.var_names)]
    del read  # a copy of all genes, which must not stay in memory
    cells, genes = _passing(source, min_genes, min_cells)
    total_N = total_N[cells]  # over all genes, as for new cells of a fitted model
    source = _subset(adata, source, checked.where, cells, genes)
    more = check_filtered(adata, _all_same(source), batch_key, label_key, batches_before, min_genes)

    more += _store_layers(adata, source, total_N, checked)
    if checked.values == "counts":
        more += [] if batch_key is None else depth(total_N, adata.obs[batch_key])
    store_split(adata, batch_key, label_key, seed)
    select_genes(adata, batch_key, n_top_genes, method)
    if method == "counts":
        del adata.layers[keys.LOGNORM]
    checked = note(adata, checked, label_key, method, before, n_counted)
    return replace(checked, warnings=[left_out] * bool(left_out) + checked.warnings + more)


def check_settings(n_top_genes: int | None, min_genes: int, min_cells: int, method: str, seed: int) -> int:
    """Return the number of genes to choose; raise if a setting is out of range."""
    if n_top_genes is None:
        n_top_genes = PER_BATCH if method == "deepbid" else TOP_GENES
    if method not in get_args(Method):
        raise ScmedleyError(f"method={method!r} must be one of {list(get_args(Method))}.")
    for name, value, least in (
        ("n_top_genes", n_top_genes, 1),
        ("min_genes", min_genes, 0),
        ("min_cells", min_cells, 0),
    ):
        if value < least:
            raise ScmedleyError(f"{name} is {value}; it must be {least} or more.")
    check_seed(seed)
    return n_top_genes


def usable(checked: Checked, method: Method) -> Checked:
    """Return the finding; raise if models cannot use these values, or not with this method."""
    if checked.values == "other":
        raise ScmedleyError(NEGATIVE.format(where=checked.where))
    if checked.values != "counts" and method in ("pearson", "counts"):
        raise ScmedleyError(
            f"method={method!r} needs counts, and {checked.where} holds log-normalised values. Put counts into "
            "layers['counts'], X or raw, or use method='log1p'."
        )
    return checked


def tidy_cells(adata: AnnData, batch_key: str | None, label_key: str | None) -> pd.Index | None:
    """Make names of cells unique, and batches and labels categorical; return the batches, if there are any."""
    adata.obs_names_make_unique()
    for key in filter(None, (batch_key, label_key)):
        adata.obs[key] = as_categories(adata.obs[key])
    return None if batch_key is None else adata.obs[batch_key].cat.categories


def note(
    adata: AnnData,
    checked: Checked,
    label_key: str | None,
    method: Method,
    before: tuple[int, int],
    n_counted: int,
) -> Checked:
    """Store in ``uns`` what the preparation did; return the finding with the reason completed."""
    if checked.values != "counts":
        checked = replace(checked, reason=checked.reason + _brought(checked))
    adata.uns[keys.UNS] = {
        **_ours(adata),
        "label_key": label_key or "",
        "prepare": {
            "method": method,
            "cells_before": before[0],
            "cells_after": adata.n_obs,
            "genes_before": before[1],
            "genes_after": adata.n_vars,
            "n_hvg": int(adata.var[keys.HVG].sum()),
            "values": _described(checked, n_counted),
            **_target_sums(checked),
        },
    }
    return checked


def _store_layers(adata: AnnData, source: Matrix, total_N: np.ndarray, checked: Checked) -> list[str]:
    """Store counts and log1p CP10k as layers of their own, not shared with another matrix; return warnings."""
    values_NG = normalised(source, total_N, checked)
    stored = [adata.X, *(layer for name, layer in adata.layers.items() if name != keys.COUNTS)]
    messages = []
    if checked.values == "counts":
        adata.layers[keys.COUNTS] = source.copy() if any(source is x for x in stored) else source
    elif keys.COUNTS in adata.layers:  # other code would read it as counts
        del adata.layers[keys.COUNTS]
        messages.append(NO_COUNTS)
    adata.layers[keys.LOGNORM] = values_NG.copy() if any(values_NG is x for x in stored) else values_NG
    return messages


def depth(total_N: np.ndarray, batch: "pd.Series[Any]") -> list[str]:
    """Return a warning if batches differ much in counts per cell: normalisation does not remove that."""
    medians = pd.Series(total_N, batch.index).groupby(batch, observed=True).median().sort_values()
    (low, *_, high), (least, *_, most) = medians.index, medians
    if most < DEEPER * least:
        return []
    return [
        f"Batches differ in sequencing depth: the median cell has {least:,.0f} counts in {low} and {most:,.0f} in "
        f"{high}. Log-normalised values differ because of this, so a part of the batch effects may be due to depth."
    ]


def _described(checked: Checked, n_counted: int) -> dict[str, Any]:
    """Return what was found, without unknown values: an h5ad cannot hold None."""
    about = {
        "where": checked.where,
        "kind": checked.kind,
        "base": checked.base,
        "total": checked.total,
        "genes": n_counted,
        "doubtful": checked.caution is not None,
        "reason": checked.reason,
    }
    return {key: value for key, value in about.items() if value is not None}


def _brought(checked: Checked) -> str:
    """Return a sentence on how log-normalised values were converted, for the reason: it is no warning."""
    stored = f" layers[{keys.LOGNORM!r}] holds"
    if checked.total not in (None, TARGET_SUM):
        return f"{stored} natural logarithms of {TARGET_SUM:,.0f} counts per cell instead of {checked.total:,.6g}."
    return f"{stored} natural logarithms." if checked.base not in (None, "log1p") else ""


def _target_sums(checked: Checked) -> dict[str, float]:
    """Return the total per cell in ``layers["log1p_cp10k"]`` and in the input, NaN if not known."""
    if checked.values == "counts":
        return {"target_sum": TARGET_SUM}
    if checked.total is None:
        return {"target_sum": float("nan"), "target_sum_given": float("nan")}
    return {"target_sum": TARGET_SUM, "target_sum_given": checked.total}


def _ours(adata: AnnData) -> dict[str, Any]:
    """Return what an earlier step stored in ``uns``; empty if the key holds something else."""
    kept = adata.uns.get(keys.UNS)
    return dict(kept) if isinstance(kept, dict) else {}


def _check_cells(adata: Any) -> None:
    if not isinstance(adata, AnnData):
        raise ScmedleyError(
            f"prepare takes an AnnData, not a {type(adata).__name__}. Convert a table with AnnData(table)."
        )
    if adata.isbacked:
        raise ScmedleyError(
            f"{adata.filename} is a backed file. If it fits in memory, load it with adata = adata.to_memory() first. "
            "Else prepare it in blocks: sm.pp.prepare_store(file, folder, batch_key)."
        )


def kept_cells(genes_N: np.ndarray, min_genes: int) -> np.ndarray:
    """Return which cells the filter keeps, by their numbers of detected genes."""
    cells = genes_N >= min_genes
    if not cells.any():
        raise ScmedleyError(
            f"No cell has {min_genes} genes or more, so no cell is left. Lower min_genes, or check the file."
        )
    return cells


def kept_genes(cells_G: np.ndarray, min_cells: int) -> np.ndarray:
    """Return which genes the filter keeps, by the numbers of kept cells in which they are detected."""
    genes = cells_G >= min_cells
    if not genes.any():
        raise ScmedleyError(
            f"No gene is found in {min_cells} cells or more, so no gene is left. Lower min_cells, or check the file."
        )
    return genes


def _passing(x: Matrix, min_genes: int, min_cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Return masks of the cells that the filters keep, and of the genes kept among these cells."""
    found_N = [np.asarray((x_NG != 0).sum(axis=1)).ravel() for _, x_NG in blocks(x)]
    cells = kept_cells(np.concatenate(found_N), min_genes)
    found_G = np.zeros(x.shape[1], dtype=np.int64)
    for rows, x_NG in blocks(x):
        kept_NG = x_NG if cells[rows].all() else x_NG[cells[rows]]
        found_G += np.asarray((kept_NG != 0).sum(axis=0)).ravel()
    return cells, kept_genes(found_G, min_cells)


def _subset(adata: AnnData, source: Matrix, where: str, cells: np.ndarray, genes: np.ndarray) -> Matrix:
    """Keep these cells and genes in ``adata`` and in the source matrix, which is copied once at most."""
    from_x = source is adata.X
    if where == COUNTS_LAYER:
        del adata.layers[keys.COUNTS]  # the caller stores it again; it must not be copied twice
    adata.layers.pop(keys.LOGNORM, None)  # of an earlier run
    if not cells.all():
        subset(adata, cells)
        source = source if from_x else source[cells]
    source = adata.X if from_x else source
    if not genes.all():
        subset(adata, (slice(None), genes))
        source = source if from_x else source[:, genes]
    return adata.X if from_x else source


def check_filtered(
    adata: AnnData,
    all_same: bool,
    batch_key: str | None,
    label_key: str | None,
    batches_before: pd.Index | None,
    min_genes: int,
) -> list[str]:
    """Remove unused categories after the filters; return warnings, and raise if nothing can be learnt."""
    for key in filter(None, (batch_key, label_key)):
        adata.obs[key] = adata.obs[key].cat.remove_unused_categories()
    lost, batches = [], None if batch_key is None else adata.obs[batch_key].cat.categories
    if batches is not None and batches_before is not None:
        lost = [str(name) for name in batches_before if name not in batches]
    if batches is not None and len(batches) < 2:
        raise ScmedleyError(
            f"Only batch {batches[0]!r} has cells with {min_genes} genes or more; two batches are needed. "
            f"Lower min_genes, or check the cells of {listed(lost)}."
        )
    if all_same:
        raise ScmedleyError(
            f"All {adata.n_obs:,} cells have the same values in every gene, so nothing can be learnt. "
            "Check the step that wrote the file."
        )
    return [f"No cell of {listed(lost)} has {min_genes} genes or more: they are removed."] if lost else []


def _all_same(x: csr_matrix | np.ndarray) -> bool:
    if isinstance(x, np.ndarray):
        return bool((x[1:] == x[:1]).all())
    lengths = np.diff(x.indptr)
    if (lengths != lengths[0]).any():
        return False
    shape = (x.shape[0], int(lengths[0]))
    return all(bool((a.reshape(shape) == a[: shape[1]]).all()) for a in (x.indices, x.data))
