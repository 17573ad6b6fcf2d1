"""Describe the columns of obs, and guess which holds the batch, the donor, the site and the label of a cell."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from anndata import AnnData

from scmedley.data.design import as_categories, column
from scmedley.errors import ScmedleyError
from scmedley.pp.checks import FEW_VALUES, MOST_NUMBERS, MOST_VALUES

Kind = Literal["categorical", "number", "text", "constant", "identifier", "empty"]
Role = Literal["batch", "donor", "site", "label"]
ROLES: tuple[Role, ...] = get_args(Role)

MOST_LEVELS = 1_000  # levels that a table or a page can show
BINS = 24
SHOWN = 5  # most frequent levels in the table of columns
TABLE_COLUMNS = (
    *("column", "kind", "levels", "missing", "most_frequent", "min", "median", "max"),
    *("nested_in", "same_as", "role"),
)

# The words of a role, the best first. A column must begin with the word, or be its plural.
WORDS: dict[Role, tuple[str, ...]] = {
    "batch": (
        *("batch", "sample", "library", "dataset", "channel", "lane", "run", "plate", "chip", "replicate"),
        *("experiment", "file", "protocol", "technology", "tech", "assay", "chemistry", "platform"),
    ),
    "donor": ("donor", "patient", "subject", "individual", "participant", "person", "mouse", "animal"),
    "site": ("site", "center", "centre", "hospital", "institute", "institution", "lab", "study"),
    "label": (
        *("cell_type", "celltype", "label", "annotation", "cell_ontology_class", "cluster", "cell_state"),
        *("leiden", "louvain", "seurat_clusters", "subpop", "ident"),
    ),
}
_SAME = {"id", "ids", "name", "names", "number", "no", "key", "code"}  # after the word they change nothing
_OF_IT = {  # after the word they make it a property of the batch or donor, or a remark about the label
    *("age", "sex", "gender", "bmi", "race", "ethnicity", "source", "type", "status", "smoker", "date"),
    *(
        "probability",
        "score",
        "confidence",
        "count",
        "counts",
        "size",
        "color",
        "colour",
        "colors",
        "colours",
    ),
}


@dataclass(eq=False)
class Column:
    """One column of obs: its kind, and the code of each cell's level (-1: missing) if its levels are counted."""

    name: str
    kind: Kind
    n_levels: int
    n_missing: int
    codes: np.ndarray | None = None
    levels: list[str] = field(default_factory=list)
    numbers: tuple[float, float, float] | None = None  # least, median, largest
    histogram: np.ndarray | None = None  # of numbers: cells in BINS bins of equal width
    nested_in: list[str] = field(default_factory=list)
    same_as: list[str] = field(default_factory=list)

    @property
    def categorical(self) -> "pd.Series[Any]":
        """Return the level of each cell."""
        assert self.codes is not None  # only columns with levels have a role
        names: pd.Index[Any] = pd.Index(self.levels, dtype=object)
        return pd.Series(pd.Categorical.from_codes(self.codes, categories=names))

    @property
    def sizes(self) -> np.ndarray:
        """Return the number of cells of each level."""
        codes = np.zeros(0, dtype=np.int64) if self.codes is None else self.codes
        return np.bincount(codes[codes >= 0], minlength=self.n_levels)


def describe(obs: pd.DataFrame) -> list[Column]:
    """Return what each column of obs holds, and which column it is nested in.

    A column is nested in another one if all cells of each of its levels have the same level there, as donors in
    sites; it is the same as another one if this is so in both directions. Cells without a value in one of the
    two are left out. Of the columns that a column is nested in, those that another of them is nested in are not
    listed: donors in sites in countries are nested in sites. Of columns with the same groups the first is listed.
    """
    found = [_described(obs.iloc[:, i]) for i in range(obs.shape[1])]
    used = [c for c in found if c.codes is not None and c.n_levels > 1 and c.kind != "identifier"]
    inside = {
        id(one): [other for other in used if other is not one and _is_nested(one, other)] for one in used
    }
    for one in used:
        above = inside[id(one)]
        same = [other for other in above if one in inside[id(other)]]
        nearest: list[Column] = []
        for top in above:
            between = [mid for mid in above if mid is not top and top in inside[id(mid)]]
            is_listed = any(top in inside[id(mid)] for mid in nearest)  # a column with the same groups
            if (
                top not in same
                and not is_listed
                and all(mid in inside[id(top)] for mid in between if mid not in same)
            ):
                nearest.append(top)
        one.same_as, one.nested_in = [c.name for c in same], [c.name for c in nearest]
    return found


def _described(values: "pd.Series[Any]") -> Column:
    name, n_missing = str(values.name), int(values.isna().sum())
    n_there = len(values) - n_missing
    is_number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    try:
        n = int(values.nunique())
    except TypeError:  # lists and the like cannot be compared
        values = values.astype(str)
        n = int(values.nunique())
    if n > MOST_LEVELS or (is_number and n > MOST_NUMBERS):
        kind: Kind = "number" if is_number else "text"
        if kind == "text" and n > max(FEW_VALUES, n_there * MOST_VALUES):
            kind = "identifier"
        codes, levels = None, []
        if kind == "text":
            raw, unique = pd.factorize(values, use_na_sentinel=True)
            codes, levels = raw.astype(np.int64), [str(v) for v in unique]
    else:
        as_text = as_categories(values)
        codes, levels = np.asarray(as_text.codes, dtype=np.int64), [str(v) for v in as_text.categories]
        n, n_missing = len(levels), int((codes < 0).sum())
        kind = _kind_of_few(values, n, len(values) - n_missing, is_number)
    numbers = histogram = None
    if is_number and n:
        there = values.dropna().to_numpy(dtype=np.float64)
        numbers = (float(there.min()), float(np.median(there)), float(there.max()))
        finite = there[np.isfinite(there)]
        histogram = np.histogram(finite, BINS)[0] if len(finite) else None
    return Column(name, kind, n, n_missing, codes, levels, numbers, histogram)


def _kind_of_few(values: "pd.Series[Any]", n: int, n_there: int, is_number: bool) -> Kind:
    """Return the kind of a column whose levels can be counted."""
    if n == 0:
        return "empty"
    if n == 1:
        return "constant"
    if is_number:
        # 0 and 1, or clusters 0 to 20, are groups; ages are numbers.
        return "categorical" if n <= FEW_VALUES and _whole(values) else "number"
    return "identifier" if n > max(FEW_VALUES, n_there * MOST_VALUES) else "categorical"


def _whole(values: "pd.Series[Any]") -> bool:
    numbers = values.dropna().to_numpy(dtype=np.float64)
    return bool((numbers == np.rint(numbers)).all())


def _is_nested(one: Column, other: Column) -> bool:
    """Return whether the cells of each level of ``one`` have one level of ``other``."""
    if one.codes is None or other.codes is None or one.n_levels < other.n_levels:
        return False
    both = (one.codes >= 0) & (other.codes >= 0)
    a, b = one.codes[both], other.codes[both]
    if not len(a) or len(np.unique(b)) < 2:
        return False
    of_level = np.zeros(one.n_levels, dtype=np.int64)
    of_level[a] = b  # the last cell of each level; if nested, all agree with it
    return bool((of_level[a] == b).all())


@dataclass(frozen=True)
class Key:
    """The column of a role, and why it was chosen."""

    role: Role
    column: Column
    why: str


def keys_of(obs: pd.DataFrame, found: list[Column], given: Mapping[Role, str | None]) -> dict[Role, Key]:
    """Return the column of each role: as given, else guessed from its name.

    The guess takes the first word of :data:`WORDS` that a column's name begins with (``DonorID`` begins with
    "donor"), and of several such columns the one with fewest other words in its name. A column must hold groups:
    categorical, and with fewer levels than half of the cells. A property (``donor_age``) is not a donor.

    Raises
    ------
    ScmedleyError
        A given column does not exist, or its levels cannot be tabulated.
    """
    chosen: dict[Role, Key] = {}
    if given.get("label") is not None and given["label"] in (
        given.get("batch"),
        given.get("donor"),
        given.get("site"),
    ):
        raise ScmedleyError(
            f"obs[{given['label']!r}] is given as the label and as another role. The label is the cell type or another "
            "property to keep. Choose its column, or leave the label out."
        )
    for role in ROLES:
        name = given.get(role)
        if name is not None:
            # Raises with the closest name; it takes an AnnData.
            column(AnnData(obs=obs.iloc[:1].set_axis(["cell"])), name, role)
            one = next(c for c in found if c.name == name)
            _check_levels(one, role)
            chosen[role] = Key(role, one, "given")
            continue
        taken = {key.column.name for key in chosen.values()}
        guess = _guess([c for c in found if c.name not in taken], role)
        if guess:
            chosen[role] = guess
    return chosen


def _check_levels(one: Column, role: str) -> None:
    if one.kind == "identifier":
        raise ScmedleyError(
            f"obs[{one.name!r}] has {one.n_levels:,} levels, one for nearly every cell: these are identifiers, not a "
            f"{role}. Choose a column of groups for --{role}."
        )
    if one.codes is None or one.n_levels > MOST_LEVELS:
        raise ScmedleyError(
            f"obs[{one.name!r}] has {one.n_levels:,} levels in {one.kind} values: as a {role} it cannot be tabulated "
            f"(at most {MOST_LEVELS:,} levels). Choose a column of groups for --{role}."
        )
    if one.n_levels == 0:
        raise ScmedleyError(f"obs[{one.name!r}] has no values. Choose another column for --{role}.")


def _guess(found: list[Column], role: Role) -> Key | None:
    best: tuple[int, int, int] | None = None
    key = None
    for i, one in enumerate(found):
        if one.kind != "categorical" or one.n_levels > MOST_LEVELS:
            continue
        tokens = _tokens(one.name)
        for rank, word in enumerate(WORDS[role]):
            rest = _after(tokens, _tokens(word))
            if rest is None or set(rest) & _OF_IT:
                continue
            place = (rank, len([t for t in rest if t not in _SAME and not t.isdigit()]), i)
            if best is None or place < best:
                best = place
                key = Key(role, one, f"its name begins with {word.replace('_', ' ')!r}")
            break
    return key


def _tokens(name: str) -> list[str]:
    """Return the words of a name: ``DonorID`` and ``donor_id`` are "donor", "id"."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return re.findall(r"[a-z]+|\d+", spaced.lower())


def _after(tokens: list[str], word: list[str]) -> list[str] | None:
    """Return the words after ``word`` at the start of a name, None if it does not start so."""
    head = tokens[: len(word)]
    if len(head) < len(word) or head[:-1] != word[:-1]:
        return None
    last = head[-1]
    if last not in (word[-1], word[-1] + "s"):
        glued = last.removeprefix(word[-1])  # samplename, donorid
        return [glued, *tokens[len(word) :]] if last.startswith(word[-1]) and glued in _SAME else None
    return tokens[len(word) :]


def columns_table(found: list[Column], keys: Mapping[Role, Key]) -> pd.DataFrame:
    """Return one row for each column of obs."""
    role_of = {key.column.name: role for role, key in keys.items()}
    rows = []
    for one in found:
        rows.append(
            {
                "column": one.name,
                "kind": one.kind,
                "levels": one.n_levels,
                "missing": one.n_missing,
                "most_frequent": "" if one.kind in ("number", "identifier") else _most_frequent(one),
                "min": one.numbers[0] if one.numbers else np.nan,
                "median": one.numbers[1] if one.numbers else np.nan,
                "max": one.numbers[2] if one.numbers else np.nan,
                "nested_in": "; ".join(one.nested_in),
                "same_as": "; ".join(one.same_as),
                "role": role_of.get(one.name, ""),
            }
        )
    return pd.DataFrame(rows, columns=list(TABLE_COLUMNS))


def _most_frequent(one: Column) -> str:
    sizes = one.sizes
    order = np.argsort(-sizes, kind="stable")[:SHOWN]
    shown = ", ".join(f"{one.levels[i]} ({sizes[i]:,})" for i in order)
    return shown + (f", {one.n_levels - SHOWN:,} more" if one.n_levels > SHOWN else "")


def crossed(rows: Column, columns: Column) -> pd.DataFrame:
    """Return the number of cells for each level of one column and each level of another."""
    assert rows.codes is not None
    assert columns.codes is not None
    both = (rows.codes >= 0) & (columns.codes >= 0)
    shape = (rows.n_levels, columns.n_levels)
    place = rows.codes[both] * shape[1] + columns.codes[both]
    counts = np.bincount(place, minlength=shape[0] * shape[1]).reshape(shape)
    return pd.DataFrame(counts, index=pd.Index(rows.levels, name=rows.name), columns=columns.levels)


def confounding_table(keys: Mapping[Role, Key]) -> pd.DataFrame:
    """Return, for each two roles, how strongly one determines the other.

    Cramer's V is 0 if all levels of one have the same shares of the levels of the other, and 1 if one determines
    the other. ``by_chance`` is its root mean square if the levels were permuted: sqrt((k - 1) / (n - 1)) for n cells
    and k levels, the larger number of both. It is far from 0 if cells are few.
    """
    from scipy.stats.contingency import association

    rows = []
    chosen = list(keys.values())
    for i, one in enumerate(chosen):
        for other in chosen[i + 1 :]:
            table = crossed(other.column, one.column).to_numpy()
            table = table[table.sum(1) > 0][:, table.sum(0) > 0]
            known = min(table.shape) > 1
            rows.append(
                {
                    "one": one.role,
                    "other": other.role,
                    "cramers_v": float(association(table, method="cramer")) if known else np.nan,
                    "by_chance": math.sqrt((max(table.shape) - 1) / (table.sum() - 1)) if known else np.nan,
                    "of_one_only": int(((table > 0).sum(1) == 1).sum()),
                    "with_one_only": int(((table > 0).sum(0) == 1).sum()),
                    "empty_pairs": int((table == 0).sum()),
                    "pairs": int(table.size),
                }
            )
    names = ("one", "other", "cramers_v", "by_chance", "of_one_only", "with_one_only", "empty_pairs", "pairs")
    return pd.DataFrame(rows, columns=list(names))
