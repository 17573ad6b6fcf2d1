"""Threads stay as they were set."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from scmedley.process import one_thread_if_forked


@contextmanager
def threads_kept() -> Iterator[None]:
    """Give torch's threads back afterwards: numba, of scanpy and UMAP, sets OpenMP's for the whole process.

    It does so when it first runs, so that the bits of a result would hang on what ran before.
    """
    one_thread_if_forked()
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
