"""Names of batches and labels and their integer codes, stored with the model."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmedley.errors import ScmedleyError, listed

if TYPE_CHECKING:
    from anndata import AnnData

POPULATION_MEAN = "mean"  # the target of a counterfactual with all batch effects at zero
OWN = "own"  # the target of denoising that is each cell's own batch
RESERVED = {POPULATION_MEAN: "the population mean", OWN: "each cell's own batch"}


def named_targets(to: object) -> list[str]:
    """Return the names of one or several target batches as text: 1, 1.0 and "1" are the same batch."""
    one = isinstance(to, str) or not isinstance(to, Iterable)
    return [called(target) for target in ([to] if one else to)]  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Design:
    """The batches that a model knows; code i is ``batches[i]``.

    The model was trained on all but the last ``n_adapted``, which :meth:`Model.adapt` added later. Without a
    batch column ``batch_key`` is empty and there are no batches.
    """

    batch_key: str
    batches: tuple[str, ...]
    n_adapted: int = 0

    @classmethod
    def of(cls, obs: pd.DataFrame, batch_key: str | None) -> "Design":
        """Learn the batches from ``obs[batch_key]``: its used categories, in their order."""
        if batch_key is None:
            return cls("", ())
        values = _categories(obs, batch_key)
        batches = tuple(values.categories)
        if values.isna().any():
            raise ScmedleyError(
                f"{int(values.isna().sum())} cells have no batch in obs[{batch_key!r}]. Add it, or remove the cells."
            )
        for name, meaning in RESERVED.items():
            if name in batches:
                raise ScmedleyError(
                    f"obs[{batch_key!r}] has a batch named {name!r}, which is reserved for {meaning}. "
                    "Rename this batch."
                )
        return cls(batch_key, batches)

    @property
    def n_batches(self) -> int:
        """Return B."""
        return len(self.batches)

    def codes(self, obs: pd.DataFrame) -> np.ndarray:
        """Return the code of each cell's batch (int64), -1 for a batch that the model does not know."""
        if not self.batch_key or self.batch_key not in obs:
            return np.full(len(obs), -1, dtype=np.int64)
        values = _categories(obs, self.batch_key)
        return np.asarray(values.set_categories(self.batches).codes, dtype=np.int64)

    def known_codes(self, obs: pd.DataFrame, unknown: str = "error") -> np.ndarray:
        """Return the codes; raise or accept batches that the model does not know.

        Parameters
        ----------
        unknown
            ``"error"`` raises for a batch that the model does not know; ``"mean"`` gives it code -1, the
            population mean.
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
            f"The model does not know the batches of these cells: {where}. It knows {list(self.batches[:8])}"
            f"{' ...' if self.n_batches > 8 else ''}. Pass unknown='mean' (--unknown mean) to use the population mean "
            "(no batch effect) instead, or learn their effects first: model.adapt(cells) in Python, and scmedley embed "
            "--unknown adapt; other commands cannot."
        )

    def code(self, batch: str) -> int:
        """Return the code of one batch, -1 for the population mean."""
        if batch == POPULATION_MEAN:
            return -1
        if batch not in self.batches:
            raise ScmedleyError(
                f"The model has no batch {batch!r}. Choose {POPULATION_MEAN!r} (no batch effect) or "
                f"one of {list(self.batches[:20])}{' ...' if self.n_batches > 20 else ''}."
            )
        return self.batches.index(batch)


@dataclass(frozen=True)
class Labels:
    """The labels that a label head was trained on; code k is ``names[k]``."""

    label_key: str
    names: tuple[str, ...]

    @classmethod
    def of(cls, obs: pd.DataFrame, label_key: str) -> "Labels":
        """Learn the labels from ``obs[label_key]`` of the training cells, without missing values.

        Raises
        ------
        ScmedleyError
            The column does not exist, or has fewer than two labels.
        """
        names = tuple(_categories(obs, label_key).categories)
        if len(names) < 2:
            raise ScmedleyError(
                f"The training cells have {len(names)} label{'' if len(names) == 1 else 's'} in "
                f"obs[{label_key!r}]; a label head needs two or more. Leave label_key out to train without labels."
            )
        return cls(label_key, names)

    def codes(self, obs: pd.DataFrame) -> np.ndarray:
        """Return the code of each cell's label (int64), -1 for a missing or unknown label."""
        values = _categories(obs, self.label_key)
        return np.asarray(values.set_categories(self.names).codes, dtype=np.int64)


def check_unknown(unknown: str) -> None:
    """Raise if ``unknown`` is not one of its two values."""
    if unknown not in ("error", POPULATION_MEAN):
        raise ScmedleyError(
            f"unknown={unknown!r} must be 'error', or {POPULATION_MEAN!r} for the population mean."
        )


def _categories(obs: pd.DataFrame, key: str) -> pd.Categorical:
    check_key(key)
    if key not in obs:
        raise ScmedleyError(f"obs has no column {key!r}. It has {list(map(str, obs.columns))}.")
    return as_categories(obs[key])


def as_categories(column: "pd.Series[Any]") -> pd.Categorical:
    """Return a column as a categorical of strings, without unused categories.

    Blank strings and the texts of missing values in pandas ("nan", "<NA>", "NaT") are missing too. Whole
    floats lose their ``.0``, because text files may store batch 1 as 1.0; dates lose the time 00:00:00.
    """
    raw = column.astype("category").cat.remove_unused_categories()
    names = [called(value) for value in raw.cat.categories]
    unique = list(dict.fromkeys(name for name in names if not _is_missing(name)))
    # The last entry is for pandas' code -1, a missing value.
    recode = np.array([unique.index(n) if not _is_missing(n) else -1 for n in names] + [-1], dtype=np.int64)
    categories: pd.Index[Any] = pd.Index(unique)  # of the string type that this pandas reads
    return pd.Categorical.from_codes(recode[raw.cat.codes.to_numpy()], categories=categories)


def called(value: Any) -> str:
    """Return the name of a batch or a label as text."""
    if isinstance(value, float | np.floating):  # 0.1 in a float32 column is 0.10000000149
        value = int(value) if float(value).is_integer() else f"{value:.7g}"
    return str(value).strip().removesuffix(" 00:00:00")


def _is_missing(name: str) -> bool:
    return name.lower() in ("", "nan", "<na>", "nat")


def oddly_named(column: "pd.Series[Any]", what: str) -> list[str]:
    """Return warnings about suspicious values: text for a missing value, or one name in two spellings."""
    sizes = column.value_counts()
    of_name: dict[str, dict[Any, int]] = {}
    for value, size in sizes[sizes > 0].items():
        of_name.setdefault(called(value), {})[value] = int(size)
    notes = []
    for name, values in of_name.items():
        n = sum(values.values())
        if name and _is_missing(name) and all(isinstance(value, str) for value in values):
            notes.append(
                f"{n:,} cells have the {what} {name!r} in obs[{column.name!r}], which is the text of a missing "
                "value; they are treated as missing."
            )
        elif name.lower() in ("none", "na", "n/a", "null", "unknown", "unassigned"):
            notes.append(
                f"{n:,} cells have the {what} {name!r} in obs[{column.name!r}], which is used like any other {what}. "
                "If it means a missing value, replace it by numpy.nan."
            )
        elif len(values) > 1:
            notes.append(
                f"The values {', '.join(map(repr, values))} of obs[{column.name!r}] are merged into {name!r}."
            )
    lower = pd.Series(list(of_name), index=[name.lower() for name in of_name], dtype=object)
    for _, alike in lower[lower.index.duplicated(keep=False)].groupby(level=0):
        if not _is_missing(alike.iloc[0]):
            notes.append(
                f"{listed(list(alike))} of obs[{column.name!r}] differ only in upper and lower case; they stay "
                "separate."
            )
    return notes


def column(adata: "AnnData", key: str, what: str) -> "pd.Series[Any]":
    """Return ``obs[key]``; if it is missing, raise with the closest column and a list of columns."""
    check_key(key, what)
    if key in adata.obs:
        found: pd.Series[Any] = adata.obs[key]
        if found.ndim > 1:
            raise ScmedleyError(f"obs has several columns {key!r}. Rename all but the {what}.")
        return found
    names = [str(name) for name in adata.obs.columns]
    lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(str(key).lower(), lower, n=1)
    hint = f" Did you mean {lower[close[0]]!r}?" if close else ""
    usable = [str(n) for n in adata.obs.columns if not pd.api.types.is_float_dtype(adata.obs[n])]
    raise ScmedleyError(
        f"The {what} key {key!r} is not a column of obs.{hint} "
        + (
            f"Columns with categories: {listed(usable, 20)}."
            if usable
            else "obs has no column with categories. Add columns in Python and save as h5ad; or, for files without "
            "annotation (csv, 10x), give one file per batch."
        )
    )


def check_key(key: object, what: str = "batch") -> None:
    """Raise if ``key`` is not the name of one column."""
    if isinstance(key, str):
        return
    names = list(key) if isinstance(key, list | tuple) else ["donor", "protocol"]
    joined = " + '_' + ".join(f"adata.obs[{name!r}].astype(str)" for name in names)
    raise ScmedleyError(
        f"The {what} key is one column of obs, not {key!r}. Join several columns into one: "
        f"adata.obs['joined'] = {joined}."
    )
