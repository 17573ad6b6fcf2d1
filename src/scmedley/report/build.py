"""Build ``report.html`` from a run folder. Heavy imports are delayed until a report is written."""

from __future__ import annotations

import base64
import hashlib
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scmedley.errors import ScmedleyError, one_line
from scmedley.runs.folder import CELLS, REPORT

if TYPE_CHECKING:
    from jinja2 import Environment

    from scmedley.runs.read import Run


NOTHING = "Nothing to explore: "
LEFT_OUT = "The cells were left out of this page by --no-explorer. The maps below show them as pictures."


def build(run_dir: str | Path, *, cells: bool = True) -> Path:
    """Write ``run_dir/report.html`` from the other files of the run folder.

    The same folder gives the same bytes, because times come from ``run.json``. If a file is missing,
    its section of the page says so.

    Parameters
    ----------
    run_dir
        Run folder with ``run.json`` and, if the run wrote them, ``integrated.h5ad``, ``history.csv``,
        ``scores.csv``, ``gene_shifts.csv`` and ``counterfactual_check.csv``.
    cells
        Whether the page holds an explorer: the cells, their columns of ``obs`` and the model.

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
    from scmedley.report.clusters import clusters
    from scmedley.runs.read import read

    run = read(Path(run_dir))
    with figures.drawing():
        context = {
            "summary": sections.summary(run),
            "data": sections.data(run),
            "maps": figures.maps(run),
            "clusters": clusters(run),
            "cluster_maps": figures.cluster_maps(run),
            "merge_tree": figures.merge_tree(run),
            "scores": sections.scores(run),
            "labels": sections.labels(run),
            "score_figures": figures.scores(run),
            "effects": run.settings.get("batch_effects", True),
            "mixed": run.config.get("model", "mixed") == "mixed",
            "shifts": sections.shifts(run),
            "check": sections.check(run),
            "training": figures.training(run),
            "collapse": sections.collapse(run),
            "provenance": sections.provenance(run),
            "given": run.given,
            "preset": run.config.get("preset", "default"),
            "sample": sections.sample(run),
            "limits": LIMITS,
            "tie": TIE,
        }
    return write(_with_explorer(context, run, cells), run.folder / REPORT)


def _with_explorer(context: dict[str, Any], run: Run, cells: bool) -> str:
    """Return the page with as much of the run in its explorer as fits, or with the reason for having none."""
    from scmedley.report import explorer
    from scmedley.report.explorer_read import explored

    def page(why: str = "", payload: explorer.Payload | None = None) -> str:
        return render(context | {"explorer": vars(payload) if payload else {"text": "", "why": why}})

    if not cells:
        return page(LEFT_OUT)
    try:
        found = explored(run)
    except Exception as error:  # damaged files fail in many ways; the rest of the page is still useful
        return page(f"{NOTHING}the cells or the model cannot be read ({type(error).__name__}). Run again.")
    if found is None:
        return page(f"{NOTHING}{CELLS} is not in the run folder, or holds no cells.")
    # Most runs fit. Only if one does not, the size of the other sections is measured.
    payload = explorer.fit(found, explorer.PAGE - explorer.ROOM)
    if payload is not None:
        whole = page(payload=payload)
        size = len(whole.encode("utf-8", errors="replace"))
        if size <= explorer.PAGE:
            return whole
        payload = explorer.fit(found, explorer.PAGE - explorer.ROOM - (size - len(payload.text)))
    return page(f"{NOTHING}the cells and the other sections do not fit into a page of 30 MB.", payload)


def check_extra(maps: bool = False) -> None:
    """Raise for missing packages of the extra ``report``; with ``maps``, also if UMAP cannot be imported."""
    missing = [n for n in ("jinja2", "matplotlib", *(["umap"] if maps else [])) if find_spec(n) is None]
    if missing:
        raise ScmedleyError(f"Maps and report need {' and '.join(missing)}: pip install 'scmedley[report]'")
    if not maps:
        return
    from scmedley.pp.maps import load_umap

    try:
        load_umap()
    except Exception as error:  # numba has its own error for a version of numpy that it does not support
        raise ScmedleyError(f"UMAP cannot be imported ({one_line(error)}). Reinstall umap-learn.") from error


def write(page: str, path: Path) -> Path:
    """Write a page, either all of it or nothing."""
    from scmedley.io import replacing

    with replacing(path) as temporary:
        # A lone surrogate in a name cannot be encoded, but the report must be written all the same.
        temporary.write_bytes(page.encode("utf-8", errors="replace"))
    return path


def render(
    context: dict[str, Any], template: str = "template.html.j2", styles: tuple[str, ...] = ("style.css",)
) -> str:
    """Return a filled template. Everything is escaped except our own style sheets and script.

    Only a page with an explorer has a script; its security policy allows no other.
    """
    from markupsafe import Markup

    environment = _environment()
    assert environment.loader is not None
    source = partial(environment.loader.get_source, environment)
    style = "".join(source(name)[0] for name in styles)
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
