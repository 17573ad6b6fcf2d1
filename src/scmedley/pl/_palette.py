"""Colours for colour-blind readers that are visible on white and on near-black."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from anndata import AnnData

# Okabe and Ito's set without black and with a darker yellow; then the same hues lighter and darker.
BASE = ["#0079bf", "#e69f00", "#009e73", "#cc5fa0", "#d55e00", "#56b4e9", "#8c7ae6", "#a3a300"]
MISSING = "#9a9a9a"


def _mix(colour: str, other: int, share: float) -> str:
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(part * (1 - share) + other * share):02x}" for part in parts)


DISTINCT = BASE + [_mix(colour, 255, 0.45) for colour in BASE] + [_mix(colour, 0, 0.30) for colour in BASE]


def colours(n: int) -> list[str]:
    """Return a colour for each of ``n`` levels; colours repeat after ``len(DISTINCT)``."""
    return [DISTINCT[i % len(DISTINCT)] for i in range(n)]


def as_hex(given: Any) -> list[str]:
    """Return colours of ``uns``, which may be names or have an alpha, as ``"#rrggbb"``; none if one is no colour."""
    try:
        from matplotlib.colors import to_hex

        return [to_hex(colour) for colour in np.atleast_1d(given)]
    except (ImportError, ValueError):
        return []


def store_colours(adata: AnnData, columns: Iterable[str]) -> None:
    """Store the report's colours of categorical columns in ``uns``, where scanpy and CELLxGENE look for them.

    Colours that the AnnData has stay, unless they are fewer than the categories or are no colours.
    """
    for name in columns:
        if name in adata.obs and isinstance(adata.obs[name].dtype, pd.CategoricalDtype) and "/" not in name:
            n_levels = len(adata.obs[name].cat.categories)
            if n_levels and len(as_hex(adata.uns.get(f"{name}_colors", ()))) < n_levels:
                adata.uns[f"{name}_colors"] = colours(n_levels)
