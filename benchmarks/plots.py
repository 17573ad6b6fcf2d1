"""How long do plots of many cells take to draw and to save?

    python benchmarks/plots.py                    # 500,000 simulated cells: a minute

Three embeddings of 500,000 cells are drawn in two colourings, 150 levels and a quantity, and saved as PNG and
as SVG, whose points are pixels.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from common import record
from scmedley import keys, pl
from scmedley.io import write_json
from scmedley.pl._figure import save

LEVELS = 150


def main() -> None:
    """Time each figure, print and store the numbers."""
    options = _options()
    adata = simulated(options.cells)
    colourings = {"150 levels": ["batch"], "a quantity": ["depth"], "both": ["batch", "depth"]}
    rows = []
    for name, colors in colourings.items():
        for suffix in (".png", ".svg"):
            start = time.perf_counter()
            figure = pl.embeddings(adata, color=colors)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"figure{suffix}"
                save(figure, path)
                seconds, size = time.perf_counter() - start, path.stat().st_size / 1e6
            rows.append(
                {
                    "color": name,
                    "format": suffix[1:],
                    "panels": 3 * len(colors),
                    "seconds": seconds,
                    "MB": size,
                }
            )
            print(
                f"{options.cells:,} cells x {3 * len(colors)} panels, {name}, {suffix}: {seconds:.1f} s, {size:.1f} MB"
            )
    write_json(record(1) | {"cells": options.cells, "figures": rows}, options.results)


def simulated(n_cells: int) -> AnnData:
    """Make cells in clumps with three embeddings, a column of levels and one of numbers."""
    rng = np.random.default_rng(0)
    codes = rng.integers(LEVELS, size=n_cells)
    batch = pd.Categorical.from_codes(codes, pd.Index([f"donor {i}" for i in range(LEVELS)]))
    obs = pd.DataFrame({"batch": batch, "depth": rng.random(n_cells)}, index=np.arange(n_cells).astype(str))
    adata = AnnData(obs=obs)
    for key in (keys.FIXED, keys.RANDOM, keys.PCA):
        adata.obsm[key] = (rng.normal(size=(LEVELS, 2)) * 5)[codes] + rng.normal(size=(n_cells, 2))
    return adata


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cells", type=int, default=500_000)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "plots.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
