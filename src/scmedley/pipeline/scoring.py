"""The stage of a run that scores it: tables, verdicts and findings."""

from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scmedley import io, keys
from scmedley.data.reader import Reading
from scmedley.errors import heard
from scmedley.evaluate.label_accuracy import label_accuracy
from scmedley.evaluate.scores import scores
from scmedley.interpret.check import counterfactual_check, decoder
from scmedley.interpret.collapse import diagnose
from scmedley.interpret.donors import is_number
from scmedley.interpret.genomap import MOST_GENES, genomap_of
from scmedley.interpret.shifts import gene_shifts, interval_coverage
from scmedley.models import VAE, DeepBID, MixedEffects
from scmedley.models.base import Model
from scmedley.models.catalogue import maps_of
from scmedley.pipeline.clusters import write_clusters
from scmedley.pipeline.config import RunConfig
from scmedley.pipeline.findings import findings
from scmedley.pipeline.sample import Sample, cells_of, taken
from scmedley.pipeline.verdicts import leaks_of, verdicts, worst_of
from scmedley.pipeline.work import Work
from scmedley.runs.folder import CHECK, GENOMAP, LABELS, SCORES, SHIFTS


def scored(config: RunConfig) -> list[str]:
    """Return the embeddings that are scored by the batches of the run."""
    shown = maps_of(config.model)
    return [keys.FIXED, keys.RANDOM, keys.RANDOM_MASKED, keys.PCA] if config.model == "mixed" else [*shown]


def score(
    this: Work, adata: AnnData, model: MixedEffects | Model[Any], reading: Reading, sample: Sample
) -> None:
    """Write the tables, of all cells or of the sample; add verdicts and findings to the record."""
    config, out = this.config, this.folder
    for name in ("verdicts", "findings", "intervals", "collapse"):  # of earlier scores
        this.record.pop(name, None)
    this.record.write("fitted")
    with this.stage("evaluate"):
        this.say("Scoring the embeddings on held-out cells")
        nulls = [key for key in (keys.NULL, keys.NULL_MASKED) if key in adata.obsm]
        cells = cells_of(adata, sample.scored, [*scored(config), *nulls])
        tables = [scores(cells, scored(config), config.batch, config.label, seed=config.seed)]
        if nulls:
            tables.append(scores(cells, nulls, keys.PERMUTED, config.label, seed=config.seed))
        table = pd.concat(tables, ignore_index=True)
        io.write_csv(table, out / SCORES)
        labels = None
        if config.label is not None:
            labels = label_accuracy(cells, [maps_of(config.model)[0], keys.PCA], config.label)
            io.write_csv(labels, out / LABELS)
        paired = taken(reading, sample.paired)
        shifts, check = _counterfactuals(this, model, paired)
        this.record["intervals"] = _intervals(model, paired, config)
        del paired
        drawn = taken(reading, sample.scored)
        if len(decoder(model).genes) <= MOST_GENES:
            genomap_of(model, drawn, seed=config.seed).save(out / GENOMAP)
        clusters = _write_clusters(this, adata, model, drawn, sample) if isinstance(model, DeepBID) else []
        if isinstance(model, VAE) and not (isinstance(model, DeepBID) and model.is_published):
            found = diagnose(model, drawn, seed=config.seed)
            this.record["collapse"] = found.described()
        kept = kept_findings(cells, config)
    about = dict(this.record)
    if isinstance(model, MixedEffects):
        about["hides_batch"] = model.random.settings.masked_share > 0
    this.record["verdicts"] = [asdict(verdict) for verdict in verdicts(table, check, about, labels)]
    this.record["findings"] = clusters + kept + findings(table, shifts, check, about)


def kept_findings(cells: AnnData, config: RunConfig) -> list[str]:
    """Return how well each column that is to stay in the fixed latent is read from it, beside PCA and chance."""
    said = []
    judged = maps_of(config.model)[0]
    for column in config.keep:
        if is_number(cells.obs[column]):
            continue  # read as classes, its values would be as many batches
        table = scores(cells, [judged, keys.PCA], column, config.label, seed=config.seed)
        own, pca = leaks_of(table, judged), leaks_of(table, keys.PCA)
        if not (own and pca):
            said.append(
                f"Kept: {column} could not be scored: no label has held-out cells in two of its levels."
            )
            continue
        best, of_pca = own[worst_of(own)], pca[worst_of(pca)]
        said.append(
            f"Kept: {column} is read from the {keys.title(judged).lower()} of held-out cells: {best.value:z.2f} by the "
            f"best of three probes (0 is chance, here up to {2 * best.null_sd:.2f}; 1 is always; PCA "
            f"{of_pca.value:z.2f})."
        )
    return said


def _counterfactuals(
    this: Work, model: MixedEffects | Model[Any], reading: Reading
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


def _intervals(model: MixedEffects | Model[Any], reading: Reading, config: RunConfig) -> dict[str, float]:
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


def _write_clusters(this: Work, adata: AnnData, model: DeepBID, drawn: Reading, sample: Sample) -> list[str]:
    """Write the tables of clusters; return what they say.

    Marker genes are of the genes of the model if the cells are in a store, which has no others.
    """
    config = this.config
    this.say("Describing the clusters and their marker genes")
    of: Any = {"batch": config.batch, "label": config.label, "donor": config.donor, "values": config.values}
    cells = adata if sample.scored is None else adata[sample.scored]
    if keys.LOGNORM not in adata.layers:
        obs = cells.obs
        cells = AnnData(drawn.log1p_NG, obs=obs.copy(), var=model.var())
        of["values"] = "log1p"
    with heard(this.warn):
        return write_clusters(adata, model.clusters, this.folder, measured=cells, **of)
