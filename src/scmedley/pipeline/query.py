"""Embed new cells with the model of a run: both latents, labels, mapping confidence, novelty, and a page."""

from __future__ import annotations

import warnings
from contextlib import ExitStack, nullcontext
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scmedley import io, keys
from scmedley.data.memory import too_large
from scmedley.data.reader import Reading
from scmedley.errors import ScmedleyWarning, listed
from scmedley.interpret.check import decoder
from scmedley.io.lazy import matrices_bytes, opened
from scmedley.keys import ValueKind
from scmedley.models import DeepBID, MixedEffects
from scmedley.models.base import Model
from scmedley.models.reference import LEAST_PROBABILITY, MOST_NOVELTY
from scmedley.models.transfer import LEAST_CONFIDENCE
from scmedley.pp.stored import store_new
from scmedley.runs.folder import CLUSTER_EVIDENCE
from scmedley.runs.read import read_model, read_table

MOST_LINES = 20  # batches that the console lists
LEAST_OF_LABEL = 20  # cells of a label from which the effects of a new batch are learnt
MANY_NEW, MANY_UNASSIGNED = 0.05, 0.2  # shares of the cells from which the advice speaks of them


def embed(
    folder: Path, input: Path, out: Path, page: Path, *, values: ValueKind = "auto", unknown: str = "error"
) -> list[str]:
    """Write new cells with their results to ``out`` and a page about them to ``page``; return lines to print.

    If one of the two cannot be written, neither is.

    Parameters
    ----------
    folder
        Run folder.
    input
        File of new cells.
    out, page
        New .h5ad and .html files.
    values
        What the matrix of the file holds, as in :func:`scmedley.pp.prepare`.
    unknown
        For cells of batches that the model does not know: ``"error"``; ``"mean"``, the population mean; or
        ``"adapt"``, which first learns the effects of these batches (:meth:`MixedEffects.adapt`).
    """
    with ExitStack() as stack:
        return _embed(folder, out, page, unknown, *_cells(stack, read_model(folder), input, out, values))


def _cells(
    stack: ExitStack, model: MixedEffects | Model[Any], input: Path, out: Path, values: ValueKind
) -> tuple[MixedEffects | Model[Any], AnnData, Reading]:
    """Return the model, the new cells, and the cells as it reads them.

    Those of a large file are read in blocks into a temporary store beside ``out``; they are then without a matrix.
    """
    if not (sizes := too_large(matrices_bytes([input]))):
        adata = io.read(input)
        return model, adata, model.read(adata, values=values)
    warnings.warn(
        f"{input.name} holds {sizes}: it is read in blocks, and {out.name} holds the results without a matrix.",
        ScmedleyWarning,
        stacklevel=4,
    )
    lazy = stack.enter_context(opened(input))
    place = stack.enter_context(TemporaryDirectory(dir=out.parent, prefix=f".{out.stem[:80]}."))
    reading = store_new(decoder(model).reader, lazy, Path(place) / "cells", values)
    return model, AnnData(obs=lazy.obs.copy(), var=lazy.var.copy()), reading


def _embed(
    folder: Path,
    out: Path,
    page: Path,
    unknown: str,
    model: MixedEffects | Model[Any],
    adata: AnnData,
    reading: Reading,
) -> list[str]:
    if unknown == "adapt":
        decoder(model).design.extended(reading.obs)  # raises for cells without a batch
    drawn = io.replacing(page) if model.reference is not None and _can_draw() else nullcontext()
    note = note_of(model, reading.obs, unknown)
    with drawn as page_file, io.with_results(adata, out) as said:
        if unknown == "adapt":
            unknown = "error"
            if (decoder(model).design.codes(reading.obs) < 0).any():
                model = adapted(model, reading)
        model.embed(adata, unknown=unknown, reading=reading)
        in_clusters = []
        if isinstance(model, DeepBID):
            model.cluster(adata, unknown=unknown, reading=reading)
            in_clusters = cells_of_clusters(folder, adata)
        table = transferred(model, reading)
        for name in table:
            adata.obs[keys.TRANSFERRED[str(name)]] = table[name]
        batch = batches(adata.obs, model)
        summary = [] if table.empty else summarised(table, batch, note)
        if page_file is not None:
            from scmedley.report.query import write_query

            about = (batch_table(table, batch), in_clusters, summary, note)
            write_query(folder, model, adata, table, *about, page.stem, page_file)
    for line in said:
        warnings.warn(f"{out.name}: {line}", ScmedleyWarning, stacklevel=2)
    lines = [f"{adata.n_obs} cells embedded: {out}"]
    if in_clusters:
        lines.append(f"Cells in the clusters of the run (obs[{keys.CLUSTER!r}])")
        lines += [f"  {row['cluster']}, {row['name']}: {row['cells']:,} cells" for row in in_clusters]
    if not summary:
        return lines
    no_page = "No page: it needs pip install 'scmedley[report]'."
    return [*lines, "", *summary, no_page if page_file is None else f"Page: {page.resolve()}"]


def cells_of_clusters(folder: Path, adata: AnnData) -> list[dict[str, Any]]:
    """Return cluster, name in the run and number of new cells, one record a cluster that has new cells."""
    known = read_table(folder / CLUSTER_EVIDENCE)
    names = {} if known is None else dict(known[["cluster", "name"]].to_numpy())
    sizes = adata.obs[keys.CLUSTER].value_counts(sort=False)
    return [
        {"cluster": str(cluster), "name": names.get(str(cluster), f"cluster {cluster}"), "cells": int(n)}
        for cluster, n in sizes[sizes > 0].items()
    ]


def adapted(model: MixedEffects | Model[Any], reading: Reading) -> MixedEffects | Model[Any]:
    """Return the model with the effects of batches that are new to it, learnt from similar numbers of each label.

    From all cells, a large group of a new type would pass for the effect of its batch. The cells of each batch
    with one predicted label are therefore limited to the median of the batch's labels, but not below 20.
    """
    table = transferred(model, reading)
    if "label" not in table:
        return model.adapt(reading)
    chosen, rng = [], np.random.default_rng(0)
    batch = batches(reading.obs, model)
    for name in batch.unique():
        own = np.flatnonzero(batch == name)
        label = table["label"].to_numpy()[own].astype(str)
        parts = [own[label == one] for one in np.unique(label)]
        most = max(LEAST_OF_LABEL, int(np.median([len(part) for part in parts])))
        chosen += [rng.permutation(part)[:most] for part in parts]
    return model.adapt(reading.take(np.sort(np.concatenate(chosen))))


def transferred(model: MixedEffects | Model[Any], reading: Reading) -> pd.DataFrame:
    """Return the table of ``model.transfer``, or an empty one and a warning if the model has no reference."""
    if model.reference is not None:
        return model.transfer(reading)
    if isinstance(model, MixedEffects) and model.fixed is None:
        reason = f"obsm[{model.fixed_key!r}] replaces the fixed-effects network, which reads new cells. Fit without it."
    elif decoder(model).needs_batch and not isinstance(model, MixedEffects):
        reason = f"the latent of {type(model).__name__} holds the batch, so it cannot place cells of other batches."
    else:
        reason = "the run is of a version that did not keep reference cells. Fit it again."
    warnings.warn(f"No labels and no novelty: {reason}", ScmedleyWarning, stacklevel=2)
    return pd.DataFrame(index=reading.obs.index)


def batches(obs: pd.DataFrame, model: MixedEffects | Model[Any]) -> pd.Series[str]:
    """Return the batch of each cell as the model names it; all are of one batch if the column is missing."""
    design = decoder(model).design
    if not set(design.columns) & set(obs):
        return pd.Series("no batch column", index=obs.index)
    names: pd.Series[str] = design.names(obs).fillna("no batch")
    return names


def note_of(model: MixedEffects | Model[Any], obs: pd.DataFrame, unknown: str) -> str:
    """Return how the cells of batches that the model does not know were read; empty if it knows all."""
    new = sorted(set(batches(obs, model)[decoder(model).design.codes(obs) < 0]))
    if not new:
        return ""
    which = f"{'Batch' if len(new) == 1 else 'Batches'} unknown to the model: {listed(new, 3)}."
    if unknown == "adapt":
        return f"{which} Their effects were learnt from these cells first (--unknown adapt)."
    weak = f"weak there and rarely above {MOST_NOVELTY}"
    if isinstance(model, MixedEffects) or model.needs_batch:
        return (
            f"{which} The cells were read with the population mean (--unknown mean): novelty is {weak}. Try --unknown "
            "adapt."
        )
    adapting = " (--unknown adapt learns it)" if model.has_effects else ""
    return (
        f"{which} The embedding, and what follows from it, does not use the batch. Only novelty needs the effect of "
        f"the batch{adapting}: without it, novelty is {weak}."
    )


def summarised(table: pd.DataFrame, batch: pd.Series[str], note: str = "") -> list[str]:
    """Return the summary of a query for the console and the page: labels, doubts by batch, what to do next.

    ``note``: how batches that the model does not know were read.
    """
    lines = []
    if "assigned" in table:
        lines.append("Assigned labels")
        sizes = table["assigned"].value_counts()
        for name, size in sizes[sizes > 0].items():
            mean = table.loc[table["assigned"] == name, "probability"].mean()
            reasons = f" ({reasons_of(table)})" if name == keys.UNASSIGNED else ""
            lines.append(f"  {name}: {size:,} cells, mean probability {mean:.2f}{reasons}")
    else:
        lines.append("The run had no labels, so none were transferred.")
    new, far = is_new(table), is_far(table)
    lines.append(
        f"Novel (novelty above {MOST_NOVELTY}): {new.sum():,} of {len(table):,} cells. "
        f"No training cell is close (mapping confidence below {LEAST_CONFIDENCE}): {far.sum():,}."
    )
    lines += [note] if note else []
    by_batch = batch_table(table, batch)
    if len(by_batch) > 1:
        for name, row in by_batch.head(MOST_LINES).iterrows():
            lines.append(f"  {name}: {row['cells']:,} cells, {row['novel']:,} novel" + _unassigned(row))
        if len(by_batch) > MOST_LINES:
            lines.append(f"  and {len(by_batch) - MOST_LINES:,} more batches")
    return [*lines, f"Next: {advice(table, by_batch)}"]


def reasons_of(table: pd.DataFrame) -> str:
    """Return why cells are unassigned, with numbers of cells; a cell may have more than one reason."""
    low = table["probability"] < LEAST_PROBABILITY
    counts = {"low probability": low, "novel": is_new(table), "no training cell close": is_far(table)}
    return ", ".join(f"{name}: {flags.sum():,}" for name, flags in counts.items() if flags.any())


def is_new(table: pd.DataFrame) -> pd.Series[bool]:
    """Return which cells are novel."""
    return table["novelty"] > MOST_NOVELTY


def is_far(table: pd.DataFrame) -> pd.Series[bool]:
    """Return which cells are far from all training cells."""
    return table["mapping_confidence"] < LEAST_CONFIDENCE


def batch_table(table: pd.DataFrame, batch: pd.Series[str]) -> pd.DataFrame:
    """Return one row for each batch: cells, novel cells and, with labels, unassigned cells."""
    counted = pd.DataFrame({"cells": 1, "novel": is_new(table).astype(int)})
    if "assigned" in table:
        counted["unassigned"] = (table["assigned"] == keys.UNASSIGNED).astype(int)
    found: pd.DataFrame = counted.groupby(batch.to_numpy()).sum()
    return found.sort_values("cells", ascending=False, kind="stable")


def advice(table: pd.DataFrame, by_batch: pd.DataFrame) -> str:
    """Return what to do next, in one or two sentences."""
    share = float(is_new(table).mean())
    if share > MANY_NEW:
        share_of = by_batch["novel"] / by_batch["cells"]
        worst = [str(name) for name in share_of[share_of > 2 * share].index]
        where = f", most of all in {listed(worst, 3)}" if worst else ""
        return (
            f"{100 * share:.0f} % of the cells are novel{where}. Cluster them and look at their marker genes: a type "
            "or state that training did not have forms a cluster of its own."
        )
    if "assigned" in table and float((table["assigned"] == keys.UNASSIGNED).mean()) > MANY_UNASSIGNED:
        return "many cells are unassigned. Check their quality (few genes or counts), or fit again with these cells."
    if "assigned" in table:
        return f"use obs[{keys.TRANSFERRED['assigned']!r}]; confirm types of interest by their marker genes."
    return "fit with --label to transfer labels too."


def _unassigned(row: pd.Series[int]) -> str:
    return f", {row['unassigned']:,} unassigned" if "unassigned" in row else ""


def _can_draw() -> bool:
    return all(find_spec(name) is not None for name in ("jinja2", "matplotlib"))
