"""The table of scores on an AnnData: what it holds, and its errors."""

import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array

from scmedley import keys
from scmedley.errors import ScmedleyError
from scmedley.evaluate import (
    ari,
    asw,
    batch_leak,
    bras,
    calinski_harabasz,
    inverse_davies_bouldin,
    kmeans_clusters,
    knn_accuracy,
    label_leak,
    lisi,
    nearest,
    nmi,
    probes,
    scores,
)
from scmedley.evaluate.probes import PROBES
from scmedley.pp import permute_batches

LEAKS = [f"{probe} leak" for probe in PROBES]


@pytest.fixture
def adata() -> ad.AnnData:
    """600 cells, 3 batches, 2 labels unequally in them; embeddings of label, batch and noise."""
    rng = np.random.default_rng(0)
    batch = rng.integers(0, 3, 600)
    label = (rng.random(600) < 0.2 + 0.3 * batch).astype(int)
    data = ad.AnnData(csr_array((600, 2), dtype=np.float32))
    data.obs["donor"] = pd.Categorical([f"d{b}" for b in batch])
    data.obs["type"] = pd.Categorical(np.array(["B", "T"])[label])
    data.obs[keys.SPLIT] = rng.choice(["train", "validation", "test"], 600, p=[0.5, 0.1, 0.4])
    noise = rng.normal(size=(600, 5))
    data.obsm["X_label"] = noise + 6 * label[:, None] * np.eye(5)[0]
    data.obsm["X_batch"] = (noise + 6 * np.eye(5)[batch]).astype(np.float32)
    data.obsm["X_noise"] = noise
    return data


def cell(table: pd.DataFrame, embedding: str, score: str, of: str) -> pd.Series:
    """The one row of a score."""
    found = table[(table.embedding == embedding) & (table.score == score) & (table.of == of)]
    assert len(found) == 1
    return found.iloc[0]


def test_values_are_those_of_the_functions_on_held_out_cells(adata: ad.AnnData) -> None:
    table = scores(adata, ["X_batch"], "donor", "type", seed=3)
    z = adata.obsm["X_batch"]
    train, test = (adata.obs[keys.SPLIT] == part for part in ("train", "test"))
    codes = {
        "batch": adata.obs["donor"].cat.codes.to_numpy(),
        "label": adata.obs["type"].cat.codes.to_numpy(),
    }
    for of, c in codes.items():
        assert cell(table, "X_batch", "ASW", of).value == pytest.approx(asw(z[test], c[test], seed=3))
        assert cell(table, "X_batch", "CH", of).value == pytest.approx(calinski_harabasz(z[test], c[test]))
        assert cell(table, "X_batch", "1/DB", of).value == pytest.approx(
            inverse_davies_bouldin(z[test], c[test])
        )
    accuracy = cell(table, "X_batch", "kNN accuracy", "label")
    assert accuracy.value == knn_accuracy(z[train], codes["label"][train], z[test], codes["label"][test])
    for probe in PROBES:
        leak = batch_leak(
            z[train], codes["batch"][train], codes["label"][train],
            z[test], codes["batch"][test], codes["label"][test], probe=probe, seed=3,
        )  # fmt: skip
        row = cell(table, "X_batch", f"{probe} leak", "batch")
        assert (row.value, row["null"], row.null_sd, row.se) == (leak.value, 0, leak.null_sd, leak.se)
    assert table[~table.score.isin(LEAKS)]["se"].isna().all()
    assert len(table) == 10
    assert (table.n_cells == test.sum()).all()


def test_every_score_tells_the_embeddings_apart_beside_its_null(adata: ad.AnnData) -> None:
    table = scores(adata, ["X_label", "X_batch", "X_noise"], "donor", "type")
    table["excess"] = (table.value - table["null"]) / table.null_sd
    excess = table.set_index(["embedding", "score", "of"])["excess"]
    for score in ("ASW", "CH", "1/DB", *LEAKS):
        assert excess["X_batch", score, "batch"] > 5
    for leak in LEAKS:  # the spread of the other nulls, over 5 permutations, is only a rough one
        assert abs(excess["X_noise", leak, "batch"]) < 3
    for score in ("ASW", "CH", "1/DB", "kNN accuracy"):
        assert excess["X_label", score, "label"] > 5
    # Batches are permuted within labels, so an embedding that knows the label only is near its null.
    label_alone = table.set_index(["embedding", "score", "of"]).loc["X_label", "CH", "batch"]
    assert label_alone["value"] == pytest.approx(label_alone["null"], rel=0.2)
    assert label_alone["null"] > 10
    assert set(table.null_kind) == {
        "batches permuted within label", "labels permuted", "labels drawn by their shares",
    }  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer steps for the network, which is slow."""
    monkeypatch.setattr(probes, "_STEPS", 100)


MORE = {
    "batch": ["iLISI", "iLISI scaled", "BRAS"],
    "label": ["cLISI", "cLISI scaled", "ARI", "NMI", "NMI max", "kNN leak"],
}


def test_thorough_adds_rows_and_changes_none(adata: ad.AnnData) -> None:
    adata.obs.iloc[::40, adata.obs.columns.get_loc("type")] = np.nan
    default, table = (scores(adata, ["X_batch"], "donor", "type", thorough=t) for t in (False, True))
    pd.testing.assert_frame_equal(default, table.head(len(default)), check_exact=True)
    added = table.iloc[len(default) :]
    assert {of: list(rows.score) for of, rows in added.groupby("of")} == {
        of: sorted(names, key=list(added.score).index) for of, names in MORE.items()
    }
    assert added[["value", "null", "null_sd"]].notna().all(axis=None)


def test_thorough_values_are_those_of_the_functions(adata: ad.AnnData) -> None:
    adata.obs.iloc[::40, adata.obs.columns.get_loc("type")] = np.nan
    table = scores(adata, ["X_batch"], "donor", "type", seed=3, thorough=True)
    z, batch, label = adata.obsm["X_batch"], *(adata.obs[k].cat.codes.to_numpy() for k in ("donor", "type"))
    train, test = ((adata.obs[keys.SPLIT] == part).to_numpy() for part in ("train", "test"))
    parts = z[train], batch[train], label[train], z[test], batch[test], label[test]
    near = nearest(z[test], z[test], 90, exclude_self=True)
    labelled = test & (label >= 0)
    clusters = kmeans_clusters(z[labelled], 2, seed=3)
    i_median, c_median = (np.nanmedian(lisi(near, c[test])) for c in (batch, label))
    expected = {
        "iLISI": i_median,
        "iLISI scaled": (i_median - 1) / 2,
        "cLISI": c_median,
        "cLISI scaled": 2 - c_median,
        "BRAS": bras(z[test], batch[test], label[test]),
        "ARI": ari(clusters, label[labelled]),
        "NMI": nmi(clusters, label[labelled]),
        "NMI max": nmi(clusters, label[labelled], "max"),
        "kNN leak": label_leak(*parts, seed=3).value,
    }
    n_cells = {"iLISI": test.sum(), "iLISI scaled": test.sum()}
    for of, names in MORE.items():
        for name in names:
            row = cell(table, "X_batch", name, of)
            assert row.value == pytest.approx(expected[name], rel=1e-9, abs=1e-9), name
            assert row.n_cells == n_cells.get(name, labelled.sum()), name


def test_every_thorough_score_points_the_way_that_is_told(adata: ad.AnnData) -> None:
    table = scores(adata, ["X_label", "X_batch", "X_noise"], "donor", "type", thorough=True)
    value = table.set_index(["embedding", "score", "of"])[["value", "null"]].sort_index()
    for score in ("iLISI", "iLISI scaled", "BRAS"):  # high where batches are mixed, as the null is
        for embedding in ("X_label", "X_noise"):
            found = value.loc[(embedding, score, "batch")]
            assert found["value"] == pytest.approx(found["null"], rel=0.1)
        assert value.loc[("X_batch", score, "batch"), "value"] < 0.7 * found["null"]
    for score in LEAKS:
        assert value.loc[("X_batch", score, "batch"), "value"] > 0.9
        assert abs(value.loc[("X_label", score, "batch"), "value"]) < 0.2
    for score in ("cLISI scaled", "ARI", "NMI", "NMI max", "kNN leak"):
        assert value.loc[("X_label", score, "label"), "value"] > 0.9
        assert value.loc[("X_noise", score, "label"), "value"] < 0.4
    assert value.loc[("X_label", "cLISI", "label"), "value"] < 1.1
    assert set(table[table.of == "label"].null_kind) >= {"labels permuted", "labels permuted within batch"}


def test_thorough_without_labels_or_batches(adata: ad.AnnData) -> None:
    table = scores(adata, ["X_batch"], "donor", thorough=True)
    assert list(table.score) == ["ASW", "CH", "1/DB", *LEAKS, *MORE["batch"]]
    assert set(table.null_kind) == {"batches permuted"}
    assert table[["value", "null", "null_sd"]].notna().all(axis=None)
    adata.obs["donor"] = "only"
    table = scores(adata, ["X_label"], "donor", "type", thorough=True)
    assert table[table.of == "batch"][["value", "null", "null_sd"]].isna().all(axis=None)
    assert table[table.of == "label"]["value"].notna().all()
    adata.obs["type"] = pd.Categorical([np.nan] * 600, categories=["B"])
    table = scores(adata, ["X_label"], "donor", "type", thorough=True)
    assert table["value"].isna().all()


def test_thorough_on_one_held_out_cell(adata: ad.AnnData) -> None:
    adata.obs[keys.SPLIT] = ["test"] + ["train"] * 599
    table = scores(adata, ["X_label"], "donor", "type", thorough=True)
    assert table[table.score != "kNN accuracy"]["value"].isna().all()


def test_without_labels_composition_counts(adata: ad.AnnData) -> None:
    table = scores(adata, ["X_label"], "donor")
    assert set(table.of) == {"batch"}
    assert set(table.score) == {"ASW", "CH", "1/DB", *LEAKS}
    assert set(table.null_kind) == {"batches permuted"}
    leak = cell(table, "X_label", "kNN leak", "batch")
    assert leak.value > 3 * leak.null_sd


def test_chance_of_accuracy_is_that_of_random_draws(adata: ad.AnnData) -> None:
    row = cell(scores(adata, ["X_noise"], "donor", "type"), "X_noise", "kNN accuracy", "label")
    rng = np.random.default_rng(1)
    train, test = (adata.obs["type"][adata.obs[keys.SPLIT] == part].to_numpy() for part in ("train", "test"))
    drawn = [np.mean(rng.choice(train, len(test)) == test) for _ in range(2000)]
    assert row["null"] == pytest.approx(np.mean(drawn), abs=0.005)
    assert row.null_sd == pytest.approx(np.std(drawn), rel=0.1)


def test_cells_without_a_label_count_for_batches_only(adata: ad.AnnData) -> None:
    test = np.flatnonzero(adata.obs[keys.SPLIT] == "test")
    adata.obs.iloc[test[:50], adata.obs.columns.get_loc("type")] = np.nan
    table = scores(adata, ["X_label"], "donor", "type")
    assert cell(table, "X_label", "ASW", "batch").n_cells == len(test)
    for score, of in (("ASW", "label"), ("CH", "label"), ("kNN accuracy", "label"), ("kNN leak", "batch")):
        assert cell(table, "X_label", score, of).n_cells == len(test) - 50


def test_same_seed_same_table(adata: ad.AnnData) -> None:
    before = adata.copy()
    first = scores(adata, ["X_batch", "X_noise"], "donor", "type", max_cells=100)
    pd.testing.assert_frame_equal(
        first, scores(adata, ["X_batch", "X_noise"], "donor", "type", max_cells=100)
    )
    alone = scores(adata, "X_noise", "donor", "type", max_cells=100)  # one key may stand alone
    pd.testing.assert_frame_equal(first[first.embedding == "X_noise"].reset_index(drop=True), alone)
    assert cell(first, "X_noise", "ASW", "batch").n_cells == 100
    pd.testing.assert_frame_equal(before.obs, adata.obs)


def test_a_split_is_drawn_where_there_is_none(adata: ad.AnnData) -> None:
    del adata.obs[keys.SPLIT]
    table = scores(adata, ["X_batch"], "donor", "type")
    assert cell(table, "X_batch", "CH", "batch").n_cells == pytest.approx(120, abs=6)


def test_what_is_stored_otherwise_gives_the_same(adata: ad.AnnData) -> None:
    expected = scores(adata, ["X_batch"], "donor", "type")
    z = adata.obsm["X_batch"]
    adata.obsm["X_batch"] = csr_array(z)
    pd.testing.assert_frame_equal(expected, scores(adata, ["X_batch"], "donor", "type"))
    adata.obsm["X_batch"] = pd.DataFrame(z, index=adata.obs_names, columns=list("abcde"))
    adata.obs["donor"] = adata.obs["donor"].astype(str).astype(object)
    pd.testing.assert_frame_equal(expected, scores(adata, ["X_batch"], "donor", "type"))


def test_one_batch_scores_nan(adata: ad.AnnData) -> None:
    adata.obs["donor"] = "only"
    table = scores(adata, ["X_label"], "donor", "type")
    assert table[table.of == "batch"][["value", "null", "null_sd"]].isna().all(axis=None)
    assert table[table.of == "label"]["value"].notna().all()


def _break_embedding(adata: ad.AnnData) -> None:
    adata.obsm["X_batch"][7, 2] = np.inf


def _break_batch(adata: ad.AnnData) -> None:
    adata.obs.iloc[7, adata.obs.columns.get_loc("donor")] = np.nan


def _break_split(adata: ad.AnnData) -> None:
    adata.obs[keys.SPLIT] = "train"


def _break_shape(adata: ad.AnnData) -> None:
    adata.obsm["X_batch"] = np.zeros((600, 0))


@pytest.mark.parametrize(
    ("break_it", "arguments", "message"),
    [
        (None, (["X_umap"], "donor"), r"no embedding 'X_umap'; there are: X_label, X_batch, X_noise"),
        (None, (["X_batch"], "batch"), r"obs has no column 'batch'; there are: donor, type"),
        (None, (["X_batch"], "donor", "label"), r"obs has no column 'label'"),
        (
            _break_embedding,
            (["X_batch"], "donor"),
            r"obsm\['X_batch'\] holds inf for cell '7' \(dimension 2; 1",
        ),
        (
            _break_batch,
            (["X_batch"], "donor"),
            r"1 cells have no batch in obs\['donor'\] \(the first is '7'\)",
        ),
        (_break_split, (["X_batch"], "donor"), r"marks no cell as 'test'"),
        (_break_shape, (["X_batch"], "donor"), r"has shape \(600, 0\)"),
    ],
)
def test_errors_say_what_and_where(adata: ad.AnnData, break_it, arguments, message: str) -> None:  # type: ignore[no-untyped-def]
    if break_it:
        break_it(adata)
    with pytest.raises(ScmedleyError, match=message):
        scores(adata, *arguments)


def test_too_few_cells_to_hold_any_out(adata: ad.AnnData) -> None:
    del adata.obs[keys.SPLIT]
    with pytest.raises(ScmedleyError, match="The 2 cells are too few"):
        scores(
            adata[[0, np.flatnonzero(adata.obs["donor"] != adata.obs["donor"].iloc[0])[0]]],
            ["X_batch"],
            "donor",
        )


def test_import_is_light() -> None:
    code = "import sys, scmedley.evaluate; print(*{'sklearn', 'umap', 'matplotlib'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == ""


@pytest.mark.parametrize("label_key", ["type", None])
def test_permuted_batches_keep_labels_and_parts(adata: ad.AnnData, label_key: str | None) -> None:
    adata.obs["donor"] = adata.obs["donor"].cat.add_categories("tiny")
    adata.obs.loc[adata.obs_names[adata.obs[keys.SPLIT] == "train"][:1], "donor"] = "tiny"
    within = [adata.obs[k].astype(str) for k in (label_key, keys.SPLIT) if k]
    before = adata.obs.groupby([*within, "donor"], observed=True).size()
    changed = []
    for seed in range(5):
        permute_batches(adata, "donor", label_key, seed=seed)
        after = adata.obs.groupby([*within, keys.PERMUTED], observed=True).size()
        assert after.to_dict() == before.to_dict()
        changed.append(float((adata.obs[keys.PERMUTED].astype(str) != adata.obs["donor"].astype(str)).mean()))
    assert min(changed) > 0.4
    # Nothing is left to read, however large the effect of the real batches.
    null = cell(scores(adata, ["X_batch"], keys.PERMUTED, label_key), "X_batch", "kNN leak", "batch")
    if label_key:
        assert abs(null.value) < 3 * null.null_sd


def test_permuted_batches_without_a_split(adata: ad.AnnData) -> None:
    del adata.obs[keys.SPLIT]
    permute_batches(adata, "donor", "type")
    tables = [pd.crosstab(adata.obs["type"], adata.obs[k]).to_numpy() for k in ("donor", keys.PERMUTED)]
    np.testing.assert_array_equal(*tables)


def test_blank_labels_and_batches_are_missing(adata: ad.AnnData) -> None:
    adata.obs["type"] = adata.obs["type"].astype(object)
    adata.obs.loc[adata.obs_names[::10], "type"] = " "
    table = scores(adata, ["X_noise"], "donor", "type")
    held_out = (adata.obs[keys.SPLIT] == "test") & (adata.obs["type"] != " ")
    assert cell(table, "X_noise", "ASW", "label").n_cells == held_out.sum()
    adata.obs["donor"] = adata.obs["donor"].astype(object)
    adata.obs.loc["7", "donor"] = ""
    with pytest.raises(ScmedleyError, match=r"1 cells have no batch .*'7'"):
        scores(adata, ["X_noise"], "donor")
