"""Counterfactuals: the expression of a cell as if it had come from another batch (scMEDAL).

A cell is encoded with the effects of its own batch (in the ``paper`` preset: of the target) and decoded with
the effects of the target. Effects of zero give the population mean; the own batch as target gives the
reconstruction.

Shapes: N cells, G genes, T targets, D posterior draws.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from scmedley import keys
from scmedley.data.reader import Cells, Reading
from scmedley.data.resident import Minibatch, Resident
from scmedley.data.targets import Target
from scmedley.device import generator_of, modes, seeded
from scmedley.errors import ScmedleyError, ScmedleyWarning, check_seed
from scmedley.io.blocks import write_in_blocks
from scmedley.models.interval import half_width
from scmedley.models.targets import Aim, aims

if TYPE_CHECKING:
    from scmedley.models.base import Model

UNCALIBRATED = (
    "The intervals of this model are not calibrated (too few validation cells at the fit, or an earlier version of "
    "scmedley). They show the model's own uncertainty, not how often the observed value is inside."
)
ADAPTED = (
    "The intervals of {batches} are not calibrated, because these batches were added after the calibration. They "
    "show the model's own uncertainty, not how often the observed value is inside."
)
CHUNK = 512  # cells decoded at once; fewer with draws, which are in memory together
ROWS = 2048  # cells x targets decoded at once for the means of draws
LARGEST = 2 * 1024**3  # largest result in memory, bytes


class Encoded:
    """Encoded cells, to decode with the effects of any batch.

    Without ``draw`` effects are at their posterior mean. A draw depends only on ``seed`` and its number, so
    all targets and chunks of cells share it. If the model ``encodes_as_target``, the cells are encoded again
    for each target.
    """

    cells: Resident  # set by all_of

    def __init__(self, model: Model[Any], cells: Minibatch, draw: int | None = None, seed: int = 0):
        self.model, self.network, self.drawn = model, model.network, draw is not None
        self.b_N, self.x_NG = cells.b_N, cells.x_NG
        self.z_NP: Tensor | None = None
        device = cells.x_NG.device
        with nullcontext() if draw is None else seeded(seed * 100_003 + draw, device):
            if not model.encodes_as_target:
                self.z_NP = self.network.encode(cells.x_NG, cells.b_N, draw=self.drawn)
            self.state = generator_of(device).get_state()

    @classmethod
    def all_of(cls, model: Model[Any], cells: Resident) -> Encoded:
        """Encode all cells in chunks; :meth:`take` then selects some of them."""
        encoded = cls(model, cells.take(torch.empty(0, dtype=torch.int64, device=cells.device)))
        encoded.b_N, encoded.cells = cells.b_N, cells
        if encoded.z_NP is not None:
            parts = [cls(model, minibatch).z_NP for minibatch in cells.in_order()]
            encoded.z_NP = torch.cat([part for part in parts if part is not None])
        return encoded

    def take(self, rows: np.ndarray) -> Encoded:
        """Return some of the cells of :meth:`all_of`; their input is read only if they are encoded again."""
        rows_N = torch.as_tensor(rows, device=self.b_N.device)
        taken = copy.copy(self)
        taken.b_N = self.b_N[rows_N]
        if self.z_NP is None:
            taken.x_NG = self.cells.take(rows_N).x_NG
        else:
            taken.z_NP = self.z_NP[rows_N]
        return taken

    def decoded(self, target_N: Tensor) -> Tensor:
        """Return xhat of each cell with the effects of its target, N x G."""
        with self._same_draw():
            xhat_NG: Tensor = self.network.decode(self._latent(target_N), target_N, draw=self.drawn)
        return xhat_NG

    def means(self, target_T: Tensor) -> Tensor:
        """Return the mean of xhat over all cells with the effects of each of T targets, T x G.

        The output layer is linear, so the hidden units are averaged before it: they are fewer than the genes.
        """
        with self._same_draw():
            h_NH: Tensor = self.network.decode_hidden(
                self._latent(target_T, len(target_T)), target_T, draw=self.drawn
            )
            h_TH = h_NH.view(len(target_T), len(self.b_N), -1).mean(1)
            mean_TG: Tensor = self.network.decode_output(h_TH, target_T, draw=self.drawn)
        return mean_TG

    def group_means(self, target_N: Tensor, group_N: Tensor, target_T: Tensor) -> Tensor:
        """Return the mean of xhat over each of T groups of cells, T x G, as :meth:`means` does.

        ``target_N`` is the target of each cell, or one for all cells. All cells of a group have its target in
        ``target_T``.
        """
        with self._same_draw():
            h_NH: Tensor = self.network.decode_hidden(self._latent(target_N), target_N, draw=self.drawn)
            n_T = torch.bincount(group_N, minlength=len(target_T))
            h_TH = h_NH.new_zeros(len(target_T), h_NH.shape[1]).index_add_(0, group_N, h_NH) / n_T[:, None]
            mean_TG: Tensor = self.network.decode_output(h_TH, target_T, draw=self.drawn)
        return mean_TG

    def _latent(self, target: Tensor, times: int = 1) -> Tensor:
        """Return z of all cells, ``times`` times; each target applies to an equal block of rows."""
        if self.z_NP is not None:
            return self.z_NP.repeat(times, 1)
        target_N = target.repeat_interleave(times * len(self.b_N) // len(target))
        z_NP: Tensor = self.network.encode(self.x_NG.repeat(times, 1), target_N, draw=self.drawn)
        return z_NP

    @contextmanager
    def _same_draw(self) -> Iterator[None]:
        """Restore the random state after encoding, so that all targets share the decoder's draw."""
        device = self.x_NG.device
        with seeded(0, device) if self.drawn else nullcontext():
            if self.drawn:
                generator_of(device).set_state(self.state)
            yield


@modes(grad=False)
def counterfactual(
    model: Model[Any],
    adata: Cells,
    to: Target | Sequence[Target],
    *,
    draws: int = 0,
    seed: int = 0,
    unknown: str = "error",
    out: str | Path | None = None,
) -> AnnData | Path:
    """Predict the expression of cells as if they had come from other batches.

    Parameters
    ----------
    adata
        N cells with their batch.
    to
        One batch, several batches, or ``"mean"`` for the population mean (all batch effects are zero). Or
        levels: ``{"condition": "stim"}``, ``{"donor": "d7", "condition": "ctrl"}``, ``{"donor": "mean"}``, or a
        list of such dicts. Cells keep their other levels. A combination that was never seen is the sum of what
        its levels do.
    draws
        Number of posterior draws of the effects, for intervals from 5 % to 95 %. 0: the effects are at
        their posterior mean, without intervals.
    seed
        Random seed of the draws.
    unknown
        How to treat cells of batches that the model does not know: ``"error"`` or ``"mean"``.
    out
        Path ending in ``.zarr``. A large result is written there in chunks.

    Returns
    -------
    AnnData or Path
        All N cells for the first target, then for the next, by G genes. ``X``: expression in the target
        batch, log1p CP10k. ``layers["difference"]``: ``X`` minus the reconstruction in the own batch.
        With draws also ``X_q05``, ``X_q95``, ``difference_q05``, ``difference_q95``. ``obs`` gains
        ``counterfactual_batch`` and, with several factors, ``counterfactual_seen``: whether a cell of the fit had
        this combination of levels. With ``out`` the path is returned instead.

    Raises
    ------
    ScmedleyError
        The decoder has no batch effects, a batch is unknown, or the result exceeds 2 GB without ``out``.
    """
    model.check_effects("counterfactual")
    model.check_fitted()
    check_seed(seed)
    if draws < 0 or draws == 1:
        raise ScmedleyError(f"draws is {draws}. Give 0 for no draws, or 2 or more.")
    if draws and model.calibration is None:
        warnings.warn(UNCALIBRATED, ScmedleyWarning, stacklevel=3)
    known = model.design
    model, own_N, targets = aims(model, adata.obs, to, unknown)
    layers = ["X", "difference"]
    if draws:
        codes = np.unique(np.concatenate([own_N, *(target.code_N for target in targets)])).tolist()
        added = [code for code in codes if known.n_batches - known.n_adapted <= code < known.n_batches]
        if added and model.calibration is not None:
            named = ", ".join(repr(known.batches[code]) for code in added[:5])
            more = f" and {len(added) - 5} more" if len(added) > 5 else ""
            warnings.warn(ADAPTED.format(batches=named + more), ScmedleyWarning, stacklevel=3)
        layers += [f"{name}_{side}" for name in ("X", "difference") for side in ("q05", "q95")]
    shape = (len(own_N) * len(targets), len(model.genes))
    size = 4 * shape[0] * shape[1] * len(layers)
    if out is None and size > LARGEST:
        raise ScmedleyError(
            f"{len(own_N)} cells x {len(targets)} targets x {len(model.genes)} genes need {size / 1e9:.1f} GB of "
            "memory. Select fewer cells or targets, or write them to disk with out='counterfactuals.zarr'."
        )
    obs = _obs(adata.obs, targets, several=known.terms is not None)
    chunks = _chunks(model, model.reader.blocks(adata), own_N, targets, draws, seed)
    if out is not None:
        return write_in_blocks(Path(out), chunks, layers, shape, obs, model.var())
    values = {name: np.empty(shape, np.float32) for name in layers}
    for rows, parts in chunks:
        for name in layers:
            values[name][rows] = parts[name]
    x = values.pop("X")
    return AnnData(x, obs=obs, var=model.var(), layers=values)


@modes(grad=False)
def mean_shifts(encoded: Encoded, codes: Sequence[int]) -> np.ndarray:
    """Return the shift of the cells' mean from their own batches to each of ``codes``: T x G, log1p CP10k."""
    b_N = encoded.b_N
    own_B, group_N, n_B = torch.unique(b_N, return_inverse=True, return_counts=True)
    codes_T = torch.as_tensor(codes, device=b_N.device)
    here_BG = encoded.group_means(b_N, group_N, own_B)
    there_TBG = torch.stack(
        [encoded.group_means(code_1, group_N, code_1.expand_as(own_B)) for code_1 in torch.split(codes_T, 1)]
    )
    shift_TG = ((n_B / n_B.sum())[:, None] * (there_TBG - here_BG)).sum(1)
    return np.asarray(shift_TG.cpu().numpy() * encoded.model.scale.span_G, dtype=np.float32)


@modes(grad=False)
def drawn_means(
    model: Model[Any], cells: Minibatch, draws: int, seed: int, codes: Sequence[int] | np.ndarray
) -> np.ndarray:
    """Return the cells' mean in each of ``codes`` for each posterior draw: T x D x G, log1p CP10k."""
    codes_T = torch.as_tensor(np.asarray(codes, dtype=np.int64), device=cells.b_N.device)
    blocks = torch.split(codes_T, max(1, ROWS // len(cells.b_N)))
    mean_TDG = np.empty((len(codes_T), draws, len(model.genes)), dtype=np.float32)
    for draw in range(draws):
        encoded = Encoded(model, cells, draw, seed)
        mean_TDG[:, draw] = torch.cat([encoded.means(block_T) for block_T in blocks]).cpu().numpy()
    return model.scale.inverse(mean_TDG)


def _chunks(
    model: Model[Any],
    blocks: Iterable[Reading],
    own_N: np.ndarray,
    targets: list[Aim],
    draws: int,
    seed: int,
) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
    """Yield (rows of the result, layers of these rows) for each chunk of cells and each target."""
    start = 0
    for minibatch in _minibatches(model, blocks, own_N, max(8, CHUNK // (1 + draws // 8))):
        encoded = [Encoded(model, minibatch, draw, seed) for draw in (range(draws) if draws else (None,))]
        own_DNG = [one.decoded(minibatch.b_N) for one in encoded]
        for t, target in enumerate(targets):
            own = slice(start, start + len(minibatch.b_N))
            target_N = torch.as_tensor(target.code_N[own], device=minibatch.b_N.device)
            there_DNG = [one.decoded(target_N) for one in encoded]
            x_DNG = np.stack([model.scale.inverse(there.cpu().numpy()) for there in there_DNG])
            pairs = zip(there_DNG, own_DNG, strict=True)
            d_DNG = np.stack([(there - here).cpu().numpy() * model.scale.span_G for there, here in pairs])
            parts = {"X": x_DNG.mean(0), "difference": d_DNG.mean(0)}
            if draws:
                for name, values in (("X", x_DNG), ("difference", d_DNG)):
                    half_NG = half_width(values, model.calibration)
                    parts |= {f"{name}_q05": parts[name] - half_NG, f"{name}_q95": parts[name] + half_NG}
            first = t * len(own_N) + start
            yield slice(first, first + len(target_N)), parts
        start += len(minibatch.b_N)


def _minibatches(
    model: Model[Any], blocks: Iterable[Reading], own_N: np.ndarray, size: int
) -> Iterator[Minibatch]:
    """Yield the cells of all blocks in order."""
    start = 0
    for block in blocks:
        cells = block.resident(own_N[start : start + block.n_cells], model.scale, model.device)
        yield from cells.in_order(size)
        start += block.n_cells


def _obs(obs: pd.DataFrame, targets: list[Aim], several: bool) -> pd.DataFrame:
    names = [target.name for target in targets]
    repeated = pd.concat([obs.set_index(obs.index.astype(str) + f" as {name}") for name in names])
    new: dict[str, Any] = {keys.TARGET: pd.Categorical(np.repeat(names, len(obs)), categories=names)}
    if several:
        new[keys.SEEN] = np.concatenate([target.seen_N for target in targets])
    return repeated.assign(**new)
