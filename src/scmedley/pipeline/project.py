"""Counterfactuals of the cells of a run or a file: as data, as a figure, or both."""

import re
import warnings
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scmedley import io
from scmedley.data.design import POPULATION_MEAN
from scmedley.data.reader import Reading
from scmedley.data.sampling import DRAWN
from scmedley.data.targets import Target, named_targets, target_name
from scmedley.errors import ScmedleyError, ScmedleyWarning, check_seed, listed
from scmedley.interpret.check import (
    CHECK_COLUMNS,
    TOO_FEW,
    against_baseline,
    agreement,
    decoder,
    labels_of,
    names_of,
    summarise,
)
from scmedley.interpret.genomap import Layout, genomap_of
from scmedley.interpret.panel import panel
from scmedley.interpret.trust import CAUTIONS, UNSEEN, UNUSABLE, WORSE
from scmedley.keys import ValueKind
from scmedley.models import MixedEffects
from scmedley.models.base import Model
from scmedley.models.targets import as_if
from scmedley.runs.folder import CELLS, CHECK, GENOMAP, RECORD
from scmedley.runs.read import read_cells, read_model, read_obs, read_reading, read_table, store_of
from scmedley.runs.record import Record

MOST_ROWS, MOST_TARGETS = 12, 8  # in a figure: more would be too small to read
READING_CALLS = (".isin", ".isna", ".notna", ".between", ".str.contains", ".str.startswith", ".str.endswith")
WORDS = ("and", "or", "not", "in")


def project(
    folder: Path,
    to: Sequence[str],
    *,
    input: Path | None = None,
    select: Sequence[str] = (),
    out: Path | None = None,
    figure: Path | None = None,
    rows: int = 4,
    draws: int = 0,
    seed: int = 0,
    values: ValueKind = "auto",
    unknown: str = "error",
) -> list[str]:
    """Write counterfactuals to ``out``, and of a few cells to ``figure``; return lines for the user.

    Parameters
    ----------
    folder
        Run folder.
    to
        Target batches, or levels: ``condition=stim``, ``donor=d7,condition=ctrl``.
    input
        File of cells; default: the cells of the run.
    select
        Which cells of the run: see :func:`choose`.
    out, figure
        New files; at least one of them.
    rows
        Maximum number of cells in the figure, drawn at random.
    draws, seed, unknown
        See :meth:`MixedEffects.counterfactual`; the seed also draws the cells of the figure.
    values
        What the matrix of the file holds, as in :func:`scmedley.pp.prepare`.
    """
    _check_options(out, figure, input, select, values)
    if figure is not None:
        _check_figure(to, rows)
    check_seed(seed)
    for path in filter(None, (out, figure)):
        io.check_place(path)
    model = read_model(folder)
    targets = [target_of(text, model) for text in named_targets(to)]
    network = decoder_of(model, targets)
    nobody = pd.DataFrame(columns=network.design.columns)
    for target in targets:
        as_if(network.design, nobody, target)  # raises for an unknown batch before any warning about it
    reading = (
        cells_of_run(folder, model, select) if input is None else model.read(io.read(input), values=values)
    )
    network.design.known_codes(reading.obs, unknown)  # the same for the batches of the cells
    for line in cautions(folder, reading.obs, targets, network):
        warnings.warn(line, ScmedleyWarning, stacklevel=2)
    if figure is None:
        return [_write(model, reading, targets, out, draws=draws, seed=seed, unknown=unknown)] if out else []
    with io.replacing(figure) as temporary:  # drawn first, moved to its place after the data are written
        n_drawn = _draw(folder, model, reading, targets, temporary, rows=rows, seed=seed, unknown=unknown)
        said = [f"{n_drawn} of {reading.n_cells} cells drawn: {figure}"]
        if out is not None:
            said.append(_write(model, reading, targets, out, draws=draws, seed=seed, unknown=unknown))
    return said


def _write(
    model: MixedEffects | Model[Any],
    cells: Reading,
    to: Sequence[Target],
    out: Path,
    *,
    draws: int,
    seed: int,
    unknown: str,
) -> str:
    """Write the counterfactuals of all chosen cells; return a line for the user."""
    zarr = out if out.suffix == ".zarr" else None
    result = model.counterfactual(cells, to, draws=draws, seed=seed, unknown=unknown, out=zarr)
    if isinstance(result, AnnData):
        for line in io.write_h5ad(result, out):
            warnings.warn(f"{out.name}: {line}", ScmedleyWarning, stacklevel=2)
    return f"{cells.n_cells} cells predicted in {', '.join(map(target_name, to))}: {out}"


def cells_of_run(folder: Path, model: MixedEffects | Model[Any], select: Sequence[str]) -> Reading:
    """Return the chosen cells of a run as its model reads them."""
    rows = choose(select, read_obs(folder))
    if store_of(folder) is None:
        adata = read_cells(folder)
        return model.read(adata if rows is None else adata[rows].copy())
    reading = read_reading(folder, model)
    return reading if rows is None else reading.take(rows)


def choose(select: Sequence[str], obs: pd.DataFrame) -> np.ndarray | None:
    """Return the rows of the chosen cells; ``None``: all cells.

    Parameters
    ----------
    select
        Empty: all cells. Names of cells: these, in the order given. Otherwise: one pandas query on ``obs``,
        such as ``cell_type == 'B cell' and batch != 'a'``.
    obs
        Table of the cells of the run.

    Raises
    ------
    ScmedleyError
        A name that is not in the run, a query that is not valid, or one that no cell matches.
    """
    if not all(text.strip() for text in select):
        raise ScmedleyError("--select is empty. Give names of cells, or one query in quotes.")
    if not select:
        return None
    absent = [name for name in select if name not in obs.index]
    if not absent:
        return np.asarray(obs.index.get_indexer_for(pd.Index(select)))
    if len(select) > 1:
        raise ScmedleyError(
            f"The run has no cell {listed(absent)}; names of its cells are like {listed(list(obs.index[:2]))}. "
            "Give names of cells, or one query in quotes."
        )
    chosen = np.flatnonzero(_matches(obs, select[0]))
    if not len(chosen):
        raise ScmedleyError(
            f"None of the run's {len(obs):,} cells matches --select {_short(select[0])}. Change the query."
        )
    return chosen


def _matches(obs: pd.DataFrame, query: str) -> np.ndarray:
    """Return for which cells a query on ``obs`` is true. It may compare, and call methods that only read."""
    unquoted = re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", "", query)
    called = [
        name
        for name in re.findall(r"([\w.]+)\s*\(", unquoted)
        if not name.endswith(READING_CALLS) and name not in WORDS
    ]
    if called or "__" in unquoted or "@" in unquoted:
        raise ScmedleyError(
            f"--select {_short(query)} calls {listed(called or ['@ or __'])}. A query may compare, and call "
            f"{', '.join(READING_CALLS)}."
        )
    try:
        found = obs.eval(query, engine="python", local_dict={}, global_dict={})
    except Exception as error:  # pandas raises many kinds
        reason = " ".join(str(error).split())[:150]
        raise ScmedleyError(
            f"--select {_short(query)} is no cell of the run and no query on its obs ({reason}). Write a query "
            f"such as \"cell_type == 'B cell'\"; obs has: {', '.join(map(str, obs.columns))}."
        ) from error
    values = np.asarray(found)
    if values.shape != (len(obs),) or values.dtype != bool:
        raise ScmedleyError(
            f"--select {_short(query)} is not true or false for each cell. Write a comparison, such as "
            "\"cell_type == 'B cell'\"."
        )
    return values


def _short(query: str) -> str:
    return repr(query if len(query) <= 100 else query[:100] + "…")


def _check_options(
    out: Path | None, figure: Path | None, input: Path | None, select: Sequence[str], values: ValueKind
) -> None:
    if out is None and figure is None:
        raise ScmedleyError("Nothing to write: give --out, --figure, or both.")
    if input is not None and select:
        raise ScmedleyError(
            "--select chooses cells of the run, but --input gives a file. Leave one of them out."
        )
    if values != "auto" and input is None:
        raise ScmedleyError(
            f"--values {values} is for a file (--input); the cells of the run are already prepared. Leave it out."
        )


def _check_figure(to: Sequence[str], rows: int) -> None:
    if not 1 <= rows <= MOST_ROWS:
        raise ScmedleyError(f"--rows {rows} must be between 1 and {MOST_ROWS}.")
    if len(to) > MOST_TARGETS:
        raise ScmedleyError(
            f"A figure has room for {MOST_TARGETS} targets, but --to has {len(to)}. Give fewer, or draw several."
        )


def target_of(text: Any, model: MixedEffects | Model[Any]) -> Target:
    """Return a target of the command line: a batch, or levels by column, such as ``donor=d7,condition=ctrl``.

    A batch of the model whose name holds "=" is a batch.
    """
    networks = model.networks().values() if isinstance(model, MixedEffects) else [model]
    if isinstance(text, Mapping) or any(text in network.design.batches for network in networks):
        found: Target = text
        return found
    columns = sorted({column for network in networks for column in network.design.columns}, key=len)
    several = any(network.design.terms is not None for network in networks)
    if text.partition("=")[0].strip() in columns or (several and "=" in text):
        # A comma is part of a value, unless a column of the design and "=" follow.
        parts = re.split(rf",\s*(?=(?:{'|'.join(map(re.escape, columns))})\s*=)", text)
        pairs = [part.partition("=") for part in parts]
        return {column.strip(): value.strip() for column, _, value in pairs}
    return str(text)


def decoder_of(model: MixedEffects | Model[Any], to: Sequence[Target]) -> Model[Any]:
    """Return the network that predicts these targets."""
    return model.decoder_of(to) if isinstance(model, MixedEffects) else model


def cautions(
    folder: Path, obs: pd.DataFrame, to: Sequence[Target], network: Model[Any] | None = None
) -> list[str]:
    """Return warnings: labels never seen in a target batch, and predictions that failed the check.

    Parameters
    ----------
    folder
        Run folder: its cells show what was seen, its ``counterfactual_check.csv`` what was checked.
    obs
        ``obs`` of the cells, with the label column of the run if there is one.
    to
        Target batches.
    network
        The network that predicts them; needed for a design of several factors.
    """
    config = Record.read(folder / RECORD)["config"]
    batch, label = config.get("batch"), config.get("label")
    cells = read_obs(folder) if (folder / CELLS).exists() else pd.DataFrame()
    if label not in obs or not {batch, label} <= set(cells):
        return []
    several = network is not None and network.design.terms is not None
    batches = network.design.names(cells) if several and network else labels_of(cells, batch)
    seen = set(zip(labels_of(cells, label), batches, strict=True))
    check = read_table(folder / CHECK)
    check = pd.DataFrame(columns=CHECK_COLUMNS) if check is None else check  # the run was not scored
    judged = agreement(check)
    judged = judged.mask((judged == "some") & (against_baseline(check) == WORSE), WORSE)
    words = dict(zip(zip(check["label"], check["batch"], strict=True), judged, strict=True))
    found: dict[str, list[str]] = {text: [] for text in CAUTIONS.values()}
    for name, target in _pairs(labels_of(obs, label), obs, named_targets(to), network):
        word = UNSEEN if (name, target) not in seen else words.get((name, target), TOO_FEW) if words else ""
        if target != POPULATION_MEAN and word in CAUTIONS:
            found[CAUTIONS[word]].append(f"{name} in {target}")
    failed = not check.empty and summarise(check).verdict == "none"
    said = [UNUSABLE] * failed
    return said + [f"{listed(pairs)}: {text}." for text, pairs in found.items() if pairs]


def _pairs(
    label: np.ndarray, obs: pd.DataFrame, to: Sequence[Target], network: Model[Any] | None
) -> list[tuple[str, str]]:
    """Return every label with the batches that its cells become."""
    found: dict[tuple[str, str], None] = {}
    for name, target in product(names_of(label), to):
        named: list[str] = [target] if isinstance(target, str) else []
        if network is not None and isinstance(target, Mapping) and POPULATION_MEAN not in target.values():
            there = as_if(network.design, obs[label == name], target)
            if isinstance(there, int):
                named = [network.design.batches[there]]
            else:
                named = network.design.names(there).dropna().unique().tolist()
        found |= dict.fromkeys((name, batch) for batch in named)
    return list(found)


def _genomap(folder: Path, model: MixedEffects | Model[Any]) -> Layout:
    """Read the layout of the genes in a picture; if it is missing, compute it from the cells and save it."""
    path = folder / GENOMAP
    if not path.exists():
        reading, seed = read_reading(folder, model), decoder(model).fitted["seed"]
        if reading.store is not None:
            rng = np.random.default_rng(seed)
            chosen = rng.choice(reading.n_cells, min(DRAWN, reading.n_cells), replace=False)
            reading = reading.take(np.sort(chosen))
        genomap_of(model, reading, seed=seed).save(path)
    return Layout.load(path)


def _draw(
    folder: Path,
    model: MixedEffects | Model[Any],
    cells: Reading,
    to: Sequence[Target],
    path: Path,
    *,
    rows: int,
    seed: int,
    unknown: str,
) -> int:
    """Draw a few of the cells; return their number."""
    from scmedley.pl import counterfactuals
    from scmedley.pl._figure import save

    n_cells = cells.n_cells
    note = f"all of {n_cells:,} cells"
    if n_cells > rows:
        note = f"{rows} of {n_cells:,} cells, drawn with seed {seed}"
        chosen = np.random.default_rng(seed).choice(n_cells, rows, replace=False)
        cells = cells.take(np.sort(chosen))
    lines = [
        f"{note}. Genes are named because they change most.",
        *cautions(folder, cells.obs, to, decoder_of(model, to)),
    ]
    laid_out = _genomap(folder, model)
    save(counterfactuals(panel(model, cells, to, laid_out, unknown=unknown), note="\n".join(lines)), path)
    return min(n_cells, rows)
