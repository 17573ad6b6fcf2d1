"""The rivals of the atlas benchmark, each in a process (and an environment) of its own, without scMedley.

    python atlas_rivals.py METHOD FOLDER

The folder has ``chosen.h5ad`` (all cells, counts of the chosen genes) and ``pcs.npz`` (50 principal components), which
``atlas_steps.py`` wrote. The last line of the output is JSON: seconds, cells, cells per second.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

BATCH = "batch"
CHOSEN, PCS = "chosen.h5ad", "pcs.npz"
MINIBATCH = 256  # as many cells as scMedley's default
Result = dict[str, Any]


def scvi(folder: Path, threads: int, backed: bool, batch_size: int = MINIBATCH) -> Result:
    """Train scVI for an epoch with its own loader."""
    import anndata
    import scvi
    import torch

    torch.set_num_threads(threads)
    scvi.settings.seed = 0
    began = clock()
    adata = anndata.read_h5ad(folder / CHOSEN, backed="r" if backed else None)
    scvi.model.SCVI.setup_anndata(adata, batch_key=BATCH)
    model = scvi.model.SCVI(adata)
    prepared = clock()
    model.train(
        max_epochs=1, accelerator="cpu", batch_size=batch_size, train_size=0.7, validation_size=0.1,
        enable_progress_bar=False, logger=False,
    )  # fmt: skip
    done = clock()
    n_train = round(0.7 * adata.n_obs)
    return rate(n_train, done - prepared) | {
        "seconds_of_reading": float((prepared - began)[0]),
        "batch_size": batch_size,
    }


def scvi_embed(folder: Path, threads: int) -> Result:
    """Embed all cells with an untrained scVI (as fast as a trained one), in memory."""
    import anndata
    import scvi
    import torch

    torch.set_num_threads(threads)
    adata = anndata.read_h5ad(folder / CHOSEN)
    scvi.model.SCVI.setup_anndata(adata, batch_key=BATCH)
    model = scvi.model.SCVI(adata)
    model.is_trained_ = True
    began = clock()
    model.get_latent_representation(batch_size=4096)
    return rate(adata.n_obs, clock() - began)


def harmony(folder: Path, threads: int) -> Result:
    """Correct the 50 principal components of all cells."""
    import harmonypy
    import pandas as pd

    stored = np.load(folder / PCS)
    pcs_NP, batches = stored["pcs_NP"], pd.DataFrame({BATCH: stored["batch_N"]})
    began = clock()
    harmonypy.run_harmony(pcs_NP, batches, [BATCH], verbose=False)
    return rate(len(pcs_NP), clock() - began)


def annbatch_write(folder: Path, threads: int) -> Result:
    """Write annbatch's own shuffled Zarr collection, which its loader reads."""
    import zarr

    annbatch = import_module("annbatch")

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": threads})
    out = folder / "annbatch.zarr"
    shutil.rmtree(out, ignore_errors=True)
    began = clock()
    annbatch.DatasetCollection(out).add_adatas(
        [folder / CHOSEN], dataset_size="1GB", rng=np.random.default_rng(0)
    )
    seconds = clock() - began
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    return rate(_n_cells(folder), seconds) | {"bytes": size}


def annbatch_load(folder: Path, threads: int) -> Result:
    """Load all cells once in annbatch's order, as dense minibatches (what a CPU trains on)."""
    import zarr

    annbatch = import_module("annbatch")

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": threads})
    collection = annbatch.DatasetCollection(folder / "annbatch.zarr", mode="r")
    loader = annbatch.Loader(
        batch_size=MINIBATCH, chunk_size=256, preload_nchunks=256, shuffle=True, rng=np.random.default_rng(0)
    ).use_collection(collection)
    n_cells = 0
    began = clock()
    for minibatch in loader:
        n_cells += len(minibatch["X"].toarray())
    return rate(n_cells, clock() - began)


def clock() -> np.ndarray:
    """Return the seconds of the clock and of the CPU: other programs do not change the latter much."""
    return np.array([time.perf_counter(), time.process_time()])


def rate(n_cells: int, seconds: np.ndarray) -> Result:
    """Return cells, seconds, and cells per second."""
    wall, cpu = map(float, seconds)
    return {
        "cells": n_cells,
        "seconds": wall,
        "cpu_seconds": cpu,
        "cells_per_second": n_cells / wall,
        "cells_per_cpu_second": n_cells / cpu,
    }


def _n_cells(folder: Path) -> int:
    import h5py

    with h5py.File(folder / CHOSEN) as file:
        return int(file["X"].attrs["shape"][0])


PACKAGES = {"scVI": "scvi-tools", "Harmony": "harmonypy", "annbatch": "annbatch"}
METHODS: dict[str, Callable[[Path, int], Result]] = {
    "scVI": lambda folder, threads: scvi(folder, threads, backed=False),
    "scVI, backed": lambda folder, threads: scvi(folder, threads, backed=True),
    "scVI, embed": scvi_embed,
    "Harmony": harmony,
    "annbatch, write": annbatch_write,
    "annbatch, load": annbatch_load,
}


def main() -> None:
    """Run one rival."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    package = PACKAGES[options.method.split(",")[0]]
    print(json.dumps(METHODS[options.method](options.folder, options.threads) | {package: version(package)}))


if __name__ == "__main__":
    main()
