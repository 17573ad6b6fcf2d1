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
from scmedley.data.evidence import TARGET_SUM
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
    def fit(cls, x_NG: Matrix, name: ScaleName, total_N: np.ndarray | None = None) -> "Scale":
        """Learn the scale from (training) cells.

        ``"standard"``: to mean 0 and variance 1, clipped. ``"pareto"``: to mean 0, divided by the square root of
        the standard deviation (van den Berg et al. 2006, BMC Genomics) and by a number that makes the mean
        variance 1, clipped. ``"min-max"``: to 0 ... 1 in these cells; other cells may be outside. Constant genes
        become 0. ``"pearson"``: to analytic Pearson residuals, clipped at the root of the number of cells;
        ``total_N`` are the cells' counts over all genes. ``"none"``: values are not changed.
        """
        unchanged = cls(np.zeros(x_NG.shape[1], np.float32), np.ones(x_NG.shape[1], np.float32))
        if name == "none":
            return unchanged
        if name == "pearson":
            return replace(unchanged, limit=math.sqrt(x_NG.shape[0]), share_G=_shares(x_NG, _needed(total_N)))
        if name in ("pareto", "standard"):
            mean_G, variance_G = _moments(x_NG)
            sd_G = np.sqrt(variance_G + LEAST_VARIANCE)
            span_G = np.sqrt(sd_G * sd_G.mean()) if name == "pareto" else sd_G
            return cls(mean_G.astype(np.float32), span_G.astype(np.float32), LIMIT)
        if name != "min-max":
            raise ScmedleyError(f"There is no scale {name!r}. Choose one of {list(get_args(ScaleName))}.")
        sides: tuple[Any, Any] = (x_NG.min(axis=0), x_NG.max(axis=0))
        low, high = (
            np.asarray(side.toarray() if hasattr(side, "toarray") else side, np.float32).ravel()
            for side in sides
        )
        span = np.where(high > low, high - low, np.float32(1))
        return cls(low, span.astype(np.float32))

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


def _shares(x_NG: Matrix, total_N: np.ndarray) -> np.ndarray:
    """Return each gene's share of all counts, also those of other genes; from log1p CP10k and totals."""
    weight_N = np.asarray(total_N, np.float64) / TARGET_SUM
    cp10k_NG = np.expm1(x_NG) if isinstance(x_NG, np.ndarray) else sparse.csr_matrix(x_NG).expm1()
    sum_G = np.asarray(cp10k_NG.T @ weight_N).ravel()
    return np.asarray(sum_G / max(float(np.sum(total_N, dtype=np.float64)), 1.0), dtype=np.float32)


def _moments(x_NG: Matrix) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of each gene, in float64."""
    n_cells = x_NG.shape[0]
    if sparse.issparse(x_NG):
        x_NG = sparse.csr_matrix(x_NG, dtype=np.float64)
        sum_G = np.asarray(x_NG.sum(axis=0)).ravel()
        squares_G = np.asarray(x_NG.multiply(x_NG).sum(axis=0)).ravel()
        mean_G = sum_G / n_cells
        return mean_G, np.maximum(squares_G / n_cells - mean_G**2, 0)
    return x_NG.mean(axis=0, dtype=np.float64), x_NG.var(axis=0, dtype=np.float64)
