"""Map of the cells, coloured by a column or a gene."""

from __future__ import annotations

import math
from difflib import get_close_matches
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scmedley import keys
from scmedley.errors import ScmedleyError
from scmedley.pl._palette import DISTINCT, MISSING, colours

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

ROWS_OF_LEGEND = 30  # names in one column of a legend
MOST_POINTS = 50_000  # more hide each other, and take minutes to draw


def embedding(adata: AnnData, basis: str, color: str, ax: Axes | None = None) -> Figure:
    """Draw cells in two dimensions.

    Cells are drawn in a random order with a fixed seed, so that no batch hides another. They are pixels
    also in vector files, so that files of 500,000 cells stay small.

    Parameters
    ----------
    adata
        Annotated cells.
    basis
        Key in ``obsm``, with or without ``X_``. If the embedding has a UMAP
        (``keys.umap(basis)``), that is drawn, otherwise its first two columns. Cells without
        coordinates (as in the UMAP of many cells) are left out, and of more than 50,000 a random sample is drawn;
        the figure shows how many are drawn.
    color
        Column of ``obs`` (text, categories or numbers) or name of a gene
        (from ``layers["log1p_cp10k"]`` where present, in log1p CP10k, otherwise from ``X``).
    ax
        Axes to draw in; a new figure if not given.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ScmedleyError
        If the basis is not in ``obsm``, has fewer than two columns or no cell with coordinates,
        or the colour is neither a column nor a gene.
    """
    from scmedley.pl._figure import axes_of, write

    key, xy_N2 = coordinates(adata, basis)
    values_N, names = colouring(adata, color)
    columns = 0 if names is None else math.ceil(len(names) / ROWS_OF_LEGEND)
    figure, ax = axes_of(ax, (5.5 + 1.45 * columns, 4.6))

    drawn = drawable(key, xy_N2)
    if not drawn.all():
        ax.set_title(how_many(drawn), loc="right", fontsize=8)
    points = scatter(ax, xy_N2[drawn], values_N[drawn], None if names is None else len(names))
    if names is None:
        write(figure.colorbar(points, ax=ax, shrink=0.7).ax.set_title, color, fontsize=8)
    else:
        legend(ax, color, names, columns)
    axis = key.removeprefix("X_")
    write(ax.set_xlabel, f"{axis} 1", loc="left", fontsize=8)
    write(ax.set_ylabel, f"{axis} 2", loc="bottom", fontsize=8)
    return figure


def coordinates(adata: AnnData, basis: str) -> tuple[str, NDArray[np.float32]]:
    """Return the ``obsm`` key and the two columns to draw, cells x 2."""
    found = next((key for key in (basis, f"X_{basis}") if key in list(adata.obsm)), None)
    if found is None:
        raise ScmedleyError(f"obsm has no {basis!r}. It has: {', '.join(adata.obsm) or 'nothing'}.")
    key = keys.umap(found) if keys.umap(found) in adata.obsm else found
    values = adata.obsm[key]
    try:
        with np.errstate(over="ignore"):  # a value too large for float32 becomes infinite and is not drawn
            xy = np.asarray(values.toarray() if hasattr(values, "toarray") else values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ScmedleyError(f"obsm[{key!r}] does not hold numbers ({error})") from error
    if xy.ndim != 2 or xy.shape[1] < 2:
        raise ScmedleyError(f"obsm[{key!r}] has shape {xy.shape}. A map needs at least two columns.")
    return key, xy[:, :2]


def drawable(key: str, xy_N2: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which cells to draw: those with coordinates, or a random sample of many; raise if none has any."""
    drawn = thinned(xy_N2)
    if not drawn.any():
        raise ScmedleyError(f"obsm[{key!r}] has no cell with coordinates, so there is nothing to draw.")
    return drawn


def thinned(xy_N2: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which cells have coordinates; of many a random sample, always the same."""
    drawn = np.asarray(np.isfinite(xy_N2).all(axis=1))
    if drawn.sum() > MOST_POINTS:
        rows = np.random.default_rng(0).choice(np.flatnonzero(drawn), MOST_POINTS, replace=False)
        drawn = np.zeros_like(drawn)
        drawn[rows] = True
    return drawn


def how_many(drawn: NDArray[np.bool_]) -> str:
    """Return the number of cells drawn and of all cells, as text."""
    return f"drawn: {drawn.sum():,} of {len(drawn):,} cells"


def colouring(adata: AnnData, color: str) -> tuple[NDArray[np.generic], list[str] | None]:
    """Return numbers and None, or codes of levels and their names."""
    values = _values(adata, color)
    return (values.to_numpy(dtype=float), None) if pd.api.types.is_float_dtype(values) else levels(values)


def levels(values: pd.Series) -> tuple[NDArray[np.int64], list[str]]:
    """Return the codes of a column (−1 if missing) and the names of the levels that occur."""
    try:
        column = values.astype("category").cat.remove_unused_categories()
    except TypeError as error:
        raise ScmedleyError(f"column {values.name!r} cannot be coloured by: {error}.") from error
    return np.asarray(column.cat.codes, dtype=np.int64), [str(name) for name in column.cat.categories]


def scatter(
    ax: Axes, xy_N2: NDArray[np.float32], values_N: NDArray[np.generic], n_levels: int | None = None
) -> PathCollection:
    """Draw the points, coloured by codes of ``n_levels`` levels, or by numbers if ``n_levels`` is None."""
    n = len(xy_N2)
    order = np.random.default_rng(0).permutation(n)
    size = min(max(30_000 / max(n, 1), 0.8), 14.0)
    if n_levels is None:
        style: dict[str, object] = {"c": values_N[order], "cmap": "viridis", "plotnonfinite": False}
    else:
        from matplotlib.colors import to_rgba_array

        table = to_rgba_array([*colours(n_levels), MISSING])  # code −1 (missing) takes the last colour
        style = {"c": table[values_N[order].astype(np.int64)]}
    points = ax.scatter(
        xy_N2[order, 0],
        xy_N2[order, 1],
        s=size,
        linewidths=0,
        alpha=0.9 if n < 50_000 else 0.75,
        rasterized=True,
        **style,  # type: ignore[arg-type]
    )
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    return points


def _values(adata: AnnData, color: str) -> pd.Series:
    """Return the column or the gene as a series: floats for a quantity, otherwise levels."""
    if color in list(adata.obs):
        column = adata.obs[color]
        numeric = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
        return pd.Series(column.astype(float) if numeric else column)
    n_genes = int(np.sum(adata.var_names == color)) if isinstance(color, str) else 0
    if n_genes > 1:
        raise ScmedleyError(
            f"{n_genes} genes are called {color!r}. Make names unique with adata.var_names_make_unique()."
        )
    if n_genes:
        layer = keys.LOGNORM if keys.LOGNORM in adata.layers else None
        return pd.Series(adata[:, [color]].to_df(layer=layer)[color].astype(float))
    close = get_close_matches(str(color), [str(name) for name in (*adata.obs, *adata.var_names)], n=1)
    hint = (
        f" Did you mean {close[0]!r}?"
        if close
        else f" obs has: {', '.join(map(str, adata.obs)) or 'nothing'}."
    )
    raise ScmedleyError(f"{color!r} is neither a column of obs nor a gene.{hint}")


def legend(ax: Axes, title: str, names: list[str], columns: int) -> None:
    """Write the names of the levels to the right of ``ax``, in ``columns`` columns."""
    from matplotlib.lines import Line2D

    from scmedley.pl._figure import plain

    if not names:
        return
    dots = [Line2D([], [], marker="o", linestyle="", markersize=5, color=c) for c in colours(len(names))]
    # Texts are set afterwards, because a legend drops names that start with "_" and reads "$" as mathematics.
    box = ax.legend(
        dots,
        ["x"] * len(names),
        title="x",
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        ncols=max(columns, 1),
        frameon=False,
        fontsize=7 if columns > 1 else 8,
        title_fontsize=8,
        labelspacing=0.3,
        columnspacing=1.0,
        handletextpad=0.2,
        alignment="left",
    )
    repeats = f" (colours repeat after {len(DISTINCT)})" if len(names) > len(DISTINCT) else ""
    for text, name in zip([box.get_title(), *box.get_texts()], [title + repeats, *names], strict=True):
        text.set_parse_math(False)
        text.set_text(plain(name, 60 if text is box.get_title() else 22))
