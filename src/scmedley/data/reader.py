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
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scmedley import keys
from scmedley.data.conversion import Conversion, stacked
from scmedley.data.differences import difference_of_prepared, differences, sampled, share_of, trained_on
from scmedley.data.gene_names import GeneNames, why_missing
from scmedley.data.memory import room
from scmedley.data.order import buffer_of
from scmedley.data.resident import MemoryRows, Resident
from scmedley.data.scale import Scale
from scmedley.data.store import Store, StoredMatrix, Values
from scmedley.data.stream import StoredRows, Stream
from scmedley.errors import ScmedleyError, ScmedleyWarning
from scmedley.keys import Reads, ValueKind

MAX_MISSING = 0.2  # largest fraction of a model's genes that new cells may lack
BYTES = 8  # of a value in memory: CSR
LARGEST = 2 * 1024**3  # bytes that a function takes from a store unasked


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
                self._rows[key] = MemoryRows(self.log1p_NG, on, self.counts_NG, self.total_N)
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
        source = Conversion.of(adata, self.genes, values, expected)
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

    def _warn(self, adata: AnnData, source: "Conversion", share: float, n_empty: int) -> None:
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


def _joined(parts: Sequence[Reading]) -> Reading:
    """Return blocks of cells as one reading."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    joined: dict[str, Any] = {
        name: stacked([getattr(part, name) for part in parts])
        for name in ("log1p_NG", "counts_NG")
        if getattr(first, name) is not None
    }
    if first.total_N is not None:
        joined["total_N"] = np.concatenate([part.total_N for part in parts if part.total_N is not None])
    return replace(first, obs=pd.concat([part.obs for part in parts]), _rows={}, **joined)
