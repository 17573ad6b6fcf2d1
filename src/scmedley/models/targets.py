"""The targets of counterfactuals: batches by name, or levels of a design, of which cells keep the others.

Shapes: N cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmedley.data.design import Design, called
from scmedley.data.targets import named_targets, target_name
from scmedley.errors import ScmedleyError, listed, warn
from scmedley.models.adapt import seeing

if TYPE_CHECKING:
    from scmedley.models.base import Model


@dataclass(frozen=True)
class Aim:
    """A target: its name, the code of the batch that each cell becomes, and whether the fit had such cells."""

    name: str
    code_N: np.ndarray
    seen_N: np.ndarray


def aims(
    model: Model[Any], obs: pd.DataFrame, to: object, unknown: str
) -> tuple[Model[Any], np.ndarray, list[Aim]]:
    """Return the model with all combinations that are needed, the code of each cell's own batch, and the targets.

    Raises
    ------
    ScmedleyError
        There is no target, or one of them is unknown or given twice; or cells are of unknown batches.
    """
    targets, design = named_targets(to), model.design
    if not targets:
        raise ScmedleyError(
            'No target is given. Give at least one target batch, or "mean" for the population mean.'
        )
    frames = [as_if(design, obs, target) for target in targets]
    names = [target_name(target) for target in targets]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise ScmedleyError(
            f"The target batch {repeated[0]!r} is given more than once. Give each target once."
        )
    design.known_codes(obs, unknown)  # raises for those that are not
    for one in (obs, *frames):
        if isinstance(one, pd.DataFrame):
            model = seeing(model, one)
    found = []
    for name, one in zip(names, frames, strict=True):
        code_N = np.full(len(obs), one) if isinstance(one, int) else model.design.codes(one)
        found.append(Aim(name, code_N, _seen(design, model.design, code_N)))
    unseen = {model.design.batches[code] for aim in found for code in np.unique(aim.code_N[~aim.seen_N])}
    if unseen:
        warn(
            f"No cell of the fit is of {listed(sorted(unseen))}: these predictions are the sum of what their levels do "
            "in other cells, and intervals with draws add the prior of what is their own. obs['counterfactual_seen'] "
            "marks them."
        )
    return model, model.design.codes(obs), found


def as_if(design: Design, obs: pd.DataFrame, target: str | Mapping[str, Any]) -> int | pd.DataFrame:
    """Return the code of a target that is the same for all cells, or the columns of the design as if in it."""
    if isinstance(target, str):
        return design.code(target)
    if not target:
        raise ScmedleyError('A target is empty. Name levels, such as {"condition": "stim"}.')
    if design.terms is not None:
        return design.terms.targeted(obs, target)
    other = [column for column in target if column != design.batch_key]
    if other:
        raise ScmedleyError(
            f"The model has the effects of {design.batch_key!r} alone, not of {other[0]!r}. Fit it with a design that "
            "has both."
        )
    return design.code(called(target[design.batch_key]))


def _seen(before: Design, now: Design, code_N: np.ndarray) -> np.ndarray:
    """Return whether cells of the fit, or of ``adapt``, had the levels of these codes; a removed level is any."""
    codes, inverse_N = np.unique(code_N, return_inverse=True)
    known = (codes < before.n_batches).copy()
    new = np.flatnonzero(~known)
    if len(new):
        known[new] = before.seen(*(np.asarray(part)[codes[new]] for part in (now.levels, now.values)))
    return np.asarray(known[inverse_N.reshape(-1)])
