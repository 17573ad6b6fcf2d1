"""Experiments: many fits of several methods, over cross-validation folds and random seeds, in one table.

``config`` defines the comparison, ``task`` one fit, ``fit`` runs it, ``grid`` runs all of them (resumable, in
parallel), ``tables`` joins the results, ``page`` writes the report, ``tune`` searches settings.
"""

from scmedley.experiment.config import BASIC, Experiment, read_config

__all__ = ["BASIC", "Experiment", "read_config"]
