"""Scores of an embedding: batch leakage and preserved biology, each with its value by chance.

``scores`` returns a table for an AnnData. The metrics and probes take arrays and return numbers.
``denoising`` scores a denoised matrix by molecules that were held out.
Codes are integers per cell, -1 where the value is missing.
"""

from scmedley.clusters import find as clusters
from scmedley.data.neighbors import Neighbors, nearest
from scmedley.evaluate.agreement import ari, completeness, homogeneity, kmeans_clusters, nmi
from scmedley.evaluate.calibration import expected_calibration_error, novelty_auroc
from scmedley.evaluate.classify import Classified, classify, composition, donor_accuracy, target_table
from scmedley.evaluate.denoising import denoising, knn_smoothed, low_rank, split_counts
from scmedley.evaluate.label_accuracy import label_accuracy
from scmedley.evaluate.lisi import lisi, scaled_clisi, scaled_ilisi
from scmedley.evaluate.metrics import asw, bras, calinski_harabasz, inverse_davies_bouldin, silhouettes
from scmedley.evaluate.probes import (
    Leak,
    batch_leak,
    batch_leaks,
    knn_accuracy,
    knn_probe,
    label_leak,
    logistic_probe,
    network_probe,
)
from scmedley.evaluate.scores import scores
from scmedley.evaluate.statistics import donor_test, t_interval

__all__ = [
    "Classified",
    "Leak",
    "Neighbors",
    "ari",
    "asw",
    "batch_leak",
    "batch_leaks",
    "bras",
    "calinski_harabasz",
    "classify",
    "clusters",
    "completeness",
    "composition",
    "denoising",
    "donor_accuracy",
    "donor_test",
    "expected_calibration_error",
    "homogeneity",
    "inverse_davies_bouldin",
    "kmeans_clusters",
    "knn_accuracy",
    "knn_probe",
    "knn_smoothed",
    "label_accuracy",
    "label_leak",
    "lisi",
    "logistic_probe",
    "low_rank",
    "nearest",
    "network_probe",
    "nmi",
    "novelty_auroc",
    "scaled_clisi",
    "scaled_ilisi",
    "scores",
    "silhouettes",
    "split_counts",
    "t_interval",
    "target_table",
]
