"""Read tables of text (csv, tsv and their dialects) as sparse rows."""

import bz2
import csv
import gzip
import io
import lzma
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix, vstack

from scmedley.data.gene_names import are_numbered, rows_are_genes
from scmedley.errors import ScmedleyError, listed, warn

ENDINGS = (".csv", ".tsv", ".txt")
PACKED: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}
_ROWS = 500  # rows that are dense in memory at a time
_SAMPLED = 50  # rows that decide the dialect
_WITH_COMMA = re.compile(r"-?\d+(,\d+)+(\.\d*)?([eE][-+]?\d+)?")
_BOMS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


@dataclass(frozen=True)
class Dialect:
    """Encoding, separator and header of a table."""

    encoding: str
    separator: str
    header: tuple[str, ...]


def read_table(path: Path) -> AnnData:
    """Read csv or tsv in pieces, as sparse rows: a dense table may not fit into memory.

    Rows are cells. If the row names are names of genes, the table is transposed, with a warning.
    """
    for encoding in (None, "cp1252", "latin-1"):  # the first that can decode the whole file
        try:
            found = dialect(path, encoding)
            return _with_cells_as_rows(_read(path, found), path)
        except UnicodeDecodeError:
            continue
    raise AssertionError("latin-1 reads any byte")


def dialect(path: Path, encoding: str | None = None) -> Dialect:
    """Find encoding and separator of a table from its first rows.

    The separator gives every row the same number of fields, and the header too (R omits its corner). If
    several do, it is the one with most fields.

    Raises
    ------
    ScmedleyError
        Numbers have commas: 1,234 may mean 1234 or 1.234.
    """
    if encoding is None:
        with _opened(path) as file:
            start = file.read(3)
        encoding = next((name for bom, name in _BOMS.items() if start.startswith(bom)), "utf-8")
    with io.TextIOWrapper(_opened(path), encoding=encoding, newline="") as text:
        lines = [line for line in islice(text, _SAMPLED) if line.strip()]
    best: tuple[str, list[list[str]]] | None = None
    for separator in (_by_name(path), ",", "\t", ";", " "):
        rows = list(csv.reader(lines, delimiter=separator)) if lines else []
        lengths = {len(row) for row in rows[1:]}
        fits = len(lengths) == 1 and max(lengths) > 1 and 0 <= max(lengths) - len(rows[0]) <= 1
        if fits and (best is None or max(lengths) > len(best[1][1])):
            best = separator, rows
    separator, rows = best or (_by_name(path), list(csv.reader(lines, delimiter=_by_name(path))))
    comma = next((value for row in rows[1:] for value in row[1:] if _WITH_COMMA.fullmatch(value)), None)
    if comma is not None:
        raise ScmedleyError(
            f"{path}: numbers have commas, such as {comma!r}, which may mean decimals or thousands. Write decimal "
            "points and no separators of thousands (in R write.csv, not write.csv2; in pandas to_csv with decimal='.')."
        )
    return Dialect(encoding, separator, tuple(rows[0]) if rows else ())


def _read(path: Path, how: Dialect) -> AnnData:
    options: dict[str, Any] = {"sep": how.separator, "encoding": how.encoding}
    cells: list[str] = []
    names: list[str] = []
    blocks = []
    with (
        _opened(path) as file,
        pd.read_csv(
            file,
            skiprows=1,
            header=None,
            chunksize=_ROWS,
            index_col=0,
            dtype={0: str},
            low_memory=False,
            **options,
        ) as pieces,
    ):
        for piece in pieces:
            # R omits the corner, other programs write something there.
            names = list(how.header[-piece.shape[1] :]) if piece.shape[1] else []
            for position, kind in enumerate(piece.dtypes):
                if kind.kind not in "biuf":
                    _refuse_text(path, piece, position, names[position])
            cells += [str(cell) for cell in piece.index]
            blocks.append(csr_matrix(piece.to_numpy(dtype=np.float32)))
    if not blocks or not blocks[0].shape[1]:
        raise ScmedleyError(
            f"{path} has no cells or no genes. Give a header and one row per cell, which starts with its name. "
            "Separate columns by commas, tabs, semicolons or spaces."
        )
    if len(set(cells)) < len(cells) and not any(np.isnan(pd.to_numeric(cells[:_ROWS], errors="coerce"))):
        raise ScmedleyError(
            f"{path}: the first column holds repeated numbers, so it is a gene and not the cells' names. Put a "
            "unique name for each cell there."
        )
    return AnnData(
        vstack(blocks, format="csr"),
        obs=pd.DataFrame(index=pd.Index(cells, dtype=object)),
        var=pd.DataFrame(index=pd.Index(names, dtype=object)),
    )


def _with_cells_as_rows(adata: AnnData, path: Path) -> AnnData:
    rows, columns = list(adata.obs_names), list(adata.var_names)
    named = f"rows have names like {listed(rows[:2])}, columns like {listed(columns[:2])}"
    if rows_are_genes(rows, columns):
        warn(f"{path.name} was read as genes x cells and transposed: its {named}.")
        return AnnData(csr_matrix(adata.X.T), obs=adata.var, var=adata.obs)
    if are_numbered(columns) and not are_numbered(rows):
        warn(
            f"{path.name}: its {named}. Rows are read as cells; if they are genes, transpose the table first."
        )
    return adata


def _by_name(path: Path) -> str:
    return "," if ".csv" in path.name.lower() else "\t"


def _opened(path: Path) -> IO[bytes]:
    """Open a file and decompress it if its content, not its name, is compressed."""
    with path.open("rb") as file:
        start = file.read(6)
    opener = next((opener for magic, opener in PACKED.items() if start.startswith(magic)), None)
    opened: IO[bytes] = path.open("rb") if opener is None else opener(path, "rb")
    return opened


def _refuse_text(path: Path, piece: pd.DataFrame, position: int, gene: str) -> None:
    values = piece.iloc[:, position]
    text = values[pd.to_numeric(values, errors="coerce").isna() & values.notna()]
    raise ScmedleyError(
        f"{path}: cell {str(text.index[0])!r}, column {gene!r} holds {str(text.iloc[0])[:40]!r}, which is not a "
        "number. Rows are cells, columns are genes; put batches and labels into obs of an h5ad, or give one "
        "file per batch."
    )
