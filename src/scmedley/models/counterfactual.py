"""Counterfactuals: this cell, had it come from another batch (scMEDAL; spec of the invariants in tests).

A cell is encoded (by default with its own batch's effects, in the ``paper`` preset with the target's)
and decoded with the target's effects. All effects at zero give the population mean. The own batch as
target is the reconstruction. Shapes: N cells, G genes, T targets, D posterior draws.
"""

import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import zarr
from anndata import AnnData
from anndata.io import write_elem
from torch import Tensor

from scmedley import keys
from scmedley.checks import check_seed
from scmedley.data.design import named_targets
from scmedley.data.resident import Minibatch, Resident
from scmedley.errors import ScmedleyError, ScmedleyWarning
from scmedley.io import replacing
from scmedley.models.base import Model
from scmedley.storable import storable_obs
from scmedley.train.process import modes, seeded

QUANTILES = (0.05, 0.95)
CHUNK = 512  # cells that go through the network at one time; fewer with draws, which are held together
ROWS = 2048  # cells x targets that are decoded at one time for the means of draws
LARGEST = 2 * 1024**3  # bytes that a result may take in memory


@modes(grad=False)
def counterfactual(
    model: Model[Any],
    adata: AnnData,
    to: object,
    *,
    draws: int = 0,
    seed: int = 0,
    unknown: str = "error",
    out: str | Path | None = None,
) -> AnnData | Path:
    """Show cells as if they had come from other batches. See :meth:`Model.counterfactual`."""
    targets = named_targets(to)
    model.check_effects("counterfactual")
    model.check_fitted()
    check_seed(seed)
    if not targets:
        raise ScmedleyError('Name at least one target batch, or "mean" for the population mean.')
    if draws < 0 or draws == 1:
        raise ScmedleyError(f"draws is {draws}; give 0 for none, or 2 and more.")
    codes = [model.design.code(target) for target in targets]
    repeated = [target for target in targets if targets.count(target) > 1]
    if repeated:
        raise ScmedleyError(f"The target batch {repeated[0]!r} is named more than once. Name each once.")
    cells = Resident(model.read(adata), model.design.known_codes(adata.obs, unknown), torch.device("cpu"))
    layers = ["X", "difference"]
    if draws:
        layers += [f"{name}_{side}" for name in ("X", "difference") for side in ("q05", "q95")]
    shape = (cells.n_cells * len(targets), len(model.genes))
    size = 4 * shape[0] * shape[1] * len(layers)
    if out is None and size > LARGEST:
        raise ScmedleyError(
            f"{adata.n_obs} cells x {len(targets)} targets x {len(model.genes)} genes take "
            f"{size / 1e9:.1f} GB. Ask for fewer cells or targets, or pass out='counterfactuals.zarr' to write "
            "them to disk."
        )
    obs = _obs(adata.obs, targets)
    chunks = _chunks(model, cells, codes, draws, seed)
    if out is not None:
        return _to_zarr(Path(out), chunks, layers, shape, obs, model.var())
    values = {name: np.empty(shape, np.float32) for name in layers}
    for rows, parts in chunks:
        for name in layers:
            values[name][rows] = parts[name]
    x = values.pop("X")
    return AnnData(x, obs=obs, var=model.var(), layers=values)


@modes(grad=False)
def mean_shift(model: Model[Any], adata: AnnData, to: str) -> np.ndarray:
    """Give the change of the cells' mean from their own batches to batch ``to``: G, log1p CP10k."""
    cells = Resident(model.read(adata), model.design.codes(adata.obs), torch.device("cpu"))
    target = model.design.code(to)
    total_G = np.zeros(len(model.genes))
    for minibatch in cells.minibatches(torch.arange(cells.n_cells), CHUNK):
        target_N = torch.full_like(minibatch.b_M, target)
        there, here = (_decoded(model, minibatch, b_N) for b_N in (target_N, minibatch.b_M))
        total_G += (there - here).sum(0).numpy()
    return np.asarray(total_G / cells.n_cells * model.scale.span_G, dtype=np.float32)


@modes(grad=False)
def drawn_means(model: Model[Any], adata: AnnData, draws: int, seed: int) -> np.ndarray:
    """Give the cells' mean in each batch of the model, for each posterior draw: T x D x G, log1p CP10k."""
    cells = Resident(model.read(adata), model.design.codes(adata.obs), torch.device("cpu"))
    chunk = cells.take(torch.arange(cells.n_cells))
    codes_T = torch.arange(model.design.n_batches)
    mean_TDG = np.empty((len(codes_T), draws, len(model.genes)), dtype=np.float32)
    blocks = torch.split(codes_T, max(1, ROWS // cells.n_cells))
    for draw, block in product(range(draws), blocks):
        target_N = block.repeat_interleave(cells.n_cells)
        xhat_NG = _decoded(model, chunk, target_N, draw, seed)
        mean_TDG[block.numpy(), draw] = xhat_NG.view(len(block), cells.n_cells, -1).mean(1).numpy()
    return model.scale.inverse(mean_TDG)


def _decoded(
    model: Model[Any], cells: Minibatch, target_N: Tensor, draw: int | None = None, seed: int = 0
) -> Tensor:
    """Give xhat of the cells with the effects of ``target_N``: a target for each cell, once or several times over.

    Without ``draw`` effects are at their posterior mean. A draw's tables depend on ``seed`` and its number alone,
    so that all targets and chunks of cells share them.
    """
    network, drawn, times = model.network, draw is not None, len(target_N) // len(cells.b_M)
    with nullcontext() if draw is None else seeded(seed * 100_003 + draw):
        if getattr(model.settings, "encode_as_target", False):
            z_NP = network.encode(cells.x_MG.repeat(times, 1), target_N, draw=drawn)
        else:
            z_NP = network.encode(cells.x_MG, cells.b_M, draw=drawn).repeat(times, 1)
        xhat_NG: Tensor = network.decode(z_NP, target_N, draw=drawn)
    return xhat_NG


def _chunks(
    model: Model[Any], cells: Resident, codes: list[int], draws: int, seed: int
) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
    """Yield (rows of the result, its layers) for one chunk of cells and one target after another."""
    for t, code in enumerate(codes):
        start = t * cells.n_cells
        for minibatch in cells.minibatches(torch.arange(cells.n_cells), max(8, CHUNK // (1 + draws // 8))):
            target_N = torch.full_like(minibatch.b_M, code)
            pairs = [
                (
                    _decoded(model, minibatch, target_N, i, seed),
                    _decoded(model, minibatch, minibatch.b_M, i, seed),
                )
                for i in (range(draws) if draws else (None,))
            ]
            x_DNG = np.stack([model.scale.inverse(there.numpy()) for there, _ in pairs])
            d_DNG = np.stack([(there - here).numpy() * model.scale.span_G for there, here in pairs])
            parts = {"X": x_DNG.mean(0), "difference": d_DNG.mean(0)}
            if draws:
                for name, values in (("X", x_DNG), ("difference", d_DNG)):
                    low, high = np.quantile(values, QUANTILES, axis=0)
                    parts |= {f"{name}_q05": low, f"{name}_q95": high}
            stop = start + len(target_N)
            yield slice(start, stop), parts
            start = stop


def _obs(obs: pd.DataFrame, targets: list[str]) -> pd.DataFrame:
    repeated = pd.concat([obs.set_index(obs.index.astype(str) + f" as {target}") for target in targets])
    return repeated.assign(**{keys.TARGET: pd.Categorical(np.repeat(targets, len(obs)), categories=targets)})


def _to_zarr(
    path: Path,
    chunks: Iterator[tuple[slice, dict[str, np.ndarray]]],
    layers: list[str],
    shape: tuple[int, int],
    obs: pd.DataFrame,
    var: pd.DataFrame,
) -> Path:
    """Write the result chunk by chunk as an AnnData Zarr store, all or nothing."""
    if path.suffix != ".zarr":
        raise ScmedleyError(f"out={str(path)!r} must end in .zarr.")
    obs, said = storable_obs(obs)
    for sentence in said:
        warnings.warn(f"{path.name}: {sentence}", ScmedleyWarning, stacklevel=4)
    with replacing(path) as temporary:
        # Made by hand, not by write_zarr: the arrays are filled later and never in memory whole.
        store = zarr.open_group(temporary, mode="w", zarr_format=2)
        store.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        for name, value in (("obs", obs), ("var", var), ("layers", {})):
            write_elem(store, name, value)
        arrays = {}
        for name in layers:
            arrays[name] = store.create_array(
                "X" if name == "X" else f"layers/{name}",
                shape=shape,
                chunks=(min(CHUNK, shape[0]), shape[1]),
                dtype="float32",
                attributes={"encoding-type": "array", "encoding-version": "0.2.0"},
            )
        for rows, parts in chunks:
            for name in layers:
                arrays[name][rows] = parts[name]
    return path
