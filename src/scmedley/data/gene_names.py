"""What genes are called: ids beside symbols, matched between files and models, and shown to the reader."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from scmedley.errors import ScmedleyError, listed

# Columns of var, compared without case: those of CELLxGENE, scanpy's and Cell Ranger's 10x files, Seurat and biomaRt.
SYMBOLS = (
    *("feature_name", "gene_symbols", "gene_symbol", "gene_name", "gene_names", "symbol", "symbols"),
    *("gene_short_name", "hgnc_symbol", "external_gene_name"),
)
IDS = (
    *("gene_ids", "gene_id", "ensembl_id", "ensembl_ids", "ensembl", "ensembl_gene_id", "ensemblid"),
    "feature_id",
)

CLEARLY = 0.1  # share of the genes that another kind of name must find beyond the names as they are

_ID = re.compile(r"(ENS[A-Z]*G\d{6,}|FBgn\d{7}|WBGene\d{8})(\.\d+)?(_PAR_Y)?")
_VERSION = re.compile(r"\.\d+(?=(_PAR_Y)?$)")
_KNOWN = re.compile(r"MT-(ND|CO|CYB|ATP)\w*|RP[LS]\d+[AXYL]?|ACTB|GAPDH|MALAT1|B2M|CD3[DEG]|CD19|PTPRC", re.I)
_BARCODE = re.compile(r"(.*[^A-Za-z])?[ACGT]{8,}([^A-Za-z].*)?")
_NUMBERED = re.compile(r"[VX]?\d+")  # R's names of columns that have none
_MONTH = "jan|feb|mar|apr|may|jun|jul|aug|sept?|oct|nov|dec"
_DATE = re.compile(rf"\d{{1,2}}-({_MONTH})|({_MONTH})-\d{{1,2}}|\d{{4}}-\d\d-\d\d( 00:00:00)?", re.I)
_LOOKED_AT, _MOST_GENES = (
    2_000,
    100_000,
)  # names that tell what an axis holds, which may be that of a million cells
_BLANK = ("", "nan", "<na>", "none", "null")


@dataclass(frozen=True)
class GeneNames:
    """The names of genes and, where known, an id and a symbol of each ("" where a gene has none)."""

    names: tuple[str, ...]
    ids: tuple[str, ...] | None = None
    symbols: tuple[str, ...] | None = None

    @classmethod
    def of(cls, var: pd.DataFrame) -> "GeneNames":
        """Read them from the index of ``var`` and from its columns of ids and symbols."""
        return cls(tuple(map(str, var.index)), _column(var, IDS), _column(var, SYMBOLS))

    def take(self, places: Sequence[int] | np.ndarray) -> "GeneNames":
        """Return these genes only, in this order."""
        kinds = (self.names, self.ids, self.symbols)
        names, ids, symbols = (None if kind is None else tuple(kind[i] for i in places) for kind in kinds)
        return GeneNames(names or (), ids, symbols)

    @property
    def symbols_beside(self) -> tuple[str, ...] | None:
        """The symbols, where the names are ids or numbers, so that a reader needs them."""
        return self.symbols if self.symbols and (are_ids(self.names) or _are(_NUMBERED, self.names)) else None

    @property
    def shown(self) -> tuple[str, ...]:
        """What to call each gene in figures and sentences."""
        beside = self.symbols_beside
        return self.names if beside is None else tuple(shown(self.names, beside))

    def kinds(self) -> dict[str, pd.Index]:
        """Return the kinds of name that there are."""
        found = {"names": self.names, "ids": self.ids, "symbols": self.symbols}
        return {kind: pd.Index(names, dtype=object) for kind, names in found.items() if names is not None}


def shown(names: Sequence[str], symbols: Sequence[str]) -> list[str]:
    """Return "SYMBOL" for each gene, "SYMBOL (id)" where genes share it, and the id where there is none."""
    genes_of = pd.Series(list(names)).groupby(list(symbols)).nunique()
    return [
        name if not symbol or symbol == name else symbol if genes_of[symbol] == 1 else f"{symbol} ({name})"
        for name, symbol in zip(names, symbols, strict=True)
    ]


def shown_in(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose column ``gene`` holds what genes are shown as, where it has a column ``symbol``."""
    if "symbol" not in table:
        return table
    return table.assign(gene=shown(list(table["gene"]), list(table["symbol"].astype(object).fillna(""))))


def match(wanted: GeneNames, given: GeneNames) -> tuple[np.ndarray, str]:
    """Find genes among others by name or, where that finds clearly more of them, by id or symbol.

    The names are tried as they are; then ids and symbols of either side; then all of these without version
    (``ENSG00000000003.15``). Another way than the names is taken where it finds more genes by a tenth of those
    wanted. A symbol or an id that several genes of one side share stands for none of them.

    Returns
    -------
    place_G : ndarray of int
        Which of ``given`` each wanted gene is, -1 for none.
    said : str
        How they were found, "" for names as they are.
    """
    names = pd.Index(given.names, dtype=object)
    best = names.get_indexer(pd.Index(wanted.names, dtype=object))
    by_name, said = int((best >= 0).sum()), ""
    least = by_name + max(1.0, CLEARLY * len(wanted.names))
    if least > min(len(wanted.names), len(names)):
        return best, said
    for versions in (True, False):
        for kind_wanted, them in wanted.kinds().items():
            for kind, us in given.kinds().items():
                place = _places(them, us) if versions else _places(without_version(them), without_version(us))
                found = int((place >= 0).sum())
                if found >= least:
                    best, least = place, found + 1
                    said = (
                        f"Genes were matched by {_both(kind_wanted, kind)}{'' if versions else ' without version'}, as "
                        f"their names differ ({wanted.names[0]!r} and {given.names[0]!r}): {found:,} of "
                        f"{len(wanted.names):,} were found, {by_name:,} by name."
                    )
    return best, said


def without_version(names: pd.Index) -> pd.Index:
    """Return ids without the version that Ensembl ends them with; other names stay as they are."""
    return pd.Index([_VERSION.sub("", n) if _ID.fullmatch(n) else n for n in names], dtype=object)


def are_ids(names: Sequence[str]) -> bool:
    """Return whether most names are ids of genes."""
    return _are(_ID, names)


def why_missing(wanted: GeneNames, given: GeneNames, cells: Sequence[str]) -> str:
    """Return what to do where few of the wanted genes were found."""
    few = set(wanted.names)
    if len(few.intersection(map(str, cells))) > 0.5 * min(len(few), len(cells)):
        return "The rows are called like the model's genes: swap rows and columns (adata.T)."
    lower = {name.lower() for name in given.names}
    if sum(name.lower() in lower for name in few) > 0.5 * len(few):
        return (
            f"They differ in upper and lower case ({wanted.names[0]!r}): mouse genes are no human genes. Write "
            "names as the model has them, if they are of the same species."
        )
    return (
        "Check that both use the same kind of name, or put the other kind into var['gene_ids'] or "
        "var['gene_symbols']."
    )


def rows_are_genes(rows: Sequence[str], columns: Sequence[str]) -> bool:
    """Return whether a table is genes x cells, as far as its names tell."""
    genes_in_rows, genes_in_columns = _like_genes(rows), _like_genes(columns)
    if genes_in_rows and not genes_in_columns:
        return True
    return _are(_BARCODE, columns) and not _are(_BARCODE, rows) and not genes_in_columns


def are_numbered(names: Sequence[str]) -> bool:
    """Return whether most names are numbers, or R's V1, V2 ... for columns without a name."""
    return _are(_NUMBERED, names)


def oddities(names: Sequence[str]) -> list[str]:
    """Return warnings of names that are hardly those of genes."""
    dates = [name for name in names if _DATE.fullmatch(name)]
    blank = [name for name in names if name.strip().lower() in _BLANK]
    said = []
    if dates:
        said.append(
            f"{len(dates)} genes are called like dates ({listed(dates)}), as spreadsheets do to MARCHF1 or SEPTIN2: "
            "mend the names before you read anything into these genes."
        )
    if blank:
        said.append(f"{len(blank)} genes have no name ({listed(blank)}).")
    if are_numbered(names):
        said.append(
            f"Genes are called by numbers ({listed(list(names[:2]))}): their names were lost on the way."
        )
    return said


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
    some = names[:: max(1, len(names) // _LOOKED_AT)]
    return len(some) > 0 and sum(bool(pattern.fullmatch(name)) for name in some) > len(some) / 2


def _like_genes(names: Sequence[str]) -> bool:
    return are_ids(names) or sum(bool(_KNOWN.fullmatch(name)) for name in names[:_MOST_GENES]) >= 2


def check_unique(
    names: pd.Index, what: str = "gene", way_out: str = "Make them unique with adata.var_names_make_unique()."
) -> None:
    """Raise :class:`ScmedleyError` where a name occurs more than once."""
    duplicated = names[names.duplicated()].unique()
    if len(duplicated):
        raise ScmedleyError(
            f"{len(duplicated):,} {what} names occur more than once: {listed([str(n) for n in duplicated])}. "
            + way_out
        )
