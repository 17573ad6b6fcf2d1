"""From cells to the input of networks: align genes by name, check values, normalise once.

A :class:`Reader` holds the genes of a model. It turns any cells into a :class:`Reading`, the only input of fit,
latents, counterfactuals, shifts and scores.

Shapes: N cells of the call at hand, G genes of the model.
"""

import copy
import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias, get_args

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy.sparse import csr_matrix, issparse, vstack

from scmedley import keys
from scmedley.data.arrays import Matrix, aligned, tidy, totals_of_cp10k
from scmedley.data.differences import difference_of_prepared, differences, sampled, share_of, trained_on
from scmedley.data.evidence import Checked, kind_words
from scmedley.data.features import genes_alone
from scmedley.data.gene_names import GeneNames, check_unique, match, why_missing
from scmedley.data.matrix import counted, find_values, normalised
from scmedley.data.order import buffer_of
from scmedley.data.resident import Resident, Rows
from scmedley.data.scale import Scale
from scmedley.data.scan import examine, n_stored
from scmedley.data.store import Store, StoredMatrix, Values
from scmedley.data.stream import StoredRows, Stream, room
from scmedley.errors import ScmedleyError, ScmedleyWarning, warn
from scmedley.keys import Reads, ValueKind

NEGATIVE = (
    "{where} has negative values: scaled or centred data cannot be used. Give raw counts (in X, layers['counts'] or "
    "raw) or log1p-normalised values."
)
MAX_MISSING = 0.2  # largest fraction of a model's genes that new cells may lack
BYTES = 8  # of a value in memory: CSR
LARGEST = 2 * 1024**3  # bytes that a function takes from a store unasked
BLOCK = 20_000_000  # stored values per block of a matrix on disk


@dataclass(frozen=True)
class Reading:
    """Cells as a model reads them.

    Attributes
    ----------
    reader
        The reader that read them.
    log1p_NG
        log1p CP10k, float32, CSR, dense or in a store on disk: the unit of all results. It may share memory: do not
        write to it.
    obs
        Table of the cells; ``obs.index`` has their names.
    label_key
        Column by which ``prepare`` stratified the split, if any.
    counts_NG, total_N
        Counts, and each cell's total over all counted genes; ``None`` unless the reader's kind is "counts".
    missing_G
        Whether each gene is missing in these cells, and 0 in ``log1p_NG``; ``None`` if all are there.
    memory_gb
        Memory (of the device) that the cells of a store may take, in GB; ``None``: a quarter of what is free. A fit
        has the same bits either way.
    """

    reader: "Reader"
    log1p_NG: Values
    obs: pd.DataFrame
    label_key: str | None = None
    counts_NG: Values | None = None
    total_N: np.ndarray | None = None
    missing_G: np.ndarray | None = None
    memory_gb: float | None = None
    _rows: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def n_cells(self) -> int:
        """Return N."""
        return len(self.obs)

    @property
    def store(self) -> Store | None:
        """Return the store that holds the values; ``None`` if they are in memory."""
        return self.log1p_NG.store if isinstance(self.log1p_NG, StoredMatrix) else None

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of the values (and of the counts if read), which a checkpoint compares."""
        if isinstance(self.log1p_NG, StoredMatrix):
            return self.log1p_NG.store.digest
        found = hashlib.sha256()
        parts: list[Any] = [
            part for part in (self.log1p_NG, self.counts_NG, self.total_N) if part is not None
        ]
        for x in parts:
            for array in (x,) if isinstance(x, np.ndarray) else (x.data, x.indices, x.indptr):
                found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()

    def check_same_cells(self, adata: AnnData) -> None:
        """Raise if ``adata`` has other cells, or in another order."""
        if not self.obs.index.equals(adata.obs_names):
            raise ScmedleyError(
                "The reading is of other cells than the AnnData, or in another order. Read it again."
            )

    def take(self, rows: np.ndarray) -> "Reading":
        """Return some of the cells."""
        taken: dict[str, Any] = {
            name: values[rows]
            for name in ("log1p_NG", "counts_NG", "total_N")
            if (values := getattr(self, name)) is not None
        }
        return replace(self, obs=self.obs.iloc[rows], _rows={}, **taken)

    def in_memory(self, verb: str) -> "Reading":
        """Return the cells in memory; raise if the store holds more than ``verb`` should read at once."""
        if self.store is None:
            return self
        size = BYTES * self.store.nnz
        if size > LARGEST:
            raise ScmedleyError(
                f"{verb}() reads all cells at once: {self.n_cells:,} cells need {size / 1e9:.3g} GB. Pass some "
                "of them: reading.take(rows)."
            )
        return self.take(np.arange(self.n_cells))

    def resident(
        self,
        b_N: np.ndarray,
        scale: Scale,
        device: torch.device | str = "cpu",
        y_N: np.ndarray | None = None,
        *,
        counts: bool = True,
    ) -> Resident:
        """Return the cells on a device, with codes of batches and labels; minibatches are scaled.

        Values are copied to the device once, for all models. Those of a store stay on the disk if they would take
        more than ``memory_gb``. ``counts``: whether minibatches have counts, if the cells do.
        """
        on, store, key = torch.device(device), self.store, str(torch.device(device))
        if store is None:
            if key not in self._rows:
                self._rows[key] = Rows(self.log1p_NG, on, self.counts_NG, self.total_N)
            return Resident(self._rows[key], b_N, on, y_N, scale, self.missing_G)
        stored = StoredRows(store, on, self.total_N)
        if key not in self._rows:
            self._rows[key] = stored.resident() if stored.n_bytes <= room(on, self.memory_gb) else stored
        rows = copy.copy(self._rows[key])
        rows.counts = counts and self.counts_NG is not None
        left = room(on, self.memory_gb) - (0 if self.memory_gb is None else stored.n_bytes)
        buffer = buffer_of(store.nnz / max(self.n_cells, 1))
        return Stream(rows, left, store.folder, buffer, b_N, on, y_N, scale, self.missing_G)


Cells: TypeAlias = AnnData | Reading  # cells, or a reading of them, which saves time


@dataclass(frozen=True)
class Reader:
    """What a model needs to read any cells.

    Attributes
    ----------
    genes
        The model's G genes, in its order.
    kind
        "log1p"; or "counts" for a likelihood of counts: readings then hold counts too.
    trained_on
        Kind of values of the training cells, to warn if other cells differ; ``None`` in old models.
    """

    genes: GeneNames
    kind: Reads = "log1p"
    trained_on: dict[str, Any] | None = None

    @classmethod
    def learn(cls, adata: AnnData, kind: Reads = "log1p") -> Reading:
        """Learn the genes from prepared cells, and return these cells as a reading.

        Parameters
        ----------
        adata
            Prepared cells (:func:`scmedley.pp.prepare`).
        kind
            As in the attributes.

        Raises
        ------
        ScmedleyError
            No gene is flagged highly variable; or ``kind`` is "counts" and there are no counts.
        """
        genes = GeneNames.of(adata.var).take(np.flatnonzero(adata.var[keys.HVG].to_numpy(dtype=bool)))
        if not genes.names:
            raise ScmedleyError(f"No gene is flagged in var[{keys.HVG!r}]. Run sm.pp.prepare again.")
        reading = _joined(list(cls(genes, kind).blocks(adata)))
        return replace(reading, reader=cls(genes, kind, trained_on(adata, reading.log1p_NG)))

    def read(self, cells: AnnData | Reading, values: ValueKind = "auto") -> Reading:
        """Read all cells at once.

        Parameters
        ----------
        cells
            Cells with (most of) the genes, prepared or with counts, in memory or backed; or a reading with
            the same genes, which is returned.
        values
            Kind of values, as in :func:`scmedley.pp.prepare`; by default the values decide.

        Raises
        ------
        ScmedleyError
            As :meth:`blocks`; or a reading with other genes, or without counts that are needed.
        """
        if isinstance(cells, Reading):
            if values != "auto" or not self.reads_like(cells.reader):
                why = "was already made" if values != "auto" else "has other genes or no counts"
                raise ScmedleyError(f"This reading {why}. Pass the AnnData.")
            if cells.n_cells == 0:
                raise ScmedleyError("There are no cells. Check the step that selected them.")
            return cells
        return _joined(list(self.blocks(cells, values)))

    def blocks(self, adata: Cells, values: ValueKind = "auto") -> Iterator[Reading]:
        """Yield cells block by block: one block in memory, several for a backed file; a reading as it is.

        Warnings about all cells (missing genes, another kind of values, empty cells) follow the last block.

        Raises
        ------
        ScmedleyError
            There are no cells; more than a fifth of the genes are missing; gene names are not unique; values
            are not finite, or neither counts nor log-normalised; the model needs counts and there are none.
        """
        if isinstance(adata, Reading):
            yield self.read(adata)
            return
        if adata.n_obs == 0:
            raise ScmedleyError("There are no cells. Check the step that selected them.")
        expected = None if self.trained_on is None else self.trained_on.get("kind")
        source = _Source.of(adata, self.genes, values, expected)
        self._check_missing(adata, source.place_G)
        if self.kind == "counts" and not source.has_counts:
            raise ScmedleyError(
                "This model needs counts, and these cells have none. Put raw counts into layers['counts'], X or raw."
            )
        known = adata.uns.get(keys.UNS)
        label_key = (known.get("label_key") if isinstance(known, dict) else None) or None
        n_empty, sample = 0, []
        missing_G = source.place_G < 0 if (source.place_G < 0).any() else None
        for rows in source.rows():
            log1p_NG, counts_NG, total_N = source.read(rows, counts=self.kind == "counts")
            n_empty += log1p_NG.shape[0] - len(np.unique(log1p_NG.nonzero()[0]))
            sample.append(log1p_NG[sampled(adata.n_obs, rows)])
            obs = adata.obs if rows == slice(0, adata.n_obs) else adata.obs.iloc[rows]
            yield Reading(self, log1p_NG, obs, label_key, counts_NG, total_N, missing_G)
        self._warn(adata, source, share_of(sample), n_empty)

    def reads_like(self, other: "Reader") -> bool:
        """Return whether a reading of the other has all that this one reads from the same cells."""
        return self.genes.names == other.genes.names and other.kind in (self.kind, "counts")

    def _check_missing(self, adata: AnnData, place_G: np.ndarray) -> None:
        missing = np.flatnonzero(place_G < 0)
        if len(missing) <= MAX_MISSING * len(place_G):
            return
        absent = [self.genes.names[i] for i in missing[:3]]
        hint = why_missing(self.genes, GeneNames.of(adata.var), adata.obs_names)
        raise ScmedleyError(
            f"{len(missing)} of the model's {len(place_G)} genes are missing (such as {', '.join(absent)}); at most "
            f"{MAX_MISSING:.0%} may be missing. Genes of these cells have names like "
            f"{', '.join(map(str, adata.var_names[:2]))}. {hint}"
        )

    def _warn(self, adata: AnnData, source: "_Source", share: float, n_empty: int) -> None:
        """Warn if genes or values are missing, or if cells differ from the training cells."""
        notes = []
        n_genes, n_missing = len(source.place_G), int((source.place_G < 0).sum())
        if n_missing:
            notes.append(f"{n_missing} of the model's {n_genes} genes are missing here and left out.")
        if source.found is None:
            notes += difference_of_prepared(self.trained_on, adata)
        else:
            notes += differences(self.trained_on, source.found, share, source.n_counted)
        if n_empty:
            notes.append(f"{n_empty} cells have no value above 0 in any of the model's genes.")
        for note in notes:
            warnings.warn(note, ScmedleyWarning, stacklevel=4)


@dataclass(frozen=True)
class _Source:
    """The values of some cells in an AnnData, and their conversion to log1p CP10k of a model's genes."""

    adata: AnnData
    found: Checked | None  # None: values are in layers["log1p_cp10k"]
    place_G: np.ndarray  # column of each gene, -1 if it is missing
    n_counted: int  # number of genes in the totals

    @classmethod
    def of(
        cls, adata: AnnData, genes: Sequence[str] | GeneNames, values: ValueKind, expected: str | None
    ) -> "_Source":
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
        return not self.adata.isbacked and not hasattr(self._stored, "compute")

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
    source = _Source.of(adata, genes, values, None)
    x_NG = _stacked([source.read(rows)[0] for rows in source.rows()])
    return x_NG, int((source.place_G < 0).sum())


def _joined(parts: Sequence[Reading]) -> Reading:
    """Return blocks of cells as one reading."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    joined: dict[str, Any] = {
        name: _stacked([getattr(part, name) for part in parts])
        for name in ("log1p_NG", "counts_NG")
        if getattr(first, name) is not None
    }
    if first.total_N is not None:
        joined["total_N"] = np.concatenate([part.total_N for part in parts if part.total_N is not None])
    return replace(first, obs=pd.concat([part.obs for part in parts]), _rows={}, **joined)


def _stacked(blocks: list[Matrix]) -> Matrix:
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
