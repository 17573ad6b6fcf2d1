"""Progress bars."""

import math
import sys
from typing import Any

from tqdm.auto import tqdm


def progress_bar(total: int, title: str, unit: str, shown: bool = True) -> Any:
    """Return a progress bar; in a log file it is drawn only at its beginning and its end, in one line."""
    live = sys.stderr.isatty() or "ipykernel" in sys.modules  # a terminal or a notebook
    seconds = 0.5 if live else math.inf
    how: Any = {"mininterval": seconds, "maxinterval": max(10.0, seconds), "disable": not shown}
    return tqdm(total=total, desc=title, unit=unit, **how)
