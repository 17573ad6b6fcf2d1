"""Genomaps: a cell as a picture, whose pixels are genes (the idea: Islam & Xing 2023).

Genes that interact little with the others lie in the middle, those that interact much farther out, and genes
that lie side by side correlate more than others do. One layout serves all cells of a model, so that pictures can
be compared.

Shapes: N cells, G genes, H × W pixels, S pixels of one band that do not touch.
"""

import json
import operator
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from scipy.sparse.linalg import eigsh

from scmedley import keys
from scmedley.data.arrays import Numbers, check_finite, dense, numeric
from scmedley.data.gene_names import check_unique
from scmedley.data.reader import Cells
from scmedley.device import modes
from scmedley.errors import ScmedleyError, check_seed
from scmedley.interpret.check import decoder
from scmedley.io import replacing
from scmedley.models import MixedEffects
from scmedley.models.base import Model

Ints = NDArray[np.int64]
Matrix: TypeAlias = NDArray[Any] | sparse.csr_matrix

MOST_GENES = 8000  # of a model that is laid out: their correlations, and copies of them, take a gigabyte
MAX_CELLS = 20_000  # of more, so many are drawn for the correlations
BLOCK = 4096  # cells whose products are summed at one time
BANDS = (
    12  # rings of equal numbers of genes; within one a gene may lie anywhere. Spearman is then 1 - 1/BANDS^2
)
BAND_GENES = 500  # of one band, at most: exact assignment takes the cube of it
ROUNDS = 40
NEIGHBOURS = ((0, 1), (1, 0), (0, -1), (-1, 0))


@dataclass(frozen=True)
class Layout:
    """Where each gene lies.

    Attributes
    ----------
    genes
        Names, G.
    rows, columns
        Pixel of each gene, counted from 0 at the top left, each G.
    shape
        Height and width of the picture; pixels without a gene are in its corners.
    constant
        Genes with one value in all cells, G: they correlate with nothing and lie outermost.
    """

    genes: tuple[str, ...]
    rows: Ints
    columns: Ints
    shape: tuple[int, int]
    constant: NDArray[np.bool_]

    def save(self, path: str | Path) -> None:
        """Write the layout as JSON, all or nothing."""
        values = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in asdict(self).items()}
        with replacing(Path(path)) as temporary:
            temporary.write_text(json.dumps(values))

    @classmethod
    def load(cls, path: str | Path) -> "Layout":
        """Read a layout.

        Raises
        ------
        ScmedleyError
            No layout is there.
        """
        try:
            found = json.loads(Path(path).read_text())
            made = cls(
                tuple(map(str, found["genes"])),
                np.asarray(found["rows"], np.int64),
                np.asarray(found["columns"], np.int64),
                (int(found["shape"][0]), int(found["shape"][1])),
                np.asarray(found["constant"], bool),
            )
            if not len(made.genes) == len(made.rows) == len(made.columns) == len(made.constant):
                raise ValueError("its lists differ in length")
            taken = np.ravel_multi_index((made.rows, made.columns), made.shape)  # raises beyond the picture
            if made.shape[0] * made.shape[1] > 4 * len(taken) + 4096:
                raise ValueError("its picture is far too large")
            if len(np.unique(taken)) < len(taken) or len(set(made.genes)) < len(taken):
                raise ValueError("two genes share a pixel or a name")
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise ScmedleyError(
                f"{path} holds no layout of genes ({error}). Remove that file; it is made again."
            ) from error
        return made


def layout(
    x_NG: Numbers,
    genes: Sequence[str],
    *,
    shape: Sequence[int] | None = None,
    seed: int = 0,
) -> Layout:
    """Lay genes out on a grid.

    The rank of a gene's distance from the middle is, but for places within a narrow ring, the rank of its
    interaction: the sum of its absolute Pearson correlations with all other genes. Around the middle genes start
    in the order of the angle of a spectral embedding of the correlations; then genes of a ring that do not touch
    change places, so that the sum of correlations of touching genes is the largest that such a change can give
    (linear assignment), until nothing is gained any more.

    Parameters
    ----------
    x_NG
        Expression, N × G; log-normalised values are meant. Correlations do not depend on the scale of a gene.
    genes
        Their names.
    shape
        Height and width; the smallest square that holds all genes by default.
    seed
        Of the draw of 20,000 cells, where there are more.

    Returns
    -------
    Layout
        The same for the same cells, genes and seed.

    Raises
    ------
    ScmedleyError
        Fewer than two cells, names that repeat or do not fit the columns, values that are not finite, or a
        shape that is too small.
    """
    x_NG = numeric(x_NG, genes)
    shape = _check(x_NG, genes, shape)
    check_seed(seed)
    correlation_GG, constant_G = correlations(x_NG, seed=seed)
    interaction_G = np.where(constant_G, np.inf, np.abs(correlation_GG).sum(1))
    order_G = np.argsort(interaction_G, kind="stable")
    n_moving = int((~constant_G).sum())
    rows, columns, angle_G = _pixels(shape, len(genes))
    bands = np.array_split(np.arange(n_moving), max(1, min(n_moving, max(BANDS, -(-n_moving // BAND_GENES)))))
    gene_at = order_G.copy()  # gene on each pixel, from the middle outwards
    turn_G = _turns(correlation_GG)
    for band in bands:
        own = order_G[band]
        gene_at[band[np.argsort(angle_G[band], kind="stable")]] = own[np.argsort(turn_G[own], kind="stable")]
    _settle(gene_at, correlation_GG, rows, columns, shape, bands)
    pixel_G = np.empty(len(genes), np.int64)
    pixel_G[gene_at] = np.arange(len(genes))
    return Layout(tuple(map(str, genes)), rows[pixel_G], columns[pixel_G], shape, constant_G)


def genomap_of(model: MixedEffects | Model[Any], adata: Cells, *, seed: int = 0) -> Layout:
    """Lay out the genes of a model's decoder by their correlations among training cells.

    Parameters
    ----------
    model
        A fitted model.
    adata
        The cells of the fit; those with ``obs["scmedley_split"] == "train"`` are used, or all without that column.
    seed
        Seed of the draw of cells, where there are many, as in :func:`layout`.

    Raises
    ------
    ScmedleyError
        The decoder has more than 8,000 genes.
    """
    network = decoder(model)
    if len(network.genes) > MOST_GENES:
        raise ScmedleyError(
            f"The model has {len(network.genes):,} genes; {MOST_GENES:,} at most can be laid out in a picture. Fit it "
            "with fewer genes (--genes)."
        )
    reading = network.read(adata)
    x_NG = reading.log1p_NG
    if keys.SPLIT in reading.obs:
        x_NG = x_NG[np.flatnonzero(reading.obs[keys.SPLIT] == "train")]
    with modes(grad=False):
        return layout(x_NG, network.genes, seed=seed)


def images(x_NG: Numbers, layout: Layout) -> NDArray[np.float32]:
    """Draw cells: N × H × W float32, not a number where there is no gene.

    Parameters
    ----------
    x_NG
        Values of the layout's genes, in its order, N × G, in any unit.
    layout
        From :func:`layout`.

    Raises
    ------
    ScmedleyError
        Not as many columns as genes, or columns of other names.
    """
    x_NG = numeric(x_NG, layout.genes)
    if x_NG.shape[1] != len(layout.genes):
        raise ScmedleyError(
            f"Values of shape {x_NG.shape} do not fit a layout of {len(layout.genes)} genes. Give its genes, in its "
            "order: adata[:, list(layout.genes)]."
        )
    found = np.full((x_NG.shape[0], *layout.shape), np.nan, dtype=np.float32)
    found[:, layout.rows, layout.columns] = dense(x_NG)
    return found


def expression(images_NHW: NDArray[np.float32], layout: Layout) -> NDArray[np.float32]:
    """Read genes back from pictures, N × G: the inverse of :func:`images`.

    Raises
    ------
    ScmedleyError
        Pictures of another shape than the layout's.
    """
    if images_NHW.ndim != 3 or images_NHW.shape[1:] != layout.shape:
        raise ScmedleyError(
            f"Pictures of shape {images_NHW.shape} do not fit a layout of {layout.shape} pixels."
        )
    return images_NHW[:, layout.rows, layout.columns]


def correlations(x_NG: Numbers, *, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Give Pearson correlations of genes, G × G float32 with 0 on the diagonal, and which genes are constant.

    Constant genes correlate with nothing. Of more than 20,000 cells so many are drawn.
    """
    x_NG = numeric(x_NG)
    if x_NG.shape[0] > MAX_CELLS:
        chosen = np.random.default_rng(seed).choice(x_NG.shape[0], MAX_CELLS, replace=False)
        x_NG = x_NG[np.sort(chosen)]
    n_cells, n_genes = x_NG.shape
    mean_G = np.asarray(x_NG.mean(axis=0), np.float64).ravel()
    spread_G = _spread(x_NG)
    constant_G = spread_G == 0
    unit_G = np.where(constant_G, 1, spread_G)  # so that no scale of a gene is too small or large for float32
    square_G = np.zeros(n_genes)
    product_GG = np.zeros((n_genes, n_genes), np.float32)
    for start in range(0, n_cells, BLOCK):
        block = x_NG[start : start + BLOCK]
        centred_MG = ((dense(block) - mean_G) / unit_G).astype(np.float32)
        centred_MG[:, constant_G] = 0
        square_G += (centred_MG.astype(np.float64) ** 2).sum(0)
        product_GG += centred_MG.T @ centred_MG
    scale_G = np.where(constant_G, 1, np.sqrt(square_G)).astype(np.float32)
    product_GG /= scale_G[:, None]
    product_GG /= scale_G
    np.fill_diagonal(product_GG, 0)
    return product_GG, constant_G


def neighbour_correlation(correlation_GG: NDArray[np.float32], layout: Layout) -> float:
    """Give the mean correlation of genes that touch (up, down, left, right)."""
    at = np.full((layout.shape[0] + 1, layout.shape[1] + 1), -1)
    at[layout.rows, layout.columns] = np.arange(len(layout.genes))
    ends = [(at[:-1, :-1], at[1:, :-1]), (at[:-1, :-1], at[:-1, 1:])]
    one, other = (np.concatenate([pair[i].ravel() for pair in ends]) for i in (0, 1))
    both = (one >= 0) & (other >= 0)
    return float(correlation_GG[one[both], other[both]].mean()) if both.any() else float("nan")


def _check(x_NG: Matrix, genes: Sequence[str], shape: Sequence[int] | None) -> tuple[int, int]:
    n_genes = len(genes)
    if x_NG.shape[1] != n_genes or not n_genes:
        raise ScmedleyError(
            f"Values of shape {x_NG.shape} need as many names as columns; there are {n_genes}."
        )
    if x_NG.shape[0] < 2:
        raise ScmedleyError(f"{x_NG.shape[0]} cells have no correlations. Give two cells and more.")
    check_unique(pd.Index(genes).astype(str))
    check_finite(x_NG, genes)
    side = int(np.ceil(np.sqrt(n_genes)))
    height, width = _whole((side, side) if shape is None else shape)
    if height * width < n_genes or min(height, width) < 1:
        raise ScmedleyError(f"A picture of {height} x {width} pixels does not hold {n_genes} genes.")
    return height, width


def _whole(shape: Sequence[int]) -> tuple[int, int]:
    """Take a height and a width as they come: a tuple, a list, an array of whole numbers."""
    try:
        height, width = map(operator.index, shape)
    except (TypeError, ValueError) as error:
        raise ScmedleyError(f"shape {shape!r} must be a height and a width, whole numbers.") from error
    return height, width


def _spread(x_NG: Matrix) -> NDArray[np.float64]:
    """Give the range of each gene, exactly 0 for a constant one."""
    low, high = x_NG.min(axis=0), x_NG.max(axis=0)
    if sparse.issparse(low):
        low, high = low.toarray(), high.toarray()
    return np.asarray(high, np.float64).ravel() - np.asarray(low, np.float64).ravel()


def _pixels(shape: tuple[int, int], n_genes: int) -> tuple[Ints, Ints, NDArray[np.float64]]:
    """Give rows, columns and angles of the ``n_genes`` pixels that are nearest to the middle, from it outwards."""
    rows, columns = np.indices(shape).reshape(2, -1)
    up, right = rows / (shape[0] / 2) - 1 + 1 / shape[0], columns / (shape[1] / 2) - 1 + 1 / shape[1]
    angle, radius = np.arctan2(up, right), np.hypot(up, right).round(9)
    chosen = np.lexsort((angle, radius))[:n_genes]
    return rows[chosen], columns[chosen], angle[chosen]


def _turns(correlation_GG: NDArray[np.float32]) -> NDArray[np.float64]:
    """Give each gene an angle such that correlated genes have like ones: a spectral embedding in two dimensions.

    Affinity is the squared positive correlation; the two leading eigenvectors of the random walk on it, after
    the constant one, are the coordinates.
    """
    affinity_GG = np.square(np.maximum(correlation_GG, 0), dtype=np.float64)
    if not affinity_GG.any():
        return np.zeros(len(affinity_GG))
    degree_G = np.sqrt(affinity_GG.sum(1) + 1e-6)
    affinity_GG /= degree_G[:, None]
    affinity_GG /= degree_G
    if len(affinity_GG) < 10:
        vectors = np.linalg.eigh(affinity_GG)[1][:, -3:]
    else:
        vectors = eigsh(affinity_GG, k=3, v0=np.ones(len(affinity_GG)))[1]
    if vectors.shape[1] < 3:
        return np.zeros(len(affinity_GG))
    along, across = (vectors / degree_G[:, None])[:, [1, 0]].T
    along, across = (side * (np.sign(side[np.abs(side).argmax()]) or 1) for side in (along, across))
    return np.asarray(np.arctan2(across, along))


def _settle(
    gene_at: Ints,
    correlation_GG: NDArray[np.float32],
    rows: Ints,
    columns: Ints,
    shape: tuple[int, int],
    bands: list[Ints],
) -> None:
    """Let genes change places within bands, in place, until touching genes correlate no better.

    Pixels of a set that do not touch one another see the same neighbours whatever gene they hold, so that the best
    places of their genes are a linear assignment.
    """
    n_genes = len(gene_at)
    at = np.full((shape[0] + 2, shape[1] + 2), n_genes)  # framed with pixels without a gene
    at[rows + 1, columns + 1] = np.arange(n_genes)
    beside_G4 = np.stack([at[rows + 1 + dr, columns + 1 + dc] for dr, dc in NEIGHBOURS], axis=1)
    gain_GG = np.zeros((n_genes, n_genes + 1), np.float32)
    gain_GG[:, :n_genes] = correlation_GG
    before = -np.inf
    for _ in range(ROUNDS):
        for apart in _apart(rows, columns):
            for band in bands:
                pixels = band[apart[band]]
                own = gene_at[pixels]
                beside_S4 = np.append(gene_at, n_genes)[beside_G4[pixels]]
                gain_SS = sum(gain_GG[np.ix_(own, beside_S4[:, side])] for side in range(4))
                moved, to = linear_sum_assignment(gain_SS, maximize=True)
                gene_at[pixels[to]] = own[moved]
        now = float(gain_GG[gene_at[:, None], np.append(gene_at, n_genes)[beside_G4]].sum())
        if now - before < 1e-3 * abs(now):
            return
        before = now


def _apart(rows: Ints, columns: Ints) -> Iterator[NDArray[np.bool_]]:
    """Give sets of pixels that do not touch, of several patterns, so that a gene can come everywhere."""
    for i, j, n in ((1, 1, 2), (1, 2, 5), (2, 1, 5)):
        for k in range(n):
            yield (i * rows + j * columns) % n == k
