"""How good are the embeddings? Real data sets, several seeds, each number beside rival methods and its null.

    python benchmarks/quality.py --data FOLDER --peers --out FOLDER      # fit and score what is missing; tables; page
    python benchmarks/quality.py --methods scVI scANVI ...               # in another environment, the same --out

Each (data set, seed, method) leaves three files under ``--out``: its embedding (``.npz``), the facts of the fit
(``.json``, written last) and its scores (``.scores-*.json``). The same command therefore resumes a stopped run,
and new scores need no new fits. Several processes can share the folder, on one machine: each takes the next fit
that is missing and that no other process has locked.

A method is scored on held-out cells (20 %, stratified by batch and label). Genes, scaling and principal
components are chosen on the training cells. Methods are compared in two groups: fitted on the training cells
(Harmony's correction is then applied to the other cells: :mod:`symphony`), and fitted on all cells.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from threadpoolctl import threadpool_limits

from common import DATA_SETS, record
from quality_methods import METHODS, SCORING, Method, fit, prepared, score, short_hash
from quality_page import draw, write_page
from quality_tables import accept, as_text, markdown, read_json, summarise
from scmedley.errors import ScmedleyWarning
from scmedley.io import replacing, sha256, write_json

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Task:
    """A method on a data set with a seed, and its files."""

    set: str
    seed: int
    method: Method
    folder: Path
    data_hash: str

    @cached_property
    def fit_file(self) -> Path:
        """Return the file of the facts. Of a method that is not installed here: the newest file of another place."""
        start = re.sub(r"\W+", "-", self.method.name)
        if self.method.settings is not None:
            return self.folder / f"{start}-{self.method.settings}-{self.data_hash}.json"
        pattern = re.compile(re.escape(start) + rf"-[0-9a-f]{{8}}-{self.data_hash}\.json")
        found = [path for path in self.folder.glob("*.json") if pattern.fullmatch(path.name)]
        return max(found, key=lambda path: path.stat().st_mtime, default=self.folder / f"{start}-none.json")

    @property
    def embedding_file(self) -> Path:
        """Return the file of the embeddings."""
        return self.fit_file.with_suffix(".npz")

    @property
    def score_file(self) -> Path:
        """Return the file of the scores."""
        return self.fit_file.with_suffix(f".scores-{SCORING}.json")

    @property
    def finished(self) -> bool:
        """Return whether the method was fitted and scored, or could not be fitted."""
        return self.score_file.exists() or read_json(self.fit_file).get("status") in ("failed", "skipped")

    def row(self) -> dict[str, Any]:
        """Return all that is stored of it."""
        about = {"set": self.set, "seed": self.seed, "method": self.method.name}
        return about | read_json(self.fit_file) | read_json(self.score_file)


def main() -> None:
    """Run what is missing; print tables and PASS or FAIL for each claim; store the summary and the page."""
    options = _options()
    if not options.tables_only:
        _forget(options)
        _run(options)
    rows = [task.row() for task in tasks(options, list(METHODS)) if task.finished]
    if not rows:
        sys.exit("No data set was found, or nothing is finished.")
    summary, bars = summarise(pd.DataFrame(rows)), accept(pd.DataFrame(rows))
    print(markdown(summary) if options.markdown else as_text(summary, bars))
    about = record(options.threads) | {"seeds": options.seeds}
    write_json(
        about | {"summary": summary.to_dict("records"), "bars": bars.to_dict("records"), "runs": rows},
        options.results,
    )
    write_page(summary, bars, about, options.results.with_suffix(".html"))
    draw(summary, options.picture)


def _forget(options: argparse.Namespace) -> None:
    """Remove the scores that are to be computed again, and the failures that are to be tried again."""
    for task in tasks(options, options.methods):
        if options.rescore:
            task.score_file.unlink(missing_ok=True)
        if options.retry and read_json(task.fit_file).get("status") == "failed":
            task.fit_file.unlink()


def _run(options: argparse.Namespace) -> None:
    """Fit and score what is missing, in ``--jobs`` processes."""
    if options.jobs == 1:
        work(options)
        return
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=work, args=(options,)) for _ in range(options.jobs)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        sys.exit("A process failed; its error is above. The same command goes on with what is missing.")


def work(options: argparse.Namespace) -> None:
    """Fit and score what is missing and not locked; then wait for what other processes have locked."""
    warnings.filterwarnings("ignore", category=ScmedleyWarning)
    left = [task for task in tasks(options, options.methods) if not task.finished]
    with threadpool_limits(options.threads):
        for wait in (False, True):
            left = [task for task in left if not done(task, options, wait=wait)]


def done(task: Task, options: argparse.Namespace, *, wait: bool) -> bool:
    """Fit and score; return ``False`` if another process has the lock and ``wait`` is not set."""
    task.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(task.folder / f".{task.fit_file.stem}.lock")
    try:
        with lock.acquire(timeout=-1 if wait else 0):
            if task.finished:  # by another process
                return True
            adata = prepared(task.set, options.data, task.seed)
            facts = read_json(task.fit_file)
            if not facts:
                embeddings, facts = fit(task.method, adata, task.seed, options.threads)
                with replacing(task.embedding_file) as temporary:
                    np.savez(temporary, **embeddings)  # type: ignore[arg-type]
                write_json(facts, task.fit_file)
            if facts["status"] == "done":
                with np.load(task.embedding_file) as stored:
                    scores = score(dict(stored), adata, task.method.key, task.seed)
                write_json(scores, task.score_file)
    except Timeout:
        return False
    print(_line(task.row()), file=sys.stderr, flush=True)
    return True


def tasks(options: argparse.Namespace, methods: list[str]) -> Iterator[Task]:
    """Yield every method on every data set whose file is there, with every seed."""
    for name in options.sets:
        data = DATA_SETS[name]
        path = data.path(options.data)
        if not path.exists():
            print(f"{name}: skipped, there is no {path}. Name its folder with --data.", file=sys.stderr)
            continue
        digest = short_hash(sha256(path), data.label, data.without)
        for seed in range(options.seeds):
            for method in methods:
                yield Task(name, seed, METHODS[method], options.out / name / f"seed{seed}", digest)


def _line(row: dict[str, Any]) -> str:
    """Return the main numbers of a task in one line."""
    start = f"{row['set']} seed {row['seed']} {row['method']}"
    if row["status"] != "done":
        return f"{start}: {row['status']}, {row['reason']}"
    shown = ("leak", "accuracy", "bras", "nmi", "cpu_seconds")
    return f"{start}: " + ", ".join(f"{s} {row[s]:.3f}" for s in shown if row.get(s) is not None)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument
    add("--sets", nargs="+", default=list(DATA_SETS), choices=DATA_SETS, help="default: all")
    add("--methods", nargs="+", choices=METHODS, metavar="NAME", help=f"of {', '.join(METHODS)}")
    add("--paper", action="store_true", help="also the published form of RE, and its null")
    add("--peers", action="store_true", help="also the rivals, where installed")
    add("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    add("--jobs", type=int, default=1, help="processes, each of --threads")
    add("--threads", type=int, default=1)
    add("--data", type=Path, help="folder of the data sets that are not shipped")
    add("--out", type=Path, default=Path("quality-runs"), help="embeddings and scores; goes on there")
    add("--rescore", action="store_true", help="score again what is fitted")
    add("--retry", action="store_true", help="fit again what failed")
    add("--tables-only", action="store_true", help="fit nothing; tables and page of what is finished")
    add("--markdown", action="store_true", help="print the short table of the README alone")
    add("--results", type=Path, default=HERE / "results" / "quality.json", help="the page is beside it")
    add("--picture", type=Path, default=HERE.parent / "docs" / "images" / "quality.png")
    options = parser.parse_args()
    if options.methods is None:
        options.methods = _default_methods(options.peers, options.paper)
    missing = [name for name in options.methods if METHODS[name].settings is None]
    if missing:
        parser.error(f"{', '.join(missing)}: not installed here (pip install 'scmedley[peers]').")
    return options


def _default_methods(peers: bool, paper: bool) -> list[str]:
    """Return our methods, and the others that are asked for; tell which are not installed."""
    names = []
    for name, method in METHODS.items():
        asked = method.default or (paper and method.preset == "paper")
        if not asked or (method.rival is not None and not peers):
            continue
        if method.rival is not None and not method.rival.installed:
            print(f"{name}: not installed (pip install {method.rival.package})", file=sys.stderr)
            continue
        names.append(name)
    return names


if __name__ == "__main__":
    main()
