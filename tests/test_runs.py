"""The folder that runs, experiments and searches write: its record, and who may write there."""

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from scmedley.errors import ScmedleyError
from scmedley.runs.folder import EXPERIMENT, LOCK, RECORD, SEARCH, locked
from scmedley.runs.record import KINDS, Record

KIND = pytest.mark.parametrize("name", [RECORD, EXPERIMENT, SEARCH])


def record(folder: Path, name: str, **settings: object) -> Record:
    """Return a record as a command begins it."""
    fields = {"command": "run", "versions": {"torch": "2"}, "input": {"name": "a", "sha256": "1"}}
    return Record(folder / name, fields | {KINDS[name].settings: {"seed": 0, "hidden": (8, 4), **settings}})


@KIND
def test_work_begins_in_an_empty_folder_and_continues_in_its_own(tmp_path: Path, name: str) -> None:
    (tmp_path / LOCK).touch()
    record(tmp_path, name).check_place()
    record(tmp_path, name).write("running", warnings=[])
    again = record(tmp_path, name)
    again["input"] = {"name": "b", "sha256": "1", "cells": 3}
    again.check_place()
    found = Record.read(tmp_path / name)
    assert found["status"] == "running"
    assert (found.is_fitted, found.is_finished) == (False, False)


@KIND
def test_other_settings_and_finished_runs_are_refused(tmp_path: Path, name: str) -> None:
    record(tmp_path, name).write("scored")
    other = record(tmp_path, name, seed=1)
    if name == EXPERIMENT:  # its tasks know by themselves what is out of date
        other.check_place()
    else:
        with pytest.raises(ScmedleyError, match="another --seed"):
            other.check_place()
    with pytest.raises(ScmedleyError, match="another input") if name != EXPERIMENT else nullcontext():
        (changed := record(tmp_path, name))["input"] = {"sha256": "2"}
        changed.check_place()
    record(tmp_path, name).write("done")
    with pytest.raises(ScmedleyError, match="finished run") if name == RECORD else nullcontext():
        record(tmp_path, name).check_place()


def test_a_run_resumes_with_other_settings_that_no_fit_depends_on(tmp_path: Path) -> None:
    record(tmp_path, RECORD, donor="donr", denoise=True).write("fitted")
    record(tmp_path, RECORD, donor="donor", denoise=False).check_place()


@KIND
def test_other_peoples_folders_are_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(ScmedleyError, match="and not empty"):
        record(tmp_path, name).check_place()
    for text, words in (
        ("[1]", "not written by"),
        ("{", "cannot be read"),
        ('{"mine": 1}', "not written by"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ScmedleyError, match=words):
            record(tmp_path, name).check_place()
    wrong = {KINDS[name].settings: {}, "report": {"cells": "no"}}
    (tmp_path / name).write_text(json.dumps(wrong))
    with pytest.raises(ScmedleyError, match=r"'report.cells' must hold true or false"):
        Record.read(tmp_path / name)


def test_a_lock_ends_with_its_process_and_keeps_nobody_out_afterwards(tmp_path: Path) -> None:
    hold = "import sys; from pathlib import Path; from scmedley.runs.folder import locked\n"
    hold += "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    folder = tmp_path / "made" / "run"
    command = [sys.executable, "-c", hold, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ScmedleyError, match="Another scmedley process is writing"), locked(folder):
            pass
        other.kill()
    assert (folder / LOCK).exists()  # kill -9 leaves the file, and no lock
    with locked(folder):
        record(folder, RECORD).write("running")
    with pytest.raises(KeyError), locked(tmp_path / "new" / "run"):
        raise KeyError
    assert not (tmp_path / "new").exists()
