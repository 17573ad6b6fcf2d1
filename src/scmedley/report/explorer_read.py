"""Read from a run folder what the explorer shows. What is missing is said, not raised."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from scmedley import keys
from scmedley.data.design import as_categories
from scmedley.errors import ScmedleyError, listed
from scmedley.interpret.check import ALL, LEAST, against_baseline, agreement, summarise
from scmedley.interpret.genomap import Layout
from scmedley.report.explorer import (
    MAX_CELLS,
    MAX_COLUMNS,
    MAX_LEVELS,
    NO_MEANS,
    PAGE,
    Block,
    Cells,
    Decoder,
    Explored,
    colourable,
    on_a_map,
    sample,
)
from scmedley.runs.folder import CELLS, GENOMAP, MODEL
from scmedley.runs.read import MAPS, Run, cells_file

NO_LABELS = (
    "The run had no labels, so no change that was seen stands beside predictions: it could not be told from a "
    "difference in composition between batches."
)
ROWS = 4096  # cells read at one time
MAX_VALUES = 100_000_000  # measured values of the cells that are held, at most


def explored(run: Run, seed: int = 0) -> Explored | None:
    """Gather cells, decoder and means of a run; ``None`` without cells.

    Raises
    ------
    ScmedleyError
        integrated.h5ad is damaged.
    """
    if run.obs is None or not len(run.obs):
        return None
    missing: list[str] = []
    model, decoder = _model(run, missing)
    batch, label = run.column("batch"), run.column("label")
    of_cells = set() if batch is None else set(batch.dropna().astype(str))
    if decoder is not None and of_cells.isdisjoint(model.design.batches):
        missing.append(
            "The batches of the cells are not those of the model, so it is not asked what the cells would be elsewhere."
        )
        decoder = None
    batch_N, batches = _coded(batch, model.design.batches if decoder is not None else None, len(run.obs))
    label_N, labels = _coded(label, None, len(run.obs))
    counts_KB = np.zeros((len(labels), len(batches)), np.int64)
    known = (batch_N >= 0) & (label_N >= 0)
    np.add.at(counts_KB, (label_N[known], batch_N[known]), 1)

    drawn_N = on_a_map(len(run.obs), [xy for _, xy in run.maps.values()])
    folder = run.folder
    rows = sample(batch_N * (len(labels) + 1) + label_N, _at_most(folder), drawn_N, seed)
    z_NP = x_NG = pairs = means = held_out = None
    if decoder is not None:
        z_NP = _latent(folder, model.key, rows, decoder, missing)
        # Without labels the means would differ by composition as well as by batch.
        pair_N = np.where(known & (label is not None), label_N * len(batches) + batch_N, -1)
        if label is None:
            missing.append(NO_LABELS)
        pair_N, held_out_U = _observed(run.obs, pair_N, len(labels) * len(batches))
        x_NG, pairs, means = _measured(folder, decoder.genes, rows, pair_N, len(batches), missing)
        if pairs is not None:
            held_out = held_out_U[pairs[:, 0] * len(batches) + pairs[:, 1]]
    missing += [f"No map of {run.name(key)}." for key in MAPS if key not in run.maps]
    names = run.obs.index.astype(str)
    cells = Cells(
        [names[row] for row in rows],
        batch_N[rows],
        label_N[rows],
        _maps(run, rows),
        _columns(run, missing).iloc[rows],
        z_NP,
        x_NG,
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
        pairs,
        means,
        held_out,
        _trust(run, list(labels), list(batches)),
        missing,
        None if run.check is None or run.check.empty else summarise(run.check).verdict,
    )


def _maps(run: Run, rows: np.ndarray) -> list[tuple[str, str, np.ndarray]]:
    """Give title, note and coordinates of the maps that have a cell."""
    notes = {True: "drawn as a UMAP", False: "its first two dimensions, no UMAP in this run"}
    return [
        (run.name(key), notes[found == keys.umap(key)], xy[rows])
        for key, (found, xy) in run.maps.items()
        if np.isfinite(xy).all(axis=1).any()
    ]


def decoder_of(model: Any, layout: Layout | None = None) -> Decoder:
    """Take the decoder of counterfactuals out of a model, BatchNorm folded into scale and shift.

    Raises
    ------
    ScmedleyError
        The latent of a counterfactual depends on its target (``encode_as_target``, the paper preset), or
        the decoder has no batch effects.
    """
    network_model = getattr(model, "decoder", model)
    if getattr(network_model.settings, "encode_as_target", False):
        raise ScmedleyError(
            "In the paper preset cells are encoded anew for each target batch, so the page cannot ask what if. "
            "The command scmedley project shows them as if from other batches."
        )
    if not network_model.has_effects:
        raise ScmedleyError("The decoder of this model has no batch effects, so there is no what-if.")
    network = network_model.network
    if network_model.key == keys.FIXED:
        weights = [layer.weight for layer in reversed(network.encoder.linears)]
        tied = zip(weights, network.decoder.biases, network.decoder.effects, strict=True)
        blocks = [_block(w, b, None, effects, False) for w, b, effects in tied]
    else:
        untied = zip(network.decoder, network.decoder_norms, network.decoder_effects, strict=True)
        last = len(network.decoder) - 1
        blocks = [
            _block(layer.weight.t(), layer.bias, norm, effects, i < last)
            for i, (layer, norm, effects) in enumerate(untied)
        ]
    scale = np.stack([network_model.scale.minimum_G, network_model.scale.span_G])
    kind = "fixed" if network_model.key == keys.FIXED else "random"
    calibration = network_model.calibration
    factor = None if calibration is None else calibration.factor
    genes, shown = tuple(network_model.genes), network_model.gene_names.shown
    decoder = Decoder(genes, tuple(blocks), scale, kind, shown=shown, factor=factor)
    if layout is None or layout.genes != genes:
        return decoder
    return replace(decoder, genomap=np.stack([layout.rows, layout.columns]), shape=layout.shape)


def _block(w: Any, b: Any, norm: Any, effects: Any, pre_selu: bool) -> Block:
    s, t = np.ones(len(b), np.float32), np.zeros(len(b), np.float32)
    if norm is not None:
        s = _numpy(norm.weight / (norm.running_var + norm.eps).sqrt())
        t = _numpy(norm.bias) - _numpy(norm.running_mean) * s
    tables = [_numpy(part) for one in (effects.gamma, effects.beta) for part in (one.loc_BH, one.scale_BH())]
    return Block(_numpy(w), _numpy(b), pre_selu, s, t, *tables)


def _numpy(tensor: Any) -> np.ndarray:
    return np.asarray(tensor.detach().cpu().numpy())


def _model(run: Run, missing: list[str]) -> tuple[Any, Decoder | None]:
    """Load the network that counterfactuals come from, or say why there is none."""
    from scmedley.models import load

    if not (run.folder / MODEL).is_dir():
        missing.append("The model is not in the run folder, so there is no what-if and no gene to colour by.")
        return None, None
    try:
        model = load(run.folder / MODEL)
    except ScmedleyError:  # its words have paths, and the page is made to be passed on
        missing.append("The model cannot be read, so there is no what-if and no gene to colour by.")
        return None, None
    try:
        path = run.folder / GENOMAP
        decoder = decoder_of(model, Layout.load(path) if path.exists() else None)
    except ScmedleyError as error:
        missing.append(str(error))
        return None, None
    if decoder.genomap is None:
        missing.append(
            "The run has no genomap (over 8,000 genes, or not scored), so cells are not drawn as pictures."
        )
    return getattr(model, "decoder", model), decoder


def _coded(
    column: pd.Series[Any] | None, known: tuple[str, ...] | None, n_cells: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Give codes and names of a column, by the model's order where there is one; all cells are one without it."""
    if column is None:
        return (
            (np.zeros(n_cells, np.int64), (ALL,))
            if known is None
            else (np.full(n_cells, -1, np.int64), known)
        )
    found = as_categories(column)
    names = tuple(map(str, found.categories)) if known is None else known
    return np.asarray(found.set_categories(list(names)).codes, np.int64), names


def _columns(run: Run, missing: list[str]) -> pd.DataFrame:
    """Give the columns to colour by, batch and label first, and say which are left out."""
    assert run.obs is not None
    first = [key for key in (run.config.get("batch"), run.config.get("label")) if key in run.obs]
    rest = [key for key in run.obs.columns if key not in (*first, keys.PERMUTED)]
    kept, others = colourable(run.obs[[*dict.fromkeys(first), *rest]])
    if others:
        missing.append(
            f"Not in the page are the columns {listed(others, len(others))}: of text with over {MAX_LEVELS:,} levels, "
            f"or behind the first {MAX_COLUMNS}."
        )
    return run.obs[kept]


def _observed(obs: pd.DataFrame, pair_N: np.ndarray, n_pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each cell's pair, -1 for cells that no mean is of, and which pairs have enough held-out cells for one."""
    test_N = (obs[keys.SPLIT] == "test").to_numpy() if keys.SPLIT in obs else np.zeros(len(obs), bool)
    held_out_U = np.bincount(pair_N[test_N & (pair_N >= 0)], minlength=n_pairs) >= LEAST
    left_out = held_out_U[pair_N] & (pair_N >= 0) & ~test_N
    return np.where(left_out, -1, pair_N), held_out_U


def _trust(run: Run, labels: list[str], batches: list[str]) -> list[tuple[int, int, str, str]]:
    """Give the words of the check on held-out cells for each pair of label and batch."""
    if run.check is None or run.check.empty:
        return []
    words = agreement(run.check), against_baseline(run.check)
    rows = zip(run.check["label"], run.check["batch"], *words, strict=True)
    return [(labels.index(k), batches.index(b), w, a) for k, b, w, a in rows if k in labels and b in batches]


def _at_most(folder: Path) -> int:
    """Give how many cells can be held, by how many values a cell has."""
    import h5py

    with cells_file(folder) as file:
        layer = file.get(f"layers/{keys.LOGNORM}")
        if layer is None:
            return MAX_CELLS
        shape = layer.shape if isinstance(layer, h5py.Dataset) else layer.attrs["shape"]
        values = int(np.prod(shape)) if isinstance(layer, h5py.Dataset) else len(layer["data"])
    return int(min(MAX_CELLS, MAX_VALUES / max(values / max(shape[0], 1), 1)))


def _latent(
    folder: Path, key: str, rows: np.ndarray, decoder: Decoder, missing: list[str]
) -> np.ndarray | None:
    with cells_file(folder) as file:
        if key in file.get("obsm", {}):
            z_NP: np.ndarray = np.asarray(file["obsm"][key], dtype=np.float32)[rows]
            if z_NP.ndim == 2 and z_NP.shape[1] == len(decoder.blocks[0].w) and np.isfinite(z_NP).all():
                return z_NP
    missing.append(f"{CELLS} holds no embedding {key} of this model, so there is no what-if.")
    return None


def _measured(
    folder: Path,
    genes: tuple[str, ...],
    rows: np.ndarray,
    pair_N: np.ndarray,
    n_batches: int,
    missing: list[str],
) -> tuple[sparse.csr_matrix | None, np.ndarray | None, np.ndarray | None]:
    """Read the model's genes block by block: those of ``rows``, and their means over each pair of label and batch."""
    import h5py
    from anndata.io import read_elem, sparse_dataset

    with cells_file(folder) as file:
        layer = file.get(f"layers/{keys.LOGNORM}")
        if layer is None:
            missing.append(f"{CELLS} has no layer {keys.LOGNORM}: measured genes are not shown.")
            return None, None, None
        place = pd.Index(read_elem(file["var"]).index.astype(str)).get_indexer(list(genes))
        if (place < 0).any():
            missing.append(f"{CELLS} lacks genes of the model: measured genes are not shown.")
            return None, None, None
        values: Any = layer if isinstance(layer, h5py.Dataset) else sparse_dataset(layer)
        if isinstance(layer, h5py.Group):  # scipy trusts these, and a wrong one ends the process
            starts = layer["indptr"][:]
            if (np.diff(starts) < 0).any() or starts[0] != 0 or starts[-1] != len(layer["indices"]):
                raise ScmedleyError(f"layers/{keys.LOGNORM} of {CELLS} is damaged.")
        found, n_U = np.unique(pair_N[pair_N >= 0], return_counts=True)
        if 2 * len(found) * len(genes) > PAGE:
            missing.append(NO_MEANS)
            found = found[:0]
        sums, kept, held_N = np.zeros((len(found), len(genes))), [], np.zeros(len(pair_N), bool)
        held_N[rows] = True
        for start in range(0, len(pair_N), ROWS):
            block = sparse.csr_matrix(values[start : start + ROWS])[:, place].astype(np.float32)
            kept.append(block[held_N[start : start + ROWS]])
            if len(found):
                _add(sums, found, block, pair_N[start : start + ROWS])
    x_NG = sparse.vstack(kept, format="csr")
    if not len(found):
        return x_NG, None, None
    sums /= n_U[:, None]
    return x_NG, np.column_stack([found // n_batches, found % n_batches]), sums


def _add(sums: np.ndarray, found: np.ndarray, block: sparse.csr_matrix, pair_M: np.ndarray) -> None:
    """Add cells to the sums of their pairs, without a dense array of all pairs."""
    at = np.flatnonzero(pair_M >= 0)
    pairs, code = np.unique(pair_M[at], return_inverse=True)
    member = sparse.csr_matrix((np.ones(len(at)), (code, at)), (len(pairs), len(pair_M)))
    sums[np.searchsorted(found, pairs)] += (member @ block).toarray()
