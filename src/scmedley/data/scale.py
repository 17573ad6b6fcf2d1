"""Min-max scaling of each gene, learnt on the training cells and stored with the model."""

from dataclasses import dataclass

import numpy as np
from scipy import sparse


@dataclass(frozen=True)
class MinMax:
    """Scaling of each gene to (x - minimum) / span; training cells are then in [0, 1].

    Other cells may be outside: they are not clipped. Constant genes become 0.
    ``minimum_G`` and ``span_G`` are float32, in the unit of the input (log1p CP10k).
    """

    minimum_G: np.ndarray
    span_G: np.ndarray

    @classmethod
    def fit(cls, x_NG: sparse.csr_matrix | np.ndarray) -> "MinMax":
        """Learn minimum and span of each gene from (training) cells."""
        low, high = x_NG.min(axis=0), x_NG.max(axis=0)
        if sparse.issparse(x_NG):
            low, high = low.toarray(), high.toarray()
        low, high = (np.asarray(side, np.float32).ravel() for side in (low, high))
        span = np.where(high > low, high - low, np.float32(1))
        return cls(low, span.astype(np.float32))

    @classmethod
    def none(cls, n_genes: int) -> "MinMax":
        """Return the scaling that does not change values."""
        return cls(np.zeros(n_genes, np.float32), np.ones(n_genes, np.float32))

    def transform(self, x_NG: sparse.csr_matrix | np.ndarray) -> sparse.csr_matrix | np.ndarray:
        """Scale cells; a sparse matrix stays sparse if every gene's minimum is 0."""
        if sparse.issparse(x_NG):
            if not self.minimum_G.any():
                x_NG = sparse.csr_matrix(x_NG)
                scaled = (x_NG.data / self.span_G[x_NG.indices], x_NG.indices, x_NG.indptr)
                return sparse.csr_matrix(scaled, shape=x_NG.shape)  # shares the index arrays of the input
            x_NG = sparse.csr_matrix(x_NG).toarray()
        return np.asarray((x_NG - self.minimum_G) / self.span_G, dtype=np.float32)

    def equals(self, other: "MinMax") -> bool:
        """Return whether both scalings are equal."""
        return np.array_equal(self.minimum_G, other.minimum_G) and np.array_equal(self.span_G, other.span_G)

    def inverse(self, x_NG: np.ndarray) -> np.ndarray:
        """Return values in the unit of the input (log1p CP10k)."""
        return np.asarray(x_NG * self.span_G + self.minimum_G, dtype=np.float32)
