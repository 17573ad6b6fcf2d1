"""The run folder: who may write to it, what it was made with, and whether it is finished."""

import fcntl
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from json import JSONDecodeError, dumps, loads
from pathlib import Path
from typing import Any

from scmedley.errors import ScmedleyError
from scmedley.io import write_json

CELLS, MODEL, HISTORY, SCORES = "integrated.h5ad", "model", "history.csv", "scores.csv"
SHIFTS, CHECK, VERSIONS = "gene_shifts.csv", "counterfactual_check.csv", "versions.json"
GENOMAP = "genomap.json"
RECORD, REPORT, LOCK, CHECKPOINTS = "run.json", "report.html", ".lock", ".checkpoints"
# All that a run writes, and so all that --overwrite removes; the record last, as it marks a run folder.
FILES = (CHECKPOINTS, CELLS, MODEL, HISTORY, SCORES, SHIFTS, CHECK, GENOMAP, VERSIONS, REPORT, RECORD)
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
    """Give the versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def read_record(folder: Path) -> dict[str, Any]:
    """Read ``run.json``.

    Raises
    ------
    ScmedleyError
        No run there, or a record that cannot be read.
    """
    path = folder / RECORD
    if not path.is_file():
        raise ScmedleyError(f"{folder} is not a run folder (no {RECORD}). `scmedley run` or `fit` makes one.")
    try:
        record: dict[str, Any] = loads(path.read_text(encoding="utf-8"))
    except (OSError, JSONDecodeError, UnicodeDecodeError) as error:
        raise ScmedleyError(f"{path} cannot be read ({error}). Run again with --overwrite.") from error
    if not isinstance(record, dict) or "config" not in record:
        raise ScmedleyError(f"{path} was not written by scmedley. Choose another folder.")
    return record


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for one process. The lock goes with the process, even if that is killed.

    A folder that is made here and gets nothing but the lock, because of an error, is removed again.
    """
    lock = folder / LOCK
    made = [path for path in (lock, folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = lock.open("w")
    except OSError as error:
        _remove_empty(made)
        raise ScmedleyError(
            f"{folder} cannot be written to ({error.strerror}). Choose another --out."
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # One that failed may have removed this file since it was opened: then the lock is on nothing.
            held = os.path.samestat(os.fstat(handle.fileno()), lock.stat())
        except OSError:
            held = False
        if not held:
            raise ScmedleyError(
                f"Another scmedley is at work in {folder}. Wait for it, or choose another --out."
            )
        try:
            yield
        finally:
            if not (folder / RECORD).exists():
                _remove_empty(made)


def _remove_empty(paths: list[Path]) -> None:
    """Remove a lock file and then the folders around it, up to one that holds something else."""
    with suppress(OSError):
        for path in paths:
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)


def check(folder: Path, record: dict[str, Any], overwrite: bool) -> None:
    """Say whether a run may begin here: in an empty folder, or in one with the same run cut short earlier.

    Raises
    ------
    ScmedleyError
        The folder holds a finished run, another run, or something that is no run.
    """
    if all(path.name == LOCK for path in folder.iterdir()):
        return
    if not (folder / RECORD).exists():
        also = "; --overwrite empties run folders only" if overwrite else " and not empty"
        raise ScmedleyError(f"{folder} is not a run folder{also}. Choose another --out.")
    if not overwrite:
        _check_resumable(folder, record)


def begin(folder: Path, record: dict[str, Any], overwrite: bool) -> None:
    """Remove what an earlier run left, all of it or only what it left half-written, and begin the record."""
    for name in FILES:
        for path in [*folder.glob(f".{name}.*"), *([folder / name] if overwrite else [])]:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    write_json({**record, "status": "running"}, folder / RECORD)


def is_finished(folder: Path, record: dict[str, Any]) -> bool:
    """Say whether nothing is left to do: a run ends with its report, a fit with its record."""
    return record.get("status") == "done" and (record.get("command") == "fit" or (folder / REPORT).exists())


def _check_resumable(folder: Path, record: dict[str, Any]) -> None:
    before = read_record(folder)
    if is_finished(folder, before):
        raise ScmedleyError(f"{folder} holds a finished run. Choose another --out, or pass --overwrite.")
    old, new = before.get("config", {}), loads_like(record["config"])
    changed = [f"--{k.replace('_', '-')}" for k in new if old.get(k) != new[k]]
    changed += [k for k in ("command", "versions") if before.get(k) != record[k]]
    if before.get("input", {}).get("sha256") != record["input"]["sha256"]:
        changed.append("input")
    if changed:
        raise ScmedleyError(
            f"{folder} holds an unfinished run with another {', '.join(changed)}. Repeat its settings to resume "
            "it, choose another --out, or pass --overwrite."
        )


def loads_like(value: dict[str, Any]) -> dict[str, Any]:
    """Give ``value`` as it comes back from JSON."""
    loaded: dict[str, Any] = loads(dumps(value, default=str))
    return loaded
