"""Cache folders of numba and matplotlib for users without a home folder (containers, batch jobs)."""

import os
import stat
import tempfile
from pathlib import Path


def ensure() -> None:
    """Set the cache folders of numba and matplotlib if the home folder cannot be written to.

    Otherwise numba cannot import UMAP in a read-only environment. Call this before either is imported.
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
    """Return a temporary folder that only this user can write to, the same for all processes of the user."""
    folder = Path(tempfile.gettempdir()) / f"scmedley-caches-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="scmedley-caches-"))
