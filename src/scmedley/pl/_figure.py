"""Figures without pyplot. Imported only for drawing, because matplotlib is an extra."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from scmedley.errors import ScmedleyError

try:
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:  # pragma: no cover - the tests have the extra
    raise ScmedleyError("plots need matplotlib: pip install 'scmedley[report]'") from error


class NotebookFigure(Figure):
    """A figure that a notebook displays, also if pyplot was never imported."""

    def _repr_png_(self) -> bytes:
        return png(self, dpi=100, tight=True)


def png(figure: Figure, dpi: int, *, tight: bool = False) -> bytes:
    """Return the figure as PNG bytes that depend only on what is drawn."""
    buffer = BytesIO()
    figure.savefig(
        buffer,
        format="png",
        dpi=dpi,
        bbox_inches="tight" if tight else None,
        metadata={"Software": None},  # matplotlib would write its version
    )
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format of its suffix, without the date; text in an SVG stays text."""
    no_date: dict[str, Any] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    settings: Any = {"svg.hashsalt": "scmedley", "svg.fonttype": "none"}
    with rc_context(settings):
        figure.savefig(path, format=path.suffix[1:], dpi=200, metadata=no_date.get(path.suffix))


def axes_of(ax: Axes | None, size: tuple[float, float]) -> tuple[Figure, Axes]:
    """Return the axes with their figure; without axes, those of a new figure of this size (inches)."""
    if ax is not None:
        return figure_of(ax), ax
    figure: Figure = NotebookFigure(figsize=size, layout="constrained")
    return figure, figure.add_subplot()


def figure_of(ax: Axes) -> Figure:
    """Return the figure of an axis, also from a subfigure."""
    figure = ax.figure
    while not isinstance(figure, Figure):
        figure = figure.figure
    return figure


def plain(text: object, longest: int = 32, *, keep_end: bool = False) -> str:
    """Return a name from the data as one short line for a figure, cut at its end or in its middle."""
    printable = (c if c.isprintable() else " " for c in str(text))  # an SVG may hold no control characters
    line = " ".join("".join(printable).split())
    if len(line) <= longest:
        return line
    end = longest // 2 if keep_end else 0
    return line[: longest - 1 - end] + "…" + line[len(line) - end :]


def write(setter: Callable[..., Any], text: object, **kwargs: Any) -> None:
    """Call ``ax.set_title`` or the like with a name from the data; ``$`` does not start mathematics."""
    setter(plain(text), parse_math=False, **kwargs)
