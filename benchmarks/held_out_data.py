"""Data of the benchmark of held-out combinations: a group's cells in the target condition are held out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

import scmedley as sm
from scmedley.data.arrays import totals
from scmedley.data.evidence import TARGET_SUM

if TYPE_CHECKING:
    from anndata import AnnData

GROUP, CONDITION, SOURCE, TARGET = "group", "condition", "source", "target"
SHARE = "share"  # of a cell's counts that are of the genes of the file
COUNTS = "raw"  # layer, for scVI
LEAST = 10  # cells of a group in each condition


@dataclass(frozen=True)
class Task:
    """A data set, and which of its cells are held out.

    Attributes
    ----------
    file
        In the data folder.
    group, treated
        Column whose treated cells are held out in turn, and the treated condition of ``obs["condition"]``.
    total
        Column of a cell's total count, for files with a choice of genes; empty: the total of the file's genes.
    rivals
        Whether other packages are scored too.
    """

    file: str
    group: str
    treated: str
    total: str = ""
    rivals: bool = False


TASKS = {
    "glioblastoma": Task(
        "glioblastoma_panobinostat_5patients_300g.h5ad", "donor", "panobinostat", rivals=True
    ),
    "kang_3donors": Task("kang_ifnb_3donors_9517_100g.h5ad", "cell_type", "stim", "total_umi"),
    "kang_donors": Task("kang_ifnb_3donors_9517_100g.h5ad", "donor", "stim", "total_umi"),
    "kang_2donors": Task("kang_ifnb_2donors_1556.h5ad", "cell_type", "stim"),
}


def read(task: Task, folder: Path) -> AnnData:
    """Return the cells of a task: X is log1p CP10k; ``obs``: group, and condition (source or target)."""
    from anndata import AnnData

    adata = sm.read(folder / task.file)
    counts = csr_matrix(adata.X, dtype=np.float64)
    total_N = adata.obs[task.total].to_numpy(float) if task.total else totals(counts)
    x_NG = csr_matrix(counts.multiply(TARGET_SUM / total_N[:, None])).log1p().astype(np.float32)
    treated_N = (adata.obs["condition"] == task.treated).to_numpy()
    obs = pd.DataFrame(
        {
            GROUP: pd.Categorical(adata.obs[task.group].astype(str)),
            CONDITION: pd.Categorical(np.where(treated_N, TARGET, SOURCE), categories=[SOURCE, TARGET]),
            SHARE: totals(counts) / total_N,
        },
        index=adata.obs_names,
    )
    return AnnData(x_NG, obs=obs, var=adata.var[[]], layers={COUNTS: counts.astype(np.float32)})


def groups(obs: pd.DataFrame) -> list[str]:
    """Return the groups that have at least ``LEAST`` cells in both conditions."""
    table = pd.crosstab(obs[GROUP], obs[CONDITION])
    if SOURCE not in table or TARGET not in table:
        return []
    return [str(name) for name in table.index[(table[[SOURCE, TARGET]] >= LEAST).all(axis=1)]]


def parts(adata: AnnData, group: str) -> tuple[AnnData, AnnData, AnnData]:
    """Return the training cells, and the source and the held-out cells of a group."""
    of_group = (adata.obs[GROUP] == group).to_numpy()
    treated = (adata.obs[CONDITION] == TARGET).to_numpy()
    return adata[~(of_group & treated)].copy(), adata[of_group & ~treated].copy(), adata[of_group & treated]


def mean(adata: AnnData) -> np.ndarray:
    """Return the mean of each gene."""
    return np.asarray(adata.X.astype(np.float64).mean(axis=0)).ravel()
