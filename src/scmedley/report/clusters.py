"""The section about clusters as plain values for the template, from the tables of the run folder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from scmedley.clusters.tree import number_found
from scmedley.pl._palette import colours
from scmedley.runs.folder import CLUSTER_BATCHES, CLUSTER_EVIDENCE, CLUSTER_LABELS, CLUSTER_TREE, MARKERS
from scmedley.runs.read import Run

TOP = 10  # marker genes of each cluster
SHADES = 4  # above the shade for 0 cells


def clusters(run: Run) -> dict[str, Any] | None:
    """Return the section; ``None`` if the run has no clusters."""
    evidence = run.clusters.get(CLUSTER_EVIDENCE)
    if evidence is None or evidence.empty:
        return None
    paint = dict(zip(evidence["cluster"], colours(len(evidence)), strict=True))
    total = evidence["cells"].sum()
    named = evidence.assign(colour=evidence["cluster"].map(paint), share=evidence["cells"] / total)
    named["short"] = [short(cluster, name) for cluster, name in evidence[["cluster", "name"]].to_numpy()]
    tree = run.clusters.get(CLUSTER_TREE)
    tested = len(evidence) == 1 or bool(evidence["dip"].notna().any())
    return {
        "tested": tested,
        "k": len(evidence),
        "cells": int(total),
        "found": None if tree is None else number_found(tree),
        "rows": [
            {str(key).replace(" ", "_"): value for key, value in row.items()}
            for row in named.to_dict("records")
        ],
        "fallen": list(evidence.loc[~evidence["stands"], "name"]) if tested else [],
        "unit": "donor" if evidence["donors"].notna().any() else "batch",
        "of_one": {
            what: [(r["name"], r[f"one {what}"]) for r in evidence.to_dict("records") if r[f"one {what}"]]
            for what in ("batch", "donor")
        },
        "tables": [
            (
                what,
                run.config.get(what),
                crossed(run.clusters[file], what, dict(named[["cluster", "short"]].to_numpy())),
            )
            for what, file in (("batch", CLUSTER_BATCHES), ("label", CLUSTER_LABELS))
            if file in run.clusters and len(run.clusters[file])
        ],
        "markers": genes(run.clusters.get(MARKERS), evidence),
    }


def crossed(table: pd.DataFrame, what: str, names: dict[str, str]) -> dict[str, Any]:
    """Return cells of clusters (rows) in batches or labels (columns), shaded by the share of the column."""
    columns = list(dict.fromkeys(table[what]))
    rows = []
    for cluster, own in table.groupby("cluster", sort=False):
        by = own.set_index(what).loc[columns]
        share_B = by[f"share_of_{what}"].fillna(0).to_numpy()
        shade_B = np.where(by["cells"] > 0, np.ceil(SHADES * np.sqrt(share_B)), 0).astype(int)
        cells = [
            (int(n), float(share), int(s)) for n, share, s in zip(by["cells"], share_B, shade_B, strict=True)
        ]
        rows.append((str(cluster), names.get(str(cluster), ""), cells, int(by["cells"].sum())))
    totals = table.groupby(what, sort=False)["cells"].sum().loc[columns]
    return {"columns": columns, "rows": rows, "totals": [int(n) for n in totals], "total": int(totals.sum())}


def short(cluster: str, name: str) -> str:
    """Return the name of a cluster as it follows its number: "CD14, LYZ" of "cluster 2 (CD14, LYZ)"."""
    own = name.removeprefix(f"cluster {cluster}")
    return own.strip(" ()") if own != name else name


def genes(table: pd.DataFrame | None, evidence: pd.DataFrame) -> dict[str, Any] | None:
    """Return the first marker genes of each cluster; ``None`` without a table."""
    if table is None:
        return None
    own = dict(list(table.groupby("cluster", sort=False)))
    listed = []
    for cluster, name in evidence[["cluster", "name"]].to_numpy():
        rows = own.get(cluster, table[:0])
        notes = [note for note in rows["donor_note"].unique() if note]
        listed.append(
            {
                "cluster": cluster,
                "name": short(cluster, name),
                "donors": None
                if rows.empty or pd.isna(rows["donors"].iloc[0])
                else int(rows["donors"].iloc[0]),
                "note": notes[0] if notes else "",
                "genes": [
                    {str(key): value for key, value in r.items()} for r in rows.head(TOP).to_dict("records")
                ],
            }
        )
    return {"clusters": listed, "with_donors": bool(table["donors"].notna().any())}
