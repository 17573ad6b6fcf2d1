"""Fit the network of one task."""

from typing import Any

import numpy as np
from anndata import AnnData

from scmedley import keys
from scmedley.data.reader import Cells, Reading
from scmedley.experiment.stored import reading_of
from scmedley.experiment.task import Job
from scmedley.models.base import Model
from scmedley.models.catalogue import is_null
from scmedley.pp.nulls import permute_batches
from scmedley.pp.prepared import read_prepared


def fit_network(job: Job, adata: AnnData) -> tuple[Model[Any], Reading]:
    """Return the fitted network of a task, and all cells as it reads them.

    It never sees the cells of held-out donors or pairs.

    The null is trained on batches permuted within label and part, so held-out donors stay unknown to it.
    """
    experiment, task = job.experiment, job.task
    held_out = ((adata.obs[keys.SPLIT] == "test") & (task.split != "cells")).to_numpy()
    if is_null(task.method):
        permute_batches(adata, experiment.batch_key, experiment.label_key, seed=task.seed)
    model = experiment.unfitted(task.method)
    known: Cells
    whole: Cells = adata
    if job.store is None:
        known = adata[~held_out].copy() if held_out.any() else adata
    else:
        whole = reading_of(job.store, adata.obs, model.reads)
        known = whole.take(np.flatnonzero(~held_out)) if held_out.any() else whole
    reading = read_prepared(known, model.batch_key, model.label_key, task.seed, model.reads)
    job.checkpoint.parent.mkdir(exist_ok=True)
    model.fit(
        reading,
        seed=task.seed,
        threads=experiment.threads,
        precision=experiment.precision,
        device=experiment.device,
        checkpoint=job.checkpoint,
        progress=False,
    )
    return model, model.read(adata if job.store is None else whole) if held_out.any() else reading
