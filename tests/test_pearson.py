"""Preparation by Pearson residuals and by counts: scanpy.experimental as oracle, and what models read."""

from dataclasses import replace

import numpy as np
import pytest
import scanpy as sc
import torch
from anndata import AnnData
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_matrix, issparse

from corpus import cells, counts
from scmedley import RandomEffects, keys
from scmedley.data.reader import Reader
from scmedley.data.scale import Scale
from scmedley.errors import ScmedleyError
from scmedley.pp import pca, pearson_residuals, prepare


def prepared(method: str = "pearson", sparse: bool = True, **settings) -> AnnData:
    """60 cells in two batches, all of which train."""
    x = counts()
    adata = cells(csr_matrix(x) if sparse else x)
    adata.obs[keys.SPLIT] = "train"
    prepare(adata, "batch", method=method, n_top_genes=12, min_cells=1, **settings)
    return adata


@pytest.mark.parametrize("sparse", [True, False])
def test_residuals_are_scanpys(sparse: bool) -> None:
    adata = prepared(sparse=sparse)
    oracle = sc.experimental.pp.normalize_pearson_residuals(adata, layer=keys.COUNTS, inplace=False)["X"]
    found = pearson_residuals(adata)
    assert found.dtype == np.float32
    assert_allclose(found, oracle[:, adata.var[keys.HVG]], rtol=1e-4, atol=1e-4)
    assert_array_equal(pearson_residuals(adata, np.array([5, 2])), found[[5, 2]])


def test_residuals_are_clipped_at_the_root_of_the_number_of_cells() -> None:
    x = counts()
    x[0, 0] = 5000
    adata = cells(csr_matrix(x))
    adata.obs[keys.SPLIT] = "train"
    prepare(adata, "batch", method="pearson", n_top_genes=12, min_cells=1)
    found = pearson_residuals(adata)
    assert found.max() == pytest.approx(np.sqrt(adata.n_obs), rel=1e-6)


def test_genes_are_scanpys_on_training_cells_only() -> None:
    adata = prepared()
    oracle = sc.experimental.pp.highly_variable_genes(
        adata, layer=keys.COUNTS, n_top_genes=12, batch_key="batch", inplace=False
    )
    assert_array_equal(adata.var[keys.HVG], oracle["highly_variable"])
    assert not adata.var[keys.HVG].equals(prepared("log1p").var[keys.HVG])
    more = cells(csr_matrix(np.vstack([counts(), 9 * counts(seed=5)[::-1]])))
    more.obs[keys.SPLIT] = np.where(np.arange(more.n_obs) < len(counts()), "train", "test")
    more.obs["batch"] = np.tile(adata.obs["batch"].to_numpy(), 2)
    prepare(more, "batch", method="pearson", n_top_genes=12, min_cells=1)
    assert_array_equal(more.var[keys.HVG], adata.var[keys.HVG])


def test_minibatches_hold_the_residuals() -> None:
    adata = prepared()
    reading = Reader.learn(adata, "counts")
    scale = Scale.fit(reading.log1p_NG, "pearson", reading.total_N)
    resident = reading.resident(np.zeros(adata.n_obs, int), scale)
    x_NG = resident.take(torch.tensor([3, 1])).x_NG
    assert_allclose(x_NG, pearson_residuals(adata)[[3, 1]], rtol=1e-4, atol=1e-5)
    missing = np.zeros(12, bool)
    missing[4] = True
    x_NG = (
        replace(reading, missing_G=missing)
        .resident(np.zeros(adata.n_obs, int), scale)
        .take(torch.arange(9))
        .x_NG
    )
    assert (x_NG[:, 4] == 0).all()


def test_genes_without_counts_have_residuals_of_zero() -> None:
    log1p_NG, total_N = np.zeros((4, 2), np.float32), np.full(4, 100.0)
    log1p_NG[:, 1] = np.log1p(100)
    scale = Scale.fit(log1p_NG, "pearson", total_N)
    assert (scale.transform(log1p_NG, np.array([0, 100, 100, 100.0]))[:, 0] == 0).all()
    assert np.isfinite(scale.transform(log1p_NG, total_N)).all()


def test_residuals_go_back_to_expression_of_10000_counts() -> None:
    adata = prepared()
    reading = Reader.learn(adata, "counts")
    scale = replace(Scale.fit(reading.log1p_NG, "pearson", reading.total_N), limit=np.inf)
    x_NG = reading.log1p_NG.toarray() if issparse(reading.log1p_NG) else reading.log1p_NG
    residuals = scale.transform(x_NG, np.full(adata.n_obs, 1e4))
    assert_allclose(scale.inverse(residuals), x_NG, atol=5e-4)


def test_models_without_counts_refuse_residuals() -> None:
    adata = cells()
    prepare(adata, "batch", method="pearson", n_top_genes=12)
    settings = RandomEffects.preset("default").replace(scale="pearson")
    with pytest.raises(ScmedleyError, match="Pearson residuals need counts"):
        RandomEffects("batch", settings=settings).fit(adata)


def test_counts_keep_no_normalised_layer() -> None:
    adata, log1p = prepared("counts"), prepared("log1p")
    assert set(adata.layers) == {keys.COUNTS}
    assert adata.uns[keys.UNS]["prepare"]["method"] == "counts"
    assert_array_equal(adata.var[keys.HVG], log1p.var[keys.HVG])
    found, expected = Reader.learn(adata, "counts"), Reader.learn(log1p, "counts")
    assert_allclose(found.log1p_NG.toarray(), expected.log1p_NG.toarray(), rtol=1e-5)
    assert_allclose(found.total_N, expected.total_N, rtol=1e-5)
    with pytest.raises(ScmedleyError, match="method='log1p'"):
        pca(adata)


@pytest.mark.parametrize("method", ["pearson", "counts"])
def test_counts_are_needed(method: str) -> None:
    x = counts()
    adata = cells(np.log1p(x / np.maximum(x.sum(1, keepdims=True), 1) * 1e4).astype(np.float32))
    with pytest.raises(ScmedleyError, match="needs counts"):
        prepare(adata, "batch", method=method)


def test_unknown_method() -> None:
    known = r"\['log1p', 'pearson', 'counts', 'deepbid'\]"
    with pytest.raises(ScmedleyError, match=rf"method='sqrt' must be one of {known}"):
        prepare(cells(), "batch", method="sqrt")


def test_residuals_need_prepared_cells() -> None:
    with pytest.raises(ScmedleyError, match="not prepared"):
        pearson_residuals(cells())
