"""Batches permuted within labels: the training data of a random-effects network's null."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from scmedley import keys
from scmedley.data.design import as_categories, column


def permute_batches(
    adata: AnnData, batch_key: str, label_key: str | None = None, *, seed: int = 0
) -> np.ndarray:
    """Store batches permuted within labels in ``obs["scmedley_permuted_batch"]``.

    A network that is fitted to them and scored with them is the null of a random-effects network: the
    composition is kept, and there is no batch effect to find. If the cells are split, batches are permuted
    within label and part, so that each batch keeps its number of training cells. Returns the row that the batch of
    each cell comes from.
    """
    rng = np.random.default_rng(seed)
    batch = as_categories(adata.obs[batch_key])
    label = (
        np.zeros(adata.n_obs) if label_key is None else as_categories(column(adata, label_key, "label")).codes
    )
    part = adata.obs[keys.SPLIT].astype(str).to_numpy() if keys.SPLIT in adata.obs else np.zeros(adata.n_obs)
    source_N = np.arange(adata.n_obs)
    for rows in pd.DataFrame({"label": label, "part": part}).groupby(["label", "part"]).indices.values():
        source_N[rows] = rng.permutation(rows)
    adata.obs[keys.PERMUTED] = pd.Categorical.from_codes(batch.codes[source_N], dtype=batch.dtype)
    return source_N
