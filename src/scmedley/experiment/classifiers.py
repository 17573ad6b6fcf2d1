"""What random forests read from the latents of one fold: cell type and donor-level targets."""

from pathlib import Path

import numpy as np
import pandas as pd

from scmedley import keys
from scmedley.errors import ScmedleyError
from scmedley.experiment import task as work
from scmedley.experiment.cells import read_cells
from scmedley.experiment.config import NULL, Experiment
from scmedley.experiment.task import Task


def classify(out: Path, experiment: Experiment, task: Task) -> pd.DataFrame:
    """Read each target from each latent alone and joined with the random-effects latent.

    Returns
    -------
    DataFrame
        target, features, accuracy, ... as :func:`scmedley.evaluate.classify.target_table` gives them.
    """
    adata = read_cells(out / work.DATA, experiment, task.split, task.fold, task.seed)
    latents = _latents(out, experiment, task)
    blocks = _blocks(latents)
    raise NotImplementedError(blocks, adata, keys, np)


def _latents(out: Path, experiment: Experiment, task: Task) -> dict[str, np.ndarray]:
    """Give the latents of the fold's fits that did not fail, by the name that tables show."""
    found = {}
    for method in experiment.methods:
        fit = Task(task.split, task.fold, task.seed, method)
        if work.about(out, fit).get("status") != "done":
            continue
        with np.load(out / work.TASKS / fit.name / work.LATENT) as stored:
            for variant, z_NP in stored.items():
                found[method if variant == "latent" else f"{method}, {variant}"] = z_NP
    if not found:
        raise ScmedleyError(f"No fit of {task.name} came to an end, so there is nothing to classify.")
    return found


def _blocks(latents: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Join each other latent with each random one."""
    random = {name: z for name, z in latents.items() if name.startswith("RE") and not name.startswith(NULL)}
    others = {name: z for name, z in latents.items() if not name.startswith("RE")}
    joined = {f"{a} + {b}": np.hstack([x, y]) for a, x in others.items() for b, y in random.items()}
    return latents | joined
