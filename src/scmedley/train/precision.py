"""Which device, how many threads, and which number format a fit uses."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal, get_args

import torch

from scmedley.errors import ScmedleyError
from scmedley.process import is_forked, matrix_products, modes, one_at_a_time

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
