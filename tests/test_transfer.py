"""Labels, mapping confidence and novelty of new cells; scores of them; the command and its page."""

from dataclasses import replace
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.stats import mannwhitneyu
from sklearn.linear_model import LogisticRegression

import scmedley as sm
import tiny
from running import SMALL, Shell, some_cells
from scmedley import keys
from scmedley.data.design import Design
from scmedley.errors import ScmedleyError, ScmedleyWarning
from scmedley.evaluate import expected_calibration_error, novelty_auroc
from scmedley.evaluate.calibration import calibration_bins, error_of_bins
from scmedley.io import write_h5ad
from scmedley.models import residuals
from scmedley.models.reference import WEIGHT_POWER, LabelClassifier, best_temperature
from scmedley.models.residuals import agreement_with_neighbours, effect_of_batch, relative_to_batch
from scmedley.models.transfer import mapping_confidence, n_nearest, share_below
from scmedley.pipeline.query import adapted, advice, batch_table, batches, summarised, transferred
from scmedley.pp.maps import place

# The designs of most tests have fewer than 100 validation cells.
pytestmark = pytest.mark.filterwarnings("ignore:With so few validation cells")


@pytest.fixture(scope="module")
def fitted():
    """Fixed effects of the tiny design, long enough to tell types apart, and its cells: do not change."""
    adata = tiny.prepared_design()
    return tiny.unfitted("fixed", max_epochs=40).fit(adata, **tiny.FIT), adata


# Scores


def test_expected_calibration_error_by_hand():
    probability = np.array([0.95, 0.95, 0.85, 0.85, 0.4])
    right = np.array([True, True, True, False, True])
    # Bins: |0.95 - 1| for 2 cells, |0.85 - 0.5| for 2, |0.4 - 1| for 1.
    assert expected_calibration_error(probability, right) == pytest.approx((2 * 0.05 + 2 * 0.35 + 0.6) / 5)
    assert np.isnan(expected_calibration_error(np.array([]), np.array([], bool)))
    assert expected_calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0


def test_calibration_bins_of_parts_add_up():
    rng = np.random.default_rng(0)
    p = rng.uniform(size=4000)
    right = rng.uniform(size=4000) < p
    parts = calibration_bins(p[:1000], right[:1000]) + calibration_bins(p[1000:], right[1000:])
    assert error_of_bins(parts) == pytest.approx(expected_calibration_error(p, right))
    assert expected_calibration_error(p, right) < 0.03
    assert expected_calibration_error(p, rng.permutation(right)) > 0.2


def test_novelty_auroc_is_the_mann_whitney_statistic():
    rng = np.random.default_rng(0)
    new = np.arange(100) < 30
    novelty = rng.normal(size=100) + new
    u = mannwhitneyu(novelty[new], novelty[~new]).statistic
    assert novelty_auroc(novelty, new) == pytest.approx(u / (30 * 70))
    assert np.isnan(novelty_auroc(novelty, np.ones(100, bool)))


# Conformal p-values


def test_one_and_twenty_validation_cells():
    assert share_below(np.array([0.3]), np.array([0.2, 0.3, 0.4])).tolist() == [0, 0, 0.5]
    null = np.arange(20.0)
    assert share_below(null, np.array([-1, 0, 9.5, 99])) == pytest.approx(np.array([0, 0, 10, 20]) / 21)
    assert share_below(np.array([]), np.array([1.0])).tolist() == [0]


@pytest.mark.parametrize("n", [1, 20])
def test_p_values_hold_their_level(n):
    """Without anything new, at most a share a of the cells has p <= a, with few validation cells too."""
    rng = np.random.default_rng(0)
    p = np.concatenate([1 - share_below(rng.normal(size=n), rng.normal(size=20)) for _ in range(1000)])
    for level in (0.01, 0.05, 0.1, 0.5):
        assert (p <= level).mean() <= level + 0.015


# Agreement of residuals


def test_noise_does_not_agree_and_a_shared_program_does():
    rng = np.random.default_rng(0)
    r = rng.normal(size=(300, 400)).astype(np.float32)
    z = rng.normal(size=(300, 3))
    z[:60] += 8  # a group of its own
    assert abs(agreement_with_neighbours(r, z).mean()) < 0.02
    r[:60, :20] += 2  # with 20 genes that the model does not explain
    found = agreement_with_neighbours(r, z)
    assert novelty_auroc(found, np.arange(300) < 60) > 0.99
    # It is the cosine with the mean of the others: check one cell.
    order = np.argsort(((z - z[7]) ** 2).sum(axis=1))[1:31]
    mean = r[order].mean(axis=0)
    assert found[7] == pytest.approx(mean @ r[7] / np.linalg.norm(mean) / np.linalg.norm(r[7]), abs=1e-5)
    assert agreement_with_neighbours(r[:1], z[:1]).tolist() == [0]


def test_the_effect_of_a_batch_is_a_bias_and_a_scale():
    rng = np.random.default_rng(0)
    xhat = rng.normal(size=(2000, 5)).astype(np.float32)
    planted = np.array([1, 0, -1, 0, 2]) + np.array([0, 0.5, 0, -0.5, 0.2]) * xhat
    left = planted - effect_of_batch(planted.astype(np.float32), xhat, np.zeros(2000))
    assert np.abs(left).max() < 0.15


def test_a_large_group_does_not_pass_for_the_batch():
    """Nine in ten cells have a program of their own: it remains, and the others do not get its opposite."""
    group = np.repeat([0, 1, 2, 3], [900, 34, 33, 33])
    xhat = np.random.default_rng(0).normal(size=(1000, 1)).astype(np.float32)
    residual = np.where(group == 0, 1.0, 0.0)[:, None].astype(np.float32)
    left = residual - effect_of_batch(residual, xhat, group)
    assert left[:900].mean() > 0.6
    assert abs(left[900:].mean()) < 0.35


def test_in_an_unknown_batch_only_cells_that_stand_out_remain():
    rng = np.random.default_rng(0)
    null = rng.normal(0, 0.05, 500)
    agreeing = rng.normal(0.3, 0.1, 400)  # all cells agree more, and more unequally
    found = relative_to_batch(agreeing, np.zeros(400), null)
    assert (np.diff(found[np.argsort(agreeing)]) >= 0).all()  # the order is kept
    assert np.quantile(found, (0.25, 0.5)) == pytest.approx(np.quantile(null, (0.25, 0.5)), abs=0.005)
    shifted = relative_to_batch(agreeing, np.zeros(400), null, spread=False)
    assert np.median(shifted) == pytest.approx(np.median(null), abs=0.005)
    assert np.ptp(shifted) == pytest.approx(np.ptp(agreeing))
    low = rng.normal(-0.2, 0.01, 400)  # lower and narrower than the null: not raised
    assert relative_to_batch(low, np.zeros(400), null) == pytest.approx(low)


def test_blocks_of_many_genes_are_smaller(monkeypatch):
    sizes = []
    monkeypatch.setattr(residuals, "BLOCK_VALUES", 400)
    monkeypatch.setattr(
        residuals, "residuals", lambda model, cells, *_: sizes.append(len(cells)) or np.ones((len(cells), 10))
    )
    cells = SimpleNamespace(n_cells=100, take=lambda rows: rows)
    found = residuals.agreement(None, cells, np.zeros((100, 2)), np.zeros(100), np.ones(10))
    assert sizes == [34, 33, 33]
    assert found == pytest.approx(1)  # no cell is left out


def test_batches_are_those_of_the_model():
    obs = pd.DataFrame({"donor": ["1", " 1", "1.0", "2", None]})
    model = SimpleNamespace(design=Design("donor", ("1", "2")))
    rows = residuals._by_batch(model, obs, np.array([True, True, False, True, True]))
    assert [part.tolist() for part in rows] == [[4], [0, 1], [3]]
    assert batches(obs, model).tolist() == ["1", "1", "1.0", "2", "no batch"]
    numbers = pd.DataFrame({"donor": [1.0, 2.0]})
    assert batches(numbers, model).tolist() == ["1", "2"]


# The classifier


def test_the_classifier_is_a_logistic_regression_with_a_temperature():
    rng = np.random.default_rng(0)
    code = rng.integers(3, size=600)
    z = rng.normal(size=(600, 4)) + 1.5 * np.eye(4)[code]
    held_out = np.arange(600) % 5 == 0
    found = LabelClassifier.fit(z, code, held_out, ("a", "b", "c"), "type")
    spread = np.sqrt(z[~held_out].var(axis=0).mean())
    n = np.bincount(code[~held_out])
    weights = dict(enumerate((n.mean() / n) ** WEIGHT_POWER))
    expected = LogisticRegression(max_iter=1000, class_weight=weights).fit(
        z[~held_out] / spread, code[~held_out]
    )
    assert found.n_train_K == tuple(n)
    plain = replace(found, temperature=1.0)
    np.testing.assert_allclose(plain.probabilities(z), expected.predict_proba(z / spread), atol=1e-6)
    two = LabelClassifier.fit(z, code % 2, held_out, ("a", "b"), "type")
    n = np.bincount(code[~held_out] % 2)
    weights = dict(enumerate((n.mean() / n) ** WEIGHT_POWER))
    expected = LogisticRegression(max_iter=1000, class_weight=weights)
    expected.fit(z[~held_out] / spread, code[~held_out] % 2)
    np.testing.assert_allclose(
        replace(two, temperature=1.0).probabilities(z), expected.predict_proba(z / spread), atol=1e-6
    )
    # A label without training cells is no candidate; cells without a label are not used; one label is none.
    rare = np.where((code == 2) & ~held_out, -1, code)
    assert LabelClassifier.fit(z, rare, held_out, ("a", "b", "c"), "type").names == ("a", "b")
    assert LabelClassifier.fit(z, np.zeros(600, int), held_out, ("a",), "type") is None


def test_cells_of_a_rare_label_have_training_cells_close_to_them():
    """A rare label of 12 cells, far from the others: its new cells are close to it, cells of a new type are not."""
    rng = np.random.default_rng(0)
    code = np.repeat([0, 1], [988, 12])
    z = rng.normal(size=(1000, 5)) * np.where(code, 0.4, 1)[:, None] + 12 * code[:, None]
    held_out = (np.arange(1000) % 4 == 0) & (code == 0)
    found = LabelClassifier.fit(z, code, held_out, ("frequent", "rare"), "type")
    assert n_nearest(found).tolist() == [15, 3]
    new = 0.4 * rng.normal(size=(40, 5)) + 12 * np.repeat([0, 1], 20)[:, None]
    k = n_nearest(found)[found.probabilities(new).argmax(axis=1)]
    assert (mapping_confidence(new, z, held_out, k) < 0.01).mean() < 0.2
    assert (mapping_confidence(new[20:], z, held_out, np.full(20, 15)) < 0.01).all()
    assert (mapping_confidence(new + 100, z, held_out, k) < 0.01).all()
    assert n_nearest(replace(found, n_train_K=None)).tolist() == [15, 15]  # of an earlier version
    assert n_nearest(None).tolist() == [15]


def test_temperature_undoes_overconfidence():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5000, 3))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    label = (p.cumsum(axis=1) < rng.uniform(size=(5000, 1))).sum(axis=1)
    assert best_temperature(4 * logits, label) == pytest.approx(4, rel=0.1)
    assert best_temperature(4 * logits[:5], label[:5]) == 1  # too few cells


# Models


def test_transfer_of_the_cells_of_the_fit(fitted):
    model, adata = fitted
    table = model.transfer(adata)
    assert list(table) == ["label", "probability", "mapping_confidence", "novelty", "assigned"]
    assert table.index.equals(adata.obs_names)
    assert table.iloc[:, 1:4].stack().between(0, 1).all()
    test = adata.obs[keys.SPLIT] == "test"
    right = (table["label"].astype(str) == adata.obs["cell_type"].astype(str))[test].mean()
    assert right > 0.6  # 0.25 by chance
    doubtful = (table["probability"] < 0.5) | (table["novelty"] > 0.99) | (table["mapping_confidence"] < 0.01)
    assert ((table["assigned"] == keys.UNASSIGNED) == doubtful).all()
    assert (table["assigned"].astype(str) == table["label"].astype(str))[~doubtful].all()
    bold = model.transfer(adata, least_probability=0, most_novelty=1)["assigned"]
    assert (bold == keys.UNASSIGNED).sum() < doubtful.sum()


def test_too_few_validation_cells_to_find_anything_new(fitted):
    model, adata = fitted
    n = len(model.reference.agreement_V)
    assert n < 20
    with pytest.warns(
        ScmedleyWarning, match=rf"no novelty above 0.99 \(there are {n}, it takes 100\)"
    ) as heard:
        table = model.transfer(adata)
    assert len(heard) == 1
    assert table["novelty"].max() <= n / (n + 1)
    assert table["mapping_confidence"].min() >= 1 / (n + 1) - 1e-9
    with pytest.warns(ScmedleyWarning, match="can have no mapping confidence below 0.01"):
        model.transfer(adata, most_novelty=0.9)


def test_labels_of_test_cells_are_not_used(fitted):
    model, adata = fitted
    other = adata.copy()
    test = (other.obs[keys.SPLIT] == "test").to_numpy()
    other.obs.loc[test, "cell_type"] = "B"
    again = tiny.unfitted("fixed", max_epochs=40).fit(other, **tiny.FIT)
    pd.testing.assert_frame_equal(again.transfer(adata), model.transfer(adata))


def test_a_saved_model_transfers_the_same(fitted, tmp_path):
    model, adata = fitted
    model.save(tmp_path / "model")
    loaded = sm.load(tmp_path / "model")
    pd.testing.assert_frame_equal(loaded.transfer(adata), model.transfer(adata))
    sizes = adata.obs["cell_type"][adata.obs[keys.SPLIT] == "train"].value_counts()
    n_train = dict(zip(loaded.reference.classifier.names, loaded.reference.classifier.n_train_K, strict=True))
    assert n_train == sizes[sizes > 0].to_dict()


@pytest.fixture(scope="module")
def without_h2228():
    """Fixed effects fitted to two of three cell lines, and the test cells with those of the third line."""
    adata = some_cells(400, genes=200)
    left = (adata.obs["cell_type"] == "H2228").to_numpy()
    known = adata[~left].copy()
    sm.pp.prepare(known, "batch", label_key="cell_type")
    settings = tiny.small("fixed", max_epochs=20, n_latent=8, hidden=(64, 32))
    model = sm.FixedEffects("batch", settings=settings).fit(known, **tiny.FIT)
    test = adata.obs_names.isin(known.obs_names[known.obs[keys.SPLIT] == "test"])
    return model, adata[left | test].copy()


def test_a_type_that_was_left_out_is_novel(without_h2228):
    model, query = without_h2228
    new = (query.obs["cell_type"] == "H2228").to_numpy()
    table = model.transfer(query, most_novelty=0.95)
    assert novelty_auroc(table["novelty"].to_numpy(), new) > 0.95
    assert (table["assigned"] == keys.UNASSIGNED)[new].mean() > 0.9
    right = table["label"].astype(str) == query.obs["cell_type"].astype(str)
    assert right[~new].mean() > 0.9
    assert (table["novelty"] > 0.95)[~new].mean() < 0.1


def test_a_new_batch_and_missing_genes_are_not_novel(without_h2228):
    model, query = without_h2228
    known = query[query.obs["cell_type"] != "H2228"].copy()
    known.obs["batch"] = "new"
    with pytest.warns(ScmedleyWarning, match="genes are missing"):
        table = model.transfer(known[:, 20:].copy())
    assert (table["novelty"] > 0.95).mean() < 0.1
    del known.obs["batch"]
    assert (model.transfer(known)["novelty"] > 0.95).mean() < 0.1


def test_labels_of_ones_own(fitted):
    model, adata = fitted
    own = adata[adata.obs[keys.SPLIT] == "train"].copy()
    own.obs["lineage"] = np.where(own.obs["cell_type"].isin(["mono", "NK"]), "one", "other")
    table = model.transfer(adata, reference=own, label_key="lineage")
    truth = np.where(adata.obs["cell_type"].isin(["mono", "NK"]), "one", "other")
    assert set(table["label"].cat.categories) == {"one", "other"}
    assert (table["label"].astype(str) == truth).mean() > 0.65
    for wrong, words in (
        ({"reference": own}, "has reference but no label_key"),
        ({"label_key": "lineage"}, "has label_key but no reference"),
        ({"reference": own, "label_key": "linage"}, "Did you mean 'lineage'"),
        ({"least_probability": np.nan}, "least_probability is nan"),
        ({"least_probability": -0.1}, "least_probability is -0.1"),
        ({"most_novelty": 99}, "most_novelty is 99. Give a number from 0 to 1"),
        ({"reference": own[own.obs["lineage"] == "one"].copy(), "label_key": "lineage"}, "1 label"),
    ):
        with pytest.raises(ScmedleyError, match=words):
            model.transfer(adata, **wrong)


def test_a_label_head_gives_the_labels():
    adata = tiny.prepared_design()
    model = sm.FixedEffects("donor", "cell_type", tiny.small("fixed")).fit(adata, **tiny.FIT)
    table, p = model.transfer(adata), model.predict(adata)
    assert (table["label"].astype(str) == p.idxmax(axis=1)).all()
    logits = np.log(p.to_numpy()) / model.reference.classifier.temperature
    calibrated = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(table["probability"], calibrated.max(axis=1), atol=1e-5)


def test_models_that_cannot_transfer_say_so(fitted):
    _, adata = fitted
    random = tiny.unfitted("random", max_epochs=1).fit(adata, **tiny.FIT)
    with pytest.raises(ScmedleyError, match="Use FixedEffects"):
        random.transfer(adata)
    assert random.reference is None
    with pytest.raises(ScmedleyError, match="not fitted"):
        tiny.unfitted("fixed").transfer(adata)
    with pytest.raises(ScmedleyError, match="without fixed="):
        sm.MixedEffects("donor", fixed="X_mine").transfer(adata)


def test_a_model_of_an_earlier_version(fitted, tmp_path):
    model, adata = fitted
    model.save(tmp_path / "model")
    old = sm.load(tmp_path / "model")
    old.reference = None
    old.save(tmp_path / "old")
    again = sm.load(tmp_path / "old")
    np.testing.assert_array_equal(
        again.get_latent_representation(adata), model.get_latent_representation(adata)
    )
    with pytest.raises(ScmedleyError, match="Fit it again"):
        again.transfer(adata)


def test_without_labels_there_is_still_novelty():
    adata = tiny.nested_design()
    sm.pp.prepare(adata, "donor", min_genes=5, min_cells=1)
    model = tiny.unfitted("autoencoder").fit(adata, **tiny.FIT)
    assert list(model.transfer(adata)) == ["mapping_confidence", "novelty"]


# The command


def test_the_summary_says_what_to_do_next():
    table = pd.DataFrame({"novelty": [0.5] * 90 + [1.0] * 10, "mapping_confidence": 0.5})
    batch = pd.Series(["a"] * 90 + ["b"] * 10)
    assert batch_table(table, batch).loc["b"].to_dict() == {"cells": 10, "novel": 10}
    assert advice(table, batch_table(table, batch)).startswith(
        "10 % of the cells are novel, most of all in 'b'"
    )
    table["label"] = table["assigned"] = pd.Categorical(["T"] * 100)
    table["probability"] = 0.9
    table["novelty"] = 0.5
    assert "use obs['scmedley_assigned']" in summarised(table, batch)[-1]
    assert summarised(table, batch)[1] == "  T: 100 cells, mean probability 0.90"
    table["assigned"] = pd.Categorical([keys.UNASSIGNED] * 100)
    assert summarised(table.assign(novelty=[1.0] * 4 + [0.5] * 96), batch)[1].endswith("(novel: 4)")
    assert "Unknown: b." in summarised(table, batch, "Unknown: b.")
    assert "many cells are unassigned" in summarised(table, batch)[-1]


def test_a_cell_of_the_map_lies_where_it_is():
    rng = np.random.default_rng(0)
    z, xy = rng.normal(size=(50, 3)), rng.normal(size=(50, 2))
    np.testing.assert_allclose(place(z[:5], z, xy), xy[:5], atol=1e-4)
    between = place((z[:1] + z[1:2]) / 2, z[:2], xy[:2])
    np.testing.assert_allclose(between, xy[:2].mean(axis=0)[None], atol=1e-5)


def test_embed_labels_new_cells_and_shows_them(capsys, tmp_path):
    shell = Shell(capsys)
    some_cells().write_h5ad(tmp_path / "cells.h5ad")
    run = tmp_path / "run"
    shell.well(
        *("fit", tmp_path / "cells.h5ad", "--batch", "batch", "--label", "cell_type", "--out", run),
        *("--quiet", *SMALL),
    )
    new = some_cells(90)
    new.obs["batch"] = new.obs["batch"].astype(str)
    new.write_h5ad(tmp_path / "new.h5ad")
    for name in ("first", "second"):
        ran = shell("embed", run, "--cells", tmp_path / "new.h5ad", "--out", tmp_path / f"{name}.h5ad")
        assert ran.code == 0
        assert all("no novelty above 0.99" in line for line in ran.err.splitlines())
        said = ran.out
        page = (tmp_path / f"{name}.html").read_text(encoding="utf-8")
        assert "90 cells embedded" in said
        assert "Assigned labels" in said
        assert "\nNext: " in said
        assert str(tmp_path / f"{name}.html") in said
        assert "<script" not in page
        assert "http" not in page.replace("http-equiv", "")
        assert page.count("<img ") == (0 if name == "first" else 2)  # a fit alone has no map
        if name == "first":
            assert "scmedley evaluate draws it" in page
            cells = ad.read_h5ad(run / "integrated.h5ad")
            sm.load(run / "model").embed(cells)
            cells.obsm[keys.umap(keys.FIXED)] = cells.obsm[keys.FIXED][:, :2]
            write_h5ad(cells, run / "integrated.h5ad")
    again = ad.read_h5ad(tmp_path / "second.h5ad")
    assert set(keys.TRANSFERRED.values()) <= set(again.obs)
    table = sm.load(run / "model").transfer(new)
    assert (again.obs["scmedley_assigned"].astype(str) == table["assigned"].astype(str)).all()
    new.obs["batch"] = "new"
    new.write_h5ad(tmp_path / "elsewhere.h5ad")
    arguments = ("embed", run, "--input", tmp_path / "elsewhere.h5ad", "--unknown")
    note = "The cells were read with the population mean (--unknown mean): novelty is weak there"
    assert note in shell(*arguments, "mean", "--out", tmp_path / "mean.h5ad").out
    assert note in (tmp_path / "mean.html").read_text(encoding="utf-8")
    arguments = (*arguments, "adapt")
    ran = shell(*arguments, "--out", tmp_path / "adapted.h5ad")
    assert ran.code == 0
    assert "Batch unknown to the model: 'new'. Their effects were learnt" in ran.out
    assert ran.err.count("no novelty above 0.99") == 1  # of two transfers
    assert "90 cells embedded" in ran.out
    assert np.isfinite(ad.read_h5ad(tmp_path / "adapted.h5ad").obsm[keys.RANDOM]).all()
    (tmp_path / "third.html").touch()
    error = shell("embed", run, "--input", tmp_path / "new.h5ad", "--out", tmp_path / "third.h5ad").error
    assert "third.html exists already" in error


def test_new_batches_are_learnt_from_similar_numbers_of_each_label():
    obs = pd.DataFrame({"batch": ["new"] * 130 + ["old"] * 10}, index=[f"c{i}" for i in range(140)])
    label = ["T"] * 90 + ["B"] * 25 + ["NK"] * 15 + ["T"] * 10

    class Stub:
        design = Design("batch", ("old",))
        reference = "some"

        def transfer(self, cells):
            return pd.DataFrame({"label": pd.Categorical(label)}, index=cells.obs.index)

        def adapt(self, cells):
            return cells

    class Cells:
        def __init__(self, rows):
            self.rows, self.obs = rows, obs.iloc[rows]

        def take(self, rows):
            return Cells(rows)

    rows = adapted(Stub(), Cells(np.arange(140))).rows
    assert pd.Series(np.array(label)[rows[rows < 130]]).value_counts().to_dict() == {
        "T": 25,
        "B": 25,
        "NK": 15,
    }
    assert (np.diff(rows) > 0).all()


def test_errors_of_transfer_are_not_hidden():
    def fail(_):
        raise ScmedleyError("wrong")

    cells = SimpleNamespace(obs=pd.DataFrame(index=["c1"]))
    model = SimpleNamespace(reference="some", transfer=fail)
    with pytest.raises(ScmedleyError, match="wrong"):
        transferred(model, cells)
    model.reference = None
    with pytest.warns(ScmedleyWarning, match="Fit it again"):
        assert transferred(model, cells).empty


def test_embed_without_a_reference_still_embeds(capsys, tmp_path):
    shell = Shell(capsys)
    some_cells().write_h5ad(tmp_path / "cells.h5ad")
    arguments = ("--batch", "batch", "--fixed", "X_mine", "--out", tmp_path / "run", "--quiet", *SMALL)
    shell.well("fit", tmp_path / "cells.h5ad", *arguments)
    said = shell("embed", tmp_path / "run", "--input", tmp_path / "cells.h5ad", "--out", tmp_path / "e.h5ad")
    assert said.code == 0
    assert "No labels and no novelty" in said.err
    assert not (tmp_path / "e.html").exists()
    assert keys.FIXED in ad.read_h5ad(tmp_path / "e.h5ad").obsm


def test_cells_without_values_are_unassigned(fitted):
    model, adata = fitted
    counts = adata.layers["counts"][:20].toarray()
    counts[:5] = 0
    counts[5:10, 1:] = 0
    counts[5:10, 0] = 1  # a single molecule
    query = ad.AnnData(counts, obs=adata.obs[:20], var=adata.var)
    with pytest.warns(ScmedleyWarning, match="5 cells have no value above 0"):
        table = model.transfer(query)
    assert (table["mapping_confidence"][:10] == 0).all()
    assert (table["mapping_confidence"][10:] > 0).all()
    assert (table["assigned"][:10] == keys.UNASSIGNED).all()


def test_embed_writes_both_files_or_none(capsys, tmp_path):
    shell, run = Shell(capsys), tmp_path / "run"
    cells = tmp_path / "cells.h5ad"
    some_cells().write_h5ad(cells)
    shell.well("fit", cells, "--batch", "batch", "--out", run, "--quiet", *SMALL)
    query = ("embed", run, "--cells", cells, "--out", tmp_path / "e.h5ad")
    whole = (run / "integrated.h5ad").read_bytes()
    (run / "integrated.h5ad").write_bytes(whole[:-100])  # the map of the page is in it
    assert "integrated.h5ad cannot be read" in shell(*query).err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cells.h5ad", "run"]
    (run / "integrated.h5ad").write_bytes(whole)
    assert shell(*query).code == 0  # the same command again
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cells.h5ad", "e.h5ad", "e.html", "run"]
    unnamed = some_cells()
    unnamed.obs["batch"] = unnamed.obs["batch"].astype(object)
    unnamed.obs.loc[unnamed.obs_names[:7], "batch"] = np.nan
    unnamed.write_h5ad(tmp_path / "unnamed.h5ad")
    query = ("embed", run, "--cells", tmp_path / "unnamed.h5ad", "--out", tmp_path / "u.h5ad")
    assert "7 cells have no batch" in shell(*query, "--unknown", "adapt").err
