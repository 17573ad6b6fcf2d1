"""A linear mixed model of many genes in closed form, with variance ratios that all genes share.

    y_g = X_F beta_g + X_R u_g + e,   e ~ N(0, s2_g I),   beta_g ~ N(0, s2_g / EPSILON I),
    u_g ~ N(0, h_g s2_g W),   W = diag(w of each column's group)

One ratio w for every group of random columns (a term, or its slopes) is learnt from all genes together; one factor h_g
says how much more, or less, the levels of this gene differ than those of others. h_g has a discrete prior on a grid,
whose weights are learnt too (empirical Bayes), and all results are means over the posterior of h_g: intervals include
that the variance of a gene is known only as well as its levels tell.

Why it is quick: cells enter through X'X, X'y and y'y alone. With the fixed columns projected out (S = X_R' M X_R), one
eigendecomposition W^1/2 S W^1/2 = Q diag(lambda) Q' serves all genes. Given h, the posterior mean of u is
W^1/2 Q diag(1 / (lambda + 1/h)) t with t = Q' W^1/2 X_R' M y, and its covariance
s2_g W^1/2 Q diag(1 / (lambda + 1/h)) Q' W^1/2. The entries of t are independent,
t_j ~ N(0, s2_g lambda_j (1 + h lambda_j)), so the likelihood of h is a sum over j. s2_g is the mean square of what no
column explains, as in an analysis of variance. Updates of the ratios: MacKay (1992), Bayesian interpolation.

Shapes: N cells, G genes, L columns of the design (F fixed, R random), T groups of random columns, K values of h,
J factors of tailed groups, D contrasts.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_matrix, issparse

EPSILON = 0.01  # the prior of a fixed effect is worth as much as this number of cells: sd 10 residual sd
H_K = 2.0 ** np.arange(-6, 5)  # the grid of h
TAIL_J = 2.0 ** np.array([-8, -4, 0, 4])  # factors of the ratio of tailed groups
SMALLEST, LARGEST = 1e-8, 1e2  # of a variance ratio
CONSTANT = 1e-8  # variance of a gene, below which it is constant but for rounding
NULL = 1e-9  # eigenvalues below this share of the largest are directions without cells
SWEEPS = 100  # most updates of the ratios
# h is learnt from WORK values of genes x columns, of evenly spaced genes, and from FEWEST genes at least.
WORK, FEWEST = 200_000, 300
BLOCK = 20_000  # cells whose values are float64 at once


@dataclass(frozen=True)
class Columns:
    """What the columns of a design matrix are. The first is the constant 1.

    Attributes
    ----------
    group_L
        Code of the variance ratio of each column; -1 for a fixed effect.
    centred
        First column of each run of fixed columns, the levels of a term, and the projection (levels x levels) that
        their effects are restricted to: such as ``I - 1 1' / levels``, if they sum to zero.
    tailed
        Groups whose effects are large in few genes and small in most, as those of a condition: their ratio is
        multiplied by a factor from the grid ``TAIL_J``, which has a learnt prior as h has.
    """

    group_L: np.ndarray
    centred: tuple[tuple[int, np.ndarray], ...] = ()
    tailed: tuple[int, ...] = ()

    def roots(self, ratio_T: np.ndarray) -> list[np.ndarray]:
        """Return the prior standard deviation (h = 1) of each random column, for each factor of tailed groups."""
        found = []
        for factor in TAIL_J if self.tailed else (1.0,):
            factor_T = np.ones(len(ratio_T))
            factor_T[list(self.tailed)] = factor
            found.append(np.sqrt((ratio_T * factor_T)[self.group_L[self.group_L >= 0]]))
        return found

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
    pooled_T
        Variance ratio of each group of random columns if it is the same in all genes: what to report.
    ratio_T, share_JK
        w of each group, and the prior probability of each factor of tailed groups (``TAIL_J``) and value of h
        (``H_K``): what effects are shrunk by.
    noise_G, mean_G
        s2_g, and the mean over cells, which is subtracted first.
    """

    pooled_T: np.ndarray
    ratio_T: np.ndarray
    share_JK: np.ndarray
    noise_G: np.ndarray
    mean_G: np.ndarray


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
        for first, projection in columns.centred:
            rows = slice(first, first + len(projection))
            to_zero_LL[rows, rows] = projection
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
    t_RG: np.ndarray  # 0 in directions of which no cell tells

    @classmethod
    def of(cls, reduced: _Reduced, root_R: np.ndarray) -> "_Rotated":
        lambda_R, q_RR = np.linalg.eigh(root_R[:, None] * reduced.s_RR * root_R)
        known_R = lambda_R > NULL * max(float(lambda_R.max(initial=0)), 1e-300)
        lambda_R = np.where(known_R, lambda_R, 0.0)
        t_RG = q_RR.T @ (root_R[:, None] * reduced.b_RG)
        return cls(lambda_R, q_RR, root_R, np.where(known_R[:, None], t_RG, 0.0))

    def log_likelihood(self, noise_G: np.ndarray, share_K: np.ndarray) -> np.ndarray:
        """Return the log of prior times likelihood of each value of h, G x K, but for a constant of each gene."""
        t2_RG = self.t_RG**2
        found = np.full((len(noise_G), len(share_K)), -np.inf)
        for k in np.flatnonzero(share_K > 0):
            # Relative to a gene without random effects, which is the same for all values of h and all factors.
            gain_G = (t2_RG / (self.lambda_R + 1 / H_K[k])[:, None]).sum(0) / noise_G
            found[:, k] = np.log(share_K[k]) + 0.5 * (gain_G - np.log1p(H_K[k] * self.lambda_R).sum())
        return found


def learn(statistics: Statistics, columns: Columns, *, heterogeneous: bool = True) -> Variances:
    """Learn the variances of a model by maximum likelihood, pooled over genes (MacKay's updates).

    Parameters
    ----------
    statistics, columns
        Sums over cells, and what the columns of the design are.
    heterogeneous
        Whether genes differ in h; otherwise it is 1.

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
    known = rotated.lambda_R > EPSILON  # the rest repeats fixed columns, whose prior alone separates them
    df = reduced.df - known.sum()
    if df < 1:
        raise ValueError(f"{statistics.n_cells:.0f} cells are too few for {len(columns.group_L)} columns")
    varies_G = scale_G > CONSTANT  # a constant gene tells nothing of the variances
    left_G = reduced.yy_G - (rotated.t_RG[known] ** 2 / rotated.lambda_R[known, None]).sum(0)
    noise_G = np.maximum(left_G / df, np.maximum(1e-4 * scale_G, CONSTANT))
    share_JK = (H_K == 1).astype(float)[None]
    if columns.tailed:
        share_JK = np.outer(TAIL_J == 1, share_JK)
    ratio_T = np.full(columns.n_groups, 0.1)
    if not columns.n_groups or not varies_G.any():
        return Variances(ratio_T, ratio_T, share_JK, noise_G, mean_G)
    b_RG = reduced.b_RG[:, varies_G]
    cross_RR, n_genes = (b_RG / noise_G[varies_G]) @ b_RG.T, b_RG.shape[1]
    for _ in range(SWEEPS):
        before_T = ratio_T
        rotated = _Rotated.of(reduced, np.sqrt(ratio_T[group_R]))
        basis_RR = rotated.root_R[:, None] * rotated.q_RR / (rotated.lambda_R + 1)
        learnt_R = n_genes * rotated.lambda_R / (rotated.lambda_R + 1)
        square_RR = basis_RR.T @ cross_RR @ basis_RR
        ratio_T = _updated(ratio_T, _moments(rotated, group_R, square_RR, learnt_R, len(ratio_T)))
        if _is_close(ratio_T, before_T):
            break
    pooled_T = ratio_T
    if heterogeneous:
        some = np.flatnonzero(varies_G)
        some = some[:: max(1, len(some) // max(FEWEST, WORK // len(group_R)))]
        ratio_T, share_JK = _with_h(
            reduced._replace(b_RG=reduced.b_RG[:, some]), columns, ratio_T, noise_G[some]
        )
    return Variances(pooled_T, ratio_T, share_JK, noise_G, mean_G)


def _with_h(
    reduced: _Reduced, columns: Columns, ratio_T: np.ndarray, noise_G: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ratios and the prior of h and of the factors of tailed groups, from the ratios with h = 1."""
    group_R = columns.group_L[reduced.random]
    share_JK = np.tile(np.exp(-0.25 * np.log2(H_K) ** 2), (len(columns.roots(ratio_T)), 1))
    share_JK /= share_JK.sum()
    for _ in range(SWEEPS // 2):
        before_T, before_JK = ratio_T, share_JK
        rotated_J = [_Rotated.of(reduced, root_R) for root_R in columns.roots(ratio_T)]
        p_GJK = _posterior(rotated_J, noise_G, share_JK)
        moments_2T = np.zeros((2, len(ratio_T)))
        for rotated, p_GK in zip(rotated_J, p_GJK.transpose(1, 0, 2), strict=True):
            square_RR, learnt_R = np.zeros_like(reduced.s_RR), np.zeros(len(group_R))
            for k in np.flatnonzero(p_GK.max(axis=0) > 1e-3):
                shrunk_R = rotated.lambda_R + 1 / H_K[k]
                z_RG = rotated.t_RG / shrunk_R[:, None] * np.sqrt(p_GK[:, k] / (H_K[k] * noise_G))
                square_RR += z_RG @ z_RG.T
                learnt_R += p_GK[:, k].sum() * rotated.lambda_R / shrunk_R
            moments_2T += _moments(rotated, group_R, square_RR, learnt_R, len(ratio_T))
        ratio_T = _updated(ratio_T, moments_2T)
        share_JK = (p_GJK.sum(0) + 1 / share_JK.size) / (len(p_GJK) + 1)  # one gene as prior
        if _is_close(ratio_T, before_T) and np.abs(share_JK - before_JK).max() < 2e-3:
            break
    return ratio_T, share_JK


def _moments(
    rotated: _Rotated, group_R: np.ndarray, square_RR: np.ndarray, learnt_R: np.ndarray, n_groups: int
) -> np.ndarray:
    """Return, for each group, the sums over columns and genes of u^2 / prior variance, and of 1 - posterior / prior.

    ``square_RR``: sum over genes of products of rotated effects in units of their prior; ``learnt_R``: the second sum
    of rotated effects.
    """
    square_R = ((rotated.q_RR @ square_RR) * rotated.q_RR).sum(1)
    learnt_R = rotated.q_RR**2 @ learnt_R
    return np.stack([np.bincount(group_R, part_R, n_groups) for part_R in (square_R, learnt_R)])


def _updated(ratio_T: np.ndarray, moments_2T: np.ndarray) -> np.ndarray:
    """Return the ratios after one of MacKay's updates."""
    return np.asarray(np.clip(ratio_T * moments_2T[0] / np.maximum(moments_2T[1], 1e-9), SMALLEST, LARGEST))


def _is_close(new_T: np.ndarray, old_T: np.ndarray) -> bool:
    matter_T = np.maximum(new_T, old_T) > 1e-5
    return bool((np.abs(np.log(new_T / old_T))[matter_T] < 5e-3).all())


def _posterior(rotated_J: list[_Rotated], noise_G: np.ndarray, share_JK: np.ndarray) -> np.ndarray:
    """Return the posterior probability of each factor of tailed groups and value of h, G x J x K."""
    pairs = zip(rotated_J, share_JK, strict=True)
    log_GJK = np.stack([rotated.log_likelihood(noise_G, share_K) for rotated, share_K in pairs], axis=1)
    p_GJK = np.exp(log_GJK - log_GJK.max(axis=(1, 2), keepdims=True))
    return np.asarray(p_GJK / p_GJK.sum(axis=(1, 2), keepdims=True))


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
        self._rotated = [_Rotated.of(self._reduced, root_R) for root_R in columns.roots(variances.ratio_T)]
        self.p_GJK = _posterior(self._rotated, variances.noise_G, variances.share_JK)

    def contrasts(self, c_DL: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the posterior mean and standard deviation of linear combinations of effects, D x G both."""
        reduced, v = self._reduced, self.variances
        c_DF, c_DR = c_DL[:, reduced.fixed], c_DL[:, reduced.random]
        fixed_DF = c_DF @ reduced.h_FF
        free_DR = c_DR - fixed_DF @ reduced.a_FR
        known_DG = fixed_DF @ reduced.xy_FG
        mean_DG, square_DG = np.zeros_like(known_DG), np.zeros_like(known_DG)
        variance_DG = np.tile((fixed_DF * c_DF).sum(1)[:, None], known_DG.shape[1])
        for j, rotated in enumerate(self._rotated):
            q_DR = (free_DR * rotated.root_R) @ rotated.q_RR
            for k in np.flatnonzero(self.p_GJK[:, j].max(axis=0) > 1e-6):
                inverse_R = 1 / (rotated.lambda_R + 1 / H_K[k])
                part_DG = (q_DR * inverse_R) @ rotated.t_RG
                mean_DG += self.p_GJK[:, j, k] * part_DG
                square_DG += self.p_GJK[:, j, k] * part_DG**2
                variance_DG += self.p_GJK[:, j, k] * ((q_DR**2) @ inverse_R)[:, None]
        variance_DG = v.noise_G * variance_DG + np.maximum(square_DG - mean_DG**2, 0)
        return known_DG + mean_DG, np.sqrt(np.maximum(variance_DG, 0))

    @cached_property
    def effects(self) -> tuple[np.ndarray, np.ndarray]:
        """Posterior mean and standard deviation of every column's effect, L x G both."""
        return self.contrasts(np.eye(len(self.columns.group_L)))
