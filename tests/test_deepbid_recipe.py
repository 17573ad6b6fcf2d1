"""The recipe of the DeepBID paper's evaluation: it runs, resumes, and its tests of genes are what they say."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from scipy.sparse import csr_matrix

import scmedley as sm
from scmedley.errors import ScmedleyError

RECIPES = Path(__file__).parents[1] / "recipes"
if not RECIPES.exists():  # in a source distribution
    pytest.skip("no recipes here", allow_module_level=True)
sys.path.insert(0, str(RECIPES))

import deepbid  # noqa: E402
import deepbid_donors as donors  # noqa: E402
import deepbid_grids as grids  # noqa: E402
import deepbid_methods as methods  # noqa: E402
import deepbid_tables as tables  # noqa: E402


def mixology(n_cells: int = 120, n_genes: int = 150) -> AnnData:
    return methods.few(sm.datasets.sc_mixology()[:, :n_genes], n_cells)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a set, and the file of a method that was run elsewhere."""
    folder = tmp_path_factory.mktemp("data")
    adata = mixology()
    adata.write_h5ad(folder / "cell_lines.h5ad")
    z = pd.DataFrame(np.random.default_rng(0).normal(size=(120, 3)), index=adata.obs_names).iloc[::-1]
    z.assign(cluster=adata.obs["cell_type"].iloc[::-1].astype(str)).to_csv(folder / "desc.csv")
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *options: object) -> None:
    monkeypatch.setattr(sys, "argv", ["deepbid.py", "--quick", *map(str, options)])
    deepbid.main()


def test_evaluation_runs_and_resumes(folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    options = [
        "--sets",
        "cell_lines",
        "DC",
        "--data",
        folder,
        "--out",
        tmp_path,
        "--methods",
        "PCA",
        "DeepBID, paper",
    ]
    options += ["DeepBID", "LIGER", "--latent", f"DESC={folder / 'desc.csv'}", "--seeds", "0", "1"]
    monkeypatch.setattr(deepbid, "left_out", lambda name, _: "not installed" if name == "LIGER" else "")
    run(monkeypatch, *options)
    said = capsys.readouterr().out
    assert "DC: left out, there is no" in said
    assert "cell_lines, LIGER: left out, not installed" in said
    scores = pd.read_csv(tmp_path / "scores.csv").set_index(["method", "clusters"])
    assert set(scores["seed"]) == {0}  # --quick
    assert {"evidence", "evidence, K given", "k-means, K given"} <= set(scores.loc["DeepBID"].index)
    assert {"memberships, K given", "k-means, K given"} <= set(scores.loc["DeepBID, paper"].index)
    assert scores.loc[("DESC", "its own"), "ARI"] == 1.0  # found by name: the file has another order
    assert abs(scores.loc[("DESC", "k-means, K given"), "ARI"]) < 0.1
    assert scores.loc[("PCA", "k-means, K given"), "K"] == 3
    assert scores["iLISI"].between(1, 3).all()
    assert (scores["NMI max"] <= scores["NMI"] + 1e-9).all()
    published = pd.read_csv(tmp_path / "published.csv")
    here = published[(published["data"] == "Cell_lines") & (published["method"] == "DeepBID")]
    here = here.set_index("score")
    assert here.loc["ARI", "value"] == 0.99821
    assert_allclose(
        here.loc["ARI", "ours"], scores.loc[("DeepBID, paper", "memberships, K given"), "ARI"], 1e-5
    )
    figures = {path.name for path in tmp_path.glob("*.png")}
    assert figures == {"ari_nmi.png", "lisi.png", "umap_cell_lines.png"}
    before = (tmp_path / "tables.md").read_text()
    monkeypatch.setattr(deepbid, "measure", lambda *_: pytest.fail("was not resumed"))
    run(monkeypatch, *options)
    assert (tmp_path / "tables.md").read_text() == before


def test_series_run_and_resume(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(grids, "QUICK_SIZES", (60, 120))
    monkeypatch.setattr(grids, "QUICK_GRID", 1)
    cells = mixology(60)
    monkeypatch.setattr(deepbid.sm.datasets, "sc_mixology", lambda: cells)
    options = [
        "--sets",
        "--seconds",
        "--sensitivity",
        "--methods",
        "PCA",
        "DeepBID, paper",
        "--out",
        tmp_path,
    ]
    run(monkeypatch, *options)
    seconds = pd.read_csv(tmp_path / "seconds.csv")
    assert list(seconds["cells"]) == [60, 120]
    assert (seconds["seconds"] > 0).all()
    grid = pd.read_csv(tmp_path / "sensitivity.csv")
    assert list(grid["grid"]) == ["lambda", "kappa1", "kappa2"]
    assert grid["ARI"].notna().all()
    assert {path.name for path in tmp_path.glob("*.png")} == {"seconds.png", "sensitivity.png"}
    monkeypatch.setattr(grids, "fit", lambda *_: pytest.fail("was not resumed"))
    run(monkeypatch, *options)


def test_latent_files(tmp_path: Path) -> None:
    adata = mixology(20)
    z = np.arange(60.0).reshape(20, 3)
    np.savez(tmp_path / "z.npz", cells=adata.obs_names.to_numpy(str), z=z)
    task = methods.Task("set", "DESC", 0, tmp_path, latent=tmp_path / "z.npz")
    fitted = methods.fit(task, adata[::-1], 1, False)
    assert_array_equal(fitted.z_NP, z[::-1])
    assert fitted.clusters == {}
    pd.DataFrame(z[:19], index=adata.obs_names[:19]).to_csv(tmp_path / "z.csv")
    with pytest.raises(ScmedleyError, match="lacks 1 of 20 cells"):
        methods.fit(methods.Task("set", "DESC", 0, tmp_path, latent=tmp_path / "z.csv"), adata, 1, False)
    pd.DataFrame({"a": ["x"] * 20}, index=adata.obs_names).to_csv(tmp_path / "text.csv")
    with pytest.raises(ScmedleyError, match="need numbers"):
        methods.read_latent(tmp_path / "text.csv")


def test_a_fit_that_fails_is_a_row_with_its_reason(tmp_path: Path) -> None:
    task = methods.Task("set", "DeepBID, paper: sums", 0, tmp_path, {"learning_rate": 1e6})
    methods.measure(task, methods.prepared(mixology(60), published=True), 1, True)
    table = tables.scores([task.path])
    assert table["status"].tolist() == ["failed"]
    assert table["reason"].iloc[0] in tables.markdown(table, tables.published(table, {}))


def test_slope_of_a_power_law() -> None:
    cells = np.array([100, 1000, 5000])
    table = pd.DataFrame({"method": "a", "cells": cells, "seconds": 0.3 * cells**1.2})
    (row,) = tables.slopes(table).to_dict("records")
    assert_allclose([row["slope"], np.exp(row["intercept"])], [1.2, 0.3])


def test_enlarged_cells_are_not_copies() -> None:
    adata = mixology(30)
    more = grids.enlarged(adata, 90)
    assert more.shape == (90, adata.n_vars)
    assert len(np.unique(more.X.toarray(), axis=0)) == 90
    assert_allclose(more.X.sum() / 90, 0.8 * adata.X.sum() / 30, rtol=0.25)


def cells_of(n_donors: int, crossed: bool, effect: float, seed: int = 0) -> AnnData:
    """Return cells of two types; genes 0-9 change with the condition by ``effect``, genes 10-19 mark type "b"."""
    rng = np.random.default_rng(seed)
    n = 60 * n_donors
    donor, kind = np.repeat(np.arange(n_donors), 60), np.tile(["a", "b"], n // 2)
    condition = np.arange(n) // 2 % 2 if crossed else donor % 2
    log_NG = rng.normal(0, 0.15, (n_donors, 80))[donor] + 1
    log_NG[:, :10] += effect * condition[:, None] * np.repeat([1, -1], 5)  # totals stay about the same
    log_NG[:, 10:20] += 0.8 * (kind == "b")[:, None]
    obs = {"donor": donor.astype(str), "condition": np.array(["ctrl", "stim"])[condition], "cell_type": kind}
    table = pd.DataFrame(obs, index=[f"c{i}" for i in range(n)])
    genes = pd.DataFrame(index=[f"g{i}" for i in range(80)])
    adata = AnnData(csr_matrix(rng.poisson(np.exp(log_NG)).astype(np.float32)), obs=table, var=genes)
    sm.pp.prepare(adata, "donor", label_key="cell_type")
    return adata


def case_of(adata: AnnData, cluster: str = "cell_type") -> donors.Case:
    return donors.case_of(adata, "donor", "condition", "cell_type", adata.obs[cluster].cat.codes.to_numpy())


@pytest.mark.parametrize("crossed", [True, False])
@pytest.mark.filterwarnings("ignore::scmedley.errors.ScmedleyWarning")
def test_true_effects_replicate_in_held_out_donors(crossed: bool, tmp_path: Path, monkeypatch) -> None:
    n_donors = 8 if crossed else 16
    case = case_of(cells_of(n_donors, crossed, 1.0))
    half_N = donors.halves(case)
    for side in (half_N, ~half_N):
        assert set(case.condition_N[side]) == {"ctrl", "stim"}
        assert len(set(case.donor_N[side])) == n_donors / 2
    assert not set(case.donor_N[half_N]) & set(case.donor_N[~half_N])
    counts, replicated = donors.study(case, 0.05, tmp_path)
    counts = counts.set_index(["contrast", "test", "type"])
    assert counts.loc[("between conditions", "donors", "a"), "labels"] >= 6
    assert counts.loc[("against other cells", "cells", "b"), "labels"] >= 10
    assert (counts["labels"] == counts["clusters"]).all()  # here clusters are labels
    assert (counts["common"] == counts["labels"]).all()
    share = replicated.set_index(["contrast", "test", "held-out test", "genes"])
    by_donors = share.loc[("between conditions", "donors", "donors", "labels")]
    assert by_donors["found"] >= 12
    assert by_donors["share"] > 0.7
    assert by_donors["share of others"] < 0.15
    assert share.loc[("between conditions", "cells", "cells", "labels alone"), "found"] == 0
    monkeypatch.setattr(donors, "compare", lambda *_: pytest.fail("was not resumed"))
    again = donors.study(case, 0.05, tmp_path)
    pd.testing.assert_frame_equal(again[1], replicated)


@pytest.mark.filterwarnings("ignore::scmedley.errors.ScmedleyWarning")
def test_donor_effects_are_found_by_cells_but_do_not_replicate(tmp_path: Path) -> None:
    counts, replicated = donors.study(case_of(cells_of(8, False, 0.0)), 0.05, tmp_path)
    counts = counts[counts["contrast"] == "between conditions"].groupby("test")["labels"].sum()
    assert (
        counts["cells"] > 10
    )  # no gene differs between the conditions: cells of a donor are not independent
    assert counts["donors"] <= 2
    row = replicated.set_index(["contrast", "test", "held-out test", "genes"])
    assert row.loc[("between conditions", "cells", "donors", "labels"), "share"] < 0.15


@pytest.mark.filterwarnings("ignore::scmedley.errors.ScmedleyWarning")
def test_tests_are_those_of_scipy() -> None:
    case = case_of(cells_of(4, True, 0.5))
    table = donors.compare(case, "labels", "between conditions", np.ones(240, dtype=bool))
    table = table[table["type"] == "a"]
    stim, ctrl = ((case.types["labels"] == "a") & (case.condition_N == name) for name in ("stim", "ctrl"))
    x, y = (case.log_NG[side].toarray() for side in (stim, ctrl))
    assert_allclose(table["cells: p"], stats.mannwhitneyu(x, y, use_continuity=False).pvalue, rtol=1e-3)
    assert_allclose(table["cells: q"], stats.false_discovery_control(table["cells: p"]))
    sums = [
        np.array([case.counts_NG[side & (case.donor_N == d)].toarray().sum(0, dtype=float) for d in "0123"])
        for side in (stim, ctrl)
    ]
    x, y = (np.log2(1e4 * s / s.sum(1, keepdims=True) + 0.1) for s in sums)
    assert_allclose(table["donors: p"], stats.ttest_rel(x, y).pvalue)
    assert_allclose(table["donors: difference"], (x - y).mean(0))
    assert set(table["n donors"]) == {4}


def test_clusters_are_named_after_their_most_frequent_label() -> None:
    named = donors.named(np.array([0, 0, 0, 1, 1, 2]), np.array(["T", "T", "B", "B", "B", "T"]))
    assert list(named) == ["T", "T", "T", "B", "B", "T"]


@pytest.mark.filterwarnings("ignore::scmedley.errors.ScmedleyWarning")
def test_too_few_donors_to_hold_any_out(tmp_path: Path, capsys) -> None:
    adata = cells_of(2, False, 0.5)
    with pytest.raises(ScmedleyError, match="need more donors"):
        donors.halves(case_of(adata))
    counts, replicated = donors.study(case_of(adata), 0.05, tmp_path)
    assert "Held-out donors: left out" in capsys.readouterr().out
    assert len(counts) == 8
    assert replicated.empty
    adata.obs["condition"] = pd.Categorical(["x", "y", "z"] * 40)
    with pytest.raises(ScmedleyError, match="has 3 values"):
        case_of(adata)


@pytest.mark.filterwarnings("ignore::scmedley.errors.ScmedleyWarning")
def test_case_study_runs(tmp_path: Path, monkeypatch) -> None:
    cells_of(4, True, 0.5).write_h5ad(tmp_path / "cells.h5ad")
    options = [
        "--sets",
        "--case",
        tmp_path / "cells.h5ad",
        "--condition",
        "condition",
        "--methods",
        "DeepBID",
    ]
    run(monkeypatch, *options, "--case-k", "--out", tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").glob("*cells*") if path.is_file()}
    kinds = (
        "deg_cells_k_given.csv",
        "replication_cells_k_given.csv",
        "deg_cells_k_given.png",
        "umap_cells.png",
    )
    assert names == set(kinds)
    monkeypatch.setattr(sys, "argv", [])
    with pytest.raises(ScmedleyError, match="no column 'condition2'"):
        deepbid.with_columns(cells_of(4, True, 0.5), "condition2", "cell_type")
