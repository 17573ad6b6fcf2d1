"""What earlier versions wrote is read by this one, and says the same (tests/frozen/)."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from packaging.version import Version

from running import Shell, without_drawing
from scmedley.models import catalogue, load
from scmedley.runs.read import read, read_cells, read_model, read_reading
from tiny import nested_design

FROZEN = Path(__file__).parent / "frozen"
VERSIONS = sorted((path.name for path in FROZEN.iterdir() if (path / "numbers.json").exists()), key=Version)
MOST_BYTES = 2_000_000  # of a version
MODELS = [
    (version, path.name) for version in VERSIONS for path in sorted((FROZEN / version / "models").iterdir())
]
RUNS = [
    path
    for version in VERSIONS
    for path in sorted((FROZEN / version).glob("*/"))
    if (path / "run.json").exists()
]


def name_of(run: Path) -> str:
    return f"{run.parent.name} {run.name}"


@pytest.fixture(scope="module")
def make():
    spec = importlib.util.spec_from_file_location("frozen_make", FROZEN / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("version", "name"), MODELS)
def test_models_say_what_they_said(make, version, name):
    kept = json.loads((FROZEN / version / "numbers.json").read_text())[name]
    found = make.numbers(load(FROZEN / version / "models" / name), nested_design())
    assert kept
    for verb, values in kept.items():  # a later version may have more verbs
        wanted, now = np.asarray(values), np.asarray(found[verb])
        assert now.shape == wanted.shape
        if wanted.dtype.kind == "f":  # other processors round otherwise
            np.testing.assert_allclose(now, wanted, rtol=2e-3, atol=2e-4 * np.abs(wanted).max(), err_msg=verb)
        else:
            np.testing.assert_array_equal(now, wanted, err_msg=verb)


def test_every_class_is_frozen():
    classes = {row.model.__name__ for row in catalogue.OWN} | {"MixedEffects", "LinearMixed"}
    for version in VERSIONS[-1:]:
        descriptions = (FROZEN / version / "models").glob("*/model.json")
        assert {json.loads(path.read_text())["class"] for path in descriptions} >= classes


@pytest.mark.parametrize("version", VERSIONS)
def test_a_version_is_small(version):
    assert sum(path.stat().st_size for path in (FROZEN / version).rglob("*") if path.is_file()) < MOST_BYTES


@pytest.mark.parametrize("folder", RUNS, ids=name_of)
def test_a_run_folder_is_read(folder):
    run = read(folder)
    assert run.settings["status"] == "done"
    assert run.settings["verdicts"]
    assert (run.config["batch"], run.config["label"]) == ("donor", "cell_type")
    for table in (run.history, run.scores, run.shifts, run.check, run.labels):
        assert table is not None
        assert len(table) or table is run.check  # of so few cells, no pair can be checked
    assert set(run.maps) == set(run.shown)
    assert bool(run.clusters) == (folder.name == "deepbid")
    cells, model = read_cells(folder), read_model(folder)
    reading = read_reading(folder, model, cells)
    assert (reading.store is not None) == (folder.name == "backed")
    again = cells.copy()
    del again.obsm
    model.embed(again, reading=reading)
    found = [key for key in run.shown if key in again.obsm]
    assert found
    for key in found:
        wanted = cells.obsm[key]
        np.testing.assert_allclose(again.obsm[key], wanted, rtol=2e-3, atol=2e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("folder", RUNS, ids=name_of)
def test_commands_go_on_with_a_run_folder(folder, tmp_path, capsys, monkeypatch):
    without_drawing(monkeypatch)
    shell, run = Shell(capsys), tmp_path / "run"
    shutil.copytree(folder, run)
    assert shell("report", run).code == 0
    assert (run / "report.html").stat().st_size > 10_000
    assert shell("project", run, "--to", "d1", "--out", tmp_path / "as_if.h5ad").code == 0
    nested_design().write_h5ad(tmp_path / "new.h5ad")
    embedded = tmp_path / "embedded.h5ad"
    assert shell("embed", run, "--cells", tmp_path / "new.h5ad", "--out", embedded).code == 0
    assert shell("export", run, "--to", "vitess", "--out", tmp_path / "vitess").code == 0
