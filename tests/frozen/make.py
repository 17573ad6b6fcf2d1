"""Write models of every class, a run folder and the numbers that they give: ``python tests/frozen/make.py 0.1``."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from running import without_drawing  # noqa: E402
from scmedley.__main__ import main  # noqa: E402
from scmedley.models import VAE, Autoencoder, DeepBID, FixedEffects, LinearMixed, MixedEffects, RandomEffects  # noqa: E402
from tiny import FIT, SIZES, nested_design, prepared_design, small  # noqa: E402

SHOWN = 6  # cells whose numbers are kept
DESIGN = "~ cell_type + (1 | donor)"
RUN_FILES = ("report.html", "denoised.zarr", ".lock", "genomap.json")  # not needed to read a run
RUNS = {"run": (), "backed": ("--backed",), "deepbid": ("--model", "deepbid")}  # folder: options
SETTINGS = "[settings.{}]\nhidden = [8]\nbatch_size = 32\n"


def models() -> dict[str, Any]:
    """Return a fitted model of each class and kind of settings, by the name of its folder."""
    sizes = {**SIZES, "hidden": (8,)}
    paper = DeepBID.preset("paper").replace(hidden=(16,), n_latent=8, max_epochs=2, batch_size=32)
    unfitted = {
        "autoencoder": Autoencoder("donor", settings=small("autoencoder")),
        "autoencoder_labels": Autoencoder("donor", "cell_type", settings=small("autoencoder")),
        "fixed": FixedEffects("donor", settings=small("fixed")),
        "fixed_paper": FixedEffects("donor", settings=small("fixed", "paper")),
        "fixed_design": FixedEffects(DESIGN, settings=small("fixed"), keep="cell_type"),
        "random": RandomEffects("donor", settings=small("random")),
        "mixed": MixedEffects("donor", fixed_settings=small("fixed"), random_settings=small("random")),
        "mixed_paper": MixedEffects(
            "donor",
            preset="paper",
            fixed_settings=small("fixed", "paper"),
            random_settings=small("random", "paper"),
        ),
        "vae": VAE("donor", settings=VAE.preset("default").replace(**sizes)),
        "deepbid": DeepBID("donor", settings=DeepBID.preset("default").replace(**sizes)),
        "deepbid_paper": DeepBID("donor", settings=paper, n_clusters=3),
    }
    fitted = {name: model.fit(prepared_design(), **FIT) for name, model in unfitted.items()}
    return fitted | {"linear": LinearMixed(DESIGN).fit(prepared_design())}


def numbers(model: Any, cells: AnnData) -> dict[str, list[Any]]:
    """Return what a model says of some cells, by verb."""
    cells = cells[:SHOWN].copy()
    found: dict[str, Any] = {}
    if isinstance(model, MixedEffects):
        model.embed(cells)
        found |= {key: cells.obsm[key] for key in sorted(cells.obsm)}
    elif not isinstance(model, LinearMixed):
        found["latent"] = model.get_latent_representation(cells)
    to = {"donor": "d1"} if isinstance(model, LinearMixed) else "d1"
    if isinstance(model, FixedEffects) and model.design.terms is not None:
        to = {"donor": "d1"}
    if to != "d1" or isinstance(model, MixedEffects) or (isinstance(model, VAE) and model.has_effects):
        found["counterfactual"] = model.counterfactual(cells, to).X
    if not isinstance(model, MixedEffects):
        found["reconstruct"] = model.reconstruct(cells).X
    if isinstance(model, VAE):
        found["denoise"] = model.denoise(cells).X
    if isinstance(model, DeepBID):
        model.cluster(cells)
        found["cluster"] = cells.obs["scmedley_cluster"].astype(int).to_numpy()
    if getattr(model, "labels", None) is not None:
        found["predict"] = model.predict(cells).iloc[:, 0].astype(str).to_numpy()
    return {name: _rounded(np.asarray(value)) for name, value in found.items()}


def _rounded(values: np.ndarray) -> list[Any]:
    if values.dtype.kind == "f":
        values = np.array([float(f"{value:.6g}") for value in values.ravel()]).reshape(values.shape)
    listed: list[Any] = values.tolist()
    return listed


def run(folder: Path, name: str) -> None:
    """Write a run folder, one of ``RUNS``, without pictures and without its report."""
    nested_design().write_h5ad(folder / "input.h5ad")
    networks = ("DeepBID",) if name == "deepbid" else ("FE", "RE")
    (folder / "settings.toml").write_text("".join(SETTINGS.format(network) for network in networks))
    where = ["--batch", "donor", "--label", "cell_type", "--out", name, "--settings", "settings.toml"]
    small_run = ["--latent", "4", "--epochs", "2", "--draws", "3", "--threads", "1", "--min-genes", "5"]
    with pytest.MonkeyPatch.context() as patch, suppress(SystemExit):
        patch.chdir(folder)  # the record names the input as it was given
        without_drawing(patch)
        main(["run", "input.h5ad", *where, *small_run, *RUNS[name], "--quiet", "--no-explorer"])
    for left_out in RUN_FILES:
        path = folder / name / left_out
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for path in (folder / name).rglob("*.json"):  # no path of the machine that wrote them
        path.write_text(path.read_text().replace(f"{folder}/", ""))
    for done_with in ("input.h5ad", "settings.toml"):
        (folder / done_with).unlink()


def make(version: str) -> None:
    """Write the folder of a version."""
    folder = HERE / version
    folder.mkdir()  # raises if it is there: what was frozen stays as it is
    cells, kept = nested_design(), {}
    for name, model in models().items():
        model.save(folder / "models" / name)
        kept[name] = numbers(model, cells)
    (folder / "numbers.json").write_text(json.dumps(kept))
    for name in RUNS:
        run(folder, name)


if __name__ == "__main__":
    make(sys.argv[1])
