"""The command line as a user meets it: what is printed, what is written, what is said when it cannot go on."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import corpus
from running import SMALL, Shell, some_cells, tree, without_drawing
from scmedley import keys
from test_report import page

FILES = {
    "integrated.h5ad",
    "model",
    "report.html",
    "history.csv",
    "scores.csv",
    "label_accuracy.csv",
    "gene_shifts.csv",
    "counterfactual_check.csv",
    "run.json",
    "genomap.json",
    "versions.json",
}
FIT_FILES = {"integrated.h5ad", "model", "history.csv", "run.json", "versions.json"}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
HEAVY = ("torch", "anndata", "scanpy", "pandas", "numpy", "matplotlib", "sklearn", "umap")


@pytest.fixture
def shell(capsys, monkeypatch):
    without_drawing(monkeypatch)
    return Shell(capsys)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Cells of sc_mixology, as one file."""
    path = tmp_path_factory.mktemp("data") / "cells.h5ad"
    some_cells().write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def _kept() -> dict[str, Path]:
    return {}


@pytest.fixture
def done(shell, data, _kept, tmp_path_factory) -> Path:
    """A finished run, made once: look, do not change."""
    if "run" not in _kept:
        out = tmp_path_factory.mktemp("done") / "run"
        shell.well("run", data, "--label", "cell_type", "--out", out, "--quiet", *SMALL)
        _kept["run"] = out
    return _kept["run"]


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if p.name != ".lock"}


# --- everything, for real -----------------------------------------------------------------------------------


def test_run_end_to_end_in_a_process_of_its_own(data, tmp_path):
    out = tmp_path / "made" / "on the way"
    command = [sys.executable, "-m", "scmedley", "run", data, "--label", "cell_type", "--out", out, *SMALL]
    ran = subprocess.run(
        list(map(str, command)), env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr
    assert "Warning" not in ran.stderr
    assert names(out) == FILES

    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "done"
    assert record["input"]["cells"] == 180
    for finding in record["findings"]:
        assert f"  - {finding}" in ran.stdout
    assert len(record["findings"]) >= 2
    said = [ran.stdout.index(f"[{v['mark']}] {v['question']} {v['sentence']}") for v in record["verdicts"]]
    assert said == sorted(said)
    assert len(said) == 3
    assert said[-1] < ran.stdout.index("What was found")
    assert str(out / "report.html") in ran.stdout
    assert set(record["networks"]) == {"fixed", "random", "random, permuted batches"}
    assert json.loads((out / "versions.json").read_text())["torch"] == record["versions"]["torch"]

    adata = ad.read_h5ad(out / "integrated.h5ad")
    assert adata.obsm[keys.FIXED].shape == adata.obsm[keys.RANDOM].shape == (180, 4)
    for basis in (keys.FIXED, keys.RANDOM, keys.PCA):
        drawn = adata.obsm[keys.umap(basis)]
        assert drawn.shape == (180, 2)
        assert np.isfinite(drawn).all()
        assert drawn.std(axis=0).min() > 0.1
    np.testing.assert_array_equal(
        adata.X.todense(), some_cells()[adata.obs_names, adata.var_names].X.todense()
    )
    scores = pd.read_csv(out / "scores.csv")
    random = {keys.RANDOM, keys.RANDOM_MASKED, keys.NULL, keys.NULL_MASKED}
    assert set(scores["embedding"]) == {keys.FIXED, keys.PCA} | random
    leaks = scores[scores["score"].str.endswith("leak")].groupby("embedding")["score"].apply(list)
    assert all(found == ["kNN leak", "logistic leak", "network leak"] for found in leaks)
    assert scores["value"].notna().all()
    html = page(out)
    assert "run" in html.ids
    assert record["findings"][0] in html.text
    assert all(v["sentence"] in html.text for v in record["verdicts"])


# --- the commands -------------------------------------------------------------------------------------------


def test_fit_then_evaluate_then_report(shell, data, done, tmp_path):
    out = tmp_path / "run"
    printed = shell.well("fit", data, "--label", "cell_type", "--out", out, "--quiet", *SMALL)
    assert printed == ""
    assert names(out) == FIT_FILES
    shell.well("report", out)
    assert (
        "This folder holds a fit, and nothing was scored yet. The next step is scmedley evaluate"
        in page(out).text
    )
    (out / "report.html").unlink()
    printed = shell.well("evaluate", out)
    assert printed.splitlines()[:4] == [
        "Embedding all cells and drawing their maps",
        "Scoring the embeddings on held-out cells",
        "Computing the gene shifts of each batch",
        "Checking the counterfactuals on held-out cells",
    ]
    assert "What was found" in printed
    assert str(out / "scores.csv") in printed
    assert str(out / "report.html") in shell.well("report", out)
    assert names(out) == FILES
    for name in ("scores.csv", "gene_shifts.csv", "counterfactual_check.csv", "history.csv"):
        assert (out / name).read_bytes() == (done / name).read_bytes(), name
    page(out)


def test_quiet_run_prints_nothing_and_leaves_no_checkpoints(done):
    assert names(done) == FILES


def test_a_report_without_cells_stays_without(shell, done, tmp_path):
    shutil.copytree(done, out := tmp_path / "run")
    report = out / "report.html"
    assert "ex-data" in report.read_text(encoding="utf-8")
    whole = report.read_bytes()
    shell.well("report", out, "--no-explorer")
    assert "ex-data" not in report.read_text(encoding="utf-8")
    assert json.loads((out / "run.json").read_text())["report"] == {"cells": False}
    report.write_text("a page that someone changed")
    shell.well("evaluate", out)
    assert "ex-data" not in report.read_text(encoding="utf-8")
    shell.well("report", out)
    assert len(report.read_bytes()) == pytest.approx(len(whole), rel=0.01)
    assert "ex-data" in report.read_text(encoding="utf-8")


def test_options_by_their_old_names_work_and_are_warned_of(shell, done, data, tmp_path):
    shutil.copytree(done, out := tmp_path / "run")
    to = ("project", out, "--to", "sc_10x", "--out")
    for command, warning in (
        (("report", out, "--no-cells"), "--no-cells of report is now --no-explorer"),
        ((*to, tmp_path / "f.h5ad", "--cells", data), "--cells of project is now --input"),
        ((*to, tmp_path / "q.h5ad", "--cells", "batch != 'sc_10x'"), "--cells of project is now --select"),
    ):
        said = shell(*command)
        assert (said.code, said.err.count("\n")) == (0, 1), said.err
        assert warning in said.err
    assert "ex-data" not in (out / "report.html").read_text(encoding="utf-8")
    assert 0 < ad.read_h5ad(tmp_path / "q.h5ad").n_obs < ad.read_h5ad(tmp_path / "f.h5ad").n_obs == 180
    assert "Leave one of them out" in shell(*to, tmp_path / "b.h5ad", "--input", data, "--select", "a").error


def test_what_a_killed_command_left_beside_its_output_is_named(shell, done, data, tmp_path):
    left = tmp_path / ".e.h5ad.0123abcd.h5ad"
    left.write_text("half")
    said = shell("embed", done, "--input", data, "--out", tmp_path / "e.h5ad")
    assert (said.code, said.err.count("\n"), str(left) in said.err) == (
        0,
        2,
        True,
    )  # and few validation cells


def test_tables_that_are_cut_off_are_named(shell, done, tmp_path):
    shutil.copytree(done, out := tmp_path / "run")
    for name, advice in (("scores.csv", "scmedley evaluate"), ("history.csv", "--overwrite")):
        whole = (out / name).read_bytes()
        for end in (len(whole) - 3, len(whole) - 40, 0):
            (out / name).write_bytes(whole[:end])
            error = shell("report", out).error
            assert name in error
            assert advice in error
        (out / name).write_bytes(whole)


def test_embed_new_cells(shell, done, data, tmp_path):
    out = tmp_path / "embedded.h5ad"
    said = shell("embed", done, "--input", data, "--out", out)
    assert said.code == 0
    assert "180 cells embedded" in said.out
    assert said.err.startswith("scmedley: warning: With so few validation cells")
    assert said.err.count("\n") == 1
    again, before = ad.read_h5ad(out), ad.read_h5ad(done / "integrated.h5ad")
    for key in (keys.FIXED, keys.RANDOM):
        np.testing.assert_allclose(again.obsm[key], before.obsm[key], rtol=1e-4, atol=1e-5)
    assert "exists already" in shell("embed", done, "--input", data, "--out", out).error


def test_embed_cells_of_an_unknown_batch(shell, done, tmp_path):
    adata = some_cells(30)
    adata.obs["batch"] = "elsewhere"
    adata.write_h5ad(tmp_path / "new.h5ad")
    arguments = ("embed", done, "--input", tmp_path / "new.h5ad", "--out", tmp_path / "out.h5ad")
    error = shell(*arguments).error
    assert "'elsewhere'" in error
    assert "--unknown mean" in error
    assert "--unknown adapt" in error
    assert names(tmp_path) == {"new.h5ad"}
    assert shell(*arguments, "--unknown", "mean").code == 0
    assert ad.read_h5ad(tmp_path / "out.h5ad").obsm[keys.RANDOM].shape[1] == 4


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_project(shell, done, tmp_path, suffix):
    out = tmp_path / f"as{suffix}"
    shell.well("project", done, "--to", "mean", "sc_10x", "--draws", "2", "--out", out)
    shown = (ad.read_zarr if suffix == ".zarr" else ad.read_h5ad)(out)
    assert shown.shape == (2 * 180, 60)
    assert list(shown.obs["counterfactual_batch"].cat.categories) == ["mean", "sc_10x"]
    assert {"difference", "X_q05", "X_q95"} <= set(shown.layers)
    assert np.isfinite(np.asarray(shown.X)).all()


def test_project_other_cells(shell, done, data, tmp_path):
    shell.well("project", done, "--to", "sc_10x", "--input", data, "--out", tmp_path / "as.h5ad")
    assert ad.read_h5ad(tmp_path / "as.h5ad").n_obs == 180
    assert "no batch 'sc10x'" in shell("project", done, "--to", "sc10x", "--out", tmp_path / "b.h5ad").error
    assert (
        "must end in .h5ad or .zarr"
        in shell("project", done, "--to", "mean", "--out", tmp_path / "b.csv").error
    )
    assert (
        "draws" in shell("project", done, "--to", "mean", "--out", tmp_path / "b.zarr", "--draws", "1").error
    )
    assert names(tmp_path) == {"as.h5ad"}


def test_several_files_are_one_batch_each(shell, tmp_path):
    adata = some_cells()
    for batch in adata.obs["batch"].unique():
        adata[adata.obs["batch"] == batch].write_h5ad(tmp_path / f"{batch}.h5ad")
    files = sorted(tmp_path.glob("*.h5ad"))
    out = tmp_path / "run"
    shell.well("run", *files, "--batch", "protocol", "--label", "cell_type", "--out", out, "--quiet", *SMALL)
    obs = ad.read_h5ad(out / "integrated.h5ad").obs
    assert (obs["protocol"].astype(str) == obs["batch"].astype(str)).all()
    assert "is given more than once" in shell("run", files[0], files[0], "--out", tmp_path / "b").error


def test_fixed_part_of_ones_own(shell, data, tmp_path):
    out = tmp_path / "run"
    shell.well("run", data, "--label", "cell_type", "--fixed", "X_mine", "--out", out, "--quiet", *SMALL)
    adata = ad.read_h5ad(out / "integrated.h5ad")
    np.testing.assert_array_equal(adata.obsm[keys.FIXED], adata.obsm["X_mine"])
    assert not (out / "model" / "fixed").exists()
    shell.well("project", out, "--to", "mean", "--out", tmp_path / "as.h5ad")


def test_paper_preset_without_label_or_null(shell, data, tmp_path):
    out = tmp_path / "run"
    shell.well("run", data, "--preset", "paper", "--no-null", "--out", out, "--quiet", *SMALL)
    adata = ad.read_h5ad(out / "integrated.h5ad")
    assert keys.NULL not in adata.obsm
    scores = pd.read_csv(out / "scores.csv")
    assert set(scores["of"]) == {"batch"}
    assert set(scores["embedding"]) == {keys.FIXED, keys.RANDOM, keys.RANDOM_MASKED, keys.PCA}
    assert any("never masked" in said for said in json.loads((out / "run.json").read_text())["findings"])
    assert set(pd.read_csv(out / "gene_shifts.csv")["label"]) == {"all cells"}
    page(out)


# --- what cannot be done ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [c for c in corpus.CASES if c.error], ids=lambda case: case.name)
def test_broken_input_is_one_line_and_leaves_nothing(shell, case, tmp_path):
    (tmp_path / "in").mkdir()
    path = case.build(tmp_path / "in")
    label = [] if case.label_key is None else ["--label", case.label_key]
    before = tree(tmp_path)
    error = shell("run", path, "--batch", case.batch_key, *label, "--out", tmp_path / "a" / "b", *SMALL).error
    assert re.search(case.error, error), error
    assert "unexpected error" not in error
    assert tree(tmp_path) == before


HANDLED = (
    "z-scored with counts in raw",
    "huge values",
    "one batch does not pass",
    "two batches",
    "batch of one cell",
    "slashes and unicode",
    "some labels missing",
    "label is batch",
    "one label",
    "no label key",
)


@pytest.mark.parametrize("case", [c for c in corpus.CASES if c.name in HANDLED], ids=lambda case: case.name)
def test_odd_input_is_handled(shell, case, tmp_path):
    label = [] if case.label_key is None else ["--label", case.label_key]
    out = tmp_path / "run"
    shell.well(
        "run", case.build(tmp_path), "--batch", case.batch_key, *label, "--out", out, "--quiet", *SMALL
    )
    assert names(out) == FILES - ({"label_accuracy.csv"} if case.label_key is None else set())
    text = page(out).text
    for sentence in json.loads((out / "run.json").read_text())["warnings"]:
        assert " ".join(sentence.split()) in text


def test_all_handled_cases_have_been_named():
    assert {c.name for c in corpus.CASES if not c.error} >= set(HANDLED)


BAD_SETTINGS = {
    "unknown preset": (["--preset", "best"], '"best" for --preset'),
    "negative epochs": (["--epochs", "-1"], "--epochs -1 must be at least 1"),
    "no number": (["--epochs", "many"], "--epochs"),
    "no threads": (["--threads", "0"], "--threads 0 must be at least 1"),
    "no device": (["--device", "abacus"], "device='abacus'"),
    "one draw": (["--draws", "1"], "--draws 1 must be at least 2"),
    "negative seed": (["--seed", "-1"], "seed -1 must be between"),
    "unknown option": (["--colour", "red"], "--colour"),
    "no such embedding": (["--fixed", "X_none"], "obsm has ['X_broken', 'X_mine']"),
    "embedding with NaN": (["--fixed", "X_broken"], "not a dense matrix of finite numbers"),
    "too strict filters": (["--min-genes", "5000"], "Lower min_genes"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
@pytest.mark.parametrize("there", [False, True], ids=["new", "there"])
def test_bad_settings_leave_the_folder_as_it_was(shell, name, there, tmp_path):
    settings, message = BAD_SETTINGS[name]
    adata = some_cells(60)
    adata.obsm["X_broken"] = np.full((adata.n_obs, 2), np.nan)
    adata.write_h5ad(tmp_path / "in.h5ad")
    if there:
        (tmp_path / "run").mkdir()
    before = tree(tmp_path)
    assert message in shell("run", tmp_path / "in.h5ad", "--out", tmp_path / "run", *settings).error
    assert tree(tmp_path) == before


def test_a_batch_called_mean_is_refused_in_time(shell, tmp_path):
    adata = some_cells(60)
    adata.obs["batch"] = np.where(np.arange(adata.n_obs) % 2, "mean", "b")
    adata.write_h5ad(tmp_path / "in.h5ad")
    assert "Rename this batch" in shell("run", tmp_path / "in.h5ad", "--out", tmp_path / "run").error
    assert names(tmp_path) == {"in.h5ad"}


def test_too_few_cells_to_hold_any_out(shell, tmp_path):
    some_cells(60)[::12].copy().write_h5ad(tmp_path / "in.h5ad")
    assert (
        "Use more cells"
        in shell("run", tmp_path / "in.h5ad", "--out", tmp_path / "run", "--min-cells", "1").error
    )
    assert names(tmp_path) == {"in.h5ad"}


def test_where_out_cannot_be(shell, data, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("mine")
    before = tree(tmp_path)
    for out, options, message in [
        ("file", [], "cannot be written"),
        ("file/below", [], "cannot be written"),
        ("folder", [], "is not a run folder and not empty"),
        ("folder", ["--overwrite"], "--overwrite empties run folders only"),
    ]:
        assert message in shell("run", data, "--out", tmp_path / out, *options, *SMALL).error
        assert tree(tmp_path) == before
    for given in ((), ("--out",)):
        assert "scmedley run needs --out with a value. Add it" in shell("run", data, *given).error
    assert "is inside --out" in shell("run", data, "--out", data.parent, "--overwrite").error
    assert data.exists()


@pytest.mark.skipif(
    not Path("/proc/self").exists(), reason="there is no folder that even root may not write to"
)
def test_where_one_may_not_write(shell, data):
    assert "cannot be written" in shell("run", data, "--out", "/proc/scmedley-run").error
    assert "cannot be written" in shell("run", data, "--out", "/proc/made/run", "--quiet").error


@pytest.mark.parametrize("command", ["embed", "project", "evaluate", "report"])
def test_what_is_no_run_folder(shell, data, tmp_path, command):
    more = {
        "embed": ["--input", data, "--out", tmp_path / "o.h5ad"],
        "project": ["--to", "a", "--out", "o.h5ad"],
    }
    (tmp_path / "empty").mkdir()
    for folder in ("nowhere", "empty"):
        assert "not a run folder" in shell(command, tmp_path / folder, *more.get(command, [])).error
    assert tree(tmp_path) == {"empty": None}


def test_run_json_of_something_else(shell, tmp_path):
    for text, message in [
        ("{", "cannot be read"),
        ("[1]", "not written by scmedley"),
        ("{}", "not written by"),
    ]:
        (tmp_path / "run.json").write_text(text)
        for command in ("evaluate", "report"):
            assert message in shell(command, tmp_path).error
    (tmp_path / "run.json").write_text('{"status": "done", "config": {"colour": "red"}}')
    assert "another version" in shell("evaluate", tmp_path).error
    assert names(tmp_path) == {"run.json"}


def test_unknown_command_and_no_command(shell):
    assert "Unknown command" in shell("cook").error
    assert "run" in shell.well()


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(errno.EFBIG, "File too large", "a.svg"), 1, "a.svg: File too large"),
        (OSError(errno.EACCES, "Permission denied"), 1, "Permission denied"),
        (OSError("inflate() failed"), 70, "unexpected error (OSError: inflate() failed)"),
        (TimeoutError("no answer"), 70, "unexpected error (TimeoutError: no answer)"),
        (KeyError("x"), 70, "unexpected error (KeyError: 'x')"),
    ],
    ids=str,
)
def test_what_the_system_refuses_is_told_from_a_fault(shell, monkeypatch, error, code, words):
    from scmedley.pipeline import stages

    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(stages, "report", fails)
    said = shell("report", "anywhere")
    assert (said.code, words in said.error) == (code, True)


def test_debug_shows_the_traceback(tmp_path, capsys):
    from scmedley.__main__ import main
    from scmedley.errors import ScmedleyError

    with pytest.raises(ScmedleyError, match="does not exist"):
        main(["run", "nowhere.h5ad", "--out", str(tmp_path / "run"), "--debug"])


def test_an_unexpected_error_is_one_line(shell, data, monkeypatch, tmp_path):
    from scmedley.pipeline import preparing

    def broken(*_, **__):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(preparing, "prepare", broken)
    said = shell("run", data, "--out", tmp_path / "run")
    assert said.code == 70
    assert "RuntimeError: two lines" in said.error
    assert "--debug" in said.error
    assert names(tmp_path) == set()


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"], []])
def test_help_is_quick(arguments):
    code = (
        "import sys\nfrom scmedley.__main__ import main\n"
        f"try: main({arguments})\nexcept SystemExit as end: assert not end.code\n"
        f"loaded = [name for name in {HEAVY} if name in sys.modules]\nassert not loaded, loaded"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()
    assert ran.stderr == ""
