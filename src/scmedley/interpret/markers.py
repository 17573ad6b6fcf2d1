"""Marker genes of clusters, from log-normalised counts: by cell, and by donor where donors are known.

Shapes: N cells, G genes, K clusters, D donors.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from scipy.sparse import csc_matrix, csr_matrix

from scmedley import keys
from scmedley.data.arrays import Matrix, dense
from scmedley.data.design import as_categories, column
from scmedley.data.evidence import TARGET_SUM
from scmedley.data.matrix import counted, find_values, normalised
from scmedley.device import threads_kept
from scmedley.errors import ScmedleyError, listed, warn
from scmedley.evaluate.statistics import adjusted
from scmedley.keys import ValueKind

if TYPE_CHECKING:
    from anndata import AnnData

COLUMNS = (
    *("cluster", "cells", "gene", "score", "log2_fold_change", "share_in", "share_out"),
    *("p", "q", "significant"),
    *("donors", "donors_same", "donor_difference", "donor_p", "donor_q", "donor_significant", "donor_note"),
)
LEAST_CELLS = 3  # of a cluster and of the rest
LEAST_DONORS = 3
CELLS_OF_DONOR = 10  # in the cluster and outside: a sum over fewer cells is mostly noise
# Counts per 10,000, added before every logarithm, so that genes that hardly any cell expresses do not change.
PSEUDOCOUNT = 0.1
CLEAR_FOLD = 1.0  # log2: genes of at least twice the expression of the other cells come first


def markers(
    adata: AnnData,
    cluster_key: str = keys.CLUSTER,
    *,
    donor_key: str | None = None,
    n_genes: int | None = 100,
    fdr: float = 0.05,
    values: ValueKind = "auto",
) -> pd.DataFrame:
    """Return the genes that each cluster expresses more than the other cells, the clearest first.

    Genes with at least twice the mean expression of the other cells come first, then all others; both by their score.
    Ribosomal genes of T cells, for example, have high scores because all cells express them, and little difference.

    Cells: Wilcoxon's rank-sum test of the cluster against all other cells (:func:`scanpy.tl.rank_genes_groups`),
    corrected for ties, of which counts have many, on log1p of counts per 10,000. The matrix is that of
    :func:`scmedley.pp.prepare`, found by its values: counts where there are any, never a denoised layer.

    Donors: for each donor with 10 or more cells in and outside the cluster, the counts of these cells are summed,
    and log2 of the sums per 10,000 are compared. The test is a paired t-test over donors: with few
    donors, Wilcoxon's signed-rank test cannot give a small p-value at all (two-sided, 5 donors: .06 or more). It
    needs 3 donors; clusters with fewer have no p-value, and ``donor_note`` says so.

    Parameters
    ----------
    adata
        Cells with counts; log-normalised values work too, with a warning that says what is lost. A backed AnnData is
        read into memory.
    cluster_key
        ``obs`` column of the clusters, or any other groups, such as labels. Cells without a value are left out.
    donor_key
        ``obs`` column of the donors.
    n_genes
        Genes of each cluster; ``None``: all of them, those that the cluster expresses less at the end.
    fdr
        False discovery rate (Benjamini-Hochberg, over all genes of a cluster) up to which a gene is significant.
    values
        What the matrix holds, as in :func:`scmedley.pp.prepare`.

    Returns
    -------
    pandas.DataFrame
        One row per cluster and gene: ``score`` (z of the rank-sum test), ``log2_fold_change`` (of mean counts per
        10,000, each plus 0.1), ``share_in`` and ``share_out`` (of cells that express the gene), ``p``, ``q``
        (adjusted), ``significant``; ``donors`` (compared), ``donors_same`` (of these, in how many the difference
        has the sign of the fold change), ``donor_difference`` (mean over donors, log2), ``donor_p``, ``donor_q``,
        ``donor_significant``, ``donor_note``. Clusters of 1 or 2 cells have no rows, with a warning; with one
        cluster only there is nothing to compare and the table is empty. ``attrs`` holds what was read.

    Raises
    ------
    ScmedleyError
        A missing column, or values that cannot be used.

    Notes
    -----
    The clusters were found in the same expression that is tested here ("double dipping"). Even if one cloud of
    equal cells is cut at random places of its latent, genes differ between the halves. So these p-values are too
    small: they rank genes, and they do not show that clusters differ. That clusters are apart is judged by the
    evidence of the clustering. The test by donor does not repair this, but it does show whether
    a gene marks a cluster in each donor or in one.
    """
    if (n_genes is not None and n_genes < 1) or not 0 < fdr < 1:
        raise ScmedleyError(f"n_genes={n_genes}, fdr={fdr}: need 1 or more (or None), and between 0 and 1.")
    if adata.isbacked:
        adata = adata.to_memory()
    cluster = as_categories(column(adata, cluster_key, "cluster"))
    donor = None if donor_key is None else as_categories(column(adata, donor_key, "donor"))
    found = find_values(adata, values)
    if found.values == "other":
        raise ScmedleyError(f"Markers need counts or log-normalised values. {found.reason}")
    x_NG, total_N, genes = counted(adata, found)
    log_NG = normalised(x_NG, total_N, found)
    code_N = np.asarray(cluster.codes, dtype=np.int64)
    kept = code_N >= 0
    if not kept.all():
        x_NG, log_NG, total_N, code_N = x_NG[kept], log_NG[kept], total_N[kept], code_N[kept]
    names = [str(name) for name in cluster.categories]
    tested = _large_enough(code_N, names)
    by_donor = None
    if donor is not None:
        has_counts = found.values == "counts"
        if not has_counts:
            warn(
                "There are no counts: donors are compared by the mean of their cells' values per 10,000, in which "
                "cells with few counts weigh as much as others. Give the counts in layers['counts']."
            )
        # Of log-normalised values, each cell's total is 10,000, and sums of values per 10,000 are their means.
        sums_of = x_NG if has_counts else _undone(log_NG)
        by_donor = _Donors(sums_of, total_N if has_counts else np.full(len(code_N), TARGET_SUM), donor, kept)
    ranked = _rank_sums(log_NG, code_N, tested)
    means = _Means(log_NG, code_N)
    tables = []
    for k in tested:
        table = pd.DataFrame({"cluster": names[k], "cells": int((code_N == k).sum()), "gene": list(genes)})
        table = table.assign(score=ranked[k]["score"], **means.compared(k), p=ranked[k]["p"])
        table["q"] = adjusted(table["p"].to_numpy())
        table["significant"] = table["q"] <= fdr
        table = table.assign(**_of_donors(by_donor, code_N == k, table["log2_fold_change"].to_numpy(), fdr))
        is_clear = table["log2_fold_change"] >= CLEAR_FOLD
        order = np.lexsort((-table["score"], ~is_clear))
        tables.append(table.iloc[order].head(n_genes or len(table)))
    result = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(COLUMNS))
    result = result[list(COLUMNS)]
    result.attrs.update({"values": found.reason, "fdr": fdr, "cluster_key": cluster_key})
    return result


def expression(
    adata: AnnData, genes: Sequence[str], cluster_key: str = keys.CLUSTER, values: ValueKind = "auto"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the mean per 10,000 of these genes, and the share of cells that express them, clusters x genes."""
    if adata.isbacked:
        adata = adata.to_memory()
    cluster = as_categories(column(adata, cluster_key, "cluster"))
    found = find_values(adata, values)
    x_NG, total_N, known = counted(adata, found)
    place = known.get_indexer(pd.Index(genes))
    if missing := [gene for gene, i in zip(genes, place, strict=True) if i < 0]:
        raise ScmedleyError(
            f"The cells have no gene {listed(missing)}. Pass the cells from which the table is."
        )
    log_NG = normalised(x_NG[:, place], total_N, found)
    kept = np.asarray(cluster.codes) >= 0
    means = _Means(log_NG[kept], np.asarray(cluster.codes, dtype=np.int64)[kept])
    names = list(cluster.categories)
    tables = (
        pd.DataFrame(sum_KG / means.n_K, names, list(genes)) for sum_KG in (means.sum_KG, means.expressing_KG)
    )
    mean_KG, share_KG = tables
    return mean_KG, share_KG


def _large_enough(code_N: NDArray[np.int64], names: list[str]) -> list[int]:
    """Return the clusters that can be compared with the rest; warn about the others."""
    size_K = np.bincount(code_N, minlength=len(names))
    if len(names) < 2:
        warn("There is one cluster only, so there are no other cells to compare it with: no markers.")
        return []
    tested = [k for k, n in enumerate(size_K) if min(n, len(code_N) - n) >= LEAST_CELLS]
    if left_out := [name for k, name in enumerate(names) if k not in tested]:
        warn(
            f"No markers for {listed(left_out)}: the cluster, or the rest, has fewer than {LEAST_CELLS} cells."
        )
    return tested


def _rank_sums(log_NG: Matrix, code_N: NDArray[np.int64], tested: list[int]) -> dict[int, pd.DataFrame]:
    """Return score and p of every gene, in the order of the genes, by cluster."""
    if not tested:
        return {}
    import scanpy as sc
    from anndata import AnnData

    groups = [str(k) for k in tested]
    genes = [str(g) for g in range(log_NG.shape[1])]  # names may be repeated, numbers are not
    cells = AnnData(
        log_NG,
        obs=pd.DataFrame(
            {"cluster": pd.Categorical(code_N.astype(str))}, index=np.arange(len(code_N)).astype(str)
        ),
        var=pd.DataFrame(index=genes),
    )
    with warnings.catch_warnings(), threads_kept():
        warnings.simplefilter("ignore")  # of fragmented tables, and of genes that are constant
        sc.tl.rank_genes_groups(
            *(cells, "cluster"), groups=groups, method="wilcoxon", tie_correct=False, use_raw=False
        )
    found = cells.uns["rank_genes_groups"]
    # scanpy's own correction for ties repeats the same sums for each cluster, which takes most of its time.
    kept_G = np.sqrt(_variance_kept(log_NG))
    out = {}
    for k, group in zip(tested, groups, strict=True):
        score_G = np.empty(len(genes))
        score_G[found["names"][group].astype(int)] = found["scores"][group]
        # A gene that is equal in all cells has no ranks: no evidence.
        score_G = np.divide(score_G, kept_G, out=np.zeros(len(genes)), where=kept_G > 0)
        out[k] = pd.DataFrame({"score": score_G, "p": 2 * stats.norm.sf(np.abs(score_G))})
    return out


def _variance_kept(x_NG: Matrix) -> NDArray[np.float64]:
    """Return the share of the variance of a gene's ranks that ties leave: 1 - sum(t^3 - t) / (N^3 - N)."""
    columns = csc_matrix(x_NG, dtype=np.float64)
    columns.eliminate_zeros()
    n_cells, n_genes = columns.shape
    n_G = np.diff(columns.indptr)
    gene = np.repeat(np.arange(n_genes), n_G)
    value = columns.data[np.lexsort((columns.data, gene))]
    changes = (value[1:] != value[:-1]) | (gene[1:] != gene[:-1])
    starts = np.flatnonzero(np.r_[True, changes][: len(value)])
    equal = np.diff(np.r_[starts, len(value)]).astype(np.float64)
    zeros_G = (n_cells - n_G).astype(np.float64)
    tied_G = np.bincount(gene[starts], equal**3 - equal, minlength=n_genes) + zeros_G**3 - zeros_G
    return np.asarray(1 - tied_G / (float(n_cells) ** 3 - n_cells))


class _Means:
    """Means per 10,000 and shares of expressing cells, in every cluster and over all cells."""

    def __init__(self, log_NG: Matrix, code_N: NDArray[np.int64]):
        n_K = np.bincount(code_N)
        member_KN = csr_matrix((np.ones(len(code_N)), (code_N, np.arange(len(code_N)))))
        self.n_K = n_K[:, None].astype(np.float64)
        self.sum_KG = dense(member_KN @ _undone(log_NG))
        self.expressing_KG = dense(member_KN @ (log_NG > 0).astype(np.float64))

    def compared(self, k: int) -> dict[str, NDArray[np.float64]]:
        """Return the fold change of a cluster and the shares of cells that express each gene."""
        n, rest = self.n_K[k], self.n_K.sum() - self.n_K[k]
        mean_G, share_G = self.sum_KG[k] / n, self.expressing_KG[k] / n
        other_G = (self.sum_KG.sum(0) - self.sum_KG[k]) / rest
        other_share_G = (self.expressing_KG.sum(0) - self.expressing_KG[k]) / rest
        # Differences of sums: rounding may leave a little less than zero.
        change_G = np.log2(mean_G + PSEUDOCOUNT) - np.log2(np.maximum(other_G, 0) + PSEUDOCOUNT)
        return {"log2_fold_change": change_G, "share_in": share_G, "share_out": other_share_G}


class _Donors:
    """Sums of counts by donor, in a cluster and in the donor's other cells."""

    def __init__(
        self, x_NG: Matrix, total_N: NDArray[np.float64], donor: pd.Categorical, kept: NDArray[np.bool_]
    ):
        code_N = np.asarray(donor.codes)[kept]
        self.x_NG, self.total_N = x_NG, total_N
        rows = np.flatnonzero(code_N >= 0)
        shape = (len(donor.categories), len(code_N))
        self.member_DN = csr_matrix((np.ones(len(rows)), (code_N[rows], rows)), shape)
        self.sum_DG, self.total_D, self.n_D = self._sums(np.arange(len(code_N)))

    def _sums(
        self, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        member_DN = self.member_DN[:, rows]
        n_D = np.asarray(member_DN.sum(axis=1)).ravel()
        return dense(member_DN @ self.x_NG[rows]), member_DN @ self.total_N[rows], n_D

    def differences(self, inside_N: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return log2 of sums per 10,000, inside minus outside, of the donors with enough cells, D x G."""
        in_DG, total_D, n_D = self._sums(np.flatnonzero(inside_N))
        out_DG, out_total_D = self.sum_DG - in_DG, self.total_D - total_D
        enough = (np.minimum(n_D, self.n_D - n_D) >= CELLS_OF_DONOR) & (total_D > 0) & (out_total_D > 0)
        one, other = (
            np.log2(TARGET_SUM * np.maximum(x_DG[enough], 0) / t_D[enough, None] + PSEUDOCOUNT)
            for x_DG, t_D in ((in_DG, total_D), (out_DG, out_total_D))
        )
        return np.asarray(one - other)


def _of_donors(
    donors: _Donors | None, inside_N: NDArray[np.bool_], change_G: NDArray[np.float64], fdr: float
) -> dict[str, Any]:
    """Return the columns about donors."""
    none = np.full(len(change_G), np.nan)
    if donors is None:
        empty = dict.fromkeys(("donors", "donors_same", "donor_difference", "donor_p", "donor_q"), none)
        return {**empty, "donor_significant": False, "donor_note": "donors not known"}
    difference_DG = donors.differences(inside_N)
    n = len(difference_DG)
    same_G = (np.sign(difference_DG) == np.sign(change_G)).sum(0)
    p_G, note = none, ""
    if n < LEAST_DONORS:
        note = (
            f"{n} {'donor has' if n == 1 else 'donors have'} {CELLS_OF_DONOR} or more cells in and outside the "
            f"cluster; the test needs {LEAST_DONORS}"
        )
    else:
        varies_G = np.ptp(difference_DG, axis=0) > 1e-9  # otherwise no donor has the gene
        with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of constant genes
            p_G = np.where(varies_G, stats.ttest_1samp(difference_DG, 0.0).pvalue, np.nan)
    q_G = adjusted(p_G)
    return {
        "donors": float(n),
        "donors_same": same_G.astype(np.float64),
        "donor_difference": difference_DG.mean(0) if n else none,
        "donor_p": p_G,
        "donor_q": q_G,
        "donor_significant": q_G <= fdr,
        "donor_note": note,
    }


def _undone(log_NG: Matrix) -> Matrix:
    """Return values per 10,000."""
    return np.expm1(log_NG) if isinstance(log_NG, np.ndarray) else log_NG.expm1()
