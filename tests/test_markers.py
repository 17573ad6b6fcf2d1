"""Marker genes and names of clusters."""

import anndata
import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from anndata import AnnData
from scipy import stats
from scipy.sparse import csr_matrix

from scmedley import keys
from scmedley.errors import ScmedleyError, ScmedleyWarning
from scmedley.interpret import cluster_names, cluster_table, describe_clusters, markers
from scmedley.interpret.markers import COLUMNS, PSEUDOCOUNT

GENES, DONORS, PER_DONOR = 30, 4, 60


def cells(seed: int = 0) -> AnnData:
    """Three clusters in four donors: gene k is five times as high in cluster k, gene 3 only in cluster 0 of d0."""
    rng = np.random.default_rng(seed)
    n = DONORS * PER_DONOR
    donor, cluster = np.repeat(np.arange(DONORS), PER_DONOR), np.tile(np.arange(PER_DONOR) % 5 % 3, DONORS)
    mean = (
        rng.gamma(2.0, 2.0, GENES)
        * rng.lognormal(0, 0.3, (n, 1))
        * rng.lognormal(0, 0.2, (DONORS, GENES))[donor]
    )
    for k in range(3):
        mean[cluster == k, k] *= 5
    mean[:, 3] = 2.0
    mean[(cluster == 0) & (donor == 0), 3] = 100.0
    obs = pd.DataFrame(
        {
            keys.CLUSTER: pd.Categorical(cluster.astype(str)),
            "donor": pd.Categorical([f"d{d}" for d in donor]),
            "cell_type": pd.Categorical(np.array(["B", "T", "T"])[cluster]),
        },
        index=[f"c{i}" for i in range(n)],
    )
    x = csr_matrix(rng.poisson(mean).astype(np.float32))
    return AnnData(x, obs, pd.DataFrame(index=[f"g{i}" for i in range(GENES)]))


@pytest.fixture(scope="module")
def adata() -> AnnData:
    return cells()


@pytest.fixture(scope="module")
def found(adata) -> pd.DataFrame:
    return markers(adata, donor_key="donor", n_genes=None)


def logs(adata: AnnData) -> np.ndarray:
    x = adata.X.toarray()
    return np.log1p(1e4 * x / x.sum(1, keepdims=True))


def test_each_cluster_finds_its_own_gene(found):
    assert tuple(found) == COLUMNS
    best = found.groupby("cluster").first()
    assert list(best["gene"]) == ["g0", "g1", "g2"]
    assert best["significant"].all()
    assert (best["donors_same"] == DONORS).all()
    assert (best["log2_fold_change"] > 1).all()
    assert len(found) == 3 * GENES


def test_the_columns_are_those_of_other_libraries(adata, found):
    one = found[found["cluster"] == "1"].set_index("gene").loc[adata.var_names]
    x, inside = logs(adata), (adata.obs[keys.CLUSTER] == "1").to_numpy()
    # Cells: scipy's rank-sum test, normal approximation with ties, without continuity correction.
    expected = stats.mannwhitneyu(x[inside], x[~inside], method="asymptotic", use_continuity=False).pvalue
    np.testing.assert_allclose(one["p"], expected, rtol=1e-3)
    np.testing.assert_allclose(one["q"], sm.stats.multipletests(one["p"], method="fdr_bh")[1], rtol=1e-9)
    per_10k = np.expm1(x)
    fold = np.log2((per_10k[inside].mean(0) + PSEUDOCOUNT) / (per_10k[~inside].mean(0) + PSEUDOCOUNT))
    np.testing.assert_allclose(one["log2_fold_change"], fold, atol=1e-4)
    np.testing.assert_allclose(one["share_in"], (x[inside] > 0).mean(0), rtol=1e-6)
    np.testing.assert_allclose(one["share_out"], (x[~inside] > 0).mean(0), rtol=1e-6)
    # Donors: scipy's paired test of the sums.
    sides = []
    for side in (inside, ~inside):
        sums = np.array(
            [
                adata.X[side & (adata.obs["donor"] == f"d{d}").to_numpy()].sum(0, dtype=float).A1
                for d in range(DONORS)
            ]
        )
        sides.append(np.log2(1e4 * sums / sums.sum(1, keepdims=True) + PSEUDOCOUNT))
    np.testing.assert_allclose(one["donor_p"], stats.ttest_rel(*sides).pvalue, rtol=1e-6)
    np.testing.assert_allclose(one["donor_difference"], (sides[0] - sides[1]).mean(0), atol=1e-9)
    same = (np.sign(sides[0] - sides[1]) == np.sign(one["log2_fold_change"].to_numpy())).sum(0)
    np.testing.assert_array_equal(one["donors_same"], same)


def test_a_gene_of_one_donor_marks_the_cluster_by_cell_and_not_by_donor(found):
    row = found[(found["cluster"] == "0") & (found["gene"] == "g3")].iloc[0]
    assert row["log2_fold_change"] > 1
    assert row["significant"]
    assert not row["donor_significant"]


def test_names_of_clusters_and_order_of_cells_do_not_matter(adata, found):
    order = np.random.default_rng(1).permutation(adata.n_obs)
    other = adata[order].copy()
    other.obs[keys.CLUSTER] = other.obs[keys.CLUSTER].cat.rename_categories({"0": "z", "1": "y", "2": "x"})
    renamed = markers(other, donor_key="donor", n_genes=None)
    renamed["cluster"] = renamed["cluster"].map({"z": "0", "y": "1", "x": "2"})
    both = [t.set_index(["cluster", "gene"]).sort_index() for t in (found, renamed)]
    pd.testing.assert_frame_equal(*both, check_exact=False, rtol=1e-4, atol=1e-6)


def test_counts_are_used_where_there_are_any_and_the_data_stay_as_they_are(adata, found):
    other = adata.copy()
    other.layers["counts"] = other.X.copy()
    other.X = csr_matrix(np.random.default_rng(0).gamma(1.0, 1.0, other.shape).astype(np.float32))  # denoised
    before = other.copy()
    pd.testing.assert_frame_equal(markers(other, donor_key="donor", n_genes=None), found)
    assert (other.X != before.X).nnz == (other.layers["counts"] != before.layers["counts"]).nnz == 0
    assert list(other.uns) == []
    assert list(other.obs) == list(before.obs)
    dense = adata.copy()
    dense.X = dense.X.toarray()
    pd.testing.assert_frame_equal(
        markers(dense, donor_key="donor", n_genes=None), found, rtol=1e-4, atol=1e-7
    )


def test_backed_cells_are_read(adata, found, tmp_path):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    pd.testing.assert_frame_equal(markers(backed, donor_key="donor", n_genes=None), found)
    backed.file.close()


def test_log_normalised_values_work_and_what_is_lost_is_said(adata, found):
    other = adata.copy()
    other.X = csr_matrix(logs(adata).astype(np.float32))
    with pytest.warns(ScmedleyWarning, match="There are no counts: donors are compared by the mean"):
        table = markers(other, donor_key="donor", n_genes=None)
    both = [t.set_index(["cluster", "gene"]).sort_index() for t in (found, table)]
    np.testing.assert_allclose(both[0]["score"], both[1]["score"], rtol=1e-3, atol=1e-3)
    assert np.corrcoef(both[0]["donor_difference"], both[1]["donor_difference"])[0, 1] > 0.98


def test_few_donors_get_no_p_value_and_a_reason(adata):
    two = adata[adata.obs["donor"].isin(["d0", "d1"])]
    table = markers(two, donor_key="donor", n_genes=2)
    assert len(table) == 6
    assert table["donor_p"].isna().all()
    assert set(table["donor_note"]) == {
        "2 donors have 10 or more cells in and outside the cluster; the test needs 3"
    }
    assert (table["donors"] == 2).all()
    assert not table["donor_significant"].any()
    assert set(markers(two, n_genes=1)["donor_note"]) == {"donors not known"}


def test_small_clusters_and_cells_without_a_cluster_are_left_out(adata):
    other = adata.copy()
    other.obs[keys.CLUSTER] = np.array(["a", "b"] * 120, dtype=object)
    other.obs.iloc[:2, other.obs.columns.get_loc(keys.CLUSTER)] = "tiny"
    other.obs.iloc[2:6, other.obs.columns.get_loc(keys.CLUSTER)] = np.nan
    with pytest.warns(ScmedleyWarning, match="No markers for 'tiny'"):
        table = markers(other, n_genes=3)
    assert dict(table.groupby("cluster")["cells"].first()) == {"a": 117, "b": 117}


def test_one_cluster_gives_an_empty_table_with_its_columns(adata):
    other = adata.copy()
    other.obs[keys.CLUSTER] = "only"
    with pytest.warns(ScmedleyWarning, match="one cluster only"):
        table = markers(other, donor_key="donor")
    assert table.empty
    assert tuple(table) == COLUMNS


def test_labels_can_be_the_clusters(adata):
    assert set(markers(adata, "cell_type", n_genes=1)["cluster"]) == {"B", "T"}


def test_what_cannot_be_used_is_an_error(adata):
    with pytest.raises(ScmedleyError, match=r"cluster key 'leiden' is not a column of obs.*'donor'"):
        markers(adata, "leiden")
    with pytest.raises(ScmedleyError, match="n_genes=0"):
        markers(adata, n_genes=0)
    scaled = adata.copy()
    scaled.X = np.random.default_rng(0).normal(size=adata.shape).astype(np.float32)
    with pytest.raises(ScmedleyError, match="need counts or log-normalised values"):
        markers(scaled)


# --- names and tables ---------------------------------------------------------------------------------------


def series(text: str) -> "pd.Series":
    return pd.Series([None if c == "." else c for c in text], dtype=object)


def test_clusters_are_named_after_their_most_frequent_label():
    cluster, label = series("aaaabbbbccdd"), series("TTTBTTTTNN..")
    table = cluster_names(cluster, label)
    assert list(table["name"]) == ["T 1 (75 %)", "T 2 (100 %)", "N (100 %)", "cluster d"]
    assert list(table["label_share"])[:3] == [0.75, 1.0, 1.0]
    assert list(cluster_names(cluster)["name"]) == ["cluster a", "cluster b", "cluster c", "cluster d"]
    mixed = cluster_names(
        series("a" * 10 + "b" * 10 + "c" * 20), series("T" * 5 + "B" * 5 + "3" * 11 + "." * 19)
    )
    assert list(mixed["name"]) == [
        "B / T (50, 50 %)",
        "label '3' 1 (100 %)",
        "label '3' 2 (100 % of 1 labelled)",
    ]
    assert list(mixed["labelled_share"]) == [1, 1, 0.05]
    nearly = cluster_names(series("a" * 1000), series("T" * 999 + "B"))
    assert nearly["name"][0] == "T (99 %)"  # not all of them


def test_table_of_clusters_and_batches_counts_every_pair():
    table = cluster_table(series("aabbb."), series("xyxxxx"))
    assert table.to_dict("list") == {
        "cluster": ["a", "a", "b", "b"],
        "batch": ["x", "y", "x", "y"],
        "cells": [1, 1, 3, 0],
        "share_of_cluster": [0.5, 0.5, 1.0, 0.0],
        "share_of_batch": [0.25, 1.0, 0.75, 0.0],
    }
    assert list(cluster_table(series("ab"), series("TB"), "label"))[1] == "label"
    missing = cluster_table(series("aab"), series("x.x")).set_index(["cluster", "batch"])
    assert dict(missing["cells"]) == {("a", "x"): 1, ("a", "missing"): 1, ("b", "x"): 1, ("b", "missing"): 0}


def test_clusters_of_one_batch_are_flagged_and_their_share_has_a_range():
    batch = series("xyz" * 4 + "zz")
    cluster = series("a" * 12 + "bb")
    evidence = pd.DataFrame({"cluster": ["a", "b"], "cells": [11, 3], "nearest": ["b", "a"]})
    table = describe_clusters(evidence, cluster, {"batch": batch})
    assert list(table["one batch"]) == ["", "z"]
    assert list(table["batches"].map(str)) == ["3", "1"]
    assert table["donors"].isna().all()
    assert list(table["lowest share"]) == [4 / 6, 0]
    assert list(table["highest share"]) == [1, 2 / 6]
    by_donor = describe_clusters(evidence, cluster, {"batch": batch, "donor": series("pq" * 7)})
    assert list(by_donor["highest share"]) == [6 / 7, 1 / 7]
    assert list(by_donor["one donor"]) == ["", ""]
    assert list(by_donor["cells"]) == [12, 2]  # counted, whatever the evidence says
    more = pd.concat([evidence, pd.DataFrame({"cluster": ["c"], "cells": [9], "nearest": ["a"]})])
    assert list(describe_clusters(more, cluster, {"label": batch})["cells"]) == [12, 2, 0]
    alone = describe_clusters(evidence, cluster, {"batch": series("x" * 14)})
    assert list(alone["one batch"]) == ["", ""]  # the data have one batch
    with pytest.raises(ScmedleyError, match="Cluster these cells again"):
        describe_clusters(evidence[:1], cluster, {})


def test_a_gene_without_counts_is_no_evidence(adata):
    other = adata.copy()
    other.X = csr_matrix(other.X.toarray() * (np.arange(GENES) != 5))
    row = markers(other, donor_key="donor", n_genes=None).query("gene == 'g5'").iloc[0]
    assert (row["score"], row["p"], row["log2_fold_change"], row["share_in"]) == (0, 1, 0, 0)
    assert np.isnan(row["donor_p"])
    assert not row["donor_significant"]
