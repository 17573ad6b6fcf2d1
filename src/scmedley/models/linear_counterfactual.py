"""Counterfactuals of a linear mixed model: y + Delta(new levels) - Delta(own levels), with intervals.

Combinations of known levels that no cell has, and with ``unknown="prior"`` new levels too, are added to the design
without cells: their posterior is the prior, with its width.

Shapes: N cells, G genes, T terms, L columns of the design, P dimensions of the embedding, D contrasts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

from scmedley import keys
from scmedley.data.targets import target_name
from scmedley.errors import ScmedleyError, listed
from scmedley.models.interval import WITHIN_90
from scmedley.models.linear_design import LinearDesign
from scmedley.nn.mixed import Posterior

if TYPE_CHECKING:
    from scmedley.models.linear_mixed import LinearMixed

CHUNK = 512  # contrasts at once
UNKNOWN = ("error", "mean", "prior")


def with_interval(effect: np.ndarray, sd: np.ndarray) -> dict[str, np.ndarray]:
    """Return columns of a table: effect, standard deviation and 90 % interval."""
    return {"effect": effect, "sd": sd, "q05": effect - WITHIN_90 * sd, "q95": effect + WITHIN_90 * sd}


def check_own(model: LinearMixed, obs: pd.DataFrame, unknown: str) -> None:
    """Raise if cells have levels that the model does not know, unless the user says what they mean."""
    if unknown not in UNKNOWN:
        raise ScmedleyError(f"unknown={unknown!r} must be one of {list(UNKNOWN)}.")
    if unknown != "error":
        return
    for term in model.design.terms.terms:
        if len(term.factors) > 1:
            continue
        level_N, value_N = term.codes(obs), term.values(obs)
        wrong_N = (level_N < 0) | np.isnan(value_N)
        if wrong_N.any():
            named = [str(name) for name in term.names(obs)[wrong_N].unique()]
            raise ScmedleyError(
                f"{int(wrong_N.sum())} cells have no known level of {term.name!r}: {listed(named)}. Learn their "
                "effects first, model.adapt(cells); or pass unknown='mean' (no effect) or unknown='prior' (no "
                "effect, with the interval of a new level)."
            )


def extended(
    model: LinearMixed, frames: Sequence[pd.DataFrame], unknown: str
) -> tuple[LinearDesign, Posterior]:
    """Return design and posterior with combinations that no cell has; with "prior" with new levels too."""
    among = [term for term in model.design.terms.terms if unknown == "prior" or len(term.factors) > 1]
    design, place_L = model.design.extended(frames, among)
    if design.starts == model.design.starts:
        return model.design, model.fitted
    statistics = model.statistics.placed(place_L, design.starts[-1])
    return design, Posterior(statistics, design.columns, model.fitted.variances)


def predicted(
    model: LinearMixed,
    obs: pd.DataFrame,
    y_NG: np.ndarray,
    z_NP: np.ndarray | None,
    to: Mapping[str, Any],
    interval: bool,
    unknown: str,
) -> AnnData:
    """Return the counterfactual of one target."""
    there = model.design.terms.targeted(obs, to, new=unknown == "prior")
    own = obs[[column for column in model.design.terms.columns if column in obs]]
    design, posterior = model.design, model.fitted
    if interval:
        design, posterior = extended(model, [own, there], unknown)
    group_N = np.arange(len(obs))
    if not design.n_slopes:
        rows = [part for frame in (own, there) for part in design.terms.rows(frame)]
        group_N = np.unique(np.hstack(rows), axis=0, return_inverse=True)[1].ravel()
    c_NL = design.matrix(there, z_NP) - design.matrix(own, z_NP)
    first_D, place_N = np.unique(group_N, return_index=True, return_inverse=True)[1:]
    effect_DG = (c_NL[first_D] @ posterior.effects[0]).astype(np.float32)
    layers = {"difference": effect_DG[place_N]}
    x_NG = y_NG + layers["difference"]
    if interval:
        width_N = np.maximum(widths(model, own), widths(model, there))
        half_NG = width_N[:, None] * _sd(posterior, c_NL[first_D]).astype(np.float32)[place_N]
        for name, values in (("X", x_NG), ("difference", layers["difference"])):
            layers |= {f"{name}_q05": values - half_NG, f"{name}_q95": values + half_NG}
    target = target_name(to)
    found = obs.set_index(obs.index.astype(str) + f" as {target}")
    found[keys.TARGET] = pd.Categorical([target] * len(obs), categories=[target])
    found[keys.SEEN] = _seen(model, there)
    return AnnData(x_NG, obs=found, var=model.var(), layers=layers)


def joined(parts: Sequence[AnnData]) -> AnnData:
    """Return the predictions of several targets, one below the other."""
    if len(parts) == 1:
        return parts[0]
    names = list(dict.fromkeys(part.obs[keys.TARGET].iloc[0] for part in parts))
    obs = pd.concat([part.obs.astype({keys.TARGET: str}) for part in parts])
    obs[keys.TARGET] = pd.Categorical(obs[keys.TARGET], categories=names)
    layers = {name: np.concatenate([part.layers[name] for part in parts]) for name in parts[0].layers}
    return AnnData(np.concatenate([part.X for part in parts]), obs=obs, var=parts[0].var, layers=layers)


def widths(model: LinearMixed, obs: pd.DataFrame) -> np.ndarray:
    """Return half the width of the 90 % interval of each cell in standard deviations.

    For levels that the fit had, it is that of a Gaussian. How much new levels differ, such as the response of a donor
    without treated cells, is estimated from the D levels (donors or studies) of the fit, so the interval is that of
    Student's t with D - 1 degrees of freedom.
    """
    from scipy import stats

    terms = model.design.terms.terms
    level_NT = model.design.terms.rows(obs)[0]
    width_N = np.full(len(obs), WITHIN_90, dtype=np.float32)
    for t, term in enumerate(terms):
        if not term.random:
            continue
        at_mean_N = (term.names(obs).isna() | np.isnan(term.values(obs))).to_numpy()
        parts = [one for one in terms if one.random and one != term and set(one.factors) <= set(term.factors)]
        donors = max((len(one.levels) for one in parts), default=len(term.levels))
        width_N[(level_NT[:, t] < 0) & ~at_mean_N] = stats.t.ppf(0.95, max(1, donors - 1))
    return width_N


def _seen(model: LinearMixed, there: pd.DataFrame) -> np.ndarray:
    """Return whether cells of the fit had the levels of each row; a term at its mean is not compared."""
    terms = model.design.terms.terms
    level_NT = model.design.terms.rows(there)[0]
    at_mean_NT = np.stack([term.names(there).isna() | np.isnan(term.values(there)) for term in terms], axis=1)
    wanted_NT = np.where(at_mean_NT, -2, level_NT)
    unique_CT, place_N = np.unique(wanted_NT, axis=0, return_inverse=True)
    found = [bool(((model.seen_CT == row) | (row == -2)).all(axis=1).any()) for row in unique_CT]
    return np.asarray(found)[place_N.ravel()]


def _sd(posterior: Posterior, c_DL: csr_matrix) -> np.ndarray:
    """Return the standard deviations of contrasts, D x G."""
    starts = range(0, c_DL.shape[0], CHUNK)
    return np.concatenate([posterior.contrasts(c_DL[start : start + CHUNK].toarray())[1] for start in starts])
