"""Two series of fits of deepbid.py: seconds against cells, and the four weights of the published loss."""

from __future__ import annotations

from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

from deepbid_methods import BATCH, LABEL, MEMBERSHIPS, PAPER, PCA, Task, agreement, fit, prepared, read_json
from scmedley.errors import ScmedleyError
from scmedley.io import write_json

SIZES = (1000, 2000, 5000, 10_000, 20_000)
# The paper: lambda1 and lambda2 of figure 2 (its values are only drawn: these are ours), kappa1 and kappa2 in the text.
LAMBDA1, LAMBDA2 = [0.0, 0.1, 1.0, 5.0, 10.0, 50.0], [0.0, 1e-4, 1e-3, 0.01, 0.1, 1.0]
KAPPA1 = [0.0, 0.001, 0.01, 0.1, 1.0, 10.0, 100.0]
KAPPA2 = [0.0, 0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0]
QUICK_SIZES, QUICK_GRID = (150, 300), 2


def seconds(
    adata: AnnData, methods: list[str], sizes: list[int], folder: Path, threads: int, quick: bool
) -> pd.DataFrame:
    """Return the seconds of the fit of each method on cells drawn from ``adata``, its preparation excluded."""
    rows, warm = [], set()
    for n_cells in sizes:
        ready: dict[bool, AnnData] = {}
        for method in methods:
            if method == PCA:
                continue
            task = Task("seconds", method, 0, folder, name=f"{method} {n_cells} cells")
            if not task.done:
                published = method in PAPER
                if published not in ready:
                    ready[published] = prepared(enlarged(adata, n_cells), published)
                if method not in warm:  # what is loaded at first use is not part of the fit
                    _warm_up(task, prepared(enlarged(adata, QUICK_SIZES[0]), published), threads)
                    warm.add(method)
                _store_seconds(task, ready[published], threads, quick)
            rows.append(read_json(task.path))
    table = pd.DataFrame(
        rows, columns=["method", "cells", "genes", "seconds", "cpu seconds", "threads", "reason"]
    )
    return table


def _warm_up(task: Task, adata: AnnData, threads: int) -> None:
    with suppress(ScmedleyError):
        fit(task, adata, threads, quick=True)


def _store_seconds(task: Task, adata: AnnData, threads: int, quick: bool) -> None:
    facts: dict[str, Any] = {
        "method": task.method,
        "cells": adata.n_obs,
        "genes": adata.n_vars,
        "threads": threads,
    }
    try:
        fitted = fit(task, adata, threads, quick)
        facts |= {"seconds": fitted.seconds, "cpu seconds": fitted.cpu_seconds}
    except ScmedleyError as error:
        facts["reason"] = str(error)
    write_json(facts, task.path)


def sensitivity(adata: AnnData, seeds: list[int], folder: Path, threads: int, quick: bool) -> pd.DataFrame:
    """Return the scores of the published model on a grid of lambda1 x lambda2, and along kappa1 and kappa2.

    Its other weights are those of the paper. A fit that stops has missing scores and a "reason".
    """
    short = slice(2, 2 + QUICK_GRID) if quick else slice(None)
    pairs = product(LAMBDA1[short], LAMBDA2[short])
    grid: list[tuple[str, dict[str, float]]] = [("lambda", {"lambda1": a, "lambda2": b}) for a, b in pairs]
    grid += [("kappa1", {"kappa1": value}) for value in KAPPA1[short]]
    grid += [("kappa2", {"kappa2": value}) for value in KAPPA2[short]]
    ready = prepared(adata, published=True)
    label_N = ready.obs[LABEL].cat.codes.to_numpy()
    rows = []
    for (name, settings), seed in [(one, seed) for one in grid for seed in seeds]:
        words = " ".join(f"{key} {value:g}" for key, value in settings.items())
        task = Task("sensitivity", "DeepBID, paper", seed, folder, settings, name=f"{words} seed{seed}")
        if not task.done:
            facts: dict[str, Any] = {"grid": name, "seed": seed, **settings}
            try:
                facts |= agreement(fit(task, ready, threads, quick).clusters[MEMBERSHIPS], label_N)
            except ScmedleyError as error:
                facts["reason"] = str(error)
            write_json(facts, task.path)
            print(f"sensitivity: {words}, seed {seed}", flush=True)
        rows.append(read_json(task.path))
    known = ["grid", "seed", "lambda1", "lambda2", "kappa1", "kappa2", "ARI", "NMI", "NMI max", "reason"]
    return pd.DataFrame(rows, columns=known)


def enlarged(adata: AnnData, n_cells: int, seed: int = 0) -> AnnData:
    """Return ``n_cells`` cells, drawn with replacement, with thinned counts so that copies differ."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(adata.n_obs, n_cells)
    x_NG = csr_matrix(adata.X[rows])
    x_NG.data = rng.binomial(np.rint(x_NG.data).astype(np.int64), 0.8).astype(np.float32)
    x_NG.eliminate_zeros()
    obs = adata.obs[[BATCH, LABEL]].iloc[rows].set_axis([f"cell{i}" for i in range(n_cells)])
    return AnnData(x_NG, obs=obs, var=adata.var[[]])
