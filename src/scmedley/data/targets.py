"""Targets of counterfactuals: batches by name, or levels of a design by column."""

from collections.abc import Iterable, Mapping
from typing import Any

from scmedley.data.design import called

Target = str | Mapping[str, Any]  # of a counterfactual: a batch, "mean", or levels by column


def named_targets(to: object) -> list[str | dict[str, Any]]:
    """Return one or several targets: names of batches as text (1, 1.0 and "1" are the same), or levels by column."""
    one = isinstance(to, str | Mapping) or not isinstance(to, Iterable)
    targets: Iterable[Any] = [to] if one else to  # type: ignore[assignment]
    return [
        {str(column): value for column, value in target.items()}
        if isinstance(target, Mapping)
        else called(target)
        for target in targets
    ]


def target_name(target: Target) -> str:
    """Return the name of a target: a batch, or ``condition=stim, donor=d1``."""
    if isinstance(target, str):
        return target
    return ", ".join(f"{column}={called(value)}" for column, value in target.items())
