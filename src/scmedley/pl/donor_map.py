"""Map of the batches by their random effects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmedley.data.design import as_categories
from scmedley.errors import ScmedleyError
from scmedley.pl._palette import MISSING, colours
from scmedley.pl.embedding import legend, levels

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scmedley.models import MixedEffects
    from scmedley.models.base import Model

INSIDE_90 = 4.605  # squared radius, in standard deviations, that holds 90 % of a Gaussian in two dimensions
FEW = 6  # up to so many different numbers are drawn as levels
PLAIN = "#2f86c9"


def donor_map(
    model: MixedEffects | Model[Any],
    adata: AnnData | None = None,
    color: str | None = None,
    *,
    ax: Axes | None = None,
) -> Figure:
    """Draw batches (such as donors) by their random effects, with the uncertainty of their positions.

    Positions come from :func:`scmedley.interpret.batch_effects`: principal components of the posterior means
    of the decoder's effects; the axes are in units of the priors' standard deviation. An ellipse holds 90 %
    of a batch's posterior: batches with overlapping ellipses are not told apart by this map. The posterior is not
    calibrated, unlike the intervals of shifts: if ``model.calibration.factor`` is far above 1, it is too narrow.

    Parameters
    ----------
    model
        A fitted model with batch effects in its decoder.
    adata, color
        Cells, and a column of their ``obs`` with one value for each batch, such as sex or diagnosis.
        More than six different numbers get a colour bar. Batches without cells or without a value are grey.
    ax
        Axes of final size to draw in; a new figure if not given.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ScmedleyError
        As :func:`scmedley.interpret.batch_effects`; only one of ``adata`` and ``color``; a missing column; a
        batch with several values.
    """
    from matplotlib.colors import to_rgba

    from scmedley.interpret.batch_effects import batch_effects
    from scmedley.pl._figure import axes_of, plain
    from scmedley.pl._labels import place_labels

    places = batch_effects(model)
    values = _values(model.batch_key or "", list(places["batch"]), adata, color)
    side = 4.6 if len(places) <= 30 else 6.5 if len(places) <= 60 else 10.0
    figure, ax = axes_of(ax, (side + (1.4 if color else 0), side))
    colour_B4 = (
        np.tile(to_rgba(PLAIN), (len(places), 1)) if values is None else paint(figure, ax, values, color)
    )
    _ellipses(ax, places, colour_B4)
    ax.scatter(places["x"], places["y"], c=colour_B4, s=22, linewidths=0, zorder=3)
    for name, axis in (("x", ax.xaxis), ("y", ax.yaxis)):
        number = 1 if name == "x" else 2
        axis.set_label_text(
            f"component {number} ({places[f'share_{name}'].iloc[0]:.0%} of variance)", fontsize=8
        )
    ax.set_title("ellipses: 90 % of the posterior (not calibrated)", fontsize=8, loc="right")
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.margins(0.12)
    left_out = place_labels(ax, places[["x", "y"]].to_numpy(), [plain(name, 16) for name in places["batch"]])
    if left_out:
        ax.set_title(f"no room for {left_out} of {len(places)} names", fontsize=8, loc="left")
    return figure


def _values(batch_key: str, batches: list[str], adata: AnnData | None, color: str | None) -> pd.Series | None:
    """Return the value of each batch, missing if it has none; None without a column."""
    if adata is None and color is None:
        return None
    if adata is None or color is None:
        raise ScmedleyError("Only one of adata and color is given. Pass both, or neither.")
    for key in (batch_key, color):
        if key not in adata.obs:
            raise ScmedleyError(f"obs has no column {key!r}. It has: {', '.join(map(str, adata.obs))}.")
    column = adata.obs[color]
    is_number = pd.api.types.is_numeric_dtype(column) and column.nunique() > FEW
    value = (
        column.astype(float) if is_number else pd.Series(as_categories(column).astype(object), column.index)
    )
    batch = pd.Series(as_categories(adata.obs[batch_key]).astype(object), column.index)
    known = pd.DataFrame({"batch": batch, "value": value}).dropna().drop_duplicates()
    twice = known["batch"][known["batch"].duplicated()]
    if len(twice):
        own = known.loc[known["batch"] == twice.iloc[0], "value"]
        raise ScmedleyError(
            f"batch {twice.iloc[0]!r} has several values in obs[{color!r}] ({own.iloc[0]!r}, {own.iloc[1]!r}). "
            "Choose a column with one value per batch."
        )
    return known.set_index("batch")["value"].reindex(batches)


def paint(figure: Figure, ax: Axes, values: pd.Series, color: str | None) -> Any:
    """Return the colour of each batch, B × 4, and draw a legend or a colour bar."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize, to_rgba, to_rgba_array

    from scmedley.pl._figure import write

    if not pd.api.types.is_float_dtype(values):
        codes, names = levels(values)
        legend(ax, str(color), names, 1 + len(names) // 30)
        return to_rgba_array([*colours(len(names)), MISSING])[codes]
    scale = ScalarMappable(Normalize(values.min(), values.max()), "viridis")
    write(figure.colorbar(scale, ax=ax, shrink=0.7).ax.set_title, color, fontsize=8)
    painted = scale.to_rgba(values.to_numpy())
    painted[values.isna().to_numpy()] = to_rgba(MISSING)
    return painted


def _ellipses(ax: Axes, places: pd.DataFrame, colour_B4: Any) -> None:
    from matplotlib.patches import Ellipse

    for row, colour in zip(places.to_dict("records"), colour_B4, strict=True):
        size, turn = np.linalg.eigh([[row["var_x"], row["cov_xy"]], [row["cov_xy"], row["var_y"]]])
        height, width = 2 * np.sqrt(INSIDE_90 * np.maximum(size, 0))
        angle = np.degrees(np.arctan2(turn[1, 1], turn[0, 1]))
        ax.add_patch(
            Ellipse((row["x"], row["y"]), width, height, angle=angle, color=colour, alpha=0.13, linewidth=0)
        )
