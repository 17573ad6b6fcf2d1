"""The denoising benchmark: it resumes, scores what it stores, and its null genes are null."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import scmedley as sm
from scmedley.data.arrays import dense

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
if not BENCHMARKS.exists():  # in a source distribution
    pytest.skip("no benchmarks here", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import common  # noqa: E402
import denoising as benchmark  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one tiny set, which the benchmark knows."""
    adata = sm.datasets.sc_mixology()
    rows = np.random.default_rng(0).choice(adata.n_obs, 150, replace=False)
    folder = tmp_path_factory.mktemp("data")
    adata[rows].copy().write_h5ad(folder / "tiny.h5ad")
    return folder


@pytest.fixture
def known(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(common.DATA_SETS, "tiny", common.DataSet("tiny", file="tiny.h5ad"))
    return folder


def test_command_stores_scores_and_resumes(known: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    options = [
        "--sets",
        "tiny",
        "--data",
        str(known),
        "--seeds",
        "1",
        "--genes",
        "60",
        "--methods",
        "none",
        "kNN",
    ]
    out = ["--out", str(tmp_path / "runs"), "--results", str(tmp_path / "r.json")]
    monkeypatch.setattr(sys, "argv", ["denoising.py", *options, *out])
    benchmark.main()
    runs = json.loads((tmp_path / "r.json").read_text())["runs"]
    assert [run["title"] for run in runs] == ["no denoising", "kNN smoothing (15 cells, 50 PCs)"]
    assert all(np.isfinite([run["mse"], run["poisson"]]).all() for run in runs)
    assert "| no denoising |" in (tmp_path / "r.md").read_text()
    monkeypatch.setattr(benchmark, "run", lambda *_: pytest.fail("was not resumed"))
    benchmark.main()
    assert "60 genes" in capsys.readouterr().out


def test_parts_have_the_same_cells_and_genes(known: Path) -> None:
    cells = benchmark.prepared("tiny", known, 0, 100, 60)
    train, test = dense(cells.counts_NG), dense(cells.test_NG)
    assert train.shape == test.shape
    assert train.sum() / (train + test).sum() == pytest.approx(0.9, abs=0.01)
    whole = sm.read(known / "tiny.h5ad")[cells.train.obs_names, cells.train.var_names]
    np.testing.assert_array_equal(train + test, dense(whole.X))


def test_smoothing_makes_genes_significant_that_do_not_differ(known: Path) -> None:
    cells, null_G = benchmark.with_null_genes(benchmark.prepared("tiny", known, 0, 150, 300), 0)
    counts = benchmark.as_they_are(cells, 0)["no denoising"]
    (smooth,) = benchmark.neighbours(cells, 0).values()
    assert benchmark.false_positives(counts, cells, null_G) < 0.2
    assert benchmark.false_positives(smooth, cells, null_G) > 0.3


def test_table_marks_the_best_of_each_score() -> None:
    about = {"set": "s", "cells": 10, "genes": 5, "counts_per_cell": 7.0, "cpu_seconds": 1.0}
    rows = [
        about | {"seed": seed, "title": title, "mse": mse + seed, "poisson": poisson}
        for title, mse, poisson in (("a", 1.0, 0.5), ("b", 2.0, 0.1))
        for seed in (0, 1)
    ]
    text = benchmark.table(pd.DataFrame(rows), benchmark.SCORES)
    assert "| a | **1.5000 ± 0.7071** | 0.5000 ± 0.0000 | 2 | 1 |" in text
    assert "| b | 2.5000 ± 0.7071 | **0.1000 ± 0.0000** | 2 | 1 |" in text
