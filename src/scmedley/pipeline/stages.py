"""The stages of a run, each reading and writing a run folder.

A run that was cut short is run again from the start: reading and preparing give the same cells, and each
network goes on from its checkpoint, to the same bits.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData, read_h5ad

from scmedley import io, keys
from scmedley.data.design import Design
from scmedley.data.reader import Reading
from scmedley.device import engine, resolve_device
from scmedley.errors import ScmedleyError, check_seed, heard, one_line
from scmedley.evaluate.scores import scores
from scmedley.interpret.check import counterfactual_check
from scmedley.interpret.genomap import MOST_GENES, genomap_of
from scmedley.interpret.shifts import gene_shifts, interval_coverage
from scmedley.io.formats import reader_for
from scmedley.models import FixedEffects, MixedEffects, RandomEffects, load
from scmedley.models.base import Model, check_split, read_prepared
from scmedley.models.catalogue import FE, RE
from scmedley.models.fixed_effects import FixedEffectsSettings
from scmedley.models.random_effects import RandomEffectsSettings
from scmedley.models.settings import read_changes
from scmedley.pipeline.config import RunConfig
from scmedley.pipeline.findings import NULL_NAME, findings
from scmedley.pipeline.verdicts import verdicts
from scmedley.pp import pca, prepare
from scmedley.pp.join import read_batches
from scmedley.pp.maps import load_umap, umap
from scmedley.pp.nulls import permute_batches
from scmedley.pp.overlap import overlap
from scmedley.report.build import LEFT_OUT
from scmedley.runs import folder as run_folder
from scmedley.runs.folder import CELLS, CHECK, GENOMAP, HISTORY, MODEL, SCORES, SHIFTS, VERSIONS

EMBEDDING = "Embedding all cells and drawing maps of them"

Say = Callable[[str], None]


@dataclass
class Run:
    """A run at work: its folder, settings and record (what ``run.json`` will hold)."""

    folder: Path
    config: RunConfig
    record: dict[str, Any]
    say: Say = print
    progress: bool = True
    cells: bool = True  # in the report
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        began = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - began, 2)

    def warn(self, sentence: str) -> None:
        """Print a warning and keep it in the record."""
        self.record["warnings"].append(sentence)
        self.say(f"Warning: {sentence}")

    def finish(self, **more: Any) -> None:
        """Write the record, complete."""
        self.record |= {"status": "done", "finished": _now(), "seconds": self.seconds, **more}
        io.write_json(run_folder.versions(), self.folder / VERSIONS)
        io.write_json(self.record, self.folder / run_folder.RECORD)


def run(
    inputs: Sequence[Path],
    out: Path,
    config: RunConfig,
    *,
    overwrite: bool = False,
    say: Say = print,
    progress: bool = True,
    only_fit: bool = False,
    cells: bool = True,
) -> dict[str, Any]:
    """Prepare, fit, embed, score and report (or only prepare and fit); give the record of the run.

    Without ``cells`` the report holds none for its explorer.
    """
    check_config(config)
    if not only_fit:
        _check_extra()
    _check_inputs(inputs, out)
    with run_folder.locked(out):
        record = {
            "command": "fit" if only_fit else "run",
            "config": asdict(config),
            "versions": run_folder.versions(),
            "seed": config.seed,
            "started": _now(),
            "input": {"name": ", ".join(p.name for p in inputs), "sha256": _hash(inputs)},
        }
        run_folder.check(out, record, overwrite)
        record["resumed"] = (out / run_folder.RECORD).exists() and not overwrite
        this = Run(out, config, record, say, progress, cells)
        # Whatever is wrong with the input comes to light before the folder is touched.
        adata = _read_and_prepare(this, inputs, held_out=not only_fit)
        run_folder.begin(out, record, overwrite)
        with engine(config.threads, torch.device("cpu")):
            _after_preparing(this, adata, only_fit)
        shutil.rmtree(out / run_folder.CHECKPOINTS, ignore_errors=True)
    return this.record


def _after_preparing(this: Run, adata: AnnData, only_fit: bool) -> None:
    _write_cells(this, adata)
    reading = read_prepared(adata, this.config.batch, this.config.label, this.config.seed)
    model = _fit(this, adata, reading)
    if not only_fit:
        this.say(EMBEDDING)
        with this.stage("embed"):
            embed_all(adata, model, this.config, reading)
    io.add_results(adata, this.folder / CELLS)
    if not only_fit:
        _evaluate(this, adata, model, reading)
    this.finish()
    if not only_fit:
        _report(this.folder, this.say, this.cells)


def _write_cells(this: Run, adata: AnnData) -> None:
    """Write the cells before training: what cannot be written must not cost a fit."""
    with this.stage("write"):
        for warning in io.write_h5ad(adata, this.folder / CELLS):
            this.warn(f"{CELLS}: {warning}")


def check_config(config: RunConfig) -> None:
    """Raise for a setting that makes no sense, before any work is done."""
    for name in ("genes", "min_genes", "min_cells", "latent", "epochs", "threads"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ScmedleyError(f"--{name.replace('_', '-')} {value} must be at least 1.")
    if config.draws < 2:
        raise ScmedleyError(f"--draws {config.draws} must be at least 2, or there is no interval.")
    if config.learn_labels and (config.label is None or config.fixed is not None):
        why = "needs --label" if config.label is None else "has no network to train beside --fixed"
        raise ScmedleyError(f"--learn-labels {why}. Leave it out, or change that.")
    check_seed(config.seed)
    resolve_device(config.device)
    network_settings(config)


def network_settings(config: RunConfig) -> tuple[FixedEffectsSettings, RandomEffectsSettings]:
    """Return the settings of both networks: the preset's, changed by a file, changed by the command."""
    from_file = read_changes(Path(config.settings)) if config.settings else {}
    fixed = FE.labelled if config.learn_labels else FE.name
    unused = sorted(set(from_file) - {fixed, RE.name})
    if unused:
        raise ScmedleyError(
            f"{config.settings} has settings of {unused[0]!r}, which this run does not fit; it fits {fixed} and RE."
        )
    given = {k: v for k, v in (("n_latent", config.latent), ("max_epochs", config.epochs)) if v}
    return (
        FixedEffects.preset(config.preset, config.learn_labels).replace(**from_file.get(fixed, {}) | given),
        RandomEffects.preset(config.preset).replace(**from_file.get(RE.name, {}) | given),
    )


def _check_extra() -> None:
    """Raise for what is not installed before hours of training, not after."""
    missing = [name for name in ("jinja2", "matplotlib", "umap") if find_spec(name) is None]
    if missing:
        raise ScmedleyError(
            f"{' and '.join(missing)} not found, for maps and report: pip install 'scmedley[report]'"
        )
    try:
        load_umap()
    except Exception as error:  # numba raises its own for a version of numpy that it does not know
        raise ScmedleyError(
            f"UMAP cannot be imported ({one_line(error)}). Install umap-learn anew."
        ) from error


def _check_inputs(inputs: Sequence[Path], out: Path) -> None:
    """Look at the inputs from outside; the reader looks inside."""
    for path in inputs:
        if {path.resolve(), *path.resolve().parents} & {out.resolve()}:
            raise ScmedleyError(
                f"{path} lies in --out {out}, which is for results only. Choose another --out."
            )
        try:
            reader_for(path)
        except OSError as error:
            raise ScmedleyError(
                f"{path} cannot be read ({error.strerror}). Look at its permissions."
            ) from error


def embed_all(adata: AnnData, model: MixedEffects, config: RunConfig, reading: Reading) -> None:
    """Store both latents, the principal components and their UMAPs, and how they were made."""
    model.embed(adata, reading=reading)
    adata.obsm[keys.RANDOM_MASKED] = model.random.get_latent_representation(reading, mask_batch=True)
    pca(adata, seed=config.seed)
    for basis in (keys.FIXED, keys.RANDOM, keys.PCA):
        umap(adata, basis, seed=config.seed)
    adata.uns[keys.UNS] = {
        **adata.uns[keys.UNS],
        "config": {k: v for k, v in asdict(config).items() if v is not None},
        "versions": run_folder.versions(),
        "batch_key": config.batch,
        "label_key": config.label or "",
    }


def evaluate(out: Path, *, say: Say = print) -> dict[str, Any]:
    """Score the cells of a run folder anew: scores.csv, gene_shifts.csv, counterfactual_check.csv."""
    record = run_folder.read_record(out)
    if record.get("status") != "done":
        raise ScmedleyError(f"The run in {out} is not finished: repeat its command.")
    try:
        config = RunConfig(**record["config"])
    except TypeError as error:
        raise ScmedleyError(
            f"{out} is of another version of scmedley ({error}). Run anew with this one."
        ) from error
    with run_folder.locked(out), engine(config.threads, torch.device("cpu")):
        adata, model = read_cells(out), read_model(out)
        this = Run(out, config, record, say, seconds=dict(record.get("seconds", {})))
        reading = model.decoder.read(adata)
        if not {keys.FIXED, keys.RANDOM, keys.RANDOM_MASKED, keys.PCA} <= set(adata.obsm):
            _check_extra()
            say(EMBEDDING)
            embed_all(adata, model, config, reading)
            io.add_results(adata, out / CELLS)
        _evaluate(this, adata, model, reading)
        this.finish()
        page = out / run_folder.REPORT
        if page.exists():  # it would tell of the old scores
            _report(out, say, cells=LEFT_OUT not in page.read_text(encoding="utf-8", errors="replace"))
    return this.record


def report(out: Path, *, say: Say = print, cells: bool = True) -> Path:
    """Write report.html of a run folder anew; without ``cells`` it holds none for its explorer."""
    run_folder.read_record(out)
    with run_folder.locked(out):
        return _report(out, say, cells)


def read_cells(out: Path) -> AnnData:
    """Read integrated.h5ad of a run folder."""
    path = out / CELLS
    if not path.exists():
        finished = run_folder.read_record(out).get("status") == "done"
        raise ScmedleyError(
            f"{path} is missing. "
            + ("Run again with --overwrite." if finished else "The run is not finished: repeat its command.")
        )
    try:
        return read_h5ad(path)
    except Exception as error:  # h5py and anndata raise many kinds
        raise ScmedleyError(f"{path} cannot be read ({error}). Run again with --overwrite.") from error


def read_model(out: Path) -> MixedEffects:
    """Load the model of a run folder."""
    run_folder.read_record(out)
    if not (out / MODEL).exists():
        raise ScmedleyError(
            f"{out / MODEL} is missing. Repeat the command of the run, with --overwrite if it is done."
        )
    model = load(out / MODEL)
    if not isinstance(model, MixedEffects):
        raise ScmedleyError(f"{out / MODEL} is a {type(model).__name__}, not the model of a run.")
    return model


def _read_and_prepare(this: Run, inputs: Sequence[Path], held_out: bool) -> AnnData:
    config, record = this.config, this.record
    with this.stage("read"):
        this.say(f"Reading {record['input']['name']}")
        with heard(lambda line: this.say(f"Warning: {line}")) as said:  # at once: an error may follow from it
            adata = (
                io.read(inputs[0]) if len(inputs) == 1 else read_batches(inputs, config.batch, config.values)
            )
        record["input"] |= {"cells": adata.n_obs, "genes": adata.n_vars}
    with this.stage("prepare"):
        if keys.SPLIT in adata.obs:
            del adata.obs[keys.SPLIT]  # of an earlier run, with another seed or other cells
        checked = prepare(
            adata,
            config.batch,
            label_key=config.label,
            n_top_genes=config.genes,
            min_genes=config.min_genes,
            min_cells=config.min_cells,
            values=config.values,
            seed=config.seed,
        )
        check_split(adata.obs)
        if held_out and "test" not in set(adata.obs[keys.SPLIT]):
            raise ScmedleyError(
                f"{adata.n_obs} cells are too few to hold some out for the scores. Give more cells."
            )
        Design.of(adata.obs, config.batch)
        io.check_columns(adata, filter(None, (config.batch, config.label)))
        if config.fixed is not None:
            MixedEffects(config.batch, fixed=config.fixed).given(adata)
            checked.warnings.append(
                f"The fixed part is your embedding {config.fixed}. If it was made of all cells, its scores are not on "
                "held-out cells."
            )
        if config.learn_labels:
            checked.warnings.append(
                "The fixed-effects network was trained on the labels of the training cells: its scores by label say "
                "less than those of a network that saw none."
            )
    record |= {"prepare": adata.uns[keys.UNS]["prepare"], "warnings": said + checked.warnings}
    if config.label is not None:
        found = overlap(adata.obs[config.batch], adata.obs[config.label])
        record |= {"verdict": found.words, "comparable": found.verdict == "identifiable"}
    this.say(checked.reason)
    for warning in checked.warnings:
        this.say(f"Warning: {warning}")
    return adata


def _fit(this: Run, adata: AnnData, reading: Reading) -> MixedEffects:
    """Fit both networks, and the null of the random one; write the model and the history."""
    config, out = this.config, this.folder
    fixed, random = network_settings(config)
    model = MixedEffects(
        config.batch,
        config.label if config.learn_labels else None,
        preset=config.preset,
        fixed=config.fixed,
        fixed_settings=fixed,
        random_settings=random,
    )
    how: dict[str, Any] = {
        "seed": config.seed,
        "threads": config.threads,
        "precision": config.precision,
        "device": config.device,
        "progress": this.progress,
    }
    this.say(f"Fitting {' and '.join(model.networks())} effects to {adata.n_obs} cells")
    with this.stage("fit"):
        model.fit(reading, checkpoint=out / run_folder.CHECKPOINTS, **how)
        model.save(out / MODEL)
    history, networks = model.history, {n: m.fitted for n, m in model.networks().items()}
    if config.null:
        this.say("Fitting random effects to permuted batches, for comparison")
        with this.stage("fit null"):
            null = _fit_null(adata, reading, RandomEffects(keys.PERMUTED, settings=random), this, how)
        history = pd.concat([history, null.history.assign(network=NULL_NAME)], ignore_index=True)
        networks[NULL_NAME] = null.fitted
    io.write_csv(history, out / HISTORY)
    if model.decoder.calibration is None:
        this.warn(
            "Intervals of shifts are not calibrated: too few validation cells share a label between batches."
        )
    this.record["networks"] = networks
    for name, fitted in networks.items():
        if fitted["stopped"] == "interrupted":
            this.warn(
                f"Training of the {name} network was interrupted after epoch {fitted['epochs']}; its best epoch "
                f"so far, {fitted['best_epoch']}, is used."
            )
        elif config.epochs and fitted["stopped"] == "last epoch" and fitted["best_epoch"] == fitted["epochs"]:
            this.warn(
                f"Training of the {name} network was still improving when --epochs {config.epochs} ended it."
            )
    return model


def _fit_null(
    adata: AnnData, reading: Reading, null: RandomEffects, this: Run, how: dict[str, Any]
) -> Model[Any]:
    """Fit the random-effects network to batches permuted within labels; store labels and both latents."""
    permute_batches(adata, this.config.batch, this.config.label, seed=this.config.seed)
    reading = replace(reading, obs=adata.obs)
    null.fit(reading, checkpoint=this.folder / run_folder.CHECKPOINTS / "null.safetensors", **how)
    adata.obsm[keys.NULL] = null.get_latent_representation(reading)
    adata.obsm[keys.NULL_MASKED] = null.get_latent_representation(reading, mask_batch=True)
    return null


def _evaluate(this: Run, adata: AnnData, model: MixedEffects, reading: Reading) -> None:
    """Write the tables and put the findings into the record."""
    config, out = this.config, this.folder
    with this.stage("evaluate"):
        this.say("Scoring the embeddings on held-out cells")
        shown = [keys.FIXED, keys.RANDOM, keys.RANDOM_MASKED, keys.PCA]
        tables = [scores(adata, shown, config.batch, config.label, seed=config.seed)]
        if nulls := [key for key in (keys.NULL, keys.NULL_MASKED) if key in adata.obsm]:
            tables.append(scores(adata, nulls, keys.PERMUTED, config.label, seed=config.seed))
        table = pd.concat(tables, ignore_index=True)
        io.write_csv(table, out / SCORES)
        this.say("Finding the genes that each batch shifts")
        shifts = gene_shifts(model, reading, config.label, draws=config.draws, seed=config.seed)
        io.write_csv(shifts, out / SHIFTS)
        this.say("Checking the counterfactuals on held-out cells")
        check = counterfactual_check(model, reading, config.label, seed=config.seed)
        io.write_csv(check, out / CHECK)
        this.record["intervals"] = _intervals(model, reading, config)
        if len(model.decoder.genes) <= MOST_GENES:
            genomap_of(model, reading, seed=config.seed).save(out / GENOMAP)
    about = this.record | {"hides_batch": model.random.settings.masked_share > 0}
    this.record["verdicts"] = [asdict(verdict) for verdict in verdicts(table, check, about)]
    this.record["findings"] = findings(table, shifts, check, about)


def _intervals(model: MixedEffects, reading: Reading, config: RunConfig) -> dict[str, float]:
    """Return the factor of the intervals and how many shifts of held-out cells they hold; nothing if not calibrated."""
    if model.decoder.calibration is None:
        return {}
    found = {"factor": model.decoder.calibration.factor}
    shares = interval_coverage(model, reading, config.label, seed=config.seed)
    for name, share in zip(("coverage", "coverage_largest"), shares, strict=True):
        if np.isfinite(share):
            found[name] = share
    return found


def _report(out: Path, say: Say, cells: bool) -> Path:
    from scmedley.report import write_report

    say("Writing the report")
    return write_report(out, cells=cells)


def _hash(inputs: Sequence[Path]) -> str:
    return "+".join(io.sha256(path) for path in inputs)


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z")
