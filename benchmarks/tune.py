"""Does a search find better settings than the default preset? Measured on cells that the search did not use.

    python benchmarks/tune.py --out FOLDER

``scmedley tune`` on shipped data sets; a stopped search can be resumed. The test cells, a fifth, are set
aside before the search.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common import BATCH, DATA_SETS, record
from scmedley import datasets
from scmedley.experiment.tune import tune
from scmedley.io import write_json


def main() -> None:
    """Search each set, print default and best on test cells, store both."""
    options = _options()
    found = {}
    for name in options.sets:
        result = tune(
            datasets.path(name),
            options.out / name,
            batch_key=BATCH,
            label_key=DATA_SETS[name].label,
            trials=options.trials,
            threads=options.threads,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
        found[name] = {"best": result["best"], "test": result["test"]}
        for which, scores in result["test"].items():
            print(
                f"{name}, {which}: accuracy {scores['accuracy']:.3f}, leak {scores['leak']:.3f}", flush=True
            )
    write_json(record(options.threads) | {"trials": options.trials, "sets": found}, options.results)


def _options() -> argparse.Namespace:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sets", nargs="+", default=["sc_mixology"], choices=datasets.NAMES)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("tune-runs"), help="folder of the searches")
    parser.add_argument("--results", type=Path, default=here / "results" / "tune.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
