"""The columns of a linear mixed model: its terms, and the slopes of their effects on an embedding.

Columns are, in this order: the constant 1; the embedding (P); one for each level of each term; then, for each level of
each term, one for each of the first dimensions of the embedding (the slope of its effect).

Shapes: N cells, T terms, P dimensions of the embedding, L columns.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, hstack

from scmedley.data.design_checks import check_design
from scmedley.data.formulas import JOINED, NESTED
from scmedley.data.terms import Term, Terms, with_levels
from scmedley.errors import ScmedleyError, warn
from scmedley.nn.mixed import Columns


@dataclass(frozen=True)
class LinearDesign:
    """Terms and embedding as columns.

    Attributes
    ----------
    terms
        With their levels.
    centre_P, spread_P
        Mean and standard deviation of each dimension of the embedding; empty without one.
    n_slopes
        Number of dimensions, the first ones, on which the effects of levels have slopes.
    learn_fixed
        Whether fixed terms have a variance ratio that is learnt, as random ones, instead of a wide prior.
    """

    terms: Terms
    centre_P: np.ndarray
    spread_P: np.ndarray
    n_slopes: int = 0
    learn_fixed: bool = False

    @property
    def n_base(self) -> int:
        """Return the number of columns before those of terms."""
        return 1 + len(self.centre_P)

    @property
    def starts(self) -> list[int]:
        """First column of each term's levels, then of each term's slopes, and the number of all columns."""
        sizes = [*self.terms.sizes]
        sizes += [size * self.n_slopes for size in sizes] if self.n_slopes else []
        return [int(start) for start in np.cumsum([self.n_base, *sizes])]

    @property
    def groups(self) -> list[tuple[str, str]]:
        """Term and kind of effect, "level" or "slope", of each variance ratio."""
        levels = [(term.name, "level") for term in self.terms.terms if term.random or self.learn_fixed]
        return levels + [(term.name, "slope") for term in self.terms.terms if self.n_slopes]

    @property
    def columns(self) -> Columns:
        """Return what each column is."""
        codes = {group: code for code, group in enumerate(self.groups)}
        group_L = np.full(self.starts[-1], -1)
        centred, starts = [], self.starts
        for i, term in enumerate(self.terms.terms):
            code = codes.get((term.name, "level"), -1)
            group_L[starts[i] : starts[i + 1]] = code
            if code < 0 and term.factors:
                centred.append((starts[i], _centring(term, self.terms)))
            if self.n_slopes:
                j = i + len(self.terms.terms)
                group_L[starts[j] : starts[j + 1]] = codes[term.name, "slope"]
        tailed = [codes[t.name, "level"] for t in self.terms.terms if not t.random and self.learn_fixed]
        return Columns(group_L, tuple(centred), tuple(tailed))

    def matrix(self, obs: pd.DataFrame, z_NP: np.ndarray | None) -> csr_matrix:
        """Return the design matrix of cells, N x L."""
        level_NT, value_NT = self.terms.rows(obs)
        parts = [np.ones((len(obs), 1))]
        levels = self.terms.matrix(level_NT, value_NT)
        slopes = []
        if z_NP is not None:
            z_NP = (z_NP - self.centre_P) / self.spread_P
            parts.append(z_NP)
            if self.n_slopes:
                start_T = np.cumsum([0, *self.terms.sizes])
                for first, end in pairwise(start_T):
                    slopes.append(_times(levels[:, first:end], z_NP[:, : self.n_slopes]))
        return csr_matrix(hstack([*(csr_matrix(part) for part in parts), levels, *slopes]))

    def extended(
        self, frames: Iterable[pd.DataFrame], among: Iterable[Term]
    ) -> "tuple[LinearDesign, np.ndarray]":
        """Return the design with the new levels that cells have in some terms, and the new place of each column."""
        frames, chosen, found = list(frames), {term.name for term in among}, []
        for term in self.terms.terms:
            cells = frames if term.name in chosen else []
            found.append(with_levels(term, [values for frame in cells for values in term.levels_in(frame)]))
        larger = replace(self, terms=replace(self.terms, terms=tuple(found)))
        place_L = [np.arange(self.n_base)]
        for old, end, new in zip(self.starts[:-1], self.starts[1:], larger.starts, strict=False):
            place_L.append(np.arange(end - old) + new)
        return larger, np.concatenate(place_L)


def _centring(term: Term, terms: Terms) -> np.ndarray:
    """Return the projection of a fixed term's effects: they sum to zero, also within the levels of its parts.

    What an interaction has in common over the levels of one factor belongs to the effect of the other, if that is
    a fixed term too. Otherwise both would share it, and neither would be known.
    """
    removed = [np.ones((len(term.levels), 1))]
    value_LF = np.array(term.values_of_levels, dtype=object)
    for other in terms.terms:
        inside = [i for i, column in enumerate(term.parts) if column in other.parts]
        if not other.random and not other.covariate and 0 < len(inside) == len(other.parts) < len(term.parts):
            code_L = np.unique(value_LF[:, inside].astype(str), axis=0, return_inverse=True)[1].reshape(-1)
            removed.append(np.eye(code_L.max() + 1)[code_L])
    removed_LX = np.hstack(removed)
    return np.asarray(np.eye(len(term.levels)) - removed_LX @ np.linalg.pinv(removed_LX))


def checked(terms: Terms, obs: pd.DataFrame) -> Terms:
    """Return the terms; raise if some cannot be separated, and warn of weak spots (:func:`check_design`)."""
    for words in check_design(terms, obs):
        warn(words)
    if not any(term.random for term in terms.terms):
        warn(
            "The design has no random term, so cells of one donor count as independent and intervals are too narrow. "
            "Add the column of donors, such as '+ (1 | donor)'."
        )
    return terms


def _times(levels_NL: csr_matrix, z_NP: np.ndarray) -> csr_matrix:
    """Return each level times each dimension, N x (L P), by level and then by dimension."""
    coo, n_dims = levels_NL.tocoo(), z_NP.shape[1]
    values = coo.data[:, None] * z_NP[coo.row]
    columns = coo.col[:, None] * n_dims + np.arange(n_dims)
    rows = np.repeat(coo.row, n_dims)
    shape = (levels_NL.shape[0], levels_NL.shape[1] * n_dims)
    return csr_matrix((values.ravel(), (rows, columns.ravel())), shape=shape)


def sample_term(terms: Terms, obs: pd.DataFrame) -> Term | None:
    """Return a random term with one level for each combination of all categorical columns.

    ``None`` if there is one, or if no column is categorical.

    Cells of one sample share more than the effects of a design without it: without this term the model would
    take each of them as independent evidence.
    """
    factors = list(dict.fromkeys(factor for term in terms.terms for factor in term.factors))
    longest = [f for f in factors if not any(f != other and f == other[: len(f)] for other in factors)]
    inside = {column for factor in longest if len(factor) > 1 for column in factor}
    chosen = tuple(f for f in longest if len(f) > 1 or f[0] not in inside)
    if not chosen:
        return None
    term = Term(JOINED.join(NESTED.join(factor) for factor in chosen), chosen)
    term = with_levels(term, term.levels_in(obs))
    if any(len(other.levels) == len(term.levels) and not other.covariate for other in terms.terms):
        return None  # that term, random or fixed, has a level for each sample
    return term


def checked_embedding(values: Any, key: str, n_fitted: int | None) -> np.ndarray:
    """Return an embedding as N x P float64; raise for values that are no numbers, or not those of the fit.

    ``n_fitted`` is the number of dimensions that the model was fitted to, if it is fitted.
    """
    z_NP = np.asarray(values)
    if z_NP.ndim != 2 or z_NP.dtype.kind not in "iuf" or not np.isfinite(z_NP).all():
        raise ScmedleyError(f"obsm[{key!r}] is not a dense matrix of finite numbers. Correct it.")
    if n_fitted is not None and z_NP.shape[1] != n_fitted:
        raise ScmedleyError(
            f"obsm[{key!r}] has {z_NP.shape[1]} dimensions, but the fit had {n_fitted}. Use the same one."
        )
    return z_NP.astype(np.float64)
