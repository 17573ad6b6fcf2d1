"""How much faster is the negative binomial that skips zeros than its dense form, and is it equal?

    python benchmarks/likelihoods.py [--cells 512] [--genes 3000] [--non-zero 0.1] [--rounds 30]

Forward and backward pass (gradients of means and theta) on one thread. Both forms take turns in one process, so a
busy machine slows both: CPU seconds (not the clock's) of each round are compared in pairs, and medians are
printed. The values are compared with the dense form in float64.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from common import record
from scmedley.device import keep_freed_memory
from scmedley.io import write_json
from scmedley.nn.likelihoods import negative_binomial, zero_inflated_negative_binomial

WARM_UP = 3  # rounds that are not counted


def dense_nb(x: Tensor, mean: Tensor, theta: Tensor) -> Tensor:
    """Return log NB of each cell and gene, with log Gamma of every one."""
    log_sum = torch.log(theta + mean)
    ways = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    return ways + theta * (torch.log(theta) - log_sum) + x * (torch.log(mean) - log_sum)


def dense_zinb(x: Tensor, mean: Tensor, theta: Tensor, logit: Tensor) -> Tensor:
    """Return log ZINB of each cell and gene."""
    counted = torch.nn.functional.logsigmoid(-logit) + dense_nb(x, mean, theta)
    inflated = torch.logaddexp(torch.nn.functional.logsigmoid(logit), counted)
    return torch.where(x == 0, inflated, counted)


def simulated(n_cells: int, n_genes: int, share: float) -> tuple[Tensor, list[Tensor]]:
    """Return counts of which ``share`` are above 0, and means, theta per gene and logits of zeros."""
    torch.manual_seed(0)
    counts = 1 + torch.poisson(torch.rand(n_cells, n_genes).square() * 5)
    x = torch.where(torch.rand(n_cells, n_genes) < share, counts, torch.zeros(()))
    mean = torch.softmax(torch.randn(n_cells, n_genes), 1) * x.sum(1, keepdim=True)
    theta = torch.exp(torch.randn(n_genes))
    return x, [mean, theta, torch.randn(n_cells, n_genes)]


def seconds(loss: Callable[..., Tensor], x: Tensor, inputs: list[Tensor]) -> float:
    """Return the CPU seconds of a forward and a backward pass."""
    leaves = [a.clone().requires_grad_() for a in inputs]
    start = time.process_time()
    torch.autograd.grad(loss(x, *leaves).mean(), leaves)
    return time.process_time() - start


def main() -> None:
    """Print and store times and differences of both forms."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, default=512)
    parser.add_argument("--genes", type=int, default=3000)
    parser.add_argument("--non-zero", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--results", type=Path, help="JSON file to write")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as training does
    x, inputs = simulated(given.cells, given.genes, given.non_zero)
    found = {}
    for name, skipping, dense, n in (
        ("NB", negative_binomial, dense_nb, 2),
        ("ZINB", zero_inflated_negative_binomial, dense_zinb, 3),
    ):
        pairs = [
            (seconds(dense, x, inputs[:n]), seconds(skipping, x, inputs[:n]))
            for _ in range(WARM_UP + given.rounds)
        ][WARM_UP:]
        exact = dense(x.double(), *(a.double() for a in inputs[:n])).sum(1)
        found[name] = {
            "dense_ms": 1e3 * median(slow for slow, _ in pairs),
            "zeros_skipped_ms": 1e3 * median(fast for _, fast in pairs),
            "times_faster": median(slow / fast for slow, fast in pairs),
            "relative_difference": float(((skipping(x, *inputs[:n]) - exact) / exact).abs().max()),
        }
        words = "{}: dense {dense_ms:.1f} ms, zeros skipped {zeros_skipped_ms:.1f} ms, {times_faster:.2f} times faster"
        print((words + "; differs by {relative_difference:.1e}").format(name, **found[name]))
    if given.results:
        write_json(
            record(threads=1) | {"cells": given.cells, "genes": given.genes, "results": found}, given.results
        )


if __name__ == "__main__":
    main()
