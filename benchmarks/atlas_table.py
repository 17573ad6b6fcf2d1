"""Tables of ``results/atlas.json``: what was measured, and how well formulae predict it.

Memory and time of a step are linear in the number of cells: the formulae say by how many bytes a cell, from the types
of the arrays that a step holds, and are checked by predicting the largest atlas from the second largest.

Shapes: N cells, G genes, P latent dimensions.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Result = dict[str, Any]

NAME = 72  # bytes of a cell's name: an object of text (64) and the pointer to it
CODES = 4  # of its batch, label and part of the split in obs, 1 byte each, and the mark of a missing value
POINTERS = 24  # in the store and in memory: where a cell's values begin, its total, its size factor's total
P, COMPONENTS = 50, 50  # latent dimensions, and principal components
TRAINING = 0.7  # share of the cells
STORED_TABLE = 38  # bytes of a cell's name and codes in cells.h5ad, compressed

# Bytes a cell of the process's own memory, for each step.
TABLE = NAME + CODES
READING = TABLE + POINTERS + 16  # with the codes of batches and labels, int64
OWN = {
    "prepare": (
        TABLE + POINTERS + 3 * 8,
        "table, totals, numbers of genes; the table again, without its text",
    ),
    "epoch of RE": (READING + 2 * 8, "table, pointers, codes, order of the rows"),
    "epoch of FE": (READING + 2 * 8 + 2 * 4 * P * TRAINING, "the same, and latents of an epoch, twice"),
    "embed": (READING + 2 * 4 * P, "table, pointers, codes, the latent, twice"),
}


def write(results: Path) -> Path:
    """Write the tables beside the results; return their path."""
    stored: Result = json.loads(results.read_text())
    found = stored["measured"]
    parts = ["# Measured", "", measured(found), "# Predicted", "", predicted(found)]
    if stages := [cells for cells in sorted(found, key=int) if "stages" in found[cells].get("run", {})]:
        parts += ["# Stages of a run", "", staged(found, stages)]
    path = results.with_suffix(".md")
    path.write_text("\n".join(parts))
    print(path.read_text())
    return path


def measured(found: dict[str, Result]) -> str:
    """Return a table with a row for each step and number of cells."""
    lines = [
        "| cells | step | seconds | CPU seconds | cells/s | cells per CPU second | peak memory, MB | own, MB |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for cells in sorted(found, key=int):
        for name, result in found[cells].items():
            keys = ("seconds", "cpu_seconds", "cells_per_second", "cells_per_cpu_second", "peak_MB", "own_MB")
            numbers = [_number(result.get(key)) for key in keys]
            if "error" in result:
                numbers[0] = result["error"]
            lines.append(f"| {int(cells):,} | {name} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


def predicted(found: dict[str, Result]) -> str:
    """Return a table of predictions for the largest atlas from the second largest, beside what was measured."""
    lines = ["| what | formula | predicted | measured |", "|---|---|---:|---:|"]
    lines += [f"| {' | '.join(row)} |" for row in _predictions(found)]
    return "\n".join(lines) + "\n"


def _predictions(found: dict[str, Result]) -> Iterator[tuple[str, str, str, str]]:
    sizes = sorted(found, key=int)
    if "seconds" in (prepared := found[sizes[-1]].get("prepare", {})):
        width = {"uint8": 1, "uint16": 2}.get(prepared["value_type"], 4)
        per_cell = prepared["values_per_cell"] * (2 + width) + POINTERS + STORED_TABLE
        text = f"N x (values of a cell x (2 + {width}) + {POINTERS + STORED_TABLE}) bytes"
        size = sum(prepared["bytes"].values()) / 1e6
        yield "store, MB", text, _number(int(sizes[-1]) * per_cell / 1e6), _number(size)
    if len(sizes) < 2:
        return
    fewer, more = sizes[-2:]
    added = int(more) - int(fewer)
    for name in found[more]:
        there, here = found[fewer].get(name, {}), found[more][name]
        if name in OWN and "error" not in there | here and "own_MB" in there:
            per_cell, why = OWN[name]
            text = f"that of {int(fewer):,} cells + {per_cell:.0f} bytes a cell more: {why}"
            yield (
                f"own memory, {name}, MB",
                text,
                _number(there["own_MB"] + added * per_cell / 1e6),
                _number(here["own_MB"]),
            )
    for name in found[more]:
        there, here = found[fewer].get(name, {}), found[more][name]
        if here.get("cells") and there.get("cells") and name != "counterfactual":
            text = f"{here['cells'] / there['cells']:.1f} times that of {int(fewer):,} cells"
            seconds = there["cpu_seconds"] * here["cells"] / there["cells"]
            yield f"CPU seconds, {name}", text, _number(seconds), _number(here["cpu_seconds"])


def staged(found: dict[str, Result], sizes: list[str]) -> str:
    """Return the seconds of the stages of a run, and the sizes of what it wrote."""
    lines = ["| stage or file | " + " | ".join(f"{int(cells):,} cells" for cells in sizes) + " |"]
    lines.append("|---|" + "---:|" * len(sizes))
    runs = [found[cells]["run"] for cells in sizes]
    for key, title, unit in (("stages", "{}, s", 1), ("bytes", "`{}`, MB", 1e6)):
        for name in runs[-1][key]:
            numbers = [_number(run[key].get(name, 0) / unit) for run in runs]
            lines.append(f"| {title.format(name)} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 10 else f"{value:,.2g}"
