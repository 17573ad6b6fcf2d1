"""How much of a gene's variance each term of a design explains: label, condition, study, donor, residual.

Shapes: N cells, G genes, T terms, L columns of the design.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack
from tqdm.auto import tqdm

from scmedley import keys
from scmedley.data.arrays import Matrix, dense
from scmedley.data.design import as_categories, column
from scmedley.data.design_checks import check_design
from scmedley.data.matrix import counted, crowding, find_values, normalised
from scmedley.data.terms import Terms
from scmedley.errors import ScmedleyError, listed, warn
from scmedley.interpret.moderated import independent
from scmedley.interpret.reml import Components, CrossProducts, reml
from scmedley.keys import ValueKind

if TYPE_CHECKING:
    from anndata import AnnData

RESIDUAL = "residual"


def variance_split(
    adata: AnnData,
    formula: str,
    *,
    genes: Sequence[str] | None = None,
    by: Sequence[str] = (),
    values: ValueKind = "auto",
    progress: bool = True,
) -> pd.DataFrame:
    """Return the share of each gene's variance that each term of a design explains.

    A linear mixed model is fitted to every gene by restricted maximum likelihood, on log1p of counts per 10,000. The
    variance of a random term is its variance component; that of a slope is multiplied by the mean square of its
    covariate. The variance of a fixed term is that of its fitted values over cells; if fixed terms are correlated,
    their variances are scaled to the variance of the sum of their fitted values. Shares are of the sum of all,
    as in variancePartition (Hoffman and Schadt 2016).

    Parameters
    ----------
    adata
        Cells with counts or log-normalised values, found by :func:`scmedley.pp.prepare`'s rules.
    formula
        Design as in lme4, such as ``"~ (1 | cell_type) + (1 | condition) + (1 | study/donor)"``. Categorical columns
        are usually random here: shares of fixed terms with many levels are too large.
    genes
        Names of the genes; default: highly variable ones if ``var`` says which, otherwise all.
    by
        Columns whose combinations are averaged first, such as ``["donor", "cell_type"]``; each then counts as one
        observation, and the residual has no differences between cells.
    values
        What the matrix holds, as in :func:`scmedley.pp.prepare`.
    progress
        Whether a progress bar is shown if it takes long.

    Returns
    -------
    pandas.DataFrame
        Genes x terms, and ``residual``: shares that sum to 1; nan for genes that are constant. ``attrs`` holds
        ``formula``, ``observations`` and ``not_converged`` (genes whose estimates are not exact).

    Raises
    ------
    ScmedleyError
        The design cannot be read, or its terms cannot be separated; a gene does not exist; or a column of the design
        varies within a combination of ``by``.
    """
    terms = Terms.of(formula, adata.obs)
    for words in check_design(terms, adata.obs):
        warn(words)
    y_NG, names = log_expression(adata, genes, values)
    if words := crowding(y_NG, list(map(str, names)), terms.levels_of(adata.obs)):
        warn(words)
    obs = adata.obs
    if by:
        for name in by:
            column(adata, name, "averaged")
        y_NG, obs = _averaged(y_NG, obs, list(by), terms)
    data, owner_P = cross_products(y_NG, obs, terms)
    mean_square_T = (terms.rows(obs)[1] ** 2).mean(0)
    share_GT = np.empty((len(names), len(terms.terms) + 1))
    converged_G = np.empty(len(names), bool)
    with tqdm(total=len(names), desc="variance", unit="genes", delay=3, disable=not progress) as bar:
        for block, found in reml(data):
            share_GT[block] = _shares(found, data, terms, owner_P, mean_square_T)
            converged_G[block] = found.converged_G | np.isnan(found.residual_G)
            bar.update(block.stop - block.start)
    shares = pd.DataFrame(share_GT, index=names, columns=[*(term.name for term in terms.terms), RESIDUAL])
    shares.attrs = {
        "formula": formula,
        "observations": len(obs),
        "not_converged": [str(name) for name in names[~converged_G]],
    }
    return shares.rename_axis(index="gene")


def cross_products(y_NG: Matrix, obs: pd.DataFrame, terms: Terms) -> tuple[CrossProducts, NDArray[np.int64]]:
    """Return the cross products for REML of values centred by gene, and the term of each fixed column.

    The first column is the intercept, whose term is -1. Fixed columns that are sums of others are left out.
    """
    t_NL = hstack([np.ones((len(obs), 1)), terms.matrix(*terms.rows(obs))], format="csr")
    owner_L = np.repeat(np.arange(-1, len(terms.terms)), [1, *terms.sizes])
    fixed = 1 + sum(len(term.levels) for term in terms.terms if not term.random)
    a_LL = (t_NL.T @ t_NL).toarray()
    kept_P = np.array(independent(a_LL[:fixed, :fixed]), np.int64)  # the same as of the columns themselves
    kept = np.r_[kept_P, np.arange(fixed, len(a_LL))]
    n = len(obs)
    mean_G = np.asarray(y_NG.sum(axis=0), np.float64).ravel() / n
    b_LG = dense(t_NL.T @ y_NG).astype(np.float64) - np.outer(t_NL.sum(axis=0), mean_G)
    squared = y_NG.multiply(y_NG) if not isinstance(y_NG, np.ndarray) else y_NG**2
    yy_G = np.asarray(squared.sum(axis=0), np.float64).ravel() - n * mean_G**2
    term_Q = owner_L[fixed:] - (owner_L[fixed] if fixed < len(owner_L) else 0)
    return CrossProducts(a_LL[np.ix_(kept, kept)], b_LG[kept], yy_G, n, term_Q), owner_L[kept_P]


def log_expression(adata: AnnData, genes: Sequence[str] | None, values: ValueKind) -> tuple[Matrix, pd.Index]:
    """Return log1p of counts per 10,000 (float64) of the chosen genes, and their names."""
    if adata.isbacked:
        adata = adata.to_memory()
    found = find_values(adata, values)
    if found.values == "other":
        raise ScmedleyError(f"Shares of variance need counts or log-normalised values. {found.reason}")
    x_NG, total_N, known = counted(adata, found)
    if genes is None and keys.HVG in adata.var and adata.var[keys.HVG].any():
        genes = list(adata.var_names[adata.var[keys.HVG].to_numpy(bool)])
    if genes is None:
        return normalised(x_NG, total_N, found).astype(np.float64), known
    wanted = pd.Index(genes)
    first = np.flatnonzero(~known.duplicated())  # of genes with one name
    place = np.append(first, -1)[known[first].get_indexer(wanted)]
    if missing := [str(gene) for gene, i in zip(wanted, place, strict=True) if i < 0]:
        raise ScmedleyError(f"The cells have no gene {listed(missing)}. Choose names of var_names.")
    return normalised(x_NG[:, place], total_N, found).astype(np.float64), wanted


def _averaged(
    y_NG: Matrix, obs: pd.DataFrame, by: list[str], terms: Terms
) -> tuple[NDArray[np.float64], pd.DataFrame]:
    """Return log1p of the mean per 10,000 of each combination of columns, and the design's columns of each."""
    parts = [as_categories(obs[name]).codes.astype(np.int64) for name in by]
    code_N = np.full(len(obs), -1)
    known = np.all([part >= 0 for part in parts], axis=0)
    _, first, code_N[known] = np.unique(
        np.stack(parts)[:, known], axis=1, return_index=True, return_inverse=True
    )
    rows = np.flatnonzero(known)
    for name in terms.columns:
        varies = obs[name].iloc[rows].groupby(code_N[rows]).nunique() > 1
        if varies.any():
            raise ScmedleyError(
                f"obs[{name!r}] has several values in {int(varies.sum())} of {len(varies)} combinations of "
                f"{listed(by)}, which are averaged. Add {name!r} to by, or leave it out of the design."
            )
    n_U = np.bincount(code_N[rows])
    member_UN = csr_matrix((1 / n_U[code_N[rows]], (code_N[rows], rows)), (len(n_U), len(obs)))
    undone = np.expm1(y_NG) if isinstance(y_NG, np.ndarray) else y_NG.expm1()
    return np.log1p(dense(member_UN @ undone)), obs.iloc[rows[first]]


def _shares(
    found: Components,
    data: CrossProducts,
    terms: Terms,
    owner_P: NDArray[np.int64],
    mean_square_T: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the share of each term and of the residual, G x (T + 1)."""
    p = data.n_fixed
    mean_P = data.a_LL[0, :p] / data.n
    covariance_PP = data.a_LL[:p, :p] / data.n - np.outer(mean_P, mean_P)
    random_T = np.array([term.random for term in terms.terms])
    variance_GT = np.zeros((len(found.residual_G), len(terms.terms) + 1))
    variance_GT[:, :-1][:, random_T] = found.random_GT * mean_square_T[random_T]
    variance_GT[:, -1] = found.residual_G
    fixed = np.flatnonzero(~random_T)
    for t in fixed:
        effect_GP = found.fixed_GP * (owner_P == t)
        variance_GT[:, t] = ((effect_GP @ covariance_PP) * effect_GP).sum(1)
    effect_GP = found.fixed_GP * (owner_P >= 0)
    together_G = ((effect_GP @ covariance_PP) * effect_GP).sum(1)
    apart_G = variance_GT[:, fixed].sum(1)
    scale_G = np.divide(together_G, apart_G, out=np.ones_like(apart_G), where=apart_G > 0)
    variance_GT[:, fixed] *= scale_G[:, None]
    return np.asarray(variance_GT / variance_GT.sum(1, keepdims=True))
