"""The steps of the atlas benchmark, each in a process of its own: ``python atlas_steps.py STEP FOLDER``.

The last line of the output is JSON: seconds, cells, cells per second, bytes. ``atlas.py`` starts the steps, measures
their memory, and keeps what they print. The folder has ``cells.h5ad`` (``atlas_data.py``); steps add the store and
the models to it, which later steps use.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch

import scmedley as sm
from atlas_data import BATCH, LABEL, SparseFile
from scmedley.data.arrays import dense
from scmedley.data.store import Store
from scmedley.pp.stored import read_store
from scmedley.train import loop

GENES = 2000  # highly variable genes that are chosen
FILE, STORE, CHOSEN, PCS = "cells.h5ad", "store", "chosen.h5ad", "pcs.npz"
MODELS: dict[str, Any] = {"FE": sm.FixedEffects, "RE": sm.RandomEffects}
COUNTERFACTUALS = 100_000  # cells that are decoded in two other batches
FITTED_TO = 50_000  # cells from which principal components are computed; all are then projected
BLOCK = 4096
Result = dict[str, Any]


def imports(folder: Path, threads: int) -> Result:
    """Import what every step imports: the memory below which none can stay."""
    return {"seconds": 0.0}


def prepare(folder: Path, threads: int) -> Result:
    """Write the store of the chosen genes, from a file that is not in the system's cache."""
    forget(folder / FILE)
    began = time.perf_counter()
    prepare_store: Any = vars(sm.pp)["prepare_store"]
    checked = prepare_store(folder / FILE, folder / STORE, BATCH, label_key=LABEL, n_top_genes=GENES)
    seconds = time.perf_counter() - began
    store = Store.open(folder / STORE)
    sizes = {f.name: f.stat().st_size for f in (folder / STORE).iterdir() if f.is_file()}
    about = {
        "values_per_cell": store.nnz / store.shape[0],
        "value_type": store.about["value_type"],
        "bytes": sizes,
    }
    return rate(store.shape[0], seconds) | about | {"warnings": len(checked.warnings)}


def epoch(folder: Path, threads: int, name: str) -> Result:
    """Fit for one epoch from the store; the model is saved for later steps."""
    reading = read_store(folder / STORE)
    model, seconds, whole = fitted(name, reading, threads)
    model.save(folder / name)
    n_train = int((reading.obs["scmedley_split"] == "train").sum())
    return rate(n_train, seconds) | {"seconds_of_fit": whole}


def fitted(name: str, reading: Any, threads: int) -> tuple[Any, float, float]:
    """Fit for an epoch; return the model, seconds of the training loop, and of the whole fit."""
    kind = MODELS[name]
    model = kind(BATCH, settings=kind.preset("default").replace(max_epochs=1))
    loops: list[float] = []

    def timed(*args: Any) -> Any:
        began = time.perf_counter()
        try:
            return fit(*args)
        finally:
            loops.append(time.perf_counter() - began)

    fit, began = loop.fit, time.perf_counter()
    with mock.patch.object(loop, "fit", timed):
        model.fit(reading, threads=threads, progress=False)
    return model, loops[0], time.perf_counter() - began


def embed(folder: Path, threads: int) -> Result:
    """Compute the fixed-effects latent of all cells."""
    reading, model = read_store(folder / STORE), sm.load(folder / "FE")
    began = time.perf_counter()
    model.get_latent_representation(reading)
    return rate(reading.n_cells, time.perf_counter() - began)


def counterfactual(folder: Path, threads: int) -> Result:
    """Decode cells in two other batches, to Zarr on disk."""
    reading, model = read_store(folder / STORE), sm.load(folder / "RE")
    rows = np.sort(np.random.default_rng(0).permutation(reading.n_cells)[:COUNTERFACTUALS])
    out = folder / "as_if.zarr"
    began = time.perf_counter()
    model.counterfactual(reading.take(rows), to=list(model.design.batches[:2]), out=out)
    seconds = time.perf_counter() - began
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    return rate(2 * len(rows), seconds) | {"bytes": size}


def chosen(folder: Path, threads: int) -> Result:
    """Write the chosen genes' counts as h5ad, for the rivals."""
    reading = read_store(folder / STORE)
    assert reading.counts_NG is not None
    began = time.perf_counter()
    with SparseFile(folder / CHOSEN, GENES) as file:
        for start in range(0, reading.n_cells, BLOCK):
            file.append(reading.counts_NG[start : start + BLOCK])
        file.finish(reading.obs[[BATCH, LABEL]], pd.DataFrame(index=list(reading.reader.genes.names)))
    return rate(reading.n_cells, time.perf_counter() - began)


def components(folder: Path, threads: int) -> Result:
    """Compute 50 principal components in blocks: from a sample of the cells, then project all."""
    from sklearn.decomposition import PCA

    reading = read_store(folder / STORE)
    began = time.perf_counter()
    rows = np.sort(np.random.default_rng(0).permutation(reading.n_cells)[:FITTED_TO])
    pca = PCA(50, svd_solver="covariance_eigh").fit(dense(reading.log1p_NG[rows]))
    starts = range(0, reading.n_cells, BLOCK)
    pcs_NP = np.concatenate([pca.transform(dense(reading.log1p_NG[s : s + BLOCK])) for s in starts])
    seconds = time.perf_counter() - began
    np.savez(folder / PCS, pcs_NP=pcs_NP.astype(np.float32), batch_N=reading.obs[BATCH].to_numpy(str))
    return rate(reading.n_cells, seconds)


def rate(n_cells: int, seconds: float) -> Result:
    """Return cells, seconds, and cells per second."""
    return {"cells": n_cells, "seconds": seconds, "cells_per_second": n_cells / seconds}


def forget(path: Path) -> None:
    """Drop a file from the system's cache, so that reading it is reading the disk."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


STEPS: dict[str, Callable[[Path, int], Result]] = {
    "imports": imports,
    "prepare": prepare,
    "epoch of FE": lambda folder, threads: epoch(folder, threads, "FE"),
    "epoch of RE": lambda folder, threads: epoch(folder, threads, "RE"),
    "embed": embed,
    "counterfactual": counterfactual,
    "chosen": chosen,
    "components": components,
}


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(json.dumps(STEPS[options.step](options.folder, options.threads)))


if __name__ == "__main__":
    main()
