"""The case study of deepbid.py: differentially expressed genes from labels and from clusters, in held-out donors.

Two contrasts of each cell type: against all other cells (that of the paper) and, with conditions, between the two.
Two tests: of cells (Wilcoxon's rank-sum test, that of the paper), which takes cells of one donor as independent; and of
donors (t-test of log2 of the donors' summed counts; paired where donors are on both sides, else Welch's).

Shapes: N cells, G genes, D donors.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import stats
from scipy.sparse import csr_matrix

from scmedley import keys
from scmedley.errors import ScmedleyError
from scmedley.interpret.clusters import cluster_names
from scmedley.io import replacing

OTHERS, CONDITIONS = "against other cells", "between conditions"
LABELS, CLUSTERS = "labels", "clusters"
CELLS, DONORS = "cells", "donors"
LEAST_CELLS = 10  # on each side, and of a donor on one side
LEAST_DONORS = 2  # on each side
LEAST_SHARE = 0.01  # of the cells in which a gene is found
PSEUDOCOUNT = 0.1  # counts per 10,000, before the logarithm of a donor's sums
HELD_OUT_P = 0.05
GENE_SETS = (LABELS, CLUSTERS, "common", "labels alone", "clusters alone")


@dataclass(frozen=True)
class Case:
    """Cells of several donors with types by the authors' labels and by named clusters."""

    log_NG: csr_matrix
    counts_NG: csr_matrix
    genes: pd.Index
    donor_N: np.ndarray
    condition_N: np.ndarray | None
    types: dict[str, np.ndarray]  # LABELS and CLUSTERS

    @property
    def contrasts(self) -> tuple[str, ...]:
        """Return the contrasts that these cells allow."""
        return (OTHERS,) if self.condition_N is None else (OTHERS, CONDITIONS)


def case_of(adata: AnnData, donor: str, condition: str | None, label: str, cluster_N: np.ndarray) -> Case:
    """Return the case of prepared cells; genes that few cells have are left out."""
    log_NG = csr_matrix(adata.layers[keys.LOGNORM])
    counts_NG = csr_matrix(adata.layers[keys.COUNTS]) if keys.COUNTS in adata.layers else log_NG.expm1()
    genes = np.flatnonzero(log_NG.getnnz(axis=0) >= max(1, LEAST_SHARE * adata.n_obs))
    label_N = adata.obs[label].astype(str).to_numpy()
    condition_N = None
    if condition is not None:
        condition_N = adata.obs[condition].astype(str).to_numpy()
        if len(names := np.unique(condition_N)) != 2:
            raise ScmedleyError(
                f"obs[{condition!r}] has {len(names)} values ({', '.join(names[:5])}), not two."
            )
    return Case(
        log_NG[:, genes],
        counts_NG[:, genes],
        adata.var_names[genes],
        adata.obs[donor].astype(str).to_numpy(),
        condition_N,
        {LABELS: label_N, CLUSTERS: named(cluster_N, label_N)},
    )


def named(cluster_N: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """Return the name of each cell's cluster: the label that most of its cells have. Names can repeat."""
    table = cluster_names(pd.Series(cluster_N.astype(str)), pd.Series(label_N))
    return table.set_index("cluster")["label"].loc[cluster_N.astype(str)].to_numpy().astype(str)


def halves(case: Case, seed: int = 0) -> np.ndarray:
    """Return which cells are of the first half of the donors; both halves keep both conditions."""
    rng = np.random.default_rng(seed)
    donors = pd.Series(case.donor_N)
    if case.condition_N is None:
        groups = [donors.unique()]
    else:  # donors of one condition, of the other, and of both
        seen = pd.crosstab(donors, case.condition_N) > 0
        groups = [np.asarray(rows.index) for _, rows in seen.groupby(list(seen.columns))]
    first: list[str] = []
    for i, group in enumerate(groups):  # an odd group gives its extra donor to each half in turn
        first += list(rng.permutation(group)[: (len(group) + i % 2) // 2])
    half_N = np.isin(case.donor_N, first)
    for side in (half_N, ~half_N):
        if not side.any() or (case.condition_N is not None and len(np.unique(case.condition_N[side])) < 2):
            raise ScmedleyError("Two halves of the donors, each with both conditions, need more donors.")
    return half_N


def compare(case: Case, source: str, contrast: str, rows_N: np.ndarray) -> pd.DataFrame:
    """Test every gene of every type among these cells.

    Returns
    -------
    pandas.DataFrame
        One row each type and gene: "cells: difference" (of means of log1p CP10k), "cells: p", "cells: q", "donors:
        difference" (log2), "donors: p", "donors: q" (nan: too few donors), and "n donors" of the smaller side.
    """
    rows = np.flatnonzero(rows_N)
    log_NG, type_N = case.log_NG[rows], case.types[source][rows]
    tables = []
    for name, in_N, out_N in _sides(case, contrast, rows, type_N):
        table = pd.DataFrame({"type": name, "gene": case.genes})
        table["cells: difference"] = _mean(log_NG, in_N) - _mean(log_NG, out_N)
        table["cells: p"] = _rank_sums(log_NG, in_N, out_N)
        found = donor_test(case.counts_NG[rows], case.donor_N[rows], in_N, out_N)
        table["donors: difference"], table["donors: p"], table["n donors"] = found
        for unit in (CELLS, DONORS):
            table[f"{unit}: q"] = _adjusted(table[f"{unit}: p"].to_numpy())
        tables.append(table)
    if not tables:
        return pd.DataFrame(columns=["type", "gene"])
    return pd.concat(tables, ignore_index=True)


def _sides(
    case: Case, contrast: str, rows: np.ndarray, type_N: np.ndarray
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield each type with the cells of its two sides, if these are enough."""
    for name in sorted(set(case.types[LABELS])):
        in_N = type_N == name
        out_N = ~in_N
        if contrast == CONDITIONS:
            assert case.condition_N is not None
            second_N = case.condition_N[rows] == max(case.condition_N)
            in_N, out_N = in_N & second_N, in_N & ~second_N
        if min(in_N.sum(), out_N.sum()) >= LEAST_CELLS:
            yield name, in_N, out_N


def donor_test(
    counts_NG: csr_matrix, donor_N: np.ndarray, in_N: np.ndarray, out_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return difference (log2), p and number of donors (the smaller side's), of sums of counts by donor."""
    sums = [_donor_sums(counts_NG, donor_N, side_N) for side_N in (in_N, out_N)]
    both = sums[0].index.intersection(sums[1].index)
    paired = len(both) >= LEAST_DONORS
    one, other = (table.loc[both] if paired else table.drop(both) for table in sums)
    n = min(len(one), len(other))
    if n < LEAST_DONORS:
        nothing = np.full(counts_NG.shape[1], np.nan)
        return nothing, nothing, n
    x, y = one.to_numpy(), other.to_numpy()
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # of genes that are constant: p is nan
        p_G = stats.ttest_rel(x, y).pvalue if paired else stats.ttest_ind(x, y, equal_var=False).pvalue
    return x.mean(0) - y.mean(0), p_G, n


def _donor_sums(counts_NG: csr_matrix, donor_N: np.ndarray, side_N: np.ndarray) -> pd.DataFrame:
    """Return log2 of the summed counts per 10,000 of each donor with enough cells."""
    rows = np.flatnonzero(side_N)
    code, names = pd.factorize(donor_N[rows], sort=True)
    enough = np.bincount(code, minlength=len(names)) >= LEAST_CELLS
    member_DN = csr_matrix((np.ones(len(rows)), (code, np.arange(len(rows)))), (len(names), len(rows)))
    sum_DG = (member_DN @ counts_NG[rows]).toarray()[enough]
    per_DG = 1e4 * sum_DG / np.maximum(sum_DG.sum(axis=1, keepdims=True), 1e-9)
    return pd.DataFrame(np.log2(per_DG + PSEUDOCOUNT), index=np.asarray(names)[enough])


def _rank_sums(log_NG: csr_matrix, in_N: np.ndarray, out_N: np.ndarray) -> np.ndarray:
    """Return the p-values of Wilcoxon's rank-sum test, with the correction for ties (scanpy)."""
    import scanpy as sc

    rows = np.flatnonzero(in_N | out_N)
    side = pd.Categorical(np.where(in_N[rows], "in", "out"))
    cells = AnnData(log_NG[rows], obs=pd.DataFrame({"side": side}, index=rows.astype(str)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.tl.rank_genes_groups(
            *(cells, "side"),
            groups=["in"],
            reference="out",
            method="wilcoxon",
            tie_correct=True,
            use_raw=False,
        )
    found = cells.uns["rank_genes_groups"]
    p = pd.Series(found["pvals"]["in"], index=found["names"]["in"]).loc[cells.var_names]
    return np.asarray(p.fillna(1.0))  # a gene that is equal in all cells has no ranks


def _mean(x_NG: csr_matrix, rows_N: np.ndarray) -> np.ndarray:
    return np.asarray(x_NG[np.flatnonzero(rows_N)].mean(axis=0)).ravel()


def _adjusted(p_G: np.ndarray) -> np.ndarray:
    q_G, known = np.full(len(p_G), np.nan), np.isfinite(p_G)
    if known.any():
        q_G[known] = stats.false_discovery_control(p_G[known])
    return q_G


def deg_counts(tables: dict[str, pd.DataFrame], fdr: float) -> pd.DataFrame:
    """Return the numbers of genes found by type and test: from labels, from clusters, and common.

    A test that no type of a source had enough donors for gives missing numbers.
    """
    rows = []
    for unit in (CELLS, DONORS):
        found = {source: _found(table, unit, fdr) for source, table in tables.items()}
        known = {
            source: set(table.loc[table.get(f"{unit}: p", pd.Series(dtype=float)).notna(), "type"])
            for source, table in tables.items()
        }
        for name in sorted(set().union(*(table["type"] for table in tables.values()))):
            of = {source: {gene for kind, gene in pairs if kind == name} for source, pairs in found.items()}
            row = {"type": name, "test": unit}
            row |= {s: len(of[s]) if name in known[s] else np.nan for s in (LABELS, CLUSTERS)}
            rows.append(row | {"common": len(of[LABELS] & of[CLUSTERS])})
    return pd.DataFrame(rows)


def _found(table: pd.DataFrame, unit: str, fdr: float) -> set[tuple[str, str]]:
    if f"{unit}: q" not in table:
        return set()
    rows = table[table[f"{unit}: q"] <= fdr]
    return set(zip(rows["type"], rows["gene"], strict=True))


def replication(
    discovery: dict[str, pd.DataFrame], held_out: dict[str, pd.DataFrame], fdr: float
) -> pd.DataFrame:
    """Count the genes found in one half of the donors that replicate in the other: same sign and p < .05.

    Returns
    -------
    pandas.DataFrame
        One row each test of the discovery, test of the held-out donors and set of genes (``GENE_SETS``): "found" (and
        tested in the held-out donors), "replicated", "other genes" (not found from that source) and "others
        replicated", by the same rule: what it lets pass by chance, and effects too small to be found. Genes found from
        clusters are tested with the clusters of the held-out cells, all others with their labels.
    """
    both = {
        source: discovery[source].merge(held_out[source], "inner", ["type", "gene"]) for source in discovery
    }
    rows = []
    for unit, judge in product((CELLS, DONORS), repeat=2):
        found = {source: _found(table, unit, fdr) for source, table in discovery.items()}
        shared, of = found[LABELS] & found[CLUSTERS], {}
        of[LABELS], of[CLUSTERS], of["common"] = found[LABELS], found[CLUSTERS], shared
        of["labels alone"], of["clusters alone"] = found[LABELS] - shared, found[CLUSTERS] - shared
        for name in GENE_SETS:
            source = CLUSTERS if name in (CLUSTERS, "clusters alone") else LABELS
            table = both[source]
            if f"{judge}: p_y" not in table:
                continue
            table = table[table[f"{judge}: p_y"].notna() & table[f"{unit}: p_x"].notna()]
            pairs = list(zip(table["type"], table["gene"], strict=True))
            is_found, other = (
                np.array([pair in chosen for pair in pairs], dtype=bool)
                for chosen in (of[name], set(pairs) - found[source])
            )
            same = np.sign(table[f"{unit}: difference_x"]) == np.sign(table[f"{judge}: difference_y"])
            passes = (same & (table[f"{judge}: p_y"] < HELD_OUT_P)).to_numpy(dtype=bool)
            row = {"test": unit, "held-out test": judge, "genes": name, "found": int(is_found.sum())}
            row |= {"replicated": int((passes & is_found).sum()), "other genes": int(other.sum())}
            rows.append(row | {"others replicated": int((passes & other).sum())})
    columns = ["test", "held-out test", "genes", "found", "replicated", "other genes", "others replicated"]
    return pd.DataFrame(rows, columns=columns)


def study(
    case: Case, fdr: float, folder: Path, since: float = 0.0, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the counts of genes and what replicates, by contrast.

    Each comparison is stored in ``folder``, so that it resumes; those older than ``since`` (the time of the clusters)
    are computed again.
    """
    half_N: np.ndarray | None
    try:
        half_N = halves(case, seed)
    except ScmedleyError as error:
        print(f"Held-out donors: left out. {error}")
        half_N = None
    parts = {"all donors": np.ones(len(case.donor_N), dtype=bool)}
    if half_N is not None:
        parts |= {"first half": half_N, "second half": ~half_N}
    counts, replicated = [], []
    for contrast in case.contrasts:
        tables = {
            part: {
                source: _stored(
                    folder / f"{contrast} {source} {part}.csv.gz", since, case, source, contrast, rows_N
                )
                for source in (LABELS, CLUSTERS)
            }
            for part, rows_N in parts.items()
        }
        counts.append(deg_counts(tables["all donors"], fdr).assign(contrast=contrast))
        if half_N is not None:
            ways = (("first half", "second half"), ("second half", "first half"))
            both = [replication(tables[one], tables[other], fdr) for one, other in ways]
            by = ["test", "held-out test", "genes"]
            summed = pd.concat(both).groupby(by, sort=False).sum().reset_index()
            tested = summed["found"] + summed["other genes"] > 0  # there were donors enough
            replicated.append(summed[tested].assign(contrast=contrast))
    table = pd.concat(replicated, ignore_index=True) if replicated else pd.DataFrame()
    if len(table):
        table["share"] = table["replicated"] / table["found"].where(table["found"] > 0)
        table["share of others"] = table["others replicated"] / table["other genes"].where(
            table["other genes"] > 0
        )
    return pd.concat(counts, ignore_index=True), table


def _stored(
    path: Path, since: float, case: Case, source: str, contrast: str, rows_N: np.ndarray
) -> pd.DataFrame:
    if not path.exists() or path.stat().st_mtime < since:
        table = compare(case, source, contrast, rows_N)
        with replacing(path) as temporary:
            table.to_csv(temporary, index=False, float_format="%.6g", compression="gzip")
    return pd.read_csv(path, dtype={"type": str, "gene": str}, keep_default_na=False, na_values=[""])
