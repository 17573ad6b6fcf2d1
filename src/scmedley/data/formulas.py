"""Formulas of lme4, read with ``formulae``: the terms of a design, without the levels that cells have.

Shapes: N cells, L levels of a term, F columns of its factors.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scmedley.data.design import as_categories
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
    values_of_levels
        The values of each level in the columns of its factors.
    centre, spread
        Mean and standard deviation of the covariate.
    """

    name: str
    factors: tuple[tuple[str, ...], ...]
    covariate: str = ""
    random: bool = True
    levels: tuple[str, ...] = ()
    values_of_levels: tuple[tuple[str, ...], ...] = ()
    centre: float = 0.0
    spread: float = 1.0

    @property
    def columns(self) -> tuple[str, ...]:
        """The ``obs`` columns that the term reads, each once."""
        found = [column for factor in self.factors for column in factor]
        return tuple(dict.fromkeys(found + ([self.covariate] if self.covariate else [])))

    @property
    def parts(self) -> tuple[str, ...]:
        """The ``obs`` columns of all factors, in the order of the values of a level."""
        return tuple(column for factor in self.factors for column in factor)

    def named(self, values: Sequence[str]) -> str:
        """Return the name of a level from its values in :attr:`parts`: ``lung/d1:stim``."""
        if not self.factors:
            return self.covariate
        left = iter(values)
        return JOINED.join(NESTED.join(next(left) for _ in factor) for factor in self.factors)

    def names(self, obs: pd.DataFrame) -> "pd.Series[Any]":
        """Return the name of each cell's level, of any cells; missing if a column is missing or has no value."""
        if any(column not in obs for column in self.parts):
            return pd.Series(None, index=obs.index, dtype=object)
        columns = [as_categories(obs[column]) for column in self.parts]
        codes_NF = np.array([column.codes for column in columns], np.int64).reshape(len(columns), len(obs)).T
        rows, of_row = np.unique(codes_NF, axis=0, return_inverse=True)
        found = np.full(len(rows), None, dtype=object)
        for i in np.flatnonzero((rows >= 0).all(axis=1)):
            values = [str(column.categories[code]) for column, code in zip(columns, rows[i], strict=True)]
            found[i] = self.named(values)
        return pd.Series(found[of_row.reshape(-1)], index=obs.index, dtype=object)

    def codes(self, obs: pd.DataFrame) -> np.ndarray:
        """Return the code of each cell's level (int64), -1 for one that is unknown or missing."""
        code_N, known_L = np.zeros(len(obs), np.int64), np.zeros(len(self.levels), np.int64)
        missing_N = np.zeros(len(obs), bool)
        for i, column in enumerate(self.parts):
            if column not in obs:
                return np.full(len(obs), -1, np.int64)
            level_L, names = pd.factorize(np.array([values[i] for values in self.values_of_levels], object))
            found = as_categories(obs[column])
            own_N = np.append(pd.Index(names).get_indexer(pd.Index(found.categories)), -1)[found.codes]
            missing_N |= own_N < 0
            code_N, known_L = code_N * len(names) + own_N, known_L * len(names) + level_L.astype(np.int64)
        found_N = np.asarray(pd.Index(known_L).get_indexer(pd.Index(code_N)), np.int64)
        return np.where(missing_N, -1, found_N)

    def levels_in(self, obs: pd.DataFrame) -> list[tuple[str, ...]]:
        """Return the values of the levels that cells have, in the order of the categories of their columns."""
        if not self.factors:
            return [()]
        if any(column not in obs for column in self.parts):
            return []
        columns = [as_categories(obs[column]) for column in self.parts]
        codes_NF = np.stack([column.codes for column in columns], axis=1)
        codes_LF = np.unique(codes_NF[(codes_NF >= 0).all(axis=1)], axis=0)
        return [
            tuple(str(column.categories[code]) for column, code in zip(columns, codes_F, strict=True))
            for codes_F in codes_LF
        ]

    def values(self, obs: pd.DataFrame) -> np.ndarray:
        """Return what multiplies each cell's effect (float64): 1, or the standardised covariate; nan if missing."""
        if not self.covariate:
            return np.ones(len(obs))
        if self.covariate not in obs:
            return np.full(len(obs), np.nan)
        x_N = pd.to_numeric(obs[self.covariate], errors="coerce").to_numpy(np.float64, na_value=np.nan)
        return np.asarray((x_N - self.centre) / self.spread)


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
    covariates, slopes = ([x] if isinstance(x, str) else x for x in (covariates, slopes))
    group = _quoted(batch_key) if nested_in is None else f"{_quoted(nested_in)}/{_quoted(batch_key)}"
    fixed = [_quoted(column) for column in dict.fromkeys([*covariates, *slopes])]
    inside = " + ".join(_quoted(column) for column in slopes) or "1"
    return "~ " + " + ".join([*fixed, f"({inside} | {group})"])


def is_formula(text: str) -> bool:
    """Return whether a text is a formula rather than the name of one column, such as ``sample|lane``."""
    return "~" in text or re.search(r"\(.+\|.+\)", text) is not None


def parse(formula: str, obs: pd.DataFrame | None = None) -> list[Term]:
    """Return the terms of a formula of lme4, without levels: fixed ones first, each once.

    Numeric columns are continuous, unless they are written ``C(column)`` or group others; all others are
    categorical. Without ``obs`` all columns are taken as categorical, and none is looked up.
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
        _check_whole(text)
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
    # A fixed term wins over a random one: "condition + (age | condition)" adds the slopes of age alone.
    unique = {term.name: term for term in reversed(terms)}
    if not terms:
        raise ScmedleyError(f"The design {formula!r} has no term. For example '~ condition + (1 | donor)'.")
    return [unique[name] for name in dict.fromkeys(term.name for term in terms)]


def _check_whole(text: str) -> None:
    """Raise if the parser would stop before the end, and drop the rest, or if there are two sides."""
    from formulae.parser import Parser
    from formulae.scanner import Scanner

    tokens = Scanner(text).scan()
    if any(token.kind == "TILDE" for token in tokens):
        raise ValueError("it has more than one '~'")
    parser = Parser(tokens)
    parser.parse()
    if not parser.at_end():
        raise ValueError(f"something is missing before {parser.peek().lexeme!r}, such as a '+'")


def _parts(term: Any, formula: str) -> list[tuple[str, bool]]:
    return [_variable(part, formula) for part in term.components]


def _variable(part: Any, formula: str) -> tuple[str, bool]:
    """Return the column of a part of a term, and whether it is declared categorical by C(...)."""
    written = str(part.name)
    if type(part).__name__ == "Variable":
        if part.reference is None:
            return written.strip("`"), False
        written += f"[{part.reference}]"
    inside = re.fullmatch(r"C\(\s*`?([^`,()]+?)`?\s*\)", written)
    if inside is None:
        raise ScmedleyError(
            f"The design {formula!r} has {written!r}, which cannot be computed here. Compute it as a column of "
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
    obs: pd.DataFrame | None,
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


def _is_continuous(obs: pd.DataFrame | None, column: str) -> bool:
    if obs is None:
        return False
    check_column(obs, column)
    values = obs[column]
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def check_column(obs: pd.DataFrame, column: str) -> None:
    """Raise if the design names a column that does not exist, or one of several of that name."""
    if column not in obs:
        raise ScmedleyError(
            f"The design names {column!r}, which is not a column of obs. It has "
            f"{listed(list(map(str, obs.columns)), 20)}."
        )
    if obs[column].ndim > 1:
        raise ScmedleyError(f"obs has several columns {column!r}. Rename all but the one of the design.")


def _quoted(column: str) -> str:
    return column if re.fullmatch(r"[A-Za-z_.][\w.]*", column) else f"`{column}`"
