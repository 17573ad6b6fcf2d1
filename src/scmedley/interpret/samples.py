"""How far samples, such as donors, are from each other within each label.

Shapes: N cells, P dimensions or genes, D samples, R permutations or posterior draws.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from scmedley.data.arrays import Matrix, dense
from scmedley.data.design import as_categories, column
from scmedley.errors import ScmedleyError, check_seed, listed, warn
from scmedley.interpret.check import decoder, labels_of, names_of
from scmedley.interpret.variance import log_expression
from scmedley.models.counterfactual import drawn_means

if TYPE_CHECKING:
    from anndata import AnnData

    from scmedley.models import MixedEffects
    from scmedley.models.base import Model

GENES = "genes"
TABLE = ("label", "sample_1", "sample_2", "distance", "sd", "observed", "null", "null_sd", "p", "label_p")


def sample_distances(
    adata: AnnData,
    sample_key: str,
    label_key: str | None = None,
    *,
    use: str = GENES,
    model: MixedEffects | Model[Any] | None = None,
    permutations: int = 200,
    min_cells: int = 10,
    draws: int = 30,
    max_cells: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the distance of every two samples within each label, with a permutation null.

    All distances are the root mean square over dimensions or genes of the difference between two means. Without a
    model they are means of the samples' cells. Noise alone sets means of few cells apart, so the
    variance of the two means is subtracted from their squared distance, which may leave 0. With a model, the same cells
    of the label are predicted in each sample, as in MrVI, and the distance is the posterior mean of that between
    the predictions' means. ``observed`` is not corrected. Its null is that of cells whose samples were permuted within
    the label, all samples together. These p-values take cells as replicates: a small one says that two samples differ,
    as two donors nearly always do, and nothing about groups of donors (for these:
    :func:`scmedley.interpret.sample_association`).

    Parameters
    ----------
    adata
        Cells with their samples.
    sample_key
        Column of ``obs`` with the samples, such as the donor.
    label_key
        Column of ``obs`` with the labels; by default all cells are one label.
    use
        ``"genes"`` for log1p of counts per 10,000 (of highly variable genes, if ``var`` says which), or a key in
        ``obsm``; not of an embedding that had the samples removed. With a model, its genes are used.
    model
        A fitted model with effects of the samples.
    permutations
        Number of permutations; the smallest possible p-value is 1 / (permutations + 1).
    min_cells
        Samples with fewer cells of a label are left out in this label.
    draws, max_cells
        With a model: posterior draws, and the most cells of a label that are predicted.
    seed
        Random seed.

    Returns
    -------
    pandas.DataFrame
        One row for every label and pair of samples: ``distance``; ``sd`` (of the posterior; nan without a model);
        ``observed``, ``null`` and ``null_sd`` (mean and standard deviation of the observed distance over
        permutations), ``p`` (share of permutations with as large a distance); ``label_p``, of the test that the
        label's samples differ at all (sum of squares between samples; the same in all rows of a label); ``cells_1``
        and ``cells_2``.

    Raises
    ------
    ScmedleyError
        A key is missing, no label has two samples with enough cells, or the model has no effect of these samples.
    """
    check_seed(seed)
    if permutations < 1 or min_cells < 2 or draws < 2:
        raise ScmedleyError(
            f"permutations={permutations}, min_cells={min_cells}, draws={draws}: need 1, 2 and 2, or more."
        )
    sample = as_categories(column(adata, sample_key, "sample"))
    if label_key is not None:
        column(adata, label_key, "label")
    label_N, code_N = labels_of(adata.obs, label_key), np.asarray(sample.codes, np.int64)
    predicted = None if model is None else _Predicted(model, adata, code_N, draws, max_cells, seed)
    z_NP = _values(adata, use) if predicted is None else predicted.x_NG
    rng = np.random.default_rng(seed)
    tables, alone = [], []
    for label in names_of(label_N):
        rows = np.flatnonzero((label_N == label) & (code_N >= 0))
        n_D = np.bincount(code_N[rows], minlength=len(sample.categories))
        used_D = np.flatnonzero(n_D >= min_cells)
        if len(used_D) < 2:
            alone.append(label)
            continue
        rows = rows[np.isin(code_N[rows], used_D)]
        here_N = np.searchsorted(used_D, code_N[rows])
        table = _observed(z_NP[rows], here_N, permutations, rng)
        if predicted is not None:
            table["distance"], table["sd"] = predicted.distances(rows, used_D)
        one, other = np.triu_indices(len(used_D), 1)
        names = np.asarray(sample.categories, object)[used_D]
        table = table.assign(label=label, sample_1=names[one], sample_2=names[other])
        tables.append(table[list(TABLE)].assign(cells_1=n_D[used_D][one], cells_2=n_D[used_D][other]))
    if not tables:
        raise ScmedleyError(
            f"No label has two samples of obs[{sample_key!r}] with {min_cells} cells or more, so there are no "
            "distances. Lower min_cells, or give another sample_key."
        )
    if alone:
        warn(f"{listed(alone)}: fewer than two samples have {min_cells} cells, so there are no distances.")
    return pd.concat(tables, ignore_index=True)


def _values(adata: AnnData, use: str) -> Matrix:
    """Return the embedding, or log1p of counts per 10,000."""
    if use == GENES:
        return log_expression(adata, None, "auto")[0]
    if use not in adata.obsm:
        raise ScmedleyError(
            f"obsm has no {use!r}; it has {listed([str(key) for key in adata.obsm], 20) or 'nothing'}. Embed the cells "
            "first, or pass use='genes', or a model."
        )
    z_NP = np.asarray(adata.obsm[use], np.float64)
    if z_NP.ndim != 2 or not z_NP.shape[1] or not np.isfinite(z_NP).all():
        raise ScmedleyError(f"obsm[{use!r}] is not a dense matrix of finite numbers. Correct it.")
    return z_NP


def _observed(
    z_NP: Matrix, code_N: NDArray[np.int64], permutations: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Return observed and corrected distances of one label's samples, and the null by permutation of cells."""
    n_D = np.bincount(code_N).astype(np.float64)
    square_N = np.asarray(
        (z_NP.multiply(z_NP) if not isinstance(z_NP, np.ndarray) else z_NP**2).sum(1)
    ).ravel()
    pairs = np.triu_indices(len(n_D), 1)

    def of(code_N: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
        member_DN = csr_matrix((1 / n_D[code_N], (code_N, np.arange(len(code_N)))))
        mean_DP = dense(member_DN @ z_NP).astype(np.float64)
        size_D = (mean_DP**2).sum(1)
        squared = _squared(mean_DP)[pairs]
        noise_D = (np.bincount(code_N, square_N) / n_D - size_D) / (n_D - 1)  # variance of a sample's mean
        return squared, np.add.outer(noise_D, noise_D)[pairs], float(n_D @ size_D)

    squared, noise, between = of(code_N)
    null = [of(rng.permutation(code_N)) for _ in range(permutations)]
    null_R, between_R = np.sqrt([one[0] for one in null]), np.array([one[2] for one in null])
    width, rounding = z_NP.shape[1], 1 - 1e-9
    seen = np.sqrt(squared)
    return pd.DataFrame(
        {
            "distance": np.sqrt((squared - noise).clip(min=0) / width),
            "sd": np.nan,
            "observed": seen / np.sqrt(width),
            "null": null_R.mean(0) / np.sqrt(width),
            "null_sd": null_R.std(0) / np.sqrt(width),
            "p": (1 + (null_R >= seen * rounding).sum(0)) / (permutations + 1),
            "label_p": (1 + (between_R >= between * rounding).sum()) / (permutations + 1),
        }
    )


def _squared(mean_DP: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the squared distances of all pairs of rows."""
    centred = mean_DP - mean_DP.mean(0)  # for precision
    size_D = (centred**2).sum(1)
    return np.asarray((np.add.outer(size_D, size_D) - 2 * centred @ centred.T).clip(min=0))


class _Predicted:
    """Cells of a label, as a model predicts them in every sample."""

    def __init__(
        self,
        model: MixedEffects | Model[Any],
        adata: AnnData,
        code_N: NDArray[np.int64],
        draws: int,
        max_cells: int,
        seed: int,
    ):
        self.network = decoder(model)
        self.network.check_fitted()
        self.network.check_effects("sample_distances")
        reading = self.network.read(adata).in_memory("sample_distances")
        self.x_NG, own_N = reading.log1p_NG, self.network.design.codes(reading.obs)
        of_sample = pd.Series(own_N[code_N >= 0]).groupby(code_N[code_N >= 0])
        if (of_sample.nunique() > 1).any() or (own_N[code_N >= 0] < 0).any():
            raise ScmedleyError(
                "The samples are not those whose effects the model has: a sample has cells of several or of unknown "
                f"batches of the model (obs[{self.network.design.batch_key!r}]). Give the cells of one condition at a "
                "time, choose another sample_key, or leave the model out."
            )
        self.batch_of = of_sample.first().to_dict()
        self.draws, self.max_cells, self.seed = draws, max_cells, seed
        self.cells = reading.resident(own_N, self.network.scale, self.network.device)

    def distances(
        self, rows: NDArray[np.int64], used_D: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and standard deviation over draws of the distance of each pair of samples."""
        rng = np.random.default_rng(self.seed)
        rows = np.sort(rng.choice(rows, min(self.max_cells, len(rows)), replace=False))
        shown = self.cells.take(torch.as_tensor(rows, device=self.network.device))
        codes = [self.batch_of[d] for d in used_D.tolist()]
        mean_DRG = drawn_means(self.network, shown, self.draws, self.seed, codes)
        pairs = np.triu_indices(len(used_D), 1)
        squared = [_squared(mean_DRG[:, r].astype(np.float64))[pairs] for r in range(self.draws)]
        distance_R = np.sqrt(np.array(squared) / mean_DRG.shape[2])
        return distance_R.mean(0), distance_R.std(0)
