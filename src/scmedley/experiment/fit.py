"""Run one task of an experiment: one method, one fold, one seed. Its folder is complete or not there."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from threadpoolctl import threadpool_limits

from scmedley import io, keys
from scmedley.data.sampling import drawn
from scmedley.device import engine
from scmedley.errors import ScmedleyError
from scmedley.evaluate.scores import scores
from scmedley.experiment.classifiers import classify
from scmedley.experiment.config import Experiment
from scmedley.experiment.network import fit_network
from scmedley.experiment.pairs import predict
from scmedley.experiment.stored import reading_of
from scmedley.experiment.task import CLASSIFIERS, Job, Task
from scmedley.models import catalogue
from scmedley.models.base import Model
from scmedley.models.catalogue import PCA, is_null, methods
from scmedley.peers import embed_peer
from scmedley.pipeline.sample import cells_of
from scmedley.pp.maps import pca, umap
from scmedley.runs.folder import CHECKPOINTS, CLASSIFIED, HISTORY, LATENT, MAP, SCORES, TASK

SCORED = "scmedley_scored"  # obs: cells that probes are trained on, and cells that are scored
MAP_CELLS = 3000  # maximum number of held-out cells on a map


def run(job: Job) -> None:
    """Run a task and write its folder. If its method fails, the error is stored as its result."""
    task, threads = job.task, job.experiment.threads
    began = time.perf_counter()
    for row in set(job.rows) - set(catalogue.rows()):
        catalogue.add(row)
    with (
        threadpool_limits(threads),
        engine(threads, torch.device("cpu")),
        io.replacing(job.folder) as folder,
    ):
        folder.mkdir(parents=True)
        state = {"task": asdict(task), "fingerprint": job.mark, "status": "done"}
        try:
            if task.method == CLASSIFIERS:
                classify(job).to_csv(folder / CLASSIFIED, index=False)
            elif task.split == "pairs":
                state |= predict(job, folder)
            else:
                state |= _fit_and_score(job, folder)
        except ScmedleyError as error:
            state |= {"status": "failed", "reason": str(error)}
        state["files"] = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        io.write_json(state | {"seconds": round(time.perf_counter() - began, 2)}, folder / TASK)
    for checkpoint in (job.out / CHECKPOINTS).glob(f"{task.name}.*"):  # also those of other settings
        checkpoint.unlink(missing_ok=True)


def _fit_and_score(job: Job, folder: Path) -> dict[str, Any]:
    """Fit, embed, score, draw; write the results to ``folder`` and return fields for the record."""
    task, adata = job.task, job.read_cells()
    latents, network = _embed(job, adata)
    groups = [job.experiment.batch_key, job.experiment.label_key, keys.SPLIT]
    rows = drawn(adata.obs, groups, task.seed)  # of many cells a sample
    tables = []
    for variant, z_NP in latents.items():
        adata.obsm["X_latent"] = z_NP
        table = _score(cells_of(adata, rows, ["X_latent"]), job.experiment, task).drop(columns="embedding")
        tables.append(table.assign(method=task.method + variant))
    pd.concat(tables, ignore_index=True).to_csv(folder / SCORES, index=False)
    stored: dict[str, Any] = {variant.strip(", ") or "latent": z_NP for variant, z_NP in latents.items()}
    np.savez(folder / LATENT, **stored)
    if task.split == "cells":
        held_out = adata[adata.obs[keys.SPLIT] == "test"].copy()
        umap(held_out, "X_latent", max_cells=MAP_CELLS, seed=task.seed)
        np.savez(folder / MAP, xy=held_out.obsm[keys.umap("X_latent")])
    if network is None:
        return {}
    network.history.to_csv(folder / HISTORY, index=False)
    return {"fitted": network.fitted}


def _score(adata: AnnData, experiment: Experiment, task: Task) -> pd.DataFrame:
    """Score ``obsm["X_latent"]`` on each part; for validation cells only the main scores.

    For held-out donors, labels are predicted by what was learnt from the other donors' cells. Their batches
    are not in the training cells, so probes of the batch learn from 80 % of the held-out donors' cells and
    are scored on the rest.
    """
    key = experiment.batches_of(task.method)
    part = adata.obs[keys.SPLIT].astype(str).to_numpy()
    how: dict[str, Any] = {"batch_key": key, "label_key": experiment.label_key, "seed": task.seed}
    if task.split == "cells":
        tables = []
        for name, left_out in (("test", "validation"), ("validation", "test")):
            adata.obs[SCORED] = np.where(part == name, "test", np.where(part == left_out, "unused", part))
            thorough = experiment.thorough and name == "test"
            table = scores(adata, ["X_latent"], split_key=SCORED, thorough=thorough, **how)
            tables.append(table.assign(part=name))
        return pd.concat(tables, ignore_index=True)
    adata.obs[SCORED] = np.where(part == "validation", "unused", part)
    all_cells = scores(adata, ["X_latent"], split_key=SCORED, thorough=experiment.thorough, **how)
    within = adata[part == "test"].copy()
    del within.obs[keys.SPLIT]
    probed = scores(within, ["X_latent"], thorough=experiment.thorough, **how)
    leaks = all_cells["score"].str.endswith("leak")
    joined = [all_cells[~leaks], probed[probed["score"].str.endswith("leak")]]
    return pd.concat(joined, ignore_index=True).assign(part="held-out donors")


def _embed(job: Job, adata: AnnData) -> tuple[dict[str, np.ndarray], Model[Any] | None]:
    """Return the latents of all cells, and the network if there is one.

    A random-effects network has two latents for new donors: with the population mean (no effects), and with
    effects fitted to the new donors' cells while all other weights are frozen.
    """
    experiment, task = job.experiment, job.task
    method = task.method
    if method in methods():
        return _embed_by_network(job, adata)
    if method.startswith("X_"):
        if method not in adata.obsm:
            raise ScmedleyError(
                f"The data have no obsm[{method!r}]; they have {', '.join(adata.obsm) or 'none'}."
            )
        return {"": _given(adata.obsm[method], method)}, None
    stored = None if job.store is None else reading_of(job.store, adata.obs, "log1p")
    pca(adata, experiment.n_latent, task.seed, reading=stored)
    if method == PCA:
        return {"": np.asarray(adata.obsm[keys.PCA])}, None
    z_NP = embed_peer(
        method,
        adata,
        experiment.batch_key,
        experiment.label_key,
        n_latent=experiment.n_latent,
        seed=task.seed,
        threads=experiment.threads,
    )
    return {"": z_NP}, None


def _given(stored: Any, key: str) -> np.ndarray:
    """Return the user's embedding as a dense matrix."""
    try:
        return np.asarray(stored.toarray() if hasattr(stored, "toarray") else stored, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ScmedleyError(f"obsm[{key!r}] is not a matrix of numbers ({error}).") from error


def _embed_by_network(job: Job, adata: AnnData) -> tuple[dict[str, np.ndarray], Model[Any]]:
    model, reading = fit_network(job, adata)
    latents = {"": model.get_latent_representation(reading, unknown="mean")}
    if model.needs_batch and not is_null(job.task.method) and (model.design.codes(adata.obs) < 0).any():
        rows = np.flatnonzero(model.design.codes(adata.obs) < 0)
        new = adata[rows].copy() if job.store is None else reading.take(rows)
        adapted = model.adapt(new, seed=job.task.seed)
        latents[", adapted"] = adapted.get_latent_representation(reading)
    return latents, model
