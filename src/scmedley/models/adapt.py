"""Learn the effects of batches that a fitted network does not know, with all else frozen.

The network must be ``Trainable`` (:mod:`scmedley.train.trainable`) and have the methods
``drawn_reconstruction(cells)`` (the reconstruction error of a training step, with its weight) and
``kl(error, n_genes, n_cells)``.

Shapes: N cells.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from scmedley.data.design import Design
from scmedley.data.reader import Cells, Reading
from scmedley.data.resident import Minibatch, Resident
from scmedley.device import engine
from scmedley.errors import ScmedleyError, check_seed, listed, warn
from scmedley.nn.bayesian import Levels, add_rows, tables
from scmedley.nn.latent_effects import LatentEffects

if TYPE_CHECKING:
    from scmedley.models.base import Model

M = TypeVar("M", bound="Model[Any]")

FEW_CELLS = 10  # of a new batch: with fewer, what is special in single cells passes for the batch
LEARNING_RATE = 0.01  # of Adam, for the new rows alone, with cosine decay to 0
CPU = torch.device("cpu")


def adapted(model: M, adata: Cells, *, steps: int = 200, seed: int = 0, threads: int | None = None) -> M:
    """Learn the effects of batches that the model does not know, with all else frozen.

    Every effect table gets a row for each new batch. The row starts at the prior, whose mean is no effect
    (the population mean). Adam updates these rows alone, to minimise lambda_MSE * MSE + lambda_KL *
    KL(q(U) || p(U)), weighted as if the new cells had been training cells. Weights, BatchNorm, priors and
    the rows of known batches do not change, bit for bit. The default fixed effects also compute the offset
    of each new batch in the latent, in closed form, and :meth:`embed` subtracts it from cells of that batch,
    which the encoder has not learnt to correct. Only the expression and the batch of the new
    cells are used, never a label. Without ``adapt``, ``unknown="mean"`` embeds them with the population mean.

    Parameters
    ----------
    adata
        Cells of new batches. Cells of known batches are ignored. With several factors, known levels keep their
        effects: of a new donor under a known condition only the rows of the donor are learnt.
    steps
        Number of minibatches.
    seed
        Random seed. The same seed, threads and CPU give identical results, bit for bit.
    threads
        CPU threads. ``None``: as many as the process started with (OMP_NUM_THREADS, or PyTorch's choice).

    Returns
    -------
    Model
        A new model that knows the old and the new batches. This one is not changed.

    Raises
    ------
    ScmedleyError
        The decoder has no batch effects, the model is not fitted, or ``obs`` has no new batch.
    """
    model.check_effects("adapt")
    model.check_fitted()
    check_seed(seed)
    if steps < 1:
        raise ScmedleyError(f"steps is {steps}. Give at least 1.")
    known = model.design.batches
    design = model.design.extended(adata.obs)
    new = design.batches[len(known) :]
    if not new:
        where = (
            f"obs[{model.batch_key!r}]"
            if design.terms is None
            else f"the columns {list(design.terms.columns)}"
        )
        raise ScmedleyError(
            f"The model knows all batches in {where}, so there is nothing to adapt. Embed these cells without adapt()."
        )
    codes = design.codes(adata.obs)
    chosen = np.flatnonzero(codes >= len(known))
    _warn_if_few(new, np.bincount(codes[chosen] - len(known), minlength=len(new)))
    cells = adata.take(chosen) if isinstance(adata, Reading) else adata[chosen]
    extended = copy.copy(model)
    with engine(threads, CPU):
        torch.manual_seed(seed)
        extended.design, extended.network = design, copy.deepcopy(model.network).to(CPU)
        kept = add_batches(extended.network, model.design, design)
        resident = model.read(cells).resident(codes[chosen], model.scale, CPU)
        _learn_offsets(extended.network, resident)
        _learn_rows(extended.network, resident, kept, steps, model.settings.sizes(len(chosen))[0])
        extended.network.to(model.device)
    extended.fitted = {**model.fitted, "adapted": {"batches": len(new), "steps": steps, "seed": seed}}
    return extended


def _warn_if_few(new: tuple[str, ...], n_cells: np.ndarray) -> None:
    """Warn of new batches with so few cells that their effects cannot be told from those of single cells."""
    few = [name for name, n in zip(new, n_cells, strict=True) if n < FEW_CELLS]
    if few:
        warn(
            f"New batches with fewer than {FEW_CELLS} cells: {listed(few)}. What is special in these cells is learnt "
            "as the effect of their batch, so do not trust their labels and counterfactuals."
        )


def seeing(model: M, obs: pd.DataFrame) -> M:
    """Return the model with batches for the new combinations of known levels in ``obs``; itself if there are none.

    The effect of such a batch is the sum of what its levels do. What is the combination's own is at its prior: its
    mean is 0, and draws of it are of the prior. Nothing is learnt; a level that the model does not know has no effect.
    """
    design = model.design.seeing(obs)
    if design is model.design or not model.has_effects:
        return model
    extended = copy.copy(model)
    extended.design, extended.network = design, copy.deepcopy(model.network)
    add_batches(extended.network, model.design, design)
    return extended


def levels_of(design: Design) -> Levels:
    """Return which rows of the effect tables each batch of a design has."""
    if design.terms is None:
        return Levels(design.n_batches)
    return Levels(design.n_batches, *(torch.as_tensor(part) for part in design.matrix()))


@torch.no_grad()
def add_batches(network: Any, before: Design, after: Design) -> Tensor:
    """Add the batches of ``after`` that are not in ``before`` to a network; return the places of the old rows.

    Every effect table gets a row for each new level (mean 0, standard deviation of the prior).
    """
    device = next(network.parameters()).device
    network.levels = levels_of(after).to(device)
    kept = torch.as_tensor(_places(before, after), device=device)
    if network.levels.n_levels > len(kept):
        for table in tables(network):
            add_rows(table, kept, network.levels)
    n_new = after.n_batches - before.n_batches
    for effects in _latent_effects(network):
        effects.extend(n_new)
    network.n_batches += n_new
    return kept


def _places(before: Design, after: Design) -> np.ndarray:
    """Return where the rows of ``before`` are among those of ``after``: new levels come last in their term."""
    if before.terms is None or after.terms is None:
        return np.arange(before.n_batches)
    starts = np.cumsum([0, *after.terms.sizes])[:-1]
    pairs = zip(starts, before.terms.sizes, strict=True)
    return np.concatenate([start + np.arange(size) for start, size in pairs])


def _latent_effects(network: Any) -> list[LatentEffects]:
    return [module for module in network.modules() if isinstance(module, LatentEffects)]


@torch.no_grad()
def _learn_offsets(network: Any, cells: Resident) -> None:
    """Compute the offsets of the new batches in the latent, if the network has latent effects."""
    effects = _latent_effects(network)
    if effects:
        network.eval()
        z_NP = torch.cat([network.encode(minibatch.x_NG, minibatch.b_N) for minibatch in cells.in_order()])
        for one in effects:
            one.learn(z_NP, cells.b_N)


def _learn_rows(network: Any, cells: Resident, known: Tensor, steps: int, batch_size: int) -> None:
    """Train the rows that are not ``known``, by Adam on reconstruction error and KL."""
    if len(known) == network.levels.n_levels:
        return  # a new combination of known levels
    network.eval()  # BatchNorm keeps its statistics; drawn_reconstruction still draws
    rows = [p for table in tables(network) for p in (table.loc_BH, table.rho_BH)]
    optimiser = torch.optim.Adam(rows, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps)
    for minibatch in _minibatches(cells, steps, batch_size):
        optimiser.zero_grad()
        torch.autograd.backward(_loss(network, minibatch, cells.n_cells), inputs=rows)
        for row in rows:  # with gradients of 0, Adam does not change the known batches
            assert row.grad is not None
            row.grad[known] = 0
        optimiser.step()
        schedule.step()


def _loss(network: Any, cells: Minibatch, n_new: int) -> Tensor:
    """Return the weighted reconstruction error and KL, weighted as if the ``n_new`` cells had been training cells.

    With n training cells in all, the new cells have the share n_new / n of the MSE, and the KL of their rows
    counts once. Here the MSE is of the new cells alone, so the KL counts n / n_new times. If the KL is per
    cell (``kl_per_cell_weight``), n cancels out and n_new remains; if it is per table, n remains.
    """
    n_cells = float(network.n_cells) + n_new
    error = network.drawn_reconstruction(cells)
    kl = network.kl(error.value, cells.x_NG.shape[1], n_cells)
    loss: Tensor = error.weight * error.value + kl.weight * kl.value * (n_cells / n_new)
    return loss


def _minibatches(cells: Resident, steps: int, batch_size: int) -> Iterator[Minibatch]:
    """Yield ``steps`` minibatches, with the cells in a new random order in each pass."""
    all_rows, done = torch.arange(cells.n_cells), 0
    while True:
        for minibatch in cells.minibatches(all_rows, batch_size, shuffle=True):
            if done == steps:
                return
            yield minibatch
            done += 1
