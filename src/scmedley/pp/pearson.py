"""Analytic Pearson residuals of the chosen genes, in blocks of cells."""

import numpy as np
from anndata import AnnData

from scmedley import keys
from scmedley.data.reader import Reader
from scmedley.data.scale import Scale
from scmedley.errors import ScmedleyError


def pearson_residuals(adata: AnnData, rows: slice | np.ndarray | None = None) -> np.ndarray:
    """Return analytic Pearson residuals of the highly variable genes (Lause et al. 2021), cells x genes, float32.

    They are those of ``scanpy.experimental.pp.normalize_pearson_residuals`` for all genes, then restricted to the
    chosen ones: the cells' totals are over all genes. Each gene's share of all counts is that of the training cells
    (``obs["scmedley_split"]``), and residuals are clipped at the root of their number. Theta is 100. Only the
    residuals that are asked for are computed, so ``rows`` allows any number of cells.

    Parameters
    ----------
    adata
        Prepared cells with counts (:func:`scmedley.pp.prepare`).
    rows
        Which cells; all by default.

    Raises
    ------
    ScmedleyError
        Cells that are not prepared, or have no counts.
    """
    if keys.HVG not in adata.var or keys.SPLIT not in adata.obs:
        raise ScmedleyError("adata is not prepared. Run sm.pp.prepare(adata, batch_key=...) first.")
    reading = Reader.learn(adata, "counts")
    train = np.flatnonzero(adata.obs[keys.SPLIT] == "train")
    if not len(train):
        raise ScmedleyError(
            f"obs[{keys.SPLIT!r}] has no training cell. Delete this column and prepare again."
        )
    assert reading.total_N is not None
    scale = Scale.fit(reading.log1p_NG, "pearson", reading.total_N, train)
    chosen = slice(None) if rows is None else rows
    return scale.transform(reading.log1p_NG[chosen], reading.total_N[chosen])
