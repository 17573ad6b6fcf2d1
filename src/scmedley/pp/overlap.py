"""Check whether batch and label can be told apart: only if batches share labels."""

from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.sparse.csgraph import connected_components

from scmedley.data.design import as_categories
from scmedley.errors import listed

Verdict = Literal["identifiable", "partly identifiable", "not identifiable"]


@dataclass(frozen=True)
class Overlap:
    """Labels that batches share.

    Attributes
    ----------
    table
        Cells per label (rows) and batch (columns).
    parts
        Groups of batches that are linked by shared labels, directly or through other batches.
    verdict
        ``"identifiable"``: every two batches share a label. ``"not identifiable"``: no two do, so batch and
        label cannot be told apart. ``"partly identifiable"``: all other cases.
    words
        The verdict as sentences, with the batches that cannot be compared.
    """

    table: pd.DataFrame
    parts: list[list[str]]
    verdict: Verdict
    words: str

    @property
    def of_one_batch(self) -> dict[str, str]:
        """Labels that occur in only one batch, with that batch."""
        seen_KB = self.table.to_numpy() > 0
        rows = zip(self.table.index, seen_KB, strict=True)
        return {str(label): str(self.table.columns[s.argmax()]) for label, s in rows if s.sum() == 1}


def overlap(batch: "pd.Series[Any]", label: "pd.Series[Any]") -> Overlap:
    """Return which batches share labels, so that they can be compared.

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
    found = Overlap(table, parts, verdict, _overlap_words(verdict, parts, apart))
    if verdict == "identifiable" and (alone := list(found.of_one_batch)):
        where = "which is in one batch only" if len(alone) == 1 else "which are in one batch each"
        found = replace(found, words=f"{found.words.removesuffix('.')}, except for {listed(alone)}, {where}.")
    return found


def _overlap_words(verdict: Verdict, parts: list[list[str]], apart: list[tuple[str, str]]) -> str:
    if verdict == "identifiable":
        return "Every two batches share at least one label, so all of them can be compared."
    if verdict == "not identifiable":
        return (
            "No two batches share a label, so the effects of batch and label cannot be told apart, "
            "and no batch can be compared with another."
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
    return f"These batches share no label and can be compared only through other batches: {pairs}{more}."
