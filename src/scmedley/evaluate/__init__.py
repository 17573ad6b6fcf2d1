"""Scores of an embedding: what is left of the batch, what is kept of the biology, each with its chance.

``scores`` is the table for an AnnData; the metrics and probes beneath take arrays and give numbers.
Codes are integers per cell, -1 where the value is missing.
"""

from scmedley.evaluate.counterfactual import counterfactual_check, gene_shifts
from scmedley.evaluate.metrics import asw, calinski_harabasz, inverse_davies_bouldin, silhouettes
from scmedley.evaluate.neighbors import Neighbors, nearest
from scmedley.evaluate.peers import PEERS, embed_peer
from scmedley.evaluate.probes import Leak, batch_leak, knn_accuracy, knn_probe
from scmedley.evaluate.scores import permute_batches, scores

__all__ = [
    "PEERS",
    "Leak",
    "Neighbors",
    "asw",
    "batch_leak",
    "calinski_harabasz",
    "counterfactual_check",
    "embed_peer",
    "gene_shifts",
    "inverse_davies_bouldin",
    "knn_accuracy",
    "knn_probe",
    "nearest",
    "permute_batches",
    "scores",
    "silhouettes",
]
