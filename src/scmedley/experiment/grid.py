"""Run all fits of an experiment in parallel, here or on a cluster. Finished fits are kept."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import torch
from tqdm.auto import tqdm

from scmedley.device import resolve_device
from scmedley.errors import ScmedleyError
from scmedley.experiment import fit, tables
from scmedley.experiment.cells import all_folds, file_of, keep, lay_out, read_data
from scmedley.experiment.config import Experiment, is_rival
from scmedley.experiment.page import build
from scmedley.experiment.stored import folder_of_stores, lay_out_on_disk
from scmedley.experiment.task import Job, Task, about, fingerprint, tasks
from scmedley.models import catalogue
from scmedley.runs.folder import DATA, EXPERIMENT, OF_EXPERIMENT, TASKS, clear, locked
from scmedley.runs.record import Record

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
    backed: bool | None = None,
    store: Path | None = None,
) -> Record:
    """Run an experiment, or the rest of it; write its tables and report; return its record.

    Parameters
    ----------
    experiment
        Data, folds and methods.
    out
        Folder for the results. Fits finished there with the same settings, data and versions are kept.
    data
        Folder of data that do not come with scmedley.
    jobs
        Number of fits at the same time on this machine; default: one per core.
    scheduler
        Address of a Dask scheduler (``tcp://...``) whose workers do the fits instead. ``out`` must have the
        same path on all of them.
    backed, store
        Whether the cells are prepared on disk, for all fits together, and in which folder (default: in ``out``). By
        default their size and the free memory decide.

    Raises
    ------
    ScmedleyError
        Data or settings cannot be used, the folder holds something else, or a fit of scMedley's own networks
        failed. Failures of other methods are listed in the tables.
    """
    if jobs is not None and jobs < 1:
        raise ScmedleyError(f"--jobs {jobs} must be at least 1.")
    resolve_device(experiment.device)
    _check_extras(scheduler)
    out = out.resolve()
    with locked(out):
        record = Record(out / EXPERIMENT, {"experiment": asdict(experiment)})
        record.check_place()
        fits, classifications = tasks(experiment)
        with _workers(jobs, scheduler, gpus() if experiment.device in ("auto", "cuda") else []) as workers:
            _prepare_cells(record, experiment, data, say, progress, jobs, backed, store)
            _run(fits, experiment, record, workers, "fits", progress)
            _run(classifications, experiment, record, workers, "classifiers", progress)
        if all(about(out, task).get("status") != "done" for task in fits):
            _raise_failures(out, fits)
        say("Writing tables and report")
        record["findings"] = tables.write_tables(experiment, out)
        unfinished = _unfinished(experiment, out, fits)
        record["warnings"] += unfinished
        for warning in unfinished + _failed_rivals(out, fits):
            say(f"Warning: {warning}")
        record.write("scored")
        build(out)
        record.write("done")
    _raise_failures(out, [task for task in fits + classifications if not is_rival(task.method)])
    return record


def _check_extras(scheduler: str | None) -> None:
    """Raise, before hours of fits, if a package for the page or the workers is not installed."""
    from scmedley.report.build import check_extra

    check_extra()
    if scheduler is not None and find_spec("distributed") is None:
        raise ScmedleyError("--scheduler needs Dask: pip install 'scmedley[dask]'")


def _prepare_cells(
    record: Record,
    experiment: Experiment,
    folder: Path | None,
    say: Callable[[str], None],
    progress: bool,
    jobs: int | None,
    backed: bool | None,
    store: Path | None,
) -> None:
    """Prepare the cells for all fits, remove old results that are written again, and start the record."""
    out = record.path.parent
    if any(out in (place / experiment.data).resolve().parents for place in (folder or Path(), Path())):
        raise ScmedleyError(
            f"{experiment.data} is inside --out {out}, which is for results only. Choose another --out."
        )
    path = file_of(experiment, folder)
    place = (
        None
        if path is None
        else folder_of_stores(experiment, path, out, jobs or os.cpu_count() or 1, backed, store)
    )
    if path is None and (backed or store is not None):
        raise ScmedleyError(
            f"The data {experiment.data!r} are no file, and small: leave out --backed and --store."
        )
    if path is not None and place is not None:
        if not record.path.exists():
            record.write("running")  # it identifies the folder, so that the same command goes on
        found = lay_out_on_disk(
            experiment, path, place, lambda obs: all_folds(obs, experiment), say, progress
        )
        _begin_again(out)
        (out / DATA).unlink(missing_ok=True)
        record |= found
        record.write("running")
        return
    adata, found = lay_out(experiment, experiment.data, lambda: read_data(experiment, folder), say)
    record |= found
    _begin_again(out)
    keep(adata, record, say)


def _begin_again(out: Path) -> None:
    """Remove old results that are written again, and what a killed call left."""
    clear(out, [DATA], finished=False)
    clear(out, OF_EXPERIMENT, finished=True)
    half_written = [path.name for path in (out / TASKS).glob(".*")]  # left by a killed task
    clear(out / TASKS, half_written, finished=True)


def _run(
    todo: Sequence[Task],
    experiment: Experiment,
    record: Record,
    workers: Executor | None,
    what: str,
    progress: bool,
) -> None:
    """Run the tasks that are not done. The first unexpected error stops all of them."""
    out, data_hash, versions = record.path.parent, record["input"]["sha256"], record["versions"]
    stores = Path(record["store"]["folder"]) if "store" in record else None
    jobs = [
        Job(
            out,
            experiment,
            task,
            fingerprint(out, experiment, task, data_hash, versions),
            catalogue.added(),
            stores,
        )
        for task in todo
    ]
    left = [job for job in jobs if not job.is_done]
    n_done = len(jobs) - len(left)
    with tqdm(
        total=len(jobs), initial=n_done, desc=what, unit="fit", disable=not progress, smoothing=0.1
    ) as bar:
        if workers is None:
            for job in left:
                fit.run(job)
                bar.update()
            return
        futures = [workers.submit(fit.run, job) for job in left]
        try:
            for future in as_completed(futures):
                future.result()
                bar.update()
        except BaseException:
            for future in futures:
                future.cancel()
            raise


def _unfinished(experiment: Experiment, out: Path, fits: Sequence[Task]) -> list[str]:
    """Return warnings for networks that were still improving when ``max_epochs`` ended their training."""
    said = []
    for method in experiment.methods:
        most = (experiment.changes(method) or {}).get("max_epochs")
        ends = [about(out, task).get("fitted", {}) for task in fits if task.method == method]
        best = [
            end for end in ends if end.get("keep") == "best"
        ]  # the last epoch says nothing if always kept
        short = [end for end in best if end["best_epoch"] == end["epochs"] == most]
        if short:
            said.append(
                f"{method} was still improving when max_epochs = {most} ended {len(short)} of {len(ends)} fits."
            )
    return said


def _failed_rivals(out: Path, fits: Sequence[Task]) -> list[str]:
    """Return warnings for methods of other packages that failed, with the reasons."""
    reasons: dict[str, list[str]] = {}
    for task in fits:
        state = about(out, task)
        if state.get("status") != "done" and is_rival(task.method):
            reasons.setdefault(task.method, []).append(str(state.get("reason", "no record of it")))
    return [
        f"{method} failed in {len(why)} fits, which are missing from the scores: {why[0]}"
        for method, why in reasons.items()
    ]


def _raise_failures(out: Path, todo: Sequence[Task]) -> None:
    failed = [task for task in todo if about(out, task).get("status") != "done"]
    if failed:
        reason = about(out, failed[0]).get("reason", "no record of it")
        raise ScmedleyError(
            f"{len(failed)} of {len(todo)} fits failed, the first, {failed[0].name}: {reason}"
        )


@contextmanager
def _workers(jobs: int | None, scheduler: str | None, gpus: Sequence[str]) -> Iterator[Executor | None]:
    """Yield the executor of the fits: local processes, Dask workers, or ``None`` for this process.

    Of several GPUs, each local process sees one, in turn.
    """
    if scheduler is None and jobs == 1:
        yield None
        return
    if scheduler is None:
        context = get_context("spawn")
        watched: Any = {"initializer": _begin, "initargs": (os.getpid(), context.Value("i", 0), list(gpus))}
        pool = ProcessPoolExecutor(jobs or os.cpu_count() or 1, context, **watched)
        try:
            yield pool
        except BaseException:
            for process in (pool._processes or {}).values():  # otherwise they finish their fits first
                process.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        return
    from distributed import Client

    try:
        client: Any = cast(Any, Client)(scheduler, timeout=SCHEDULER_TIMEOUT)
    except (OSError, ValueError) as error:
        raise ScmedleyError(
            f"No Dask scheduler answers at {scheduler} ({error}). Start one, or correct the address."
        ) from error
    with client, client.get_executor(pure=False) as executor:
        yield executor


def gpus() -> list[str]:
    """Return the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(i) for i in range(torch.cuda.device_count())] if named is None else named.split(",")


def gpu_of(worker: int, gpus: Sequence[str]) -> dict[str, str]:
    """Return the environment that shows a worker, counted from 0, one of several GPUs; empty if there is no choice."""
    return {"CUDA_VISIBLE_DEVICES": gpus[worker % len(gpus)]} if len(gpus) > 1 else {}


def _begin(parent: int, started: Any, gpus: Sequence[str]) -> None:
    """Start a worker: choose its GPU, before anything uses one, and watch its parent."""
    with started.get_lock():
        worker, started.value = started.value, started.value + 1
    os.environ.update(gpu_of(worker, gpus))
    _end_with_parent(parent)


def _end_with_parent(parent: int) -> None:
    """Ignore Ctrl-C, and end this process when its parent is gone, even after kill -9.

    Otherwise it could write to a folder that another command has locked, and Ctrl-C would end a fit early and
    store it as finished. joblib's processes need the same watch, and print warnings when they are ended.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
