"""The tables of an exploration, from the sums over all cells.

Shapes: N all cells, G genes that all files have.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from scmedley.errors import listed
from scmedley.pp.columns import MOST_LEVELS, Column, Key, Role, crossed
from scmedley.pp.dispersion import Dispersion, fit_dispersion
from scmedley.pp.value_sums import Moments, Source, Sums

QUANTILES = {"min": 0.0, "q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}
METRICS = ("counts", "genes", "mitochondrial", "ribosomal")
TAIL = 0.99  # histograms without the upper tail end at this quantile of the values above 0


def levels(keys: Mapping[Role, Key], cells: pd.DataFrame) -> pd.DataFrame:
    """Return cells, counts and genes by level of each role."""
    tables = []
    for role, key in keys.items():
        level = key.column.categorical
        by = cells.groupby(level, observed=False)
        table = pd.DataFrame({"cells": by.size(), "genes_median": by["genes"].median()})
        if "counts" in cells:
            table["counts_total"], table["counts_median"] = by["counts"].sum(), by["counts"].median()
        table.insert(1, "share", table["cells"] / len(cells))
        table = table.rename_axis("level").reset_index()
        table.insert(0, "column", key.column.name)
        table.insert(0, "role", role)
        tables.append(table.sort_values("cells", ascending=False, kind="stable"))
    return (
        pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["role", "level", "cells"])
    )


def composition(keys: Mapping[Role, Key]) -> pd.DataFrame:
    """Return the number of cells by label and batch."""
    if not {"batch", "label"} <= set(keys):
        return pd.DataFrame()
    return crossed(keys["label"].column, keys["batch"].column)


def quality(batch: Key | None, cells: pd.DataFrame) -> pd.DataFrame:
    """Return quantiles over the cells of each batch and of all cells, for each metric."""
    groups: list[tuple[str, pd.DataFrame]] = [("", cells)]
    if batch is not None:
        level = batch.column.categorical
        groups += [(str(name), own) for name, own in cells.groupby(level, observed=True)]
    rows = []
    for name, own in groups:
        for metric in METRICS:
            if metric in own and own[metric].notna().any():
                found = np.nanquantile(own[metric].to_numpy(dtype=np.float64), list(QUANTILES.values()))
                row = {"batch": name or "all cells", "is_all": not name, "metric": metric, "cells": len(own)}
                rows.append(row | dict(zip(QUANTILES, found.tolist(), strict=True)))
    return pd.DataFrame(rows)


def _kinds(sums: Sums) -> dict[str, Moments]:
    return ({} if sums.counts is None else {"counts": sums.counts}) | {"prepared": sums.prepared}


def summary(sums: Sums, n: int) -> pd.DataFrame:
    """Return min, max, mean and share of zeros of the counts and of the prepared values."""
    size = n * len(sums.cells_G)
    n_positive = int(sums.cells_G.sum())
    rows = []
    for name, moments in _kinds(sums).items():
        rows.append(
            {
                "values": name,
                "min": 0.0 if n_positive < size else moments.smallest,
                "smallest_above_0": moments.smallest,
                "mean": float(moments.sum_G.sum()) / size,
                "mean_above_0": float(moments.sum_G.sum()) / max(n_positive, 1),
                "tail_from": tail_from(moments.histogram, moments.edges[1:]),
                "max": moments.largest,
                "zeros": 1 - n_positive / size,
            }
        )
    return pd.DataFrame(rows)


def tail_from(counts: np.ndarray, high: np.ndarray) -> float:
    """Return the upper end of the bin with the 99 % quantile of the values above 0."""
    if not counts.sum():
        return 0.0
    return float(high[int(np.searchsorted(np.cumsum(counts), TAIL * counts.sum()))])


def histograms(sums: Sums) -> pd.DataFrame:
    """Return the number of values above 0 in each bin."""
    tables = []
    for name, moments in _kinds(sums).items():
        last = int(np.flatnonzero(moments.histogram).max(initial=0)) + 1
        low, high = moments.edges[:last], moments.edges[1 : last + 1]
        tables.append(
            pd.DataFrame({"values": name, "from": low, "below": high, "n": moments.histogram[:last]})
        )
    return pd.concat(tables, ignore_index=True)


def genes(sums: Sums, n: int, first: Source) -> pd.DataFrame:
    """Return the genes: means and variances (divided by N - 1) of counts and of prepared values."""
    names = first.genes.take(first.place_G)
    table = pd.DataFrame({"gene": names.shown, "cells": sums.cells_G, "detected": sums.cells_G / n})
    for name, moments in _kinds(sums).items():
        mean_G = moments.sum_G / n
        end = "" if name == "counts" else "_prepared"
        table[f"mean{end}"] = mean_G
        table[f"variance{end}"] = np.maximum(moments.squares_G - n * mean_G**2, 0.0) / (n - 1)
    return table


def dispersion(genes: pd.DataFrame, cells: pd.DataFrame) -> Dispersion | None:
    """Return the fitted dispersion of the counts, None without counts or with too few genes."""
    if "counts" not in cells:
        return None
    mean_G, variance_G, cells_G = (genes[name].to_numpy() for name in ("mean", "variance", "cells"))
    return fit_dispersion(mean_G, variance_G, cells_G, cells["counts"].to_numpy())


def missing(
    keys: Mapping[Role, Key], has_counts: bool, cells: pd.DataFrame, obs: pd.DataFrame
) -> dict[str, str]:
    """Return the tables that cannot be made, with the reason."""
    missing = {}
    if not obs.shape[1]:
        missing["columns"] = "obs has no columns."
    for role in ("batch", "donor", "site", "label"):
        if role not in keys:
            missing[role] = (
                f"no column of obs with two groups or more has the name of a {role}. Name one with --{role}."
            )
    lacking = [role for role in ("label", "batch") if role not in keys]
    if lacking:
        missing["composition"] = f"it needs a column for the {' and the '.join(lacking)}."
    if not has_counts:
        words = "the values are log-normalised, and counts cannot be computed from them. Put counts into X or layers."
        missing |= {"counts": words, "dispersion": words}
    for metric in METRICS[2:]:
        if cells[metric].isna().all():
            missing[metric] = (
                f"no gene has a {metric} name (such as {'MT-CO1' if metric == 'mitochondrial' else 'RPL3'})."
            )
    return missing


def column_warnings(found: Sequence[Column]) -> list[str]:
    """Return a warning if columns have too many levels to be tabulated."""
    many = [f"{c.name} ({c.n_levels:,})" for c in found if c.kind == "text" and c.n_levels > MOST_LEVELS]
    if not many:
        return []
    return [
        f"Columns with more than {MOST_LEVELS:,} levels are listed, but not tabulated by level: {listed(many)}."
    ]
