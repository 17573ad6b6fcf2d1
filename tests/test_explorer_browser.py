"""The explorer in a browser: writes pages and what PyTorch says of them, then runs web/tests.

Needs Node, Chromium and ``npm ci`` in web/ (``make web-test``); skipped without.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from anndata import AnnData

import run_folder
from explorer_page import unpack
from scmedley import keys
from scmedley.models import MixedEffects
from scmedley.models.counterfactual import counterfactual
from scmedley.nn.bayesian import tables
from scmedley.report import build
from tiny import FIT, prepared_design, small

WEB = Path(__file__).parent.parent / "web"
OUT = WEB / "tests" / "out"
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
EVIL = "<script>globalThis.alerted=1</script>"
IMAGE = "<img src=x onerror=alert(1)>"
BATCHES = ["a" + EVIL, "b&amp;\"'", "c"]
LABELS = ["B" + EVIL, "NK", "T", "mono"]

pytestmark = pytest.mark.skipif(
    not (shutil.which("node") and Path(CHROMIUM).exists() and (WEB / "node_modules").is_dir()),
    reason="needs Node, Chromium and npm ci in web/: make web-test",
)


def cells() -> AnnData:
    """The tiny design with names that a page must not run, one label unseen in one batch."""
    adata = prepared_design()
    adata.obs["donor"] = adata.obs["donor"].cat.rename_categories(BATCHES)
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories(LABELS)
    adata.obs_names = [f"{i:04d}cell{EVIL}" for i in range(adata.n_obs)]
    adata.var_names = [f"{name}{IMAGE}" for name in adata.var_names]
    unseen = (adata.obs["donor"] == BATCHES[2]) & (adata.obs["cell_type"] == "mono")
    adata = adata[~unseen.to_numpy()].copy()
    adata.obs["score"] = np.linspace(-1, 3, adata.n_obs)
    return adata


def trained(adata: AnnData) -> MixedEffects:
    """A model whose effects are large enough to be seen."""
    model = MixedEffects("donor", fixed_settings=small("fixed"), random_settings=small("random"))
    model.fit(adata, **FIT)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for table in tables(model.fixed.network):
            table.loc_BH.copy_(0.3 * torch.randn_like(table.loc_BH))
            table.rho_BH.fill_(-2)
    return model


def said(model: MixedEffects, adata: AnnData, target: str, draws: int = 0) -> dict[str, list[float]]:
    """What PyTorch says of the mean of cells."""
    shown = counterfactual(model.decoder, adata, target)
    own = model.decoder.reconstruct(adata).X.mean(0)
    found = {"own_batch": own, "as_if": shown.X.mean(0), "change": shown.layers["difference"].mean(0)}
    if draws:
        one = [counterfactual(model.decoder, adata, target, draws=2, seed=s) for s in range(draws // 2)]
        change_DG = np.array([drawn.layers["difference"].mean(0) for drawn in one])
        # A pair's mean has half the variance of a draw.
        spread = np.sqrt(2) * change_DG.std(0)
        found |= {"q05": found["change"] - 1.645 * spread, "q95": found["change"] + 1.645 * spread}
    return {name: np.asarray(values, float).tolist() for name, values in found.items()}


def write_folder(folder: Path, adata: AnnData, model: MixedEffects) -> str:
    """Write a run folder and give its page."""
    model.embed(adata)
    rng = np.random.default_rng(0)
    for i, key in enumerate((keys.FIXED, keys.RANDOM, keys.PCA)):
        adata.obsm[keys.umap(key)] = rng.normal(size=(adata.n_obs, 2)).astype(np.float32) + i
    folder.mkdir(parents=True)
    adata.write_h5ad(folder / "integrated.h5ad")
    model.save(folder / "model")
    config = {"batch": "donor", "label": "cell_type"}
    (folder / "run.json").write_text(json.dumps({"status": "finished", "config": config}))
    return build(folder).read_text(encoding="utf-8")


def write_apart(folder: Path) -> None:
    """Write the page of a run whose last two batches share no label."""
    adata = cells()
    early = adata.obs["cell_type"].isin(LABELS[:2])
    apart = (adata.obs["donor"] == BATCHES[1]) & ~early | (adata.obs["donor"] == BATCHES[2]) & early
    adata = adata[~apart.to_numpy()].copy()
    write_folder(folder, adata, trained(adata))


def write_small(folder: Path) -> dict[str, object]:
    """Write a run folder and its page; give what the browser must find."""
    adata = cells()
    model = trained(adata)
    html = write_folder(folder, adata, model)
    header, arrays = unpack(html.split('id="ex-data">')[1].split("<")[0])
    batch, label = adata.obs["donor"], adata.obs["cell_type"]
    x = adata[:, model.decoder.genes].layers[keys.LOGNORM].toarray()

    def mean(k: str, b: str) -> np.ndarray:
        return x[((label == k) & (batch == b)).to_numpy()].mean(0)

    groups = []
    for k, b, target in ((LABELS[0], BATCHES[0], 1), (LABELS[3], BATCHES[1], 2), (LABELS[1], BATCHES[2], -1)):
        own = ((label == k) & (batch == b)).to_numpy()
        name = "mean" if target < 0 else BATCHES[target]
        seen = target >= 0 and ((label == k) & (batch == name)).any()
        groups.append(
            {
                **{"label": k, "batch": b, "target": str(target), "n": int(own.sum())},
                **said(model, adata[own], name, draws=200),
                "measured": mean(k, b).tolist(),
                "seen_change": (mean(k, name) - mean(k, b)).tolist() if seen else None,
            }
        )
    one = [(0, 1), (17, -1), (42, 0)]
    across = arrays["map1"][:, 0] / 65534
    # The outermost cell on the first map: no other is nearer to where it lies.
    places = arrays["map0"] / 65534
    alone = int(places[:, 0].argmax())
    one.insert(0, (alone, 2))
    return {
        "genes": list(model.decoder.genes),
        "span": model.decoder.scale.span_G.tolist(),
        "batches": header["batches"],
        "labels": header["labels"],
        "sizes": [int((label == k).sum()) for k in header["labels"]],
        "left": [int((across < 0.49).sum()), int((across < 0.51).sum())],
        "place": places[alone].tolist(),
        "unseen": {"label": "mono", "batch": BATCHES[2]},
        "groups": groups,
        "cells": [
            {
                "cell": adata.obs_names[i],
                "target": str(t),
                **said(model, adata[[i]], "mean" if t < 0 else BATCHES[t]),
            }
            for i, t in one
        ],
    }


def write_large(folder: Path) -> None:
    """Write the page of 200,000 cells of 150 batches."""
    batches = [f"donor {i}" for i in range(150)]
    run_folder.write(folder, n_cells=200_000, batches=batches, brief=True, without=["gene_shifts.csv"])
    build(folder)


def test_in_a_browser() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    (expected := OUT / "expected.json").parent.mkdir(parents=True)
    expected.write_text(json.dumps(write_small(OUT / "small")))
    write_apart(OUT / "apart")
    write_large(OUT / "large")
    done = subprocess.run(
        ["node", "--test", "--test-concurrency=1", "tests/explorer.test.mjs"],
        cwd=WEB,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
