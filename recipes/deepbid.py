"""The evaluation of the DeepBID paper (Qin et al. 2024), with other methods, more scores and held-out donors.

python recipes/deepbid.py --data FOLDER --out deepbid-evaluation
python recipes/deepbid.py --quick                                      # some minutes: does everything run here?
python recipes/deepbid.py --data FOLDER --seconds --sensitivity        # also seconds against cells, loss weights
python recipes/deepbid.py --sets --alzheimer FOLDER                    # only the paper's case study (GEO GSE138852)
python recipes/deepbid.py --sets --case CELLS.h5ad --donor donor --condition condition --batch sample

Data: sc_mixology and pancreas come with scMedley; files of --data need obs["batch"] and obs["cell_type"]. Sets whose
file is missing are left out with a line, and so are methods whose package is missing. Each fit has its own files in
--out, so the same command resumes; remove them to fit again.

Methods: PCA (no integration), DeepBID as published (K: the number of labels), the default DeepBID, Harmony, LIGER,
scVI and Scanorama, all fitted to all cells, without labels. Each latent is clustered by evidence (scmedley.clusters),
by evidence with K given (a cut of its tree), by Leiden at scanpy's default resolution, and by k-means with K given.
The published DeepBID has its own memberships instead of the first two. Give methods that were run elsewhere as files:

    --latent DESC=desc.csv --latent Seurat=seurat.npz

CSV: cells in the first column, named as in the h5ad file, a column each dimension, and perhaps "cluster" (the method's
own clusters); NPZ: arrays cells, z, and perhaps cluster. A file is used for each set whose cells it has.

Case studies (--alzheimer, --case): the batch is the pool or --batch. Differentially expressed genes of each type, from
the labels and from the clusters of the default DeepBID (named after their most frequent label), and how many replicate
in held-out donors: the donors are split in halves, genes found in one (--fdr) are tested in the other (same sign,
p < .05), both ways. Clusters are of all donors.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from anndata import AnnData

import deepbid_donors
import deepbid_figures as figures
import deepbid_grids as grids
import deepbid_tables as tables
import scmedley as sm
from deepbid_methods import (
    BATCH,
    EVIDENCE,
    EVIDENCE_K,
    LABEL,
    METHODS,
    OURS,
    PAPER,
    SETS,
    VARIANTS,
    Task,
    few,
    left_out,
    measure,
    prepared,
    read_json,
    read_latent,
)
from scmedley.data.design import as_categories
from scmedley.data.matrix import find_values
from scmedley.datasets.papers import read_alzheimer

QUICK_CELLS, QUICK_CASE_CELLS = 160, 600


@dataclass(frozen=True)
class Source:
    """Cells with ``obs["batch"]`` and ``obs["cell_type"]``; of a case study, also columns of donor and condition."""

    name: str
    load: Callable[[], AnnData]
    published: str = ""
    donor: str = ""
    condition: str = ""


def sources(given: argparse.Namespace) -> list[Source]:
    """Return the data sets asked for whose files are there, then the case studies."""
    found = []
    for name in given.sets:
        data = SETS[name]
        path = data.path(given.data)
        if path.exists():
            found.append(Source(name, lambda path=path: sm.read(path), data.published))  # type: ignore[misc]
        else:
            print(f"{name}: left out, there is no {path}. Name its folder with --data.")
    if given.alzheimer:

        def alzheimer(condition: str | None) -> AnnData:
            adata = read_alzheimer(given.alzheimer)
            if condition:
                adata = adata[(adata.obs["condition"] == condition).to_numpy()].copy()
            return with_columns(adata, "donor", LABEL)

        found.append(Source("alzheimer_patients", lambda: alzheimer("AD"), "Alzheimer", "donor"))
        found.append(Source("alzheimer", lambda: alzheimer(None), "", "donor", "condition"))
    batch = given.batch or given.donor
    for path in given.case:
        found.append(
            Source(
                path.stem,
                lambda path=path: with_columns(sm.read(path), batch, given.label),  # type: ignore[misc]
                donor=given.donor,
                condition=given.condition,
            )
        )
    return found


def with_columns(adata: AnnData, batch: str, label: str) -> AnnData:
    """Copy two columns of ``obs`` to the names that the evaluation reads."""
    for name, column in ((BATCH, batch), (LABEL, label)):
        if column not in adata.obs:
            raise sm.ScmedleyError(
                f"obs has no column {column!r}; it has {', '.join(map(str, adata.obs))}. See --batch, --label, --donor."
            )
        adata.obs[name] = as_categories(adata.obs[column])
    return adata


def tasks_of(source: Source, adata: AnnData, given: argparse.Namespace) -> list[Task]:
    """Return what is to be fitted on a set; print what is left out."""
    has_counts = find_values(adata).values == "counts"
    found = []
    for method in given.methods:
        tasks = [Task(source.name, method, seed, given.out / "fits") for seed in given.seeds]
        if (reason := left_out(method, has_counts)) and not all(task.done for task in tasks):
            print(f"{source.name}, {method}: left out, {reason}.")
        else:  # a fit that another environment has done needs no package
            found += tasks
    for method, path in given.latent:
        if adata.obs_names.isin(read_latent(path)[0]).all():
            found.append(Task(source.name, method, given.seeds[0], given.out / "fits", latent=path))
    return found


def evaluate(source: Source, given: argparse.Namespace) -> list[Task]:
    """Fit and score what is missing of a set, and draw its maps; for a case study, count its genes."""
    adata = source.load()
    if given.quick:
        adata = few(adata, QUICK_CASE_CELLS if source.donor else QUICK_CELLS)
    tasks = tasks_of(source, adata, given)
    ready: dict[bool, AnnData] = {}

    def cells(published: bool) -> AnnData:
        if published not in ready:
            ready[published] = prepared(adata, published)
        return ready[published]

    for task in tasks:
        if not task.done:
            measure(task, cells(task.method in PAPER), given.threads, given.quick)
            print(
                f"{task.set}, {task.method}, seed {task.seed}: {read_json(task.path)['status']}", flush=True
            )
    first = {
        task.method: arrays_of(task) for task in tasks if task.seed == given.seeds[0] and task.arrays.exists()
    }
    if first:
        titles = {LABEL: "cell type", BATCH: "batch"}
        figures.maps(first, cells(False).obs, titles, given.out / f"umap_{source.name}.png")
    if source.donor and OURS in first:
        since = next(task for task in tasks if task.method == OURS).arrays.stat().st_mtime
        case_study(source, cells(False), first[OURS], since, given)
    return tasks


def arrays_of(task: Task) -> dict[str, np.ndarray]:
    """Return the stored arrays of a fit."""
    with np.load(task.arrays) as stored:
        return dict(stored)


def case_study(
    source: Source, adata: AnnData, arrays: dict[str, np.ndarray], since: float, given: argparse.Namespace
) -> None:
    """Write the counts of differentially expressed genes and what replicates, with their figure."""
    cluster_N = arrays[f"clusters {EVIDENCE_K if given.case_k else EVIDENCE}"]
    name = source.name + ("_k_given" if given.case_k else "")
    case = deepbid_donors.case_of(adata, source.donor, source.condition or None, LABEL, cluster_N)
    counts, replicated = deepbid_donors.study(case, given.fdr, given.out / f"genes_{name}", since)
    counts.to_csv(given.out / f"deg_{name}.csv", index=False)
    replicated.to_csv(given.out / f"replication_{name}.csv", index=False, float_format="%.4g")
    figures.donors(counts, replicated, given.out / f"deg_{name}.png")


def report(tasks: list[Task], names: dict[str, str], given: argparse.Namespace) -> None:
    """Write the tables and the figures of all sets."""
    scores = tables.scores([task.path for task in tasks])
    published = tables.published(scores, names)
    scores.to_csv(given.out / "scores.csv", index=False, float_format="%.6g")
    published.to_csv(given.out / "published.csv", index=False, float_format="%.6g")
    text = tables.markdown(scores, published)
    (given.out / "tables.md").write_text(text, encoding="utf-8")
    print(text)
    if not (scores["status"] == "done").any():
        return
    figures.bars(scores, published, given.out / "ari_nmi.png")
    arrays: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for task in tasks:
        if task.seed == given.seeds[0] and task.arrays.exists():
            arrays.setdefault(task.set, {})[task.method] = arrays_of(task)
    figures.lisi_boxes(arrays, given.out / "lisi.png")


def series(given: argparse.Namespace) -> None:
    """Run the two series of fits that are asked for, on the cells of sc_mixology."""
    mixology = sm.datasets.sc_mixology()
    if given.seconds:
        sizes = list(grids.QUICK_SIZES) if given.quick else given.sizes
        methods = [method for method in given.methods if not left_out(method)]
        table = grids.seconds(mixology, methods, sizes, given.out / "seconds", given.threads, given.quick)
        table.to_csv(given.out / "seconds.csv", index=False, float_format="%.6g")
        fitted = tables.slopes(table.dropna(subset="seconds"))
        fitted.to_csv(given.out / "slopes.csv", index=False, float_format="%.4g")
        print(fitted.to_string(index=False))
        figures.seconds(table.dropna(subset="seconds"), given.out / "seconds.png")
    if given.sensitivity:
        cells = few(mixology, QUICK_CELLS) if given.quick else mixology
        table = grids.sensitivity(cells, given.seeds, given.out / "sensitivity", given.threads, given.quick)
        table.to_csv(given.out / "sensitivity.csv", index=False, float_format="%.6g")
        figures.sensitivity(table, given.out / "sensitivity.png")


def main() -> None:
    """Fit what is missing; write the tables and the figures."""
    given = _options()
    given.out.mkdir(parents=True, exist_ok=True)
    tasks: list[Task] = []
    names: dict[str, str] = {}
    for source in sources(given):
        names |= {source.published: source.name} if source.published else {}
        tasks += evaluate(source, given)
    if tasks:
        report(tasks, names, given)
    series(given)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--sets", nargs="*", default=list(SETS), choices=SETS, help="default: all; none: --sets alone")
    add("--methods", nargs="*", default=list(METHODS), choices=[*METHODS, *VARIANTS], metavar="NAME")
    add(
        "--variants",
        action="store_true",
        help="also the published DeepBID with sums, fuzzy start, L_NB alone",
    )
    add(
        "--latent",
        action="append",
        default=[],
        type=_latent,
        metavar="NAME=FILE",
        help="a method run elsewhere",
    )
    add("--data", type=Path, help="folder of the files that do not come with scMedley")
    add("--out", type=Path, default=Path("deepbid-evaluation"))
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--threads", type=int, default=1)
    add("--seconds", action="store_true", help="also seconds against cells")
    add("--sizes", type=int, nargs="+", default=list(grids.SIZES), help="cells, with --seconds")
    add("--sensitivity", action="store_true", help="also the grids of the loss weights")
    add("--alzheimer", type=Path, help="folder of GSE138852_counts.csv.gz and GSE138852_covariates.csv.gz")
    add("--case", type=Path, nargs="+", default=[], help="h5ad files of further case studies")
    add("--donor", default="donor", help="obs column of --case")
    add("--condition", default="", help="obs column of --case with two values (default: none)")
    add("--label", default=LABEL, help="obs column of --case")
    add("--batch", help="obs column of --case to integrate (default: that of --donor)")
    add("--case-k", action="store_true", help="case studies: clusters with K given, the number of labels")
    add("--fdr", type=float, default=0.05, help="of genes found in a case study (default: 0.05)")
    add("--quick", action="store_true", help="few cells and epochs, one seed: numbers mean nothing")
    given = parser.parse_args()
    if given.quick:
        given.seeds = given.seeds[:1]
    if given.variants:
        given.methods = list(dict.fromkeys([*given.methods, *VARIANTS]))
    return given


def _latent(text: str) -> tuple[str, Path]:
    name, _, file = text.partition("=")
    if not file or not Path(file).exists():
        raise argparse.ArgumentTypeError(f"{text!r}: need NAME=FILE, with a file that exists")
    return name, Path(file)


if __name__ == "__main__":
    try:
        main()
    except sm.ScmedleyError as error:
        sys.exit(str(error))
