"""The folder of a run, an experiment or a search: names of its files, its lock, and clearing it."""

import platform
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from filelock import FileLock, Timeout

from scmedley.errors import ScmedleyError, listed

# All file names are defined here. In every folder; then the record that identifies each kind of folder:
LOCK, CHECKPOINTS, REPORT = ".lock", ".checkpoints", "report.html"
RECORD, EXPERIMENT, SEARCH = "run.json", "experiment.json", "tune.json"
RECORDS = (RECORD, EXPERIMENT, SEARCH)
# In a run folder:
CELLS, MODEL, HISTORY, SCORES = "integrated.h5ad", "model", "history.csv", "scores.csv"
SHIFTS, CHECK, VERSIONS = "gene_shifts.csv", "counterfactual_check.csv", "versions.json"
GENOMAP, LABELS, DENOISED = "genomap.json", "label_accuracy.csv", "denoised.zarr"
STORE = "store"  # of a run that prepares its cells on disk
# Of clusters, in a run folder or in that of scmedley cluster:
CLUSTERS, CLUSTER_EVIDENCE, CLUSTER_TREE = "clusters.csv", "cluster_evidence.csv", "cluster_tree.csv"
CLUSTER_BATCHES, CLUSTER_LABELS, MARKERS = "cluster_by_batch.csv", "cluster_by_label.csv", "markers.csv"
OF_CLUSTERS = (CLUSTERS, CLUSTER_EVIDENCE, CLUSTER_TREE, CLUSTER_BATCHES, CLUSTER_LABELS, MARKERS)
CLUSTERED, CLUSTERING = "clustered.h5ad", "cluster.json"  # of scmedley cluster: its cells and its record
EXPLORATION = "explore.json"  # the record of an exploration
# Of scmedley effects; the record is last:
EFFECTS, COMPOSITION, SHARES = "effects.csv", "composition.csv", "shares.csv"
EFFECTS_PAGE, EFFECTS_RECORD = "effects.html", "effects.json"
VARIANCE, DISTANCES, ASSOCIATION = "variance.csv", "sample_distances.csv", "sample_association.csv"
# Of an experiment (with SCORES and HISTORY) and of a search; both store the prepared cells:
DATA, TASKS, SUMMARY, FITS = "data.h5ad", "tasks", "summary.csv", "fits.csv"
CLASSIFIED, CLASSIFIED_SUMMARY = "classified.csv", "classified_summary.csv"
PREDICTED, PREDICTED_SUMMARY = "counterfactuals.csv", "counterfactuals_summary.csv"
STUDY, TRIALS, BEST = "study.log", "trials.csv", "best.toml"
# Of one task of an experiment, with SCORES, HISTORY, CLASSIFIED and PREDICTED:
TASK, LATENT, MAP = "task.json", "latent.npz", "umap.npz"

# All that a run writes and --overwrite removes; the record is last, because it identifies a run folder.
OF_RUN = (
    *(CHECKPOINTS, CELLS, MODEL, HISTORY, SCORES, LABELS, SHIFTS, CHECK, GENOMAP, DENOISED, VERSIONS),
    *(*OF_CLUSTERS, REPORT, STORE, RECORD),
)
# What an experiment writes again from its tasks.
OF_EXPERIMENT = (
    *(SCORES, SUMMARY, CLASSIFIED, CLASSIFIED_SUMMARY, HISTORY, PREDICTED, PREDICTED_SUMMARY, FITS),
    REPORT,
)
PACKAGES = (
    "scmedley",
    "anndata",
    "numpy",
    "pandas",
    "scanpy",
    "scikit-learn",
    "scipy",
    "torch",
    "umap-learn",
)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the folder for one process. The lock ends with the process, even if that is killed.

    A folder that was created here and holds only the lock, because of an error, is removed again.
    """
    made = [path for path in (folder / LOCK, folder, *folder.parents) if not path.exists()]
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ScmedleyError(
            f"Another scmedley process is writing to {folder}. Wait for it, or choose another --out."
        ) from error
    except OSError as error:
        _remove_empty(made)
        raise ScmedleyError(
            f"{folder / LOCK} cannot be written ({error.strerror}). Check that file and the permissions of the folder, "
            "or choose another folder."
        ) from error
    try:
        yield
    finally:
        kept = any((folder / name).exists() for name in RECORDS)
        if not kept:
            _remove_empty(made)  # while locked, so that no other process takes the file
        lock.release()
        if not kept:
            _remove_empty(made)  # Windows does not remove an open file


def _remove_empty(paths: Sequence[Path]) -> None:
    """Remove a lock file and then its parent folders, up to one that is not empty."""
    with suppress(OSError):
        for path in paths:
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)


def check_replaceable(out: Path, record: str, ours: Sequence[str], what: str, *, overwrite: bool) -> None:
    """Raise unless the folder is new, empty, or one with this record that may be overwritten as a whole.

    Parameters
    ----------
    out
        The folder.
    record
        File that shows what kind of folder it is.
    ours
        All files that such a folder may have.
    what
        Name of that kind, for messages.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    article = "an" if what[0] in "aeiou" else "a"
    if not (out / record).is_file():
        raise ScmedleyError(f"{out} exists and is no folder of {article} {what}. Choose another --out.")
    if not overwrite:
        raise ScmedleyError(
            f"{out} holds {article} {what} already. Add --overwrite, or choose another --out."
        )
    others = sorted(path.name for path in out.iterdir() if path.name not in ours)
    if others:  # the whole folder is replaced
        raise ScmedleyError(
            f"{out} holds other files beside the {what} ({listed(others, 3)}). Move them, or choose another --out."
        )


def clear(folder: Path, names: Sequence[str], *, finished: bool) -> None:
    """Remove half-written versions of these files and folders; with ``finished``, also the finished ones."""
    for name in names:
        for path in [*folder.glob(f".{name}.*"), *([folder / name] if finished else [])]:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
