"""The stages of a run. Each reads and writes a run folder.

A run that was interrupted starts again from the beginning. Reading and preparing give the same cells, and
each network continues from its checkpoint, to the same bits.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scmedley import io, keys
from scmedley.data.design import Design
from scmedley.data.evidence import Checked
from scmedley.data.factors import Factors
from scmedley.data.inplace import store_clusters
from scmedley.data.reader import Reading
from scmedley.data.terms import Terms
from scmedley.device import engine
from scmedley.errors import ScmedleyError, heard
from scmedley.evaluate.label_accuracy import label_accuracy
from scmedley.evaluate.scores import scores
from scmedley.interpret.check import counterfactual_check, decoder
from scmedley.interpret.collapse import diagnose
from scmedley.interpret.genomap import MOST_GENES, genomap_of
from scmedley.interpret.shifts import gene_shifts, interval_coverage
from scmedley.models import VAE, DeepBID, MixedEffects
from scmedley.pipeline.cells import Say, read_and_prepare
from scmedley.pipeline.checks import (
    check_config,
    check_inputs,
    check_n_clusters,
    few_of_label,
    resolved,
    unfitted,
)
from scmedley.pipeline.clusters import check_roles, write_clusters
from scmedley.pipeline.config import RunConfig
from scmedley.pipeline.findings import findings
from scmedley.pipeline.fit import fit_networks
from scmedley.pipeline.verdicts import verdicts
from scmedley.pipeline.work import Work, write_report_of
from scmedley.pp import pca, prepare
from scmedley.pp.join import read_batches
from scmedley.pp.maps import umap
from scmedley.pp.overlap import overlap
from scmedley.pp.prepared import check_factors, read_prepared, store_batches
from scmedley.pp.split import check_split
from scmedley.report.build import check_extra
from scmedley.runs import folder as run_folder
from scmedley.runs.folder import CELLS, CHECK, GENOMAP, LABELS, SCORES, SHIFTS
from scmedley.runs.read import read_cells, read_model
from scmedley.runs.record import Record, now

EMBEDDING = "Embedding all cells and drawing their maps"


def run(
    inputs: Sequence[Path],
    out: Path,
    config: RunConfig,
    *,
    overwrite: bool = False,
    say: Say = print,
    progress: bool = True,
    only_fit: bool = False,
    explorer: bool = True,
) -> Record:
    """Prepare, fit, embed, score and report (or only prepare and fit); return the record of the run.

    Without ``explorer`` the report holds no cells, and its maps are static pictures.
    """
    files_key, config = config.batch, resolved(config)
    check_config(config)
    if not only_fit:
        check_extra(maps=True)
    check_inputs(inputs, out)
    with run_folder.locked(out):
        record = Record(
            out / run_folder.RECORD,
            {
                "command": "fit" if only_fit else "run",
                "config": asdict(config),
                "versions": run_folder.versions(),
                "seed": config.seed,
                "started": now(),
                "input": {"name": ", ".join(p.name for p in inputs), "sha256": _hash(inputs)},
            },
        )
        record.check_place(overwrite)
        record["resumed"] = record.path.exists() and not overwrite
        record["report"] = {"cells": explorer}
        this = Work(out, config, record, say, progress)
        # Errors in the input are raised before the folder is changed.
        adata = _read_and_prepare(this, inputs, files_key, held_out=not only_fit)
        run_folder.clear(out, run_folder.OF_RUN, finished=overwrite)
        record.write("running")
        with engine(config.threads, torch.device("cpu")):
            _after_preparing(this, adata, only_fit)
        shutil.rmtree(out / run_folder.CHECKPOINTS, ignore_errors=True)
    return record


def _after_preparing(this: Work, adata: AnnData, only_fit: bool) -> None:
    _write_cells(this, adata)
    new = unfitted(this.config)
    if isinstance(new, DeepBID):
        with heard(this.warn):
            new.fit_to_values(adata)
    reading = read_prepared(adata, this.config.batch, this.config.label, this.config.seed, new.reads)
    model = fit_networks(this, new, adata, reading)
    if not only_fit:
        this.say(EMBEDDING)
        with this.stage("embed"):
            embed_all(adata, model, this.config, reading)
    io.add_results(adata, this.folder / CELLS)
    if not only_fit:
        if isinstance(model, DeepBID) and this.config.denoise:
            size = 4 * adata.n_obs * len(model.genes) / 1e9
            this.say(f"Denoising ({size:.1f} GB before compression; --no-denoise leaves it out)")
            with this.stage("denoise"):
                model.denoise(reading, out=this.folder / run_folder.DENOISED)
        _evaluate(this, adata, model, reading)
    del reading  # the report needs its memory
    this.finish(with_report=not only_fit)


def _write_cells(this: Work, adata: AnnData) -> None:
    """Write the cells before training, so that an error in writing does not cost a fit."""
    with this.stage("write"):
        for warning in io.write_h5ad(adata, this.folder / CELLS):
            this.warn(f"{CELLS}: {warning}")


def _write_clusters(this: Work, adata: AnnData, model: DeepBID) -> list[str]:
    """Write the tables of clusters; return what they say."""
    config = this.config
    this.say("Describing the clusters and their marker genes")
    of: Any = {"batch": config.batch, "label": config.label, "donor": config.donor, "values": config.values}
    with heard(this.warn):
        return write_clusters(adata, model.clusters, this.folder, **of)


def embed_all(adata: AnnData, model: MixedEffects | VAE, config: RunConfig, reading: Reading) -> None:
    """Store all embeddings, the principal components, their UMAPs, the settings and versions."""
    model.embed(adata, reading=reading)
    if isinstance(model, DeepBID):
        if model.clusters is None:  # the paper preset
            model.cluster(adata, reading=reading)
        else:
            found = model.clusters  # of these cells: no neighbours need be searched
            store_clusters(adata, found.code_N, found.membership_NK, found.tables)
    if isinstance(model, MixedEffects):
        adata.obsm[keys.RANDOM_MASKED] = model.random.get_latent_representation(reading, mask_batch=True)
    pca(adata, seed=config.seed)
    for basis in keys.MAPS_OF[config.model]:
        umap(adata, basis, seed=config.seed)
    adata.uns[keys.UNS] = {
        **adata.uns[keys.UNS],
        "config": {k: v for k, v in asdict(config).items() if v is not None and v != ()},
        "versions": run_folder.versions(),
        "batch_key": config.batch,
        "label_key": config.label or "",
    }


def evaluate(out: Path, *, say: Say = print) -> Record:
    """Score the cells of a run folder again: the tables, verdicts and findings."""
    record = Record.read(out / run_folder.RECORD)
    _check_finished(record, record.is_fitted)
    try:
        config = RunConfig(**record["config"])
    except TypeError as error:
        raise ScmedleyError(
            f"{out} was written by another version of scmedley ({error}). Run again with this version."
        ) from error
    with run_folder.locked(out), engine(config.threads, torch.device("cpu")):
        adata, model = read_cells(out), read_model(out)
        this = Work(out, config, record, say, seconds=dict(record.get("seconds", {})))
        reading = model.read(adata)
        if not set(_scored(config)) <= set(adata.obsm):
            check_extra(maps=True)
            say(EMBEDDING)
            embed_all(adata, model, config, reading)
            io.add_results(adata, out / CELLS)
        # An existing report would show the old scores. A run that is not finished has no report yet.
        unfinished = record.get("command") == "run" and not record.is_finished
        with_report = (out / run_folder.REPORT).exists() or unfinished
        _evaluate(this, adata, model, reading)
        this.finish(with_report)
    return record


def report(out: Path, *, say: Say = print, explorer: bool = True) -> Path:
    """Write report.html of a run folder again; without ``explorer`` it holds no cells."""
    record = Record.read(out / run_folder.RECORD)
    _check_finished(record, record.is_scored)
    with run_folder.locked(out):
        record["report"] = {"cells": explorer}
        path = write_report_of(record, say)
        record.write("done")
    return path


def _check_finished(record: Record, finished: bool) -> None:
    if not finished:
        raise ScmedleyError(f"The run in {record.path.parent} is not finished: repeat its command.")


def _read_and_prepare(this: Work, inputs: Sequence[Path], files_key: str, held_out: bool) -> AnnData:
    config, record = this.config, this.record

    def read() -> AnnData:
        with this.stage("read"):
            one = len(inputs) == 1
            adata = io.read(inputs[0]) if one else read_batches(inputs, files_key, config.values)
        record["input"] |= {"cells": adata.n_obs, "genes": adata.n_vars}
        return adata

    def prepared(adata: AnnData) -> Checked:
        with this.stage("prepare"):
            return _prepare(adata, config, held_out)

    name = record["input"]["name"]
    adata, warnings = read_and_prepare(name, read, prepared, this.say)
    record |= {"prepare": adata.uns[keys.UNS]["prepare"], "warnings": warnings}
    if config.design is not None:
        terms = Terms.of(config.design, adata.obs)
        record["design"] = {"formula": config.design, "keep": config.keep}
        record["design"] |= {"terms": terms.table(adata.obs).to_dict("records")}
    if config.label is not None:
        found = overlap(adata.obs[config.batch], adata.obs[config.label])
        record |= {"verdict": found.words, "comparable": found.verdict == "identifiable"}
    return adata


def _prepare(adata: AnnData, config: RunConfig, held_out: bool) -> Checked:
    """Filter, normalise and split the cells; raise if they cannot be fitted, scored or written."""
    if keys.SPLIT in adata.obs:
        del adata.obs[keys.SPLIT]  # from an earlier run, with another seed or other cells
    design_notes: list[str] = []
    if config.design is not None:
        factors = Factors.of(config.design, keep=config.keep)
        design_notes = check_factors(adata.obs, factors)
        if config.label in factors.learn(adata.obs).columns:
            design_notes.append(
                f"The label {config.label!r} is in the design too, so its effects are removed from the fixed latent, "
                "which is then scored by how well it keeps them. Leave it out of the design, or --keep it."
            )
        store_batches(adata, factors)
    if config.model == "deepbid":
        check_roles(adata, {"batch": config.batch, "label": config.label, "donor": config.donor})
    checked = prepare(
        adata,
        config.batch,
        label_key=config.label,
        n_top_genes=config.genes,
        min_genes=config.min_genes,
        min_cells=config.min_cells,
        values=config.values,
        seed=config.seed,
        method="deepbid" if (config.model, config.preset) == ("deepbid", "paper") else "log1p",
    )
    checked.warnings.extend(design_notes)
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
    return checked


def _scored(config: RunConfig) -> list[str]:
    """Return the embeddings that are scored by the batches of the run."""
    shown = keys.MAPS_OF[config.model]
    return [keys.FIXED, keys.RANDOM, keys.RANDOM_MASKED, keys.PCA] if config.model == "mixed" else [*shown]


def _evaluate(this: Work, adata: AnnData, model: MixedEffects | VAE, reading: Reading) -> None:
    """Write the tables; add verdicts and findings to the record."""
    config, out = this.config, this.folder
    for name in ("verdicts", "findings", "intervals", "collapse"):  # of earlier scores
        this.record.pop(name, None)
    this.record.write("fitted")
    with this.stage("evaluate"):
        this.say("Scoring the embeddings on held-out cells")
        tables = [scores(adata, _scored(config), config.batch, config.label, seed=config.seed)]
        if nulls := [key for key in (keys.NULL, keys.NULL_MASKED) if key in adata.obsm]:
            tables.append(scores(adata, nulls, keys.PERMUTED, config.label, seed=config.seed))
        table = pd.concat(tables, ignore_index=True)
        io.write_csv(table, out / SCORES)
        labels = None
        if config.label is not None:
            labels = label_accuracy(adata, [keys.MAPS_OF[config.model][0], keys.PCA], config.label)
            io.write_csv(labels, out / LABELS)
        shifts, check = _counterfactuals(this, model, reading)
        this.record["intervals"] = _intervals(model, reading, config)
        if len(decoder(model).genes) <= MOST_GENES:
            genomap_of(model, reading, seed=config.seed).save(out / GENOMAP)
        clusters = _write_clusters(this, adata, model) if isinstance(model, DeepBID) else []
        if isinstance(model, VAE) and not (isinstance(model, DeepBID) and model.is_published):
            found = diagnose(model, reading, seed=config.seed)
            this.record["collapse"] = found.described()
    about = dict(this.record)
    if isinstance(model, MixedEffects):
        about["hides_batch"] = model.random.settings.masked_share > 0
    this.record["verdicts"] = [asdict(verdict) for verdict in verdicts(table, check, about, labels)]
    this.record["findings"] = clusters + findings(table, shifts, check, about)


def _counterfactuals(
    this: Work, model: MixedEffects | VAE, reading: Reading
) -> tuple[pd.DataFrame, pd.DataFrame] | tuple[None, None]:
    """Write and return the gene shifts and their check; ``None`` if the decoder has no batch effects."""
    config, out = this.config, this.folder
    this.record["batch_effects"] = decoder(model).has_effects
    if not decoder(model).has_effects:
        for name in (SHIFTS, CHECK):  # of an earlier version, which wrote them all the same
            (out / name).unlink(missing_ok=True)
        this.say("No gene shifts and no counterfactuals: the decoder of this model has no batch effects")
        return None, None
    this.say("Computing the gene shifts of each batch")
    shifts = gene_shifts(model, reading, config.label, draws=config.draws, seed=config.seed)
    io.write_csv(shifts, out / SHIFTS)
    this.say("Checking the counterfactuals on held-out cells")
    check = counterfactual_check(model, reading, config.label, seed=config.seed)
    io.write_csv(check, out / CHECK)
    return shifts, check


def _intervals(model: MixedEffects | VAE, reading: Reading, config: RunConfig) -> dict[str, float]:
    """Return the factor of the intervals and their coverage on held-out cells; empty if not calibrated."""
    calibration = decoder(model).calibration
    if calibration is None:
        return {}
    found = {"factor": calibration.factor}
    shares = interval_coverage(model, reading, config.label, seed=config.seed)
    for name, share in zip(("coverage", "coverage_largest"), shares, strict=True):
        if np.isfinite(share):
            found[name] = share
    return found


def _hash(inputs: Sequence[Path]) -> str:
    return "+".join(io.sha256(path) for path in inputs)
