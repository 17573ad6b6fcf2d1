"""The cells of an experiment or a search on disk: all genes in one store, the chosen genes of each fold in another.

All fits of a fold read the store of that fold, whatever their number: its files are in memory once, in the cache of
the system.

Shapes: N cells, G genes.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scmedley import keys
from scmedley.data import store as stores
from scmedley.data.blocks import slices
from scmedley.data.design import as_categories, column
from scmedley.data.memory import too_large
from scmedley.data.reader import Reading
from scmedley.data.store import Store
from scmedley.errors import ScmedleyError, heard
from scmedley.experiment.config import Experiment
from scmedley.io.lazy import matrices_bytes, opened
from scmedley.io.store import StoreWriter, clear, unfinished
from scmedley.keys import Reads
from scmedley.models import catalogue
from scmedley.pipeline.cells import Say
from scmedley.pp.gene_moments import GroupMoments
from scmedley.pp.genes import gene_groups, takes_all
from scmedley.pp.split import PARTS
from scmedley.pp.stored import prepare_store, read_cells, read_store
from scmedley.runs.folder import DATA, STORE, versions

ALL = "all"  # the store of all genes
EVERY_GENE = 2**31  # genes to choose: all, as each fold chooses its own from them


def check_methods(experiment: Experiment) -> None:
    """Raise for what needs all values of the cells in memory."""
    networks = catalogue.methods()
    other = [method for method in experiment.methods if method not in (catalogue.PCA, *networks)]
    if other:
        raise ScmedleyError(
            f"The method {other[0]!r} needs the cells in memory, and these are prepared on disk. Leave it out, or add "
            "--no-backed."
        )
    if "pairs" in experiment.splits:
        raise ScmedleyError(
            "splits has 'pairs', which needs the cells in memory, and these are prepared on disk. Leave it out, or add "
            "--no-backed."
        )


def folder_of_stores(
    experiment: Experiment, path: Path, out: Path, jobs: int, backed: bool | None, store: Path | None
) -> Path | None:
    """Return the folder of the stores; ``None``: each fit has the cells in memory.

    Work that goes on after an interruption does as before.
    """
    folder = (out / STORE if store is None else store).resolve()
    if store is not None and backed is False:
        raise ScmedleyError(
            "--store is for cells that are prepared on disk. Leave out --store or --no-backed."
        )
    if backed or store is not None:
        check_methods(experiment)
        return folder
    if backed is False:
        return None
    if folder.exists() and not (out / DATA).exists():
        return folder
    if (out / DATA).exists() or not too_large(jobs * matrices_bytes([path])):
        return None
    try:
        check_methods(experiment)
    except ScmedleyError:
        return None
    return folder


def lay_out_on_disk(
    experiment: Experiment,
    path: Path,
    folder: Path,
    folds: Callable[[pd.DataFrame], Mapping[str, np.ndarray]],
    say: Say,
    progress: bool,
) -> dict[str, Any]:
    """Prepare the cells of a file into the stores of all folds; return fields for the record.

    Parameters
    ----------
    experiment
        The settings.
    path
        File of the cells.
    folder
        Folder of the stores; those of the same cells and folds are used again.
    folds
        Returns the part of each cell, by name of the fold.
    say, progress
        How to tell what is done.
    """
    say(f"Preparing the cells of {path.name} on disk, in {folder}")
    with heard(lambda line: say(f"Warning: {line}")) as warnings, opened(path) as adata:
        adata.obs = adata.obs.drop(columns=keys.SPLIT, errors="ignore")
        n_cells, n_genes = adata.shape
        checked = prepare_store(
            adata,
            folder / ALL,
            experiment.batch_key,
            label_key=experiment.label_key,
            n_top_genes=EVERY_GENE,
            min_genes=experiment.min_genes,
            min_cells=experiment.min_cells,
            values=experiment.values,
            progress=progress,
        )
    for line in (checked.reason, *(f"Warning: {warning}" for warning in checked.warnings)):
        say(line)
    cells, store = _cells(folder / ALL, experiment), Store.open(folder / ALL)
    of_fold = folds(cells.obs)
    for name, part_N in of_fold.items():
        cells.obs[keys.SPLIT] = pd.Categorical(part_N, PARTS)
        about = {"fold": _digest(store, experiment, part_N)}
        if _is_written(folder / name, about):
            continue
        say(f"Choosing and writing the genes of {name}")
        _write(store, cells, folder / name, experiment, about)
    return {
        "input": {"sha256": store.digest, "cells": n_cells, "genes": n_genes},
        "prepare": cells.uns[keys.UNS]["prepare"],
        "versions": versions(),
        "warnings": warnings + checked.warnings,
        "store": {"folder": str(folder)},
    }


def read_fold(folder: Path, experiment: Experiment) -> AnnData:
    """Return the cells of a fold with its split, without a matrix."""
    return _cells(folder, experiment)


def reading_of(folder: Path, obs: pd.DataFrame, reads: Reads) -> Reading:
    """Return the cells of a fold as a model reads them; ``obs`` may have more columns than the store."""
    return replace(read_store(folder, reads=reads), obs=obs)


def _cells(folder: Path, experiment: Experiment) -> AnnData:
    """Return the cells of a store, with the columns of the experiment as categories."""
    cells = read_cells(Store.open(folder))
    for key in (experiment.batch_key, experiment.label_key, experiment.donors, *experiment.targets):
        role = "target" if key in experiment.targets else "donor"
        cells.obs[key] = as_categories(column(cells, key, role))
    return cells


def _digest(store: Store, experiment: Experiment, part_N: np.ndarray) -> str:
    """Return what a fold depends on: the cells, their parts, and how genes are chosen."""
    what = json.dumps([store.digest, experiment.batch_key, experiment.n_top_genes])
    return hashlib.sha256(what.encode() + "\0".join(part_N.tolist()).encode()).hexdigest()


def _is_written(folder: Path, about: dict[str, str]) -> bool:
    """Return whether a fold is there; raise if the folder holds another one."""
    if not (folder / stores.HEADER).exists():
        return False
    if Store.open(folder).about.get("fold") != about["fold"]:
        raise ScmedleyError(
            f"{folder} is the store of other folds or settings. Choose another --store, or delete this folder."
        )
    return True


def _write(store: Store, cells: AnnData, folder: Path, experiment: Experiment, about: dict[str, str]) -> None:
    """Choose genes on the training cells, as :func:`scmedley.pp.genes.select_genes`; write their values."""
    n_cells, n_genes = store.shape
    chosen_G = np.ones(n_genes, dtype=bool)
    if not takes_all(n_genes, experiment.n_top_genes, "log1p"):
        group_N = gene_groups(cells.obs, experiment.batch_key)
        moments, log1p_NG = GroupMoments(int(group_N.max()) + 1, n_genes), store.matrix("log1p")
        for rows in slices(n_cells):
            moments.add(log1p_NG[rows], group_N[rows])
        chosen_G = moments.chosen(experiment.n_top_genes, "log1p")
    values_NG, counted = store.matrix("counts" if store.has_counts else "log1p"), store.has_counts
    with unfinished(folder) as part:
        clear(part)
        with StoreWriter(
            folder, part, int(chosen_G.sum()), store.about["value_type"], store.has_counts
        ) as writer:
            for rows in slices(n_cells):
                x_NG = values_NG[rows][:, np.flatnonzero(chosen_G)]
                totals = (store.total_N[rows], store.size_N[rows]) if counted else ()
                writer.append(x_NG, *totals)
            writer.finish(AnnData(obs=cells.obs, var=cells.var[chosen_G], uns=dict(cells.uns)), **about)
