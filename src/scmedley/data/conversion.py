"""Conversion of the values of an AnnData, of any kind, to log1p CP10k of a model's genes.

Shapes: N cells of the call at hand, G genes of the model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix, issparse, vstack

from scmedley import keys
from scmedley.data.arrays import Matrix, aligned, tidy, totals_of_cp10k
from scmedley.data.evidence import Checked, kind_words
from scmedley.data.features import genes_alone
from scmedley.data.gene_names import GeneNames, check_unique, match
from scmedley.data.matrix import counted, find_values, normalised
from scmedley.data.scan import examine, n_stored
from scmedley.errors import ScmedleyError, warn
from scmedley.keys import ValueKind

NEGATIVE = (
    "{where} has negative values: scaled or centred data cannot be used. Give raw counts (in X, layers['counts'] or "
    "raw) or log1p-normalised values."
)
BLOCK = 20_000_000  # stored values per block of a matrix on disk


@dataclass(frozen=True)
class Conversion:
    """The values of some cells in an AnnData, and their conversion to log1p CP10k of a model's genes."""

    adata: AnnData
    found: Checked | None  # None: values are in layers["log1p_cp10k"]
    place_G: np.ndarray  # column of each gene, -1 if it is missing
    n_counted: int  # number of genes in the totals

    @classmethod
    def of(
        cls, adata: AnnData, genes: Sequence[str] | GeneNames, values: ValueKind, expected: str | None
    ) -> "Conversion":
        """Find the values. If the evidence is not conclusive, they are of the ``expected`` kind."""
        check_unique(adata.var_names)
        adata, left_out = genes_alone(adata)
        if left_out:
            warn(left_out)
        layer = adata.layers.get(keys.LOGNORM)
        if layer is not None and values == "auto":
            where = f"layers[{keys.LOGNORM!r}]"
            if examine(layer, where, adata.obs_names, adata.var_names, logarithms=False).n_negative:
                raise ScmedleyError(NEGATIVE.format(where=where))
            return cls(adata, None, _places(adata.var, genes), adata.n_vars)
        found = find_values(adata, values)
        if found.values == "other":
            raise ScmedleyError(NEGATIVE.format(where=found.where))
        if not found.sure and expected in get_args(ValueKind) and expected != found.kind:
            found = _as_expected(adata, found, expected)
        var = adata.raw.var if found.where == "raw.X" else adata.var
        return cls(adata, found, _places(var, genes), len(var))

    @property
    def has_counts(self) -> bool:
        """Return whether the cells have counts."""
        return keys.COUNTS in self.adata.layers if self.found is None else self.found.values == "counts"

    @property
    def _stored(self) -> Any:
        return self.adata.layers[keys.LOGNORM] if self.found is None else self.adata.X

    @property
    def in_memory(self) -> bool:
        """Return whether the values are in memory, neither in a file nor lazy."""
        stored = self._stored
        return not self.adata.isbacked and (
            stored is None or isinstance(stored, np.ndarray) or issparse(stored)
        )

    def rows(self) -> Iterator[slice]:
        """Yield the rows of each block: one block if the values are in memory."""
        n_cells, stored = self.adata.n_obs, self._stored
        step = n_cells
        if not self.in_memory:
            of_all = self.adata.n_vars * n_cells if stored is None else n_stored(stored)
            step = max(1, int(BLOCK * n_cells / max(of_all, 1)))
        for start in range(0, n_cells, max(step, 1)):
            yield slice(start, min(start + step, n_cells))

    def read(self, rows: slice, counts: bool = False) -> tuple[Matrix, Matrix | None, np.ndarray | None]:
        """Return log1p CP10k of some cells and, with ``counts``, their counts and totals."""
        all_rows = None if self.in_memory else rows
        if self.found is not None:
            x_NG, total_N, _ = counted(self.adata, self.found, all_rows)
            x_NG = aligned(x_NG, self.place_G)
            log1p_NG = normalised(x_NG, total_N, self.found)
            return (log1p_NG, x_NG, total_N) if counts else (log1p_NG, None, None)
        layer = self.adata.layers[keys.LOGNORM]
        values_NG = tidy(layer if all_rows is None else layer[all_rows])
        log1p_NG = aligned(values_NG, self.place_G)
        if not counts:
            return log1p_NG, None, None
        stored = self.adata.layers[keys.COUNTS]
        x_NG = tidy(stored if all_rows is None else stored[all_rows])
        return log1p_NG, aligned(x_NG, self.place_G), totals_of_cp10k(x_NG, values_NG)


def log_normalised(
    adata: AnnData, genes: Sequence[str] | GeneNames, *, values: ValueKind = "auto"
) -> tuple[csr_matrix | np.ndarray, int]:
    """Return log1p CP10k, unscaled, aligned by gene name: the values that a fitted model reads.

    They are ``layers["log1p_cp10k"]`` if :func:`prepare` has stored it, else computed from counts or
    log-normalised values as in :func:`prepare`. Backed files are read in blocks. ``adata`` is not changed; the
    result may share its memory: do not write to it.

    Parameters
    ----------
    adata
        Cells x genes.
    genes
        The model's G genes, in its order: names, or :class:`GeneNames` to match identifiers and symbols too.
    values
        Kind of values, as in :func:`prepare`.

    Returns
    -------
    x_NG : csr_matrix or ndarray of float32
        log1p of counts per 10,000; missing genes are 0.
    n_missing : int
        Number of missing genes.

    Raises
    ------
    ScmedleyError
        Gene names are not unique; values are not finite, or neither counts nor log-normalised.
    """
    source = Conversion.of(adata, genes, values, None)
    x_NG = stacked([source.read(rows)[0] for rows in source.rows()])
    return x_NG, int((source.place_G < 0).sum())


def stacked(blocks: list[Matrix]) -> Matrix:
    """Return blocks of cells, one below the other."""
    if len(blocks) == 1:
        return blocks[0]
    return vstack(blocks, format="csr") if issparse(blocks[0]) else np.vstack(blocks)


def _as_expected(adata: AnnData, found: Checked, expected: Any) -> Checked:
    """Return the finding for the expected kind, if uncertain values can be of that kind."""
    try:
        other = find_values(adata, expected)
    except ScmedleyError:
        return found
    words = f"{other.where} is used as {kind_words(expected)}, as in the training cells; the values are ambiguous."
    return replace(other, warnings=[words])


def _places(var: pd.DataFrame, genes: Sequence[str] | GeneNames) -> np.ndarray:
    """Return the column of each gene, -1 if it is missing; warn if genes were not matched by name."""
    wanted = genes if isinstance(genes, GeneNames) else GeneNames(tuple(genes))
    place_G, note = match(wanted, GeneNames.of(var))
    if note:
        warn(note)
    return place_G
