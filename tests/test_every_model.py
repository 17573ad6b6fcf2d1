"""Every model of the catalogue, and the toy model of another package: what all of them must do.

A new row is tested here without a line of its own.
"""

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

import toy_model
from running import SMALL, Shell, some_cells, without_drawing
from scmedley import keys, load
from scmedley.errors import ScmedleyError, ScmedleyWarning
from scmedley.models import catalogue
from scmedley.models.base import Model
from scmedley.models.catalogue import OWN, Row
from scmedley.models.export import export
from scmedley.models.network import SET_BY_INIT, WITH_EFFECTS
from scmedley.models.settings import Settings, named
from scmedley.train import loop
from scmedley.train.trainable import Term
from tiny import FIT, SIZES, differing, prepared_design, weights
from toy_model import LinearAutoencoder, LinearNetwork, LinearSettings

pytestmark = pytest.mark.filterwarnings(
    "ignore::scmedley.errors.ScmedleyWarning"
)  # of 2 epochs and few cells
ROWS = {row.name: row for row in (*OWN, toy_model.ROW)}


@pytest.fixture(autouse=True)
def added() -> Iterator[None]:
    catalogue.add(toy_model.ROW)
    yield
    catalogue.remove(toy_model.ROW)


@cache
def cells() -> AnnData:
    return prepared_design()


def unfitted(name: str, batch: str = "donor") -> Model[Any]:
    row = ROWS[name]
    return row.model(batch, settings=row.model.preset("default").replace(**SIZES | {"max_epochs": 2}))


@cache
def fitted(name: str) -> Model[Any]:
    return unfitted(name).fit(cells(), **FIT)


@pytest.fixture(params=ROWS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_it_embeds_and_reconstructs(name: str) -> None:
    model, adata = fitted(name), cells().copy()
    before = adata.X.copy()
    model.embed(adata)
    z_NP = adata.obsm[ROWS[name].embeddings[0].key]
    assert z_NP.shape == (adata.n_obs, model.settings.n_latent)
    assert (z_NP.dtype, bool(np.isfinite(z_NP).all())) == (np.float32, True)
    assert z_NP.std() > 0
    assert (before != adata.X).nnz == 0
    x_NG = model.reconstruct(adata).X
    assert x_NG.shape == (adata.n_obs, len(model.genes))
    assert np.isfinite(x_NG).all()
    part = adata[::7]  # the latent of a cell does not depend on the cells beside it
    assert_allclose(model.get_latent_representation(part), z_NP[::7], rtol=1e-4, atol=1e-4)


def test_its_history_sums_to_the_total(name: str) -> None:
    table = fitted(name).history.query("part == 'train'")
    terms = table[table["term"] != "total"]
    assert np.isfinite(terms["value"]).all()
    assert len(terms["term"].unique()) >= 1
    assert table["term"].eq("total").sum() == 2  # epochs


def test_it_is_saved_and_loaded_to_the_same_bits(name: str, tmp_path: Path) -> None:
    model = fitted(name)
    model.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert type(loaded) is ROWS[name].model
    assert not differing(weights(loaded.network), weights(model.network))
    assert_array_equal(loaded.get_latent_representation(cells()), model.get_latent_representation(cells()))


def test_it_resumes_to_the_same_bits(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, path = fitted(name), tmp_path / "checkpoint.safetensors"
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    model = unfitted(name)
    network = model.networks[type(model.settings)]
    after_epoch, calls = network.after_epoch, []

    def stop_in_the_second(*arguments: Any) -> None:
        calls.append(0)
        if len(calls) == 2:
            raise KeyboardInterrupt
        after_epoch(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(network, "after_epoch", stop_in_the_second)
        assert model.fit(cells(), **FIT, checkpoint=path).fitted["stopped"] == "interrupted"
    resumed = unfitted(name).fit(cells(), **FIT, checkpoint=path)
    assert not differing(weights(resumed.network), weights(whole.network))
    assert resumed.history.equals(whole.history)


def test_effects_give_counterfactuals(name: str) -> None:
    model, adata = fitted(name), cells()[:20].copy()
    if not model.has_effects:
        with pytest.raises(ScmedleyError, match="no batch effects"):
            model.counterfactual(adata, to="d1")
        return
    there = model.counterfactual(adata, to="d1", draws=3)
    own = (adata.obs["donor"] == "d1").to_numpy()
    assert_allclose(there.layers["difference"][own].mean(), 0, atol=1e-5)
    assert np.abs(there.layers["difference"][~own]).max() > 0
    assert (there.layers["X_q95"] >= there.layers["X_q05"]).all()
    assert_allclose(model.counterfactual(adata, to="mean").X.shape, (20, len(model.genes)))


def test_effects_are_learnt_for_a_new_batch(name: str) -> None:
    model, new = fitted(name), cells()[:60].copy()
    if not model.has_effects:
        return
    new.obs["donor"] = "d9"
    adapted = model.adapt(new, steps=2)
    assert "d9" in adapted.design.batches
    assert np.isfinite(adapted.counterfactual(new[:5], to=["d9", "d1"]).X).all()
    assert not differing(weights(model.network), weights(fitted(name).network))


def test_designs_of_several_factors(name: str) -> None:
    model = unfitted(name, "~ condition + (1 | donor)").fit(cells(), **FIT)
    assert np.isfinite(model.get_latent_representation(cells())).all()
    if model.has_effects:
        assert model.counterfactual(cells()[:5], to={"condition": "ill"}).n_obs == 5


def test_it_labels_new_cells_unless_its_latent_holds_the_batch(name: str) -> None:
    model = fitted(name)
    if model.needs_batch:
        with pytest.raises(ScmedleyError, match="holds the batch"):
            model.transfer(cells())
    else:
        assert model.transfer(cells()[:9])["label"].isin(cells().obs["cell_type"]).all()


def test_verbs_that_it_lacks_say_what_to_do(name: str) -> None:
    model, outputs = fitted(name), ROWS[name].outputs
    if "clusters" not in outputs:
        with pytest.raises(ScmedleyError, match=r"sm\.evaluate\.clusters"):
            model.cluster(cells())
    if not ROWS[name].labelled:
        with pytest.raises(ScmedleyError, match="learns no labels"):
            ROWS[name].model("donor", "cell_type")


# --- a step that was forgotten ------------------------------------------------------------------------------


def toy(network: type, **of_class: Any) -> Model[Any]:
    kind = type("Mine", (LinearAutoencoder,), {"networks": {LinearSettings: network}, **of_class})
    label = "cell_type" if kind.has_label_head else None
    return kind("donor", label, settings=LinearSettings(n_latent=4, max_epochs=1))


def changed(**parts: Any) -> type:
    return type("MyNetwork", (LinearNetwork,), parts)


class Incomplete(nn.Module):
    def __init__(self, *_: Any):
        super().__init__()


def losses_of(move: Any) -> Any:
    def losses(self: LinearNetwork, minibatch: Any, progress: Any) -> Any:
        error = (minibatch.x_NG - self.decode(self.encode(minibatch.x_NG, None), None)).square()
        yield move(error)

    return losses


@pytest.mark.parametrize(
    ("network", "of_class", "words"),
    [
        (Incomplete, {}, "Incomplete, the network of Mine, has no stages, losses, encode, decode"),
        (dict, {}, "no torch module"),
        (LinearNetwork, {"has_label_head": True}, "takes no n_labels, so Mine cannot learn labels"),
        (
            LinearNetwork,
            {"has_effects": True},
            r"has batch effects \(has_effects\), has no decode_hidden, decode_output, kl, drawn_reconstruction",
        ),
        (
            changed(**dict.fromkeys(WITH_EFFECTS, None)),
            {"has_effects": True},
            "has no levels, n_cells. Set it in __init__",
        ),
        (
            changed(**dict.fromkeys(SET_BY_INIT + WITH_EFFECTS, None)),
            {"has_effects": True},
            "has no effect tables. Make its effects of ScaleAndBias or Bias",
        ),
        (
            changed(losses=losses_of(lambda e: ("other", {"error": Term(e.mean(), 1.0)}))),
            {},
            "player 'other'",
        ),
        (
            changed(losses=losses_of(lambda e: ("autoencoder", {"error": e.mean()}))),
            {},
            "must yield a player's name",
        ),
        (changed(losses=lambda *_: {"autoencoder": {}}), {}, "must yield a player's name"),
        (
            changed(losses=losses_of(lambda e: ("autoencoder", {"error": Term(e, 1.0)}))),
            {},
            "Make it one number",
        ),
    ],
)
def test_a_network_that_lacks_a_part_says_which(network: type, of_class: dict[str, Any], words: str) -> None:
    with pytest.raises(ScmedleyError, match=words):
        toy(network, **of_class).fit(cells(), **FIT)


def test_a_class_that_lacks_a_part_says_which() -> None:
    bare = type("Bare", (Model,), {"key": "X_bare"})
    with pytest.raises(ScmedleyError, match="The class Bare has no 'networks'"):
        bare("donor", settings=LinearSettings())
    with pytest.raises(ScmedleyError, match="The class Bare has no presets"):
        type("Bare", (bare,), {"networks": {}})("donor")
    network = changed(**dict.fromkeys(SET_BY_INIT + WITH_EFFECTS, None))
    of_class = {"networks": {LinearSettings: network}, "has_effects": True}
    kind = type("Mine", (LinearAutoencoder,), of_class)
    model = kind("~ condition + (1 | donor)", settings=LinearSettings(max_epochs=1))
    with pytest.raises(ScmedleyError, match="takes no levels, so Mine has one factor alone"):
        model.fit(cells(), **FIT)


def test_a_network_that_exports_no_layers_costs_the_page_its_what_if_alone() -> None:
    model = copy.copy(fitted("FE"))
    model.network = SimpleNamespace()
    with pytest.raises(ScmedleyError, match="has no decoder_layers"):  # the page says it, and keeps its maps
        export(model)


def mine(**changes: Any) -> Row:
    of_class = {"key": "X_mine", **changes.pop("of_class", {})}
    kind = type("Mine", (LinearAutoencoder,), of_class)
    return Row(kind, "MINE", (keys.Embedding("X_mine", "Mine"),), **changes)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            mine(of_class={"has_label_head": True}),
            "has_label_head of Mine is True, but its row has labelled=''",
        ),
        (mine(labelled="MINEC"), "has_label_head of Mine is False"),
        (mine(outputs=("latent", "effects")), "has_effects of Mine is False"),
        (mine(of_class={"has_effects": True}), "has_effects of Mine is True"),
        (mine(command="vae"), "--model vae already exists"),
        (mine(command="mixed"), "--model mixed already exists"),
    ],
)
def test_a_row_that_does_not_fit_its_class_is_refused(row: Row, words: str) -> None:
    with pytest.raises(ScmedleyError, match=words):
        catalogue.add(row)


@dataclass(frozen=True)
class Wide(Settings):
    widths: tuple[float, ...] = (0.5, 2.0)


def test_settings_may_hold_several_numbers() -> None:
    assert Wide(widths=[1, 0.25]).widths == (1, 0.25)  # from TOML
    with pytest.raises(ScmedleyError, match=r"widths=\('a',\) must be numbers, such as \(0\.5, 2\.0\)"):
        Wide(widths=("a",))


def test_a_model_needs_no_paper_preset() -> None:
    with pytest.raises(ScmedleyError, match=r"no preset 'paper'\. Choose one of \['default'\]"):
        named("paper", default=Wide())


# --- models of installed packages ---------------------------------------------------------------------------


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
    """A list of entry points, as if packages that have them were installed."""
    points: list[EntryPoint] = []
    catalogue.rows()  # read those that are there
    monkeypatch.setattr(catalogue, "_asked", [])
    monkeypatch.setattr(catalogue, "entry_points", lambda group: points if group == "scmedley.models" else [])
    yield points
    for row in catalogue.added():
        if row is not toy_model.ROW:
            catalogue.remove(row)


def test_models_of_installed_packages_are_added(
    installed: list[EntryPoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy_model, "SECOND", mine(command="mine"), raising=False)
    installed += [EntryPoint(name, f"toy_model:{name}", "scmedley.models") for name in ("ROW", "SECOND")]
    assert catalogue.run_row("mine") is toy_model.SECOND  # type: ignore[attr-defined]
    assert catalogue.maps_of("mine") == ("X_mine", keys.PCA)
    assert [row.name for row in catalogue.rows()].count("LIN") == 1  # added before, by its package itself
    assert "MINE" in catalogue.methods()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("no_such_module:ROW", "No module named 'no_such_module'"),
        ("toy_model:LinearSettings", "it is an object of type type, not a Row"),
        ("leaves:ROW", "bye"),
    ],
)
def test_a_package_that_cannot_be_imported_is_skipped(
    value: str, words: str, installed: list[EntryPoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leaves.py").write_text("import sys; sys.exit('bye')")
    monkeypatch.syspath_prepend(tmp_path)
    installed.append(EntryPoint("broken", value, "scmedley.models"))
    with pytest.warns(ScmedleyWarning, match=f"The model 'broken' .* was not added: .*{words}"):
        catalogue.rows()


def test_the_catalogue_names_what_a_run_can_fit() -> None:
    assert list(catalogue.run_models())[:3] == ["mixed", "vae", "deepbid"]
    assert catalogue.maps_of("mixed") == (keys.FIXED, keys.RANDOM, keys.PCA)
    assert catalogue.maps_of("deepbid") == (keys.DEEPBID, keys.PCA)
    with pytest.raises(
        ScmedleyError, match=r"The model 'mmd' is not known\. Choose one of 'mixed', 'vae', 'deepbid'"
    ):
        catalogue.run_row("mmd")


def test_help_lists_the_models_of_a_run_and_another_name_stops_before_reading(capsys, tmp_path: Path) -> None:
    shell = Shell(capsys)
    shown = " ".join(shell.well("run", "--help").replace("│", " ").split())
    own = [catalogue.MIXED, *(row.command for row in catalogue.OWN if row.command)]
    assert f"[choices: {', '.join(own)}] [default: mixed]" in shown
    asked = ("run", tmp_path / "nothing.h5ad", "--model", "mmd", "--donor", "x", "--out", tmp_path / "run")
    assert "The model 'mmd' is not known" in shell(*asked).error


# --- the command line ---------------------------------------------------------------------------------------


def test_the_commands_know_a_model_of_another_package(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without_drawing(monkeypatch)
    shell, data, out = Shell(capsys), tmp_path / "cells.h5ad", tmp_path / "run"
    some_cells().write_h5ad(data)
    assert "'mixed', 'vae', 'deepbid', 'linear'" in shell("run", data, "--model", "lin", "--out", out).error
    (tmp_path / "changes.toml").write_text("[settings.LIN]\nmse_weight = 10.0\n")
    options = ("--label", "cell_type", "--model", "linear", "--settings", tmp_path / "changes.toml")
    said = shell("run", data, "--out", out, *options, *SMALL)
    assert "Is the batch out of the LIN embedding?" in said.out
    record = json.loads((out / "run.json").read_text())
    assert record["networks"]["linear"]["epochs"] == 2
    assert set(pd.read_csv(out / "scores.csv")["embedding"]) == {"X_toy_linear", keys.PCA}
    assert load(out / "model").settings.mse_weight == 10.0
    assert "Linear autoencoder" in (out / "report.html").read_text(encoding="utf-8")
    shell.well("evaluate", out)
    shell("embed", out, "--input", data, "--out", tmp_path / "new.h5ad")
    assert "X_toy_linear" in ad.read_h5ad(tmp_path / "new.h5ad").obsm
    said = shell("project", out, "--to", "sc_10x", "--out", tmp_path / "there.h5ad")
    assert "no batch effects in its decoder" in said.error
    catalogue.remove(toy_model.ROW)
    try:
        assert "The model 'linear' is not known" in shell("report", out).error
    finally:
        catalogue.add(toy_model.ROW)
