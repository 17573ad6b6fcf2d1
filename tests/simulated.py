"""Counts of several batches, drawn from a model whose true shifts between batches are known.

log mean = log depth + base of the gene + type + batch + type by batch; counts are negative binomial. How far these
spread was measured on the shipped and other public sets: across donors or chemistries, not across technologies.

Shapes: N cells, G genes, K labels, B batches.
"""

import numpy as np
import pandas as pd
from anndata import AnnData

PLENTY = 4000  # cells of each pair that the truth is a mean of: its error is a tenth of that of 40 cells


def simulated(
    n_cells: int = 1500,
    n_genes: int = 300,
    n_labels: int = 3,
    n_batches: int = 5,
    *,
    depth: float = 1500.0,
    interaction: float = 0.15,
    seed: int = 0,
) -> tuple[AnnData, np.ndarray]:
    """Return cells, and the true mean of log1p CP10k of each label in each batch: K x B x G."""
    rng = np.random.default_rng(seed)
    base_G = rng.normal(0, 1.3, n_genes)
    type_KG = rng.normal(0, 1, (n_labels, n_genes)) * rng.choice([0.3, 1.2], n_genes, p=[0.7, 0.3])
    batch_BG = rng.standard_t(3, (n_batches, n_genes)) * 0.2
    both_KBG = rng.normal(0, interaction, (n_labels, n_batches, n_genes))
    dispersion_G = rng.lognormal(np.log(0.2), 1, n_genes)
    log_depth_B = np.log(depth) + rng.normal(0, 0.3, n_batches)
    log_share_KBG = base_G + type_KG[:, None] + batch_BG + both_KBG
    log_share_KBG -= np.log(np.exp(log_share_KBG).sum(axis=2, keepdims=True))

    def counts(label_N: np.ndarray, batch_N: np.ndarray) -> np.ndarray:
        log_depth_N = log_depth_B[batch_N] + rng.normal(0, 0.5, len(label_N))
        mean_NG = np.exp(log_depth_N[:, None] + log_share_KBG[label_N, batch_N])
        gamma_NG = rng.gamma(1 / dispersion_G, dispersion_G, mean_NG.shape)
        return rng.poisson(mean_NG * gamma_NG).astype(np.float32)

    truth_KBG = np.empty((n_labels, n_batches, n_genes))
    for k, b in np.ndindex(n_labels, n_batches):
        x_NG = counts(np.full(PLENTY, k), np.full(PLENTY, b))
        x_NG = x_NG[x_NG.sum(1) > 0]
        truth_KBG[k, b] = np.log1p(10_000 * x_NG / x_NG.sum(1, keepdims=True)).mean(0)
    share_BK = rng.dirichlet(np.full(n_labels, 8.0), n_batches)
    batch_N = rng.integers(n_batches, size=n_cells)
    label_N = np.array([rng.choice(n_labels, p=share_BK[b]) for b in batch_N])
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical.from_codes(batch_N, [f"b{b}" for b in range(n_batches)]),
            "cell_type": pd.Categorical.from_codes(label_N, [f"type{k}" for k in range(n_labels)]),
        },
        index=[f"cell{i}" for i in range(n_cells)],
    )
    genes = pd.DataFrame(index=[f"g{i}" for i in range(n_genes)])
    return AnnData(counts(label_N, batch_N), obs=obs, var=genes), truth_KBG
