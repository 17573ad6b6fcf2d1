"""Tune: what is tried, that a stopped search goes on as if it had not been, and what it leaves behind."""

import tomllib
from pathlib import Path

import optuna
import pandas as pd
import pytest

from scmedley.__main__ import main
from scmedley.errors import ScmedleyError
from scmedley.experiment import tune as tuning
from scmedley.experiment.tune import BEST, TRIALS, tune
from scmedley.pipeline.checks import unfitted
from scmedley.pipeline.config import RunConfig
from tiny import nested_design

COLUMNS = ["state", "value", "accuracy", "leak", "offset_weight", "n_latent", "layers"]


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "cells.h5ad"
    nested_design().write_h5ad(path)
    return path


def search(cells: Path, out: Path, trials: int, **changes):
    given = {"batch_key": "donor", "label_key": "cell_type", "epochs": 1, "threads": 1, "say": lambda _: None}
    return tune(cells, out, trials=trials, **{**given, **changes})


def test_stopped_in_a_trial_and_gone_on_it_finds_the_same(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    whole = search(cells, tmp_path / "whole", 3)
    assert optuna.logging.get_verbosity() == optuna.logging.ERROR
    real, calls = tuning._score, []

    def dying(*arguments):
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(tuning, "_score", dying)
    with pytest.raises(KeyboardInterrupt):
        search(cells, tmp_path / "parts", 3)
    parts = search(cells, tmp_path / "parts", 3)
    assert parts["test"] == whole["test"]
    one, other = (pd.read_csv(tmp_path / name / TRIALS) for name in ("whole", "parts"))
    other = other[other.state != "fail"]
    pd.testing.assert_frame_equal(one[COLUMNS], other[COLUMNS].reset_index(drop=True))
    first = one.iloc[0]
    assert (first.offset_weight, first.n_latent, first.layers) == (1.0, 20, "256-128")
    # A leak below 0 counts as 0 in each fit, not in their mean.
    assert (
        first.accuracy - max(first.leak, 0) - 0.05 < first.value <= first.accuracy - max(first.leak, 0) + 1e-9
    )


def test_what_it_finds_is_what_a_run_takes(cells: Path, tmp_path: Path) -> None:
    record = search(cells, tmp_path / "out", 1, method="FEC")
    found = tomllib.loads((tmp_path / "out" / BEST).read_text())["settings"]["FEC"]
    config = RunConfig(label="cell_type", learn_labels=True, settings=str(tmp_path / "out" / BEST), epochs=7)
    model = unfitted(config)
    fixed, random = model.fixed.settings, model.random.settings
    assert (fixed.n_latent, list(fixed.hidden)) == (found["n_latent"], found["hidden"])
    assert fixed.label_weight == record["best"]["label_weight"] == found["label_weight"]
    assert (fixed.max_epochs, random.max_epochs) == (7, 7)
    with pytest.raises(ScmedleyError, match="settings of 'FEC'"):
        unfitted(RunConfig(settings=str(tmp_path / "out" / BEST)))


def test_another_search_in_the_same_folder_is_refused(cells: Path, tmp_path: Path) -> None:
    search(cells, tmp_path / "out", 1)
    with pytest.raises(ScmedleyError, match="another --seeds"):
        search(cells, tmp_path / "out", 1, seed=1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    with pytest.raises(ScmedleyError, match="not empty"):
        search(cells, tmp_path / "full", 1)


def test_a_key_that_is_not_there_is_said_and_values_are_taken_as_told(cells: Path, tmp_path: Path) -> None:
    with pytest.raises(ScmedleyError, match="Did you mean 'donor'"):
        search(cells, tmp_path / "out", 1, batch_key="Donor")
    with pytest.raises(ScmedleyError, match="cannot hold logarithms to base 10"):
        search(cells, tmp_path / "other", 1, values="log10")


def test_the_command_prints_the_scores_on_test_cells(
    cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"tune {cells} --batch donor --label cell_type --out {tmp_path / 'out'} --trials 1 --epochs 1"
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--threads", "1"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "default: label accuracy" in said
    assert "best: label accuracy" in said
    with pytest.raises(SystemExit) as end:
        main(command.replace("--trials 1", "--trials 0").split())
    assert end.value.code == 1
