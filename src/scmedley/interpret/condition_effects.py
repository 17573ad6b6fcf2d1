"""Effects of a condition on genes, with donors as replicates.

Shapes: N cells, S samples (a donor under a condition), G genes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from tqdm import tqdm

from scmedley.data.arrays import Matrix, dense
from scmedley.data.design import as_categories, column
from scmedley.data.evidence import TARGET_SUM
from scmedley.data.gene_names import GeneNames
from scmedley.data.matrix import counted, find_values, normalised
from scmedley.errors import ScmedleyError, listed, warn
from scmedley.evaluate.statistics import adjusted
from scmedley.interpret.donors import (
    Donors,
    SampleDesign,
    Samples,
    design_of,
    is_number,
    read_donors,
    samples_of,
    warn_of_samples,
)
from scmedley.interpret.moderated import NO_VARIANCE, Floats, moderate, precision, t_test, with_correlation
from scmedley.keys import ValueKind

if TYPE_CHECKING:
    from anndata import AnnData

ALL_CELLS = "all cells"
PRIOR = 2.0  # counts that are added to a sample of average depth before the logarithm; draws effects of rare genes to 0
SHARED_GENES = 50  # genes with counts in all samples, from which relative depths are estimated
COLUMNS = (
    *("label", "contrast", "gene", "effect", "q05", "q95", "se", "t", "df", "p", "q"),
    *("donors", "donors_by_level", "design", "influence", "influential_donor", "mean_expression", "reason"),
)


def condition_effects(
    adata: AnnData,
    condition_key: str,
    donor_key: str,
    label_key: str | None = None,
    *,
    reference: str | None = None,
    covariates: Sequence[str] = (),
    nested_in: str | None = None,
    min_cells: int = 10,
    min_donors: int = 2,
    min_counts: float = 5,
    total_key: str | None = None,
    values: ValueKind = "auto",
    progress: bool = False,
) -> pd.DataFrame:
    """Return the effect of a condition on each gene, by label, with donors as the replicates.

    The counts of all cells of a label, donor and condition are summed (a pseudobulk sample). Their logarithms are the
    values of a linear model over samples: cells of a donor are no replicates of each other, so that a thousand cells
    of one donor say as much about other donors as one sample does.

    - Donors with several conditions are compared with themselves ("paired"): the model has a level for each donor.
    - If each donor has one condition, donors with one are compared with those with the other ("groups").
    - If some donors have several ("mixed"), donors are random effects: the correlation of the samples of a donor
      is estimated from all genes.

    Samples with few counts weigh less (:func:`scmedley.interpret.moderated.precision`), and the variance of a gene
    between samples is moderated by that of all genes (empirical Bayes; Smyth, 2004).

    Parameters
    ----------
    adata
        Cells with counts; log-normalised values work too, with a warning that says what is lost. A backed AnnData is
        read into memory.
    condition_key
        ``obs`` column of the condition. Text or categories: each level is compared with the reference. Numbers, such as
        a dose or an age: the slope per unit, or the same as for text if a ``reference`` is given.
    donor_key
        ``obs`` column of the donors.
    label_key
        ``obs`` column of the labels, such as cell types; each is tested alone. Without it all cells are tested
        together, and a change of composition alone then gives effects (:func:`scmedley.interpret.composition`).
    reference
        Level of the condition that the others are compared with. Default: a level that is named like a control (as
        "ctrl", "control", "healthy"), or the first one.
    covariates
        ``obs`` columns that the effects are adjusted for, such as age, sex or the day of an experiment.
    nested_in
        ``obs`` column of the studies in which donors are nested: donor "1" of two studies are two donors, and studies
        are adjusted for.
    min_cells
        Samples with fewer cells of the label are left out.
    min_donors
        Donors of each level (of a paired design: with both levels) that a test needs. With fewer, the effect is
        returned without interval and p-value.
    min_counts
        A gene is tested in a label if its mean count over the samples is this number or more.
    total_key
        ``obs`` column of each cell's counts over all genes, for files of a part of the genes (a panel, or genes that
        were chosen). Depths are then these totals; otherwise they are estimated from the genes of the file, and effects
        are relative to the middle one of these.
    values
        What the matrix holds, as in :func:`scmedley.pp.prepare`.
    progress
        Whether to show a progress bar over labels.

    Returns
    -------
    pandas.DataFrame
        One row per label, contrast and gene, the smallest p first (without a test, the largest effect):

        - ``effect``: log2 fold change, or of a continuous condition the change of log2 expression per unit; ``q05``,
          ``q95``: ends of its 90 % interval; ``se``, ``t``, ``df``: moderated;
        - ``p``, ``q``: two-sided, and adjusted over the genes of the label and contrast (Benjamini-Hochberg);
        - ``donors`` (behind the contrast), ``donors_by_level``, ``design``;
        - ``influence``: largest change of the effect if one donor is left out; ``influential_donor``;
        - ``mean_expression``: counts per 10,000 over all samples of the label;
        - ``reason``: why there is no effect or no test; else empty.

        Where the names of genes are identifiers and symbols are known, they are in ``symbol``.
        ``attrs["contrasts"]`` has a record for each label and contrast, ``attrs["values"]`` what was read.

    Raises
    ------
    ScmedleyError
        A missing column, one column in two roles, a covariate that varies within a sample, a condition of one level, or
        values that cannot be used.
    """
    if min_cells < 1 or min_donors < 2 or min_counts < 0:
        raise ScmedleyError(
            f"min_cells={min_cells}, min_donors={min_donors}, min_counts={min_counts}: need 1 or more, 2 or more (one "
            "donor has no variance), and 0 or more."
        )
    if adata.isbacked:
        adata = adata.to_memory()
    how: dict[str, Any] = {"reference": reference, "covariates": covariates, "nested_in": nested_in}
    donors = read_donors(adata, condition_key, donor_key, **how)
    warn_of_samples(adata, donors, donor_key)
    label_N, names = labels_of(adata, label_key, donors)
    if donors.missing:
        cells = ", ".join(f"{name}: {n:,}" for name, n in donors.missing.items())
        warn(f"Cells without a value are left out ({cells}).")
    x_NG, total_N, genes, reason = _counts(adata, values, total_key)
    named = {"gene": list(genes), **_symbols(adata, genes)}
    if len(donors.rows) < adata.n_obs:  # otherwise the matrix need not be copied
        x_NG, total_N = x_NG[donors.rows], total_N[donors.rows]
    tables, records = [], []
    for k in tqdm(range(len(names)), desc="labels", disable=None if progress else True):
        own_N = np.flatnonzero(label_N == k)
        samples = samples_of(donors, own_N, min_cells)
        design = design_of(samples.table, donors, min_donors)
        sums = _Sums.of(samples, x_NG, total_N, own_N, given=total_key is not None)
        for table, record in _of_label(sums, samples, design, donors, min_counts):
            head = {"label": names[k], "contrast": record["contrast"], **named}
            order = [*list(head), *COLUMNS[3:]]
            rows = pd.DataFrame({**head, **table})[order]
            smallest_first = np.lexsort((-rows["effect"].abs(), rows["p"]))  # without a test, by effect
            tables.append(rows.iloc[smallest_first])
            records.append({"label": names[k], **record})
    found = pd.concat(tables, ignore_index=True)
    found.attrs.update({"values": reason, "contrasts": records, "levels": list(donors.levels)})
    _warn_of_untested(records)
    return found


def labels_of(adata: AnnData, label_key: str | None, donors: Donors) -> tuple[NDArray[np.int64], list[str]]:
    """Return the code of the label of each cell of ``donors`` (-1: none), and the names."""
    if label_key is None:
        return np.zeros(len(donors.rows), dtype=np.int64), [ALL_CELLS]
    labels = as_categories(column(adata, label_key, "label"))[donors.rows]
    if not (labels.codes >= 0).any():
        raise ScmedleyError(f"No cell with a donor and a condition has a label in obs[{label_key!r}].")
    return np.asarray(labels.codes, dtype=np.int64), [str(name) for name in labels.categories]


def _counts(adata: AnnData, values: ValueKind, total_key: str | None) -> tuple[Matrix, Floats, pd.Index, str]:
    """Return counts, the cells' totals and genes; of log-normalised values, values per 10,000."""
    found = find_values(adata, values)
    if found.values == "other":
        raise ScmedleyError(f"Effects need counts or log-normalised values. {found.reason}")
    x_NG, total_N, genes = counted(adata, found)
    if not len(genes):
        raise ScmedleyError("The cells have no genes, so there is nothing to test.")
    if found.values == "counts":
        depth_N = np.asarray(total_N, np.float64)
        if total_key is not None:
            depth_N = _totals(adata, total_key, depth_N)
        return x_NG, depth_N, genes, found.reason
    if total_key is not None:
        raise ScmedleyError(f"obs[{total_key!r}] has a use only with counts. {found.reason}")
    warn(
        "There are no counts: samples are means of values per 10,000, in which cells with few counts weigh as much as "
        "others. Give the counts in layers['counts']."
    )
    log_NG = normalised(x_NG, total_N, found)
    x_NG = np.expm1(log_NG) if isinstance(log_NG, np.ndarray) else log_NG.expm1()
    return x_NG, np.full(adata.n_obs, TARGET_SUM), genes, found.reason


def _totals(adata: AnnData, key: str, counted_N: Floats) -> Floats:
    """Return each cell's counts over all genes from ``obs``; ``counted_N`` are those of the genes of the file."""
    values = column(adata, key, "total")
    if not is_number(values):
        raise ScmedleyError(
            f"obs[{key!r}] holds no numbers. Name the column of each cell's counts over all genes."
        )
    total_N = values.to_numpy(np.float64, na_value=np.nan)
    if bad := int((~((total_N >= counted_N - 0.5) & np.isfinite(total_N))).sum()):
        raise ScmedleyError(
            f"obs[{key!r}] is missing, infinite, or less than the counts of the genes of the file, in {bad:,} of "
            f"{adata.n_obs:,} cells. Give counts over all genes, or leave these cells out."
        )
    return total_N


def _symbols(adata: AnnData, genes: pd.Index) -> dict[str, list[str]]:
    """Return the symbols of the genes, if their names are identifiers and symbols are known."""
    var = adata.var if genes.equals(adata.var_names) else adata.raw.var
    symbols = GeneNames.of(var).symbols_beside
    return {} if symbols is None else {"symbol": list(symbols)}


class _Sums:
    """Counts of samples: ``count_SG``, the depths ``size_S`` and log2 of counts per million ``y_SG``."""

    def __init__(self, count_SG: Floats, total_S: Floats, given: bool = False):
        self.count_SG = count_SG
        self.total_S = total_S
        self.size_S = total_S if given else depths(count_SG, total_S)
        prior_S = PRIOR * self.size_S / self.size_S.mean() if len(total_S) else total_S
        # The same share for every sample: with the same number, shallow samples would seem to express more.
        self.y_SG = np.log2(1e6 * (count_SG + prior_S[:, None]) / self.size_S[:, None])
        self.share_G = count_SG.sum(0) / max(self.size_S.sum(), 1)

    @classmethod
    def of(
        cls, samples: Samples, x_NG: Matrix, total_N: Floats, rows: NDArray[np.int64], given: bool = False
    ) -> _Sums:
        """Sum the cells of each sample; ``rows`` are those of ``samples.code_N``. Totals that are given are depths."""
        kept = samples.code_N >= 0
        shape = (len(samples.table), int(kept.sum()))
        member_SN = csr_matrix((np.ones(shape[1]), (samples.code_N[kept], np.arange(shape[1]))), shape)
        count_SG = np.asarray(dense(member_SN @ x_NG[rows[kept]]), dtype=np.float64)
        return cls(count_SG, np.maximum(member_SN @ total_N[rows[kept]], 1e-9), given)


def depths(count_SG: Floats, total_S: Floats) -> Floats:
    """Return effective totals: relative depths by the median ratio to the geometric mean of all samples.

    A few genes that take many counts in some samples thus do not lower all others (Anders and Huber, 2010). The ratios
    are of genes with counts in all samples; with fewer than 50 of these, the totals are returned.
    """
    everywhere_G = (count_SG > 0).all(0) if len(count_SG) else np.zeros(count_SG.shape[1], dtype=bool)
    if everywhere_G.sum() < SHARED_GENES:
        return total_S
    log_SG = np.log(count_SG[:, everywhere_G] / total_S[:, None])
    ratio_S = np.median(log_SG - log_SG.mean(0), axis=1)
    return np.asarray(total_S * np.exp(ratio_S - ratio_S.mean()))


def _of_label(
    sums: _Sums, samples: Samples, design: SampleDesign, donors: Donors, min_counts: float
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return columns and record of each contrast of one label."""
    n_genes = sums.count_SG.shape[1]
    expressed_G = sums.count_SG.sum(0) >= max(min_counts * len(samples.table), 1)
    found: dict[str, Any] = {}
    if design.model is not None:
        found = fitted(sums.y_SG, design, expressed_G, sums.share_G * sums.size_S[:, None])
    results = []
    for i, contrast in enumerate(donors.contrasts):
        reason = design.reasons[i]
        columns = of_contrast(found, design, i, n_genes)
        unsaid_G = ~expressed_G | (np.isnan(columns["t"]) if not reason else False)
        for name in ("q05", "q95", "se", "t", "p"):
            columns[name] = np.where(unsaid_G, np.nan, columns[name])
        few = f"fewer than {min_counts:g} counts in the mean sample"
        columns["reason"] = reason or np.where(expressed_G, np.where(unsaid_G, "no variance", ""), few)
        columns["q"] = adjusted(np.asarray(columns["p"]))
        columns["mean_expression"] = TARGET_SUM * sums.share_G
        record = {"contrast": contrast, "design": design.kind, "donors": design.donors[i], "reason": reason}
        record |= {"donors_by_level": design.by_level[i], "samples": len(samples.table)}
        record |= {"cells": int(samples.table["cells"].sum()), "tested": int(np.isfinite(columns["p"]).sum())}
        record |= {name: found.get(name) for name in ("df", "prior_df", "rho")}
        results.append((columns, record))
    return results


def of_contrast(found: dict[str, Any], design: SampleDesign, i: int, n_genes: int) -> dict[str, Any]:
    """Return the columns of a contrast of :func:`fitted`; missing where it has no effect, or no test."""
    none = np.full(n_genes, np.nan)
    columns: dict[str, Any] = dict.fromkeys(("effect", "q05", "q95", "se", "t", "p", "influence"), none)
    columns |= {"df": np.nan, "influential_donor": "", "design": design.kind}
    columns |= {"donors": design.donors[i], "donors_by_level": design.by_level[i]}
    if found and design.terms[i] >= 0:
        columns |= {name: found[name][i] for name in ("effect", "influence", "influential_donor")}
        if not design.reasons[i]:
            columns |= t_test(found["effect"][i], found["se"][i], found["df"]) | {"df": found["df"]}
    return columns


def fitted(
    y_SG: Floats, design: SampleDesign, chosen_G: NDArray[Any], count_SG: Floats | None = None
) -> dict[str, Any]:
    """Fit a design to samples: effects of each contrast, standard errors with moderated variances, and influence.

    Parameters
    ----------
    y_SG
        Values of the samples.
    design
        Of :func:`scmedley.interpret.donors.design_of`, with a model.
    chosen_G
        Genes whose variances are pooled; of others only the effect is meaningful.
    count_SG
        Expected counts, for the weights of samples; equal weights without.

    Returns
    -------
    dict
        ``effect``, ``se``, ``influence``, ``influential_donor``: contrasts x genes; ``df``, ``prior_df``, ``rho``.
    """
    model = design.model
    assert model is not None
    y_SG = y_SG - y_SG.mean(0)
    with_test = model.df > 0 and bool(chosen_G.any())
    if model.block == "random" and with_test:
        model = with_correlation(model, y_SG[:, chosen_G])
    weights = None
    if count_SG is not None and with_test:
        weights = precision(model, y_SG[:, chosen_G], count_SG[:, chosen_G])
        if weights is not None:
            w_SG = np.ones_like(y_SG)
            w_SG[:, chosen_G] = weights
            weights = w_SG
    estimate = model.fit(y_SG, weights)
    variance_G, df, prior_df = estimate.variance_G.copy(), np.nan, np.nan
    if with_test:
        variance_G[chosen_G], df, prior_df = moderate(estimate.variance_G[chosen_G], model.df)
    variance_G[variance_G <= NO_VARIANCE] = np.nan  # rounding: no gene is without differences between samples
    terms = design.terms  # of a contrast that cannot be estimated, the last column, which is then not shown
    change_TG, donor_TG = estimate.influences([t for t in terms if t >= 0])
    order = np.cumsum(np.array(terms) >= 0) - 1
    return {
        "effect": estimate.effect_TG[terms],
        "se": np.sqrt(estimate.unscaled_TG[terms] * variance_G),
        "influence": change_TG[order],
        "influential_donor": design.names[donor_TG[order]],
        "df": df,
        "prior_df": prior_df,
        "rho": model.rho if model.block == "random" else None,
    }


def _warn_of_untested(records: list[dict[str, Any]]) -> None:
    """Warn of labels without a test, by reason."""
    reasons: dict[str, list[str]] = {}
    for record in records:
        if record["reason"]:
            reasons.setdefault(f"{record['contrast']}: {record['reason']}", []).append(record["label"])
    for reason, labels in reasons.items():
        warn(f"No test for {listed(labels)}, {reason}.")
