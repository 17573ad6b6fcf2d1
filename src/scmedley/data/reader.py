"""From cells to what networks read: genes aligned by name, values checked, scaled once and shared.

A :class:`Reader` knows the genes and the scale of a model. It makes a :class:`Reading` of any cells, and fit, latents,
counterfactuals, shifts and scores take that: nothing else turns an AnnData into numbers for a network.

Shapes: N cells of the call at hand, G genes of the model.
"""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy.sparse import csr_matrix, issparse, vstack

from scmedley import keys
from scmedley.data.arrays import Matrix, tidy
from scmedley.data.differences import difference_of_prepared, differences, sampled, share_of, trained_on
from scmedley.data.evidence import Checked, kind_words
from scmedley.data.features import genes_alone
from scmedley.data.gene_names import GeneNames, check_unique, match, why_missing
from scmedley.data.matrix import counted, find_values, normalised
from scmedley.data.resident import Resident, Rows
from scmedley.data.scale import MinMax
from scmedley.data.scan import examine, n_stored
from scmedley.errors import ScmedleyError, ScmedleyWarning, warn
from scmedley.keys import ValueKind

NEGATIVE = (
    "{where} has negative values: scaled or centred data cannot be used. Give raw counts (in X, layers['counts'] or "
    "raw) or log1p-normalised values."
)
MAX_MISSING = 0.2  # share of a model's genes that new cells may lack
BLOCK = 20_000_000  # stored values of a matrix on disk that are read in one go


@dataclass(frozen=True)
class Reading:
    """Cells as a model reads them.

    Attributes
    ----------
    reader
        What read them.
    log1p_NG
        log1p CP10k, float32, CSR or dense: the unit of all results. It may share memory with the AnnData, so do not
        write to it.
    x_NG
        The same, scaled: the input of networks.
    obs
        Table of the cells; ``obs.index`` has their names.
    label_key
        Column by which ``prepare`` was told to stratify, if any.
    counts_NG, total_N
        Counts, and each cell's total over all genes that were counted; ``None`` unless the reader's kind is "counts".
    """

    reader: "Reader"
    log1p_NG: Matrix
    x_NG: Matrix
    obs: pd.DataFrame
    label_key: str | None = None
    counts_NG: Matrix | None = None
    total_N: np.ndarray | None = None
    _rows: dict[str, Rows] = field(default_factory=dict, repr=False, compare=False)

    @property
    def n_cells(self) -> int:
        """Return N."""
        return len(self.obs)

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of the scaled input, by which a checkpoint knows its data."""
        found = hashlib.sha256()
        x: Any = self.x_NG
        for array in (x,) if isinstance(x, np.ndarray) else (x.data, x.indices, x.indptr):
            found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()

    def take(self, rows: np.ndarray) -> "Reading":
        """Return some of the cells."""
        taken: dict[str, Any] = {
            name: values[rows]
            for name in ("log1p_NG", "x_NG", "counts_NG", "total_N")
            if (values := getattr(self, name)) is not None
        }
        return replace(self, obs=self.obs.iloc[rows], _rows={}, **taken)

    def resident(
        self, b_N: np.ndarray, device: torch.device | str = "cpu", y_N: np.ndarray | None = None
    ) -> Resident:
        """Return the cells on a device, with codes of batches and labels; their values are put there once."""
        on = torch.device(device)
        if str(on) not in self._rows:
            self._rows[str(on)] = Rows(self.x_NG, on, self.counts_NG, self.total_N)
        return Resident(self._rows[str(on)], b_N, on, y_N)


@dataclass(frozen=True)
class Reader:
    """What a model needs to read any cells.

    Attributes
    ----------
    genes
        The model's G genes, in its order.
    scale
        Learnt on the training cells; :meth:`MinMax.none` leaves log1p CP10k as it is.
    kind
        "log1p"; or "counts", for a likelihood of counts: readings then hold the counts as well.
    trained_on
        What the values of the training cells were, to say where those of other cells differ; ``None`` in old models.
    """

    genes: GeneNames
    scale: MinMax
    kind: Literal["log1p", "counts"] = "log1p"
    trained_on: dict[str, Any] | None = None

    @classmethod
    def learn(cls, adata: AnnData, kind: Literal["log1p", "counts"] = "log1p") -> Reading:
        """Learn genes and scale from prepared cells, and return these cells as the new reader reads them.

        Parameters
        ----------
        adata
            Prepared cells (:func:`scmedley.pp.prepare`) with their split: the scale is that of the training cells.
        kind
            As the attribute.

        Raises
        ------
        ScmedleyError
            No gene is flagged highly variable; counts are asked for and there are none.
        """
        genes = GeneNames.of(adata.var).take(np.flatnonzero(adata.var[keys.HVG].to_numpy(dtype=bool)))
        if not genes.names:
            raise ScmedleyError(f"No gene is flagged in var[{keys.HVG!r}]. Run sm.pp.prepare again.")
        unscaled = _joined(list(cls(genes, MinMax.none(len(genes.names)), kind).blocks(adata)))
        scale = MinMax.fit(unscaled.log1p_NG[np.flatnonzero(adata.obs[keys.SPLIT] == "train")])
        reader = cls(genes, scale, kind, trained_on(adata, unscaled.log1p_NG))
        return replace(unscaled, reader=reader, x_NG=scale.transform(unscaled.log1p_NG))

    def read(self, cells: AnnData | Reading, values: ValueKind = "auto") -> Reading:
        """Read cells whole.

        Parameters
        ----------
        cells
            Any cells with (most of) the genes, prepared or with counts, in memory or backed; or a reading, which is
            returned if it has the same genes and scale.
        values
            What the values are, where the evidence should not decide, as in :func:`scmedley.pp.prepare`.

        Raises
        ------
        ScmedleyError
            As :meth:`blocks`; a reading of other genes or another scale.
        """
        if isinstance(cells, Reading):
            if not self.reads_like(cells.reader):
                raise ScmedleyError(
                    "These cells were read for a model with other genes or another scale. Pass the AnnData instead."
                )
            return cells
        return _joined(list(self.blocks(cells, values)))

    def blocks(self, adata: AnnData, values: ValueKind = "auto") -> Iterator[Reading]:
        """Read cells block by block: one block in memory, several of a backed file.

        What is to be said of all cells together (genes that are missing, another kind of values than the training
        cells had, empty cells) is warned of after the last block.

        Raises
        ------
        ScmedleyError
            There are no cells; more than a fifth of the genes are missing; gene names are not unique; values that are
            not finite, or neither counts nor log-normalised; counts are asked for and there are none.
        """
        if adata.n_obs == 0:
            raise ScmedleyError("There are no cells here. Look at the step that chose them.")
        expected = None if self.trained_on is None else self.trained_on.get("kind")
        source = _Source.of(adata, self.genes, values, expected)
        self._check_missing(adata, source.place_G)
        if self.kind == "counts" and not source.has_counts:
            raise ScmedleyError(
                "This model needs counts, and these cells have none: put raw counts into layers['counts'], X or raw."
            )
        known = adata.uns.get(keys.UNS)
        label_key = (known.get("label_key") if isinstance(known, dict) else None) or None
        n_empty, looked_at = 0, []
        for rows in source.rows():
            log1p_NG, counts_NG, total_N = source.read(rows, counts=self.kind == "counts")
            n_empty += log1p_NG.shape[0] - len(np.unique(log1p_NG.nonzero()[0]))
            looked_at.append(log1p_NG[sampled(adata.n_obs, rows)])
            obs = adata.obs if rows == slice(0, adata.n_obs) else adata.obs.iloc[rows]
            yield Reading(self, log1p_NG, self.scale.transform(log1p_NG), obs, label_key, counts_NG, total_N)
        self._say(adata, source, share_of(looked_at), n_empty)

    def reads_like(self, other: "Reader") -> bool:
        """Return whether both read the same numbers."""
        return self is other or (
            (self.genes.names, self.kind) == (other.genes.names, other.kind)
            and self.scale.equals(other.scale)
        )

    def _check_missing(self, adata: AnnData, place_G: np.ndarray) -> None:
        missing = np.flatnonzero(place_G < 0)
        if len(missing) <= MAX_MISSING * len(place_G):
            return
        absent = [self.genes.names[i] for i in missing[:3]]
        hint = why_missing(self.genes, GeneNames.of(adata.var), adata.obs_names)
        raise ScmedleyError(
            f"{len(missing)} of the model's {len(place_G)} genes are missing (for example {', '.join(absent)}); at "
            f"most {MAX_MISSING:.0%} may be. Genes here are called like {', '.join(map(str, adata.var_names[:2]))}. "
            f"{hint}"
        )

    def _say(self, adata: AnnData, source: "_Source", share: float, n_empty: int) -> None:
        """Warn of what these cells lack, and of where they differ from the training cells."""
        said = []
        if n_missing := int((source.place_G < 0).sum()):
            said.append(
                f"{n_missing} of the model's {len(source.place_G)} genes are missing here and taken as 0."
            )
        if source.found is None:
            said += difference_of_prepared(self.trained_on, adata)
        else:
            said += differences(self.trained_on, source.found, share, source.n_counted)
        if n_empty:
            said.append(f"{n_empty} cells have no value above 0 in any of the model's genes.")
        for sentence in said:
            warnings.warn(sentence, ScmedleyWarning, stacklevel=4)


Cells: TypeAlias = AnnData | Reading  # any cells; or cells that were read, which saves reading them again


@dataclass(frozen=True)
class _Source:
    """Where the values of some cells lie, and how they become log1p CP10k of a model's genes."""

    adata: AnnData
    found: Checked | None  # None: layers["log1p_cp10k"], where nothing had to be looked for
    place_G: np.ndarray  # column of each gene, -1 where it is missing
    n_counted: int  # genes that totals are made of

    @classmethod
    def of(
        cls, adata: AnnData, genes: Sequence[str] | GeneNames, values: ValueKind, expected: str | None
    ) -> "_Source":
        """Find the values. Where the evidence leaves doubts, they are taken to be of the ``expected`` kind."""
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
        """Return whether there are counts."""
        return keys.COUNTS in self.adata.layers if self.found is None else self.found.values == "counts"

    @property
    def _stored(self) -> Any:
        return self.adata.layers[keys.LOGNORM] if self.found is None else self.adata.X

    @property
    def in_memory(self) -> bool:
        """Return whether the values are neither in a file nor still to be computed."""
        return not self.adata.isbacked and not hasattr(self._stored, "compute")

    def rows(self) -> Iterator[slice]:
        """Yield the rows of each block: all at once of what is in memory."""
        n_cells, stored = self.adata.n_obs, self._stored
        step = n_cells
        if not self.in_memory:
            of_all = self.adata.n_vars * n_cells if stored is None else n_stored(stored)
            step = max(1, int(BLOCK * n_cells / max(of_all, 1)))
        for start in range(0, n_cells, max(step, 1)):
            yield slice(start, min(start + step, n_cells))

    def read(self, rows: slice, counts: bool = False) -> tuple[Matrix, Matrix | None, np.ndarray | None]:
        """Return log1p CP10k of some cells, and, if asked for, their counts and totals."""
        all_rows = None if self.in_memory else rows
        if self.found is not None:
            x_NG, total_N, _ = counted(self.adata, self.found, all_rows)
            x_NG = _aligned(x_NG, self.place_G)
            log1p_NG = normalised(x_NG, total_N, self.found)
            return (log1p_NG, x_NG, total_N) if counts else (log1p_NG, None, None)
        layer = self.adata.layers[keys.LOGNORM]
        log1p_NG = _aligned(tidy(layer if all_rows is None else layer[all_rows]), self.place_G)
        if not counts:
            return log1p_NG, None, None
        stored = self.adata.layers[keys.COUNTS]
        x_NG = tidy(stored if all_rows is None else stored[all_rows])
        return log1p_NG, _aligned(x_NG, self.place_G), np.asarray(x_NG.sum(axis=1, dtype=np.float64)).ravel()


def log_normalised(
    adata: AnnData, genes: Sequence[str] | GeneNames, *, values: ValueKind = "auto"
) -> tuple[csr_matrix | np.ndarray, int]:
    """Return the values a fitted model reads, not scaled, aligned by gene name.

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
    source = _Source.of(adata, genes, values, None)
    x_NG = _stacked([source.read(rows)[0] for rows in source.rows()])
    return x_NG, int((source.place_G < 0).sum())


def _joined(parts: Sequence[Reading]) -> Reading:
    """Return blocks of cells as one reading."""
    first = parts[0]
    if len(parts) == 1:
        return first
    joined: dict[str, Any] = {
        name: _stacked([getattr(part, name) for part in parts])
        for name in ("log1p_NG", "x_NG", "counts_NG")
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
    """Take doubtful values for what is expected, where they can be that."""
    try:
        other = find_values(adata, expected)
    except ScmedleyError:
        return found
    words = f"{other.where} is taken to hold {kind_words(expected)}, as the training cells do; the values leave doubts."
    return replace(other, warnings=[words])


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
