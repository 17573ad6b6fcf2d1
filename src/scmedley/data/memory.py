"""How much memory this process may still use."""

import os
from pathlib import Path

import torch

from scmedley import distributed

# Of the free memory (of the computer, or of a GPU), what the values of cells may take: preparing them in memory copies
# them three times.
SHARE = 0.25
UNKNOWN = 4 << 30  # bytes that are taken to be free where the system does not say


def room(device: torch.device, memory_gb: float | None = None) -> int:
    """Return how many bytes the cells of a store may take; ``memory_gb`` overrides the share of the free memory."""
    if memory_gb is not None:
        return int(memory_gb * 1e9)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    share = SHARE / (1 if device.type == "cuda" else distributed.on_this_machine())
    return int(share * (UNKNOWN if free is None else free))


def too_large(n_bytes: int) -> str:
    """Return how large values and free memory are, if values of this size should stay on disk; else ""."""
    free = free_memory()
    if free is None or n_bytes <= SHARE * free:
        return ""
    return f"{n_bytes / 1e9:.3g} GB of values and {free / 1e9:.3g} GB of memory are free"


def free_memory() -> int | None:
    """Return how many bytes this process may still use without swapping; ``None`` if the system does not say."""
    found = [value for value in (_available(), _of_container()) if value is not None]
    if found:
        return min(found)
    try:  # macOS has no number of free pages: half of all memory is a careful guess
        return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    except (AttributeError, ValueError, OSError):
        return None


def _available() -> int | None:
    """Return MemAvailable of Linux."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def _of_container(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return what is left of the limit of a container or batch job (cgroup, version 2); pages of files can be freed."""
    try:
        limit, used = ((folder / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        of_files = next(
            int(line.split()[1])
            for line in (folder / "memory.stat").read_text().splitlines()
            if line.startswith("inactive_file ")
        )
        return max(0, int(limit) - int(used) + of_files)  # "max" (no limit) is not a number
    except (OSError, StopIteration, ValueError):
        return None
