"""A run with ``--model vae``: every command that reads its folder."""

import json
from pathlib import Path

import anndata as ad
import pandas as pd
import pytest

from running import SMALL, Shell, some_cells, without_drawing
from scmedley import keys, load
from scmedley.models import VAE


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    without_drawing(monkeypatch)
    return Shell(capsys)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    some_cells().write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def test_a_run_and_the_commands_after_it(shell: Shell, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shell("run", data, "--label", "cell_type", "--model", "vae", "--out", out, *SMALL)
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "done"
    assert "VAE embedding" in record["verdicts"][0]["question"]
    assert "latent units are active" in record["findings"][0]
    assert record["networks"]["vae"]["epochs"] == 2
    cells = ad.read_h5ad(out / "integrated.h5ad")
    assert {keys.VAE, keys.PCA, keys.umap(keys.VAE)} <= set(cells.obsm)
    assert keys.FIXED not in cells.obsm
    scores = pd.read_csv(out / "scores.csv")
    assert set(scores["embedding"]) == {keys.VAE, keys.PCA}
    assert isinstance(load(out / "model"), VAE)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Does the decoder use the latent?" in page
    assert "Variational autoencoder" in page
    assert "Fixed effects, " not in page
    assert "andom effects" not in page
    assert "random-effects" not in page
    shell.well("evaluate", out)
    shell("embed", out, "--input", data, "--out", tmp_path / "new.h5ad")
    new = ad.read_h5ad(tmp_path / "new.h5ad")
    assert {keys.VAE} <= set(new.obsm)
    assert "scmedley_label" in new.obs
    said = shell(
        "project", out, "--to", "sc_10x", "--out", tmp_path / "there.h5ad", "--figure", tmp_path / "one.svg"
    )
    assert (said.code, (tmp_path / "one.svg").exists()) == (0, True)


def test_options_of_the_fixed_effects_are_refused(shell: Shell, data: Path, tmp_path: Path) -> None:
    for option in (("--learn-labels", "--label", "cell_type"), ("--fixed", "X_mine")):
        said = shell("run", data, "--model", "vae", "--out", tmp_path / "run", *option)
        assert "is for the fixed effects, not for --model vae" in said.error
    assert not (tmp_path / "run").exists()
