"""The t-interval: the textbook's, and as wide as it says."""

import numpy as np
import pytest
from scipy import stats

from scmedley.evaluate import t_interval


@pytest.mark.parametrize("n", [2, 3, 5, 40])
def test_interval_is_that_of_the_textbook(n: int) -> None:
    values = np.random.default_rng(n).normal(3, 2, n)
    mean, low, high = t_interval(list(values))
    half = stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n)
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((mean - half, mean + half))


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    ends = np.array([t_interval(list(rng.normal(1, 3, 5))) for _ in range(1000)])
    assert ((ends[:, 1] < 1) & (ends[:, 2] > 1)).mean() == pytest.approx(0.95, abs=0.02)


def test_few_values_and_undefined_ones() -> None:
    assert np.isnan(t_interval([])).all()
    mean, low, high = t_interval([0.4])
    assert mean == 0.4
    assert np.isnan([low, high]).all()
    assert t_interval([0.1, float("nan"), 0.3]) == t_interval([0.1, 0.3])
    assert t_interval([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)
