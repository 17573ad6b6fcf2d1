"""Cells of a store: in memory or on the disk, the same bits; a fit goes on where it was."""

import gc
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from numpy.testing import assert_array_equal

import scmedley as sm
from scmedley.data import order
from scmedley.data.compact import Compact, OnDevice
from scmedley.data.order import Shares
from scmedley.data.read_ahead import read_ahead
from scmedley.data.reader import Reading
from scmedley.data.scale import Scale
from scmedley.data.store import Store
from scmedley.data.stream import FileRows, StoredRows
from scmedley.errors import ScmedleyError
from scmedley.pp.stored import read_store
from scmedley.train import loop
from stores import write_store
from tiny import FIT, MODELS, SIZES, differing, small, unfitted, weights

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
    monkeypatch.setattr(order, "BLOCK", 8)
    monkeypatch.setattr(order, "BUFFER", 64)


def in_memory(folder: Path) -> Reading:
    """Return all cells of the store as a reading in memory."""
    reading = read_store(folder)
    return reading.take(np.arange(reading.n_cells))


def model(name: str) -> Any:
    """Return a small model that is not fitted."""
    if name in MODELS:
        return unfitted(name)
    return sm.VAE("donor", settings=sm.VAE.preset("default").replace(**SIZES))


@pytest.mark.parametrize("name", ["fixed", "random", "vae"])
def test_a_fit_to_a_store_has_the_bits_of_a_fit_to_its_cells(name: str, folder: Path) -> None:
    fits = [model(name).fit(cells, **FIT) for cells in (in_memory(folder), read_store(folder))]
    fits.append(model(name).fit(read_store(folder, memory_gb=0), **FIT))
    for other in fits[1:]:
        assert not differing(weights(fits[0].network), weights(other.network))
        assert other.history.equals(fits[0].history)
        assert other.calibration == fits[0].calibration
        latents = other.get_latent_representation(read_store(folder, memory_gb=0))
        assert_array_equal(latents, fits[0].get_latent_representation(in_memory(folder)))


def test_a_shipped_set_prepared_on_disk_has_the_bits_of_one_prepared_in_memory(tmp_path: Path) -> None:
    how: dict[str, Any] = {"batch_key": "batch", "label_key": "cell_type", "n_top_genes": 400}
    adata = sm.datasets.pancreas()
    sm.pp.prepare(adata, **how)
    sm.pp.prepare_store(sm.datasets.path("pancreas"), tmp_path / "store", **how, progress=False)
    stored = read_store(tmp_path / "store", memory_gb=0)
    two = {"max_epochs": 2, "hidden": (16, 8), "n_latent": 4}
    for name in ("fixed", "random", "vae"):
        kind = sm.VAE if name == "vae" else MODELS[name]
        fits = [
            kind("batch", settings=kind.preset("default").replace(**two)).fit(cells, **FIT)
            for cells in (adata, stored)
        ]
        assert not differing(*(weights(fit.network) for fit in fits))
        assert fits[0].calibration == fits[1].calibration
        assert_array_equal(
            fits[0].get_latent_representation(adata), fits[1].get_latent_representation(stored)
        )


@pytest.mark.usefixtures("small_buffers")
@pytest.mark.parametrize("name", ["fixed", "random"])
def test_the_bits_do_not_depend_on_memory(name: str, folder: Path) -> None:
    fits = [unfitted(name).fit(read_store(folder, memory_gb=gb), **FIT) for gb in (1, 0)]
    assert not differing(weights(fits[0].network), weights(fits[1].network))
    other = unfitted(name).fit(in_memory(folder), **FIT)  # not in blocks
    assert differing(weights(fits[0].network), weights(other.network))


@pytest.mark.usefixtures("small_buffers")
@pytest.mark.parametrize(("name", "kind"), [("fixed", FileRows), ("random", StoredRows)])
def test_a_fit_whose_reading_fails_goes_on_with_the_same_bits(
    name: str, kind: type, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = unfitted(name).fit(read_store(folder, memory_gb=0), **FIT)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    load, calls, checkpoint = kind.load, [], tmp_path / "checkpoint.pt"

    def failing(self: Any, rows_N: np.ndarray) -> Any:
        calls.append(len(rows_N))
        if len(calls) == 6:  # in the second epoch
            raise OSError(5, "Input/output error")
        return load(self, rows_N)

    with monkeypatch.context() as patched:
        patched.setattr(kind, "load", failing)
        with pytest.raises(ScmedleyError, match=r"reading thread failed \(OSError: .*Input/output error"):
            unfitted(name).fit(read_store(folder, memory_gb=0), **FIT, checkpoint=checkpoint)
    assert checkpoint.exists()
    again = unfitted(name).fit(read_store(folder, memory_gb=1), **FIT, checkpoint=checkpoint)
    assert not differing(weights(whole.network), weights(again.network))
    assert again.history.equals(whole.history)
    assert not readers()


def readers() -> list[threading.Thread]:
    """Return the threads that read ahead."""
    gc.collect()
    return [thread for thread in threading.enumerate() if thread.name.startswith("scmedley: ")]


def counting(n: int) -> Iterator[int]:
    """Count to ``n``, in the thread."""
    yield from range(n)


def stopped_by(error: type[BaseException]) -> None:
    """Raise in the loop over the items."""
    for number in read_ahead(counting(50), "numbers"):
        if number == 3:
            raise error


def test_the_thread_ends_with_the_loop() -> None:
    assert list(read_ahead(counting(50), "numbers")) == list(range(50))
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error):
            stopped_by(error)
        assert not readers()
    items = read_ahead(counting(50), "numbers")
    next(items)
    items.close()
    assert not readers()


def test_a_killed_thread_is_an_error() -> None:
    def killed() -> Iterator[int]:
        yield 0
        raise SystemExit

    with pytest.raises(ScmedleyError, match=r"numbers: the reading thread failed \(SystemExit"):
        list(read_ahead(killed(), "numbers"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("scmedley.data.read_ahead._put", lambda *message: False)  # it leaves no message
        with pytest.raises(ScmedleyError, match="numbers: the reading thread was killed"):
            list(read_ahead(counting(3), "numbers"))


def test_a_store_that_is_cut_while_it_is_read_is_an_error(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "store")
    reading = read_store(tmp_path / "store", memory_gb=0)
    os.truncate(tmp_path / "store" / "values.bin", 100)
    with pytest.raises(ScmedleyError, match=r"values\.bin ends after 100 bytes and should have [\d,]+"):
        unfitted("random").fit(reading, **FIT)


def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    rows = FileRows(10, 3, CPU, tmp_path)
    assert not list(tmp_path.iterdir())  # the file has no name, so nothing can be left
    rows.append(np.ones((10, 3)))
    assert_array_equal(rows.load(np.array([2, 3, 9])), np.ones((3, 3)))
    if (full := Path("/dev/full")).exists():
        rows.file = full.open("wb", buffering=0)
        with pytest.raises(
            ScmedleyError, match=r"inputs of the network, 1.2e-07 GB, cannot be .*No space left"
        ):
            rows.append(np.ones((10, 3)))
        rows.file.close()


@pytest.mark.usefixtures("small_buffers")
def test_processes_share_the_minibatches_of_a_stream(folder: Path) -> None:
    reading = read_store(folder, memory_gb=0)
    cells = reading.resident(np.zeros(reading.n_cells), Scale.fit(in_memory(folder).log1p_NG, "none"))

    def epoch(shares: Shares) -> list[torch.Tensor]:
        torch.manual_seed(0)
        return [part.x_NG for part in cells.minibatches(torch.arange(100), 20, True, shares)]

    whole, parts = epoch(Shares(2)), [epoch(Shares(2, k)) for k in range(2)]
    for minibatch, *of_each in zip(whole, *parts, strict=True):
        assert torch.equal(minibatch, torch.cat(of_each))


@pytest.mark.parametrize("value_type", ["uint8", "uint16", "uint32", "float32"])
@pytest.mark.parametrize("gene_type", ["uint16", "uint32"])
def test_rows_on_a_device_are_those_of_the_cpu(value_type: str, gene_type: str) -> None:
    rng = np.random.default_rng(0)
    n_N = rng.integers(0, 9, 30)
    gene_Z = np.concatenate([np.sort(rng.permutation(40_000)[:n]) for n in n_N]).astype(gene_type)
    high = min(np.iinfo(value_type).max, 3_000_000_000) if value_type != "float32" else 9
    value_Z = rng.integers(1, high, n_N.sum()).astype(value_type)
    cells = Compact(np.cumsum(n_N) - n_N, n_N, gene_Z, value_Z, rng.integers(0, 9, 30) * 1000.0, 40_000)
    rows_n = rng.integers(0, 30, 20)
    x_nG, counts_nG = OnDevice(cells, CPU).take(rows_n, torch.from_numpy(rows_n), counts=True)
    values_nG = cells.values(rows_n)
    assert_array_equal(counts_nG, values_nG.toarray())
    np.testing.assert_allclose(x_nG, cells.log1p(rows_n, values_nG).toarray(), rtol=1e-6)


def test_reading_some_cells_is_reading_all_of_them(folder: Path) -> None:
    store = Store.open(folder)
    whole = store.matrix("log1p")[:]
    for rows_N in (np.arange(0), np.array([3]), np.array([0, 1, 5, 40, 41, 179]), np.arange(180)):
        cells = Compact.read(store, rows_N)
        places = np.arange(len(rows_N))[::-1]
        found = cells.log1p(places, cells.values(places))
        assert_array_equal(found.toarray(), whole[rows_N[::-1]].toarray())


@pytest.mark.filterwarnings("ignore:With so few validation cells", "ignore:.*not calibrated")
def test_what_a_model_says_of_a_store_it_says_of_its_cells(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, stored = in_memory(folder), read_store(folder, memory_gb=0)
    mixed = sm.MixedEffects("donor", fixed_settings=small("fixed"), random_settings=small("random"))
    mixed.fit(stored, **FIT)
    for verb in (
        lambda cells: mixed.reconstruct(cells).X,
        lambda cells: mixed.counterfactual(cells, to="d1", draws=2).layers["X_q05"],
        lambda cells: mixed.transfer(cells).select_dtypes("number").to_numpy(),
        lambda cells: sm.interpret.gene_shifts(mixed, cells, "cell_type").select_dtypes("number").to_numpy(),
        lambda cells: sm.interpret.counterfactual_check(mixed, cells, "cell_type")["pearson"].to_numpy(),
    ):
        assert_array_equal(verb(memory), verb(stored))
    monkeypatch.setattr("scmedley.data.reader.LARGEST", 100)
    monkeypatch.setattr("scmedley.models.base.LARGEST", 100)
    with pytest.raises(
        ScmedleyError, match=r"gene_shifts\(\) reads all cells at once: 180 cells need .*take"
    ):
        sm.interpret.gene_shifts(mixed, stored, "cell_type")
    with pytest.raises(ScmedleyError, match=r"reconstruction of 180 cells x 39 genes needs .*take"):
        mixed.reconstruct(stored)


@pytest.mark.filterwarnings("ignore:donor has 3 levels")
def test_a_vae_and_a_linear_model_read_a_store(folder: Path) -> None:
    memory, stored = in_memory(folder), read_store(folder, memory_gb=0)
    vae = model("vae").fit(stored, **FIT)
    for verb in (
        lambda cells: vae.denoise(cells).X,
        lambda cells: vae.log_likelihood(cells),
        lambda cells: vae.elbo(cells).to_numpy(),
    ):
        assert_array_equal(verb(memory), verb(stored))
    one, other = (sm.LinearMixed("donor").fit(cells) for cells in (memory, stored))
    assert_array_equal(one.statistics.xy_LG, other.statistics.xy_LG)
