"""Do the 90 % intervals of LinearMixed hold for a donor whose treated cells were never seen?

    python benchmarks/held_out_intervals.py --data FOLDER

Each donor's treated cells are held out in turn (as in held_out_combinations.py), and the change of the mean of each
gene is predicted from the donor's untreated cells and all other donors, with the default settings. Prints and stores
the share of the observed changes inside their intervals, of all genes and of the 20 with the largest predicted
changes, and R2 of the change, beside that of the mean change of the other donors.

The sampling noise of observed means counts: means of few cells lie outside more often.
"""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

import scmedley as sm
from common import DATA_VARIABLE, record
from held_out_data import CONDITION, GROUP, TARGET, TASKS, groups, mean, parts, read
from scmedley.evaluate.counterfactual import r2_change
from scmedley.io import write_json

if TYPE_CHECKING:
    from anndata import AnnData

FORMULA = f"~ {CONDITION} + ({CONDITION} | {GROUP})"
LARGEST = 20
MONOCYTES = "CD14+ Monocytes"


def of_donor(adata: AnnData, donor: str) -> dict[str, float]:
    """Return R2 and coverage of the change that is predicted for a donor without treated cells."""
    train, source, target = parts(adata, donor)
    observed_G = mean(target) - mean(source)
    others = [parts(adata, one)[1:] for one in groups(adata.obs) if one != donor]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no training cell has this combination is the point
        model = sm.LinearMixed(FORMULA).fit(train)
        shown = model.counterfactual(source, {CONDITION: TARGET}, interval=True)
    layers = ("difference", "difference_q05", "difference_q95")
    change_G, low_G, high_G = (np.asarray(shown.layers[name], float).mean(0) for name in layers)
    inside_G = (low_G <= observed_G) & (observed_G <= high_G)
    return {
        "R2": r2_change(observed_G, change_G),
        "R2 of the others' mean": r2_change(
            observed_G, np.mean([mean(t) - mean(s) for s, t in others], axis=0)
        ),
        "inside": float(inside_G.mean()),
        "inside, 20 largest": float(inside_G[np.argsort(-np.abs(change_G))[:LARGEST]].mean()),
    }


def sets(folder: Path) -> dict[str, AnnData]:
    """Return the cells of each set."""
    found = {name: read(TASKS[name], folder) for name in ("glioblastoma", "kang_donors")}
    labels = sm.read(folder / TASKS["kang_donors"].file).obs["cell_type"]
    return found | {
        f"kang_donors, {MONOCYTES}": found["kang_donors"][(labels == MONOCYTES).to_numpy()].copy()
    }


def main() -> None:
    """Hold out each donor of each set, print the table and store it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(os.environ.get(DATA_VARIABLE, ".")))
    results = Path(__file__).parent / "results" / "held_out_intervals.json"
    parser.add_argument("--results", type=Path, default=results)
    options = parser.parse_args()
    rows = []
    for name, adata in sets(options.data).items():
        table = pd.DataFrame({donor: of_donor(adata, donor) for donor in groups(adata.obs)}).T
        rows += [{"set": name, "donor": donor} | row for donor, row in table.to_dict("index").items()]
        said = [
            f"{c} {m:.2f} ({a:.2f} to {b:.2f})"
            for c, m, a, b in zip(table, table.mean(), table.min(), table.max(), strict=True)
        ]
        print(f"{name}, {len(table)} donors: {'; '.join(said)}", flush=True)
    write_json(record(1) | {"rows": rows}, options.results)


if __name__ == "__main__":
    main()
