"""Clusters by evidence: cost against cells, clusters found in noise, and agreement with labels on stored latents.

    python benchmarks/clusters.py [--cells 1000 5000 20000 100000] [--draws 10] [--latents FOLDER] [--seeds 3]
                                  [--parts cost noise calibration latents] [--results FILE]

- cost: seconds and peak memory (a process each) of `scmedley.clusters.find` on mixtures of 12 Gaussian and t clouds in
  30 dimensions, and the slope of log seconds on log cells.
- noise: the number of clusters found in draws from a single cloud of several shapes; beside it Leiden at resolutions
  0.5 and 1.0 on the same 15 neighbours (if igraph is installed; scMedley does not need it).
- calibration: are memberships the probability that a cell gets the same cluster from other cells? Clusters are found on
  all cells; memberships of one half of the cells are taken from the other half.
- permuted: the same for principal components of shipped data sets of which each gene is permuted over the cells.
- types: the number of clusters found in the cells of one label alone, of all labels with at least 100 cells.
- latents: every .npz of the folder, with arrays z (cells x dimensions), label and batch. ARI, NMI, homogeneity and
  completeness of the clusters found, of our tree cut at the number of labels, of Leiden, and of k-means.

Shapes: N cells, P latent dimensions, K clusters.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

import scmedley as sm
from common import BATCH, record
from scmedley import keys
from scmedley.clusters import find
from scmedley.evaluate import (
    ari,
    completeness,
    expected_calibration_error,
    homogeneity,
    kmeans_clusters,
    nearest,
    nmi,
)
from scmedley.io import write_json

PARTS = ("cost", "noise", "permuted", "types", "calibration", "latents")
LEAST_CELLS = 100  # of a label whose cells are clustered alone
SCORES: dict[str, Callable[..., float]] = {
    "ari": ari,
    "nmi": nmi,
    "homogeneity": homogeneity,
    "completeness": completeness,
}
RESOLUTIONS = (0.5, 1.0)
N_NEIGHBORS = 15
CLOUDS, DIMENSIONS = 12, 30
NOISE_CELLS, NOISE_DIMENSIONS = (300, 1000, 3000), 20
PERMUTED_SETS = ("sc_mixology", "pancreas", "hashing")
Table: TypeAlias = npt.NDArray[Any]


def mixture(n_cells: int, seed: int = 0) -> tuple[Table, Table]:
    """Return a latent of ``CLOUDS`` clouds of unequal size, some with long tails, and the cloud of each cell."""
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.full(CLOUDS, 2.0))
    code_N = rng.choice(CLOUDS, n_cells, p=share)
    centre = 2.5 * rng.normal(size=(CLOUDS, DIMENSIONS))
    width = rng.uniform(0.5, 1.5, size=(CLOUDS, DIMENSIONS))
    tail_N = np.where(code_N % 3 == 0, rng.chisquare(5, n_cells) / 5, 1.0)
    noise = rng.normal(size=(n_cells, DIMENSIONS)) / np.sqrt(tail_N)[:, None]
    return (centre[code_N] + width[code_N] * noise).astype(np.float32), code_N


def one_cost(n_cells: int) -> dict[str, float]:
    """Return the cost of one call; the memory is that of the whole process less what it had before."""
    z_NP, code_N = mixture(n_cells)
    find(z_NP[:200])  # imports
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    clusters = find(z_NP)
    seconds = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"clusters": clusters.k, "ari": ari(clusters.code_N, code_N)}
    return {
        "cells": n_cells,
        **seconds,
        "peak_mb": peak / 1024,
        "peak_above_start_mb": (peak - before) / 1024,
        **found,
    }


def cost(sizes: list[int]) -> dict[str, Any]:
    """Return the cost at each number of cells, and the slope of log CPU seconds on log cells."""
    rows: list[dict[str, Any]] = []
    for n_cells in sizes:
        command = [sys.executable, __file__, "--one", str(n_cells)]
        rows.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        print(
            "{cells:7d} cells: {seconds:6.1f} s ({cpu_seconds:.1f} s CPU), peak {peak_mb:.0f} MB, {clusters} clusters, "
            "ARI {ari:.3f}".format(**rows[-1]),
            flush=True,
        )
    slope = float("nan")
    if len(rows) > 1:
        log_cells, log_seconds = (np.log([row[k] for row in rows]) for k in ("cells", "cpu_seconds"))
        slope = float(np.polyfit(log_cells, log_seconds, 1)[0])
        print(f"slope of log CPU seconds on log cells: {slope:.2f}")
    return {"rows": rows, "slope": slope, "true_clusters": CLOUDS}


def gaussian(rng: np.random.Generator, n: int) -> Table:
    """Return a cloud that is as wide in all dimensions."""
    cloud: Table = rng.normal(size=(n, NOISE_DIMENSIONS))
    return cloud


def components(rng: np.random.Generator, n: int) -> Table:
    """Return a cloud whose widths fall as those of principal components."""
    return np.asarray(gaussian(rng, n) * 6 / np.sqrt(1 + np.arange(NOISE_DIMENSIONS)))


def student(rng: np.random.Generator, n: int) -> Table:
    """Return a cloud with long tails (t, 4 degrees of freedom)."""
    return np.asarray(gaussian(rng, n) / np.sqrt(rng.chisquare(4, (n, 1)) / 4))


def uniform(rng: np.random.Generator, n: int) -> Table:
    """Return a cube."""
    return rng.random((n, NOISE_DIMENSIONS))


def skewed(rng: np.random.Generator, n: int) -> Table:
    """Return gamma values of shape 2."""
    return rng.gamma(2.0, size=(n, NOISE_DIMENSIONS))


def path(rng: np.random.Generator, n: int) -> Table:
    """Return cells along a line, as of a differentiation without stages."""
    return np.asarray(gaussian(rng, n) + 8 * rng.random((n, 1)) * np.eye(NOISE_DIMENSIONS)[0])


def ring(rng: np.random.Generator, n: int) -> Table:
    """Return a cycle of radius 2, of cells that scatter by 1 around it."""
    return np.asarray(gaussian(rng, n) + 2 * _circle(rng, n))


def hollow_ring(rng: np.random.Generator, n: int) -> Table:
    """Return a cycle of radius 4 with a hole in its middle."""
    return np.asarray(0.5 * gaussian(rng, n) + 4 * _circle(rng, n))


def _circle(rng: np.random.Generator, n: int) -> Table:
    angle = rng.random(n) * 2 * np.pi
    return np.stack([np.sin(angle), np.cos(angle)], axis=1) @ np.eye(2, NOISE_DIMENSIONS)


SHAPES = (gaussian, components, student, uniform, skewed, path, ring, hollow_ring)


def noise(draws: int) -> list[dict[str, Any]]:
    """Return how many clusters are found in clouds of each shape and number of cells."""
    rows: list[dict[str, Any]] = []
    for shape in SHAPES:
        for n_cells in NOISE_CELLS:
            found: dict[str, list[int]] = {}
            for seed in range(draws):
                z_NP = shape(np.random.default_rng([seed, n_cells]), n_cells)
                found.setdefault("rule", []).append(find(z_NP, seed=seed).k)
                for name, code_N in leiden(z_NP, seed):
                    found.setdefault(name, []).append(len(np.unique(code_N)))
            one = {name: sum(k == 1 for k in counts) for name, counts in found.items()}
            means = {name: mean(counts) for name, counts in found.items()}
            rows.append(
                {"shape": shape.__name__, "cells": n_cells, "draws": draws, "one": one, "mean": means}
            )
            words = ", ".join(f"{name} {one[name]} of {draws} (mean {means[name]:.1f})" for name in found)
            print(f"one cluster in {shape.__name__}, {n_cells} cells: {words}", flush=True)
    return rows


def permuted(draws: int) -> list[dict[str, Any]]:
    """Return how many clusters are found in shipped sets without any relation between genes."""
    from sklearn.decomposition import PCA

    rows: list[dict[str, Any]] = []
    for name in PERMUTED_SETS:
        adata = sm.read(sm.datasets.path(name))
        sm.pp.prepare(adata, BATCH)
        x_NG = np.asarray(adata.layers[keys.LOGNORM].toarray(), dtype=np.float64)
        found: dict[str, list[int]] = {}
        for seed in range(draws):
            rng = np.random.default_rng(seed)
            z_NP = PCA(NOISE_DIMENSIONS, random_state=seed).fit_transform(rng.permuted(x_NG, axis=0))
            found.setdefault("rule", []).append(find(z_NP, seed=seed).k)
            for method, code_N in leiden(z_NP, seed):
                found.setdefault(method, []).append(len(np.unique(code_N)))
        one = {method: sum(k == 1 for k in counts) for method, counts in found.items()}
        rows.append({"set": name, "cells": len(x_NG), "draws": draws, "one": one})
        print(f"one cluster in {name} with permuted genes: {one} of {draws}", flush=True)
    return rows


def leiden(z_NP: Table, seed: int) -> Iterator[tuple[str, Table]]:
    """Yield Leiden's clusters at each resolution; none without igraph."""
    if find_spec("igraph") is None:
        return
    igraph = import_module("igraph")
    near_NK = nearest(z_NP, z_NP, N_NEIGHBORS, exclude_self=True).indices_NK
    pairs = np.column_stack([np.repeat(np.arange(len(z_NP)), near_NK.shape[1]), near_NK.ravel()])
    graph = igraph.Graph(n=len(z_NP), edges=np.unique(np.sort(pairs, axis=1), axis=0))
    for resolution in RESOLUTIONS:
        random.seed(seed)  # igraph draws from it
        found = graph.community_leiden("modularity", resolution=resolution, n_iterations=2)
        yield f"Leiden {resolution}", np.array(found.membership)


def stored(folder: Path) -> Iterator[tuple[str, Table, Table]]:
    """Yield name, latent and codes of labels of each file."""
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise SystemExit(f"{folder} has no .npz file with arrays z, label and batch.")
    for file in files:
        with np.load(file) as arrays:
            yield (
                file.stem,
                arrays["z"].astype(np.float64),
                np.unique(arrays["label"], return_inverse=True)[1],
            )


def calibration(folder: Path, seeds: int) -> list[dict[str, Any]]:
    """Return by how much memberships are off as probabilities, in bins of the largest membership."""
    rows: list[dict[str, Any]] = []
    for name, z_NP, _ in stored(folder):
        share, same = [], []
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            first_N = rng.permutation(len(z_NP)) < len(z_NP) // 2
            # The cells of the first half in both clusterings: found with the second half, and predicted from it.
            whole, other = find(z_NP, seed=seed), find(z_NP[~first_N], seed=seed)
            code_M, membership_MK = other.predict(z_NP[first_N])
            # Which of the whole's clusters each of the other half's is, by most of its cells.
            match = [
                np.bincount(whole.code_N[~first_N][other.code_N == k], minlength=whole.k).argmax()
                for k in range(other.k)
            ]
            share.append(membership_MK.max(axis=1))
            same.append(np.array(match)[code_M] == whole.code_N[first_N])
        share_N, same_N = np.concatenate(share), np.concatenate(same)
        bins = {
            f"{low:.1f} to {high:.1f}": [
                int(inside.sum()),
                float(share_N[inside].mean()),
                float(same_N[inside].mean()),
            ]
            for low, high in ((0, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 1.01))
            if (inside := (share_N >= low) & (share_N < high)).any()
        }
        error = expected_calibration_error(share_N, same_N)
        rows.append({"latent": name, "expected_calibration_error": error, "bins": bins})
        print(f"{name}: expected calibration error {error:.3f}; {bins}", flush=True)
    return rows


def types(folder: Path) -> dict[str, Any]:
    """Return in how many labels, clustered alone, one cluster is found."""
    rows: list[dict[str, Any]] = []
    for name, z_NP, label_N in stored(folder):
        for label in np.flatnonzero(np.bincount(label_N) >= LEAST_CELLS):
            alone_NP = z_NP[label_N == label]
            found: dict[str, int] = {"rule": find(alone_NP).k}
            found |= {method: len(np.unique(code_N)) for method, code_N in leiden(alone_NP, 0)}
            rows.append({"latent": name, "label": int(label), "cells": len(alone_NP), "clusters": found})
    one = {method: sum(row["clusters"][method] == 1 for row in rows) for method in rows[0]["clusters"]}
    print(f"one cluster in a label alone, of {len(rows)}: {one}", flush=True)
    return {"rows": rows, "one": one, "labels": len(rows)}


def latents(folder: Path, seeds: int) -> dict[str, Any]:
    """Return the agreement with the labels of every method, latent by latent, and its mean."""
    rows: list[dict[str, Any]] = []
    for name, z_NP, label_N in stored(folder):
        k = len(np.unique(label_N))
        found: dict[str, list[Table]] = {}
        for seed in range(seeds):
            clusters = find(z_NP, seed=seed)
            found.setdefault("rule", []).append(clusters.code_N)
            cut = clusters.cut(k) if k <= len(clusters.tree) + 1 else find(z_NP, k, seed=seed)
            found.setdefault("tree, K given", []).append(cut.code_N)
            found.setdefault("k-means, K given", []).append(kmeans_clusters(z_NP, k, seed))
            for method, code_N in leiden(z_NP, seed):
                found.setdefault(method, []).append(code_N)
        for method, codes in found.items():
            scores = {score: mean(f(code, label_N) for code in codes) for score, f in SCORES.items()}
            n_clusters = mean(len(np.unique(code)) for code in codes)
            rows.append({"latent": name, "labels": k, "method": method, "clusters": n_clusters, **scores})
            words = ", ".join(f"{score} {value:.3f}" for score, value in scores.items())
            print(f"{name} ({k} labels), {method}: {n_clusters:.1f} clusters, {words}", flush=True)
    methods = dict.fromkeys(row["method"] for row in rows)
    means = {m: {s: mean(row[s] for row in rows if row["method"] == m) for s in SCORES} for m in methods}
    for method, scores in means.items():
        print(f"mean, {method}: " + ", ".join(f"{score} {value:.3f}" for score, value in scores.items()))
    return {"rows": rows, "means": means, "seeds": seeds}


def main() -> None:
    """Print and store what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["cost", "noise"])
    parser.add_argument("--cells", type=int, nargs="+", default=[1000, 5000, 20_000, 100_000])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--latents", type=Path, help="folder of .npz files")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--results", type=Path, help="JSON file to write; other parts in it are kept")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    with threadpool_limits(1):
        if given.one:
            print(json.dumps(one_cost(given.one)))
            return
        if given.latents is None and {"types", "calibration", "latents"} & set(given.parts):
            parser.error("--parts types, calibration and latents need --latents FOLDER")
        run: dict[str, Callable[[], Any]] = {
            "cost": lambda: cost(given.cells),
            "noise": lambda: noise(given.draws),
            "permuted": lambda: permuted(given.draws),
            "types": lambda: types(given.latents),
            "calibration": lambda: calibration(given.latents, given.seeds),
            "latents": lambda: latents(given.latents, given.seeds),
        }
        results = {part: run[part]() for part in given.parts}
    if given.results:
        before = json.loads(given.results.read_text()) if given.results.exists() else {}
        write_json(before | record(threads=1) | results, given.results)


if __name__ == "__main__":
    main()
