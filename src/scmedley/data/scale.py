"""The scaling of each gene, learnt on the training cells and stored with the model.

Cells stay in memory as log1p CP10k, which is sparse; the rows of a minibatch are scaled when they are used. Models
with different scales can therefore share the same cells.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from scmedley.data.arrays import Matrix
from scmedley.errors import ScmedleyError

ScaleName = Literal["pareto", "standard", "min-max", "none"]
LIMIT = 10.0  # "pareto" and "standard" are clipped: single counts of rare genes would be far outside
LEAST_VARIANCE = 1e-4  # added to each variance, so that (nearly) constant genes do not become noise


@dataclass(frozen=True)
class Scale:
    """Scaling of each gene to (x - centre) / span, clipped to -limit ... limit.

    Attributes
    ----------
    centre_G, span_G
        float32, in the unit of the input (log1p CP10k).
    limit
        Infinite if values are not clipped.
    """

    centre_G: np.ndarray
    span_G: np.ndarray
    limit: float = math.inf

    @classmethod
    def fit(cls, x_NG: Matrix, name: ScaleName) -> "Scale":
        """Learn the scale from (training) cells.

        ``"standard"``: to mean 0 and variance 1, clipped. ``"pareto"``: to mean 0, divided by the square root of
        the standard deviation (van den Berg et al. 2006, BMC Genomics) and by a number that makes the mean
        variance 1, clipped. ``"min-max"``: to 0 ... 1 in these cells; other cells may be outside. Constant genes
        become 0. ``"none"``: values are not changed.
        """
        if name == "none":
            return cls(np.zeros(x_NG.shape[1], np.float32), np.ones(x_NG.shape[1], np.float32))
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
        return TensorScale(centre_G if self.centre_G.any() else None, span_G, self.limit, missing)

    def transform(self, x_NG: Matrix) -> np.ndarray:
        """Scale cells; the result is dense."""
        dense_NG = np.asarray(x_NG.toarray() if hasattr(x_NG, "toarray") else x_NG)
        scaled_NG = (dense_NG - self.centre_G) / self.span_G
        if self.limit < math.inf:
            scaled_NG = np.clip(scaled_NG, -self.limit, self.limit)
        return np.asarray(scaled_NG, dtype=np.float32)

    def inverse(self, x_NG: np.ndarray) -> np.ndarray:
        """Return values in the unit of the input (log1p CP10k)."""
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
        cells if genes are centred, the minimum if they are scaled to 0 ... 1.
    """

    centre_G: Tensor | None
    span_G: Tensor
    limit: float
    missing: Tensor | None = None

    def apply_(self, x_NG: Tensor) -> Tensor:
        """Scale dense cells in place."""
        if self.centre_G is not None:
            x_NG.sub_(self.centre_G)
        x_NG.div_(self.span_G)
        if self.missing is not None:
            x_NG[:, self.missing] = 0
        return x_NG.clamp_(-self.limit, self.limit) if self.limit < math.inf else x_NG


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
