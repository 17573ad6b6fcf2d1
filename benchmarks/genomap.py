"""Genomaps: do neighbouring genes correlate, and what does a layout cost?

    python benchmarks/genomap.py                  # the shipped sets: a minute
    python benchmarks/genomap.py --data FOLDER    # also pbmc_8batches, at 2,916 genes x 6,300 cells

Three layouts of the same genes on the same pixels are compared by the mean correlation of neighbouring genes:
ours; one in which interaction alone ranks the distance from the middle; a random one. All are computed on
half of the cells and measured on the other half, as our layout maximises correlations, those by chance
included. The size of this effect is measured too: on the cells of the layout, and with each gene permuted
independently, where nothing correlates.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from threadpoolctl import threadpool_limits

import scmedley as sm
from common import BATCH, DATA_VARIABLE, LABEL, find, record
from scmedley import keys
from scmedley.interpret import genomap
from scmedley.interpret.genomap import Layout
from scmedley.io import write_json

SETS = ("sc_mixology", "onek1k", "pancreas", "pbmc_8batches")
GENES, CELLS = 2916, 6300  # of the published pictures, 54 x 54, and of the published timing
SPEARMAN, TIMES, SECONDS = 0.99, 2, {"layout": 10.0, "images": 2.0}  # goals


def main() -> None:
    """Measure each set, print a table and whether the goals are met, store the numbers."""
    options = _options()
    rows = []
    print(
        f"{'set':<14}{'cells':>7}{'genes':>7}{'ours':>8}{'radius':>8}{'random':>8}{'own half':>10}{'permuted':>10}"
        f"{'Spearman':>10}{'layout':>9}{'images':>8}"
    )
    for name in options.sets:
        adata = find(name, options.data)
        if adata is None:
            continue
        with threadpool_limits(options.threads):
            row = measure(adata) | {"set": name}
        rows.append(row)
        print(
            f"{name:<14}{row['cells']:>7,}{row['genes']:>7,}{row['ours']:>8.3f}{row['radius_only']:>8.3f}"
            f"{row['random']:>8.3f}{row['own_half']:>10.3f}{row['permuted']:>10.3f}"
            f"{row['spearman']:>10.4f}{row['layout_seconds']:>7.2f} s"
            f"{row['images_seconds']:>6.2f} s"
        )
    for what, good in _goals(rows).items():
        print(f"{'PASS' if good else 'FAIL'}: {what}")
    write_json(record(options.threads) | {"sets": rows}, options.results)


def measure(adata: Any) -> dict[str, Any]:
    """Lay out up to 2,916 highly variable genes of up to 6,300 cells; draw all of these."""
    sm.pp.prepare(adata, BATCH, label_key=LABEL, n_top_genes=GENES)
    rng = np.random.default_rng(0)
    if adata.n_obs > CELLS:
        adata = adata[np.sort(rng.choice(adata.n_obs, CELLS, replace=False))]
    adata = adata[:, adata.var[keys.HVG]]
    x_NG = adata.layers[keys.LOGNORM]
    start = time.perf_counter()
    made = genomap.layout(x_NG, list(adata.var_names))
    laid_out = time.perf_counter()
    drawn = genomap.images(x_NG, made)
    finished = time.perf_counter()
    assert len(drawn) == adata.n_obs
    interaction_G = np.abs(genomap.correlations(x_NG)[0]).sum(1)
    return {
        "cells": adata.n_obs,
        "genes": adata.n_vars,
        **neighbours(x_NG, list(adata.var_names), rng),
        "spearman": float(spearmanr(interaction_G, distance(made)).statistic),
        "layout_seconds": laid_out - start,
        "images_seconds": finished - laid_out,
    }


def neighbours(x_NG: Any, genes: list[str], rng: np.random.Generator) -> dict[str, float]:
    """Lay out on half of the cells; return the mean correlation of neighbouring genes on the other half."""
    order = rng.permutation(x_NG.shape[0])
    half, other = x_NG[order[::2]], x_NG[order[1::2]]
    made, own_GG, other_GG = genomap.layout(half, genes), *(genomap.correlations(x)[0] for x in (half, other))
    dense = half.toarray()
    permuted = rng.permuted(dense, axis=0, out=dense)
    by_chance = genomap.layout(permuted, genes)
    others = {
        "ours": made,
        "radius_only": radius_only(made, np.abs(own_GG).sum(1)),
        "random": moved(made, rng.permutation(len(genes))),
    }
    return {name: genomap.neighbour_correlation(other_GG, layout) for name, layout in others.items()} | {
        "own_half": genomap.neighbour_correlation(own_GG, made),
        "permuted": genomap.neighbour_correlation(genomap.correlations(permuted)[0], by_chance),
    }


def distance(layout: Layout) -> np.ndarray:
    """Return each gene's distance from the middle, in halves of the picture's sides."""
    height, width = layout.shape
    return np.hypot((2 * layout.rows + 1) / height - 1, (2 * layout.columns + 1) / width - 1)


def radius_only(layout: Layout, interaction_G: np.ndarray) -> Layout:
    """Rank the distance from the middle by the interaction; within a ring, genes keep their order."""
    pixels = np.argsort(distance(layout).round(9), kind="stable")
    pixel_of = np.empty(len(pixels), np.int64)
    pixel_of[np.argsort(interaction_G, kind="stable")] = pixels
    return moved(layout, pixel_of)


def moved(layout: Layout, pixel_of: np.ndarray) -> Layout:
    """Put gene g where gene ``pixel_of[g]`` lies."""
    place = layout.rows[pixel_of], layout.columns[pixel_of]
    return Layout(layout.genes, *place, layout.shape, layout.constant)


def _goals(rows: list[dict[str, Any]]) -> dict[str, bool]:
    """Return whether each goal is met."""
    goals = {
        f"Spearman(interaction, distance) at least {SPEARMAN} in all sets": all(
            r["spearman"] >= SPEARMAN for r in rows
        ),
        f"neighbouring genes correlate at least {TIMES} times as much as in the radius-only layout, in all sets": all(
            r["ours"] >= TIMES * max(r["radius_only"], r["random"]) for r in rows
        ),
    }
    for row in rows:
        if (row["cells"], row["genes"]) == (CELLS, GENES):
            for what, most in SECONDS.items():
                seconds = row[f"{what}_seconds"]
                goals[f"{what} of {CELLS:,} cells x {GENES:,} genes: {seconds:.1f} s, goal {most:.0f} s"] = (
                    seconds < most
                )
    return goals


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = Path(os.environ.get(DATA_VARIABLE, "."))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--data", type=Path, default=default, help="folder of the sets that are not shipped")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "genomap.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
