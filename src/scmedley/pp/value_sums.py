"""One pass over blocks of cells: the sums, histograms and totals from which the tables of an exploration are made.

Shapes: N cells of a block, G genes that all files have.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix, vstack

from scmedley import keys
from scmedley.data.arrays import Matrix, aligned, without_zeros
from scmedley.data.conversion import NEGATIVE
from scmedley.data.evidence import Checked
from scmedley.data.gene_names import GeneNames
from scmedley.data.inplace import layers_of
from scmedley.data.matrix import counted, find_values, normalised
from scmedley.data.scan import LARGEST, n_stored
from scmedley.errors import ScmedleyError
from scmedley.keys import ValueKind

BLOCK = 2_000_000  # stored values of a block: its matrices and temporary arrays take about 150 MB
SAMPLED = 20_000_000  # with more stored values, a sample of the cells shows what the matrix holds
_SPANS, _SPAN = 20, 1_000  # of so many cells in a row, at so many places

FAMILIES = {
    "mitochondrial": re.compile(r"mt[-.].+", re.I),
    # RPL36AL, RPS4Y1, RPLP0 and RPSA, but neither kinases (RPS6KA1) nor pseudogenes (RPL10P3).
    "ribosomal": re.compile(r"rp[sl](\d+[axy]?l?\d?|p[012]|a)", re.I),
}

# Histogram of counts: each whole number below FINE, then bins that are wider by 10 % each.
FINE = 1_000
COUNT_EDGES = np.concatenate(
    [np.arange(FINE + 1), np.unique(np.rint(FINE * 1.1 ** np.arange(1, 850))).astype(float)]
)
# Of logarithms, which are at most 20.
LOG_EDGES = np.linspace(0, LARGEST["log1p"], 401)


@dataclass
class Source:
    """Cells of one file, the matrix that is used, and the place of each of the shared genes in it."""

    name: str
    adata: AnnData
    found: Checked
    was_sampled: bool  # the finding rests on a sample of the cells; the pass checks the others
    genes: GeneNames
    families: dict[str, np.ndarray]  # which of its genes are mitochondrial and ribosomal
    place_G: np.ndarray  # of the shared genes

    def blocks(self) -> Iterator[slice]:
        """Yield the cells in blocks of about the same number of stored values."""
        n = self.adata.n_obs
        stored = _size(self.adata, self.found)
        step = max(1, min(n, int(BLOCK * n / max(stored, 1))))
        for start in range(0, n, step):
            yield slice(start, min(start + step, n))


def families(genes: GeneNames) -> dict[str, np.ndarray]:
    """Return which genes are mitochondrial and which ribosomal, by their symbols."""
    shown = genes.shown
    return {
        name: np.array([bool(pattern.fullmatch(gene)) for gene in shown], dtype=bool)
        for name, pattern in FAMILIES.items()
    }


class ContradictionError(Exception):
    """A block holds values that the sample did not have, so the finding of the sample is wrong."""


def look(adata: AnnData, asked: ValueKind = "auto", whole: bool = False) -> tuple[Checked, bool]:
    """Return what the matrices hold, and whether a sample of the cells was enough to find out.

    Raises
    ------
    ScmedleyError
        As :func:`~scmedley.data.matrix.find_values`; or all matrices hold scaled or centred values.
    """
    stored = 0 if adata.X is None else n_stored(adata.X)
    if not whole and stored > SAMPLED and adata.n_obs > _SPANS * _SPAN:
        found = find_values(_sample(adata), asked)
        if found.is_as_stored and found.sizes is None and found.values != "other":
            return found, True
    found = find_values(adata, asked)
    if found.values == "other":
        raise ScmedleyError(NEGATIVE.format(where=found.where))
    return found, False


def _sample(adata: AnnData) -> AnnData:
    """Return cells from the whole length of the file, in memory."""
    starts = np.linspace(0, adata.n_obs - _SPAN, _SPANS).astype(int)
    spans = [slice(start, start + _SPAN) for start in starts]

    def some(x: Matrix) -> Matrix:
        parts = [x[span] for span in spans]
        dense = isinstance(parts[0], np.ndarray)
        taken: Matrix = np.concatenate(parts) if dense else vstack(parts, format="csr")
        return taken

    obs = pd.DataFrame(index=pd.concat([adata.obs.iloc[span, :0] for span in spans]).index)
    layers = {name: some(x) for name, x in layers_of(adata).items()}
    sample = AnnData(None if adata.X is None else some(adata.X), obs=obs, var=adata.var, layers=layers)
    if adata.raw is not None:
        sample.raw = AnnData(some(adata.raw.X), obs=obs, var=adata.raw.var)
    if keys.UNS in adata.uns:  # tells denoised values
        sample.uns[keys.UNS] = adata.uns[keys.UNS]
    return sample


def _size(adata: AnnData, found: Checked) -> int:
    if found.where == "raw.X":
        return n_stored(adata.raw.X)
    if found.where == "X":
        return n_stored(adata.X)
    return next(
        n_stored(x) for name, x in layers_of(adata).items() if f"layers[{str(name)!r}]" == found.where
    )


@dataclass
class Moments:
    """Sums of one kind of values (counts or normalised) over the cells: by gene, and as a histogram."""

    edges: np.ndarray
    sum_G: np.ndarray
    squares_G: np.ndarray
    histogram: np.ndarray
    largest: float = 0.0
    smallest: float = np.inf  # above 0

    @classmethod
    def empty(cls, n_genes: int, edges: np.ndarray) -> "Moments":
        """Return sums of no cells."""
        return cls(edges, np.zeros(n_genes), np.zeros(n_genes), np.zeros(len(edges) - 1, dtype=np.int64))

    def add(self, x: csr_matrix) -> None:
        """Add a block; every stored value is above 0."""
        if not x.nnz:
            return
        values = x.data.astype(np.float64)
        self.sum_G += np.bincount(x.indices, weights=values, minlength=x.shape[1])
        self.squares_G += np.bincount(x.indices, weights=values * values, minlength=x.shape[1])
        self.largest = max(self.largest, float(values.max()))
        self.smallest = min(self.smallest, float(values.min()))
        # Bins of equal width are found by division: searching is several times slower.
        n_equal = FINE if self.edges is COUNT_EDGES else len(self.edges) - 1
        width = self.edges[1]
        even = values < n_equal * width
        place = np.minimum((values[even] / width).astype(np.int64), n_equal - 1)
        self.histogram += np.bincount(place, minlength=len(self.histogram))
        if not even.all():
            place = np.searchsorted(self.edges, values[~even], side="right") - 1
            place = np.minimum(place, len(self.histogram) - 1)
            self.histogram += np.bincount(place, minlength=len(self.histogram))


@dataclass
class Sums:
    """What the pass collects."""

    counts: Moments | None
    prepared: Moments
    cells_G: np.ndarray  # cells in which a gene was detected
    per_cell: dict[str, list[np.ndarray]] = field(default_factory=dict)
    sample: list[csr_matrix] = field(default_factory=list)  # values of the sampled cells
    sample_total: list[np.ndarray] = field(default_factory=list)
    sampled: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # which cells these are

    @classmethod
    def empty(cls, n_genes: int, has_counts: bool) -> "Sums":
        """Return sums of no cells."""
        return cls(
            Moments.empty(n_genes, COUNT_EDGES) if has_counts else None,
            Moments.empty(n_genes, LOG_EDGES),
            np.zeros(n_genes, dtype=np.int64),
        )

    def cells(self) -> pd.DataFrame:
        """Return counts, genes and shares of each cell."""
        return pd.DataFrame({name: np.concatenate(parts) for name, parts in self.per_cell.items()})


def add_block(sums: Sums, source: Source, rows: slice, sampled: np.ndarray) -> None:
    """Add the cells of one block; ``sampled`` are the rows of the block whose values are kept.

    Raises
    ------
    ContradictionError
        The finding of a sample does not hold for this block.
    """
    x, total_N, _ = counted(source.adata, source.found, rows)
    if source.was_sampled:
        _check(x, source.found)
    x = without_zeros(x)
    logs = without_zeros(normalised(x, total_N, source.found))
    note: dict[str, np.ndarray] = {"genes": np.diff(x.indptr).astype(np.int64)}
    if sums.counts is not None:
        note["counts"] = total_N
    # Logarithms of counts per 10,000 are undone: the shares are those of the counts.
    amounts = x if sums.counts is not None else logs.expm1()
    of_cell = np.asarray(amounts.sum(axis=1, dtype=np.float64)).ravel()
    below = total_N if sums.counts is not None else of_cell
    cell = np.repeat(np.arange(x.shape[0]), np.diff(amounts.indptr))
    for name, own_G in source.families.items():
        part = np.full(x.shape[0], np.nan)
        if own_G.any():
            part = np.bincount(cell, weights=amounts.data * own_G[amounts.indices], minlength=x.shape[0])
        note[name] = np.divide(part, below, out=np.full(len(below), np.nan), where=below > 0)
    for name, values in note.items():
        sums.per_cell.setdefault(name, []).append(values)
    x, logs = (without_zeros(aligned(m, source.place_G)) for m in (x, logs))
    sums.cells_G += np.bincount(x.indices, minlength=x.shape[1])
    sums.prepared.add(logs)
    if sums.counts is not None:
        sums.counts.add(x)
    if len(sampled):
        sums.sample.append(x[sampled])
        sums.sample_total.append(total_N[sampled])


def _check(x: Matrix, found: Checked) -> None:
    """Raise if the block has values that the kind that the sample showed does not allow."""
    values = x.ravel() if isinstance(x, np.ndarray) else x.data
    if not len(values):
        return
    if not (values.min() >= 0 and values.max() < np.inf):  # NaN fails both
        raise ContradictionError
    if found.values == "counts" and found.rank == 0 and not (values == np.rint(values)).all():
        raise ContradictionError
    if found.values != "counts" and values.max() > LARGEST[found.base or "log1p"]:
        raise ContradictionError
