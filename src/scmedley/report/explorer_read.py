"""Read what the explorer shows from a run folder. What is missing gives a sentence, not an error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from scipy import sparse

from scmedley import keys
from scmedley.data.design import as_categories
from scmedley.data.sampling import sample
from scmedley.data.store import Store
from scmedley.errors import ScmedleyError, listed
from scmedley.interpret.check import ALL, LEAST, against_baseline, agreement, summarise
from scmedley.interpret.genomap import Layout
from scmedley.models import MixedEffects, load
from scmedley.models.base import Model
from scmedley.models.export import Decoder, export
from scmedley.pp.stored import read_store
from scmedley.report.explorer import (
    MAX_CELLS,
    MAX_COLUMNS,
    MAX_LEVELS,
    NO_MEANS,
    PAGE,
    Cells,
    Explored,
    colourable,
    on_a_map,
)
from scmedley.runs.folder import CELLS, GENOMAP, MODEL
from scmedley.runs.read import Run, cells_file, store_of

NO_LABELS = (
    "The run had no labels, so no observed change is shown with the predictions: it could not be told from a "
    "difference in composition between batches."
)
ROWS = 4096  # cells read at a time
MAX_VALUES = 30_000_000  # measured values held in memory: more do not fit into the page
Measured: TypeAlias = tuple[sparse.csr_matrix | None, np.ndarray | None, np.ndarray | None, list[str]]


class Values(NamedTuple):
    """Latent and measured values of the cells of the page, means of pairs of label and batch, and what is missing."""

    z_NP: np.ndarray | None = None
    x_NG: sparse.csr_matrix | None = None
    pairs: np.ndarray | None = None
    means: np.ndarray | None = None
    held_out: np.ndarray | None = None
    missing: Sequence[str] = ()


def explored(run: Run, seed: int = 0) -> Explored | None:
    """Return cells, decoder and observed means of a run; ``None`` if it has no cells.

    Raises
    ------
    ScmedleyError
        integrated.h5ad is damaged.
    """
    if run.obs is None or not len(run.obs):
        return None
    model, decoder, layout, missing = _model(run)
    batch, label = run.column("batch"), run.column("label")
    if model is not None and model.design.terms is not None and batch is not None:
        batch = model.design.names(run.obs)
    of_cells = set() if batch is None else set(batch.dropna().astype(str))
    if model is not None and of_cells.isdisjoint(model.design.batches):
        missing.append("The batches of the cells are not those of the model, so there is no what-if.")
        model = decoder = layout = None
    batch_N, batches = _coded(batch, None if model is None else model.design.batches, len(run.obs))
    label_N, labels = _coded(label, None, len(run.obs))
    counts_KB = np.zeros((len(labels), len(batches)), np.int64)
    known = (batch_N >= 0) & (label_N >= 0)
    np.add.at(counts_KB, (label_N[known], batch_N[known]), 1)

    drawn_N = on_a_map(len(run.obs), [xy for _, xy in run.maps.values()])
    rows = sample(batch_N * (len(labels) + 1) + label_N, _most_cells(run.folder), drawn_N, seed)
    # Without labels, means would differ by composition as well as by batch.
    pair_N = np.where(known & (label is not None), label_N * len(batches) + batch_N, -1)
    found = _values(run, model, decoder, rows, pair_N, (len(labels), len(batches)))
    missing += found.missing
    if decoder is not None and label is None:
        missing.append(NO_LABELS)
    missing += [f"No map of {run.name(key)}." for key in run.shown if key not in run.maps]
    columns, without = _columns(run)
    names = run.obs.index.astype(str)
    cells = Cells(
        [names[row] for row in rows],
        batch_N[rows],
        label_N[rows],
        _maps(run, rows),
        columns.iloc[rows],
        found.z_NP,
        found.x_NG,
    )
    return Explored(
        cells,
        len(run.obs),
        batches,
        labels,
        None if batch is None else run.config.get("batch"),
        None if label is None else run.config.get("label"),
        counts_KB,
        decoder,
        layout,
        found.pairs,
        found.means,
        found.held_out,
        _trust(run, list(labels), list(batches)),
        missing + without,
        None if run.check is None or run.check.empty else summarise(run.check).verdict,
        () if model is None or found.x_NG is None else model.gene_names.shown,
    )


def _values(
    run: Run,
    model: Model[Any] | None,
    decoder: Decoder | None,
    rows: np.ndarray,
    pair_N: np.ndarray,
    n_pairs: tuple[int, int],
) -> Values:
    """Return what the page computes predictions from and compares them with; nothing without a model.

    ``rows`` are the cells of the page, ``pair_N`` the label and batch of each cell of the run as one number (-1: none),
    and ``n_pairs`` the numbers of labels and batches.
    """
    assert run.obs is not None
    if model is None:
        return Values()
    n_batches, genes = n_pairs[1], model.gene_names.names if decoder is None else decoder.genes
    if decoder is None:  # no what-if, but cells can be coloured by gene
        x_NG, _, _, missing = _measured(run.folder, genes, rows, np.full(len(run.obs), -1), n_batches)
        return Values(x_NG=x_NG, missing=missing)
    z_NP = _latent(run.folder, model.key, rows, len(decoder.blocks[0].w))
    no_latent = f"{CELLS} holds no embedding {model.key} of this model, so there is no what-if."
    pair_N, held_out_U = _observed(run.obs, pair_N, n_pairs[0] * n_batches)
    x_NG, pairs, means, missing = _measured(run.folder, genes, rows, pair_N, n_batches)
    held_out = None if pairs is None else held_out_U[pairs[:, 0] * n_batches + pairs[:, 1]]
    return Values(z_NP, x_NG, pairs, means, held_out, [no_latent] * (z_NP is None) + missing)


def _maps(run: Run, rows: np.ndarray) -> list[tuple[str, str, np.ndarray]]:
    """Return title, note and coordinates of the maps that have a cell."""
    notes = {True: "drawn as a UMAP", False: "first two dimensions, no UMAP in this run"}
    return [
        (run.name(key), notes[found == keys.umap(key)], xy[rows])
        for key, (found, xy) in run.maps.items()
        if np.isfinite(xy).all(axis=1).any()
    ]


def _model(run: Run) -> tuple[Model[Any] | None, Decoder | None, Layout | None, list[str]]:
    """Return the model of the counterfactuals, its decoder, its genomap, and sentences on what is missing."""
    if not (run.folder / MODEL).is_dir():
        words = "The model is not in the run folder, so there is no what-if and no gene to colour by."
        return None, None, None, [words]
    try:
        loaded = load(run.folder / MODEL)
    except ScmedleyError:  # its message has paths, and the page may be shared
        return (
            None,
            None,
            None,
            ["The model cannot be read, so there is no what-if and no gene to colour by."],
        )
    model = loaded.decoder if isinstance(loaded, MixedEffects) else loaded
    try:
        decoder = export(model)
        path = run.folder / GENOMAP
        layout = Layout.load(path) if path.exists() else None
    except ScmedleyError as error:
        return model, None, None, [str(error)]
    if layout is None or layout.genes != decoder.genes:
        words = "The run has no genomap (more than 8,000 genes, or not scored), so cells are not drawn as pictures."
        return model, decoder, None, [words]
    return model, decoder, layout, []


def _coded(
    column: pd.Series[Any] | None, known: tuple[str, ...] | None, n_cells: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return codes and names of a column, in the order ``known``; without a column, one name or no codes."""
    if column is None:
        return (
            (np.zeros(n_cells, np.int64), (ALL,))
            if known is None
            else (np.full(n_cells, -1, np.int64), known)
        )
    found = as_categories(column)
    names = tuple(map(str, found.categories)) if known is None else known
    return np.asarray(found.set_categories(list(names)).codes, np.int64), names


def _columns(run: Run) -> tuple[pd.DataFrame, list[str]]:
    """Return the columns to colour by, batch and label first, and a sentence on the others."""
    assert run.obs is not None
    first = [key for key in (run.config.get("batch"), run.config.get("label")) if key in run.obs]
    rest = [key for key in run.obs.columns if key not in (*first, keys.PERMUTED)]
    kept, others = colourable(run.obs[[*dict.fromkeys(first), *rest]])
    said = [
        f"These columns are not in the page: {listed(others, len(others))}. They hold text with over {MAX_LEVELS:,} "
        f"levels, or come after the first {MAX_COLUMNS}."
    ]
    return run.obs[kept], said if others else []


def _observed(obs: pd.DataFrame, pair_N: np.ndarray, n_pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each cell's pair, -1 if it enters no mean, and which pairs have enough held-out cells."""
    test_N = (obs[keys.SPLIT] == "test").to_numpy() if keys.SPLIT in obs else np.zeros(len(obs), bool)
    held_out_U = np.bincount(pair_N[test_N & (pair_N >= 0)], minlength=n_pairs) >= LEAST
    left_out = held_out_U[pair_N] & (pair_N >= 0) & ~test_N
    return np.where(left_out, -1, pair_N), held_out_U


def _trust(run: Run, labels: list[str], batches: list[str]) -> list[tuple[int, int, str, str]]:
    """Return label, batch and the two words of the check for each checked pair."""
    if run.check is None or run.check.empty:
        return []
    words = agreement(run.check), against_baseline(run.check)
    rows = zip(run.check["label"], run.check["batch"], *words, strict=True)
    return [(labels.index(k), batches.index(b), w, a) for k, b, w, a in rows if k in labels and b in batches]


def _most_cells(folder: Path) -> int:
    """Return how many cells fit into memory, given the number of values per cell."""
    import h5py

    if (found := store_of(folder)) is not None:
        try:
            store = Store.open(found)
        except ScmedleyError:  # _measured says so
            return MAX_CELLS
        return int(min(MAX_CELLS, MAX_VALUES / max(store.nnz / max(store.shape[0], 1), 1)))
    with cells_file(folder) as file:
        layer = file.get(f"layers/{keys.LOGNORM}")
        if layer is None:
            return MAX_CELLS
        shape = layer.shape if isinstance(layer, h5py.Dataset) else layer.attrs["shape"]
        values = int(np.prod(shape)) if isinstance(layer, h5py.Dataset) else len(layer["data"])
    return int(min(MAX_CELLS, MAX_VALUES / max(values / max(shape[0], 1), 1)))


def _latent(folder: Path, key: str, rows: np.ndarray, n_latent: int) -> np.ndarray | None:
    """Read an embedding of some cells; ``None`` if it is missing or does not fit the decoder."""
    with cells_file(folder) as file:
        if key in file.get("obsm", {}):
            z_NP: np.ndarray = np.asarray(file["obsm"][key], dtype=np.float32)[rows]
            if z_NP.ndim == 2 and z_NP.shape[1] == n_latent and np.isfinite(z_NP).all():
                return z_NP
    return None


def _measured(
    folder: Path, genes: tuple[str, ...], rows: np.ndarray, pair_N: np.ndarray, n_batches: int
) -> Measured:
    """Read the model's genes in blocks: the values of ``rows``, and the means per pair of label and batch.

    Return values, pairs and means (``None`` if missing), and sentences on what is missing.
    """
    import h5py
    from anndata.io import read_elem, sparse_dataset

    if (place_of_store := store_of(folder)) is not None:
        return _stored(place_of_store, genes, rows, pair_N, n_batches)
    with cells_file(folder) as file:
        layer = file.get(f"layers/{keys.LOGNORM}")
        if layer is None:
            words = f"{CELLS} has no layer {keys.LOGNORM}: measured genes are not shown."
            return None, None, None, [words]
        place = pd.Index(read_elem(file["var"]).index.astype(str)).get_indexer(list(genes))
        if (place < 0).any():
            words = f"{CELLS} lacks genes of the model: measured genes are not shown."
            return None, None, None, [words]
        values: Any = layer if isinstance(layer, h5py.Dataset) else sparse_dataset(layer)
        if isinstance(layer, h5py.Group):  # scipy does not check these, and a wrong one crashes the process
            starts = layer["indptr"][:]
            if (np.diff(starts) < 0).any() or starts[0] != 0 or starts[-1] != len(layer["indices"]):
                raise ScmedleyError(f"layers/{keys.LOGNORM} of {CELLS} is damaged.")
        return _in_blocks(values, place, rows, pair_N, n_batches)


def _stored(
    folder: Path, genes: tuple[str, ...], rows: np.ndarray, pair_N: np.ndarray, n_batches: int
) -> Measured:
    """Read the model's genes from a store, as :func:`_measured` does from the file of cells."""
    try:
        reading = read_store(folder)
    except ScmedleyError:  # its message has paths, and the page may be shared
        words = "The store of the run is missing or damaged: measured genes are not shown."
        return None, None, None, [words]
    if reading.reader.genes.names != genes or reading.n_cells != len(pair_N):
        return None, None, None, ["The store of the run was prepared again: measured genes are not shown."]
    return _in_blocks(reading.log1p_NG, None, rows, pair_N, n_batches)


def _in_blocks(
    values: Any, place: np.ndarray | None, rows: np.ndarray, pair_N: np.ndarray, n_batches: int
) -> Measured:
    """Read blocks of cells; ``place``: columns of the genes, ``None`` for all."""
    found, n_U = np.unique(pair_N[pair_N >= 0], return_counts=True)
    n_genes = values.shape[1] if place is None else len(place)
    too_many = 2 * len(found) * n_genes > PAGE
    found = found[:0] if too_many else found
    sums, kept, held_N = np.zeros((len(found), n_genes)), [], np.zeros(len(pair_N), bool)
    held_N[rows] = True
    for start in range(0, len(pair_N), ROWS):
        block = sparse.csr_matrix(values[start : start + ROWS])
        block = (block if place is None else block[:, place]).astype(np.float32)
        kept.append(block[held_N[start : start + ROWS]])
        if len(found):
            _add(sums, found, block, pair_N[start : start + ROWS])
    x_NG = sparse.vstack(kept, format="csr")
    if not len(found):
        return x_NG, None, None, [NO_MEANS] * too_many
    sums /= n_U[:, None]
    return x_NG, np.column_stack([found // n_batches, found % n_batches]), sums, []


def _add(sums: np.ndarray, found: np.ndarray, block: sparse.csr_matrix, pair_M: np.ndarray) -> None:
    """Add cells to the sums of their pairs, without a dense array of all pairs."""
    at = np.flatnonzero(pair_M >= 0)
    pairs, code = np.unique(pair_M[at], return_inverse=True)
    member = sparse.csr_matrix((np.ones(len(at)), (code, at)), (len(pairs), len(pair_M)))
    sums[np.searchsorted(found, pairs)] += (member @ block).toarray()
