"""Experiments: what is compared, that finished fits are kept, and that a stop changes no bit."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, concat

from scmedley.__main__ import main
from scmedley.data.differences import trained_on
from scmedley.errors import ScmedleyError
from scmedley.evaluate.counterfactual import BASELINES, CEILING
from scmedley.evaluate.probes import PROBES
from scmedley.experiment import Experiment, grid, read_config
from scmedley.experiment import cells as cells_module
from scmedley.experiment.cells import parts
from scmedley.experiment.config import NULL
from scmedley.experiment.grid import run
from scmedley.experiment.tables import findings, read_table, summarise
from scmedley.experiment.task import BASELINES as NO_NETWORK
from scmedley.experiment.task import Task, about, fingerprint, tasks
from scmedley.runs.folder import CHECKPOINTS, DATA, EXPERIMENT, LATENT, PREDICTED, SCORES, TASK, TASKS
from scmedley.runs.record import Record
from tiny import nested_design

SMALL = {"hidden": (16, 8), "max_epochs": 2, "batch_size": 32}
TABLES = ("scores.csv", "summary.csv", "history.csv", "classified.csv", "classified_summary.csv")


def six_donors() -> AnnData:
    """The tiny design twice, 3 donors healthy and 3 ill; a label with a name that must be escaped."""
    halves = [nested_design(seed=seed) for seed in (0, 1)]
    halves[1].obs["donor"] = halves[1].obs["donor"].cat.rename_categories(["d4", "d5", "d6"])
    adata = concat(halves, index_unique="-")
    adata.obs["condition"] = pd.Categorical(
        np.where(adata.obs["donor"].isin(["d1", "d2", "d4"]), "ill", "healthy")
    )
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories({"T": "<script>T"})
    return adata


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write them."""
    path = tmp_path_factory.mktemp("data") / "cells.h5ad"
    six_donors().write_h5ad(path)
    return path


def small(cells: Path, **changes) -> Experiment:
    """Three folds, a network with and one without the batch, and the null, in seconds."""
    given = {
        "name": "tiny",
        "data": str(cells),
        "batch_key": "donor",
        "targets": ("condition",),
        "methods": ("PCA", "FE", "RE", NULL),
        "settings": {"FE": SMALL | {"n_clusters": 8}, "RE": SMALL | {"weights": "auto"}},
        "splits": ("cells", "donors"),
        "folds": 3,
        "thorough": False,
        "n_latent": 4,
        "min_genes": 5,
        "pair_cells": 10,
    }
    return Experiment(**{**given, **changes})


@pytest.fixture(scope="module")
def done(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The experiment, done in one go in this process."""
    out = tmp_path_factory.mktemp("experiment") / "out"
    run(small(cells), out, jobs=1, say=lambda _: None, progress=False)
    return out


def same(one: Path, other: Path) -> None:
    """Compare tables and latents, byte by byte."""
    for name in TABLES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    latents = sorted(p.relative_to(one) for p in one.glob(f"tasks/*/{LATENT}"))
    assert latents
    for path in latents:
        assert (one / path).read_bytes() == (other / path).read_bytes(), path


def test_tables_hold_every_fit_with_nulls_and_both_kinds_of_holding_out(done: Path) -> None:
    scores = pd.read_csv(done / "scores.csv")
    assert set(scores.part) == {"test", "validation", "held-out donors"}
    leak = scores[(scores.score == "kNN leak") & (scores.part == "test") & (scores.of == "batch")]
    assert leak.groupby("method").size().to_dict() == dict.fromkeys(("PCA", "FE", "RE", NULL), 3)
    assert {"RE", "RE, adapted"} <= set(scores[scores.split == "donors"].method)
    read = pd.read_csv(done / "classified.csv")
    assert set(read.target) == {"cell_type", "condition"}
    embeddings = set(read[read.target == "condition"].embedding)
    assert {"PCA", "FE + RE", f"FE + {NULL}", "RE", NULL, "composition only"} <= embeddings
    counted = pd.read_csv(done / "classified_summary.csv").groupby("held_out")["n_donors"]
    assert counted.max()["donors"] == 6  # each donor once; with cells held out none is counted
    assert counted.count()["cells"] == 0
    leaking = read[(read.target == "condition") & (read.held_out == "cells")]
    assert leaking.caution.str.contains("leaks").all()
    assert not read[read.held_out == "donors"].caution.fillna("").str.contains("leaks").any()
    history = pd.read_csv(done / "history.csv")
    whole = history[history.term == "total"].set_index(["split", "fold", "method", "part", "epoch"]).value
    terms = history[(history.term != "total") & history.weighted.notna()]
    summed = terms.groupby(["split", "fold", "method", "part", "epoch"]).weighted.sum()
    # While training, the KL's weight changes with the error: a product of means is near to a mean of products.
    for part, room in (("validation", 1e-5), ("train", 0.05)):
        one = summed.xs(part, level="part")
        np.testing.assert_allclose(one, whole.xs(part, level="part").loc[one.index], rtol=room)


def test_held_out_donors_are_in_no_fit(done: Path, cells: Path) -> None:
    obs = six_donors().obs
    for fold in range(3):
        part = parts(obs, small(cells), "donors", fold)
        held_out = set(obs.donor[part == "test"])
        assert held_out
        assert not held_out & set(obs.donor[part != "test"])
        assert {"train", "validation"} <= set(part)


def test_the_page_escapes_names_and_shows_the_nulls(done: Path) -> None:
    page = (done / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script" in page or "script" not in page
    assert "leaks" in page
    assert "null" in page


@pytest.mark.parametrize("keep", ["best", "last"])
def test_only_a_network_that_keeps_its_best_epoch_can_still_be_improving(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str
) -> None:
    one = small(cells)
    monkeypatch.setattr(grid, "about", lambda *_: {"fitted": {"epochs": 2, "best_epoch": 2, "keep": keep}})
    said = grid._unfinished(one, tmp_path, tasks(one)[0])
    assert any(line.startswith("FE was still improving when max_epochs = 2") for line in said) == (
        keep == "best"
    )


def test_a_changed_setting_makes_only_its_own_fits_anew(cells: Path, tmp_path: Path) -> None:
    one = small(cells)
    fits, classifications = tasks(one)

    def mark(experiment: Experiment, task: Task, data: str = "") -> str:
        return fingerprint(tmp_path, experiment, task, data, {})

    changed = replace(one, settings=one.settings | {"FE": SMALL | {"offset_weight": 5.0}})
    assert {t.method for t in fits if mark(one, t) != mark(changed, t)} == {"FE"}
    assert all(mark(one, t) != mark(changed, t) for t in classifications)
    assert mark(one, fits[0], "a") != mark(one, fits[0], "b")
    assert mark(one, fits[0]) == mark(replace(one, seeds=(0, 1)), fits[0])
    assert mark(one, fits[0]) != mark(replace(one, seeds=(1, 0)), fits[0])  # other folds
    for t in fits:  # donors are held out by the first target
        assert (mark(one, t) != mark(replace(one, targets=()), t)) == (t.split == "donors")
    held_out = replace(one, splits=("cells", "pairs"))
    for t in tasks(held_out)[0]:  # what is only of pairs changes nothing else, and the other way round
        for changes, splits in (
            ({"pair_cells": 5, "pair_batches": ("d1",)}, ("pairs",)),
            ({"folds": 4}, ("cells",)),
            ({"pairs": 2}, ()),
        ):
            assert (mark(held_out, t) != mark(replace(held_out, **changes), t)) == (t.split in splits)
    before = mark(one, classifications[0])
    folder = tmp_path / TASKS / fits[0].name
    folder.mkdir(parents=True)
    (folder / TASK).write_text('{"status": "done", "fingerprint": "x"}')
    assert mark(one, classifications[0]) != before  # a fit that failed before has been made


def test_killed_and_gone_on_with_other_settings(cells: Path, tmp_path: Path) -> None:
    one = small(cells, methods=("FE",), splits=("cells",), classify=False, targets=(), settings={"FE": SMALL})
    out = tmp_path / "out"
    run(one, out, jobs=1, say=lambda _: None, progress=False)
    fit = tasks(one)[0][0]
    left = out / CHECKPOINTS / f"{fit.name}.safetensors"
    left.write_bytes(b"of other settings")
    (out / TASKS / fit.name / TASK).unlink()
    (out / ".data.h5ad.1234.h5ad").write_bytes(b"half")
    run(one, out, jobs=1, say=lambda _: None, progress=False)
    assert not left.exists()
    assert not list(out.glob(".data*"))


def test_killed_twice_and_resumed_to_the_same_bits(done: Path, cells: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        f"from test_experiment import small\n\n\ndef config():\n    return small({str(cells)!r})\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-m", "scmedley", "experiment", str(recipe), "--out", str(out), "--jobs", "2"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    finished = 0
    for least, how in ((2, signal.SIGKILL), (9, signal.SIGINT)):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        deadline = time.monotonic() + 600
        while process.poll() is None and len(list(out.glob("tasks/[!.]*"))) < least:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert process.poll() is None, process.stderr.read()
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        workers = workers.read_text().split() if workers.exists() else []
        process.send_signal(how)
        _, said = process.communicate()
        assert process.returncode == (130 if how == signal.SIGINT else -how), said
        deadline = time.monotonic() + 30
        while any(Path(f"/proc/{pid}").exists() for pid in workers):
            assert time.monotonic() < deadline, "a worker goes on without the process that waits for it"
            time.sleep(0.1)
        finished = len(list(out.glob("tasks/[!.]*")))
    assert finished < sum(map(len, tasks(small(cells))))
    run(small(cells), out, jobs=1, say=lambda _: None, progress=False)
    same(done, out)


def test_a_dask_cluster_gives_the_same_tables(done: Path, cells: Path, tmp_path: Path) -> None:
    import distributed

    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, dashboard_address=":0", host="127.0.0.1"
    ) as cluster:
        run(
            small(cells),
            tmp_path / "out",
            scheduler=cluster.scheduler_address,
            say=lambda _: None,
            progress=False,
        )
    same(done, tmp_path / "out")


def test_a_scheduler_that_is_gone_leaves_nothing_behind(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "SCHEDULER_TIMEOUT", "0.2s")
    with pytest.raises(ScmedleyError, match=r"No Dask scheduler answers at tcp://127\.0\.0\.1:1 "):
        run(small(cells), tmp_path / "out", scheduler="tcp://127.0.0.1:1", say=lambda _: None)
    assert not list((tmp_path / "out").glob("[!.]*"))


def test_what_fails_is_told_and_costs_nothing_else(cells: Path, tmp_path: Path) -> None:
    tried = small(cells, methods=("PCA", "X_absent"), splits=("cells",), targets=(), settings={})
    record = run(tried, tmp_path / "out", jobs=1, say=lambda _: None, progress=False)
    assert record["status"] == "done"
    fits = pd.read_csv(tmp_path / "out" / "fits.csv")
    assert set(fits[fits.status == "failed"].method) == {"X_absent"}
    assert "X_absent" in (tmp_path / "out" / "report.html").read_text()
    broken = replace(tried, methods=("AE",), settings={"AE": SMALL | {"learning_rate": 1e30}})
    with pytest.raises(
        ScmedleyError, match=r"3 of 3 fits failed, the first, cells-fold0-seed0-AE: .*learning rate"
    ):
        run(broken, tmp_path / "out", jobs=1, say=lambda _: None, progress=False)


def test_intervals_are_over_folds_and_seeds_are_averaged_first() -> None:
    table = pd.DataFrame(
        {"method": "a", "fold": [0, 0, 1, 1], "seed": [0, 1, 0, 1], "value": [0.0, 2.0, 3.0, 3.0]}
    )
    row = summarise(table, ["method"], ["value"]).iloc[0]
    assert (row.value, row.n_folds) == (2.0, 2)
    half = 12.706204736 * np.std([1, 3], ddof=1) / np.sqrt(2)
    np.testing.assert_allclose([row.value_low, row.value_high], [2 - half, 2 + half])


def test_labels_may_be_called_like_missing_values(tmp_path: Path) -> None:
    names = ["NA", "None", "1", "T"]
    pd.DataFrame({"label": names, "batch": "nan", "r2": [0.5, np.nan, 1.0, 2.0]}).to_csv(tmp_path / "t.csv")
    table = read_table(tmp_path / "t.csv")
    assert table.label.tolist() == names
    assert set(table.batch) == {"nan"}
    assert table.r2.isna().tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("blind", "words"),
    [
        ((), "RE separates batches of .* seen by all of the probes"),
        (("network",), "not shown that RE .* seen by kNN and logistic regression, but not by network"),
        (PROBES, "not shown that RE .* seen by none of the probes"),
    ],
)
def test_random_effects_separate_batches_only_where_all_probes_agree(blind: tuple, words: str) -> None:
    rows = [
        {
            "score": f"{probe} leak",
            "fold": fold,
            "method": method,
            "null": 0.1,
            "value": 0.1 + leak + fold / 100,
        }
        for probe in PROBES
        for fold in range(3)
        for method, leak in (("RE", 0.1 if probe in blind else 0.5), (NULL, 0.1))
    ]
    table = pd.DataFrame(rows).assign(split="cells", part="test", of="batch", seed=0)
    summary = summarise(table, ["split", "part", "score", "of", "method"], ["value", "null"])
    (said,) = findings(table, summary)
    assert re.search(words, said)
    assert "logistic regression " + ("0.11 and 0.11" if blind == PROBES else "0.51 and 0.11") in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ("PCA", "PCE")}, "no method 'PCE'"),
        ({"methods": ()}, "at least one"),
        ({"folds": 2}, "at least 3"),
        ({"pairs": 0}, "at least 1"),
        ({"splits": ("pairs",), "methods": ("PCA", "AE")}, "none of the methods has batch effects"),
        (
            {"splits": ("pairs",), "methods": ("FE",), "preset": "paper"},
            "Add 'FE' or 'RE' or 'VAE' or 'DeepBID' to the methods, with the default preset",
        ),
        ({"pair_batches": ("a", "a")}, "none twice"),
        ({"splits": ("genes",)}, "none of"),
        ({"seeds": (0, 0)}, "none twice"),
        ({"seeds": (-1,)}, "seed -1"),
        ({"seeds": (True,)}, "must hold int only"),
        ({"settings": {"FE": {"mse": 1}}}, "mse"),
        ({"preset": "papers"}, "no preset"),
        ({"folds": "five"}, "of type int"),
        ({"methods": (1,)}, "str only"),
        ({"settings": {"PCA": {}}}, "no use"),
        ({"batch_key": "~ a + (1 | b)"}, "is a formula"),
        ({"targets": ("cell_type",)}, "other columns"),
        ({"targets": ("sex", "sex")}, "none twice"),
        ({"precision": "float7"}, "none of"),
        ({"values": "log3"}, "values = 'log3' is none of"),
        ({"settings": {NULL: {}}}, "no use"),
        ({"published": "Hearts"}, "none of .*Heart"),
    ],
)
def test_wrong_settings_say_so_at_once(changes: dict, words: str) -> None:
    with pytest.raises(ScmedleyError, match=words):
        Experiment(**{"name": "x", "data": "pancreas", **changes})


def test_recipes_of_python_and_toml(tmp_path: Path) -> None:
    toml = tmp_path / "one.toml"
    toml.write_text('name = "x"\ndata = "pancreas"\nmethods = ["FE"]\n[settings.FE]\nhidden = [8, 4]\n')
    found = read_config(toml)
    assert found.models()["FE"].hidden == (8, 4)
    assert read_config(toml, folds=4).folds == 4
    for text, words in (
        ("name = 1", "lacks 'data'"),
        ('data = "x"\nnam = "y"', "no 'nam'"),
        ("name = ", "nor TOML"),
        ('name = "x"\ndata = "y"\nsettings = 3', "no settings of a network"),
    ):
        toml.write_text(text)
        with pytest.raises(ScmedleyError, match=words):
            read_config(toml)
    recipe = tmp_path / "two.py"
    for text, words in (
        ("x = 1", "no function config"),
        ("def config():\n    return 1 / 0", "ZeroDivisionError"),
        ("raise SystemExit(0)", "SystemExit"),
    ):
        recipe.write_text(text)
        with pytest.raises(ScmedleyError, match=words):
            read_config(recipe)
    for recipe in sorted((Path(__file__).parents[1] / "recipes").glob("*.py")):
        if "def config()" not in recipe.read_text():  # a script of its own
            continue
        assert isinstance(read_config(recipe), Experiment)


def test_the_command_says_what_is_wrong_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (
        ["experiment", str(tmp_path / "none.py"), "--out", str(tmp_path / "out")],
        ["experiment", "recipes/aml.py", "--out", str(tmp_path / "out")],
    ):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_a_task_that_lost_a_file_is_made_again_and_old_tables_go(cells: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    one = small(cells, methods=("PCA",), splits=("cells",), settings={})
    run(one, out, jobs=1, say=lambda _: None, progress=False)
    before = (out / "summary.csv").read_bytes()
    assert (out / "classified.csv").exists()
    first, second, third = (out / TASKS / t.name for t in tasks(one)[0])
    (first / SCORES).unlink()
    (second / LATENT).write_bytes(b"cut")
    (third / TASK).write_text("[]")
    run(replace(one, classify=False), out, jobs=1, say=lambda _: None, progress=False)
    assert (out / "summary.csv").read_bytes() == before
    assert not (out / "classified.csv").exists()


def test_the_users_files_are_left_alone(cells: Path, tmp_path: Path) -> None:
    out = tmp_path / "project"
    out.mkdir()
    mine = out / "data.h5ad"
    mine.write_bytes(cells.read_bytes())
    for record in (None, '{"mine": 1}', "[]"):
        if record:
            (out / "experiment.json").write_text(record)
        with pytest.raises(ScmedleyError, match=r"not empty|not written by scmedley"):
            run(small(mine), out, jobs=1, say=lambda _: None, progress=False)
    (out / "experiment.json").write_text('{"experiment": {}}')
    with pytest.raises(ScmedleyError, match="results only"):
        run(small(mine), out, jobs=1, say=lambda _: None, progress=False)
    assert mine.read_bytes() == cells.read_bytes()


def test_methods_of_like_names_have_folders_of_their_own() -> None:
    names = {Task("cells", 0, 0, method).name for method in ("X_a-b", "X_a b", "X_" + "a" * 300, "RE", NULL)}
    assert len(names) == 5
    assert max(map(len, names)) < 120


def test_a_spoilt_record_means_the_fit_is_made_again(tmp_path: Path) -> None:
    task = Task("cells", 0, 0, "PCA")
    (tmp_path / "tasks" / task.name).mkdir(parents=True)
    (tmp_path / "tasks" / task.name / TASK).write_text(json.dumps({"status": "done"})[:-3])
    assert about(tmp_path, task) == {}


def test_held_out_pairs_are_predicted_in_no_fit_seen_and_resumed_to_the_same_bits(
    cells: Path, tmp_path: Path
) -> None:
    tried = small(
        cells,
        methods=("PCA", "FE"),
        splits=("pairs",),
        pairs=2,
        targets=(),
        seeds=(0, 1),
        settings={"FE": SMALL},
    )
    obs = six_donors().obs
    pair = cells_module.pairs(obs, tried)
    for fold, (batch, label) in enumerate(pair):
        held = (obs.donor.cat.codes == batch) & (obs.cell_type.cat.codes == label)
        assert ((parts(obs, tried, "pairs", fold) == "test") == held).all()
    out = tmp_path / "out"
    record = run(tried, out, jobs=1, say=lambda _: None, progress=False)
    assert not (out / "scores.csv").exists()
    made = (out / "counterfactuals.csv").read_bytes()
    table = pd.read_csv(out / "counterfactuals.csv")
    names = {(obs.donor.cat.categories[b], obs.cell_type.cat.categories[k]) for b, k in pair}
    assert set(zip(table.batch, table.label, strict=True)) == names
    rows = table.groupby("method").size().to_dict()
    assert rows == {"FE": 4} | dict.fromkeys((*BASELINES, CEILING), 2)  # baselines: of one seed
    assert (table[table.method == "no change"].r2 == 0).all()
    assert table[table.method == "additive"].r2.notna().all()
    assert (table.n_target == 15).all()
    assert (table.n_source == 5 * 15).all()
    summary = pd.read_csv(out / "counterfactuals_summary.csv").set_index("method")
    assert set(summary.index) == set(rows)
    assert set(summary.verdict.dropna()) <= {"better", "ties", "worse"}
    assert summary.verdict.notna().sum() == 1
    assert "the best baseline" in record["findings"][0]
    page = (out / "report.html").read_text()
    assert "Held-out pairs" in page
    assert "shrunk additive" in page
    assert "<script" not in page
    lost = next((out / "tasks").glob("pairs-fold1-seed1-FE*"))
    (lost / PREDICTED).unlink()
    kept = {p: p.stat().st_mtime_ns for p in out.glob(f"tasks/*/{PREDICTED}")}
    run(replace(tried, folds=4), out, jobs=1, say=lambda _: None, progress=False)
    assert (out / "counterfactuals.csv").read_bytes() == made
    assert {p: p.stat().st_mtime_ns for p in kept} == kept  # more folds of cells change no pair


def test_what_the_values_were_is_said_recorded_and_known_to_each_fit(tmp_path: Path) -> None:
    adata = six_donors()
    adata.X = np.log2(adata.X.toarray() * 2.5 + 1)  # no whole numbers, no total: nobody could know
    adata.var["feature_types"] = ["Antibody Capture"] + ["Gene Expression"] * (adata.n_vars - 1)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    said: list[str] = []
    tried, out = small(tmp_path / "cells.h5ad", values="log2"), tmp_path / "out"
    out.mkdir()
    record = Record(out / EXPERIMENT, {})
    grid._prepare_cells(record, tried, None, said.append, progress=False, jobs=1, backed=False, store=None)
    assert record["prepare"]["values"]["kind"] == "log2"
    assert record["prepare"]["values"]["reason"] in said
    assert any("Antibody Capture" in line for line in record["warnings"])  # of reading
    assert {f"Warning: {line}" for line in record["warnings"]} <= set(said)
    held = cells_module.read_cells(out / DATA, tried, "cells", 0)
    assert trained_on(held, held.layers["log1p_cp10k"])["kind"] == "log2"
    assert held.uns["scmedley"]["label_key"] == "cell_type"


def test_pairs_may_be_of_named_batches(cells: Path) -> None:
    obs = six_donors().obs
    chosen = cells_module.pairs(obs, small(cells, pairs=3, pair_batches=("d5",)))
    assert {obs.donor.cat.categories[batch] for batch, _ in chosen} == {"d5"}
    assert len(set(chosen)) == 3
    more = cells_module.pairs(obs, small(cells, pairs=4, pair_batches=("d5",)))
    assert more[:3] == chosen
    with pytest.raises(ScmedleyError, match=r"pair_batches names 'd9', but obs\['donor'\] has 'd1'"):
        cells_module.pairs(obs, small(cells, pair_batches=("d9",)))


def test_a_network_that_is_told_permuted_batches_takes_part_in_pairs(cells: Path) -> None:
    tried = small(cells, methods=("PCA", "AE", "FE", NULL), settings={}, splits=("cells", "pairs"))
    fits, classifications = tasks(tried)
    assert {t.method for t in fits if t.split == "pairs"} == {"FE", NULL, NO_NETWORK}
    assert {t.split for t in classifications} == {"cells"}
