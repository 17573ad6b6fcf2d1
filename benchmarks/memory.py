"""How much memory does ``scmedley run`` need beyond the libraries that it imports?

    python benchmarks/memory.py --data FOLDER

Two processes are measured by the kernel's own count of their peak resident memory: one that only imports what
a run imports, and ``scmedley run`` on pbmc_8batches (14,168 cells x 8,210 genes, a file of 22 MB). A few
epochs are enough: the peak does not depend on their number.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import DATA_SETS, DATA_VARIABLE, record
from scmedley.io import write_json

GOAL = 1500.0  # MB (10^6 bytes) above the imported libraries
DATA = DATA_SETS["pbmc_8batches"]
IMPORTS = (
    "import matplotlib.pyplot, umap, scanpy, sklearn.decomposition, scmedley.pipeline.stages, scmedley.report"
)


def main() -> None:
    """Measure both processes, print the difference beside the goal, store the numbers."""
    options = _options()
    file = options.data / DATA.file
    if not file.exists():
        sys.exit(f"{file} is missing. Name its folder with --data or {DATA_VARIABLE}.")
    imported = peak([sys.executable, "-c", IMPORTS], options.threads)
    with tempfile.TemporaryDirectory() as folder:
        run = ["run", str(file), "--batch", "batch", "--label", DATA.label, "--out", f"{folder}/run"]
        sizes = ["--epochs", str(options.epochs), "--threads", str(options.threads)]
        whole = peak([sys.executable, "-m", "scmedley", *run, *sizes], options.threads)
    above = whole - imported
    print(f"scmedley run on {DATA.name}, {options.epochs} epochs: peak {whole:,.0f} MB")
    print(f"the same libraries, only imported: {imported:,.0f} MB")
    verdict = "PASS" if above <= GOAL else "FAIL"
    print(f"{verdict}: {above:,.0f} MB above the imported libraries, goal at most {GOAL:,.0f} MB")
    result = {"peak_MB": whole, "imported_MB": imported, "above_MB": above, "goal_MB": GOAL}
    write_json(record(options.threads) | {"epochs": options.epochs} | result, options.results)


def peak(command: list[str], threads: int) -> float:
    """Return the peak resident memory, in MB, of a process run to its end."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = process.stdout.read() if process.stdout else b""
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"{' '.join(command)} failed:\n{output.decode(errors='replace')}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = Path(os.environ.get(DATA_VARIABLE, "."))
    parser.add_argument("--data", type=Path, default=default, help=f"folder of {DATA.file}")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "memory.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
