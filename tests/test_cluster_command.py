"""``scmedley cluster``: what it writes, what it prints, and what it says when it cannot go on."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from running import Shell, some_cells, tree
from scmedley import keys
from scmedley.clusters import find
from scmedley.runs.read import TABLES, read_table

FILES = {
    *(
        "clustered.h5ad",
        "cluster.json",
        "versions.json",
        "clusters.csv",
        "cluster_evidence.csv",
        "markers.csv",
    ),
    *("cluster_tree.csv", "cluster_by_batch.csv", "cluster_by_label.csv"),
}
ROLES = ("--batch", "batch", "--label", "cell_type", "--donor", "batch")


@pytest.fixture
def shell(capsys):
    return Shell(capsys)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Cells with an embedding of three groups, their types, and one with labels only."""
    adata = some_cells(300, 40)
    rng = np.random.default_rng(0)
    code = adata.obs["cell_type"].astype("category").cat.codes.to_numpy()
    adata.obsm["X_pca_harmony"] = (12 * np.eye(3)[code] + rng.normal(size=(300, 3))).astype(np.float32)
    adata.obsm["X_types"] = np.eye(3, dtype=np.float32)[code]
    broken = adata.obsm["X_pca_harmony"].copy()
    broken[7, 1] = np.nan
    adata.obsm["X_broken"] = broken
    path = tmp_path_factory.mktemp("data") / "cells.h5ad"
    adata.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def _kept():
    return {}


@pytest.fixture
def done(shell, data, _kept, tmp_path_factory):
    """A finished folder, made once, and what was printed: look, do not change."""
    if not _kept:
        out = tmp_path_factory.mktemp("done") / "clusters"
        said = shell.well("cluster", data, "--use", "X_pca_harmony", *ROLES, "--out", out, "--threads", 1)
        _kept.update(out=out, said=said)
    return _kept["out"], _kept["said"]


def test_all_tables_are_written_and_can_be_read_again(done, data):
    out, said = done
    assert {path.name for path in out.iterdir()} == FILES
    tables = {name: read_table(out / name) for name in TABLES if (out / name).exists()}
    assert len(tables) == 6
    adata = ad.read_h5ad(out / "clustered.h5ad")
    clusters = find(adata.obsm["X_pca_harmony"])
    assert clusters.k == 3
    np.testing.assert_array_equal(adata.obs[keys.CLUSTER].cat.codes, clusters.code_N)
    np.testing.assert_allclose(adata.obsm[keys.MEMBERSHIP].sum(1), 1, rtol=1e-6)
    before = ad.read_h5ad(data)
    np.testing.assert_array_equal(adata.X.toarray(), before.X.toarray())
    assert set(before.obsm) < set(adata.obsm)

    cells = tables["clusters.csv"]
    assert list(cells["cell"]) == list(adata.obs_names)
    assert list(cells["cluster"]) == list(adata.obs[keys.CLUSTER])
    assert set(cells["name"]) == {f"{name} (100 %)" for name in ("H1975", "H2228", "HCC827")}
    assert cells["membership"].between(0, 1).all()
    assert (
        tables["cluster_by_batch.csv"]["cells"].sum() == tables["cluster_by_label.csv"]["cells"].sum() == 300
    )
    evidence = tables["cluster_evidence.csv"]
    assert evidence["stands"].all()
    assert list(evidence["cells"]) == list(np.bincount(clusters.code_N))
    found = tables["cluster_tree.csv"]
    assert set(found["cluster first"]) | set(found["cluster second"]) == {"", "0", "1", "2"}
    of_leaf = {
        int(row[side]): row[f"cluster {side}"]
        for row in found.to_dict("records")
        for side in ("first", "second")
        if row[side] <= len(found)
    }
    assert [of_leaf[i] for i in range(len(found) + 1)] == [str(k) for k in clusters.cluster_C]
    assert set(tables["markers.csv"]["cluster"]) == {"0", "1", "2"}

    record = json.loads((out / "cluster.json").read_text())
    assert (record["clusters"], record["supported"], record["config"]["use"]) == (3, 3, "X_pca_harmony")
    assert "; seen in 3 of 3 batches." in said
    assert "3 clusters, of " in said
    assert all(f"  - {sentence}" in said for sentence in record["findings"])
    assert f"Cells and tables: {out.resolve()}" in said


def test_the_number_of_clusters_can_be_chosen(shell, data, tmp_path):
    for options, k in ((("--k", 2), 2), (("--level", 2), 5), (("--level", -9), 1)):
        out = tmp_path / str(k)
        said = shell("cluster", data, "--use", "X_pca_harmony", *options, "--out", out)
        assert said.code == 0
        assert pd.read_csv(out / "cluster_evidence.csv")["cluster"].nunique() == k
        assert "This number was chosen; the evidence supports 3." in said.out
        assert not (out / "cluster_by_batch.csv").exists()
        first = read_table(out / "markers.csv").query("cluster == '0' and log2_fold_change > 0")["gene"][:3]
        named = f"cluster 0 ({', '.join(first)})" if len(first) else "cluster 0"
        assert read_table(out / "cluster_evidence.csv")["name"][0] == named
        assert f"C{named[1:]}: " in said.out
    assert "There is one cluster only" in said.err
    assert read_table(tmp_path / "1" / "markers.csv").empty


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--use", "X_umap"],
            "obsm has no embedding 'X_umap'. It has: X_broken, X_mine, X_pca_harmony, X_types",
        ),
        (["--use", "cell_type"], "'cell_type' is a column of obs, which holds one value a cell"),
        (["--use", "X_types"], "only 3 different rows for 300 cells: these are labels"),
        (["--use", "X_broken"], "not finite in 1 of 300 cells; the first is cell"),
        (["--use", "X_mine", "--k", 301], "k=301"),
        (["--use", "X_mine", "--k", 0], "k=0"),
        (["--use", "X_mine", "--threads", 0], "Must be >= 1"),
        (["--use", "X_mine", "--k", 1.5], "1.5 is not a whole number"),
        (["--use", "X_mine", "--k", 3, "--level", 1], "--k (a number of clusters) and --level"),
        (["--use", "X_mine", "--batch", "plate"], "batch key 'plate' is not a column of obs"),
        (
            ["--use", "X_mine", "--label", keys.CLUSTER],
            "is the column of clusters, which this command writes",
        ),
    ],
)
def test_what_cannot_be_done_says_why_and_leaves_nothing(shell, data, tmp_path, options, words):
    out = tmp_path / "out"
    assert words in shell("cluster", data, *options, "--out", out).error
    assert tree(tmp_path) == {}


def test_a_folder_is_replaced_only_if_asked_and_only_its_own(shell, data, done, tmp_path):
    out, _ = done
    again = ("cluster", data, "--use", "X_pca_harmony", "--out")
    before = tree(out)
    assert "holds a clustering already" in shell(*again, out).error
    other = tmp_path / "mine"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    assert "is no folder of a clustering" in shell(*again, other).error
    (other / "cluster.json").write_text("{}")
    assert (
        "holds other files beside the clustering ('notes.txt')" in shell(*again, other, "--overwrite").error
    )
    assert tree(out) == before
    (other / "notes.txt").unlink()
    shell.well(*again, other, "--overwrite", "--quiet", *ROLES)
    assert {path.name for path in other.iterdir()} == FILES


def test_values_that_cannot_be_used_cost_only_the_markers(shell, data, tmp_path):
    adata = ad.read_h5ad(data)
    adata.X = np.random.default_rng(0).normal(size=adata.shape).astype(np.float32)
    adata.write_h5ad(tmp_path / "scaled.h5ad")
    out = tmp_path / "out"
    said = shell("cluster", tmp_path / "scaled.h5ad", "--use", "X_pca_harmony", "--out", out)
    assert said.code == 0
    assert "warning: No marker genes: Markers need counts" in said.err
    assert not (out / "markers.csv").exists()


def test_a_stopped_command_says_what_it_left_and_that_it_starts_again(shell, data, tmp_path, monkeypatch):
    (tmp_path / ".out.0123abcd").mkdir()

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("scmedley.pipeline.clusters.find", stop)
    said = shell("cluster", data, "--use", "X_pca_harmony", "--out", tmp_path / "out")
    assert ".out.0123abcd was left by a command that was killed" in said.err
    assert said.err.endswith("interrupted. The same command starts from the beginning.\n")


def test_an_option_given_twice_is_named(shell, data, tmp_path):
    twice = ("cluster", data, "--use", "X_pca_harmony", "--out", tmp_path / "out", "--seed", 1, "--seed", 2)
    assert shell(*twice).error.endswith("Give it once.")
    assert "Join several columns of obs" in shell(*twice[:-2], "--batch", "a", "--batch", "b").error
