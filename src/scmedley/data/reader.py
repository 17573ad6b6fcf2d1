"""From an AnnData to the values that a fitted model reads."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix, issparse, vstack

from scmedley import keys
from scmedley.data.arrays import Matrix, tidy
from scmedley.data.evidence import Checked, kind_words
from scmedley.data.features import genes_alone
from scmedley.data.gene_names import GeneNames, check_unique, match
from scmedley.data.matrix import counted, find_values, normalised
from scmedley.data.scan import examine
from scmedley.errors import ScmedleyError, warn
from scmedley.keys import ValueKind

NEGATIVE = (
    "{where} has negative values: scaled or centred data cannot be used. Give raw counts (in X, layers['counts'] or "
    "raw) or log1p-normalised values."
)


_TOLD = "_scmedley_told"  # in uns of cells in memory alone


_BLOCK = 20_000_000  # values of a backed file that are read in one go


def log_normalised(
    adata: AnnData, genes: Sequence[str] | GeneNames, *, values: ValueKind = "auto"
) -> tuple[csr_matrix | np.ndarray, int]:
    """Return the values a fitted model reads, aligned by gene name.

    ``layers["log1p_cp10k"]`` where :func:`prepare` put it, else computed as :func:`prepare` does: from counts, with
    all genes that were counted in the size factor, or from log-normalised values, brought to natural logarithms
    and, where all cells have one total, to 10,000. Views and backed files work; the latter are read in blocks.
    ``adata`` stays as it is; the result may share its memory, so do not write to it.

    Parameters
    ----------
    adata
        Cells x genes.
    genes
        The model's G genes, in its order: their names, or :class:`GeneNames`, by which genes are found that
        ``adata`` calls otherwise.
    values
        What the values are, as in :func:`prepare`.

    Returns
    -------
    x_NG : csr_matrix or ndarray of float32
        log1p of counts per 10,000; genes that ``adata`` lacks are 0.
    n_missing : int
        How many genes it lacks.

    Raises
    ------
    ScmedleyError
        Gene names not unique; values that are not finite, or neither counts nor log-normalised.
    """
    x_NG, place_G, _, _ = read_log_normalised(adata, genes, values=values)
    return x_NG, int((place_G < 0).sum())


def read_log_normalised(
    adata: AnnData,
    genes: Sequence[str] | GeneNames,
    *,
    values: ValueKind = "auto",
    expected: str | None = None,
) -> tuple[Matrix, np.ndarray, Checked | None, int]:
    """Do what :func:`log_normalised` does; also return what was found, and of how many genes totals were made.

    In place of the number of missing genes the column of each gene is returned, -1 for those that are missing.

    Nothing was looked for (None) where ``layers["log1p_cp10k"]`` is there, but of :func:`as_told` it is known. Where
    the evidence leaves doubts, the values are taken to be of the ``expected`` kind.
    """
    check_unique(adata.var_names)
    adata, left_out = genes_alone(adata)
    if left_out:
        warn(left_out)
    layer = adata.layers.get(keys.LOGNORM)
    if layer is not None and values == "auto":
        where = f"layers[{keys.LOGNORM!r}]"
        if examine(layer, where, adata.obs_names, adata.var_names, logarithms=False).n_negative:
            raise ScmedleyError(NEGATIVE.format(where=where))
        place_G = _places(adata.var, genes)
        return _aligned(tidy(layer), place_G), place_G, *adata.uns.get(_TOLD, (None, adata.n_vars))
    found = find_values(adata, values)
    if found.values == "other":
        raise ScmedleyError(NEGATIVE.format(where=found.where))
    if not found.sure and expected in get_args(ValueKind) and expected != found.kind:
        found = _as_expected(adata, found, expected)
    place_G = _places(adata.raw.var if found.where == "raw.X" else adata.var, genes)
    in_memory = not adata.isbacked and not hasattr(adata.X, "compute")
    step = adata.n_obs if in_memory else max(1, _BLOCK // adata.n_vars)
    blocks, n_counted = [], 0
    for start in range(0, adata.n_obs, max(step, 1)):
        block, total_N, names = counted(adata, found, None if in_memory else slice(start, start + step))
        block = _aligned(block, place_G)
        n_counted = len(names)
        blocks.append(normalised(block, total_N, found))
    if len(blocks) == 1:
        return blocks[0], place_G, found, n_counted
    joined = vstack(blocks, format="csr") if issparse(blocks[0]) else np.vstack(blocks)
    return joined, place_G, found, n_counted


def _as_expected(adata: AnnData, found: Checked, expected: Any) -> Checked:
    """Take doubtful values for what is expected, where they can be that."""
    try:
        other = find_values(adata, expected)
    except ScmedleyError:
        return found
    words = f"{other.where} is taken to hold {kind_words(expected)}, as the training cells do; the values leave doubts."
    return replace(other, warnings=[words])


def as_told(adata: AnnData, values: ValueKind) -> AnnData:
    """Return these cells for a fitted model to read, their kind of values being known; ``adata`` stays as it is.

    It holds no expression but ``layers["log1p_cp10k"]``, and what was found, which models compare as ever. It is for
    reading only: what was found cannot be written to a file.
    """
    names = list(map(str, adata.var_names))
    x_NG, _, found, n_counted = read_log_normalised(adata, names, values=values)
    told = AnnData(obs=adata.obs, var=adata.var, obsm=dict(adata.obsm), layers={keys.LOGNORM: x_NG})
    told.uns[_TOLD] = (found, n_counted)
    return told


def _places(var: pd.DataFrame, genes: Sequence[str] | GeneNames) -> np.ndarray:
    """Return the column of each of ``genes``, -1 for those that are missing.

    How genes were found that names alone do not find is said as a warning.
    """
    wanted = genes if isinstance(genes, GeneNames) else GeneNames(tuple(genes))
    place_G, said = match(wanted, GeneNames.of(var))
    if said:
        warn(said)
    return place_G


def _aligned(x: csr_matrix | np.ndarray, place_G: np.ndarray) -> csr_matrix | np.ndarray:
    """Return these columns, in that order; 0 for those that are missing (-1)."""
    if np.array_equal(place_G, np.arange(x.shape[1])):
        return x
    present = np.flatnonzero(place_G >= 0)
    shape = (x.shape[0], len(place_G))
    sub = x[:, place_G[present]]
    if isinstance(sub, np.ndarray):
        out = np.zeros(shape, dtype=np.float32)
        out[:, present] = sub
        return out
    sub.sort_indices()
    return csr_matrix((sub.data, present[sub.indices].astype(sub.indices.dtype), sub.indptr), shape=shape)
