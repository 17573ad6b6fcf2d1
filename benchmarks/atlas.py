"""Atlases of 10^5 and 10^6 cells x 20,000 genes: seconds, cells per second and memory of every step, beside rivals.

    python benchmarks/atlas.py data --cells 100000 --out FOLDER       # simulate an atlas (atlas_data.py)
    python benchmarks/atlas.py measure --cells 100000 --out FOLDER    # all steps; resumes, --again measures anew
    python benchmarks/atlas.py rivals --cells 100000 --out FOLDER     # scVI, Harmony, annbatch: --python of each
    python benchmarks/atlas.py table                                  # results/atlas.json as results/atlas.md

Each step (``atlas_steps.py``, ``atlas_rivals.py``) is a process of its own. Its memory is read from the system 20 times
a second: peak resident memory (VmHWM), which counts mapped pages of files that the system may take back at any time,
and the peak of what belongs to the process alone (RssAnon).
"""

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import atlas_data
import atlas_steps
import atlas_table
from common import record
from scmedley.io import write_json

HERE = Path(__file__).parent
SECONDS = 0.05  # between two looks at the memory
EPOCHS = 5
MOST_IN_MEMORY = 200_000  # cells: a million would take all the memory of most machines
RUN = "run"
RIVALS = {
    "scvi": ("scVI", "scVI, backed", "scVI, embed"),
    "harmony": ("Harmony",),
    "annbatch": ("annbatch, write", "annbatch, load"),
}
Result = dict[str, Any]


def main() -> None:
    """Do what the command says."""
    options = _options()
    if options.command == "table":
        atlas_table.write(options.results)
        return
    folder = options.out / str(options.cells)
    if options.command == "data":
        make(folder, options.cells)
        return
    if not (folder / atlas_steps.FILE).exists():
        make(folder, options.cells)
    if options.command == "measure":
        steps = {name: [sys.executable, str(HERE / "atlas_steps.py"), name] for name in atlas_steps.STEPS}
        steps |= {RUN: []}
        if options.cells > MOST_IN_MEMORY:
            del steps["prepare in memory"]
    else:
        pythons = {name: getattr(options, name) for name in RIVALS}
        steps = {
            method: [pythons[name], str(HERE / "atlas_rivals.py"), method]
            for name, methods in RIVALS.items()
            for method in methods
        }
    for name in options.steps or steps:
        measure(name, steps[name], folder, options)


def make(folder: Path, n_cells: int) -> None:
    """Simulate an atlas."""
    began = time.perf_counter()
    path = folder / atlas_steps.FILE
    atlas_data.simulate(path, n_cells)
    seconds = time.perf_counter() - began
    print(f"{path}: {n_cells / seconds:,.0f} cells/s, {path.stat().st_size / 1e9:.2f} GB", flush=True)


def measure(name: str, command: list[str], folder: Path, options: argparse.Namespace) -> None:
    """Measure one step, unless the results have it, and store what was found."""
    stored: Result = json.loads(options.results.read_text()) if options.results.exists() else {}
    found = stored.setdefault("measured", {}).setdefault(str(options.cells), {})
    if name in found and "error" not in found[name] and not options.again:
        return
    print(f"{options.cells:,} cells, {name} ...", end=" ", flush=True)
    if name == RUN:
        result = whole_run(folder, options.threads)
    else:
        result = watched([*command, str(folder), "--threads", str(options.threads)], options.threads)
    found[name] = result | {"threads": options.threads}
    write_json(record(options.threads) | stored, options.results)
    shown = ("seconds", "cpu_seconds", "cells_per_second", "peak_MB", "own_MB", "error")
    print(
        ", ".join(
            f"{key} {result[key]:,.0f}" if key != "error" else result[key] for key in shown if key in result
        )
    )


def whole_run(folder: Path, threads: int) -> Result:
    """Run ``scmedley run`` from the file to the report."""
    out = folder / "run"
    shutil.rmtree(out, ignore_errors=True)
    atlas_steps.forget(folder / atlas_steps.FILE)
    what = [
        "run",
        folder / atlas_steps.FILE,
        "--out",
        out,
        "--batch",
        atlas_data.BATCH,
        "--label",
        atlas_data.LABEL,
    ]
    how = ["--backed", "--epochs", EPOCHS, "--genes", atlas_steps.GENES, "--threads", threads]
    result = watched([sys.executable, "-m", "scmedley", *map(str, [*what, *how])], threads)
    if "error" in result:
        return result
    run = json.loads((out / "run.json").read_text())
    sizes = {f.name: f.stat().st_size for f in out.iterdir() if f.is_file()}
    return result | {
        "cells": run["input"]["cells"],
        "seconds": result["wall"],
        "cpu_seconds": result["process_cpu_seconds"],
        "stages": run["seconds"],
        "bytes": sizes,
        "warnings": run.get("warnings", []),
        "verdicts": run.get("verdicts", []),
    }


def watched(command: list[str], threads: int) -> Result:
    """Run a process to its end; return the JSON of its last line with its peaks of memory, in MB (10^6 bytes)."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    began = time.perf_counter()
    peak = own = 0.0
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            found = memory(process.pid)
            peak, own = max(peak, found.get("VmHWM", 0.0)), max(own, found.get("RssAnon", 0.0))
            time.sleep(SECONDS)
        wall = time.perf_counter() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        output.seek(0)
        lines = output.read().strip().splitlines()
    about: Result = {"wall": wall, "peak_MB": peak, "own_MB": own}
    about["process_cpu_seconds"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if process.returncode:
        last = lines[-1] if lines else "no output"
        return about | {"error": f"exit status {process.returncode}: {last}"}
    return (json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}) | about


def memory(pid: int) -> dict[str, float]:
    """Return the lines of a process's status that are in kB, as MB; empty where the system has no /proc."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return {}
    return {
        name: int(kb) * 1024 / 1e6 for name, kb in re.findall(r"^(\w+):\s+(\d+) kB$", status, re.MULTILINE)
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    results = HERE / "results" / "atlas.json"
    for name in ("data", "measure", "rivals", "table"):
        command = commands.add_parser(name)
        command.add_argument("--results", type=Path, default=results)
        if name == "table":
            continue
        command.add_argument("--cells", type=int, default=100_000)
        command.add_argument(
            "--out", type=Path, required=True, help="folder for the data: 9 GB for a million cells"
        )
        command.add_argument("--threads", type=int, default=1)
        command.add_argument("--steps", nargs="+", help="default: all")
        command.add_argument("--again", action="store_true", help="measure what the results have already")
        if name == "rivals":
            for rival in RIVALS:
                command.add_argument(f"--{rival}", default=sys.executable, help=f"Python that has {rival}")
    return parser.parse_args()


if __name__ == "__main__":
    main()
