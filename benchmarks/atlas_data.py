"""Atlases for the benchmark, simulated on disk from a real set: as many cells as you like, never all in memory.

Real cells of blood (``sm.datasets.onek1k``: 7,811 cells x 1,000 genes, 10x) are resampled and thinned:

1. The real genes are too few for an atlas. 19 more of each are made: its counts in other cells of the same type
   (permuted), thinned to a share of their own. 20,000 genes, of which the types still differ in each.
2. A cell of the atlas is a real cell, drawn at random, whose counts are thinned once more, each gene by the factor of
   its batch: thinning a Poisson count multiplies its rate, so batch effects are multiplicative. Labels are the real
   cell's. Batches lie one after the other in the file, as in atlases; their sizes differ by up to a factor of five.

The h5ad has counts as CSR (float32, indices int32), not compressed. Same seed, same file.

Shapes: N cells, G genes, B batches, Z stored values.
"""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import h5py
import numpy as np
import pandas as pd
from anndata.io import write_elem
from scipy.sparse import csr_matrix, hstack

import scmedley as sm

BATCH, LABEL = "batch", "cell_type"
N_GENES, N_BATCHES = 20_000, 20
BLOCK = 4096  # cells that are drawn and written at once
KEPT = (0.1, 0.7)  # the shares of its counts that a made gene keeps: lowest and highest
THINNED = (0.4, 1.0)  # the factors of a gene in a batch: lowest and highest
CHUNK = 1 << 17  # stored values in a chunk of the file


class SparseFile:
    """Write an h5ad with one matrix by row (CSR), a block of cells at a time."""

    def __init__(self, path: Path, n_genes: int, value_type: str = "float32"):
        self.path, self.n_genes = path, n_genes
        self._row_1 = [np.zeros(1, np.int64)]
        self._n_values = 0
        self._file = h5py.File(path, "w", libver=("earliest", "latest"))
        self._file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        x = self._file.create_group("X")
        for name, dtype in (("data", value_type), ("indices", "int32")):
            x.create_dataset(name, (0,), dtype, chunks=(CHUNK,), maxshape=(None,))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is not None:
            self.path.unlink(missing_ok=True)

    def append(self, x_NG: csr_matrix) -> None:
        """Add cells."""
        end = self._n_values + x_NG.nnz
        for name, values_Z in (("data", x_NG.data), ("indices", x_NG.indices)):
            stored = self._file["X"][name]
            stored.resize((end,))
            stored[self._n_values :] = values_Z
        self._row_1.append(x_NG.indptr[1:].astype(np.int64) + self._n_values)
        self._n_values = end

    def finish(self, obs: pd.DataFrame, var: pd.DataFrame) -> None:
        """Write the tables of the cells and of the genes."""
        row_N1 = np.concatenate(self._row_1)
        x = self._file["X"]
        x.create_dataset("indptr", data=row_N1)
        x.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        x.attrs["shape"] = np.array([len(row_N1) - 1, self.n_genes])
        write_elem(self._file, "obs", obs)
        write_elem(self._file, "var", var)
        for name in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
            write_elem(self._file, name, {})


def simulate(
    path: Path, n_cells: int, *, seed: int = 0, n_genes: int = N_GENES, n_batches: int = N_BATCHES
) -> None:
    """Write an atlas to ``path``.

    Parameters
    ----------
    path
        The h5ad; replaced if it exists, complete or absent after an error.
    n_cells
        N.
    seed
        Random seed.
    n_genes, n_batches
        G and B.
    """
    rng = np.random.default_rng(seed)
    real_RG, names, label_R = real_cells(n_genes, rng)
    factor_BG = rng.uniform(*THINNED, (n_batches, n_genes)).astype(np.float32)
    share_B = rng.uniform(1, 5, n_batches)
    batch_N = np.searchsorted(np.cumsum(share_B / share_B.sum())[:-1], (np.arange(n_cells) + 0.5) / n_cells)
    row_N = rng.integers(0, real_RG.shape[0], n_cells)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with SparseFile(part, n_genes) as file:
        for block in range(-(-n_cells // BLOCK)):
            rows = slice(block * BLOCK, (block + 1) * BLOCK)
            rng_block = np.random.default_rng([seed, block])
            file.append(_thinned(real_RG[row_N[rows]], factor_BG, batch_N[rows], rng_block))
        width = len(str(n_cells - 1))
        obs = pd.DataFrame(
            {
                BATCH: pd.Categorical.from_codes(
                    batch_N.astype(np.int8), pd.Index([f"batch{b:02d}" for b in range(n_batches)])
                ),
                LABEL: label_R.take(row_N),
            },
            index=[f"cell{i:0{width}d}" for i in range(n_cells)],
        )
        file.finish(obs, pd.DataFrame(index=names))
    part.replace(path)


def real_cells(n_genes: int, rng: np.random.Generator) -> tuple[csr_matrix, list[str], pd.Categorical]:
    """Return the real cells with ``n_genes`` genes (counts, uint16), the genes' names and the cells' labels."""
    adata = sm.datasets.onek1k()
    label_R = adata.obs[LABEL].astype("category").array
    real_RG = csr_matrix(adata.X)
    columns, names = [real_RG], list(adata.var_names)
    while len(names) < n_genes:
        made_RG = real_RG[_permuted(label_R.codes, rng)]
        share_G = rng.uniform(*KEPT, made_RG.shape[1])
        counts_Z = made_RG.data.astype(np.int64)
        made_RG.data = rng.binomial(counts_Z, share_G[made_RG.indices]).astype(np.float32)
        names += [f"{name}-{len(columns)}" for name in adata.var_names]
        columns.append(made_RG)
    wide_RG = csr_matrix(hstack(columns, format="csr")[:, :n_genes])
    wide_RG.eliminate_zeros()
    return wide_RG.astype(np.uint16), names[:n_genes], label_R


def blocks_of(path: Path, size: int = BLOCK) -> Iterator[csr_matrix]:
    """Yield the cells of an h5ad that :class:`SparseFile` wrote, a block at a time."""
    with h5py.File(path) as file:
        x = file["X"]
        row_N1, n_genes = x["indptr"][:], int(x.attrs["shape"][1])
        for start in range(0, len(row_N1) - 1, size):
            row_n1 = row_N1[start : start + size + 1]
            values = slice(row_n1[0], row_n1[-1])
            parts = (x["data"][values], x["indices"][values], row_n1 - row_n1[0])
            yield csr_matrix(parts, shape=(len(row_n1) - 1, n_genes))


def _permuted(code_R: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return row numbers that are permuted within each label."""
    row_R = np.arange(len(code_R))
    for code in np.unique(code_R):
        of = np.flatnonzero(code_R == code)
        row_R[of] = rng.permutation(of)
    return row_R


def _thinned(
    x_NG: csr_matrix, factor_BG: np.ndarray, batch_N: np.ndarray, rng: np.random.Generator
) -> csr_matrix:
    """Keep each count with the probability of its batch and gene."""
    counts_Z = x_NG.data
    batch_Z = np.repeat(batch_N, np.diff(x_NG.indptr))
    share_Z = factor_BG[batch_Z, x_NG.indices]
    kept_Z = (rng.random(len(counts_Z), np.float32) < share_Z).astype(np.float32)  # of a count of 1
    more = np.flatnonzero(counts_Z > 1)
    kept_Z[more] = rng.binomial(counts_Z[more], share_Z[more])
    thinned_NG = csr_matrix((kept_Z, x_NG.indices, x_NG.indptr), shape=x_NG.shape)
    thinned_NG.eliminate_zeros()
    return thinned_NG
