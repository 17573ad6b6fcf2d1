"""Differential expression between two groups of cells, from the posterior of a VAE.

Shapes: N cells of a group, G genes, P latent dimensions, D pairs of draws.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from scmedley.data.design import as_categories, column
from scmedley.data.reader import Cells, Reading
from scmedley.device import modes, seeded
from scmedley.errors import ScmedleyError, check_seed, listed, warn

if TYPE_CHECKING:
    from scmedley.models.vae import VAE

CELLS = 512  # decoded at once
# Counts per 10,000, added to both means, so that genes that hardly any cell expresses do not change.
PSEUDOCOUNT = 0.1
ENOUGH_DONORS = 3


@modes(grad=False)
def differential_expression(
    model: VAE,
    adata: AnnData,
    key: str,
    group: str,
    reference: str | None = None,
    *,
    donor_key: str | None = None,
    delta: float = 0.25,
    fdr: float = 0.05,
    draws: int = 5000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return one row for each gene, the most certain change first.

    The "change" mode of scVI (Boyeau et al. 2019) with its three-component test: pairs of random cells, one of each
    group, their latents drawn from the posterior and decoded without batch effects (the population mean), give draws
    of the log2 fold change. The probability of a gene is that of a fold change above ``delta`` or that of one below
    ``-delta``, whichever is larger. A gene counts as changed if it is in the set with the highest probabilities in
    which the expected share of false discoveries, the mean of one minus these probabilities, is at most ``fdr``.

    Parameters
    ----------
    model
        A fitted VAE with a likelihood of counts.
    adata
        Cells with counts.
    key, group, reference
        ``obs`` column and the two groups; without ``reference``, all other cells that have a value.
    donor_key
        ``obs`` column of the donors: their number in each group is counted and, if below 3, warned of.
    delta
        Least log2 fold change of interest.
    fdr
        Largest expected share of false discoveries.
    draws
        Number of pairs of cells.
    seed
        Random seed.

    Returns
    -------
    DataFrame
        By gene: probability, lfc (mean), lfc_median, lfc_q05, lfc_q95, mean_group and mean_reference (posterior
        means, counts per 10,000), expected_fdr (of the set down to this gene), changed. ``attrs`` has the numbers
        of cells and donors.

    Notes
    -----
    The fold change is that between two cells, not between the means of the groups. The probability of abs(log2 fold
    change) > ``delta`` would be high for every gene that varies within both groups, even if the groups are random
    halves of the same cells; that both signs are counted apart excludes these genes. Compare groups of similar cells.

    Expression is a share of all counts of a cell: if a few highly expressed genes rise, the others fall.

    The posterior is that of these cells, not of the population of donors. Cells of one donor are not independent,
    so a difference between two donors is "certain" with enough cells. To compare conditions, sum the counts of each
    donor and test between donors.
    """
    model.check_fitted()
    check_seed(seed)
    if not model.settings.counts:
        raise ScmedleyError(
            "differential_expression() needs a likelihood of counts. Fit VAE(likelihood='negative binomial')."
        )
    if draws < 2 or delta < 0 or not 0 < fdr < 1:
        raise ScmedleyError(
            f"draws={draws}, delta={delta}, fdr={fdr}: need 2 or more, 0 or more, and 0 to 1."
        )
    chosen = _groups(adata, key, group, reference)
    about = _about(adata, chosen, donor_key)
    rng = np.random.default_rng(seed)
    with seeded(seed):
        one_DG, other_DG = (_rates(model, adata, rng.choice(rows, draws)) for rows in chosen)
    lfc_DG = torch.log2(one_DG + PSEUDOCOUNT) - torch.log2(other_DG + PSEUDOCOUNT)
    above_G, below_G = ((sign * lfc_DG > delta).float().mean(0) for sign in (1, -1))
    low_G, middle_G, high_G = np.quantile(lfc_DG.numpy(), (0.05, 0.5, 0.95), axis=0)
    table = pd.DataFrame(
        {
            "probability": torch.maximum(above_G, below_G).numpy(),
            "lfc": lfc_DG.mean(0).numpy(),
            "lfc_median": middle_G,
            "lfc_q05": low_G,
            "lfc_q95": high_G,
            "mean_group": one_DG.mean(0).numpy(),
            "mean_reference": other_DG.mean(0).numpy(),
        },
        index=pd.Index(model.genes, name="gene"),
    )
    table = table.assign(size=table["lfc"].abs()).sort_values(["probability", "size"], ascending=False)
    expected = (1 - table["probability"]).expanding().mean()
    table = table.drop(columns="size").assign(expected_fdr=expected, changed=expected <= fdr)
    table.attrs.update(about)
    return table


def _groups(adata: AnnData, key: str, group: str, reference: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of both groups."""
    found = as_categories(column(adata, key, "group"))
    names = list(map(str, found.categories))
    for name in filter(None, (group, reference)):
        if name not in names:
            raise ScmedleyError(f"obs[{key!r}] has no group {name!r}. It has {listed(names)}.")
    if group == reference:
        raise ScmedleyError(f"Both groups are {group!r}. Give two.")
    code_N = np.asarray(found.codes)
    one_N = code_N == names.index(group)
    other_N = (code_N >= 0) & ~one_N if reference is None else code_N == names.index(reference)
    if not other_N.any():
        raise ScmedleyError(f"All cells of obs[{key!r}] are {group!r}, so there is nothing to compare with.")
    return np.flatnonzero(one_N), np.flatnonzero(other_N)


def _about(adata: AnnData, chosen: tuple[np.ndarray, np.ndarray], donor_key: str | None) -> dict[str, Any]:
    """Return numbers of cells and donors; warn if donors are few."""
    about: dict[str, Any] = {"cells": tuple(map(len, chosen))}
    if donor_key is None:
        return about
    donors = as_categories(column(adata, donor_key, "donor"))
    about["donors"] = tuple(len(set(donors.codes[rows]) - {-1}) for rows in chosen)
    if min(about["donors"]) < ENOUGH_DONORS:
        warn(
            f"The groups are from {about['donors'][0]} and {about['donors'][1]} donors: differences between these "
            "donors are not those of other donors. Sum the counts of each donor and compare donors, with 3 or more "
            "in each group."
        )
    return about


def _rates(model: VAE, adata: Cells, rows: np.ndarray) -> Tensor:
    """Return posterior draws of the expression of these cells without batch effects, counts per 10,000, D x G."""
    drawn, place = np.unique(rows, return_inverse=True)
    reading: Reading = model.read(adata.take(drawn) if isinstance(adata, Reading) else adata[drawn])
    none = np.full(reading.n_cells, -1, dtype=np.int64)
    cells = reading.resident(none, model.scale, model.device)
    parts = []
    for chunk in np.array_split(place, -(-len(place) // CELLS)):
        minibatch = cells.take(torch.as_tensor(chunk, device=model.device))
        mean_NP, log_variance_NP = model.network.posterior(minibatch.x_NG)
        z_NP = mean_NP + (0.5 * log_variance_NP).exp() * torch.randn(mean_NP.shape).to(mean_NP.device)
        parts.append(model.network.per_10k(z_NP, minibatch.b_N).cpu())
    return torch.cat(parts)
