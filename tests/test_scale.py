"""Min-max scaling: scikit-learn as oracle, sparse stays sparse, and only training cells are looked at."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_matrix, issparse
from sklearn.preprocessing import MinMaxScaler

from scmedley import keys
from scmedley.data.scale import MinMax
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
def test_is_sklearns(x_NG: np.ndarray, shift: float, as_type) -> None:
    x = (x_NG + np.float32(shift)).astype(np.float32)
    scaled = MinMax.fit(as_type(x[:20])).transform(as_type(x))
    dense = scaled.toarray() if issparse(scaled) else scaled
    assert dense.dtype == np.float32
    assert_allclose(dense, MinMaxScaler().fit(x[:20]).transform(x), atol=1e-6)


def test_unseen_cells_may_leave_the_unit_interval() -> None:
    scale = MinMax.fit(np.array([[0.0], [2.0]], np.float32))
    assert_array_equal(scale.transform(np.array([[-1.0], [5.0]], np.float32)), [[-0.5], [2.5]])


def test_sparse_stays_sparse_with_the_bits_of_dense(x_NG: np.ndarray) -> None:
    given = csr_matrix(x_NG)
    scale = MinMax.fit(given)
    scaled = scale.transform(given)
    assert issparse(scaled)
    assert scaled.nnz == given.nnz
    assert_array_equal(scaled.toarray(), MinMax.fit(x_NG).transform(x_NG))
    assert_array_equal(given.toarray(), x_NG)  # not scaled in place


def test_inverse(x_NG: np.ndarray) -> None:
    x = x_NG + np.float32(0.5)
    scale = MinMax.fit(x)
    assert_allclose(scale.inverse(scale.transform(x)), x, rtol=1e-6)


@pytest.mark.parametrize("sparse", [True, False])
def test_models_scale_by_their_training_cells_alone(sparse: bool) -> None:
    adata = prepared_design(sparse)
    held_out = np.flatnonzero(adata.obs[keys.SPLIT] != "train")
    x = adata.layers[keys.LOGNORM]
    x[held_out] = x[held_out] * 3  # would widen every gene's range
    model = unfitted("autoencoder", max_epochs=1).fit(adata, **FIT)
    train = np.asarray(
        x[np.flatnonzero(adata.obs[keys.SPLIT] == "train")].todense()
        if sparse
        else x[np.flatnonzero(adata.obs[keys.SPLIT] == "train")]
    )
    assert_array_equal(model.scale.minimum_G, train.min(0))
    assert_array_equal(model.scale.minimum_G + model.scale.span_G, train.max(0))
    scaled = model.read(adata).x_NG
    assert issparse(scaled) == (sparse and not model.scale.minimum_G.any())
    assert scaled.max() > 1.5
