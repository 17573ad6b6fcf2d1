"""The table of scores: every embedding, by batch and by label, each score with its value by chance.

Shapes: N cells, P latent dimensions, R sets of codes (the real one first, then its permutations).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from scmedley import keys
from scmedley.data.design import as_categories
from scmedley.data.neighbors import Codes, Floats, nearest
from scmedley.errors import ScmedleyError
from scmedley.evaluate.agreement import ari, kmeans_clusters, nmi
from scmedley.evaluate.lisi import N_NEIGHBORS, lisi, median, scaled_clisi, scaled_ilisi
from scmedley.evaluate.metrics import bras, calinski_harabasz, draw, inverse_davies_bouldin, silhouettes
from scmedley.evaluate.probes import PROBES, Leak, batch_leaks, knn_accuracy, label_leak
from scmedley.pp.split import split

if TYPE_CHECKING:
    from anndata import AnnData


N_PERMUTATIONS = 5  # for all nulls but those of the probes; few suffice, as they vary little


class Row(NamedTuple):
    """A row of the table; ``se`` is nan where unknown."""

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
    """The held-out cells with a batch (or label), their codes and the permuted codes."""

    of: str
    cells: npt.NDArray[np.int64]
    codes_RN: Codes
    null_kind: str


@dataclass(frozen=True)
class Cells:
    """The cells and permutations for scoring, the same for all embeddings."""

    batch_N: Codes
    label_N: Codes  # all 0 without labels
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
    """Draw the permutations; batches are permuted within labels if there are labels."""
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
    leaks = batch_leaks(*_train_and_test(z_NP, cells), seed=seed)
    return rows + [_leak_row(probe, leaks[probe], "batch", cells.by_batch.null_kind) for probe in PROBES]


def thorough_rows(z_NP: Floats, cells: Cells, seed: int) -> list[Row]:
    """Return the rows of LISI and BRAS and, if there are labels, ARI, NMI and label leak."""
    z_test = z_NP[cells.test]
    rows = _lisi_rows(z_test, cells)
    within_N, by_batch = cells.label_N[cells.test], cells.by_batch
    bras_R = np.array([bras(z_test, codes_N, within_N) for codes_N in by_batch.codes_RN])
    rows.append(Row("BRAS", "batch", *_against_null(bras_R), by_batch.null_kind, int((within_N >= 0).sum())))
    if cells.by_label is not None:
        rows += _cluster_rows(z_test, cells.by_label, seed)
        leak = label_leak(*_train_and_test(z_NP, cells), seed=seed)
        rows.append(_leak_row("kNN", leak, "label", "labels permuted within batch"))
    return rows


def _separation_rows(z_NP: Floats, grouping: Grouping, max_cells: int, seed: int) -> list[Row]:
    """Return the rows of ASW, CH and 1/DB; CH and 1/DB are fast enough for all cells."""
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
    """Return the rows of iLISI and cLISI, from one graph of all held-out cells."""
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
    """Return the rows of ARI and NMI, with as many clusters as labels."""
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


def _train_and_test(z_NP: Floats, cells: Cells) -> tuple[Floats, Codes, Codes, Floats, Codes, Codes]:
    """Return embedding, batch and label of the training cells, then of the held-out cells."""
    train, test, batch_N, label_N = cells.train, cells.test, cells.batch_N, cells.label_N
    return z_NP[train], batch_N[train], label_N[train], z_NP[test], batch_N[test], label_N[test]


def _leak_row(probe: str, leak: Leak, of: str, null_kind: str) -> Row:
    """Return the row of a leak; its null is 0 by definition."""
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
    """Return the value, and the mean and standard deviation of its null."""
    return float(value_R[0]), float(value_R[1:].mean()), float(value_R[1:].std(ddof=1))


def _chance(codes_train: Codes, codes_test: Codes) -> tuple[float, float]:
    """Return the expected accuracy of labels drawn with their training frequencies, and its SD."""
    codes_train, codes_test = codes_train[codes_train >= 0], codes_test[codes_test >= 0]
    if not (len(codes_train) and len(codes_test)):
        return float("nan"), float("nan")
    n_classes = int(max(codes_train.max(), codes_test.max())) + 1
    hit_N = (np.bincount(codes_train, minlength=n_classes) / len(codes_train))[codes_test]
    return float(hit_N.mean()), float(np.sqrt((hit_N * (1 - hit_N)).sum()) / len(hit_N))


COLUMNS = ["embedding", *Row._fields]


def scores(
    adata: AnnData,
    embeddings: Sequence[str],
    batch_key: str,
    label_key: str | None = None,
    *,
    split_key: str = keys.SPLIT,
    seed: int = 0,
    max_cells: int = 10_000,
    thorough: bool = False,
) -> pd.DataFrame:
    """Score embeddings on held-out cells; each score is reported with its value by chance.

    ============ ============ ================================================= ==========================
    score        of           definition                                        null
    ============ ============ ================================================= ==========================
    ASW          batch, label ``metrics.asw``                                   codes permuted (mean of 5)
    CH           batch, label ``metrics.calinski_harabasz``                     codes permuted (mean of 5)
    1/DB         batch, label ``metrics.inverse_davies_bouldin``                codes permuted (mean of 5)
    kNN accuracy label        15 training neighbours vote (``knn_accuracy``)    labels drawn by their shares
    kNN leak     batch        batch leakage in labels (``probes.batch_leaks``)  0; batches permuted
    logistic ..  batch        the same, by logistic regression                  0; batches permuted
    network ..   batch        the same, by a network with one hidden layer      0; batches permuted
    ============ ============ ================================================= ==========================

    The batch leakage of an embedding is the largest of the three leaks, because one probe may find a batch
    that another does not.

    ``thorough`` adds the rows below; it takes some minutes on many cells:

    ============= ===== ============================================= ============================ =========
    score         of    definition                                    null                         good (*)
    ============= ===== ============================================= ============================ =========
    iLISI         batch median of ``lisi.lisi``, neighbours' batches  batches permuted (mean of 5) high
    iLISI scaled  batch ``lisi.scaled_ilisi``, 0 to 1                 batches permuted (mean of 5) high
    BRAS          batch ``metrics.bras``: batches mixed within labels batches permuted (mean of 5) high
    cLISI         label median of ``lisi.lisi``, neighbours' labels   labels permuted (mean of 5)  low
    cLISI scaled  label ``lisi.scaled_clisi``, 0 to 1                 labels permuted (mean of 5)  high
    ARI           label ``clusters.ari`` of k-means clusters          labels permuted (mean of 5)  high
    NMI, NMI max  label ``clusters.nmi`` of the same                  labels permuted (mean of 5)  high
    kNN leak      label label leak in batches (``label_leak``)        0; labels permuted in batch  see (*)
    ============= ===== ============================================= ============================ =========

    (*) For a fixed-effects embedding. A random-effects embedding should contain the batch and not the label:
    the opposite is good for it. The label leak is meant for random-effects embeddings; low is good.

    With labels, batches are permuted within labels: this null keeps the composition of the batches. Without
    ``label_key`` there are no scores of labels. The leaks and BRAS then treat all cells as one label, and a
    difference in composition between the batches counts as leakage.

    The held-out cells are those with "test" in ``obs[split_key]``. Probes are trained on those with "train".
    Other cells are not used. Without that column, a split of 80 % and 20 %, stratified by batch × label, is
    drawn with ``seed``. A model that was fitted on all cells has then been trained on the held-out cells.

    Parameters
    ----------
    adata
        Cells with the embeddings in ``obsm``. Not changed.
    embeddings
        Keys of ``obsm``, each cells × latent dimensions.
    batch_key, label_key
        Columns of ``obs``. Cells without a label are left out of scores that need one.
    split_key
        Column of ``obs`` with "train" and "test".
    seed
        Random seed of all draws and permutations, which are the same for all embeddings.
    max_cells
        Maximum number of held-out cells for ASW.
    thorough
        Add the rows of the second table.

    Returns
    -------
    pandas.DataFrame
        One row per embedding, score and ``of`` ("batch" or "label"), with ``value``, ``null``, ``null_sd``,
        ``null_kind`` (in words), ``n_cells`` (number of scored held-out cells) and ``se`` (standard error of
        a leak over held-out cells). nan where a score is not defined, for example with one batch.

    Raises
    ------
    ScmedleyError
        A key is missing, a cell has no batch, an embedding is not finite or not a matrix, or a part of the
        split is empty.
    """
    embeddings = [embeddings] if isinstance(embeddings, str) else list(embeddings)
    missing = [name for name in embeddings if name not in adata.obsm]
    if missing:
        raise ScmedleyError(
            f"obsm has no embedding {missing[0]!r}; there are: {', '.join(adata.obsm) or 'none'}. "
            "Embed the cells first or choose one of these."
        )
    batch_N = _codes(adata, batch_key)
    if (batch_N < 0).any():
        cell = adata.obs_names[batch_N < 0][0]
        raise ScmedleyError(
            f"{(batch_N < 0).sum():,} cells have no batch in obs[{batch_key!r}] (the first is {cell!r}). "
            "Fill in the batch or remove these cells."
        )
    label_N = None if label_key is None else _codes(adata, label_key)
    train, test = _parts(adata, batch_N, label_N, split_key, seed)
    cells = draw_cells(batch_N, label_N, train, test, seed)
    rows: list[tuple[object, ...]] = []
    for name in embeddings:
        z_NP = _embedding(adata, name)
        found = default_rows(z_NP, cells, max_cells, seed)
        if thorough:
            found += thorough_rows(z_NP, cells, seed)
        rows += [(name, *row) for row in found]
    return pd.DataFrame(rows, columns=COLUMNS)


def _codes(adata: AnnData, key: str) -> Codes:
    """Return the integer codes of a column of obs, -1 where missing."""
    if key not in adata.obs:
        raise ScmedleyError(
            f"obs has no column {key!r}; there are: {', '.join(map(str, adata.obs.columns)) or 'none'}. "
            "Choose one of these."
        )
    return np.asarray(as_categories(adata.obs[key]).codes, dtype=np.int64)


def _embedding(adata: AnnData, name: str) -> Floats:
    """Return the embedding as a float64 matrix of finite values."""
    stored: Any = adata.obsm[name]
    z_NP = np.asarray(stored.toarray() if hasattr(stored, "toarray") else stored, dtype=np.float64)
    if z_NP.ndim != 2 or z_NP.shape[1] == 0:
        raise ScmedleyError(
            f"obsm[{name!r}] has shape {z_NP.shape}. An embedding must be cells × dimensions."
        )
    bad = ~np.isfinite(z_NP)
    if bad.any():
        cell, dimension = np.argwhere(bad)[0]
        raise ScmedleyError(
            f"obsm[{name!r}] holds {z_NP[cell, dimension]} for cell {adata.obs_names[cell]!r} "
            f"(dimension {dimension}; {bad.any(axis=1).sum():,} such cells). Embed again or remove these cells."
        )
    return z_NP


def _parts(
    adata: AnnData, batch_N: Codes, label_N: Codes | None, split_key: str, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the training and held-out cells: those marked in obs, else a random split of 80 % and 20 %."""
    if split_key in adata.obs:
        part_N = adata.obs[split_key].astype(str).to_numpy()
        what = f"obs[{split_key!r}] marks no cell as"
    else:
        part_N = split(batch_N, label_N, fractions=(0.8, 0.0, 0.2), seed=seed)
        what = f"The {adata.n_obs:,} cells are too few for a part"
    for part in ("train", "test"):
        if not (part_N == part).any():
            raise ScmedleyError(f"{what} {part!r}. Scores need training cells and held-out cells.")
    return np.flatnonzero(part_N == "train"), np.flatnonzero(part_N == "test")
