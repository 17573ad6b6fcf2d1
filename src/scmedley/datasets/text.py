"""Read large text tables: genes x cells as a sparse matrix, one gene in memory at a time; cell annotation."""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData
from scipy.sparse import csc_matrix

from scmedley.errors import ScmedleyError, listed

_WHOLE = 1e-3  # relative error below which 2^x - 1 counts as whole: x was printed with few digits
_UNREADABLE = (OSError, EOFError, zlib.error, UnicodeDecodeError, pd.errors.ParserError)


def read_genes(path: Path, *, log2: bool = False, separator: str = "\t") -> AnnData:
    """Read text of genes x cells, gzipped or not, as cells x genes (CSR, float32).

    Parameters
    ----------
    path
        The header has the cell names; each other line has a gene and its values.
    log2
        Whether values are log2(x + 1): returns x, rounded if all x are whole numbers.
    separator
        Character between values.

    Raises
    ------
    ScmedleyError
        The file is cut short, a line has a wrong number of values, or a value is not a number >= 0.
    """
    genes: list[str] = []
    cells_G: list[npt.NDArray[np.int32]] = []
    values_G: list[npt.NDArray[np.float32]] = []
    whole = True
    try:
        with _open(path) as file:
            header = _names(file.readline(), separator)
            for number, line in enumerate(file, start=2):
                if not line.strip():
                    continue
                try:
                    gene, cells, values, n_values = _parse(line, separator)
                except ValueError as error:
                    raise ScmedleyError(
                        f"{path}: line {number:,}: {error}. Download the file again."
                    ) from error
                if not genes and n_values == len(header) - 1:
                    header = header[1:]  # the header may begin with "Gene"; R leaves it out
                if n_values != len(header):
                    raise ScmedleyError(
                        f"{path}: line {number:,}, gene {gene!r}, has {n_values:,} values, but the header has "
                        f"{len(header):,} cells. Download the file again."
                    )
                if log2:
                    values = np.exp2(values) - 1
                    whole = whole and bool((np.abs(values - np.rint(values)) <= _WHOLE * values).all())
                genes.append(gene)
                cells_G.append(cells.astype(np.int32))
                values_G.append(values.astype(np.float32))
    except _UNREADABLE as error:
        raise _broken(path, error) from error
    if not genes:
        raise ScmedleyError(f"{path} has no genes. Download it again.")
    ends = np.cumsum([0, *map(len, cells_G)])
    indices, data = np.concatenate(cells_G), np.concatenate(values_G)
    del cells_G, values_G
    if log2 and whole:
        np.rint(data, out=data)
    return AnnData(
        csc_matrix((data, indices, ends), shape=(len(header), len(genes))).tocsr(),
        obs=pd.DataFrame(index=pd.Index(header, dtype=object)),
        var=pd.DataFrame(index=pd.Index(genes, dtype=object)),
    )


def read_table(path: Path, needed: Sequence[str], separator: str = "\t") -> pd.DataFrame:
    """Read a table of text as strings; drop rows whose first needed column is empty.

    Raises
    ------
    ScmedleyError
        The file is empty or cut short, or a needed column is missing.
    """
    try:
        table: pd.DataFrame = pd.read_csv(
            path, sep=separator, dtype=str, keep_default_na=False, na_values=[""]
        )
    except pd.errors.EmptyDataError as error:
        raise ScmedleyError(f"{path} is empty. Download it again.") from error
    except _UNREADABLE as error:
        raise _broken(path, error) from error
    missing = [name for name in needed if name not in table]
    if missing:
        raise ScmedleyError(
            f"{path} has no column {listed(missing)}; its columns are {listed(list(table.columns), 20)}. "
            "Give the file as published."
        )
    return table[table[needed[0]].notna()]


def _parse(line: bytes, separator: str) -> tuple[str, npt.NDArray[np.int64], npt.NDArray[np.float64], int]:
    """Return the gene of a line, the cells and values that are not 0, and the number of cells.

    Nearly all values are a single "0". Only the others are parsed, for speed.
    """
    between = separator.encode()
    name, _, rest = line.rstrip(b"\r\n").partition(between)
    gene = _names(name, separator)[0]
    text = np.frombuffer(rest + between, dtype=np.uint8)
    ends = np.flatnonzero(text == ord(separator))
    starts = np.concatenate([[0], ends[:-1] + 1])
    cells = np.flatnonzero((ends - starts != 1) | (text[starts] != ord("0")))
    fields = [rest[i:j] for i, j in zip(starts[cells].tolist(), ends[cells].tolist(), strict=True)]
    try:
        values = np.array(fields, dtype=bytes).astype(np.float64)
    except ValueError as error:
        raise ValueError(f"gene {gene!r}: {error}") from error
    if not (values >= 0).all() or np.isinf(values).any():
        raise ValueError(f"gene {gene!r} has values that are negative, infinite or missing")
    seen = values > 0
    return gene, cells[seen], values[seen], len(ends)


def _open(path: Path) -> BinaryIO:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _names(line: bytes, separator: str) -> list[str]:
    return [name.strip('"') for name in line.decode().rstrip("\r\n").split(separator)]


def _broken(path: Path, error: Exception) -> ScmedleyError:
    return ScmedleyError(f"{path} cannot be read ({error}). It may be cut short: download it again.")
