"""Counterfactuals: this cell, had it come from another batch (scMEDAL; spec of the invariants in tests).

A cell is encoded (by default with its own batch's effects, in the ``paper`` preset with the target's)
and decoded with the target's effects. All effects at zero give the population mean. The own batch as
target is the reconstruction. Shapes: N cells, G genes, T targets, D posterior draws.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import zarr
from anndata import AnnData
from anndata.io import write_elem
from torch import Tensor

from scmedley import keys
from scmedley.data.design import named_targets
from scmedley.data.resident import Minibatch, Resident
from scmedley.device import modes, seeded
from scmedley.errors import ScmedleyError, ScmedleyWarning, check_seed
from scmedley.io import replacing
from scmedley.io.storable import storable_obs
from scmedley.models.interval import half_width

if TYPE_CHECKING:
    from scmedley.models.base import Model

UNCALIBRATED = (
    "The intervals of this model are not calibrated (too few validation cells when it was fitted, or an earlier "
    "version of scmedley): they say how sure the model is, not how often it is right."
)
ADAPTED = (
    "The intervals of {batches} are not calibrated: these batches were added to the fitted model, whose factor was "
    "learnt from other batches. They say how sure the model is, not how often it is right."
)
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
    if draws and model.calibration is None:
        warnings.warn(UNCALIBRATED, ScmedleyWarning, stacklevel=3)
    codes = [model.design.code(target) for target in targets]
    repeated = [target for target in targets if targets.count(target) > 1]
    if repeated:
        raise ScmedleyError(f"The target batch {repeated[0]!r} is named more than once. Name each once.")
    cells = Resident(model.read(adata), model.design.known_codes(adata.obs, unknown), torch.device("cpu"))
    layers = ["X", "difference"]
    if draws:
        n_trained = model.design.n_batches - model.design.n_adapted
        added = sorted({code for code in {*codes, *cells.b_N.tolist()} if code >= n_trained})
        if added and model.calibration is not None:
            named = ", ".join(repr(model.design.batches[code]) for code in added[:5])
            more = f" and {len(added) - 5} more" if len(added) > 5 else ""
            warnings.warn(ADAPTED.format(batches=named + more), ScmedleyWarning, stacklevel=3)
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
def mean_shifts(model: Model[Any], cells: Resident, codes: Sequence[int]) -> np.ndarray:
    """Return the change of the cells' mean from their own batches to each batch of ``codes``: T x G, log1p CP10k."""
    total_TG = np.zeros((len(codes), len(model.genes)))
    for minibatch in cells.minibatches(torch.arange(cells.n_cells), CHUNK):
        targets = [torch.full_like(minibatch.b_N, code) for code in codes]
        here, *shown = decoded(model, minibatch, [minibatch.b_N, *targets])
        total_TG += [(there - here).sum(0).numpy() for there in shown]
    return np.asarray(total_TG / cells.n_cells * model.scale.span_G, dtype=np.float32)


@modes(grad=False)
def drawn_means(
    model: Model[Any], cells: Resident, draws: int, seed: int, codes: Sequence[int] | np.ndarray
) -> np.ndarray:
    """Return the cells' mean in each batch of ``codes``, for each posterior draw: T x D x G, log1p CP10k."""
    chunk = cells.take(torch.arange(cells.n_cells))
    codes_T = torch.as_tensor(np.asarray(codes, dtype=np.int64))
    mean_TDG = np.empty((len(codes_T), draws, len(model.genes)), dtype=np.float32)
    blocks = torch.split(codes_T, max(1, ROWS // cells.n_cells))
    targets = [block.repeat_interleave(cells.n_cells) for block in blocks]
    for draw in range(draws):
        shown = decoded(model, chunk, targets, draw, seed)
        means = [xhat_NG.view(-1, cells.n_cells, xhat_NG.shape[1]).mean(1) for xhat_NG in shown]
        mean_TDG[:, draw] = torch.cat(means).numpy()
    return model.scale.inverse(mean_TDG)


def decoded(
    model: Model[Any], cells: Minibatch, targets: Sequence[Tensor], draw: int | None = None, seed: int = 0
) -> Iterator[Tensor]:
    """Yield xhat of the cells with the effects of each of ``targets``.

    A target has a batch for each cell, or for all cells several times over, one round after the other.

    Without ``draw`` effects are at their posterior mean. A draw's tables depend on ``seed`` and its number alone,
    so that all targets and chunks of cells share them. Cells are encoded once, unless the encoder takes the
    target's effects.
    """
    network, drawn = model.network, draw is not None
    encode_as_target = getattr(model.settings, "encode_as_target", False)
    generator = torch.default_generator
    with nullcontext() if draw is None else seeded(seed * 100_003 + draw):
        if not encode_as_target:
            z_NP: Tensor = network.encode(cells.x_NG, cells.b_N, draw=drawn)
        state = generator.get_state()
    for target_N in targets:
        times = len(target_N) // len(cells.b_N)
        with nullcontext() if draw is None else seeded(0):
            if drawn:
                generator.set_state(state)
            if encode_as_target:
                shown_NP = network.encode(cells.x_NG.repeat(times, 1), target_N, draw=drawn)
            else:
                shown_NP = z_NP.repeat(times, 1)
            xhat_NG: Tensor = network.decode(shown_NP, target_N, draw=drawn)
        yield xhat_NG


def _chunks(
    model: Model[Any], cells: Resident, codes: list[int], draws: int, seed: int
) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
    """Yield (rows of the result, its layers) for one chunk of cells and one target after another."""
    for t, code in enumerate(codes):
        start = t * cells.n_cells
        for minibatch in cells.minibatches(torch.arange(cells.n_cells), max(8, CHUNK // (1 + draws // 8))):
            target_N = torch.full_like(minibatch.b_N, code)
            pairs = [
                tuple(decoded(model, minibatch, [target_N, minibatch.b_N], i, seed))
                for i in (range(draws) if draws else (None,))
            ]
            x_DNG = np.stack([model.scale.inverse(there.numpy()) for there, _ in pairs])
            d_DNG = np.stack([(there - here).numpy() * model.scale.span_G for there, here in pairs])
            parts = {"X": x_DNG.mean(0), "difference": d_DNG.mean(0)}
            if draws:
                for name, values in (("X", x_DNG), ("difference", d_DNG)):
                    half_NG = half_width(values, model.calibration)
                    parts |= {f"{name}_q05": parts[name] - half_NG, f"{name}_q95": parts[name] + half_NG}
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
