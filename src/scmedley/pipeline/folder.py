"""The run folder: who may write to it, what it was made with, and whether it is finished."""

import fcntl
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from json import JSONDecodeError, loads
from pathlib import Path
from typing import Any

from scmedley.errors import ScmedleyError
from scmedley.io import write_json

RECORD = "run.json"
LOCK = ".lock"
CHECKPOINTS = ".checkpoints"
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
        record: dict[str, Any] = loads(path.read_text())
    except (OSError, JSONDecodeError, UnicodeDecodeError) as error:
        raise ScmedleyError(f"{path} cannot be read ({error}). Run again with --overwrite.") from error
    return record


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for one process. The lock goes with the process, even if that is killed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / LOCK).open("w")
    except OSError as error:
        raise ScmedleyError(
            f"{folder} cannot be written to ({error.strerror}). Choose another --out."
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ScmedleyError(
                f"Another scmedley is at work in {folder}. Wait for it, or choose another --out."
            ) from error
        yield


def begin(folder: Path, record: dict[str, Any], overwrite: bool) -> None:
    """Make the folder ready for a run: empty, or the same run cut short earlier.

    Raises
    ------
    ScmedleyError
        The folder holds a finished run, another run, or something that is no run.
    """
    content = [p for p in folder.iterdir() if p.name != LOCK]
    if content and overwrite:
        if not (folder / RECORD).exists():
            raise ScmedleyError(
                f"{folder} is not a run folder; --overwrite empties run folders only. Choose another --out."
            )
        for path in content:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    elif content:
        _check_resumable(folder, record)
    write_json({**record, "status": "running"}, folder / RECORD)


def _check_resumable(folder: Path, record: dict[str, Any]) -> None:
    if not (folder / RECORD).exists():
        raise ScmedleyError(f"{folder} is not empty and not a run folder. Choose another --out.")
    before = read_record(folder)
    if before.get("status") != "running":
        raise ScmedleyError(f"{folder} holds a finished run. Choose another --out, or pass --overwrite.")
    old, new = before.get("config", {}), loads_like(record["config"])
    changed = [k for k in new if old.get(k) != new[k]]
    if before.get("input", {}).get("sha256") != record["input"]["sha256"]:
        changed.append("input")
    if before.get("command") != record["command"]:
        changed.append("command")
    if before.get("versions") != record["versions"]:
        changed.append("versions")
    if changed:
        raise ScmedleyError(
            f"{folder} holds an unfinished run with another {', '.join(changed)}. Repeat its settings to resume "
            "it, choose another --out, or pass --overwrite."
        )


def loads_like(value: dict[str, Any]) -> dict[str, Any]:
    """Give ``value`` as it comes back from JSON."""
    from json import dumps

    loaded: dict[str, Any] = loads(dumps(value, default=str))
    return loaded
