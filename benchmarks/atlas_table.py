"""Tables of ``results/atlas.json``: what was measured, and how well formulae predict it.

Memory and time of a step are linear in the number of cells: the formulae say by how many bytes a cell, from the types
of the arrays that a step holds, and are checked by predicting larger atlases from the smallest.

Shapes: N cells, G genes, P latent dimensions.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Result = dict[str, Any]

NAME, HASH = (
    72,
    34,
)  # bytes of a cell's name: text (64) and the pointer to it; and in pandas' table of the names
CODES = 4  # of its batch, label and part of the split in obs, 1 byte each, and of the mark of a missing value
POINTERS = 24  # in the store, and in memory: where a cell's values begin, and its two totals
P = 20  # latent dimensions
TRAINING = 0.7  # share of the cells
STORED_TABLE = 35  # bytes of a cell's name and codes in cells.h5ad, compressed
READING = NAME + HASH + CODES + POINTERS + 2 * 8  # with the codes of batches and labels for a network

# Bytes a cell of the process's own memory, for each step: without and with the values of a cell in the store.
OWN: dict[str, tuple[float, bool, str]] = {
    "prepare": (NAME + 2 * HASH + CODES + 6 * 8, False, "names, numbers of genes and totals"),
    "epoch of RE": (READING + 16 * 8, False, "names, pointers, codes, order of the rows"),
    # Latent, batch and place of each training cell; twice while the parts of an epoch are joined.
    "epoch of FE": (
        READING + 16 * 8 + 2 * TRAINING * (4 * P + 16),
        False,
        "as RE, and the latents of an epoch",
    ),
    "embed": (READING + 2 * 4 * P, True, "names, pointers, codes, values as stored, the latent twice"),
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
    """Return a table of predictions of larger atlases from the smallest, beside what was measured."""
    lines = ["| what | formula | predicted | measured |", "|---|---|---:|---:|"]
    lines += [f"| {' | '.join(row)} |" for row in _predictions(found)]
    return "\n".join(lines) + "\n"


def _predictions(found: dict[str, Result]) -> Iterator[tuple[str, str, str, str]]:
    sizes, values = sorted(found, key=int), 0.0
    if "seconds" in (prepared := found[sizes[-1]].get("prepare", {})):
        width = {"uint8": 1, "uint16": 2}.get(prepared["value_type"], 4)
        values = prepared["values_per_cell"] * (2 + width)
        formula = f"N x (values of a cell x (2 + {width}) + {POINTERS + STORED_TABLE}) bytes"
        expected = int(sizes[-1]) * (values + POINTERS + STORED_TABLE) / 1e6
        yield "store, MB", formula, _number(expected), _number(sum(prepared["bytes"].values()) / 1e6)
    if len(sizes) < 2:
        return
    fewer, *others = sizes
    for name, (per_cell, with_values, why) in OWN.items():
        for more in others:
            there, here = found[fewer].get(name, {}), found[more].get(name, {})
            if "seconds" in there and "seconds" in here:
                added = per_cell + (values if with_values else 0)
                formula = f"that of {int(fewer):,} cells + {added:.0f} bytes a cell more: {why}"
                expected = there["own_MB"] + (int(more) - int(fewer)) * added / 1e6
                title = f"own memory, {name}, {int(more):,} cells, MB"
                yield title, formula, _number(expected), _number(here["own_MB"])
    for name in found[others[-1]]:
        there, here = found[fewer].get(name, {}), found[others[-1]][name]
        if here.get("cells") and there.get("cells") and name != "counterfactual":
            formula = f"{here['cells'] / there['cells']:.1f} times that of {int(fewer):,} cells"
            seconds = there["cpu_seconds"] * here["cells"] / there["cells"]
            title = f"CPU seconds, {name}, {int(others[-1]):,} cells"
            yield title, formula, _number(seconds), _number(here["cpu_seconds"])


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
