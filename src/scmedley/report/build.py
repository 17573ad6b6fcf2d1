"""Build ``report.html`` from a run folder. Heavy imports wait until a report is asked for."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scmedley.errors import ScmedleyError

if TYPE_CHECKING:
    from jinja2 import Environment


def build(run_dir: str | Path) -> Path:
    """Write ``run_dir/report.html`` from the other files of the run folder.

    The same folder gives the same bytes: times come from ``run.json``. A file that is missing
    is said to be missing in its section.

    Parameters
    ----------
    run_dir
        Folder with ``run.json`` and, as far as the run came, ``integrated.h5ad``, ``history.csv``,
        ``scores.csv``, ``gene_shifts.csv`` and ``counterfactual_check.csv``.

    Returns
    -------
    pathlib.Path
        The report.

    Raises
    ------
    ScmedleyError
        If the folder or ``run.json`` is missing, a file cannot be read or lacks a column,
        or the packages of the extra ``report`` are not installed.
    """
    check_extra()
    from scmedley.evaluate.counterfactual import LIMITS
    from scmedley.report import figures, sections
    from scmedley.report.read import read

    run = read(Path(run_dir))
    with figures.drawing():
        context = {
            "summary": sections.summary(run),
            "data": sections.data(run),
            "maps": figures.maps(run),
            "scores": sections.scores(run),
            "score_figures": figures.scores(run),
            "shifts": sections.shifts(run),
            "check": sections.check(run),
            "training": figures.training(run),
            "provenance": sections.provenance(run),
            "given": run.given,
            "limits": LIMITS,
        }
    return write(render(context), run.folder / "report.html")


def check_extra() -> None:
    """Say what is not installed."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ScmedleyError("a report needs jinja2 and matplotlib: pip install 'scmedley[report]'") from error


def write(page: str, path: Path) -> Path:
    """Write a page, all or nothing."""
    from scmedley.io import replacing

    with replacing(path) as temporary:
        # A lone surrogate in a name cannot be encoded; it must not cost the report.
        temporary.write_bytes(page.encode("utf-8", errors="replace"))
    return path


def render(context: dict[str, Any], template: str = "template.html.j2") -> str:
    """Fill a template. Everything is escaped except the style sheet, which is ours."""
    from markupsafe import Markup

    environment = _environment()
    assert environment.loader is not None
    style = environment.loader.get_source(environment, "style.css")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment.get_template(template).render(
        **context, style=Markup(style), style_hash=f"sha256-{digest}"
    )


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from scmedley.report.numbers import count, number, signed

    environment = Environment(
        loader=PackageLoader("scmedley", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, count=count, signed=signed)
    return environment
