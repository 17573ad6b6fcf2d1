"""Random forests that predict cell type and donor-level targets from the latents of one fold."""

import numpy as np
import pandas as pd

from scmedley import keys
from scmedley.errors import ScmedleyError
from scmedley.evaluate.classify import target_table
from scmedley.experiment.task import Job, Task, about
from scmedley.models.catalogue import FE, PCA, is_null, methods
from scmedley.runs.folder import LATENT, TASKS


def classify(job: Job) -> pd.DataFrame:
    """Predict cell type and targets from each latent, alone and joined with the random-effects latents.

    Forests have no early stopping, so they are trained on training and validation cells. They take most of
    the time of an experiment, so the null is joined only with PCA and FE.

    Returns
    -------
    DataFrame
        ``target``, then the columns of :func:`scmedley.evaluate.classify.target_table`.
    """
    experiment, obs = job.experiment, job.read_cells().obs
    fixed, random = _latents(job)
    joins = [(f, r) for f in fixed for r in random if f in (PCA, FE.name) or not is_null(r)]
    part_N = np.where(obs[keys.SPLIT] == "test", "test", "train")
    donor_N, label_N = (obs[key].cat.codes.to_numpy() for key in (experiment.donors, experiment.label_key))
    tables = []
    for target in (experiment.label_key, *experiment.targets):
        target_N = obs[target].cat.codes.to_numpy()
        composed = label_N if target != experiment.label_key else None
        try:
            table = target_table(
                fixed, random, target_N, donor_N, composed, part_N, seed=job.task.seed, joins=joins
            )
        except ScmedleyError as error:
            raise ScmedleyError(f"obs[{target!r}] cannot be classified: {error}") from error
        table.insert(0, "target", target)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _latents(job: Job) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the latents of the fold's finished fits, by their names in tables.

    The second dictionary has the latents that hold batch effects.
    """
    task, networks = job.task, methods()
    fixed: dict[str, np.ndarray] = {}
    random: dict[str, np.ndarray] = {}
    for method in job.experiment.methods:
        fit = Task(task.split, task.fold, task.seed, method)
        if about(job.out, fit).get("status") != "done":
            continue
        found = random if method in networks and networks[method].holds_batch else fixed
        with np.load(job.out / TASKS / fit.name / LATENT) as stored:
            for variant, z_NP in stored.items():
                found[method if variant == "latent" else f"{method}, {variant}"] = z_NP
    if not fixed | random:
        raise ScmedleyError(f"No fit of {task.name} is finished, so there is nothing to classify.")
    return fixed, random
