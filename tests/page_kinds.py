"""Write one page of every kind, by the commands that users call, from fits of two epochs."""

import contextlib
from pathlib import Path

import numpy as np

from donors_in_groups import donors_in_groups
from running import SMALL, some_cells
from scmedley.__main__ import main
from scmedley.experiment.grid import run
from test_experiment import six_donors, small

QUIET = ("--threads", "1", "--quiet")


def command(*arguments: object) -> None:
    """Call a command; what it writes is looked at later."""
    with contextlib.suppress(SystemExit):
        main([str(a) for a in arguments])


def write(out: Path) -> dict[str, str]:
    """Write the pages; return the path of each below ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    cells = out / "cells.h5ad"
    some_cells().write_h5ad(cells)
    runs = {
        "mixed": ("--label", "cell_type"),
        "vae": ("--model", "vae", "--label", "cell_type"),
        "deepbid": ("--model", "deepbid", "--label", "cell_type", "--clusters", "3"),
    }
    for name, options in runs.items():
        command("run", cells, *options, "--out", out / name, *SMALL, "--quiet")
    command("embed", out / "mixed", "--input", cells, "--out", out / "query.h5ad")
    command("explore", cells, "--out", out / "explored", "--compare", *QUIET)
    donors = donors_in_groups(6, 60, 8, paired=True, change=2.5)
    donors.obs["age"] = 30.0 + np.unique(donors.obs["donor"], return_inverse=True)[1]
    donors.write_h5ad(out / "donors.h5ad")
    asked = ("--condition", "condition", "--donor", "donor", "--label", "type")
    command("effects", out / "donors.h5ad", *asked, "--out", out / "effects", *QUIET)
    six_donors().write_h5ad(out / "six.h5ad")
    short = small(out / "six.h5ad", folds=2, methods=("PCA", "RE"))
    run(short, out / "experiment", jobs=1, say=lambda _: None, progress=False)
    pages = {name: f"{name}/report.html" for name in (*runs, "explored", "experiment")}
    pages |= {"effects": "effects/effects.html", "query": "query.html"}
    assert all((out / page).exists() for page in pages.values())
    return pages
