"""Highly variable genes, chosen on the training cells.

Shapes: N cells, B groups of cells, G genes.
"""

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scmedley import keys
from scmedley.data.blocks import slices
from scmedley.device import threads_kept
from scmedley.errors import ScmedleyError
from scmedley.keys import Method
from scmedley.pp.checks import FEW_CELLS
from scmedley.pp.gene_moments import GroupMoments


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
        (``scanpy.experimental``). Otherwise by the "seurat" dispersions of the normalised values
        (:mod:`scmedley.pp.gene_moments`), with the same result as ``scanpy.pp.highly_variable_genes``.
        ``"deepbid"``: flag ``n_top_genes`` of each batch, among genes found in at least 3 of its cells.

    Raises
    ------
    ScmedleyError
        No training cells, or no gene varies between them.
    """
    if takes_all(adata.n_vars, n_top_genes, method):
        adata.var[keys.HVG] = np.ones(adata.n_vars, dtype=bool)
        return
    group_N = gene_groups(adata.obs, batch_key)
    if method == "pearson":
        adata.var[keys.HVG] = _by_pearson_residuals(adata, group_N, n_top_genes)
        return
    moments = GroupMoments(int(group_N.max()) + 1, adata.n_vars)
    for rows in slices(adata.n_obs):
        moments.add(adata.layers[keys.LOGNORM][rows], group_N[rows])
    adata.var[keys.HVG] = moments.chosen(n_top_genes, method)


def takes_all(n_genes: int, n_top_genes: int, method: Method) -> bool:
    """Return whether all genes are flagged, without a look at their values."""
    return n_genes <= n_top_genes and method != "deepbid"


def gene_groups(obs: pd.DataFrame, batch_key: str | None) -> np.ndarray:
    """Return the number of each cell's group, within which genes are ranked; -1 for other than training cells.

    Groups are the batches. Those too small to rank genes are pooled; if the pool has too few cells, the smallest
    other batch joins it.

    Raises
    ------
    ScmedleyError
        There are no training cells.
    """
    train_N = (obs[keys.SPLIT] == "train").to_numpy()
    if not train_N.any():
        raise ScmedleyError(
            f"obs[{keys.SPLIT!r}] has no training cell left, so no genes can be chosen. Delete this column."
        )
    group_N = np.full(len(obs), -1, dtype=np.int64)
    group_N[train_N] = 0 if batch_key is None else _pooled(obs.loc[train_N, batch_key])
    return group_N


def _pooled(batch: "pd.Series[Any]") -> np.ndarray:
    sizes = batch.value_counts(ascending=True)
    sizes = sizes[sizes > 0]
    n_pooled = int((sizes < FEW_CELLS).sum())
    if n_pooled and sizes.iloc[:n_pooled].sum() < FEW_CELLS:
        n_pooled += 1
    pooled = set(sizes.index[:n_pooled])
    codes = {name: 0 if name in pooled else i + 1 for i, name in enumerate(sizes.index)}
    return np.unique(batch.map(codes).to_numpy(dtype=np.int64), return_inverse=True)[1]


def _by_pearson_residuals(adata: AnnData, group_N: np.ndarray, n_top_genes: int) -> np.ndarray:
    import scanpy as sc

    x_NG = adata.layers[keys.COUNTS]
    train_N = group_N >= 0
    groups = pd.Categorical(group_N[train_N])
    names = pd.RangeIndex(len(groups)).astype(str)
    cells = AnnData(
        x_NG if train_N.all() else x_NG[train_N], obs=pd.DataFrame({"group": groups}, index=names)
    )
    with threads_kept():
        found = sc.experimental.pp.highly_variable_genes(
            cells, n_top_genes=n_top_genes, batch_key="group", inplace=False
        )
    return np.asarray(found[keys.HVG], dtype=bool)
