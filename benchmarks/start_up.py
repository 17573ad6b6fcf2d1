"""How soon does scMedley answer, and how many packages does it install?

    python benchmarks/start_up.py                 # of the environment that runs it: a minute
    python benchmarks/start_up.py --repeats 9

Each command runs in a process of its own; the fastest of the repeats counts, after one that warms the cache of files.
CPU seconds are of all threads of the process. Packages are those that ``pip install 'scmedley[report]'`` needs, with
scMedley itself.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement

from common import record
from scmedley.io import write_json

CUDA = re.compile(r"nvidia-.*|cuda-.*|triton")
COMMANDS = {
    "python alone": ["-c", "pass"],
    "import torch, anndata": ["-c", "import torch, anndata"],
    "import torch, anndata, scmedley": ["-c", "import torch, anndata, scmedley"],
    "and use MixedEffects, pp.prepare": [
        "-c",
        "import torch, anndata, scmedley; scmedley.MixedEffects, scmedley.pp.prepare",
    ],
    "import scmedley": ["-c", "import scmedley"],
    "scmedley --help": ["-m", "scmedley", "--help"],
    "scmedley run --help": ["-m", "scmedley", "run", "--help"],
    "scmedley --version": ["-m", "scmedley", "--version"],
}
BEYOND = {
    "scmedley beyond torch and anndata": "import torch, anndata, scmedley",
    "first use beyond torch and anndata": "and use MixedEffects, pp.prepare",
}


def main() -> None:
    """Time each command, count the packages, print and store the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "start_up.json")
    options = parser.parse_args()
    times = fastest(options.repeats)
    alone = times["import torch, anndata"]
    for name, command in BEYOND.items():
        times[name] = {part: seconds - alone[part] for part, seconds in times[command].items()}
    for name, found in times.items():
        print(f"{name:36} {found['seconds']:6.2f} s, {found['cpu_seconds']:6.2f} CPU s")
    needed = packages("scmedley", ["report"])
    cuda = sorted(name for name in needed if CUDA.fullmatch(name))
    print(f"{len(needed)} packages with [report], of which {len(cuda)} are torch's CUDA")
    counted = {"packages": sorted(needed - set(cuda)), "cuda": cuda}
    write_json({**record(threads=1), "repeats": options.repeats, "times": times, **counted}, options.out)


def fastest(repeats: int) -> dict[str, dict[str, float]]:
    """Return seconds of the clock and CPU seconds of each command: the fastest of some processes.

    The commands take turns, so that what else the machine does is alike for all.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(1 + repeats):
        for name, command in COMMANDS.items():
            start, before = time.perf_counter(), os.times()
            subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
            seconds, after = time.perf_counter() - start, os.times()
            cpu = after.children_user + after.children_system - before.children_user - before.children_system
            found[name].append((seconds, cpu))
    return {
        name: dict(zip(("seconds", "cpu_seconds"), map(min, zip(*each[1:], strict=True)), strict=True))
        for name, each in found.items()
    }


def packages(name: str, extras: Iterable[str] = ()) -> set[str]:
    """Return the installed packages that a package needs, and itself."""
    found: set[str] = set()
    waiting = [(name, tuple(extras))]
    seen = set(waiting)
    while waiting:
        name, of_extras = waiting.pop()
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            continue
        found.add(re.sub(r"[-_.]+", "-", name).lower())
        for wanted in map(Requirement, lines):
            marker, new = wanted.marker, (wanted.name, tuple(sorted(wanted.extras)))
            if new not in seen and (
                marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *of_extras))
            ):
                seen.add(new)
                waiting.append(new)
    return found


if __name__ == "__main__":
    main()
