"""Several embeddings side by side, in one or several colourings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scmedley import keys
from scmedley.errors import ScmedleyError
from scmedley.pl.embedding import ROWS_OF_LEGEND, colouring, coordinates, drawable, how_many, legend, scatter

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

WIDTH = 3.1  # width of a panel, inches


def embeddings(adata: AnnData, bases: Sequence[str] | None = None, color: str | Sequence[str] = ()) -> Figure:
    """Draw embeddings side by side: one row per colouring, one column per embedding.

    Points are drawn as in :func:`embedding`. The panels of a row share one legend or colour bar.

    Parameters
    ----------
    adata
        Annotated cells.
    bases
        Keys in ``obsm``, with or without ``X_``. Default: fixed effects, random effects and PCA, if stored.
        If an embedding has a UMAP, that is drawn.
    color
        One or several columns of ``obs`` (text, categories or numbers) or genes (log1p CP10k).

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ScmedleyError
        No colour; no basis given or stored; or one that :func:`embedding` cannot draw.
    """
    from scmedley.pl._figure import NotebookFigure, write

    colors = _several(color)
    if bases is None:
        bases = [key for key in keys.MAPS if key in adata.obsm]
    if not bases or not colors:
        raise ScmedleyError(
            f"Pass at least one colour and one embedding. obsm has: {', '.join(adata.obsm) or 'nothing'}; obs: "
            f"{', '.join(map(str, adata.obs)) or 'nothing'}."
        )
    bases = _several(bases)
    places = [coordinates(adata, basis) for basis in bases]
    painted = [colouring(adata, name) for name in colors]
    columns = [0 if names is None else math.ceil(len(names) / ROWS_OF_LEGEND) for _, names in painted]
    heights = [_height(names) for _, names in painted]
    size = (WIDTH * len(bases) + 0.9 + 1.35 * max(columns), sum(heights) + 0.3)
    figure: Figure = NotebookFigure(figsize=size, layout="constrained")
    axes = figure.subplots(len(colors), len(bases), squeeze=False, height_ratios=heights)
    for row, name, (values_N, names), n_columns in zip(axes, colors, painted, columns, strict=True):
        for ax, (key, xy_N2) in zip(row, places, strict=True):
            points = _panel(ax, key, xy_N2, values_N, names)
        if names is None:
            bar = figure.colorbar(points, cax=row[-1].inset_axes((1.04, 0.1, 0.05, 0.75)))
            write(bar.ax.set_title, name, fontsize=8)
            bar.ax.tick_params(labelsize=8)
        else:
            legend(row[-1], name, names, n_columns)
    for ax, basis, (key, xy_N2) in zip(axes[0], bases, places, strict=True):
        found = basis if basis in adata.obsm else f"X_{basis}"
        write(ax.set_title, keys.title(found).removeprefix("X_"), fontsize=10, loc="left")
        drawn = drawable(key, xy_N2)
        if not drawn.all():
            ax.set_title(how_many(drawn), loc="right", fontsize=7)
    for ax, (key, _) in zip(axes[-1], places, strict=True):
        write(ax.set_xlabel, f"{key.removeprefix('X_')} 1, 2", loc="left", fontsize=8)
    return figure


def _several(names: Any) -> list[Any]:
    """Return one or several names as a list."""
    return list(names) if isinstance(names, Iterable) and not isinstance(names, str) else [names]


def _panel(
    ax: Axes,
    key: str,
    xy_N2: NDArray[np.float32],
    values_N: NDArray[np.generic],
    names: list[str] | None,
) -> PathCollection:
    drawn = drawable(key, xy_N2)
    points = scatter(ax, xy_N2[drawn], values_N[drawn], None if names is None else len(names))
    ax.spines[:].set(visible=True, color="#d5d5d5", linewidth=0.6)  # otherwise panels run into each other
    finite = np.asarray(values_N, dtype=float)
    finite = finite[np.isfinite(finite)]
    if names is None and len(finite):
        points.set_clim(finite.min(), finite.max())  # one scale for the row, also if a panel leaves out cells
    return points


def _height(names: list[str] | None) -> float:
    """Return the height of a row in inches: room for its legend and its panels."""
    return max(2.8, 0.5 + 0.145 * min(len(names or []), ROWS_OF_LEGEND))
