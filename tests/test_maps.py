"""Principal components and maps of many cells: a sample is fitted, the others are placed."""

from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from scmedley import keys
from scmedley.pp import maps, pca
from scmedley.pp.stored import read_store
from stores import write_store


@pytest.mark.parametrize("most", [100_000, 60])
def test_components_of_a_store_are_those_in_memory(
    most: int, prepared: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maps, "PCA_CELLS", most)
    monkeypatch.setattr(maps.slices, "__defaults__", (50,))
    write_store(prepared, tmp_path)
    train = np.flatnonzero(prepared.obs[keys.SPLIT] == "train")
    assert len(train) > 60
    reading = read_store(tmp_path)
    x_NG = reading.take(np.arange(reading.n_cells)).log1p_NG
    found = maps.principal_components(x_NG, train, 5)
    assert_array_equal(maps.principal_components(reading.log1p_NG, train, 5), found)
    pca(prepared, 5)
    assert_allclose(prepared.obsm[keys.PCA], found, atol=2e-3)  # totals are rounded in the store
    whole = PCA(5, svd_solver="arpack", random_state=0).fit(x_NG[train])
    same = np.allclose(found, whole.transform(x_NG), atol=1e-4)
    assert same == (most > len(train))  # components of a sample are others


def test_cells_beyond_the_sample_are_placed_on_the_map(
    prepared: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    z_NP = prepared.obsm["X"] = rng.normal(size=(prepared.n_obs, 3)).astype(np.float32)
    monkeypatch.setattr(maps, "_umap", lambda z_MP, _: 10 * z_MP[:, :2])
    monkeypatch.setattr(maps, "_PLACED", 32)
    maps.umap(prepared, "X", max_cells=100)
    drawn = np.isfinite(prepared.obsm[keys.umap("X")]).all(axis=1)
    assert (drawn.sum(), keys.ON_MAP in prepared.obs) == (100, False)
    maps.umap(prepared, "X", max_cells=100, rest="placed")
    xy_N2 = prepared.obsm[keys.umap("X")]
    assert_array_equal(prepared.obs[keys.ON_MAP], drawn)
    assert_array_equal(xy_N2[drawn], 10 * z_NP[drawn, :2])
    tree = NearestNeighbors(n_neighbors=15, algorithm="kd_tree").fit(z_NP[drawn])
    distances, near = tree.kneighbors(z_NP[~drawn])
    weight = distances**-2 / (distances**-2).sum(axis=1, keepdims=True)
    expected = (weight[..., None] * 10 * z_NP[drawn, :2][near]).sum(axis=1)
    assert_allclose(xy_N2[~drawn], expected, atol=1e-3)
