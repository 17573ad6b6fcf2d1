"""Held-out pairs of batch and label: predictions of networks and baselines, and their comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scmedley import keys
from scmedley.data.arrays import dense
from scmedley.evaluate import counterfactual as held_out
from scmedley.evaluate.counterfactual import BASELINES, CEILING, HeldOut
from scmedley.evaluate.statistics import t_interval
from scmedley.experiment.cells import pairs
from scmedley.experiment.config import Experiment
from scmedley.experiment.network import fit_network
from scmedley.experiment.task import BASELINES as NO_NETWORK
from scmedley.experiment.task import Job
from scmedley.models.catalogue import is_null
from scmedley.models.counterfactual import counterfactual
from scmedley.runs.folder import HISTORY, PREDICTED

SOURCE_CELLS = 1000  # maximum number of cells that are predicted in the held-out batch
ONE = "one pair: no verdict"
TIE_R2 = 0.01  # mean R²Δ: a network that is behind by this or less still ties


def predict(job: Job, folder: Path) -> dict[str, Any]:
    """Predict the held-out pair of a task by its network or the baselines; write the measures to ``folder``.

    A predicted cell is a source cell plus its own predicted change. Reconstructions alone lack the noise of
    cells and would be too similar to each other.
    """
    experiment, task, adata = job.experiment, job.task, job.read_cells()
    batch, label = pairs(adata.obs, experiment)[task.fold]
    rows = source_rows(adata, experiment, batch, label)
    state: dict[str, Any] = {}
    if task.method == NO_NETWORK:
        genes = adata.var_names[adata.var[keys.HVG].to_numpy(dtype=bool)]
        found = _by_baselines(adata[:, genes], experiment, rows, batch, label)
    else:
        model, reading = fit_network(job, adata)
        genes = pd.Index(model.genes)
        held = held_out_pair(adata[:, genes], experiment, rows, batch, label)
        to = str(adata.obs[experiment.batch_key].cat.categories[batch])
        shown = counterfactual(model, reading.take(rows), to)
        assert isinstance(shown, AnnData)  # because no file was given
        change_NG = np.asarray(shown.layers["difference"], dtype=np.float64)
        found = {task.method: held_out.measure(held, change_NG.mean(axis=0), held.source_NG + change_NG)}
        model.history.to_csv(folder / HISTORY, index=False)
        state["fitted"] = model.fitted
    names = {
        name: str(adata.obs[key].cat.categories[code])
        for name, key, code in (
            ("batch", experiment.batch_key, batch),
            ("label", experiment.label_key, label),
        )
    }
    n_target = int((adata.obs[keys.SPLIT] == "test").sum())
    table = pd.DataFrame([names | {"method": method} | values for method, values in found.items()])
    table = table.assign(n_source=len(rows), n_target=n_target, n_genes=len(genes))
    table.to_csv(folder / PREDICTED, index=False)
    return state


def source_rows(adata: AnnData, experiment: Experiment, batch: int, label: int) -> np.ndarray:
    """Return the source cells: those of the label in all other batches, sampled if they are many."""
    of_label = adata.obs[experiment.label_key].cat.codes.to_numpy() == label
    rows = np.flatnonzero(of_label & (adata.obs[experiment.batch_key].cat.codes.to_numpy() != batch))
    if len(rows) > SOURCE_CELLS:
        rows = np.random.default_rng(experiment.seeds[0]).choice(rows, SOURCE_CELLS, replace=False)
    return np.sort(rows)


def held_out_pair(
    adata: AnnData, experiment: Experiment, rows: np.ndarray, batch: int, label: int
) -> HeldOut:
    """Return the values of source cells and held-out cells, and the means of the label in other batches."""
    # In float32 a mean depends on the order of its cells.
    x_NG: Any = adata.layers[keys.LOGNORM].astype(np.float64)
    batch_N, label_N = (
        adata.obs[k].cat.codes.to_numpy() for k in (experiment.batch_key, experiment.label_key)
    )
    others = [np.flatnonzero((batch_N == b) & (label_N == label)) for b in np.unique(batch_N) if b != batch]
    others = [cells for cells in others if len(cells) >= held_out.LEAST_CELLS]
    target = np.flatnonzero((batch_N == batch) & (label_N == label))
    means = [np.asarray(x_NG[cells].mean(axis=0)).ravel() for cells in others]
    return HeldOut(
        dense(x_NG[rows]),
        dense(x_NG[target]),
        np.stack(means) if means else np.empty((0, adata.n_vars)),
    )


def _by_baselines(
    adata: AnnData, experiment: Experiment, rows: np.ndarray, batch: int, label: int
) -> dict[str, dict[str, float]]:
    held = held_out_pair(adata, experiment, rows, batch, label)
    learnt = adata[(adata.obs[keys.SPLIT] != "test").to_numpy()]
    batch_N, label_N = (
        learnt.obs[k].cat.codes.to_numpy() for k in (experiment.batch_key, experiment.label_key)
    )
    from_N = adata.obs[experiment.batch_key].cat.codes.to_numpy()[rows]
    weight_B = np.bincount(from_N, minlength=adata.obs[experiment.batch_key].cat.categories.size).astype(
        float
    )
    x_NG: Any = learnt.layers[keys.LOGNORM]
    shifts = held_out.label_shifts(x_NG, batch_N, label_N, batch=batch, label=label, weight_B=weight_B)
    found = {
        name: held_out.measure(held, change_G) for name, change_G in held_out.baselines(held, *shifts).items()
    }
    return found | {CEILING: held_out.ceiling(held)}


def verdicts(predicted: pd.DataFrame) -> pd.DataFrame:
    """Compare each network with the best baseline over pairs, by R²Δ.

    Only pairs that every network and baseline predicts are used (:func:`common_pairs`). The best baseline has
    the highest mean over them.

    Returns
    -------
    DataFrame
        One row per network: method, baseline (the best), difference (mean of network minus baseline over
        pairs) with its 95 % t-interval difference_low and difference_high, n_better (pairs in which the
        network is better), n_pairs, and the verdict. "better": the interval is above 0; "worse": not better,
        and the difference is below -0.01; "ties": otherwise; "one pair: no verdict".
    """
    per_pair = common_pairs(predicted)
    rows = []
    if len(per_pair):
        baseline = str(per_pair[[name for name in BASELINES if name in per_pair]].mean().idxmax())
        for method in [m for m in per_pair if m not in BASELINES]:
            ahead = per_pair[method] - per_pair[baseline]
            mean, low, high = t_interval(ahead.tolist())
            verdict = "better" if low > 0 else "ties" if mean >= -TIE_R2 else "worse"
            row = {"method": method, "baseline": baseline, "difference": mean}
            row |= {"difference_low": low, "difference_high": high, "n_better": int((ahead > 0).sum())}
            rows.append(row | {"n_pairs": len(ahead), "verdict": verdict if len(ahead) > 1 else ONE})
    columns = ["method", "baseline", "difference", "difference_low", "difference_high", "n_better", "n_pairs"]
    return pd.DataFrame(rows, columns=[*columns, "verdict"])


def common_pairs(predicted: pd.DataFrame) -> pd.DataFrame:
    """Return R²Δ (pairs x methods) of the pairs that all networks and baselines predict.

    The ceiling is left out, and so is a baseline that predicts no pair.
    """
    per_pair = predicted.pivot_table(index="fold", columns="method", values="r2", sort=False)
    per_pair = per_pair.drop(columns=CEILING, errors="ignore")
    return per_pair.dropna(axis="columns", how="all").dropna()


def finding(predicted: pd.DataFrame) -> str:
    """Return sentences that compare the networks with the baselines and the ceiling on held-out pairs."""
    judged, common = verdicts(predicted), common_pairs(predicted)
    n_pairs = predicted["fold"].nunique()
    mean = common.mean()
    best_first = mean[[name for name in BASELINES if name in mean]].sort_values(
        ascending=False, kind="stable"
    )
    models = ", ".join(f"{method} {mean[method]:z.2f}" for method in judged["method"])
    simple = ", ".join(f"{name} {value:z.2f}" for name, value in best_first.items())
    ceiling = predicted[(predicted["method"] == CEILING) & predicted["fold"].isin(common.index)]["r2"].mean()
    top = "" if np.isnan(ceiling) else f"; {CEILING} {ceiling:z.2f}"
    n = f"{n_pairs} held-out pair{'s' * (n_pairs > 1)}"
    n = n if len(common) == n_pairs else f"the {len(common)} of {n} that all methods predict, pairs"
    said = [
        f"Predicted share of the change of the mean (R²Δ) for {n} of batch and label: {models}; {simple}{top}."
    ]
    return " ".join(
        [*said, *(_verdict(row) for row in judged.to_dict("records") if not is_null(row["method"]))]
    )


def _verdict(row: dict[Any, Any]) -> str:
    """Return a sentence that compares a network with the best baseline."""
    if row["verdict"] == ONE:
        return (
            f"{row['method']} differs by {row['difference']:z.2f} from the best baseline, {row['baseline']} (one pair: "
            "no verdict)."
        )
    low, high = row["difference_low"], row["difference_high"]
    interval = "" if np.isnan(low) else f" [{low:z.2f}, {high:z.2f}]"
    words = {"better": "is better than", "ties": "only ties with", "worse": "is worse than"}[row["verdict"]]
    return (
        f"{row['method']} {words} the best baseline, {row['baseline']}: a difference of {row['difference']:z.2f}"
        f"{interval}, better in {row['n_better']} of {row['n_pairs']} pairs."
    )
