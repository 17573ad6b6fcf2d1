"""Genomaps: a cell as an image whose pixels are genes (idea of Islam & Xing 2023).

Genes with weak interactions are in the centre, genes with strong interactions farther out. Adjacent genes
correlate more than others. All cells of a model have the same layout, so their images can be compared.

Shapes: N cells, G genes, height × width pixels, S pixels of one band that are not adjacent.
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

__all__ = ["Layout", "correlations", "expression", "images", "layout", "neighbour_correlation"]

Ints = NDArray[np.int64]
Matrix: TypeAlias = NDArray[Any] | sparse.csr_matrix

MOST_GENES = 8000  # of a model with a layout: their correlations, with copies, take a gigabyte
MAX_CELLS = 20_000  # maximum number of cells drawn for the correlations
BLOCK = 4096  # cells per block of the sums of products
# Rings with equal numbers of genes. A gene can have any position in its ring: Spearman is then 1 - 1/BANDS^2.
BANDS = 12
BAND_GENES = 500  # maximum per band: the time of an exact assignment grows with its cube
ROUNDS = 40
NEIGHBOURS = ((0, 1), (1, 0), (0, -1), (-1, 0))


@dataclass(frozen=True)
class Layout:
    """The pixel of each gene.

    Attributes
    ----------
    genes
        Names of the G genes.
    rows, columns
        Row and column of each gene's pixel, counted from 0 at the top left, G each.
    shape
        Height and width of the image; pixels without a gene are in its corners.
    constant
        Whether a gene has the same value in all cells, G. Constant genes have no correlations and are
        outermost.
    """

    genes: tuple[str, ...]
    rows: Ints
    columns: Ints
    shape: tuple[int, int]
    constant: NDArray[np.bool_]

    def save(self, path: str | Path) -> None:
        """Write the layout as JSON; a failure leaves no partial file."""
        values = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in asdict(self).items()}
        with replacing(Path(path)) as temporary:
            temporary.write_text(json.dumps(values))

    @classmethod
    def load(cls, path: str | Path) -> "Layout":
        """Read a layout.

        Raises
        ------
        ScmedleyError
            The file is missing or is not a layout.
        """
        try:
            values = json.loads(Path(path).read_text())
            layout = cls(
                tuple(map(str, values["genes"])),
                np.asarray(values["rows"], np.int64),
                np.asarray(values["columns"], np.int64),
                (int(values["shape"][0]), int(values["shape"][1])),
                np.asarray(values["constant"], bool),
            )
            if not len(layout.genes) == len(layout.rows) == len(layout.columns) == len(layout.constant):
                raise ValueError("its lists differ in length")
            pixels = np.ravel_multi_index((layout.rows, layout.columns), layout.shape)  # raises if outside
            if layout.shape[0] * layout.shape[1] > 4 * len(pixels) + 4096:
                raise ValueError("its image is far too large")
            if len(np.unique(pixels)) < len(pixels) or len(set(layout.genes)) < len(pixels):
                raise ValueError("two genes share a pixel or a name")
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise ScmedleyError(
                f"{path} holds no layout of genes ({error}). Remove the file; it will be written again."
            ) from error
        return layout


def layout(
    x_NG: Numbers,
    genes: Sequence[str],
    *,
    shape: Sequence[int] | None = None,
    seed: int = 0,
) -> Layout:
    """Assign each gene to a pixel of an image.

    Genes are ranked by their interaction, the sum of absolute Pearson correlations with all other genes. This
    rank gives the distance from the centre, up to the position within a narrow ring. Around the centre, genes
    are first ordered by their angle in a spectral embedding of the correlations. Then genes of a ring on
    pixels that are not adjacent are permuted (linear assignment) to maximise the sum of correlations of
    adjacent genes, until the sum no longer grows.

    Parameters
    ----------
    x_NG
        Expression, N × G, usually log-normalised. Correlations do not depend on the scale of a gene.
    genes
        Names of the G genes.
    shape
        Height and width of the image; by default the smallest square that holds all genes.
    seed
        Random seed of the draw of 20,000 cells, if there are more.

    Returns
    -------
    Layout
        The same for the same cells, genes and seed.

    Raises
    ------
    ScmedleyError
        There are fewer than two cells, gene names repeat or do not fit the columns, values are not finite, or
        the shape is too small.
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
    gene_at = order_G.copy()  # gene on each pixel, from the centre outwards
    spectral_G = _spectral_angles(correlation_GG)
    for band in bands:
        own = order_G[band]
        own = own[np.argsort(spectral_G[own], kind="stable")]
        gene_at[band[np.argsort(angle_G[band], kind="stable")]] = own
    _permute_within_bands(gene_at, correlation_GG, rows, columns, shape, bands)
    pixel_G = np.empty(len(genes), np.int64)
    pixel_G[gene_at] = np.arange(len(genes))
    return Layout(tuple(map(str, genes)), rows[pixel_G], columns[pixel_G], shape, constant_G)


def genomap_of(model: MixedEffects | Model[Any], adata: Cells, *, seed: int = 0) -> Layout:
    """Compute a layout of the genes of a model's decoder from their correlations among training cells.

    Parameters
    ----------
    model
        A fitted model.
    adata
        The cells of the fit; those with ``obs["scmedley_split"] == "train"`` are used, or all without that
        column.
    seed
        Random seed of the draw of cells, as in :func:`layout`.

    Raises
    ------
    ScmedleyError
        The decoder has more than 8,000 genes.
    """
    network = decoder(model)
    if len(network.genes) > MOST_GENES:
        raise ScmedleyError(
            f"The model has {len(network.genes):,} genes, but an image holds at most {MOST_GENES:,}. Fit a model with "
            "fewer genes (--genes)."
        )
    reading = network.read(adata).in_memory("genomap_of")
    x_NG = reading.log1p_NG
    if keys.SPLIT in reading.obs:
        x_NG = x_NG[np.flatnonzero(reading.obs[keys.SPLIT] == "train")]
    with modes(grad=False):
        return layout(x_NG, network.genes, seed=seed)


def images(x_NG: Numbers, layout: Layout) -> NDArray[np.float32]:
    """Return cells as images, N × height × width float32; nan on pixels without a gene.

    Parameters
    ----------
    x_NG
        Values of the layout's genes, in its order, N × G, in any unit.
    layout
        From :func:`layout`.

    Raises
    ------
    ScmedleyError
        The number or the names of the columns differ from the layout's genes.
    """
    x_NG = numeric(x_NG, layout.genes)
    if x_NG.shape[1] != len(layout.genes):
        raise ScmedleyError(
            f"Values of shape {x_NG.shape} do not fit a layout of {len(layout.genes)} genes. Select its genes in its "
            "order: adata[:, list(layout.genes)]."
        )
    images = np.full((x_NG.shape[0], *layout.shape), np.nan, dtype=np.float32)
    images[:, layout.rows, layout.columns] = dense(x_NG)
    return images


def expression(images_NHW: NDArray[np.float32], layout: Layout) -> NDArray[np.float32]:
    """Return the expression of genes in images, N × G: the inverse of :func:`images`.

    Raises
    ------
    ScmedleyError
        The shape of the images is not that of the layout.
    """
    if images_NHW.ndim != 3 or images_NHW.shape[1:] != layout.shape:
        raise ScmedleyError(
            f"Images of shape {images_NHW.shape} do not fit a layout of {layout.shape} pixels. "
            "Use the layout that they were made with."
        )
    return images_NHW[:, layout.rows, layout.columns]


def correlations(x_NG: Numbers, *, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return correlations of genes (Pearson, G × G float32, 0 on the diagonal) and which genes are constant.

    Constant genes have correlation 0. At most 20,000 cells are used, drawn at random.
    """
    x_NG = numeric(x_NG)
    if x_NG.shape[0] > MAX_CELLS:
        chosen = np.random.default_rng(seed).choice(x_NG.shape[0], MAX_CELLS, replace=False)
        x_NG = x_NG[np.sort(chosen)]
    n_cells, n_genes = x_NG.shape
    mean_G = np.asarray(x_NG.mean(axis=0), np.float64).ravel()
    range_G = _range(x_NG)
    constant_G = range_G == 0
    unit_G = np.where(constant_G, 1, range_G)  # brings every gene into the range of float32
    square_G = np.zeros(n_genes)
    product_GG = np.zeros((n_genes, n_genes), np.float32)
    for start in range(0, n_cells, BLOCK):
        block = x_NG[start : start + BLOCK]
        centred_NG = ((dense(block) - mean_G) / unit_G).astype(np.float32)
        centred_NG[:, constant_G] = 0
        square_G += (centred_NG.astype(np.float64) ** 2).sum(0)
        product_GG += centred_NG.T @ centred_NG
    scale_G = np.where(constant_G, 1, np.sqrt(square_G)).astype(np.float32)
    product_GG /= scale_G[:, None]
    product_GG /= scale_G
    np.fill_diagonal(product_GG, 0)
    return product_GG, constant_G


def neighbour_correlation(correlation_GG: NDArray[np.float32], layout: Layout) -> float:
    """Return the mean correlation of adjacent genes (up, down, left, right)."""
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
            f"Values of shape {x_NG.shape} have {n_genes} gene names. Give one name per column, and at least one."
        )
    if x_NG.shape[0] < 2:
        raise ScmedleyError(f"{x_NG.shape[0]} cells have no correlations. Give at least two cells.")
    check_unique(pd.Index(genes).astype(str))
    check_finite(x_NG, genes)
    side = int(np.ceil(np.sqrt(n_genes)))
    height, width = _height_width((side, side) if shape is None else shape)
    if height * width < n_genes or min(height, width) < 1:
        raise ScmedleyError(
            f"An image of {height} x {width} pixels does not hold {n_genes} genes. Use more pixels."
        )
    return height, width


def _height_width(shape: Sequence[int]) -> tuple[int, int]:
    """Return a tuple, list or array of two whole numbers as a height and a width."""
    try:
        height, width = map(operator.index, shape)
    except (TypeError, ValueError) as error:
        raise ScmedleyError(f"shape {shape!r} must be a height and a width, two whole numbers.") from error
    return height, width


def _range(x_NG: Matrix) -> NDArray[np.float64]:
    """Return the range of each gene, exactly 0 for a constant one."""
    low, high = x_NG.min(axis=0), x_NG.max(axis=0)
    if sparse.issparse(low):
        low, high = low.toarray(), high.toarray()
    return np.asarray(high, np.float64).ravel() - np.asarray(low, np.float64).ravel()


def _pixels(shape: tuple[int, int], n_genes: int) -> tuple[Ints, Ints, NDArray[np.float64]]:
    """Return rows, columns and angles of the ``n_genes`` pixels nearest to the centre, nearest first."""
    rows, columns = np.indices(shape).reshape(2, -1)
    up, right = rows / (shape[0] / 2) - 1 + 1 / shape[0], columns / (shape[1] / 2) - 1 + 1 / shape[1]
    angle, radius = np.arctan2(up, right), np.hypot(up, right).round(9)
    chosen = np.lexsort((angle, radius))[:n_genes]
    return rows[chosen], columns[chosen], angle[chosen]


def _spectral_angles(correlation_GG: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return an angle for each gene, similar for correlated genes, from a two-dimensional spectral embedding.

    The affinity is the squared positive correlation. The coordinates are the two leading eigenvectors of the
    random walk on it, after the constant one.
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


def _permute_within_bands(
    gene_at: Ints,
    correlation_GG: NDArray[np.float32],
    rows: Ints,
    columns: Ints,
    shape: tuple[int, int],
    bands: list[Ints],
) -> None:
    """Permute genes within bands, in place, until the correlation of adjacent genes no longer grows.

    The neighbours of pixels that are not adjacent do not depend on the genes on these pixels. The best
    permutation of these genes is therefore a linear assignment.
    """
    n_genes = len(gene_at)
    at = np.full((shape[0] + 2, shape[1] + 2), n_genes)  # with a frame of pixels without a gene
    at[rows + 1, columns + 1] = np.arange(n_genes)
    beside_G4 = np.stack([at[rows + 1 + dr, columns + 1 + dc] for dr, dc in NEIGHBOURS], axis=1)
    gain_GG = np.zeros((n_genes, n_genes + 1), np.float32)
    gain_GG[:, :n_genes] = correlation_GG
    before = -np.inf
    for _ in range(ROUNDS):
        for separate in _not_adjacent(rows, columns):
            for band in bands:
                pixels = band[separate[band]]
                own = gene_at[pixels]
                beside_S4 = np.append(gene_at, n_genes)[beside_G4[pixels]]
                gain_SS = sum(gain_GG[np.ix_(own, beside_S4[:, side])] for side in range(4))
                moved, to = linear_sum_assignment(gain_SS, maximize=True)
                gene_at[pixels[to]] = own[moved]
        now = float(gain_GG[gene_at[:, None], np.append(gene_at, n_genes)[beside_G4]].sum())
        if now - before < 1e-3 * abs(now):
            return
        before = now


def _not_adjacent(rows: Ints, columns: Ints) -> Iterator[NDArray[np.bool_]]:
    """Yield sets of pixels that are not adjacent; several patterns, to reach all pixels of a band."""
    for i, j, n in ((1, 1, 2), (1, 2, 5), (2, 1, 5)):
        for k in range(n):
            yield (i * rows + j * columns) % n == k
