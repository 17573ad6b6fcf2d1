"""The cells of an experiment: read and prepared once, split again for each fold."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData, read_h5ad
from scipy.sparse import issparse

from scmedley import datasets, io, keys
from scmedley.data.design import as_categories, column
from scmedley.data.evidence import Checked
from scmedley.data.inplace import layers_of
from scmedley.errors import ScmedleyError, listed
from scmedley.experiment.config import Experiment, Split
from scmedley.pipeline.cells import Say, read_and_prepare
from scmedley.pp import prepare
from scmedley.pp.folds import donor_folds, held_out_pairs, held_out_parts, rotating_folds
from scmedley.pp.genes import select_genes
from scmedley.pp.split import PARTS
from scmedley.pp.split import split as split_cells
from scmedley.runs.folder import DATA, versions
from scmedley.runs.record import Record

PAPERS = ("aml", "asd", "healthy_heart")
STOPPING = (0.85, 0.15, 0.0)  # of the cells of known donors: training, early stopping, none held out


def read_data(experiment: Experiment, folder: Path | None) -> AnnData:
    """Read the cells of an experiment.

    Raises
    ------
    ScmedleyError
        The data are missing or cannot be read.
    """
    name = experiment.data
    if name in datasets.NAMES:
        path = datasets.path(name)
        return io.read(path)
    if name in PAPERS:
        from scmedley.datasets import papers

        if folder is None:
            raise ScmedleyError(
                f"The files of {name!r} do not come with scmedley. Give their folder with --data."
            )
        read: Callable[[Path], AnnData] = getattr(papers, f"read_{name}")
        return read(folder)
    places = [p / name for p in (folder, Path()) if p is not None]
    for path in places:
        if path.exists():
            return io.read(path)
    raise ScmedleyError(
        f"The data {name!r} are missing: looked for {', '.join(map(str, places))}. Give their folder with --data."
    )


def file_of(experiment: Experiment, folder: Path | None) -> Path | None:
    """Return the file of the user's cells; ``None`` if there is none, or the data are known by name."""
    if experiment.data in (*datasets.NAMES, *PAPERS):
        return None
    places = [place / experiment.data for place in (folder, Path()) if place is not None]
    return next((place for place in places if place.exists()), None)


def fold_name(split: Split, fold: int) -> str:
    """Return the name of a fold, and of its store."""
    return f"{split}-fold{fold}"


def all_folds(obs: pd.DataFrame, experiment: Experiment) -> dict[str, np.ndarray]:
    """Return the part of each cell in every fold of an experiment, by name of the fold."""
    return {
        fold_name(split, fold): parts(obs, experiment, split, fold)
        for split in experiment.splits
        for fold in range(experiment.n_folds(split))
    }


def prepare_once(adata: AnnData, experiment: Experiment) -> Checked:
    """Filter and normalise cells in place, once for all folds; keep only what fits need; return the checks.

    Selecting genes, scaling and PCA come later, on the training cells of each fold.
    """
    adata.obs = adata.obs.drop(columns=keys.SPLIT, errors="ignore")
    checked = prepare(
        adata,
        experiment.batch_key,
        label_key=experiment.label_key,
        n_top_genes=experiment.n_top_genes,
        min_genes=experiment.min_genes,
        min_cells=experiment.min_cells,
        values=experiment.values,
    )
    used = [experiment.batch_key, experiment.label_key, experiment.donors, *experiment.targets]
    for key in used:
        adata.obs[key] = as_categories(column(adata, key, "target" if key in experiment.targets else "donor"))
    adata.obs = adata.obs[list(dict.fromkeys(used))]
    adata.X = None
    adata.raw = None
    adata.uns = {keys.UNS: adata.uns[keys.UNS]}  # which values the matrix held; each model stores it
    del adata.var[keys.HVG]
    for layer in set(layers_of(adata)) - {keys.COUNTS, keys.LOGNORM}:
        del adata.layers[layer]
    for key in set(adata.obsm) - set(experiment.methods):
        del adata.obsm[key]
    for split in experiment.splits:  # raises before any fit if folds cannot be made
        parts(adata.obs, experiment, split, 0)
    return checked


def lay_out(
    experiment: Experiment, name: str, read: Callable[[], AnnData], say: Say
) -> tuple[AnnData, dict[str, Any]]:
    """Read and prepare the cells of an experiment or a search; return them and fields for the record."""
    adata, warnings = read_and_prepare(name, read, lambda cells: prepare_once(cells, experiment), say)
    columns = {experiment.batch_key, experiment.label_key, experiment.donors, *experiment.targets}
    io.check_columns(adata, sorted(columns & set(adata.obs)))
    return adata, {
        "input": {"sha256": digest(adata), "cells": adata.n_obs, "genes": adata.n_vars},
        "prepare": adata.uns[keys.UNS]["prepare"],
        "versions": versions(),
        "warnings": warnings,
    }


def keep(adata: AnnData, record: Record, say: Say) -> None:
    """Write the prepared cells. The record is written first: it identifies the folder."""
    record.write("running")
    for warning in io.write_h5ad(adata, record.path.parent / DATA):
        record["warnings"].append(f"{DATA}: {warning}")
        say(f"Warning: {record['warnings'][-1]}")


def digest(adata: AnnData) -> str:
    """Return the SHA-256 of prepared cells: names, columns, values and embeddings."""
    found = hashlib.sha256(repr((adata.shape, list(adata.var_names))).encode())
    found.update(pd.util.hash_pandas_object(adata.obs.astype(str)).to_numpy().tobytes())
    for stored in (layers_of(adata), adata.obsm):
        for name in sorted(stored):
            values: Any = stored[name]
            arrays = (
                (values.data, values.indices, values.indptr) if issparse(values) else (np.asarray(values),)
            )
            for array in arrays:
                found.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def read_cells(path: Path, experiment: Experiment, split: Split, fold: int) -> AnnData:
    """Read prepared cells; set ``obs["scmedley_split"]`` to the parts of a fold and flag its genes."""
    adata = read_h5ad(path)
    adata.obs[keys.SPLIT] = pd.Categorical(parts(adata.obs, experiment, split, fold), PARTS)
    select_genes(adata, experiment.batch_key, experiment.n_top_genes)
    return adata


def pairs(obs: pd.DataFrame, experiment: Experiment) -> list[tuple[int, int]]:
    """Return the codes of batch and label of each held-out pair."""
    batch, label = (obs[k].cat for k in (experiment.batch_key, experiment.label_key))
    named = [str(name) for name in batch.categories]
    absent = [name for name in experiment.pair_batches if name not in named]
    if absent:
        raise ScmedleyError(
            f"pair_batches names {absent[0]!r}, but obs[{experiment.batch_key!r}] has {listed(named)}. Correct it."
        )
    return held_out_pairs(
        batch.codes.to_numpy(),
        label.codes.to_numpy(),
        n_pairs=experiment.pairs,
        seed=experiment.seeds[0],
        least=experiment.pair_cells,
        batches=[named.index(name) for name in experiment.pair_batches] or None,
    )


def parts(obs: pd.DataFrame, experiment: Experiment, split: Split, fold: int) -> np.ndarray:
    """Return the part of each cell in a fold.

    If donors are held out, "test" is the cells of the fold's donors. Training and early stopping need known
    batches, so "train" and "validation" are cells of all other donors. If pairs are held out, "test" is all
    cells of the pair. Folds are drawn with the first seed; the other seeds only change the fits.
    """
    seed = experiment.seeds[0]
    batch, label = (obs[k].cat.codes.to_numpy() for k in (experiment.batch_key, experiment.label_key))
    if split == "cells":
        folds = rotating_folds(batch, label, n_folds=experiment.folds, seed=seed)
        return np.asarray(folds[fold])
    if split == "pairs":
        return np.asarray(held_out_parts(batch, label, pairs(obs, experiment)[fold], seed=seed))
    target = obs[experiment.targets[0]].to_numpy() if experiment.targets else None
    donor = obs[experiment.donors].to_numpy()
    held_out = donor_folds(donor, target, n_folds=experiment.folds, seed=seed)[fold] == "test"
    part = np.full(len(obs), "test", dtype="<U10")
    part[~held_out] = split_cells(batch[~held_out], label[~held_out], fractions=STOPPING, seed=seed)
    return part
