"""Every name under which scMedley stores something in an AnnData, once."""

from typing import Literal

COUNTS = "counts"  # layers: raw counts
LOGNORM = "log1p_cp10k"  # layers: log1p of counts per 10,000 (nats)
HVG = "highly_variable"  # var: scanpy's flag
SPLIT = "scmedley_split"  # obs: "train", "validation" or "test"

FIXED = "X_scmedley_fixed"  # obsm: cells x latent, what is common to all batches
RANDOM = "X_scmedley_random"  # obsm: cells x latent, what the batch adds
RANDOM_MASKED = "X_scmedley_random_masked"  # obsm: the same cells, encoded without being told their batch
AUTOENCODER = "X_scmedley_autoencoder"  # obsm: cells x latent, of the plain autoencoder
NULL = "X_scmedley_random_null"  # obsm: the same network trained on permuted batch labels
NULL_MASKED = "X_scmedley_random_null_masked"  # obsm: that one, not told the permuted batch
TARGET = "counterfactual_batch"  # obs of a counterfactual: the batch that the row is shown in
PERMUTED = "scmedley_permuted_batch"  # obs: batches permuted within labels, those of the null

PCA = "X_scmedley_pca"  # obsm: principal components, fitted on the training cells

UNS = "scmedley"  # uns: config, versions, seed, keys


def umap(embedding: str) -> str:
    """Give the obsm key of an embedding's UMAP: ``X_scmedley_fixed`` to ``X_umap_scmedley_fixed``."""
    return "X_umap_" + embedding.removeprefix("X_")


ValueKind = Literal["auto", "counts", "log1p", "log2", "log10"]
