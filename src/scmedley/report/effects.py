"""The page about effects of a condition: genes by label, composition, and what cannot be said."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scmedley.data.gene_names import shown_in
from scmedley.interpret.donors import depends_on_one
from scmedley.report.build import check_extra, render, write

TOP = 20  # genes of a table
MOST_LABELS = 24  # volcanoes of a contrast; the others are in effects.csv
MAP_GENES = 40
FEW_DONORS = 5  # in the smaller group, or pairs: only large effects can be found
FEW_GENES = 1000  # of the file, such as a panel: the middle one may respond too
SPAN = 100.0  # width of the drawn intervals in their own units


def write_effects(
    table: pd.DataFrame,
    shares: pd.DataFrame | None,
    between: dict[str, Any],
    record: dict[str, Any],
    path: Path,
    name: str,
) -> Path:
    """Write the page: one HTML file that opens offline.

    Parameters
    ----------
    table
        Of :func:`scmedley.interpret.condition_effects`.
    shares
        Of :func:`scmedley.interpret.composition`; ``None`` without labels.
    between
        Tables about differences between samples: ``shares`` (of :func:`scmedley.interpret.variance_split`),
        ``places`` (of :func:`scmedley.interpret.sample_map`) and ``association`` (of
        :func:`scmedley.interpret.sample_association`), each may be ``None``; ``why`` there is none; ``notes``.
    record
        What was asked and found, as in effects.json.
    path
        The new file; an existing one is replaced.
    name
        Title of the page.
    """
    check_extra()
    from scmedley.report.figures import drawing

    fdr = record["fdr"]
    with drawing():
        contrasts = [
            _contrast(own, str(key), record, fdr) for key, own in table.groupby("contrast", sort=False)
        ]
        context = {
            "name": name,
            "config": record["config"],
            "read": record["read"],
            "tiles": _tiles(table, record, fdr),
            "findings": record["findings"],
            "warnings": record["warnings"],
            "limits": limits(record),
            "contrasts": contrasts,
            "composition": None if shares is None else _composition(shares, fdr),
            "no_composition": record["no_composition"],
            "variance": _variance(between["shares"]),
            "samples": _samples(between, record["config"]["condition"]),
            "why": between["why"],
            "notes": between["notes"],
            "fdr": fdr,
            "top": TOP,
        }
    return write(render(context, "effects.html.j2", ("style.css", "explore.css", "effects.css")), path)


def _tiles(table: pd.DataFrame, record: dict[str, Any], fdr: float) -> list[tuple[str, int]]:
    tested = [r for r in record["contrasts"] if not r["reason"]]
    return [
        ("donors", max((r["donors"] for r in record["contrasts"]), default=0)),
        ("labels with a test", len({r["label"] for r in tested})),
        ("genes tested", int(table.loc[table["p"].notna(), "gene"].nunique())),
        (f"effects at q ≤ {fdr:g}", int((table["q"] <= fdr).sum())),
    ]


def limits(record: dict[str, Any]) -> list[str]:
    """Return what cannot be said from these data, and why."""
    said = []
    for one in record["contrasts"]:
        if one["reason"]:
            said.append(
                f"{one['label']}, {one['contrast']}: no test. {one['reason'][0].upper()}{one['reason'][1:]}."
            )
    tested = [r for r in record["contrasts"] if not r["reason"]]
    few = [r["label"] for r in tested if _smallest(r) < FEW_DONORS]
    if few:
        which = "All tests rest" if len(few) == len(tested) else f"{len(few)} of {len(tested)} tests rest"
        said.append(
            f"{which} on fewer than {FEW_DONORS} donors a group: only effects that are large beside the differences "
            "between donors can be found. A gene without a small q may well differ."
        )
    config, labels = record["config"], list(dict.fromkeys(r["label"] for r in record["contrasts"]))
    if any(r["design"] == "groups" for r in tested) and not config["covariates"]:
        said.append(
            "Donors have one condition each and no covariates were given: whatever else differs between the groups, "
            "such as age, sex or the day of the experiment, is part of the effect."
        )
    if config["label"] is None or len(labels) == 1:
        which = "All cells are tested together" if config["label"] is None else f"All cells are {labels[0]!r}"
        known = (
            "Give --label to tell these apart"
            if config["label"] is None
            else "If they are one type, ignore this"
        )
        said.append(
            f"{which}: a change of composition alone gives effects on the genes of the types that become more or less "
            f"frequent. {known}."
        )
    if (n := record["input"]["genes"]) < FEW_GENES and not config.get("total"):
        said.append(
            f"The file has {n:,} genes, and depths are estimated from them: effects are relative to the middle one. If "
            "the condition lowers more of these genes than it raises, all effects are too high, and the reverse. "
            "Give --total if obs has the counts of each cell over all genes."
        )
    return said


def _smallest(record: dict[str, Any]) -> int:
    """Return the number of donors in the smaller group, or of pairs."""
    if record["design"] == "paired":
        return int(record["donors"])
    numbers = [int(part.rsplit(": ", 1)[-1]) for part in str(record["donors_by_level"]).split(", ") if part]
    return min(numbers, default=0)


def _contrast(own: pd.DataFrame, contrast: str, record: dict[str, Any], fdr: float) -> dict[str, Any]:
    """Return figures and tables of one contrast."""
    from scmedley.pl import effects as pl

    own = shown_in(own.drop_duplicates(["label", "gene"])).drop(columns="symbol", errors="ignore")
    records = [r for r in record["contrasts"] if r["contrast"] == contrast]
    labels, tested = [], own[own["p"].notna()]
    n_labels, n_genes = len(records), len(pl.first_genes(own, 5))
    for one in records:
        rows = own[own["label"] == one["label"]]
        called = rows[rows["q"] <= fdr]
        shown = rows[rows["p"].notna()].head(TOP)
        labels.append(
            one
            | {
                "up": int((called["effect"] > 0).sum()),
                "down": int((called["effect"] < 0).sum()),
                "fragile": int(depends_on_one(called).sum()),
                "genes": _genes(shown, fdr),
                "decimals": _decimals(shown["effect"]),
                "volcano": None,
            }
        )
        if len(shown) and sum(label["volcano"] is not None for label in labels) < MOST_LABELS:
            alt = f"{one['label']}: {labels[-1]['up']} genes up and {labels[-1]['down']} down at q ≤ {fdr:g}."
            draw = partial(pl.volcano, rows, fdr=fdr)
            labels[-1]["volcano"] = _picture(draw, (5.2, 4.2), alt, "Effect and p-value of each gene")
    figures = []
    if len(tested) and n_labels > 1:
        dots = partial(pl.effect_dots, own, fdr=fdr)
        size = (2.6 + 0.24 * n_genes, 1.6 + 0.27 * n_labels)
        figures.append(
            _picture(dots, size, "Effects of the first genes of each label.", "First genes of each label")
        )
        n_rows = min(MAP_GENES, tested["gene"].nunique())
        tiles = partial(pl.effect_heatmap, own, n_genes=MAP_GENES, fdr=fdr)
        size = (2.6 + 0.42 * n_labels, 1.4 + 0.17 * n_rows)
        figures.append(
            _picture(tiles, size, "Effects of the first genes in all labels.", "Effects over labels")
        )
    return {"name": contrast, "labels": labels, "figures": figures}


def _picture(draw: Callable[..., Any], size: tuple[float, float], alt: str, title: str) -> Any:
    from scmedley.report.figures import picture

    return picture(lambda ax: draw(ax=ax), size, alt, title)


def _genes(rows: pd.DataFrame, fdr: float) -> list[dict[str, Any]]:
    """Return the rows of a table of genes, with the places of the drawn intervals."""
    rows = rows.assign(fragile=depends_on_one(rows), called=rows["q"] <= fdr)
    return [{str(k): v for k, v in row.items()} | _places(row, rows) for row in rows.to_dict("records")]


def _decimals(effect: pd.Series[float]) -> int:
    """Return how many decimals show the effects: slopes per year or per milligram are small."""
    known = effect.dropna().abs()
    size = float(known.median()) if len(known) else 0.0
    return int(np.clip(1 - np.floor(np.log10(size)), 2, 6)) if size > 0 else 2


def _places(row: dict[Any, Any], rows: pd.DataFrame) -> dict[str, float]:
    """Return where effect and interval are on a scale that all rows share, and where 0 is."""
    low, high = min(rows["q05"].min(), 0.0), max(rows["q95"].max(), 0.0)
    span = max(high - low, 1e-9)
    at = {"zero": 0.0, "at": row["effect"], "from": row["q05"], "to": row["q95"]}
    return {f"x_{name}": SPAN * (value - low) / span for name, value in at.items()}


def _composition(shares: pd.DataFrame, fdr: float) -> dict[str, Any]:
    """Return the figure and the table of the composition."""
    from scmedley.pl import effects as pl

    n_labels = shares["label"].nunique()
    draw = partial(pl.composition, shares)
    alt = "Share of each label in each sample, and the mean of each condition."
    known = shares[shares["q05"].notna()]
    rows = []
    for row in shares.assign(fragile=depends_on_one(shares), called=shares["q"] <= fdr).to_dict("records"):
        places = _places(row, known) if np.isfinite(row["q05"]) else {}
        rows.append({str(k): v for k, v in row.items()} | {"places": places})
    return {
        "picture": _picture(draw, (5.8, 1.4 + 0.36 * n_labels), alt, "Shares of labels in each sample"),
        "rows": rows,
        "decimals": _decimals(shares["effect"]),
        "continuous": bool(shares["contrast"].str.endswith(", per unit").all()),
        "several": shares["contrast"].nunique() > 1,
    }


def _variance(shares: pd.DataFrame | None) -> dict[str, Any] | None:
    """Return the figures and the table of the shares of variance."""
    from scmedley.pl import variance as pl

    if shares is None or shares.dropna().empty:
        return None
    n_terms = shares.shape[1]
    n_genes = min(5 * (n_terms - 1), len(shares))
    quantiles = shares.dropna().quantile([0.25, 0.5, 0.75, 0.95])
    alt = "Distribution over genes of the share of variance of each term."
    genes = "The genes that each term explains most, as stacked bars."
    return {
        "formula": shares.attrs["formula"],
        "observations": shares.attrs["observations"],
        "genes": len(shares),
        "figures": [
            _picture(
                partial(pl.variance_split, shares), (1.6 + 1.05 * n_terms, 3.6), alt, "Shares of variance"
            ),
            _picture(
                partial(pl.variance_genes, shares),
                (6.0, 1.4 + 0.2 * n_genes),
                genes,
                "First genes of each term",
            ),
        ],
        "rows": [
            {"term": str(term), "mean": float(shares[term].mean()), "quantiles": quantiles[term].tolist()}
            for term in shares.columns
        ],
    }


def _samples(between: dict[str, Any], condition: str) -> dict[str, Any] | None:
    """Return the map of the samples, and whether their distances go with condition, covariates and study."""
    from scmedley.pl import samples as pl

    places, association = between["places"], between["association"]
    if places is None:
        return None
    colour = condition if condition in places else None
    alt = f"Map of {len(places)} samples by their distances, coloured by condition."
    draw = partial(pl.sample_map, places, colour)
    return {
        "picture": _picture(draw, (5.4, 4.4), alt, "Map of the samples"),
        "rows": [] if association is None else association.to_dict("records"),
        "n": len(places),
    }
