"""How many cells per second does training process, and what does each optimisation gain?

    python benchmarks/train_step.py                 # speed, then the gain of each optimisation
    python benchmarks/train_step.py --no-tricks     # speed alone
    python benchmarks/train_step.py --no-tricks --plain-malloc --results FILE   # gain of keeping freed memory

Simulated cells: 20,000 x 3,000 genes x 30 batches, 10 % of the values above 0; 18,000 of the cells train,
2,000 validate; minibatches of 512, scaled as the preset does. ``train.loop.fit`` is timed for whole epochs:
making the optimisers, every training step, and a pass over the validation cells after each epoch. Cells per
second are training cells times epochs over seconds: the validation cells cost time and are not counted.
Configurations alternate, so that a machine that slows down slows all of them; medians over rounds are printed.

Shapes: N cells, G genes, B batches, H units of a layer.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from common import record
from scmedley.data.resident import MemoryRows, Resident
from scmedley.data.scale import Scale
from scmedley.device import keep_freed_memory, resolve_precision
from scmedley.io import write_json
from scmedley.models import Autoencoder, FixedEffects, RandomEffects
from scmedley.models import adversarial as fe_module
from scmedley.models import autoencoder as ae_module
from scmedley.models import random_effects as re_module
from scmedley.nn import bayesian, layers, matmul
from scmedley.train import loop

CPU = torch.device("cpu")
MODELS: dict[str, Any] = {"AE": Autoencoder, "FE": FixedEffects, "RE": RandomEffects}
# Cells per second of the authors' TensorFlow networks on 2 cores with avx512_bf16: slowest, fastest.
TENSORFLOW = {"AE": (12_800, 12_800), "FE": (9_700, 9_700), "RE": (5_400, 8_300)}
GOAL = 2.5  # times TensorFlow, with precision="auto"

Variant = Callable[[], AbstractContextManager[object]]


class Bench:
    """Simulated cells, and a stopwatch around the training loop."""

    def __init__(self, n_cells: int, n_genes: int, n_batches: int, batch_size: int):
        rng = np.random.default_rng(0)
        # The share of cells that express a gene differs between genes, 10 % on average. Values are from 0 to 1,
        # which min-max leaves nearly as they are.
        share_G = rng.beta(0.5, 4.5, n_genes)
        blocks = [rng.random((1000, n_genes), np.float32) for _ in range(-(-n_cells // 1000))]
        found = sparse.vstack([sparse.csr_matrix(block < share_G) for block in blocks])[:n_cells]
        self.x_NG = sparse.csr_matrix(found, dtype=np.float32)
        self.x_NG.data = rng.random(self.x_NG.nnz, np.float32)
        self.cells = Resident(self.x_NG, rng.integers(0, n_batches, n_cells), CPU)
        self.scales = {name: Scale.fit(self.x_NG, name) for name in ("pareto", "standard", "min-max")}
        self.rows = torch.as_tensor(rng.permutation(n_cells))
        self.n_batches, self.batch_size = n_batches, batch_size

    def seconds(self, name: str, preset: str, precision: str, epochs: int, share: float = 1.0) -> float:
        """Train for ``epochs`` on ``share`` of the cells; return the seconds per training cell."""
        rows = self.rows[: int(share * len(self.rows))]
        validation, train = rows[: len(rows) // 10], rows[len(rows) // 10 :]
        settings = MODELS[name].preset(preset).replace(decay=False)
        cells = Resident(self.cells.rows, self.cells.b_N.numpy(), CPU, scale=self.scales[settings.scale])
        torch.manual_seed(0)
        network_type = MODELS[name].networks[type(settings)]
        network: Any = network_type(cells.n_genes, self.n_batches, settings)
        plan = loop.Plan(
            batch_size=self.batch_size,
            max_epochs=epochs,
            patience=epochs + 1,
            precision=precision,
            progress=False,
        )
        began = time.perf_counter()
        loop.fit(network, cells, train, validation, plan)
        return (time.perf_counter() - began) / (epochs * len(train))


def main() -> None:
    """Time the networks, then each without one optimisation; print both tables and store them."""
    options = _options()
    torch.set_num_threads(options.threads)
    if not options.plain_malloc:
        keep_freed_memory()
    bench = Bench(options.cells, options.genes, options.batches, options.batch_size)
    auto = resolve_precision("auto", CPU)
    print(f"{options.threads} threads; precision='auto' is {auto} here\n", flush=True)
    result: dict[str, Any] = record(options.threads) | {"auto": auto}
    result["speed"] = speed(bench, auto, options.rounds, options.epochs)
    if not options.no_tricks:
        result["tricks"] = tricks(bench, auto, 2 * options.rounds + 1, options.threads)
    write_json(result, options.results)


# --- speed --------------------------------------------------------------------------------------------


def speed(bench: Bench, auto: str, rounds: int, epochs: int) -> list[dict[str, Any]]:
    """Time every network, preset and precision; print them beside the goals."""
    cases = [
        (n, s, p)
        for s, n, p in itertools.product(("paper", "default"), MODELS, dict.fromkeys((auto, "float32")))
    ]
    taken: dict[tuple[str, str, str], list[float]] = {case: [] for case in cases}
    for case in cases:
        bench.seconds(*case, epochs=1, share=0.1)  # libraries choose their kernels in the first steps
    for _ in range(rounds):
        for case in cases:
            taken[case].append(bench.seconds(*case, epochs=epochs))
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(f"{'network':9}{'preset':9}{'precision':11}{'cells/s':>8}{'range':>17}{'/float32':>10}  goal")
    rows = []
    for name, preset, precision in cases:
        rates = sorted(1 / s for s in taken[name, preset, precision])
        rate, plain = median(rates), median(1 / s for s in taken[name, preset, "float32"])
        row: dict[str, Any] = {
            "network": name,
            "preset": preset,
            "precision": precision,
            "cells_per_s": round(rate),
        }
        row |= {"rounds": [round(r) for r in rates], "ratio_to_float32": round(rate / plain, 2)}
        if preset == "paper":
            factor = GOAL if precision == auto and auto != "float32" else 1.0
            row["goal"] = [factor * t for t in TENSORFLOW[name]]
        rows.append(row)
        print(
            f"{name:9}{preset:9}{precision:11}{rate:8,.0f}{rates[0]:9,.0f}-{rates[-1]:<7,.0f}"
            f"{rate / plain:10.2f}  {_verdict(rate, row.get('goal'))}"
        )
    return rows


def _verdict(rate: float, goal: list[float] | None) -> str:
    if goal is None:
        return ""
    words = "-".join(f"{g:,.0f}" for g in dict.fromkeys(goal))
    return f"{'PASS' if rate >= goal[-1] else 'within' if rate >= goal[0] else 'FAIL'} ({words})"


# --- tricks -------------------------------------------------------------------------------------------


def tricks(bench: Bench, auto: str, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Time the published networks with and without each optimisation in turn, a few steps at a time."""
    plans: list[tuple[str, str, str, Variant]] = [
        ("bf16 autocast, not float32", "AE FE RE", auto, nullcontext),  # the variant is float32, see below
        ("float32: oneDNN, not MKL", "AE FE RE", "float32", partial(_set, matmul, "ONEDNN", False)),
        ("float32: oneDNN, not CSR first layer", "AE RE", "float32", partial(csr_first_layer, bench)),
        ("fused Adam, not a loop over parameters", "AE FE RE", auto, unfused_adam),
        ("one encoder pass for both players, not two", "FE", auto, two_encoder_passes),
        ("cells resident, not gathered one by one", "AE FE RE", auto, partial(one_by_one, bench)),
        ("rows made dense by scipy, not torch", "AE", auto, partial(torch_rows, bench)),
        ("cells resident as CSR, not dense", "AE", auto, partial(dense_cells, bench)),
        ("no .item() each step", "AE FE", auto, item_each_step),
        ("fused squared error, not as written", "AE RE", auto, plain_mse),
        ("effects by one-hot product, not by index", "RE", auto, effects_by_index),
        ("noise drawn for the tables, not none", "RE", auto, no_draws),
        ("KL table by table, not all joined", "RE", auto, joined_kl),
        ("KL, not none", "RE", auto, no_kl),
        ("validation batch of 2,048, not 512", "AE RE", auto, small_validation),
        (f"{threads} threads, not 1", "AE RE", auto, partial(one_thread, threads)),
    ]
    rows = []
    print(f"\n{'what the library does':46}{'network':9}{'precision':11}{'speed-up':>9}{'range':>13}")
    for what, names, precision, variant in plans:
        if precision != "float32" and what.startswith("bf16") and auto == "float32":
            continue
        for name in names.split():
            other = "float32" if what.startswith("bf16") else precision
            ratios = []
            for turn in range(rounds + 1):
                with_it = bench.seconds(name, "paper", precision, epochs=1, share=0.25)
                with variant():
                    without = bench.seconds(name, "paper", other, epochs=1, share=0.25)
                if turn:  # the first turn warms up
                    ratios.append(without / with_it)
            ratios.sort()
            gain = median(ratios)
            rows.append({"trick": what, "network": name, "precision": precision, "speed_up": round(gain, 3)})
            spread = f"{ratios[0]:.2f}-{ratios[-1]:.2f}"
            print(f"{what:46}{name:9}{precision:11}{gain:8.2f}x{spread:>13}", flush=True)
    return rows


def _set(owner: object, name: str, value: Any) -> AbstractContextManager[object]:
    return mock.patch.object(owner, name, value)


def unfused_adam() -> AbstractContextManager[object]:
    """Step Adam parameter by parameter, with several operations each."""
    adam = torch.optim.Adam
    return _set(torch.optim, "Adam", lambda parameters, lr, fused: adam(parameters, lr=lr, foreach=False))


def two_encoder_passes() -> AbstractContextManager[object]:
    """Encode once more, without gradient, for the adversary alone."""
    network = fe_module.AdversarialNetwork
    losses = network.losses

    def twice(self: Any, cells: Any, progress: Any) -> Any:
        with torch.no_grad():
            self.encoder(cells.x_NG)
        yield from losses(self, cells, progress)

    return _set(network, "losses", twice)


@contextmanager
def _cells(bench: Bench, rows: Callable[[np.ndarray, Tensor], Tensor]) -> Iterator[None]:
    table: Any = bench.cells.rows
    with _set(table.x, "take", rows):
        yield


def one_by_one(bench: Bench) -> AbstractContextManager[object]:
    """Read and collate each cell on its own, as a DataLoader does."""
    return _cells(
        bench, lambda rows, _: torch.stack([torch.from_numpy(bench.x_NG[int(i)].toarray()[0]) for i in rows])
    )


def torch_rows(bench: Bench) -> AbstractContextManager[object]:
    """Make rows dense by the torch operations that serve a GPU."""
    table = MemoryRows(bench.x_NG, CPU).x
    table.move(bench.x_NG)
    return _cells(bench, table.take)


def dense_cells(bench: Bench) -> AbstractContextManager[object]:
    """Keep all cells dense: ten times the memory."""
    dense_NG = torch.from_numpy(bench.x_NG.toarray())
    return _cells(bench, lambda rows, _: dense_NG[rows])


def item_each_step() -> AbstractContextManager[object]:
    """Read every term from the device at every step."""
    add = loop._Means.add

    def read(self: Any, player: str, terms: Any, loss: Tensor, n_cells: int) -> None:
        terms = {k: replace(t, value=torch.tensor(t.value.item())) for k, t in terms.items()}
        add(self, player, terms, loss, n_cells)

    return _set(loop._Means, "add", read)


@contextmanager
def plain_mse() -> Iterator[None]:
    """Compute the squared error in separate steps."""

    def mse(x_NG: Tensor, xhat_NG: Tensor) -> Tensor:
        return (x_NG.float() - xhat_NG.float()).square().mean()

    with _set(ae_module, "mse", mse), _set(fe_module, "mse", mse), _set(re_module, "mse", mse):
        yield


@contextmanager
def effects_by_index() -> Iterator[None]:
    """Gather each cell's effects from the table, with a row of zeros for the population mean."""

    def codes(b_N: Tensor, n_batches: int) -> Tensor:
        return b_N.where(b_N >= 0, n_batches)

    def forward(self: Any, h_NH: Tensor, b_N: Tensor, draw: bool) -> Tensor:
        gamma, beta = (
            F.pad(t.draw_BH() if draw else t.loc_BH, (0, 0, 0, 1))[b_N].to(h_NH.dtype)
            for t in (self.gamma, self.beta)
        )
        return h_NH * (1 + gamma) + beta

    with _set(re_module, "one_hot", codes), _set(bayesian.ScaleAndBias, "forward", forward):
        yield


def no_draws() -> AbstractContextManager[object]:
    """Use the posterior means in training."""
    return _set(bayesian.EffectTable, "draw_BH", lambda self: self.loc_BH)


def no_kl() -> AbstractContextManager[object]:
    """Omit the KL."""
    return _set(bayesian.EffectTable, "kl", lambda self: self.prior_scale * 0)


def joined_kl() -> AbstractContextManager[object]:
    """Compute the KL of all tables in one set of operations."""

    class Joined:
        def __init__(self, tables: list[bayesian.EffectTable]):
            self.tables = tables

        def kl(self) -> Tensor:
            loc = torch.cat([t.loc_BH.flatten() for t in self.tables])
            scale = F.softplus(torch.cat([t.rho_BH.flatten() for t in self.tables]))
            lengths = torch.tensor([t.loc_BH.numel() for t in self.tables])
            prior = torch.stack([t.prior_scale for t in self.tables]).repeat_interleave(lengths)
            ratio = (scale.square() + loc.square()) / prior.square()
            return (torch.log(prior / scale) + 0.5 * (ratio - 1)).sum() / len(self.tables)

    return _set(re_module, "tables", lambda network: [Joined(bayesian.tables(network))])


def _quarter(plan: loop.Plan) -> loop.Plan:
    return replace(plan, batch_size=plan.batch_size // 4)


def small_validation() -> AbstractContextManager[object]:
    """Validate in minibatches of the size that training has."""
    evaluate = loop.evaluate
    return _set(
        loop,
        "evaluate",
        lambda n, c, r, p, plan, last: evaluate(n, c, r, p, _quarter(plan), last),
    )


@contextmanager
def one_thread(threads: int) -> Iterator[None]:
    """Use one CPU thread."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class _CSRProduct(torch.autograd.Function):
    """x @ weight.T + bias with x also given as CSR."""

    @staticmethod
    def forward(ctx: Any, x_csr: Any, weight_HG: Tensor, bias_H: Tensor) -> Tensor:
        ctx.x_csr = x_csr
        return _torch_csr(x_csr) @ weight_HG.t().contiguous() + bias_H

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor]:
        return None, (_torch_csr(ctx.x_csr.T.tocsr()) @ grads[0].contiguous()).t(), grads[0].sum(0)


def _torch_csr(x: Any) -> Tensor:
    indptr, indices, values = (torch.as_tensor(a) for a in (x.indptr, x.indices, x.data))
    return torch.sparse_csr_tensor(indptr, indices, values, size=x.shape)


@contextmanager
def csr_first_layer(bench: Bench) -> Iterator[None]:
    """Multiply the cells by the first layer as a sparse matrix."""
    seen: list[Any] = [None, None]  # the minibatch as CSR, and its dense form

    def rows(rows_N: np.ndarray, _: Tensor) -> Tensor:
        seen[0] = bench.x_NG[rows_N]
        seen[1] = torch.from_numpy(seen[0].toarray())
        return torch.as_tensor(seen[1])

    def maybe_csr(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
        if x_NI is seen[1]:
            y_NO: Tensor = _CSRProduct.apply(seen[0], weight_OI, bias_O)  # type: ignore[no-untyped-call]
            return y_NO
        return matmul.affine(x_NI, weight_OI, bias_O)

    with _cells(bench, rows), _set(layers, "affine", maybe_csr):
        yield


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--genes", type=int, default=3_000)
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each configuration")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of a repetition")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plain-malloc", action="store_true", help="return freed memory to the system")
    parser.add_argument("--no-tricks", action="store_true", help="measure speed alone")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "train_step.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
