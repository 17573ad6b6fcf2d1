"""One task of an experiment: its name, folder, record, and the fingerprint of its results."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

from anndata import AnnData

from scmedley.experiment.cells import fold_name, read_cells
from scmedley.experiment.config import Experiment, Split
from scmedley.experiment.stored import read_fold
from scmedley.models.catalogue import Row
from scmedley.runs.folder import CHECKPOINTS, DATA, TASK, TASKS

CLASSIFIERS = "classifiers"  # the method of the task that classifies the latents of all others
BASELINES = "baselines"  # the method of the task that predicts a held-out pair without a network


@dataclass(frozen=True)
class Task:
    """One method (or the classifiers, or the baselines) on one fold or held-out pair with one seed."""

    split: Split
    fold: int
    seed: int
    method: str

    @property
    def name(self) -> str:
        """Return the name of the task's folder."""
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
            if of_pairs and seed == experiment.seeds[0]:  # baselines do not depend on the seed
                fits.append(Task(split, fold, seed, BASELINES))
            if experiment.classify and not of_pairs:
                classifications.append(Task(split, fold, seed, CLASSIFIERS))
    return fits, classifications


def fingerprint(
    out: Path, experiment: Experiment, task: Task, data_hash: str, versions: dict[str, str]
) -> str:
    """Return a hash of all that a task's results depend on. With the same hash, finished results are kept.

    Folds depend on the first seed, and folds of donors on the first target; a method of another package on
    its version; classifiers on the fits that they read.
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
    """Return the version of another method's package."""
    from scmedley.peers import PEERS

    try:
        return version(PEERS[method].package) if method in PEERS else ""
    except PackageNotFoundError:
        return "not installed"


def about(out: Path, task: Task) -> dict[str, Any]:
    """Return the record of a task; empty if the task is not finished or the record is damaged."""
    try:
        found: dict[str, Any] = json.loads((out / TASKS / task.name / TASK).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Job:
    """A task to run: the folder and settings of its experiment, and the fingerprint of its results.

    ``rows``: models that other packages added to the catalogue, for workers in other processes. ``stores``: folder of
    the stores of all folds, if the cells are on disk.
    """

    out: Path
    experiment: Experiment
    task: Task
    mark: str
    rows: tuple[Row, ...] = ()
    stores: Path | None = None

    @property
    def store(self) -> Path | None:
        """Return the store of the task's fold; ``None``: the cells are in memory."""
        return None if self.stores is None else self.stores / fold_name(self.task.split, self.task.fold)

    @property
    def folder(self) -> Path:
        """Return the folder for the results."""
        return self.out / TASKS / self.task.name

    @property
    def checkpoint(self) -> Path:
        """Return the checkpoint of a fit with these settings."""
        return self.out / CHECKPOINTS / f"{self.task.name}.{self.mark[:16]}.safetensors"

    @property
    def is_done(self) -> bool:
        """Return whether the task was finished with these settings and its files have their size."""
        state = about(self.out, self.task)
        files = [(self.folder / name, size) for name, size in state.get("files", {}).items()]
        return (
            state.get("fingerprint") == self.mark
            and state.get("status") == "done"
            and all(path.exists() and path.stat().st_size == size for path, size in files)
        )

    def read_cells(self) -> AnnData:
        """Read the prepared cells, split into the parts of the task's fold; from a store without a matrix."""
        if self.store is not None:
            return read_fold(self.store, self.experiment)
        return read_cells(self.out / DATA, self.experiment, self.task.split, self.task.fold)
