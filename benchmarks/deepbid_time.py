"""Seconds and memory of DeepBID against the number of cells.

    python benchmarks/deepbid_time.py --file pbmc_8batches_14k.h5ad [--cells 1000 5000 20000] [--genes 2000]

Cells are drawn with replacement from the file, and each copy keeps a random 80 % of its molecules, so that no two
copies are alike. Preparing, fitting with the clusters, embedding and denoising to disk are timed, each size in a
process of its own; then the slope of log seconds on log cells.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from scipy.sparse import csr_matrix

import scmedley as sm
from common import record
from scmedley.io import write_json

KEPT = 0.8  # of the molecules of a cell
RESULTS = Path(__file__).parent / "results" / "deepbid.json"


def drawn(path: Path, batch: str, n_cells: int) -> AnnData:
    """Return cells drawn with replacement, with a part of their molecules."""
    adata, rng = sm.read(path), np.random.default_rng(0)
    rows = rng.choice(adata.n_obs, n_cells)
    counts_NG = csr_matrix(adata.layers.get("counts", adata.X))[rows]
    counts_NG.data = rng.binomial(counts_NG.data.astype(np.int64), KEPT).astype(np.float32)
    counts_NG.eliminate_zeros()
    obs = adata.obs[[batch]].iloc[rows].reset_index(drop=True)
    obs.index = obs.index.astype(str)
    return AnnData(counts_NG, obs=obs, var=adata.var[[]].copy())


def one(given: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of each step at one size, and the peak memory."""
    adata = drawn(given.file, given.batch, given.one)
    row: dict[str, Any] = {"cells": given.one, "genes": given.genes}
    row["mb_before"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = [time.perf_counter()]
    sm.pp.prepare(adata, given.batch, n_top_genes=given.genes)
    start.append(time.perf_counter())
    model = sm.DeepBID(given.batch).fit(adata, threads=given.threads, progress=False)
    start.append(time.perf_counter())
    model.embed(adata)
    model.cluster(adata)
    start.append(time.perf_counter())
    with tempfile.TemporaryDirectory() as folder:
        model.denoise(adata, out=Path(folder) / "denoised.zarr")
    start.append(time.perf_counter())
    names = ("prepare", "fit", "embed and cluster", "denoise")
    row |= dict(zip(names, np.diff(start).round(2).tolist(), strict=True))
    row["seconds"] = round(start[-1] - start[0], 2)
    row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return row | {"clusters": model.clusters.k if model.clusters else 0}


def main() -> None:
    """Print and store a row for each size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--batch", default="batch")
    parser.add_argument("--cells", type=int, nargs="+", default=[1000, 5000, 20_000])
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.one:
        print(json.dumps(one(given)))
        return
    rows = []
    for n_cells in given.cells:
        command = [sys.executable, *sys.argv, "--one", str(n_cells)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows.append(json.loads(said.splitlines()[-1]))
        print(rows[-1], flush=True)
    x, y = (np.log([row[key] for row in rows]) for key in ("cells", "seconds"))
    slope = float(np.polyfit(x, y, 1)[0]) if len(rows) > 1 else float("nan")
    print(f"slope of log seconds on log cells: {slope:.2f}")
    write_json(record(threads=given.threads) | {"rows": rows, "slope": slope}, given.results)


if __name__ == "__main__":
    main()
