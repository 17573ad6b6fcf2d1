"""Designs of several factors on the command line, from the file to the report."""

import json

import anndata
import numpy as np
import pandas as pd
import pytest

from running import Shell, without_drawing
from scmedley import keys, load
from scmedley.data.design import Design
from scmedley.errors import ScmedleyError
from scmedley.models import VAE
from scmedley.pipeline.checks import resolved
from scmedley.pipeline.config import RunConfig
from scmedley.pipeline.project import target_of
from tiny import nested_design

SMALL = ("--latent", "4", "--epochs", "2", "--draws", "3", "--threads", "1")
DESIGN = "~ stim + (1 | study/donor) + (stim | donor)"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A file of three donors in two studies, stimulated or not, and one of a new donor."""
    folder = tmp_path_factory.mktemp("data")
    adata = nested_design()
    adata.obs["study"] = np.where(adata.obs["donor"] == "d1", "a", "b")
    adata.obs["stim"] = np.where(np.arange(adata.n_obs) % 2, "s", "c")
    adata.write_h5ad(folder / "cells.h5ad")
    new = adata[adata.obs["donor"] == "d3"].copy()
    new.obs["donor"] = "d9"
    new.write_h5ad(folder / "new.h5ad")
    return folder


@pytest.fixture
def shell(capsys, monkeypatch) -> Shell:
    without_drawing(monkeypatch)
    return Shell(capsys)


def test_from_file_to_report(shell, data, tmp_path) -> None:
    out = tmp_path / "run"
    shell.well(
        "run",
        data / "cells.h5ad",
        "--out",
        out,
        "--design",
        DESIGN,
        "--label",
        "cell_type",
        *SMALL,
        "--quiet",
    )
    cells, record = anndata.read_h5ad(out / "integrated.h5ad"), json.loads((out / "run.json").read_text())
    assert set(cells.obs[keys.BATCH]) == {f"{d} · {s}" for d in ("a/d1", "b/d2", "b/d3") for s in "cs"}
    assert (record["config"]["batch"], record["config"]["design"]) == (keys.BATCH, DESIGN)
    assert any("study has 2 levels" in line for line in record["warnings"])  # the design is checked
    terms = pd.DataFrame(record["design"]["terms"]).set_index("term")
    assert terms["levels"].to_dict() == {"stim": 2, "study": 2, "study/donor": 3, "study/donor:stim": 6}
    assert terms.loc["study", ["fewest_cells", "most_cells"]].tolist() == [60, 120]
    assert set(pd.read_csv(out / "gene_shifts.csv")["batch"]) == set(cells.obs[keys.BATCH])
    page = (out / "report.html").read_text()
    assert "Design: <code>~ stim" in page
    assert "combinations of levels" in page
    assert "common to all batches (" not in page
    assert '<th scope="row">study/donor:stim</th>' in page
    # The null has the same terms, with all columns permuted together.
    assert set(cells.obs[keys.PERMUTED]) == set(cells.obs[keys.BATCH])

    said = shell(
        "project", out, "--to", "stim=s", "donor=a/d1,stim=c", "donor=mean", "--out", tmp_path / "cf.h5ad"
    )
    assert said.code == 0, said.err
    found = anndata.read_h5ad(tmp_path / "cf.h5ad")
    assert list(found.obs[keys.TARGET].cat.categories) == ["stim=s", "donor=a/d1, stim=c", "donor=mean"]
    stimulated = (cells.obs["stim"] == "s").to_numpy()
    assert not found.layers["difference"][: cells.n_obs][stimulated].any()
    wrong = shell("project", out, "--to", "stim=x", "--out", tmp_path / "x.h5ad").error
    assert "No cell of the fit has stim = 'x'" in wrong
    assert "unknown" in shell("embed", out, "--input", data / "new.h5ad", "--out", tmp_path / "e.h5ad").error
    said = shell(
        "embed", out, "--input", data / "new.h5ad", "--out", tmp_path / "e.h5ad", "--unknown", "adapt"
    )
    assert said.code == 0, said.err  # it warns of few validation cells
    assert "b/d9 · c: " in said.out
    shell.well("evaluate", out)
    shell.well("report", out)


def test_plain_options_keep_and_resume(shell, data, tmp_path) -> None:
    out = tmp_path / "run"
    options = (
        "--batch",
        "donor",
        "--covariate",
        "stim",
        "--slope",
        "stim",
        "--keep",
        "stim",
        *SMALL,
        "--quiet",
    )
    shell.well("fit", data / "cells.h5ad", "--out", out, *options)
    model = load(out / "model")
    assert model.fixed.batch_key == "donor"
    assert model.random.factors.formula == "~ stim + (stim | donor)"
    assert json.loads((out / "run.json").read_text())["config"]["batch"] == "donor"
    # The same command, after an interruption, is the same work; another design is not.
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(record | {"status": "running"}))
    other = shell("fit", data / "cells.h5ad", "--out", out, "--design", DESIGN, *SMALL)
    assert "another --batch, --design, --keep" in other.error
    shell.well("fit", data / "cells.h5ad", "--out", out, *options)


def test_a_kept_column_is_scored_and_is_no_what_if(shell, data, tmp_path) -> None:
    """The run says how well the kept column is read; its counterfactuals come with a warning, and not "good"."""
    out = tmp_path / "run"
    small = ("--epochs", "1", "--latent", "4", "--no-null", "--draws", "2", "--threads", "1", "--no-explorer")
    said = shell(
        "run", data / "cells.h5ad", "--out", out, "--design", "~ stim + (1 | donor)", "--keep", "stim", *small
    )
    assert said.code == 0, said.err
    record = json.loads((out / "run.json").read_text())
    assert any(line.startswith("Kept: stim is read") for line in record["findings"])
    trust = record["verdicts"][2]
    assert trust["mark"] == "unknown" or "not what-if of stim" in trust["sentence"]
    for to, expected in (("stim=s", True), ("donor=d1", False)):
        said = shell("project", out, "--to", to, "--out", tmp_path / f"{to}.h5ad")
        assert said.code == 0, said.err
        assert ("do not use it" in said.err) is expected


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"design": DESIGN, "covariate": ("stim",)}, "--design holds the whole design"),
        ({"keep": ("stim",)}, "--keep needs a design"),
        ({"design": DESIGN, "batch": "donor"}, "so --batch donor has no use"),
        ({"design": DESIGN, "preset": "paper"}, "published models"),
        ({"design": "~ (stim"}, "cannot be read"),
    ],
)
def test_options_that_exclude_each_other(given, says) -> None:
    with pytest.raises(ScmedleyError, match=says):
        resolved(RunConfig(**given))


def test_a_label_in_the_design_and_the_columns_of_deepbid(shell, data, tmp_path) -> None:
    options = ("--design", "~ stim + (1 | donor)", "--label", "stim", *SMALL)
    said = shell("fit", data / "cells.h5ad", "--out", tmp_path / "run", "--model", "deepbid", *options)
    assert said.code == 0, said.err
    assert "The label 'stim' is in the design too" in said.out


def test_targets_of_the_command_line() -> None:
    obs = pd.DataFrame({"stim": ["s, IFN=b", "c"] * 2, "donor": ["d1", "d1", "d=2", "d=2"]})
    model = VAE("~ stim + (1 | donor)")
    model.design = model.factors.learn(obs)
    assert target_of("stim=s, IFN=b, donor=d=2", model) == {"stim": "s, IFN=b", "donor": "d=2"}
    assert target_of("dose=3", model) == {"dose": "3"}  # an error later, which names the columns
    assert target_of("d=2 · c", model) == "d=2 · c"
    model.design = Design.of(obs, "donor")
    assert [target_of(text, model) for text in ("d=2", "x=1")] == ["d=2", "x=1"]


def test_one_factor_is_as_before() -> None:
    assert resolved(RunConfig(batch="donor")) == RunConfig(batch="donor")
    assert resolved(RunConfig(design="~ (1 | donor)")).batch == "donor"


def test_the_tilde_may_be_left_out() -> None:
    assert resolved(RunConfig(design=DESIGN[2:])) == resolved(RunConfig(design=DESIGN))
