"""The table of scores: every embedding, by batch and by label, each beside its chance.

Shapes: N cells, P latent dimensions, R sets of codes (the real one first, then its permutations).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from scmedley import keys
from scmedley.errors import ScmedleyError
from scmedley.evaluate.metrics import calinski_harabasz, draw, inverse_davies_bouldin, silhouettes
from scmedley.evaluate.neighbors import Codes, Floats
from scmedley.evaluate.probes import batch_leak, knn_accuracy
from scmedley.overlap import as_categories
from scmedley.pp.split import split

if TYPE_CHECKING:
    from anndata import AnnData

N_PERMUTATIONS = 5  # behind the nulls of ASW, CH and 1/DB; their spread over permutations is small

COLUMNS = ["embedding", "score", "of", "value", "null", "null_sd", "null_kind", "n_cells", "se"]


def scores(
    adata: AnnData,
    embeddings: Sequence[str],
    batch_key: str,
    label_key: str | None = None,
    *,
    split_key: str = keys.SPLIT,
    seed: int = 0,
    max_cells: int = 10_000,
) -> pd.DataFrame:
    """Score embeddings on held-out cells, each score beside its value under chance.

    ============ ============ ================================================= ==========================
    score        of           definition                                        null
    ============ ============ ================================================= ==========================
    ASW          batch, label ``metrics.asw``                                   codes permuted (mean of 5)
    CH           batch, label ``metrics.calinski_harabasz``                     codes permuted (mean of 5)
    1/DB         batch, label ``metrics.inverse_davies_bouldin``                codes permuted (mean of 5)
    kNN accuracy label        15 training neighbours vote (``knn_accuracy``)    labels drawn by their shares
    kNN leak     batch        batch read within labels (``probes.batch_leak``)  batches permuted (20)
    ============ ============ ================================================= ==========================

    Batches are permuted within labels where labels are given: a null that keeps the composition of the
    batches. Without ``label_key`` there are no scores of labels, and the leak takes all cells as one label,
    so that a difference in composition between the batches counts as leak.

    The held-out cells are those with "test" in ``obs[split_key]`` and the probes learn from those with
    "train"; other cells are not used. Without that column a split of 80 % and 20 %, stratified by
    batch × label, is drawn with ``seed``: then a model that was fitted on all cells has seen the cells that
    it is scored on.

    Parameters
    ----------
    adata
        Cells with the embeddings in ``obsm``. Not changed.
    embeddings
        Keys of ``obsm``, each cells × latent dimensions.
    batch_key, label_key
        Columns of ``obs``. Cells without a label are left out of whatever needs one.
    split_key
        Column of ``obs`` with "train" and "test".
    seed
        Seed of every draw and permutation. The same cells and permutations serve all embeddings.
    max_cells
        Held-out cells used at most for ASW.

    Returns
    -------
    pandas.DataFrame
        One row per embedding, score and ``of`` ("batch" or "label"), with ``value``, ``null``, ``null_sd``,
        ``null_kind`` (in words), ``n_cells`` (held-out cells behind the value) and ``se`` (standard error of a
        leak over held-out cells). nan where a score is not defined, for example with one batch.

    Raises
    ------
    ScmedleyError
        A key is missing, a batch is missing, an embedding is not finite or not a matrix, or a part of the
        split is empty.
    """
    embeddings = [embeddings] if isinstance(embeddings, str) else list(embeddings)
    missing = [name for name in embeddings if name not in adata.obsm]
    if missing:
        raise ScmedleyError(
            f"obsm has no embedding {missing[0]!r}; there are: {', '.join(adata.obsm) or 'none'}. "
            "Embed the cells first or name one of these"
        )
    batch_N = _codes(adata, batch_key)
    if (batch_N < 0).any():
        cell = adata.obs_names[batch_N < 0][0]
        raise ScmedleyError(
            f"{(batch_N < 0).sum():,} cells have no batch in obs[{batch_key!r}] (the first is {cell!r}): "
            "fill in the batch or remove these cells"
        )
    label_N = None if label_key is None else _codes(adata, label_key)
    train, test = _parts(adata, batch_N, label_N, split_key, seed)
    groupings = _groupings(batch_N, label_N, test, np.random.default_rng(seed))
    leak_null = groupings[0].null_kind
    rows: list[tuple[object, ...]] = []
    for name in embeddings:
        z_NP = _embedding(adata, name)
        for grouping in groupings:
            rows += [(name, *row, np.nan) for row in _separation(z_NP[test], grouping, max_cells, seed)]
        if label_N is not None:
            accuracy = knn_accuracy(z_NP[train], label_N[train], z_NP[test], label_N[test])
            chance = _chance(label_N[train], label_N[test])
            n_labelled = int((label_N[test] >= 0).sum())
            kind = "labels drawn by their shares"
            rows.append((name, "kNN accuracy", "label", accuracy, *chance, kind, n_labelled, np.nan))
        one_label = np.zeros_like(batch_N) if label_N is None else label_N
        known, held_out = ((batch_N[part], one_label[part]) for part in (train, test))
        leak = batch_leak(z_NP[train], *known, z_NP[test], *held_out, seed=seed)
        against = (leak.null, leak.null_sd, leak_null)
        rows.append((name, "kNN leak", "batch", leak.value, *against, leak.n_cells, leak.se))
    return pd.DataFrame(rows, columns=COLUMNS)


@dataclass(frozen=True)
class _Grouping:
    """Held-out cells that have a batch or label, with their codes and permutations of them."""

    of: str
    cells: npt.NDArray[np.int64]
    codes_RN: Codes
    null_kind: str


def _groupings(
    batch_N: Codes, label_N: Codes | None, test: npt.NDArray[np.int64], rng: np.random.Generator
) -> list[_Grouping]:
    """Draw all codes, permutations included, once, so that embeddings are compared on the same terms."""
    within = None if label_N is None else label_N[test]
    kind = "batches permuted" if label_N is None else "batches permuted within label"
    found = [_Grouping("batch", np.arange(len(test)), _with_nulls(batch_N[test], within, rng), kind)]
    if within is not None:
        known = np.flatnonzero(within >= 0)
        found.append(_Grouping("label", known, _with_nulls(within[known], None, rng), "labels permuted"))
    return found


def _separation(z_NP: Floats, grouping: _Grouping, max_cells: int, seed: int) -> list[tuple[object, ...]]:
    """Give the rows of ASW, CH and 1/DB; the latter two are quick enough to take all cells."""
    cells, codes_RN = grouping.cells, grouping.codes_RN
    drawn = draw(len(cells), max_cells, seed)
    values = {"ASW": (silhouettes(z_NP[cells[drawn]], codes_RN[:, drawn]), len(drawn))}
    for score, metric in (("CH", calinski_harabasz), ("1/DB", inverse_davies_bouldin)):
        values[score] = np.array([metric(z_NP[cells], codes_N) for codes_N in codes_RN]), len(cells)
    return [
        (score, grouping.of, *_against_null(value_R), grouping.null_kind, n)
        for score, (value_R, n) in values.items()
    ]


def permute_batches(adata: AnnData, batch_key: str, label_key: str | None = None, *, seed: int = 0) -> None:
    """Store batches permuted within labels in ``obs["scmedley_permuted_batch"]``.

    A network fitted to those, and scored with them, is the null of a random-effects network: composition is
    kept, and there is no batch effect to find. Where the cells are split, batches are permuted within label and
    part: each part keeps its numbers of cells, so that a batch of a few cells keeps those that it trains on.
    """
    rng = np.random.default_rng(seed)
    batch = as_categories(adata.obs[batch_key])
    label = np.zeros(adata.n_obs) if label_key is None else _codes(adata, label_key)
    part = adata.obs[keys.SPLIT].astype(str).to_numpy() if keys.SPLIT in adata.obs else np.zeros(adata.n_obs)
    codes = np.array(batch.codes)
    for rows in pd.DataFrame({"label": label, "part": part}).groupby(["label", "part"]).indices.values():
        codes[rows] = codes[rng.permutation(rows)]
    adata.obs[keys.PERMUTED] = pd.Categorical.from_codes(codes, dtype=batch.dtype)


def _codes(adata: AnnData, key: str) -> Codes:
    """Integer codes of a column of obs, -1 where missing."""
    if key not in adata.obs:
        raise ScmedleyError(
            f"obs has no column {key!r}; there are: {', '.join(map(str, adata.obs.columns)) or 'none'}"
        )
    return np.asarray(as_categories(adata.obs[key]).codes, dtype=np.int64)


def _embedding(adata: AnnData, name: str) -> Floats:
    """Embedding as a float64 matrix, checked."""
    stored: Any = adata.obsm[name]
    z_NP = np.asarray(stored.toarray() if hasattr(stored, "toarray") else stored, dtype=np.float64)
    if z_NP.ndim != 2 or z_NP.shape[1] == 0:
        raise ScmedleyError(f"obsm[{name!r}] has shape {z_NP.shape}; an embedding is cells × dimensions")
    bad = ~np.isfinite(z_NP)
    if bad.any():
        cell, dimension = np.argwhere(bad)[0]
        raise ScmedleyError(
            f"obsm[{name!r}] holds {z_NP[cell, dimension]} for cell {adata.obs_names[cell]!r} "
            f"(dimension {dimension}; {bad.any(axis=1).sum():,} such cells): embed again or remove them"
        )
    return z_NP


def _parts(
    adata: AnnData, batch_N: Codes, label_N: Codes | None, split_key: str, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Training and held-out cells: those marked in obs, else drawn 80 : 20."""
    if split_key in adata.obs:
        part_N = adata.obs[split_key].astype(str).to_numpy()
        where = f"obs[{split_key!r}] marks no cell as"
    else:
        part_N = split(batch_N, label_N, fractions=(0.8, 0.0, 0.2), seed=seed)
        where = f"the {adata.n_obs:,} cells are too few to set some aside as"
    for part in ("train", "test"):
        if not (part_N == part).any():
            raise ScmedleyError(f"{where} {part!r}: scores need cells to learn from and cells held out")
    return np.flatnonzero(part_N == "train"), np.flatnonzero(part_N == "test")


def _with_nulls(codes_N: Codes, within_N: Codes | None, rng: np.random.Generator) -> Codes:
    """Stack the codes and their permutations (within the groups of ``within_N``), R × N."""
    within_N = np.zeros_like(codes_N) if within_N is None else within_N
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
