"""Write cells that were prepared in memory to a store, for tests that need one quickly."""

from pathlib import Path

import numpy as np
from anndata import AnnData

from scmedley import keys
from scmedley.data.arrays import tidy, totals_of_cp10k, without_zeros
from scmedley.io.store import StoreWriter, clear, unfinished


def write_store(adata: AnnData, folder: str | Path) -> None:
    """Write the highly variable genes of prepared cells to a store, as ``prepare_store`` would.

    Totals of whole counts are rounded: normalised values, from which they are known, have rounding errors.
    """
    genes = np.flatnonzero(adata.var[keys.HVG].to_numpy(dtype=bool))
    has_counts = keys.COUNTS in adata.layers
    logs_NG = tidy(adata.layers[keys.LOGNORM])
    values_NG = tidy(adata.layers[keys.COUNTS]) if has_counts else logs_NG
    x_NG = without_zeros(values_NG[:, genes])
    whole = has_counts and not (x_NG.data % 1).any()
    kind = "uint8" if whole and x_NG.max() < 256 else "float32"
    with unfinished(folder) as part:
        clear(part)
        with StoreWriter(folder, part, len(genes), kind, has_counts) as writer:
            size_N = totals_of_cp10k(values_NG, logs_NG) if has_counts else None
            writer.append(x_NG, np.rint(size_N) if whole else size_N, size_N)
            writer.finish(AnnData(obs=adata.obs, var=adata.var.iloc[genes], uns=dict(adata.uns)))
