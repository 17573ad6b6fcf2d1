"""How well do simple baselines, without a network, predict a patient's treated cells?

    python benchmarks/held_out_pairs.py --data FOLDER

Glioblastoma slices of 5 patients, untreated and under panobinostat (Zhao et al. 2021; 300 genes): each
patient's treated cells are held out in turn and predicted by the baselines of
``scmedley.evaluate.counterfactual`` from the other patients. Once with values in log1p CP10k, as the package
has them, and once with log1p of the median total: a cell's total over these 300 genes is small and noisy, and
the baselines depend on it. Networks: recipes/glioblastoma.py.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

import scmedley as sm
from common import DATA_VARIABLE, record
from scmedley.data.arrays import totals
from scmedley.data.evidence import TARGET_SUM
from scmedley.evaluate import counterfactual as held_out
from scmedley.io import write_json

FILE = "glioblastoma_panobinostat_5patients_300g.h5ad"
PATIENT, CONDITION, TREATED = "donor", "condition", "panobinostat"


def main() -> None:
    """Score baselines and ceiling for each patient, print their means, store the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(os.environ.get(DATA_VARIABLE, ".")))
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parent / "results" / "held_out_pairs.json"
    )
    options = parser.parse_args()
    path = options.data / FILE
    if not path.exists():
        print(f"skipped, {options.data}/ has no {FILE}. Name its folder with --data or {DATA_VARIABLE}.")
        return
    began = time.perf_counter()
    adata = sm.read(path)
    counts = csr_matrix(adata.X, dtype=np.float64)
    total_N = totals(counts)
    patient, treated = adata.obs[PATIENT].cat.codes.to_numpy(), (adata.obs[CONDITION] == TREATED).to_numpy()
    tables = []
    for name, total in (("CP10k", float(TARGET_SUM)), ("median", float(np.median(total_N)))):
        x_NG = csr_matrix(counts.multiply(total / total_N[:, None])).log1p()
        tables.append(score(x_NG, patient, treated).assign(total=name))
    rows = pd.concat(tables)
    means = rows.groupby(["total", "method"], sort=False)[list(held_out.MEASURES)].mean().reset_index()
    print(means.round(3).to_string(index=False))
    found = {"seconds": round(time.perf_counter() - began, 1), "means": means.to_dict("records")}
    write_json(record(1) | found | {"patients": rows.to_dict("records")}, options.results)


def score(x_NG: csr_matrix, patient: np.ndarray, treated: np.ndarray) -> pd.DataFrame:
    """Hold each patient's treated cells out in turn."""
    rows = []
    for one in np.unique(patient):
        source, target = (x_NG[(patient == one) & (treated == t)].toarray() for t in (False, True))
        held = held_out.HeldOut(source, target, source.mean(axis=0, keepdims=True))
        learnt = ~((patient == one) & treated)
        weight_B = np.array([float(len(source)), 0.0])
        shifts = held_out.label_shifts(
            x_NG[learnt],
            treated[learnt].astype(int),
            patient[learnt],
            batch=1,
            label=int(one),
            weight_B=weight_B,
        )
        found = {m: held_out.measure(held, c_G) for m, c_G in held_out.baselines(held, *shifts).items()}
        found[held_out.CEILING] = held_out.ceiling(held)
        rows += [{"patient": int(one), "method": method, **values} for method, values in found.items()]
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()
