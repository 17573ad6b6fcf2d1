"""Scales: scikit-learn as oracle, sparse as dense, tensors as arrays, and only training cells are used."""

from pathlib import Path

import numpy as np
import pytest
import torch
from anndata import AnnData
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_matrix
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from scmedley import keys
from scmedley.data import blocks
from scmedley.data.scale import LIMIT, Scale
from scmedley.errors import ScmedleyError
from scmedley.pp.stored import read_store
from stores import write_store
from tiny import FIT, prepared_design, unfitted


@pytest.fixture
def x_NG() -> np.ndarray:
    """Non-negative values, half zeros; the last gene is 0 everywhere."""
    rng = np.random.default_rng(0)
    x = (rng.gamma(1, 1, (30, 6)) * (rng.random((30, 6)) < 0.5)).astype(np.float32)
    x[0] = 0
    x[:, -1] = 0
    return x


@pytest.mark.parametrize("shift", [0.0, 2.5, -1.0])
@pytest.mark.parametrize("as_type", [np.asarray, csr_matrix])
def test_min_max_is_sklearns(x_NG: np.ndarray, shift: float, as_type) -> None:
    x = (x_NG + np.float32(shift)).astype(np.float32)
    scaled = Scale.fit(as_type(x[:20]), "min-max").transform(as_type(x))
    assert scaled.dtype == np.float32
    assert_allclose(scaled, MinMaxScaler().fit(x[:20]).transform(x), atol=1e-6)


@pytest.mark.parametrize("shift", [0.0, 2.5])
@pytest.mark.parametrize("as_type", [np.asarray, csr_matrix])
def test_standard_is_sklearns(x_NG: np.ndarray, shift: float, as_type) -> None:
    x = (x_NG + np.float32(shift)).astype(np.float32)
    scaled = Scale.fit(as_type(x[:20]), "standard").transform(as_type(x))
    assert scaled.dtype == np.float32
    assert_allclose(scaled, StandardScaler().fit(x[:20]).transform(x), rtol=2e-3, atol=1e-4)
    assert_array_equal(scaled[:, -1], 0)


@pytest.mark.parametrize("as_type", [np.asarray, csr_matrix])
def test_pareto_divides_by_the_root_of_the_standard_deviation(x_NG: np.ndarray, as_type) -> None:
    x = x_NG[:, :-1].astype(np.float32)  # without the constant gene
    scaled = Scale.fit(as_type(x), "pareto").transform(as_type(x))
    ratio_G = scaled.std(axis=0) / np.sqrt(x.std(axis=0))
    assert_allclose(ratio_G, ratio_G[0], rtol=2e-3)
    assert_allclose(scaled.mean(axis=0), 0, atol=1e-5)
    assert_allclose(scaled.var(axis=0).mean(), 1, rtol=2e-3)


def test_standardised_values_are_clipped() -> None:
    train = np.zeros((1000, 1), np.float32)
    train[0] = 1
    scale = Scale.fit(train, "standard")
    assert_array_equal(scale.transform(np.array([[1.0], [-9.0]], np.float32)), [[LIMIT], [-LIMIT]])


def test_unseen_cells_may_leave_the_unit_interval() -> None:
    scale = Scale.fit(np.array([[0.0], [2.0]], np.float32), "min-max")
    assert_array_equal(scale.transform(np.array([[-1.0], [5.0]], np.float32)), [[-0.5], [2.5]])


@pytest.mark.parametrize("name", ["pareto", "standard", "min-max", "none"])
def test_tensors_have_the_bits_of_arrays(x_NG: np.ndarray, name) -> None:
    scale = Scale.fit(x_NG[:20], name)
    scaled = scale.on(torch.device("cpu")).apply_(torch.from_numpy(x_NG.copy()))
    assert_array_equal(scaled.numpy(), scale.transform(x_NG))


@pytest.mark.parametrize("name", ["pareto", "standard", "min-max", "none"])
def test_inverse(x_NG: np.ndarray, name) -> None:
    x = x_NG + np.float32(0.5)
    scale = Scale.fit(x, name)
    assert_allclose(scale.inverse(scale.transform(x)), x, rtol=1e-5)


def test_an_unknown_scale_is_named(x_NG: np.ndarray) -> None:
    with pytest.raises(ScmedleyError, match="no scale 'log'"):
        Scale.fit(x_NG, "log")


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("name", ["pareto", "standard", "min-max"])
def test_models_scale_by_their_training_cells_alone(sparse: bool, name) -> None:
    adata = prepared_design(sparse)
    held_out = np.flatnonzero(adata.obs[keys.SPLIT] != "train")
    x = adata.layers[keys.LOGNORM]
    x[held_out] = x[held_out] * 3  # would change the scale of every gene
    model = unfitted("autoencoder", max_epochs=1, scale=name).fit(adata, **FIT)
    expected = Scale.fit(x[np.flatnonzero(adata.obs[keys.SPLIT] == "train")], name)
    assert_array_equal(model.scale.centre_G, expected.centre_G)
    assert_array_equal(model.scale.span_G, expected.span_G)
    assert not np.array_equal(Scale.fit(x, name).span_G, expected.span_G)


@pytest.mark.parametrize("name", ["pareto", "standard", "min-max", "pearson"])
def test_sparse_dense_and_stored_cells_in_any_blocks_give_the_same_bits(
    name, prepared: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_store(prepared, tmp_path)
    reading = read_store(tmp_path)
    in_memory = reading.take(np.arange(reading.n_cells))
    rows = np.flatnonzero(prepared.obs[keys.SPLIT] == "train")
    expected = Scale.fit(in_memory.log1p_NG[rows], name, reading.total_N[rows])
    for size in (blocks.CELLS, 7):
        monkeypatch.setattr(blocks.slices, "__defaults__", (size,))
        for x_NG in (reading.log1p_NG, in_memory.log1p_NG, in_memory.log1p_NG.toarray()):
            found = Scale.fit(x_NG, name, reading.total_N, rows)
            for part in ("centre_G", "span_G", "share_G"):
                assert_array_equal(getattr(found, part), getattr(expected, part))
            assert found.limit == expected.limit
