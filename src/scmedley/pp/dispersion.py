"""Fit one dispersion of the negative binomial to the means and variances of all genes."""

from dataclasses import dataclass

import numpy as np

LEAST_CELLS = 10  # in which a gene must be detected to take part in the fit
LEAST_GENES = 10  # that take part
_RANGE = (-4.0, 3.0)  # of log10 of the dispersion
LEAST = 10 ** _RANGE[0] * 1.01


@dataclass(frozen=True)
class Dispersion:
    """The common dispersion φ of counts with variance μ + φ μ².

    Attributes
    ----------
    value
        φ, 0 for no more variance than Poisson's.
    depth
        The squared coefficient of variation of the cells' totals beyond Poisson's: the dispersion that different
        totals alone give to every gene.
    n_genes
        Genes that took part in the fit.
    """

    value: float
    depth: float
    n_genes: int

    @property
    def beyond_depth(self) -> float:
        """Return the dispersion of counts around their expectation at the cell's own total.

        With totals that vary by ``depth``, a gene of dispersion φ' has (1 + φ') (1 + depth) - 1 in all cells.
        """
        return max(0.0, (self.value - self.depth) / (1 + self.depth))


def fit_dispersion(
    mean_G: np.ndarray, variance_G: np.ndarray, cells_G: np.ndarray, total_N: np.ndarray
) -> Dispersion | None:
    """Fit the dispersion so that the sum over genes of abs(log(variance) - log(μ + φ μ²)) is least.

    In logarithms genes of all means count alike, and the absolute difference lets a few very variable genes
    (markers of a cell type) change the fit little.

    Parameters
    ----------
    mean_G, variance_G
        Of the counts of each gene over the cells.
    cells_G
        Cells in which each gene was detected; genes with fewer than 10 are left out.
    total_N
        Counts of each cell.

    Returns
    -------
    Dispersion or None
        None if fewer than 10 genes can take part.
    """
    from scipy.optimize import minimize_scalar

    used = (cells_G >= LEAST_CELLS) & (variance_G > 0)
    if used.sum() < LEAST_GENES:
        return None
    mean, variance = mean_G[used], variance_G[used]

    def misfit(log10: float) -> float:
        return float(np.abs(np.log(variance) - np.log(mean + 10**log10 * mean**2)).sum())

    grid = np.linspace(*_RANGE, 141)
    start = grid[int(np.argmin([misfit(g) for g in grid]))]
    best = minimize_scalar(misfit, bounds=(start - 0.1, start + 0.1), method="bounded").x
    value = float(10**best)
    average = total_N.mean()
    depth = max(0.0, float((total_N.var() - average) / average**2))
    return Dispersion(0.0 if value < LEAST else value, depth, int(used.sum()))
