"""Cells that Harmony was not fitted on: its correction applied to them, or mapped by Symphony's formula.

Harmony corrects the cells that it is fitted on. To compare it with methods that have not seen the held-out
cells, it is fitted on the reference cells alone, and the other cells (the query) follow in one of two ways.

"applied": the query's batches are those of the reference, so the reference's own coefficients correct them.
From z_q on, in turn: soft clusters R_q of the corrected cells; z'_q = z_q - Σ_k R_qk D_kb, with D_kb the ridge
coefficients of Harmony's last round. Applied to the reference, these give Harmony's coordinates.

"symphony" (Kang et al. 2021, Nature Communications): the query's batches are taken as new.

1. R_qk ∝ exp(-2 (1 - cos(z_q, y_k)) / σ), with y_k = Σ_i R_ik z'_i over the reference's corrected cells z'.
2. In each cluster, z_q is regressed on an intercept and the query's batch. The reference takes part through
   two sums that do not depend on the query, N_k = Σ_i R_ik and C_k = Σ_i R_ik z'_i, in the intercept alone,
   because its corrected cells have no batch effect:
   B_k = (X' diag(R_k) X + N_k e e' + Λ)⁻¹ (X' diag(R_k) Z + e C_k), with e the intercept and Λ the ridge on
   the batches.
3. z'_q = z_q - Σ_k R_qk x_q B_k, without the intercept.

With few query cells of a batch in a cluster the ridge keeps a part of each effect, so this leaks more than
"applied". Written from the papers. Shapes: N query cells, M reference cells, P components, B batches (in
designs: and the intercept), K clusters.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

SIGMA = 0.1  # width of the soft clusters, the default of Harmony and Symphony
RIDGE = 1.0  # Symphony's default
HARMONY_RIDGE = 0.2  # of the expected number of cells of a batch in a cluster, Harmony's default
ROUNDS = 5  # of cluster and correction

Floats = npt.NDArray[np.floating[Any]]
Codes = npt.NDArray[np.integer[Any]]


Way = Literal["applied", "symphony"]


def harmony_mapped(
    z_NP: Floats, batch_N: Codes, reference_N: npt.NDArray[np.bool_], way: Way, seed: int, threads: int
) -> Floats:
    """Fit Harmony to the reference cells, and correct the others with what it learnt.

    Parameters
    ----------
    z_NP
        Principal components of all cells.
    batch_N
        Batch of each cell.
    reference_N
        Which cells Harmony is fitted on; with "applied" they must include all batches.
    way
        "applied" (:func:`apply_correction`) or "symphony" (:func:`map_query`).
    seed, threads
        Of Harmony.

    Returns
    -------
    numpy.ndarray
        All cells in the order given: Harmony's own coordinates of the reference, mapped ones of the others.
    """
    import harmonypy

    z_MP, batch_M = z_NP[reference_N].astype(np.float64), batch_N[reference_N]
    batch = pd.DataFrame({"batch": batch_M.astype(str)})
    fitted = harmonypy.run_harmony(
        z_MP, batch, "batch", sigma=SIGMA, random_state=seed, ncores=threads, verbose=False
    )
    corrected_NP = z_NP.astype(np.float64)
    corrected_NP[reference_N] = fitted.Z_corr
    query_N = ~reference_N
    if query_N.any():
        z_query, batch_query, reference = z_NP[query_N], batch_N[query_N], (fitted.Z_corr, fitted.R)
        corrected_NP[query_N] = (
            apply_correction(z_query, batch_query, *reference, z_MP, batch_M)
            if way == "applied"
            else map_query(z_query, batch_query, *reference)
        )
    return corrected_NP.astype(np.float32)


def apply_correction(
    z_NP: Floats, batch_N: Codes, corrected_MP: Floats, r_MK: Floats, z_MP: Floats, batch_M: Codes
) -> Floats:
    """Correct query cells of the reference's batches with the reference's coefficients.

    Parameters
    ----------
    z_NP, batch_N
        The query's components, not corrected, and its batches.
    corrected_MP, r_MK
        The reference's corrected components and soft clusters.
    z_MP, batch_M
        The reference's components before the correction, and its batches.
    """
    effect_KBP = reference_effects(z_MP, batch_M, r_MK)
    codes_N = np.searchsorted(np.unique(batch_M), batch_N)
    c_KP = r_MK.T @ corrected_MP
    corrected_NP = z_NP.astype(np.float64)
    for _ in range(ROUNDS):
        r_NK = _soft_clusters(corrected_NP, c_KP)
        corrected_NP = z_NP - np.einsum("nk,knp->np", r_NK, effect_KBP[:, codes_N])
    return corrected_NP


def reference_effects(z_MP: Floats, batch_M: Codes, r_MK: Floats) -> Floats:
    """Return the effect of each batch in each cluster that Harmony subtracted from the reference, K × B × P."""
    names, codes_M = np.unique(batch_M, return_inverse=True)
    x_MB = _design(codes_M, len(names))
    share_B = np.bincount(codes_M) / len(codes_M)
    effects = []
    for r_M in r_MK.T:
        weighted_BM = (x_MB * r_M[:, None]).T
        ridge_BB = np.diag([0.0, *(HARMONY_RIDGE * r_M.sum() * share_B)])
        effects.append(np.linalg.solve(weighted_BM @ x_MB + ridge_BB, weighted_BM @ z_MP)[1:])
    return np.array(effects)


def map_query(z_NP: Floats, batch_N: Codes, reference_MP: Floats, r_MK: Floats) -> Floats:
    """Return the corrected components of query cells, by Symphony's formula.

    Parameters
    ----------
    z_NP
        The query's components, not corrected.
    batch_N
        The query's batches.
    reference_MP, r_MK
        The reference's corrected components and soft clusters.
    """
    n_K, c_KP = r_MK.sum(axis=0), r_MK.T @ reference_MP  # all that is needed of the reference
    r_NK = _soft_clusters(z_NP, c_KP)
    names, codes_N = np.unique(batch_N, return_inverse=True)
    x_NB = _design(codes_N, len(names))
    ridge_BB = np.diag([0.0] + [RIDGE] * len(names))
    corrected_NP = z_NP.astype(np.float64)
    for k, r_N in enumerate(r_NK.T):
        weighted_BN = (x_NB * r_N[:, None]).T
        e_BB, f_BP = weighted_BN @ x_NB + ridge_BB, weighted_BN @ z_NP
        e_BB[0, 0] += n_K[k]
        f_BP[0] += c_KP[k]
        b_BP = np.linalg.solve(e_BB, f_BP)
        b_BP[0] = 0  # what is common to all batches stays
        corrected_NP -= weighted_BN.T @ b_BP
    return corrected_NP


def _design(codes_N: Codes, n_batches: int) -> Floats:
    """Return a column of ones (the intercept), then one column for each batch."""
    x_NB = np.eye(1 + n_batches)[1 + codes_N]
    x_NB[:, 0] = 1
    return x_NB


def _soft_clusters(z_NP: Floats, c_KP: Floats) -> Floats:
    cosine_NK = _unit(z_NP) @ _unit(c_KP).T
    logit_NK = -2 * (1 - cosine_NK) / SIGMA
    p_NK = np.exp(logit_NK - logit_NK.max(axis=1, keepdims=True))
    return np.asarray(p_NK / p_NK.sum(axis=1, keepdims=True))


def _unit(z_NP: Floats) -> Floats:
    length_N1 = np.linalg.norm(z_NP, axis=1, keepdims=True)
    return np.asarray(z_NP / np.where(length_N1 > 0, length_N1, 1), dtype=np.float64)
