"""Interpretation of a fitted model: check on held-out cells, batch shifts and effects, images of cells."""

from scmedley.interpret.check import counterfactual_check
from scmedley.interpret.effects import batch_effects
from scmedley.interpret.genomap import genomap_of
from scmedley.interpret.panel import Panel, panel
from scmedley.interpret.shifts import batch_distances, gene_shifts, interval_coverage

__all__ = [
    "Panel",
    "batch_distances",
    "batch_effects",
    "counterfactual_check",
    "gene_shifts",
    "genomap_of",
    "interval_coverage",
    "panel",
]
