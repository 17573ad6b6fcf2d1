"""Effects of batches that a fitted network with batch effects has not seen, with all else frozen.

A network offers what :mod:`scmedley.train.loop` needs, and ``drawn_error(cells)`` (the MSE of a training step) and
``kl(error, n_genes, n_cells)``.

Shapes: N cells of the call at hand, B batches known so far, H units of a layer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from anndata import AnnData
from torch import Tensor, nn

from scmedley.data.design import Design
from scmedley.data.resident import Minibatch, Resident
from scmedley.device import engine
from scmedley.errors import ScmedleyError, check_seed
from scmedley.nn.bayesian import tables

if TYPE_CHECKING:
    from scmedley.models.base import Model

M = TypeVar("M", bound="Model[Any]")

LEARNING_RATE = 0.01  # of Adam, on the new rows alone; falls to 0 along half a cosine
CPU = torch.device("cpu")


def adapted(model: M, adata: AnnData, *, steps: int, seed: int, threads: int | None) -> M:
    """Return a model that also knows the new batches of ``adata``. See :meth:`Model.adapt`."""
    model.check_effects("adapt")
    model.check_fitted()
    check_seed(seed)
    if steps < 1:
        raise ScmedleyError(f"steps is {steps}; give at least 1.")
    known = model.design.batches
    new = tuple(b for b in Design.of(adata.obs, model.batch_key).batches if b not in known)
    if not new:
        raise ScmedleyError(
            f"All batches in obs[{model.batch_key!r}] are known to the model. There is nothing to adapt: embed these "
            "cells as they are."
        )
    design = replace(model.design, batches=known + new, n_adapted=model.design.n_adapted + len(new))
    codes = design.codes(adata.obs)
    cells = adata[codes >= len(known)]
    extended = copy.copy(model)
    with engine(threads, CPU):
        torch.manual_seed(seed)
        extended.design, extended.network = design, copy.deepcopy(model.network)
        add_batches(extended.network, len(new))
        resident = model.read(cells).resident(codes[codes >= len(known)], CPU)
        _learn_rows(extended.network, resident, len(known), steps, model.settings.sizes(cells.n_obs)[0])
    extended.fitted = {**model.fitted, "adapted": {"batches": len(new), "steps": steps, "seed": seed}}
    return extended


@torch.no_grad()
def add_batches(network: Any, n_new: int) -> None:
    """Add ``n_new`` rows to every effect table, each of them the prior: mean 0, the prior's width."""
    for table in tables(network):
        shape = (n_new, table.loc_BH.shape[1])
        rho = table.prior_scale.expm1().log()  # softplus(rho) is the prior's width
        table.loc_BH = nn.Parameter(torch.cat([table.loc_BH, table.loc_BH.new_zeros(shape)]))
        table.rho_BH = nn.Parameter(torch.cat([table.rho_BH, rho.expand(shape)]))
    network.n_batches += n_new


def _learn_rows(network: Any, cells: Resident, n_known: int, steps: int, batch_size: int) -> None:
    """Move the rows from ``n_known`` on, by Adam on the training loss without the batch head's term."""
    network.eval()  # BatchNorm keeps its statistics; the draws are asked for
    rows = [p for table in tables(network) for p in (table.loc_BH, table.rho_BH)]
    optimiser = torch.optim.Adam(rows, lr=LEARNING_RATE)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps)
    for minibatch in _minibatches(cells, steps, batch_size):
        optimiser.zero_grad()
        torch.autograd.backward(_loss(network, minibatch, cells.n_cells), inputs=rows)
        for row in rows:  # without a gradient Adam leaves the known batches alone
            assert row.grad is not None
            row.grad[:n_known] = 0
        optimiser.step()
        falling.step()


def _loss(network: Any, cells: Minibatch, n_new: int) -> Tensor:
    """Return lambda_MSE * MSE + lambda_KL * KL, the KL weighed as if the ``n_new`` cells had been trained on too.

    Among all n cells of such a training the new ones have a share of n_new / n in the MSE, while the KL of their rows
    counts once. Here the MSE is theirs alone, so the KL counts n / n_new times. Where the KL is a mean over
    cells (``kl_per_cell_weight``), n cancels out, and n_new cells share it; where it is not, n stays.
    """
    n_cells = float(network.n_cells) + n_new
    error = network.drawn_error(cells)
    kl = network.kl(error, cells.x_NG.shape[1], n_cells)
    loss: Tensor = network.settings.mse_weight * error + kl.weight * kl.value * (n_cells / n_new)
    return loss


def _minibatches(cells: Resident, steps: int, batch_size: int) -> Iterator[Minibatch]:
    """Walk through the cells again and again, in new order, for ``steps`` minibatches."""
    all_rows, done = torch.arange(cells.n_cells), 0
    while True:
        for minibatch in cells.minibatches(all_rows, batch_size, shuffle=True):
            if done == steps:
                return
            yield minibatch
            done += 1
