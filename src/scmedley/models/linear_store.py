"""Write and read a :class:`LinearMixed` as ``model.json`` and ``weights.safetensors``, never pickle."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from scmedley.data.gene_names import GeneNames
from scmedley.data.reader import Reader
from scmedley.data.terms import Term, Terms
from scmedley.errors import ScmedleyError
from scmedley.models.linear_design import LinearDesign
from scmedley.models.store import DESCRIPTION, WEIGHTS, read_description, replacing_model, tuples
from scmedley.nn.mixed import Posterior, Statistics, Variances

if TYPE_CHECKING:
    from scmedley.models.linear_mixed import LinearMixed


def save(model: LinearMixed, folder: str | Path) -> None:
    """Write a fitted model to ``folder``; on an error nothing is written."""
    variances, design, genes = model.fitted.variances, model.design, model.reader.genes
    description = {
        "class": type(model).__name__,
        "formula": model.formula,
        "use": model.use,
        "settings": asdict(model.settings),
        "terms": [asdict(term) for term in design.terms.terms],
        "n_slopes": design.n_slopes,
        "genes": genes.names,
        "gene_ids": genes.ids,
        "gene_symbols": genes.symbols,
        "trained_on": model.reader.trained_on,
    }
    arrays = {field.name: getattr(model.statistics, field.name) for field in fields(Statistics)}
    arrays |= {field.name: getattr(variances, field.name) for field in fields(Variances)}
    arrays |= {"centre_P": design.centre_P, "spread_P": design.spread_P, "seen_CT": model.seen_CT}
    with replacing_model(folder) as temporary:
        save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, temporary / WEIGHTS)
        (temporary / DESCRIPTION).write_text(json.dumps(description, indent=1))


def read(folder: Path, cls: type[LinearMixed]) -> LinearMixed:
    """Read the model in ``folder``; its posterior is computed again, from the same sums to the same bits."""
    about = read_description(folder)
    try:
        arrays = load_file(folder / WEIGHTS)
        model = cls(about["formula"], use=about["use"], settings=cls.settings_type(**about["settings"]))
        terms = Terms(about["formula"], tuple(Term(**tuples(term)) for term in about["terms"]))
        ids, symbols = about["gene_ids"], about["gene_symbols"]
        genes = GeneNames(tuple(about["genes"]), ids and tuple(ids), symbols and tuple(symbols))
        model.reader = Reader(genes, "log1p", about["trained_on"])
        model.design = LinearDesign(
            terms, arrays["centre_P"], arrays["spread_P"], about["n_slopes"], model.settings.learn_fixed
        )
        model.statistics = Statistics(**{field.name: arrays[field.name] for field in fields(Statistics)})
        model.seen_CT = arrays["seen_CT"]
        variances = Variances(**{field.name: arrays[field.name] for field in fields(Variances)})
        model.posterior = Posterior(model.statistics, model.design.columns, variances)
    except (SafetensorError, OSError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ScmedleyError(
            f"The model in {folder} cannot be read ({reason}). Fit and save it again."
        ) from error
    return model
