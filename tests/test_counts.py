"""prepare and log_normalised: the corpus, scanpy as oracle, and what must not change."""

import os
import re
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pytest
from anndata import AnnData
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_matrix, issparse

from corpus import CASES, Case, cells, counts
from scmedley import datasets, io, keys
from scmedley.errors import ScmedleyError
from scmedley.pp import log_normalised, pca, prepare


def dense(x) -> np.ndarray:
    return x.toarray() if issparse(x) else np.asarray(x)


@pytest.fixture
def adata() -> AnnData:
    return cells()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_corpus(case: Case, tmp_path: Path) -> None:
    path = case.build(tmp_path)
    if case.error:
        with pytest.raises(ScmedleyError, match=case.error) as caught:
            prepare(io.read(path), case.batch_key, label_key=case.label_key, n_top_genes=10)
        assert "\n" not in str(caught.value)
        return
    adata = io.read(path)
    before = adata.to_df()
    checked = prepare(adata, case.batch_key, label_key=case.label_key, n_top_genes=10)
    x = adata.layers[keys.LOGNORM]
    assert x.dtype == np.float32
    assert np.isfinite(dense(x)).all()
    assert (dense(x) >= 0).all()
    assert adata.var[keys.HVG].sum() == 10
    assert (keys.COUNTS in adata.layers) == (checked.values == "counts")
    assert adata.obs[case.batch_key].cat.categories.size >= 2
    assert all(isinstance(name, str) for name in adata.obs[case.batch_key].cat.categories)
    assert (adata.obs[case.batch_key].value_counts() > 0).all()
    assert adata.obs_names.is_unique
    if before.index.is_unique:
        assert_array_equal(adata.to_df(), before.loc[adata.obs_names, adata.var_names])
    if case.warning is None:
        assert checked.warnings == []
    else:
        assert any(re.search(case.warning, warning) for warning in checked.warnings), checked.warnings
    io.write_h5ad(adata, tmp_path / "out.h5ad")
    again = io.read(tmp_path / "out.h5ad")
    assert again.uns[keys.UNS]["prepare"]["cells_after"] == adata.n_obs


def test_log1p_cp10k_is_scanpys(adata: AnnData) -> None:
    import scanpy as sc

    oracle = adata.copy()
    prepare(adata, "batch", min_genes=0, min_cells=0)
    sc.pp.normalize_total(oracle, target_sum=1e4)
    sc.pp.log1p(oracle)
    assert_allclose(dense(adata.layers[keys.LOGNORM]), dense(oracle.X), rtol=1e-6)
    assert_array_equal(dense(adata.layers[keys.COUNTS]), counts())


def test_filters_are_scanpys() -> None:
    import scanpy as sc

    x = csr_matrix(counts() * (np.random.default_rng(1).random((60, 30)) < 0.3))
    x.data[:40] = 0  # stored zeros are no genes found
    ours, oracle = cells(x), cells(x)
    prepare(ours, "batch", min_genes=7, min_cells=9)
    sc.pp.filter_cells(oracle, min_genes=7)
    sc.pp.filter_genes(oracle, min_cells=9)
    assert 0 < ours.n_obs < 60
    assert 0 < ours.n_vars < 30
    assert list(ours.obs_names) == list(oracle.obs_names)
    assert list(ours.var_names) == list(oracle.var_names)
    assert_array_equal(dense(ours.X), dense(oracle.X))
    assert ours.uns[keys.UNS]["prepare"] == {
        "method": "log1p",
        "cells_before": 60,
        "cells_after": ours.n_obs,
        "genes_before": 30,
        "genes_after": ours.n_vars,
        "n_hvg": ours.n_vars,
        "values": {
            "where": "X",
            "kind": "counts",
            "genes": 30,
            "doubtful": False,
            "reason": "X holds counts: all values are whole numbers.",
        },
        "target_sum": 1e4,
    }


@pytest.mark.filterwarnings("ignore:The inplace keyword:DeprecationWarning:scanpy")  # of pandas 3.1
def test_genes_are_scanpys_on_training_cells_only(adata: AnnData) -> None:
    import scanpy as sc

    big = anndata.concat([adata, cells(csr_matrix(counts(seed=9)[::-1] * 7))], index_unique="-")
    big.obs[keys.SPLIT] = np.where(np.arange(120) < 60, "train", "test")
    adata.obs[keys.SPLIT] = "train"
    with_others, alone = big.copy(), adata.copy()
    prepare(with_others, "batch", n_top_genes=8)
    prepare(alone, "batch", n_top_genes=8)
    assert_array_equal(with_others.var[keys.HVG], alone.var[keys.HVG])
    oracle = sc.pp.highly_variable_genes(
        alone, layer=keys.LOGNORM, n_top_genes=8, batch_key="batch", inplace=False
    )
    assert_array_equal(alone.var[keys.HVG], oracle["highly_variable"])
    big.obs[keys.SPLIT] = "train"
    prepare(big, "batch", n_top_genes=8)
    assert not big.var[keys.HVG].equals(alone.var[keys.HVG])  # or the split could not have mattered


def test_split_is_made_once(adata: AnnData) -> None:
    other = adata.copy()
    prepare(adata, "batch", label_key="cell_type", seed=1)
    prepare(other, "batch", label_key="cell_type", seed=2)
    first = adata.obs[keys.SPLIT].copy()
    assert set(first) == {"train", "validation", "test"}
    assert not first.equals(other.obs[keys.SPLIT])
    prepare(adata, "batch", label_key="cell_type", seed=2)
    assert adata.obs[keys.SPLIT].equals(first)


def test_cells_joined_after_the_split_are_told_of(adata: AnnData) -> None:
    prepare(adata, "batch")
    joined = anndata.concat([adata, cells(csr_matrix(counts(seed=4)))], join="outer", index_unique="-")
    with pytest.raises(ScmedleyError, match=r"60 of 120 cells have no part .*'cell0-1'"):
        prepare(joined, "batch")
    del joined.obs[keys.SPLIT]
    joined.layers[keys.COUNTS] = csr_matrix(np.vstack([counts(), counts() * 0]))
    checked = prepare(joined, "batch")  # joining fills layers["counts"] with 0
    assert (checked.where, joined.n_obs) == ("X", 120)
    assert any("layers['counts'] is empty for cells that have values in X" in w for w in checked.warnings)


def test_no_training_cell_is_said(adata: AnnData) -> None:
    adata.obs[keys.SPLIT] = "test"
    with pytest.raises(ScmedleyError, match="no training cell"):
        prepare(adata, "batch", n_top_genes=5)


def test_sparse_is_dense() -> None:
    sparse, full = cells(), cells(counts())
    prepare(sparse, "batch", n_top_genes=8)
    prepare(full, "batch", n_top_genes=8)
    assert not issparse(full.layers[keys.LOGNORM])
    assert_allclose(dense(sparse.layers[keys.LOGNORM]), full.layers[keys.LOGNORM], rtol=1e-6)
    assert_array_equal(sparse.var[keys.HVG], full.var[keys.HVG])


def test_counts_are_a_copy_of_x() -> None:
    adata = cells(csr_matrix(counts() * (np.arange(60) > 1)[:, None]))
    prepare(adata, "batch", min_genes=1)
    assert adata.n_obs == 58
    assert_array_equal(dense(adata.layers[keys.COUNTS]), dense(adata.X))
    assert not np.shares_memory(adata.layers[keys.COUNTS].data, adata.X.data)
    assert not np.shares_memory(adata.layers[keys.LOGNORM].indices, adata.X.indices)


def test_twice_is_once(adata: AnnData) -> None:
    prepare(adata, "batch", label_key="cell_type")
    first = adata.copy()
    prepare(adata, "batch", label_key="cell_type")
    assert_array_equal(dense(adata.layers[keys.LOGNORM]), dense(first.layers[keys.LOGNORM]))
    assert adata.shape == first.shape


def test_view_becomes_its_own_and_the_parent_stays(adata: AnnData) -> None:
    view = adata[10:, 5:]
    prepare(view, "batch")
    assert not view.is_view
    assert keys.LOGNORM in view.layers
    assert not adata.layers
    assert adata.shape == (60, 30)


def test_backed_is_refused_with_the_way_out(adata: AnnData, tmp_path: Path) -> None:
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    with pytest.raises(ScmedleyError, match="to_memory"):
        prepare(backed, "batch")
    backed.file.close()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"n_top_genes": 0}, "n_top_genes is 0"),
        ({"min_genes": -1}, "min_genes is -1"),
        ({"min_cells": -3}, "min_cells is -3"),
    ],
)
def test_settings_out_of_range(adata: AnnData, setting: dict, message: str) -> None:
    with pytest.raises(ScmedleyError, match=message):
        prepare(adata, "batch", **setting)


def test_what_is_no_anndata_and_what_is_no_key(adata: AnnData) -> None:
    with pytest.raises(ScmedleyError, match="takes an AnnData, not a DataFrame"):
        prepare(adata.to_df(), "batch")
    with pytest.raises(ScmedleyError, match="The batch key is one column of obs, not 3"):
        prepare(adata, 3)


def test_batches_of_a_few_cells_are_ranked_together() -> None:
    adata = cells(batch=[f"donor{i // 2}" for i in range(60)])  # 30 batches of 2 cells
    pooled = cells(batch=["a"] * 59 + ["b"])
    adata.obs[keys.SPLIT] = pooled.obs[keys.SPLIT] = "train"
    prepare(adata, "batch", n_top_genes=8)
    prepare(pooled, "batch", n_top_genes=8)
    assert_array_equal(adata.var[keys.HVG], pooled.var[keys.HVG])


def test_misnamed_counts_layer_is_moved() -> None:
    prepared = cells()
    prepare(prepared, "batch")
    adata = cells(-counts())
    adata.layers[keys.COUNTS] = prepared.layers[keys.LOGNORM]
    checked = prepare(adata, "batch")
    assert (checked.values, checked.where) == ("log-normalised", "layers['counts']")
    assert keys.COUNTS not in adata.layers
    assert_array_equal(dense(adata.layers[keys.LOGNORM]), dense(prepared.layers[keys.LOGNORM]))


def _log(total: float, sparse: bool = True) -> np.ndarray | csr_matrix:
    x = counts().astype(np.float64)
    full = np.log1p(total * x / x.sum(1, keepdims=True)).astype(np.float32)
    return csr_matrix(full) if sparse else full


@pytest.mark.parametrize("sparse", [True, False])
def test_log_normalised_values_of_another_total_are_brought_to_10000(sparse: bool) -> None:
    import scanpy as sc

    counted, given = cells(), cells(csr_matrix(counts()) if sparse else counts())
    sc.pp.normalize_total(given)  # to the median
    sc.pp.log1p(given)
    fresh = given.copy()
    checked = prepare(given, "batch", min_cells=0, min_genes=0)
    prepare(counted, "batch", min_cells=0, min_genes=0)
    assert_allclose(dense(given.layers[keys.LOGNORM]), dense(counted.layers[keys.LOGNORM]), rtol=1e-5)
    assert_array_equal(dense(given.X), dense(fresh.X))
    median = float(np.median(counts().sum(1)))
    assert checked.total == pytest.approx(median)
    assert checked.warnings == []
    assert checked.reason.endswith(f"10,000 counts per cell instead of {checked.total:,.6g}.")
    said = given.uns[keys.UNS]["prepare"]
    assert (said["target_sum"], said["target_sum_given"]) == (1e4, checked.total)
    x, _ = log_normalised(fresh, GENES)  # unprepared cells that come to the fitted model
    expected, _ = log_normalised(cells(), GENES)
    assert issparse(x) == sparse
    assert_allclose(dense(x), dense(expected), rtol=1e-5)


def test_totals_that_say_nothing_are_left_alone() -> None:
    one = cells(_log(700.0))[:1]
    assert_array_equal(dense(log_normalised(one, GENES)[0])[:, 0], dense(one.X)[:, 9])
    some = cells(_log(1e4)[:, :15])
    checked = prepare(some, "batch")
    assert "totals differ" in checked.warnings[0]
    assert np.isnan(some.uns[keys.UNS]["prepare"]["target_sum"])
    assert_array_equal(dense(some.layers[keys.LOGNORM]), dense(some.X))
    few_lost = cells(_log(1e4)[:, counts().sum(0) > counts().sum(0).min()])
    assert prepare(few_lost, "batch").warnings == []
    assert few_lost.uns[keys.UNS]["prepare"]["target_sum"] == 1e4


def test_log_normalised_layer_is_a_copy_of_x() -> None:
    adata = cells(_log(1e4))
    prepare(adata, "batch")
    before = dense(adata.layers[keys.LOGNORM])
    adata.X.data *= 2
    assert_array_equal(dense(adata.layers[keys.LOGNORM]), before)


GENES = ["gene9", "absent", "gene2", "gene4", "missing"]


@pytest.mark.parametrize(
    "kind", ["counts", "prepared", "log", "raw", "view", "backed", "backed csc", "backed dense"]
)
@pytest.mark.parametrize("sparse", [True, False])
def test_log_normalised_from_anywhere(kind: str, sparse: bool, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("scmedley.data.conversion.BLOCK", 200)  # backed files: 7 cells at a time
    full = np.log1p(1e4 * counts() / counts().sum(1, keepdims=True))
    adata = cells(csr_matrix(counts()) if sparse else counts())
    expected = full[:, [9, 0, 2, 4, 0]] * [1, 0, 1, 1, 0]
    if kind == "prepared":
        prepare(adata, "batch")
        adata = adata[:, 1:]  # the size factor is that of all genes, also after a subset
    elif kind == "log":
        adata.X = csr_matrix(full) if sparse else full
    elif kind == "raw":
        adata.raw = adata.copy()
        adata = adata[:, 1:].copy()
        adata.X = -dense(adata.X)
    elif kind == "view":
        adata, expected = adata[5:20], expected[5:20]
    elif kind.startswith("backed"):
        if kind == "backed csc" and sparse:
            adata.X = adata.X.tocsc()
        adata.write_h5ad(tmp_path / "a.h5ad")
        adata = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    x, n_missing = log_normalised(adata, GENES)
    assert n_missing == 2
    assert x.dtype == np.float32
    assert issparse(x) == sparse
    assert_allclose(dense(x), expected, rtol=1e-5)
    if kind.startswith("backed"):
        view, _ = log_normalised(adata[5:20], GENES)
        assert_allclose(dense(view), expected[5:20], rtol=1e-5)
        adata.file.close()


def test_log_normalised_of_its_own_genes_is_the_layer(adata: AnnData) -> None:
    prepare(adata, "batch")
    x, n_missing = log_normalised(adata, list(adata.var_names))
    assert x is adata.layers[keys.LOGNORM]
    assert n_missing == 0


def test_log_normalised_refuses_what_it_cannot_use(adata: AnnData) -> None:
    with pytest.raises(ScmedleyError, match="negative values"):
        log_normalised(cells(-counts()), GENES)
    adata.var_names = ["gene1", *adata.var_names[1:]]
    with pytest.raises(ScmedleyError, match="'gene1'"):
        log_normalised(adata, GENES)


def test_uns_of_somebody_else_is_no_hindrance(adata: AnnData) -> None:
    adata.uns[keys.UNS] = "x"
    prepare(adata, "batch")
    assert adata.uns[keys.UNS]["prepare"]["cells_after"] == adata.n_obs


@pytest.mark.parametrize("bad", [np.nan, -1.0])
def test_log_normalised_does_not_trust_its_layer(adata: AnnData, bad: float) -> None:
    prepare(adata, "batch")
    adata.layers[keys.LOGNORM] = dense(adata.layers[keys.LOGNORM])
    adata.layers[keys.LOGNORM][4, 3] = bad
    with pytest.raises(ScmedleyError, match="cell" if np.isnan(bad) else "negative"):
        log_normalised(adata, list(adata.var_names))


def test_choosing_genes_leaves_threads_as_they_were() -> None:
    """numba sets OpenMP's threads when it first runs, once in a process: so this needs one of its own."""
    code = (
        "import torch, numpy as np, anndata, scmedley as sm\n"
        "from scipy.sparse import csr_matrix\n"
        "rng = np.random.default_rng(0)\n"
        "adata = anndata.AnnData(csr_matrix(rng.poisson(0.5, (80, 60)).astype('float32')))\n"
        "adata.obs['batch'] = ['a', 'b'] * 40\n"
        "torch.set_num_threads(1)\n"
        "assert torch.get_num_threads() == 1\n"  # only now they are set
        "sm.pp.prepare(adata, 'batch')\n"
        "sm.pp.genes.select_genes(adata, 'batch', 20)\n"
        "print(torch.get_num_threads())"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "2", "NUMBA_NUM_THREADS": "2"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ran.stdout.strip() == "1", ran.stderr


def test_batches_of_other_depth_are_warned_of() -> None:
    adata = datasets.sc_mixology()
    said = prepare(adata.copy(), "batch").warnings
    assert any("the median cell has 554 counts in sc_dropseq and 1,899 in sc_10x" in words for words in said)
    alike = adata[adata.obs["batch"] != "sc_dropseq"].copy()
    assert not any("depth" in words for words in prepare(alike, "batch").warnings)


def test_a_single_gene_is_its_own_principal_component() -> None:
    adata = cells()
    prepare(adata, "batch", n_top_genes=1)
    adata.var[keys.HVG] = np.arange(adata.n_vars) == 0
    pca(adata)
    train = (adata.obs[keys.SPLIT] == "train").to_numpy()
    assert adata.obsm[keys.PCA].shape == (adata.n_obs, 1)
    assert abs(adata.obsm[keys.PCA][train].mean()) < 1e-5
