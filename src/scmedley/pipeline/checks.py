"""Checks before a run starts: settings, packages, inputs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from scmedley import keys
from scmedley.data.factors import Factors
from scmedley.data.terms import formula_of
from scmedley.device import resolve_device
from scmedley.errors import ScmedleyError, check_seed, listed
from scmedley.io.formats import reader_for
from scmedley.models import DeepBID, FixedEffects, MixedEffects, RandomEffects
from scmedley.models.base import Model
from scmedley.models.catalogue import FE, RE, run_row
from scmedley.models.settings import read_changes
from scmedley.pipeline.config import RunConfig
from scmedley.runs.folder import LABELS

FEW_OF_LABEL = 30  # training cells; of 15 nearest neighbours, few can then be of the label


def check_config(config: RunConfig) -> None:
    """Raise for settings that are not valid."""
    run_row(
        config.model
    )  # raises for a model that is not known, before options that another model would take
    for name in ("genes", "min_genes", "min_cells", "latent", "epochs", "threads"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ScmedleyError(f"--{name.replace('_', '-')} {value} must be at least 1.")
    if config.draws < 2:
        raise ScmedleyError(f"--draws {config.draws} must be at least 2, to give intervals.")
    if config.learn_labels and (config.label is None or config.fixed is not None):
        why = (
            "needs --label. Add --label, or leave --learn-labels out"
            if config.label is None
            else "has no network to train with --fixed. Leave one of them out"
        )
        raise ScmedleyError(f"--learn-labels {why}.")
    if config.model != "mixed" and (config.learn_labels or config.fixed is not None):
        option = "--learn-labels" if config.learn_labels else "--fixed"
        raise ScmedleyError(
            f"{option} is for the fixed effects, not for --model {config.model}. Leave one of them out."
        )
    if config.clusters is not None and (config.model != "deepbid" or config.clusters < 1):
        why = "must be at least 1" if config.model == "deepbid" else "is for --model deepbid"
        raise ScmedleyError(f"--clusters {config.clusters} {why}.")
    if config.donor is not None and config.model != "deepbid":
        raise ScmedleyError(
            f"--donor is for the marker genes of --model deepbid, not for --model {config.model}. Leave it out."
        )
    if not config.denoise and config.model != "deepbid":
        raise ScmedleyError(
            f"--no-denoise is for --model deepbid; --model {config.model} writes no denoised values. Leave it out."
        )
    check_seed(config.seed)
    resolve_device(config.device)
    new = unfitted(config)
    if isinstance(new, DeepBID) and new.is_published and new.settings.n_clusters is None:
        raise ScmedleyError(
            "--preset paper of --model deepbid needs the number of clusters. Give --clusters, or use --preset default, "
            "which finds it."
        )


def resolved(config: RunConfig) -> RunConfig:
    """Return the settings with one formula for all that describes a design, and the column of its batches.

    Raises
    ------
    ScmedleyError
        The formula cannot be read, or options exclude each other.
    """
    plain = bool(config.nested_in or config.covariate or config.slope)
    if config.design is None and not plain:
        if config.keep:
            raise ScmedleyError("--keep needs a design. Add --design, or --covariate.")
        return config
    if config.design is not None and plain:
        raise ScmedleyError(
            "--design holds the whole design. Leave out --nested-in, --covariate and --slope, or write them into it."
        )
    if config.design is not None and config.batch not in (RunConfig.batch, keys.BATCH):
        raise ScmedleyError(
            f"--design holds the whole design, so --batch {config.batch} has no use. Leave it out, or write the column "
            "into the design."
        )
    if config.design is not None and "~" not in config.design:
        config = replace(config, design=f"~ {config.design}")
    formula = config.design or formula_of(config.batch, config.nested_in, config.covariate, config.slope)
    factors = Factors.of(formula, keep=config.keep)
    if config.preset == "paper":
        factors.refuse_paper()
    assert factors.batch_key is not None
    return replace(config, batch=factors.batch_key, design=formula, nested_in=None, covariate=(), slope=())


def check_n_clusters(config: RunConfig, obs: pd.DataFrame) -> None:
    """Raise for more clusters than cells; those of the ``paper`` preset start from training cells."""
    new = unfitted(config)
    if not isinstance(new, DeepBID) or new.settings.n_clusters is None:
        return
    n_cells = int((obs[keys.SPLIT] == "train").sum()) if new.is_published else len(obs)
    if new.settings.n_clusters > n_cells:
        which = "training cells" if new.is_published else "cells"
        raise ScmedleyError(
            f"--clusters {new.settings.n_clusters} is more than the {n_cells:,} {which}. Give fewer."
        )


def unfitted(config: RunConfig) -> MixedEffects | Model[Any]:
    """Return the model of a run, with the preset changed first by the file, then by the options."""
    from_file = read_changes(Path(config.settings)) if config.settings else {}
    fixed = FE.labelled if config.learn_labels else FE.name
    one = run_row(config.model)
    names = (one.name,) if one else (fixed, RE.name)
    unused = sorted(set(from_file) - set(names))
    if unused:
        raise ScmedleyError(
            f"{config.settings} has settings of {unused[0]!r}, but this run fits {' and '.join(names)}. Remove that "
            "table."
        )
    given = {k: v for k, v in (("n_latent", config.latent), ("max_epochs", config.epochs)) if v}
    if one:
        given |= {} if config.clusters is None else {"n_clusters": config.clusters}
        settings = one.model.preset(config.preset).replace(**from_file.get(one.name, {}) | given)
        return one.model(config.design or config.batch, settings=settings, keep=config.keep)
    return MixedEffects(
        config.design or config.batch,
        config.label if config.learn_labels else None,
        preset=config.preset,
        fixed=config.fixed,
        keep=config.keep,
        fixed_settings=FixedEffects.preset(config.preset, config.learn_labels).replace(
            **from_file.get(fixed, {}) | given
        ),
        random_settings=RandomEffects.preset(config.preset).replace(**from_file.get(RE.name, {}) | given),
    )


def check_inputs(inputs: Sequence[Path], out: Path) -> None:
    """Raise for inputs that are inside ``out`` or cannot be opened. The reader checks their content."""
    for path in inputs:
        if {path.resolve(), *path.resolve().parents} & {out.resolve()}:
            raise ScmedleyError(
                f"{path} is inside --out {out}, which is for results only. Choose another --out."
            )
        try:
            reader_for(path)
        except OSError as error:
            raise ScmedleyError(
                f"{path} cannot be read ({error.strerror}). Check its permissions."
            ) from error


def few_of_label(obs: pd.DataFrame, key: str) -> list[str]:
    """Return a warning of labels with few training cells."""
    sizes = obs.loc[obs[keys.SPLIT] == "train", key].value_counts()
    few = [f"{name} ({size})" for name, size in sizes[sizes < FEW_OF_LABEL].items()]
    if not few:
        return []
    return [
        f"{len(few)} of {len(sizes)} labels have fewer than {FEW_OF_LABEL} training cells: {listed(few)}. The nearest "
        f"neighbours and the classifier of new cells may miss these labels; {LABELS} has the accuracy of each."
    ]
