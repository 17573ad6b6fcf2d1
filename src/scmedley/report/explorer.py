"""The explorer's payload: sample the cells of the page, pack them with the decoder, keep to the size limit.

Nothing here reads a file. ``web/src/payload.ts`` reads what ``pack`` writes.

Shapes: N cells, G genes, P latent dimensions, B batches, K labels.
"""

import base64
import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from scmedley.data.sampling import sample
from scmedley.interpret.genomap import Layout
from scmedley.interpret.trust import UNCHECKED, UNUSABLE, judged
from scmedley.models.export import Decoder
from scmedley.pl._palette import DISTINCT, MISSING

Array = NDArray[Any]

PAGE = 30_000_000  # bytes of the whole page, at most
ROOM = 150_000  # of these for the script and the text around the payload
MAX_CELLS = 200_000
ENOUGH = 5_000  # if fewer cells fit, observed means, measured genes and what-if are left out in turn
MAX_LEVELS, MAX_COLUMNS = 1_000, 40
NO_MEANS = "The observed means do not fit into the page: predictions are shown without an observed change."
NONE = 65_535  # code of a missing value in arrays of 16 bits
STEPS = 65_534


@dataclass(frozen=True)
class Cells:
    """The cells that the page may hold, one row per cell in each field.

    ``maps`` holds title, note and N × 2 coordinates (NaN: not drawn). ``z_NP`` is the decoder's input,
    ``x_NG`` log1p CP10k of its genes. ``batch_N`` and ``label_N`` are codes, -1 for none.
    """

    names: Sequence[str]
    batch_N: Array
    label_N: Array
    maps: Sequence[tuple[str, str, Array]]
    columns: pd.DataFrame
    z_NP: Array | None = None
    x_NG: sparse.csr_matrix | None = None

    def take(self, rows: Array) -> "Cells":
        """Return some of the cells."""
        return Cells(
            [self.names[row] for row in rows],
            self.batch_N[rows],
            self.label_N[rows],
            [(title, note, xy[rows]) for title, note, xy in self.maps],
            self.columns.iloc[rows],
            None if self.z_NP is None else self.z_NP[rows],
            None if self.x_NG is None else self.x_NG[rows],
        )


@dataclass(frozen=True)
class Explored:
    """All that the explorer can show of a run. ``missing`` holds sentences on what is missing and why.

    ``counts_KB`` counts the cells of the whole run per label and batch. ``means`` holds the mean of each gene
    in each observed pair of label and batch (``pairs``), over held-out cells only if ``held_out`` is true.
    ``trust`` holds label, batch and the two words of the check for each checked pair, ``verdict`` that of the
    whole check.
    """

    cells: Cells
    total: int
    batches: Sequence[str]
    labels: Sequence[str]
    batch_key: str | None
    label_key: str | None
    counts_KB: Array
    decoder: Decoder | None = None
    layout: Layout | None = None  # pixels of the genes
    pairs: Array | None = None
    means: Array | None = None
    held_out: Array | None = None
    trust: Sequence[tuple[int, int, str, str]] = ()
    missing: Sequence[str] = ()
    verdict: str | None = None
    genes: Sequence[str] = ()  # names of the columns of ``cells.x_NG`` if there is no decoder


@dataclass(frozen=True)
class Payload:
    """The packed text and what the template says about it."""

    text: str
    shown: int
    total: int
    missing: tuple[str, ...] = field(default=())


def on_a_map(n_cells: int, maps: Sequence[Array]) -> Array:
    """Return which cells have coordinates on one of the maps."""
    drawn_N = np.zeros(n_cells, bool)
    for xy in maps:
        drawn_N |= np.isfinite(xy).all(axis=1)
    return drawn_N


def fit(run: Explored, budget: int, seed: int = 0) -> Payload | None:
    """Pack as much of a run as fits.

    If not all cells fit, a stratified sample is packed. If fewer than 5,000 would fit, first the observed
    means are left out, then the measured genes, then the decoder; ``missing`` of the payload says so.

    Parameters
    ----------
    run
        The run.
    budget
        Largest size of the packed text in bytes.

    Returns
    -------
    Payload or None
        ``None`` if nothing fits.
    """
    strata_N = run.cells.batch_N.astype(np.int64) * (len(run.labels) + 1) + run.cells.label_N
    drawn_N = on_a_map(len(strata_N), [xy for _, _, xy in run.cells.maps])
    n_strata = len(np.unique(strata_N))
    for reduced in _reduced(run):
        fixed: int | None = None  # bytes without a cell; computed only if needed, as packing is slow
        bare = reduced.decoder is None and reduced.cells.x_NG is None
        enough = n_strata if bare else min(len(strata_N), max(ENOUGH, n_strata))
        n = min(len(strata_N), MAX_CELLS)
        while n >= enough:
            rows = sample(strata_N, n, drawn_N, seed)
            text = pack(replace(reduced, cells=reduced.cells.take(rows)))
            if len(text) <= budget:
                return Payload(text, len(rows), run.total, tuple(reduced.missing))
            if fixed is None:
                fixed = len(pack(replace(reduced, cells=reduced.cells.take(np.arange(0)))))
            if fixed >= budget:
                break
            n = min(n - 1, int(0.97 * len(rows) * (budget - fixed) / (len(text) - fixed)))
    return None


def _reduced(run: Explored) -> Iterator[Explored]:
    """Yield the whole run, then the run with fewer and fewer parts."""
    yield run
    if run.means is not None:
        run = replace(run, pairs=None, means=None, missing=[*run.missing, NO_MEANS])
        yield run
    if run.cells.x_NG is not None:
        words = "The measured genes do not fit into the page: cells cannot be coloured by gene."
        run = replace(run, cells=replace(run.cells, x_NG=None), missing=[*run.missing, words])
        yield run
    if run.decoder is not None:
        words = (
            "The decoder does not fit into the page, so there is no what-if here. "
            "The command scmedley project gives the same numbers."
        )
        cells = replace(run.cells, z_NP=None)
        yield replace(run, decoder=None, cells=cells, missing=[*run.missing, words])


def pack(run: Explored) -> str:
    """Return base64 of gzip of [header length, header as JSON, arrays]; the same run gives the same bytes."""
    cells = run.cells
    arrays: dict[str, Array] = {
        "batch": _codes(cells.batch_N),
        "label": _codes(cells.label_N),
        "counts": run.counts_KB.astype("<u4"),
    }
    for i, (_, _, xy) in enumerate(cells.maps):
        arrays[f"map{i}"] = _places(xy)
    columns: list[dict[str, Any]] = []
    for i, name in enumerate(cells.columns):
        about, arrays[f"column{i}"] = _column(cells.columns[name])
        columns.append({"name": str(name), **about})
    header: dict[str, Any] = {
        "version": 1,
        "total": run.total,
        "names": [str(name) for name in cells.names],
        "batches": list(run.batches),
        "labels": list(run.labels),
        "batch_key": run.batch_key,
        "label_key": run.label_key,
        "maps": [{"title": title, "note": note} for title, note, _ in cells.maps],
        "columns": columns,
        "palette": DISTINCT,
        "no_value": MISSING,
        "trust": [list(pair) for pair in run.trust],
        "words": {f"{word}|{against}": judged(word, against) for _, _, word, against in run.trust},
        "unchecked": f"{UNCHECKED}.",
        "unusable": UNUSABLE if run.verdict == "none" else None,
        "missing": list(run.missing),
        "whatif": None,
        "genes": list(run.genes if run.decoder is None else run.decoder.shown),
    }
    arrays |= _genes(cells.x_NG)
    if run.decoder is not None:
        if cells.z_NP is not None:
            header["whatif"] = {
                "kind": run.decoder.kind,
                "pre_selu": [block.pre_selu for block in run.decoder.blocks],
                "shape": None if run.layout is None else run.layout.shape,
                "factor": run.decoder.factor,
            }
            arrays |= _decoder(run.decoder, run.layout) | {"latent": cells.z_NP.astype("<f2")}
        if run.pairs is not None and run.means is not None:
            arrays |= {"pairs": run.pairs.astype("<u2"), "means": run.means.astype("<f2")}
            held_out = np.zeros(len(run.pairs)) if run.held_out is None else run.held_out
            arrays["held_out"] = held_out.astype("u1")
    return _join(header, arrays)


def _join(header: dict[str, Any], arrays: dict[str, Array]) -> str:
    """Join a header and arrays; each array starts at a multiple of 4 bytes."""
    table, parts, offset = {}, [], 0
    for name, array in arrays.items():
        content = np.ascontiguousarray(array).tobytes()
        table[name] = [array.dtype.str[1:], list(array.shape), offset]
        parts.append(content + bytes(-len(content) % 4))
        offset += len(parts[-1])
    text = json.dumps(header | {"arrays": table}, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % 4)
    whole = len(text).to_bytes(4, "little") + text + b"".join(parts)
    return base64.b64encode(gzip.compress(whole, 6, mtime=0)).decode()


def _codes(codes: Array) -> Array:
    return np.where(codes < 0, NONE, codes).astype("<u2")


def _places(xy: Array) -> Array:
    """Return coordinates in 16 bits, both axes on the same scale; ``NONE``: not drawn."""
    drawn = np.asarray(np.isfinite(xy).all(axis=1))
    low, high = (xy[drawn].min(0), xy[drawn].max(0)) if drawn.any() else (np.zeros(2), np.ones(2))
    side = float((high - low).max()) or 1.0
    centred = (np.where(drawn[:, None], xy, low) - (low + high) / 2) / side + 0.5
    return np.where(drawn[:, None], np.rint(centred * STEPS), NONE).astype("<u2")


def colourable(columns: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Return the columns to colour by, and the others: too many levels, or after ``MAX_COLUMNS``."""
    names = list(map(str, columns.columns))
    few = [k for k in names if _is_number(columns[k]) or columns[k].nunique() <= MAX_LEVELS]
    kept = few[:MAX_COLUMNS]
    return kept, [name for name in names if name not in kept]


def _is_number(values: "pd.Series[Any]") -> bool:
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def _column(values: "pd.Series[Any]") -> tuple[dict[str, Any], Array]:
    """Return a column's header and its values in 16 bits."""
    if _is_number(values):
        numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
        seen: Array = np.isfinite(numbers)
        low, high = (float(numbers[seen].min()), float(numbers[seen].max())) if seen.any() else (0.0, 0.0)
        share = (np.where(seen, numbers, low) - low) / ((high - low) or 1.0)
        return {"low": low, "high": high}, np.where(seen, np.rint(share * STEPS), NONE).astype("<u2")
    codes, levels = pd.factorize(values.astype("category"), sort=True)
    return {"levels": [str(level) for level in levels]}, _codes(codes)


def _genes(x_NG: sparse.csr_matrix | None) -> dict[str, Array]:
    """Return the cells that express each gene, and their values in 255 steps up to the gene's largest.

    A cell is coded as its distance from the cell before, in bytes; a byte of 255 adds 255 and the code goes
    on.
    """
    if x_NG is None:
        return {}
    x = sparse.csc_matrix(x_NG)
    x.sort_indices()
    x.eliminate_zeros()
    n_G = np.diff(x.indptr)
    most_G = np.zeros(x.shape[1], np.float32)
    most_G[n_G > 0] = np.maximum.reduceat(x.data, x.indptr[:-1][n_G > 0]) if x.nnz else 0
    share = x.data / np.repeat(np.where(most_G > 0, most_G, 1), n_G)
    step = np.diff(x.indices, prepend=0).astype(np.int64)
    starts = x.indptr[:-1][n_G > 0]
    step[starts] = x.indices[starts]
    ends = np.cumsum(step // 255 + 1)
    coded = np.full(int(ends[-1]) if x.nnz else 0, 255, np.uint8)
    coded[ends - 1] = step % 255
    return {
        "gene_most": most_G.astype("<f4"),
        "gene_start": x.indptr.astype("<u4"),
        "gene_byte": np.concatenate([[0], ends])[x.indptr].astype("<u4"),
        "gene_cells": coded,
        "gene_values": np.clip(np.rint(share * 255), 1, 255).astype(np.uint8),
    }


def _decoder(decoder: Decoder, layout: Layout | None) -> dict[str, Array]:
    """Return a decoder's arrays: weights and effects in half precision, the rest in single precision."""
    arrays: dict[str, Array] = {"scale": decoder.scale.astype("<f4")}
    if layout is not None:
        arrays["genomap"] = np.stack([layout.rows, layout.columns]).astype("<u2")
    for i, block in enumerate(decoder.blocks):
        arrays |= {f"{name}{i}": getattr(block, name).astype("<f4") for name in ("b", "s", "t")}
        for name in ("w", "gamma", "gamma_sd", "beta", "beta_sd"):
            arrays[f"{name}{i}"] = np.clip(getattr(block, name), -65_000, 65_000).astype("<f2")
    return arrays
