"""The cells of a run as exports read them: tables and maps in memory, the matrix in blocks from the disk.

Shapes: N cells, G genes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from scmedley import keys
from scmedley.data.gene_names import GeneNames
from scmedley.errors import ScmedleyError
from scmedley.io.lazy import opened
from scmedley.runs.folder import CELLS
from scmedley.runs.read import Run, cells_file, read_model, read_reading, store_of

ROWS = 4096  # cells read at a time
MOST_LEVELS = 1000  # of a column that viewers group cells by
MISSING = "missing"  # the group of cells without a value, for viewers that need one
UNITS = {keys.LOGNORM: "log1p CP10k", keys.COUNTS: "counts"}


@dataclass(frozen=True)
class Matrix:
    """The expression of the cells of a run, on disk.

    Attributes
    ----------
    values
        N x G.
    genes
        Unique names to show; symbols where the file has them.
    variable
        Whether each gene is one that the networks use.
    unit
        In words.
    note
        What is not in it; "" if it has all genes.
    """

    values: Any
    genes: list[str]
    variable: np.ndarray
    unit: str
    note: str = ""

    def blocks(self, size: int = ROWS) -> Iterator[tuple[slice, csr_matrix]]:
        """Yield rows and their values, a block of cells at a time."""
        n_cells = self.values.shape[0]
        for start in range(0, n_cells, size):
            rows = slice(start, min(start + size, n_cells))
            yield rows, csr_matrix(self.values[rows], dtype=np.float32)


@contextmanager
def matrix(run: Run) -> Iterator[Matrix]:
    """Open the expression of a run: log1p CP10k or, if the file has none, counts, or else ``X``.

    Of a run that prepared its cells on disk it is log1p CP10k of the genes of the model, from the store.

    Raises
    ------
    ScmedleyError
        The store is missing or damaged, or was prepared again with other cells or genes.
    """
    if store_of(run.folder) is not None:
        reading = read_reading(run.folder, read_model(run.folder))
        genes = list(reading.reader.genes.shown)
        note = f"The matrix has the {len(genes):,} genes of the model: the run prepared its cells on disk."
        yield Matrix(reading.log1p_NG, genes, np.ones(len(genes), dtype=bool), UNITS[keys.LOGNORM], note)
        return
    with opened(run.folder / CELLS) as adata:
        layer = next((name for name in UNITS if name in adata.layers), "")
        genes = list(GeneNames.of(adata.var).shown)
        variable = adata.var.get(keys.HVG, pd.Series(True, index=adata.var_names))
        yield Matrix(
            adata.layers[layer] if layer else adata.X,
            genes,
            variable.to_numpy(dtype=bool),
            UNITS.get(layer, "values of X"),
        )


def obs_of(run: Run) -> pd.DataFrame:
    """Return ``obs`` with the columns that matter first: label, batch, cluster; the others in their order.

    Raises
    ------
    ScmedleyError
        The folder has no cells, or no embedding of them: the run has not come so far.
    """
    with cells_file(run.folder):  # raises if the file is missing
        pass
    if run.obs is None or not any(key in run.maps for key in run.shown):
        raise ScmedleyError(
            f"{run.folder / CELLS} holds no embedding to export: the run is not finished. Repeat its command, or "
            f"compute the rest with scmedley evaluate {run.folder}."
        )
    return run.obs[[*groups(run), *(name for name in run.obs if name not in groups(run))]]


def groups(run: Run) -> list[str]:
    """Return the columns of ``obs`` that viewers group cells by first: label, cluster, batch."""
    assert run.obs is not None
    wanted = (run.config.get("label"), keys.CLUSTER, run.config.get("batch"), keys.BATCH)
    return [str(name) for name in dict.fromkeys(wanted) if name in run.obs]


def is_grouping(column: "pd.Series[Any]") -> bool:
    """Return whether a column sorts cells into groups: text or truth values of few levels."""
    kind = column.dtype
    if isinstance(kind, pd.CategoricalDtype):
        return len(kind.categories) <= MOST_LEVELS
    is_text = pd.api.types.is_bool_dtype(kind) or not pd.api.types.is_numeric_dtype(kind)
    return is_text and column.nunique() <= MOST_LEVELS


def levels(column: "pd.Series[Any]") -> list[str]:
    """Return the levels of a grouping column, in order."""
    found = column.astype("category").cat.remove_unused_categories().cat.categories
    return [str(level) for level in found]


def level_colours(run: Run, column: str) -> dict[str, str]:
    """Return a colour for each level of a column: those that the file has (scanpy's), or the report's.

    They are written as ``"#rrggbb"``.
    """
    from anndata.io import read_elem

    from scmedley.pl._palette import as_hex, colours

    assert run.obs is not None
    names = levels(run.obs[column])
    with cells_file(run.folder) as file:
        stored = file.get(f"uns/{column}_colors") if "/" not in column else None
        own = [] if stored is None else as_hex(read_elem(stored))
    every = pd.Categorical(run.obs[column].astype("category")).categories
    if len(own) != len(every):  # scanpy has one colour for each category, unused ones included
        return dict(zip(names, colours(len(names)), strict=True))
    chosen = {str(level): colour for level, colour in zip(every, own, strict=True)}
    return {name: chosen[name] for name in names}


def named(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return a grouping column as categories of text, in order; cells without a value are ``MISSING``."""
    names = levels(column)
    texts = [MISSING if pd.isna(value) else str(value) for value in column]
    if column.isna().any() and MISSING not in names:
        names.append(MISSING)
    return pd.Series(pd.Categorical(texts, categories=names), index=column.index)


def shown_maps(run: Run) -> list[tuple[str, str, np.ndarray]]:
    """Return title, obsm key and coordinates (N x 2, NaN for cells that were not drawn) of the run's maps."""
    found = []
    for key in run.shown:
        if key in run.maps:
            name, xy_N2 = run.maps[key]
            drawn = "UMAP" if name == keys.umap(key) else "first two dimensions"
            found.append((f"{run.name(key)}, {drawn}", name, xy_N2))
    return found


def with_names(obs: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return ``obs`` with the names of the cells as its first column, under a free name such as ``column``."""
    while column in obs:
        column += "_"
    table = obs.reset_index(drop=True)
    table.insert(0, column, obs.index.astype(str))
    return table


def name_of(run: Run) -> str:
    """Return the name of a run: that of its folder."""
    return run.folder.resolve().name
