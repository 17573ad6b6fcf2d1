"""What a computation takes from its process, and how it keeps to its own: modes, random state, turns, forks.

A caller may have changed how PyTorch and NumPy work: for one thread (gradients, inference mode, autocast, the default
device, ``numpy.seterr``) or for the whole process (the default dtype, the random state, the number of threads).
The results must not depend on it, and all of it must be as before afterwards.
"""

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from scmedley.errors import ScmedleyWarning

_imported_by = os.getpid()
_limited_in = 0  # the forked child that was told
_turn = threading.RLock()


def _new_turn() -> None:
    """Replace the lock in a forked child: the thread that held it may not exist there."""
    global _turn
    _turn = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_new_turn)


@contextmanager
def modes(grad: bool) -> Iterator[None]:
    """Compute in this thread with gradients or without, whatever modes the caller has set for it.

    Unless the caller has changed how a CPU multiplies matrices, it sets nothing that other threads see, so that fitted
    models can be used in several threads at once.
    """
    one_thread_if_forked()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad() if grad else torch.no_grad())
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if not _makes_tensors_on_cpu():
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(matrix_products("cpu"))
        yield


def _makes_tensors_on_cpu() -> bool:
    try:
        return torch.get_default_device().type == "cpu"
    except (AssertionError, RuntimeError):  # a default device that is not there
        return False


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Wait until no other thread of the process is in here, and let the same thread in again.

    The random state and the default dtype are those of the whole process: two fits in two threads that drew from
    them at the same time would each get other numbers every time.
    """
    with _turn:
        dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


@contextmanager
def matrix_products(kind: str) -> Iterator[None]:
    """Multiply float32 matrices in TF32 on a GPU (``kind`` "cuda") and in float32 on a CPU."""
    if hasattr(torch.backends.mkldnn, "matmul"):
        backend: Any = torch.backends.cuda.matmul if kind == "cuda" else torch.backends.mkldnn.matmul
        before, wanted = backend.fp32_precision, ("tf32",) if kind == "cuda" else ("none", "ieee")
        choose: Callable[[str], None] = partial(setattr, backend, "fp32_precision")
    else:  # before PyTorch 2.9, one setting for both; on a CPU only "medium" is less than float32
        before, wanted = (
            torch.get_float32_matmul_precision(),
            ("high",) if kind == "cuda" else ("highest", "high"),
        )
        choose = torch.set_float32_matmul_precision
    if before in wanted:
        yield
        return
    with one_at_a_time():
        choose(wanted[-1])
        try:
            yield
        finally:
            choose(before)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw on the CPU from ``seed``, and give the caller's random state back."""
    with one_at_a_time(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def is_forked() -> bool:
    """Return whether this process is a forked child of the one that imported scmedley."""
    return os.getpid() != _imported_by


def one_thread_if_forked() -> None:
    """Use one thread from now on if this process is a forked child; call it before work in several threads.

    The threads of OpenMP, which PyTorch and scikit-learn share their work among, stay behind in the parent, and a child
    that waits for them waits for ever.
    """
    global _limited_in
    if not is_forked() or (_limited_in == os.getpid() and torch.get_num_threads() == 1):
        return
    _limited_in = os.getpid()
    many = torch.get_num_threads() > 1
    torch.set_num_threads(1)
    threadpool_limits(1, user_api="openmp")
    if many:
        warnings.warn(
            "This process is a fork of one that had loaded scmedley: it uses one thread and no GPU, as those of the "
            "parent are not there. Start processes by 'spawn' (multiprocessing.get_context('spawn')) to use more.",
            ScmedleyWarning,
            stacklevel=2,
        )
