"""``scmedley export``: each format by the rules of its reader. The readers themselves: test_export_tools.py."""

import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy.io import mmread
from scipy.sparse import csr_matrix

import run_folder
from running import Shell, tree
from scmedley import keys
from scmedley.export import FORMATS, cellbrowser, source, vitessce
from scmedley.pl._palette import colours, store_colours

NAMES = ("cellbrowser", "vitess", "multiqc", "parquet")
# Of Vitessce's configs, the names that ours use.
COORDINATION = {
    *("dataset", "obsType", "featureType", "featureValueType", "embeddingType", "obsColorEncoding"),
    *("obsSetSelection", "obsSetColor"),
}
VIEWS = {"scatterplot", "obsSets", "featureList", "obsSetSizes"}
PLOTS = {"table", "generalstats"}


@pytest.fixture
def shell(capsys):
    return Shell(capsys)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with clusters, text that breaks tables, missing labels, and 11 of 120 cells without a place."""
    folder = tmp_path_factory.mktemp("runs") / "my run"
    run_folder.write(folder, n_cells=120, drawn=109, labels=("B <b>&", 'NK "x"', "T\tcell"), brief=True)
    run_folder.add_clusters(folder)
    return _with(folder, _odd)


def _odd(adata: ad.AnnData) -> ad.AnnData:
    rng = np.random.default_rng(0)
    x = rng.poisson(0.7, (adata.n_obs, 70)).astype(np.float32)
    var = pd.DataFrame(index=[f"ENSG{i:011d}" for i in range(70)])
    var["gene_symbols"] = [f"G{i // 2}" for i in range(4)] + [f"G{i}" for i in range(4, 70)]
    var[keys.HVG] = np.arange(70) < 30
    adata.obs["note"] = np.where(np.arange(adata.n_obs) % 2, "two\nlines", "a\ttab")
    adata.obs["cell"] = adata.obs["cellId"] = "x"  # the names that the tables give to those of the cells
    adata.obs["depth"] = rng.normal(size=adata.n_obs)
    adata.obs["treated"] = np.arange(adata.n_obs) % 3 == 0
    adata.obs.loc[adata.obs_names[:3], "cell_type"] = np.nan
    obsm = dict(adata.obsm)
    return ad.AnnData(
        csr_matrix(x), adata.obs, var, obsm=obsm, layers={keys.LOGNORM: csr_matrix(np.log1p(x))}
    )


def _with(folder: Path, change) -> Path:
    path = folder / "integrated.h5ad"
    change(ad.read_h5ad(path)).write_h5ad(path)
    return folder


@pytest.fixture(scope="module")
def cells(run) -> ad.AnnData:
    return ad.read_h5ad(run / "integrated.h5ad")


@pytest.mark.parametrize("name", NAMES)
def test_two_exports_of_a_run_are_the_same_and_leave_it_alone(shell, run, tmp_path, name):
    before = tree(run)
    for out in ("first", "second"):
        said = shell("export", run, "--to", name, "--out", tmp_path / out)
        assert said.code == 0
        assert str(tmp_path / out) in said.out
        assert "Next: " in said.out
    assert tree(run) == before
    same = {path: text for path, text in tree(tmp_path / "first").items() if not path.endswith(".gz")}
    assert same.items() <= tree(tmp_path / "second").items()
    assert {path.name for path in tmp_path.iterdir()} == {"first", "second"}


def test_cell_browser(run, cells, tmp_path, monkeypatch):
    monkeypatch.setattr(source.Matrix.blocks, "__defaults__", (50,))  # three blocks of cells
    notes = cellbrowser.write(_read(run), tmp_path)
    conf: dict = {}
    exec((tmp_path / "cellbrowser.conf").read_text(), conf)  # as cbBuild does
    assert {"name", "shortLabel", "coords", "meta", "exprMatrix"} <= set(conf)
    assert conf["name"] == "my-run"

    meta = pd.read_csv(tmp_path / conf["meta"], sep="\t", quoting=3, dtype=str, keep_default_na=False)
    assert meta.columns[0] == "cellId_"
    assert list(meta["cellId_"]) == list(cells.obs_names)
    assert meta["cell_type"].tolist()[:3] == [""] * 3
    assert set(meta["cell_type"]) == {"", "B <b>&", 'NK "x"', "T cell"}
    assert set(meta["note"]) == {"two lines", "a tab"}
    assert set(conf["enumFields"]) == set(meta) - {"cellId_", "depth"}

    matrix = mmread(tmp_path / conf["exprMatrix"]).toarray()
    np.testing.assert_allclose(matrix.T, cells.layers[keys.LOGNORM].toarray(), rtol=1e-4)
    with gzip.open(tmp_path / "barcodes.tsv.gz", "rt") as file:
        assert file.read().split() == list(cells.obs_names)
    with gzip.open(tmp_path / "features.tsv.gz", "rt") as file:
        genes = [line.rstrip("\n").split("\t") for line in file]
    assert [pair[0] for pair in genes] == [pair[1] for pair in genes]
    assert genes[0][0] == "G0 (ENSG00000000000)"  # two genes share the symbol
    assert genes[4][0] == "G4"
    assert len({pair[0] for pair in genes}) == 70

    for place in conf["coords"]:
        table = pd.read_csv(tmp_path / place["file"], sep="\t", index_col="cellId")
        assert list(table.index) == list(cells.obs_names[:109])
        assert np.isfinite(table.to_numpy()).all()
    assert [place["shortLabel"] for place in conf["coords"]] == [
        "Fixed effects, UMAP",
        "Random effects, UMAP",
        "PCA, UMAP",
    ]
    assert all("109 of 120 cells" in note for note in notes)
    assert len(notes) == 3

    for column, name in conf["colors"].items():
        colours = pd.read_csv(tmp_path / name, sep="\t", quoting=3)
        assert set(colours["value"].astype(str)) == set(meta[column]) - {""}
        assert colours["color"].str.fullmatch("#[0-9a-f]{6}").all()
    (markers,) = conf["markers"]
    table = pd.read_csv(tmp_path / markers["file"], sep="\t", dtype={"cluster": str})
    assert list(table.columns[:3]) == ["cluster", "gene", "q"]
    assert conf["clusterField"] == keys.CLUSTER
    assert set(table["cluster"]) == set(meta[keys.CLUSTER])
    assert len((tmp_path / conf["quickGenesFile"]).read_text().splitlines()) == 20


def test_vitessce(run, cells, tmp_path, monkeypatch):
    monkeypatch.setattr(source.Matrix.blocks, "__defaults__", (50,))
    monkeypatch.setattr(vitessce, "ROWS", 40)  # chunks of cells; read blocks end inside of them
    notes = vitessce.write(_read(run), tmp_path, "https://host/here/")
    assert any("109 of 120 cells" in note for note in notes)
    kept = cells[:109]
    written = ad.read_zarr(tmp_path / "cells.zarr")
    np.testing.assert_array_equal(written.X, kept.layers[keys.LOGNORM].toarray())
    assert list(written.obs_names) == list(kept.obs_names)
    store = zarr.open_group(tmp_path / "cells.zarr", mode="r")
    assert store.metadata.zarr_format == 2
    assert store["X"].chunks == (40, 64)

    config = json.loads((tmp_path / "vitessce.json").read_text())
    assert set(config) >= {"version", "name", "datasets", "coordinationSpace", "layout", "initStrategy"}
    (data,) = config["datasets"]
    (file,) = data["files"]
    assert (file["fileType"], file["url"]) == ("anndata.zarr", "https://host/here/cells.zarr")
    options = file["options"]
    assert np.isfinite(np.concatenate([store[e["path"]][:] for e in options["obsEmbedding"]])).all()
    assert store[options["obsFeatureMatrix"]["initialFeatureFilterPath"]][:].sum() == 30
    for one in options["obsSets"]:
        assert store[one["path"]].attrs["encoding-type"] in ("categorical", "string-array", "array")
    space = config["coordinationSpace"]
    assert set(space) <= COORDINATION
    for view in config["layout"]:
        assert view["component"] in VIEWS
        assert view["x"] + view["w"] <= 12
        for kind, scope in view["coordinationScopes"].items():
            assert scope in space[kind]
    shown = {
        space["embeddingType"][v["coordinationScopes"].get("embeddingType", "map0")] for v in config["layout"]
    }
    assert shown == {e["embeddingType"] for e in options["obsEmbedding"]}
    paths = {(c["path"][0], c["path"][1]) for c in space["obsSetColor"]["A"]}
    assert {("cell_type", level) for level in kept.obs["cell_type"].cat.categories} <= paths
    assert list(written.obs["cell_type"][:4]) == ["missing"] * 3 + [kept.obs["cell_type"].iloc[3]]
    assert ["cell_type", "missing"] in space["obsSetSelection"]["A"]
    assert ("cell_type", "missing") in paths
    assert all(0 <= value <= 255 for c in space["obsSetColor"]["A"] for value in c["color"])


def test_multiqc(run, tmp_path):
    FORMATS["multiqc"].write(_read(run), tmp_path)
    sections = {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert set(sections) == {
        f"scmedley_{name}_mqc.json" for name in ("general", "scores", "verdicts", "warnings")
    }
    for section in sections.values():
        assert section["plot_type"] in PLOTS
        headers = section.get("headers") or {name for column in section["pconfig"] for name in column}
        for row, values in section["data"].items():
            assert row.startswith("my run")
            assert set(values) <= set(headers)
            assert values
        assert "<b>" not in json.dumps(section["data"])
    scores = sections["scmedley_scores_mqc.json"]["data"]["my run | Fixed effects"]
    assert {"batch ASW", "batch ASW null", "label ASW"} == set(scores)
    table = pd.read_csv(run / "scores.csv").query(f"embedding == {keys.FIXED!r} and of == 'batch'")
    assert [scores["batch ASW"], scores["batch ASW null"]] == table[["value", "null"]].iloc[0].tolist()
    verdicts = sections["scmedley_verdicts_mqc.json"]
    assert {row["mark"] for row in verdicts["data"].values()} == {"good", "weak"}


def test_multiqc_shows_the_worst_leak_that_was_measured(run, tmp_path):
    of = {"of": "batch", "embedding": keys.FIXED, "null": 0.01, "null_kind": "permuted batches", "n_cells": 9}
    rows = [("kNN leak", 0.1), ("logistic leak", 0.3), ("network leak", np.nan), ("ASW", 0.9)]
    scores = pd.DataFrame([{"score": score, "value": value} | of for score, value in rows])
    FORMATS["multiqc"].write(replace(_read(run), scores=scores), tmp_path)
    general = json.loads((tmp_path / "scmedley_general_mqc.json").read_text())
    assert general["data"]["my run"]["leak"] == 0.3
    assert "logistic leak" in json.dumps(general["pconfig"])


def test_parquet(run, cells, tmp_path):
    FORMATS["parquet"].write(_read(run), tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == {"obs", *cells.obsm}
    obs = pd.read_parquet(tmp_path / "obs.parquet").set_index("cell_")
    assert list(obs.index) == list(cells.obs_names)
    for name in cells.obs:
        pd.testing.assert_series_equal(
            obs[name].astype(object),
            cells.obs[name].astype(object),
            check_names=False,
            check_index_type=False,
        )
    for key, z_NP in cells.obsm.items():
        table = pd.read_parquet(tmp_path / f"{key}.parquet").set_index("cell")
        assert list(table.columns) == [f"dim_{i}" for i in range(z_NP.shape[1])]
        np.testing.assert_array_equal(table.to_numpy(), z_NP)
        assert table.to_numpy().dtype == np.float32


def test_parquet_without_pyarrow_says_how_to_install_it(shell, run, tmp_path, monkeypatch):
    monkeypatch.setattr("scmedley.export.parquet.find_spec", lambda name: None)
    assert (
        "pip install 'scmedley[export]'"
        in shell("export", run, "--to", "parquet", "--out", tmp_path / "o").error
    )
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--to", "cellbrowser", "--out", "there"), "exists already"),
        (("--to", "loupe", "--out", "new"), "cellbrowser"),
        (("--to", "parquet", "--out", "new", "--address", "http://x"), "--address is for --to vitess"),
        (("--to", "vitess", "--out", "new", "--address", "localhost:80"), "must begin with http"),
    ],
)
def test_bad_options(shell, run, tmp_path, arguments, words):
    (tmp_path / "there").mkdir()
    place = [tmp_path / a if a in ("new", "there") else a for a in arguments]
    assert words in shell("export", run, *place).error
    assert tree(tmp_path) == {"there": None}


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_is_no_finished_run(shell, tmp_path, name):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "not a run folder" in shell("export", empty, "--to", name, "--out", tmp_path / "out").error
    started = run_folder.write(
        tmp_path / "started", n_cells=60, brief=True, without=("umap", "pca", "null", "scores.csv")
    )
    _with(started, lambda adata: ad.AnnData(adata.X, adata.obs))
    error = shell("export", started, "--to", name, "--out", tmp_path / "out").error
    assert f"scmedley evaluate {started}" in error
    (started / "integrated.h5ad").unlink()
    error = shell("export", started, "--to", name, "--out", tmp_path / "out").error
    assert ("scores.csv" if name == "multiqc" else "integrated.h5ad") in error
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "started"}


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_another_kind(shell, tmp_path, name):
    (tmp_path / "experiment.json").write_text("{}")
    error = shell("export", tmp_path, "--to", name, "--out", tmp_path / "out").error
    assert "is an experiment folder, and not a run folder" in error


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_batches", [1, 300])
def test_few_and_many_batches_without_labels(shell, tmp_path, name, n_batches):
    batches = [f"dönor {i} <b>\"'" for i in range(n_batches)]
    without = ("labels", "umap", "pca", "null")
    folder = run_folder.write(
        tmp_path / "run", n_cells=900, batches=batches, genes=["G1"], brief=True, without=without
    )
    assert shell("export", folder, "--to", name, "--out", tmp_path / "out").code == 0
    found = source.level_colours(_read(folder), "protocol")
    assert len(found) > n_batches * 0.9
    assert len(set(found.values())) == min(len(found), 24)
    if name == "cellbrowser":
        table = pd.read_csv(tmp_path / "out" / "colors_0.tsv", sep="\t", quoting=3)
        assert set(table["value"]) == set(found)


def test_groups_without_a_value_have_a_name_of_their_own():
    column = pd.Series(pd.Categorical(["b", None, "a"], ["b", "a", "unused"]), ["x", "y", "z"], name="n")
    found = source.named(column)
    assert list(found) == ["b", "missing", "a"]
    assert list(found.cat.categories) == ["b", "a", "missing"]
    assert list(found.index) == ["x", "y", "z"]
    assert list(source.named(pd.Series([True, False])).cat.categories) == ["False", "True"]
    assert list(source.named(pd.Series(["missing", None], dtype="category"))) == ["missing"] * 2


def test_columns_whose_names_differ_in_white_space_alone_are_all_kept(tmp_path):
    def spaced(adata: ad.AnnData) -> ad.AnnData:
        adata.obs["a b"], adata.obs["a\tb"], adata.obs["a\n b"] = 1, "two", 3.5
        return adata

    folder = run_folder.write(tmp_path / "run", n_cells=60, brief=True)
    cellbrowser.write(_read(_with(folder, spaced)), tmp_path)
    meta = pd.read_csv(tmp_path / "meta.tsv", sep="\t", quoting=3)
    assert [meta[name].iloc[0] for name in ("a b", "a b_", "a b__")] == [1, "two", 3.5]


GIVEN = ["#010203", "#040506", "#070809"]


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        (GIVEN, GIVEN),
        ([*GIVEN[:2], "#070809ff"], GIVEN),  # scanpy's, with alpha
        (["red", "#0f0", "blue"], ["#ff0000", "#00ff00", "#0000ff"]),
        (np.eye(3), ["#ff0000", "#00ff00", "#0000ff"]),
        ([*GIVEN[:2], "no colour"], None),
        (GIVEN[:2], None),
        ([1, 2, 3], None),
        ({"A": "red"}, None),
        ("red", None),
    ],
)
def test_colours_of_the_file_are_kept_where_they_are_colours(coloured_run, tmp_path, stored, shown):
    def coloured(adata: ad.AnnData) -> ad.AnnData:
        adata.uns["protocol_colors"] = stored if isinstance(stored, dict | str) else np.array(stored)
        return adata

    run = _read(_with(coloured_run, coloured))
    assert list(source.level_colours(run, "protocol").values()) == (shown or colours(3))
    vitessce.write(run, tmp_path)


@pytest.mark.parametrize(
    "stored", [3, None, "red", {"a": 1, "b": 2, "c": 3}, ["x", "y", "z"], ["red", "blue"]]
)
def test_what_are_no_colours_is_replaced_in_a_run(stored):
    obs = pd.DataFrame({"type": pd.Categorical(["a", "b", "c"])}, index=["x", "y", "z"])
    adata = ad.AnnData(np.ones((3, 1)), obs)
    adata.uns["type_colors"] = stored
    store_colours(adata, ["type"])
    assert adata.uns["type_colors"] == colours(3)
    adata.uns["type_colors"] = ["red", "green", "blue", "black"]
    store_colours(adata, ["type"])
    assert adata.uns["type_colors"] == ["red", "green", "blue", "black"]


@pytest.fixture(scope="module")
def coloured_run(tmp_path_factory) -> Path:
    return run_folder.write(tmp_path_factory.mktemp("coloured") / "run", n_cells=60, brief=True)


@pytest.mark.parametrize("status", ["running", "fitted"])
def test_a_run_that_is_being_written_is_not_exported(shell, coloured_run, tmp_path, status):
    folder = tmp_path / "run"
    shutil.copytree(coloured_run, folder)
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"status": status}))
    error = shell("export", folder, "--to", "parquet", "--out", tmp_path / "out").error
    assert "is not finished: wait for it" in error
    assert not (tmp_path / "out").exists()


def test_of_two_exports_to_one_folder_the_first_stays(shell, coloured_run, tmp_path, monkeypatch):
    def slow(run, folder):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").touch()
        return []

    monkeypatch.setitem(FORMATS, "multiqc", replace(FORMATS["multiqc"], write=slow))
    error = shell("export", coloured_run, "--to", "multiqc", "--out", tmp_path / "out").error
    assert "another process" in error
    assert list(tree(tmp_path)) == ["out", "out/theirs"]


def test_a_full_disk_is_no_damaged_run(shell, coloured_run, tmp_path, monkeypatch):
    from scmedley.export import parquet

    write = parquet._write

    def full(tables, path):
        write(tables, path)
        if path.name != parquet.OBS:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(parquet, "_write", full)
    error = shell("export", coloured_run, "--to", "parquet", "--out", tmp_path / "o").error
    assert error.startswith("The disk is full")
    assert tree(tmp_path) == {}


def test_names_too_long_for_a_file_and_places_with_blanks(shell, coloured_run, tmp_path):
    def long(adata: ad.AnnData) -> ad.AnnData:
        adata.obs["é" * 150] = 1
        return adata

    folder = tmp_path / "run"
    shutil.copytree(coloured_run, folder)
    said = shell("export", _with(folder, long), "--to", "vitess", "--out", tmp_path / "a b")
    assert said.code == 0
    assert "too long for a file" in said.err
    assert f"npx http-server '{tmp_path / 'a b'}'" in said.out
    assert (tmp_path / "a b" / "cells.zarr").is_dir()


def _read(folder: Path):
    from scmedley.runs.read import read

    return read(folder)
