"""Names of batches and labels and their integer codes, stored with the model."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from scmedley.checks import check_key
from scmedley.errors import ScmedleyError
from scmedley.overlap import as_categories, called

POPULATION_MEAN = "mean"  # the target of a counterfactual with all batch effects at zero


def named_targets(to: object) -> list[str]:
    """Return the names of one target batch or of several, whatever the type of their column (1, 1.0 and "1")."""
    one = isinstance(to, str) or not isinstance(to, Iterable)
    return [called(target) for target in ([to] if one else to)]  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Design:
    """The batches that a model knows; code i is ``batches[i]``.

    The last ``n_adapted`` of them were added to the fitted model (:meth:`Model.adapt`), the others trained it.
    """

    batch_key: str
    batches: tuple[str, ...]
    n_adapted: int = 0

    @classmethod
    def of(cls, obs: pd.DataFrame, batch_key: str) -> "Design":
        """Learn the batches from ``obs[batch_key]``: its used categories, in their order."""
        values = _categories(obs, batch_key)
        batches = tuple(values.categories)
        if values.isna().any():
            raise ScmedleyError(
                f"{int(values.isna().sum())} cells have no batch in obs[{batch_key!r}]. Fill it in, or remove them."
            )
        if POPULATION_MEAN in batches:
            raise ScmedleyError(
                f"obs[{batch_key!r}] has a batch named {POPULATION_MEAN!r}, which is kept for the population "
                "mean. Rename that batch."
            )
        return cls(batch_key, batches)

    @property
    def n_batches(self) -> int:
        """Give B."""
        return len(self.batches)

    def codes(self, obs: pd.DataFrame) -> np.ndarray:
        """Give the code of each cell's batch (int64), -1 for a batch that the model does not know."""
        if self.batch_key not in obs:
            return np.full(len(obs), -1, dtype=np.int64)
        values = _categories(obs, self.batch_key)
        return np.asarray(values.set_categories(self.batches).codes, dtype=np.int64)

    def known_codes(self, obs: pd.DataFrame, unknown: str = "error") -> np.ndarray:
        """Give the codes, or say which batches are not known.

        Parameters
        ----------
        unknown
            ``"error"`` raises for a batch the model was not trained on; ``"mean"`` lets code -1, the
            population mean, stand for it.
        """
        check_unknown(unknown)
        codes = self.codes(obs)
        if unknown == POPULATION_MEAN or (codes >= 0).all():
            return codes
        if self.batch_key not in obs:
            where = f"obs has no column {self.batch_key!r}"
        else:
            names = sorted({str(v) for v in obs[self.batch_key][codes < 0].unique()})
            where = f"{int((codes < 0).sum())} cells are of batches {names[:5]}"
        raise ScmedleyError(
            f"This needs batches that the model was trained on, and {where}. Pass "
            f"unknown='mean' (--unknown mean) to use the population mean (no batch effect) for them; the model knows "
            f"{list(self.batches[:8])}{' ...' if self.n_batches > 8 else ''}."
        )

    def code(self, batch: str) -> int:
        """Give the code of one batch, -1 for the population mean."""
        if batch == POPULATION_MEAN:
            return -1
        if batch not in self.batches:
            raise ScmedleyError(
                f"There is no batch {batch!r} in the model. Choose {POPULATION_MEAN!r} (no batch effect) or "
                f"one of {list(self.batches[:20])}{' ...' if self.n_batches > 20 else ''}."
            )
        return self.batches.index(batch)


@dataclass(frozen=True)
class Labels:
    """The labels that a model's label head was trained on; code k is ``names[k]``."""

    label_key: str
    names: tuple[str, ...]

    @classmethod
    def of(cls, obs: pd.DataFrame, label_key: str) -> "Labels":
        """Learn the labels from ``obs[label_key]`` of the training cells; missing ones are left out.

        Raises
        ------
        ScmedleyError
            No such column, or fewer than two labels.
        """
        names = tuple(_categories(obs, label_key).categories)
        if len(names) < 2:
            raise ScmedleyError(
                f"The training cells have {len(names)} label{'' if len(names) == 1 else 's'} in "
                f"obs[{label_key!r}]; a label head needs two or more. Leave label_key out to train without labels."
            )
        return cls(label_key, names)

    def codes(self, obs: pd.DataFrame) -> np.ndarray:
        """Give the code of each cell's label (int64), -1 for a missing or unknown one."""
        values = _categories(obs, self.label_key)
        return np.asarray(values.set_categories(self.names).codes, dtype=np.int64)


def check_unknown(unknown: str) -> None:
    """Raise if ``unknown`` is neither of its two values."""
    if unknown not in ("error", POPULATION_MEAN):
        raise ScmedleyError(
            f"unknown={unknown!r} must be 'error', or {POPULATION_MEAN!r} for the population mean."
        )


def _categories(obs: pd.DataFrame, key: str) -> pd.Categorical:
    check_key(key)
    if key not in obs:
        raise ScmedleyError(f"obs has no column {key!r}. It has {list(map(str, obs.columns))}.")
    return as_categories(obs[key])
