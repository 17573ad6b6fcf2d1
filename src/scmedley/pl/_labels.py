"""Names of points, placed so that they do not overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

RADII = (5, 9, 14, 20, 28, 38, 50, 65)  # distances to try from a point to its name, in points
ANGLES = 16
LINE_FROM = 9  # names farther away than this, in points, get a line
AROUND = 3.5  # free space around a point, in points


def place_labels(ax: Axes, xy_N2: NDArray[np.float64], names: Sequence[str], fontsize: float = 7) -> int:
    """Write a name near each point without overlap; return the number of names that found no place.

    Each name takes the first free place around its point; the points with the nearest neighbours come last.
    The axes must have their final size and limits.
    """
    from scmedley.pl._figure import figure_of

    figure = figure_of(ax)
    figure.draw_without_rendering()  # lays out
    to_pixels = figure.dpi / 72
    at_N2 = np.asarray(ax.transData.transform(xy_N2))
    around = AROUND * to_pixels
    taken = [(x - around, y - around, x + around, y + around) for x, y in at_N2]
    frame = ax.get_window_extent()
    n_left_out = 0
    for i in _order(at_N2):
        text = ax.annotate(
            names[i],
            xy_N2[i],
            (0, 0),
            textcoords="offset points",
            fontsize=fontsize,
            ha="center",
            va="center",
            parse_math=False,
        )
        text.set_in_layout(False)  # otherwise the axes shrink to make room for the names
        box = text.get_window_extent()
        found = _free(
            at_N2[i], box.width / 2 + 1, box.height / 2 + 0.5, to_pixels, taken, tuple(frame.extents)
        )
        if found is None:
            text.remove()
            n_left_out += 1
            continue
        offset, radius, place = found
        taken.append(place)
        text.set_position(tuple(offset / to_pixels))
        if radius > LINE_FROM:
            near = np.clip(at_N2[i], np.array(place[:2]) + 1, np.array(place[2:]) - 1)  # of the name's box
            ends = ax.transData.inverted().transform([at_N2[i], near])
            ax.plot(ends[:, 0], ends[:, 1], color="#777", lw=0.5, zorder=1, scalex=False, scaley=False)
    return n_left_out


def _order(at_N2: NDArray[np.float64]) -> list[int]:
    """Return the points in order of decreasing distance to their nearest neighbour."""
    distance_NN = np.hypot(*(at_N2[:, None] - at_N2[None]).T)
    np.fill_diagonal(distance_NN, np.inf)
    return [int(i) for i in np.argsort(-distance_NN.min(1), kind="stable")]


def _free(
    at: NDArray[np.float64],
    half_width: float,
    half_height: float,
    to_pixels: float,
    taken: list[tuple[float, float, float, float]],
    frame: tuple[float, ...],
) -> tuple[NDArray[np.float64], float, tuple[float, float, float, float]] | None:
    """Return offset (pixels), distance (points) and box (pixels) of the nearest free place."""
    left, bottom, right, top = np.array(taken).T
    for radius in RADII:
        for angle in 2 * np.pi * np.arange(ANGLES) / ANGLES:
            step = np.array([np.cos(angle), np.sin(angle)])
            # The edge of the box, not its centre, is on the circle around the point.
            offset = step * radius * to_pixels + step * (half_width, half_height)
            (x, y) = at + offset
            box = (x - half_width, y - half_height, x + half_width, y + half_height)
            inside = box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]
            hit = (box[0] < right) & (box[2] > left) & (box[1] < top) & (box[3] > bottom)
            if inside and not hit.any():
                return offset, radius, box
    return None
