"""Runs that prepare their cells on disk: the same cells as in memory, and all that follows from a store."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.io import mmread

from running import SMALL, Shell, some_cells, tree, without_drawing
from scmedley import io, keys
from scmedley.data import sampling
from scmedley.errors import ScmedleyError
from scmedley.experiment import fit as fitting
from scmedley.experiment.config import Experiment
from scmedley.experiment.grid import gpu_of, run
from scmedley.experiment.tune import tune
from scmedley.io.store import unfinished
from scmedley.models import load
from scmedley.pipeline import backed, fit, preparing
from scmedley.pipeline.config import RunConfig
from scmedley.pp.stored import read_store

LABEL = ("--label", "cell_type")
OPTIONS = (*LABEL, "--quiet", *SMALL)


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
def disk(shell, data, _kept, tmp_path_factory) -> Path:
    """A run from a store, made once: look, do not change."""
    if "disk" not in _kept:
        out = tmp_path_factory.mktemp("disk") / "run"
        shell.well("run", data, *OPTIONS, "--backed", "--out", out)
        _kept["disk"] = out
    return _kept["disk"]


def record(out: Path) -> dict:
    return json.loads((out / "run.json").read_text())


def test_cells_and_results_are_those_of_a_run_in_memory(shell, data, disk, tmp_path):
    out = tmp_path / "run"
    shell.well("run", data, *OPTIONS, "--no-backed", "--out", out)
    memory, stored = ad.read_h5ad(out / "integrated.h5ad"), ad.read_h5ad(disk / "integrated.h5ad")
    assert memory.obs_names.equals(stored.obs_names)
    assert list(stored.var_names) == list(memory.var_names[memory.var[keys.HVG]])
    assert (memory.obs[keys.SPLIT] == stored.obs[keys.SPLIT]).all()
    assert stored.X is None
    assert not stored.layers
    assert record(disk)["prepare"] == record(out)["prepare"]
    assert "store" not in record(out)
    assert record(disk)["store"]["folder"] == "store"
    values = read_store(disk / "store").log1p_NG[:]
    assert (values != memory.layers[keys.LOGNORM][:, memory.var[keys.HVG].to_numpy()]).nnz == 0
    assert set(memory.obsm) - set(stored.obsm) == {"X_mine"}  # of the input, which has it
    for key, values_NP in stored.obsm.items():
        np.testing.assert_array_equal(memory.obsm[key], values_NP, err_msg=key)
    for name in (
        "scores.csv",
        "history.csv",
        "gene_shifts.csv",
        "counterfactual_check.csv",
        "label_accuracy.csv",
    ):
        assert (disk / name).read_bytes() == (out / name).read_bytes(), name


def test_a_run_from_a_store_is_complete(disk):
    for name in ("scores.csv", "gene_shifts.csv", "counterfactual_check.csv", "report.html", "history.csv"):
        assert (disk / name).stat().st_size, name
    cells = ad.read_h5ad(disk / "integrated.h5ad")
    assert {keys.FIXED, keys.RANDOM, keys.NULL, keys.PCA, keys.umap(keys.FIXED)} <= set(cells.obsm)
    assert all(np.isfinite(np.asarray(values)).all() for values in cells.obsm.values())
    found = record(disk)
    assert found["status"] == "done"
    assert "sample" not in found  # few cells: all are scored


def test_exports_have_the_values_of_the_store(shell, disk, tmp_path):
    values = read_store(disk / "store").log1p_NG[:]
    said = shell("export", disk, "--to", "vitess", "--out", tmp_path / "vitess")
    assert f"The matrix has the {values.shape[1]} genes of the model" in said.err
    written = ad.read_zarr(tmp_path / "vitess" / "cells.zarr")
    np.testing.assert_array_equal(written.X, values.toarray())
    assert list(written.var_names) == list(ad.read_h5ad(disk / "integrated.h5ad").var_names)
    shell("export", disk, "--to", "cellbrowser", "--out", tmp_path / "browser")
    of_browser = mmread(tmp_path / "browser" / "matrix.mtx.gz").toarray().T
    np.testing.assert_allclose(of_browser, values.toarray(), rtol=1e-4)

    moved = tmp_path / "moved"
    shutil.copytree(disk, moved, ignore=shutil.ignore_patterns("store"))
    for name in ("vitess", "cellbrowser"):
        error = shell("export", moved, "--to", name, "--out", tmp_path / "new").error
        assert "bring the store back" in error
        assert not (tmp_path / "new").exists()
    for name in ("parquet", "multiqc"):  # need no values
        shell.well("export", moved, "--to", name, "--out", tmp_path / name)


def test_size_and_free_memory_choose(shell, data, tmp_path, monkeypatch):
    said = shell("fit", data, *LABEL, *SMALL, "--no-null", "--out", tmp_path / "memory").out
    assert "on disk" not in said
    monkeypatch.setattr("scmedley.data.memory.free_memory", lambda: 1000)
    out = tmp_path / "disk"
    said = shell("fit", data, *LABEL, *SMALL, "--no-null", "--out", out).out
    (line,) = [line for line in said.splitlines() if "on disk" in line]
    assert "1e-06 GB of memory are free" in line
    assert record(out)["store"]["why"] == line
    assert (out / "store").is_dir()
    assert backed.place_of(preparing.RunConfig(backed=False), [data], out, overwrite=False) is None


def test_runs_share_a_store(shell, data, tmp_path):
    store, written = tmp_path / "shared", []
    for name in ("one", "two"):
        options = ("--store", store, "--no-null", "--latent", "3" if name == "two" else "4")
        said = shell("fit", data, *LABEL, *SMALL[2:], *options, "--out", tmp_path / name)
        state = "is ready" if name == "one" else "was prepared before and is used again"
        assert f"The store {state}: 180 cells and 60 genes, " in said.out
        written.append({p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in store.iterdir()})
        assert not (tmp_path / name / "store").exists()
        assert Path(record(tmp_path / name)["store"]["folder"]) == store
    assert written[0] == written[1]
    said = shell("fit", data, "--store", store, "--no-backed", *OPTIONS, "--out", tmp_path / "three")
    assert "Leave out --store or --no-backed" in said.error


def test_an_interrupted_run_goes_on(shell, data, disk, tmp_path, monkeypatch):
    out = tmp_path / "run"

    def killed(*_, **__):
        raise KeyboardInterrupt

    for place, name in ((preparing, "prepare_store"), (fit, "permute_batches")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, killed)
            assert shell("run", data, *OPTIONS, "--backed", "--out", out).code != 0
    shell.well("run", data, *OPTIONS, "--backed", "--out", out)
    for name in ("scores.csv", "gene_shifts.csv", "history.csv"):
        assert (out / name).read_bytes() == (disk / name).read_bytes(), name
    assert record(out)["resumed"]


def test_input_that_cannot_be_used_leaves_nothing(shell, data, tmp_path):
    said = shell("run", data, *OPTIONS, "--backed", "--out", tmp_path / "run", "--batch", "absent")
    assert "absent" in said.error
    assert not (tmp_path / "run").exists()


def test_what_another_process_has_begun_stays(tmp_path):
    with unfinished(tmp_path / "store") as part:
        assert backed.nothing_of(tmp_path / "store")
        assert part.is_dir()
        (part / "scan.npz").touch()
        assert not backed.nothing_of(tmp_path / "store")


@pytest.mark.parametrize("name", ["model", ".checkpoints/cells", "store/cells"])
def test_a_store_in_a_place_of_the_run_itself(name, data, tmp_path):
    out = tmp_path / "run"
    config = RunConfig(store=str(out / name))
    with pytest.raises(ScmedleyError, match=f"writes its own {name.split('/')[0]} there"):
        backed.place_of(config, [data], out, overwrite=False)
    assert backed.place_of(replace(config, store=str(out / "cells")), [data], out, overwrite=False)


@pytest.fixture
def copied(disk, tmp_path) -> Path:
    return Path(shutil.copytree(disk, tmp_path / "copied"))


def test_other_commands_read_the_store(shell, copied, tmp_path):
    before = {name: (copied / name).read_bytes() for name in ("scores.csv", "gene_shifts.csv")}
    shell("evaluate", copied)
    assert {name: (copied / name).read_bytes() for name in before} == before
    shell.well("report", copied)
    assert "cannot be coloured" not in (copied / "report.html").read_text()
    query = "cell_type == 'H2228'"
    out = tmp_path / "as.h5ad"
    shell.well("project", copied, "--select", query, "--to", "sc_10x", "--out", out)
    obs = io.read(tmp_path / "as.h5ad").obs
    assert set(obs["cell_type"]) == {"H2228"}


def test_a_mistake_does_not_cost_the_store_that_was_to_be_overwritten(shell, data, copied):
    before = tree(copied)
    said = shell("run", data, "--batch", "typo", *SMALL, "--backed", "--overwrite", "--out", copied)
    assert "typo" in said.error
    assert tree(copied) == before


def test_another_stores_settings_leave_nothing_behind(shell, data, disk, tmp_path):
    before, out = tree(disk / "store"), tmp_path / "new"
    said = shell("fit", data, "--batch", "batch", *SMALL, "--store", disk / "store", "--out", out)
    assert "label_key has changed" in said.error
    assert not out.exists()
    assert tree(disk / "store") == before


def test_a_file_without_a_matrix(shell, disk, tmp_path):
    cells = disk / "integrated.h5ad"
    with pytest.raises(ScmedleyError, match="prepared its cells on disk, and holds no matrix"):
        io.read(cells)
    said = shell("explore", cells, "--out", tmp_path / "explored")
    assert "holds no matrix" in said.error or "no X" in said.error
    said = shell("cluster", cells, "--use", keys.FIXED, "--out", tmp_path / "clusters")
    assert said.code == 0, said.err
    assert "No marker genes: the file holds no matrix." in said.err
    assert (tmp_path / "clusters" / "clusters.csv").exists()


def test_a_store_that_is_missing_or_damaged(shell, copied):
    (copied / "store" / "values.bin").write_bytes(b"")
    before = tree(copied)
    said = shell("evaluate", copied)
    assert "values.bin has 0 bytes" in said.error
    assert "with --overwrite, or bring the store back" in said.error
    assert tree(copied) == before
    shutil.rmtree(copied / "store")
    assert "store.json cannot be read" in shell("project", copied, "--to", "sc_10x", "--out", "x.h5ad").error
    shell.well("report", copied)  # without the measured genes, and it says so
    assert record(copied)["status"] == "done"


def test_scores_of_many_cells_are_of_a_sample(shell, data, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "MANY", 100)
    monkeypatch.setattr(sampling, "DRAWN", 90)
    out = {}
    for name, command, options in (
        ("disk", "run", ("--backed",)),
        ("memory", "fit", ("--no-backed", "--no-null")),
    ):
        out[name] = tmp_path / name
        said = shell(command, data, *LABEL, *SMALL, *options, "--out", out[name])
        assert said.code == 0, said.err
        (line,) = [
            line for line in said.out.splitlines() if line.startswith("Scores and the null are computed")
        ]
        found = record(out[name])["sample"]
        assert line.startswith(
            f"Scores and the null are computed from {found['scored']} of 180 cells, gene shifts and their check from "
            f"{found['paired']}, "
        )
    assert record(out["disk"])["sample"] == record(out["memory"])["sample"]
    page = (out["disk"] / "report.html").read_text()
    for name in ("scores", "null", "pairs", "maps"):
        assert record(out["disk"])["sample"][name] in page
    cells = ad.read_h5ad(out["disk"] / "integrated.h5ad")
    drawn = np.isfinite(cells.obsm[keys.NULL]).all(axis=1)
    assert drawn.sum() == found["scored"] < 100
    assert (cells.obs[keys.PERMUTED].notna().to_numpy() == drawn).all()
    assert np.isfinite(cells.obsm[keys.FIXED]).all()  # embeddings are of all cells
    with pytest.raises(ScmedleyError, match=r"prepared on disk.*'store'.*read_store"):
        load(out["disk"] / "model").embed(cells)
    shares = [
        part.groupby("batch", observed=True).size() / len(part) for part in (cells.obs, cells.obs[drawn])
    ]
    np.testing.assert_allclose(*shares, atol=0.05)


def test_new_cells_of_a_large_file_are_read_in_blocks(shell, data, disk, tmp_path, monkeypatch):
    whole = shell("embed", disk, "--input", data, "--out", tmp_path / "whole.h5ad")
    assert whole.code == 0, whole.err
    monkeypatch.setattr("scmedley.data.memory.free_memory", lambda: 1000)
    said = shell("embed", disk, "--input", data, "--out", tmp_path / "blocks.h5ad")
    assert said.code == 0, said.err
    assert "it is read in blocks, and blocks.h5ad holds the results without a matrix" in said.err
    memory, blocks = ad.read_h5ad(tmp_path / "whole.h5ad"), ad.read_h5ad(tmp_path / "blocks.h5ad")
    assert blocks.X is None
    for key in (keys.FIXED, keys.RANDOM):
        np.testing.assert_allclose(blocks.obsm[key], memory.obsm[key], rtol=1e-4, atol=1e-5)
    assert (blocks.obs[keys.TRANSFERRED["label"]] == memory.obs[keys.TRANSFERRED["label"]]).all()
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{n}.{e}" for n in ("whole", "blocks") for e in ("h5ad", "html")
    }


def test_fits_of_an_experiment_share_a_store(data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        fitting,
        "umap",
        lambda adata, basis, **_: adata.obsm.update({keys.umap(basis): np.zeros((adata.n_obs, 2))}),
    )
    experiment = Experiment(
        name="small",
        data=str(data),
        methods=("PCA", "FE"),
        settings={"FE": {"hidden": (8,), "max_epochs": 1}},
        folds=3,
        n_latent=4,
        n_top_genes=60,
        classify=False,
        thorough=False,
    )
    how = {"jobs": 1, "say": lambda _: None, "progress": False}
    baseline = replace(experiment, methods=("PCA",), settings={})
    run(baseline, tmp_path / "memory", backed=False, **how)
    run(experiment, tmp_path / "disk", backed=True, **how)
    assert not (tmp_path / "disk" / "data.h5ad").exists()
    assert {p.name for p in (tmp_path / "disk" / "store").iterdir()} == {
        "all",
        *(f"cells-fold{i}" for i in range(3)),
    }
    tables = [pd.read_csv(tmp_path / name / "scores.csv") for name in ("memory", "disk")]
    assert set(tables[1].method) == {"PCA", "FE"}
    of_pca = [
        table[table.method == "PCA"].reset_index(drop=True) for table in tables
    ]  # needs no fit: the same cells
    pd.testing.assert_frame_equal(*of_pca)
    again = run(baseline, tmp_path / "two", store=tmp_path / "disk" / "store", **how)
    assert (
        again["input"]["sha256"]
        == json.loads((tmp_path / "disk" / "experiment.json").read_text())["input"]["sha256"]
    )
    with pytest.raises(ScmedleyError, match="'X_mine' needs the cells in memory"):
        run(
            replace(experiment, methods=("PCA", "X_mine"), settings={}),
            tmp_path / "three",
            backed=True,
            **how,
        )


def test_trials_of_a_search_share_a_store(data, tmp_path):
    pytest.importorskip("optuna")
    how = {"batch_key": "batch", "label_key": "cell_type", "trials": 1, "epochs": 1, "say": lambda _: None}
    record = tune(data, tmp_path / "out", backed=True, **how)
    assert set(record["test"]) == {"default", "best"}
    assert not (tmp_path / "out" / "data.h5ad").exists()
    assert (tmp_path / "out" / "best.toml").exists()


def test_one_gpu_a_worker():
    assert gpu_of(0, []) == gpu_of(5, ["0"]) == {}
    assert [gpu_of(i, ["2", "7"])["CUDA_VISIBLE_DEVICES"] for i in range(3)] == ["2", "7", "2"]
