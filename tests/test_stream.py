"""Cells of a store: in memory or on the disk, the same bits; a fit goes on where it was."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from numpy.testing import assert_array_equal

import scmedley as sm
from scmedley.data import order, stream
from scmedley.data.compact import Compact
from scmedley.data.reader import Reading
from scmedley.errors import ScmedleyError
from scmedley.pp.stored import read_store, write_store
from tiny import FIT, MODELS, SIZES, differing, unfitted, weights

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(_prepared: AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of the small design."""
    folder = tmp_path_factory.mktemp("store") / "store"
    write_store(_prepared.copy(), folder)
    return folder


@pytest.fixture
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and buffers so small that the few cells of the design fill several."""
    monkeypatch.setattr(stream, "BUFFER", 64)
    monkeypatch.setattr(stream.in_blocks, "__defaults__", (order.WHOLE, 8, 64))


def in_memory(folder: Path) -> Reading:
    """Return all cells of the store as a reading in memory."""
    reading = read_store(folder)
    return reading.take(np.arange(reading.n_cells))


def model(name: str) -> Any:
    """Return a small model that is not fitted."""
    if name in MODELS:
        return unfitted(name)
    kind = {"vae": sm.VAE, "deepbid": sm.DeepBID}[name]
    return kind("donor", settings=kind.preset("default").replace(**SIZES))


@pytest.mark.parametrize("name", ["fixed", "random", "autoencoder", "vae", "deepbid"])
def test_a_fit_to_a_store_has_the_bits_of_a_fit_to_its_cells(name: str, folder: Path) -> None:
    fits = [model(name).fit(cells, **FIT) for cells in (in_memory(folder), read_store(folder))]
    fits.append(model(name).fit(read_store(folder, memory_gb=0), **FIT))
    for other in fits[1:]:
        assert not differing(weights(fits[0].network), weights(other.network))
        assert other.history.equals(fits[0].history)
        assert other.calibration == fits[0].calibration
        latents = other.get_latent_representation(read_store(folder, memory_gb=0))
        assert_array_equal(latents, fits[0].get_latent_representation(in_memory(folder)))


@pytest.mark.usefixtures("small_buffers")
@pytest.mark.parametrize("name", ["fixed", "random"])
def test_from_the_disk_in_small_buffers_or_in_memory_the_bits_are_the_same(
    name: str, folder: Path, tmp_path: Path
) -> None:
    fits = [unfitted(name).fit(read_store(folder, memory_gb=gb), **FIT) for gb in (1, 0, 0)]
    for other in fits[1:]:
        assert not differing(weights(fits[0].network), weights(other.network))
    assert differing(weights(fits[0].network), weights(unfitted(name).fit(in_memory(folder), **FIT).network))


@pytest.mark.usefixtures("small_buffers")
@pytest.mark.parametrize("name", ["fixed", "random"])
def test_a_fit_goes_on_from_its_checkpoint_with_the_same_bits(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = unfitted(name).fit(read_store(folder, memory_gb=0), **FIT)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    load, seen = StoredRows.load, []

    def failing(self: StoredRows, rows_N: np.ndarray) -> Compact:
        seen.append(len(rows_N))
        if len(seen) == (5 if name == "fixed" else 14):
            raise OSError(5, "Input/output error")
        return load(self, rows_N)

    monkeypatch.setattr(StoredRows if name == "random" else Spilled, "load", failing)
    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(ScmedleyError, match=r"reading thread failed \(OSError: .*Input/output error"):
        unfitted(name).fit(read_store(folder, memory_gb=0), **FIT, checkpoint=checkpoint)
    monkeypatch.undo()
