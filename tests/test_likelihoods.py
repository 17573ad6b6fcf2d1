"""Log-likelihoods of counts and of log-normalised values: scipy.stats, autograd, dense forms, extreme values."""

from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy import stats
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from scmedley.nn.likelihoods import (
    gaussian,
    negative_binomial,
    poisson,
    zero_inflated_negative_binomial,
)


@pytest.fixture
def cells() -> dict[str, Tensor]:
    """12 cells x 30 genes, most counts zero, in float64; cell 3 has no counts."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    mean_NG = torch.exp(1.5 * normal(12, 30))
    x_NG = torch.poisson(mean_NG * torch.exp(normal(12, 30)), generator=draw) * (normal(12, 30) > 0)
    x_NG[3] = 0
    return {
        "x": x_NG,
        "mean": mean_NG,
        "theta": torch.exp(2 * normal(30)),
        "theta_NG": torch.exp(2 * normal(12, 30)),
        "logit": 2 * normal(12, 30),
    }


def dense_negative_binomial(x: Tensor, mean: Tensor, theta: Tensor) -> Tensor:
    """The textbook form, with log Gamma of every gene; of each cell and gene."""
    ways = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    return ways + theta * torch.log(theta / (theta + mean)) + x * torch.log(mean / (theta + mean))


def dense_zero_inflated(x: Tensor, mean: Tensor, theta: Tensor, logit: Tensor) -> Tensor:
    counted = F.logsigmoid(-logit) + dense_negative_binomial(x, mean, theta)
    return torch.where(x == 0, torch.logaddexp(F.logsigmoid(logit), counted), counted)


def test_gaussian_is_that_of_scipy(cells: dict[str, Tensor]) -> None:
    log_variance = torch.log(cells["theta"])
    expected = stats.norm.logpdf(cells["x"], cells["mean"], np.sqrt(cells["theta"].numpy())).sum(1)
    assert_allclose(gaussian(cells["x"], cells["mean"], log_variance), expected, rtol=1e-12)


def test_poisson_is_that_of_scipy(cells: dict[str, Tensor]) -> None:
    expected = stats.poisson.logpmf(cells["x"], cells["mean"]).sum(1)
    assert_allclose(poisson(cells["x"], cells["mean"]), expected, rtol=1e-10)


@pytest.mark.parametrize("shape", ["theta", "theta_NG"])
def test_negative_binomial_is_that_of_scipy(cells: dict[str, Tensor], shape: str) -> None:
    x, mean, theta = (cells[key] for key in ("x", "mean", shape))
    expected = stats.nbinom.logpmf(x, theta, theta / (theta + mean)).sum(1)
    assert_allclose(negative_binomial(x, mean, theta), expected, rtol=1e-9)


@pytest.mark.parametrize("shape", ["theta", "theta_NG"])
def test_zero_inflation_is_a_mixture_with_zero(cells: dict[str, Tensor], shape: str) -> None:
    x, mean, theta, logit = (cells[key].numpy() for key in ("x", "mean", shape, "logit"))
    share = 1 / (1 + np.exp(-logit))
    expected = np.log(share * (x == 0) + (1 - share) * stats.nbinom.pmf(x, theta, theta / (theta + mean)))
    found = zero_inflated_negative_binomial(*(torch.from_numpy(a) for a in (x, mean, theta, logit)))
    assert_allclose(found, expected.sum(1), rtol=1e-8)


def test_zero_inflation_of_none_is_the_negative_binomial(cells: dict[str, Tensor]) -> None:
    x, mean, theta = (cells[key].float() for key in ("x", "mean", "theta"))
    found = zero_inflated_negative_binomial(x, mean, theta, torch.full_like(x, -60.0))
    assert_allclose(found, negative_binomial(x, mean, theta), rtol=1e-6)


def test_a_large_theta_is_a_poisson(cells: dict[str, Tensor]) -> None:
    x, mean = cells["x"].float(), cells["mean"].float()
    found = negative_binomial(x, mean, torch.full((30,), 1e9))
    assert_allclose(found, poisson(x, mean), rtol=1e-5)


@pytest.mark.parametrize("shape", ["theta", "theta_NG"])
@pytest.mark.parametrize(
    "likelihood", [gaussian, poisson, negative_binomial, zero_inflated_negative_binomial]
)
def test_gradients_are_those_of_finite_differences(
    cells: dict[str, Tensor], likelihood: Callable[..., Tensor], shape: str
) -> None:
    x, mean, theta, logit = (cells[key][:5] for key in ("x", "mean", "theta_NG", "logit"))
    theta = theta[0] if shape == "theta" else theta
    others = {
        gaussian: (torch.log(cells["theta"]),),
        poisson: (),
        negative_binomial: (theta,),
        zero_inflated_negative_binomial: (theta, logit),
    }[likelihood]
    inputs = tuple(a.clone().requires_grad_() for a in (mean, *others))
    assert torch.autograd.gradcheck(lambda *given: likelihood(x, *given), inputs)


@pytest.mark.parametrize("shape", ["theta", "theta_NG"])
@pytest.mark.parametrize(
    ("likelihood", "dense", "names"),
    [
        (negative_binomial, dense_negative_binomial, ()),
        (zero_inflated_negative_binomial, dense_zero_inflated, ("logit",)),
    ],
)
def test_float32_is_the_dense_form(
    cells: dict[str, Tensor], likelihood: Callable[..., Tensor], dense: Callable[..., Tensor], names, shape
) -> None:
    """Values to 1e-6 and gradients to 1e-5, against the dense form in float64."""
    x = cells["x"].float()
    inputs = [cells[key].float().requires_grad_() for key in ("mean", shape, *names)]
    exact = [a.detach().double().requires_grad_() for a in inputs]
    found, expected = likelihood(x, *inputs), dense(x.double(), *exact).sum(1)
    assert found.dtype == torch.float32
    assert_allclose(found.detach(), expected.detach(), rtol=1e-6)
    found.sum().backward()
    expected.sum().backward()
    for a, b in zip(inputs, exact, strict=True):
        assert_allclose(a.grad, b.grad, rtol=1e-5, atol=1e-5 * b.grad.abs().max().item())


@pytest.mark.parametrize("theta", [1e-4, 1.0, 1e6])
@pytest.mark.parametrize("mean", [1e-8, 1.0, 3e5])
@pytest.mark.parametrize("logit", [-50.0, 50.0])
def test_extreme_values_are_finite_and_right(theta: float, mean: float, logit: float) -> None:
    x = torch.tensor([[0.0, 1.0, 40.0, 3e5, 2e6]])
    mean_NG = torch.full((1, 5), mean).requires_grad_()
    theta_G = torch.full((5,), theta).requires_grad_()
    logit_NG = torch.full((1, 5), logit).requires_grad_()
    found = negative_binomial(x, mean_NG, theta_G)
    r, mu = theta_G.detach().double(), mean_NG.detach().double()
    rounding = 2e-7 * (x.sum() + mean_NG.sum()).item()  # of float32: the zero term alone is about -mean
    assert_allclose(found.detach(), exact_negative_binomial(x, mu, r), rtol=1e-6, atol=rounding)
    total = found + zero_inflated_negative_binomial(x, mean_NG, theta_G, logit_NG) + poisson(x, mean_NG)
    total.sum().backward()
    assert torch.isfinite(total).all()
    assert all(torch.isfinite(a.grad).all() for a in (mean_NG, theta_G, logit_NG))


def exact_negative_binomial(x: Tensor, mean: Tensor, theta: Tensor) -> float:
    mpmath.mp.dps = 50
    total = mpmath.mpf(0)
    for k, m, r in zip(
        x.double().ravel().tolist(), mean.ravel().tolist(), theta.ravel().tolist(), strict=True
    ):
        k, m, r = mpmath.mpf(k), mpmath.mpf(m), mpmath.mpf(r)
        total += mpmath.loggamma(k + r) - mpmath.loggamma(r) - mpmath.loggamma(k + 1)
        total += r * mpmath.log(r / (r + m)) + k * mpmath.log(m / (r + m))
    return float(total)


def test_a_mean_of_zero_is_finite() -> None:
    """A softmax can round to 0."""
    mean = torch.zeros(1, 2, requires_grad=True)
    x = torch.tensor([[0.0, 5.0]])
    total = poisson(x, mean) + negative_binomial(x, mean, torch.ones(2))
    total.sum().backward()
    assert torch.isfinite(total).all()
    assert torch.isfinite(mean.grad).all()


def test_autocast_changes_nothing(cells: dict[str, Tensor]) -> None:
    """Training may compute products of matrices in bfloat16, which the sum over genes is one of."""
    x, mean, theta = (cells[key].float() for key in ("x", "mean", "theta"))
    for likelihood, others in ((negative_binomial, (theta,)), (gaussian, (theta,)), (poisson, ())):
        inputs = [a.clone().requires_grad_() for a in (mean, *others)]
        same = [a.clone().requires_grad_() for a in (mean, *others)]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = likelihood(x, *inputs)
            torch.autograd.backward(found.sum(), inputs=inputs)
        expected = likelihood(x, *same)
        torch.autograd.backward(expected.sum(), inputs=same)
        assert torch.equal(found, expected)
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(inputs, same, strict=True))


def test_cells_without_counts_have_the_zero_term_alone() -> None:
    x, mean, theta = torch.zeros(2, 3), torch.full((2, 3), 2.0), torch.tensor([0.5, 1.0, 4.0])
    assert_allclose(poisson(x, mean), [-6, -6])
    expected = -(theta * torch.log1p(2 / theta)).sum()
    assert_allclose(negative_binomial(x, mean, theta), [expected] * 2, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(cells: dict[str, Tensor], dtype: torch.dtype) -> None:
    x, mean, theta = cells["x"].float(), cells["mean"].to(dtype), cells["theta"].to(dtype)
    found = negative_binomial(x, mean, theta)
    assert found.dtype == torch.float32
    assert_allclose(found, negative_binomial(x, mean.float(), theta.float()))
