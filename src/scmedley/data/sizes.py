"""Totals over all counted genes, computed from normalised logarithms of a subset of these genes."""

import numpy as np

from scmedley.data.arrays import Matrix
from scmedley.data.evidence import TARGET_SUM, Checked, agreed_total, judge
from scmedley.data.scan import LN, examine

_COMMON_TARGETS = (1e3, TARGET_SUM, 1e5, 1e6)  # counts per cell after normalisation, the least first
_RESOLVED = 5e4  # counts per cell below which 32-bit logarithms resolve whole totals
_DECIDING = 8  # cells that suffice: so many whole totals are not chance


def sizes_known(
    part: np.ndarray, total_N: np.ndarray, shared: np.ndarray, other: Matrix, where: str
) -> Checked | None:
    """Return the finding for ``where``, if it holds logarithms of these counts per total over more genes.

    Its ``total`` is None if the counts per cell before the logarithm are not known.
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
            return None  # the totals are over the same genes as the counts
        return Checked("log-normalised", where, total=target, base=base)
    return None


def _target(unit_N: np.ndarray, total_N: np.ndarray) -> float | None:
    """Return the counts per cell for which the totals over all genes are whole; None if there are none.

    Common targets are tried first, then all whole and half numbers: the target may be the median of the
    cells' totals. Cells with too many counts for 32-bit logarithms to resolve whole numbers are ignored.
    """

    def off(targets: np.ndarray, unit_N: np.ndarray) -> np.ndarray:
        """Return each target's median distance to whole totals; infinite if too many totals are not whole."""
        all_TN = targets[:, None] / unit_N
        off_TN = np.abs(all_TN - np.rint(all_TN))
        resolved_TN = all_TN < _RESOLVED
        whole_TN = off_TN < np.maximum(0.02, 2e-6 * all_TN)
        n_T = resolved_TN.sum(1)
        good_T = (n_T >= min(_DECIDING, len(unit_N))) & ((whole_TN & resolved_TN).sum(1) > 0.9 * n_T)
        return np.where(good_T, np.median(off_TN, axis=1), np.inf)

    for target in _COMMON_TARGETS:
        if (target / unit_N >= 0.99 * total_N).all() and np.isfinite(off(np.array([target]), unit_N))[0]:
            return target
    best = np.argsort(-unit_N)[:_DECIDING]  # the cells with the fewest counts are the most precise
    if len(best) < _DECIDING:
        return None
    least = float((unit_N * total_N).max())
    targets = np.arange(np.ceil(2 * 0.999 * least), 2 * _RESOLVED * unit_N[best[-1]]) / 2
    if not len(targets):
        return None
    off_T = off(targets, unit_N[best])
    found = targets[off_T.argmin() : off_T.argmin() + 1] if np.isfinite(off_T.min()) else targets[:0]
    return float(found[0]) if len(found) and np.isfinite(off(found, unit_N))[0] else None
