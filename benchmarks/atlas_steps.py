"""The steps of the atlas benchmark, each in a process of its own: ``python atlas_steps.py STEP FOLDER``.

The last line of the output is JSON: seconds, cells, cells per second, bytes. ``atlas.py`` starts the steps, measures
their memory, and keeps what they print. The folder has ``cells.h5ad`` (``atlas_data.py``); steps add the store and
the models to it, which later steps use.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch

import scmedley as sm
from atlas_data import BATCH, LABEL, SparseFile
from scmedley import keys
from scmedley.data.reader import Reading
from scmedley.data.store import Store
from scmedley.pp.maps import principal_components
from scmedley.pp.stored import read_store
from scmedley.train import loop

GENES = 2000  # highly variable genes that are chosen
FILE, STORE, CHOSEN, PCS = "cells.h5ad", "store", "chosen.h5ad", "pcs.npz"
MODELS: dict[str, Any] = {"FE": sm.FixedEffects, "RE": sm.RandomEffects}
COUNTERFACTUALS = 100_000  # cells that are decoded in two other batches
BLOCK, MINIBATCH = 4096, 256
PAIRS = 3
Result = dict[str, Any]


def imports(folder: Path, threads: int) -> Result:
    """Import what every step imports: the memory below which none can stay."""
    return {"seconds": 0.0}


def prepare(folder: Path, threads: int) -> Result:
    """Write the store of the chosen genes, from a file that is not in the system's cache."""
    shutil.rmtree(folder / STORE, ignore_errors=True)
    forget(folder / FILE)
    began = clock()
    checked = sm.pp.prepare_store(folder / FILE, folder / STORE, BATCH, label_key=LABEL, n_top_genes=GENES)
    seconds = clock() - began
    store = Store.open(folder / STORE)
    sizes = {f.name: f.stat().st_size for f in (folder / STORE).iterdir() if f.is_file()}
    about = {
        "values_per_cell": store.nnz / store.shape[0],
        "value_type": store.about["value_type"],
        "bytes": sizes,
    }
    return rate(store.shape[0], seconds) | about | {"warnings": len(checked.warnings)}


def prepare_in_memory(folder: Path, threads: int) -> Result:
    """Read the whole file and prepare it in memory."""
    forget(folder / FILE)
    began = clock()
    adata = sm.read(folder / FILE)
    sm.pp.prepare(adata, BATCH, label_key=LABEL, n_top_genes=GENES)
    return rate(adata.n_obs, clock() - began)


def epoch(folder: Path, threads: int, name: str, resident: bool) -> Result:
    """Fit for two epochs, of which the second is timed; the first also computes what training needs once."""
    reading = placed(read_store(folder / STORE), resident)
    model, ends, whole = fitted(name, reading, threads)
    if not resident:
        model.save(folder / name)
    more = {"seconds_of_first": float(ends[0][0]), "seconds_of_fit": whole}
    return rate(n_train(reading), ends[1] - ends[0]) | more


def pairs(folder: Path, threads: int, name: str) -> Result:
    """Compare training from the disk with training from memory: fits alternate; their second epochs are compared."""
    stored = read_store(folder / STORE)
    found: dict[bool, list[np.ndarray]] = {False: [], True: []}
    for _ in range(PAIRS):
        for resident, seconds in found.items():
            _, ends, _ = fitted(name, placed(stored, resident), threads)
            seconds.append(ends[1] - ends[0])
    disk_R2, resident_R2 = np.array(found[False]), np.array(found[True])
    wall, cpu = np.median(resident_R2 / disk_R2, axis=0)  # of rounds; then of the clock and of the CPU
    return rate(n_train(stored), np.median(disk_R2, axis=0)) | {
        "resident": rate(n_train(stored), np.median(resident_R2, axis=0)),
        "speed_from_disk_over_resident": float(wall),
        "speed_from_disk_over_resident_by_cpu_seconds": float(cpu),
    }


def placed(reading: Reading, resident: bool) -> Reading:
    """Return the same cells, of a store that is to be in memory, or to stay on the disk."""
    return replace(reading, memory_gb=64.0 if resident else 0.0, _rows={})


def fitted(name: str, reading: Reading, threads: int) -> tuple[Any, list[np.ndarray], float]:
    """Fit for two epochs; return the model, the seconds of training at the end of each, and of the whole fit."""
    kind = MODELS[name]
    model = kind(BATCH, settings=kind.preset("default").replace(max_epochs=2))
    times: list[np.ndarray] = []

    def train(*args: Any) -> Any:
        times.append(clock())
        return fit(*args)

    def recorded(*args: Any) -> None:
        times.append(clock())
        record(*args)

    fit, record, began = loop.fit, loop._record, time.perf_counter()
    with mock.patch.object(loop, "fit", train), mock.patch.object(loop, "_record", recorded):
        model.fit(reading, threads=threads, progress=False)
    return model, [end - times[0] for end in times[1:]], time.perf_counter() - began


def stream(folder: Path, threads: int) -> Result:
    """Read the training cells once in the order of an epoch, as dense and scaled minibatches, and do nothing else."""
    reading = placed(read_store(folder / STORE), resident=False)
    rows = np.flatnonzero((reading.obs[keys.SPLIT] == "train").to_numpy())
    scale = sm.load(folder / "RE").scale
    cells = reading.resident(np.zeros(reading.n_cells, np.int64), scale)
    began = clock()
    n_cells = sum(
        len(part.x_NG) for part in cells.minibatches(torch.as_tensor(rows), MINIBATCH, shuffle=True)
    )
    return rate(n_cells, clock() - began)


def n_train(reading: Reading) -> int:
    """Return the number of training cells."""
    return int((reading.obs[keys.SPLIT] == "train").sum())


def embed(folder: Path, threads: int) -> Result:
    """Compute the fixed-effects latent of all cells."""
    reading, model = read_store(folder / STORE), sm.load(folder / "FE")
    began = clock()
    model.get_latent_representation(reading)
    return rate(reading.n_cells, clock() - began)


def counterfactual(folder: Path, threads: int) -> Result:
    """Decode cells in two other batches, to Zarr on disk."""
    reading, model = read_store(folder / STORE), sm.load(folder / "RE")
    rows = np.sort(np.random.default_rng(0).permutation(reading.n_cells)[:COUNTERFACTUALS])
    out = folder / "as_if.zarr"
    began = clock()
    model.counterfactual(reading.take(rows), to=list(model.design.batches[:2]), out=out)
    seconds = clock() - began
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    return rate(2 * len(rows), seconds) | {"bytes": size}


def chosen(folder: Path, threads: int) -> Result:
    """Write the chosen genes' counts as h5ad, for the rivals."""
    reading = read_store(folder / STORE)
    assert reading.counts_NG is not None
    began = clock()
    with SparseFile(folder / CHOSEN, GENES) as file:
        for start in range(0, reading.n_cells, BLOCK):
            file.append(reading.counts_NG[start : start + BLOCK])
        file.finish(reading.obs[[BATCH, LABEL]], pd.DataFrame(index=list(reading.reader.genes.names)))
    return rate(reading.n_cells, clock() - began)


def components(folder: Path, threads: int) -> Result:
    """Compute 50 principal components of all cells, for Harmony."""
    reading = read_store(folder / STORE)
    train = np.flatnonzero((reading.obs[keys.SPLIT] == "train").to_numpy())
    began = clock()
    pcs_NP = principal_components(reading.log1p_NG, train)
    seconds = clock() - began
    np.savez(folder / PCS, pcs_NP=pcs_NP, batch_N=reading.obs[BATCH].to_numpy(str))
    return rate(reading.n_cells, seconds)


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


def forget(path: Path) -> None:
    """Drop a file from the system's cache, so that reading it is reading the disk."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


STEPS: dict[str, Callable[[Path, int], Result]] = {
    "imports": imports,
    "prepare": prepare,
    "prepare in memory": prepare_in_memory,
    "epoch of FE": lambda folder, threads: epoch(folder, threads, "FE", resident=False),
    "epoch of RE": lambda folder, threads: epoch(folder, threads, "RE", resident=False),
    "epoch of FE, resident": lambda folder, threads: epoch(folder, threads, "FE", resident=True),
    "epoch of RE, resident": lambda folder, threads: epoch(folder, threads, "RE", resident=True),
    "pairs of FE": lambda folder, threads: pairs(folder, threads, "FE"),
    "pairs of RE": lambda folder, threads: pairs(folder, threads, "RE"),
    "stream": stream,
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
