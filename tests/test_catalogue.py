"""The catalogue: a new model is one file and one row, and everything that names models reads the rows."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pandas as pd
import pytest
from anndata import AnnData
from numpy.testing import assert_allclose, assert_array_equal

import scmedley
import toy_model
from scmedley import cli, keys, load, models, pl
from scmedley.errors import ScmedleyError
from scmedley.experiment import BASIC, grid
from scmedley.experiment.grid import run
from scmedley.experiment.tables import read_table
from scmedley.experiment.task import about, tasks
from scmedley.models import catalogue
from scmedley.models.base import Model
from scmedley.models.catalogue import FE, OWN, RE, Row
from scmedley.pl.scores import COLUMNS
from scmedley.train import loop
from test_experiment import SMALL, six_donors, small
from tiny import FIT, differing, prepared_design, weights
from toy_model import LinearAutoencoder, LinearNetwork, LinearSettings

SIZES = {"n_latent": 4, "max_epochs": 4, "batch_size": 32}


@pytest.fixture(scope="module")
def added() -> Iterator[Row]:
    """The toy model, in the catalogue for as long as these tests run."""
    catalogue.add(toy_model.ROW)
    yield toy_model.ROW
    catalogue.remove(toy_model.ROW)


def toy() -> LinearAutoencoder:
    return LinearAutoencoder("donor", settings=LinearAutoencoder.preset("default").replace(**SIZES))


@pytest.fixture(scope="module")
def linear() -> LinearAutoencoder:
    return toy().fit(prepared_design(), **FIT)


@pytest.fixture(scope="module")
def compared(added: Row, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small experiment with the toy model in it."""
    folder = tmp_path_factory.mktemp("toy")
    six_donors().write_h5ad(folder / "cells.h5ad")
    settings = {added.name: {"max_epochs": 2, "batch_size": 32}, RE.name: SMALL}
    changes = {"methods": (added.name, RE.name), "settings": settings, "splits": ("cells",), "targets": ()}
    experiment = small(folder / "cells.h5ad", **changes)
    run(experiment, folder / "out", jobs=1, say=lambda _: None, progress=False)
    return folder / "out"


def test_a_new_model_resumes_to_the_same_bits(
    linear: LinearAutoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = []

    def stop_in_the_third(*_: Any) -> None:
        epochs.append(0)
        if len(epochs) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    path = tmp_path / "checkpoint.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(LinearNetwork, "after_epoch", stop_in_the_third)
        assert toy().fit(prepared_design(), **FIT, checkpoint=path).fitted["stopped"] == "interrupted"
    resumed = toy().fit(prepared_design(), **FIT, checkpoint=path)
    assert resumed.fitted["epochs"] == linear.fitted["epochs"] == 4
    assert not differing(weights(resumed.network), weights(linear.network))
    assert resumed.history.equals(linear.history)


def test_a_new_model_is_saved_loaded_and_embeds(
    added: Row, linear: LinearAutoencoder, prepared: AnnData, tmp_path: Path
) -> None:
    linear.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert type(loaded) is LinearAutoencoder
    assert not differing(weights(loaded.network), weights(linear.network))
    loaded.embed(prepared)
    assert_array_equal(prepared.obsm["X_toy_linear"], linear.get_latent_representation(prepared))
    assert prepared.obsm["X_toy_linear"].std() > 0
    figure = pl.embeddings(prepared, ["X_toy_linear"], "cell_type")
    assert figure.axes[0].get_title(loc="left") == added.embeddings[0].title
    scores = pd.DataFrame([("X_toy_linear", "ASW", "batch", 0.1, 0.0, 0.01)], columns=COLUMNS)
    assert [text.get_text() for text in pl.scores(scores).axes[0].get_yticklabels()] == ["Linear autoencoder"]


def test_a_new_model_is_in_the_tables_figures_and_page_of_an_experiment(compared: Path) -> None:
    for name in ("scores.csv", "summary.csv", "history.csv"):
        rows = read_table(compared / name).query("method == 'LIN'")
        assert len(rows), name
        assert rows["value"].notna().any(), name
    history = read_table(compared / "history.csv").query("method == 'LIN' and part == 'train'")
    by_term = history.groupby("term")
    weighted, total = by_term.get_group("reconstruction")["weighted"], by_term.get_group("total")["value"]
    assert_allclose(weighted, total, rtol=1e-6)
    read = set(read_table(compared / "classified.csv")["embedding"])
    assert {"LIN", "LIN + RE"} <= read
    page = (compared / "report.html").read_text(encoding="utf-8")
    assert re.search(r"<th[^>]*>LIN\b", page)
    assert "held-out cells, LIN, coloured by batch" in page  # a map
    assert "LIN, cells split" in page  # its losses


def test_workers_know_a_new_model(added: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    six_donors().write_h5ad(tmp_path / "cells.h5ad")
    settings = {added.name: {"max_epochs": 1, "batch_size": 32}}
    changes = {"methods": (added.name,), "settings": settings, "splits": ("donors",), "classify": False}
    experiment = small(tmp_path / "cells.h5ad", **changes)
    first = tasks(experiment)[0][:1]
    monkeypatch.setattr(grid, "tasks", lambda _: (first, []))
    monkeypatch.setattr(grid.tables, "write_tables", lambda *_: [])
    monkeypatch.setattr(grid, "build", lambda _: None)
    run(experiment, tmp_path / "out", jobs=2, say=lambda _: None, progress=False)
    assert about(tmp_path / "out", first[0])["status"] == "done"


def test_a_model_that_is_gone_is_unknown(linear: LinearAutoencoder, added: Row, tmp_path: Path) -> None:
    linear.save(tmp_path / "model")
    catalogue.remove(added)
    try:
        assert added.name not in catalogue.methods()
        assert keys.title("X_toy_linear") == "X_toy_linear"
        with pytest.raises(ScmedleyError, match="'LinearAutoencoder', which this version does not know"):
            load(tmp_path / "model")
        with pytest.raises(ScmedleyError, match="no method 'LIN'"):
            small(tmp_path / "cells.h5ad", methods=("LIN",), settings={})
    finally:
        catalogue.add(added)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "FE"}, "'FE' already"),
        ({"name": "PCA"}, "'PCA' already"),
        ({"labelled": "LIN2"}, "'LIN2' already"),
        ({"embeddings": (keys.Embedding(keys.FIXED, "Mine"),)}, f"'{keys.FIXED}' already"),
        ({"embeddings": (keys.Embedding("X_other", "Mine"),)}, "Make this the first embedding of its row"),
        ({"embeddings": ()}, "Make this the first embedding of its row"),
        ({"model": models.FixedEffects}, "'FixedEffects' already"),
    ],
)
def test_a_row_that_cannot_be_added_is_refused(changes: dict[str, Any], words: str) -> None:
    rows, known = catalogue.rows(), dict(keys.EMBEDDINGS)
    mine = type("Mine", (LinearAutoencoder,), {"key": "X_mine"})
    row = Row(mine, "LIN2", (keys.Embedding("X_mine", "Mine"),))
    with pytest.raises(ScmedleyError, match=words):
        catalogue.add(replace(row, **changes))
    assert (catalogue.rows(), keys.EMBEDDINGS) == (rows, known)


def test_every_model_that_is_exported_has_a_row_and_every_embedding_a_model() -> None:
    of_models = {c for c in vars(models).values() if isinstance(c, type) and issubclass(c, Model)}
    assert of_models == {row.model for row in OWN}
    joined = [e.key for row in OWN for e in row.embeddings]
    assert sorted([*joined, keys.PCA]) == sorted(set(keys.EMBEDDINGS) - {"X_toy_linear"})
    for row in OWN:
        assert row.model.has_label_head == bool(row.labelled)
        possible = [row.model("b", settings=row.model.preset(p)).has_effects for p in ("default", "paper")]
        assert ("effects" in row.outputs) == any(possible)


def test_names_are_those_of_published_tables_and_of_the_command_line() -> None:
    assert BASIC == ("PCA", "AE", "AEC", "FE", "FEC", "RE", "RE, permuted batches")
    tunable = {name for name, method in catalogue.methods().items() if method.tuned}
    assert set(get_args(get_type_hints(cli.tune)["method"])) == tunable


def test_nothing_else_lists_the_models() -> None:
    """Short names stand in the catalogue, and where the papers' numbers or the text of a command need them."""
    allowed = {"models/catalogue.py", "datasets/papers.py", "cli/__init__.py"}
    source = Path(scmedley.__file__).parent
    found = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in {"AE", "AEC", "FE", "FEC", "RE"}
    }
    assert found <= allowed


def test_plots_need_no_torch() -> None:
    code = "import scmedley.pl, scmedley.keys, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_first_use_of_a_model_is_quick() -> None:
    """What only some calls need is imported by them: most of a second of a script's start."""
    code = (
        "import sys, scmedley\nscmedley.MixedEffects, scmedley.pp.prepare\n"
        "heavy = ('sklearn', 'scipy.stats', 'matplotlib', 'scanpy', 'numba', 'statsmodels', 'umap')\n"
        "sys.exit([name for name in heavy if name in sys.modules] or None)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr.strip()) == (0, "")


def test_a_class_says_itself_whether_it_has_effects() -> None:
    """Another package's settings may have the names of ours."""

    @dataclass(frozen=True)
    class Other(LinearSettings):
        offset_weight: float = 1.0
        encode_as_target: bool = True

    model = LinearAutoencoder("donor", settings=Other())
    assert (model.has_effects, model.encodes_as_target) == (False, False)
    for preset, wanted in (("default", (True, False)), ("paper", (False, True))):
        fixed, random = (row.model("donor", settings=preset) for row in (FE, RE))
        assert (fixed.has_effects, random.encodes_as_target) == wanted


def test_only_rows_that_were_added_are_removed() -> None:
    for row in (catalogue.FE, replace(catalogue.AE, name="absent")):
        with pytest.raises(ScmedleyError, match="was not added"):
            catalogue.remove(row)
    with pytest.raises(ScmedleyError, match="needs a short name"):
        catalogue.add(replace(catalogue.AE, name=""))
