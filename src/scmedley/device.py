"""Where and how a computation runs: device, threads, precision; it keeps to its own and gives the process back.

A caller may have changed how PyTorch and NumPy work: for one thread (gradients, inference mode, autocast, the default
device, ``numpy.seterr``) or for the whole process (the default dtype, the random state, the number of threads).
The results must not depend on it, and all of it must be as before afterwards.

Two settings hold for the rest of the process, and change no result: how much freed memory glibc keeps
(:func:`keep_freed_memory`, in each fit on a CPU), and ``OMP_WAIT_POLICY``, which PyTorch reads when it is imported, so
that the command line alone sets it (``scmedley.__main__``).
"""

import ctypes
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from scmedley.errors import ScmedleyError, ScmedleyWarning

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


Precision = Literal["auto", "float32", "bfloat16"]


def resolve_device(device: str) -> torch.device:
    """Return a GPU for ``"auto"`` when there is one, else the CPU; check any other name.

    A forked child cannot use its parent's GPU.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() and not is_forked() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(1, device=resolved).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].split(". ")[0].rstrip(".")[:150]
        raise ScmedleyError(f"device={device!r} is not to be had here: {reason}. Use 'cpu'.") from error
    return resolved


def resolve_precision(precision: str, device: torch.device) -> Literal["float32", "bfloat16"]:
    """Turn ``"auto"`` into bfloat16 where the hardware multiplies it natively, else float32."""
    if precision not in get_args(Precision):
        raise ScmedleyError(f"precision={precision!r} is none of {list(get_args(Precision))}.")
    if precision == "float32" or precision == "bfloat16":
        return precision  # type: ignore[return-value]
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return "bfloat16" if device.type == "cpu" and native else "float32"


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Run forward passes in ``precision``; weights and losses stay float32."""
    if precision == "float32":
        yield
        return
    with torch.autocast(device.type, torch.bfloat16):
        try:
            yield
        finally:  # PyTorch keeps its bfloat16 copies of the weights until the outermost autocast ends: the caller's
            torch.clear_autocast_cache()


def keep_freed_memory() -> None:
    """Let glibc keep 256 MB of what is freed, for the rest of the process.

    Each training step frees and asks again for the same blocks of some megabytes. Given back in between, they
    come anew from the kernel, page by page, which takes longer than what is computed in them.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD: blocks up to here come from the heap
            mallopt(-1, 256 << 20)  # M_TRIM_THRESHOLD: free memory at its top that is kept


@contextmanager
def engine(threads: int | None, device: torch.device) -> Iterator[None]:
    """Train in here: CPU threads, number formats and modes are the same for every caller.

    The caller's threads, dtype, modes and random state are as before afterwards. One thing stays changed for the rest
    of the process, as it cannot be read and so not be restored: how much freed memory glibc keeps
    (:func:`keep_freed_memory`); it changes no result. Two threads of one process take turns.
    """
    if threads is not None and threads < 1:
        raise ScmedleyError(f"threads={threads} must be at least 1.")
    _check_deterministic(device)
    with one_at_a_time(), modes(grad=True), matrix_products(device.type):
        threads_before = torch.get_num_threads()
        if threads is not None and not is_forked():
            torch.set_num_threads(threads)
        if device.type == "cpu":
            keep_freed_memory()
        try:
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                yield
        finally:
            torch.set_num_threads(threads_before)


def _check_deterministic(device: torch.device) -> None:
    """Raise before training what PyTorch would raise in the midst of it."""
    asked = torch.are_deterministic_algorithms_enabled()
    if not asked or torch.is_deterministic_algorithms_warn_only_enabled() or device.type != "cuda":
        return
    if os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in (":4096:8", ":16:8"):
        raise ScmedleyError(
            "torch.use_deterministic_algorithms(True) is on, and on a GPU it needs the environment variable "
            "CUBLAS_WORKSPACE_CONFIG=:4096:8. Set it before Python starts, or pass device='cpu'."
        )


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
