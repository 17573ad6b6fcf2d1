"""Seconds and rates of a step of an atlas; without scmedley, which the environments of rivals need not have."""

import time
from typing import Any

import numpy as np

Result = dict[str, Any]


def clock() -> np.ndarray:
    """Return the seconds of the clock and of the CPU: other programs do not change the latter much."""
    return np.array([time.perf_counter(), time.process_time()])


def rate(n_cells: int, seconds: np.ndarray) -> Result:
    """Return cells, seconds, and cells per second."""
    wall, cpu = map(float, seconds)
    return {
        "cells": n_cells,
        "seconds": wall,
        "cpu_seconds": cpu,
        "cells_per_second": n_cells / wall,
        "cells_per_cpu_second": n_cells / cpu,
    }
