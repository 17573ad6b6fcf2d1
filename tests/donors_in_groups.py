"""Counts of donors under conditions with known effects, for the tests of effects and of composition."""

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

SPREAD = 0.3  # of the donors, natural logarithm


def donors_in_groups(
    n_donors: int = 8,
    n_genes: int = 60,
    n_changed: int = 0,
    *,
    paired: bool = False,
    cells: tuple[int, int] = (20, 60),
    change: float = 1.0,
    seed: int = 0,
) -> AnnData:
    """Return cells of two types; the first ``n_changed`` genes change in type B alone (log2), half of them down.

    Donors are paired, or the first half is "ctrl" and the other half "stim". Every donor has a level of its own in
    each gene, and so has every sample.
    """
    rng = np.random.default_rng(seed)
    base_G = 0.5 + rng.lognormal(0, 1, n_genes)  # all are tested
    donor_DG = rng.normal(0, SPREAD, (n_donors, n_genes))
    change_G = np.zeros(n_genes)
    change_G[:n_changed] = change * np.log(2) * np.where(np.arange(n_changed) % 2, -1, 1)
    parts, obs = [], []
    for d in range(n_donors):
        for condition in ("ctrl", "stim") if paired else (("ctrl", "stim")[d >= n_donors // 2],):
            sample_G = donor_DG[d] + rng.normal(0, SPREAD, n_genes)
            for kind in ("A", "B"):
                n = rng.integers(*cells, endpoint=True)
                log_G = sample_G + change_G * (condition == "stim" and kind == "B")
                depth_N = rng.lognormal(0, 0.4, n)
                mean_NG = base_G * np.exp(log_G) * depth_N[:, None] * rng.gamma(4, 1 / 4, (n, n_genes))
                parts.append(rng.poisson(mean_NG))
                obs.append(pd.DataFrame({"donor": f"d{d}", "condition": condition, "type": kind}, range(n)))
    table = pd.concat(obs, ignore_index=True)
    table.index = [f"c{i}" for i in range(len(table))]
    genes = pd.DataFrame(index=[f"g{i}" for i in range(n_genes)])
    return AnnData(csr_matrix(np.vstack(parts).astype(np.float32)), table.astype("category"), genes)
