"""How soon does scMedley answer, and how many packages does it install?

    python benchmarks/start_up.py                 # of the environment that runs it: half a minute
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
    "import scmedley": ["-c", "import scmedley"],
    "scmedley --help": ["-m", "scmedley", "--help"],
    "scmedley run --help": ["-m", "scmedley", "run", "--help"],
    "scmedley --version": ["-m", "scmedley", "--version"],
}


def main() -> None:
    """Time each command, count the packages, print and store the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "start_up.json")
    options = parser.parse_args()
    times = {name: fastest(command, options.repeats) for name, command in COMMANDS.items()}
    both = (times["import torch, anndata, scmedley"], times["import torch, anndata"])
    times["scmedley beyond torch and anndata"] = {part: both[0][part] - both[1][part] for part in both[0]}
    for name, found in times.items():
        print(f"{name:36} {found['seconds']:6.2f} s, {found['cpu_seconds']:6.2f} CPU s")
    needed = packages("scmedley", ["report"])
    cuda = sorted(name for name in needed if CUDA.fullmatch(name))
    print(f"{len(needed)} packages with [report], of which {len(cuda)} are torch's CUDA")
    counted = {"packages": sorted(needed - set(cuda)), "cuda": cuda}
    write_json({**record(threads=1), "repeats": options.repeats, "times": times, **counted}, options.out)


def fastest(command: list[str], repeats: int) -> dict[str, float]:
    """Return seconds of the clock and CPU seconds of the fastest of some processes."""
    found = []
    for _ in range(1 + repeats):
        start, before = time.perf_counter(), os.times()
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
        seconds, after = time.perf_counter() - start, os.times()
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        found.append((seconds, cpu))
    seconds, cpu = (min(values) for values in zip(*found[1:], strict=True))
    return {"seconds": seconds, "cpu_seconds": cpu}


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
