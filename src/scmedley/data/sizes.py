"""Totals over all the genes that were counted, as logarithms of a part of these genes know them."""

import numpy as np

from scmedley.data.arrays import Matrix
from scmedley.data.evidence import TARGET_SUM, Checked, agreed_total, judge
from scmedley.data.scan import LN, examine

_COMMON_TARGETS = (1e3, TARGET_SUM, 1e5, 1e6)  # counts per cell after normalisation, the least first
_RESOLVED = 5e4  # counts per cell below which 32-bit logarithms tell whole totals
_DECIDING = 8  # cells whose whole totals are no chance


def sizes_known(
    part: np.ndarray, total_N: np.ndarray, shared: np.ndarray, other: Matrix, where: str
) -> Checked | None:
    """Return what ``where`` holds, if it is the logarithm of these counts per total over more genes.

    Its ``total`` is None where the counts per cell before the logarithm are not known.
    """
    used = total_N > 0
    largest = float(shared.max(initial=0))
    if not used.any() or not 0 < largest <= 20 or shared.min() < 0:
        return None
    for base in LN:
        undone = np.expm1(shared[used].astype(np.float64) * LN[base])
        unit_N = undone.sum(1) / total_N[used]  # target / total
        if not np.allclose(undone, part[used] * unit_N[:, None], rtol=1e-2, atol=1e-3):
            continue
        found = judge(examine(other, where, None, None), where) if where == "raw.X" else None
        if found is not None and found.total is not None:
            return found
        if len(unit_N) > 1 and np.ptp(unit_N) < 1e-4 * unit_N.max():
            return None  # not divided by totals
        target = _target(unit_N, total_N[used])
        if target is None and agreed_total(undone.sum(1)) is not None:
            return None
        if target is not None and (target / unit_N > 1.001 * total_N[used]).mean() <= 0.5:
            return None  # the totals are those of these very genes
        return Checked("log-normalised", where, total=target, base=base)
    return None


def _target(unit_N: np.ndarray, total_N: np.ndarray) -> float | None:
    """Return the counts per cell that make totals over all genes whole, as totals of counts are; None without one.

    Common targets are tried first; then all whole and half numbers, as the median of the cells' totals is one. Cells
    of so many counts that 32-bit logarithms do not tell whole numbers apart say nothing.
    """

    def off(targets: np.ndarray, unit_N: np.ndarray) -> np.ndarray:
        """Return, for each target, the median distance to whole numbers; infinite where they are missed."""
        all_TN = targets[:, None] / unit_N
        off_TN = np.abs(all_TN - np.rint(all_TN))
        told_TN = all_TN < _RESOLVED
        whole_TN = off_TN < np.maximum(0.02, 2e-6 * all_TN)
        n_T = told_TN.sum(1)
        good_T = (n_T >= min(_DECIDING, len(unit_N))) & ((whole_TN & told_TN).sum(1) > 0.9 * n_T)
        return np.where(good_T, np.median(off_TN, axis=1), np.inf)

    for target in _COMMON_TARGETS:
        if (target / unit_N >= 0.99 * total_N).all() and np.isfinite(off(np.array([target]), unit_N))[0]:
            return target
    best = np.argsort(-unit_N)[:_DECIDING]  # of few counts: most precise
    if len(best) < _DECIDING:
        return None
    least = float((unit_N * total_N).max())
    targets = np.arange(np.ceil(2 * 0.999 * least), 2 * _RESOLVED * unit_N[best[-1]]) / 2
    if not len(targets):
        return None
    off_T = off(targets, unit_N[best])
    found = targets[off_T.argmin() : off_T.argmin() + 1] if np.isfinite(off_T.min()) else targets[:0]
    return float(found[0]) if len(found) and np.isfinite(off(found, unit_N))[0] else None
