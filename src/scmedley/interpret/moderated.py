"""Linear models of many genes over few samples, with donors as blocks and moderated variances.

Shapes: S samples (a donor under a condition), G genes, T terms (columns of the design), D donors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats
from scipy.linalg import cholesky, solve_triangular
from scipy.special import digamma, polygamma

Floats = NDArray[np.float64]
Block = Literal["none", "fixed", "random"]
POOLED = 10  # genes from which a distribution of variances is estimated; with fewer, each has its own variance only
GRID = np.arange(0, 0.96, 0.05)  # correlations of the samples of a donor that are tried
NO_VARIANCE = 1e-10  # log2 units squared: rounding


@dataclass(frozen=True)
class LinearModel:
    """Samples and the design of a linear model, the same for all genes.

    ``block`` says what donors are: ``"none"``, each sample is of another donor; ``"fixed"``, each donor has a
    level of its own, so that only differences within donors count; ``"random"``, samples of a donor have the
    correlation ``rho``.
    """

    x_ST: Floats
    donor_S: NDArray[np.int64]
    block: Block = "none"
    rho: float = 0.0

    @property
    def df(self) -> int:
        """Residual degrees of freedom."""
        levels = len(np.unique(self.donor_S)) if self.block == "fixed" else 0
        return int(len(self.x_ST) - self.x_ST.shape[1] - levels)

    def fit(self, y_SG: Floats, w_SG: Floats | None = None) -> Estimate:
        """Fit by weighted least squares (generalised, with a random block).

        Parameters
        ----------
        y_SG
            Values; a gene's mean over samples may be taken off, if the design has a constant.
        w_SG
            Inverse variances, up to a factor; equal by default.
        """
        root_SG = np.ones_like(y_SG) if w_SG is None else np.sqrt(w_SG)
        n_terms, n_genes = self.x_ST.shape[1], y_SG.shape[1]
        xx_GTT, xy_GT, yy_G = np.zeros((n_genes, n_terms, n_terms)), np.zeros((n_genes, n_terms)), 0.0
        for _, x_GST, y_GS in self._by_donor(y_SG, root_SG):
            xx_GTT += np.einsum("gst,gsu->gtu", x_GST, x_GST)
            xy_GT += np.einsum("gst,gs->gt", x_GST, y_GS)
            yy_G = yy_G + (y_GS**2).sum(1)
        inverse_GTT = np.linalg.inv(xx_GTT)
        effect_GT = np.einsum("gtu,gu->gt", inverse_GTT, xy_GT)
        rest_G = np.maximum(yy_G - (xy_GT * effect_GT).sum(1), 0)
        unscaled_TG = np.diagonal(inverse_GTT, axis1=1, axis2=2).T
        variance_G = rest_G / self.df if self.df > 0 else np.full(n_genes, np.nan)
        return Estimate(self, effect_GT.T, unscaled_TG, variance_G, y_SG, root_SG, xx_GTT, xy_GT)

    def _by_donor(self, y_SG: Floats, root_SG: Floats) -> Iterator[tuple[int, Floats, Floats]]:
        """Yield donor, design and values, multiplied so that the rest has equal variances and no correlation."""
        for donor in np.unique(self.donor_S):
            rows = np.flatnonzero(self.donor_S == donor)
            root_GS = root_SG[rows].T
            x_GST = root_GS[:, :, None] * self.x_ST[rows]
            y_GS = root_GS * y_SG[rows].T
            if self.block == "fixed":  # the projection that takes the donor's own level out
                unit_GS = root_GS / np.linalg.norm(root_GS, axis=1, keepdims=True)
                x_GST = x_GST - unit_GS[:, :, None] * np.einsum("gs,gst->gt", unit_GS, x_GST)[:, None]
                y_GS = y_GS - unit_GS * (unit_GS * y_GS).sum(1, keepdims=True)
            elif self.block == "random" and len(rows) > 1:
                half = self._half(len(rows))
                x_GST = np.einsum("rs,gst->grt", half, x_GST)
                y_GS = y_GS @ half.T
            yield int(donor), x_GST, y_GS

    def _half(self, n: int) -> Floats:
        """Return the inverse of the Cholesky factor of the correlation matrix of a donor's n samples."""
        correlation = np.full((n, n), self.rho) + (1 - self.rho) * np.eye(n)
        return np.asarray(solve_triangular(cholesky(correlation, lower=True), np.eye(n), lower=True))

    def within(self, rows: NDArray[Any]) -> Floats:
        """Return the design of some samples; with a fixed block, without each donor's own level."""
        x_ST, donor_S = self.x_ST[rows], self.donor_S[rows]
        return without_levels(x_ST, donor_S) if self.block == "fixed" else x_ST


@dataclass(frozen=True)
class Estimate:
    """Fitted coefficients; the variance of one is ``unscaled_TG * variance_G``."""

    model: LinearModel
    effect_TG: Floats
    unscaled_TG: Floats
    variance_G: Floats
    y_SG: Floats
    root_SG: Floats
    xx_GTT: Floats
    xy_GT: Floats

    def influences(self, terms: list[int]) -> tuple[Floats, NDArray[np.int64]]:
        """Return the largest change of each coefficient when one donor is left out, and that donor.

        Weights and correlation stay. Without some donors a term cannot be estimated; these are passed over. If that
        is so for all, the change is missing, and the donor -1.

        Returns
        -------
        change_TG, donor_TG
            In the order of ``terms``: coefficient without the donor minus that with all.
        """
        shape = (len(terms), self.effect_TG.shape[1])
        change_TG, donor_TG = np.full(shape, np.nan), np.full(shape, -1, dtype=np.int64)
        model = self.model
        for donor, x_GST, y_GS in model._by_donor(self.y_SG, self.root_SG):
            kept = independent(model.within(model.donor_S != donor))
            places = [(i, kept.index(t)) for i, t in enumerate(terms) if t in kept]
            if not places:
                continue
            xx_GTT = self.xx_GTT - np.einsum("gst,gsu->gtu", x_GST, x_GST)
            xy_GT = self.xy_GT - np.einsum("gst,gs->gt", x_GST, y_GS)
            effect_GT = np.linalg.solve(xx_GTT[:, kept][:, :, kept], xy_GT[:, kept, None])[..., 0]
            for i, place in places:
                change_G = effect_GT[:, place] - self.effect_TG[terms[i]]
                larger = ~(np.abs(change_G) <= np.abs(change_TG[i]))  # true also for the first one
                change_TG[i] = np.where(larger, change_G, change_TG[i])
                donor_TG[i] = np.where(larger, donor, donor_TG[i])
        return change_TG, donor_TG


def independent(x_ST: Floats) -> list[int]:
    """Return the columns that are no linear combination of columns before them."""
    kept: list[int] = []
    basis = np.zeros((len(x_ST), 0))
    for t, column in enumerate(x_ST.T):
        size = np.linalg.norm(column)
        rest = column - basis @ (basis.T @ column)
        rest = rest - basis @ (basis.T @ rest)  # again, for the rounding errors of the first time
        if size > 0 and np.linalg.norm(rest) > 1e-8 * size:
            kept.append(t)
            basis = np.column_stack([basis, rest / np.linalg.norm(rest)])
    return kept


def without_levels(x_ST: Floats, donor_S: NDArray[np.int64]) -> Floats:
    """Return the columns minus their mean in each donor; rounding errors are 0, so that ranks are right."""
    _, code_S = np.unique(donor_S, return_inverse=True)
    n_D = np.bincount(code_S)
    mean_DT = np.stack([np.bincount(code_S, column) / n_D for column in x_ST.T], axis=1)
    rest_ST = x_ST - mean_DT[code_S]
    return np.asarray(np.where(np.abs(rest_ST) > 1e-9 * np.abs(x_ST).max(0, initial=0.0), rest_ST, 0.0))


def with_correlation(model: LinearModel, y_SG: Floats) -> LinearModel:
    """Return the model with the correlation of a donor's samples that fits all genes best.

    It maximises the sum over genes of the restricted log likelihood, each gene with a variance of its own. It stands
    where limma has a mean of the correlations of single genes (Smyth, Michaud and Scott, 2005). A negative one is not
    considered.
    """

    def likelihood(rho: float) -> float:
        tried = LinearModel(model.x_ST, model.donor_S, "random", rho)
        found = tried.fit(y_SG)
        log_det = sum(
            -2 * np.log(np.diag(tried._half(n))).sum()
            for n in np.unique(model.donor_S, return_counts=True)[1]
        )
        # The design is the same for all genes, and so is this determinant.
        log_det += np.linalg.slogdet(found.xx_GTT[0])[1]
        known = found.variance_G > NO_VARIANCE
        return float(-(tried.df * np.log(found.variance_G[known]) + log_det).sum())

    best = max(GRID, key=likelihood)
    return LinearModel(model.x_ST, model.donor_S, "random", float(best))


def precision(model: LinearModel, y_SG: Floats, count_SG: Floats) -> Floats | None:
    """Return weights of samples: the inverse of a variance with a part that falls with the number of counts.

    The variance of a logarithm of counts is about ``a + b / count``: ``a`` for differences between samples, ``b``
    for the noise of counting (1 in units of squared natural logarithms for Poisson counts, more if few cells
    contribute most counts). With equal weights, the square of a residual is expected to be the sum over samples of
    these variances times the square of the entry of the residual maker. ``a`` and ``b`` are fitted to the squares of
    all genes and samples, by least squares of relative errors; neither is negative.

    Parameters
    ----------
    model, y_SG
        As fitted; random donors are left out here.
    count_SG
        Expected counts, such as the gene's share of all counts times the counts of the sample. They must not depend
        on the gene's own count in the sample: a count that is low by chance would get a low weight.

    Returns
    -------
    numpy.ndarray or None
        ``None`` for fewer than 10 genes, or if nothing varies.
    """
    x_ST = model.x_ST
    if model.block == "fixed":
        x_ST = np.column_stack([x_ST, model.donor_S[:, None] == np.unique(model.donor_S)])
    rest_SS = np.eye(len(x_ST)) - x_ST @ np.linalg.pinv(x_ST)
    squared_SG = (rest_SS @ y_SG) ** 2
    mean = float(squared_SG.mean())
    if y_SG.shape[1] < POOLED or mean < NO_VARIANCE:
        return None
    parts = np.ones_like(count_SG), 1 / (count_SG + 0.5)
    expected = np.stack([(rest_SS**2 @ part).ravel() for part in parts], axis=1)
    fitted = np.full(squared_SG.size, mean)
    ab = np.array([1.0, 0.0])
    for _ in range(10):
        ab, _ = optimize.nnls(expected / fitted[:, None], squared_SG.ravel() / fitted)
        fitted = np.maximum(expected @ ab, 1e-3 * mean)
    return np.asarray(1 / np.maximum(ab[0] * parts[0] + ab[1] * parts[1], 1e-3 * mean))


def moderate(variance_G: Floats, df: int) -> tuple[Floats, float, float]:
    """Return variances that are drawn towards their common value, their degrees of freedom and those of the prior.

    Empirical Bayes (Smyth, 2004): 1 / variance of a gene follows a scaled chi-squared distribution with ``d0``
    degrees of freedom over genes. ``d0`` and the scale ``s0`` come from mean and variance of log(variance), and the
    posterior variance is ``(d0 s0 + df s) / (d0 + df)``. With fewer than 10 genes nothing is moderated.
    """
    known = np.isfinite(variance_G)
    if df < 1 or known.sum() < POOLED or not (variance_G[known] > NO_VARIANCE).any():
        return variance_G, float(df), 0.0
    # A variance of 0, as of a gene without counts, has no logarithm.
    s_G = np.maximum(variance_G[known], 1e-5 * np.median(variance_G[known]) + NO_VARIANCE)
    e_G = np.log(s_G) - digamma(df / 2) + np.log(df / 2)
    excess = e_G.var(ddof=1) - polygamma(1, df / 2)
    if excess <= 0:
        d0, s0 = np.inf, np.exp(e_G.mean())
    else:
        d0 = 2 * inverse_trigamma(float(excess))
        s0 = np.exp(e_G.mean() + digamma(d0 / 2) - np.log(d0 / 2))
    share = df / (d0 + df)  # 0 if d0 is infinite
    total = min(d0 + df, df * int(known.sum()))  # no more than all genes have together
    return share * variance_G + (1 - share) * s0, float(total), float(d0)


def inverse_trigamma(value: float) -> float:
    """Return x with trigamma(x) = value."""
    # 1 / x < trigamma(x) < 1 / x + 1 / x^2 for x > 0.
    low, high = 0.9 / (1 + value), 2 / value + 2 / np.sqrt(value)
    return float(optimize.brentq(lambda x: float(polygamma(1, x)) - value, low, high))


def t_test(effect_G: Floats, se_G: Floats, df: float) -> dict[str, Floats]:
    """Return t, two-sided p and the ends of a 90 % interval."""
    t_G = np.divide(effect_G, se_G, out=np.full_like(effect_G, np.nan), where=se_G > 0)
    half_G = stats.t.ppf(0.95, df) * se_G
    return {
        "q05": effect_G - half_G,
        "q95": effect_G + half_G,
        "se": se_G,
        "t": t_G,
        "p": 2 * stats.t.sf(np.abs(t_G), df),
    }
