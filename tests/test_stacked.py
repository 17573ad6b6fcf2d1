"""Several files that are joined on disk give what joining in memory gives."""

import numpy as np
import pytest
from anndata import AnnData
from numpy.testing import assert_array_equal
from pandas.testing import assert_frame_equal
from scipy.sparse import csr_matrix

import scmedley as sm
from scmedley.data.stacked import Stacked
from scmedley.errors import ScmedleyError, heard
from scmedley.pp.join import opened_batches, read_batches
from scmedley.pp.stored import prepare_store
from test_stored import check_same, counts_in_raw, dense, logarithms, read_store, written
from tiny import nested_design


def files(folder, *kinds):
    """Write one file a kind: other cells and genes in each, in another order, and a column that others lack."""
    paths = []
    for number, kind in enumerate(kinds):
        adata = kind(nested_design(seed=number))
        genes = np.random.default_rng(number).permutation(adata.n_vars)[number : 30 + number]
        adata = adata[number * 7 :, genes].copy()
        adata.obs[f"only_{number}"] = number
        paths.append(written(adata, folder / f"file{number}.{('h5ad', 'zarr')[number % 2]}"))
    return paths


def plain(adata: AnnData) -> AnnData:
    return adata


def is_dense(adata: AnnData) -> AnnData:
    adata.X = dense(adata.X)
    return adata


def with_layers(adata: AnnData) -> AnnData:
    adata.layers["spliced"] = adata.X.copy()
    return adata


def with_raw(adata: AnnData) -> AnnData:
    adata.raw = adata.copy()
    return adata


CASES = {
    "h5ad and zarr": (plain, plain, plain),
    "dense": (is_dense, is_dense),
    "mixed": (plain, is_dense),
    "layers": (with_layers, with_layers, with_layers),
    "raw": (with_raw, with_raw),
    "counts in other places": (plain, counts_in_raw),
    "logarithms": (logarithms, lambda adata: logarithms(adata, 2)),
}


@pytest.mark.parametrize("name", CASES)
def test_joined_on_disk_as_in_memory(name, tmp_path):
    paths = files(tmp_path, *CASES[name])
    with heard() as in_memory:
        joined = read_batches(paths, "file")
    with heard() as from_disk, opened_batches(paths, "file") as cells:
        assert_frame_equal(cells.obs, joined.obs)
        assert_frame_equal(cells.var, joined.var)
        assert set(cells.layers) == {name for name in joined.layers if name is not None}
        pairs = [(cells.X, joined.X), *((cells.layers[key], joined.layers[key]) for key in cells.layers)]
        if joined.raw is not None:
            assert_frame_equal(cells.raw.var, joined.raw.var)
            pairs.append((cells.raw.X, joined.raw.X))
        assert (cells.raw is None) == (joined.raw is None)
        for stacked, whole in pairs:
            assert stacked.shape == whole.shape
            for rows in (slice(0, 500), slice(160, 190), np.array([3, 200, 179, 5])):
                assert_array_equal(dense(stacked[rows]), dense(whole[rows]))
    assert from_disk == in_memory


def test_files_are_prepared_as_in_memory(tmp_path):
    paths = files(tmp_path, plain, counts_in_raw, plain)
    settings = {"label_key": "cell_type", "min_genes": 5, "n_top_genes": 15}
    with heard():
        adata = read_batches(paths, "file")
        checked = sm.pp.prepare(adata, "file", **settings)
        found = prepare_store(paths, tmp_path / "store", "file", progress=False, **settings)
    assert found == checked
    check_same(read_store(tmp_path / "store"), adata, "counts")


def test_several_files_need_the_name_of_their_column(tmp_path):
    paths = files(tmp_path, plain, plain)
    with pytest.raises(ScmedleyError, match="no name for their column"):
        prepare_store(paths, tmp_path / "store", "~ donor + condition")


def test_rows_of_stacked_matrices_come_in_the_order_that_is_asked_for():
    whole = csr_matrix(np.random.default_rng(0).poisson(1, (10, 4)).astype(np.float32))
    stacked = Stacked([whole[:3], whole[3:3], whole[3:]], [np.arange(4)] * 3)
    for rows in (
        slice(None),
        slice(2, 5),
        slice(4, 4),
        slice(8, None, -3),
        np.array([9, 0, 3, 2]),
        np.arange(10) > 6,
    ):
        assert_array_equal(stacked[rows].toarray(), whole[rows].toarray())
