"""The first stage of a run: read and prepare the cells, in memory or in a store."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scmedley import io, keys
from scmedley.data import store as stores
from scmedley.data.design import Design
from scmedley.data.evidence import Checked
from scmedley.data.factors import Factors
from scmedley.data.reader import Reading
from scmedley.data.store import Store
from scmedley.data.terms import Terms
from scmedley.errors import ScmedleyError, heard
from scmedley.io.lazy import opened, read_obsm
from scmedley.keys import Reads
from scmedley.models import MixedEffects
from scmedley.pipeline.backed import Place, locked
from scmedley.pipeline.cells import read_and_prepare
from scmedley.pipeline.checks import check_n_clusters, few_of_label
from scmedley.pipeline.clusters import check_roles
from scmedley.pipeline.config import RunConfig
from scmedley.pipeline.work import Work
from scmedley.pp import prepare
from scmedley.pp.checks import may_name_clusters
from scmedley.pp.join import opened_batches, read_batches
from scmedley.pp.overlap import overlap
from scmedley.pp.prepared import check_factors, read_prepared, store_batches
from scmedley.pp.split import check_split
from scmedley.pp.stored import prepare_store, read_cells, read_store


def prepared_cells(
    this: Work, inputs: Sequence[Path], files_key: str, place: Place | None, *, held_out: bool
) -> AnnData:
    """Return the prepared cells; those of a store hold no matrix. Facts about them are added to the record.

    ``files_key``: new column of the batches, if there are several files. ``held_out``: there must be held-out cells.
    """
    config, record = this.config, this.record
    adata, warnings = (
        _in_memory(this, inputs, files_key, held_out)
        if place is None
        else _on_disk(this, inputs, files_key, place, held_out)
    )
    record |= {"prepare": adata.uns[keys.UNS]["prepare"], "warnings": warnings}
    if config.design is not None:
        terms = Terms.of(config.design, adata.obs)
        record["design"] = {"formula": config.design, "keep": config.keep}
        record["design"] |= {"terms": terms.table(adata.obs).to_dict("records")}
    if config.label is not None:
        found = overlap(adata.obs[config.batch], adata.obs[config.label])
        record |= {"verdict": found.words, "comparable": found.verdict == "identifiable"}
        record["labels_of_clusters"] = may_name_clusters(adata.obs, config.label)
    return adata


def reading_of(adata: AnnData, config: RunConfig, place: Place | None, reads: Reads) -> Reading:
    """Return the prepared cells as the models read them, from memory or from the store."""
    cells: Any = adata
    if place is not None:
        cells = replace(read_store(place.folder, reads=reads), obs=adata.obs)
    return read_prepared(cells, config.batch, config.label, config.seed, reads)


def _in_memory(
    this: Work, inputs: Sequence[Path], files_key: str, held_out: bool
) -> tuple[AnnData, list[str]]:
    config, record = this.config, this.record

    def read() -> AnnData:
        with this.stage("read"):
            one = len(inputs) == 1
            adata = io.read(inputs[0]) if one else read_batches(inputs, files_key, config.values)
        record["input"] |= {"cells": adata.n_obs, "genes": adata.n_vars}
        return adata

    def prepared(adata: AnnData) -> Checked:
        with this.stage("prepare"):
            notes = _check_obs(adata, config)
            checked = prepare(adata, config.batch, **_options(config))
            checked.warnings.extend(notes)
            _check_prepared(adata, config, checked, held_out)
        return checked

    return read_and_prepare(record["input"]["name"], read, prepared, this.say)


def _on_disk(
    this: Work, inputs: Sequence[Path], files_key: str, place: Place, held_out: bool
) -> tuple[AnnData, list[str]]:
    """Prepare the cells into the store, unless it holds them already; return them without a matrix."""
    config, record = this.config, this.record
    this.say(place.sentence)
    with ExitStack() as stack:
        if place.folder.parent != this.folder.resolve():  # which is locked itself
            stack.enter_context(locked(place.folder, this.say))
        warnings = stack.enter_context(heard(lambda line: this.say(f"Warning: {line}")))
        with this.stage("prepare"):
            source = stack.enter_context(_opened(inputs, files_key, config))
            record["input"] |= {"cells": source.n_obs, "genes": source.n_vars}
            notes = _check_obs(source, config)
            is_ready = (place.folder / stores.HEADER).exists()
            checked = prepare_store(
                source, place.folder, config.batch, progress=this.progress, **_options(config)
            )
            adata = read_cells(Store.open(place.folder))
            adata.uns[keys.UNS] = {**adata.uns[keys.UNS], keys.STORE: place.about(this.folder)["folder"]}
            if config.fixed is not None:
                adata.obsm[config.fixed] = _given(inputs, config.fixed, source.obs_names, adata.obs_names)
            checked.warnings.extend(notes)
            _check_prepared(adata, config, checked, held_out)
        size = sum(path.stat().st_size for path in place.folder.iterdir()) / 1e6
        state = "was prepared before and is used again" if is_ready else "is ready"
        this.say(f"The store {state}: {adata.n_obs:,} cells and {adata.n_vars:,} genes, {size:,.3g} MB")
    for line in (checked.reason, *(f"Warning: {warning}" for warning in checked.warnings)):
        this.say(line)
    return adata, warnings + checked.warnings


@contextmanager
def _opened(inputs: Sequence[Path], files_key: str, config: RunConfig) -> Iterator[AnnData]:
    """Yield the cells with their matrices on disk."""
    several = opened_batches(inputs, files_key, config.values) if len(inputs) > 1 else opened(inputs[0])
    with several as adata:
        yield adata


def _given(inputs: Sequence[Path], key: str, names: pd.Index, kept: pd.Index) -> np.ndarray:
    """Read the embedding that replaces the fixed-effects network, of the cells that were kept."""
    if len(inputs) > 1:
        raise ScmedleyError(
            f"--fixed {key} of several files is not read for cells on disk. Join the files, or add --no-backed."
        )
    rows = names.get_indexer(kept) if names.is_unique else np.array([-1])
    if (rows < 0).any():
        raise ScmedleyError(
            f"Names of cells repeat, so --fixed {key} cannot be matched. Make them unique in the file."
        )
    found: np.ndarray = read_obsm(inputs[0], key)[rows]
    return found


def _options(config: RunConfig) -> dict[str, Any]:
    """Return the options of ``prepare``."""
    return {
        "label_key": config.label,
        "n_top_genes": config.genes,
        "min_genes": config.min_genes,
        "min_cells": config.min_cells,
        "values": config.values,
        "seed": config.seed,
        "method": "deepbid" if (config.model, config.preset) == ("deepbid", "paper") else "log1p",
    }


def _check_obs(adata: AnnData, config: RunConfig) -> list[str]:
    """Store the batches of a design; raise if columns cannot be used; return warnings."""
    if keys.SPLIT in adata.obs:
        del adata.obs[keys.SPLIT]  # from an earlier run, with another seed or other cells
    notes: list[str] = []
    if config.design is not None:
        factors = Factors.of(config.design, keep=config.keep)
        notes = check_factors(adata.obs, factors)
        if config.label in factors.learn(adata.obs).columns:
            notes.append(
                f"The label {config.label!r} is in the design too, so its effects are removed from the fixed latent, "
                "which is then scored by how well it keeps them. Leave it out of the design, or --keep it."
            )
        store_batches(adata, factors)
    if config.model == "deepbid":
        check_roles(adata, {"batch": config.batch, "label": config.label, "donor": config.donor})
    return notes


def _check_prepared(adata: AnnData, config: RunConfig, checked: Checked, held_out: bool) -> None:
    """Raise if prepared cells cannot be fitted, scored or written; add warnings to ``checked``."""
    check_split(adata.obs)
    check_n_clusters(config, adata.obs)
    if held_out and "test" not in set(adata.obs[keys.SPLIT]):
        raise ScmedleyError(
            f"{adata.n_obs} cells are too few for held-out cells, which the scores need. Give more cells."
        )
    if config.label is not None:
        checked.warnings.extend(few_of_label(adata.obs, config.label))
    Design.of(adata.obs, config.batch)
    io.check_columns(adata, filter(None, (config.batch, config.label)))
    if config.fixed is not None:
        MixedEffects(config.batch, fixed=config.fixed).given(adata)
        checked.warnings.append(
            f"Your embedding {config.fixed} replaces the fixed-effects network. If it was computed from all cells, "
            "its scores are not scores of held-out cells."
        )
    if config.learn_labels:
        checked.warnings.append(
            "The fixed-effects network was trained on the labels of the training cells. Its label scores are weaker "
            "evidence than those of a network that was trained without labels."
        )
