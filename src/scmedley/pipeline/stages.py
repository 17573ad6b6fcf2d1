"""The stages of a run. Each reads and writes a run folder.

A run that was interrupted starts again from the beginning. Reading and preparing give the same cells, and
each network continues from its checkpoint, to the same bits.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from anndata import AnnData

from scmedley import distributed, io, keys
from scmedley.data import sampling
from scmedley.data.inplace import store_clusters
from scmedley.data.reader import Reading
from scmedley.device import engine
from scmedley.errors import ScmedleyError, heard
from scmedley.models import DeepBID, MixedEffects
from scmedley.models.base import Model
from scmedley.models.catalogue import maps_of
from scmedley.pipeline.backed import Place, nothing_of, place_of
from scmedley.pipeline.cells import Say
from scmedley.pipeline.checks import check_config, check_inputs, resolved, unfitted
from scmedley.pipeline.config import RunConfig
from scmedley.pipeline.fit import fit_networks
from scmedley.pipeline.preparing import prepared_cells, reading_of
from scmedley.pipeline.processes import announce_place, announce_ready, take_part
from scmedley.pipeline.sample import Sample
from scmedley.pipeline.scoring import score, scored
from scmedley.pipeline.work import Work, write_report_of
from scmedley.pl._palette import store_colours
from scmedley.pp import pca
from scmedley.pp.join import file_titles
from scmedley.pp.maps import umap
from scmedley.pp.stored import read_store
from scmedley.report.build import check_extra
from scmedley.runs import folder as run_folder
from scmedley.runs.folder import CELLS, STORE
from scmedley.runs.read import read_cells, read_model, read_reading
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

    Without ``explorer`` the report holds no cells, and its maps are static pictures. Several processes, which torchrun
    started, fit together; process 0 does everything else.
    """
    files_key, config = config.batch, resolved(config)
    check_config(config)
    if not only_fit:
        check_extra(maps=True)
    check_inputs(inputs, out)
    with distributed.started(config.device):
        if not distributed.is_first():
            take_part(inputs, out, config, files_key, only_fit)
            raise SystemExit(0)  # process 0 writes and prints
        return _run(inputs, out, config, files_key, overwrite, say, progress, only_fit, explorer)


def _run(
    inputs: Sequence[Path],
    out: Path,
    config: RunConfig,
    files_key: str,
    overwrite: bool,
    say: Say,
    progress: bool,
    only_fit: bool,
    explorer: bool,
) -> Record:
    with run_folder.locked(out):
        record = Record(
            out / run_folder.RECORD,
            {
                "command": "fit" if only_fit else "run",
                "config": asdict(config),
                "versions": run_folder.versions(),
                "seed": config.seed,
                "started": now(),
                "input": {"name": _title(inputs), "sha256": _hash(inputs)},
            },
        )
        record.check_place(overwrite)
        record["resumed"] = record.path.exists() and not overwrite
        record["report"] = {"cells": explorer}
        this = Work(out, config, record, say, progress)
        place = place_of(config, inputs, out, overwrite)
        announce_place(place)
        # Errors in the input are raised before the folder is changed.
        with _begun(this, place, overwrite):
            adata = prepared_cells(this, inputs, files_key, place, held_out=not only_fit)
        run_folder.clear(
            out, [n for n in run_folder.OF_RUN if place is None or n != STORE], finished=overwrite
        )
        record.write("running")
        announce_ready()
        with engine(config.threads, torch.device("cpu")):
            _after_preparing(this, adata, place, only_fit)
        shutil.rmtree(out / run_folder.CHECKPOINTS, ignore_errors=True)
    return record


def _title(inputs: Sequence[Path]) -> str:
    """Return the names of the files; of files with equal names, the parts of their paths that differ."""
    names = [path.name for path in inputs]
    return ", ".join(names if len(set(names)) == len(names) else file_titles(inputs))


def _after_preparing(this: Work, adata: AnnData, place: Place | None, only_fit: bool) -> None:
    _write_cells(this, adata)
    new = unfitted(this.config)
    if isinstance(new, DeepBID):
        with heard(this.warn):
            new.fit_to_values(adata if place is None else read_store(place.folder))
    reading = reading_of(adata, this.config, place, new.reads)
    sample = _sample(this, adata)
    model = fit_networks(this, new, adata, reading, sample)
    if not only_fit:
        this.say(EMBEDDING)
        with this.stage("embed"):
            embed_all(adata, model, this.config, reading)
    with this.stage("add results"):
        io.add_results(adata, this.folder / CELLS)
    if not only_fit:
        if isinstance(model, DeepBID) and this.config.denoise:
            size = 4 * adata.n_obs * len(model.genes) / 1e9
            this.say(f"Denoising ({size:.1f} GB before compression; --no-denoise leaves it out)")
            with this.stage("denoise"):
                model.denoise(reading, out=this.folder / run_folder.DENOISED)
        score(this, adata, model, reading, sample)
    del reading, adata  # the report needs their memory
    this.finish(with_report=not only_fit)


@contextmanager
def _begun(this: Work, place: Place | None, overwrite: bool) -> Iterator[None]:
    """Write the record before the body writes a store, so that the same command can go on if it is interrupted.

    If the body fails before it has written anything to the store, the record is removed again. A store that is to be
    overwritten is deleted after the body; if the body fails, it stays.
    """
    if place is None:
        yield
        return
    this.record["store"] = place.about(this.folder)
    own, aside = this.folder / STORE, this.folder / f".{STORE}.before"
    if overwrite and own.exists():
        shutil.rmtree(aside, ignore_errors=True)  # an earlier call was killed
        own.rename(aside)
    is_new, was_there = not this.record.path.exists(), place.folder.exists()
    if is_new:
        this.record.write("running")
    try:
        yield
    except ScmedleyError:
        if aside.exists() and not own.exists():
            aside.rename(own)
        if is_new and (was_there or nothing_of(place.folder)):
            this.record.path.unlink()
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _sample(this: Work, adata: AnnData) -> Sample:
    """Draw the cells of the scores, and say so if they are not all cells."""
    sample = Sample.of(adata, this.config)
    this.record.pop("sample", None)
    if found := sample.described():
        this.record["sample"] = found
        this.say(
            f"Scores and the null are computed from {found['scored']:,} of {found['cells']:,} cells, gene shifts and "
            f"their check from {found['paired']:,}, drawn at random within batch, label and part of the split. Fit and "
            "embeddings use all cells."
        )
    return sample


def _write_cells(this: Work, adata: AnnData) -> None:
    """Write the cells before training, so that an error in writing does not cost a fit."""
    with this.stage("write"):
        for warning in io.write_h5ad(adata, this.folder / CELLS):
            this.warn(f"{CELLS}: {warning}")


def embed_all(adata: AnnData, model: MixedEffects | Model[Any], config: RunConfig, reading: Reading) -> None:
    """Store all embeddings, the principal components, their UMAPs, colours, the settings and versions."""
    model.embed(adata, reading=reading)
    if isinstance(model, DeepBID):
        if model.clusters is None:  # the paper preset
            model.cluster(adata, reading=reading)
        else:
            found = model.clusters  # of these cells: no neighbours need be searched
            store_clusters(adata, found.code_N, found.membership_NK, found.tables)
    if isinstance(model, MixedEffects):
        adata.obsm[keys.RANDOM_MASKED] = model.random.get_latent_representation(reading, mask_batch=True)
    pca(adata, seed=config.seed, reading=None if reading.store is None else reading)
    for basis in maps_of(config.model):
        umap(adata, basis, seed=config.seed, rest="placed" if adata.n_obs > sampling.MANY else "missing")
    store_colours(adata, filter(None, (config.batch, config.label, keys.CLUSTER)))
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
        reading = read_reading(out, model, adata)
        sample = _sample(this, adata)
        if not set(scored(config)) <= set(adata.obsm):
            check_extra(maps=True)
            say(EMBEDDING)
            embed_all(adata, model, config, reading)
            io.add_results(adata, out / CELLS)
        # An existing report would show the old scores. A run that is not finished has no report yet.
        unfinished = record.get("command") == "run" and not record.is_finished
        with_report = (out / run_folder.REPORT).exists() or unfinished
        score(this, adata, model, reading, sample)
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


def _hash(inputs: Sequence[Path]) -> str:
    return "+".join(io.sha256(path) for path in inputs)
