"""Write and read models as ``model.json`` and ``weights.safetensors``, never pickle."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from scmedley.clusters import Clusters
from scmedley.data.design import Design, Labels
from scmedley.data.gene_names import GeneNames
from scmedley.data.reader import Reader
from scmedley.data.scale import Scale
from scmedley.data.terms import Term, Terms
from scmedley.device import is_forked, modes
from scmedley.errors import ScmedleyError
from scmedley.io import replacing
from scmedley.models.adapt import add_batches
from scmedley.models.interval import Calibration
from scmedley.models.reference import arrays_of, described_classifier, reference_of

if TYPE_CHECKING:
    from scmedley.models.base import Model

M = TypeVar("M", bound="Model[Any]")

DESCRIPTION, WEIGHTS = "model.json", "weights.safetensors"
REFERENCE, CLUSTERS = "reference/", "clusters/"  # prefixes of their tensors
# All files that a model's folder may hold; earlier versions stored a genomap there.
OWN = {DESCRIPTION, WEIGHTS, "genomap.json", "fixed", "random"}


def save(model: Model[Any], folder: str | Path) -> None:
    """Write a fitted model to ``folder``; on an error nothing is written."""
    with replacing_model(folder) as temporary:
        write(model, temporary)


@contextmanager
def replacing_model(folder: str | Path) -> Iterator[Path]:
    """Yield an empty folder that replaces ``folder`` if no error occurs.

    Raises
    ------
    ScmedleyError
        ``folder`` holds files other than an earlier model, which would be lost.
    """
    folder = Path(folder)
    others = sorted(p.name for p in folder.iterdir() if p.name not in OWN) if folder.is_dir() else []
    if others:
        raise ScmedleyError(
            f"{folder} holds other files ({', '.join(others[:3])}), which saving would delete. Choose another folder."
        )
    with replacing(folder) as temporary:
        temporary.mkdir(parents=True)
        yield temporary


@modes(grad=False)
def write(model: Model[Any], folder: Path) -> None:
    """Write a fitted model's files into an existing folder."""
    if model.network is None:
        raise ScmedleyError(
            f"This {type(model).__name__} is not fitted, so there is nothing to save. Call fit(adata)."
        )
    description = {
        "class": type(model).__name__,
        "batch_key": model.batch_key,
        "label_key": model.label_key,
        **described_design(model),
        "batches": model.design.batches,
        "n_adapted": model.design.n_adapted,
        "labels": None if model.labels is None else model.labels.names,
        "settings_type": type(model.settings).__name__,
        "settings": dataclasses.asdict(model.settings),
        "genes": model.genes,
        "gene_ids": model.gene_names.ids,
        "gene_symbols": model.gene_names.symbols,
        "reads": model.reader.kind,
        "trained_on": model.reader.trained_on,
        "fitted": model.fitted,
        "calibration": None if model.calibration is None else dataclasses.asdict(model.calibration),
        "classifier": described_classifier(model.reference),
        "history": model.history.to_dict("list"),
    }
    tensors = {
        f"network/{name}": tensor.cpu().contiguous() for name, tensor in model.network.state_dict().items()
    }
    tensors["centre_G"] = torch.as_tensor(model.scale.centre_G)
    tensors["span_G"] = torch.as_tensor(model.scale.span_G)
    if model.scale.share_G is not None:
        tensors["share_G"] = torch.as_tensor(model.scale.share_G)
    tensors["limit"] = torch.tensor(model.scale.limit, dtype=torch.float64)
    tensors |= {f"{REFERENCE}{name}": torch.as_tensor(a) for name, a in arrays_of(model.reference).items()}
    if model.clusters is not None:
        arrays = model.clusters.arrays()
        tensors |= {f"{CLUSTERS}{name}": torch.as_tensor(np.array(a)) for name, a in arrays.items()}
    save_file(tensors, folder / WEIGHTS)
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1))


def described_design(model: Any) -> dict[str, Any]:
    """Return the design of several factors, to save; empty for one factor."""
    design: Design = model.design
    if design.terms is None:
        return {}
    return {
        "formula": model.factors.formula,
        "keep": model.factors.keep,
        "terms": [dataclasses.asdict(term) for term in design.terms.terms],
        "levels": design.levels,
        "values": design.values,
    }


def design_of(about: dict[str, Any]) -> Design:
    """Return the design that was saved."""
    batches, n_adapted = tuple(about["batches"]), int(about.get("n_adapted", 0))
    if "formula" not in about:
        return Design(about["batch_key"] or "", batches, n_adapted)
    terms = Terms(about["formula"], tuple(Term(**tuples(term)) for term in about["terms"]))
    levels, values = tuples(about["levels"]), tuples(about["values"])
    return Design(about["batch_key"], batches, n_adapted, terms, levels, values)


def tuples(value: Any) -> Any:
    """Return a value of JSON with tuples for its lists."""
    if isinstance(value, dict):
        return {name: tuples(part) for name, part in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def _kept(about: dict[str, Any]) -> dict[str, Any]:
    return {"keep": tuple(about["keep"])} if about.get("keep") else {}


def read_description(folder: Path) -> dict[str, Any]:
    """Read ``model.json``."""
    path = folder / DESCRIPTION
    if not path.is_file():
        raise ScmedleyError(f"{folder} holds no model (no {DESCRIPTION}). Give a folder that save() wrote.")
    try:
        description: dict[str, Any] = json.loads(path.read_text())
        _ = description["class"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ScmedleyError(f"{path} cannot be read ({error}). Fit and save the model again.") from error
    return description


@modes(grad=False)
def read(folder: Path, cls: type[M]) -> M:
    """Read the model of class ``cls`` in ``folder``."""
    about = read_description(folder)
    try:
        tensors = load_file(folder / WEIGHTS)
        kinds = {kind.__name__: kind for kind in cls.networks}
        kind = kinds[about.get("settings_type", next(iter(kinds)))]
        model = cls(
            about.get("formula") or about["batch_key"],
            about["label_key"],
            kind.from_saved(about["settings"]),
            **_kept(about),
        )
        model.design = design_of(about)
        labels = about["labels"]
        model.labels = None if labels is None else Labels(about["label_key"], tuple(labels))
        # Models of earlier versions have no settings_type, gene_ids, gene_symbols, reads, trained_on, calibration,
        # reference and limit, and call the centre the minimum.
        ids, symbols = (about.get(key) for key in ("gene_ids", "gene_symbols"))
        genes = GeneNames(tuple(about["genes"]), ids and tuple(ids), symbols and tuple(symbols))
        names = ("minimum_G" if "minimum_G" in tensors else "centre_G", "span_G")
        centre_G, span_G = (tensors.pop(name).numpy().astype(np.float32) for name in names)
        limit = float(tensors.pop("limit", torch.tensor(math.inf)))
        share_G = tensors.pop("share_G").numpy() if "share_G" in tensors else None
        model.scale = Scale(centre_G, span_G, limit, share_G)
        model.reader = Reader(genes, about.get("reads", "log1p"), about.get("trained_on"))
        kept = {n.removeprefix(REFERENCE): tensors.pop(n) for n in list(tensors) if n.startswith(REFERENCE)}
        model.reference = reference_of(
            {n: t.numpy().copy() for n, t in kept.items()}, about.get("classifier")
        )
        found = {n.removeprefix(CLUSTERS): tensors.pop(n) for n in list(tensors) if n.startswith(CLUSTERS)}
        if found:
            model.clusters = Clusters.from_arrays({n: t.numpy().copy() for n, t in found.items()})
        with torch.device("meta"):  # shapes only: no random draws, and dtypes come from the file
            model._build("meta")
            if model.design.n_adapted:
                add_batches(model.network, model.design.trained(), model.design)
        weights = {n.removeprefix("network/"): tensor.clone() for n, tensor in tensors.items()}
        model.network.load_state_dict(weights, assign=True)
        model.fitted, model.history = about["fitted"], pd.DataFrame(about["history"])
        calibration = about.get("calibration")
        model.calibration = None if calibration is None else Calibration(**calibration)
    except (
        SafetensorError,
        OSError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
    ) as error:
        reason = " ".join(str(error).split())[:300]
        raise ScmedleyError(
            f"The model in {folder} cannot be read ({reason}). Fit and save it again."
        ) from error
    model.network.eval()
    if str(model.fitted.get("device", "cpu")) == "cuda" and torch.cuda.is_available() and not is_forked():
        model.device = torch.device("cuda")  # the device of the fit
        model.network.to(model.device)
    return model
