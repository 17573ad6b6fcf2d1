"""The benchmark of differential expression: what is called where nothing differs."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
if not BENCHMARKS.exists():  # in a source distribution
    pytest.skip("no benchmarks here", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import differential as benchmark  # noqa: E402


@pytest.mark.parametrize("test", ["wilcoxon", "welch"])
def test_calls_are_of_genes_that_differ_alone(test: str) -> None:
    rng = np.random.default_rng(0)
    group = np.repeat(["a", "b", ""], 60)
    x = rng.poisson(5.0, (180, 40)).astype(float)
    x[:60, :2] *= 3  # differ between a and b, with equal totals
    x[60:120, 2:4] *= 3
    x[120:, 4:7] *= 9  # differ in the cells of no group
    x[:, 39] = 0
    called = benchmark.called_by(test, x, group)
    assert called[:4].all()
    assert called[4:].sum() <= 2


def test_groups() -> None:
    obs = pd.DataFrame({"label": list("xxxxxxyyyyzz"), "batch": list("111122111112")})
    half = benchmark.halves(obs, seed=0)
    assert sorted(half[:4]) == ["a", "a", "b", "b"]
    assert (half[4:] == "").all()
    assert list(benchmark.labels(obs)) == ["a"] * 6 + ["b"] * 4 + ["", ""]
