"""Exports opened by the programs that they are for: Cell Browser, MultiQC, Vitessce.

``make test-exports`` installs these into an environment of their own, and runs the tests with
``SCMEDLEY_EXPORT_PYTHON``, its interpreter.
"""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from running import SMALL, some_cells, without_drawing
from scmedley.__main__ import main
from scmedley.pipeline.export import export

pytestmark = pytest.mark.heavy
PYTHON = os.environ.get("SCMEDLEY_EXPORT_PYTHON", sys.executable)

CELL_BROWSER = """
import sys
from cellbrowser import cellbrowser
cellbrowser.copyMarkers = lambda *_: None  # it downloads gene lists, which have nothing to do with the data
sys.argv = ["cbBuild", "-i", sys.argv[1], "-o", sys.argv[2]]
cellbrowser.cbBuildCli()
"""

VITESSCE = """
import json, sys
from vitessce import AnnDataWrapper, CoordinationType, ViewType, VitessceConfig
config = json.load(open(sys.argv[1]))
assert VitessceConfig.from_dict(config).to_dict() == config
assert set(config["coordinationSpace"]) <= {kind.value for kind in CoordinationType}
assert {view["component"] for view in config["layout"]} <= {view.value for view in ViewType}
file = config["datasets"][0]["files"][0]
options, matrix = file["options"], file["options"]["obsFeatureMatrix"]
wrapper = AnnDataWrapper(
    adata_url=file["url"],
    obs_feature_matrix_path=matrix["path"],
    initial_feature_filter_path=matrix.get("initialFeatureFilterPath"),
    obs_set_paths=[one["path"] for one in options["obsSets"]],
    obs_set_names=[one["name"] for one in options["obsSets"]],
    obs_embedding_paths=[one["path"] for one in options["obsEmbedding"]],
    obs_embedding_names=[one["embeddingType"] for one in options["obsEmbedding"]],
    coordination_values=file["coordinationValues"],
)
wrapper.convert_and_save("A", 0)
assert wrapper.make_file_def_creator("A", 0)("") == file
"""


@pytest.fixture(scope="module", params=["mixed", "deepbid"])
def run(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    cells = some_cells(600, 300)
    cells.obs["odd 'name' & <b>"] = "d'e\"f"
    cells.obs.loc[cells.obs_names[:5], "cell_type"] = None
    cells.write_h5ad(folder / "cells.h5ad")
    out = folder / request.param
    where = ("--batch", "batch", "--label", "cell_type", "--model", request.param, "--out", str(out))
    with pytest.MonkeyPatch.context() as patch, suppress(SystemExit):
        without_drawing(patch)
        main(["run", str(folder / "cells.h5ad"), *where, *SMALL, "--quiet"])
    return out


def call(code: str, *arguments: object) -> str:
    done = subprocess.run(
        [PYTHON, "-W", "ignore", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_cell_browser_builds_its_page(run, tmp_path):
    export(run, "cellbrowser", tmp_path / "out")
    said = call(CELL_BROWSER, tmp_path / "out" / "cellbrowser.conf", tmp_path / "html")
    assert "ERROR" not in said
    built = json.loads((tmp_path / "html" / run.name / "dataset.json").read_text())
    assert built["sampleCount"] == 600
    assert len(built["coords"]) == (3 if run.name == "mixed" else 2)
    fields = {field["label"]: field for field in built["metaFields"]}
    assert len(fields["batch"]["colors"]) == 3
    assert (tmp_path / "html" / run.name / "exprMatrix.bin").stat().st_size > 0


def test_vitessce_would_write_the_same(run, tmp_path):
    export(run, "vitess", tmp_path / "out")
    call(VITESSCE, tmp_path / "out" / "vitessce.json")


def test_multiqc_shows_all_sections(run, tmp_path):
    export(run, "multiqc", tmp_path / "out")
    subprocess.run(
        [PYTHON, "-m", "multiqc", "-q", "--strict", "-o", tmp_path / "page", tmp_path / "out"], check=True
    )
    data = json.loads((tmp_path / "page" / "multiqc_data" / "multiqc_data.json").read_text())
    assert data["report_general_stats_data"]["custom_content"][run.name]["cells"] == 600
    tables = {path.name for path in (tmp_path / "page" / "multiqc_data").glob("multiqc_scmedley_*")}
    assert tables == {f"multiqc_scmedley_{name}_table.txt" for name in ("scores", "verdicts", "warnings")}
