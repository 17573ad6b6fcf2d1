"""Counterfactuals as a figure, and which cells they are of."""

import html
import re
import shutil
from pathlib import Path

import anndata as ad
import pandas as pd
import pytest

import run_folder
from running import SMALL, Shell, some_cells, tree, without_drawing
from scmedley.pipeline.project import cautions
from scmedley.runs.folder import GENOMAP


@pytest.fixture
def shell(capsys, monkeypatch):
    without_drawing(monkeypatch)
    return Shell(capsys)


@pytest.fixture(scope="module")
def _kept() -> dict[str, Path]:
    return {}


@pytest.fixture
def done(shell, _kept, tmp_path_factory) -> Path:
    """A fitted model in a run folder, made once: look, do not change."""
    if "run" not in _kept:
        folder = tmp_path_factory.mktemp("done")
        some_cells().write_h5ad(folder / "cells.h5ad")
        arguments = ["--label", "cell_type", "--out", folder / "run", "--quiet", *SMALL]
        shell.well("fit", folder / "cells.h5ad", *arguments)
        _kept["run"] = folder / "run"
    return _kept["run"]


def texts(path: Path) -> list[str]:
    """The texts of an SVG, in the order they were drawn."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())


def test_a_figure_by_one_command(shell, done, tmp_path):
    out = tmp_path / "made" / "panel.svg"
    query = "cell_type == 'H2228'"
    printed = shell.well("project", done, "--select", query, "--to", "sc_10x", "sc_dropseq", "--figure", out)
    cells = ad.read_h5ad(done / "integrated.h5ad")
    of_type = cells[cells.obs["cell_type"] == "H2228"]
    assert printed == f"4 of {of_type.n_obs} cells drawn: {out}\n"
    said = texts(out)
    assert f"4 of {of_type.n_obs} cells, drawn with seed 0. Genes are named because they change most." in said
    drawn = [name for name in said if name in set(cells.obs_names)]
    assert len(set(drawn)) == 4
    assert len(drawn) == 8  # in both blocks
    assert set(drawn) <= set(of_type.obs_names)
    for title in ("input", "own batch", "sc_10x", "sc_dropseq", "Expression", "Change against the own batch"):
        assert title in said
    assert len(set(said) & set(cells.var_names)) >= 4  # genes that change most
    assert [p.name for p in out.parent.iterdir()] == ["panel.svg"]


def test_what_not_to_believe_is_said(shell, done, tmp_path):
    """Without a check nothing but what was never seen; with one, what it speaks against."""
    run = shutil.copytree(done, tmp_path / "run")
    cells = ad.read_h5ad(run / "integrated.h5ad")
    pair = (cells.obs["batch"] == "sc_10x") & (cells.obs["cell_type"] == "H2228")
    cells[~pair].copy().write_h5ad(run / "integrated.h5ad")
    to = ["--to", "sc_10x", "sc_dropseq", "mean", "--select", "cell_type == 'H2228'"]
    said = shell("project", run, *to, "--figure", tmp_path / "a.svg")
    unseen = (
        "'H2228 in sc_10x': never seen together, so this is an extrapolation without support in these data."
    )
    assert (said.code, said.err) == (0, f"scmedley: warning: {unseen}\n")
    assert unseen in html.unescape(" ".join(texts(tmp_path / "a.svg")))
    check = pd.DataFrame([run_folder.check_row("H2228", "sc_dropseq", 0.5, additive_pearson=0.8)])
    check.to_csv(run / "counterfactual_check.csv", index=False)
    said = shell("project", run, *to, "--figure", tmp_path / "worse.svg")
    assert (
        "'H2228 in sc_dropseq': the plain difference of training means predicts held-out cells better"
        in said.err
    )
    check = pd.DataFrame([run_folder.check_row("H2228", "sc_dropseq", -0.1)])
    check.to_csv(run / "counterfactual_check.csv", index=False)
    said = shell("project", run, *to, "--figure", tmp_path / "b.svg")
    assert (
        "'H2228 in sc_dropseq': predictions did not agree with held-out cells: draw no conclusion."
        in said.err
    )
    said = shell("project", run, "--to", "mean", "--figure", tmp_path / "c.svg")
    failed = "Do not use: in this run, predictions did not agree with held-out cells."
    assert said.err == f"scmedley: warning: {failed}\n"
    assert failed in " ".join(texts(tmp_path / "c.svg"))


def test_cautions_name_labels_and_targets_as_the_model_does(tmp_path):
    obs = pd.DataFrame({"batch": [1.0, 2.0, 1.0], "type": [1.0, 1.0, 2.0]}, list("abc"))
    run_cells = ad.AnnData(obs=obs.astype({"batch": int, "type": int}).astype(str))
    run_cells.write_h5ad(tmp_path / "integrated.h5ad")
    (tmp_path / "run.json").write_text('{"config": {"batch": "batch", "label": "type"}}')
    (said,) = cautions(tmp_path, obs, [1, 2.0])
    assert said.startswith("'2 in 2': never seen together")
    spaced = obs.assign(type=["1 ", "1", None])
    assert cautions(tmp_path, spaced, ["2"]) == []


@pytest.mark.parametrize(
    "query", ["batch.to_csv('{0}') == 1", "batch.map(print)", "@__import__('os')", "batch.__class__"]
)
def test_a_query_only_looks(shell, done, tmp_path, query):
    to = ["--to", "sc_10x", "--figure", tmp_path / "a.svg", "--select"]
    assert "A query may compare, and call" in shell("project", done, *to, query.format(tmp_path / "x")).error
    assert tree(tmp_path) == {}
    wanted = (
        "(cell_type in ('H2228', 'f(x)')) and not (batch.isin(['sc_dropseq']) or batch.str.contains('cel'))"
    )
    assert shell("project", done, *to, wanted).code == 0


def test_what_a_name_cannot_be_is_said(shell, done, tmp_path):
    to = ["project", done, "--to", "sc_10x", "--figure"]
    said = shell(*to, tmp_path / f"{'n' * 300}.svg")
    assert said.code == 1
    assert "File name too long" in said.error
    assert "--select is empty" in shell(*to, tmp_path / "a.svg", "--select", " ").error
    assert tree(tmp_path) == {}


def test_a_query_may_be_longer_than_a_path(shell, done, tmp_path):
    query = "cell_type in ['H2228', " + ", ".join(f"'no{i}'" for i in range(60)) + "]"
    assert shell.well("project", done, "--select", query, "--to", "sc_10x", "--figure", tmp_path / "f.svg")


def test_a_figure_without_its_data_is_not_left_behind(shell, done, tmp_path):
    wrong = ["--figure", tmp_path / "f.svg", "--out", tmp_path / "f.h5ad", "--draws", "-1"]
    assert "draws is -1" in shell("project", done, "--to", "sc_10x", *wrong).error
    assert tree(tmp_path) == {}


def test_the_seed_draws_the_cells(shell, done, tmp_path):
    for name, more in (("a", []), ("b", []), ("c", ["--seed", "1"]), ("d", ["--rows", "2"])):
        shell.well("project", done, "--to", "sc_10x", "--figure", tmp_path / f"{name}.svg", *more)
    a, b, c, d = ((tmp_path / f"{name}.svg").read_bytes() for name in "abcd")
    assert a == b != c
    assert len(d) < len(a)


@pytest.mark.parametrize("suffix", [".png", ".pdf"])
def test_other_formats_and_data_beside_the_figure(shell, done, tmp_path, suffix):
    arguments = ["--to", "mean", "sc_10x", "--select", "batch == 'sc_10x'", "--out", tmp_path / "as.h5ad"]
    shell.well("project", done, *arguments, "--figure", tmp_path / f"as{suffix}", "--rows", "1")
    assert (tmp_path / f"as{suffix}").read_bytes()[:4] in (b"\x89PNG", b"%PDF")
    shown = ad.read_h5ad(tmp_path / "as.h5ad")
    assert set(shown.obs["batch"]) == {"sc_10x"}
    assert list(shown.obs["counterfactual_batch"].cat.categories) == ["mean", "sc_10x"]


def test_cells_by_name_in_their_order(shell, done, tmp_path):
    names = list(ad.read_h5ad(done / "integrated.h5ad").obs_names[[7, 3]])
    out = tmp_path / "panel.svg"
    shell.well("project", done, "--to", "sc_10x", "--select", *names, "--figure", out)
    said = texts(out)
    assert "all of 2 cells. Genes are named because they change most." in said
    assert [name for name in said if name in names][:2] == names
    shell.well("project", done, "--to", "sc_10x", "--select", names[0], "--out", tmp_path / "one.h5ad")
    assert list(ad.read_h5ad(tmp_path / "one.h5ad").obs_names) == [f"{names[0]} as sc_10x"]


def test_cells_of_a_file(shell, done, tmp_path):
    some_cells(12).write_h5ad(tmp_path / "new cells.h5ad")
    arguments = ["--input", tmp_path / "new cells.h5ad", "--to", "sc_10x", "--figure", tmp_path / "p.svg"]
    assert "4 of 12 cells drawn" in shell.well("project", done, *arguments)


WRONG = {
    "no such file": (["--input", "nowhere.h5ad"], "nowhere.h5ad does not exist"),
    "no such column": (["--select", "kind == 'B'"], "no query on its obs (name 'kind' is not defined)"),
    "no query": (["--select", "cell_type =="], "no cell of the run and no query"),
    "not yes or no": (["--select", "batch"], "is not true or false for each cell"),
    "assignment": (["--select", "batch = 1"], "is not true or false for each cell"),
    "a call": (["--select", "__import__('os').getcwd() == 'a'"], "A query may compare, and call"),
    "no answer": (["--select", "batch == 'elsewhere'"], "None of the run's 180 cells"),
    "no such cells": (["--select", "a", "b"], "The run has no cell 'a', 'b'"),
    "unknown target": (["--to", "sc10x"], "no batch 'sc10x'"),
    "repeated target": (["--to", "sc_10x", "sc_10x"], "given more than once"),
    "too many targets": (["--to", *"abcdefghi"], "room for 8 targets, but --to has 9"),
    "no rows": (["--rows", "0"], "--rows 0 must be between 1 and 12"),
    "too many rows": (["--rows", "13"], "--rows 13 must be between 1 and 12"),
    "bad seed": (["--seed", "-1"], "seed -1 must be between"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_drawn_leaves_nothing(shell, done, name, tmp_path):
    given, message = WRONG[name]
    to = [] if "--to" in given else ["--to", "sc_10x"]
    error = shell("project", done, *to, "--figure", tmp_path / "p.png", *given).error
    assert message in error
    assert "unexpected error" not in error
    assert tree(tmp_path) == {}


def test_where_the_figure_cannot_be(shell, done, tmp_path):
    assert "give --out, --figure, or both" in shell("project", done, "--to", "sc_10x").error
    (tmp_path / "p.svg").write_text("mine")
    before = tree(tmp_path)
    for figure, message in [("p.svg", "exists already. Choose another --figure"), ("p.jpg", "--figure")]:
        error = shell("project", done, "--to", "sc_10x", "--figure", tmp_path / figure).error
        assert message in error
    assert tree(tmp_path) == before


def test_a_run_without_a_layout_gets_it_again(shell, done, tmp_path):
    kept = (done / GENOMAP).read_bytes()
    (done / GENOMAP).unlink()
    shell.well("project", done, "--to", "sc_10x", "--figure", tmp_path / "p.svg")
    assert (done / GENOMAP).read_bytes() == kept


def test_a_full_disk_leaves_no_figure(shell, done, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    def full(self, path, **_):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    assert "disk is full" in shell("project", done, "--to", "sc_10x", "--figure", tmp_path / "p.svg").error
    assert tree(tmp_path) == {}
