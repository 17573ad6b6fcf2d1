"""Which device, how many threads, and which number format a fit uses."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Literal, get_args

import torch

from scmedley.errors import ScmedleyError

Precision = Literal["auto", "float32", "bfloat16"]


def resolve_device(device: str) -> torch.device:
    """Turn ``"auto"`` into a GPU when there is one, else the CPU; check any other name."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
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


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Give the context in which forward passes run; weights and losses stay float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


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
    """Set CPU threads and TF32 for a while, and give the caller's settings and random state back."""
    if threads is not None and threads < 1:
        raise ScmedleyError(f"threads={threads} must be at least 1.")
    threads_before = torch.get_num_threads()
    tf32_before = torch.backends.cuda.matmul.allow_tf32
    if threads is not None:
        torch.set_num_threads(threads)
    if device.type == "cpu":
        keep_freed_memory()
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        torch.set_num_threads(threads_before)
        torch.backends.cuda.matmul.allow_tf32 = tf32_before
