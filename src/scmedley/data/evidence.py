"""Decide what one matrix holds, from a single pass over it.

Four facts distinguish counts from logarithms of counts per total, the strongest first:

1. whole numbers, as stored or after undoing a logarithm;
2. equal totals of the cells after undoing a logarithm (which also shows the base);
3. values of a cell that are whole multiples of its smallest value, as k / total is;
4. in cells with more detected genes, counts are larger, but normalised values are smaller.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from scmedley.data.scan import LN, NOISE, Base, Evidence
from scmedley.errors import ScmedleyError
from scmedley.keys import ValueKind

Values = Literal["counts", "log-normalised", "other"]

TARGET_SUM = 1e4  # counts per cell after normalisation, before log1p
CORRECTED = 2  # rank of corrected counts: something was subtracted
_ROUND_TOTALS = (TARGET_SUM, 1e6)  # near these, totals may differ slightly: genes were removed later
_LEAST_TARGET = 10  # counts per cell: logarithms of fewer are not in use
_EXACT = 1e-5  # spread of totals that are equal except for rounding


@dataclass(frozen=True)
class Checked:
    """The matrix to use, and what it holds.

    Attributes
    ----------
    values
        What the matrix holds. Logarithms of whole counts, not divided by a total, are ``"counts"``.
    where
        Place of the matrix: ``"X"``, ``"layers['counts']"``, another layer, or ``"raw.X"``.
    warnings
        Sentences for the report.
    total
        For log-normalised values: the counts per cell before the logarithm (10,000 for CP10k). ``None`` if
        the cells differ in it, and for counts.
    base
        The logarithm: ``"log1p"`` (natural), ``"log2"`` or ``"log10"``, each of the value plus 1.
    reason
        One sentence: what the matrix holds, and the evidence.
    caution
        The warning that the kind is uncertain, if any.
    sure
        Whether the evidence for the kind is conclusive.
    rank
        Preference, 0 is the best: 0 for whole counts, 1 for logarithms of whole counts, 2 for corrected
        counts, 3 for counts per total, 4 for logarithms of a known total, 5 and 6 for uncertain kinds.
    nearly_whole
        Whether rounding makes all counts whole.
    n_negative
        Number of negative values, which are set to 0.
    sizes
        The log-normalised matrix of more genes that gives the cells' totals, if the counts are of a subset of
        the genes.
    """

    values: Values
    where: str
    warnings: list[str] = field(default_factory=list)
    total: float | None = None
    base: Base | None = None
    reason: str = field(default="", compare=False)
    caution: str | None = field(default=None, compare=False)
    sure: bool = field(default=True, compare=False)
    rank: int = field(default=0, compare=False)
    nearly_whole: bool = False
    n_negative: int = 0
    sizes: "Checked | None" = None

    @property
    def kind(self) -> str:
        """Return ``"other"``, or the kind as an option of ``--values`` (``"counts"``, ``"log1p"``, ...)."""
        return self.base or ("other" if self.values == "other" else "counts")

    @property
    def is_as_stored(self) -> bool:
        """Return whether the stored values can be used unchanged."""
        return not (self.nearly_whole or self.n_negative or (self.values == "counts" and self.base))


def judge(seen: Evidence, where: str, asked: ValueKind = "auto") -> Checked:
    """Decide what a matrix holds.

    Raises
    ------
    ScmedleyError
        It cannot hold the kind ``asked`` for; or it holds logarithms, but a few cells have larger values.
    """
    if asked != "auto":
        return _as_asked(seen, where, asked)
    if seen.n_negative:
        return _with_negative(seen, where)
    if seen.n_whole == seen.n_positive:
        return Checked("counts", where, reason=f"{where} holds counts: all values are whole numbers.")
    if seen.n_nearly_whole == seen.n_positive:
        reason = (
            f"{where} holds counts: all values are whole numbers except for rounding errors, and are rounded."
        )
        return Checked("counts", where, reason=reason, nearly_whole=True)
    for base in seen.undone_N:
        found = _logarithm_of_whole(seen, where, base)
        if found:
            return found
    # Proportions have logarithms whose totals nearly agree, so the totals as stored must agree less.
    plain = min(_agreement(seen.total_N), default=np.inf)
    agreeing = [(spread, base) for base in seen.undone_N for spread in _undone_agreement(seen.undone_N[base])]
    if agreeing and min(agreeing)[0] < plain:
        return _logarithm(seen, where, min(agreeing)[1])
    _refuse_outliers(seen, where, plain)
    return _not_whole(seen, where)


def _refuse_outliers(seen: Evidence, where: str, plain: float) -> None:
    """Raise if the totals of all but a few cells agree after undoing a logarithm, better than as stored."""
    rest = {base: total_N[np.isfinite(total_N)] for base, total_N in seen.nearly_N.items()}
    agreeing = [(spread, base) for base in rest for spread in _undone_agreement(rest[base])]
    if seen.first_above and agreeing and min(agreeing)[0] < plain:
        base = min(agreeing)[1]
        n = len(seen.total_N) - len(rest[base])
        raise ScmedleyError(
            f"{where} holds {kind_words(base)} of counts per total, but in {n} of {len(seen.total_N):,} cells a "
            f"value is larger than any logarithm of a count (the first: {seen.first_above}). Fix the step that wrote "
            "it, or drop those cells or genes."
        )


def kind_words(kind: str) -> str:
    """Return a kind of values in words."""
    return {
        "auto": "numbers",
        "counts": "counts",
        "log1p": "natural logarithms (log1p)",
        "log2": "logarithms to base 2",
        "log10": "logarithms to base 10",
    }.get(kind, "scaled or centred values")


def _as_asked(seen: Evidence, where: str, asked: ValueKind) -> Checked:
    """Return the kind that the user asked for, if the values allow it."""
    refused = f"{where} cannot hold {kind_words(asked)}, the kind that you asked for: "
    if seen.n_negative and not seen.few_negative:
        raise ScmedleyError(f"{refused}it has negative values (the first: {seen.first_negative}).")
    if asked == "counts":
        found = _unless_doubted(Checked("counts", where), seen)
        return _clipped(found, seen) if seen.n_negative else found
    if seen.n_whole == seen.n_positive:
        raise ScmedleyError(f"{refused}all its values are whole numbers.")
    if asked not in seen.undone_N:
        first = f" (the first such value: {seen.first_above})" if seen.first_above else ""
        raise ScmedleyError(
            f"{refused}its largest value, {seen.largest:,.6g}, is too large for a logarithm of a count{first}."
        )
    found = _logarithm_of_whole(seen, where, asked) or _logarithm(seen, where, asked)
    if found.total is None and found.values != "counts":
        found = _unless_doubted(found, seen)
    return _clipped(found, seen) if seen.n_negative else found


def _unless_doubted(asked: Checked, seen: Evidence) -> Checked:
    """Return the kind that the user asked for, with a warning if the evidence shows another kind."""
    reason = f"{asked.where} holds {kind_words(asked.kind)}, the kind that you asked for."
    try:
        found = judge(replace(seen, n_negative=0, lowest=0.0), asked.where)
        against = found.reason if found.sure and found.kind != asked.kind else ""
    except ScmedleyError as error:
        against = str(error)
    if not against:
        return replace(asked, reason=reason)
    words = (
        f"{asked.where} is used as {kind_words(asked.kind)}, the kind that you asked for. The evidence is against it: "
        f"{against}"
    )
    return replace(asked, reason=reason, warnings=[*asked.warnings, words])


def _with_negative(seen: Evidence, where: str) -> Checked:
    """Decide between counts after a subtraction and scaled or centred values."""
    other = Checked(
        "other",
        where,
        reason=f"{where} has negative values (the first: {seen.first_negative}): scaled or centred data.",
        rank=9,
    )
    if not seen.few_negative:
        return other
    without = replace(seen, n_negative=0, lowest=0.0)
    found = judge(without, where)
    if seen.lowest <= -NOISE and (found.values != "counts" or not found.sure):
        return other  # in logarithms, only rounding errors may be negative
    return _clipped(found, seen)


def _clipped(found: Checked, seen: Evidence) -> Checked:
    words = (
        f"{found.where} has {seen.n_negative:,} negative and {seen.n_positive:,} positive values. Negative values "
        f"are set to 0: the lowest is {seen.lowest:.6g}, the first {seen.first_negative}."
    )
    return replace(found, warnings=[*found.warnings, words], n_negative=seen.n_negative)


def _logarithm_of_whole(seen: Evidence, where: str, base: Base) -> Checked | None:
    """Return the finding for log(counts + 1), if all small values are whole after undoing the logarithm."""
    cells = seen.by_cell()
    values = np.expm1(np.concatenate(cells).astype(np.float64) * LN[base]) if cells else np.zeros(0)
    values = values[values < 50]  # larger ones are not exact in 16-bit floats
    # 0.1 % of 1 + value is the precision of 16-bit floats; a tenth of other values would be that near by
    # chance.
    if not len(values) or (np.abs(values - np.rint(values)) > 1e-3 * (1 + values)).mean() > 0.01:
        return None
    if np.rint(values).max() < 2:
        return None  # a single value is a whole number in some base
    return Checked(
        "counts",
        where,
        base=base,
        nearly_whole=True,
        rank=1,
        reason=f"{where} holds {kind_words(base)} of counts: undoing them gives whole numbers, which are used.",
    )


def _logarithm(seen: Evidence, where: str, base: Base) -> Checked:
    """Return the finding for log-normalised values of a known base."""
    total_N = seen.undone_N[base]
    total = agreed_total(total_N[total_N > 0])
    if total is not None:
        return Checked(
            "log-normalised",
            where,
            total=total,
            base=base,
            rank=4,
            reason=(
                f"{where} holds {kind_words(base)} of {total:,.6g} counts per cell, plus 1: after undoing them, the "
                "cells' totals agree."
            ),
        )
    words = (
        f"{where} is used as log-normalised ({kind_words(base)}), but the cells' totals differ after undoing the "
        "logarithm: a subset of the genes, another size factor, or corrected values. Its scale stays as it is. "
        "Give raw counts if you have them."
    )
    return Checked(
        "log-normalised",
        where,
        base=base,
        rank=6,
        reason=(
            f"{where} holds {kind_words(base)}: after undoing them, the values of a cell are whole multiples of its "
            "smallest value, but the cells' totals differ."
        ),
        warnings=[words],
        caution=words,
    )


def _not_whole(seen: Evidence, where: str) -> Checked:
    """Decide the kind of positive values whose totals agree after undoing none of the logarithms."""
    agree = _agreement(seen.total_N)
    if agree:
        total = float(seen.total_N[seen.total_N > 0].mean())
        return _corrected(seen, where, f"the cells' totals agree ({total:,.6g})", rank=3)
    if not seen.undone_N:
        return _corrected(
            seen, where, f"values are larger than any logarithm of a count (the first: {seen.first_above})"
        )
    if seen.n_whole > 0.02 * seen.n_positive:
        return _corrected(seen, where, f"{seen.n_whole / seen.n_positive:.0%} of the values are whole")
    off = {base: _off_multiples(seen, LN[base]) for base in seen.undone_N}
    base = min(off, key=lambda b: off[b])
    itself = _off_multiples(seen, None)
    if itself < 0.02 and itself <= off[base]:
        return _corrected(seen, where, "the values of a cell are whole multiples of its smallest one")
    if off[base] < 0.02:
        return _logarithm(seen, where, base)
    rising = _rising(seen)
    if rising > 0:
        how = (
            "cells with more detected genes have larger values, as in counts and unlike in normalised values"
        )
        return _corrected(seen, where, how, rank=5, sure=False)
    found = _logarithm(seen, where, "log1p")
    reason = (
        f"{where} most likely holds natural logarithms: no value exceeds 20, and cells with more detected genes do not "
        "have larger values, as counts would."
    )
    return replace(found, sure=False, reason=reason)


def _corrected(seen: Evidence, where: str, how: str, rank: int = CORRECTED, sure: bool = True) -> Checked:
    words = f"{where} holds non-integer counts (the largest value is {seen.largest:.6g}); they are used as counts."
    if not sure:
        words += " If they are logarithms, set --values (values= in Python)."
    reason = f"{where} holds non-integer counts: {how}."
    return Checked("counts", where, warnings=[words], caution=words, reason=reason, rank=rank, sure=sure)


def agreed_total(total_N: np.ndarray) -> float | None:
    """Return the counts per cell before the logarithm, None if the cells differ.

    The spread is the standard deviation over the mean. Near 10,000 and 1,000,000 it may be 5 %, because genes
    may have been removed later. Any other total needs two cells and a spread of 0.3 %: similar cells have
    nearly the same total in a subset of the genes too.
    """
    if not len(total_N):
        return None
    mean, spread = float(total_N.mean()), float(total_N.std() / total_N.mean())
    off, target = min((abs(mean / target - 1), target) for target in _ROUND_TOTALS)
    if off > 0.01 and spread <= 3e-3 and len(total_N) > 1:
        return mean
    allowed = 0.05 if len(total_N) > 1 else 3e-3
    return target if off <= allowed and spread <= allowed else None


def _agreement(total_N: np.ndarray) -> list[float]:
    """Return the spread of the totals, or an empty list if they do not agree."""
    total_N = total_N[total_N > 0]
    return [] if agreed_total(total_N) is None else [float(total_N.std() / total_N.mean())]


def _undone_agreement(total_N: np.ndarray) -> list[float]:
    """Return the spread of totals after undoing a logarithm. Small totals (of proportions) must be equal."""
    small = total_N.sum() < _LEAST_TARGET * (total_N > 0).sum()
    return [spread for spread in _agreement(total_N) if not small or spread < _EXACT]


def _off_multiples(seen: Evidence, ln: float | None) -> float:
    """Return the distance (0 to 0.5) to whole multiples of a cell's smallest value, in the median cell.

    ``ln`` is the logarithm of the base to undo first. k / total has distance 0, values without a unit about
    0.25.
    """
    off = []
    for values in seen.by_cell():
        undone = values.astype(np.float64) if ln is None else np.expm1(values.astype(np.float64) * ln)
        multiples = undone / undone.min()
        multiples = multiples[(multiples > 1.2) & (multiples < 8.5)]
        if len(multiples) >= 3:
            off.append(np.abs(multiples - np.rint(multiples)).mean())
    return float(np.median(off)) if off else 0.5


def _rising(seen: Evidence) -> float:
    """Return the rank correlation over cells of the number of detected genes with their mean value."""
    from scipy.stats import rankdata

    used = seen.found_N > 0
    found, mean = seen.found_N[used], seen.total_N[used] / seen.found_N[used]
    if len(found) < 10 or np.ptp(found) == 0 or np.ptp(mean) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(found), rankdata(mean))[0, 1])
