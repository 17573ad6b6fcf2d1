"""Several processes: two real ones with gloo make the steps of one, and end together."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

import several_processes
from running import some_cells
from scmedley import distributed
from scmedley.models import load
from scmedley.nn.layers import BATCH_NORM_EPS, batch_norm
from scmedley.runs.folder import CHECKPOINTS
from scmedley.train.loop import TOTAL
from several_processes import models

HERE = Path(__file__).parent


def free_port() -> int:
    """Return a port that nothing uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def start(job: str, folder: Path, *more: str) -> list[subprocess.Popen[str]]:
    """Start two processes as torchrun does."""
    folder.mkdir(exist_ok=True)
    shared = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(HERE / "several_processes.py"), job, str(folder), *more]
    return [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def found(folder: Path, processes: list[subprocess.Popen[str]]) -> list[dict[str, Any]]:
    """Wait for two processes that must succeed; return what they wrote."""
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """What one process finds, and what two do, which must be the same in both."""
    folder, names = tmp_path_factory.mktemp("two"), [*models()]
    processes = start("equal", folder, *names)
    one = {"curves": several_processes.curves(*names), "normalised": several_processes.normalised()}
    first, second = found(folder, processes)
    assert first == second
    return one, first


@pytest.mark.parametrize("name", [*models()])
def test_two_processes_have_the_loss_curves_and_the_latent_of_one(name: str, one_and_two: Any) -> None:
    one, two = (of["curves"][name] for of in one_and_two)
    assert one["history"].keys() == two["history"].keys()
    for column, values in one["history"].items():
        if column in ("value", "weight"):
            loss = np.array(one["history"]["term"]) == TOTAL
            mine, right = np.array(two["history"][column]), np.array(values)
            assert_allclose(mine[loss], right[loss], rtol=1e-5, err_msg=column)
            assert_allclose(mine, right, rtol=3e-5, err_msg=column)  # a small term has more of the rounding
        else:
            assert two["history"][column] == values
    assert_allclose(two["latent"], one["latent"], atol=5e-3)


def test_batch_norm_of_two_processes_is_that_of_one(one_and_two: Any) -> None:
    one, two = (of["normalised"] for of in one_and_two)
    for name, values in one.items():
        for mine, right in (
            zip(two[name], values, strict=True) if isinstance(values, list) else ((two[name], values),)
        ):
            assert_allclose(mine, right, rtol=1e-4, atol=2e-5, err_msg=name)


def test_batch_norm_of_one_process_is_that_of_pytorch() -> None:
    torch.manual_seed(0)
    ours, theirs = batch_norm(4, 0.1), nn.BatchNorm1d(4, eps=BATCH_NORM_EPS, momentum=0.1)
    x_NH = torch.randn(9, 4)
    assert torch.equal(ours(x_NH), theirs(x_NH))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(
        torch.equal(a, b)
        for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    )


def test_if_one_process_is_killed_the_other_ends_and_the_fit_resumes(
    tmp_path: Path, one_and_two: Any
) -> None:
    processes = start("resumed", tmp_path, "1")
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, -9]
    (line,) = [line for line in errors[0].splitlines() if line.startswith("scmedley: error: ")]
    assert "process 1 of 2 has ended" in line
    assert "Repeat the command to resume" in line
    resumed, same = found(tmp_path, start("resumed", tmp_path))
    assert resumed == same == one_and_two[1]["whole"]


def test_torchrun_fits_with_two_processes_of_which_one_prints(tmp_path: Path) -> None:
    cells, out = tmp_path / "cells.h5ad", tmp_path / "run"
    some_cells().write_h5ad(cells)
    options = ("--batch", "batch", "--model", "vae", "--latent", "4", "--epochs", "2", "--genes", "60")
    torchrun = (
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--master-port",
        str(free_port()),
    )
    command = [*torchrun, "-m", "scmedley", "fit", str(cells), "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Fitting VAE") == 1
    assert done.stdout.count("Model: ") == 1
    assert "error" not in done.stderr
    assert load(out / "model").fitted["epochs"] == 2
    assert not (out / CHECKPOINTS).exists()


def test_one_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in distributed.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    with distributed.started("cpu") as world, distributed.minibatch(5):
        assert world == (1, 0)
        assert not distributed.is_shared()
        x = torch.ones(5)
        assert distributed.gathered(x) is x
        assert distributed.total(x) is x
        assert distributed.rows() == slice(None)
