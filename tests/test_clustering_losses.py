"""The losses and closed forms of DeepBID: small cases worked out by hand, plain loops, and what permutations change."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score
from torch import Tensor
from torch.testing import assert_close

from scmedley.nn import clustering

N, P, K, B = 11, 3, 4, 3


def case(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, centres, batches (the last has one cell) and their shares, in float64."""
    draw = torch.Generator().manual_seed(seed)
    z_NP, centre_KP = (torch.randn(n, P, generator=draw, dtype=torch.float64) for n in (N, K))
    b_N = torch.tensor([0, 1] * 5 + [2])
    return z_NP, centre_KP, b_N, torch.bincount(b_N).double() / N


def length(x: Tensor) -> float:
    return math.sqrt(sum(float(v) ** 2 for v in x))


def test_memberships_are_equation_14() -> None:
    # Distances 1 and 2: exp(-1) / (exp(-1) + exp(-2)) = 1 / (1 + exp(-1))
    found = clustering.memberships(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 0.0]]))
    first = 1 / (1 + math.exp(-1))
    assert found.tolist() == [pytest.approx([first, 1 - first])]
    z_NP, centre_KP, *_ = case()
    p_NK = clustering.memberships(z_NP, centre_KP)
    for j in range(N):
        parts = [math.exp(-length(z_NP[j] - c)) for c in centre_KP]
        assert p_NK[j].tolist() == pytest.approx([part / sum(parts) for part in parts])
    assert_close(p_NK.sum(1), torch.ones(N, dtype=torch.float64))


def test_centres_are_equation_13_and_one_without_weight_stays() -> None:
    z_NP = torch.tensor([[0.0, 0.0], [4.0, 8.0]])
    weight_NK = torch.tensor([[0.25, 0.0], [0.75, 0.0]])
    found = clustering.centres(weight_NK, z_NP, torch.tensor([[9.0, 9.0], [5.0, 6.0]]))
    assert found.tolist() == [[3.0, 6.0], [5.0, 6.0]]


def test_adaptive_loss_is_equation_3() -> None:
    # From (3, 4) to (0, 0): 5, d = 7 / 36. To (3, 3): 1, d = 3 / 4.
    z_NP, centre_KP = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0], [3.0, 3.0]])
    found = clustering.adaptive_loss(z_NP, centre_KP, torch.tensor([[0.25, 0.75]]))
    assert float(found) == pytest.approx(0.25 * 7 / 36 * 25 + 0.75 * 3 / 4)
    z_NP, centre_KP, *_ = case()
    p_NK, total = clustering.memberships(z_NP, centre_KP), 0.0
    for j in range(N):
        for k in range(K):
            r = length(z_NP[j] - centre_KP[k])
            total += (r + 2) / (r + 1) ** 2 * float(p_NK[j, k]) * r**2
    assert float(clustering.adaptive_loss(z_NP, centre_KP, p_NK)) == pytest.approx(total)


def test_a_cell_on_a_centre_has_finite_gradients() -> None:
    z_NP = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    centre_KP, b_N = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.zeros(3, dtype=torch.int64)
    p_NK = clustering.memberships(z_NP, centre_KP)
    loss = clustering.adaptive_loss(z_NP, centre_KP, p_NK) + clustering.neighbour_kl(z_NP, b_N)
    loss.backward()
    assert z_NP.grad is not None
    assert z_NP.grad.isfinite().all()


def test_weight_penalty_is_equation_4() -> None:
    assert float(clustering.weight_penalty([torch.tensor([[1.0, -2.0]]), torch.tensor([3.0])])) == 14.0


def test_neighbour_kl_by_hand() -> None:
    # Cells at 0, 1 and 3: kernels 1/2, 1/5 and 1/10. q(j|i) by rows i:
    q = {
        (0, 1): Fraction(5, 6),
        (0, 2): Fraction(1, 6),
        (1, 0): Fraction(5, 7),
        (1, 2): Fraction(2, 7),
        (2, 0): Fraction(1, 3),
        (2, 1): Fraction(2, 3),
    }
    # sum_l q(j|l): for j = 0 it is 5/7 + 1/3 = 22/21, for 1 5/6 + 2/3 = 3/2, for 2 1/6 + 2/7 = 19/42.
    chosen = [Fraction(22, 21), Fraction(3, 2), Fraction(19, 42)]
    total = 0.0
    for i in range(3):
        part = {j: q[i, j] ** 2 / chosen[j] for j in range(3) if j != i}
        for j, value in part.items():
            p = value / sum(part.values())
            total += float(p) * math.log(p / q[i, j])
    z_NP = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    assert float(clustering.neighbour_kl(z_NP, torch.zeros(3, dtype=torch.int64))) == pytest.approx(total)


def plain_neighbour_kl(z_NP: Tensor, b_N: Tensor, at: Tensor) -> float:
    """Eq. 7-9 in loops; the target is that of the latents ``at``."""

    def q(z: Tensor, j: int, i: int) -> float:
        def kernel(k: int) -> float:
            return 1 / (1 + length(z[i] - z[k]) ** 2)

        return 0.0 if i == j else kernel(j) / sum(kernel(k) for k in of_batch if k != i)

    total = 0.0
    for batch in set(b_N.tolist()):
        of_batch = [j for j in range(len(b_N)) if int(b_N[j]) == batch]
        for i in of_batch:
            raw = {
                j: q(at, j, i) ** 2 / sum(q(at, j, other) for other in of_batch) for j in of_batch if j != i
            }
            for j, value in raw.items():
                p = value / sum(raw.values())
                total += p * math.log(p / q(z_NP, j, i))
    return total


def test_neighbour_kl_is_within_each_batch_and_its_target_is_constant() -> None:
    z_NP, _, b_N, _ = case()
    z_NP.requires_grad_()
    found = clustering.neighbour_kl(z_NP, b_N)
    assert float(found.detach()) == pytest.approx(plain_neighbour_kl(z_NP.detach(), b_N, z_NP.detach()))
    found.backward()
    assert z_NP.grad is not None
    assert (z_NP.grad[-1] == 0).all()  # alone in its batch
    for j, p in ((0, 0), (3, 2)):
        step = torch.zeros_like(z_NP)
        step[j, p] = 1e-5
        up, down = (plain_neighbour_kl(z_NP.detach() + s, b_N, z_NP.detach()) for s in (step, -step))
        assert float(z_NP.grad[j, p]) == pytest.approx((up - down) / 2e-5, rel=1e-5)


def test_composition_kl_by_hand() -> None:
    # Cluster 0: batch 0 has 1.0 of 1.5, u = (2/3, 1/3). Cluster 1: 1.0 of 2.5, u = (2/5, 3/5). v = (1/4, 3/4).
    p_NK = torch.tensor([[0.75, 0.25], [0.25, 0.75], [0.5, 1.5]])
    found = clustering.composition_kl(p_NK, torch.tensor([0, 0, 1]), torch.tensor([0.25, 0.75]))
    by_hand = 2 / 3 * math.log(8 / 3) + 1 / 3 * math.log(4 / 9) + 0.4 * math.log(1.6) + 0.6 * math.log(0.8)
    assert float(found) == pytest.approx(by_hand)


def test_composition_is_that_of_all_cells_where_batches_are_mixed_and_an_absent_batch_adds_nothing() -> None:
    p_NK = torch.full((4, 2), 0.5, requires_grad=True)
    b_N, share_B = torch.tensor([0, 1, 1, 1]), torch.tensor([0.25, 0.75])
    assert float(clustering.composition_kl(p_NK, b_N, share_B).detach()) == pytest.approx(0, abs=1e-6)
    found = clustering.composition_kl(p_NK, b_N, torch.tensor([0.2, 0.6, 0.2]))
    found.backward()
    assert float(found.detach()) == pytest.approx(2 * math.log(1.25), rel=1e-5)
    assert p_NK.grad is not None
    assert p_NK.grad.isfinite().all()


@pytest.mark.parametrize("fuzzifier", [1.5, 2.0])
def test_fuzzy_k_means_is_bezdeks(fuzzifier: float) -> None:
    z_NP, centre_KP, *_ = case()
    z, c = z_NP.numpy(), centre_KP.numpy()
    for _ in range(3):
        d = np.array([[np.linalg.norm(a - b) for b in c] for a in z])
        u = np.array(
            [
                [1 / sum((row[k] / other) ** (2 / (fuzzifier - 1)) for other in row) for k in range(K)]
                for row in d
            ]
        )
        before, c = u, (u**fuzzifier).T @ z / (u**fuzzifier).sum(0)[:, None]
    p_NK, _ = clustering.fuzzy_k_means(z_NP, centre_KP, fuzzifier, rounds=2)
    assert p_NK.numpy() == pytest.approx(before)
    assert clustering.fuzzy_k_means(z_NP, centre_KP, fuzzifier, rounds=3)[1].numpy() == pytest.approx(c)


def test_fuzzy_k_means_of_many_dimensions_puts_all_centres_on_the_mean() -> None:
    torch.manual_seed(0)
    z_NP = torch.randn(60, 300).double()
    z_NP[:30] += 0.5  # 8.7 between the two means, 17 within
    start_KP = torch.stack([z_NP[:30].mean(0), z_NP[30:].mean(0)])
    _, centre_KP = clustering.fuzzy_k_means(z_NP, start_KP)
    assert float((start_KP[0] - start_KP[1]).norm()) > 8
    assert float((centre_KP - z_NP.mean(0)).norm(dim=1).max()) < 0.01


def test_entropy_and_information() -> None:
    p_NK = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.5, 0.5]])
    assert clustering.entropy(p_NK).tolist() == pytest.approx([0, 0, math.log(2), math.log(2)])
    assert float(clustering.information(p_NK)) == pytest.approx(math.log(2) / 2)
    code = torch.tensor([0, 1, 1, 2, 2, 2])
    hard_NK = torch.nn.functional.one_hot(code).double()
    assert float(clustering.information(hard_NK)) == pytest.approx(mutual_info_score(range(6), code))
    assert float(clustering.information(torch.full((5, 3), 1 / 3))) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("what", ["cells", "batches", "clusters"])
def test_permutations_change_the_order_alone(what: str) -> None:
    z_NP, centre_KP, b_N, share_B = case()
    sizes = {"cells": N, "batches": B, "clusters": K}
    order = torch.randperm(sizes[what], generator=torch.Generator().manual_seed(1))
    cells, clusters = (order if what == name else slice(None) for name in ("cells", "clusters"))
    z, c = z_NP[cells], centre_KP[clusters]
    b, v = (order.argsort()[b_N], share_B[order]) if what == "batches" else (b_N[cells], share_B)
    p_NK, permuted_NK = clustering.memberships(z_NP, centre_KP), clustering.memberships(z, c)
    assert_close(permuted_NK, p_NK[cells][:, clusters])
    assert_close(clustering.centres(permuted_NK, z, c), clustering.centres(p_NK, z_NP, centre_KP)[clusters])
    for loss, permuted in (
        (clustering.adaptive_loss(z_NP, centre_KP, p_NK), clustering.adaptive_loss(z, c, permuted_NK)),
        (clustering.neighbour_kl(z_NP, b_N), clustering.neighbour_kl(z, b)),
        (clustering.composition_kl(p_NK, b_N, share_B), clustering.composition_kl(permuted_NK, b, v)),
    ):
        assert_close(permuted, loss)
    fuzzy, permuted_fuzzy = clustering.fuzzy_k_means(z_NP, centre_KP), clustering.fuzzy_k_means(z, c)
    assert_close(permuted_fuzzy[0], fuzzy[0][cells][:, clusters])
    assert_close(permuted_fuzzy[1], fuzzy[1][clusters])
