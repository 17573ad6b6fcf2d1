"""One fit of an experiment: one method on one fold with one seed, into a folder of its own, all or nothing."""

import hashlib
import json
import re
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scmedley import io, keys
from scmedley.errors import ScmedleyError
from scmedley.evaluate.scores import scores
from scmedley.experiment.cells import read_cells
from scmedley.experiment.config import Experiment, Split
from scmedley.models.catalogue import PCA, is_null, methods

if TYPE_CHECKING:
    from scmedley.models.base import Model

TASKS, CHECKPOINTS, DATA = "tasks", ".checkpoints", "data.h5ad"
ABOUT, SCORES, HISTORY, LATENT, MAP, CLASSIFIED, PREDICTED = (
    "task.json",
    "scores.csv",
    "history.csv",
    "latent.npz",
    "umap.npz",
    "classified.csv",
    "counterfactuals.csv",
)
CLASSIFIERS = "classifiers"  # stands for the method in the task that reads the latents of all others
BASELINES = "baselines"  # stands for the method in the task that predicts a held-out pair without a network
SCORED = "scmedley_scored"  # obs: the cells that probes learn from, and those that are scored
MAP_CELLS = 3000  # held-out cells on a map, at most


@dataclass(frozen=True)
class Task:
    """One method (or the classifiers on all of them, or the baselines) on one fold or held-out pair with one seed."""

    split: Split
    fold: int
    seed: int
    method: str

    @property
    def name(self) -> str:
        """Return the name of its folder."""
        method = re.sub(r"\W+", "-", self.method)[:60]
        if method != self.method:  # two methods must not share a folder
            method += "-" + hashlib.sha256(self.method.encode()).hexdigest()[:6]
        return f"{self.split}-fold{self.fold}-seed{self.seed}-{method}"


def tasks(experiment: Experiment) -> tuple[list[Task], list[Task]]:
    """Return all fits of an experiment, and the classifications that need them."""
    fits, classifications = [], []
    for split in experiment.splits:
        of_pairs = split == "pairs"
        methods = experiment.counterfactual_methods if of_pairs else experiment.methods
        for seed, fold in product(experiment.seeds, range(experiment.n_folds(split))):
            fits += [Task(split, fold, seed, method) for method in methods]
            if of_pairs and seed == experiment.seeds[0]:  # the baselines learn nothing that hangs on a seed
                fits.append(Task(split, fold, seed, BASELINES))
            if experiment.classify and not of_pairs:
                classifications.append(Task(split, fold, seed, CLASSIFIERS))
    return fits, classifications


def fingerprint(
    out: Path, experiment: Experiment, task: Task, data_hash: str, versions: dict[str, str]
) -> str:
    """Return in short what a task's results depend on; where it is the same, they need not be made again.

    Folds hang on the first seed and, of donors, on the first target; a rival on its package; classifiers on the
    fits that they read.
    """
    settings = asdict(experiment)
    unused = ["folds", "thorough"] if task.split == "pairs" else ["pair_batches", "pair_cells"]
    for name in ("name", "seeds", "splits", "published", "classify", "pairs", *unused):
        del settings[name]
    settings["fold_seed"] = experiment.seeds[0]
    if task.method == CLASSIFIERS:
        fits = [about(out, replace(task, method=method)) for method in experiment.methods]
        settings["fits"] = [(fit.get("status"), fit.get("fingerprint")) for fit in fits]
    else:
        settings["targets"] = experiment.targets[:1] if task.split == "donors" else ()
        settings["package"] = _package_version(task.method)
        settings["methods"] = task.method
        settings["settings"] = experiment.changes(task.method)
    what = json.dumps([settings, asdict(task), data_hash, versions], sort_keys=True, default=str)
    return hashlib.sha256(what.encode()).hexdigest()


def _package_version(method: str) -> str:
    """Return the version of a rival's package."""
    from scmedley.peers import PEERS

    try:
        return version(PEERS[method].package) if method in PEERS else ""
    except PackageNotFoundError:
        return "not installed"


def about(out: Path, task: Task) -> dict[str, Any]:
    """Return what is recorded of a task; nothing if it has not been finished, or its record is spoilt."""
    try:
        found: dict[str, Any] = json.loads((out / TASKS / task.name / ABOUT).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def is_done(out: Path, task: Task, mark: str) -> bool:
    """Return whether a task was done under these settings and all its files are as they were written."""
    state, folder = about(out, task), out / TASKS / task.name
    files = state.get("files", {})
    return (
        state.get("fingerprint") == mark
        and state.get("status") == "done"
        and all((folder / name).exists() and (folder / name).stat().st_size == n for name, n in files.items())
    )


def run(out: Path, experiment: Experiment, task: Task, mark: str) -> None:
    """Do a task and write its folder. What goes wrong with a method is its result, not the end of the others."""
    import torch
    from threadpoolctl import threadpool_limits

    from scmedley.device import engine

    began = time.perf_counter()
    with (
        threadpool_limits(experiment.threads),
        engine(experiment.threads, torch.device("cpu")),
        io.replacing(out / TASKS / task.name) as folder,
    ):
        folder.mkdir(parents=True)
        state = {"task": asdict(task), "fingerprint": mark, "status": "done"}
        try:
            if task.method == CLASSIFIERS:
                from scmedley.experiment.classifiers import classify

                classify(out, experiment, task).to_csv(folder / CLASSIFIED, index=False)
            elif task.split == "pairs":
                from scmedley.experiment.pairs import predict

                state |= predict(out, experiment, task, folder, mark)
            else:
                state |= _fit_and_score(out, experiment, task, folder, mark)
        except ScmedleyError as error:
            state |= {"status": "failed", "reason": str(error)}
        state["files"] = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        io.write_json(state | {"seconds": round(time.perf_counter() - began, 2)}, folder / ABOUT)
    for checkpoint in (out / CHECKPOINTS).glob(f"{task.name}.*"):  # also those of other settings
        checkpoint.unlink(missing_ok=True)


def _fit_and_score(out: Path, experiment: Experiment, task: Task, folder: Path, mark: str) -> dict[str, Any]:
    """Fit, embed, score, draw; write the results to ``folder`` and give what the record shall say."""
    from scmedley.pp.maps import umap

    adata = read_cells(out / DATA, experiment, task.split, task.fold)
    latents, network = _embed(out, adata, experiment, task, mark)
    tables = []
    for variant, z_NP in latents.items():
        adata.obsm["X_latent"] = z_NP
        table = _score(adata, experiment, task).drop(columns="embedding")
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
    """Score ``obsm["X_latent"]`` on each part; validation cells, which are for choosing settings, in short.

    Of held-out donors, labels are read by what was learnt from the other donors' cells. Their batches were not
    there to learn: probes of those learn from 80 % of the held-out donors' cells, and are scored on the rest.
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


def _embed(
    out: Path, adata: AnnData, experiment: Experiment, task: Task, mark: str
) -> tuple[dict[str, np.ndarray], "Model[Any] | None"]:
    """Return the latents of all cells, and the network if there is one.

    The latent of a random-effects network for donors that it does not know comes in two variants: with the
    population mean (no effects), and with effects fitted to the new donors' cells, everything else frozen.
    """
    from scmedley.peers import embed_peer
    from scmedley.pp.maps import pca

    method = task.method
    if method in methods():
        return _embed_by_network(out, adata, experiment, task, mark)
    if method.startswith("X_"):
        if method not in adata.obsm:
            raise ScmedleyError(
                f"The data have no obsm[{method!r}]; they have {', '.join(adata.obsm) or 'none'}."
            )
        return {"": _given(adata.obsm[method], method)}, None
    pca(adata, experiment.n_latent, task.seed)
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
    """Return an embedding of the user's as a dense matrix."""
    try:
        return np.asarray(stored.toarray() if hasattr(stored, "toarray") else stored, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ScmedleyError(f"obsm[{key!r}] is no matrix of numbers ({error}).") from error


def _embed_by_network(
    out: Path, adata: AnnData, experiment: Experiment, task: Task, mark: str
) -> tuple[dict[str, np.ndarray], "Model[Any]"]:
    model: Any = fit_network(out, adata, experiment, task, mark)
    latents = {"": model.get_latent_representation(adata, unknown="mean")}
    if model.needs_batch and not is_null(task.method) and (model.design.codes(adata.obs) < 0).any():
        new = adata[model.design.codes(adata.obs) < 0].copy()
        adapted = model.adapt(new, seed=task.seed)
        latents[", adapted"] = adapted.get_latent_representation(adata)
    return latents, model


def fit_network(out: Path, adata: AnnData, experiment: Experiment, task: Task, mark: str) -> "Model[Any]":
    """Return the task's network, fitted; it never meets the cells of donors and of pairs that are held out."""
    held_out = ((adata.obs[keys.SPLIT] == "test") & (task.split != "cells")).to_numpy()
    if is_null(task.method):
        _permute(adata, experiment, held_out, task.seed)
    model = experiment.unfitted(task.method)
    known = adata[~held_out].copy() if held_out.any() else adata
    model.fit(
        known,
        seed=task.seed,
        threads=experiment.threads,
        precision=experiment.precision,
        device=experiment.device,
        checkpoint=_checkpoint(out, task, mark),
        progress=False,
    )
    return model


def _permute(adata: AnnData, experiment: Experiment, held_out: np.ndarray, seed: int) -> None:
    """Permute batches within labels; those of held-out donors among themselves, so that they stay unknown."""
    from scmedley.pp.nulls import permute_batches

    permuted = np.empty(adata.n_obs, dtype=object)
    for rows in (held_out, ~held_out):
        cells = AnnData(obs=adata.obs[rows].copy())
        permute_batches(cells, experiment.batch_key, experiment.label_key, seed=seed)
        permuted[rows] = cells.obs[keys.PERMUTED].astype(str)
    adata.obs[keys.PERMUTED] = pd.Categorical(permuted)


def _checkpoint(out: Path, task: Task, mark: str) -> Path:
    (out / CHECKPOINTS).mkdir(exist_ok=True)
    return out / CHECKPOINTS / f"{task.name}.{mark[:16]}.safetensors"
