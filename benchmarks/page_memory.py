"""What does the page of 200,000 cells cost to open, in Chromium and in Firefox?

    make web                               # once: needs Node; Firefox draws on a display, so xvfb-run
    python benchmarks/page_memory.py       # 200,000 simulated cells: a few minutes, 1 GB of disk for the time

Two pages of simulated cells, from the product's own writer: cells and maps alone, and with a model, its measured
genes and what-if, which do not leave room for all cells within the 30 MB of a page. For each: size of the file,
seconds from opening to the first drawing, memory of the browser's processes beyond an empty page, and
milliseconds of recolouring.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix, random_array

from common import record
from scmedley import keys
from scmedley.interpret import genomap_of
from scmedley.io import write_json
from scmedley.models import FixedEffects, MixedEffects, RandomEffects
from scmedley.pp import prepare
from scmedley.report.build import build

WEB = Path(__file__).parent.parent / "web"
BATCHES, LABELS, FITTED = 20, 10, 4000


def main() -> None:
    """Write both pages, open each in both browsers, print and store the numbers."""
    options = _options()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        for page, genes in (("cells and maps", 0), ("with a model", options.genes)):
            folder = Path(temporary) / str(genes)
            write_run(folder, simulated(options.cells, max(genes, 2)), fit=genes > 0)
            start = time.perf_counter()
            path = build(folder)
            seconds = time.perf_counter() - start
            for browser in ("chromium", "firefox"):
                row = {"page": page, "genes": genes, "build_s": seconds} | measured(browser, path)
                print(json.dumps(row), flush=True)
                rows.append(row)
            shutil.rmtree(folder)
    write_json(
        record(1) | {"cells": options.cells, "load": os.getloadavg()[0], "pages": rows}, options.results
    )


def simulated(n_cells: int, n_genes: int) -> AnnData:
    """Draw counts of labels and batches, 8 % of them not zero, and a map of clumps for each embedding."""
    rng = np.random.default_rng(0)
    batch, label = rng.integers(BATCHES, size=n_cells), rng.integers(LABELS, size=n_cells)
    drawn = random_array(
        (n_cells, n_genes),
        density=0.08,
        format="csr",
        dtype=np.float32,
        rng=rng,
        data_sampler=lambda size: rng.integers(1, 9, size),
    )
    x = csr_matrix(drawn)
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical([f"batch {b}" for b in batch]),
            "cell_type": pd.Categorical([f"type {k}" for k in label]),
            "depth": np.asarray(x.sum(axis=1)).ravel(),
        },
        index=[f"AAACCCAAGAAACACT-{i}" for i in range(n_cells)],
    )
    adata = AnnData(x, obs, pd.DataFrame(index=[f"GENE{g}" for g in range(n_genes)]))
    for key, codes in ((keys.FIXED, label), (keys.RANDOM, batch), (keys.PCA, label + BATCHES * batch)):
        angle = 2.4 * codes[:, None] + np.array([0, np.pi / 2])
        place = np.sqrt(1 + codes)[:, None] * np.cos(angle) + rng.normal(0, 0.4, (n_cells, 2))
        adata.obsm[keys.umap(key)] = place.astype(np.float32)
    return adata


def write_run(folder: Path, adata: AnnData, fit: bool) -> None:
    """Write the files of a run that the page reads; the model, if any, is fitted for one epoch to some cells."""
    folder.mkdir()
    if fit:
        prepare(adata, "batch", label_key="cell_type", min_genes=1)
        some = adata[:FITTED].copy()
        short = {"max_epochs": 1}
        model = MixedEffects(
            "batch",
            fixed_settings=FixedEffects.preset("default").replace(**short),
            random_settings=RandomEffects.preset("default").replace(**short),
        ).fit(some, seed=0, threads=1, progress=False)
        model.embed(adata)
        model.save(folder / "model")
        genomap_of(model, some).save(folder / "genomap.json")
    adata.write_h5ad(folder / "integrated.h5ad")
    config = {"batch": "batch", "label": "cell_type"}
    (folder / "run.json").write_text(json.dumps({"status": "done", "config": config}))


def measured(browser: str, page: Path) -> dict[str, Any]:
    """Return what web/tests/measure.mjs measures."""
    display = ["xvfb-run", "-a"] if browser == "firefox" and not os.environ.get("DISPLAY") else []
    done = subprocess.run(
        [*display, "node", "tests/measure.mjs", str(page)],
        cwd=WEB,
        env=os.environ | {"BROWSER": browser},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="where the pages are written for the time")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results/page_memory.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
