"""How fast is training from a store, in memory as it is stored or from the disk, and how much memory does it take?

    python benchmarks/store_stream.py --folder FOLDER [--cells 200000] [--repeats 3]

Cells of the shipped pancreas set (1,947 genes, 200 values a cell) are resampled and thinned, so that no two are the
same, and written to a store in blocks. Epochs of the same network over the same minibatches alternate between the
sources; seconds are of the processor, all threads together, because other work on a shared machine changes those of
the clock. Memory is the kernel's peak of a process that fits for two epochs from the disk, with all cells and with a
quarter of them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

import scmedley as sm
from common import record
from scmedley import keys
from scmedley.data.resident import Minibatch, Resident
from scmedley.data.scale import Scale
from scmedley.device import keep_freed_memory
from scmedley.io import write_json
from scmedley.io.store import StoreWriter, unfinished
from scmedley.models import FixedEffects, RandomEffects
from scmedley.pp.stored import read_store
from scmedley.train.trainable import Progress, TrainingCells

BLOCK = 10_000
GOAL = 0.9  # of the speed in memory
SAMPLE = 20_000  # cells from which the scale is learnt
FIT = (
    "import sys, resource, scmedley as sm; "
    "cells = sm.pp.read_store(sys.argv[1], memory_gb=0); "
    "model = {kind}('batch', settings={kind}.preset('default').replace(max_epochs=2)); "
    "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
    "model.fit(cells, threads=1, progress=False); "
    "print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
)


def main() -> None:
    """Write the stores, time epochs, measure the memory, store the numbers."""
    options = _options()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    sizes = (options.cells // 4, options.cells)
    folders = [written(options.folder / f"cells_{n}", n) for n in sizes]
    found: dict[str, Any] = {"cells": options.cells}
    for name, kind in (("fixed effects", FixedEffects), ("random effects", RandomEffects)):
        speeds = epochs(kind, folders[1], options.repeats)
        peaks = [peak(kind.__name__, folder) for folder in folders]
        found[name] = {
            "cells a second": speeds,
            "peak MB from the disk": dict(zip(sizes, peaks, strict=True)),
        }
        print(name, *(f"{source}: {speed:,.0f} cells/s" for source, speed in speeds.items()), sep="\n  ")
        print(
            f"  from the disk: {speeds['disk'] / speeds['compact']:.0%} of the speed in memory (goal {GOAL:.0%})"
        )
        print(*(f"  {n:,} cells: peak {mb:,.0f} MB" for n, mb in zip(sizes, peaks, strict=True)), sep="\n")
    write_json(record(options.threads) | found, options.results)


def written(folder: Path, n_cells: int) -> Path:
    """Write resampled cells to a store, unless it is there."""
    if (folder / "store.json").exists():
        return folder
    adata = sm.datasets.pancreas()
    sm.pp.prepare(adata, batch_key="batch", n_top_genes=adata.n_vars)
    rng = np.random.default_rng(0)
    genes = np.flatnonzero(adata.var[keys.HVG].to_numpy(dtype=bool))
    drawn_N, totals = (
        rng.integers(0, adata.n_obs, n_cells),
        np.asarray(adata.layers[keys.COUNTS].sum(1)).ravel(),
    )
    with unfinished(folder) as part, StoreWriter(folder, part, len(genes), "uint16", True) as writer:
        for start in range(0, n_cells, BLOCK):
            rows = drawn_N[start : start + BLOCK]
            x = adata.layers[keys.COUNTS][rows][:, genes].tocsr()
            x.data = rng.binomial(np.minimum(x.data, 60_000).astype(int), 0.9).astype(np.float32)
            x.eliminate_zeros()
            writer.append(x, totals[rows] * 0.9, totals[rows] * 0.9)
        obs = adata.obs.iloc[drawn_N].reset_index(drop=True).rename(index=str)
        obs[keys.SPLIT] = pd.Categorical(
            rng.choice(["train", "validation", "test"], n_cells, p=[0.7, 0.1, 0.2])
        )
        writer.finish(AnnData(obs=obs, var=adata.var.iloc[genes], uns=dict(adata.uns)))
    return folder


def epochs(kind: Any, folder: Path, repeats: int) -> dict[str, float]:
    """Return the cells a second of an epoch from each source: the best of some repeats that alternate.

    Seconds are of the processor, with those of the reading thread: other work on the machine changes them little.
    """
    stored = read_store(folder)
    scale = Scale.fit(stored.log1p_NG[np.arange(SAMPLE)], "pareto")
    batch_N = stored.obs["batch"].cat.codes.to_numpy()
    train = torch.as_tensor(np.flatnonzero(stored.obs[keys.SPLIT] == "train"))
    in_memory = stored.take(np.arange(stored.n_cells))
    readings = {"csr of floats": in_memory, "compact": stored, "disk": read_store(folder, memory_gb=0)}
    torch.manual_seed(0)
    settings = kind.preset("default")
    network = kind.networks[type(settings)](stored.log1p_NG.shape[1], int(batch_N.max()) + 1, settings)
    cells = {name: reading.resident(batch_N, scale, counts=False) for name, reading in readings.items()}
    network.begin(TrainingCells(cells["compact"], train), Progress("", 0.0))
    cells = {name: network.inputs(of) for name, of in cells.items()}
    seconds: dict[str, list[float]] = {name: [] for name in cells}
    for _ in range(repeats):
        for name, of in cells.items():
            started = time.process_time()
            epoch(network, of, train, settings.sizes(len(train)).batch_size)
            seconds[name].append(time.process_time() - started)
    return {name: len(train) / min(taken) for name, taken in seconds.items()}


def epoch(network: Any, cells: Resident, train: torch.Tensor, batch_size: int) -> None:
    """Train for an epoch, each player with plain Adam."""
    network.train()
    players = {p: torch.optim.Adam(w, fused=True) for s in network.stages() for p, w in s.players.items()}
    minibatches: Iterator[Minibatch] = cells.minibatches(train, batch_size, shuffle=True)
    for minibatch in minibatches:
        for player, terms in network.losses(minibatch, Progress("", 0.5)):
            players[player].zero_grad()
            sum(term.weight * term.value for term in terms.values()).backward()
            players[player].step()
    if hasattr(network, "latent_effects"):
        network.latent_effects.forget()


def peak(kind: str, folder: Path) -> float:
    """Return the peak memory, in MB, of a process that fits from the disk."""
    code = FIT.format(kind=f"sm.{kind}")
    done = subprocess.run([sys.executable, "-c", code, folder], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[1]) * 1024 / 1e6


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="folder for the stores")
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parent / "results" / "store_stream.json"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
