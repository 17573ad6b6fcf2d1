"""Highly variable genes (scanpy's), chosen on the training cells.

Shapes: N cells, G genes.
"""

import warnings
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scmedley import keys
from scmedley.device import threads_kept
from scmedley.errors import ScmedleyError
from scmedley.keys import Method
from scmedley.pp.checks import FEW_CELLS

LEAST_CELLS = 3  # of a batch, in which a gene of DeepBID is found


def select_genes(adata: AnnData, batch_key: str | None, n_top_genes: int, method: Method = "log1p") -> None:
    """Flag the genes that vary most within the batches of the training cells, in ``var["highly_variable"]``.

    Parameters
    ----------
    adata
        Prepared cells: ``layers["log1p_cp10k"]``, ``obs["scmedley_split"]``.
    batch_key
        ``obs`` column of the batches. Genes are ranked within each; small batches are pooled. ``None``: all cells
        are one batch.
    n_top_genes
        Number of genes to flag; all if there are not more.
    method
        ``"pearson"``: rank genes by the variance of the Pearson residuals of ``layers["counts"]``
        (``scanpy.experimental``). Otherwise by scanpy's "seurat" dispersions of the normalised values.
        ``"deepbid"``: flag ``n_top_genes`` of each batch, among genes found in at least 3 of its cells.

    Raises
    ------
    ScmedleyError
        No training cells, or no gene varies between them.
    """
    train = (adata.obs[keys.SPLIT] == "train").to_numpy()
    adata.var[keys.HVG] = _highly_variable(adata, batch_key, n_top_genes, train, method)


def _highly_variable(
    adata: AnnData, batch_key: str | None, n_top_genes: int, train: np.ndarray, method: Method
) -> np.ndarray:
    if adata.n_vars <= n_top_genes and method != "deepbid":
        return np.ones(adata.n_vars, dtype=bool)
    if not train.any():
        raise ScmedleyError(
            f"obs[{keys.SPLIT!r}] has no training cell left, so no genes can be chosen. Delete this column."
        )
    x = adata.layers[keys.COUNTS if method == "pearson" else keys.LOGNORM]
    all_N = pd.Series(0, adata.obs_names, dtype="category")
    groups = _groups((all_N if batch_key is None else adata.obs[batch_key])[train])
    cells = AnnData(
        x if train.all() else x[train], obs=pd.DataFrame({"group": groups}, index=groups.index.astype(str))
    )
    flags = (
        _union(cells, n_top_genes)
        if method == "deepbid"
        else _scanpy_flags(cells, n_top_genes, "group", method)
    )
    if flags is None:
        flags = _scanpy_flags(cells, n_top_genes, None, method)
    if flags is not None:
        return flags
    raise ScmedleyError(
        "No gene varies between the training cells, so none can be chosen. Check the input file."
    )


def _union(cells: AnnData, n_top_genes: int) -> np.ndarray | None:
    """Return the genes that are among the ``n_top_genes`` of any group; None if no group can rank them."""
    chosen = np.zeros(cells.n_vars, dtype=bool)
    for group in cells.obs["group"].cat.categories:
        own = AnnData(cells.X[(cells.obs["group"] == group).to_numpy()])
        found = np.flatnonzero(np.asarray((own.X != 0).sum(axis=0)).ravel() >= LEAST_CELLS)
        if len(found) > n_top_genes:
            flags = _scanpy_flags(own[:, found].copy(), n_top_genes, None, "log1p")
            found = found[flags] if flags is not None else found[:0]
        chosen[found] = True
    return chosen if chosen.any() else None


def _scanpy_flags(
    cells: AnnData, n_top_genes: int, batch_key: str | None, method: Method
) -> np.ndarray | None:
    """Return scanpy's flags; None if it cannot rank the genes because none varies in some group."""
    import scanpy as sc

    if method == "pearson":
        with threads_kept():
            found = sc.experimental.pp.highly_variable_genes(
                cells, n_top_genes=n_top_genes, batch_key=batch_key, inplace=False
            )
        return np.asarray(found[keys.HVG], dtype=bool)

    with warnings.catch_warnings(), threads_kept():
        # scanpy warns if some genes are constant within a batch; the others are still ranked.
        warnings.filterwarnings("ignore", message="`n_top_genes` > number of normalized dispersions")
        # In the smallest groups, scanpy divides by n - 1 = 0 and takes the logarithm of variances of 0.
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="scanpy")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="scanpy")  # of pandas 3.1
        try:
            table = sc.pp.highly_variable_genes(
                cells, n_top_genes=n_top_genes, flavor="seurat", batch_key=batch_key, inplace=False
            )
        except (ValueError, IndexError):  # pandas cannot bin, scanpy cannot rank, an empty set of dispersions
            return None
    return np.asarray(table[keys.HVG], dtype=bool)


def _groups(batch: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return the batches, with those too small to rank genes pooled.

    If the pool has too few cells, the smallest other batch joins it.
    """
    sizes = batch.value_counts(ascending=True)
    sizes = sizes[sizes > 0]
    n_pooled = int((sizes < FEW_CELLS).sum())
    if n_pooled and sizes.iloc[:n_pooled].sum() < FEW_CELLS:
        n_pooled += 1
    pooled = set(sizes.index[:n_pooled])
    codes = {name: 0 if name in pooled else i + 1 for i, name in enumerate(sizes.index)}
    return batch.map(codes).astype(int).astype("category")
