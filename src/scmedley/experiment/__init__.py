"""The same way of the data walked many times: folds, methods and seeds, in one table.

``config`` says what is compared, ``task`` does one fit, ``grid`` all of them (resumable, in parallel),
``tables`` puts the results side by side.
"""

from scmedley.experiment.config import BASIC, Experiment, read_config

__all__ = ["BASIC", "Experiment", "read_config"]
