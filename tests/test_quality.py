"""The quality benchmark: it resumes, tells failures as they are, and its claims can fail."""

import dataclasses
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock

import scmedley as sm
from scmedley import keys
from scmedley.evaluate import kmeans_clusters, nmi

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
if not BENCHMARKS.exists():  # in a source distribution
    pytest.skip("no benchmarks here", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import common  # noqa: E402
import quality  # noqa: E402
import quality_methods  # noqa: E402
import quality_tables  # noqa: E402
import symphony  # noqa: E402

PEER = "Harmony, all cells"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one tiny set."""
    adata = sm.datasets.sc_mixology()
    rows = np.random.default_rng(0).choice(adata.n_obs, 240, replace=False)
    folder = tmp_path_factory.mktemp("data")
    adata[rows].copy().write_h5ad(folder / "tiny.h5ad")
    return folder


@pytest.fixture
def run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Run the command on the tiny set with PCA and one rival; return what it stored."""
    monkeypatch.setitem(common.DATA_SETS, "tiny", common.DataSet("tiny", file="tiny.h5ad"))
    monkeypatch.setattr(quality_methods, "leiden", lambda z_NP, seed: [kmeans_clusters(z_NP, 3, seed)])
    out = ["--out", f"{tmp_path}/runs", "--results", f"{tmp_path}/q.json", "--picture", f"{tmp_path}/q.png"]

    def run(*more: str) -> dict[str, Any]:
        quality_methods.prepared.cache_clear()
        given = [
            "quality.py",
            "--sets",
            "tiny",
            "--data",
            str(data),
            "--seeds",
            "1",
            "--methods",
            "PCA",
            PEER,
        ]
        monkeypatch.setattr(sys, "argv", [*given, *out, *more])
        quality.main()
        return json.loads((tmp_path / "q.json").read_text())

    return run


def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save the seconds of drawing."""
    for name in ("draw", "write_page"):
        monkeypatch.setattr(quality, name, lambda *_: None)


def never(*_: Any) -> Any:
    raise AssertionError("must not be called")


def test_a_run_resumes_and_scores_again_without_a_fit(run, tmp_path, monkeypatch, capsys) -> None:
    first = run()
    assert [r["method"] for r in first["runs"]] == ["PCA", PEER]
    assert first["runs"][0]["leak"] > first["runs"][1]["leak"]
    assert "| tiny | PCA |" in capsys.readouterr().out
    page = (tmp_path / "q.html").read_text()
    assert PEER in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert (tmp_path / "q.png").stat().st_size > 5000
    no_page(monkeypatch)
    monkeypatch.setattr(quality, "fit", never)
    again = run("--rescore", "--markdown")
    assert again["runs"] == first["runs"]
    assert "| tiny | " in capsys.readouterr().out
    monkeypatch.setattr(quality, "score", never)
    assert run()["runs"] == first["runs"]
    # Where the rival is not installed, its newest result is still shown.
    monkeypatch.setattr(sm.peers.Peer, "installed", property(lambda self: False))
    assert run("--tables-only", "--methods", "PCA")["runs"] == first["runs"]


def test_a_failing_rival_is_told_and_tried_again_on_request(run, tmp_path, monkeypatch, capsys) -> None:
    def breaks(task: Any) -> Any:
        raise ValueError("singular <matrix>")

    working = quality_methods.PEERS["Harmony"]
    monkeypatch.setitem(quality_methods.PEERS, "Harmony", dataclasses.replace(working, embed=breaks))
    failed = run()["runs"][1]
    assert (failed["status"], failed["reason"]) == ("failed", "singular <matrix>")
    assert f"tiny, {PEER}: singular <matrix>" in capsys.readouterr().out
    assert "singular &lt;matrix&gt;" in (tmp_path / "q.html").read_text()
    no_page(monkeypatch)
    monkeypatch.setitem(quality_methods.PEERS, "Harmony", working)
    assert run()["runs"][1]["status"] == "failed"
    assert run("--retry")["runs"][1]["status"] == "done"


def test_what_another_process_has_locked_is_left(run, tmp_path, monkeypatch) -> None:
    task = quality.Task("tiny", 0, quality_methods.METHODS["PCA"], tmp_path, "0")
    with FileLock(tmp_path / f".{task.fit_file.stem}.lock"):
        assert not quality.done(task, None, wait=False)


def test_methods_of_counts_skip_sets_without_counts(data: Path) -> None:
    adata = sm.read(data / "tiny.h5ad")
    _, facts = quality_methods.fit(quality_methods.METHODS["scVI"], adata, 0, 1)
    assert facts == {"status": "skipped", "reason": "models counts, and this set has none"}


def test_fitted_on_all_cells_leaves_the_scored_split_as_it_is(data: Path, monkeypatch) -> None:
    seen = {}

    def embed(method: Any, adata: Any, *_: Any) -> Any:
        seen[method.name] = set(adata.obs[keys.SPLIT])
        return {"z": np.zeros((adata.n_obs, 2))}, None

    monkeypatch.setattr(quality_methods, "_embed", embed)
    adata = sm.read(data / "tiny.h5ad")
    adata.obs[keys.SPLIT] = pd.Categorical(np.array(["train", "validation", "test"])[np.arange(240) % 3])
    for name in ("FE", "FE, all cells"):
        quality_methods.fit(quality_methods.METHODS[name], adata, 0, 1)
    assert seen == {"FE": {"train", "validation", "test"}, "FE, all cells": {"train", "validation"}}
    assert set(adata.obs[keys.SPLIT]) == {"train", "validation", "test"}


def test_leiden_finds_groups_that_are_apart() -> None:
    group_N = np.arange(90) % 3
    z_NP = np.random.default_rng(0).normal(size=(90, 5)).astype(np.float32) + 20 * np.eye(5)[group_N]
    with warnings.catch_warnings(action="ignore"):  # of scanpy's imports
        found = quality_methods.leiden(z_NP.astype(np.float32), 0)
    assert len(found) == len(quality_methods.RESOLUTIONS)
    assert nmi(found[0], group_N) == pytest.approx(1)


@pytest.fixture(scope="module")
def reference() -> tuple[np.ndarray, np.ndarray, Any]:
    """Components and batches of a set, and Harmony fitted to them."""
    harmonypy = pytest.importorskip("harmonypy")
    adata = sm.datasets.sc_mixology()
    sm.pp.prepare(adata, "batch")
    sm.pp.pca(adata, 20)
    z_NP, batch_N = adata.obsm[keys.PCA].astype(float), adata.obs["batch"].cat.codes.to_numpy()
    obs = pd.DataFrame({"b": batch_N.astype(str)})
    return z_NP, batch_N, harmonypy.run_harmony(z_NP, obs, "b", ncores=1, verbose=False)


def test_the_reference_effects_are_what_harmony_subtracted(reference) -> None:
    z_NP, batch_N, fitted = reference
    effect_KBP = symphony.reference_effects(z_NP, batch_N, fitted.R)
    corrected_NP = z_NP - np.einsum("nk,knp->np", fitted.R, effect_KBP[:, batch_N])
    np.testing.assert_allclose(corrected_NP, fitted.Z_corr, atol=1e-3)


def test_mapping_the_reference_itself_gives_harmonys_coordinates_closely(reference) -> None:
    z_NP, batch_N, fitted = reference
    z_corr = fitted.Z_corr
    applied = symphony.apply_correction(z_NP, batch_N, z_corr, fitted.R, z_NP, batch_N)
    mapped = symphony.map_query(z_NP, batch_N, z_corr, fitted.R)
    before = ((z_NP - z_corr) ** 2).sum()
    assert ((applied - z_corr) ** 2).sum() < 0.02 * before
    assert ((mapped - z_corr) ** 2).sum() < 0.05 * before


def row(method: str, **scores: float) -> dict[str, Any]:
    return {"set": "pancreas", "seed": 0, "method": method, "status": "done"} | scores


def test_claims_pass_and_fail() -> None:
    rows = [
        row("FE", leak=0.01, accuracy=0.90, bras=0.8, nmi=0.7),
        row("PCA", leak=0.90, accuracy=0.95, bras=0.5, nmi=0.7),
        row("Harmony, applied", leak=-0.20, accuracy=0.90, bras=0.8, nmi=0.75),
        row("Harmony, all cells", leak=-0.05, accuracy=0.90, bras=0.7, nmi=0.7),
    ]
    bars = quality_tables.accept(pd.DataFrame(rows))
    whole = bars[bars["set"] == "all sets"].set_index(["comparison", "bar"])["passed"]
    training = whole[quality_tables.TRAINING]
    assert training["worst leak ≤ Harmony + 0.03, every set"]  # Harmony's counts as 0
    assert not training["worst leak ≤ Harmony, half of the sets"]
    assert not training["accuracy ≥ PCA − 0.01, every set"]
    assert not training["NMI ≥ Harmony − 0.02, every set"]
    assert whole["ours fitted on the training cells, Harmony on all"]["NMI ≥ Harmony − 0.02, every set"]
    assert not any("scVI" in bar for bar in training.index)  # not run, so nothing is claimed
    summary = quality_tables.summarise(pd.DataFrame(rows))
    assert summary["leak"].min() == -0.2  # tables show it as it is
    assert "| pancreas | 0.90 / 0.01 / **−0.20** | **0.95** / 0.90 / 0.90 |" in quality_tables.markdown(
        summary
    )
