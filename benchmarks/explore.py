"""How long does ``scmedley explore`` take on many cells, and how much memory does it need?

    python benchmarks/explore.py --cells 1000000

Writes an h5ad of simulated counts in blocks (negative binomial, 2,000 genes, about 7 % of the values above 0,
8 batches of 2 donors each, 12 labels; all cells are drawn with replacement from 20,000 simulated ones). Then
explores it in a process of its own, and prints the seconds and the kernel's own count of the peak resident
memory beside the goal. The file is removed afterwards.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from anndata.io import write_elem
from scipy.sparse import csr_matrix, vstack

from common import record
from memory import peak
from scmedley.io import write_json

GOAL = 2_000.0  # MB (10^6 bytes)
GENES, BATCHES, LABELS, DISPERSION = 2_000, 8, 12, 0.5
POOL = 20_000  # cells that are simulated; all others are drawn from them
BLOCK = 20_000  # cells that are written at a time


def main() -> None:
    """Simulate, explore, print, store the numbers."""
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        file, out = Path(folder) / "cells.h5ad", Path(folder) / "explored"
        start = time.perf_counter()
        # In a process of its own: the kernel counts the memory of the parent as that of a new process.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
            shown = other.submit(simulate, file, options.cells, options.seed).result()
        print(f"simulated {options.cells:,} cells x {GENES:,} genes, {shown:.1%} above 0: "
              f"{file.stat().st_size / 1e6:,.0f} MB in {time.perf_counter() - start:.0f} s", flush=True)  # fmt: skip
        command = [sys.executable, "-m", "scmedley", "explore", str(file), "--out", str(out), "--quiet"]
        start = time.perf_counter()
        memory = peak([*command, "--threads", str(options.threads)], options.threads)
        seconds = time.perf_counter() - start
        found = json.loads((out / "explore.json").read_text())
    verdict = "PASS" if memory < GOAL else "FAIL"
    print(
        f"explored in {seconds:.0f} s; dispersion at equal totals {found['dispersion']['beyond_depth']:.3f}"
    )
    print(f"{verdict}: peak {memory:,.0f} MB, goal below {GOAL:,.0f} MB")
    result = {"cells": options.cells, "genes": GENES, "seconds": seconds, "peak_MB": memory, "goal_MB": GOAL}
    write_json(record(options.threads) | result | {"dispersion": found["dispersion"]}, options.results)


def simulate(path: Path, n_cells: int, seed: int) -> float:
    """Write cells in blocks, never all of them in memory; return the share of values above 0."""
    rng = np.random.default_rng(seed)
    pool, pool_batch, pool_label = _pool(rng)
    n_values = 0
    with h5py.File(path, "w") as file:
        write_elem(file, "X", csr_matrix((0, GENES), dtype=np.float32))
        group = file["X"]
        for name, kind in (("data", np.float32), ("indices", np.int32), ("indptr", np.int64)):
            del group[name]
            group.create_dataset(name, (0,), kind, maxshape=(None,), chunks=(1 << 18,), compression="lzf")
        _append(group["indptr"], np.zeros(1))
        batches, labels = [], []
        for first in range(0, n_cells, BLOCK):
            n = min(BLOCK, n_cells - first)
            drawn = rng.integers(POOL, size=n)
            x = pool[drawn]
            label, batch = pool_label[drawn], pool_batch[drawn]
            _append(group["indices"], x.indices)
            _append(group["data"], x.data)
            _append(group["indptr"], n_values + x.indptr[1:].astype(np.int64))
            n_values += x.nnz
            batches.append(batch)
            labels.append(label)
        group.attrs["shape"] = (n_cells, GENES)
        batch, label = np.concatenate(batches), np.concatenate(labels)
        donor = 2 * batch + np.arange(n_cells) % 2
        obs = {
            "batch": _named("batch", batch),
            "donor": _named("donor", donor),
            "cell_type": _named("type", label),
        }
        write_elem(file, "obs", pd.DataFrame(obs, index=[f"cell{i}" for i in range(n_cells)]))
        genes = [f"MT-{i}" if i < 13 else f"gene{i}" for i in range(GENES)]
        write_elem(file, "var", pd.DataFrame(index=genes))
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    return n_values / (n_cells * GENES)


def _pool(rng: np.random.Generator) -> tuple[csr_matrix, np.ndarray, np.ndarray]:
    """Return counts, batch and label of the cells from which all others are drawn."""
    label, batch = rng.integers(LABELS, size=POOL), rng.integers(BATCHES, size=POOL)
    mean_G = rng.lognormal(-4.0, 1.5, GENES)
    program_KG = rng.lognormal(0, 0.3, (LABELS, GENES))
    size = rng.lognormal(0, 0.3, POOL) * (1 + 0.2 * batch)
    parts = []
    for rows in np.array_split(np.arange(POOL), 10):
        mean = mean_G * program_KG[label[rows]] * size[rows, None]
        parts.append(csr_matrix(rng.poisson(rng.gamma(1 / DISPERSION, DISPERSION * mean)).astype(np.float32)))
    return vstack(parts, format="csr"), batch, label


def _named(name: str, codes: np.ndarray) -> pd.Categorical:
    names = pd.Index([f"{name}{i}" for i in range(int(codes.max()) + 1)], dtype=object)
    return pd.Categorical.from_codes(codes, categories=names)


def _append(dataset: h5py.Dataset, values: np.ndarray) -> None:
    start = dataset.shape[0]
    dataset.resize((start + len(values),))
    dataset[start:] = values


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", type=Path, help="folder for the simulated file (default: the system's)")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "explore.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
