"""Checks of what a plot is given. Errors name the column, the row and the value."""

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
    """Return the table with the columns ``numbers`` as floats; those in ``finite`` must not be missing.

    Raises
    ------
    ScmedleyError
        Not a table, an empty table, a missing column, or a value that is not a number.
    """
    if not isinstance(table, pd.DataFrame):
        raise ScmedleyError(f"{what} is a {type(table).__name__}. Pass a pandas DataFrame.")
    missing = [column for column in columns if column not in table]
    if missing:
        raise ScmedleyError(f"{what} lacks the column(s) {', '.join(missing)}. Pass another table.")
    if table.empty:
        raise ScmedleyError(f"{what} is empty, so there is nothing to draw. Pass a table with rows.")
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
                f"{what}, row {table.index[row]!r}, column {column!r}: {table[column].iloc[row]!r} is not a {kind}."
            )
        found[column] = values
    return found


def is_whole(value: Any) -> bool:
    """Return whether a value is an integer of Python or numpy."""
    return isinstance(value, Integral) and not isinstance(value, bool)
