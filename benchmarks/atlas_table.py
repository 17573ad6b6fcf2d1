"""Tables of ``results/atlas.json``: what was measured, and how well formulae predict it.

Shapes: N cells, G genes, P latent dimensions.
"""

import json
from pathlib import Path
from typing import Any

Result = dict[str, Any]


def write(results: Path) -> Path:
    """Write the tables beside the results; return their path."""
    stored: Result = json.loads(results.read_text())
    parts = [measured(stored["measured"])]
    path = results.with_suffix(".md")
    path.write_text("\n".join(parts))
    print(path.read_text())
    return path


def measured(found: dict[str, Result]) -> str:
    """Return a table with a row for each step and number of cells."""
    lines = [
        "| cells | step | seconds | cells/s | peak memory, MB | of the process alone, MB |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for cells in sorted(found, key=int):
        for name, result in found[cells].items():
            if "error" in result:
                numbers = [result["error"], "", f"{result['peak_MB']:,.0f}", f"{result['own_MB']:,.0f}"]
            else:
                keys = ("seconds", "cells_per_second", "peak_MB", "own_MB")
                numbers = [
                    "" if key not in result else f"{result[key]:,.{_digits(result[key])}f}" for key in keys
                ]
            lines.append(f"| {int(cells):,} | {name} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


def _digits(value: float) -> int:
    return 0 if value >= 10 else 1
