"""How well are combinations predicted that no training cell has: a patient under a drug, a cell type stimulated?

    python benchmarks/held_out_combinations.py --data FOLDER
    python benchmarks/held_out_combinations.py --data FOLDER --sets glioblastoma --methods LinearMixed --seeds 1

Each group's treated cells are held out in turn and predicted from its untreated cells and from all other groups:
patients of glioblastoma under panobinostat (Zhao et al. 2021), and cell types under interferon beta (Kang et al. 2018,
3 and 2 donors). Values are log1p CP10k, of all counted genes where the file says how many counts a cell had.

The settings of LinearMixed are chosen inside the training cells of each fold alone: each other group's treated
cells are held out in turn, and the setting with the best R2 of the change wins (``best``). Settings are the prior
of the condition's effect, and the coordinates on which it has slopes. Two other rows show what the choice does: the
simplest setting within one standard error of the best (``simplest``), and always the first setting.
LEMUR (pylemur) and scVI (scvi-tools) are scored on glioblastoma, if they are installed.
Methods are compared by what they add to a source cell, so all predicted cells have the noise of cells.

Every (set, group, method, seed) is a JSON file under ``--out``: the same command resumes a stopped run.

Shapes: S source cells, G genes, F inner folds, K settings.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from common import DATA_VARIABLE, cached, record
from held_out_data import TASKS, groups, mean, parts, read
from held_out_linear import LINEAR, RULES, SETTINGS, Setting, inner_scores, linear_mixed
from held_out_rivals import METHODS, baselines
from scmedley.data.arrays import dense
from scmedley.evaluate import counterfactual as held_out
from scmedley.io import write_json

if TYPE_CHECKING:
    from anndata import AnnData

MEASURES = {"R2": "r2", "E-distance": "e_distance"}
INNER = "inner folds"  # row with R2 of all settings inside the training cells


def rows_of(
    adata: AnnData, group: str, names: list[str], n_seeds: int, folder: Path
) -> Iterator[dict[str, Any]]:
    """Yield R2 of the change and E-distance of baselines, ceiling and methods for a held-out group."""
    train, source, target = parts(adata, group)
    held = held_out.HeldOut(dense(source.X), dense(target.X), mean(source)[None])

    def measured(method: str, change: np.ndarray, seeds: range, **more: Any) -> dict[str, Any]:
        change_G = change if change.ndim == 1 else change.mean(axis=0)
        found = [held_out.measure(held, change_G, held.source_NG + change, seed=seed) for seed in seeds]
        values = {name: float(np.mean([f[key] for f in found])) for name, key in MEASURES.items()}
        return {"group": group, "method": method} | values | more

    for method, change_G in baselines(train, source, target, group).items():
        yield measured(method, change_G, range(n_seeds))
    top = [held_out.ceiling(held, seed=seed) for seed in range(n_seeds)]
    yield {"group": group, "method": held_out.CEILING} | {
        name: float(np.mean([t[key] for t in top])) for name, key in MEASURES.items()
    }
    start = f"{group.replace(' ', '_')}-"
    if LINEAR in names:
        inner = cached(folder / f"{start}inner.json", lambda: {"r2": inner_scores(train, SETTINGS).tolist()})
        r2_FK = np.array(inner["r2"])
        for name, rule in RULES.items():
            setting = rule(r2_FK, SETTINGS)

            def linear(name: str = name, setting: Setting = setting) -> dict[str, Any]:
                change_SG = linear_mixed(train, source, setting)
                return measured(name, change_SG, range(n_seeds), setting=str(setting))

            yield cached(folder / f"{start}{name.replace(' ', '_')}.json", linear)
        means = {str(s): float(r2) for s, r2 in zip(SETTINGS, r2_FK.mean(axis=0), strict=True)}
        yield {"group": group, "method": INNER, "inner": means}
    for name, seed in ((n, s) for n in names if n in METHODS for s in range(n_seeds)):

        def compute(name: str = name, seed: int = seed) -> dict[str, Any]:
            began = time.process_time()
            change_SG = METHODS[name].predict(train, source, seed)
            seconds = round(time.process_time() - began, 1)
            return measured(name, change_SG, range(seed, seed + 1), seed=seed, seconds=seconds)

        yield cached(folder / f"{start}{name.replace(' ', '_')}-{seed}.json", compute)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the means over groups, and the standard deviation over seeds of these means."""
    rows = rows[rows["method"] != INNER]
    seed = rows["seed"].fillna(0) if "seed" in rows else 0  # what does not depend on it has none
    per_seed = rows.assign(seed=seed).groupby(["set", "method", "seed"], sort=False)[list(MEASURES)].mean()
    by_method = per_seed.groupby(["set", "method"], sort=False)
    found = by_method.mean()
    for name in MEASURES:
        found[f"{name} sd"] = by_method[name].std()
    return found.assign(seeds=by_method.size()).reset_index()


def main() -> None:
    """Score all methods, print their means, store the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = Path(__file__).parent / "results"
    parser.add_argument("--data", type=Path, default=Path(os.environ.get(DATA_VARIABLE, ".")))
    parser.add_argument("--out", type=Path, default=Path("held-out-combinations"))
    parser.add_argument("--results", type=Path, default=here / "held_out_combinations.json")
    parser.add_argument("--sets", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--methods", nargs="*", choices=[LINEAR, *METHODS], default=[LINEAR, *METHODS])
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    names = [n for n in options.methods if n == LINEAR or importlib.util.find_spec(METHODS[n].package)]
    for name in sorted(set(options.methods) - set(names)):
        print(f"{name}: skipped, {METHODS[name].package} is not installed.")
    found: list[dict[str, Any]] = []
    for name in options.sets:
        if not (options.data / TASKS[name].file).exists():
            print(f"{name}: skipped, {options.data}/ has no {TASKS[name].file}. Name its folder with --data.")
            continue
        adata = read(TASKS[name], options.data)
        scored = [n for n in names if TASKS[name].rivals or n not in METHODS or not METHODS[n].rival]
        for group in groups(adata.obs):
            for row in rows_of(adata, group, scored, options.seeds, options.out / name):
                found.append({"set": name} | row)
                print(name, row, flush=True)
    if not found:
        return
    means = table(pd.DataFrame(found))
    print(means.round(3).to_string(index=False))
    stored: dict[str, list[Any]] = {"means": means.to_dict("records"), "groups": found}
    if options.results.exists():  # sets that were not asked for now keep their rows
        before = json.loads(options.results.read_text())
        for part, rows in stored.items():
            stored[part] = [row for row in before[part] if row["set"] not in options.sets] + rows
    write_json(record(1) | stored, options.results)


if __name__ == "__main__":
    main()
