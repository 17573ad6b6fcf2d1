"""What does it save that cells are read and encoded once when counterfactuals are evaluated?

    python benchmarks/evaluation.py

On onek1k (7,811 cells, 40 donors, 4 cell types) the shifts of all donors and their check on held-out cells are computed
twice in one process: by the package, and pair by pair, where each pair of label and donor reads its cells from the
AnnData, encodes them and decodes every gene for every target. Printed are CPU seconds on one thread, their ratio, and
the largest difference of a shift between the two.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

import scmedley as sm
from common import BATCH, LABEL, find, record
from scmedley import keys
from scmedley.interpret.check import LEAST
from scmedley.io import write_json

if TYPE_CHECKING:
    from anndata import AnnData

T = TypeVar("T")

DRAWS, SHOWN, SOURCE, WRONG = 30, 100, 300, 5  # the defaults of gene_shifts and of counterfactual_check


def main() -> None:
    """Fit for a few epochs, evaluate in both ways, print and store the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=2, help="of the fit")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "evaluation.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    adata = find("onek1k", None)
    assert adata is not None
    sm.pp.prepare(adata, BATCH, label_key=LABEL)
    settings = sm.FixedEffects.preset("default").replace(max_epochs=options.epochs)
    model = sm.FixedEffects(BATCH, settings=settings).fit(adata, threads=1, progress=False)
    shared, ours = timed(lambda: evaluated(model, adata))
    apart, theirs = timed(lambda: pair_by_pair(model, adata))
    found = {
        "cpu_seconds": {"shared": round(shared, 1), "pair by pair": round(apart, 1)},
        "ratio": round(apart / shared, 1),
        "largest_difference": float(np.abs(ours - theirs).max()),
    }
    print(found)
    write_json(record(1) | found, options.out)


def timed(step: Callable[[], T]) -> tuple[float, T]:
    """Return the CPU seconds of a step, and its result."""
    began = time.process_time()
    result = step()
    return time.process_time() - began, result


def evaluated(model: sm.FixedEffects, adata: AnnData) -> np.ndarray:
    """Check and list shifts as the package does; return the shifts, label and donor x genes."""
    reading = model.read(adata)
    sm.interpret.counterfactual_check(model, reading, LABEL)
    table = sm.interpret.gene_shifts(model, reading, LABEL, n_top=len(model.genes))
    return np.asarray(table.pivot(index=["label", "batch"], columns="gene", values="shift")[model.genes])


def pair_by_pair(model: sm.FixedEffects, adata: AnnData) -> np.ndarray:
    """Do the same with one call for each pair and target, which shares nothing with the others."""
    label, batch = (np.asarray(adata.obs[key].astype(str)) for key in (LABEL, BATCH))
    test = np.asarray(adata.obs[keys.SPLIT] == "test")
    rng = np.random.default_rng(0)
    for name, target in product(sorted(set(label)), model.design.batches):
        source, goal = (
            np.flatnonzero((label == name) & test & side) for side in (batch != target, batch == target)
        )
        if min(len(source), len(goal)) < LEAST:
            continue
        source = rng.choice(source, min(SOURCE, len(source)), replace=False)
        others = rng.permutation([other for other in model.design.batches if other != target])[:WRONG]
        for to in (target, *others):
            _difference(model, adata[source], str(to))
    shifts = []
    rng = np.random.default_rng(0)
    for name in sorted(set(label)):
        rows = np.flatnonzero(label == name)
        rows = np.sort(rng.choice(rows, min(SHOWN, len(rows)), replace=False))
        means = [_mean(model, adata[rows], to) for to in model.design.batches]
        seen = [bool(((label == name) & (batch == to)).any()) for to in model.design.batches]
        shifts.append(np.array(means) - np.mean(np.array(means)[seen], axis=0))
    return np.concatenate(shifts)


def _difference(model: sm.FixedEffects, cells: AnnData, to: str) -> np.ndarray:
    shown: Any = model.counterfactual(cells, to)
    return np.asarray(shown.layers["difference"].mean(0))


def _mean(model: sm.FixedEffects, cells: AnnData, to: str) -> np.ndarray:
    shown: Any = model.counterfactual(cells, to, draws=DRAWS)
    return np.asarray(shown.X.mean(0))


if __name__ == "__main__":
    main()
