"""What random forests read from the latents of one fold: cell type and donor-level targets."""

from pathlib import Path

import numpy as np
import pandas as pd

from scmedley import keys
from scmedley.errors import ScmedleyError
from scmedley.evaluate.classify import target_table
from scmedley.experiment import task as work
from scmedley.experiment.cells import read_cells
from scmedley.experiment.config import Experiment
from scmedley.experiment.task import Task
from scmedley.models.catalogue import FE, PCA, is_null, methods


def classify(out: Path, experiment: Experiment, task: Task) -> pd.DataFrame:
    """Read the cell type and each target from each latent, alone and joined with the random-effects latents.

    Forests have no early stopping, so that they learn from training and validation cells alike. They take most of
    an experiment's time, so that the null is joined with PCA and FE alone.

    Returns
    -------
    DataFrame
        ``target``, then the columns of :func:`scmedley.evaluate.classify.target_table`.
    """
    obs = read_cells(out / work.DATA, experiment, task.split, task.fold).obs
    fixed, random = _latents(out, experiment, task)
    joins = [(f, r) for f in fixed for r in random if f in (PCA, FE.name) or not is_null(r)]
    part_N = np.where(obs[keys.SPLIT] == "test", "test", "train")
    donor_N, label_N = (obs[key].cat.codes.to_numpy() for key in (experiment.donors, experiment.label_key))
    tables = []
    for target in (experiment.label_key, *experiment.targets):
        target_N = obs[target].cat.codes.to_numpy()
        composed = label_N if target != experiment.label_key else None
        try:
            table = target_table(
                fixed, random, target_N, donor_N, composed, part_N, seed=task.seed, joins=joins
            )
        except ScmedleyError as error:
            raise ScmedleyError(f"obs[{target!r}] cannot be classified: {error}") from error
        table.insert(0, "target", target)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _latents(
    out: Path, experiment: Experiment, task: Task
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the latents of the fold's fits that did not fail, by the name that tables show.

    Those that hold what the batch adds come second.
    """
    fixed: dict[str, np.ndarray] = {}
    random: dict[str, np.ndarray] = {}
    networks = methods()
    for method in experiment.methods:
        fit = Task(task.split, task.fold, task.seed, method)
        if work.about(out, fit).get("status") != "done":
            continue
        found = random if method in networks and networks[method].holds_batch else fixed
        with np.load(out / work.TASKS / fit.name / work.LATENT) as stored:
            for variant, z_NP in stored.items():
                found[method if variant == "latent" else f"{method}, {variant}"] = z_NP
    if not fixed | random:
        raise ScmedleyError(f"No fit of {task.name} came to an end, so there is nothing to classify.")
    return fixed, random
