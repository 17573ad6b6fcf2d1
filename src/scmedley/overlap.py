"""Can batch and label be told apart? Only where batches share labels."""

from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.sparse.csgraph import connected_components

from scmedley.errors import listed

Verdict = Literal["identifiable", "partly identifiable", "not identifiable"]


@dataclass(frozen=True)
class Overlap:
    """Which batches share which labels.

    Attributes
    ----------
    table
        Cells per label (rows) and batch (columns).
    parts
        Batches that are linked, directly or through other batches, by labels they share.
    verdict
        ``"identifiable"``: every two batches share a label. ``"not identifiable"``: no two do, so batch and
        label cannot be told apart. ``"partly identifiable"``: anything between.
    words
        The verdict as sentences, naming the batches that cannot be compared.
    """

    table: pd.DataFrame
    parts: list[list[str]]
    verdict: Verdict
    words: str

    @property
    def of_one_batch(self) -> dict[str, str]:
        """Labels that are found in one batch only, and that batch."""
        seen_KB = self.table.to_numpy() > 0
        rows = zip(self.table.index, seen_KB, strict=True)
        return {str(label): str(self.table.columns[s.argmax()]) for label, s in rows if s.sum() == 1}


def overlap(batch: "pd.Series[Any]", label: "pd.Series[Any]") -> Overlap:
    """Say which batches share labels and so can be compared.

    ``batch`` and ``label`` have one value per cell, in the same order; cells without a label are left out.
    """
    b, k = as_categories(batch), as_categories(label)
    labelled = (b.codes >= 0) & (k.codes >= 0)
    shape = (len(k.categories), len(b.categories))
    cell_of_table = k.codes[labelled].astype(np.int64) * shape[1] + b.codes[labelled]
    counts_KB = np.bincount(cell_of_table, minlength=shape[0] * shape[1]).reshape(shape)
    table = pd.DataFrame(counts_KB, index=pd.Index(k.categories, name="label"), columns=b.categories)

    names = [str(name) for name in b.categories]
    seen_KB = (counts_KB > 0).astype(np.int64)
    shared_BB = seen_KB.T @ seen_KB > 0
    n_parts, part_B = connected_components(shared_BB, directed=False)
    parts = [[n for n, p in zip(names, part_B, strict=True) if p == i] for i in range(n_parts)]
    apart = [(names[i], names[j]) for i, j in combinations(range(len(names)), 2) if not shared_BB[i, j]]

    verdict: Verdict = "partly identifiable"
    if not apart:
        verdict = "identifiable"
    elif n_parts == len(names):
        verdict = "not identifiable"
    return Overlap(table, parts, verdict, _overlap_words(verdict, parts, apart))


def as_categories(column: "pd.Series[Any]") -> pd.Categorical:
    """Return a column as categories that are strings, all used.

    Missing values, blank strings and texts that pandas makes of missing values ("nan", "<NA>", "NaT") are missing.
    Whole floats lose their ``.0``, so that a batch read from a text file as 1.0 is called "1", and days their time.
    """
    raw = column.astype("category").cat.remove_unused_categories()
    names = [called(value) for value in raw.cat.categories]
    unique = list(dict.fromkeys(name for name in names if not _is_missing(name)))
    # The last entry is for pandas' code -1, a missing value.
    recode = np.array([unique.index(n) if not _is_missing(n) else -1 for n in names] + [-1], dtype=np.int64)
    categories: pd.Index[Any] = pd.Index(unique)  # strings of the kind that this pandas reads
    return pd.Categorical.from_codes(recode[raw.cat.codes.to_numpy()], categories=categories)


def called(value: Any) -> str:
    """Return what a batch or a label is called."""
    if isinstance(value, float | np.floating):  # 0.1 of a column of 32 bits is 0.10000000149
        value = int(value) if float(value).is_integer() else f"{value:.7g}"
    return str(value).strip().removesuffix(" 00:00:00")


def _is_missing(name: str) -> bool:
    return name.lower() in ("", "nan", "<na>", "nat")


def oddly_named(column: "pd.Series[Any]", what: str) -> list[str]:
    """Return warnings of values that are hardly what they are called: text for missing, or one thing spelled twice."""
    sizes = column.value_counts()
    of_name: dict[str, dict[Any, int]] = {}
    for value, size in sizes[sizes > 0].items():
        of_name.setdefault(called(value), {})[value] = int(size)
    said = []
    for name, values in of_name.items():
        n = sum(values.values())
        if name and _is_missing(name) and all(isinstance(value, str) for value in values):
            said.append(
                f"{n:,} cells have the {what} {name!r} in obs[{column.name!r}], which is a missing value turned into "
                "text; they are taken as missing."
            )
        elif name.lower() in ("none", "na", "n/a", "null", "unknown", "unassigned"):
            said.append(
                f"{n:,} cells have the {what} {name!r} in obs[{column.name!r}], which is kept as a {what} like any "
                "other. If it stands for a missing value, make it one (numpy.nan)."
            )
        elif len(values) > 1:
            said.append(
                f"The values {', '.join(map(repr, values))} of obs[{column.name!r}] are put together as {name!r}."
            )
    lower = pd.Series(list(of_name), index=[name.lower() for name in of_name], dtype=object)
    for _, alike in lower[lower.index.duplicated(keep=False)].groupby(level=0):
        if not _is_missing(alike.iloc[0]):
            said.append(
                f"{listed(list(alike))} of obs[{column.name!r}] differ in upper and lower case only; they are kept "
                "apart."
            )
    return said


def _overlap_words(verdict: Verdict, parts: list[list[str]], apart: list[tuple[str, str]]) -> str:
    if verdict == "identifiable":
        return "Every two batches share at least one label, so all of them can be compared."
    if verdict == "not identifiable":
        return (
            "No two batches share a label: what a batch does to a cell and what its label does cannot be "
            "told apart, and no batch can be compared with another."
        )
    if len(parts) > 1:
        groups = "; ".join("{" + listed(part) + "}" for part in parts[:5])
        more = f"; and {len(parts) - 5} more" if len(parts) > 5 else ""
        return (
            f"The batches fall into {len(parts)} groups that share no label, {groups}{more}: "
            "batches of different groups cannot be compared."
        )
    pairs = ", ".join(f"{a!r} with {b!r}" for a, b in apart[:5])
    more = f" and {len(apart) - 5:,} more pairs" if len(apart) > 5 else ""
    return f"These batches share no label and can be compared through other batches only: {pairs}{more}."
