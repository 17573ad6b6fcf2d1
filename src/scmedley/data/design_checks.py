"""Whether the cells can answer what a design asks: terms that cannot be separated, and weak spots.

Shapes: C distinct combinations of the design's columns, T terms, L levels of some terms.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack

from scmedley.data.terms import Term, Terms
from scmedley.errors import ScmedleyError, listed

FEW_LEVELS = 4  # fewer levels say little about the variance between levels
SHOWN = 6  # rows and columns of a table in a message
RARELY = 0.1  # a categorical column that varies within so few donors may be a mistake


def check_design(terms: Terms, obs: pd.DataFrame) -> list[str]:
    """Raise if terms of a design cannot be separated; return warnings about its weak spots.

    Only what cells can show is checked: combinations of levels, and how many cells and donors each has. Donors are
    the levels of the random term with the most levels.

    Parameters
    ----------
    terms
        The design, with the levels of these cells.
    obs
        Annotation of the cells of the fit.

    Returns
    -------
    list of str
        Warnings: a random term with fewer than 4 levels, or with one cell a level; a donor-level column that varies
        within a donor; a level with one donor; a fixed term that is constant within each level of a random term above
        the donors, such as studies; combinations of levels without cells.

    Raises
    ------
    ScmedleyError
        A column has one value only; a fixed term, or a part of it, is determined by others; a random term is
        determined by fixed ones; two random terms have the same levels; or a slope has nothing to learn from.
        The message has the table of cells that shows why.
    """
    design = _Observed.of(terms, obs)
    for term in terms.terms:
        _check_levels(term)
    _check_fixed(design)
    for t in design.random:
        _check_random(design, t)
    donors = design.donors
    above = [] if donors is None else [t for t in design.groups if t != donors and design.refined(t, donors)]
    return [
        *(note for t in design.groups for note in _sizes(design, t)),
        *(note for t in design.fixed if donors is not None for note in _varying(design, t, donors)),
        *(
            note
            for t in [*design.factors, *above]
            if donors is not None
            for note in _one_donor(design, t, donors)
        ),
        *(note for t in design.factors for study in above for note in _between(design, t, study)),
        *_empty(design, above),
    ]


@dataclass(frozen=True)
class _Observed:
    """The distinct combinations of values of a design's columns, and their numbers of cells."""

    terms: Terms
    obs: pd.DataFrame
    n_C: NDArray[np.int64]
    level_CT: NDArray[np.int64]
    value_CT: NDArray[np.float64]

    @classmethod
    def of(cls, terms: Terms, obs: pd.DataFrame) -> "_Observed":
        columns = list(terms.columns)
        values = obs[columns].reset_index(drop=True)  # an index may be named as a column
        groups = values.groupby(columns, observed=True, sort=False, dropna=False)
        n_C = groups.size()
        combined = n_C.index.to_frame(index=False)
        level_CT, value_CT = terms.rows(combined)
        return cls(terms, combined, np.asarray(n_C, np.int64), level_CT, value_CT)

    @property
    def fixed(self) -> list[int]:
        return [t for t, term in enumerate(self.terms.terms) if not term.random]

    @property
    def factors(self) -> list[int]:
        """The categorical fixed terms of one factor."""
        return [t for t in self.fixed if len(self[t].factors) == 1 and not self[t].covariate]

    @property
    def random(self) -> list[int]:
        return [t for t, term in enumerate(self.terms.terms) if term.random]

    @property
    def groups(self) -> list[int]:
        """The random intercepts of one factor, such as studies and donors."""
        return [t for t in self.random if len(self[t].factors) == 1 and not self[t].covariate]

    @property
    def donors(self) -> int | None:
        """The random intercepts with the most levels."""
        return max(self.groups, key=lambda t: len(self[t].levels), default=None)

    def __getitem__(self, t: int) -> Term:
        return self.terms.terms[t]

    def rank(self, of: list[int]) -> int:
        """Return the rank of the columns of some terms and the intercept."""
        part = Terms(self.terms.formula, tuple(self[t] for t in of))
        x_CL = csr_matrix(np.ones((len(self.obs), 1)))
        if of:
            x_CL = hstack([x_CL, part.matrix(self.level_CT[:, of], self.value_CT[:, of])], format="csr")
        gram_LL = (x_CL.T @ x_CL).toarray()
        size_L = np.sqrt(np.diag(gram_LL)).clip(1e-12)
        return int(np.linalg.matrix_rank(gram_LL / size_L / size_L[:, None], hermitian=True))

    def refined(self, t: int, by: int) -> bool:
        """Return whether every level of ``by`` has one level, or one value, of ``t``."""
        return bool((self.values_in(t, by) == 1).all())

    def values_in(self, t: int, by: int) -> "pd.Series[int]":
        """Return the number of different levels or values of ``t`` in every level of ``by``."""
        of = self.value_CT[:, t] if not self[t].factors else self.level_CT[:, t]
        return pd.Series(of).groupby(self.level_CT[:, by]).nunique()

    def names(self, t: int) -> "pd.Series[Any]":
        """Return the level of each combination, or the value of a continuous term."""
        term = self[t]
        return self.obs[term.covariate] if not term.factors else term.names(self.obs)

    def table(self, t: int, u: int) -> str:
        """Return the numbers of cells of the levels of two terms, as text."""
        return _table(self.names(t), self.names(u), self.n_C, self[t].name, self[u].name)


def _table(row_C: "pd.Series[Any]", column_C: "pd.Series[Any]", n_C: Any, row: str, column: str) -> str:
    """Return a cross table with a line for each level, which can be read in one line too."""
    cells = pd.crosstab(row_C.to_numpy(), column_C.to_numpy(), n_C, aggfunc="sum").fillna(0).astype(int)
    lines = []
    for name, counts in list(cells.iterrows())[:SHOWN]:
        # Of a wide table, only the combinations that occur.
        here = [f"{other} {n:,}" for other, n in counts.items() if n or len(counts) <= SHOWN]
        more = f", and {len(here) - SHOWN:,} more" if len(here) > SHOWN else ""
        lines.append(f"  {name}: {', '.join(here[:SHOWN])}{more}")
    if len(cells) > SHOWN:
        lines.append(f"  and {len(cells) - SHOWN:,} more")
    return f"Cells of each {row} by {column}:\n" + ";\n".join(lines)


def _check_levels(term: Term) -> None:
    if term.factors and len(term.levels) < 2:
        raise ScmedleyError(
            f"All cells have {term.name} = {listed(list(term.levels))}, so it has no effect to learn. Leave it out of "
            "the design, or add cells of another level."
        )


def _check_fixed(design: _Observed) -> None:
    """Raise if effects of a fixed term are sums of effects of other fixed terms."""
    found, needed = {}, {}
    others = {
        # An interaction holds the effects of its parts, which is no mistake.
        t: [u for u in design.fixed if u != t and not set(design[t].columns) < set(design[u].columns)]
        for t in design.fixed
    }
    for t in design.fixed:
        found[t] = design.rank([*others[t], t]) - design.rank(others[t])
        needed[t] = len(design[t].levels) - 1 if t in design.factors else 1
    aliased = [t for t in design.fixed if found[t] < needed[t]]
    if not aliased:
        return
    t = min(aliased, key=lambda t: (found[t] > 0, t))  # one that is wholly determined says most
    pairs = [u for u in others[t] if design.rank([u, t]) - design.rank([u]) < needed[t]]
    u = (pairs or others[t])[0]
    together = "" if pairs else f" (all of {listed([design[v].name for v in others[t]])} together)"
    known = "is partly determined by" if found[t] else "is determined by"
    raise ScmedleyError(
        f"The effects of {design[t].name} cannot be separated: it {known} {design[u].name}{together}. Leave one of "
        f"them out of the design, or add cells of other combinations. {design.table(t, u)}"
    )


def _check_random(design: _Observed, t: int) -> None:
    """Raise if a random term is determined by fixed ones, equals another one, or has nothing to learn from."""
    term = design[t]
    for u in design.random:
        if u >= t or design[u].covariate or term.covariate:
            continue
        if design.refined(t, u) and design.refined(u, t):
            raise ScmedleyError(_same_levels(design, t, u))
    if term.covariate:
        _check_slope(design, t)
        return
    # A random term with more levels than there are fixed columns cannot be in their span.
    if len(term.levels) > 1 + sum(len(design[u].levels) for u in design.fixed):
        return
    if design.rank(design.fixed) == design.rank([*design.fixed, t]):
        pairs = [u for u in design.fixed if design.refined(t, u) or design.refined(u, t)]
        u = (pairs or design.fixed)[0]
        fixed = listed([design[v].name for v in design.fixed])
        raise ScmedleyError(
            f"The effects of {design[u].name} cannot be separated from those of {term.name}: no two levels of "
            f"{term.name} are alike in {fixed}, so all differences may be of either. Leave {term.name} out, and know "
            f"that its effects are then part of those of {design[u].name}; or add levels of {term.name}. "
            f"{design.table(u, t)}"
        )


def _check_slope(design: _Observed, t: int) -> None:
    """Raise if the covariate of a random slope is constant within all levels."""
    term = design[t]
    values = pd.Series(design.value_CT[:, t]).groupby(design.level_CT[:, t]).nunique()
    if (values < 2).all():
        raise ScmedleyError(
            f"{term.name}: {term.covariate} has one value in each of the {len(values)} levels of "
            f"{term.name.split(' | ')[1]}, so the levels' slopes cannot be learnt. Leave the slope out."
        )


def _same_levels(design: _Observed, t: int, u: int) -> str:
    one, other = sorted((t, u), key=lambda i: (len(design[i].factors), len(design[i].columns)))
    simple, compound = design[one], design[other]
    added = [c for c in compound.columns if c not in simple.columns]
    if added and len(compound.factors) > len(simple.factors):
        return (
            f"Each {simple.name} has cells of one {' and '.join(added)} only, so responses that differ between levels "
            f"of {simple.name} cannot be learnt. Write (1 | {simple.name}) instead of "
            f"({' + '.join(added)} | {simple.name}). {_levels_of(design, one, added[0])}"
        )
    return (
        f"The random terms {simple.name} and {compound.name} have the same {len(simple.levels)} levels, so their "
        f"variances cannot be separated. Leave one of them out. {design.table(one, other)}"
    )


def _levels_of(design: _Observed, t: int, column: str) -> str:
    return _table(design.names(t), design.obs[column].astype(str), design.n_C, design[t].name, column)


def _sizes(design: _Observed, t: int) -> list[str]:
    """Return warnings about a random term with few levels, or with levels of one cell."""
    term = design[t]
    notes = []
    if len(term.levels) < FEW_LEVELS:
        notes.append(
            f"{term.name} has {len(term.levels)} levels ({listed(list(term.levels))}): the variance between its "
            "levels is hardly known, and nor is what a new level would be like."
        )
    cells_L = pd.Series(design.n_C).groupby(design.level_CT[:, t]).sum()
    single = int((cells_L == 1).sum())
    if 2 * single > len(cells_L):
        notes.append(
            f"{single:,} of {len(cells_L):,} levels of {term.name} have one cell: their effects cannot be separated "
            f"from differences between cells. Is {term.name} the right column?"
        )
    return notes


def _varying(design: _Observed, t: int, donors: int) -> list[str]:
    """Return a warning about a column that is constant in most donors, but not in all."""
    term, donor = design[t], design[donors]
    if len(term.columns) > 1 or term.columns[0] in donor.columns:
        return []
    values_D = design.values_in(t, donors)
    varying = values_D.index[values_D > 1]
    most = len(values_D) * (RARELY if term.factors else 0.5)
    if not 0 < len(varying) <= most:
        return []
    first = design.level_CT[:, donors] == varying[0]
    cells = pd.Series(design.n_C[first]).groupby(design.names(t)[first].to_numpy()).sum()
    seen = ", ".join(f"{value}: {n:,} cells" for value, n in list(cells.items())[:SHOWN])
    return [
        f"{term.name} has one value in most levels of {donor.name}, but several in {len(varying)} of {len(values_D)} "
        f"({listed([donor.levels[d] for d in varying])}; {donor.levels[varying[0]]} has {seen}). If it belongs to the "
        f"{donor.name}, correct obs[{term.name!r}]."
    ]


def _one_donor(design: _Observed, t: int, donors: int) -> list[str]:
    """Return a warning about levels with cells of one donor."""
    term, donor = design[t], design[donors]
    if set(term.columns) & set(donor.columns) and not term.random:
        return []
    n_L = design.values_in(donors, t)
    alone = [term.levels[level] for level in n_L.index[n_L == 1]]
    if not alone or len(alone) == len(donor.levels):
        return []
    what = f"Level {alone[0]!r} of" if len(alone) == 1 else f"{len(alone)} levels of"
    named = "" if len(alone) == 1 else f" ({listed(alone)})"
    table = " " + design.table(t, donors) if len(donor.levels) <= SHOWN else ""
    return [
        f"{what} {term.name}{named} has cells of one {donor.name} only: its effect cannot be separated from "
        f"that of this {donor.name}, except by the prior.{table}"
    ]


def _between(design: _Observed, t: int, study: int) -> list[str]:
    """Return a warning about a fixed term that has one level in each study."""
    if not design.refined(t, study) or set(design[t].columns) & set(design[study].columns):
        return []
    term, group = design[t], design[study]
    return [
        f"Each {group.name} has one {term.name} only, so the effect of {term.name} is a comparison of "
        f"{len(group.levels)} levels of {group.name}, which also differ in all else. {design.table(study, t)}"
    ]


def _empty(design: _Observed, above: list[int]) -> list[str]:
    """Return warnings about combinations of levels without cells: of fixed terms, of these with studies, of slopes."""
    notes = []
    names: dict[str, pd.Series[Any]] = {}
    pairs: list[tuple[str, str]] = []

    def add(one: Term, other: Term) -> None:
        for term in (one, other):
            names.setdefault(term.name, term.names(design.obs))
        if not set(one.columns) & set(other.columns) and (one.name, other.name) not in pairs:
            pairs.append((one.name, other.name))

    for i, t in enumerate(design.factors):
        for u in design.factors[i + 1 :]:
            add(design[t], design[u])
        for study in above:
            if not design.refined(t, study):
                add(design[t], design[study])
    for t in design.random:
        parts = [Term("/".join(path), (path,)) for path in design[t].factors]
        if len(parts) == 2 and not design[t].covariate:
            add(parts[1], parts[0])
    for one, other in pairs:
        cells = pd.crosstab(names[one].to_numpy(), names[other].to_numpy())
        never = [
            f"{row} with {column}" for row in cells.index for column in cells if not cells.at[row, column]
        ]
        if not never:
            continue
        table = ""
        if max(cells.shape) <= SHOWN:
            table = " " + _table(names[one], names[other], design.n_C, one, other)
        notes.append(
            f"{len(never):,} of {cells.size:,} combinations of {one} and {other} have no cells ({listed(never, 3)}): a "
            f"counterfactual there is the sum of effects learnt in other cells.{table}"
        )
    return notes
