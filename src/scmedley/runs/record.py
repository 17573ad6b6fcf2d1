"""The record (JSON) of a run, an experiment or a search: its settings, versions, input and status."""

from __future__ import annotations

import time
from collections.abc import Mapping
from json import JSONDecodeError, dumps, loads
from pathlib import Path
from typing import Any, Literal, NamedTuple

from scmedley.errors import ScmedleyError
from scmedley.io import write_json
from scmedley.runs.folder import EXPERIMENT, LOCK, RECORD, SEARCH

Status = Literal["running", "fitted", "scored", "done"]


class Kind(NamedTuple):
    """A kind of folder: its name in messages, the field of its settings, when a second call is allowed."""

    name: str
    settings: str
    same: tuple[str, ...] = ()  # other fields that a call must share to resume the work
    free: tuple[str, ...] = ()  # settings that may change, because no fit depends on them
    once: bool = False  # a finished folder raises, unless --overwrite is given


KINDS = {
    RECORD: Kind("a run", "config", ("command", "versions", "input"), ("donor", "denoise"), once=True),
    EXPERIMENT: Kind("an experiment", "experiment"),  # its tasks have fingerprints
    SEARCH: Kind("a search", "settings", ("versions", "input")),
}
# Types of the fields that readers rely on; "*" means every field of that object.
PARTS: dict[str, type] = {
    **dict.fromkeys(("config", "settings", "experiment", "versions", "input"), dict),
    **dict.fromkeys(("prepare", "networks", "seconds", "intervals", "report", "store", "sample"), dict),
    **dict.fromkeys(("warnings", "findings", "verdicts"), list),
}
VALUES: dict[str, Any] = {
    **dict.fromkeys(("config.batch", "config.label", "config.fixed"), str),
    **dict.fromkeys(("input.cells", "input.genes", "seconds.*", "intervals.*"), int | float),
    **{f"prepare.{part}_{when}": int | float for part in ("cells", "genes") for when in ("before", "after")},
    **dict.fromkeys(("store.folder", "sample.scores", "sample.null", "sample.pairs"), str),
    **{"prepare.n_hvg": int | float, "networks.*": dict, "report.cells": bool},
}
NAMES: dict[Any, str] = {
    **{int | float: "a number", dict: "an object", list: "a list"},
    **{str: "a text", bool: "true or false"},
}


class Record(dict[str, Any]):
    """The fields of ``run.json``, ``experiment.json`` or ``tune.json``.

    ``status`` is "running", "fitted" (the scores are being written), "scored" (only the report is missing) or
    "done" (written last).
    """

    def __init__(self, path: Path, fields: Mapping[str, Any]):
        super().__init__(fields)
        self.path = path

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read a record.

        Raises
        ------
        ScmedleyError
            The file is missing, cannot be read, or was not written by scmedley.
        """
        kind = KINDS[path.name]
        if not path.is_file():
            other = next((of.name for name, of in KINDS.items() if (path.parent / name).is_file()), None)
            found = f"is {other} folder, and" if other else "is"
            raise ScmedleyError(
                f"{path.parent} {found} not {kind.name} folder ({path.name} is missing). Give the folder of "
                f"{kind.name} that scmedley wrote."
            )
        try:
            fields = loads(path.read_text(encoding="utf-8"))
        except (OSError, JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ScmedleyError(f"{path} cannot be read ({error}). Run again with --overwrite.") from error
        if not isinstance(fields, dict) or kind.settings not in fields:
            raise ScmedleyError(
                f"{path} was not written by scmedley: it must hold a JSON object with {kind.settings!r}. Choose "
                "another folder."
            )
        for name, wanted in PARTS.items():
            _must_be(fields.get(name), wanted, name, path)
        for name, wanted in VALUES.items():
            part, _, key = name.partition(".")
            held: dict[str, Any] = fields.get(part) or {}
            for found in held if key == "*" else [key]:
                _must_be(held.get(found), wanted, f"{part}.{found}", path)
        return cls(path, fields)

    @property
    def is_finished(self) -> bool:
        """Return whether the work is finished."""
        return self.get("status") == "done"

    @property
    def is_fitted(self) -> bool:
        """Return whether the networks are fitted, so that the run can be scored."""
        return self.is_scored or self.get("status") == "fitted"

    @property
    def is_scored(self) -> bool:
        """Return whether the work is finished except for its report."""
        return self.get("status") in ("scored", "done")

    def write(self, status: Status, **fields: Any) -> None:
        """Add fields and write the record."""
        self.update(fields, status=status)
        write_json(self, self.path)

    def check_place(self, overwrite: bool = False) -> None:
        """Raise unless the folder is empty, or holds the same work with the same settings.

        Raises
        ------
        ScmedleyError
            The folder holds a finished run, work with other settings, or something else.
        """
        folder, kind = self.path.parent, KINDS[self.path.name]
        if all(path.name == LOCK for path in folder.iterdir()):
            return
        if not self.path.exists():
            also = (
                f"; --overwrite empties {kind.name.split()[-1]} folders only"
                if overwrite
                else " and not empty"
            )
            raise ScmedleyError(f"{folder} is not {kind.name} folder{also}. Choose another --out.")
        if overwrite:
            return
        before = Record.read(self.path)
        if kind.once and before.is_finished:
            raise ScmedleyError(f"{folder} holds a finished run. Choose another --out, or pass --overwrite.")
        if changed := _changed(before, self, kind):
            overwriting = ", or pass --overwrite" if kind.once else ""
            raise ScmedleyError(
                f"{folder} holds {kind.name} with another {', '.join(changed)}. Repeat its settings to resume it, or "
                f"choose another --out{overwriting}."
            )


def _changed(before: Record, now: Record, kind: Kind) -> list[str]:
    """Return the options and other fields that differ from the record of the folder."""
    new = loads(dumps({name: now[name] for name in (kind.settings, *kind.same)}, default=str))
    changed = []
    if kind.same:
        old = before[kind.settings]
        changed = [
            f"--{k.replace('_', '-')}"
            for k, v in new[kind.settings].items()
            if k not in kind.free and old.get(k) != v
        ]
    for name in kind.same:
        old, value = (one.get(name) for one in (before, new))
        if name == "input":  # the record has more fields
            old, value = ((one or {}).get("sha256") for one in (old, value))
        changed += [name] if old != value else []
    return changed


def _must_be(value: Any, kind: Any, name: str, path: Path) -> None:
    """Raise if a field has a value of the wrong type."""
    if value is not None and not isinstance(value, kind):
        raise ScmedleyError(f"{path}: {name!r} must hold {NAMES[kind]}, not {str(value)[:40]!r}. Run again.")


def now() -> str:
    """Return the current time in the format of the records."""
    return time.strftime("%Y-%m-%d %H:%M:%S %z")
