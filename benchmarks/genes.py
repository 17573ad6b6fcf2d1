"""How long does the choice of genes take with hundreds of batches, beside scanpy's way of batch after batch?

    python benchmarks/genes.py --data FOLDER

A real set of full transcriptomes is resampled: each new cell is a cell of the set with its counts thinned, in one of
700 batches of 100 cells, over 16,420 genes (those of the set twice, the second time thinned further). Both ways
choose genes from the same log-normalised cells in one process; peak memory is measured in a process of its own for
each, which reads the cells from a temporary file: what is needed beyond the cells.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData, read_h5ad
from scipy.sparse import csr_matrix, hstack, vstack

import scmedley as sm
from common import DATA_SETS, DATA_VARIABLE, record
from scmedley import keys
from scmedley.data.arrays import log1p_cp10k, totals
from scmedley.io import write_json
from scmedley.pp.genes import select_genes

GOAL = 10.0  # seconds, for 700 batches
DATA = DATA_SETS["pbmc_8batches"]
WAYS = ("scmedley", "scanpy")
TOP_GENES = 3000
STATM = Path("/proc/self/statm")


def main() -> None:
    """Time both ways, compare the genes, measure the memory, store the numbers."""
    options = _options()
    if options.way:
        print(memory(read_h5ad(options.file), options.way))
        return
    adata = cells(options)
    shape = f"{adata.n_obs:,} cells x {adata.n_vars:,} genes, {options.batches} batches"
    print(f"{shape}, {adata.layers[keys.LOGNORM].nnz / 1e6:,.0f} M values")
    results = {way: chosen(adata, way) for way in WAYS}
    (ours_G, ours, own), (theirs_G, theirs, other) = results["scmedley"], results["scanpy"]
    differing = int((ours_G != theirs_G).sum())
    with tempfile.TemporaryDirectory() as folder:
        adata.write_h5ad(f"{folder}/cells.h5ad")
        del adata
        beyond = {way: measured(way, f"{folder}/cells.h5ad") for way in WAYS}
    print(f"scmedley {ours:.1f} s ({own:.1f} s of CPU), {beyond['scmedley']:,.0f} MB beyond the cells")
    print(f"scanpy   {theirs:.1f} s ({other:.1f} s of CPU), {beyond['scanpy']:,.0f} MB beyond the cells")
    verdict = "PASS" if own <= GOAL and not differing else "FAIL"
    print(
        f"{verdict}: {other / own:.1f} times as fast (CPU), goal at most {GOAL:.0f} s; {differing} genes differ"
    )
    about = {"cells": shape, "differing": differing, "goal_s": GOAL, "beyond_MB": beyond}
    seconds = {"scmedley_s": ours, "scanpy_s": theirs, "scmedley_cpu_s": own, "scanpy_cpu_s": other}
    write_json(record(1) | about | seconds, options.results)


def cells(options: argparse.Namespace) -> AnnData:
    """Return resampled cells, normalised, all for training."""
    rng = np.random.default_rng(0)
    source = sm.io.read(DATA.path(options.data))
    x_NG = csr_matrix(source.layers.get(keys.COUNTS, source.X), dtype=np.float32)
    n_cells = options.batches * options.cells
    parts = []
    for start in range(0, n_cells, 10_000):
        taken = x_NG[rng.integers(0, x_NG.shape[0], min(10_000, n_cells - start))]
        both = [taken, taken.copy()]
        for part, share in zip(both, (0.8, 0.3), strict=True):
            part.data = rng.binomial(part.data.astype(np.int64), share).astype(np.float32)
            part.eliminate_zeros()
        counts = hstack(both, format="csr", dtype=np.float32)
        parts.append(csr_matrix(log1p_cp10k(counts, totals(counts))))
    names = [f"cell{i}" for i in range(n_cells)]
    batch = pd.Categorical(np.repeat(np.arange(options.batches), options.cells).astype(str))
    obs = pd.DataFrame({"batch": batch, keys.SPLIT: "train"}, index=names)
    # Scanpy breaks ties by name.
    var = pd.DataFrame(index=[f"gene{i:06d}" for i in range(parts[0].shape[1])])
    return AnnData(obs=obs, var=var, layers={keys.LOGNORM: vstack(parts, format="csr")})


def chosen(adata: AnnData, way: str) -> tuple[np.ndarray, float, float]:
    """Return the flags of the genes, and the seconds on the clock and of the process."""
    import scanpy as sc

    start, cpu = time.perf_counter(), time.process_time()
    flags = np.zeros(adata.n_vars, dtype=bool)
    if way == "scmedley":
        select_genes(adata, "batch", TOP_GENES)
        flags = adata.var[keys.HVG].to_numpy()
    elif way == "scanpy":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = sc.pp.highly_variable_genes(
                adata, layer=keys.LOGNORM, n_top_genes=TOP_GENES, batch_key="batch", inplace=False
            )
        flags = table["highly_variable"].to_numpy()
    return flags, time.perf_counter() - start, time.process_time() - cpu


def measured(way: str, file: str) -> float:
    """Return the memory in MB that one way needs, of a process that reads the cells from a file."""
    command = [sys.executable, __file__, "--way", way, "--file", file]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def memory(adata: AnnData, way: str) -> float:
    """Return the most resident memory in MB during the choice beyond that before it (Linux; elsewhere NaN)."""
    import scanpy as sc

    assert sc  # imported before the memory is noted
    if not STATM.exists():
        return float("nan")
    found, done = [_resident()], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            found.append(_resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    chosen(adata, way)
    done.set()
    watcher.join()
    return max(found) - found[0]


def _resident() -> float:
    return int(STATM.read_text().split()[1]) * resource.getpagesize() / 1e6


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = Path(os.environ.get(DATA_VARIABLE, "."))
    parser.add_argument("--data", type=Path, default=default, help=f"folder of {DATA.file}")
    parser.add_argument("--batches", type=int, default=700)
    parser.add_argument("--cells", type=int, default=100, help="cells of each batch")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "genes.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
