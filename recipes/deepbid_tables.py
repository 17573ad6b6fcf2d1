"""The tables of deepbid.py, and what the paper reports in its text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from deepbid_methods import EVIDENCE_K, KMEANS, LEIDEN, MEMBERSHIPS, OWN, PCA, read_json

SCORES = ["K", "ARI", "NMI", "NMI max", "homogeneity", "completeness"]
K_GIVEN = (MEMBERSHIPS, EVIDENCE_K, KMEANS)

# Numbers in the text of Qin et al. 2024 (sections 2.3 to 2.5). Its NMI is divided by the larger entropy (eq. 16). All
# other values of its figures 2 to 6 are only drawn, and are left out. GPU: GTX 1080 Ti, preparation excluded.
_PUBLISHED = [
    ("Sc_mixology", "DeepBID", "ARI", 0.99146),
    ("Sc_mixology", "Seurat", "ARI", 0.61212),
    ("Sc_mixology", "DeepBID", "NMI max", 0.98498),
    ("Sc_mixology", "DESC", "NMI max", 0.74793),
    ("Sc_mixology", "DeepBID", "K", 3),
    ("Sc_mixology", "LIGER", "K", 9),
    ("Cell_lines", "DeepBID", "ARI", 0.99821),
    ("Cell_lines", "Harmony", "ARI", 0.44557),
    ("Cell_lines", "DeepBID", "NMI max", 0.97854),
    ("Cell_lines", "Harmony", "NMI max", 0.58549),
    ("Cell_lines", "DeepBID", "K", 2),
    ("Alzheimer", "DeepBID", "ARI", 0.8239),
    ("Alzheimer", "none", "ARI", 0.6912),
    ("Alzheimer", "LIGER", "ARI", 0.7458),
    ("DC", "DeepBID", "seconds", 4.45),
]
PUBLISHED_SECONDS = {569: 4.45, 21_526: 416.5}  # DC, PBMCs
_NAMES = {"DeepBID": ("DeepBID, paper", MEMBERSHIPS), "none": (PCA, LEIDEN)}
_CLUSTERS = {"DESC": OWN}  # all others: Leiden


def scores(paths: Sequence[Path]) -> pd.DataFrame:
    """Return one row each set, method, clusters and seed, and one of each fit that failed ("reason")."""
    rows = []
    for path in paths:
        facts = read_json(path)
        clusters = facts.pop("clusters", {"": {}})
        rows += [facts | {"clusters": name} | found for name, found in clusters.items()]
    table = pd.DataFrame(rows)
    return table.reindex(columns=[*(c for c in table if c not in SCORES), *SCORES])


def markdown(table: pd.DataFrame, given: pd.DataFrame) -> str:
    """Return the mean and standard deviation over seeds by data set, and the published values beside ours."""
    lines: list[str] = []
    shown = [*SCORES, "iLISI", "cLISI", "seconds"]
    for name, rows in table[table["status"] == "done"].groupby("set", sort=False):
        sizes = f"{int(rows['cells'].iloc[0]):,} cells, {rows['seed'].nunique()} seed(s)"
        lines += ["", f"**{name}** ({sizes})", "", "| Method | Clusters | " + " | ".join(shown) + " |"]
        lines.append("|---|---|" + "--:|" * len(shown))
        for (method, clusters), some in rows.groupby(["method", "clusters"], sort=False):
            cells = [_mean_sd(some[column], 1 if column in ("K", "seconds") else 3) for column in shown]
            lines.append(f"| {method} | {clusters} | {' | '.join(cells)} |")
    failed = table[table["status"] != "done"]
    lines += ["", *(f"- {row['set']}, {row['method']}: {row['reason']}" for row in failed.to_dict("records"))]
    lines += ["", "**Published values that the paper's text has, beside ours**", ""]
    lines += [
        "| Data | Method | Score | Published | Ours | Our method, clusters |",
        "|---|---|---|--:|--:|---|",
    ]
    for row in given.to_dict("records"):
        ours = "" if np.isnan(row["ours"]) else f"{row['ours']:.4g}"
        lines.append(
            f"| {row['data']} | {row['method']} | {row['score']} | {row['value']:g} | {ours} | {row['as']} |"
        )
    return "\n".join(lines).strip() + "\n"


def published(table: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """Return the published values with ours: mean over seeds, nan where there is none.

    Parameters
    ----------
    table
        That of :func:`scores`.
    names
        Our data set by its name in the paper.
    """
    rows = []
    done = table[table["status"] == "done"]
    for data, method, score, value in _PUBLISHED:
        ours, clusters = _NAMES.get(method, (method, _CLUSTERS.get(method, LEIDEN)))
        here = done[
            (done["set"] == names.get(data, "")) & (done["method"] == ours) & (done["clusters"] == clusters)
        ]
        mean = float(here[score].mean()) if len(here) else float("nan")
        row = {"data": data, "method": method, "score": score, "value": value, "where": "text"}
        rows.append(row | {"ours": mean, "set": names.get(data, ""), "as": f"{ours}, {clusters}"})
    return pd.DataFrame(rows)


def slopes(table: pd.DataFrame) -> pd.DataFrame:
    """Return the slope of log seconds against log cells, by method, with its intercept (natural logarithms)."""
    rows = []
    for method, some in table.groupby("method", sort=False):
        if some["cells"].nunique() > 1:
            slope, start = np.polyfit(np.log(some["cells"]), np.log(some["seconds"]), 1)
            rows.append(
                {"method": method, "slope": slope, "intercept": start, "sizes": some["cells"].nunique()}
            )
    return pd.DataFrame(rows, columns=["method", "slope", "intercept", "sizes"])


def _mean_sd(values: pd.Series, digits: int) -> str:
    values = values.dropna()
    if not len(values):
        return ""
    spread = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"
