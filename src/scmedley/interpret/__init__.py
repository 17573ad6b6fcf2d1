"""What a model or the cells say: held-out check, batch shifts, effects of a condition, images of cells, clusters."""

from scmedley.interpret import collapse
from scmedley.interpret.batch_effects import batch_effects
from scmedley.interpret.check import counterfactual_check
from scmedley.interpret.clusters import cluster_names, cluster_table, describe_clusters, tree_table
from scmedley.interpret.composition import composition
from scmedley.interpret.condition_effects import condition_effects
from scmedley.interpret.genomap import genomap_of
from scmedley.interpret.markers import markers
from scmedley.interpret.panel import Panel, panel
from scmedley.interpret.sample_map import sample_association, sample_columns, sample_map, sample_matrix
from scmedley.interpret.samples import sample_distances
from scmedley.interpret.shifts import batch_distances, gene_shifts, interval_coverage
from scmedley.interpret.variance import variance_split

__all__ = [
    "Panel",
    "batch_distances",
    "batch_effects",
    "cluster_names",
    "cluster_table",
    "collapse",
    "composition",
    "condition_effects",
    "counterfactual_check",
    "describe_clusters",
    "gene_shifts",
    "genomap_of",
    "interval_coverage",
    "markers",
    "panel",
    "sample_association",
    "sample_columns",
    "sample_distances",
    "sample_map",
    "sample_matrix",
    "tree_table",
    "variance_split",
]
