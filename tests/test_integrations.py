"""Components for pipelines: their scripts run here, as Nextflow and viash would run them; their YAML keeps the rules.

Rules of nf-core's meta-schema.json and environment-schema.json, and of viash's config; neither tool is needed.
"""

import os
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import yaml

from running import some_cells

ROOT = Path(__file__).parents[1]
MODULE = ROOT / "integrations/nf-core/scmedley/run"
COMPONENT = ROOT / "integrations/openproblems/scmedley"
TYPES = {"map", "file", "directory", "string", "integer", "float", "boolean", "list"}  # of nf-core's elements
SMALL = "--epochs 2 --latent 4 --genes 60 --draws 3 --no-null"
SCMEDLEY = f"""#!{sys.executable}
import sys
if sys.argv[1] == "run":
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    import pytest
    from running import without_drawing
    without_drawing(pytest.MonkeyPatch())  # UMAP takes most of the time, and is tested elsewhere
from scmedley.__main__ import main
main()
"""


@pytest.fixture(scope="module")
def nextflow() -> str:
    return (MODULE / "main.nf").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def module() -> dict:
    return yaml.safe_load((MODULE / "meta.yml").read_text(encoding="utf-8"))


def block(nextflow: str, name: str) -> str:
    """The commands of the script or of the stub, as bash gets them but for the variables of Nextflow."""
    _, _, rest = nextflow.partition(f"    {name}:\n")
    body = textwrap.dedent(rest.split('"""')[1])
    return body.replace("\\$", "\0")  # Groovy passes an escaped dollar on to bash


def outputs(nextflow: str) -> dict[str, str]:
    section = nextflow[nextflow.index("    output:") : nextflow.index("    when:")]
    return {emit: path for path, emit in re.findall(r'path(?:\(| )"([^"]+)"\)?\s*,\s*emit: (\w+)', section)}


def run_block(commands: str, folder: Path, **variables: str) -> None:
    for name, value in variables.items():
        commands = commands.replace("${" + name.replace("__", ".") + "}", value)
    assert "${" not in commands, commands
    shim = folder.parent / "bin" / "scmedley"
    shim.parent.mkdir(exist_ok=True)
    shim.write_text(SCMEDLEY, encoding="utf-8")
    shim.chmod(0o755)
    path = os.pathsep.join([str(shim.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands.replace("\0", "$")],
        cwd=folder,
        env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["script", "stub"])
def test_the_commands_of_the_nextflow_module_write_what_it_declares(nextflow, tmp_path, name):
    work = tmp_path / "work"
    work.mkdir()
    some_cells().write_h5ad(work / "cells.h5ad")
    variables = {"prefix": "sample 1", "task__process": "PIPELINE:SCMEDLEY_RUN"}
    if name == "script":
        variables |= {"h5ad": "cells.h5ad", "batch_key": "batch", "label": "--label 'cell_type'"}
        variables |= {"task__cpus": "1", "args": SMALL}
    run_block(block(nextflow, name), work, **variables)
    for path in outputs(nextflow).values():
        assert list(work.glob(path.replace("${prefix}", "sample 1"))), path
    versions = yaml.safe_load((work / "versions.yml").read_text())
    assert list(versions) == ["PIPELINE:SCMEDLEY_RUN"]
    assert set(versions["PIPELINE:SCMEDLEY_RUN"]) == {"python", "scmedley", "torch"}
    assert all(versions["PIPELINE:SCMEDLEY_RUN"].values())
    if name == "script":
        z = pd.read_parquet(work / "sample 1_embeddings/X_scmedley_fixed.parquet").set_index("cell")
        cells = ad.read_h5ad(work / "sample 1/integrated.h5ad")
        np.testing.assert_array_equal(z.loc[cells.obs_names], cells.obsm["X_scmedley_fixed"])


def test_meta_yml_describes_the_channels_of_the_module(nextflow, module):
    assert {"name", "description", "keywords", "tools", "authors", "output"} <= set(module)
    assert module["name"] == re.search(r"process (\w+)", nextflow)[1].lower()
    assert len(set(module["keywords"])) >= 3
    for tool in module["tools"]:
        (about,) = tool.values()
        assert about["description"]
        assert {"homepage", "documentation", "tool_dev_url", "doi"} & set(about)
        assert about["licence"] == ["BSD-3-Clause"]
    declared = outputs(nextflow)
    assert [name for one in module["output"] for name in one] == list(declared)
    for one in module["output"]:
        ((name, elements),) = one.items()
        assert list(elements[-1]) == [declared[name]]
    section = nextflow[nextflow.index("    input:") : nextflow.index("    output:")]
    wanted = re.findall(r"(?:val|path)[( ](\w+)", section)
    assert [name for channel in module["input"] for element in channel for name in element] == wanted
    everything = [*module["input"], *(elements for one in module["output"] for elements in one.values())]
    for element in [about for elements in everything for one in elements for about in one.values()]:
        assert element["type"] in TYPES
        assert element["description"]


def test_environment_yml_pins_versions_and_names_extras_that_exist():
    environment = yaml.safe_load((MODULE / "environment.yml").read_text(encoding="utf-8"))
    assert set(environment) == {"channels", "dependencies"}
    assert set(environment["channels"]) == {"bioconda", "conda-forge"}
    *conda, pip = environment["dependencies"]
    assert conda == sorted(conda)
    assert all(re.fullmatch(r"(conda-forge|bioconda)::[\w-]+=[\d.]+", name) for name in conda)
    component = yaml.safe_load((COMPONENT / "config.vsh.yaml").read_text(encoding="utf-8"))
    (docker,) = component["engines"]
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for requirement in (*pip["pip"], *docker["setup"][0]["pypi"]):
        extras, version = re.fullmatch(r"scmedley\[([\w,]+)\]==(\d+\.\d+\.\d+)", requirement).groups()
        assert set(extras.split(",")) <= set(known["optional-dependencies"])
        assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def component() -> dict:
    return yaml.safe_load((COMPONENT / "config.vsh.yaml").read_text(encoding="utf-8"))


def test_the_viash_component_and_its_script_agree(component):
    assert {"name", "label", "summary", "description", "resources", "engines", "runners"} <= set(component)
    assert len(component["summary"]) < 180
    assert component["info"]["method_types"] == ["embedding"]
    assert {runner["type"] for runner in component["runners"]} == {"executable", "nextflow"}
    for resource in component["resources"]:
        assert (COMPONENT / resource["path"]).is_file()
    example: dict = {}
    exec(_between_marks()[1], example)
    own = {one["name"].removeprefix("--"): one for one in component["arguments"]}
    assert set(example["par"]) == {"input", "output", *own}
    assert {name: example["par"][name] for name in own} == {
        name: one.get("default") for name, one in own.items()
    }
    kinds = {"file": str, "integer": int}
    assert all(isinstance(one["default"], kinds[one["type"]]) for one in own.values() if "default" in one)


def test_the_script_of_the_viash_component(component, tmp_path):
    given = some_cells(150, 60)
    dataset = ad.AnnData(given.X, obs=given.obs[["batch"]], var=given.var[[]], layers={"counts": given.X})
    dataset.X = None
    dataset.uns |= {"dataset_id": "some", "normalization_id": "log_cp10k"}
    dataset.write_h5ad(tmp_path / "dataset.h5ad")
    par = {"input": str(tmp_path / "dataset.h5ad"), "output": str(tmp_path / "out.h5ad")}
    par |= {
        "output_embedding": str(tmp_path / "z.parquet"),
        "output_versions": str(tmp_path / "versions.yml"),
    }
    par |= {"n_latent": 4, "n_top_genes": 40, "max_epochs": 2, "seed": 0}
    before, _, after = _between_marks()
    (tmp_path / "script.py").write_text(
        f"{before}\npar = {par!r}\nmeta = {{'name': 'scmedley', 'cpus': 1}}\n{after}", encoding="utf-8"
    )
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = ad.read_h5ad(par["output"])
    assert found.shape == dataset.shape
    assert list(found.obs_names) == list(dataset.obs_names)
    assert found.obsm["X_emb"].shape == (150, 4)
    assert np.isfinite(found.obsm["X_emb"]).all()
    assert dict(found.uns) == {
        "dataset_id": "some",
        "normalization_id": "log_cp10k",
        "method_id": component["name"],
    }
    table = pd.read_parquet(par["output_embedding"])
    assert list(table["cell"]) == list(found.obs_names)
    np.testing.assert_array_equal(table.drop(columns="cell"), found.obsm["X_emb"])
    (versions,) = yaml.safe_load(Path(par["output_versions"]).read_text()).values()
    assert set(versions) == {"scmedley", "anndata", "numpy"}

    del dataset.layers["counts"], dataset.uns["dataset_id"]
    dataset.write_h5ad(tmp_path / "dataset.h5ad")
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.endswith(
        "dataset.h5ad has no layers['counts'], uns['dataset_id']. Give a dataset of the task batch_integration.\n"
    )


def _between_marks() -> tuple[str, str, str]:
    """The script before, between and after the marks that viash replaces."""
    text = (COMPONENT / "script.py").read_text(encoding="utf-8")
    before, _, rest = text.partition("## VIASH START")
    inside, _, after = rest.partition("## VIASH END")
    return before, inside, after
