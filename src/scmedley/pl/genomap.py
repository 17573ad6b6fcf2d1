"""Genomaps: cells as pictures of their expression, and of its change in other batches.

Shapes: R cells, C columns, H × W pixels, G genes. Lengths are in inches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from scmedley.errors import ScmedleyError
from scmedley.pl._inputs import is_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from scmedley.interpret.genomap import Layout
    from scmedley.interpret.panel import Panel

SIDE, GAP = 1.4, 0.12  # side of a picture, gap between pictures
TITLE, HEADER, FOOT = 0.3, 0.42, 0.15
ROW_NAME, LETTER = 1.95, 0.068  # width of the names of rows, and of a letter of a gene's name
MOST_NAMES = 8  # most genes named beside a picture
LINE = 0.1  # height of a gene's name, as a share of a picture's
LETTERS = 14  # letters of a note per inch
BAR = 1.0  # width of the colour bar with its label
OWN = "#d7191c"
NO_GENE = "#e4e4e4"  # not a colour of the scales, where white means almost no change
CLIPPED = 0.995  # share of the values within the scale


@dataclass(frozen=True)
class _Block:
    """Pictures that share one colour scale."""

    title: str
    values_RCHW: NDArray[np.float32]
    layout: Layout
    rows: Sequence[str]
    columns: Sequence[str]
    framed_RC: NDArray[np.bool_]
    unit: str
    diverging: bool = False
    n_genes: int = 0

    @property
    def margin(self) -> float:
        """Width of the names of genes beside a picture."""
        if not self.n_genes:
            return 0.0
        longest = max(len(_short(self.layout.genes[g])) for named in self._all_named() for g in named or [0])
        return 0.22 + LETTER * longest

    @property
    def above(self) -> float:
        """Height of the title, if there is one, and of the names of columns."""
        return HEADER + (TITLE if self.title else 0)

    @property
    def size(self) -> tuple[float, float]:
        """Width and height."""
        n_rows, n_columns = self.values_RCHW.shape[:2]
        width = ROW_NAME + n_columns * (SIDE + GAP + self.margin) + BAR
        return width, self.above + n_rows * (SIDE + GAP) + FOOT

    def named(self, row: int, column: int) -> list[int]:
        """Return the genes with the largest change above 0, from top to bottom."""
        from scmedley.interpret.genomap import expression  # imports anndata

        value_G = np.abs(expression(self.values_RCHW[row, column][None], self.layout)[0])
        top = np.argsort(-value_G, kind="stable")[: self.n_genes]
        place = self.layout
        return sorted(
            (int(g) for g in top if value_G[g] > 0), key=lambda g: (place.rows[g], place.columns[g])
        )

    def _all_named(self) -> list[list[int]]:
        return [self.named(r, c) for r, c in np.ndindex(self.values_RCHW.shape[:2])]


def genomap(
    images: NDArray[np.float32],
    layout: Layout,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    framed: NDArray[np.bool_] | None = None,
    unit: str = "log1p CP10k",
) -> Figure:
    """Draw cells as pictures, one row per cell, with one colour scale.

    Parameters
    ----------
    images
        R × C × H × W, from :func:`scmedley.genomap.images`. Pixels without a gene are grey.
    layout
        Pixels of the genes.
    rows, columns
        Names of the R cells and of the C columns; a name may have several lines.
    framed
        R × C: pictures to frame in red, such as cells in their own batches.
    unit
        Unit of the values, for the colour bar. The scale goes from 0 to the 99.5 % quantile of all pictures;
        arrows on the bar show that some values are beyond it.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ScmedleyError
        Pictures that do not fit the layout or the names.
    """
    block = _Block("", *_checked(images, layout, rows, columns, framed), unit=unit)
    return _figure([block])


def genomap_difference(
    images: NDArray[np.float32],
    layout: Layout,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    framed: NDArray[np.bool_] | None = None,
    n_genes: int = 4,
    unit: str = "change, log1p CP10k",
) -> Figure:
    """Draw changes as pictures, with the names of the genes that change most.

    Parameters
    ----------
    images
        Differences, R × C × H × W, such as counterfactual minus reconstruction in the own batch. The scale is
        symmetrical about 0 and holds 99.5 % of them.
    layout, rows, columns, framed, unit
        As for :func:`genomap`.
    n_genes
        Number of genes to name beside each picture, at most 8: those with the largest changes.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ScmedleyError
        As for :func:`genomap`; ``n_genes`` out of its range.
    """
    _check_names(n_genes)
    checked = _checked(images, layout, rows, columns, framed)
    return _figure([_Block("", *checked, unit=unit, diverging=True, n_genes=n_genes)])


def counterfactuals(panel: Panel, *, n_genes: int = 4, note: str = "") -> Figure:
    """Draw cells as measured, without batch effects, in their own batch and in others; then the changes.

    Parameters
    ----------
    panel
        From :func:`scmedley.interpret.panel`. Own batches are framed in red.
    n_genes
        Number of genes to name beside each picture of changes, at most 8.
    note
        Lines above the figure, such as how the cells were chosen and which predictions not to trust.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ScmedleyError
        Values that are not finite; ``n_genes`` out of its range.
    """
    from scmedley.pl._figure import plain

    _check_names(n_genes)
    layout, own = panel.layout, np.array(panel.own)
    is_own_RT = own[:, None] == np.array(panel.targets)
    is_own_RT[:, 0] = False  # the population mean, even if a batch has that name
    known = [batch or "batch not known" for batch in panel.own]
    rows = [
        f"{plain(cell, 24, keep_end=True)}\n{_short(batch)}"
        for cell, batch in zip(panel.cells, known, strict=True)
    ]
    shown_RCG = np.concatenate(
        [panel.input_RG[:, None], panel.shown_RTG[:, :1], panel.own_RG[:, None]], axis=1
    )
    shown_RCG = np.concatenate([shown_RCG, panel.shown_RTG[:, 1:]], axis=1)
    framed = np.zeros(shown_RCG.shape[:2], bool)
    framed[:, 2], framed[:, 3:] = own != "", is_own_RT[:, 1:]
    others = [f"as if from\n{_short(name)}" for name in panel.targets[1:]]
    mean = "population mean"
    fixed = panel.targets[0] if panel.targets[0] == mean else f"{panel.targets[0]}\n({mean})"
    expressed = _Block(
        "Expression",
        *_checked(_drawn(shown_RCG, layout), layout, rows, ["input", fixed, "own batch", *others], framed),
        unit="log1p CP10k",
    )
    changed = _Block(
        "Change against the own batch",
        *_checked(_drawn(panel.difference_RTG, layout), layout, rows, [fixed, *others], is_own_RT),
        unit="change, log1p CP10k",
        diverging=True,
        n_genes=n_genes,
    )
    return _figure([expressed, changed], note)


def _check_names(n_genes: int) -> None:
    if not (is_whole(n_genes) and 0 <= n_genes <= MOST_NAMES):
        raise ScmedleyError(f"n_genes is {n_genes!r}; a picture has room for 0 to {MOST_NAMES} names.")


def _drawn(x_RCG: NDArray[np.float32], layout: Layout) -> NDArray[np.float32]:
    """Return pictures of the cells and columns: R × C × H × W."""
    from scmedley.interpret.genomap import images

    return images(x_RCG.reshape(-1, x_RCG.shape[2]), layout).reshape(*x_RCG.shape[:2], *layout.shape)


def _checked(
    images: NDArray[np.float32],
    layout: Layout,
    rows: Sequence[str],
    columns: Sequence[str],
    framed: NDArray[np.bool_] | None,
) -> tuple[NDArray[np.float32], Layout, Sequence[str], Sequence[str], NDArray[np.bool_]]:
    """Return the checked inputs of a block; raise if they do not fit together."""
    values = np.asarray(images)
    if values.dtype.kind not in "biuf":
        raise ScmedleyError(f"Pictures hold values of type {values.dtype}, not numbers.")
    wanted = (len(rows), len(columns), *layout.shape)
    if values.shape != wanted or 0 in wanted:
        raise ScmedleyError(
            f"Pictures of shape {values.shape} do not fit {len(rows)} rows, {len(columns)} columns and a layout of "
            f"{layout.shape} pixels. Pass them as cells x columns x height x width."
        )
    framed = np.zeros(wanted[:2], bool) if framed is None else np.asarray(framed, bool)
    if framed.shape != wanted[:2]:
        raise ScmedleyError(f"framed has shape {framed.shape}; the pictures have {wanted[:2]}.")
    if not np.isfinite(values[..., layout.rows, layout.columns]).all():
        raise ScmedleyError("Some pixels of genes have values that are not finite. Replace or remove them.")
    return values, layout, rows, columns, framed


def _figure(blocks: list[_Block], note: str = "") -> Figure:
    """Draw blocks below each other; positions are in inches, so they do not depend on the length of names."""
    from scmedley.pl._figure import NotebookFigure

    width = max(block.size[0] for block in blocks)
    lines = [part for line in note.splitlines() for part in wrap(line, int(LETTERS * width))]
    above = 0.05 + 0.18 * len(lines) + (0.1 if lines else 0)
    height = above + sum(block.size[1] for block in blocks)
    figure: Figure = NotebookFigure(figsize=(width, height))
    for i, line in enumerate(lines):
        figure.text(0.1 / width, 1 - (0.08 + 0.18 * i) / height, line, va="top", fontsize=8, parse_math=False)
    for block in blocks:
        _draw(figure, block, above)
        above += block.size[1]
    return figure


def _draw(figure: Figure, block: _Block, above: float) -> None:
    """Draw one block, its top ``above`` inches below that of the figure."""
    width, height = figure.get_size_inches()
    low, high, cut = _scale(block)
    left, top = ROW_NAME, above + block.above
    figure.text(0.1 / width, 1 - (above + 0.05) / height, block.title, va="top", fontsize=10, weight="bold")
    drawn: Any = None
    for r, c in np.ndindex(block.values_RCHW.shape[:2]):
        x, y = left + c * (SIDE + GAP + block.margin), top + r * (SIDE + GAP)
        ax = figure.add_axes((x / width, 1 - (y + SIDE) / height, SIDE / width, SIDE / height))
        ax.set_facecolor(NO_GENE)
        colours = "RdBu_r" if block.diverging else "viridis"
        drawn = ax.imshow(block.values_RCHW[r, c], cmap=colours, vmin=low, vmax=high, interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        own = block.framed_RC[r, c]
        ax.spines[:].set(color=OWN if own else "#b0b0b0", linewidth=2.5 if own else 0.5)
        if r == 0:
            ax.set_title(_lines(block.columns[c]), fontsize=8, parse_math=False, pad=5)
        if c == 0:
            ax.set_ylabel(
                _lines(block.rows[r]), fontsize=8, parse_math=False, rotation=0, ha="right", va="center"
            )
        _name(ax, block, r, c)
    n_rows, n_columns = block.values_RCHW.shape[:2]
    x = left + n_columns * (SIDE + GAP + block.margin)
    tall = min(n_rows * (SIDE + GAP) - GAP, 2.2)
    cax = figure.add_axes((x / width, 1 - (top + tall) / height, 0.11 / width, tall / height))
    bar = figure.colorbar(drawn, cax=cax, extend=cut)
    bar.set_label(block.unit, fontsize=8, parse_math=False)
    cax.tick_params(labelsize=8)


def _scale(block: _Block) -> tuple[float, float, str]:
    """Return the limits of the colour scale, and at which ends values are beyond them."""
    values = block.values_RCHW[..., block.layout.rows, block.layout.columns]
    if block.diverging:
        high = float(np.quantile(np.abs(values), CLIPPED)) or float(np.abs(values).max()) or 1.0
        return -high, high, _beyond(values, -high, high)
    high = float(np.quantile(values, CLIPPED)) or float(values.max()) or 1.0
    low = 0.0 if high > 0 else high - 1.0  # values just below 0 come from the network and mean 0
    return low, high, _beyond(values, low, high)


def _beyond(values: NDArray[np.float32], low: float, high: float) -> str:
    """Return at which ends of a scale there are values beyond it."""
    ends = (bool(values.min() < low), bool(values.max() > high))
    return {(True, True): "both", (True, False): "min", (False, True): "max"}.get(ends, "neither")


def _name(ax: Axes, block: _Block, row: int, column: int) -> None:
    """Write names of genes to the right of a picture, in the order of their rows, without overlap."""
    genes = block.named(row, column) if block.n_genes else []
    if block.n_genes and not genes:
        ax.text(
            0.5, 0.5, "no change", transform=ax.transAxes, fontsize=8, color="#555", ha="center", va="center"
        )
    heights = _apart([1 - (block.layout.rows[gene] + 0.5) / block.layout.shape[0] for gene in genes])
    for height, gene in zip(heights, genes, strict=True):
        xy = (block.layout.columns[gene], block.layout.rows[gene])
        ax.plot(*xy, "o", mfc="none", mec="#222", ms=3.5, mew=0.6)
        ax.annotate(
            _short(block.layout.genes[gene]),
            xy,
            (1.07, height),
            textcoords="axes fraction",
            fontsize=7,
            va="center",
            annotation_clip=False,
            parse_math=False,
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": "#444", "shrinkA": 1, "shrinkB": 2},
        )


def _apart(heights: list[float]) -> list[float]:
    """Return decreasing heights (shares of a picture), moved so that lines of text do not overlap."""
    moved: list[float] = []
    for i, height in enumerate(heights):
        above = moved[-1] - LINE if moved else 1 - LINE / 2
        lowest = (len(heights) - 1 - i) * LINE + LINE / 2  # leaves room for those that follow
        moved.append(max(min(height, above), lowest))
    return moved


def _short(name: object) -> str:
    from scmedley.pl._figure import plain

    return plain(name, 24)


def _lines(name: str) -> str:
    """Return the lines of a name, each shortened."""
    return "\n".join(_short(line) for line in str(name).split("\n"))
