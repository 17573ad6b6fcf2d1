"""All pages in Chromium and Firefox: writes them and what PyTorch says of the explorer, then runs web/tests.

Needs Node, ``npm ci`` in web/ and the browsers (``make web-test``); what is not there is skipped. Firefox draws
with WebGL only on a display, which ``xvfb-run`` gives it.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

import page_kinds
import run_folder
from explorer_page import unpack
from scmedley import keys
from scmedley.interpret import genomap_of
from scmedley.models import MixedEffects
from scmedley.models.counterfactual import Encoded, counterfactual
from scmedley.models.interval import half_width
from scmedley.nn.bayesian import tables
from scmedley.report.build import build
from tiny import FIT, prepared_design, small

WEB = Path(__file__).parent.parent / "web"
OUT = WEB / "tests" / "out"
BROWSERS = {
    "chromium": os.environ.get("CHROMIUM", "/usr/bin/chromium"),
    "firefox": os.environ.get("FIREFOX", "/usr/bin/firefox-esr"),
}
EVIL = "<script>globalThis.alerted=1</script>"
IMAGE = "<img src=x onerror=alert(1)>"
BATCHES = ["a" + EVIL, "b&amp;\"'", "c"]
LABELS = ["B" + EVIL, "NK", "T", "mono"]

pytestmark = pytest.mark.skipif(
    not (shutil.which("node") and (WEB / "node_modules").is_dir()),
    reason="needs Node and npm ci in web/: make web-test",
)


def cells() -> AnnData:
    """The tiny design with names that a page must not run, one label unseen in one batch."""
    adata = prepared_design()
    adata.obs["donor"] = adata.obs["donor"].cat.rename_categories(BATCHES)
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories(LABELS)
    adata.obs_names = [f"{i:04d}cell{EVIL}" for i in range(adata.n_obs)]
    adata.var_names = [f"{'=' * (i == 3)}{name}{IMAGE}" for i, name in enumerate(adata.var_names)]
    unseen = (adata.obs["donor"] == BATCHES[2]) & (adata.obs["cell_type"] == "mono")
    adata = adata[~unseen.to_numpy()].copy()
    adata.obs["score"] = np.linspace(-1, 3, adata.n_obs)
    adata.obs["tiny"] = [np.nan, *np.linspace(1e-5, 2e-5, adata.n_obs - 1)]
    adata.obs["empty"] = np.nan
    return adata


def trained(adata: AnnData, **given: str) -> MixedEffects:
    """A model whose effects are large enough to be seen."""
    fixed = {} if given else {"fixed_settings": small("fixed")}
    model = MixedEffects("donor", random_settings=small("random"), **fixed, **given)
    model.fit(adata, **FIT)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for table in tables(model.decoder.network):
            table.loc_BH.copy_(0.3 * torch.randn_like(table.loc_BH))
            table.rho_BH.fill_(-2)
    return model


def said(model: MixedEffects, adata: AnnData, target: str, draws: int = 0) -> dict[str, list[float]]:
    """What PyTorch says of the mean of cells."""
    shown = counterfactual(model.decoder, adata, target)
    own = model.decoder.reconstruct(adata).X.mean(0)
    found = {"own_batch": own, "as_if": shown.X.mean(0), "change": shown.layers["difference"].mean(0)}
    if draws:
        own_N = model.decoder.design.codes(adata.obs)
        cells = model.decoder.read(adata).resident(own_N, model.decoder.scale).take(torch.arange(adata.n_obs))
        there_N = torch.full_like(cells.b_N, model.decoder.design.code(target))

        def mean(batch_N: torch.Tensor, draw: int) -> np.ndarray:
            xhat_NG = Encoded(model.decoder, cells, draw).decoded(batch_N)
            return xhat_NG.mean(0).numpy()

        with torch.no_grad():
            drawn = [mean(there_N, draw) - mean(cells.b_N, draw) for draw in range(draws)]
        change_DG = np.array(drawn) * model.decoder.scale.span_G
        half_G = half_width(change_DG, model.decoder.calibration)
        middle_G = change_DG.mean(0)
        found |= {"q05": middle_G - half_G, "q95": middle_G + half_G, "sd": half_G / 1.645}
    return {name: np.asarray(values, float).tolist() for name, values in found.items()}


def write_folder(folder: Path, adata: AnnData, model: MixedEffects, label: str | None = "cell_type") -> str:
    """Write a run folder and give its page."""
    model.embed(adata, unknown="mean")
    rng = np.random.default_rng(0)
    for i, key in enumerate((keys.FIXED, keys.RANDOM, keys.PCA)):
        adata.obsm[keys.umap(key)] = rng.normal(size=(adata.n_obs, 2)).astype(np.float32) + i
    folder.mkdir(parents=True, exist_ok=True)
    adata.write_h5ad(folder / "integrated.h5ad")
    model.save(folder / "model")
    genomap_of(model, adata).save(folder / "genomap.json")
    config = {"batch": "donor", "label": label}
    (folder / "run.json").write_text(json.dumps({"status": "finished", "config": config}))
    return build(folder).read_text(encoding="utf-8")


def write_apart(folder: Path) -> None:
    """Write the page of a run whose last two batches share no label."""
    adata = cells()
    early = adata.obs["cell_type"].isin(LABELS[:2])
    apart = (adata.obs["donor"] == BATCHES[1]) & ~early | (adata.obs["donor"] == BATCHES[2]) & early
    adata = adata[~apart.to_numpy()].copy()
    write_folder(folder, adata, trained(adata))


def write_unlabelled(folder: Path) -> None:
    """Write the page of a run without labels, whose check judged one batch."""
    adata = cells()
    folder.mkdir(parents=True)
    check = pd.DataFrame([run_folder.check_row("all cells", BATCHES[1], 0.9)])
    check.to_csv(folder / "counterfactual_check.csv", index=False)
    write_folder(folder, adata, trained(adata), label=None)


def write_failed(folder: Path) -> None:
    """Write the page of a run whose check failed, with a decoder whose first batch leaves what a gene can be."""
    adata = cells()
    model = trained(adata)
    with torch.no_grad():
        tables(model.decoder.network)[-1].loc_BH[0] = -30
    folder.mkdir(parents=True)
    rows = [run_folder.check_row(label, batch, -0.3) for label in LABELS for batch in BATCHES]
    pd.DataFrame(rows).to_csv(folder / "counterfactual_check.csv", index=False)
    write_folder(folder, adata, model)


def write_odd(folder: Path) -> None:
    """Write the page of a given fixed part, with 4 cells of an unknown batch and 6, of the first, without a label."""
    adata = cells()
    adata.obsm["given"] = np.random.default_rng(0).normal(size=(adata.n_obs, 4)).astype(np.float32)
    model = trained(adata, fixed="given")
    first = np.flatnonzero(adata.obs["donor"] == BATCHES[0])
    adata.obs["donor"] = adata.obs["donor"].cat.add_categories("stranger")
    adata.obs.loc[adata.obs_names[first[:4]], "donor"] = "stranger"
    adata.obs.loc[adata.obs_names[first[4:10]], "cell_type"] = None
    adata.obs["odd"] = np.array(["no", "stranger", "unlabelled"])[
        np.isin(np.arange(adata.n_obs), first[:4]) + 2 * np.isin(np.arange(adata.n_obs), first[4:10])
    ]
    write_folder(folder, adata, model)


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
                **said(model, adata[own], name, draws=1000),
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


@pytest.fixture(scope="module")
def written() -> None:
    """Write all pages, and what the browsers must find in them."""
    shutil.rmtree(OUT, ignore_errors=True)
    (expected := OUT / "expected.json").parent.mkdir(parents=True)
    kinds = {name: f"kinds/{path}" for name, path in page_kinds.write(OUT / "kinds").items()}
    expected.write_text(json.dumps(write_small(OUT / "small") | {"pages": kinds}))
    write_apart(OUT / "apart")
    write_failed(OUT / "failed")
    write_unlabelled(OUT / "unlabelled")
    write_odd(OUT / "odd")
    write_large(OUT / "large")


@pytest.mark.parametrize("browser", BROWSERS)
def test_pages(browser: str, written: None) -> None:
    if not Path(BROWSERS[browser]).exists():
        pytest.skip(f"{BROWSERS[browser]} is not installed")
    display = [] if os.environ.get("DISPLAY") or browser != "firefox" else ["xvfb-run", "-a"]
    done = subprocess.run(
        [*display, "npm", "test", "--silent"],
        cwd=WEB,
        env=os.environ | {"BROWSER": browser},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
