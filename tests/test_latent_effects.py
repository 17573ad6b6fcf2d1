"""Latent random effects: known offsets are found and shrunk, batches without an effect have none."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.nn import functional as F  # noqa: N812

from scmedley.nn.clustering import spherical_k_means, spherical_shares
from scmedley.nn.latent_effects import (
    LEAST_LAMBDA,
    SHRINKAGE,
    Correction,
    LatentEffects,
    Ridge,
    shrunk,
)

P, B, K = 4, 3, 8


def clusters(n: int = 900, spread: float = 0.1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three separate clusters on the axes, each with cells of all batches: latent, batch, cluster."""
    torch.manual_seed(0)
    k_N, b_N = torch.arange(n) % 3, (torch.arange(n) // 3) % B
    return 3 * torch.eye(P)[k_N] + spread * torch.randn(n, P), b_N, k_N


def fitted(z_NP: torch.Tensor, b_N: torch.Tensor, n_batches: int = B, times: int = 5) -> LatentEffects:
    effects = LatentEffects(n_batches, K, P)
    for _ in range(times):
        effects.update(z_NP, b_N)
    return effects


def test_known_offsets_are_found_in_each_cluster() -> None:
    """Each batch is moved by its own vector in each cluster; the offsets are these less their mean."""
    z_NP, b_N, k_N = clusters()
    true_KBP = 0.5 * torch.randn(3, B, P)
    true_KBP -= true_KBP.mean(1, keepdim=True)
    effects = fitted(z_NP + true_KBP[k_N, b_N], b_N)
    found_NP = effects.offset(z_NP + true_KBP[k_N, b_N], b_N)
    assert_allclose(found_NP, true_KBP[k_N, b_N] / (1 + SHRINKAGE), atol=0.12)
    assert np.corrcoef(found_NP.flatten(), true_KBP[k_N, b_N].flatten())[0, 1] > 0.98


def test_batches_that_do_not_differ_have_almost_no_offset() -> None:
    z_NP, b_N, _ = clusters()
    assert fitted(z_NP, b_N).offset(z_NP, b_N).abs().max() < 0.05


def test_a_batch_with_its_own_cell_type_keeps_it() -> None:
    """Cells of a cluster that one batch alone has are not moved to other clusters."""
    z_NP, b_N, k_N = clusters()
    b_N = torch.where(k_N == 2, 2, b_N % 2)
    offset_NP = fitted(z_NP, b_N).offset(z_NP, b_N)
    assert offset_NP[k_N == 2].norm(dim=1).max() < 0.3  # the next cluster is 4.2 away


def test_one_cluster_is_a_ridge_regression() -> None:
    """With one cluster, all of D_b is the offset of the batch in all clusters: n / (n + 2) of the difference."""
    z_NP, b_N = torch.randn(60, P) + 5, torch.tensor([0] * 30 + [1] * 20 + [2] * 10)
    effects = LatentEffects(B, 1, P)
    effects.update(z_NP, b_N)
    n_B = np.array([30, 20, 10])
    lambda_B = SHRINKAGE * n_B
    mean_BP = np.stack([z_NP[b_N == b].mean(0).numpy() for b in range(B)])
    precision_B = n_B * lambda_B / (n_B + lambda_B)
    centre_P = (precision_B[:, None] * mean_BP).sum(0) / precision_B.sum()
    found_BP, n_B1 = mean_BP - centre_P, n_B[:, None]
    batch_BP = n_B1 / (n_B1 + LEAST_LAMBDA) * found_BP
    lambda_B1 = np.maximum(lambda_B, LEAST_LAMBDA)[:, None]
    expected_BP = batch_BP + n_B1 / (n_B1 + lambda_B1) * (found_BP - batch_BP)
    assert_allclose(effects.offset_BKP[:, 0], expected_BP, rtol=1e-4, atol=1e-5)


def test_offsets_of_a_minibatch_are_those_of_the_update() -> None:
    z_NP, b_N, _ = clusters()
    effects = fitted(z_NP, b_N)
    whole = effects.offset(z_NP, b_N)
    assert_allclose(effects.offset(z_NP[::7], b_N[::7]), whole[::7], atol=1e-6)
    assert (effects.offset(z_NP, torch.full_like(b_N, -1)) == 0).all()


def test_no_offset_before_the_first_update() -> None:
    z_NP, b_N, _ = clusters(30)
    assert (LatentEffects(B, K, P).offset(z_NP, b_N) == 0).all()


@pytest.mark.parametrize("n", [3, 12, 90])
def test_few_cells_have_few_clusters(n: int) -> None:
    z_NP, b_N, _ = clusters(n)
    effects = fitted(z_NP, b_N)
    used = int(effects.direction_KP.any(1).sum())
    assert used == min(K, max(2, round(n / 30)), n)
    assert torch.isfinite(effects.offset(z_NP, b_N)).all()
    share_NK = spherical_shares(z_NP, effects.direction_KP)
    assert_allclose(share_NK.sum(1), 1, rtol=1e-6)
    assert (share_NK[:, used:] == 0).all()


def test_an_absent_batch_has_no_offset() -> None:
    z_NP, b_N, _ = clusters()
    effects = fitted(z_NP, b_N, n_batches=B + 1)
    assert (effects.offset_BKP[B] == 0).all()


def test_first_centres_find_the_clusters() -> None:
    z_NP, _, k_N = clusters()
    centre_KP = spherical_k_means(F.normalize(z_NP, dim=1), 3)
    nearest_N = (F.normalize(z_NP, dim=1) @ centre_KP.t()).argmax(1)
    assert len({(int(a), int(b)) for a, b in zip(nearest_N, k_N, strict=True)}) == 3


def test_a_new_batch_is_moved_to_the_others() -> None:
    """Its offsets come from its own cells; clusters and the offsets of known batches stay the same bits."""
    z_NP, b_N, k_N = clusters()
    effects = fitted(z_NP, b_N)
    before = {name: value.clone() for name, value in effects.state_dict().items()}
    new_NP = z_NP[:300] + 0.8 * torch.eye(P)[3]  # every cluster is moved along the last axis
    effects.extend(1)
    code_N = torch.full((300,), B)
    effects.learn(new_NP, code_N)
    moved_NP = new_NP - effects.offset(new_NP, code_N)
    for k in range(3):
        gap_P = moved_NP[k_N[:300] == k].mean(0) - z_NP[k_N == k].mean(0)
        assert gap_P.norm() < 0.25  # 0.8 before, of which the ridge leaves a sixth
    for name, value in before.items():
        assert torch.equal(effects.state_dict()[name][: len(value)], value)


def test_leave_one_out_is_a_fit_without_the_row() -> None:
    """Against regressions that leave each row out in turn, at the same penalty and standardisation."""
    torch.manual_seed(1)
    x_NF, y_NP = torch.randn(40, 5), torch.randn(40, 2)
    x_NF = (x_NF - x_NF.mean(0)) / x_NF.std(0)
    y_NP = y_NP + x_NF[:, :2]
    ridge = Ridge(x_NF, y_NP)
    found_NP = ridge.left_out(y_NP)
    values_F = torch.linalg.eigvalsh(x_NF.double().t() @ x_NF.double())
    penalty = float(1 / ridge.inverse_F[0] - values_F[0])
    for row in range(40):
        kept = np.arange(40) != row
        # A constant that is not penalised is part of the regression.
        design = np.column_stack([x_NF[kept], np.ones(39)])
        free = np.diag([penalty] * 5 + [0.0])
        weights = np.linalg.solve(design.T @ design + free, design.T @ y_NP[kept].numpy())
        assert_allclose(np.append(x_NF[row], 1) @ weights, found_NP[row], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("noise", [0.1, 1.5])
def test_the_correction_removes_offsets_that_features_tell(noise: float) -> None:
    """A correction learnt on half of the cells removes the batch from the others.

    With much noise the features tell a batch only roughly, so one regression predicts a small share of its offset.
    """
    z_NP, b_N, _ = clusters(6000)
    gap_BP = 0.6 * F.normalize(torch.randn(B, P), dim=1)
    z_NP = z_NP + gap_BP[b_N]
    features_NF = torch.cat(
        [F.one_hot(b_N, B) + noise * torch.randn(len(b_N), B), torch.randn(len(b_N), 20)], 1
    )
    correction = Correction(features_NF.shape[1], P)
    correction.fit(features_NF[::2], z_NP[::2], b_N[::2], fitted(z_NP[::2], b_N[::2]))
    new_NP, new_N = (z_NP - correction(features_NF))[1::2], b_N[1::2]
    before_BP, after_BP = (
        torch.stack([z[n == b].mean(0) for b in range(B)]) for z, n in ((z_NP, b_N), (new_NP, new_N))
    )
    assert (after_BP - after_BP.mean(0)).norm() < 0.25 * (before_BP - before_BP.mean(0)).norm()


def test_features_without_the_batch_correct_almost_nothing() -> None:
    z_NP, b_N, _ = clusters()
    features_NF = torch.randn(len(z_NP), 50)
    correction = Correction(50, P)
    correction.fit(features_NF, z_NP, b_N, fitted(z_NP, b_N))
    assert correction(features_NF).norm(dim=1).mean() < 0.05


def test_few_cells_have_the_offset_of_their_batch() -> None:
    """In a cluster with no cell of a batch its offset is that of the batch; with many, what they show."""
    found_BKP = torch.tensor([[[1.0], [1.0], [5.0]]])
    n_BK, lambda_BK = torch.tensor([[1000.0, 1000.0, 0.0]]), torch.tensor([[0.1, 0.1, 0.1]])
    assert_allclose(shrunk(found_BKP, n_BK, lambda_BK)[0, :, 0], [1, 1, 1], atol=0.01)
    n_BK[0, 2] = 400.0
    assert 4.9 < float(shrunk(found_BKP, n_BK, lambda_BK)[0, 2, 0]) < 5
    one_cell = torch.zeros(1, 3)
    one_cell[0, 1] = 1.0
    assert float(shrunk(found_BKP, one_cell, lambda_BK)[0, 1, 0]) < 0.6  # of 1.0, as of a single cell
