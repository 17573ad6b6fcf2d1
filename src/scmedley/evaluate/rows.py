"""The rows of the table of scores: each a value and what it is by chance, from arrays.

Shapes: N cells, P latent dimensions, R sets of codes (the real one first, then its permutations).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from scmedley.evaluate.clusters import ari, kmeans_clusters, nmi
from scmedley.evaluate.lisi import N_NEIGHBORS, lisi, median, scaled_clisi, scaled_ilisi
from scmedley.evaluate.metrics import bras, calinski_harabasz, draw, inverse_davies_bouldin, silhouettes
from scmedley.evaluate.neighbors import Codes, Floats, nearest
from scmedley.evaluate.probes import PROBES, Leak, batch_leaks, knn_accuracy, label_leak

N_PERMUTATIONS = 5  # behind the nulls of all but the probes; their spread over permutations is small


class Row(NamedTuple):
    """A row of the table; ``se`` where it is known."""

    score: str
    of: str
    value: float
    null: float
    null_sd: float
    null_kind: str
    n_cells: int
    se: float = float("nan")


@dataclass(frozen=True)
class Grouping:
    """Held-out cells that have a batch or label, with their codes and permutations of them."""

    of: str
    cells: npt.NDArray[np.int64]
    codes_RN: Codes
    null_kind: str


@dataclass(frozen=True)
class Cells:
    """What every embedding is scored on, drawn once, so that embeddings are compared on the same terms."""

    batch_N: Codes
    label_N: Codes  # all 0 where there are no labels
    train: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]
    by_batch: Grouping
    by_label: Grouping | None


def draw_cells(
    batch_N: Codes,
    label_N: Codes | None,
    train: npt.NDArray[np.int64],
    test: npt.NDArray[np.int64],
    seed: int,
) -> Cells:
    """Draw the permutations: batches within labels where there are labels."""
    rng = np.random.default_rng(seed)
    within_N = np.zeros_like(batch_N) if label_N is None else label_N
    kind = "batches permuted" if label_N is None else "batches permuted within label"
    by_batch = Grouping("batch", np.arange(len(test)), _with_nulls(batch_N[test], within_N[test], rng), kind)
    by_label = None
    if label_N is not None:
        known = np.flatnonzero(label_N[test] >= 0)
        codes_N = label_N[test][known]
        by_label = Grouping(
            "label", known, _with_nulls(codes_N, np.zeros_like(codes_N), rng), "labels permuted"
        )
    return Cells(batch_N, within_N, train, test, by_batch, by_label)


def default_rows(z_NP: Floats, cells: Cells, max_cells: int, seed: int) -> list[Row]:
    """Return the rows of ASW, CH, 1/DB, kNN accuracy and the batch leaks for an embedding of all cells."""
    rows = _separation_rows(z_NP[cells.test], cells.by_batch, max_cells, seed)
    if cells.by_label is not None:
        rows += _separation_rows(z_NP[cells.test], cells.by_label, max_cells, seed)
        train, test = cells.label_N[cells.train], cells.label_N[cells.test]
        accuracy = knn_accuracy(z_NP[cells.train], train, z_NP[cells.test], test)
        kind = "labels drawn by their shares"
        rows.append(
            Row("kNN accuracy", "label", accuracy, *_chance(train, test), kind, len(cells.by_label.cells))
        )
    leaks = batch_leaks(*_learnt_and_held_out(z_NP, cells), seed=seed)
    return rows + [_leak_row(probe, leaks[probe], "batch", cells.by_batch.null_kind) for probe in PROBES]


def thorough_rows(z_NP: Floats, cells: Cells, seed: int) -> list[Row]:
    """Return the rows of LISI and BRAS and, where there are labels, ARI, NMI and label leak."""
    z_test = z_NP[cells.test]
    rows = _lisi_rows(z_test, cells)
    within_N, by_batch = cells.label_N[cells.test], cells.by_batch
    bras_R = np.array([bras(z_test, codes_N, within_N) for codes_N in by_batch.codes_RN])
    rows.append(Row("BRAS", "batch", *_against_null(bras_R), by_batch.null_kind, int((within_N >= 0).sum())))
    if cells.by_label is not None:
        rows += _cluster_rows(z_test, cells.by_label, seed)
        leak = label_leak(*_learnt_and_held_out(z_NP, cells), seed=seed)
        rows.append(_leak_row("kNN", leak, "label", "labels permuted within batch"))
    return rows


def _separation_rows(z_NP: Floats, grouping: Grouping, max_cells: int, seed: int) -> list[Row]:
    """Give the rows of ASW, CH and 1/DB; the latter two are quick enough to take all cells."""
    cells, codes_RN = grouping.cells, grouping.codes_RN
    drawn = draw(len(cells), max_cells, seed)
    values = {"ASW": (silhouettes(z_NP[cells[drawn]], codes_RN[:, drawn]), len(drawn))}
    for score, metric in (("CH", calinski_harabasz), ("1/DB", inverse_davies_bouldin)):
        values[score] = np.array([metric(z_NP[cells], codes_N) for codes_N in codes_RN]), len(cells)
    return [
        Row(score, grouping.of, *_against_null(value_R), grouping.null_kind, n)
        for score, (value_R, n) in values.items()
    ]


def _lisi_rows(z_NP: Floats, cells: Cells) -> list[Row]:
    """Give the rows of iLISI and cLISI, from one graph of all held-out cells."""
    near = nearest(z_NP, z_NP, N_NEIGHBORS, exclude_self=True) if len(z_NP) > 1 else None
    rows: list[Row] = []
    for name, grouping, scaled in (
        ("iLISI", cells.by_batch, scaled_ilisi),
        ("cLISI", cells.by_label, scaled_clisi),
    ):
        if grouping is None:
            continue
        codes_RN = np.full((len(grouping.codes_RN), len(z_NP)), -1)
        codes_RN[:, grouping.cells] = grouping.codes_RN
        lisi_RN = np.full(codes_RN.shape, np.nan) if near is None else lisi(near, codes_RN)
        n_groups = len(np.unique(grouping.codes_RN[0]))
        values = {name: [median(lisi_N) for lisi_N in lisi_RN]}
        values[f"{name} scaled"] = [scaled(lisi_N, n_groups) for lisi_N in lisi_RN]
        rows += [
            Row(
                score, grouping.of, *_against_null(np.array(value_R)), grouping.null_kind, len(grouping.cells)
            )
            for score, value_R in values.items()
        ]
    return rows


def _cluster_rows(z_NP: Floats, by_label: Grouping, seed: int) -> list[Row]:
    """Give the rows of ARI and NMI of as many clusters as there are labels."""
    codes_RN = by_label.codes_RN
    n_labels = len(np.unique(codes_RN[0]))
    clusters_N = kmeans_clusters(z_NP[by_label.cells], n_labels, seed) if n_labels else codes_RN[0]
    metrics: dict[str, Callable[[Codes, Codes], float]] = {
        "ARI": ari,
        "NMI": nmi,
        "NMI max": partial(nmi, mean="max"),
    }
    return [
        Row(
            score,
            "label",
            *_against_null(np.array([metric(clusters_N, codes_N) for codes_N in codes_RN])),
            by_label.null_kind,
            len(clusters_N),
        )
        for score, metric in metrics.items()
    ]


def _learnt_and_held_out(z_NP: Floats, cells: Cells) -> tuple[Floats, Codes, Codes, Floats, Codes, Codes]:
    """Return embedding, batch and label of the training cells and of the held-out cells."""
    train, test, batch_N, label_N = cells.train, cells.test, cells.batch_N, cells.label_N
    return z_NP[train], batch_N[train], label_N[train], z_NP[test], batch_N[test], label_N[test]


def _leak_row(probe: str, leak: Leak, of: str, null_kind: str) -> Row:
    """Return the row of a leak; its null is 0, as chance is taken off."""
    null = 0.0 if leak.per_label else float("nan")
    return Row(f"{probe} leak", of, leak.value, null, leak.null_sd, null_kind, leak.n_cells, leak.se)


def _with_nulls(codes_N: Codes, within_N: Codes, rng: np.random.Generator) -> Codes:
    """Stack the codes and their permutations (within the groups of ``within_N``), R × N."""
    grouped = np.argsort(within_N, kind="stable")
    codes_RN = np.tile(codes_N, (1 + N_PERMUTATIONS, 1))
    for permuted_N in codes_RN[1:]:
        permuted_N[grouped] = codes_N[np.lexsort((rng.random(len(codes_N)), within_N))]
    return codes_RN


def _against_null(value_R: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Value, mean and standard deviation under permutation."""
    return float(value_R[0]), float(value_R[1:].mean()), float(value_R[1:].std(ddof=1))


def _chance(codes_train: Codes, codes_test: Codes) -> tuple[float, float]:
    """Compute the accuracy to expect of labels drawn by their training shares, and its standard deviation."""
    codes_train, codes_test = codes_train[codes_train >= 0], codes_test[codes_test >= 0]
    if not (len(codes_train) and len(codes_test)):
        return float("nan"), float("nan")
    n_classes = int(max(codes_train.max(), codes_test.max())) + 1
    hit_N = (np.bincount(codes_train, minlength=n_classes) / len(codes_train))[codes_test]
    return float(hit_N.mean()), float(np.sqrt((hit_N * (1 - hit_N)).sum()) / len(hit_N))
