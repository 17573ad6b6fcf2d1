"""The tables of quality.py: means over seeds, the claims that are tested, and Markdown for the README."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from common import DATA_SETS
from quality_methods import ALL, GROUPS, METHODS, TRAINING


@dataclass(frozen=True)
class Score:
    """A column of the tables: its title, its meaning, and whether high (1) or low (-1) is good."""

    title: str
    good: Literal[-1, 0, 1]
    meaning: str
    digits: int = 3


SCORES: dict[str, Score] = {
    "leak": Score("worst leak", -1, "batch leakage within labels by the worst of three probes; 0 is chance"),
    "leak_knn": Score("kNN leak", -1, "the same by the 15 nearest training cells"),
    "leak_logistic": Score("linear leak", -1, "the same by logistic regression"),
    "leak_network": Score("network leak", -1, "the same by a network with one hidden layer"),
    "accuracy": Score("accuracy", 1, "label of the 15 nearest training cells, embedding as it is"),
    "bras": Score("BRAS", 1, "batch-removal-adapted silhouette: 1, batches are mixed within labels"),
    "ilisi": Score("iLISI", 1, "batches among the 90 nearest held-out cells, scaled: 1, mixed"),
    "clisi": Score("cLISI", 1, "labels among them, scaled: 1, each label is by itself"),
    "nmi": Score("NMI", 1, "Leiden's clusters against labels, best of three resolutions"),
    "ari": Score("ARI", 1, "the same, adjusted Rand index"),
    "shift_r2": Score("R²Δ", 1, "change that a counterfactual predicts, pairs seen in training; median"),
    "shift_r2_baseline": Score("R²Δ, additive", 0, "the same for the plain difference of training means"),
    "masked_leak": Score("masked leak", 0, "worst leak of a random-effects latent with the batch masked"),
    "seconds": Score("seconds", -1, "of the fit and the embedding, wall clock", 1),
    "cpu_seconds": Score("CPU seconds", -1, "the same, of the processor", 1),
}
SEPARATION = 0.02  # smaller margins of the random latent over its null do not count


def read_json(path: Path) -> dict[str, Any]:
    """Return what a file holds; nothing if there is none."""
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return stored


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each set and method: mean and standard deviation over seeds, and failures.

    Columns: set, method, group, each score and ``<score>_sd``, ``n`` (seeds that succeeded) and ``reason`` (of
    the first failure, or that seeds are missing; else empty).
    """
    rows = rows.reindex(columns=list(dict.fromkeys([*rows, *SCORES, "leak_null_sd", "reason"])))
    scores = [*SCORES, "leak_null_sd"]
    rows[scores] = rows[scores].apply(pd.to_numeric)
    done = rows["status"] == "done"
    grouped = rows[done].groupby(["set", "method"])[scores]
    keyed = rows.groupby(["set", "method"], sort=False)
    summary = pd.DataFrame({"n": keyed["status"].agg(lambda s: int((s == "done").sum()))})
    summary["reason"] = keyed["reason"].agg(lambda r: next(iter(r.dropna()), ""))
    few = (summary["n"] < summary["n"].max()) & (summary["reason"] == "")
    summary.loc[few, "reason"] = [
        f"{n} of {summary['n'].max()} seeds are finished" for n in summary["n"][few]
    ]
    summary = summary.join(grouped.mean()).join(grouped.std().add_suffix("_sd")).reset_index()
    summary.insert(2, "group", [METHODS[name].group for name in summary["method"]])
    order = summary["method"].map({name: i for i, name in enumerate(METHODS)})
    place = summary["set"].map({name: i for i, name in enumerate(DATA_SETS)})
    return (
        summary.assign(_set=place, _method=order)
        .sort_values(["_set", "_method"])
        .drop(columns=["_set", "_method"])
        .reset_index(drop=True)
    )


@dataclass(frozen=True)
class Bar:
    """A claim: a score of ours is as good as another's, but for a margin, on a share of the sets.

    Attributes
    ----------
    against
        "Harmony", "scVI", "PCA"; a score of the same row ("shift_r2_baseline"); or a number.
    margin
        By this much ours may be worse.
    sets
        Number of sets on which it must hold: all, at least half, or more than half.
    role
        Only for sets with this role; empty: all sets.
    """

    score: str
    against: str | float
    margin: float = 0.0
    sets: Literal["every set", "half of the sets", "most sets"] = "every set"
    role: str = ""
    factor: float = 1.0

    @property
    def text(self) -> str:
        """Return the claim in words."""
        s = SCORES[self.score]
        other = SCORES[self.against].title if self.against in SCORES else self.against
        margin = f" {'+' if s.good < 0 else '−'} {self.margin:g}" if self.margin else ""
        factor = f"{self.factor:g} × " if self.factor != 1 else ""
        where = f" ({self.role} sets)" if self.role else ""
        return f"{s.title} {'≤' if s.good < 0 else '≥'} {factor}{other}{margin}, {self.sets}{where}"


BARS = (
    Bar("leak", "Harmony", 0.03),
    Bar("leak", "Harmony", sets="half of the sets"),
    Bar("leak", "scVI"),
    Bar("accuracy", "Harmony", 0.005),
    Bar("accuracy", "PCA", 0.01),
    Bar("accuracy", "scVI", 0.01),
    Bar("bras", "Harmony", 0.02),
    Bar("nmi", "Harmony", 0.02),
    Bar("nmi", "scVI", sets="most sets"),
    Bar("accuracy", 0.99, role="confounded"),
    Bar("clisi", "Harmony", role="confounded"),
    Bar("shift_r2", "shift_r2_baseline", 0.02),
    Bar("shift_r2", "shift_r2_baseline", sets="most sets"),
    Bar("cpu_seconds", "scVI", factor=0.2),
)
# What is compared with what: like with like, and ours on fewer cells against Harmony on all.
COMPARISONS: dict[str, dict[str, str]] = {
    TRAINING: {"ours": "FE", "PCA": "PCA", "Harmony": "Harmony, applied", "scVI": "scVI"},
    ALL: {"ours": "FE, all cells", "PCA": "PCA", "Harmony": "Harmony, all cells", "scVI": "scVI, all cells"},
    "ours fitted on the training cells, Harmony on all": {"ours": "FE", "Harmony": "Harmony, all cells"},
}


def accept(rows: pd.DataFrame) -> pd.DataFrame:
    """Test each claim on each set, on means over seeds; a leak below 0 (chance) counts as 0.

    Returns
    -------
    DataFrame
        comparison, bar, set, ours, theirs, passed; for each claim a last row with the set "all sets". A claim
        is not tested on a set that lacks one of its numbers.
    """
    summary = summarise(rows)
    summary["leak"] = summary["leak"].clip(lower=0)
    by_name = {(row["set"], row["method"]): row for row in summary.to_dict("records") if row["n"]}
    sets = list(dict.fromkeys(summary["set"]))
    found: list[dict[str, Any]] = []
    for comparison, names in COMPARISONS.items():
        for bar in BARS:
            tested = [_tested(bar, name, names, by_name) for name in sets]
            found += _with_verdict(comparison, bar.text, bar.sets, [one for one in tested if one])
    found += _nulls(sets, by_name)
    return pd.DataFrame(found, columns=["comparison", "bar", "set", "ours", "theirs", "passed"])


def _tested(
    bar: Bar, name: str, names: dict[str, str], by_name: dict[tuple[str, str], dict[Any, Any]]
) -> dict[str, Any] | None:
    """Return the numbers of a claim on a set, and whether it holds."""
    ours = by_name.get((name, names["ours"]))
    if ours is None or (bar.role and DATA_SETS[name].role != bar.role):
        return None
    if bar.against in ("PCA", *SCORES) and "PCA" not in names:
        return None  # said already where like is compared with like
    if isinstance(bar.against, float):
        theirs = bar.against
    elif bar.against in SCORES:
        theirs = ours[bar.against]
    else:
        other = by_name.get((name, names.get(bar.against, "")))
        theirs = float("nan") if other is None else bar.factor * other[bar.score]
    gain = SCORES[bar.score].good * (ours[bar.score] - theirs)
    if gain != gain:
        return None
    return {"set": name, "ours": ours[bar.score], "theirs": theirs, "passed": gain >= -bar.margin - 1e-9}


def _nulls(sets: list[str], by_name: dict[tuple[str, str], dict[Any, Any]]) -> list[dict[str, Any]]:
    """Test what must not be found: batches that were permuted, and the negative control."""
    found: list[dict[str, Any]] = []
    for method, role in (("FE, permuted batches", ""), ("FE", "control")):
        where = [s for s in sets if not role or DATA_SETS[s].role == role]
        pairs = [
            (s, by_name[s, method], by_name[s, "PCA"])
            for s in where
            if {(s, method), (s, "PCA")} <= {*by_name}
        ]
        title = "negative control" if role else method
        within = [_row(s, ours["leak"], 2 * ours["leak_null_sd"], -1) for s, ours, _ in pairs]
        found += _with_verdict("nulls", f"{title}: worst leak ≤ 2 sd of chance", "every set", within)
        for score, margin in (("accuracy", 0.01), ("nmi", 0.02)):
            kept = [_row(s, ours[score], pca[score] - margin, 1) for s, ours, pca in pairs]
            text = f"{title}: {SCORES[score].title} ≥ PCA − {margin:g}"
            found += _with_verdict("nulls", text, "every set", kept)
    where = [s for s in sets if DATA_SETS[s].role != "control"]
    for score in ("leak", "masked_leak"):
        names = ("RE", "RE, permuted batches")
        pairs2 = [
            (s, *(by_name[s, n][score] for n in names))
            for s in where
            if all((s, n) in by_name for n in names)
        ]
        apart = [_row(s, ours, null + SEPARATION, 1) for s, ours, null in pairs2]
        text = f"RE: {SCORES[score].title} ≥ that of its null + {SEPARATION:g}"
        found += _with_verdict("nulls", text, "every set", apart)
    return found


def _row(name: str, ours: float, theirs: float, good: int) -> dict[str, Any]:
    return {"set": name, "ours": ours, "theirs": theirs, "passed": good * (ours - theirs) >= -1e-9}


def _with_verdict(comparison: str, bar: str, sets: str, tested: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add the verdict over all sets."""
    if not tested:
        return []
    n, passed = len(tested), sum(one["passed"] for one in tested)
    enough = {"every set": passed == n, "half of the sets": 2 * passed >= n, "most sets": 2 * passed > n}
    whole = {"set": "all sets", "ours": float(passed), "theirs": float(n), "passed": enough[sets]}
    return [{"comparison": comparison, "bar": bar} | one for one in [*tested, whole]]


def as_text(summary: pd.DataFrame, bars: pd.DataFrame) -> str:
    """Return all scores, failures, and PASS or FAIL for each claim, as Markdown."""
    shown = [s for s in SCORES if summary[s].notna().any()]
    lines = ["| set | method | " + " | ".join(SCORES[s].title for s in shown) + " |"]
    lines.append("|---" * (len(shown) + 2) + "|")
    for row in summary[summary["n"] > 0].to_dict("records"):
        cells = [number(row[s], row[f"{s}_sd"], SCORES[s].digits) for s in shown]
        lines.append(f"| {row['set']} | {row['method']} | " + " | ".join(cells) + " |")
    lines.append("")
    for row in summary[summary["reason"] != ""].to_dict("records"):
        lines.append(f"{row['set']}, {row['method']}: {row['reason']}")
    lines += ["", "Claims, means over seeds. A leak below 0 (chance) counts as 0."]
    for (comparison, bar), tested in bars.groupby(["comparison", "bar"], sort=False):
        whole = tested.iloc[-1]
        verdict, of = "PASS" if whole["passed"] else "FAIL", f"{whole['ours']:.0f} of {whole['theirs']:.0f}"
        lines.append(f"{verdict}  {comparison}: {bar}: {of}")
        for one in tested.iloc[:-1].to_dict("records"):
            verdict = "PASS" if one["passed"] else "FAIL"
            lines.append(f"      {verdict}  {one['set']}: {one['ours']:.3f} against {one['theirs']:.3f}")
    return "\n".join(lines)


def number(mean: float, sd: float = float("nan"), digits: int = 3) -> str:
    """Return a mean with its spread; empty without a value."""
    if mean != mean:
        return ""
    return f"{mean:.{digits}f}" + (f" ± {sd:.{digits}f}" if sd == sd else "")


def markdown(summary: pd.DataFrame) -> str:
    """Return a short table for the README: one row a set, four methods in each cell, the best in bold."""
    blocks = []
    for group in (TRAINING, ALL):
        methods = [
            m for m in COMPARISONS[group].values() if m in set(summary.loc[summary["n"] > 0, "method"])
        ]
        methods.sort(key=["PCA", *COMPARISONS[group].values()].index)
        by_name = {(r["set"], r["method"]): r for r in summary.to_dict("records")}
        shown = ("leak", "accuracy", "bras", "nmi")
        lines = [f"{group[0].upper()}{group[1:]}: {' / '.join(methods)}", ""]
        lines += ["| | " + " | ".join(SCORES[s].title for s in shown) + " |", "|---" * 5 + "|"]
        for name in dict.fromkeys(summary["set"]):
            rows = [by_name.get((name, method), {}) for method in methods]
            cells = [_cell([row.get(s, float("nan")) for row in rows], SCORES[s].good) for s in shown]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _cell(values: list[float], good: int) -> str:
    """Return the numbers of a cell, with two digits, the best in bold; a dash without a number."""
    texts = ["–" if v != v else f"{round(v, 2) + 0.0:.2f}".replace("-", "−") for v in values]
    known = [float(f"{v:.2f}") * good for v in values if v == v]
    best = max(known, default=0.0)
    return " / ".join(
        f"**{text}**" if v == v and float(f"{v:.2f}") * good == best else text
        for text, v in zip(texts, values, strict=True)
    )


def best_methods(summary: pd.DataFrame) -> dict[tuple[str, str, str], float]:
    """Return the best value of each set, group and score. Nulls and methods that are told labels do not count."""
    fair = [not METHODS[m].is_null and not METHODS[m].told_labels for m in summary["method"]]
    best = {}
    for (name, group), rows in summary[fair].groupby(["set", "group"]):
        for score, about in SCORES.items():
            values = rows[score].dropna().round(about.digits)
            if group in GROUPS[:2] and about.good and len(values) > 1:
                best[str(name), str(group), score] = float(values.max() if about.good > 0 else values.min())
    return best
