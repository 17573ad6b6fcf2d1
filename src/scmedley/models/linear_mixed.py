"""A linear mixed model of every gene, without a network: closed form, in seconds.

    y_ig = base_ig + sum over terms of value_it * (effect_t,level(i),g + slope_t,level(i),g' z_i) + e_ig

y is log1p CP10k. The base is the mean of the gene, or linear in an embedding z. Variance ratios are learnt from all
genes together (:mod:`scmedley.nn.mixed`). A counterfactual is y + Delta(new levels) - Delta(own levels).

Shapes: N cells, G genes, T terms, L columns of the design, P dimensions of the embedding, D contrasts.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

import numpy as np
import pandas as pd
from anndata import AnnData

from scmedley import keys
from scmedley.data.arrays import dense
from scmedley.data.differences import trained_on
from scmedley.data.gene_names import GeneNames
from scmedley.data.matrix import crowding
from scmedley.data.reader import Cells, Reader, Reading
from scmedley.data.terms import Terms, formula_of, is_formula
from scmedley.errors import ScmedleyError, warn
from scmedley.models.linear_counterfactual import check_own, extended, joined, predicted, with_interval
from scmedley.models.linear_design import LinearDesign, checked, checked_embedding, sample_term
from scmedley.models.linear_store import save
from scmedley.nn.mixed import Posterior, Statistics, learn


@dataclass(frozen=True)
class LinearMixedSettings:
    """Settings of :class:`LinearMixed`.

    Attributes
    ----------
    learn_fixed
        Learn a variance ratio of each fixed term too, so that its effects are shrunk; otherwise their prior is wide.
    heterogeneous
        Let the effects of some genes vary more than those of others. Otherwise all have the same variance
        ratios, and intervals are too narrow for the genes with the largest effects.
    samples
        Add a random term with a level for each combination of all categorical columns, if the design lacks one.
        Cells of one sample are not independent; without this term, intervals would be too narrow.
    n_slopes
        Number of dimensions of the embedding, the first ones, on which effects have slopes.
    """

    learn_fixed: bool = False
    heterogeneous: bool = True
    samples: bool = True
    n_slopes: int = 5


class LinearMixed:
    """The mixed model without a network.

    Parameters
    ----------
    design
        A formula as in lme4, such as ``"~ condition + (condition | donor)"``; or the ``obs`` column of the
        batches or donors, which have random effects.
    nested_in, covariates, slopes
        With a column as design: as in :func:`scmedley.data.terms.formula_of`.
    use
        An ``obsm`` key, such as ``"X_pca_harmony"``: expression is then linear in this embedding, and the effects of
        levels have slopes on its first dimensions. ``None``: each gene has a mean.
    settings
        :class:`LinearMixedSettings`.

    Attributes
    ----------
    design
        The columns of the model: terms with their levels, and the embedding.
    reader
        The genes: the highly variable ones if ``prepare`` has flagged them, otherwise all.
    posterior
        The joint posterior of all effects.
    """

    settings_type: ClassVar[type[LinearMixedSettings]] = LinearMixedSettings

    reader: Reader
    design: LinearDesign
    statistics: Statistics
    seen_CT: np.ndarray  # codes of the observed combinations of levels
    posterior: Posterior | None

    def __init__(
        self,
        design: str,
        *,
        nested_in: str | None = None,
        covariates: Sequence[str] = (),
        slopes: Sequence[str] = (),
        use: str | None = None,
        settings: LinearMixedSettings | None = None,
    ):
        if is_formula(design):
            if nested_in or covariates or slopes:
                raise ScmedleyError(
                    f"The design {design!r} is a formula, so nested_in, covariates and slopes belong into it. Write "
                    "for example '~ condition + (condition | study/donor)'."
                )
            self.formula = design
        else:
            self.formula = formula_of(design, nested_in, covariates, slopes)
        self.use, self.settings, self.posterior = use, settings or LinearMixedSettings(), None

    def __repr__(self) -> str:
        """Return one line: formula, and the data of the fit."""
        to = "not fitted"
        if self.posterior is not None:
            to = f"fitted to {self.statistics.n_cells:,.0f} cells, {len(self.genes)} genes"
        return f"LinearMixed({self.formula!r}): {to}"

    def fit(self, adata: Cells) -> Self:
        """Fit the model; cells may be sparse or backed, and are read once.

        Parameters
        ----------
        adata
            Cells with counts or log-normalised values; prepared ones lend their highly variable genes.

        Raises
        ------
        ScmedleyError
            The formula or its columns cannot be used, its terms cannot be separated
            (:func:`scmedley.data.design_checks.check_design`, whose warnings are given too), the embedding is missing,
            or there are too few cells.
        """
        self.posterior = None
        terms = checked(Terms.of(self.formula, adata.obs), adata.obs)
        if self.settings.samples and (sample := sample_term(terms, adata.obs)):
            terms = replace(terms, terms=(*terms.terms, sample))
        z_NP = self._embedding(adata)
        centre_P = np.zeros(0) if z_NP is None else z_NP.mean(0)
        spread_P = np.zeros(0) if z_NP is None else np.maximum(z_NP.std(0), 1e-12)
        n_slopes = min(self.settings.n_slopes, len(centre_P))
        self.design = LinearDesign(terms, centre_P, spread_P, n_slopes, self.settings.learn_fixed)
        self.reader = _reader(adata)
        self.statistics = self._sums(adata, z_NP)
        self.seen_CT = np.unique(terms.rows(adata.obs)[0], axis=0)
        try:
            variances = learn(self.statistics, self.design.columns, heterogeneous=self.settings.heterogeneous)
        except ValueError as error:
            raise ScmedleyError(
                f"The design {self.formula!r} cannot be fitted: {error}. Remove terms, or add cells."
            ) from error
        self.posterior = Posterior(self.statistics, self.design.columns, variances)
        return self

    @property
    def fitted(self) -> Posterior:
        """The posterior; raises if the model is not fitted."""
        if self.posterior is None:
            raise ScmedleyError("This LinearMixed is not fitted. Call fit(adata), or load a fitted model.")
        return self.posterior

    @property
    def genes(self) -> list[str]:
        """Names of the genes of the model."""
        return list(self.reader.genes.names)

    def effects(self) -> pd.DataFrame:
        """Return the effect of every level of every term on every gene, at the mean of the embedding.

        Returns
        -------
        DataFrame
            term, level, gene, effect (log1p CP10k, posterior mean), sd, q05 and q95 (90 % interval), cells. Effects of
            a fixed categorical term are differences from the mean of its levels, those of a random term
            from the mean of the population of levels; those of a continuous term are per standard deviation of its
            column.
        """
        effect_LG, sd_LG = self.fitted.effects
        terms, starts, parts = self.design.terms.terms, self.design.starts, []
        for term, first in zip(terms, starts, strict=False):
            rows = slice(first, first + len(term.levels))
            table = pd.DataFrame(
                {
                    "term": term.name,
                    "level": np.repeat(np.array(term.levels, dtype=object), len(self.genes)),
                    "gene": np.tile(np.array(self.genes, dtype=object), len(term.levels)),
                    **with_interval(effect_LG[rows].ravel(), sd_LG[rows].ravel()),
                    "cells": np.repeat(self.statistics.cells_L[rows].astype(int), len(self.genes)),
                }
            )
            parts.append(table)
        return pd.concat(parts, ignore_index=True)

    def variances(self) -> pd.DataFrame:
        """Return how much the levels of every term with a learnt variance differ.

        Returns
        -------
        DataFrame
            term, kind ("level", or "slope" on a standardised dimension of the embedding), levels (of the residual:
            cells), ratio (variance of the effects divided by the residual variance of the gene, one for all genes),
            variance (ratio times the mean of the genes' residual variances; log1p CP10k squared). The residual has its
            own row.
        """
        variances = self.fitted.variances
        levels = {term.name: len(term.levels) for term in self.design.terms.terms}
        found = [
            (name, kind, levels[name], ratio)
            for (name, kind), ratio in zip(self.design.groups, variances.pooled_T, strict=True)
        ]
        found.append(("residual", "cell", round(self.statistics.n_cells), 1.0))
        table = pd.DataFrame(found, columns=["term", "kind", "levels", "ratio"])
        return table.assign(variance=table["ratio"] * variances.noise_G.mean())

    def contrast(
        self, to: Mapping[str, Any], of: Mapping[str, Any], *, unknown: str = "error"
    ) -> pd.DataFrame:
        """Return the difference between two sets of levels, gene by gene, for instance of stimulation.

        Parameters
        ----------
        to, of
            Levels to compare, such as ``{"condition": "stim"}`` with ``{"condition": "ctrl"}``: the effect in the
            population. With ``"donor": "d7"`` in both, the effect in this donor.
        unknown
            As in :meth:`counterfactual`.

        Returns
        -------
        DataFrame
            gene, effect, sd, q05, q95: ``to`` minus ``of``, at the mean of the embedding.

        Raises
        ------
        ScmedleyError
            A level is unknown, or nothing differs between ``to`` and ``of``.
        """
        one = pd.DataFrame(index=["one"])
        new = unknown == "prior"
        there, here = (self.design.terms.targeted(one, levels, new=new) for levels in (to, of))
        design, posterior = extended(self, [there, here], unknown)
        z_1P = self.design.centre_P[None] if self.use else None
        c_1L = (design.matrix(there, z_1P) - design.matrix(here, z_1P)).toarray()
        if not c_1L.any():
            raise ScmedleyError(
                f"No effect of the design {self.formula!r} differs between {dict(to)} and {dict(of)}. If an effect is "
                "of a combination of columns, such as condition and cell type, name all of them in both."
            )
        effect_1G, sd_1G = posterior.contrasts(c_1L)
        return pd.DataFrame({"gene": self.genes, **with_interval(effect_1G[0], sd_1G[0])})

    def counterfactual(
        self,
        adata: Cells,
        to: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        interval: bool = False,
        unknown: str = "error",
    ) -> AnnData:
        """Predict the expression of cells as if they had other levels: y + Delta(new) - Delta(own).

        Parameters
        ----------
        adata
            N cells with the columns of the design.
        to
            Column to level, such as ``{"condition": "stim"}``, or several of these. ``"mean"``: no effect.
            Columns that are not named keep their own level.
        interval
            Whether to add 90 % intervals of the effects.
        unknown
            How to treat levels that the model does not know: ``"error"``; ``"mean"``, no effect; or ``"prior"``, no
            effect, and an interval as wide as the levels of the term differ.

        Returns
        -------
        AnnData
            All N cells for the first target, then for the next, by G genes. ``X``: log1p CP10k, the cell itself
            for its own levels. ``layers["difference"]``: the effect; with ``interval`` also ``X_q05``, ``X_q95``,
            ``difference_q05`` and ``difference_q95``. ``obs`` gains ``counterfactual_batch`` and
            ``counterfactual_seen``: whether cells with this combination of levels were in the fit. Effects of other
            combinations are sums of effects that were learnt, which a warning says.
        """
        _ = self.fitted
        targets = [to] if isinstance(to, Mapping) else list(to)
        if not all(isinstance(target, Mapping) for target in targets):
            raise ScmedleyError(
                f'A target is a dict of column and level, such as {{"condition": "stim"}}, not {to!r}.'
            )
        if not targets:
            raise ScmedleyError('No target is given. Give at least one, such as {"condition": "stim"}.')
        check_own(self, adata.obs, unknown)
        y_NG = dense(self.reader.read(adata).in_memory("counterfactual").log1p_NG)
        z_NP = self._embedding(adata)
        parts = [predicted(self, adata.obs, y_NG, z_NP, target, interval, unknown) for target in targets]
        unseen = sum(int((~part.obs[keys.SEEN]).sum()) for part in parts)
        if unseen:
            warn(
                f"{unseen:,} of {len(parts) * len(y_NG):,} predictions are for combinations of levels that no cell of "
                f"the fit has (obs[{keys.SEEN!r}]). Their effects are sums of those of their levels."
            )
        return joined(parts)

    def reconstruct(self, adata: Cells, *, unknown: str = "error") -> AnnData:
        """Return the base and the effects of its own levels of every cell (log1p CP10k), as a new AnnData."""
        posterior = self.fitted
        check_own(self, adata.obs, unknown)
        x_NL = self.design.matrix(adata.obs, self._embedding(adata))
        fitted_NG = x_NL @ posterior.effects[0] + posterior.variances.mean_G
        return AnnData(fitted_NG.astype(np.float32), obs=adata.obs.copy(), var=self.var())

    def adapt(self, adata: Cells) -> Self:
        """Learn the effects of new levels, such as a new donor, with the variances of the fit.

        The posterior is updated in closed form, as if the cells had been in the fit, so effects of known levels
        change a little too. Cells whose levels are all known are ignored.

        Returns
        -------
        LinearMixed
            A new model that knows the old and the new levels. This one is not changed.

        Raises
        ------
        ScmedleyError
            No cell has a new level, or a column has missing values.
        """
        variances = self.fitted.variances
        self.design.terms.check_complete(adata.obs)
        known_NT = self.design.terms.rows(adata.obs)[0]
        new_N = (known_NT < 0).any(axis=1)
        if not new_N.any():
            raise ScmedleyError(
                f"All levels of these cells are known, so there is nothing to learn. The design is {self.formula!r}."
            )
        cells = adata[new_N] if isinstance(adata, AnnData) else adata.take(np.flatnonzero(new_N))
        adapted = copy.copy(self)
        adapted.design, place_L = self.design.extended([cells.obs], self.design.terms.terms)
        grown = self.statistics.placed(place_L, adapted.design.starts[-1])
        adapted.statistics = grown + adapted._sums(cells, self._embedding(cells))
        seen = adapted.design.terms.rows(cells.obs)[0]
        adapted.seen_CT = np.unique(np.concatenate([self.seen_CT, seen]), axis=0)
        adapted.posterior = Posterior(adapted.statistics, adapted.design.columns, variances)
        return adapted

    def save(self, folder: str | Path) -> None:
        """Write ``model.json`` and ``weights.safetensors`` to ``folder``; on an error nothing is written."""
        save(self, folder)

    def embed(self, *args: Any, **options: Any) -> NoReturn:
        """Raise: this model has no latent."""
        raise ScmedleyError(
            "LinearMixed has no latent, so it cannot embed cells. Fit MixedEffects, FixedEffects or VAE, or use PCA."
        )

    get_latent_representation = embed

    def _sums(self, adata: Cells, z_NP: np.ndarray | None) -> Statistics:
        start, total = 0, None
        for reading in self.reader.blocks(adata):
            rows = slice(start, start + reading.n_cells)
            x_NL = self.design.matrix(reading.obs, None if z_NP is None else z_NP[rows])
            sums = Statistics.of(x_NL, reading.log1p_NG)
            if not start and self.posterior is None:
                levels = self.design.terms.levels_of(reading.obs)
                if words := crowding(reading.log1p_NG, self.genes, levels):
                    warn(words)
            if self.reader.trained_on is None and isinstance(adata, AnnData):
                self.reader = replace(self.reader, trained_on=trained_on(adata, reading.log1p_NG))
            start, total = rows.stop, sums if total is None else total + sums
        assert total is not None  # the reader raises without cells
        return total

    def _embedding(self, adata: Cells) -> np.ndarray | None:
        if self.use is None:
            return None
        if isinstance(adata, Reading) or self.use not in adata.obsm:
            has = [] if isinstance(adata, Reading) else list(adata.obsm)
            raise ScmedleyError(
                f"The embedding obsm[{self.use!r}] is missing. obsm has {has}. Store it there, or fit with another use."
            )
        return checked_embedding(
            adata.obsm[self.use], self.use, len(self.design.centre_P) if self.posterior is not None else None
        )

    def var(self) -> pd.DataFrame:
        """Return the ``var`` of a new AnnData: the genes, with symbols where the names are identifiers."""
        return self.reader.genes.var()


def _reader(adata: Cells) -> Reader:
    """Return the reader of the highly variable genes, or of all genes of cells that are not prepared."""
    if isinstance(adata, Reading):
        return adata.reader
    genes = GeneNames.of(adata.var)
    if keys.HVG in adata.var:
        genes = genes.take(np.flatnonzero(adata.var[keys.HVG].to_numpy(dtype=bool)))
    return Reader(genes)
