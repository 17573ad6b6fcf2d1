"""Models on disk: the same bits come back, and what is broken is said."""

import copy
import json
import pickletools
import shutil
from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData
from numpy.testing import assert_array_equal

from scmedley import load
from scmedley.errors import ScmedleyError
from scmedley.models import MixedEffects, store
from scmedley.models.store import DESCRIPTION, WEIGHTS
from tiny import FIT, MODELS, differing, small, unfitted, weights


@pytest.fixture
def folder(fitted, tmp_path: Path) -> Path:
    """A saved random-effects model."""
    fitted("random").save(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_the_same_bits_come_back(
    model_name: str, preset: str, fitted, prepared: AnnData, tmp_path: Path
) -> None:
    model = fitted(model_name, preset)
    model.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert type(loaded) is type(model)
    assert not differing(weights(model.network), weights(loaded.network))
    assert_array_equal(loaded.scale.centre_G, model.scale.centre_G)
    assert_array_equal(loaded.scale.span_G, model.scale.span_G)
    assert loaded.settings == model.settings
    assert loaded.design == model.design
    assert (loaded.genes, loaded.fitted) == (model.genes, model.fitted)
    assert (loaded.batch_key, loaded.label_key) == ("donor", None)
    assert loaded.history.equals(model.history)
    assert_array_equal(loaded.get_latent_representation(prepared), model.get_latent_representation(prepared))
    assert_array_equal(loaded.reconstruct(prepared).X, model.reconstruct(prepared).X)


def test_both_networks_come_back(fitted, prepared: AnnData, tmp_path: Path) -> None:
    mixed = fitted("mixed")
    mixed.save(tmp_path / "model")
    loaded = load(str(tmp_path / "model"))
    assert isinstance(loaded, MixedEffects)
    assert_array_equal(
        loaded.counterfactual(prepared, to="d1", draws=2).X,
        mixed.counterfactual(prepared, to="d1", draws=2).X,
    )
    assert loaded.history.equals(mixed.history)
    assert loaded.calibration == mixed.calibration == mixed.decoder.calibration
    assert type(load(tmp_path / "model" / "fixed")) is MODELS["fixed"]


def test_with_an_embedding_of_ones_own(prepared: AnnData, tmp_path: Path) -> None:
    prepared.obsm["X_mine"] = np.ones((prepared.n_obs, 2))
    mixed = MixedEffects("donor", fixed="X_mine", random_settings=small("random")).fit(prepared, **FIT)
    mixed.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert loaded.fixed is None
    assert loaded.fixed_key == "X_mine"
    assert not differing(weights(loaded.random.network), weights(mixed.random.network))


def test_a_loaded_model_saves_the_same_files(folder: Path, tmp_path: Path) -> None:
    load(folder).save(tmp_path / "again")
    for name in (DESCRIPTION, WEIGHTS):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_there_is_no_pickle(folder: Path) -> None:
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert {p.name for p in files} == {DESCRIPTION, WEIGHTS}
    json.loads((folder / DESCRIPTION).read_text())
    for path in files:
        with pytest.raises(ValueError, match=r"pickle|opcode|unknown|exhausted|newline"):
            list(pickletools.genops(path.read_bytes()))
    assert "pickle" not in Path(store.__file__).read_text().replace("never pickle", "")


def test_saving_again_replaces_the_model(folder: Path, fitted) -> None:
    fitted("fixed").save(folder)
    assert type(load(folder)) is MODELS["fixed"]
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_a_folder_of_other_things_is_not_replaced(fitted, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for name in ("random", "mixed"):
        with pytest.raises(ScmedleyError, match=r"mine holds other files"):
            fitted(name).save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    fitted("random").save(tmp_path / "empty")
    load(tmp_path / "empty")


@pytest.mark.parametrize("mixed", [False, True])
def test_what_is_not_fitted_cannot_be_saved(mixed: bool, tmp_path: Path) -> None:
    model = MixedEffects("donor") if mixed else unfitted("random")
    with pytest.raises(ScmedleyError, match="not fitted, so there is nothing to save"):
        model.save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_failed_save_leaves_the_old_model(folder: Path, fitted, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / WEIGHTS).read_bytes()
    monkeypatch.setattr(store, "save_file", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(ScmedleyError, match="disk is full"):
        fitted("fixed").save(folder)
    assert (folder / WEIGHTS).read_bytes() == before
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", "null", '{"class": "RandomEffects"}', '{"class": []}', "\x00"]
)
def test_a_broken_description_is_said(content: str, folder: Path) -> None:
    (folder / DESCRIPTION).write_text(content)
    with pytest.raises(ScmedleyError, match="model"):
        load(folder)


@pytest.mark.parametrize(
    "key", ["class", "batch_key", "label_key", "batches", "labels", "settings", "genes", "fitted", "history"]
)
def test_a_missing_entry_is_said(key: str, folder: Path) -> None:
    about = json.loads((folder / DESCRIPTION).read_text())
    del about[key]
    (folder / DESCRIPTION).write_text(json.dumps(about))
    with pytest.raises(ScmedleyError, match=key):
        load(folder)


@pytest.mark.parametrize("key", ["batch_key", "label_key", "preset", "fixed_key"])
def test_a_missing_entry_of_both_is_said(key: str, fitted, tmp_path: Path) -> None:
    fitted("mixed").save(tmp_path / "m")
    about = json.loads((tmp_path / "m" / DESCRIPTION).read_text())
    del about[key]
    (tmp_path / "m" / DESCRIPTION).write_text(json.dumps(about))
    with pytest.raises(ScmedleyError, match=key):
        load(tmp_path / "m")


@pytest.mark.parametrize("keep", [0, 4, 200, 0.5, 0.999])
def test_truncated_weights_are_said(keep: float, folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: int(keep * len(content)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(ScmedleyError, match="Fit and save it again"):
        load(folder)


def test_missing_weights_are_said(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(ScmedleyError, match="Fit and save it again"):
        load(folder)


@pytest.mark.parametrize("name", ["FixedEffects", "Autoencoder", "Perceptron", "MixedEffects"])
def test_the_wrong_class_is_said(name: str, folder: Path) -> None:
    about = json.loads((folder / DESCRIPTION).read_text())
    (folder / DESCRIPTION).write_text(json.dumps({**about, "class": name}))
    with pytest.raises(ScmedleyError, match=r"model|Perceptron"):
        load(folder)


def test_weights_of_another_model_are_said(folder: Path, fitted, tmp_path: Path) -> None:
    fitted("fixed").save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / WEIGHTS, folder / WEIGHTS)
    with pytest.raises(ScmedleyError, match="Fit and save it again"):
        load(folder)


def test_networks_that_changed_places_are_said(fitted, tmp_path: Path) -> None:
    fitted("mixed").save(tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / "fixed")
    shutil.copytree(tmp_path / "m" / "random", tmp_path / "m" / "fixed")
    with pytest.raises(ScmedleyError, match=r"fixed holds a 'RandomEffects'"):
        load(tmp_path / "m")


def test_no_model_is_said(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ScmedleyError, match=r"holds no model \(no model\.json\)"):
            load(path)


def test_saving_does_not_change_the_model(fitted, tmp_path: Path) -> None:
    model = copy.deepcopy(fitted("fixed"))
    before = weights(model.network)
    model.save(tmp_path / "model")
    assert not differing(weights(model.network), before)
