"""LinearMixed on held-out combinations, and the choice of its settings inside the training cells.

Shapes: N cells, S source cells, G genes, P coordinates, F inner folds, K settings.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.sparse.linalg import eigsh

import scmedley as sm
from held_out_data import CONDITION, GROUP, SOURCE, TARGET, groups, mean, parts
from scmedley.data.arrays import dense
from scmedley.evaluate import counterfactual as held_out

if TYPE_CHECKING:
    from anndata import AnnData

LINEAR = "LinearMixed"


@dataclass(frozen=True, order=True)
class Setting:
    """A setting of LinearMixed; the smaller, the simpler.

    Attributes
    ----------
    n_slopes
        Number of coordinates on which the effect of the condition has slopes: principal components of expression
        minus the mean of the condition.
    of
        ``"cell"``: a cell's own coordinates. ``"group"``: the mean of its group's source cells.
    wide
        Whether the prior of the condition's effect is wide; otherwise its variance is learnt.
    equal
        Whether all genes have the same variance ratios; otherwise effects of some genes may vary more.
    """

    n_slopes: int = 0
    of: str = ""
    wide: bool = False
    equal: bool = False

    def __str__(self) -> str:
        """Return it in words."""
        slopes = f"{self.n_slopes} slopes, {self.of}" if self.n_slopes else "no slopes"
        return slopes + (", wide prior" if self.wide else "") + (", equal variances" if self.equal else "")

    @property
    def formula(self) -> str:
        """The design: effects of condition and group, their interaction, and slopes of the condition."""
        names = [f"{self.of}{p}" for p in range(self.n_slopes)]
        terms = [CONDITION, *(names if self.of == "cell" else [])]
        terms += [f"({CONDITION} | {GROUP})", *(f"({name} | {CONDITION})" for name in names)]
        return "~ " + " + ".join(terms)


SETTINGS = tuple(
    Setting(n, of, wide, equal)
    for equal in (False, True)
    for wide in (False, True)
    for n, of in ((0, ""), (2, "cell"), (2, "group"))
)


def coordinates(train: AnnData, cells: AnnData, n: int, of: str) -> np.ndarray:
    """Return the coordinates (N x P) of cells on which slopes are learnt.

    The principal components are those of the training cells minus the mean of their condition. A group's
    coordinates are the mean of its source cells, so that they do not depend on which of its cells are held out; of its
    treated cells where it has no others.
    """

    def deviations(adata: AnnData) -> np.ndarray:
        target_N = (adata.obs[CONDITION] == TARGET).to_numpy().astype(int)
        return np.asarray(dense(adata.X).astype(np.float64) - mean_CG[target_N])

    means = [train.X[(train.obs[CONDITION] == c).to_numpy()].mean(axis=0) for c in (SOURCE, TARGET)]
    mean_CG = np.stack([np.asarray(mean).ravel() for mean in means])
    y_NG = deviations(train)
    axes_GP = eigsh(y_NG.T @ y_NG, k=n, v0=np.ones(y_NG.shape[1]))[1]  # v0: the same bits each time
    z_NP = deviations(cells) @ axes_GP
    if of == "cell":
        return np.asarray(z_NP)
    z, group_N = pd.DataFrame(y_NG @ axes_GP), train.obs[GROUP].astype(str).to_numpy()
    source, target = (
        z[rows].groupby(group_N[rows]).mean()
        for rows in ((train.obs[CONDITION] == c).to_numpy() for c in (SOURCE, TARGET))
    )
    return np.asarray(source.combine_first(target).loc[cells.obs[GROUP].astype(str)])


def linear_mixed(train: AnnData, source: AnnData, setting: Setting) -> np.ndarray:
    """Return the change of each source cell (S x G) that a LinearMixed of the training cells predicts."""
    from anndata import AnnData

    found = []
    for cells in (train, source):
        obs = cells.obs.copy()
        if setting.n_slopes:
            z_NP = coordinates(train, cells, setting.n_slopes, setting.of)
            obs[[f"{setting.of}{p}" for p in range(setting.n_slopes)]] = z_NP
        found.append(AnnData(cells.X, obs=obs, var=cells.var))
    settings = sm.LinearMixedSettings(learn_fixed=not setting.wide, heterogeneous=not setting.equal)
    model = sm.LinearMixed(setting.formula, settings=settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no training cell has this combination is the point
        shown = model.fit(found[0]).counterfactual(found[1], to={CONDITION: TARGET})
    return np.asarray(shown.layers["difference"], np.float64)


def inner_scores(train: AnnData, settings: tuple[Setting, ...]) -> np.ndarray:
    """Return R2 of the change (F x K) of each setting for each group of the training cells, held out in turn."""
    rows = []
    for group in groups(train.obs):
        learnt, source, target = parts(train, group)
        observed_G = mean(target) - mean(source)
        rows.append(
            [held_out.r2_change(observed_G, linear_mixed(learnt, source, s).mean(axis=0)) for s in settings]
        )
    return np.array(rows)


def best(r2_FK: np.ndarray, settings: tuple[Setting, ...]) -> Setting:
    """Return the setting with the highest mean over folds."""
    return settings[int(r2_FK.mean(axis=0).argmax())]


def simplest(r2_FK: np.ndarray, settings: tuple[Setting, ...]) -> Setting:
    """Return the simplest setting whose mean over folds is within one standard error of the best.

    The standard error is that of the difference from the best over the folds (Breiman's rule, paired).
    """
    behind_FK = r2_FK[:, [r2_FK.mean(axis=0).argmax()]] - r2_FK
    error_K = behind_FK.std(axis=0, ddof=1) / np.sqrt(len(r2_FK))
    return min(s for s, d, e in zip(settings, behind_FK.mean(axis=0), error_K, strict=True) if d <= e)


def first(r2_FK: np.ndarray, settings: tuple[Setting, ...]) -> Setting:
    """Return the first setting: no choice."""
    return settings[0]


RULES = {LINEAR: best, f"{LINEAR}, one-SE rule": simplest, f"{LINEAR}, no choice": first}
