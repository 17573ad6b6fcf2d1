"""The table of scores: every embedding, by batch and by label, each beside its chance.

Shapes: N cells, P latent dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from scmedley import keys
from scmedley.errors import ScmedleyError
from scmedley.evaluate.neighbors import Codes, Floats
from scmedley.evaluate.rows import Row, default_rows, draw_cells, thorough_rows
from scmedley.overlap import as_categories
from scmedley.pp.split import split

if TYPE_CHECKING:
    from anndata import AnnData

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
    """Score embeddings on held-out cells, each score beside its value under chance.

    ============ ============ ================================================= ==========================
    score        of           definition                                        null
    ============ ============ ================================================= ==========================
    ASW          batch, label ``metrics.asw``                                   codes permuted (mean of 5)
    CH           batch, label ``metrics.calinski_harabasz``                     codes permuted (mean of 5)
    1/DB         batch, label ``metrics.inverse_davies_bouldin``                codes permuted (mean of 5)
    kNN accuracy label        15 training neighbours vote (``knn_accuracy``)    labels drawn by their shares
    kNN leak     batch        batch read within labels (``probes.batch_leaks``) 0; batches permuted
    logistic ..  batch        the same, read by logistic regression             0; batches permuted
    network ..   batch        the same, read by a network of one hidden layer   0; batches permuted
    ============ ============ ================================================= ==========================

    The leak of an embedding is the worst of the three: a batch that one probe does not find may be plain to
    another.

    With ``thorough``, which takes some minutes on many cells, also:

    ============= ===== ============================================= ============================ =========
    score         of    definition                                    null                         good (*)
    ============= ===== ============================================= ============================ =========
    iLISI         batch median of ``lisi.lisi``: batches nearby       batches permuted (mean of 5) high
    iLISI scaled  batch ``lisi.scaled_ilisi``, 0 to 1                 batches permuted (mean of 5) high
    BRAS          batch ``metrics.bras``: batches mixed within labels batches permuted (mean of 5) high
    cLISI         label median of ``lisi.lisi``: labels nearby        labels permuted (mean of 5)  low
    cLISI scaled  label ``lisi.scaled_clisi``, 0 to 1                 labels permuted (mean of 5)  high
    ARI           label ``clusters.ari`` of k-means clusters          labels permuted (mean of 5)  high
    NMI, NMI max  label ``clusters.nmi`` of the same                  labels permuted (mean of 5)  high
    kNN leak      label label read within batches (``label_leak``)    0; labels permuted in batch  see (*)
    ============= ===== ============================================= ============================ =========

    (*) For a fixed-effects embedding. A random-effects embedding should tell the batch and not the label, so
    that all is the other way round; the label leak is meant for it, and is good where low.

    Batches are permuted within labels where labels are given: a null that keeps the composition of the
    batches. Without ``label_key`` there are no scores of labels, and the leaks and BRAS take all cells as one
    label, so that a difference in composition between the batches counts as leak.

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
    thorough
        Add the rows of the second table.

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
    cells = draw_cells(batch_N, label_N, train, test, seed)
    rows: list[tuple[object, ...]] = []
    for name in embeddings:
        z_NP = _embedding(adata, name)
        found = default_rows(z_NP, cells, max_cells, seed)
        if thorough:
            found += thorough_rows(z_NP, cells, seed)
        rows += [(name, *row) for row in found]
    return pd.DataFrame(rows, columns=COLUMNS)


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
