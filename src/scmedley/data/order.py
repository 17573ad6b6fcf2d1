"""Which cells each minibatch of an epoch has: from a seed alone, split from reading them.

Cells in memory are in one random order. Cells in a store are read in blocks of consecutive rows: the blocks are in
random order, some hundred of them fill a buffer, and the cells of a buffer are in random order.

Several processes share each minibatch: it consists of K parts, and each process reads one of them. One process that
reads all K parts has the same minibatches.

Shapes: N cells, S minibatches of an epoch, K parts of a minibatch.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

BLOCK = 256  # consecutive cells that are read at once: about 150 kB
BUFFER = 65_536  # most cells in a buffer
VALUES = 40_000_000  # most stored values in a buffer, about 200 MB


class Shares(NamedTuple):
    """The part of each minibatch that a process reads.

    Attributes
    ----------
    parts
        K, the number of parts.
    mine
        The part that is read, from 0; ``None``: all of them, one after another.
    """

    parts: int = 1
    mine: int | None = None

    @property
    def read(self) -> Sequence[int]:
        """Return the parts that are read."""
        return range(self.parts) if self.mine is None else [self.mine]


WHOLE = Shares()


def split(n: int, parts: int) -> np.ndarray:
    """Return the sizes of ``parts`` nearly equal parts of ``n``, the larger ones first."""
    return n // parts + (np.arange(parts) < n % parts)


def n_minibatches(n: int, batch_size: int) -> int:
    """Return S, at least 1."""
    return max(1, -(-n // batch_size))


def buffer_of(values_per_cell: float) -> int:
    """Return the number of cells in a buffer."""
    return min(BUFFER, int(VALUES / max(values_per_cell, 1.0)))


def consecutive(n: int, batch_size: int, shares: Shares = WHOLE) -> Iterator[slice]:
    """Yield the place of each minibatch among ``n`` cells that are in order already.

    Minibatches have nearly equal size, at most ``batch_size``: a last one of one cell would make BatchNorm fail.
    """
    start = 0
    for size in split(n, n_minibatches(n, batch_size)).tolist():
        if shares.mine is None:
            yield slice(start, start + size)
        else:
            sizes = split(size, shares.parts)
            first = start + int(sizes[: shares.mine].sum())
            yield slice(first, first + int(sizes[shares.mine]))
        start += size


def in_blocks(
    rows_N: np.ndarray,
    batch_size: int,
    seed: int,
    shares: Shares = WHOLE,
    *,
    block: int,
    buffer: int,
) -> Iterator[list[np.ndarray]]:
    """Yield one buffer after another: the rows of each of its minibatches, in random order.

    The parts of a minibatch are of different blocks, except that a block at the border of two parts or of two
    buffers is read for both.

    Parameters
    ----------
    rows_N
        Rows of the epoch; each is in one minibatch.
    batch_size
        As in :func:`consecutive`.
    seed
        The order is a function of it and of the other arguments.
    shares
        The parts that are read; they do not change the order.
    block, buffer
        Cells of a block, and about the number of cells in a buffer (of all parts).
    """
    walk_N = _blocks_shuffled(np.sort(rows_N), np.random.default_rng([seed]), block)
    size_S = split(len(walk_N), n_minibatches(len(walk_N), batch_size))
    size_KS = np.array([size_S // shares.parts + (k < size_S % shares.parts) for k in range(shares.parts)])
    first_K = np.concatenate([[0], np.cumsum(size_KS.sum(axis=1))])
    end_KS = first_K[:-1, None] + np.cumsum(size_KS, axis=1)
    steps = max(1, buffer // batch_size)
    for number, first in enumerate(range(0, len(size_S), steps)):
        parts = []
        for k in shares.read:
            end_s = end_KS[k, first : first + steps]
            start = end_s[0] - size_KS[k, first]
            rows_n = np.random.default_rng([seed, k, number]).permutation(walk_N[start : end_s[-1]])
            parts.append(np.split(rows_n, end_s[:-1] - start))
        yield [np.concatenate(of_one) for of_one in zip(*parts, strict=True)]


def _blocks_shuffled(rows_N: np.ndarray, rng: np.random.Generator, block: int) -> np.ndarray:
    """Return sorted rows with their blocks in random order."""
    starts = np.flatnonzero(np.diff(rows_N // block, prepend=-1))
    blocks = np.split(rows_N, starts[1:])
    return np.concatenate([blocks[i] for i in rng.permutation(len(blocks))]) if len(rows_N) else rows_N
