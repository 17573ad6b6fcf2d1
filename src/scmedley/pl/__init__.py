"""Plots: every function returns a matplotlib figure and leaves pyplot alone."""

from scmedley.pl.batch_shifts import batch_shifts
from scmedley.pl.clusters import cluster_shares, cluster_tree, markers
from scmedley.pl.donor_map import donor_map
from scmedley.pl.effects import composition, effect_dots, effect_heatmap, volcano
from scmedley.pl.embedding import embedding
from scmedley.pl.embeddings import embeddings
from scmedley.pl.genomap import counterfactuals, genomap, genomap_difference
from scmedley.pl.samples import sample_distances, sample_map
from scmedley.pl.scores import scores
from scmedley.pl.training import training
from scmedley.pl.variance import variance_genes, variance_split

__all__ = [
    "batch_shifts",
    "cluster_shares",
    "cluster_tree",
    "composition",
    "counterfactuals",
    "donor_map",
    "effect_dots",
    "effect_heatmap",
    "embedding",
    "embeddings",
    "genomap",
    "genomap_difference",
    "markers",
    "sample_distances",
    "sample_map",
    "scores",
    "training",
    "variance_genes",
    "variance_split",
    "volcano",
]
