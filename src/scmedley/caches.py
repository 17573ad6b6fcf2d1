"""A place for what numba and matplotlib keep, for users without a home (containers, batch jobs)."""

import os
import stat
import tempfile
from pathlib import Path


def ensure() -> None:
    """Name a folder for the caches of numba and matplotlib where there is no home to write into.

    Without one, numba refuses to import UMAP if the environment is read-only too. Call before either is imported.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    try:
        if home.is_absolute():
            home.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=home).close()
            return
    except OSError:
        pass
    folder = _private_folder()
    os.environ.setdefault("NUMBA_CACHE_DIR", str(folder / "numba"))
    os.environ.setdefault("MPLCONFIGDIR", str(folder / "matplotlib"))


def _private_folder() -> Path:
    """Return a folder for temporary files that nobody else can write into, the same for all processes of a user."""
    folder = Path(tempfile.gettempdir()) / f"scmedley-caches-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="scmedley-caches-"))
