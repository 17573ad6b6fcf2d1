"""The order of cells in an epoch: every cell once, nearly equal minibatches, the same with several processes."""

from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scmedley.data.order import WHOLE, Shares, buffer_of, consecutive, in_blocks


def epoch(rows_N: np.ndarray, size: int, seed: int = 0, shares: Shares = WHOLE) -> list[np.ndarray]:
    """Return the minibatches of an epoch, in small blocks and buffers."""
    return list(chain.from_iterable(in_blocks(rows_N, size, seed, shares, block=8, buffer=64)))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 400), st.integers(2, 40), st.integers(1, 4))
def test_each_cell_once_in_nearly_equal_minibatches(n: int, size: int, count: int) -> None:
    rows_N = np.flatnonzero(np.random.default_rng(n).random(2 * n) < 0.5)
    found = epoch(rows_N, size, n, Shares(count))
    np.testing.assert_array_equal(np.sort(np.concatenate(found)), rows_N)
    sizes = [len(part) for part in found]
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    assert sizes == [part.stop - part.start for part in consecutive(len(rows_N), size)]


@pytest.mark.parametrize("shuffled", [True, False])
def test_several_processes_read_the_parts_of_the_same_minibatches(shuffled: bool) -> None:
    rows_N = np.arange(301)

    def make(rows_N: np.ndarray, size: int, seed: int, shares: Shares) -> list[np.ndarray]:
        if shuffled:
            return epoch(rows_N, size, seed, shares)
        return [rows_N[part] for part in consecutive(len(rows_N), size, shares)]

    whole = make(rows_N, 32, 5, Shares(3))
    parts = [make(rows_N, 32, 5, Shares(3, k)) for k in range(3)]
    assert len(whole) == 10
    for minibatch, *of_each in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(minibatch, np.concatenate(of_each))
        assert max(map(len, of_each)) - min(map(len, of_each)) <= 1


def test_parts_are_of_different_blocks() -> None:
    blocks = [set(np.concatenate(epoch(np.arange(4096), 32, 1, Shares(4, k))) // 8) for k in range(4)]
    assert sum(map(len, blocks)) <= 512 + 3  # at most one block at each border is read twice


def test_a_buffer_has_cells_of_few_blocks_and_minibatches_mix_them() -> None:
    buffers = list(in_blocks(np.arange(4096), 32, 3, block=8, buffer=64))
    of_first = np.concatenate(buffers[0]) // 8
    assert len(np.unique(of_first)) <= 9
    assert len(buffers) == 64
    assert len(np.unique(buffers[0][0] // 8)) > 4  # not its first four blocks one after another


def test_the_seed_alone_decides() -> None:
    rows_N = np.arange(500)
    first = np.concatenate(epoch(rows_N, 32, 7))
    torch.manual_seed(3)
    state = torch.get_rng_state()
    np.testing.assert_array_equal(first, np.concatenate(epoch(rows_N[::-1], 32, 7)))
    assert (first != np.concatenate(epoch(rows_N, 32, 8))).any()
    assert torch.equal(state, torch.get_rng_state())


def test_no_cells_are_one_empty_minibatch() -> None:
    assert [len(part) for part in epoch(np.arange(0), 32)] == [0]


def test_buffers_of_cells_with_many_genes_have_fewer_cells() -> None:
    assert [buffer_of(n) for n in (0, 200, 2000)] == [65_536, 65_536, 20_000]
