"""Join the results of all fits: tidy tables, means with intervals over folds, findings in words."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scmedley import io
from scmedley.evaluate.classify import COMPOSITION
from scmedley.evaluate.counterfactual import MEASURES
from scmedley.evaluate.probes import PROBES
from scmedley.evaluate.statistics import t_interval
from scmedley.experiment import task as work
from scmedley.experiment.config import Experiment
from scmedley.experiment.pairs import finding, verdicts
from scmedley.experiment.task import Task, tasks
from scmedley.models.catalogue import FE, PCA, RE, methods
from scmedley.pipeline.findings import NAMES
from scmedley.runs.folder import (
    CLASSIFIED,
    CLASSIFIED_SUMMARY,
    FITS,
    HISTORY,
    PREDICTED,
    PREDICTED_SUMMARY,
    SCORES,
    SUMMARY,
    TASKS,
)

# Numbers are read exactly. Since version 3.1 pandas does this by default and warns if it is requested.
EXACT: dict[str, Any] = (
    {} if tuple(map(int, pd.__version__.split(".")[:2])) >= (3, 1) else {"float_precision": "round_trip"}
)

HEADLINE = (
    *(f"{FE.name} + {other}" for other in (RE.name, f"{RE.name}, adapted", RE.null)),
    *(FE.name, PCA, COMPOSITION),
)
CLASSIFIED_BY = ["target", "held_out", "caution", "embedding"]
PLACE = ["split", "fold", "seed"]
# Text columns of all tables, those of tasks included; an empty field is an empty string.
TEXTS = {"split", "part", "score", "of", "null_kind", "method", "network", "term", "batch", "label"}
TEXTS |= {*CLASSIFIED_BY, "status", "stopped", "reason"}


def write_tables(experiment: Experiment, out: Path) -> list[str]:
    """Write all tables of a finished experiment to ``out``; return the findings as sentences."""
    fits, classifications = tasks(experiment)
    said = _write_scores(_collect(out, fits, SCORES), experiment, out)
    io.write_csv(_fits(out, fits + classifications), out / FITS)
    history = _collect(out, [t for t in fits if t.method in methods()], HISTORY)
    io.write_csv(_weighted(history), out / HISTORY)
    classified = _collect(out, classifications, CLASSIFIED)
    if len(classified):
        io.write_csv(classified, out / CLASSIFIED)
        values = ["accuracy", "balanced_accuracy", "donor_accuracy"]
        values += ["chance", "chance_balanced", "donor_chance"]
        summary = summarise(classified, CLASSIFIED_BY, values)
        summary = summary.merge(_donors(classified), how="left", on=CLASSIFIED_BY)
        io.write_csv(summary, out / CLASSIFIED_SUMMARY)
        said += [
            _target_finding(summary[summary["target"] == target], target) for target in experiment.targets
        ]
    return said + _write_predicted(_collect(out, fits, PREDICTED), out)


def _write_scores(scores: pd.DataFrame, experiment: Experiment, out: Path) -> list[str]:
    """Write the scores and their means, if there are any; return the findings."""
    if scores.empty:
        return []
    io.write_csv(scores, out / SCORES)
    summary = summarise(scores, ["split", "part", "score", "of", "method"], ["value", "null"])
    summary = _add_published(summary, experiment)
    io.write_csv(summary, out / SUMMARY)
    return findings(scores, summary)


def _write_predicted(predicted: pd.DataFrame, out: Path) -> list[str]:
    """Write the measures of held-out pairs and their means over pairs; return the findings."""
    if predicted.empty:
        return []
    io.write_csv(predicted, out / PREDICTED)
    summary = summarise(predicted, ["method"], list(MEASURES)).rename(columns={"n_folds": "n_pairs"})
    summary = summary.merge(
        verdicts(predicted).rename(columns={"n_pairs": "n_compared"}), how="left", on="method"
    )
    io.write_csv(summary, out / PREDICTED_SUMMARY)
    return [finding(predicted)] if summary["verdict"].notna().any() else []


def summarise(table: pd.DataFrame, by: list[str], values: list[str]) -> pd.DataFrame:
    """Return mean and 95 % t-interval over folds of each value, after averaging over seeds within each fold.

    Folds share training cells, so the intervals are somewhat too narrow, as in the papers.
    """
    rows = []
    per_fold = table.groupby([*by, "fold"], sort=False, dropna=False)[values].mean().reset_index()
    for place, group in per_fold.groupby(by, sort=False, dropna=False):
        row = dict(zip(by, place, strict=True))
        for name in values:
            mean, low, high = t_interval(group[name].tolist())
            row |= {name: mean, f"{name}_low": low, f"{name}_high": high}
        rows.append(row | {"n_folds": len(group)})
    return pd.DataFrame(rows)


def _collect(out: Path, todo: list[Task], file: str) -> pd.DataFrame:
    """Concatenate the tables of the tasks, with columns for split, fold and seed."""
    tables = []
    for task in todo:
        path = out / TASKS / task.name / file
        if path.exists() and work.about(out, task).get("status") == "done":
            table = read_table(path)
            place: dict[str, Any] = {"split": task.split, "fold": task.fold, "seed": task.seed}
            if "method" not in table and task.method != work.CLASSIFIERS:
                place["method"] = task.method
            tables.append(table.assign(**place))
    if not tables:
        return pd.DataFrame()
    joined = pd.concat(tables, ignore_index=True)
    return joined[[*PLACE, *[c for c in joined if c not in PLACE]]]


def read_table(path: Path) -> pd.DataFrame:
    """Read a table of an experiment. Only number columns have missing values: a label may be called "NA"."""
    table: pd.DataFrame = pd.read_csv(path, **EXACT)
    texts = [name for name in table if name in TEXTS]
    return (
        table.assign(**pd.read_csv(path, usecols=texts, dtype=str, keep_default_na=False)) if texts else table
    )


def _fits(out: Path, todo: list[Task]) -> pd.DataFrame:
    """Return the status, seconds and epochs of each task and, if it failed, the reason."""
    rows = []
    for task in todo:
        about = work.about(out, task)
        fitted = about.get("fitted", {})
        rows.append(
            {
                **{"split": task.split, "fold": task.fold, "seed": task.seed, "method": task.method},
                "status": about.get("status", "missing"),
                "seconds": about.get("seconds", np.nan),
                **{name: fitted.get(name) for name in ("epochs", "best_epoch", "stopped")},
                "reason": about.get("reason", ""),
            }
        )
    return pd.DataFrame(rows)


def _weighted(history: pd.DataFrame) -> pd.DataFrame:
    """Add the weighted value of each loss term; NaN for a term that is only recorded."""
    if history.empty:
        return history
    counted = history["weight"].where(history["weight"] != 0)
    return history.assign(weighted=history["value"] * counted)


def _add_published(summary: pd.DataFrame, experiment: Experiment) -> pd.DataFrame:
    """Add the papers' value of the same score, if they report one."""
    from scmedley.datasets.papers import published

    summary["published"] = np.nan
    if not experiment.published:
        return summary
    known = published()
    known = known[(known["data_set"] == experiment.published) & (known["source"] == "release")]
    known = known[known["dimension"] == experiment.n_latent][["method", "score", "of", "value"]]
    is_theirs = (summary["split"] == "cells") & (summary["part"] == "test")
    joined = summary[["method", "score", "of"]].merge(known, how="left", on=["method", "score", "of"])
    return summary.assign(published=joined["value"].where(is_theirs))


def findings(scores: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
    """Return sentences on the scores, each number with its null."""
    rows = summary[(summary["split"] == "cells") & (summary["part"] == "test") & (summary["of"] == "batch")]
    said = [sentence] if (sentence := _separation(scores)) else []
    leaks = rows[rows["score"].isin([f"{probe} leak" for probe in PROBES])].dropna(subset="value")
    worst = leaks.sort_values("value").groupby("method").tail(1).set_index("method")
    if {PCA, FE.name} <= set(worst.index):
        fe, pca = ({**worst.loc[method]} for method in (FE.name, PCA))
        said.append(
            f"Batch leakage within labels, worst of the probes: FE {_interval(fe)} ({fe['score']}), PCA "
            f"{_interval(pca)} ({pca['score']}; chance: 0)."
        )
    return said


def _separation(scores: pd.DataFrame) -> str:
    """Compare RE with its null by each probe, over folds, above chance; all probes must agree."""
    rows = scores[(scores["split"] == "cells") & (scores["part"] == "test") & (scores["of"] == "batch")]
    rows = rows[rows["method"].isin([RE.name, RE.null])]
    words, seen = [], {}
    for probe in PROBES:
        leaks = rows[rows["score"] == f"{probe} leak"].dropna(subset="value")
        excess = (leaks["value"] - leaks["null"]).groupby([leaks["method"], leaks["fold"]]).mean()
        if leaks["method"].nunique() < 2:
            continue
        random, null = excess[RE.name], excess[RE.null]
        mean, low, high = t_interval((random - null).tolist())
        seen[NAMES[probe]] = low > 0
        words.append(
            f"{NAMES[probe]} {random.mean():z.2f} and {null.mean():z.2f}, a difference of {mean:z.2f} "
            f"[{low:z.2f}, {high:z.2f}]"
        )
    if not seen:
        return ""
    by, not_by = (
        " and ".join(name for name, yes in seen.items() if yes is wanted) for wanted in (True, False)
    )
    shown = "RE separates" if not not_by else "It is not shown that RE separates"
    how = (
        f"seen by {by}, but not by {not_by}"
        if by and not_by
        else f"seen by {'all' if by else 'none'} of the probes"
    )
    return (
        f"{shown} batches of held-out cells better than the same network trained on permuted batches: {how} "
        f"(batch leakage above chance: {'; '.join(words)})."
    )


def _target_finding(summary: pd.DataFrame, target: str) -> str:
    """Return a sentence: how well a donor-level target is predicted, with cells and with donors held out."""
    words = []
    for how, rows in summary.groupby("held_out", sort=False):
        found = {str(row["embedding"]): row for row in rows.to_dict("records")}
        values = ", ".join(f"{name} {_accuracy(found[name], str(how))}" for name in HEADLINE if name in found)
        chance = next(iter(found.values()))["chance_balanced"]
        caution = f" ({rows['caution'].iloc[0]})" if rows["caution"].iloc[0] else ""
        words.append(f"with {how} held out{caution}: {values} (chance {chance:.2f})")
    return f"{target}, balanced accuracy {'; '.join(words)}."


def _accuracy(row: dict[Any, Any], held_out: str) -> str:
    said = f"{row['balanced_accuracy']:.2f}"
    if held_out == "donors" and row["n_donors"] > 0:
        low, high = row["donors_low"], row["donors_high"]
        said += (
            f" ({row['donors_right']:.0f} of {row['n_donors']:.0f} donors correct, {low:.0%} to {high:.0%})"
        )
    return said


def _donors(classified: pd.DataFrame) -> pd.DataFrame:
    """Count donors over the folds of the first seed, with the binomial 95 % interval of correct donors.

    Only for held-out donors: with held-out cells each donor would count once per fold.
    """
    from scipy.stats import binomtest

    first = classified[classified["seed"] == classified["seed"].iloc[0]].dropna(subset="donor_accuracy")
    first = first[first["held_out"] == "donors"]
    first = first.assign(right=first["donor_accuracy"] * first["n_donors"])
    rows = []
    for place, group in first.groupby(CLASSIFIED_BY, sort=False):
        n, right = int(group["n_donors"].sum()), float(group["right"].sum())
        interval = binomtest(round(right), n).proportion_ci()
        row = dict(zip(CLASSIFIED_BY, place, strict=True))
        rows.append(
            row
            | {"n_donors": n, "donors_right": right, "donors_low": interval.low, "donors_high": interval.high}
        )
    return pd.DataFrame(
        rows, columns=[*CLASSIFIED_BY, "n_donors", "donors_right", "donors_low", "donors_high"]
    )


def _interval(row: dict[Any, Any]) -> str:
    if np.isnan(row["value_low"]):
        return f"{row['value']:z.2f}"
    return f"{row['value']:z.2f} [{row['value_low']:z.2f}, {row['value_high']:z.2f}]"
