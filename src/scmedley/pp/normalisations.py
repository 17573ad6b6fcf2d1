"""Compare two normalisations of the same cells: log1p of counts per 10,000, and analytic Pearson residuals.

Shapes: N sampled cells, G chosen genes, P principal components.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix, vstack

from scmedley.data.arrays import dense, log1p_cp10k
from scmedley.data.scale import Scale
from scmedley.device import threads_kept
from scmedley.errors import ScmedleyError

MOST_CELLS, MOST_GENES, LEAST_CELLS, LEAST_GENES = 5_000, 2_000, 50, 10
N_COMPONENTS, N_NEIGHBOURS = 30, 15
NAMES = {"log1p": "log1p of counts per 10,000", "pearson": "analytic Pearson residuals"}


@dataclass
class Comparison:
    """Two normalisations of the same cells and genes.

    Attributes
    ----------
    table
        One row for each normalisation: min, max, mean, share of zeros; share of the variance in the ten most
        variable genes; R² of the logarithm of the cells' totals on the first ten principal components; share of
        the cells whose 15 nearest neighbours have the same label, and the same batch, as the majority.
    genes
        Mean count of each chosen gene, and its variance after each normalisation.
    maps
        The first two principal components of each cell after each normalisation.
    groups
        Batch and label of each cell, if known.
    """

    table: pd.DataFrame
    genes: pd.DataFrame
    maps: dict[str, np.ndarray]
    groups: dict[str, "pd.Series[Any]"]


def compare_normalisations(
    blocks: Sequence[csr_matrix],
    total_N: np.ndarray,
    genes: Sequence[str],
    groups: Mapping[Any, "pd.Series[Any]"],
    seed: int,
) -> Comparison:
    """Normalise the cells in two ways, and describe the values, the genes and the neighbours of each.

    Both are described on the 2,000 most variable genes (Seurat's method in scanpy, on log1p of counts per 10,000).
    Pearson residuals are those that models read (:class:`scmedley.data.scale.Scale`): the cells' totals are over all
    genes, theta is 100, and they are clipped at the square root of the number of cells.

    Raises
    ------
    ScmedleyError
        Fewer than 50 cells with counts, fewer than 10 detected genes, or cells that are all alike.
    """
    kept = total_N > 0
    x = vstack(blocks, format="csr")[kept]
    if x.shape[0] < LEAST_CELLS:
        raise ScmedleyError(
            f"{x.shape[0]} cells have counts; two normalisations are compared on {LEAST_CELLS} or more."
        )
    groups = {str(name): values[kept].reset_index(drop=True) for name, values in groups.items()}
    logs = csr_matrix(log1p_cp10k(x, total_N[kept]))
    chosen = _variable(logs)
    if len(chosen) < LEAST_GENES:
        raise ScmedleyError(
            f"{len(chosen)} genes are detected in the sampled cells; two normalisations are compared on {LEAST_GENES} "
            "or more."
        )
    logs, depth = logs[:, chosen], np.log(total_N[kept])
    residuals = Scale.fit(logs, "pearson", total_N[kept]).transform(logs, total_N[kept])
    values = {"log1p": dense(logs).astype(np.float64), "pearson": residuals.astype(np.float64)}
    if not np.ptp(values["log1p"], axis=0).any():
        raise ScmedleyError(
            "The sampled cells are all alike: no normalisation leaves a difference to compare."
        )
    table, maps = [], {}
    mean = np.asarray(x[:, chosen].mean(axis=0)).ravel()
    out = pd.DataFrame({"gene": np.asarray(genes, dtype=object)[chosen], "mean": mean})
    for name, normalised in values.items():
        scores = _components(normalised, seed)
        maps[name] = scores[:, :2]
        out[f"variance_{name}"] = normalised.var(axis=0, ddof=1)
        table.append({"normalisation": name} | _described(normalised, scores, depth, groups))
    return Comparison(pd.DataFrame(table), out, maps, groups)


def _variable(logs: csr_matrix) -> np.ndarray:
    """Return the places of the most variable genes."""
    import scanpy as sc

    detected = np.flatnonzero(np.bincount(logs.indices, minlength=logs.shape[1]))
    if len(detected) <= MOST_GENES:
        return detected
    with warnings.catch_warnings(), threads_kept():
        warnings.simplefilter("ignore")  # of scanpy about single genes
        table = sc.pp.highly_variable_genes(
            AnnData(logs[:, detected]), n_top_genes=MOST_GENES, flavor="seurat", inplace=False
        )
    chosen: np.ndarray = detected[np.asarray(table["highly_variable"], dtype=bool)]
    return chosen


def _components(values: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.decomposition import PCA

    n = min(N_COMPONENTS, *(size - 1 for size in values.shape))
    scores: np.ndarray = PCA(max(n, 2), random_state=seed, svd_solver="randomized").fit_transform(values)
    return scores


def _described(
    values: np.ndarray, scores: np.ndarray, depth: np.ndarray, groups: Mapping[str, "pd.Series[Any]"]
) -> dict[str, float]:
    variance = np.sort(values.var(axis=0))[::-1]
    design = np.column_stack([np.ones(len(depth)), scores[:, :10]])
    rest = depth - design @ np.linalg.lstsq(design, depth, rcond=None)[0]
    row = {
        "min": float(values.min()),
        "mean": float(values.mean()),
        "max": float(values.max()),
        "zeros": float((values == 0).mean()),
        "variance_in_10_genes": float(variance[:10].sum() / variance.sum()),
        "depth_r2": float(1 - rest.var() / depth.var()) if depth.var() > 0 else np.nan,
    }
    return row | {f"same_{name}": _agreement(scores, of) for name, of in groups.items()}


def _agreement(scores: np.ndarray, groups: "pd.Series[Any]") -> float:
    """Return the share of cells whose nearest neighbours mostly have the cell's own group."""
    from sklearn.neighbors import NearestNeighbors

    codes = groups.cat.codes.to_numpy()
    known = codes >= 0
    if len(set(codes[known].tolist())) < 2 or known.sum() <= N_NEIGHBOURS + 1:
        return float("nan")
    search = NearestNeighbors(n_neighbors=N_NEIGHBOURS).fit(scores[known])
    near = codes[known][search.kneighbors(return_distance=False)]  # without the cell itself
    votes = np.apply_along_axis(lambda row: np.bincount(row).argmax(), 1, near)
    return float((votes == codes[known]).mean())
