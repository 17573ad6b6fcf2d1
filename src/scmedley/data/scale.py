"""The scaling of each gene, learnt on the training cells and stored with the model.

Shapes: N cells, G genes.

Cells stay in memory as log1p CP10k, which is sparse; the rows of a minibatch are scaled when they are used. Models
with different scales can therefore share the same cells.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from scmedley.data.arrays import Matrix
from scmedley.data.blocks import add_rows, blocks
from scmedley.data.evidence import TARGET_SUM
from scmedley.data.store import Values
from scmedley.errors import ScmedleyError

ScaleName = Literal["pareto", "standard", "min-max", "pearson", "none"]
LIMIT = 10.0  # "pareto" and "standard" are clipped: single counts of rare genes would be far outside
LEAST_VARIANCE = 1e-4  # added to each variance, so that (nearly) constant genes do not become noise
THETA = 100.0  # inverse dispersion of the Pearson residuals: technical, the same for all genes (Lause et al. 2021)


@dataclass(frozen=True)
class Scale:
    """Scaling of each gene to (x - centre) / span, clipped to -limit ... limit; or to Pearson residuals.

    The Pearson residual of a count x is (x - mean) / sqrt(mean + mean^2 / theta), with the mean that the cell's
    total and the gene's share of all counts predict (Lause et al. 2021). It needs the totals of the cells, and not
    their counts, which log1p CP10k and the total give exactly. Theta is 100.

    Attributes
    ----------
    centre_G, span_G
        float32, in the unit of the input (log1p CP10k); 0 and 1 for Pearson residuals.
    limit
        Infinite if values are not clipped.
    share_G
        Share of each gene among all counts, for Pearson residuals; else ``None``.
    """

    centre_G: np.ndarray
    span_G: np.ndarray
    limit: float = math.inf
    share_G: np.ndarray | None = None

    @classmethod
    def fit(
        cls, x_NG: Values, name: ScaleName, total_N: np.ndarray | None = None, rows: np.ndarray | None = None
    ) -> "Scale":
        """Learn the scale from (training) cells.

        ``"standard"``: to mean 0 and variance 1, clipped. ``"pareto"``: to mean 0, divided by the square root of
        the standard deviation (van den Berg et al. 2006, BMC Genomics) and by a number that makes the mean
        variance 1, clipped. ``"min-max"``: to 0 ... 1 in these cells; other cells may be outside. Constant genes
        become 0. ``"pearson"``: to analytic Pearson residuals, clipped at the root of the number of cells.
        ``"none"``: values are not changed.

        Parameters
        ----------
        x_NG
            log1p CP10k, in memory or in a store. Cells are read in blocks and added one after the other, so sparse,
            dense and stored values give the same bits.
        name
            The scale.
        total_N
            Counts of the cells over all genes, for ``"pearson"``.
        rows
            Numbers of the cells to learn from; all by default.
        """
        unchanged = cls(np.zeros(x_NG.shape[1], np.float32), np.ones(x_NG.shape[1], np.float32))
        if name == "none":
            return unchanged
        if name == "pearson":
            total_N = _needed(total_N)
            total_N = total_N if rows is None else total_N[rows]
            return replace(unchanged, limit=math.sqrt(len(total_N)), share_G=_shares(x_NG, total_N, rows))
        if name in ("pareto", "standard"):
            mean_G, variance_G = _moments(x_NG, rows)
            sd_G = np.sqrt(variance_G + LEAST_VARIANCE)
            span_G = np.sqrt(sd_G * sd_G.mean()) if name == "pareto" else sd_G
            return cls(mean_G.astype(np.float32), span_G.astype(np.float32), LIMIT)
        if name != "min-max":
            raise ScmedleyError(f"There is no scale {name!r}. Choose one of {list(get_args(ScaleName))}.")
        low_G, high_G = _range(x_NG, rows)
        span_G = np.where(high_G > low_G, high_G - low_G, np.float32(1))
        return cls(low_G, span_G.astype(np.float32))

    def on(self, device: torch.device, missing_G: np.ndarray | None = None) -> "TensorScale":
        """Return the scale as tensors on a device; ``missing_G`` are genes that were not measured."""
        centre_G, span_G = (torch.as_tensor(side, device=device) for side in (self.centre_G, self.span_G))
        missing = None if missing_G is None else torch.as_tensor(np.flatnonzero(missing_G), device=device)
        share_G = None if self.share_G is None else torch.as_tensor(self.share_G, device=device)
        return TensorScale(centre_G if self.centre_G.any() else None, span_G, self.limit, missing, share_G)

    def transform(self, x_NG: Matrix, total_N: np.ndarray | None = None) -> np.ndarray:
        """Scale cells; the result is dense. Pearson residuals need the cells' totals."""
        dense_NG = np.asarray(x_NG.toarray() if hasattr(x_NG, "toarray") else x_NG)
        if self.share_G is not None:
            total_N1 = np.asarray(_needed(total_N), np.float32)[:, None]
            mean_NG = self.share_G * total_N1
            dense_NG = np.expm1(dense_NG) * (total_N1 / np.float32(TARGET_SUM)) - mean_NG
            mean_NG += mean_NG**2 / np.float32(THETA)
            dense_NG /= np.sqrt(np.maximum(mean_NG, np.finfo(np.float32).tiny, out=mean_NG))
        scaled_NG = (dense_NG - self.centre_G) / self.span_G
        if self.limit < math.inf:
            scaled_NG = np.clip(scaled_NG, -self.limit, self.limit)
        return np.asarray(scaled_NG, dtype=np.float32)

    def inverse(self, x_NG: np.ndarray) -> np.ndarray:
        """Return log1p CP10k, the unit of the input; Pearson residuals are taken for those of 10,000 counts."""
        if self.share_G is not None:
            mean_G = self.share_G * np.float32(TARGET_SUM)
            x_NG = x_NG * np.sqrt(mean_G + mean_G**2 / np.float32(THETA)) + mean_G
            return np.asarray(np.log1p(np.maximum(x_NG, 0)), dtype=np.float32)
        return np.asarray(x_NG * self.span_G + self.centre_G, dtype=np.float32)


@dataclass(frozen=True)
class TensorScale:
    """A scale on a device.

    Attributes
    ----------
    centre_G
        ``None`` if all centres are 0.
    missing
        Numbers of the genes that were not measured, which have the scaled value 0: the mean of the training
        cells if genes are centred, the minimum if they are scaled to 0 ... 1, the expected count of Pearson
        residuals.
    share_G
        As in :class:`Scale`.
    """

    centre_G: Tensor | None
    span_G: Tensor
    limit: float
    missing: Tensor | None = None
    share_G: Tensor | None = None

    def apply_(self, x_NG: Tensor, total_N: Tensor | None = None) -> Tensor:
        """Scale dense cells in place. Pearson residuals need the cells' totals."""
        if self.share_G is not None:
            total_N1 = _needed(total_N)[:, None]
            mean_NG = total_N1 * self.share_G
            x_NG.expm1_().mul_(total_N1 / TARGET_SUM).sub_(mean_NG)
            mean_NG.add_(mean_NG.square() / THETA).clamp_min_(torch.finfo(torch.float32).tiny)
            x_NG.div_(mean_NG.sqrt_())
        if self.centre_G is not None:
            x_NG.sub_(self.centre_G)
        x_NG.div_(self.span_G)
        if self.missing is not None:
            x_NG[:, self.missing] = 0
        return x_NG.clamp_(-self.limit, self.limit) if self.limit < math.inf else x_NG


def _needed(total_N: Any) -> Any:
    """Return the totals; raise if there are none."""
    if total_N is None:
        raise ScmedleyError(
            "Pearson residuals need counts, and this model reads none. Use VAE, or another scale than 'pearson'."
        )
    return total_N


def _shares(x_NG: Values, total_N: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
    """Return each gene's share of all counts, also those of other genes; from log1p CP10k and totals."""
    weight_N = np.asarray(total_N, np.float64) / TARGET_SUM
    sum_1G = np.zeros((1, x_NG.shape[1]))
    for part, log1p_NG in blocks(x_NG, rows):
        cp10k_NG = sparse.csr_matrix(log1p_NG).expm1().astype(np.float64)
        cp10k_NG.data *= np.repeat(weight_N[part], np.diff(cp10k_NG.indptr))
        add_rows(cp10k_NG, np.zeros(cp10k_NG.shape[0], np.int64), (sum_1G, np.positive))
    return np.asarray(sum_1G[0] / max(float(np.sum(total_N, dtype=np.float64)), 1.0), dtype=np.float32)


def _moments(x_NG: Values, rows: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of each gene, in float64."""
    n_cells = x_NG.shape[0] if rows is None else len(rows)
    sum_1G, squares_1G = np.zeros((1, x_NG.shape[1])), np.zeros((1, x_NG.shape[1]))
    for _, block_NG in blocks(x_NG, rows):
        group_N = np.zeros(block_NG.shape[0], np.int64)
        add_rows(block_NG, group_N, (sum_1G, np.positive), (squares_1G, _square))
    mean_G = sum_1G[0] / n_cells
    return mean_G, np.maximum(squares_1G[0] / n_cells - mean_G**2, 0)


def _square(x: np.ndarray) -> np.ndarray:
    squares: np.ndarray = np.square(x, dtype=np.float64)
    return squares


def _range(x_NG: Values, rows: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and the highest value of each gene."""
    low_G, high_G = (np.full(x_NG.shape[1], side, np.float32) for side in (np.inf, -np.inf))
    for _, block_NG in blocks(x_NG, rows):
        sides: tuple[Any, Any] = (block_NG.min(axis=0), block_NG.max(axis=0))
        low, high = (
            np.asarray(side.toarray() if hasattr(side, "toarray") else side, np.float32).ravel()
            for side in sides
        )
        low_G, high_G = np.minimum(low_G, low), np.maximum(high_G, high)
    return low_G, high_G
