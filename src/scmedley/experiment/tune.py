"""Search settings of the fixed-effects network: chosen on validation cells, scored on test cells."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData, read_h5ad

from scmedley import io, keys
from scmedley.device import resolve_threads
from scmedley.errors import ScmedleyError
from scmedley.experiment.cells import keep, lay_out
from scmedley.experiment.config import Experiment
from scmedley.experiment.stored import folder_of_stores, lay_out_on_disk, read_fold, reading_of
from scmedley.keys import ValueKind
from scmedley.models.catalogue import FE, methods
from scmedley.pp.folds import rotating_folds
from scmedley.pp.genes import select_genes
from scmedley.pp.prepared import read_prepared
from scmedley.pp.split import PARTS
from scmedley.runs.folder import BEST, DATA, SEARCH, STUDY, TRIALS, locked
from scmedley.runs.record import Record

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

LAYERS = {"256-128": (256, 128), "128-64": (128, 64), "512-128": (512, 128), "256": (256,)}
LATENTS = (10, 20, 30, 50)
WEIGHT_RANGE = (0.1, 30.0)  # of a weight of the loss, relative to the reconstruction error
RANGES = {"offset_weight": (0.1, 3.0)}  # 3 and more is known to give worse embeddings


def tune(
    path: Path,
    out: Path,
    *,
    batch_key: str,
    label_key: str,
    method: str = FE.name,
    trials: int = 30,
    folds: int = 3,
    epochs: int | None = None,
    values: ValueKind = "auto",
    seed: int = 0,
    threads: int | None = None,
    backed: bool | None = None,
    store: Path | None = None,
    say: Callable[[str], None] = print,
) -> Record:
    """Search loss weights, latent size and layers with high label accuracy and low batch leakage.

    The search maximises label accuracy minus batch leakage on validation cells (mean over folds). Accuracy:
    share of cells whose label wins the vote of their 15 nearest training cells. Leakage: within labels, 0 to
    1; below 0 counts as 0. The first trial is the default preset. A trial below the median of the others
    after a fold is stopped early. The same call resumes an interrupted search. A fifth of the cells is set
    aside before the search: the best settings and the default are scored on these test cells at the end.

    Parameters
    ----------
    path
        Cells, in any format that ``scmedley.read`` takes.
    out
        Folder for ``trials.csv`` and ``best.toml`` (for ``scmedley run --settings`` and recipes).
    batch_key, label_key
        ``obs`` columns.
    method, epochs, values, seed, threads
        As for the command ``scmedley tune``.
    trials, folds
        Number of settings to try, and of folds for each.
    backed, store
        Whether the cells are prepared on disk, once for all trials, and in which folder (default: in ``out``). By
        default their size and the free memory decide.

    Raises
    ------
    ScmedleyError
        Optuna is not installed, data or settings cannot be used, or the folder holds another search.
    """
    _check(method, trials)
    experiment = Experiment(
        name="tune",
        data=str(path),
        batch_key=batch_key,
        label_key=label_key,
        methods=(method,),
        settings={} if epochs is None else {method: {"max_epochs": epochs}},
        folds=folds,
        values=values,
        seeds=(seed,),
        threads=resolve_threads(threads),
    )
    with locked(out), _quiet():
        record = _read_cells(experiment, path, out, say, backed, store)
        study = _study(out)
        _search(study, experiment, out, trials, say)
        _write_results(study, experiment, record)
    return record


def _write_results(study: "Study", experiment: Experiment, record: Record) -> None:
    """Write the trials and the best settings; score them and the default on test cells."""
    out, method, best = record.path.parent, experiment.methods[0], study.best_trial
    io.write_csv(_table(study), out / TRIALS)
    with io.replacing(out / BEST) as temporary:
        temporary.write_text(_toml(method, best.params, best.value))
    record |= {"best": {"trial": best.number, "value": best.value, **best.params}}
    record["test"] = {
        name: dict(zip(("accuracy", "leak"), _scores(experiment, out, params, "test"), strict=True))
        for name, params in (("default", _default(method)), ("best", best.params))
    }
    record.write("done")


def _check(method: str, trials: int) -> None:
    tunable = [name for name, known in methods().items() if known.tuned]
    if method not in tunable:
        raise ScmedleyError(f"--method {method} cannot be tuned; choose {' or '.join(tunable)}.")
    if trials < 1:
        raise ScmedleyError(f"--trials {trials} must be at least 1.")
    if find_spec("optuna") is None:
        raise ScmedleyError("tune needs Optuna: pip install 'scmedley[tune]'")


@contextmanager
def _quiet() -> Iterator[None]:
    """Let Optuna print only warnings inside the block."""
    from optuna import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _read_cells(
    experiment: Experiment,
    path: Path,
    out: Path,
    say: Callable[[str], None],
    backed: bool | None,
    store: Path | None,
) -> Record:
    """Read, prepare and write the cells; return the record, which a resumed search must share."""
    same = {k: v for k, v in asdict(experiment).items() if k not in ("name", "data", "threads")}
    record = Record(out / SEARCH, {"settings": same})
    if not record.path.exists():
        record.check_place()  # before the cells are read
    if (place := folder_of_stores(experiment, path, out, 1, backed, store)) is not None:
        if not record.path.exists():
            record.write("running")  # it identifies the folder, so that the same command goes on
        record |= lay_out_on_disk(experiment, path, place, lambda obs: _folds(obs, experiment), say, True)
        if "input" in Record.read(record.path):  # not only begun
            record.check_place()
        record.write("running")
        return record
    adata, found = lay_out(experiment, path.name, lambda: io.read(path), say)
    record |= found
    record.check_place()
    keep(adata, record, say)
    return record


def _study(out: Path) -> "Study":
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return optuna.create_study(
        study_name="scmedley",
        storage=JournalStorage(JournalFileBackend(str(out / STUDY))),
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
        load_if_exists=True,
    )


def _search(
    study: "Study", experiment: Experiment, out: Path, trials: int, say: Callable[[str], None]
) -> None:
    """Run trials until there are ``trials``. A trial that was killed does not count and is run again."""
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    for trial in study.get_trials(states=[TrialState.RUNNING, TrialState.WAITING]):
        study.tell(trial.number, state=TrialState.FAIL)
    while True:
        n_done = len(study.get_trials(states=[TrialState.COMPLETE, TrialState.PRUNED]))
        if n_done >= trials:
            return
        # A new sampler for each trial draws the same values, also after an interruption.
        study.sampler = TPESampler(seed=experiment.seeds[0] * 100_003 + n_done)
        if n_done == 0:
            study.enqueue_trial(_default(experiment.methods[0]))
        study.optimize(lambda trial: _try(trial, experiment, out), n_trials=1)
        last = study.get_trials(deepcopy=False)[-1]
        say(f"Trial {n_done + 1} of {trials}: {_described(last)}")


def _try(trial: "Trial", experiment: Experiment, out: Path) -> float:
    import optuna

    method = experiment.methods[0]
    params: dict[str, Any] = {
        name: trial.suggest_float(name, *RANGES.get(name, WEIGHT_RANGE), log=True)
        for name in methods()[method].tuned
    }
    params["n_latent"] = trial.suggest_categorical("n_latent", LATENTS)
    params["layers"] = trial.suggest_categorical("layers", tuple(LAYERS))
    values = []
    for fold in range(experiment.folds):
        try:
            accuracy, leak = _score(experiment, out, params, fold, "validation")
        except ScmedleyError as error:
            if trial.number == 0:  # the default fails: the data cause it, not the settings
                raise
            trial.set_user_attr("reason", str(error))
            raise optuna.TrialPruned from error
        if np.isnan(accuracy) or np.isnan(leak):
            raise ScmedleyError(
                f"No label in obs[{experiment.label_key!r}] has validation cells of two batches, so batch leakage "
                "cannot be measured. Choose another label or batch column."
            )
        values.append((accuracy, leak, accuracy - max(leak, 0.0)))
        mean = np.mean(values, axis=0)
        trial.set_user_attr("accuracy", float(mean[0]))
        trial.set_user_attr("leak", float(mean[1]))
        trial.report(float(mean[2]), fold)
        if fold + 1 < experiment.folds and trial.should_prune():
            raise optuna.TrialPruned
    return float(mean[2])


def _scores(experiment: Experiment, out: Path, params: dict[str, Any], part: str) -> tuple[float, float]:
    """Return label accuracy and batch leakage on a part, mean over folds."""
    both = [_score(experiment, out, params, fold, part) for fold in range(experiment.folds)]
    accuracy, leak = np.mean(both, axis=0)
    return float(accuracy), float(leak)


def _score(
    experiment: Experiment, out: Path, params: dict[str, Any], fold: int, part: str
) -> tuple[float, float]:
    """Fit on a fold; return label accuracy and batch leakage (worst of three probes) on cells of ``part``."""
    from scmedley.evaluate.probes import batch_leaks, knn_accuracy

    method, seed = experiment.methods[0], experiment.seeds[0]
    stored = Record.read(out / SEARCH).get("store")
    place = None if stored is None else Path(stored["folder"]) / _name(fold)
    adata = _read_fold(out, experiment, fold) if place is None else read_fold(place, experiment)
    changes = experiment.settings.get(method, {}) | _changes(params)
    model = replace(experiment, settings={method: changes}).unfitted(method)
    cells = adata if place is None else reading_of(place, adata.obs, model.reads)
    reading = read_prepared(cells, model.batch_key, model.label_key, seed)
    model.fit(reading, seed=seed, threads=experiment.threads, progress=False)
    z_NP = model.get_latent_representation(reading)
    which = adata.obs[keys.SPLIT].to_numpy()
    batch, label = (adata.obs[k].cat.codes.to_numpy() for k in (experiment.batch_key, experiment.label_key))
    train, held_out = which == "train", which == part
    leaks = batch_leaks(
        z_NP[train], batch[train], label[train], z_NP[held_out], batch[held_out], label[held_out], seed=seed
    )
    worst = max(leak.value for leak in leaks.values())
    return knn_accuracy(z_NP[train], label[train], z_NP[held_out], label[held_out]), worst


def _read_fold(out: Path, experiment: Experiment, fold: int) -> AnnData:
    """Read the cells, set the parts of a fold, and choose its genes."""
    adata = read_h5ad(out / DATA)
    adata.obs[keys.SPLIT] = pd.Categorical(_parts(adata.obs, experiment, fold), PARTS)
    select_genes(adata, experiment.batch_key, experiment.n_top_genes)
    return adata


def _name(fold: int) -> str:
    return f"tune-fold{fold}"


def _folds(obs: pd.DataFrame, experiment: Experiment) -> dict[str, np.ndarray]:
    return {_name(fold): _parts(obs, experiment, fold) for fold in range(experiment.folds)}


def _parts(obs: pd.DataFrame, experiment: Experiment, fold: int) -> np.ndarray:
    """Return the part of each cell in a fold. Test cells are the same in all folds."""
    batch, label = (obs[k].cat.codes.to_numpy() for k in (experiment.batch_key, experiment.label_key))
    seed = experiment.seeds[0]
    part = np.where(rotating_folds(batch, label, n_folds=5, seed=seed)[0] == "test", "test", "train").astype(
        "<U10"
    )
    rest = np.flatnonzero(part == "train")
    inner = rotating_folds(batch[rest], label[rest], n_folds=experiment.folds, seed=seed)[fold]
    part[rest[inner == "validation"]] = "validation"
    return part


def _default(method: str) -> dict[str, Any]:
    """Return the default preset as a trial."""
    known = methods()[method]
    settings = known.preset("default")
    layers = next(name for name, sizes in LAYERS.items() if sizes == settings.hidden)
    return {w: getattr(settings, w) for w in known.tuned} | {
        "n_latent": settings.n_latent,
        "layers": layers,
    }


def _changes(params: dict[str, Any]) -> dict[str, Any]:
    """Return the changes to the preset of a trial's parameters."""
    return {k: v for k, v in params.items() if k != "layers"} | {"hidden": LAYERS[params["layers"]]}


def _table(study: "Study") -> pd.DataFrame:
    rows = [
        {"trial": t.number, "state": t.state.name.lower(), "value": t.value, **t.user_attrs, **t.params}
        for t in study.get_trials(deepcopy=False)
    ]
    return pd.DataFrame(rows)


def _described(trial: "FrozenTrial") -> str:
    if "reason" in trial.user_attrs:
        return f"failed: {trial.user_attrs['reason']}"
    scores = (
        f"label accuracy {trial.user_attrs['accuracy']:.3f}, batch leakage {trial.user_attrs['leak']:.3f}"
    )
    named = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in trial.params.items())
    return f"{scores} ({named})" + ("" if trial.state.name == "COMPLETE" else ", stopped early")


def _toml(method: str, params: dict[str, Any], value: float | None) -> str:
    lines = [f"# Found by scmedley tune; label accuracy minus batch leakage on validation cells: {value:.3f}"]
    lines.append(f"[settings.{method}]")
    for name, found in _changes(params).items():
        lines.append(f"{name} = {list(found) if isinstance(found, tuple) else found!r}")
    return "\n".join(lines) + "\n"
