"""A linear mixed model of many genes in closed form, with variance ratios that all genes share.

    y_g = X_F beta_g + X_R u_g + e,   e ~ N(0, s2_g I),   beta_g ~ N(0, s2_g / EPSILON I),
    u_g ~ N(0, h_g v_g W),   W = diag(w of each column's group)

v_g is the variance of gene g. One ratio w for every group of random columns (a term, or its slopes) is learnt from
all genes together; one factor h_g says how far the effects of a gene are larger or smaller than those of others. h_g
has a discrete prior on a grid, whose weights are learnt too (empirical Bayes), and all results are means over the
posterior of h_g: intervals include that a gene's variance is known only as well as its levels tell.

Why it is quick: cells enter through X'X, X'y and y'y alone. With the fixed columns projected out (S = X_R' M X_R),
one eigendecomposition W^1/2 S W^1/2 = Q diag(lambda) Q' serves all genes, because genes differ only in the scalar
r = s2_g / (h_g v_g): the posterior mean of u is W^1/2 Q diag(1 / (lambda + r)) t with t = Q' W^1/2 X_R' M y, its
covariance s2_g W^1/2 Q diag(1 / (lambda + r)) Q' W^1/2, and the entries of t are independent,
t_j ~ N(0, lambda_j (s2_g + lambda_j h_g v_g)): the likelihood of h_g is a sum over j.

Shapes: N cells, G genes, L columns of the design (F fixed, R random), T groups of random columns, K values of h,
D contrasts.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_matrix, issparse

EPSILON = 0.01  # the prior of a fixed effect is worth as much as this number of cells: sd 10 residual sd
H_K = 2.0 ** np.arange(-6, 5)  # the grid of h
SMALLEST, LARGEST = 1e-8, 1e2  # of a variance ratio
NULL = 1e-9  # eigenvalues below this share of the largest are directions without cells
BLOCK = 20_000  # cells whose values are float64 at once


@dataclass(frozen=True)
class Columns:
    """What the columns of a design matrix are. The first is the constant 1.

    Attributes
    ----------
    group_L
        Code of the variance ratio of each column; -1 for a fixed effect.
    centred
        First and end of each run of fixed columns whose effects sum to zero: the levels of a fixed term.
    """

    group_L: np.ndarray
    centred: tuple[tuple[int, int], ...] = ()

    @property
    def n_groups(self) -> int:
        """Return T."""
        return int(self.group_L.max(initial=-1)) + 1


@dataclass(frozen=True)
class Statistics:
    """All that the model takes from cells: sums over cells, which add up.

    Attributes
    ----------
    xx_LL, xy_LG, yy_G
        X'X, X'Y and the sum of squares of each gene.
    cells_L
        Number of cells that each column applies to.
    """

    xx_LL: np.ndarray
    xy_LG: np.ndarray
    yy_G: np.ndarray
    cells_L: np.ndarray

    @classmethod
    def of(cls, x_NL: csr_matrix, y_NG: Any) -> "Statistics":
        """Return the sums of cells; ``y_NG`` is dense or sparse, and never made dense as a whole."""
        n_genes, n_columns = y_NG.shape[1], x_NL.shape[1]
        xy_LG, yy_G = np.zeros((n_columns, n_genes)), np.zeros(n_genes)
        for start in range(0, x_NL.shape[0], BLOCK):
            rows = slice(start, start + BLOCK)
            y = y_NG[rows].astype(np.float64)
            product = x_NL[rows].T @ y
            xy_LG += product.toarray() if issparse(product) else product
            yy_G += np.asarray(y.multiply(y).sum(0)).ravel() if issparse(y) else np.square(y).sum(0)
        return cls((x_NL.T @ x_NL).toarray(), xy_LG, yy_G, np.asarray(x_NL.getnnz(axis=0), np.float64))

    def __add__(self, other: "Statistics") -> "Statistics":
        """Return the sums of the cells of both."""
        pairs = [(getattr(self, name), getattr(other, name)) for name in self.__dataclass_fields__]
        return Statistics(*(one + two for one, two in pairs))

    def placed(self, place_L: np.ndarray, n_columns: int) -> "Statistics":
        """Return the same sums in a larger design, where column l is now column ``place_L[l]``."""
        xx_LL = np.zeros((n_columns, n_columns))
        xx_LL[np.ix_(place_L, place_L)] = self.xx_LL
        xy_LG = np.zeros((n_columns, self.xy_LG.shape[1]))
        xy_LG[place_L] = self.xy_LG
        cells_L = np.zeros(n_columns)
        cells_L[place_L] = self.cells_L
        return Statistics(xx_LL, xy_LG, self.yy_G, cells_L)

    @property
    def n_cells(self) -> float:
        """Return N."""
        return float(self.xx_LL[0, 0])

    @property
    def mean_G(self) -> np.ndarray:
        """Return the mean of each gene."""
        return np.asarray(self.xy_LG[0] / self.n_cells)

    def centred(self, mean_G: np.ndarray) -> "Statistics":
        """Return the sums of the values minus a constant of each gene."""
        xy_LG = self.xy_LG - np.outer(self.xx_LL[:, 0], mean_G)
        yy_G = self.yy_G - 2 * mean_G * self.xy_LG[0] + self.n_cells * mean_G**2
        return replace(self, xy_LG=xy_LG, yy_G=np.maximum(yy_G, 0))


@dataclass(frozen=True)
class Variances:
    """What is learnt of the variances.

    Attributes
    ----------
    ratio_T
        w of each group of random columns.
    share_K
        Prior probability of each value of h in ``H_K``.
    noise_G, scale_G, mean_G
        s2_g, v_g, and the mean over cells, which is subtracted first.
    """

    ratio_T: np.ndarray
    share_K: np.ndarray
    noise_G: np.ndarray
    scale_G: np.ndarray
    mean_G: np.ndarray

    @property
    def expected_T(self) -> np.ndarray:
        """Return the expected variance of each group's effects, in variances of the gene: w times the mean of h."""
        return np.asarray(self.ratio_T * (self.share_K @ H_K))


class _Reduced(NamedTuple):
    """The statistics with the fixed columns projected out."""

    fixed: np.ndarray  # their columns
    random: np.ndarray
    h_FF: np.ndarray  # covariance of fixed effects, in units of s2
    a_FR: np.ndarray
    s_RR: np.ndarray
    xy_FG: np.ndarray
    b_RG: np.ndarray
    yy_G: np.ndarray
    df: float  # of the residuals, but for those of random effects

    @classmethod
    def of(cls, statistics: Statistics, columns: Columns) -> "_Reduced":
        fixed, random = np.flatnonzero(columns.group_L < 0), np.flatnonzero(columns.group_L >= 0)
        to_zero_LL = np.eye(len(columns.group_L))
        for first, end in columns.centred:
            to_zero_LL[first:end, first:end] -= 1 / (end - first)
        c_FF = to_zero_LL[np.ix_(fixed, fixed)]
        xx_FF = c_FF @ statistics.xx_LL[np.ix_(fixed, fixed)] @ c_FF
        h_FF = c_FF @ np.linalg.inv(xx_FF + EPSILON * np.eye(len(fixed))) @ c_FF
        a_FR = statistics.xx_LL[np.ix_(fixed, random)]
        s_RR = statistics.xx_LL[np.ix_(random, random)] - a_FR.T @ h_FF @ a_FR
        xy_FG = statistics.xy_LG[fixed]
        b_RG = statistics.xy_LG[random] - a_FR.T @ (h_FF @ xy_FG)
        yy_G = statistics.yy_G - (xy_FG * (h_FF @ xy_FG)).sum(0)
        df = statistics.n_cells - float(np.trace(h_FF @ xx_FF))
        return cls(fixed, random, h_FF, a_FR, (s_RR + s_RR.T) / 2, xy_FG, b_RG, yy_G, df)


class _Rotated(NamedTuple):
    """The random effects in the basis in which they are independent."""

    lambda_R: np.ndarray
    q_RR: np.ndarray
    root_R: np.ndarray  # square roots of w of each column
    t_RG: np.ndarray
    known_R: np.ndarray  # whether any cell tells of this direction

    @classmethod
    def of(cls, reduced: _Reduced, root_R: np.ndarray) -> "_Rotated":
        lambda_R, q_RR = np.linalg.eigh(root_R[:, None] * reduced.s_RR * root_R)
        known_R = lambda_R > NULL * max(float(lambda_R.max(initial=0)), 1e-300)
        lambda_R = np.where(known_R, lambda_R, 0.0)
        t_RG = q_RR.T @ (root_R[:, None] * reduced.b_RG)
        return cls(lambda_R, q_RR, root_R, np.where(known_R[:, None], t_RG, 0.0), known_R)

    def log_likelihood(self, noise_G: np.ndarray, scale_G: np.ndarray, share_K: np.ndarray) -> np.ndarray:
        """Return the log of prior times likelihood of each value of h, G x K, but for a constant of each gene."""
        lambda_R, t2_RG = self.lambda_R[self.known_R, None], self.t_RG[self.known_R] ** 2
        t2_RG = t2_RG / lambda_R
        found = np.full((len(noise_G), len(H_K)), -np.inf)
        for k in np.flatnonzero(share_K > 0):
            variance_RG = noise_G + lambda_R * (H_K[k] * scale_G)
            found[:, k] = np.log(share_K[k]) - 0.5 * (np.log(variance_RG) + t2_RG / variance_RG).sum(0)
        return found


def learn(
    statistics: Statistics, columns: Columns, *, heterogeneous: bool = True, sweeps: int = 100
) -> Variances:
    """Learn the variances of a model by maximum likelihood, pooled over genes (MacKay's updates).

    Parameters
    ----------
    statistics, columns
        Sums over cells, and what the columns of the design are.
    heterogeneous
        Whether genes differ in h; otherwise it is 1.
    sweeps
        Most updates of the ratios with h = 1. At most 30 updates of ratios and h follow.

    Raises
    ------
    ValueError
        The design has as many independent columns as there are cells.
    """
    mean_G = statistics.mean_G
    statistics = statistics.centred(mean_G)
    scale_G = statistics.yy_G / statistics.n_cells
    reduced = _Reduced.of(statistics, columns)
    group_R = columns.group_L[reduced.random]
    rotated = _Rotated.of(reduced, np.ones(len(group_R)))
    known = rotated.known_R
    df = reduced.df - known.sum()
    if df < 1:
        raise ValueError(
            f"{reduced.df + len(reduced.fixed):.0f} cells are too few for {len(columns.group_L)} columns"
        )
    varies_G = scale_G > 1e-8  # a constant gene tells nothing of the variances
    scale_G = np.where(varies_G, scale_G, 1.0)
    left_G = reduced.yy_G - (rotated.t_RG[known] ** 2 / rotated.lambda_R[known, None]).sum(0)
    noise_G = np.maximum(left_G / df, 1e-4 * scale_G)
    one_K = (H_K == 1).astype(float)
    ratio_T, share_K = np.full(columns.n_groups, 0.1), one_K
    if not columns.n_groups or not varies_G.any():
        return Variances(ratio_T, share_K, noise_G, scale_G, mean_G)
    kept = reduced._replace(b_RG=reduced.b_RG[:, varies_G])
    noise, scale = noise_G[varies_G], scale_G[varies_G]
    for _ in range(sweeps):
        before_T = ratio_T
        ratio_T, _ = _updated(kept, group_R, ratio_T, one_K, noise, scale)
        if _is_close(ratio_T, before_T):
            break
    if heterogeneous:
        share_K = np.exp(-0.5 * np.log2(H_K) ** 2 / 2)
        share_K /= share_K.sum()
        for _ in range(min(sweeps, 30)):
            before_T = ratio_T
            ratio_T, share_K = _updated(kept, group_R, ratio_T, share_K, noise, scale)
            if _is_close(ratio_T, before_T):
                break
    return Variances(ratio_T, share_K, noise_G, scale_G, mean_G)


def _is_close(new_T: np.ndarray, old_T: np.ndarray) -> bool:
    matter_T = np.maximum(new_T, old_T) > 1e-6
    return bool((np.abs(np.log(new_T / old_T))[matter_T] < 2e-3).all())


def _updated(
    reduced: _Reduced,
    group_R: np.ndarray,
    ratio_T: np.ndarray,
    share_K: np.ndarray,
    noise_G: np.ndarray,
    scale_G: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ratios and the prior of h after one update: w times sum(u^2 / var) / sum(1 - posterior / prior)."""
    rotated = _Rotated.of(reduced, np.sqrt(ratio_T[group_R]))
    p_GK = _posterior(rotated.log_likelihood(noise_G, scale_G, share_K))
    n_levels = len(group_R)
    square_RR, learnt_R = np.zeros((n_levels, n_levels)), np.zeros(n_levels)
    for k in np.flatnonzero(share_K > 0):
        gene_scale_G = H_K[k] * scale_G
        shrunk_RG = rotated.lambda_R[:, None] + noise_G / gene_scale_G
        z_RG = rotated.t_RG / shrunk_RG * np.sqrt(p_GK[:, k] / gene_scale_G)
        square_RR += z_RG @ z_RG.T
        learnt_R += (rotated.lambda_R[:, None] / shrunk_RG) @ p_GK[:, k]
    square_R = ((rotated.q_RR @ square_RR) * rotated.q_RR).sum(1)
    learnt_R = rotated.q_RR**2 @ learnt_R
    n_groups = len(ratio_T)
    top_T = np.bincount(group_R, square_R, n_groups)
    bottom_T = np.bincount(group_R, learnt_R, n_groups)
    ratio_T = np.clip(ratio_T * top_T / np.maximum(bottom_T, 1e-9), SMALLEST, LARGEST)
    if (share_K > 0).sum() > 1:
        share_K = (p_GK.sum(0) + 1 / len(H_K)) / (len(p_GK) + 1)
    return ratio_T, share_K


def _posterior(log_GK: np.ndarray) -> np.ndarray:
    p_GK = np.exp(log_GK - log_GK.max(axis=1, keepdims=True))
    return np.asarray(p_GK / p_GK.sum(axis=1, keepdims=True))


class Posterior:
    """The joint posterior of all effects of each gene, given the variances.

    Parameters
    ----------
    statistics, columns
        Sums over cells, and what the columns of the design are.
    variances
        From :func:`learn`; or given.
    """

    def __init__(self, statistics: Statistics, columns: Columns, variances: Variances):
        self.columns, self.variances = columns, variances
        self._reduced = _Reduced.of(statistics.centred(variances.mean_G), columns)
        root_R = np.sqrt(variances.ratio_T[columns.group_L[self._reduced.random]])
        self._rotated = _Rotated.of(self._reduced, root_R)
        self.h_GK = _posterior(
            self._rotated.log_likelihood(variances.noise_G, variances.scale_G, variances.share_K)
        )

    def contrasts(self, c_DL: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the posterior mean and standard deviation of linear combinations of effects, D x G both."""
        reduced, rotated, v = self._reduced, self._rotated, self.variances
        c_DF, c_DR = c_DL[:, reduced.fixed], c_DL[:, reduced.random]
        fixed_DF = c_DF @ reduced.h_FF
        q_DR = ((c_DR - fixed_DF @ reduced.a_FR) * rotated.root_R) @ rotated.q_RR
        known_DG = fixed_DF @ reduced.xy_FG
        mean_DG, square_DG = np.zeros_like(known_DG), np.zeros_like(known_DG)
        total_RG = np.zeros_like(rotated.t_RG)
        for k in np.flatnonzero(v.share_K > 0):
            inverse_RG = 1 / (rotated.lambda_R[:, None] + v.noise_G / (H_K[k] * v.scale_G))
            part_DG = q_DR @ (rotated.t_RG * inverse_RG)
            mean_DG += self.h_GK[:, k] * part_DG
            square_DG += self.h_GK[:, k] * part_DG**2
            total_RG += self.h_GK[:, k] * inverse_RG
        variance_DG = (q_DR**2) @ total_RG + ((c_DF @ reduced.h_FF) * c_DF).sum(1)[:, None]
        variance_DG = v.noise_G * variance_DG + np.maximum(square_DG - mean_DG**2, 0)
        return known_DG + mean_DG, np.sqrt(np.maximum(variance_DG, 0))

    @cached_property
    def effects(self) -> tuple[np.ndarray, np.ndarray]:
        """Posterior mean and standard deviation of every column's effect, L x G both."""
        return self.contrasts(np.eye(len(self.columns.group_L)))
