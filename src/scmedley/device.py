"""Device, threads and precision of a computation, and the settings of the process around it.

A caller may have changed settings of PyTorch and NumPy: for one thread (gradients, inference mode, autocast,
default device, ``numpy.seterr``) or for the whole process (default dtype, random state, number of threads).
Results do not depend on these settings, and the functions here restore them.

One setting stays changed in the calling process: after the first use of :func:`engine` on a CPU (such as a
fit), glibc keeps more of the freed memory (:func:`keep_freed_memory`). glibc cannot report the old value, so
it cannot be restored. The command line, which owns its process, also sets ``OMP_WAIT_POLICY=PASSIVE`` before
PyTorch is imported, unless the user has set it (``scmedley.__main__``). Neither changes a result. A forked
child also keeps one thread (:func:`one_thread_if_forked`).
"""

import ctypes
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from scmedley.errors import ScmedleyError, ScmedleyWarning


def _threads_at_start() -> int:
    """Return the number of threads that this process starts with: OMP_NUM_THREADS, or what PyTorch chooses.

    It is noted once. numba (used by scanpy and UMAP) sets the number of OpenMP threads of the whole process when it
    first runs, so what PyTorch reports later depends on what ran before, and with it the last digits of a fit.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(asked) if asked.isdecimal() and int(asked) else torch.get_num_threads()


_threads = _threads_at_start()  # if a caller asks for no number; inside of ``engine``, that of the engine
_imported_by = os.getpid()
_limited_in = 0  # process id of the forked child that was limited to one thread
_lock = threading.RLock()


def _new_lock() -> None:
    """Replace the lock in a forked child: the thread that holds it may not exist there."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_new_lock)


@contextmanager
def modes(grad: bool) -> Iterator[None]:
    """Compute in this thread with or without gradients, independent of the caller's modes.

    Other threads see no change, unless the caller has changed how a CPU multiplies matrices. So fitted models
    can be used in several threads at once.
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
    except (AssertionError, RuntimeError):  # the default device does not exist
        return False


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Let one thread of the process at a time into the block; the same thread may enter again.

    The random state and the default dtype belong to the whole process. Two fits at the same time would draw
    different random numbers in every run.
    """
    with _lock:
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
    else:  # PyTorch before 2.9 has one setting; on a CPU only "medium" is below float32
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


def generator_of(device: torch.device) -> torch.Generator:
    """Return the generator that random numbers on a device are drawn from."""
    if device.type == "cuda":
        number = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.default_generators[number]
    if device.type == "mps":
        generator: torch.Generator = torch.mps._get_default_mps_generator()
        return generator
    return torch.default_generator


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Draw on the CPU, and on ``device`` too, from ``seed``, and restore the caller's random states."""
    generators = {torch.default_generator}
    if device is not None:
        generators.add(generator_of(device))
    with one_at_a_time():
        states = [(generator, generator.get_state()) for generator in generators]
        for generator in generators:
            generator.manual_seed(seed)
        try:
            yield
        finally:
            for generator, state in states:
                generator.set_state(state)


def is_forked() -> bool:
    """Return whether this process is a forked child of the one that imported scmedley."""
    return os.getpid() != _imported_by


def one_thread_if_forked() -> None:
    """Use one thread from now on if this process is a forked child; call it before work in several threads.

    PyTorch and scikit-learn compute in OpenMP threads. These exist only in the parent: a child that waits for
    them never continues.
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
            "This process was forked from one that had imported scmedley, so it uses one thread and no GPU. To use "
            "more, start processes by 'spawn' (multiprocessing.get_context('spawn')).",
            ScmedleyWarning,
            stacklevel=2,
        )


DEVICES = ("cpu", "cuda", "mps")  # that networks are trained on

Precision = Literal["auto", "float32", "bfloat16"]


def resolve_device(device: str) -> torch.device:
    """Return a GPU for ``"auto"`` if there is one, else the CPU; check any other name.

    A forked child cannot use its parent's GPU.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() and not is_forked() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(1, device=resolved).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].split(". ")[0].rstrip(".")[:150]
        raise ScmedleyError(
            f"device={device!r} is not available on this machine: {reason}. Use 'cpu'."
        ) from error
    return resolved


def resolve_precision(precision: str, device: torch.device) -> Literal["float32", "bfloat16"]:
    """Return bfloat16 for ``"auto"`` if the hardware multiplies it natively, else float32."""
    if precision not in get_args(Precision):
        raise ScmedleyError(f"precision={precision!r} must be one of {list(get_args(Precision))}.")
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
        finally:  # PyTorch keeps bfloat16 copies of the weights until the caller's autocast ends
            torch.clear_autocast_cache()


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context that computes in float32 where layers compute in bfloat16."""
    return torch.autocast(device.type, enabled=False) if device.type in DEVICES else nullcontext()


def keep_freed_memory() -> None:
    """Let glibc keep up to 256 MB of freed memory for the rest of the process.

    Each training step frees and allocates the same blocks of some megabytes. If they went back to the kernel
    in between, allocating them again, page by page, would take longer than the computation.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # the C library is not glibc
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD: blocks up to this size come from the heap
            mallopt(-1, 256 << 20)  # M_TRIM_THRESHOLD: free memory at the top of the heap that is kept


@contextmanager
def engine(threads: int | None, device: torch.device) -> Iterator[None]:
    """Train with the same CPU threads, number formats and modes for every caller.

    ``threads=None`` is the number that the process started with, whatever set another one since.
    The caller's threads, dtype, modes and random state are restored afterwards. On a CPU,
    :func:`keep_freed_memory` stays in effect for the rest of the process. Two threads of one process take
    turns.
    """
    _check_deterministic(device)
    with one_at_a_time(), modes(grad=True), matrix_products(device.type), _threads_of(threads):
        if device.type == "cpu":
            keep_freed_memory()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), _on_mps(device):
            yield


def resolve_threads(threads: int | None) -> int:
    """Return the number of threads to use: for ``None`` that of the engine around it, or of the process."""
    if threads is None:
        return _threads
    if threads < 1:
        raise ScmedleyError(f"threads={threads} must be at least 1.")
    return threads


@contextmanager
def _threads_of(threads: int | None) -> Iterator[None]:
    """Compute with this number of threads; inside, ``None`` is the same number. A forked child keeps one thread."""
    global _threads
    before, of_torch = _threads, torch.get_num_threads()
    _threads = resolve_threads(threads)
    if not is_forked():
        torch.set_num_threads(_threads)
    try:
        yield
    finally:
        _threads = before
        torch.set_num_threads(of_torch)


@contextmanager
def _on_mps(device: torch.device) -> Iterator[None]:
    """Restore the random state of Apple's GPU, and name an operation that PyTorch lacks there."""
    if device.type != "mps":
        yield
        return
    state = generator_of(device).get_state()
    try:
        yield
    except NotImplementedError as error:
        reason = str(error).splitlines()[0][:150]
        raise ScmedleyError(
            f"device='mps': {reason}. Set the environment variable PYTORCH_ENABLE_MPS_FALLBACK=1, with which PyTorch "
            "computes this operation on the CPU, or use device='cpu'."
        ) from error
    finally:
        generator_of(device).set_state(state)


def _check_deterministic(device: torch.device) -> None:
    """Raise before training if PyTorch would raise during training."""
    asked = torch.are_deterministic_algorithms_enabled()
    if not asked or torch.is_deterministic_algorithms_warn_only_enabled() or device.type != "cuda":
        return
    if os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in (":4096:8", ":16:8"):
        raise ScmedleyError(
            "torch.use_deterministic_algorithms(True) is on. On a GPU it needs the environment variable "
            "CUBLAS_WORKSPACE_CONFIG=:4096:8. Set it before Python starts, or pass device='cpu'."
        )


@contextmanager
def threads_kept() -> Iterator[None]:
    """Restore PyTorch's number of threads afterwards.

    numba (used by scanpy and UMAP) sets the number of OpenMP threads of the whole process when it first runs.
    The bits of a result would depend on what ran before.
    """
    one_thread_if_forked()
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
