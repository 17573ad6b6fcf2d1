"""Gene identifiers and symbols: matching between files and models, and names to show."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from scmedley.errors import ScmedleyError, listed

# Columns of var, compared without case: those of CELLxGENE, scanpy's and Cell Ranger's 10x files, Seurat and
# biomaRt.
SYMBOLS = (
    *("feature_name", "gene_symbols", "gene_symbol", "gene_name", "gene_names", "symbol", "symbols"),
    *("gene_short_name", "hgnc_symbol", "external_gene_name"),
)
IDS = (
    *("gene_ids", "gene_id", "ensembl_id", "ensembl_ids", "ensembl", "ensembl_gene_id", "ensemblid"),
    "feature_id",
)

CLEARLY = 0.1  # fraction of the genes that another kind of name must find in addition

_ID = re.compile(r"(ENS[A-Z]*G\d{6,}|FBgn\d{7}|WBGene\d{8})(\.\d+)?(_PAR_Y)?")
_VERSION = re.compile(r"\.\d+(?=(_PAR_Y)?$)")
_KNOWN = re.compile(r"MT-(ND|CO|CYB|ATP)\w*|RP[LS]\d+[AXYL]?|ACTB|GAPDH|MALAT1|B2M|CD3[DEG]|CD19|PTPRC", re.I)
_BARCODE = re.compile(r"(.*[^A-Za-z])?[ACGT]{8,}([^A-Za-z].*)?")
_NUMBERED = re.compile(r"[VX]?\d+")  # R's names for unnamed columns
_MONTH = "jan|feb|mar|apr|may|jun|jul|aug|sept?|oct|nov|dec"
_DATE = re.compile(rf"\d{{1,2}}-({_MONTH})|({_MONTH})-\d{{1,2}}|\d{{4}}-\d\d-\d\d( 00:00:00)?", re.I)
_SAMPLED, _MOST_GENES = 2_000, 100_000  # names that are checked of an axis, which may have a million cells
_BLANK = ("", "nan", "<na>", "none", "null")


@dataclass(frozen=True)
class GeneNames:
    """The names of genes and, if known, their identifiers and symbols ("" for a gene without one)."""

    names: tuple[str, ...]
    ids: tuple[str, ...] | None = None
    symbols: tuple[str, ...] | None = None

    @classmethod
    def of(cls, var: pd.DataFrame) -> "GeneNames":
        """Read names from the index of ``var``, identifiers and symbols from its columns."""
        return cls(tuple(map(str, var.index)), _column(var, IDS), _column(var, SYMBOLS))

    def take(self, places: Sequence[int] | np.ndarray) -> "GeneNames":
        """Return these genes only, in this order."""
        kinds = (self.names, self.ids, self.symbols)
        names, ids, symbols = (None if kind is None else tuple(kind[i] for i in places) for kind in kinds)
        return GeneNames(names or (), ids, symbols)

    @property
    def symbols_beside(self) -> tuple[str, ...] | None:
        """Return the symbols if the names are identifiers or numbers, which mean nothing to a reader."""
        return self.symbols if self.symbols and (are_ids(self.names) or _are(_NUMBERED, self.names)) else None

    @property
    def shown(self) -> tuple[str, ...]:
        """Return the name of each gene for figures and sentences."""
        symbols = self.symbols_beside
        return self.names if symbols is None else tuple(shown(self.names, symbols))

    def var(self) -> pd.DataFrame:
        """Return the ``var`` of a new AnnData: the genes, with symbols where the names are identifiers."""
        symbols = self.symbols_beside
        return pd.DataFrame(
            {} if symbols is None else {"gene_symbols": list(symbols)}, index=list(self.names)
        )

    def kinds(self) -> dict[str, pd.Index]:
        """Return each kind of name that these genes have."""
        found = {"names": self.names, "ids": self.ids, "symbols": self.symbols}
        return {kind: pd.Index(names, dtype=object) for kind, names in found.items() if names is not None}


def shown(names: Sequence[str], symbols: Sequence[str]) -> list[str]:
    """Return "SYMBOL" for each gene, "SYMBOL (id)" if genes share the symbol, and the id if there is none."""
    genes_of = pd.Series(list(names)).groupby(list(symbols)).nunique()
    return [
        name if not symbol or symbol == name else symbol if genes_of[symbol] == 1 else f"{symbol} ({name})"
        for name, symbol in zip(names, symbols, strict=True)
    ]


def shown_in(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with the names to show in ``gene``, if it has a column ``symbol``."""
    if "symbol" not in table:
        return table
    return table.assign(gene=shown(list(table["gene"]), list(table["symbol"].astype(object).fillna(""))))


def match(wanted: GeneNames, given: GeneNames) -> tuple[np.ndarray, str]:
    """Find genes among others by name or, if that finds clearly more of them, by identifier or symbol.

    Names are tried first, then identifiers and symbols of both sides, then all of these without version
    (``ENSG00000000003.15``). Another kind than names must find more genes, by a tenth of those wanted. A
    symbol or an identifier that several genes of one side share matches none of them.

    Returns
    -------
    place_G : ndarray of int
        Position in ``given`` of each wanted gene, -1 for none.
    note : str
        How they were found, "" if by name.
    """
    names = pd.Index(given.names, dtype=object)
    best = names.get_indexer(pd.Index(wanted.names, dtype=object))
    by_name, note = int((best >= 0).sum()), ""
    least = by_name + max(1.0, CLEARLY * len(wanted.names))
    if least > min(len(wanted.names), len(names)):
        return best, note
    for versions in (True, False):
        for kind_wanted, names_wanted in wanted.kinds().items():
            for kind, names_given in given.kinds().items():
                pair = (names_wanted, names_given)
                place = _places(*(pair if versions else map(without_version, pair)))
                found = int((place >= 0).sum())
                if found >= least:
                    best, least = place, found + 1
                    note = (
                        f"Genes were matched by {_both(kind_wanted, kind)}{'' if versions else ' without version'}, as "
                        f"their names differ ({wanted.names[0]!r} and {given.names[0]!r}): {found:,} of "
                        f"{len(wanted.names):,} were found, {by_name:,} by name."
                    )
    return best, note


def without_version(names: pd.Index) -> pd.Index:
    """Return identifiers without the version at their end; other names stay as they are."""
    return pd.Index([_VERSION.sub("", n) if _ID.fullmatch(n) else n for n in names], dtype=object)


def are_ids(names: Sequence[str]) -> bool:
    """Return whether most names are gene identifiers."""
    return _are(_ID, names)


def why_missing(wanted: GeneNames, given: GeneNames, cells: Sequence[str]) -> str:
    """Return what to do if few of the wanted genes were found."""
    few = set(wanted.names)
    if len(few.intersection(map(str, cells))) > 0.5 * min(len(few), len(cells)):
        return "The row names are names of the model's genes: swap rows and columns (adata.T)."
    lower = {name.lower() for name in given.names}
    if sum(name.lower() in lower for name in few) > 0.5 * len(few):
        return (
            f"The names differ in upper and lower case (the model has {wanted.names[0]!r}), as in mouse and human. If "
            "the species is the same, write the names as the model has them."
        )
    return (
        "Check that both use the same kind of name, or put the other kind into var['gene_ids'] or "
        "var['gene_symbols']."
    )


def rows_are_genes(rows: Sequence[str], columns: Sequence[str]) -> bool:
    """Return whether a table is genes x cells, judged by its names."""
    genes_in_rows, genes_in_columns = _like_genes(rows), _like_genes(columns)
    if genes_in_rows and not genes_in_columns:
        return True
    return _are(_BARCODE, columns) and not _are(_BARCODE, rows) and not genes_in_columns


def are_numbered(names: Sequence[str]) -> bool:
    """Return whether most names are numbers, or R's V1, V2 ... for columns without a name."""
    return _are(_NUMBERED, names)


def oddities(names: Sequence[str]) -> list[str]:
    """Return warnings about names that do not look like gene names."""
    dates = [name for name in names if _DATE.fullmatch(name)]
    blank = [name for name in names if name.strip().lower() in _BLANK]
    notes = []
    if dates:
        notes.append(
            f"{len(dates)} gene names look like dates ({listed(dates)}): spreadsheets change MARCHF1 or SEPTIN2 to "
            "dates. Correct the names before you interpret these genes."
        )
    if blank:
        notes.append(f"{len(blank)} genes have no name ({listed(blank)}).")
    if are_numbered(names):
        found = listed(list(names[:2]))
        notes.append(
            f"Gene names are numbers ({found}): the real names were lost. Copy them from the source."
        )
    return notes


def _column(var: pd.DataFrame, names: Iterable[str]) -> tuple[str, ...] | None:
    by_name = {str(column).lower(): column for column in var.columns}
    for name in names:
        if name in by_name:
            values = var[by_name[name]]
            if values.ndim > 1 or pd.api.types.is_float_dtype(values):
                continue
            found = tuple("" if blank else str(v) for v, blank in zip(values, values.isna(), strict=True))
            if sum(map(bool, found)) > len(found) / 2 and found != tuple(map(str, var.index)):
                return found
    return None


def _places(wanted: pd.Index, given: pd.Index) -> np.ndarray:
    alone = np.flatnonzero(~given.duplicated(keep=False) & (given != ""))
    found = given[alone].get_indexer(wanted)
    place = np.where((found >= 0) & ~wanted.duplicated(keep=False), alone[found] if len(alone) else -1, -1)
    return np.asarray(place, dtype=np.int64)


def _both(one: str, other: str) -> str:
    return f"their {one}" if one == other else f"{one} on one side and {other} on the other"


def _are(pattern: re.Pattern[str], names: Sequence[str]) -> bool:
    some = names[:: max(1, len(names) // _SAMPLED)]
    return len(some) > 0 and sum(bool(pattern.fullmatch(name)) for name in some) > len(some) / 2


def _like_genes(names: Sequence[str]) -> bool:
    return are_ids(names) or sum(bool(_KNOWN.fullmatch(name)) for name in names[:_MOST_GENES]) >= 2


def check_unique(
    names: pd.Index, what: str = "gene", way_out: str = "Make them unique with adata.var_names_make_unique()."
) -> None:
    """Raise :class:`ScmedleyError` if a name occurs more than once."""
    duplicated = names[names.duplicated()].unique()
    if len(duplicated):
        raise ScmedleyError(
            f"{len(duplicated):,} {what} names occur more than once: {listed([str(n) for n in duplicated])}. "
            + way_out
        )
