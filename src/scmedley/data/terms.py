"""Terms of a mixed-effects design: which effects a cell has, by the formula of the design.

A design such as ``~ condition + age + (1 | study/donor) + (condition | donor)`` is a list of terms. Each term is a
table of effects with one row for every level; a cell has one row of each table, multiplied by a value. So the
effect of a cell is the sum over terms of ``value * table[level]``.

- ``condition`` (categorical): a level for every condition, the value is 1.
- ``age`` (continuous): one level, the value is the standardised age.
- ``(1 | study/donor)``: a level for every study, and one for every donor, which is named by its path, such as
  ``lung/d1``: donor ``d1`` of another study is another donor.
- ``(condition | donor)``, categorical: a level for every donor and one for every observed pair of donor and
  condition. All conditions are treated alike: none of them is the reference.
- ``(age | donor)``, continuous: a level for every donor, once with the value 1 and once with the standardised age.

Shapes: N cells, T terms, L levels of all terms.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from scmedley.data.design import POPULATION_MEAN, RESERVED, as_categories, called
from scmedley.data.formulas import NESTED, Term, check_column, formula_of, is_formula, parse
from scmedley.errors import ScmedleyError, listed

BETWEEN = " · "  # the parts of the name of a combination
__all__ = ["Term", "Terms", "formula_of", "is_formula"]


@dataclass(frozen=True)
class Terms:
    """The terms of a design with the levels that the model knows.

    Attributes
    ----------
    formula
        As the user gave it, or as :func:`formula_of` wrote it.
    terms
        Fixed terms first, then random ones, each once.
    """

    formula: str
    terms: tuple[Term, ...]

    @classmethod
    def of(cls, formula: str, obs: pd.DataFrame, without: Collection[str] = ()) -> "Terms":
        """Parse a formula and learn the levels, means and standard deviations from cells.

        Parameters
        ----------
        formula
            A formula of lme4.
        obs
            Cells with all columns of the formula.
        without
            Columns whose terms are left out.

        Raises
        ------
        ScmedleyError
            The formula cannot be read, a column does not exist, or cells have no value in a column.
        """
        terms = [term for term in parse(formula, obs) if not set(term.columns) & set(without)]
        cls(formula, tuple(terms)).check_complete(obs)
        return cls(formula, tuple(_learnt(term, obs) for term in terms))

    @property
    def columns(self) -> tuple[str, ...]:
        """All ``obs`` columns of the design, each once, in order of the terms."""
        return tuple(dict.fromkeys(column for term in self.terms for column in term.columns))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of levels of each term."""
        return tuple(len(term.levels) for term in self.terms)

    def rows(self, obs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Return the level of each cell in each term (int64, -1: none) and its value (float64), N x T both.

        A term without a known level, or without a value of its covariate, has the level -1 and the value 0: the
        population mean.
        """
        level_NT = np.stack([term.codes(obs) for term in self.terms], axis=1)
        value_NT = np.stack([term.values(obs) for term in self.terms], axis=1)
        none_NT = (level_NT < 0) | np.isnan(value_NT)
        level_NT[none_NT], value_NT[none_NT] = -1, 0.0
        return level_NT, value_NT

    def levels_of(self, obs: pd.DataFrame) -> dict[str, np.ndarray]:
        """Return the level of each cell in each term, by the name of the term."""
        return {term.name: term.codes(obs) for term in self.terms}

    def matrix(self, level_NT: np.ndarray, value_NT: np.ndarray) -> csr_matrix:
        """Return the design matrix, N x L: one column for every level of every term."""
        start_T = np.cumsum([0, *self.sizes])[:-1]
        n, t = np.nonzero(level_NT >= 0)
        columns = start_T[t] + level_NT[n, t]
        return csr_matrix((value_NT[n, t], (n, columns)), shape=(len(level_NT), sum(self.sizes)))

    def check_complete(self, obs: pd.DataFrame) -> None:
        """Raise if a column of the design does not exist, or cells have no value in it."""
        if not len(obs):
            raise ScmedleyError("There are no cells. Check the step that selected them.")
        for column in self.columns:
            _check_complete(obs, column)

    def extended(self, obs: pd.DataFrame) -> "Terms":
        """Return the terms with the levels that are new in ``obs`` after the known ones; the rest stays the same."""
        self.check_complete(obs)
        return replace(self, terms=tuple(with_levels(term, term.levels_in(obs)) for term in self.terms))

    def with_combinations(self, obs: pd.DataFrame) -> "Terms":
        """Return the terms with the combinations in ``obs`` of levels that are known, but not together."""
        return replace(self, terms=tuple(map(partial(_with_combinations, obs=obs), self.terms)))

    def first(self, sizes: Sequence[int]) -> "Terms":
        """Return the terms with only the first ``sizes`` of their levels."""
        pairs = zip(self.terms, sizes, strict=True)
        cut = [replace(t, levels=t.levels[:n], values_of_levels=t.values_of_levels[:n]) for t, n in pairs]
        return replace(self, terms=tuple(cut))

    def unknown(self, level_NT: np.ndarray) -> np.ndarray:
        """Return which cells have a value that no level of a term of one factor has (N).

        A combination of factors that was never seen is no unknown value: without the effect that is its own, it is
        the sum of what its parts do.
        """
        plain = [t for t, term in enumerate(self.terms) if len(term.factors) <= 1]
        return np.asarray((level_NT < 0).all(axis=1) | (level_NT[:, plain] < 0).any(axis=1))

    def table(self, obs: pd.DataFrame) -> pd.DataFrame:
        """Return one row for each term: its name, whether it is fixed or random, its levels and their cells."""
        rows = []
        for term, code_N in zip(self.terms, self.rows(obs)[0].T, strict=True):
            n_L = np.bincount(code_N[code_N >= 0], minlength=len(term.levels))
            kind = "random" if term.random else "fixed"
            rows.append((term.name, kind, len(n_L), int(n_L.min()), int(n_L.max())))
        return pd.DataFrame(rows, columns=["term", "effects", "levels", "fewest_cells", "most_cells"])

    def names(self, obs: pd.DataFrame) -> "pd.Series[Any]":
        """Return the name of each cell's combination of values, such as ``lung/d1 · stim``; missing without values.

        Columns of random terms come first. A single value that is missing, or removed, is called "mean".
        """
        random = [factor for term in self.terms if term.random for factor in term.factors]
        fixed = [factor for term in self.terms if not term.random for factor in term.factors]
        factors = list(dict.fromkeys(random + fixed))
        whole = [
            f for f in factors if not any(f == other[: len(f)] for other in factors if len(other) > len(f))
        ]
        numbers = dict.fromkeys(term.covariate for term in self.terms if term.covariate)
        values = obs.reindex(columns=list(self.columns))
        group_N = (
            values.groupby(list(self.columns), dropna=False, observed=True, sort=False).ngroup().to_numpy()
        )
        first = np.unique(group_N, return_index=True)[1]
        found = []
        for row in values.iloc[first].itertuples(index=False):
            of = dict(zip(self.columns, row, strict=True))
            text = {column: POPULATION_MEAN if pd.isna(of[column]) else called(of[column]) for column in of}
            parts = [NESTED.join(text[column] for column in factor) for factor in whole]
            parts += [f"{column} {text[column]}" for column in numbers]
            found.append(None if set(text.values()) == {POPULATION_MEAN} else BETWEEN.join(parts))
        return pd.Series(np.array(found, dtype=object)[group_N], index=obs.index, dtype=object)

    def targeted(self, obs: pd.DataFrame, to: Mapping[str, Any], *, new: bool = False) -> pd.DataFrame:
        """Return the columns of the design as if cells had the values in ``to``; "mean" removes a value.

        Parameters
        ----------
        to
            Column to value, such as ``{"condition": "stim"}``. A nested column takes the path too:
            ``{"donor": "lung/d1"}`` sets the study to ``lung``, and so does ``{"donor": "d1"}`` if no other study
            has a donor ``d1``. Cells that change to another study have no donor effect, unless ``to`` names a donor.
            A term of a column with the value "mean" has no effect; the mean of a continuous column is its mean in
            training.
        new
            Whether values may be of no known level.

        Raises
        ------
        ScmedleyError
            A column is not in the design, or a value is of no known level.
        """
        columns = [column for column in self.columns if column in obs]
        found = obs[columns].copy()
        given = self._with_parents(to, new)
        for column, value in given.items():
            removed = called(value) == POPULATION_MEAN
            if column in found and not removed and not self._is_continuous(column):
                for child in self._children(column) - set(given):
                    found[child] = found[child].where((found[column].map(called) == called(value)).to_numpy())
            found[column] = (
                np.nan if removed else float(value) if self._is_continuous(column) else called(value)
            )
        return found

    def _with_parents(self, to: Mapping[str, Any], new: bool) -> dict[str, Any]:
        """Return ``to`` with the parents of nested values, after a check of all names and, unless new, values."""
        given: dict[str, Any] = {}
        for column, value in to.items():
            if column not in self.columns:
                raise ScmedleyError(
                    f"The design {self.formula!r} has no column {column!r}. It has {listed(list(self.columns))}."
                )
            path = self._path(column)
            if new and not self._is_continuous(column) and not self._knows(column, value):
                parts = called(value).split(NESTED)
                whole = len(path) > 1 and len(parts) == len(path)
                given |= dict(zip(path, parts, strict=True)) if whole else {column: value}
                continue
            self._check_value(column, value)
            if len(path) > 1 and called(value) != POPULATION_MEAN:
                for parent, of_parent in zip(path, self._nested_value(path, value, to), strict=True):
                    if called(given.setdefault(parent, of_parent)) != called(of_parent):
                        raise ScmedleyError(
                            f"{column} {called(value)!r} is not in {parent} {called(given[parent])!r}."
                        )
            else:
                given[column] = value
        return given

    def _nested_value(self, path: tuple[str, ...], value: Any, to: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the values of a path that a target names by its last part, or by the whole of it."""
        known = self._known_paths(path)
        asked = {column: called(to[column]) for column in path[:-1] if column in to}
        found = [
            values
            for values in known
            if called(value) in (values[-1], NESTED.join(values))
            and all(values[path.index(column)] == wanted for column, wanted in asked.items())
        ]
        if len(found) == 1:
            return found[0]
        if not found:
            raise ScmedleyError(f"No cell of the fit is of {path[-1]} {called(value)!r} in {asked}.")
        names = [NESTED.join(values) for values in found]
        raise ScmedleyError(
            f"There are several {path[-1]} {called(value)!r}: {listed(names)}. Name one of them by its path."
        )

    def _known_paths(self, path: tuple[str, ...]) -> list[tuple[str, ...]]:
        """Return the known values of a path, each once, such as ``("lung", "d1")``."""
        for term in self.terms:
            if path in term.factors:
                start = term.parts.index(path[0])
                found = (values[start : start + len(path)] for values in term.values_of_levels)
                return list(dict.fromkeys(found))
        return []

    def _path(self, column: str) -> tuple[str, ...]:
        """Return the path that ends with a column, such as ``("study", "donor")``."""
        for term in self.terms:
            for factor in term.factors:
                if factor[-1] == column and len(factor) > 1:
                    return factor
        return (column,)

    def _children(self, column: str) -> set[str]:
        """Return the columns that are nested in a column."""
        factors = [factor for term in self.terms for factor in term.factors if column in factor]
        return {child for factor in factors for child in factor[factor.index(column) + 1 :]}

    def _is_continuous(self, column: str) -> bool:
        return any(term.covariate == column for term in self.terms)

    def _check_value(self, column: str, value: Any) -> None:
        if called(value) == POPULATION_MEAN:
            return
        if self._is_continuous(column):
            if _is_number(value):
                return
            raise ScmedleyError(
                f"{column!r} is continuous, so it needs a number or {POPULATION_MEAN!r}, not {value!r}."
            )
        if not self._knows(column, value):
            known = self.values_of(column)
            raise ScmedleyError(
                f"No cell of the fit has {column} = {called(value)!r}. Choose {POPULATION_MEAN!r} (no effect) or one "
                f"of {listed(list(known), 20)}; or learn the effects of new levels first: model.adapt(cells)."
            )

    def _knows(self, column: str, value: Any) -> bool:
        """Return whether a value is "mean", or of a known level, by itself or by its path."""
        known = {
            POPULATION_MEAN,
            *self.values_of(column),
            *map(NESTED.join, self._known_paths(self._path(column))),
        }
        return called(value) in known

    def values_of(self, column: str) -> tuple[str, ...]:
        """Return the known values of a categorical column."""
        for term in self.terms:
            if column in term.parts:
                i = term.parts.index(column)
                return tuple(dict.fromkeys(values[i] for values in term.values_of_levels))
        return ()


def _is_number(value: Any) -> bool:
    try:
        return bool(np.isfinite(float(value)))
    except (TypeError, ValueError):
        return False


def _learnt(term: Term, obs: pd.DataFrame) -> Term:
    """Return the term with its levels, and the mean and standard deviation of its covariate."""
    term = with_levels(term, term.levels_in(obs))
    if not term.covariate:
        return term
    x_N = pd.to_numeric(obs[term.covariate]).to_numpy(np.float64)
    with np.errstate(over="ignore"):
        spread = float(x_N.std())
    if not np.isfinite(spread):
        raise ScmedleyError(
            f"Values of obs[{term.covariate!r}] are too large to compute with (up to {np.abs(x_N).max():g}). Give them "
            "in another unit."
        )
    if not spread > 0:
        raise ScmedleyError(
            f"All cells have {term.covariate} = {x_N[0]:g}, so it has no effect. Leave it out."
        )
    return replace(term, centre=float(x_N.mean()), spread=spread)


def _with_combinations(term: Term, obs: pd.DataFrame) -> Term:
    """Return a term of several factors with the new combinations of their known levels; others stay the same."""
    if len(term.factors) < 2:
        return term
    ends = np.cumsum([len(factor) for factor in term.factors]).tolist()
    spans = [slice(end - len(factor), end) for factor, end in zip(term.factors, ends, strict=True)]
    known = [{values[span] for values in term.values_of_levels} for span in spans]
    found = [
        values
        for values in term.levels_in(obs)
        if all(values[span] in of_factor for span, of_factor in zip(spans, known, strict=True))
    ]
    return with_levels(term, found)


def with_levels(term: Term, values: Iterable[tuple[str, ...]]) -> Term:
    """Return the term with these levels after those that it has, each once.

    Raises
    ------
    ScmedleyError
        A value is reserved, or two different levels have the same name.
    """
    all_values = tuple(dict.fromkeys([*term.values_of_levels, *values]))
    first: dict[str, tuple[str, ...]] = {}
    for level in all_values:
        for column, value in zip(term.parts, level, strict=True):
            if value in RESERVED:
                raise ScmedleyError(
                    f"obs[{column!r}] has a value {value!r}, which is reserved for {RESERVED[value]}. Rename it."
                )
        other = first.setdefault(term.named(level), level)
        if other != level:
            raise ScmedleyError(
                f"Two levels of {term.name!r} have the same name {term.named(level)!r}: {other} and {level}. Rename "
                "values that contain '/' or ':'."
            )
    return replace(term, levels=tuple(first), values_of_levels=all_values)


def is_missing(values: "pd.Series[Any]") -> np.ndarray:
    """Return which cells have no value that a design can use: blank, "nan" as text, or infinite."""
    if pd.api.types.is_float_dtype(values):
        return np.asarray(~np.isfinite(values.to_numpy(np.float64, na_value=np.nan)))
    return np.asarray(as_categories(values).codes < 0)


def _check_complete(obs: pd.DataFrame, column: str) -> None:
    """Raise if cells of a fit have no value in a column, or an infinite one."""
    check_column(obs, column)
    missing = is_missing(obs[column])
    if missing.any():
        raise ScmedleyError(
            f"{int(missing.sum())} of {len(obs)} cells have no value in obs[{column!r}], which the design names. Add "
            "it, remove these cells, or leave the column out of the design."
        )
