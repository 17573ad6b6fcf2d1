"""What is left of condition and donor in the fixed latent, by the design that was removed from it.

    python benchmarks/designs.py --data FOLDER [--seeds 2]

Kang et al. 2018, 9,516 cells of 3 donors, stimulated with interferon beta or not, 100 genes. A model is fitted with
one joined column of donor and condition, with a design of both, and with this design and ``keep=["condition"]``.
Leak: of three probes, within labels, on held-out cells (0: none, 1: all).
"""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path
from typing import Any

import pandas as pd

import scmedley as sm
from common import DATA_VARIABLE, record
from scmedley import keys
from scmedley.io import write_json

FILE = "kang_ifnb_3donors_9517_100g.h5ad"
CONDITION, DONOR, LABEL, JOINED = "condition", "donor", "cell_type", "donor_condition"
DESIGN = "~ condition + (condition | donor)"
MODELS: dict[str, dict[str, Any]] = {
    "one joined column": {"batch_key": JOINED},
    DESIGN: {"batch_key": DESIGN},
    f"{DESIGN}, keep condition": {"batch_key": DESIGN, "keep": [CONDITION]},
}
PROBES = ("kNN leak", "logistic leak", "network leak")


def leaks(path: Path, seed: int) -> list[dict[str, Any]]:
    """Return the leaks and the accuracy of labels of each model."""
    adata = sm.read(path)
    adata.obs[JOINED] = (adata.obs[DONOR].astype(str) + "_" + adata.obs[CONDITION].astype(str)).astype(
        "category"
    )
    sm.pp.prepare(adata, batch_key=JOINED, label_key=LABEL, seed=seed)
    rows = []
    for name, how in MODELS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", sm.errors.ScmedleyWarning)  # of few donors
            sm.FixedEffects(**how).fit(adata, seed=seed, threads=1, progress=False).embed(adata)
        row: dict[str, Any] = {"model": name, "seed": seed}
        for key in (CONDITION, DONOR):
            table = sm.evaluate.scores(adata, [keys.FIXED], key, LABEL, seed=seed)
            of = {(r.score, r.of): r.value for r in table.itertuples()}
            row |= {f"{key}, {probe}": of[probe, "batch"] for probe in PROBES}
            row["kNN accuracy"] = of["kNN accuracy", "label"]
        print(row, flush=True)
        rows.append(row)
    return rows


def main() -> None:
    """Fit and score the models, print the means over seeds, and store the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    results = Path(__file__).parent / "results" / "designs.json"
    parser.add_argument("--data", type=Path, default=Path(os.environ.get(DATA_VARIABLE, ".")))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--results", type=Path, default=results)
    options = parser.parse_args()
    if not (options.data / FILE).exists():
        print(f"skipped, {options.data}/ has no {FILE}. Name its folder with --data or {DATA_VARIABLE}.")
        return
    rows = [row for seed in range(options.seeds) for row in leaks(options.data / FILE, seed)]
    means = pd.DataFrame(rows).drop(columns="seed").groupby("model", sort=False).mean().reset_index()
    print(means.round(2).to_string(index=False))
    write_json(record(1) | {"means": means.to_dict("records"), "seeds": rows}, options.results)


if __name__ == "__main__":
    main()
