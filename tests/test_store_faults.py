"""A store is written completely or not at all, and goes on where it was: killed process, full disk, other input."""

import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from scmedley.data import store as stores
from scmedley.data.store import Store
from scmedley.errors import ScmedleyError, ScmedleyWarning
from scmedley.io import store as writing
from scmedley.io.store import StoreWriter, unfinished
from scmedley.pp import passes, stored
from scmedley.pp.stored import prepare_store, read_store
from tiny import nested_design

SETTINGS = {"label_key": "cell_type", "min_genes": 5, "n_top_genes": 25, "progress": False}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(passes, "BLOCK", 400)


@pytest.fixture
def cells(tmp_path) -> Path:
    nested_design().write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".bin"}


def stopped_after(monkeypatch, n_blocks: int, error: BaseException) -> None:
    """Raise an error instead of writing the next block."""
    append, written = StoreWriter.append, []

    def stop(self, *args):
        if len(written) == n_blocks:
            raise error
        written.append(append(self, *args))

    monkeypatch.setattr(StoreWriter, "append", stop)


KILLED = """
import os, sys
sys.path.insert(0, {tests!r})
from scmedley.pp import passes, stored
from scmedley.pp.stored import prepare_store
import scmedley.io.store as writing

passes.BLOCK = 400
replace, blocks = writing._replace, []

def dies(place, data):
    if place.name == writing.WRITTEN:
        blocks.append(place)
        if len(blocks) == 3:  # the arrays of this block are written, and it is not noted
            os._exit(9)
    replace(place, data)

writing._replace = dies
prepare_store({cells!r}, {folder!r}, "donor", **{settings!r})
"""


def test_killed_process_goes_on_to_the_same_bytes(cells, tmp_path, monkeypatch):
    folder = tmp_path / "store"
    code = KILLED.format(
        tests=str(Path(__file__).parent), cells=str(cells), folder=str(folder), settings=SETTINGS
    )
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False).returncode == 9
    assert not folder.exists()
    n_cells = json.loads((tmp_path / ".store.part" / writing.WRITTEN).read_text())["n_cells"]
    assert n_cells > 0

    starts = []
    kept = passes.FoundMatrix.kept

    def noted(self, kept_N, genes_G, title, first=0):
        starts.append((title, first))
        return kept(self, kept_N, genes_G, title, first)

    monkeypatch.setattr(passes.FoundMatrix, "kept", noted)
    checked = prepare_store(cells, folder, "donor", **SETTINGS)
    assert starts == [("Writing", n_cells)]  # neither sums nor genes were computed again
    assert not (tmp_path / ".store.part").exists()
    assert {path.name for path in folder.iterdir()} == {
        stores.HEADER,
        stores.CELLS,
        *Store.open(folder).file_bytes(),
    }

    assert prepare_store(cells, tmp_path / "whole", "donor", **SETTINGS) == checked
    assert content(folder) == content(tmp_path / "whole")
    assert Store.open(folder).digest == Store.open(tmp_path / "whole").digest
    Store.open(folder).check()


def test_full_disk_is_said_and_the_same_call_goes_on(cells, tmp_path, monkeypatch):
    fsync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) == 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(writing.os, "fsync", full)
        with pytest.raises(
            ScmedleyError, match=r"The disk is full: .*store is not complete.* goes on from there"
        ):
            prepare_store(cells, tmp_path / "store", "donor", **SETTINGS)
    assert not (tmp_path / "store").exists()
    prepare_store(cells, tmp_path / "store", "donor", **SETTINGS)
    Store.open(tmp_path / "store").check()


def test_too_little_space_is_said_before_cells_are_written(cells, tmp_path, monkeypatch):
    usage = writing.shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ScmedleyError, match=r"needs [\d,]{5,} bytes more, and the disk has 100 left"):
        prepare_store(cells, tmp_path / "store", "donor", **SETTINGS)


def test_changed_input_or_settings_start_again_or_are_refused(cells, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stopped_after(patch, 3, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            prepare_store(cells, tmp_path / "store", "donor", **SETTINGS)
    nested_design(seed=1).write_h5ad(cells)
    with pytest.warns(
        ScmedleyWarning, match=r"the input file .*cells\.h5ad has changed. Preparation starts again"
    ):
        prepare_store(cells, tmp_path / "store", "donor", **SETTINGS)
    prepare_store(cells, tmp_path / "whole", "donor", **SETTINGS)
    assert content(tmp_path / "store") == content(tmp_path / "whole")

    with pytest.raises(ScmedleyError, match="seed has changed from 0 to 1"):
        prepare_store(cells, tmp_path / "store", "donor", seed=1, **SETTINGS)
    nested_design(seed=2).write_h5ad(cells)
    with pytest.raises(ScmedleyError, match=r"the input file .*cells\.h5ad has changed"):
        prepare_store(cells, tmp_path / "store", "donor", **SETTINGS)


def test_complete_store_is_checked_and_used_again(cells, tmp_path, monkeypatch):
    checked = prepare_store(cells, tmp_path / "store", "donor", **SETTINGS)
    with monkeypatch.context() as patch:
        stopped_after(patch, 0, AssertionError("written again"))
        again = prepare_store(cells, tmp_path / "store", "donor", **SETTINGS)
    assert (again, again.reason) == (checked, checked.reason)

    values = tmp_path / "store" / "values.bin"
    data = bytearray(values.read_bytes())
    data[len(data) // 2] ^= 1
    values.write_bytes(data)
    with pytest.raises(ScmedleyError, match=r"damaged: the checksum of cells \d+ to \d+ is not"):
        prepare_store(cells, tmp_path / "store", "donor", **SETTINGS)


def test_damaged_stores_are_refused(cells, tmp_path):
    folder = tmp_path / "store"
    prepare_store(cells, folder, "donor", **SETTINGS)
    with (folder / "values.bin").open("r+b") as file:
        file.truncate(10)
    with pytest.raises(ScmedleyError, match=r"values\.bin has 10 bytes and should have"):
        read_store(folder)
    header = json.loads((folder / stores.HEADER).read_text())
    (folder / stores.HEADER).write_text(json.dumps(header | {"version": 99}))
    with pytest.raises(ScmedleyError, match="has version 99 of the store"):
        read_store(folder)
    (folder / stores.HEADER).unlink()
    with pytest.raises(ScmedleyError, match="is not a complete store"):
        read_store(folder)
    with pytest.raises(ScmedleyError, match="exists and is no store of cells"):
        prepare_store(cells, folder, "donor", **SETTINGS)


def flipped(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x80
    path.write_bytes(data)


def test_each_damaged_file_is_named(cells, tmp_path):
    prepare_store(cells, tmp_path / "whole", "donor", **SETTINGS)
    folder = tmp_path / "store"
    for damage, said in (
        (lambda: (folder / stores.CELLS).unlink(), r"cells\.h5ad cannot be read"),
        (lambda: os.truncate(folder / stores.CELLS, 3000), r"cells\.h5ad cannot be read"),
        (lambda: (folder / stores.HEADER).write_text("[1]"), "is not a complete store"),
        (lambda: (folder / stores.HEADER).write_text('{"version": 1}'), r"store\.json is damaged"),
        (lambda: flipped(folder / stores.ROWS, 8 * 7 + 7), r"rows\.bin holds wrong numbers"),
        (lambda: flipped(folder / stores.GENES, 2 * 7 + 1), r"genes\.bin holds wrong numbers"),
    ):
        shutil.copytree(tmp_path / "whole", folder)
        damage()
        with pytest.raises(ScmedleyError, match=said):
            read_store(folder).log1p_NG[:5]
        with pytest.raises(ScmedleyError, match=r"damaged|not a complete store"):
            stored._used_again(folder, Store.open(tmp_path / "whole").about["made_from"])
        shutil.rmtree(folder)


@pytest.mark.parametrize("memory_gb", [-1, float("nan"), float("inf"), "4"])
def test_memory_is_a_number_from_zero(tmp_path, memory_gb):
    with pytest.raises(ScmedleyError, match="no amount of memory"):
        read_store(tmp_path, memory_gb=memory_gb)


def test_columns_that_were_converted_are_said_each_time(tmp_path):
    cells = nested_design()
    cells.obs["mixed"] = [1.5, "x"] * (cells.n_obs // 2)
    for _ in range(2):
        with pytest.warns(ScmedleyWarning, match=r"store: Written as text.*obs\['mixed'\]"):
            prepare_store(cells, tmp_path / "store", "donor", **SETTINGS)


def test_unreadable_input_is_named(cells, tmp_path, monkeypatch):
    data = cells.read_bytes()
    cells.write_bytes(data[: len(data) // 2])
    with pytest.raises(ScmedleyError, match=r"cells\.h5ad cannot be read"):
        prepare_store(cells, tmp_path / "store", "donor", **SETTINGS)
    cells.write_bytes(data)

    def broken(*args):
        raise OSError("Can't synchronously read data")

    for place in ("check", "summed"):  # while the values are looked at, and in a later pass
        with monkeypatch.context() as patch:
            patch.setattr(
                passes if place == "summed" else stored, "counted" if place == "summed" else place, broken
            )
            with pytest.raises(ScmedleyError, match=r"cells\.h5ad cannot be read: Can't synch"):
                prepare_store(cells, tmp_path / "store", "donor", **SETTINGS)


def test_one_process_writes_a_store(cells, tmp_path):
    with (
        unfinished(tmp_path / "store"),
        pytest.raises(ScmedleyError, match="Another scmedley process is writing"),
    ):
        prepare_store(cells, tmp_path / "store", "donor", **SETTINGS)
