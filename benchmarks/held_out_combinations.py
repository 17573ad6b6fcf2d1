"""How well are combinations predicted that no training cell has: a patient under a drug, a cell type stimulated?

    python benchmarks/held_out_combinations.py --data FOLDER
    python benchmarks/held_out_combinations.py --data FOLDER --sets glioblastoma --methods LinearMixed --seeds 1

Each group's treated cells are held out in turn and predicted from its untreated cells and from all other groups:
patients of glioblastoma under panobinostat (Zhao et al. 2021), and cell types under interferon beta (Kang et al. 2018,
3 and 2 donors). Values are log1p CP10k, of all counted genes where the file says how many counts a cell had.

The settings of LinearMixed are chosen inside the training cells of each fold alone: each other group's treated
cells are held out in turn, and the setting with the best R2 of the change wins (:func:`best`). Settings are the prior
of the condition's effect, and the coordinates on which it has slopes. Two other rows show what the choice does: the
simplest setting within one standard error of the best (:func:`simplest`), and always the first setting.
LEMUR (pylemur) and scVI (scvi-tools) are skipped where they are not installed. Methods are compared by what they add
to a source cell, so all predicted cells have the noise of cells.

Every (set, group, method, seed) is a JSON file under ``--out``: the same command resumes a stopped run.

Shapes: N cells, S source cells, G genes, P coordinates, F inner folds, K settings.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

import scmedley as sm
from common import DATA_VARIABLE, cached, record
from scmedley.data.arrays import dense, totals
from scmedley.data.evidence import TARGET_SUM
from scmedley.evaluate import counterfactual as held_out
from scmedley.io import write_json

if TYPE_CHECKING:
    from anndata import AnnData

GROUP, CONDITION, SOURCE, TARGET = "group", "condition", "source", "target"
COUNTS = "raw"  # layer, for scVI
LEAST = 10  # cells of a group in each condition
EPOCHS, SCVI_EPOCHS = 30, 200  # the network: as in recipes/glioblastoma.py
SHARE = "share"  # of a cell's counts that are of the genes of the file
LINEAR, INNER = "LinearMixed", "inner folds"  # the second: R2 of all settings inside the training cells
MEASURES = {"R2": "r2", "E-distance": "e_distance"}
Prediction = tuple[
    np.ndarray, dict[str, Any]
]  # the change of each source cell (S x G), and what else to store


@dataclass(frozen=True)
class Task:
    """A data set, and which of its cells are held out.

    Attributes
    ----------
    file
        In the data folder.
    group, treated
        Column whose treated cells are held out in turn, and the treated condition of ``obs["condition"]``.
    total
        Column of a cell's total count, for files with a choice of genes; empty: the total of the file's genes.
    """

    file: str
    group: str
    treated: str
    total: str = ""


TASKS = {
    "glioblastoma": Task("glioblastoma_panobinostat_5patients_300g.h5ad", "donor", "panobinostat"),
    "kang_3donors": Task("kang_ifnb_3donors_9517_100g.h5ad", "cell_type", "stim", "total_umi"),
    "kang_2donors": Task("kang_ifnb_2donors_1556.h5ad", "cell_type", "stim"),
}


@dataclass(frozen=True, order=True)
class Setting:
    """A setting of LinearMixed; the smaller, the simpler.

    Attributes
    ----------
    n_slopes
        Number of coordinates on which the effect of the condition has slopes: principal components of expression
        minus the mean of the condition.
    of
        ``"cell"``: a cell's own coordinates. ``"group"``: the mean of its group's source cells.
    wide
        Whether the prior of the condition's effect is wide; otherwise its variance is learnt.
    """

    n_slopes: int = 0
    of: str = ""
    wide: bool = False

    def __str__(self) -> str:
        """Return it in words."""
        slopes = f"{self.n_slopes} slopes, {self.of}" if self.n_slopes else "no slopes"
        return slopes + (", wide prior" if self.wide else "")

    @property
    def formula(self) -> str:
        """The design: effects of condition and group, their interaction, and slopes of the condition."""
        names = [f"{self.of}{p}" for p in range(self.n_slopes)]
        terms = [CONDITION, *(names if self.of == "cell" else [])]
        terms += [f"({CONDITION} | {GROUP})", *(f"({name} | {CONDITION})" for name in names)]
        return "~ " + " + ".join(terms)


SETTINGS = tuple(
    Setting(n, of, wide) for wide in (False, True) for n, of in ((0, ""), (2, "cell"), (2, "group"))
)


def read(task: Task, folder: Path) -> AnnData:
    """Return the cells of a task: X is log1p CP10k; ``obs``: group, and condition (source or target)."""
    from anndata import AnnData

    adata = sm.read(folder / task.file)
    counts = csr_matrix(adata.X, dtype=np.float64)
    total_N = adata.obs[task.total].to_numpy(float) if task.total else totals(counts)
    x_NG = csr_matrix(counts.multiply(TARGET_SUM / total_N[:, None])).log1p().astype(np.float32)
    treated_N = (adata.obs["condition"] == task.treated).to_numpy()
    obs = pd.DataFrame(
        {
            GROUP: pd.Categorical(adata.obs[task.group].astype(str)),
            CONDITION: pd.Categorical(np.where(treated_N, TARGET, SOURCE), categories=[SOURCE, TARGET]),
            SHARE: totals(counts) / total_N,
        },
        index=adata.obs_names,
    )
    return AnnData(x_NG, obs=obs, var=adata.var[[]], layers={COUNTS: counts.astype(np.float32)})


def groups(obs: pd.DataFrame) -> list[str]:
    """Return the groups that have at least ``LEAST`` cells in both conditions."""
    table = pd.crosstab(obs[GROUP], obs[CONDITION])
    if SOURCE not in table or TARGET not in table:
        return []
    return [str(name) for name in table.index[(table[[SOURCE, TARGET]] >= LEAST).all(axis=1)]]


def parts(adata: AnnData, group: str) -> tuple[AnnData, AnnData, AnnData]:
    """Return the training cells, and the source and the held-out cells of a group."""
    of_group = (adata.obs[GROUP] == group).to_numpy()
    treated = (adata.obs[CONDITION] == TARGET).to_numpy()
    return adata[~(of_group & treated)].copy(), adata[of_group & ~treated].copy(), adata[of_group & treated]


def coordinates(train: AnnData, cells: AnnData, n: int, of: str) -> np.ndarray:
    """Return the coordinates (N x P) of cells on which slopes are learnt.

    The principal components are those of the training cells minus the mean of their condition. A group's
    coordinates are the mean of its source cells, so that they do not depend on which of its cells are held out; of its
    treated cells where it has no others.
    """

    def deviations(adata: AnnData) -> np.ndarray:
        target_N = (adata.obs[CONDITION] == TARGET).to_numpy().astype(int)
        return np.asarray(dense(adata.X).astype(np.float64) - mean_CG[target_N])

    means = [train.X[(train.obs[CONDITION] == c).to_numpy()].mean(axis=0) for c in (SOURCE, TARGET)]
    mean_CG = np.stack([np.asarray(mean).ravel() for mean in means])
    y_NG = deviations(train)
    axes_PG = np.linalg.eigh(y_NG.T @ y_NG)[1][:, ::-1][:, :n].T
    z_NP = deviations(cells) @ axes_PG.T
    if of == "cell":
        return z_NP
    z = (
        pd.DataFrame(y_NG @ axes_PG.T)
        .groupby([train.obs[CONDITION].astype(str).to_numpy(), train.obs[GROUP].astype(str).to_numpy()])
        .mean()
    )
    source, target = (z.loc[c] for c in (SOURCE, TARGET))
    return source.combine_first(target).loc[cells.obs[GROUP].astype(str)].to_numpy()


def linear_mixed(train: AnnData, source: AnnData, setting: Setting) -> np.ndarray:
    """Return the change of each source cell (S x G) that a LinearMixed of the training cells predicts."""
    from anndata import AnnData

    found = []
    for cells in (train, source):
        obs = cells.obs.copy()
        if setting.n_slopes:
            z_NP = coordinates(train, cells, setting.n_slopes, setting.of)
            obs[[f"{setting.of}{p}" for p in range(setting.n_slopes)]] = z_NP
        found.append(AnnData(cells.X, obs=obs, var=cells.var))
    model = sm.LinearMixed(setting.formula, settings=sm.LinearMixedSettings(learn_fixed=not setting.wide))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no training cell has this combination is the point
        shown = model.fit(found[0]).counterfactual(found[1], to={CONDITION: TARGET})
    return np.asarray(shown.layers["difference"], np.float64)


def inner_scores(train: AnnData, settings: tuple[Setting, ...]) -> np.ndarray:
    """Return R2 of the change (F x K) of each setting for each group of the training cells, held out in turn."""
    rows = []
    for group in groups(train.obs):
        learnt, source, target = parts(train, group)
        observed_G = _mean(target) - _mean(source)
        rows.append(
            [held_out.r2_change(observed_G, linear_mixed(learnt, source, s).mean(axis=0)) for s in settings]
        )
    return np.array(rows)


def best(r2_FK: np.ndarray, settings: tuple[Setting, ...]) -> Setting:
    """Return the setting with the highest mean over folds."""
    return settings[int(r2_FK.mean(axis=0).argmax())]


def simplest(r2_FK: np.ndarray, settings: tuple[Setting, ...]) -> Setting:
    """Return the simplest setting whose mean over folds is within one standard error of the best.

    The standard error is that of the difference from the best over the folds (Breiman's rule, paired).
    """
    behind_FK = r2_FK[:, [r2_FK.mean(axis=0).argmax()]] - r2_FK
    error_K = behind_FK.std(axis=0, ddof=1) / np.sqrt(len(r2_FK))
    return min(s for s, d, e in zip(settings, behind_FK.mean(axis=0), error_K, strict=True) if d <= e)


RULES = {
    LINEAR: best,
    f"{LINEAR}, one-SE rule": simplest,
    f"{LINEAR}, no choice": lambda _, settings: settings[0],
}


def network(train: AnnData, source: AnnData, seed: int) -> Prediction:
    """Predict by the random-effects network of the default preset, with the condition as batch."""
    cells = train.copy()
    sm.pp.prepare(cells, batch_key=CONDITION, values="log1p", min_genes=0, min_cells=0, seed=seed)
    settings = sm.RandomEffectsSettings(max_epochs=EPOCHS)
    model = sm.RandomEffects(CONDITION, settings=settings).fit(cells, seed=seed, threads=1, progress=False)
    shown = model.counterfactual(cells[source.obs_names], to=TARGET)
    return np.asarray(shown.layers["difference"], np.float64), {}


def lemur(train: AnnData, source: AnnData, seed: int) -> Prediction:
    """Predict by LEMUR with group and condition in its design, aligned as its tutorial does."""
    from anndata import AnnData
    from pylemur.tl import LEMUR

    np.random.seed(seed)  # noqa: NPY002 (pylemur and harmonypy draw from it)
    cells = AnnData(dense(train.X).astype(np.float64), obs=train.obs.copy(), var=train.var)
    model = LEMUR(cells, design=f"~ {GROUP} + {CONDITION}", n_embedding=15)
    model.fit(verbose=False)
    model.align_with_harmony(verbose=False)
    z_SP = np.asarray(model.embedding)[train.obs_names.get_indexer(source.obs_names)]
    group = str(source.obs[GROUP].iloc[0])
    there, here = (
        model.predict(embedding=z_SP, new_condition=model.cond(**{GROUP: group, CONDITION: condition}))
        for condition in (TARGET, SOURCE)
    )
    return np.asarray(there - here, np.float64), {}


def scvi(train: AnnData, source: AnnData, seed: int) -> Prediction:
    """Predict by scVI with the condition as batch: the change of its decoded frequencies, as log1p CP10k."""
    import scvi as package
    from anndata import AnnData

    package.settings.seed = seed
    cells = AnnData(train.layers[COUNTS], obs=train.obs[[CONDITION, SHARE]].copy(), var=train.var)
    package.model.SCVI.setup_anndata(cells, batch_key=CONDITION)
    model = package.model.SCVI(cells)
    model.train(max_epochs=SCVI_EPOCHS, accelerator="cpu", enable_progress_bar=False, logger=False)
    rows = train.obs_names.get_indexer(source.obs_names)
    total_S1 = TARGET_SUM * source.obs[SHARE].to_numpy()[:, None]
    there, here = (
        np.log1p(
            total_S1 * model.get_normalized_expression(indices=rows, transform_batch=c, return_numpy=True)
        )
        for c in (TARGET, SOURCE)
    )
    return np.asarray(there - here, np.float64), {}


def baselines(train: AnnData, source: AnnData, target: AnnData, group: str) -> dict[str, np.ndarray]:
    """Return the change of the mean (G) that each baseline predicts; ``target`` gives only the others' mean."""
    names = train.obs[GROUP].cat.categories
    held = held_out.HeldOut(dense(source.X), dense(target.X), _mean(source)[None])
    shifts = held_out.label_shifts(
        csr_matrix(train.X),
        train.obs[CONDITION].cat.codes.to_numpy(),
        train.obs[GROUP].cat.codes.to_numpy(),
        batch=1,
        label=int(names.get_loc(group)),
        weight_B=np.array([float(source.n_obs), 0.0]),
    )
    found = held_out.baselines(held, *shifts)
    del found["mean over batches"]  # with one other condition it is no change
    treated = train[train.obs[CONDITION] == TARGET]
    means = [_mean(treated[treated.obs[GROUP] == other]) for other in treated.obs[GROUP].unique()]
    return {"no change": found.pop("no change"), "mean": np.mean(means, axis=0) - _mean(source)} | found


@dataclass(frozen=True)
class Method:
    """A way to predict a change with a seed; ``package``: what it needs."""

    predict: Callable[[AnnData, AnnData, int], Prediction]
    package: str = "scmedley"


METHODS = {
    "default network": Method(network),
    "LEMUR": Method(lemur, package="pylemur"),
    "scVI": Method(scvi, package="scvi"),
}


def rows_of(
    adata: AnnData, group: str, names: list[str], n_seeds: int, folder: Path
) -> Iterator[dict[str, Any]]:
    """Yield R2 of the change and E-distance of baselines, ceiling and methods for a held-out group."""
    train, source, target = parts(adata, group)
    held = held_out.HeldOut(dense(source.X), dense(target.X), _mean(source)[None])

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
        r2_FK = np.array(
            cached(folder / f"{start}inner.json", lambda: {"r2": inner_scores(train, SETTINGS).tolist()})[
                "r2"
            ]
        )
        for name, rule in RULES.items():
            setting = rule(r2_FK, SETTINGS)

            def linear(name: str = name, setting: Setting = setting) -> dict[str, Any]:
                change_SG = linear_mixed(train, source, setting)
                return measured(name, change_SG, range(n_seeds), setting=str(setting))

            yield cached(folder / f"{start}{name.replace(' ', '_')}.json", linear)
        yield {
            "group": group,
            "method": INNER,
            "inner": dict(zip(map(str, SETTINGS), r2_FK.mean(0), strict=True)),
        }
    for name, seed in ((n, s) for n in names if n in METHODS for s in range(n_seeds)):

        def compute(name: str = name, seed: int = seed) -> dict[str, Any]:
            began = time.process_time()
            change_SG, more = METHODS[name].predict(train, source, seed)
            seconds = round(time.process_time() - began, 1)
            return measured(name, change_SG, range(seed, seed + 1), seed=seed, seconds=seconds, **more)

        yield cached(folder / f"{start}{name.replace(' ', '_')}-{seed}.json", compute)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the means over groups, and the standard deviation over seeds of these means."""
    rows = rows[rows["method"] != INNER]
    per_seed = rows.fillna({"seed": 0}).groupby(["set", "method", "seed"], sort=False)[list(MEASURES)].mean()
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
        for group in groups(adata.obs):
            for row in rows_of(adata, group, names, options.seeds, options.out / name):
                found.append({"set": name} | row)
                print(name, row, flush=True)
    if not found:
        return
    means = table(pd.DataFrame(found))
    print(means.round(3).to_string(index=False))
    write_json(record(1) | {"means": means.to_dict("records"), "groups": found}, options.results)


def _mean(adata: AnnData) -> np.ndarray:
    return np.asarray(adata.X.astype(np.float64).mean(axis=0)).ravel()


if __name__ == "__main__":
    main()
