"""cell-eval on what ``scmedley project`` predicts, beside two baselines and its ceiling: an outside judge.

::

    scmedley run kang.h5ad --batch condition --label cell_type --out run
    scmedley project run --select "condition == 'none' and scmedley_split == 'test'" --to IFNb --out as_ifnb.h5ad
    python benchmarks/judge_cell_eval.py run as_ifnb.h5ad     # in an environment with cell-eval; scmedley is not needed

Control and target are held-out cells; each label is judged alone, as cell-eval compares with one control. Ceiling: of
cell-eval, which splits the held-out cells into halves and corrects for their size (Spearman and Brown); it has none for
errors (mse, mae).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData, read_h5ad
from numpy.typing import NDArray

RESULTS = Path(__file__).parent / "results" / "judge_cell_eval.json"
PACKAGES = ("cell-eval", "pdex", "anndata", "scanpy", "numpy", "pandas", "polars")
LEAST = 10  # held-out cells of a label under either condition
# These compare several perturbations with each other, and here there is one.
SKIPPED = ["clustering_agreement", "pearson_edistance"]
SKIPPED += [f"discrimination_score_{distance}" for distance in ("l1", "l2", "cosine")]
LAYER, SPLIT = "log1p_cp10k", "scmedley_split"


def judge(folder: Path, predicted: Path) -> dict[str, Any]:
    """Return the metrics of each prediction, and the ceiling, for each label and as their mean over labels."""
    config = json.loads((folder / "run.json").read_text())["config"]
    as_if, cells = read_h5ad(predicted), read_h5ad(folder / "integrated.h5ad")
    to = str(as_if.obs["counterfactual_batch"].iloc[0])
    control = str(as_if.obs[config["batch"]].iloc[0])
    as_if.obs_names = as_if.obs_names.str.removesuffix(f" as {to}")
    cells = cells[:, as_if.var_names].copy()
    x_NG = np.asarray(cells.layers[LAYER].todense(), dtype=np.float32)
    batch, label = (cells.obs[config[key]].astype(str).to_numpy() for key in ("batch", "label"))
    train = (cells.obs[SPLIT] == "train").to_numpy()
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in np.unique(label):
        own = (label == name) & (cells.obs[SPLIT] == "test").to_numpy()
        rows = np.flatnonzero(own & (batch == control) & cells.obs_names.isin(as_if.obs_names))
        if min(len(rows), (own & (batch == to)).sum()) < LEAST:
            continue
        target_MG = x_NG[own & (batch == to)]
        known = train & (label == name)
        change_G = x_NG[known & (batch == to)].mean(axis=0) - x_NG[known & (batch == control)].mean(axis=0)
        guesses = {
            "scMedley": _dense(as_if[cells.obs_names[rows]]),
            "difference of training means": x_NG[rows] + change_G,
            "no change": x_NG[rows],
        }
        found[name] = _metrics(x_NG[rows], target_MG, guesses, list(as_if.var_names))
        found[name]["cells"] = {"control": len(rows), "target": len(target_MG)}
    if not found:
        raise SystemExit(
            f"No label has {LEAST} held-out cells under both {control} and {to}: nothing to judge."
        )
    methods = [method for method in next(iter(found.values())) if method != "cells"]
    mean = {
        method: pd.DataFrame([one[method] for one in found.values()]).mean().round(4).to_dict()
        for method in methods
    }
    return {"from": control, "to": to, "mean over labels": mean, "labels": found}


def _dense(adata: AnnData) -> NDArray[Any]:
    return np.asarray(adata.X.todense() if hasattr(adata.X, "todense") else adata.X, dtype=np.float32)


def _metrics(
    control_NG: NDArray[Any], target_MG: NDArray[Any], guesses: dict[str, NDArray[Any]], genes: list[str]
) -> dict[str, dict[str, float]]:
    """Return cell-eval's metrics of each guess, and its ceiling."""
    from cell_eval import MetricsEvaluator

    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        how: Any = {"control_pert": "control", "pert_col": "target", "num_threads": 1, "outdir": folder}
        real = _pair(control_NG, target_MG, genes)
        for name, guess in guesses.items():
            evaluator = MetricsEvaluator(_pair(control_NG, guess, genes), real.copy(), **how)
            results, _ = evaluator.compute(skip_metrics=SKIPPED, write_csv=False)
            found[name] = _numbers(results)
        _, ceiling = evaluator.compute_ceiling(skip_metrics=SKIPPED, write_csv=False)
        found["ceiling"] = _numbers(ceiling)
    return found


def _pair(control_NG: NDArray[Any], other_MG: NDArray[Any], genes: list[str]) -> AnnData:
    """Return control and other cells as cell-eval reads them; it takes no negative values, so these become 0."""
    values = np.vstack([control_NG, np.maximum(other_MG, 0)])
    kind = np.repeat(["control", "changed"], [len(control_NG), len(other_MG)])
    obs = pd.DataFrame({"target": pd.Categorical(kind)}, index=[f"cell{i}" for i in range(len(values))])
    return AnnData(values, obs=obs, var=pd.DataFrame(index=genes))


def _numbers(table: Any) -> dict[str, float]:
    row = table.to_pandas().iloc[0]
    return {
        name: round(float(value), 4)
        for name, value in row.items()
        if name != "perturbation" and pd.notna(value) and np.isfinite(value)
    }


def main() -> None:
    """Judge the prediction that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("predicted", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    found = judge(arguments.run, arguments.predicted)
    run = json.loads((arguments.run / "run.json").read_text())
    about = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": {name: version(name) for name in PACKAGES} | {"scmedley": run["versions"]["scmedley"]},
        "run": {"name": arguments.run.name, "sha256": run["input"]["sha256"], "config": run["config"]},
    }
    arguments.results.write_text(json.dumps(about | found, indent=1) + "\n")
    print(pd.DataFrame(found["mean over labels"]).to_string())


if __name__ == "__main__":
    main()
