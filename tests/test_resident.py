"""Resident cells: scipy as oracle, and minibatches that cover every row once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy.sparse import csr_matrix

from scmedley.data.resident import Resident

CPU = torch.device("cpu")


def resident(
    n: int = 20, g: int = 7, sparse: bool = True, density: float = 0.3
) -> tuple[Resident, np.ndarray]:
    rng = np.random.default_rng(n * g)
    x = (rng.normal(size=(n, g)) * (rng.random((n, g)) < density)).astype(np.float32)
    return Resident(csr_matrix(x) if sparse else x, np.arange(n) % 3 - 1, CPU), x


@given(
    rows=st.lists(st.integers(0, 19), max_size=40),
    sparse=st.booleans(),
    density=st.sampled_from([0.0, 0.1, 1.0]),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_take_is_scipys_rows(rows: list[int], sparse: bool, density: float) -> None:
    cells, x = resident(sparse=sparse, density=density)
    taken = cells.take(torch.tensor(rows, dtype=torch.int64))
    assert taken.x_NG.dtype == torch.float32
    assert taken.x_NG.shape == (len(rows), 7)
    assert_array_equal(taken.x_NG.numpy(), csr_matrix(x)[rows].toarray())
    assert_array_equal(taken.b_N.numpy(), (np.arange(20) % 3 - 1)[rows])


@pytest.mark.parametrize("convert", [lambda m: m.astype(np.float64), lambda m: m.tocsc(), np.asfortranarray])
def test_other_layouts_are_read_the_same(convert) -> None:
    _, x = resident()
    x = x.round(2)
    given = convert(x if convert is np.asfortranarray else csr_matrix(x))
    taken = Resident(given, np.zeros(20), CPU).take(torch.arange(20))
    assert_array_equal(taken.x_NG.numpy(), x.astype(np.float32))


@given(n=st.integers(2, 300), batch_size=st.integers(3, 64), shuffle=st.booleans())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_minibatches_hold_every_row_once_and_never_a_single_cell(
    n: int, batch_size: int, shuffle: bool
) -> None:
    x = np.arange(2 * n, dtype=np.float32).reshape(-1, 1)  # the value names the row
    rows = torch.arange(0, 2 * n, 2)
    parts = [m.x_NG.ravel() for m in Resident(x, np.zeros(2 * n), CPU).minibatches(rows, batch_size, shuffle)]
    sizes = [len(part) for part in parts]
    assert min(sizes) > 1
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    together = torch.cat(parts)
    assert_array_equal(together.sort().values, rows.float())
    if not shuffle:
        assert_array_equal(together, rows.float())


def test_shuffling_follows_torchs_seed() -> None:
    cells, _ = resident(n=50)

    def order(seed: int) -> list[int]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return [
                int(b) for m in cells.minibatches(torch.arange(50), 8, shuffle=True) for b in m.x_NG.argmax(1)
            ]

    assert order(1) == order(1)
    assert order(1) != order(2)


@pytest.mark.parametrize("sparse", [True, False])
def test_no_cells_give_one_empty_minibatch(sparse: bool) -> None:
    cells, _ = resident(sparse=sparse)
    (only,) = cells.minibatches(torch.arange(0), 8)
    assert only.x_NG.shape == (0, 7)
