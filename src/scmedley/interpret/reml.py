"""Variance components of many genes by restricted maximum likelihood (REML).

The model of a gene is y = X beta + sum_t Z_t u_t + e, with u_t ~ N(0, s_t I) and e ~ N(0, s_e I) (Patterson and
Thompson 1971). Only the cross products of the columns with each other and with y are needed, so the cost does not
depend on the number of cells. With g_t = s_t / s_e, scale = 1 for columns of X and sqrt(g_t) for those of Z_t, and

    C = scale [X Z]'[X Z] scale + diag(0, I),    P = I - [X Z] scale C^-1 scale [X Z]',

the likelihood is -2 l = (N - p) log s_e + log |C| + y'Py / s_e, for any g_t >= 0. Its derivatives need the blocks
F_ts = Z_t' P Z_s and a_t = Z_t' P y only, because P (I + sum_t g_t Z_t Z_t') P = P.

Shapes: G genes, L columns of X and Z, Q columns of Z, T random terms.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ITERATIONS = 100
HALVINGS = 12
CURVED = 0.01  # least eigenvalue of the observed information, in units of Fisher's
TOLERANCE = 1e-9  # expected gain in log likelihood of one more step
LARGEST = 4_000_000  # numbers of a matrix of each gene that are in memory together


@dataclass(frozen=True)
class CrossProducts:
    """What REML needs to know of the data.

    Attributes
    ----------
    a_LL
        Cross products of the columns of X, then of Z. The columns of X are independent.
    b_LG, yy_G
        Cross products of these columns with y, and of y with itself.
    n
        Number of cells.
    term_Q
        Random term of each column of Z.
    """

    a_LL: NDArray[np.float64]
    b_LG: NDArray[np.float64]
    yy_G: NDArray[np.float64]
    n: int
    term_Q: NDArray[np.int64]

    @property
    def n_fixed(self) -> int:
        """The number of columns of X."""
        return len(self.a_LL) - len(self.term_Q)


@dataclass(frozen=True)
class Components:
    """Estimates of all genes: variances of the random terms and of the residual, and the fixed effects."""

    random_GT: NDArray[np.float64]
    residual_G: NDArray[np.float64]
    fixed_GP: NDArray[np.float64]
    converged_G: NDArray[np.bool_]


def reml(data: CrossProducts) -> Iterator[tuple[slice, Components]]:
    """Yield the estimates of a block of genes at a time; a gene that is constant gets nan."""
    n_genes, size = max(1, LARGEST // len(data.a_LL) ** 2), len(data.yy_G)
    for start in range(0, size, n_genes):
        block = slice(start, min(start + n_genes, size))
        yield block, _fitted(data, block)


class _Fit:
    """The likelihood of a block of genes at given ratios g, with what its derivatives need."""

    def __init__(self, data: "_Tensors", genes: Tensor, ratio_GT: Tensor):
        n_fixed = data.n - data.df
        root_GL = torch.cat(
            [torch.ones(len(genes), n_fixed, dtype=torch.float64), ratio_GT.sqrt()[:, data.term]], 1
        )
        c_GLL = root_GL[:, :, None] * data.a * root_GL[:, None, :]
        c_GLL.diagonal(dim1=1, dim2=2)[:, n_fixed:] += 1
        self.factor_GLL = torch.linalg.cholesky(c_GLL)
        right_GLR = torch.cat(
            [data.a[None, :, n_fixed:].expand(len(genes), -1, -1), data.b[genes][..., None]], 2
        )
        half_GLR = torch.linalg.solve_triangular(self.factor_GLL, root_GL[..., None] * right_GLR, upper=False)
        self.half_GL, z_GLQ = half_GLR[..., -1], half_GLR[..., :-1]
        self.ypy_G = data.yy[genes] - self.half_GL.square().sum(1)
        self.residual_G = self.ypy_G / data.df
        log_det_G = 2 * self.factor_GLL.diagonal(dim1=1, dim2=2).log().sum(1)
        self.value_G = data.df * self.residual_G.log() + log_det_G  # -2 log likelihood, up to a constant
        self.ratio_GT, self.z_GLQ, self.data, self.genes = ratio_GT, z_GLQ, data, genes

    def derivatives(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return score, Fisher information and observed information of (g, 1) * s_e, in units of s_e.

        Shapes: G x (T + 1), and twice G x (T + 1) x (T + 1).
        """
        data, ratio_GT = self.data, self.ratio_GT
        n_fixed, n_terms = data.n - data.df, ratio_GT.shape[1]
        f_GQQ = data.a[n_fixed:, n_fixed:] - self.z_GLQ.mT @ self.z_GLQ
        a_GQ = data.b[self.genes][:, n_fixed:] - (self.z_GLQ.mT @ self.half_GL[..., None])[..., 0]
        member_QT = torch.nn.functional.one_hot(data.term, n_terms).double()
        square_GTT = member_QT.T @ f_GQQ.square() @ member_QT
        trace_GT = f_GQQ.diagonal(dim1=1, dim2=2) @ member_QT
        fit_GT = a_GQ.square() @ member_QT / self.residual_G[:, None]
        cross_GT = trace_GT - (square_GTT * ratio_GT[:, None]).sum(2)  # tr(Z_t' P P Z_t)
        trace_G = data.df - (ratio_GT * trace_GT).sum(1)  # tr(P)
        fit_G = data.df - (ratio_GT * fit_GT).sum(1)  # y'PPy / s_e
        score = torch.cat([fit_GT - trace_GT, (fit_G - trace_G)[:, None]], 1) / 2
        fisher = _symmetric(square_GTT, cross_GT, trace_G - (ratio_GT * cross_GT).sum(1)) / 2
        # The average of both informations is y'P V_t P V_s P y / 2, with V = Z Z' of a term, or I.
        apart_GQT = a_GQ[..., None] * member_QT
        moved_GQT = f_GQQ @ apart_GQT
        c_GQ = a_GQ - (moved_GQT * ratio_GT[:, None]).sum(2)  # Z' P P y
        side_GT = (a_GQ * c_GQ) @ member_QT
        corner_G = self.residual_G * fit_G - (ratio_GT * side_GT).sum(1)
        average = _symmetric(apart_GQT.mT @ moved_GQT, side_GT, corner_G) / self.residual_G[:, None, None] / 2
        return score, fisher, 2 * average - fisher


def _symmetric(inner_GTT: Tensor, side_GT: Tensor, corner_G: Tensor) -> Tensor:
    """Return the matrices with one more row and column, G x (T + 1) x (T + 1)."""
    last = torch.cat([side_GT, corner_G[:, None]], 1)
    return torch.cat([torch.cat([inner_GTT, side_GT[..., None]], 2), last[:, None]], 1)


@dataclass(frozen=True)
class _Tensors:
    a: Tensor
    b: Tensor
    yy: Tensor
    term: Tensor
    n: int
    df: int


def _fitted(data: CrossProducts, block: slice) -> Components:
    """Fit a block of genes by Newton's or Fisher's steps, halved if need be; variances stay at or above 0."""
    size = block.stop - block.start
    n_terms = int(data.term_Q.max()) + 1 if len(data.term_Q) else 0
    varies = data.yy_G[block] > 1e-9 * data.n
    numbers = _Tensors(
        a=torch.as_tensor(data.a_LL),
        b=torch.as_tensor(np.ascontiguousarray(data.b_LG[:, block].T)),
        yy=torch.as_tensor(data.yy_G[block]),
        term=torch.as_tensor(data.term_Q),
        n=data.n,
        df=data.n - data.n_fixed,
    )
    ratio_GT = torch.full((size, n_terms), 0.1 / max(1, n_terms), dtype=torch.float64)
    open_G = torch.as_tensor(varies).clone()
    for _ in range(ITERATIONS if n_terms else 0):
        genes = open_G.nonzero()[:, 0]
        if not len(genes):
            break
        ratio_GT[genes], done = _step(numbers, genes, ratio_GT[genes])
        open_G[genes[done]] = False
    found = Components(
        np.full((size, n_terms), np.nan),
        np.full(size, np.nan),
        np.full((size, data.n_fixed), np.nan),
        varies & ~(open_G.numpy() & (n_terms > 0)),
    )
    genes = torch.as_tensor(np.flatnonzero(varies))
    if len(genes):
        fit = _Fit(numbers, genes, ratio_GT[genes])
        found.random_GT[varies] = (fit.ratio_GT * fit.residual_G[:, None]).numpy()
        found.residual_G[varies] = fit.residual_G.numpy()
        solved = torch.linalg.solve_triangular(fit.factor_GLL.mT, fit.half_GL[..., None], upper=True)
        found.fixed_GP[varies] = solved[:, : data.n_fixed, 0].numpy()
    return found


def _step(data: _Tensors, genes: Tensor, ratio_GT: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ratios after a step that does not lower the likelihood, and the genes that are at its top."""
    fit = _Fit(data, genes, ratio_GT)
    score, fisher, observed = fit.derivatives()
    held = torch.zeros_like(score, dtype=torch.bool)
    held[:, :-1] = (ratio_GT <= 0) & (score[:, :-1] <= 0)  # at 0, and better there
    # Newton's step where the likelihood is curved downwards, as it is near its top; Fisher's elsewhere.
    curved = torch.linalg.eigvalsh(_scaled(observed, fisher, held))[:, 0] > CURVED
    step = _solved(score, torch.where(curved[:, None, None], observed, fisher), fisher, held)
    # A variance that the step would make negative stops at 0; the next step holds it there if it is better there.
    over = torch.zeros_like(held)
    over[:, :-1] = (ratio_GT + step[:, :-1] < 0) & ~held[:, :-1]
    gain_G = (score * step).sum(1)
    done = (gain_G < TOLERANCE) & ~over.any(1)
    start = torch.cat([ratio_GT, torch.ones(len(genes), 1, dtype=torch.float64)], 1)
    found, left = ratio_GT.clone(), ~done
    length = 1.0
    for _ in range(HALVINGS):
        rows = left.nonzero()[:, 0]
        if not len(rows):
            break
        moved = start[rows] + length * step[rows]
        tried = (moved[:, :-1] / moved[:, -1:].clamp(min=0.05)).clamp(min=0)
        better = _Fit(data, genes[rows], tried).value_G <= fit.value_G[rows]
        found[rows[better]] = tried[better]
        left[rows[better]] = False
        length /= 2
    # No step improves the likelihood beyond rounding: the top is here.
    return found, done | left


def _scaled(information: Tensor, fisher: Tensor, held: Tensor) -> Tensor:
    """Return the information in units of Fisher's, with 1 for the variances that are held at 0."""
    free = (~held).double()
    scale = fisher.diagonal(dim1=1, dim2=2).clamp(min=1e-300).sqrt()
    scaled = information / scale[:, :, None] / scale[:, None, :]
    return free[:, :, None] * free[:, None, :] * scaled + torch.diag_embed(1 - free + 1e-10)


def _solved(score: Tensor, information: Tensor, fisher: Tensor, held: Tensor) -> Tensor:
    """Return the step with some variances held at 0."""
    scale = fisher.diagonal(dim1=1, dim2=2).clamp(min=1e-300).sqrt()
    right = torch.where(held, 0.0, score / scale)
    solved: Tensor = torch.linalg.solve(_scaled(information, fisher, held), right) / scale
    return solved
