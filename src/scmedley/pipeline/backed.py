"""Where a run prepares its cells: in memory, or on disk in a store (:mod:`scmedley.data.store`)."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from scmedley.data.memory import too_large
from scmedley.errors import ScmedleyError
from scmedley.io.lazy import matrices_bytes
from scmedley.io.store import LOCK, MADE_FROM
from scmedley.pipeline.cells import Say
from scmedley.pipeline.config import RunConfig
from scmedley.runs.folder import RECORD, STORE
from scmedley.runs.record import Record


@dataclass(frozen=True)
class Place:
    """The store of a run.

    Attributes
    ----------
    folder
        Its folder.
    sentence
        Why cells are prepared there, for the console and the record.
    """

    folder: Path
    sentence: str

    def about(self, out: Path) -> dict[str, str]:
        """Return the fields of the record: a store inside the run folder moves with it."""
        inside = self.folder == out.resolve() / STORE
        return {"folder": STORE if inside else str(self.folder), "why": self.sentence}


def place_of(config: RunConfig, inputs: Sequence[Path], out: Path, overwrite: bool) -> Place | None:
    """Return the store in which the cells of a run are prepared; ``None``: they are prepared in memory.

    A run that goes on after an interruption does as before, however much memory is free now.
    """
    if config.store is not None and config.backed is False:
        raise ScmedleyError(
            "--store is for cells that are prepared on disk. Leave out --store or --no-backed."
        )
    folder = (Path(config.store) if config.store is not None else out / STORE).resolve()
    if config.backed is False:
        return None
    if config.backed or config.store is not None:
        return Place(folder, f"The cells are prepared on disk, in {folder}.")
    before = None if overwrite else _before(out)
    if before is not None:
        return Place(folder, before["store"]["why"]) if "store" in before else None
    if not (sizes := too_large(matrices_bytes(inputs))):
        return None
    which = "The input holds" if len(inputs) == 1 else f"The {len(inputs)} files hold"
    return Place(
        folder,
        f"{which} {sizes}: the cells are prepared on disk, in {folder} (--no-backed prepares them in memory).",
    )


def _before(out: Path) -> Record | None:
    """Return the record of an earlier call, if there is one."""
    path = out / RECORD
    return Record.read(path) if path.is_file() else None


def nothing_of(store: Path) -> bool:
    """Return whether nothing of a store was written that another call could go on with; what is left is removed."""
    part = store.with_name(f".{store.name}.part")
    if store.exists() or (part.exists() and {path.name for path in part.iterdir()} - {LOCK, MADE_FROM}):
        return False
    shutil.rmtree(part, ignore_errors=True)
    return True


@contextmanager
def locked(store: Path, say: Say) -> Iterator[None]:
    """Lock a store that several runs may share: they wait for the one that writes it."""
    store.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(store.with_name(f".{store.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"Another run is writing {store}: waiting for it")
        lock.acquire()
    except OSError as error:
        raise ScmedleyError(
            f"{store} cannot be written ({error.strerror}). Choose another --store."
        ) from error
    try:
        yield
    finally:
        lock.release()
