"""Explore cells before any model: what obs and the values hold, in tables, from one pass over the matrix.

Shapes: N all cells, G genes that all files have.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from tqdm.auto import tqdm

from scmedley.data.design import oddly_named
from scmedley.data.features import genes_alone
from scmedley.data.gene_names import GeneNames, check_unique
from scmedley.errors import ScmedleyError, check_seed, heard, warn
from scmedley.io.lazy import opened
from scmedley.io.writing import write_csv
from scmedley.keys import ValueKind
from scmedley.pp import exploration_tables as tables
from scmedley.pp import exploration_words as words
from scmedley.pp.checks import name_warnings
from scmedley.pp.columns import Column, Key, Role, columns_table, confounding_table, describe, keys_of
from scmedley.pp.dispersion import Dispersion
from scmedley.pp.join import batch_names, shared_genes
from scmedley.pp.normalisations import MOST_CELLS, Comparison, compare_normalisations
from scmedley.pp.value_sums import ContradictionError, Source, Sums, add_block, families, look

Cells: TypeAlias = AnnData | str | Path | Sequence[str | Path]
# Names of the written tables, in the order of Exploration.tables.
TABLES = (
    "columns",
    "levels",
    "composition",
    "confounding",
    "quality",
    "values",
    "histograms",
    "genes",
    "normalisations",
)
FILE = "file"  # new column of obs with the file of each cell, if there are several


@dataclass
class Exploration:
    """What :func:`explore` found, as tables.

    Attributes
    ----------
    names
        The files, or "cells" for an AnnData.
    n_cells, n_genes
        Size of the data; the genes are those that all files have.
    values
        "counts" or "log-normalised".
    reasons
        One sentence for each file: which matrix was used, and why it was taken for what it is.
    keys
        The column of each role (batch, donor, site, label) that was given or guessed.
    obs
        The columns of obs, with the level of each cell.
    columns
        One row for each column of obs: kind, levels, missing values, most frequent levels, the columns that it is
        nested in or the same as, and its role.
    levels
        One row for each level of each role: cells and counts.
    composition
        Cells by label (rows) and batch (columns).
    confounding
        One row for each two roles: Cramer's V and its size by chance, levels of one that occur with one level of
        the other only.
    quality
        Quantiles over the cells of counts, genes, mitochondrial and ribosomal share, by batch.
    summary
        Min, max, mean and share of zeros of the counts and of the prepared values (log1p of counts per 10,000).
    histograms
        Number of values in each bin, of counts and of prepared values, zeros left out.
    genes
        Mean and variance of each gene, of counts and of prepared values, and the cells in which it was detected.
    cells
        Counts, genes and shares of each cell.
    dispersion
        The common dispersion of the counts; None without counts, or with too few genes.
    missing
        The tables that could not be made, with the reason.
    warnings
        Warnings about the data.
    comparison
        Two normalisations compared; None unless asked for.
    """

    names: list[str]
    n_cells: int
    n_genes: int
    values: str
    reasons: list[str]
    keys: dict[Role, Key]
    obs: list[Column]
    columns: pd.DataFrame
    levels: pd.DataFrame
    composition: pd.DataFrame
    confounding: pd.DataFrame
    quality: pd.DataFrame
    summary: pd.DataFrame
    histograms: pd.DataFrame
    genes: pd.DataFrame
    cells: pd.DataFrame
    dispersion: Dispersion | None
    missing: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    comparison: Comparison | None = None

    def findings(self) -> list[str]:
        """Return what was found, in sentences."""
        return words.findings(self)

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return the tables that are written, by the name of their file; the cells are not."""
        found = [self.columns, self.levels, self.composition.reset_index(), self.confounding, self.quality]
        found += [self.summary, self.histograms, self.genes]
        if self.comparison is not None:
            found.append(self.comparison.table)
        return {name: table for name, table in zip(TABLES, found, strict=False) if len(table)}

    def write(self, folder: str | Path) -> list[Path]:
        """Write each table as CSV into a folder, and return the paths."""
        paths = [Path(folder) / f"{name}.csv" for name in self.tables()]
        for path, table in zip(paths, self.tables().values(), strict=True):
            write_csv(table, path)
        return paths

    def report(self, path: str | Path) -> Path:
        """Write a page of figures and tables (one HTML file that opens offline), and return its path."""
        import scmedley  # a room to the right, only for this short way; tests/test_imports.py names it

        written: Path = scmedley.report.write_exploration(self, path)
        return written


def explore(
    cells: Cells,
    *,
    batch: str | None = None,
    donor: str | None = None,
    site: str | None = None,
    label: str | None = None,
    values: ValueKind = "auto",
    compare: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> Exploration:
    """Return what is in the cells, before any model: obs, batches, donors, labels, counts, their distribution.

    The matrix is read in blocks of cells, and h5ad and Zarr stay on disk (:func:`scmedley.io.lazy.opened`). A
    matrix of more than 20 million stored values is read once, after a look at 20,000 of its cells shows what it
    holds; a smaller one is read whole for that look, and once more. Nothing is changed.

    Parameters
    ----------
    cells
        An AnnData, in memory or backed; or one or several files in any format that :func:`scmedley.read` reads.
        Several files are explored together, on the genes that all of them have.
    batch, donor, site, label
        obs columns. By default a column is chosen by its name (:func:`scmedley.pp.columns.keys_of`).
    values
        Kind of the values, as in :func:`scmedley.pp.prepare`.
    compare
        Compare log1p of counts per 10,000 with analytic Pearson residuals, on at most 5,000 cells.
    seed
        Random seed of that sample.
    progress
        Show a progress bar.

    Raises
    ------
    ScmedleyError
        As :func:`scmedley.read`; scaled or centred values; no value above 0; one cell; a column that does not
        exist or has too many levels.
    """
    check_seed(seed)
    given: dict[Role, str | None] = {"batch": batch, "donor": donor, "site": site, "label": label}
    with heard() as warnings, ExitStack() as stack:
        parts, names = _parts(cells, stack)
        obs = _obs(parts, names)
        if len(obs) < 2:
            raise ScmedleyError(
                f"{names[0]} has {len(obs)} cell{'' if len(obs) == 1 else 's'}: there is no distribution to show. "
                "Give two cells or more."
            )
        found = describe(obs)
        keys = keys_of(obs, found, given)
        sources, sums = _read(parts, names, values, compare, seed, progress)
    warnings += [line for source in sources for line in source.found.warnings + name_warnings(source.adata)]
    warnings += [line for role, key in keys.items() for line in oddly_named(_values(obs, key), role)]
    table = sums.cells()
    genes = tables.genes(sums, len(obs), sources[0])
    exploration = Exploration(
        names=names,
        n_cells=len(obs),
        n_genes=len(genes),
        values=sources[0].found.values,
        reasons=[source.found.reason for source in sources],
        keys=keys,
        obs=found,
        columns=columns_table(found, keys),
        levels=tables.levels(keys, table),
        composition=tables.composition(keys),
        confounding=confounding_table(keys),
        quality=tables.quality(keys.get("batch"), table),
        summary=tables.summary(sums, len(obs)),
        histograms=tables.histograms(sums),
        genes=genes,
        cells=table,
        dispersion=tables.dispersion(genes, table),
        missing=tables.missing(keys, sums.counts is not None, table, obs),
        warnings=[*warnings, *tables.column_warnings(found)],
    )
    if compare:
        exploration.comparison = _compared(exploration, sums, seed)
    return exploration


def _read(
    parts: Sequence[AnnData], names: Sequence[str], asked: ValueKind, keep: bool, seed: int, progress: bool
) -> tuple[list[Source], Sums]:
    """Return the matrix of each file and the sums over all cells; read again if a sample of the cells misled."""
    for whole in (False, True):
        sources = _sources(parts, names, asked, whole)
        try:
            sums = _passed(sources, keep, seed, progress)
            break
        except ContradictionError:  # only from a sample
            continue
    if sums.prepared.largest == 0:
        raise ScmedleyError(
            f"{sources[0].found.where} of {names[0]} holds no value above 0: there is nothing to explore. Check the "
            "step that wrote it, or put the counts into X or layers['counts']."
        )
    return sources, sums


def _parts(cells: Cells, stack: ExitStack) -> tuple[list[AnnData], list[str]]:
    """Return the cells of each file, and names for them."""
    if isinstance(cells, AnnData):
        alone, left_out = genes_alone(cells)
        if left_out:
            warn(left_out)
        return [alone], ["cells"]
    paths = [Path(cells)] if isinstance(cells, str | Path) else [Path(path) for path in cells]
    if not paths:
        raise ScmedleyError("No file given. Pass one or more files of cells.")
    names = batch_names(paths)
    return [stack.enter_context(opened(path)) for path in paths], names


def _obs(parts: Sequence[AnnData], names: Sequence[str]) -> pd.DataFrame:
    """Return obs of all files; with several, a new column holds the file."""
    tables: list[pd.DataFrame] = [part.obs for part in parts]
    if len(parts) == 1:
        return tables[0]
    taken = {str(column) for obs in tables for column in obs}
    column = next(name for name in (FILE, "input_file", "scmedley_file") if name not in taken)
    texts = [obs.astype(dict.fromkeys(obs.select_dtypes("category"), object)) for obs in tables]
    joined = pd.concat(texts, ignore_index=True)
    joined.insert(0, column, np.repeat(list(names), [len(obs) for obs in tables]))
    return joined


def _values(obs: pd.DataFrame, key: Key) -> "pd.Series[Any]":
    """Return the column of a role as stored; the first of several columns of one name."""
    place = next(i for i, name in enumerate(obs.columns) if str(name) == key.column.name)
    return obs.iloc[:, place]


def _sources(parts: Sequence[AnnData], names: Sequence[str], asked: ValueKind, whole: bool) -> list[Source]:
    """Return the files with the matrix to use of each, and the genes that all have."""
    looked = []
    for name, part in zip(names, parts, strict=True):
        try:
            looked.append(look(part, asked, whole))
        except ScmedleyError as error:
            raise ScmedleyError(f"{name}: {error}") from error
    kinds = {found.values: name for name, (found, _) in zip(names, looked, strict=True)}
    if len(kinds) > 1:
        said = " and ".join(f"{name} holds {kind}" for kind, name in kinds.items())
        raise ScmedleyError(f"{said}: these cannot be explored together. Explore each file on its own.")
    genes = {
        name: GeneNames.of(part.raw.var if found.where == "raw.X" else part.var)
        for name, part, (found, _) in zip(names, parts, looked, strict=True)
    }
    places = {names[0]: np.arange(len(genes[names[0]].names))}  # names of one file may repeat
    if len(names) > 1:
        for name, part in zip(names, parts, strict=True):
            check_unique(part.var_names, f"{name}: gene")
        places = shared_genes(genes, list(names))
    return [
        Source(name, part, found, sampled, genes[name], families(genes[name]), places[name])
        for name, part, (found, sampled) in zip(names, parts, looked, strict=True)
    ]


def _passed(sources: Sequence[Source], keep: bool, seed: int, progress: bool) -> Sums:
    """Read each block of cells once; with ``keep``, keep the values of a random sample of the cells."""
    n = sum(source.adata.n_obs for source in sources)
    sums = Sums.empty(len(sources[0].place_G), sources[0].found.values == "counts")
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(n, min(n, MOST_CELLS), replace=False)) if keep else np.zeros(0, dtype=int)
    sums.sampled = chosen
    first = 0
    with tqdm(total=n, desc="explore", unit="cells", mininterval=0.5, disable=not progress) as bar:
        for source, rows in _blocks(sources):
            start, stop = first + rows.start, first + rows.stop
            add_block(sums, source, rows, chosen[(chosen >= start) & (chosen < stop)] - start)
            bar.update(stop - start)
            if rows.stop == source.adata.n_obs:
                first = stop
    return sums


def _blocks(sources: Sequence[Source]) -> Iterator[tuple[Source, slice]]:
    for source in sources:
        for rows in source.blocks():
            yield source, rows


def _compared(exploration: Exploration, sums: Sums, seed: int) -> Comparison | None:
    """Compare two normalisations on the sampled cells; without counts, note why not."""
    if sums.counts is None:
        exploration.missing["normalisations"] = exploration.missing["counts"]
        return None
    chosen = sums.sampled
    codes = {
        role: key.column.categorical.iloc[chosen].reset_index(drop=True)
        for role, key in exploration.keys.items()
        if role in ("batch", "label")
    }
    try:
        return compare_normalisations(
            sums.sample, np.concatenate(sums.sample_total), list(exploration.genes["gene"]), codes, seed
        )
    except ScmedleyError as error:
        exploration.missing["normalisations"] = str(error)
        return None
