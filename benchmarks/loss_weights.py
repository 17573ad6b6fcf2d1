"""Are automatic loss weights as good as the published ones, which were tuned by hand?

    python benchmarks/loss_weights.py --out FOLDER

The published form of the fixed-effects network, with lambda_MSE : lambda_A of the three published data sets
and with ``weights="auto"`` (``scmedley/nn/balance.py``), on three real data sets that come with the package.
Scores are those of ``quality.py``, on held-out test cells. Every fit is a JSON file under ``--out``, so that
a stopped run can be resumed.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

import scmedley as sm
from common import BATCH, cached, record
from quality_methods import prepared, score
from scmedley.io import write_json
from scmedley.nn.balance import SHARES

if TYPE_CHECKING:
    from anndata import AnnData

# Epochs at most, the same for all weights: about 500 minibatches each. The published 500 epochs would take
# hours on the larger sets.
SETS = {"sc_mixology": 250, "onek1k": 50, "pancreas": 500}
AUTO = "auto"
METHODS: dict[str, dict[str, Any]] = {
    "AML 1000:1": {"mse_weight": 1000.0},
    "ASD 2000:1": {"mse_weight": 2000.0},
    "Heart 600:1": {"mse_weight": 600.0},
    AUTO: {"weights": "auto"},
}
SCORES = ["leak", "accuracy", "asw_batch", "asw_label"]
TERM = "adversarial"
MARGIN = 0.01  # smaller differences of means do not count


def main() -> None:
    """Run what is missing, print the table and which weights are better, store both."""
    options = _options()
    runs = []
    for name in options.sets:
        for seed in range(1, options.seeds + 1):  # seed 0 is the one on which the share was chosen
            prepare = partial(prepared, name, None, seed)
            for method in METHODS:
                file = f"{method.replace(' ', '-').replace(':', '-')}-{SETS[name]}-{SHARES[TERM]:g}.json"
                fitted = partial(_run, prepare, method, SETS[name], seed, options.threads)
                result = cached(options.out / name / f"seed{seed}" / file, fitted)
                runs.append({"set": name, "seed": seed, "method": method} | result)
                print(_line(runs[-1]), file=sys.stderr, flush=True)
    table = pd.DataFrame(runs)
    if table.empty:
        sys.exit("No data set was found.")
    summary = table.groupby(["set", "method"], sort=False)[SCORES].agg(["mean", "std"])
    print(as_text(table))
    lines = verdicts(table)
    print("\n".join(lines))
    summary.columns = ["_".join(column) for column in summary.columns]
    about = record(options.threads) | {"seeds": options.seeds, "epochs": SETS, "share": SHARES[TERM]}
    tables = {"summary": summary.reset_index().to_dict("records"), "runs": runs, "verdicts": lines}
    write_json(about | tables, options.results)


def _run(prepare: Any, method: str, epochs: int, seed: int, threads: int) -> dict[str, Any]:
    """Fit the published network with a method's weights; score its latent on the held-out cells."""
    adata: AnnData = prepare()
    settings = sm.FixedEffects.preset("paper").replace(max_epochs=epochs, **METHODS[method])
    began = time.perf_counter()
    model = sm.FixedEffects(BATCH, settings=settings)
    model.fit(adata, seed=seed, threads=threads, progress=sys.stderr.isatty())
    seconds = time.perf_counter() - began
    scores = score({"z": model.get_latent_representation(adata)}, adata, BATCH, seed)
    at_best = model.history.query("part == 'validation' and epoch == @model.fitted['best_epoch']")
    values, weights = (at_best.set_index("term")[column] for column in ("value", "weight"))
    return scores | {
        "epochs": model.fitted["epochs"],
        "best_epoch": model.fitted["best_epoch"],
        "reconstruction": float(values["reconstruction"]),
        # lambda_MSE for each lambda_A of 1, as the published weights are written.
        "ratio": float(weights["reconstruction"]) / float(weights[TERM]),
        "seconds": round(seconds, 1),
    }


def as_text(table: pd.DataFrame) -> str:
    """Return means and standard deviations over seeds as a Markdown table."""
    columns = [*SCORES, "ratio"]
    rows = ["| set | weights | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for (name, method), runs in table.groupby(["set", "method"], sort=False):
        cells = [f"{runs[c].mean():.3f} ± {runs[c].std():.3f}" for c in SCORES]
        rows.append(f"| {name} | {method} | " + " | ".join([*cells, f"{runs['ratio'].mean():.0f}:1"]) + " |")
    return "\n".join(rows)


def verdicts(table: pd.DataFrame) -> list[str]:
    """Return for each set whether automatic weights leak no more than each published pair, and keep the labels."""
    lines = []
    for name, runs in table.groupby("set", sort=False):
        mean = runs.groupby("method")[["leak", "accuracy"]].mean()
        leak, accuracy = mean.leak.to_dict(), mean.accuracy.to_dict()
        for method in METHODS:
            if method == AUTO:
                continue
            more_leak, more_accuracy = leak[AUTO] - leak[method], accuracy[AUTO] - accuracy[method]
            holds = more_leak <= MARGIN and more_accuracy >= -MARGIN
            lines.append(
                f"{'PASS' if holds else 'FAIL'}  {name}, auto less {method}: leak {more_leak:+.3f}, "
                f"accuracy {more_accuracy:+.3f}"
            )
    return lines


def _line(run: dict[str, Any]) -> str:
    values = ", ".join(f"{s} {run[s]:.3f}" for s in SCORES)
    return f"{run['set']} seed {run['seed']} {run['method']}: {values}, {run['seconds']} s"


def _options() -> argparse.Namespace:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--out", type=Path, default=Path("loss-weights-runs"), help="folder of single results"
    )
    parser.add_argument("--results", type=Path, default=here / "results" / "loss_weights.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
