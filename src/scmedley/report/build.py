"""Build ``report.html`` from a run folder. Heavy imports wait until a report is asked for."""

from __future__ import annotations

import base64
import hashlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scmedley.errors import ScmedleyError

if TYPE_CHECKING:
    from jinja2 import Environment

    from scmedley.runs.read import Run


LEFT_OUT = "The cells were left out of this page by --no-cells. The maps below show them as pictures."


def build(run_dir: str | Path, *, cells: bool = True) -> Path:
    """Write ``run_dir/report.html`` from the other files of the run folder.

    The same folder gives the same bytes: times come from ``run.json``. A file that is missing
    is said to be missing in its section.

    Parameters
    ----------
    run_dir
        Folder with ``run.json`` and, as far as the run came, ``integrated.h5ad``, ``history.csv``,
        ``scores.csv``, ``gene_shifts.csv`` and ``counterfactual_check.csv``.
    cells
        Put cells, their columns of ``obs`` and the model into the page, for its explorer.

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
    from scmedley.interpret.check import LIMITS, TIE
    from scmedley.report import figures, sections
    from scmedley.runs.read import read

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
            "tie": TIE,
        }
    # What the rest of the page leaves of its 30 MB is the explorer's.
    page = render(context | {"explorer": {"text": "", "why": LEFT_OUT}})
    if cells:
        page = render(context | {"explorer": _explorer(run, len(page.encode("utf-8", errors="replace")))})
    return write(page, run.folder / "report.html")


def _explorer(run: Run, used: int) -> dict[str, Any]:
    """Give the explorer's part of a page whose other sections take ``used`` bytes, or why there is none."""
    from scmedley.report import explorer
    from scmedley.report.explorer_read import explored

    try:
        found = explored(run)
    except Exception as error:  # damaged files fail in many ways, and the rest of the page is worth having
        return _without(f"the cells or the model cannot be read ({type(error).__name__}). Run again.")
    if found is None:
        return _without("integrated.h5ad is not in the run folder, or holds no cells.")
    payload = explorer.fit(found, explorer.PAGE - explorer.ROOM - used)
    if payload is None:
        return _without("the cells do not fit into a page of 30 MB beside the other sections.")
    return vars(payload)


def _without(why: str) -> dict[str, Any]:
    return {"text": "", "why": f"Nothing to explore: {why}"}


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
    """Fill a template. Everything is escaped except style sheet and script, which are ours.

    A page with an explorer gets the script; the policy of the page lets that one run and no other.
    """
    from markupsafe import Markup

    environment = _environment()
    assert environment.loader is not None
    source = partial(environment.loader.get_source, environment)
    style = source("style.css")[0]
    if "explorer" in context:
        style += source("explorer.css")[0]
    context = context | {"style": Markup(style), "style_hash": _hash(style)}
    if (context.get("explorer") or {}).get("text"):
        script = source("explorer.js")[0]
        context |= {"script": Markup(script), "script_hash": _hash(script)}
    return environment.get_template(template).render(**context)


def _hash(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


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
