"""All fits of an experiment: what is done is kept, the rest runs side by side, here or on a cluster."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

from tqdm.auto import tqdm

from scmedley import io, keys
from scmedley.errors import ScmedleyError, heard
from scmedley.experiment import tables
from scmedley.experiment import task as work
from scmedley.experiment.cells import digest, prepare_once, read_data
from scmedley.experiment.config import Experiment, is_rival
from scmedley.experiment.task import DATA, Task, tasks
from scmedley.runs import folder as run_folder

RECORD = "experiment.json"
OUTPUTS = [tables.SCORES, tables.SUMMARY, tables.CLASSIFIED, tables.CLASSIFIED_SUMMARY, tables.HISTORY]
OUTPUTS += [tables.PREDICTED, tables.PREDICTED_SUMMARY, tables.FITS, run_folder.REPORT]
SCHEDULER_TIMEOUT = "20s"


def run(
    experiment: Experiment,
    out: Path,
    *,
    data: Path | None = None,
    jobs: int | None = None,
    scheduler: str | None = None,
    say: Callable[[str], None] = print,
    progress: bool = True,
) -> dict[str, Any]:
    """Do an experiment, or what is left of it, and write its tables and page; return its record.

    Parameters
    ----------
    experiment
        What is compared.
    out
        Folder of the results. What was finished there under the same settings, data and versions is kept.
    data
        Folder of data that are not shipped.
    jobs
        Fits at one time on this machine; its cores by default.
    scheduler
        Address of a Dask scheduler (``tcp://...``) whose workers do the fits instead. They must see ``out``
        under the same path.

    Raises
    ------
    ScmedleyError
        Data or settings that cannot be used; a folder that holds something else; a fit of scMedley's own
        networks that failed (what a rival did wrong is told in the tables).
    """
    from scmedley.device import resolve_device
    from scmedley.experiment.page import build

    if jobs is not None and jobs < 1:
        raise ScmedleyError(f"--jobs {jobs} must be at least 1.")
    resolve_device(experiment.device)
    out = out.resolve()
    with run_folder.locked(out):
        _check_folder(out)
        fits, classifications = tasks(experiment)
        with _executor(jobs, scheduler) as executor:
            record = _lay_data(experiment, out, data, say)
            _run(fits, experiment, out, record, executor, "fits", progress)
            _run(classifications, experiment, out, record, executor, "classifiers", progress)
        if all(work.about(out, task).get("status") != "done" for task in fits):
            _tell_failures(out, fits)
        say("Writing tables and page")
        record |= {"findings": tables.write_tables(experiment, out), "status": "done"}
        unfinished = _unfinished(experiment, out, fits)
        record["warnings"] += unfinished
        for warning in unfinished + _failed_rivals(out, fits):
            say(f"Warning: {warning}")
        io.write_json(record, out / RECORD)
        build(out)
    _tell_failures(out, [task for task in fits + classifications if not is_rival(task.method)])
    return record


def _check_folder(out: Path) -> None:
    others = [p.name for p in out.iterdir() if p.name != run_folder.LOCK]
    try:
        ours = "experiment" in json.loads((out / RECORD).read_text())
    except (OSError, ValueError, TypeError):
        ours = False
    if others and not ours:
        raise ScmedleyError(f"{out} is no folder of an experiment, and not empty. Choose another --out.")


def _lay_data(
    experiment: Experiment, out: Path, folder: Path | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Filter and normalise the cells, once for all fits; return the record that begins."""
    say(f"Reading {experiment.data}")
    if any(out in (place / experiment.data).resolve().parents for place in (folder or Path(), Path())):
        raise ScmedleyError(
            f"{experiment.data} lies in --out {out}, which is for results only. Choose another --out."
        )
    with heard(lambda line: say(f"Warning: {line}")) as read:  # at once: an error may follow from it
        adata = read_data(experiment, folder)
    checked = prepare_once(adata, experiment)
    columns = {experiment.batch_key, experiment.label_key, experiment.donors, *experiment.targets}
    io.check_columns(adata, sorted(columns & set(adata.obs)))
    say(checked.reason)
    for warning in checked.warnings:
        say(f"Warning: {warning}")
    warnings = read + checked.warnings
    record = {
        "status": "running",
        "experiment": asdict(experiment),
        "input": {"sha256": digest(adata), "cells": adata.n_obs, "genes": adata.n_vars},
        "prepare": adata.uns[keys.UNS]["prepare"],
        "versions": run_folder.versions(),
        "warnings": warnings,
    }
    for left in [*out.glob(f".{DATA}.*"), *(out / work.TASKS).glob(".*")]:  # half-written when it was killed
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    for name in OUTPUTS:  # of what was done here before
        (out / name).unlink(missing_ok=True)
    io.write_json(record, out / RECORD)  # before the data: it marks the folder as an experiment's
    for warning in io.write_h5ad(adata, out / DATA):
        warnings.append(f"{DATA}: {warning}")
        say(f"Warning: {warnings[-1]}")
    return record


def _run(
    todo: Sequence[Task],
    experiment: Experiment,
    out: Path,
    record: dict[str, Any],
    executor: Executor | None,
    what: str,
    progress: bool,
) -> None:
    """Do the tasks that are not done; the first unexpected error ends it all."""
    data_hash, versions = record["input"]["sha256"], record["versions"]
    marks = {task: work.fingerprint(out, experiment, task, data_hash, versions) for task in todo}
    left = [task for task in todo if not work.is_done(out, task, marks[task])]
    bar = tqdm(
        total=len(todo),
        initial=len(todo) - len(left),
        desc=what,
        unit="fit",
        disable=not progress,
        smoothing=0.1,
    )
    with bar:
        if executor is None:
            for task in left:
                work.run(out, experiment, task, marks[task])
                bar.update()
            return
        futures = [executor.submit(work.run, out, experiment, task, marks[task]) for task in left]
        try:
            for future in as_completed(futures):
                future.result()
                bar.update()
        except BaseException:
            for future in futures:
                future.cancel()
            raise


def _unfinished(experiment: Experiment, out: Path, fits: Sequence[Task]) -> list[str]:
    """Return as sentences the networks whose training was still improving when their ``max_epochs`` ended it."""
    said = []
    for method in experiment.methods:
        most = (experiment.changes(method) or {}).get("max_epochs")
        ends = [work.about(out, task).get("fitted", {}) for task in fits if task.method == method]
        short = [end for end in ends if end and end["best_epoch"] == end["epochs"] == most]
        if short:
            said.append(
                f"{method} was still improving when max_epochs = {most} ended {len(short)} of {len(ends)} fits."
            )
    return said


def _failed_rivals(out: Path, fits: Sequence[Task]) -> list[str]:
    """Return which methods that are not ours failed, and why."""
    reasons: dict[str, list[str]] = {}
    for task in fits:
        state = work.about(out, task)
        if state.get("status") != "done" and is_rival(task.method):
            reasons.setdefault(task.method, []).append(str(state.get("reason", "no record of it")))
    return [
        f"{method} failed in {len(why)} fits, so it is in no table of scores: {why[0]}"
        for method, why in reasons.items()
    ]


def _tell_failures(out: Path, todo: Sequence[Task]) -> None:
    failed = [task for task in todo if work.about(out, task).get("status") != "done"]
    if failed:
        reason = work.about(out, failed[0]).get("reason", "no record of it")
        raise ScmedleyError(
            f"{len(failed)} of {len(todo)} fits failed, the first, {failed[0].name}: {reason}"
        )


@contextmanager
def _executor(jobs: int | None, scheduler: str | None) -> Iterator[Executor | None]:
    """Yield what runs the fits: processes of this machine, this process alone, or a Dask scheduler's workers."""
    if scheduler is None and jobs == 1:
        yield None
        return
    if scheduler is None:
        pool = ProcessPoolExecutor(
            jobs or os.cpu_count() or 1,
            mp_context=get_context("spawn"),
            initializer=_end_with_parent,
            initargs=(os.getpid(),),
        )
        try:
            yield pool
        except BaseException:
            for process in (pool._processes or {}).values():  # they would finish their fits first
                process.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise ScmedleyError("--scheduler needs Dask: pip install 'scmedley[dask]'") from error
    try:
        client: Any = cast(Any, Client)(scheduler, timeout=SCHEDULER_TIMEOUT)
    except (OSError, ValueError) as error:
        raise ScmedleyError(
            f"No Dask scheduler answers at {scheduler} ({error}). Start one, or correct it."
        ) from error
    with client, client.get_executor(pure=False) as executor:
        yield executor


def _end_with_parent(parent: int) -> None:
    """End this process when the one that would fetch its results is gone, even by kill -9; leave Ctrl-C to that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
