"""Names of batches and labels and their integer codes, stored with the model.

Shapes: N cells, B batches, T terms, L levels of all terms.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmedley.errors import ScmedleyError, listed

if TYPE_CHECKING:
    from anndata import AnnData

    from scmedley.data.terms import Terms

POPULATION_MEAN = "mean"  # the target of a counterfactual with all batch effects at zero
OWN = "own"  # the target of denoising that is each cell's own batch
MOST_COMBINATIONS = 2000  # of levels: each has a row in the design matrix
RESERVED = {POPULATION_MEAN: "the population mean", OWN: "each cell's own batch"}


@dataclass(frozen=True)
class Design:
    """The batches that a model knows; code i is ``batches[i]``.

    With several factors a batch is a combination of levels, such as ``"lung/d1 · stim"``: what it does is the sum
    of what its levels do.

    Attributes
    ----------
    batch_key
        ``obs`` column of the batches; empty without batches. With several factors: the column that holds the names
        of their combinations in the cells of the fit.
    batches
        Names of the batches.
    n_adapted
        The model was trained on all but the last ``n_adapted``, which :meth:`Model.adapt` added later.
    terms
        The terms of several factors (:class:`~scmedley.data.terms.Terms`); ``None``: one factor.
    levels, values
        The level and the value of each batch in each term, B x T (:meth:`Terms.rows`); empty for one factor.
    """

    batch_key: str
    batches: tuple[str, ...]
    n_adapted: int = 0
    terms: Terms | None = None
    levels: tuple[tuple[int, ...], ...] = ()
    values: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def of(cls, obs: pd.DataFrame, batch_key: str | None) -> Design:
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

    @classmethod
    def of_terms(cls, obs: pd.DataFrame, terms: Terms, batch_key: str) -> Design:
        """Learn the combinations of levels that cells have.

        Raises
        ------
        ScmedleyError
            There are too many of them, or two different ones have the same name.
        """
        return cls(batch_key, (), terms=terms)._with_batches(obs)

    def extended(self, obs: pd.DataFrame) -> Design:
        """Return the design with the batches, and the levels, that are new in ``obs`` after the known ones."""
        if self.terms is not None:
            return replace(self, terms=self.terms.extended(obs))._with_batches(obs)._adapted_from(self)
        new = tuple(name for name in Design.of(obs, self.batch_key).batches if name not in self.batches)
        return replace(self, batches=self.batches + new)._adapted_from(self)

    def seeing(self, obs: pd.DataFrame) -> Design:
        """Return the design with the new combinations in ``obs`` of levels that it knows; itself if there are none.

        A level that is not known has no effect. Terms of several factors get a level for a new combination.
        """
        if self.terms is None:
            return self
        wider = replace(self, terms=self.terms.with_combinations(obs))._with_batches(obs, check=False)
        return wider._adapted_from(self) if wider.n_batches > self.n_batches else self

    def _adapted_from(self, before: Design) -> Design:
        n_new = self.n_batches - before.n_batches
        return replace(self, n_adapted=before.n_adapted + n_new) if n_new else self

    def _with_batches(self, obs: pd.DataFrame, check: bool = True) -> Design:
        """Return the design with the combinations of known levels in ``obs``; a row without such a level is none."""
        assert self.terms is not None
        if not len(obs):
            return self
        level_NT, value_NT = self.terms.rows(obs)
        new = np.flatnonzero((self._found(level_NT, value_NT) < 0) & (level_NT >= 0).any(axis=1))
        if not len(new):
            return self
        _, first = np.unique(np.hstack([level_NT, value_NT])[new], axis=0, return_index=True)
        first = new[first]
        names = (*self.batches, *self.terms.names(obs.iloc[first]))
        if check:
            self._check_names(names)
        return replace(
            self,
            batches=names,
            levels=(*self.levels, *map(tuple, level_NT[first].tolist())),
            values=(*self.values, *map(tuple, value_NT[first].tolist())),
        )

    def _check_names(self, names: tuple[str, ...]) -> None:
        if len(names) > MOST_COMBINATIONS:
            raise ScmedleyError(
                f"The columns of the design have {len(names):,} different combinations; at most {MOST_COMBINATIONS:,} "
                "are possible. A covariate that differs between cells: round it, or bin it with pandas.cut, first."
            )
        if len(set(names)) < len(names):
            name = next(name for name in names if names.count(name) > 1)
            raise ScmedleyError(
                f"Two different combinations of the columns of the design have the name {name!r}. Round or rename "
                "their values."
            )

    def _found(self, level_NT: np.ndarray, value_NT: np.ndarray) -> np.ndarray:
        """Return the code of each row of levels and values, -1 for one that is no batch."""
        known_BX = (
            np.hstack([self.levels, self.values]) if self.batches else np.zeros((0, 2 * level_NT.shape[1]))
        )
        rows, code = np.unique(
            np.vstack([known_BX, np.hstack([level_NT, value_NT])]), axis=0, return_inverse=True
        )
        code = code.reshape(-1)
        batch_of = np.full(len(rows), -1, np.int64)
        batch_of[code[: self.n_batches]] = np.arange(self.n_batches)
        return np.asarray(batch_of[code[self.n_batches :]], np.int64)

    def matrix(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the design matrix (float32, B x L), and the term of each level, -1 for those of fixed terms (L)."""
        assert self.terms is not None
        level_BT, value_BT = np.asarray(self.levels, np.int64), np.asarray(self.values, np.float64)
        terms = [t if term.random else -1 for t, term in enumerate(self.terms.terms)]
        return (
            self.terms.matrix(level_BT, value_BT).toarray().astype(np.float32),
            np.repeat(np.asarray(terms, np.int64), self.terms.sizes),
        )

    def trained(self) -> Design:
        """Return the design of the fit: without the batches and the levels that were added later."""
        n = self.n_batches - self.n_adapted
        if self.terms is None or not self.n_adapted:
            return replace(self, batches=self.batches[:n], n_adapted=0)
        n_T = np.asarray(self.levels[:n]).max(axis=0) + 1  # all levels of the fit are in its combinations
        return replace(
            self,
            batches=self.batches[:n],
            n_adapted=0,
            terms=self.terms.first(n_T.tolist()),
            levels=self.levels[:n],
            values=self.values[:n],
        )

    def seen(self, level_NT: np.ndarray, value_NT: np.ndarray) -> np.ndarray:
        """Return whether cells of the fit, or of ``adapt``, had these levels together; -1 is any.

        Values of a covariate must be within the range of those cells, but no cell need have the same.
        """
        known_BT, values_BT = np.asarray(self.levels), np.asarray(self.values)
        least_T, most_T = values_BT.min(axis=0), values_BT.max(axis=0)
        found = [((known_BT == level_T) | (level_T < 0)).all(axis=1).any() for level_T in level_NT]
        inside_NT = (level_NT < 0) | ((value_NT >= least_T) & (value_NT <= most_T))
        return np.asarray(np.asarray(found, bool) & inside_NT.all(axis=1))

    @property
    def columns(self) -> tuple[str, ...]:
        """The ``obs`` columns that name the batches: one, or those of several factors."""
        return ((self.batch_key,) if self.batch_key else ()) if self.terms is None else self.terms.columns

    @property
    def n_batches(self) -> int:
        """Return B."""
        return len(self.batches)

    def codes(self, obs: pd.DataFrame) -> np.ndarray:
        """Return the code of each cell's batch (int64), -1 for a batch that the model does not know."""
        if self.terms is not None:
            return self._found(*self.terms.rows(obs))
        if not self.batch_key or self.batch_key not in obs:
            return np.full(len(obs), -1, dtype=np.int64)
        values = _categories(obs, self.batch_key)
        return np.asarray(values.set_categories(self.batches).codes, dtype=np.int64)

    def names(self, obs: pd.DataFrame) -> pd.Series[Any]:
        """Return the name of each cell's batch, known or not; missing where it has none, or no such column."""
        if self.terms is not None:
            return self.terms.names(obs)
        if not self.batch_key or self.batch_key not in obs:
            return pd.Series(np.nan, index=obs.index, dtype=object)
        return pd.Series(_categories(obs, self.batch_key), index=obs.index).astype(object)

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
        unknown_N = codes < 0 if self.terms is None else self.terms.unknown(self.terms.rows(obs)[0])
        if unknown == POPULATION_MEAN or not unknown_N.any():
            return codes
        missing = [column for column in self.columns if column not in obs]
        if missing:
            where = f"obs has no column {missing[0]!r}"
        else:
            names = sorted({str(name) for name in self.names(obs)[unknown_N].unique()})
            where = f"{int(unknown_N.sum())} cells are of batches {names[:5]}"
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
            column = self.columns[0]
            hint = (
                f" To change one column, name it: {column}=LEVEL, in Python {{{column!r}: 'LEVEL'}}."
                if self.terms
                else ""
            )
            raise ScmedleyError(
                f"The model has no batch {batch!r}. Choose {POPULATION_MEAN!r} (no batch effect) or "
                f"one of {list(self.batches[:20])}{' ...' if self.n_batches > 20 else ''}.{hint}"
            )
        return self.batches.index(batch)


@dataclass(frozen=True)
class Labels:
    """The labels that a label head was trained on; code k is ``names[k]``."""

    label_key: str
    names: tuple[str, ...]

    @classmethod
    def of(cls, obs: pd.DataFrame, label_key: str) -> Labels:
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


def as_categories(column: pd.Series[Any]) -> pd.Categorical:
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


def oddly_named(column: pd.Series[Any], what: str) -> list[str]:
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


def column(adata: AnnData, key: str, what: str) -> pd.Series[Any]:
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
    designed = "~ " + " + ".join(f"(1 | {name})" for name in names)
    joined = " + '_' + ".join(f"adata.obs[{name!r}].astype(str)" for name in names)
    raise ScmedleyError(
        f"The {what} key is one column of obs, not {key!r}. Join several columns into one: "
        f"adata.obs['joined'] = {joined}. Or fit a design: {designed!r}."
    )
