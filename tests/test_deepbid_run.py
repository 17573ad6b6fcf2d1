"""A run with ``--model deepbid``: its tables, the commands that read its folder, the paper preset, wrong columns."""

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from running import SMALL, Shell, some_cells, without_drawing
from scmedley import keys, load
from scmedley.models import DeepBID
from scmedley.runs.folder import CLUSTER_TREE, DENOISED, OF_CLUSTERS
from scmedley.runs.read import read_table


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    without_drawing(monkeypatch)
    return Shell(capsys)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    adata = some_cells()
    adata.obs[keys.CLUSTER] = adata.obs["cell_type"]
    adata.obs["empty"] = np.nan
    adata.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def test_a_run_and_the_commands_after_it(shell: Shell, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    roles = ("--label", "cell_type", "--donor", "batch")
    shell("run", data, "--model", "deepbid", *roles, "--clusters", 3, "--out", out, *SMALL)
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "done"
    assert record["findings"][0].startswith("3 clusters, of ")
    cells, model = ad.read_h5ad(out / "integrated.h5ad"), load(out / "model")
    assert isinstance(model, DeepBID)
    assert model.clusters is not None
    np.testing.assert_array_equal(cells.obs[keys.CLUSTER].cat.codes, model.clusters.code_N)
    again = cells.copy()
    model.cluster(again)  # the cells of the fit, as those of another file
    np.testing.assert_array_equal(again.obs[keys.CLUSTER], cells.obs[keys.CLUSTER])
    np.testing.assert_array_equal(again.obsm[keys.MEMBERSHIP], cells.obsm[keys.MEMBERSHIP])
    denoised = ad.read_zarr(out / DENOISED)
    assert (denoised.shape, list(denoised.obs_names)) == ((180, 60), list(cells.obs_names))
    tables = {name: (out / name).read_bytes() for name in OF_CLUSTERS}
    assert (read_table(out / "markers.csv")["donors"] <= 3).all()  # type: ignore[index]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert 'id="clusters"' in page
    assert "The command scmedley project writes them." in page
    shell.well("evaluate", out)
    assert {name: (out / name).read_bytes() for name in OF_CLUSTERS} == tables
    # New cells get the clusters of the run.
    new = ad.read_h5ad(data)
    new.obs["batch"] = new.obs["batch"].cat.rename_categories({"sc_10x": "new"})
    new.write_h5ad(tmp_path / "new.h5ad")
    embedding = ("embed", out, "--input", tmp_path / "new.h5ad", "--out")
    said = shell(*embedding, tmp_path / "embedded.h5ad", "--unknown", "mean")
    assert "Cells in the clusters of the run (obs['scmedley_cluster'])\n  0, " in said.out
    assert "does not use the batch. Only novelty needs the effect of the batch" in said.out
    embedded = ad.read_h5ad(tmp_path / "embedded.h5ad")
    np.testing.assert_array_equal(embedded.obs[keys.CLUSTER], cells.obs[keys.CLUSTER])
    assert embedded.obsm[keys.MEMBERSHIP].shape == (180, 3)
    assert "Clusters of the run" in (tmp_path / "embedded.html").read_text(encoding="utf-8")
    shell(*embedding, tmp_path / "adapted.h5ad", "--unknown", "adapt")
    assert keys.CLUSTER in ad.read_h5ad(tmp_path / "adapted.h5ad").obs


def test_the_paper_preset_has_clusters_without_evidence(shell: Shell, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    said = shell(
        "run", data, "--model", "deepbid", "--preset", "paper", "--clusters", 3, "--out", out, *SMALL
    )
    assert said.code == 0, said.err
    assert "not tested: the number of clusters was given" in said.out
    assert not (out / CLUSTER_TREE).exists()
    assert (out / DENOISED).exists()
    # No batch effects, so no shifts of 1e-7 that pass for findings.
    assert not {"gene_shifts.csv", "counterfactual_check.csv"} & {path.name for path in out.iterdir()}
    assert "Genes that shift most" not in said.out
    assert "There are none: the decoder of this model has no batch effects" in said.out
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "No gene shifts: the decoder of this model has no batch effects" in page
    assert "The random-effects network" not in page


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model", "deepbid", "--donor", "patient"), "donor key 'patient' is not a column of obs"),
        (
            ("--model", "deepbid", "--donor", "empty"),
            "No cell has a value in obs['empty']. Leave --donor out",
        ),
        (
            ("--model", "deepbid", "--label", keys.CLUSTER),
            "is the column of clusters, which this command writes",
        ),
        (("--model", "deepbid", "--clusters", 0), "--clusters 0 must be at least 1"),
        (("--clusters", 3), "--clusters 3 is for --model deepbid"),
        (("--model", "deepbid", "--clusters", 181), "--clusters 181 is more than the 180 cells"),
        (("--model", "deepbid", "--preset", "paper"), "needs the number of clusters. Give --clusters"),
        (
            ("--model", "deepbid", "--preset", "paper", "--clusters", 140),
            "--clusters 140 is more than the 1",
        ),
        (("--no-denoise",), "--no-denoise is for --model deepbid"),
        (("--donor", "batch"), "--donor is for the marker genes of --model deepbid, not for --model mixed"),
    ],
)
def test_wrong_options_are_refused_before_the_fit(
    shell: Shell, data: Path, tmp_path: Path, options: tuple[object, ...], words: str
) -> None:
    assert words in shell("run", data, "--out", tmp_path / "run", *options, *SMALL).error
    assert not list((tmp_path / "run").glob("*"))
