"""The names under which scMedley stores results in an AnnData, and the table of its embeddings.

Figures and pages read titles, order and wanted directions from here without importing PyTorch;
:mod:`scmedley.models.catalogue` links the embeddings to the models that compute them.
"""

from dataclasses import dataclass
from typing import Literal

COUNTS = "counts"  # layers: raw counts
LOGNORM = "log1p_cp10k"  # layers: log1p of counts per 10,000 (nats)
HVG = "highly_variable"  # var: scanpy's flag
BATCH = "scmedley_batch"  # obs: the combination of levels of each cell, with a design of several factors
SPLIT = "scmedley_split"  # obs: "train", "validation" or "test"
ON_MAP = "scmedley_on_map"  # obs: whether the UMAP was fitted to the cell; others are placed beside them

FIXED = "X_scmedley_fixed"  # obsm: cells x latent, what is common to all batches
RANDOM = "X_scmedley_random"  # obsm: cells x latent, what the batch adds
RANDOM_MASKED = "X_scmedley_random_masked"  # obsm: the same cells, encoded with their batch masked
VAE = "X_scmedley_vae"  # obsm: cells x latent, posterior mean of the variational autoencoder
DEEPBID = "X_scmedley_deepbid"  # obsm: cells x latent, posterior mean of DeepBID
CLUSTER = "scmedley_cluster"  # obs: cluster of each cell, "0" (the largest), "1", ...
MEMBERSHIP = "X_scmedley_membership"  # obsm: cells x clusters, memberships, which sum to 1
CLUSTERS = "scmedley_clusters"  # uns: evidence of the clusters and tree of their merges
AUTOENCODER = "X_scmedley_autoencoder"  # obsm: cells x latent, plain autoencoder
NULL = "X_scmedley_random_null"  # obsm: the same network trained on permuted batch labels
NULL_MASKED = (
    "X_scmedley_random_null_masked"  # obsm: the same cells, encoded with their permuted batch masked
)
TARGET = "counterfactual_batch"  # obs of a counterfactual: its target batch
SEEN = "counterfactual_seen"  # obs of a counterfactual: whether the fit had cells with these levels
PERMUTED = "scmedley_permuted_batch"  # obs: batches permuted within labels, for the null

# obs of new cells, from Model.transfer: column of its table to name in obs
TRANSFERRED = {
    name: f"scmedley_{name}" for name in ("label", "probability", "mapping_confidence", "novelty", "assigned")
}
UNASSIGNED = "unassigned"  # instead of a label that is too uncertain

PCA = "X_scmedley_pca"  # obsm: principal components, fitted on the training cells
UNS = "scmedley"  # uns: config, versions, seed, keys
STORE = "store"  # in uns["scmedley"] of a run whose cells were prepared on disk: the folder of the store
DENOISED = "denoised"  # in uns["scmedley"] of a denoised matrix: its unit, and how it was computed

Wanted = Literal[-1, 0, 1]


@dataclass(frozen=True)
class Embedding:
    """An embedding in ``obsm``, and the wanted direction of its scores.

    Attributes
    ----------
    key
        In ``obsm``.
    title
        What figures and pages call it.
    batch, label
        1: higher scores by batch (by label) are better, -1: lower scores are better, 0: neither. Every score
        is higher where the groups separate better.
    null
        Key of the same network's embedding after training on permuted batches.
    """

    key: str
    title: str
    batch: Wanted = 0
    label: Wanted = 0
    null: str = ""

    def wanted(self, of: str) -> Wanted:
        """Return the wanted direction of its scores by ``of``, "batch" or "label"."""
        return {"batch": self.batch, "label": self.label}.get(of, 0)


# By key, in the order of tables and pages.
EMBEDDINGS: dict[str, Embedding] = {
    embedding.key: embedding
    for embedding in (
        Embedding(FIXED, "Fixed effects", batch=-1, label=1),
        Embedding(PCA, "PCA", batch=-1, label=1),
        Embedding(RANDOM, "Random effects", batch=1, null=NULL),
        Embedding(RANDOM_MASKED, "Random effects, batch masked", batch=1, null=NULL_MASKED),
        Embedding(NULL, "Random effects, permuted batches"),
        Embedding(NULL_MASKED, "Random effects, permuted and masked"),
        Embedding(VAE, "Variational autoencoder", batch=-1, label=1),
        Embedding(DEEPBID, "DeepBID", batch=-1, label=1),
        Embedding(AUTOENCODER, "Plain autoencoder", batch=-1, label=1),
    )
}
MAPS = (FIXED, RANDOM, PCA)  # drawn by default, and by a run of the mixed effects


def embedding(key: str) -> Embedding:
    """Return the entry of an embedding; for an embedding of another program the title is its key."""
    return EMBEDDINGS.get(key, Embedding(key, key))


def title(key: str) -> str:
    """Return the title of an embedding in figures and pages."""
    return embedding(key).title


def umap(embedding: str) -> str:
    """Return the obsm key of an embedding's UMAP: ``X_scmedley_fixed`` to ``X_umap_scmedley_fixed``."""
    return "X_umap_" + embedding.removeprefix("X_")


ValueKind = Literal["auto", "counts", "log1p", "log2", "log10"]
Method = Literal["log1p", "pearson", "counts", "deepbid"]  # of preparation
Reads = Literal["log1p", "counts"]  # what a network reads: normalised values alone, or counts too
ExportFormat = Literal["cellbrowser", "vitess", "vitessce", "multiqc", "parquet"]  # of scmedley export
