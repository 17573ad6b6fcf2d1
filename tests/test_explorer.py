"""The report's explorer: what is packed, and that its arithmetic, in numpy, is the model's."""

import copy
import hashlib
import json
import re
import tracemalloc
from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData, read_h5ad
from scipy import sparse

import run_folder
from explorer_page import decode, gene, unpack
from scmedley import keys
from scmedley.data.sampling import FLOOR, sample
from scmedley.errors import ScmedleyError
from scmedley.interpret import genomap_of
from scmedley.models import RandomEffects
from scmedley.models.counterfactual import counterfactual
from scmedley.models.export import export
from scmedley.nn.bayesian import tables
from scmedley.report import explorer, explorer_read
from scmedley.report.build import build
from scmedley.report.explorer import Cells, Explored, fit, pack
from scmedley.report.explorer_read import explored
from scmedley.runs.folder import RECORD
from scmedley.runs.read import read
from scmedley.runs.record import Record
from tiny import DONORS

WEB = Path(__file__).parent.parent / "web"


def stirred(model):
    """Give a copy whose effects, and output norms, are large enough to be seen."""
    model = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for network in [model.network] if hasattr(model, "network") else [m.network for m in _parts(model)]:
            for table in tables(network):
                table.loc_BH.copy_(0.3 * torch.randn_like(table.loc_BH))
                table.rho_BH.fill_(-2)
            for name, norm in network.named_modules():
                if isinstance(norm, torch.nn.BatchNorm1d) and norm.affine and "decoder" in name:
                    norm.running_mean.normal_(0, 0.2)
                    norm.running_var.uniform_(0.5, 2)
    return model


def _parts(model):
    return model.networks().values()


def run_of(prepared: AnnData, model, x=True) -> Explored:
    """Give the explorer's data of a model and its cells, with no folder between."""
    network = getattr(model, "decoder", model)
    n = prepared.n_obs
    z = network.get_latent_representation(prepared)
    cells = Cells(
        list(prepared.obs_names),
        network.design.codes(prepared.obs),
        prepared.obs["cell_type"].cat.codes.to_numpy(np.int64),
        [("Fixed effects", "", z[:, :2])],
        prepared.obs[["donor", "cell_type"]],
        z,
        sparse.csr_matrix(prepared[:, network.genes].layers[keys.LOGNORM]) if x else None,
    )
    kinds = tuple(prepared.obs["cell_type"].cat.categories)
    counts = pd.crosstab(prepared.obs["cell_type"], prepared.obs["donor"]).to_numpy()
    return Explored(cells, n, network.design.batches, kinds, "donor", "cell_type", counts, export(network))


@pytest.fixture(params=["fixed", "random", "mixed"])
def model(request: pytest.FixtureRequest, fitted):
    return stirred(fitted(request.param))


@pytest.mark.parametrize("target", [*DONORS, "mean"])
def test_a_numpy_copy_of_the_pages_arithmetic_is_the_models(model, prepared: AnnData, target: str) -> None:
    header, arrays = unpack(pack(run_of(prepared, model)))
    network = getattr(model, "decoder", model)
    rows = np.arange(prepared.n_obs)
    code = network.design.code(target)
    found = decode(header, arrays, rows, np.full(len(rows), code))
    expected = network.scale.transform(counterfactual(network, prepared, target).X)
    assert np.abs(expected - network.scale.transform(network.reconstruct(prepared).X)).max() > 0.1
    assert np.abs(found - expected).max() < 1e-2
    own = decode(header, arrays, rows, network.design.codes(prepared.obs))
    assert np.abs(own - network.scale.transform(network.reconstruct(prepared).X)).max() < 1e-2


def test_a_mean_may_be_taken_before_the_last_block(model, prepared: AnnData) -> None:
    """What lets the page decode a lasso quickly."""
    header, arrays = unpack(pack(run_of(prepared, model)))
    rows, last = np.arange(40), len(header["whatif"]["pre_selu"]) - 1
    w, b, s, t, gamma, beta = (
        arrays[f"{n}{last}"].astype(np.float32) for n in ("w", "b", "s", "t", "gamma", "beta")
    )
    short = header | {"whatif": header["whatif"] | {"pre_selu": header["whatif"]["pre_selu"][:last]}}
    hidden = selu_of_last(short, arrays, rows)
    early = ((hidden.mean(0) @ w + b) * s + t) * (1 + gamma[1]) + beta[1]
    np.testing.assert_allclose(early, decode(header, arrays, rows, np.full(40, 1)).mean(0), atol=1e-5)


def selu_of_last(header, arrays, rows):
    from explorer_page import selu

    return selu(decode(header, arrays, rows, np.full(len(rows), 1)))


def test_effects_keep_their_spread(model, prepared: AnnData) -> None:
    network = getattr(model, "decoder", model).network
    _, arrays = unpack(pack(run_of(prepared, model)))
    for i, layer in enumerate(network.decoder_layers()):
        for name in ("gamma", "beta"):
            expected = getattr(layer.effects, f"{name}_sd").detach().numpy()
            np.testing.assert_allclose(arrays[f"{name}_sd{i}"], expected, rtol=1e-3)


def test_what_cannot_be_asked_is_said(fitted) -> None:
    with pytest.raises(ScmedleyError, match="encoded again for each target"):
        export(fitted("mixed", "paper").decoder)
    with pytest.raises(ScmedleyError, match="no batch effects"):
        export(fitted("autoencoder"))


def test_measured_genes_come_back_to_one_step(prepared: AnnData, fitted) -> None:
    run = run_of(prepared, fitted("mixed"))
    x = run.cells.x_NG.toarray()
    _, arrays = unpack(pack(run))
    for g in range(x.shape[1]):
        found = gene(arrays, g, len(x))
        assert np.abs(found - x[:, g]).max() <= x[:, g].max() / 255
        assert ((found > 0) == (x[:, g] > 0)).all()


def test_cells_far_apart_and_empty_genes_are_packed() -> None:
    x = np.zeros((2000, 5), np.float32)
    x[[0, 255, 510, 1999], [1, 1, 1, 3]] = [1, 2, 3, 4]
    arrays = explorer._genes(sparse.csr_matrix(x))
    for g in range(5):
        np.testing.assert_allclose(gene(arrays, g, 2000), x[:, g], atol=0.01)
    assert not len(explorer._genes(sparse.csr_matrix((3, 2), dtype=np.float32))["gene_cells"])


def test_a_sample_keeps_every_stratum_and_the_rest_in_proportion() -> None:
    strata = np.repeat([7, 3, 5, 1], [100_000, 50_000, 30, 1])
    rows = sample(strata, 3000)
    kept = pd.Series(strata[rows]).value_counts()
    assert len(rows) <= 3000
    assert kept[1] == 1
    assert kept[5] >= FLOOR
    assert kept[7] / kept[3] == pytest.approx(2, rel=0.05)
    assert np.array_equal(rows, sample(strata, 3000))
    assert not np.array_equal(rows, sample(strata, 3000, seed=1))
    assert (np.diff(rows) > 0).all()
    assert len(np.unique(strata[sample(strata, 2)])) == 4  # fewer cells than strata: one of each
    assert np.array_equal(sample(strata[-31:], 40), np.arange(31))


def test_cells_on_the_map_are_preferred() -> None:
    strata = np.repeat([0, 1], 500)
    drawn = np.arange(1000) % 5 == 0
    assert drawn[sample(strata, 100, drawn)].all()
    assert drawn[sample(strata, 400, drawn)].sum() == 200


@pytest.mark.parametrize("n", [0, 1, 7])
def test_places_keep_the_shape_of_a_map(n: int) -> None:
    xy = np.array([[0, 0], [10, 5], [np.nan, 1]] * n, np.float32).reshape(-1, 2)
    coded = explorer._places(xy).astype(float)
    assert (coded[2::3] == explorer.NONE).all()
    if n:
        assert coded[1, 0] - coded[0, 0] == pytest.approx(explorer.STEPS, abs=1)
        assert coded[1, 1] - coded[0, 1] == pytest.approx(explorer.STEPS / 2, abs=1)


def many(prepared: AnnData, fitted, n: int) -> Explored:
    """Give a run of ``n`` cells whose numbers do not compress."""
    run = run_of(prepared, fitted("mixed"))
    rng = np.random.default_rng(0)
    rows = rng.integers(len(run.cells.names), size=n)
    cells = run.cells.take(rows)
    z = rng.normal(size=cells.z_NP.shape).astype(np.float32)
    means = rng.normal(size=(12, len(run.decoder.genes)))
    pairs = np.column_stack([np.repeat(np.arange(4), 3), np.tile(np.arange(3), 4)])
    return replace(run, cells=replace(cells, z_NP=z), total=n, means=means, pairs=pairs)


def test_a_budget_is_kept_by_drawing_fewer_cells(prepared: AnnData, fitted) -> None:
    run = many(prepared, fitted, 30_000)
    whole = fit(run, 10**9)
    assert whole.shown == 30_000
    assert not whole.missing
    half = fit(run, len(whole.text) // 2)
    assert explorer.ENOUGH <= half.shown < 20_000
    assert 0.9 < len(half.text) / (len(whole.text) // 2) <= 1
    header, arrays = unpack(half.text)
    assert header["total"] == 30_000
    assert len(header["names"]) == len(arrays["latent"]) == len(arrays["batch"]) == half.shown
    assert len(set(zip(arrays["batch"], arrays["label"], strict=True))) == 12


def test_what_does_not_fit_is_left_out_in_order_and_said(prepared: AnnData, fitted) -> None:
    run = many(prepared, fitted, 30_000)
    whole = len(fit(run, 10**9).text)
    seen = set()
    for budget in np.geomspace(whole, 100, 40).astype(int):
        found = fit(run, int(budget))
        if found is None:
            seen.add("nothing")
            continue
        assert len(found.text) <= budget
        header, arrays = unpack(found.text)
        left = ("means" in arrays, "gene_cells" in arrays, header["whatif"] is not None)
        assert left == tuple(sorted(left))  # means go first, then genes, then what-if
        assert len(found.missing) == left.count(False)
        assert header["missing"] == list(found.missing)
        seen.add(left)
    assert {(True,) * 3, (False, False, False), "nothing"} <= seen
    assert (False, False, True) in seen or (False, True, True) in seen


def test_columns_of_all_kinds_are_packed(prepared: AnnData, fitted) -> None:
    run = run_of(prepared, fitted("mixed"))
    n = len(run.cells.names)
    columns = pd.DataFrame(
        {
            "number": np.linspace(-2, 5, n),
            "gap": [np.nan, np.inf] + [1.0] * (n - 2),
            "yes": np.arange(n) % 2 == 0,
            "text": pd.Series([None] + ["a"] * (n - 1)),
            "whole": np.arange(n),
            "nullable": pd.array([None] + [3] * (n - 1), dtype="Int64"),
            "empty": np.full(n, np.nan),
        }
    )
    header, arrays = unpack(pack(replace(run, cells=replace(run.cells, columns=columns))))
    by = {column["name"]: (column, arrays[f"column{i}"]) for i, column in enumerate(header["columns"])}
    assert (by["number"][0]["low"], by["number"][0]["high"]) == (-2, 5)
    assert by["number"][1][[0, -1]].tolist() == [0, explorer.STEPS]
    assert by["gap"][1][:3].tolist() == [explorer.NONE, explorer.NONE, 0]
    assert by["yes"][0]["levels"] == ["False", "True"]
    assert by["text"][1][:2].tolist() == [explorer.NONE, 0]
    assert by["nullable"][1][0] == explorer.NONE
    assert (by["empty"][1] == explorer.NONE).all()


def test_columns_that_cannot_be_told_apart_are_named(tmp_path: Path, prepared: AnnData, fitted) -> None:
    prepared.obs["barcode"] = [f"x{i}" for i in range(prepared.n_obs)]
    prepared.obs[[f"more{i}" for i in range(50)]] = 0.5
    write_run(tmp_path, prepared, fitted("mixed"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explorer, "MAX_LEVELS", 100)
        found = explored(read(tmp_path))
    kept = list(found.cells.columns)
    assert kept[:2] == ["donor", "cell_type"]
    assert len(kept) == len(unpack(pack(found))[0]["columns"]) == explorer.MAX_COLUMNS
    (words,) = [words for words in found.missing if "columns" in words]
    named = re.findall("'([^']*)'", words)
    assert sorted([*kept, *named]) == sorted(prepared.obs.columns)
    assert "barcode" in named


def test_what_fits_is_packed_once(prepared: AnnData, fitted, monkeypatch) -> None:
    packed = []
    monkeypatch.setattr(explorer, "pack", lambda run: packed.append(pack(run)) or packed[-1])
    assert fit(run_of(prepared, fitted("mixed")), 10**9).text == packed[0]
    assert len(packed) == 1


def test_means_are_taken_in_blocks_without_a_second_array_of_all_pairs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    genes = tuple(f"g{i}" for i in range(400))
    pair_N = np.append(rng.permutation(np.repeat(np.arange(1000), 2)), -1)
    x = rng.poisson(0.1, (len(pair_N), len(genes))).astype(np.float32)
    adata = AnnData(sparse.csr_matrix(x), layers={keys.LOGNORM: sparse.csr_matrix(x)})
    adata.var_names = list(genes)
    adata.write_h5ad(tmp_path / "integrated.h5ad")
    Record(tmp_path / RECORD, {"config": {}}).write("done")
    read_means = partial(explorer_read._measured, tmp_path, genes, np.arange(5), pair_N, 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explorer_read, "ROWS", 50)
        tracemalloc.start()
        _, pairs, means, missing = read_means()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        patch.setattr(explorer_read, "PAGE", 2 * means.size - 1)
        x_NG, *nothing, without = read_means()
    assert pairs.tolist() == [[i // 10, i % 10] for i in range(1000)]
    np.testing.assert_allclose(means, [x[pair_N == i].mean(0) for i in range(1000)], atol=1e-6)
    assert most < 1.7 * means.nbytes
    assert (missing, nothing, without) == ([], [None, None], [explorer.NO_MEANS])
    np.testing.assert_array_equal(x_NG.toarray(), x[:5])


def test_a_page_without_cells_says_so_and_keeps_its_pictures(
    tmp_path: Path, prepared: AnnData, fitted
) -> None:
    write_run(tmp_path, prepared, fitted("mixed"))
    html = build(tmp_path, cells=False).read_text(encoding="utf-8")
    assert "left out of this page by --no-explorer" in html
    assert "ex-data" not in html
    assert "<script" not in html
    assert not [name for name in prepared.obs_names if re.search(rf"\b{name}\b", html)]
    assert html.count("<img") >= 2


def test_a_run_folder_becomes_a_page(tmp_path: Path, prepared: AnnData, fitted) -> None:
    write_run(tmp_path, prepared, stirred(fitted("mixed")))
    found = explored(read(tmp_path))
    assert found.missing == ["No map of PCA."]
    assert np.prod(found.layout.shape) >= len(found.decoder.genes)
    model = fitted("mixed")
    x = prepared[:, model.decoder.genes].layers[keys.LOGNORM].toarray()
    for (k, b), mean in zip(found.pairs, found.means, strict=True):
        own = (prepared.obs["cell_type"] == found.labels[k]) & (prepared.obs["donor"] == found.batches[b])
        np.testing.assert_allclose(mean, x[own.to_numpy()].mean(0), atol=1e-5)
        assert found.counts_KB[k, b] == own.sum()
    np.testing.assert_allclose(found.cells.x_NG.toarray(), x, atol=1e-6)
    html = build(tmp_path).read_text(encoding="utf-8")
    text = re.search(r'<script type="text/plain" id="ex-data">([A-Za-z0-9+/=]*)</script>', html)[1]
    assert unpack(text)[0]["names"] == list(prepared.obs_names)
    assert len(html) < explorer.PAGE
    for words in (
        "are close where the grid allows",
        "for genes well above zero; values are means of logarithms",
    ):
        assert words in html


def test_seen_changes_are_of_held_out_cells_where_there_are_enough(
    tmp_path: Path, prepared: AnnData, fitted, monkeypatch
) -> None:
    model = fitted("mixed")
    write_run(tmp_path, prepared, model)
    header, arrays = unpack(pack(explored(read(tmp_path))))
    assert not arrays["held_out"].any()  # three cells of each pair are held out
    assert header["whatif"]["factor"] == pytest.approx(model.decoder.calibration.factor)
    monkeypatch.setattr(explorer_read, "LEAST", 3)
    check = pd.DataFrame([run_folder.check_row("B", "d1", 0.8, additive_pearson=0.5)])
    check.to_csv(tmp_path / "counterfactual_check.csv", index=False)
    found = explored(read(tmp_path))
    header, arrays = unpack(pack(found))
    x = prepared[:, model.decoder.genes].layers[keys.LOGNORM].toarray()
    for (k, b), mean, held_out in zip(arrays["pairs"], found.means, arrays["held_out"], strict=True):
        own = (prepared.obs["cell_type"] == found.labels[k]) & (prepared.obs["donor"] == found.batches[b])
        test = own & (prepared.obs[keys.SPLIT] == "test")
        assert held_out == (test.sum() >= 3)
        np.testing.assert_allclose(mean, x[(test if held_out else own).to_numpy()].mean(0), atol=1e-5)
    assert arrays["held_out"].any()
    assert header["trust"] == [[found.labels.index("B"), found.batches.index("d1"), "good", "better"]]


def test_the_whole_page_keeps_its_size(tmp_path: Path, prepared: AnnData, fitted, monkeypatch) -> None:
    write_run(tmp_path, prepared, fitted("mixed"))
    asked = []

    def spied(run: Explored, budget: int):
        asked.append((budget, fit(run, budget)))
        return asked[-1][1]

    monkeypatch.setattr(explorer, "fit", spied)
    monkeypatch.setattr(explorer, "ENOUGH", 20)
    monkeypatch.setattr(explorer, "ROOM", 1000)
    whole = build(tmp_path).read_bytes()
    ((_, payload),) = asked  # what fits is packed and rendered once
    assert payload.shown == 180
    monkeypatch.setattr(explorer, "PAGE", len(whole) + explorer.ROOM - len(payload.text) // 8)
    html = build(tmp_path).read_bytes()
    assert len(html) <= explorer.PAGE
    shown = asked[-1][1].shown
    assert shown < 180
    assert f"{shown} of 180 cells are in this page".encode() in html
    monkeypatch.setattr(explorer, "PAGE", 1000)
    assert b"the cells and the other sections do not fit into a page" in build(tmp_path).read_bytes()


def write_run(folder: Path, prepared: AnnData, model) -> None:
    adata = prepared.copy()
    model.embed(adata)
    for key in (keys.FIXED, keys.RANDOM):
        adata.obsm[keys.umap(key)] = adata.obsm[key][:, :2].astype(np.float32)
    adata.write_h5ad(folder / "integrated.h5ad")
    model.save(folder / "model")
    genomap_of(model, prepared).save(folder / "genomap.json")
    config = {"batch": "donor", "label": "cell_type"}
    (folder / "run.json").write_text(json.dumps({"status": "finished", "config": config}))


def test_a_model_without_a_genomap_is_asked_all_the_same(tmp_path: Path, prepared: AnnData, fitted) -> None:
    write_run(tmp_path, prepared, fitted("mixed"))
    (tmp_path / "genomap.json").unlink()
    found = explored(read(tmp_path))
    assert "no genomap" in found.missing[0]
    header, arrays = unpack(pack(found))
    assert header["whatif"]["shape"] is None
    assert "genomap" not in arrays


def test_the_dense_layer_and_a_missing_label_are_read(tmp_path: Path, prepared: AnnData, fitted) -> None:
    prepared.layers[keys.LOGNORM] = prepared.layers[keys.LOGNORM].toarray()
    write_run(tmp_path, prepared, fitted("mixed"))
    (tmp_path / "run.json").write_text(json.dumps({"status": "finished", "config": {"batch": "donor"}}))
    found = explored(read(tmp_path))
    assert found.label_key is None
    assert found.counts_KB.tolist() == [[60, 60, 60]]
    assert found.means is None  # of all cells: batches differ in composition
    assert any("no labels, so no observed change" in words for words in found.missing)


def test_a_damaged_matrix_costs_the_explorer_alone(tmp_path: Path, prepared: AnnData, fitted) -> None:
    write_run(tmp_path, prepared, fitted("mixed"))
    with h5py.File(tmp_path / "integrated.h5ad", "r+") as file:
        file[f"layers/{keys.LOGNORM}/indptr"][5] = 10**6
    page = build(tmp_path).read_text()
    assert "the cells or the model cannot be read" in page
    assert 'id="ex-data"' not in page


def test_a_model_of_other_batches_is_asked_nothing(tmp_path: Path, prepared: AnnData, fitted) -> None:
    write_run(tmp_path, prepared, fitted("mixed"))
    cells = read_h5ad(tmp_path / "integrated.h5ad")
    cells.obs["donor"] = cells.obs["donor"].astype(str) + " of another study"
    cells.write_h5ad(tmp_path / "integrated.h5ad")
    found = explored(read(tmp_path))
    assert found.decoder is None
    assert any("are not those of the model" in words for words in found.missing)


def test_a_page_is_built_without_a_model_and_says_so(tmp_path: Path) -> None:
    html = build(run_folder.write(tmp_path, brief=True)).read_text(encoding="utf-8")
    assert "The model is not in the run folder" in html
    header, _ = unpack(re.search(r'id="ex-data">([^<]*)<', html)[1])
    assert header["whatif"] is None
    assert len(header["names"]) == 600


def test_a_damaged_model_and_a_paper_model_cost_the_what_if_alone(
    tmp_path: Path, prepared: AnnData, fitted
) -> None:
    write_run(tmp_path, prepared, fitted("mixed", "paper"))
    found = explored(read(tmp_path))
    assert found.decoder is None
    assert "encoded again" in found.missing[0]
    header, arrays = unpack(pack(found))  # cells can be coloured by gene without a what-if
    assert header["whatif"] is None
    assert len(header["genes"]) == len(arrays["gene_most"]) > 0
    (tmp_path / "model" / "model.json").write_text("{")
    found = explored(read(tmp_path))
    assert found.decoder is None
    assert "The model cannot be read" in found.missing[0]
    assert str(tmp_path) not in build(tmp_path).read_text(encoding="utf-8")


def test_the_bundle_is_built_from_its_source() -> None:
    bundle = (Path(explorer.__file__).parent / "explorer.js").read_text(encoding="utf-8")
    banner, body = bundle.split("\n", 1)
    stated, of_body = re.findall(r"sha256 ([0-9a-f]{64})", banner)
    assert hashlib.sha256(body.encode()).hexdigest() == of_body, "explorer.js was edited: make web"
    assert "</script" not in bundle.lower()
    assert "<!--" not in bundle
    for words in ("http:", "https:", "eval(", "new Function", "innerHTML", "insertAdjacentHTML"):
        assert words not in bundle
    if not WEB.is_dir():
        pytest.skip("web/ is not here")
    names = ["package.json", "package-lock.json", "tsconfig.json", "vite.config.ts"]
    names += [f"src/{path.name}" for path in (WEB / "src").iterdir()]
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(name.encode() + b"\0" + (WEB / name).read_bytes() + b"\0")
    assert digest.hexdigest() == stated, "web/ has changed: make web"


def test_random_effects_alone_have_a_decoder(prepared: AnnData, fitted) -> None:
    model: RandomEffects = fitted("random")
    assert export(model).kind == "random"
    assert export(fitted("fixed")).kind == "fixed"
