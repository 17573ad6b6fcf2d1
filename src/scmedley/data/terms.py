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

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from scmedley.data.design import POPULATION_MEAN, as_categories, called
from scmedley.errors import ScmedleyError, listed

NESTED, JOINED = "/", ":"  # in names of levels: a path, and a combination
_PATH = re.compile(r"\|\s*(`[^`]+`|[\w.]+)((?:\s*/\s*(?:`[^`]+`|[\w.]+))+)")


@dataclass(frozen=True)
class Term:
    """One table of effects.

    Attributes
    ----------
    name
        As in tables: ``"condition"``, ``"study/donor"``, ``"study/donor:condition"``, ``"age | donor"``.
    factors
        Factors whose combinations are the levels. A factor is a path of ``obs`` columns: ``("study", "donor")``
        is the donor in its study. Empty for a continuous fixed effect.
    covariate
        Continuous ``obs`` column that multiplies the effect; empty for none.
    random
        Whether the effects of its levels have a common variance, which is learnt. Otherwise their prior is wide.
    levels
        Names of the levels; the covariate's name if there are no factors.
    centre, spread
        Mean and standard deviation of the covariate.
    """

    name: str
    factors: tuple[tuple[str, ...], ...]
    covariate: str = ""
    random: bool = True
    levels: tuple[str, ...] = ()
    centre: float = 0.0
    spread: float = 1.0

    @property
    def columns(self) -> tuple[str, ...]:
        """The ``obs`` columns that the term reads, each once."""
        found = [column for factor in self.factors for column in factor]
        return tuple(dict.fromkeys(found + ([self.covariate] if self.covariate else [])))

    def names(self, obs: pd.DataFrame) -> "pd.Series[Any]":
        """Return the name of each cell's level, of any cells; missing if a column is missing or has no value."""
        if not self.factors:
            return pd.Series([self.covariate] * len(obs), index=obs.index, dtype=object)
        joined: pd.Series[Any] | None = None
        for factor in self.factors:
            for i, column in enumerate(factor):
                values = _text(obs, column)
                between = NESTED if i else JOINED
                joined = values if joined is None else joined + between + values
        assert joined is not None
        return joined

    def codes(self, obs: pd.DataFrame) -> np.ndarray:
        """Return the code of each cell's level (int64), -1 for one that is unknown or missing."""
        known = pd.Index(self.levels)
        names = self.names(obs)
        codes, unique = pd.factorize(names)  # far fewer names than cells
        found = known.get_indexer(pd.Index(unique))
        return np.asarray(np.append(found, -1)[codes], np.int64)

    def values(self, obs: pd.DataFrame) -> np.ndarray:
        """Return what multiplies each cell's effect (float64): 1, or the standardised covariate; nan if missing."""
        if not self.covariate:
            return np.ones(len(obs))
        if self.covariate not in obs:
            return np.full(len(obs), np.nan)
        x_N = pd.to_numeric(obs[self.covariate], errors="coerce").to_numpy(np.float64, na_value=np.nan)
        return np.asarray((x_N - self.centre) / self.spread)


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
    def of(cls, formula: str, obs: pd.DataFrame) -> "Terms":
        """Parse a formula and learn the levels, means and standard deviations from cells.

        Raises
        ------
        ScmedleyError
            The formula cannot be read, a column does not exist, or cells have no value in a column.
        """
        terms = parse(formula, obs)
        for column in dict.fromkeys(column for term in terms for column in term.columns):
            _check_complete(obs, column)
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

    def matrix(self, level_NT: np.ndarray, value_NT: np.ndarray) -> csr_matrix:
        """Return the design matrix, N x L: one column for every level of every term."""
        start_T = np.cumsum([0, *self.sizes])[:-1]
        n, t = np.nonzero(level_NT >= 0)
        columns = start_T[t] + level_NT[n, t]
        return csr_matrix((value_NT[n, t], (n, columns)), shape=(len(level_NT), sum(self.sizes)))

    def targeted(self, obs: pd.DataFrame, to: Mapping[str, Any]) -> pd.DataFrame:
        """Return the columns of the design as if cells had the values in ``to``; "mean" removes a value.

        Parameters
        ----------
        to
            Column to value, such as ``{"condition": "stim"}``. A nested column takes the path too:
            ``{"donor": "lung/d1"}`` sets the study to ``lung``. A term of a column with the value "mean" has no
            effect; the mean of a continuous column is its mean in training.

        Raises
        ------
        ScmedleyError
            A column is not in the design, or a value is of no known level.
        """
        columns = [column for column in self.columns if column in obs]
        found = obs[columns].copy()
        for column, value in self._with_parents(to).items():
            found[column] = np.nan if called(value) == POPULATION_MEAN else value
        return found

    def _with_parents(self, to: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``to`` with paths split into their columns, after a check of all names and values."""
        paths = {factor[-1]: factor for term in self.terms for factor in term.factors}
        given: dict[str, Any] = {}
        for column, value in to.items():
            if column not in self.columns:
                raise ScmedleyError(
                    f"The design {self.formula!r} has no column {column!r}. It has {listed(list(self.columns))}."
                )
            path = paths.get(column, (column,))
            parts = called(value).split(NESTED)
            if len(path) > 1 and len(parts) == len(path):
                given |= dict(zip(path, parts, strict=True))
            else:
                given[column] = value
        for column, value in given.items():
            self._check_value(column, value)
        return given

    def _check_value(self, column: str, value: Any) -> None:
        if called(value) == POPULATION_MEAN:
            return
        if any(term.covariate == column for term in self.terms):
            if not isinstance(value, str) and np.isfinite(value):
                return
            raise ScmedleyError(
                f"{column!r} is continuous, so it needs a number or {POPULATION_MEAN!r}, not {value!r}."
            )
        known = self.values_of(column)
        if called(value) not in known:
            raise ScmedleyError(
                f"No cell of the fit has {column} = {called(value)!r}. Choose {POPULATION_MEAN!r} (no effect) or one "
                f"of {listed(list(known), 20)}; or learn the effects of new levels first: model.adapt(cells)."
            )

    def values_of(self, column: str) -> tuple[str, ...]:
        """Return the known values of a categorical column, from the names of levels."""
        for term in self.terms:
            parts = [c for factor in term.factors for c in factor]
            if column in parts:
                i = parts.index(column)
                split = [re.split("[/:]", level, maxsplit=len(parts) - 1) for level in term.levels]
                return tuple(dict.fromkeys(names[i] for names in split))
        return ()


def formula_of(
    batch_key: str,
    nested_in: str | None = None,
    covariates: Sequence[str] = (),
    slopes: Sequence[str] = (),
) -> str:
    """Return the formula of plain arguments.

    Parameters
    ----------
    batch_key
        Column of the batches or donors, which have random effects.
    nested_in
        Column that the batches belong to, such as the study of a donor. Batches of the same name in two of its
        levels are two batches.
    covariates
        Columns with fixed effects.
    slopes
        Those columns whose effect differs between batches.
    """
    group = _quoted(batch_key) if nested_in is None else f"{_quoted(nested_in)}/{_quoted(batch_key)}"
    fixed = [_quoted(column) for column in dict.fromkeys([*covariates, *slopes])]
    inside = " + ".join(_quoted(column) for column in slopes) or "1"
    return "~ " + " + ".join([*fixed, f"({inside} | {group})"])


def is_formula(text: str) -> bool:
    """Return whether a text is a formula rather than the name of one column."""
    return "~" in text or "|" in text


def parse(formula: str, obs: pd.DataFrame) -> list[Term]:
    """Return the terms of a formula of lme4, without levels: fixed ones first, each once.

    Numeric columns are continuous, unless they are written ``C(column)`` or group others; all others are
    categorical.
    """
    from formulae import model_description
    from formulae.terms.terms import GroupSpecificTerm

    text = formula.split("~", 1)[-1].strip()
    if not text or formula.partition("~")[0].strip() not in ("", text):
        raise ScmedleyError(
            f"The design {formula!r} must begin with '~' and name columns of obs: genes are on its left side. For "
            "example '~ condition + (1 | donor)'."
        )
    try:
        found = model_description(text).terms
    except Exception as error:  # its scanner and parser raise their own types
        raise ScmedleyError(
            f"The design {formula!r} cannot be read: {error}. Write it as in lme4, for example '~ condition + age + "
            "(1 | study/donor)'; put names with other characters in backticks."
        ) from error
    fixed = [
        term for term in found if not isinstance(term, GroupSpecificTerm) and hasattr(term, "components")
    ]
    columns = {_variable(part, formula)[0] for term in fixed for part in term.components}
    paths = _paths(text, columns)
    terms = [_term(_parts(term, formula), (), paths, obs, formula) for term in fixed]
    for term in found:
        if isinstance(term, GroupSpecificTerm):
            inner = _parts(term.expr, formula) if hasattr(term.expr, "components") else []
            grouping = tuple(name for name, _ in _parts(term.factor, formula))
            terms.append(_term(inner, grouping, paths, obs, formula))
    unique = {term.name: term for term in reversed(terms)}  # a fixed term wins over a random one
    if not terms:
        raise ScmedleyError(f"The design {formula!r} has no term. For example '~ condition + (1 | donor)'.")
    return [unique[name] for name in dict.fromkeys(term.name for term in terms)]


def _parts(term: Any, formula: str) -> list[tuple[str, bool]]:
    return [_variable(part, formula) for part in term.components]


def _variable(part: Any, formula: str) -> tuple[str, bool]:
    """Return the column of a part of a term, and whether it is declared categorical by C(...)."""
    if type(part).__name__ == "Variable":
        return str(part.name).strip("`"), False
    inside = re.fullmatch(r"C\(\s*`?([^`,()]+?)`?\s*\)", str(part.name))
    if inside is None:
        raise ScmedleyError(
            f"The design {formula!r} has {str(part.name)!r}, which cannot be computed here. Compute it as a column of "
            "obs, and name this column. Only C(column) is possible, for a column of numbers that are categories."
        )
    return inside[1], True


def _paths(text: str, fixed: set[str]) -> dict[str, tuple[str, ...]]:
    """Return the path of every column that the formula nests in others with a slash."""
    paths: dict[str, tuple[str, ...]] = {}
    for first, rest in _PATH.findall(text):
        names = [name.strip().strip("`") for name in (first + rest).split("/")]
        for i, name in enumerate(names[1:], 1):
            if name not in fixed:
                paths[name] = tuple(names[: i + 1])
    return paths


def _term(
    inner: list[tuple[str, bool]],
    grouping: tuple[str, ...],
    paths: Mapping[str, tuple[str, ...]],
    obs: pd.DataFrame,
    formula: str,
) -> Term:
    """Return the term of the parts before and after the bar."""
    continuous = [name for name, declared in inner if not declared and _is_continuous(obs, name)]
    if len(continuous) > 1:
        raise ScmedleyError(
            f"The design {formula!r} multiplies the continuous columns {listed(continuous)}. Compute their product as "
            "a column of obs, and name this column."
        )
    categorical = [name for name, _ in inner if name not in continuous]
    factors: list[tuple[str, ...]] = []
    for name in [*grouping, *categorical]:
        path = paths.get(name, (name,))
        # "study:donor" of the slash is the path of the donor alone.
        factors = [factor for factor in factors if factor != path[: len(factor)]]
        factors += [path] if path not in factors else []
    name = JOINED.join(NESTED.join(factor) for factor in factors)
    covariate = continuous[0] if continuous else ""
    if covariate:
        name = f"{covariate} | {name}" if name else covariate
    return Term(name, tuple(factors), covariate, random=bool(grouping))


def _learnt(term: Term, obs: pd.DataFrame) -> Term:
    """Return the term with its levels, and the mean and standard deviation of its covariate."""
    names = term.names(obs)
    if len(term.factors) == 1 and len(term.factors[0]) == 1:
        levels = tuple(as_categories(obs[term.factors[0][0]]).categories)  # in the user's order
    else:
        levels = tuple(sorted(names.dropna().unique()))
    for level in levels:
        if level == POPULATION_MEAN:
            raise ScmedleyError(
                f"obs[{term.name!r}] has a level {level!r}, which is reserved for no effect. Rename this level."
            )
    if not term.covariate:
        return replace(term, levels=levels)
    x_N = pd.to_numeric(obs[term.covariate]).to_numpy(np.float64)
    spread = float(x_N.std())
    if not spread > 0:
        raise ScmedleyError(
            f"All cells have {term.covariate} = {x_N[0]:g}, so it has no effect. Leave it out."
        )
    return replace(term, levels=levels, centre=float(x_N.mean()), spread=spread)


def _is_continuous(obs: pd.DataFrame, column: str) -> bool:
    _check_column(obs, column)
    values = obs[column]
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def _check_column(obs: pd.DataFrame, column: str) -> None:
    if column not in obs:
        raise ScmedleyError(
            f"The design names {column!r}, which is not a column of obs. It has "
            f"{listed(list(map(str, obs.columns)), 20)}."
        )


def _check_complete(obs: pd.DataFrame, column: str) -> None:
    """Raise if cells of a fit have no value in a column, or an infinite one."""
    _check_column(obs, column)
    values = obs[column]
    numeric = pd.api.types.is_float_dtype(values)
    missing = (
        ~np.isfinite(values.to_numpy(np.float64, na_value=np.nan)) if numeric else _text(obs, column).isna()
    )
    if missing.any():
        raise ScmedleyError(
            f"{int(missing.sum())} of {len(obs)} cells have no value in obs[{column!r}], which the design names. Add "
            "it, remove these cells, or leave the column out of the design."
        )


def _text(obs: pd.DataFrame, column: str) -> "pd.Series[Any]":
    """Return a column as names of levels, missing where it is missing."""
    if column not in obs:
        return pd.Series([np.nan] * len(obs), index=obs.index, dtype=object)
    return pd.Series(as_categories(obs[column]), index=obs.index).astype(object)


def _quoted(column: str) -> str:
    return column if re.fullmatch(r"[A-Za-z_.][\w.]*", column) else f"`{column}`"
