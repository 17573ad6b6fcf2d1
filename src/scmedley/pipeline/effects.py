"""The folder of ``scmedley effects``: effects of a condition on genes and composition, and their page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData
from threadpoolctl import threadpool_limits

from scmedley import __version__, io
from scmedley.data.gene_names import shown_in
from scmedley.errors import ScmedleyError, heard
from scmedley.interpret.composition import composition
from scmedley.interpret.condition_effects import condition_effects
from scmedley.interpret.donors import depends_on_one
from scmedley.keys import ValueKind
from scmedley.pipeline.cells import Say
from scmedley.pipeline.samples import Between, between_samples
from scmedley.report.build import check_extra
from scmedley.report.effects import write_effects
from scmedley.runs.folder import (
    ASSOCIATION,
    COMPOSITION,
    DISTANCES,
    EFFECTS,
    EFFECTS_PAGE,
    EFFECTS_RECORD,
    SHARES,
    VARIANCE,
    VERSIONS,
    check_replaceable,
    versions,
)

FDR = 0.05
NAMED, SENTENCES = 5, 12  # genes or labels in a sentence, and labels with a sentence of their own
OF_SAMPLES = {"shares": VARIANCE, "distances": DISTANCES, "association": ASSOCIATION}
OURS = (EFFECTS, COMPOSITION, SHARES, *OF_SAMPLES.values(), EFFECTS_PAGE, VERSIONS, EFFECTS_RECORD)


def effects(
    input: Path,
    out: Path,
    *,
    condition: str,
    donor: str,
    label: str | None = None,
    reference: str | None = None,
    covariates: Sequence[str] = (),
    nested_in: str | None = None,
    min_cells: int = 10,
    min_donors: int = 2,
    total: str | None = None,
    values: ValueKind = "auto",
    threads: int | None = None,
    overwrite: bool = False,
    say: Say = print,
    progress: bool = False,
) -> dict[str, Any]:
    """Estimate the effects of a condition and write the folder, all of it or nothing; return its record.

    Parameters
    ----------
    input
        File of cells.
    out
        The new folder. With ``overwrite`` it may be the folder of an earlier call, which is replaced.
    condition, donor, label, reference, covariates, nested_in, min_cells, min_donors, total, values, progress
        As in :func:`scmedley.interpret.condition_effects`. Without a label there is no composition.
    threads
        CPU threads; all by default.

    Raises
    ------
    ScmedleyError
        As :func:`scmedley.interpret.condition_effects`; or a folder that holds anything else.
    """
    check_extra()
    check_replaceable(out, EFFECTS_RECORD, OURS, "estimate of effects", overwrite=overwrite)
    io.check_place(out)
    design: dict[str, Any] = {"reference": reference, "covariates": list(covariates), "nested_in": nested_in}
    design |= {"min_cells": min_cells, "min_donors": min_donors}
    with threadpool_limits(limits=threads):
        say(f"Reading {input.name}")
        adata = io.read(input)
        say(f"Effects of {condition} on {adata.n_vars:,} genes in {adata.n_obs:,} cells")
        with heard() as warnings:
            found = condition_effects(
                adata, condition, donor, label, **design, total_key=total, values=values, progress=progress
            )
        roles: dict[str, Any] = {"condition": condition, "donor": donor, "label": label}
        shares, why = _composition(adata, roles, design)
        say("Shares of variance and distances of samples")
        between = between_samples(
            adata, found, **roles, nested_in=nested_in, covariates=covariates, min_cells=min_cells
        )
        record: dict[str, Any] = {
            "version": __version__,
            "input": {
                "name": input.name,
                "sha256": io.sha256(input),
                "cells": adata.n_obs,
                "genes": adata.n_vars,
            },
            "config": {**roles, **design, "total": total, "values": values},
            "fdr": FDR,
            "read": found.attrs["values"],
            "contrasts": found.attrs["contrasts"],
            "no_composition": why,
            "not_shown": between.why,
            "findings": [*findings(found), *composition_findings(shares), *variance_findings(between.shares)],
            # Labels without a test are among the findings.
            "notes_on_samples": between.notes,
            "warnings": [line for line in warnings if not line.startswith("No test for ")],
        }
        _write(found, shares, between, record, out)
    return record


def _composition(
    adata: AnnData, roles: dict[str, Any], design: dict[str, Any]
) -> tuple[pd.DataFrame | None, str]:
    """Return the effects on the shares of labels; if there are none, ``None`` and why."""
    if roles["label"] is None:
        return None, "no labels were given"
    try:
        return composition(adata, roles["condition"], roles["donor"], roles["label"], **design), ""
    except ScmedleyError as error:  # such as one label only; the effects on genes are there
        return None, str(error).rstrip(".")


def _write(
    found: pd.DataFrame, shares: pd.DataFrame | None, between: Between, record: dict[str, Any], out: Path
) -> None:
    """Write the tables, the page and the record: all or nothing."""
    with io.replacing(out) as folder:
        folder.mkdir()
        io.write_csv(found, folder / EFFECTS)
        if shares is not None:
            io.write_csv(shares, folder / COMPOSITION)
            io.write_csv(pd.DataFrame(shares.attrs["shares"]), folder / SHARES)
        for table, name in OF_SAMPLES.items():
            if (rows := getattr(between, table)) is not None:
                io.write_csv(
                    rows.reset_index(allow_duplicates=True) if table == "shares" else rows, folder / name
                )
        write_effects(found, shares, vars(between), record, folder / EFFECTS_PAGE, record["input"]["name"])
        io.write_json(versions(), folder / VERSIONS)
        io.write_json(record, folder / EFFECTS_RECORD)


def findings(table: pd.DataFrame, fdr: float = FDR) -> list[str]:
    """Return sentences about effects on genes: how many, the first ones, and what rests on one donor."""
    said, none = [], []
    table = shown_in(table)
    groups = dict(list(table.groupby(["label", "contrast"], sort=False)))
    for record in table.attrs["contrasts"]:
        if record["reason"]:
            continue
        own = groups[record["label"], record["contrast"]]
        called = own[own["q"] <= fdr]
        where = f"{record['label']}, {record['contrast']} ({record['donors']} donors)"
        if called.empty:
            none.append(where)
            continue
        first = ", ".join(f"{r.gene} ({r.effect:+.1f})" for r in called.head(NAMED).itertuples())
        more = "; with the smallest p" if len(called) > NAMED else ""
        said.append(f"{where}: {len(called):,} of {record['tested']:,} genes at q ≤ {fdr:g}{more}: {first}.")
        if n := int(depends_on_one(called).sum()):
            said[-1] += f" {n:,} of them would be less than half as large without one donor."
    if len(said) > SENTENCES:
        said[SENTENCES:] = [f"Genes at q ≤ {fdr:g} in {len(said) - SENTENCES} more: see {EFFECTS}."]
    if none:
        said.append(f"No gene at q ≤ {fdr:g}: {'; '.join(none[:NAMED])}{_rest(none)}.")
    untested = [r for r in table.attrs["contrasts"] if r["reason"]]
    for reason in dict.fromkeys(r["reason"] for r in untested):
        where_all = [f"{r['label']}, {r['contrast']}" for r in untested if r["reason"] == reason]
        said.append(f"No test: {'; '.join(where_all[:NAMED])}{_rest(where_all)}: {reason}.")
    return said


def _rest(names: list[str]) -> str:
    return f" and {len(names) - NAMED} more" if len(names) > NAMED else ""


def composition_findings(table: pd.DataFrame | None, fdr: float = FDR) -> list[str]:
    """Return sentences about the shares of labels."""
    if table is None:
        return []
    called = table[table["q"] <= fdr]
    said = [
        f"Composition, {row.contrast}: {row.label} changes by {row.effect:+.1f} (log2 of its ratio to the other "
        f"labels; q = {row.q:.2g}, {row.donors} donors)."
        for row in called.itertuples()
    ]
    if not said and table["q"].notna().any():
        said = [f"Composition: no label changes at q ≤ {fdr:g}."]
    if table["q"].isna().all():
        reasons = list(dict.fromkeys(table.loc[table["reason"] != "", "reason"]))
        said.append(f"Composition: no test ({'; '.join(reasons[:2])}).")
    return said


def variance_findings(shares: pd.DataFrame | None) -> list[str]:
    """Return a sentence about the mean share of variance of each term."""
    if shares is None or shares.dropna().empty:
        return []
    means = shares.dropna().mean().sort_values(ascending=False, kind="stable")
    terms = ", ".join(f"{term} {share:.0%}" for term, share in means.items())
    return [f"Variance between samples, mean over {len(shares.dropna()):,} genes: {terms}."]
