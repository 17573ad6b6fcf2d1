"""scib-metrics' Benchmarker on the embeddings of run folders, as its authors set it up: an outside judge.

::

    scmedley run pbmc.h5ad --batch batch --label cell_type --out pbmc
    python benchmarks/judge_scib.py pbmc --rivals Harmony Scanorama

One table for each run, with Leiden clusters as well as k-means. The Benchmarker knows no held-out cells: all
cells that have a label are judged. Rivals are fitted to all of them, our networks to the training cells. Our own
scores, on held-out cells, are in the run's scores.csv.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

from anndata import read_h5ad

from common import record
from scmedley import keys
from scmedley.io import write_json
from scmedley.peers import embed_peer
from scmedley.runs.read import read

RESULTS = Path(__file__).parent / "results" / "judge_scib.json"


def judge(folder: Path, rivals: list[str], threads: int) -> dict[str, Any]:
    """Return all scores of the Benchmarker for each embedding of a run and of rivals, not scaled over embeddings."""
    from scib_metrics.benchmark import BatchCorrection, Benchmarker, BioConservation

    run = read(folder)
    batch, label = run.config["batch"], run.config["label"]
    adata = read_h5ad(folder / "integrated.h5ad")
    adata = adata[adata.obs[[batch, label]].notna().all(axis=1)].copy()
    adata.X = adata.layers[keys.LOGNORM]  # what principal component regression is computed from
    embeddings = [key for key in (*run.shown, keys.RANDOM_MASKED) if key in adata.obsm]
    for rival in rivals:
        adata.obsm[rival] = embed_peer(rival, adata, batch, label, seed=0, threads=threads)
    judged = Benchmarker(
        adata,
        batch,
        label,
        [*embeddings, *rivals],
        BioConservation(nmi_ari_cluster_labels_leiden=True),
        BatchCorrection(),
        pre_integrated_embedding_obsm_key=keys.PCA,
        n_jobs=threads,
        progress_bar=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        judged.benchmark()
        table = judged.get_results(min_max_scale=False)
    scores = table.drop(index="Metric Type").astype(float)
    return {
        "cells": adata.n_obs,
        "batches": int(adata.obs[batch].nunique()),
        "labels": int(adata.obs[label].nunique()),
        "scores": {str(key): row.round(4).to_dict() for key, row in scores.iterrows()},
    }


def main() -> None:
    """Judge the runs that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--rivals", nargs="*", default=["Harmony"], help="methods of scmedley.peers")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    from importlib.metadata import version

    found = {folder.name: judge(folder, arguments.rivals, arguments.threads) for folder in arguments.runs}
    about = record(arguments.threads)
    about["versions"] |= {"scib-metrics": version("scib-metrics"), "jax": version("jax")}
    write_json(about | {"runs": found}, arguments.results)
    for name, one in found.items():
        print(name)
        for key, scores in one["scores"].items():
            print(
                f"  {keys.title(key)}: "
                + ", ".join(f"{score} {value:.2f}" for score, value in scores.items())
            )


if __name__ == "__main__":
    main()
