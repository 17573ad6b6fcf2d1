"""The folder of an exploration: the page, a CSV for each table, and the record, all of them or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from scmedley import __version__
from scmedley.io import replacing, write_json
from scmedley.pp.exploration import TABLES, Exploration, explore
from scmedley.report import write_exploration
from scmedley.report.build import check_extra
from scmedley.runs.folder import EXPLORATION, REPORT, VERSIONS, check_replaceable, versions


def write(
    inputs: Sequence[Path], out: Path, *, overwrite: bool = False, threads: int | None = None, **options: Any
) -> Exploration:
    """Explore the files and write the folder; an error leaves nothing behind.

    Parameters
    ----------
    inputs
        Files of cells.
    out
        The new folder. With ``overwrite`` it may be the folder of an earlier exploration, which is replaced.
    threads
        CPU threads; all by default.
    options
        Of :func:`scmedley.pp.explore`.
    """
    check_extra()
    ours = (REPORT, VERSIONS, EXPLORATION, *(f"{name}.csv" for name in TABLES))
    check_replaceable(out, EXPLORATION, ours, "exploration", overwrite=overwrite)
    with threadpool_limits(limits=threads):
        found = explore(list(inputs), **options)
        with replacing(out) as folder:
            folder.mkdir()
            found.write(folder)
            write_exploration(found, folder / REPORT)
            write_json(versions(), folder / VERSIONS)
            write_json(_record(found, inputs, options), folder / EXPLORATION)
    return found


def _record(found: Exploration, inputs: Sequence[Path], options: dict[str, Any]) -> dict[str, Any]:
    """Return what was explored, and how."""
    fit = found.dispersion
    return {
        "version": __version__,
        "inputs": [str(path) for path in inputs],
        "options": {name: value for name, value in options.items() if name != "progress"},
        "cells": found.n_cells,
        "genes": found.n_genes,
        "values": found.values,
        "reasons": found.reasons,
        "keys": {role: {"column": key.column.name, "why": key.why} for role, key in found.keys.items()},
        "dispersion": None
        if fit is None
        else {"value": fit.value, "depth": fit.depth, "beyond_depth": fit.beyond_depth, "genes": fit.n_genes},
        "findings": found.findings(),
        "missing": found.missing,
        "warnings": found.warnings,
    }
