"""Is this what the plot draws? Errors that name the column, the row and the value."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd

from scmedley.errors import ScmedleyError


def table_of(
    table: pd.DataFrame, what: str, columns: Sequence[str], numbers: Sequence[str], finite: Sequence[str] = ()
) -> pd.DataFrame:
    """Give a table with ``numbers`` as numbers, NaN where there is none; those that are ``finite`` must not be.

    Raises
    ------
    ScmedleyError
        No table, an empty one, a column that is missing, a value that is no number.
    """
    if not isinstance(table, pd.DataFrame):
        raise ScmedleyError(f"{what} is a {type(table).__name__}; give a pandas DataFrame.")
    missing = [column for column in columns if column not in table]
    if missing:
        raise ScmedleyError(f"{what} lacks the column(s) {', '.join(missing)}")
    if table.empty:
        raise ScmedleyError(f"{what} is empty: nothing to draw")
    found = table.copy(deep=False)
    for column in numbers:
        values = pd.to_numeric(table[column], errors="coerce").to_numpy(dtype=float, na_value=np.nan)
        bad = (
            ~np.isfinite(values) if column in finite else np.isnan(values) & table[column].notna().to_numpy()
        )
        if bad.any():
            row = int(bad.argmax())
            kind = "finite number" if column in finite else "number"
            raise ScmedleyError(
                f"{what}, row {table.index[row]!r}, column {column!r}: {table[column].iloc[row]!r} is no {kind}."
            )
        found[column] = values
    return found


def is_whole(value: Any) -> bool:
    """Say whether a value is a whole number, of Python or numpy."""
    return isinstance(value, Integral) and not isinstance(value, bool)
