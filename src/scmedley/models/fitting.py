"""The steps of ``Model.fit``: read the cells, train the network, calibrate the intervals. Shapes: N cells."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from scmedley import keys
from scmedley.data.design import Design, Labels
from scmedley.data.reader import Cells, Reading
from scmedley.data.scale import Scale
from scmedley.device import engine, resolve_device, resolve_precision
from scmedley.errors import ScmedleyError, check_seed
from scmedley.models import calibrate, reference
from scmedley.pp.prepared import read_prepared
from scmedley.train import loop

if TYPE_CHECKING:
    from scmedley.models.base import Model


def fit(
    model: Model[Any],
    adata: Cells,
    seed: int,
    threads: int | None,
    precision: str,
    device: str,
    checkpoint: str | Path | None,
    progress: bool,
) -> None:
    """Fit ``model`` in place. See :meth:`Model.fit`."""
    model.network = model.reference = None
    check_seed(seed)
    on = resolve_device(device)
    precision = resolve_precision(precision, on)
    with engine(threads, on):
        torch.manual_seed(seed)
        reading = read_prepared(adata, model.factors, model.label_key, seed, model.reads)
        _learn_design(model, reading)
        part = reading.obs[keys.SPLIT].to_numpy()
        y_N = label_codes(model, reading.obs)
        counts = model.reads == "counts"
        cells = reading.resident(model.design.codes(reading.obs), model.scale, on, y_N, counts=counts)
        train, validation = (
            torch.as_tensor(np.flatnonzero(part == p), device=on) for p in ("train", "validation")
        )
        model._build(on)
        factors = model.factors.asked or model.batch_key
        plan = loop.Plan(
            **model.settings.sizes(len(train))._asdict(),
            settling_steps=model.settings.settling_steps,
            precision=precision,
            checkpoint=None if checkpoint is None else Path(checkpoint),
            fingerprint=_fingerprint(model, reading, y_N, part, seed, precision),
            label=type(model).__name__ + (f" by {factors}" if factors else ""),
            progress=progress,
        )
        try:
            done = loop.fit(model.network, cells, train, validation, plan)
        except BaseException:
            model.network = None  # a partly trained network must not be used
            raise
        model.device = on
        label = reading.obs.get(model.label_key or reading.label_key)
        model.calibration = calibrate.learn(model, reading, label, seed) if model.has_effects else None
        if not model.needs_batch:
            model.reference = reference.learn(model, reading, label, seed)
    model.history = done.history()
    model.fitted = {"epochs": done.epoch, "best_epoch": done.best_epoch, "stopped": done.stopped}
    model.fitted |= {"keep": model.network.stages()[-1].keep}
    model.fitted |= {"seed": seed, "precision": precision, "device": on.type}


def _learn_design(model: Model[Any], reading: Reading) -> None:
    """Set reader, scale, batches and labels of the model from the cells of the fit."""
    obs = reading.obs
    model.reader = replace(reading.reader, kind=model.reads)
    model.design = model.factors.learn(obs)
    in_training = (obs[keys.SPLIT] == "train").to_numpy()
    rows = np.flatnonzero(in_training)
    model.scale = Scale.fit(reading.log1p_NG, model.settings.scale, reading.total_N, rows)
    if absent := untrained(model.design, obs[in_training]):
        raise ScmedleyError(
            f"{absent} has no training cell in obs[{keys.SPLIT!r}]. Assign it at least one, or remove its cells."
        )
    model.labels = None if model.label_key is None else Labels.of(obs[in_training], model.label_key)


def untrained(design: Design, training: pd.DataFrame) -> str:
    """Return a batch, or with several factors a level, that no training cell has; "" if there is none."""
    if design.terms is None:
        found = set(design.codes(training))
        return next((f"Batch {name!r}" for i, name in enumerate(design.batches) if i not in found), "")
    for term, code_N in zip(design.terms.terms, design.terms.rows(training)[0].T, strict=True):
        for code in range(len(term.levels)):
            if code not in code_N:
                return f"Level {term.levels[code]!r} of {term.name!r}"
    return ""


def label_codes(model: Model[Any], obs: pd.DataFrame) -> np.ndarray | None:
    """Return the codes of the labels of training and validation cells; -1 for all other cells."""
    if model.labels is None:
        return None
    seen = obs[keys.SPLIT].isin(["train", "validation"])
    return np.where(seen, model.labels.codes(obs), -1)


def _fingerprint(
    model: Model[Any], reading: Reading, y_N: np.ndarray | None, part: np.ndarray, seed: int, precision: str
) -> str:
    """Return a hash of model, settings and data; fits with different hashes give different results."""
    about_model = (type(model).__name__, model.settings, model.genes, model.design, model.labels)
    digest = hashlib.sha256(repr((*about_model, seed, precision, reading.digest)).encode())
    codes = (pd.factorize(part)[0], model.design.codes(reading.obs), y_N)
    for array in (*codes, model.scale.centre_G, model.scale.span_G, model.scale.share_G):
        digest.update(b"no" if array is None else np.ascontiguousarray(array).data)
    return digest.hexdigest()
