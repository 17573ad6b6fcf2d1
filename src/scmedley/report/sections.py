"""The content of each section as plain values for the template, without HTML and figures."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from scmedley import keys
from scmedley.evaluate.probes import PROBES
from scmedley.interpret.check import ALL, LIMITS, TOO_FEW, Summary, against_baseline, agreement, summarise
from scmedley.interpret.shifts import batch_distances
from scmedley.interpret.trust import ADVICE
from scmedley.report.numbers import number
from scmedley.runs.read import Run

TOP = 10  # genes shown for each label and batch
SCORE_ORDER = [*(f"{probe} leak" for probe in PROBES), "kNN accuracy", "ASW", "CH", "1/DB"]


def summary(run: Run) -> dict[str, Any]:
    """Return the head of the page: the data, the settings and the findings."""
    settings, config = run.settings, run.config
    given = settings.get("input") or {}
    prepare = settings.get("prepare") or {}
    batch, label = run.column("batch"), run.column("label")
    cells = len(run.obs) if run.obs is not None else prepare.get("cells_after", given.get("cells"))
    genes = prepare.get("n_hvg", prepare.get("genes_after", given.get("genes")))
    tiles = [
        ("cells", cells),
        ("genes used", genes),
        (
            "combinations of levels" if config.get("design") else "batches",
            None if batch is None else batch.nunique(),
        ),
        ("labels", None if label is None else label.nunique()),
    ]
    return {
        "name": given.get("name", run.folder.name),
        "batch": config.get("batch"),
        "design": config.get("design"),
        "label": config.get("label"),
        # Of a scored run only this page is missing.
        "status": "done" if settings.get("status") == "scored" else settings.get("status", "unknown"),
        "finished": settings.get("finished") or settings.get("started"),
        "seconds": sum((settings.get("seconds") or {}).values()) or None,
        "resumed": bool(settings.get("resumed")),
        "only_fit": settings.get("command") == "fit",
        "tiles": [(name, value) for name, value in tiles if value is not None],
        "verdicts": [v for v in settings.get("verdicts") or [] if isinstance(v, dict)],
        "apart": None if settings.get("comparable", True) else settings.get("verdict"),
        "findings": list(settings.get("findings") or []),
        "warnings": list(settings.get("warnings") or []),
    }


def data(run: Run) -> dict[str, Any]:
    """Return the cells per label and batch, and whether batches can be compared."""
    from scmedley.pp.overlap import overlap

    batch, label = run.column("batch"), run.column("label")
    out: dict[str, Any] = {
        "prepare": run.settings.get("prepare") or {},
        "has_cells": run.obs is not None,
        "design": run.settings.get("design"),
        "batch": run.config.get("batch"),
        "label": run.config.get("label"),
        "sizes": [],
        "verdict": None,
        "table": None,
    }
    if batch is None:
        return out
    sizes = batch.value_counts()
    out["sizes"] = [(str(name), int(n)) for name, n in sizes[sizes > 0].items()]
    if label is None:
        return out
    found = overlap(batch, label)
    table = found.table
    out |= {
        "verdict": found.verdict,
        "words": found.words,
        "parts": found.parts,
    }
    # The longer side becomes the rows: a page is longer than wide.
    out["rows_are"] = "label" if table.shape[0] >= table.shape[1] else "batch"
    if out["rows_are"] == "batch":
        table = table.T
    values = table.to_numpy()
    out["table"] = {
        "columns": [str(name) for name in table.columns],
        "rows": [
            (str(name), [(int(n), _shade(n, values.max())) for n in row], int(row.sum()))
            for name, row in zip(table.index, values, strict=True)
        ],
        "totals": [int(n) for n in values.sum(axis=0)],
        "total": int(values.sum()),
        "empty": int((values == 0).sum()),
        "pairs": int(values.size),
    }
    return out


def sample(run: Run) -> dict[str, str]:
    """Return sentences on the sample of many cells, by what was computed from it; empty if all cells were used."""
    found = run.settings.get("sample") or {}
    return {name: str(found.get(name, "")) for name in ("scores", "null", "pairs", "maps")}


def collapse(run: Run) -> dict[str, Any] | None:
    """Return the diagnostics of collapse of a VAE; ``None`` for other models."""
    found = run.settings.get("collapse")
    if not found:
        return None
    units = found["units"]
    rows = zip(units["kl"], units["variance"], units["active"], strict=True)
    bounds = [found.get(name) for name in ("elbo_train", "elbo_held_out")]
    return {
        "sentence": found["sentence"],
        "r2": found["r2"],
        "gap": None if None in bounds else bounds[0] - bounds[1],
        "units": [
            {"number": i + 1, "kl": kl, "variance": variance, "active": active}
            for i, (kl, variance, active) in enumerate(rows)
        ],
    }


def _shade(n: int, most: int) -> int:
    """Return a shade from 0 (none) to 4, by the square root of a count: cell numbers have long tails."""
    return math.ceil(4 * math.sqrt(n / most)) if n else 0


def scores(run: Run) -> dict[str, Any] | None:
    """Return the scores as a matrix: one row per score, one column per embedding."""
    if run.scores is None or run.scores.empty:
        return None
    table = run.scores
    embeddings = _ordered(table["embedding"], list(keys.EMBEDDINGS))
    groups = []
    for of in _ordered(table["of"], ["batch", "label"]):
        rows = []
        for score in _ordered(table.loc[table["of"] == of, "score"], SCORE_ORDER):
            here = table[(table["of"] == of) & (table["score"] == score)].drop_duplicates("embedding")
            by = {row["embedding"]: row for row in _records(here)}
            cells = [_cell(by.get(key), by.get(keys.embedding(key).null)) for key in embeddings]
            rows.append((score, cells))
        groups.append((of, rows))
    kinds = sorted({kind for kind in table["null_kind"] if kind})
    return {
        "embeddings": [(run.name(key), run.key(key)) for key in embeddings],
        "secondary": [
            keys.NULL,
            keys.NULL_MASKED,
        ],  # their values are also beside those of the random effects
        "groups": groups,
        "null_kinds": kinds,
        "retrained": keys.NULL in embeddings,
    }


def labels(run: Run) -> list[dict[str, Any]]:
    """Return the accuracy of each label in our embedding and PCA, and its numbers of cells; most lost first."""
    if run.labels is None or run.labels.empty:
        return []
    of_pca = run.labels["embedding"] == keys.PCA
    ours, pca = (run.labels[rows].set_index("label") for rows in (~of_pca, of_pca))
    table = ours.assign(pca=pca["accuracy"], lost=pca["accuracy"] - ours["accuracy"]).reset_index()
    table["title"] = table["embedding"].map(run.name)
    return _records(table.sort_values("lost", ascending=False, kind="stable", na_position="last"))


def _cell(row: dict[str, Any] | None, retrained: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return one score of one embedding, its null and their difference."""
    if row is None:
        return None
    gap = row["value"] - row["null"]
    distinct = None if pd.isna(row["null_sd"]) or pd.isna(gap) else bool(abs(gap) > 2 * row["null_sd"])
    against = None
    if row["of"] == "batch" and retrained is not None:
        against = {"value": retrained["value"], "gap": row["value"] - retrained["value"]}
    return {
        "value": row["value"],
        "se": row["se"],
        "null": row["null"],
        "null_sd": row["null_sd"],
        "gap": gap,
        "distinct": distinct,
        "wanted": keys.embedding(row["embedding"]).wanted(row["of"]),
        "kind": row["null_kind"],
        "n_cells": row["n_cells"],
        "retrained": against,
    }


def shifts(run: Run) -> dict[str, Any] | None:
    """Return the genes with the largest shifts in each batch, for each label."""
    if run.shifts is None or run.shifts.empty:
        return None
    table = run.shifts.assign(how_large=run.shifts["shift"].abs())
    table = table.sort_values(["how_large", "gene"], ascending=[False, True], kind="stable")
    table = table.groupby(["label", "batch"], sort=False).head(TOP)
    pairs = table[["label", "batch"]].drop_duplicates()
    labels = []
    for label in sorted(pairs["label"].unique()):
        here = table[table["label"] == label]
        batches = []
        for batch, rows in here.groupby("batch", sort=True):
            sure = (rows["q05"] > 0) | (rows["q95"] < 0)
            genes = _records(rows.assign(sure=sure))
            first = rows.iloc[0]
            batches.append(
                {
                    "name": batch,
                    "n_cells": first["n_cells"],
                    "n_observed": first["n_observed"],
                    "observed_from": first["observed_from"],
                    "seen": bool(first["seen"]),
                    "genes": genes,
                }
            )
        unseen = sum(not batch["seen"] for batch in batches)
        labels.append({"name": label, "batches": batches, "unseen": unseen})
    return {
        "distances": _records(batch_distances(run.shifts)),
        "verdict": None if run.check is None or run.check.empty else summarise(run.check).verdict,
        "labels": labels,
        **{
            name: (run.settings.get("intervals") or {}).get(name)
            for name in ("factor", "coverage", "coverage_largest")
        },
        "modelled": (run.settings.get("prepare") or {}).get("n_hvg"),
        "unseen": sum(label["unseen"] for label in labels),
        "batches": int(run.shifts["batch"].nunique()),
        "pairs": len(pairs),
    }


def check(run: Run) -> dict[str, Any] | None:
    """Return how well predicted shifts agree with those of held-out cells."""
    if run.check is None or run.check.empty:
        return None
    reached = run.check["pearson"] / run.check["ceiling_pearson"]
    table = run.check.assign(reached=reached.where(run.check["ceiling_pearson"] >= LIMITS["ceiling"]))
    table = table.sort_values(
        ["reached", "pearson", "batch", "label"], ascending=[False, False, True, True], kind="stable"
    )
    table["trust"], table["against"] = agreement(table), against_baseline(table)
    found = summarise(table)
    return {
        "rows": _records(table),
        "n": found.n_judged,
        "median": found.median,
        "words": _words(found, set(table["label"]) != {ALL}),
    }


def _words(found: Summary, of_labels: bool = True) -> str:
    """Return sentences on how far to trust counterfactuals, from the numbers of pairs and the medians.

    ``of_labels``: whether pairs are of a batch and a label; without labels each is a batch.
    """
    tally, judged = found.tally, found.n_judged
    one, several = (
        ("pair of batch and label", "pairs of batch and label") if of_labels else ("batch", "batches")
    )
    if not judged:
        return (
            f"The counterfactuals cannot be judged: every {one} has too few held-out cells, or too "
            "small a shift."
        )
    pairs = f"the one seen {one}" if judged == 1 else f"{judged} seen {several}"
    text = (
        f"Of {pairs} with enough held-out cells to judge, the agreement of predicted with "
        f"observed shifts is good in {tally['good']}, some in {tally['some']} and none in {tally['none']}."
    )
    if found.n_shared:
        text += (
            f" In {found.n_shared} of those with none, the prediction for a wrong batch is nearly as good: the "
            "prediction is not specific to the batch."
        )
    if tally[TOO_FEW]:
        text += f" {tally[TOO_FEW]} more could not be judged."
    text += f" {ADVICE[found.verdict]}"
    pearson, additive, slope = (found.median[name] for name in ("pearson", "additive_pearson", "slope"))
    if pearson is not None and additive is not None:
        against = found.against
        text += (
            " Compared with the difference of training means (the baseline, which needs no model), predictions are "
            f"better in {against['better']}, tie in {against['tie']} and are worse in {against['worse']} (median "
            f"Pearson of the baseline {number(additive)}, of the model {number(pearson)})."
        )
    # If the direction is wrong, the slope is low for any size, so it does not measure the size.
    if found.verdict == "good" and slope is not None and not 0.7 <= slope <= 1.4:
        text += (
            f" Most shifts are predicted too {'small' if slope > 1 else 'large'}: "
            f"the slope of observed on predicted shifts is {number(slope)}."
        )
    return text


def provenance(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return what is needed to repeat the run, as titled lists of names and values."""
    settings = run.settings
    given = settings.get("input") or {}
    named = {"file": given.get("name"), "sha256": given.get("sha256")}
    named |= {"cells": given.get("cells"), "genes": given.get("genes")}
    named["prepared"] = "on disk" if settings.get("store") else "in memory"
    command = settings.get("command")
    run_part = {
        "command": " ".join(map(str, command)) if isinstance(command, list) else command,
        "status": "done" if settings.get("status") == "scored" else settings.get("status"),
        "started": settings.get("started"),
        "finished": settings.get("finished"),
        "seed": run.config.get("seed"),
    }
    groups: list[tuple[str, dict[str, Any]]] = [
        ("Run", run_part),
        ("Input", named),
        ("Settings", run.config),
        ("Preparation", dict(settings.get("prepare") or {})),
        ("Versions", dict(settings.get("versions") or {})),
        ("Seconds", dict(settings.get("seconds") or {})),
    ]
    shown = [
        (title, [(str(k), _text(v)) for k, v in items.items() if v is not None]) for title, items in groups
    ]
    return [(title, items) for title, items in shown if items]


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_text(item)}" for name, item in value.items())
    return str(value)


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _ordered(values: pd.Series, first: list[str]) -> list[str]:
    """Return distinct values: those of ``first`` in its order, then the others in order of appearance."""
    found = list(dict.fromkeys(values))
    return [name for name in first if name in found] + [name for name in found if name not in first]
