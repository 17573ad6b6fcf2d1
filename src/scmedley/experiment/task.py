"""What one fit of an experiment is: its name, its folder, its record, and what its results depend on."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

from anndata import AnnData

from scmedley.experiment.cells import read_cells
from scmedley.experiment.config import Experiment, Split
from scmedley.runs.folder import CHECKPOINTS, DATA, TASK, TASKS

CLASSIFIERS = "classifiers"  # stands for the method in the task that reads the latents of all others
BASELINES = "baselines"  # stands for the method in the task that predicts a held-out pair without a network


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
            if of_pairs and seed == experiment.seeds[0]:  # nothing that baselines learn depends on a seed
                fits.append(Task(split, fold, seed, BASELINES))
            if experiment.classify and not of_pairs:
                classifications.append(Task(split, fold, seed, CLASSIFIERS))
    return fits, classifications


def fingerprint(
    out: Path, experiment: Experiment, task: Task, data_hash: str, versions: dict[str, str]
) -> str:
    """Return in short what a task's results depend on; where it is the same, they need not be made again.

    Folds depend on the first seed and, of donors, on the first target; a rival on its package; classifiers on
    the fits that they read.
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
    """Return what is recorded of a task; nothing if it has not been finished, or its record is damaged."""
    try:
        found: dict[str, Any] = json.loads((out / TASKS / task.name / TASK).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Job:
    """A task to be done: where its experiment lies, what that compares, and the fingerprint of the results."""

    out: Path
    experiment: Experiment
    task: Task
    mark: str

    @property
    def folder(self) -> Path:
        """Return the folder of the results."""
        return self.out / TASKS / self.task.name

    @property
    def checkpoint(self) -> Path:
        """Return the file of an unfinished fit, under these settings."""
        return self.out / CHECKPOINTS / f"{self.task.name}.{self.mark[:16]}.safetensors"

    @property
    def is_done(self) -> bool:
        """Return whether the task was done under these settings and all its files are as they were written."""
        state = about(self.out, self.task)
        files = [(self.folder / name, size) for name, size in state.get("files", {}).items()]
        return (
            state.get("fingerprint") == self.mark
            and state.get("status") == "done"
            and all(path.exists() and path.stat().st_size == size for path, size in files)
        )

    def read_cells(self) -> AnnData:
        """Read the prepared cells, with the parts of the task's fold."""
        return read_cells(self.out / DATA, self.experiment, self.task.split, self.task.fold)
