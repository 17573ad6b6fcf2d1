"""A run that is cut short, by whatever: nothing half-written, and the same bits when it goes on."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch

from running import SMALL, Shell, some_cells, tree, without_drawing
from scmedley import keys
from scmedley.device import resolve_threads
from scmedley.errors import ScmedleyError
from scmedley.io import writing
from scmedley.models import calibrate
from scmedley.pipeline import preparing, scoring, stages
from scmedley.report import build
from scmedley.runs import folder as run_folder
from scmedley.runs.record import Record
from scmedley.train import loop
from test_report import page

LABEL = ("--label", "cell_type")
PATHS = filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH")))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(PATHS)}
TABLES = ("scores.csv", "gene_shifts.csv", "counterfactual_check.csv", "history.csv")


@pytest.fixture
def shell(capsys, monkeypatch):
    without_drawing(monkeypatch)
    return Shell(capsys)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "cells.h5ad"
    some_cells().write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def _kept() -> dict[str, Path]:
    return {}


@pytest.fixture
def whole(shell, data, _kept, tmp_path_factory) -> Path:
    """A run without any interruption, made once: look, do not change."""
    if "run" not in _kept:
        out = tmp_path_factory.mktemp("whole") / "run"
        shell.well("run", data, *LABEL, "--out", out, "--quiet", *SMALL)
        _kept["run"] = out
    return _kept["run"]


def assert_same_results(one: Path, other: Path) -> None:
    """The same bits in latents, scores, tables and weights."""
    for name in TABLES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    for part in ("fixed", "random"):
        weights = Path("model") / part / "weights.safetensors"
        assert (one / weights).read_bytes() == (other / weights).read_bytes(), weights
    a, b = (ad.read_h5ad(folder / "integrated.h5ad") for folder in (one, other))
    for key in (keys.FIXED, keys.RANDOM, keys.NULL, keys.PCA):
        np.testing.assert_array_equal(a.obsm[key], b.obsm[key])


def half_written(folder: Path) -> list[str]:
    """Temporary files that replacing() should have removed."""
    hidden = (".lock", ".checkpoints")
    return [p.name for p in folder.rglob(".*") if p.name not in hidden]


def test_same_seed_same_bytes(shell, data, whole, tmp_path):
    shell.well("run", data, *LABEL, "--out", tmp_path / "run", "--quiet", *SMALL)
    assert_same_results(whole, tmp_path / "run")


def test_another_seed_other_latents(shell, data, whole, tmp_path):
    shell.well("fit", data, *LABEL, "--out", tmp_path / "run", "--quiet", *SMALL, "--seed", "1")
    weights = "model/fixed/weights.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() != (whole / weights).read_bytes()


def test_what_is_wrong_after_the_fit_is_printed_too(shell, data, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate, "learn", lambda *_: None)
    ran = shell("fit", data, *LABEL, "--out", tmp_path / "run", *SMALL, "--no-null")
    assert ran.code == 0, ran.err
    warnings = json.loads((tmp_path / "run" / "run.json").read_text())["warnings"]
    for start in (
        "Intervals of shifts are not calibrated",
        "Training of the random network was still improving",
    ):
        (sentence,) = [warning for warning in warnings if warning.startswith(start)]
        assert ran.out.count(f"Warning: {sentence}") == 1
    assert not any(
        "fixed network was still improving" in warning for warning in warnings
    )  # keeps its last epoch


def test_labels_are_learnt_when_asked_for(shell, data, whole, tmp_path):
    out = tmp_path / "run"
    shell.well("fit", data, *LABEL, "--learn-labels", "--out", out, "--quiet", *SMALL)
    record = json.loads((out / "run.json").read_text())
    assert any("trained on the labels of the training cells" in warning for warning in record["warnings"])
    assert "label" in (out / "history.csv").read_text()
    model, cells = stages.read_model(out), ad.read_h5ad(out / "integrated.h5ad")
    assert set(model.predict(cells).columns) == set(cells.obs["cell_type"])
    without = json.loads((whole / "run.json").read_text())
    assert not any("trained on the labels" in warning for warning in without["warnings"])
    assert stages.read_model(whole).label_key is None
    for options, why in (([], "needs --label"), ([*LABEL, "--fixed", "X_mine"], "no network to train")):
        said = shell("fit", data, *options, "--learn-labels", "--out", tmp_path / "other", *SMALL)
        assert why in said.error
    assert not (tmp_path / "other").exists()


# --- killed -------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from scmedley.__main__ import main
from scmedley.train import checkpoint, loop

loop.CHECKPOINT_SECONDS = 0.0
save = checkpoint.save

def save_and_die(path, network, best, optimisers, state):
    save(path, network, best, optimisers, state)
    if path.name == "random.safetensors" and state["epoch"] == 1:
        os.kill(os.getpid(), signal.SIGKILL)

checkpoint.save = save_and_die
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def killed(data, tmp_path_factory) -> Path:
    """What kill -9 leaves in the second epoch of the second network. Copy it."""
    out = tmp_path_factory.mktemp("killed") / "run"
    command = [sys.executable, "-c", KILLED, "run", data, *LABEL, "--out", out, "--quiet", *SMALL]
    ran = subprocess.run(list(map(str, command)), env=ENVIRONMENT, capture_output=True, timeout=120)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    return out


@pytest.fixture
def unfinished(killed, tmp_path) -> Path:
    """A copy of the killed run, with the half of a file that was being written."""
    shutil.copytree(killed, tmp_path / "run")
    (tmp_path / "run" / ".integrated.h5ad.0123abcd.h5ad").write_text("half")
    return tmp_path / "run"


def test_killed_run_resumes_to_the_same_bits(shell, data, whole, unfinished, monkeypatch):
    loaded = []
    restore = loop.checkpoint.restore
    monkeypatch.setattr(
        loop.checkpoint, "restore", lambda path, *rest: (loaded.append(path.name), restore(path, *rest))[1]
    )
    assert {p.name for p in (unfinished / ".checkpoints").iterdir()} == {
        "fixed.safetensors",
        "random.safetensors",
    }
    shell.well("run", data, *LABEL, "--out", unfinished, "--quiet", "--no-explorer", *SMALL)
    assert loaded == ["fixed.safetensors", "random.safetensors"]
    assert "ex-data" not in (unfinished / "report.html").read_text(encoding="utf-8")  # no other run for that
    assert_same_results(whole, unfinished)
    assert {p.name for p in unfinished.iterdir()} == {p.name for p in whole.iterdir()}
    assert "s of computing since it was resumed" in page(unfinished).text
    assert "since it was resumed" not in page(whole).text


def test_unfinished_run_with_other_settings_is_refused(shell, data, unfinished, tmp_path):
    before = tree(unfinished)
    run = ("run", data, *LABEL, "--out", unfinished, *SMALL)
    assert "another --seed." in shell(*run, "--seed", "7").error
    assert "another --min-cells." in shell(*run, "--min-cells", "4").error
    assert "another command." in shell("fit", *run[1:]).error
    some_cells(100).write_h5ad(tmp_path / "cells.h5ad")
    assert "another input." in shell("run", tmp_path / "cells.h5ad", *run[2:]).error
    assert "does not exist" in shell("run", tmp_path / "nowhere.h5ad", *run[2:]).error
    for command in ("evaluate", "report"):
        assert "not finished: repeat its command" in shell(command, unfinished).error
    assert tree(unfinished) == before
    shell.well(*run, "--seed", "7", "--overwrite", "--quiet")
    assert json.loads((unfinished / "run.json").read_text())["config"]["seed"] == 7


def test_finished_run_is_refused_and_overwrite_takes_only_what_a_run_wrote(shell, data, whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    (out / "notes.txt").write_text("mine")
    before = tree(out)
    run = ("run", data, *LABEL, "--out", out, *SMALL)
    assert "finished run" in shell(*run).error
    assert "not a column" in shell(*run, "--overwrite", "--batch", "nothing").error
    assert tree(out) == before
    shell.well("fit", data, "--out", out, "--overwrite", "--quiet", *SMALL)
    assert {p.name for p in out.iterdir()} == {
        *("notes.txt", ".lock", "integrated.h5ad", "model", "history.csv", "run.json", "versions.json")
    }


def test_two_at_once_the_second_is_refused(shell, data, whole, tmp_path):
    with run_folder.locked(whole):
        for command in (["run", data, "--out", whole], ["report", whole], ["evaluate", whole]):
            assert "Another scmedley process is writing" in shell(*command).error
    with run_folder.locked(tmp_path / "new"):
        assert "Another scmedley process is writing" in shell("run", data, "--out", tmp_path / "new").error
        assert (tmp_path / "new" / ".lock").exists()
    assert tree(tmp_path) == {}


# --- Ctrl-C -------------------------------------------------------------------------------------------------


def test_ctrl_c_in_training_keeps_the_best_epoch_and_goes_on(shell, data, monkeypatch, tmp_path):
    evaluate, calls = loop.evaluate, []

    def press(*arguments):
        calls.append(1)
        if len(calls) == 2:  # the second epoch of the first network
            signal.raise_signal(signal.SIGINT)
        return evaluate(*arguments)

    monkeypatch.setattr(loop, "evaluate", press)
    out = tmp_path / "run"
    said = shell.well("run", data, *LABEL, "--out", out, "--quiet", *SMALL)
    assert said == ""
    record = json.loads((out / "run.json").read_text())
    assert {n: f["stopped"] for n, f in record["networks"].items()} == {
        "fixed": "interrupted",
        "random": "last epoch",
        "random, permuted batches": "last epoch",
    }
    (told,) = [w for w in record["warnings"] if "interrupted" in w]
    assert "fixed network was interrupted after epoch 1. Its last finished epoch, 1, is used" in told
    assert told in page(out).text


def test_ctrl_c_in_the_first_epoch_ends_and_the_same_command_resumes(
    shell, data, whole, monkeypatch, tmp_path
):
    run = ("run", data, *LABEL, "--out", tmp_path / "run", "--quiet", *SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", lambda *_: signal.raise_signal(signal.SIGINT))
        said = shell(*run)
    assert said.code == 130
    assert "same command resumes" in said.error
    shell.well(*run)
    assert_same_results(whole, tmp_path / "run")


def test_ctrl_c_before_training_leaves_nothing(shell, data, monkeypatch, tmp_path):
    monkeypatch.setattr(preparing, "prepare", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    said = shell("run", data, "--out", tmp_path / "run")
    assert said.code == 130
    assert "interrupted" in said.error
    assert tree(tmp_path) == {}


# --- a report that fails ------------------------------------------------------------------------------------


def test_done_is_written_after_the_report_and_one_that_fails_costs_no_fit(
    shell, data, whole, monkeypatch, tmp_path
):
    out = tmp_path / "run"
    run = ("run", data, *LABEL, "--out", out, "--quiet", *SMALL)

    def fails(*_, **__):
        assert json.loads((out / "run.json").read_text())["status"] == "scored"
        raise RuntimeError("no picture")

    with monkeypatch.context() as patch:
        patch.setattr("scmedley.report.write_report", fails)
        assert "no picture" in shell(*run).error
    assert not (out / "report.html").exists()
    shutil.copytree(out, again := tmp_path / "again")
    shell.well("report", out)  # what is missing alone
    assert json.loads((out / "run.json").read_text())["status"] == "done"
    assert "Run: done" in (out / "report.html").read_text()  # its status while the report was written
    assert_same_results(whole, out)
    fitted = []
    monkeypatch.setattr(loop, "evaluate", lambda *_: fitted.append(1))
    shell.well(*run[:5], again, *run[6:])
    assert not fitted
    assert_same_results(whole, again)
    assert {p.name for p in again.iterdir()} == {p.name for p in whole.iterdir()}


def test_a_folder_whose_new_scores_are_half_written_is_not_finished(shell, whole, monkeypatch, tmp_path):
    shutil.copytree(whole, out := tmp_path / "run")

    def fails(*_, **__):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "gene_shifts", fails)
        assert "killed" in shell("evaluate", out).error
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "fitted"
    assert "verdicts" not in record
    assert "not finished" in shell("report", out).error
    shell.well("evaluate", out)
    assert json.loads((out / "run.json").read_text())["status"] == "done"
    assert_same_results(whole, out)


# --- full disk ----------------------------------------------------------------------------------------------

WRITTEN = (
    "run.json",
    "integrated.h5ad",
    "fixed.safetensors",
    "model",
    "null.safetensors",
    "history.csv",
    "scores.csv",
    "label_accuracy.csv",
    "counterfactual_check.csv",
    "genomap.json",
    "versions.json",
    "report.html",
)


def test_disk_full_at_every_file_in_turn(shell, data, whole, monkeypatch, tmp_path):
    """Each time one file cannot be written; the same command goes on from there, at last to the same bits."""
    take_place = writing.take_place
    out = tmp_path / "run"
    run = ("run", data, *LABEL, "--out", out, "--quiet", *SMALL)
    for name in WRITTEN:

        def full(new, path, name=name):
            if path.name == name:
                raise OSError(errno.ENOSPC, "No space left on device")
            take_place(new, path)

        monkeypatch.setattr(writing, "take_place", full)
        error = shell(*run).error
        assert "The disk is full" in error
        assert f"{name} was not written" in error
        assert not (out / name).exists()
        assert half_written(tmp_path) == []
        if name == "run.json":
            assert tree(tmp_path) == {}
    monkeypatch.setattr(writing, "take_place", take_place)
    shell.well(*run)
    assert_same_results(whole, out)


def test_disk_full_when_the_results_are_added(shell, data, whole, monkeypatch, tmp_path):
    """The cells of before the training stay; the same command goes on."""
    take_place, out, times = writing.take_place, tmp_path / "run", []

    def full(new, path):
        times.append(path.name)
        if times.count("integrated.h5ad") == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        take_place(new, path)

    run = ("run", data, *LABEL, "--out", out, "--quiet", *SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(writing, "take_place", full)
        assert "integrated.h5ad was not written" in shell(*run).error
    cells = ad.read_h5ad(out / "integrated.h5ad")
    assert keys.FIXED not in cells.obsm
    assert keys.SPLIT in cells.obs
    assert half_written(tmp_path) == []
    assert "not finished" in shell("evaluate", out).error
    shell.well(*run)
    assert_same_results(whole, out)


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 64 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting is not permitted")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_really_full_disk(shell, data, whole, tiny_disk):
    """The checkpoint, h5ad and Zarr, by the libraries that write them; h5py prints to stderr of its own."""
    for command in (
        ("embed", whole, "--input", data, "--out", tiny_disk / "e.h5ad"),
        ("project", whole, "--to", "mean", "--draws", "3", "--out", tiny_disk / "p.h5ad"),
        ("run", data, "--out", tiny_disk / "run", *SMALL, "--quiet"),
    ):
        ran = subprocess.run(
            [sys.executable, "-m", "scmedley", *map(str, command)],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ran.returncode == 1
        lines = [line for line in ran.stderr.splitlines() if "so few validation cells" not in line]
        assert len(lines) == 1, ran.stderr
        assert "The disk is full" in lines[0]
        assert half_written(tiny_disk) == []
        assert set(tree(tiny_disk)) <= {"run", "run/.lock", "run/run.json"}
        shutil.rmtree(tiny_disk / "run", ignore_errors=True)
    assert "The disk is full" in shell("project", whole, "--to", "mean", "--out", tiny_disk / "p.zarr").error
    assert tree(tiny_disk) == {}
    network = torch.nn.Linear(100, 300)
    with pytest.raises(ScmedleyError, match="The disk is full"):
        loop.checkpoint.save(tiny_disk / "fixed.safetensors", network, {}, {}, {})
    assert tree(tiny_disk) == {}


# --- what cannot be written ---------------------------------------------------------------------------------


def test_nothing_is_trained_before_a_refusal_to_write(shell, monkeypatch, tmp_path):
    """A batch key that the file cannot hold by its name, and a writer that fails."""
    monkeypatch.setattr(stages, "fit_networks", lambda *_: pytest.fail("trained before it was known"))
    cells = some_cells(60)
    cells.obs["batch"] = cells.obs["batch"].astype(str)
    cells.write_h5ad(tmp_path / "cells.h5ad")

    def with_odd_columns(path):
        adata = read(path)
        adata.obs["batch/lane"] = adata.obs["batch"]
        return adata

    read = stages.io.read
    monkeypatch.setattr(stages.io, "read", with_odd_columns)
    run = ("fit", tmp_path / "cells.h5ad", "--out", tmp_path / "run", *SMALL, "--batch", "batch/lane")
    assert "cannot hold obs['batch/lane'] under this name" in shell(*run).error
    assert not (tmp_path / "run").exists()

    def fail(*_, **__):
        raise TypeError("no method")

    monkeypatch.setattr(writing, "write_elem", fail)
    assert "an h5ad cannot hold this: no method" in shell(*run[:-2]).error
    assert half_written(tmp_path) == []


def test_odd_cells_are_run_scored_embedded_and_shown(shell, monkeypatch, tmp_path):
    """Slashes in the keys, columns of several kinds, a name in raw: all works, and each change is said once."""
    cells = some_cells(120)
    cells.raw = cells.copy()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    read = stages.io.read

    def odd(path):
        adata = read(path)
        adata.obs = adata.obs.rename(columns={"batch": "donor/lane", "cell_type": "type/sub"})
        adata.obs["cluster"] = [i if i % 2 else f"c{i % 3}" for i in range(adata.n_obs)]
        adata.raw.var["_index"] = list(adata.raw.var_names)
        adata.uns["made by"] = print
        return adata

    monkeypatch.setattr(stages.io, "read", odd)
    out = tmp_path / "run"
    keys_given = ("--batch", "donor/lane", "--label", "type/sub")
    ran = shell("run", tmp_path / "cells.h5ad", "--out", out, *SMALL, "--no-null", *keys_given)
    assert ran.code == 0, ran.err
    warnings = json.loads((out / "run.json").read_text())["warnings"]
    for place in ("obs['cluster'] (int and str)", "raw.var['_index'] (now '_index_')", "uns['made by']"):
        assert ran.out.count(place) == 1
        assert sum(place in warning for warning in warnings) == 1
    found = ad.read_h5ad(out / "integrated.h5ad")
    assert {"donor/lane", "type/sub", "cluster"} <= set(found.obs)
    assert keys.FIXED in found.obsm
    assert shell("evaluate", out).code == 0
    new = tmp_path / "new.h5ad"
    told = shell("embed", out, "--input", tmp_path / "cells.h5ad", "--out", new)
    assert (told.code, "new.h5ad: Left out" in told.err) == (0, True)
    assert {"donor/lane", "cluster"} <= set(ad.read_h5ad(new).obs)
    target = found.obs["donor/lane"].cat.categories[0]
    told = shell("project", out, "--to", target, "--out", tmp_path / "p.zarr")
    assert (told.code, "obs['donor/lane'] (now 'donor_lane')" in told.err) == (0, True)
    assert "donor_lane" in ad.read_zarr(tmp_path / "p.zarr").obs


def test_an_output_that_cannot_be_written_is_said_before_the_work(shell, data, whole, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("scmedley.models.MixedEffects.embed", lambda *_, **__: pytest.fail("worked"))
    monkeypatch.setattr("scmedley.models.MixedEffects.counterfactual", lambda *_, **__: pytest.fail("worked"))
    place = tmp_path / "file" / "x.h5ad"
    assert "cannot be written" in shell("embed", whole, "--input", data, "--out", place).error
    assert "cannot be written" in shell("project", whole, "--to", "mean", "--out", place).error


def test_file_that_is_open_elsewhere(shell, data, tmp_path):
    shutil.copy(data, tmp_path / "open.h5ad")
    held = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print('open', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", held, str(tmp_path / "open.h5ad")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as other:
        other.stdout.readline()
        error = shell("fit", tmp_path / "open.h5ad", "--out", tmp_path / "run", *SMALL).error
        other.stdin.close()
    assert "is locked: another program has opened it" in error


# --- the process --------------------------------------------------------------------------------------------


def test_terminated_leaves_nothing_half_written_and_the_same_command_resumes(shell, data, whole, tmp_path):
    code = """
import os, signal, sys
from scmedley import __main__
from scmedley.io import writing

def stop(*_):
    os.kill(os.getpid(), signal.SIGTERM)

writing.sync, sys.argv = stop, ["scmedley", *sys.argv[1:]]
__main__.entry()
"""
    run = ("run", data, *LABEL, "--out", tmp_path / "run", "--quiet", *SMALL)
    command = [sys.executable, "-c", code, *map(str, run)]
    ran = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 143
    assert "same command resumes" in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert half_written(tmp_path) == []


def test_closed_pipe_ends_quietly(data, tmp_path):
    command = [sys.executable, "-m", "scmedley", "fit", str(data), "--out", str(tmp_path / "run"), *SMALL]
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        ran = subprocess.run(
            command, env=ENVIRONMENT, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=120
        )
    assert (ran.returncode, ran.stderr) == (141, "")


def test_file_whose_name_is_no_utf8(shell, data, tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/donn\xe9es.h5ad")
    shutil.copy(data, name)
    shell.well("fit", name, "--out", tmp_path / "run", "--quiet", *SMALL)
    record = Record.read(tmp_path / "run" / run_folder.RECORD)
    assert record["input"]["name"] == Path(name).name


# --- the folder ---------------------------------------------------------------------------------------------


def test_threads_hold_for_the_whole_run(shell, data, monkeypatch, tmp_path):
    seen, before, own = [], torch.get_num_threads(), resolve_threads(None)
    monkeypatch.setattr(stages, "_after_preparing", lambda *_: seen.append(torch.get_num_threads()))
    for i, threads in enumerate(([], ["--threads", str(own + 2)])):
        shell("fit", data, "--out", tmp_path / f"run{i}", "--quiet", *threads)
    assert seen == [own, own + 2]
    assert torch.get_num_threads() == before


def test_what_is_not_installed_is_said_before_any_work(shell, data, monkeypatch, tmp_path):
    monkeypatch.setattr(build, "find_spec", lambda name: None if name == "umap" else name)
    assert "pip install 'scmedley[report]'" in shell("run", data, "--out", tmp_path / "run").error
    assert tree(tmp_path) == {}
    shell.well("fit", data, "--out", tmp_path / "run", "--quiet", *SMALL)
