"""The stage of a run that fits its networks."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scmedley import distributed, io, keys
from scmedley.data.reader import Reading
from scmedley.errors import heard
from scmedley.interpret.check import decoder
from scmedley.models import MixedEffects, RandomEffects
from scmedley.models.base import Model
from scmedley.pipeline.findings import NULL_NAME
from scmedley.pipeline.sample import Sample, cells_of
from scmedley.pipeline.work import Work
from scmedley.pp.nulls import permute_batches
from scmedley.runs import folder as run_folder
from scmedley.runs.folder import HISTORY, MODEL


def fit_networks(
    this: Work, model: MixedEffects | Model[Any], adata: AnnData, reading: Reading, sample: Sample
) -> MixedEffects | Model[Any]:
    """Fit all networks and the null of the random effects; write the model and the history."""
    config, out = this.config, this.folder
    how: dict[str, Any] = {
        "seed": config.seed,
        "threads": config.threads,
        "precision": config.precision,
        "device": config.device,
        "progress": this.progress,
    }
    parts: dict[str, Model[Any]] = (
        model.networks() if isinstance(model, MixedEffects) else {config.model: model}
    )
    what = f"{' and '.join(parts)} effects" if isinstance(model, MixedEffects) else type(model).__name__
    this.say(f"Fitting {what} to {adata.n_obs:,} cells")
    with this.stage("fit"), heard(this.warn):
        if not isinstance(model, MixedEffects):
            (out / run_folder.CHECKPOINTS).mkdir(exist_ok=True)
            model.fit(reading, checkpoint=out / run_folder.CHECKPOINTS / f"{config.model}.safetensors", **how)
        else:
            model.fit(reading, checkpoint=out / run_folder.CHECKPOINTS, **how)
        if distributed.is_first():
            model.save(out / MODEL)
    history, networks = model.history, {n: m.fitted for n, m in parts.items()}
    if not isinstance(model, MixedEffects):
        history = history.assign(network=config.model)
    elif config.null:
        this.say("Fitting random effects to permuted batches (the null)")
        with this.stage("fit null"):
            several = bool(model.factors.formula)
            unfitted_null = RandomEffects(
                model.factors if several else keys.PERMUTED, settings=model.random.settings
            )
            null = _fit_null(adata, reading, sample, unfitted_null, this, how)
        history = pd.concat([history, null.history.assign(network=NULL_NAME)], ignore_index=True)
        networks[NULL_NAME] = null.fitted
    if distributed.is_first():
        io.write_csv(history, out / HISTORY)
    if decoder(model).has_effects and decoder(model).calibration is None:
        this.warn(
            "Intervals of shifts are not calibrated: too few validation cells have a label that several batches share."
        )
    this.record["networks"] = networks
    _warn_of_training(this, networks)
    return model


def _warn_of_training(this: Work, networks: dict[str, dict[str, Any]]) -> None:
    """Warn of training that was interrupted, or that --epochs ended too early."""
    for name, fitted in networks.items():
        keeps_best = fitted["keep"] == "best"
        if fitted["stopped"] == "interrupted":
            kept = "best epoch up to then" if keeps_best else "last finished epoch"
            this.warn(
                f"Training of the {name} network was interrupted after epoch {fitted['epochs']}. Its {kept}, "
                f"{fitted['best_epoch']}, is used."
            )
        elif (
            this.config.epochs
            and keeps_best
            and fitted["stopped"] == "last epoch"
            and fitted["best_epoch"] == fitted["epochs"]
        ):
            this.warn(
                f"Training of the {name} network was still improving when --epochs {this.config.epochs} ended it."
            )


def _fit_null(
    adata: AnnData, reading: Reading, sample: Sample, null: RandomEffects, this: Work, how: dict[str, Any]
) -> Model[Any]:
    """Fit the random-effects network to batches permuted within labels; store them and both embeddings.

    Of many cells, those of the sample are used; the others have no permuted batch, and NaN as embedding.
    """
    rows = sample.scored
    cells = cells_of(adata, rows)
    source_N = permute_batches(cells, this.config.batch, this.config.label, seed=this.config.seed)
    obs = cells.obs
    if null.factors.formula:  # all columns of the design are permuted together
        columns = null.factors.learn(obs).columns
        obs = obs.assign(**{column: obs[column].iloc[source_N].set_axis(obs.index) for column in columns})
    reading = replace(reading if rows is None else reading.take(rows), obs=obs)
    null.fit(reading, checkpoint=this.folder / run_folder.CHECKPOINTS / "null.safetensors", **how)
    if rows is not None:
        permuted = pd.Series(cells.obs[keys.PERMUTED])
        code_N = np.full(adata.n_obs, -1)
        code_N[rows] = permuted.cat.codes
        adata.obs[keys.PERMUTED] = pd.Categorical.from_codes(code_N, permuted.cat.categories)
    for key, masked in ((keys.NULL, False), (keys.NULL_MASKED, True)):
        z_NP = null.get_latent_representation(reading, mask_batch=masked)
        if rows is not None:
            z_MP, z_NP = z_NP, np.full((adata.n_obs, z_NP.shape[1]), np.nan, np.float32)
            z_NP[rows] = z_MP
        adata.obsm[key] = z_NP
    return null
