"""Donors under conditions: the samples of an experiment, and the linear model of a condition over them.

Shapes: N cells, S samples (a donor under a condition), G genes, T terms (columns of the design), D donors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scmedley.data.design import as_categories, called, column
from scmedley.data.formulas import NESTED
from scmedley.errors import ScmedleyError, listed, warn
from scmedley.interpret.moderated import Floats, LinearModel, independent, without_levels

if TYPE_CHECKING:
    from anndata import AnnData

CONTROLS = (
    "ctrl",
    "control",
    "controls",
    "healthy",
    "normal",
    "untreated",
    "unstimulated",
    "vehicle",
    "dmso",
    "wt",
)
NO_VARIATION = 1e-12
LEAST_PEOPLE = 3  # levels of a column that may name the donors; two, such as sexes, match by chance


@dataclass(frozen=True)
class Donors:
    """Donor, condition and covariates of each cell.

    Attributes
    ----------
    obs
        Columns ``donor`` and ``condition`` (levels, or numbers), then the covariates; without cells that lack one.
    rows
        The cells of ``obs``, as positions in the AnnData.
    levels
        Levels of the condition, the reference first; empty if it is continuous.
    covariates
        Names of the columns of covariates, and whether each one is continuous.
    study
        Column of the studies in which donors are nested; it is a covariate too.
    missing
        Cells without a donor, a condition or a covariate, by column.
    """

    obs: pd.DataFrame
    rows: NDArray[np.int64]
    condition_key: str
    levels: tuple[str, ...]
    covariates: dict[str, bool]
    study: str | None = None
    missing: dict[str, int] = field(default_factory=dict)

    @property
    def contrasts(self) -> list[str]:
        """Names of the effects that are asked for."""
        if not self.levels:
            return [f"{self.condition_key}, per unit"]
        return [f"{level} - {self.levels[0]}" for level in self.levels[1:]]


def read_donors(
    adata: AnnData,
    condition_key: str,
    donor_key: str,
    *,
    reference: str | None = None,
    covariates: Sequence[str] = (),
    nested_in: str | None = None,
) -> Donors:
    """Return donor, condition and covariates of all cells that have them.

    Raises
    ------
    ScmedleyError
        A missing column; one column in two roles; a condition of one level; a reference that is no level.
    """
    covariates = [covariates] if isinstance(covariates, str) else list(covariates)
    roles = [condition_key, donor_key, *covariates, *([] if nested_in is None else [nested_in])]
    if twice := sorted({key for key in roles if roles.count(key) > 1}):
        raise ScmedleyError(
            f"The column {twice[0]!r} has two roles. Condition, donor, covariates and study are different columns. "
            "If each condition is one donor (two patients, say), no test is possible: one person cannot stand for a "
            "group. scmedley run --batch describes how the two differ (gene_shifts.csv)."
        )
    condition = column(adata, condition_key, "condition")
    donor = as_categories(column(adata, donor_key, "donor"))
    numeric = is_number(condition) and reference is None
    table = {"donor": pd.Series(donor), "condition": _values(condition, numeric)}
    kinds: dict[str, bool] = {}
    if nested_in is not None:
        study = pd.Series(as_categories(column(adata, nested_in, "study")))
        path = (study.astype("string") + NESTED + table["donor"].astype("string")).astype("category")
        if (now := path.nunique()) > (before := table["donor"].nunique()):
            warn(
                f"Donors of one name are in several levels of obs[{nested_in!r}], so the {before} names of "
                f"obs[{donor_key!r}] count as {now} donors. If they are the same people, leave this column out."
            )
        table["donor"] = path
        table[_named(nested_in)], kinds[nested_in] = study, False
    for key in covariates:
        own = column(adata, key, "covariate")
        kinds[key] = is_number(own)
        table[_named(key)] = _values(own, kinds[key])
    obs = pd.DataFrame(table)
    missing = {str(name).removeprefix(_named("")): int(n) for name, n in obs.isna().sum().items() if n}
    kept = obs.notna().all(axis=1).to_numpy()
    obs = obs[kept].reset_index(drop=True)
    for name in obs.columns[(obs.dtypes == "category").to_numpy()]:
        obs[name] = obs[name].cat.remove_unused_categories()
    levels = () if numeric else _levels(obs["condition"], condition_key, reference)
    if obs["condition"].nunique() < 2:
        raise ScmedleyError(
            f"obs[{condition_key!r}] has {obs['condition'].nunique()} different value(s) in the cells that have a "
            f"donor, a condition and all covariates; an effect needs two or more.{_said(missing)}"
        )
    return Donors(obs, np.flatnonzero(kept), condition_key, levels, kinds, nested_in, missing)


def warn_of_samples(adata: AnnData, donors: Donors, donor_key: str) -> None:
    """Warn if the donors seem to be samples: pairs of a level of another column and a condition."""
    own = donors.obs
    if not donors.levels or (own.groupby("donor", observed=True)["condition"].nunique() > 1).any():
        return
    used = {donor_key, donors.condition_key, *donors.covariates}
    names = [n for n in adata.obs if n not in used and not pd.api.types.is_float_dtype(adata.obs[n])]
    for name in sorted(names, key=lambda name: is_number(adata.obs[name])):  # an age is no name of a person
        if _are_people(np.asarray(as_categories(adata.obs[name]).codes)[donors.rows], own):
            warn(
                f"Each level of obs[{donor_key!r}] has one condition, and is a level of obs[{name!r}] under that "
                f"condition. If obs[{name!r}] names the donors, give it instead: each is then compared with itself. If "
                "samples count as donors, most effects are missed."
            )
            return


def _are_people(level_N: NDArray[Any], own: pd.DataFrame) -> bool:
    """Return whether each donor of the table is one level under one condition, and levels have several conditions."""
    pairs = own[["donor", "condition"]].assign(level=level_N).drop_duplicates()
    conditions = pairs.groupby("level")["condition"].nunique()
    several = len(conditions) >= LEAST_PEOPLE and bool(
        (conditions > 1).all() and (conditions.index >= 0).all()
    )
    once = not pairs["donor"].duplicated().any() and not pairs[["level", "condition"]].duplicated().any()
    return several and once


def _said(missing: dict[str, int]) -> str:
    cells = ", ".join(f"{name}: {n:,}" for name, n in missing.items())
    return f" Cells without a value: {cells}." if missing else ""


def _named(key: str) -> str:
    """Return the name of a covariate in tables of donors, so that it may be called "condition", "donor" or "cells"."""
    return f"covariate {key}"


def is_number(values: pd.Series[Any]) -> bool:
    """Return whether a column is continuous: it holds numbers, and no truth values."""
    return bool(pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values))


def _values(values: pd.Series[Any], numeric: bool) -> pd.Series[Any]:
    if not numeric:
        return pd.Series(as_categories(values))
    numbers = pd.Series(values.to_numpy(dtype=np.float64, na_value=np.nan))
    return numbers.where(np.isfinite(numbers))


def _levels(condition: pd.Series[Any], key: str, reference: str | None) -> tuple[str, ...]:
    """Return the levels, the reference first: the given one, one with the name of a control, or the first one."""
    levels = [str(level) for level in condition.cat.categories]
    if reference is None:
        reference = next(
            (level for level in levels if level.lower() in CONTROLS), levels[0] if levels else ""
        )
    reference = called(reference)
    if levels and reference not in levels:
        raise ScmedleyError(
            f"The reference {reference!r} is no level of obs[{key!r}]. It has {listed(levels, 8)}."
        )
    return (reference, *(level for level in levels if level != reference))


@dataclass(frozen=True)
class Samples:
    """Samples of some cells, each the cells of a donor under a condition.

    ``table`` has one row a sample: donor, condition, covariates, ``cells``. ``code_N`` is the sample of each cell
    (-1: its sample has too few cells).
    """

    table: pd.DataFrame
    code_N: NDArray[np.int64]


def samples_of(donors: Donors, chosen_N: NDArray[Any], min_cells: int) -> Samples:
    """Return the samples of the chosen cells (rows of ``donors.obs``) that have ``min_cells`` or more of them.

    Raises
    ------
    ScmedleyError
        A categorical covariate that varies within a sample.
    """
    obs = donors.obs.iloc[chosen_N]
    groups = obs.groupby(["donor", "condition"], observed=True, sort=True)
    code_N = groups.ngroup().to_numpy(dtype=np.int64)
    table = groups.size().rename("cells").reset_index()
    for key, continuous in donors.covariates.items():
        name = _named(key)
        if continuous:  # cells may differ, as in their depth; of a donor's age the mean is the age
            table[name] = groups[name].mean().to_numpy()
            continue
        if (several := groups[name].nunique().to_numpy() > 1).any():
            first = table.iloc[int(several.argmax())]
            raise ScmedleyError(
                f"obs[{key!r}] has several values in the cells of donor {first['donor']!r} with condition "
                f"{first['condition']!r}. A covariate has one value in each sample (a donor under a condition)."
            )
        table[name] = groups[name].first().to_numpy()
    kept = (table["cells"] >= min_cells).to_numpy()
    new = np.where(kept, np.cumsum(kept) - 1, -1)
    return Samples(table[kept].reset_index(drop=True), new[code_N])


@dataclass(frozen=True)
class SampleDesign:
    """The linear model of the samples, and what can be said about each contrast.

    Attributes
    ----------
    model
        ``None`` if no contrast can be estimated.
    kind
        ``"paired"``: all donors have several conditions and are compared with themselves. ``"groups"``: each donor has
        one condition. ``"mixed"``: some donors have several, donors are random effects.
    names
        Donor of each code of the model, and at the end "", for none (-1).
    terms
        Column of the model of each contrast, -1 if it cannot be estimated.
    donors
        Number of donors behind each contrast.
    by_level
        The same for the two levels, as text.
    reasons
        Why there is no effect, or no test; empty if there is.
    """

    model: LinearModel | None
    kind: str
    names: NDArray[np.object_]
    terms: list[int]
    donors: list[int]
    by_level: list[str]
    reasons: list[str]


def design_of(samples: pd.DataFrame, donors: Donors, min_donors: int) -> SampleDesign:
    """Return the linear model: constant or donors, study and covariates, then the condition.

    A covariate that the columns before it determine is left out, such as the age of donors that are compared with
    themselves. The effect of a condition that they determine cannot be estimated (confounded).
    """
    several = samples.groupby("donor", observed=True)["condition"].nunique()
    crossed = several[several > 1].index
    kind = "groups" if not len(crossed) else "paired" if len(crossed) == len(several) else "mixed"
    donor = samples["donor"].astype("category").cat
    code_S = np.asarray(donor.codes, dtype=np.int64)
    blocks: dict[str, Any] = {"groups": "none", "paired": "fixed", "mixed": "random"}
    before: dict[str, Floats] = {} if kind == "paired" else {"": np.ones((len(samples), 1))}
    before |= {
        key: _columns(samples[_named(key)], continuous) for key, continuous in donors.covariates.items()
    }
    asked_ST = _columns(samples["condition"], not donors.levels, donors.levels)

    x_ST = np.hstack([np.empty((len(samples), 0)), *before.values(), asked_ST])
    n_before = x_ST.shape[1] - asked_ST.shape[1]
    seen_ST = without_levels(x_ST, code_S) if kind == "paired" else x_ST
    columns = independent(seen_ST) if len(samples) else []
    terms = [columns.index(n_before + t) if n_before + t in columns else -1 for t in range(asked_ST.shape[1])]
    model = LinearModel(x_ST[:, columns], code_S, blocks[kind])
    names = np.array([*map(str, donor.categories), ""], dtype=object)
    found = SampleDesign(model if max(terms) >= 0 else None, kind, names, terms, [], [], [])
    for i, term in enumerate(terms):
        n, text, reason = _behind(samples, donors, i, kind, min_donors)
        if term < 0 and not reason.startswith("no "):
            reason = _confounded(seen_ST, before, n_before + i)
        elif term >= 0 and not reason and model.df < 1:
            reason = "no degrees of freedom are left for a test: as many terms as samples"
        found.donors.append(n)
        found.by_level.append(text)
        found.reasons.append(reason)
    return found


def _columns(values: pd.Series[Any], continuous: bool, levels: Sequence[str] = ()) -> Floats:
    """Return the centred numbers, or an indicator of each level but the first."""
    if continuous:
        x_S = values.to_numpy(np.float64)
        centred = x_S - x_S.mean() if len(x_S) else x_S
        return np.where(np.abs(centred) > NO_VARIATION * np.abs(x_S), centred, 0.0)[:, None]
    names = values.astype(str).to_numpy()
    levels = levels or sorted(set(names))
    is_level_ST: NDArray[np.bool_] = names[:, None] == np.array(levels[1:], dtype=object)[None]
    return is_level_ST.astype(np.float64)


def _behind(
    samples: pd.DataFrame, donors: Donors, contrast: int, kind: str, min_donors: int
) -> tuple[int, str, str]:
    """Return how many donors a contrast rests on, by level too, and why it has no effect or no test."""
    if not donors.levels:
        n = samples["donor"].nunique()
        least = min_donors if kind == "paired" else max(min_donors, 3)
        few = f"{n} donor{'' if n == 1 else 's'}; a test needs {least}"
        if samples["condition"].nunique() < 2:
            return n, str(n), f"no two values of {donors.condition_key}"
        return n, str(n), few if n < least else ""
    pair = donors.levels[0], donors.levels[contrast + 1]
    of_level = [set(samples.loc[samples["condition"] == level, "donor"].astype(str)) for level in pair]
    text = ", ".join(f"{level}: {len(own)}" for level, own in zip(pair, of_level, strict=True))
    both, either = of_level[0] & of_level[1], of_level[0] | of_level[1]
    if absent := [level for level, own in zip(pair, of_level, strict=True) if not own]:
        return len(either), text, f"no donor has enough cells with {listed(absent)}"
    n = len(both) if kind == "paired" else len(either)
    if kind == "paired" and len(both) < min_donors:
        return (
            n,
            text,
            f"{len(both)} donor{'' if len(both) == 1 else 's'} with both conditions; a test needs {min_donors}",
        )
    least = min(len(own) for own in of_level)
    if least < min_donors:
        return n, text, f"{least} donor in a group ({text}); a test needs {min_donors} in each"
    return n, text, ""


def _confounded(x_ST: Floats, before: dict[str, Floats], asked: int) -> str:
    """Return which covariates determine the condition, so that its effect cannot be told from theirs."""
    start, alone = 0, []
    constant_ST = np.ones((len(x_ST), 1)) if "" in before else np.empty((len(x_ST), 0))
    for key, columns in before.items():
        own_ST = x_ST[:, start : start + columns.shape[1]]
        start += columns.shape[1]
        tried = np.hstack([constant_ST, own_ST, x_ST[:, [asked]]])
        if key and tried.shape[1] - 1 not in independent(tried):
            alone.append(key)
    others = f"obs {listed(alone)}" if alone else "the covariates, study and donors together"
    verb = "determines" if alone else "determine"
    return f"confounded: {others} {verb} the condition, so its effect cannot be told from theirs"


def depends_on_one(table: pd.DataFrame) -> pd.Series[bool]:
    """Return which effects would be less than half as large, or of the other sign, without one donor.

    ``table`` has the columns ``effect`` and ``influence``; a missing influence counts as no.
    """
    effect, rest = table["effect"].to_numpy(float), (table["effect"] + table["influence"]).to_numpy(float)
    return pd.Series(rest * np.sign(effect) < np.abs(effect) / 2, table.index)
