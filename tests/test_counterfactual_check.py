"""The decoder here is x + effect of the batch, and so is the world: what the tables must say is known."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

from scmedley import datasets, keys
from scmedley.data.design import Design
from scmedley.data.gene_names import GeneNames
from scmedley.data.reader import Reader
from scmedley.data.scale import Scale
from scmedley.errors import ScmedleyError
from scmedley.interpret.check import (
    LIMITS,
    TOO_FEW,
    _ceiling,
    _gain_se,
    against_baseline,
    agreement,
    counterfactual_check,
    summarise,
)
from scmedley.interpret.shifts import batch_distances, gene_shifts
from scmedley.models.counterfactual import counterfactual
from scmedley.models.interval import Calibration
from scmedley.pp import log_normalised, prepare
from scmedley.pp.nulls import permute_batches

BATCHES, GENES = ("a", "b", "c"), 20
SPAN_G = np.linspace(0.5, 2.0, GENES, dtype=np.float32)
EFFECT_BG = np.random.default_rng(1).normal(0.3, 0.5, (3, GENES)).astype(np.float32)
CENTRED_BG = EFFECT_BG - EFFECT_BG.mean(0)
BASE_KG = np.random.default_rng(2).uniform(3, 6, (2, GENES)).astype(np.float32)


class Additive:
    """Encodes to x without the batch, adds ``strength`` times its effects; draws scatter by a tenth."""

    def __init__(self, effect_BG, strength=1.0):
        zero = np.zeros((1, GENES), np.float32)  # code -1: the population mean
        self.effect_BG = torch.as_tensor(np.concatenate([effect_BG, zero]) * strength)

    def encode(self, x_NG, b_N, draw=False):
        return x_NG

    def decode(self, z_NP, b_N, draw=False):
        return self.decode_output(self.decode_hidden(z_NP, b_N, draw), b_N, draw)

    def decode_hidden(self, z_NP, b_N, draw=False):
        return z_NP

    def decode_output(self, h_NH, b_N, draw=False):
        scatter = 1 + 0.1 * torch.randn(()) if draw else 1.0
        return h_NH + self.effect_BG[b_N] * scatter


def model(effect_BG=EFFECT_BG, strength=1.0):
    scale = Scale(np.zeros(GENES, np.float32), SPAN_G)
    reader = Reader(GeneNames(tuple(f"g{i}" for i in range(GENES))))
    return SimpleNamespace(
        batch_key="batch",
        design=Design("batch", BATCHES),
        genes=list(reader.genes.names),
        gene_names=reader.genes,
        scale=scale,
        device=torch.device("cpu"),
        settings=None,
        calibration=None,
        network=Additive(effect_BG / SPAN_G, strength),
        read=reader.read,
        reader=reader,
        encodes_as_target=False,
    )


def cells(label_of=("T", "B"), n=240, unseen=None):
    """Both labels in every batch, but for a pair in ``unseen``; a third of the cells held out."""
    batch_N, label_N = np.arange(n) % 3, np.arange(n) // 3 % 2
    x_NG = BASE_KG[label_N] + EFFECT_BG[batch_N]
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical(np.array(BATCHES)[batch_N]),
            "kind": pd.Categorical.from_codes(label_N, list(label_of)),
            keys.SPLIT: pd.Categorical(np.array(["train", "test"])[(np.arange(n) // 6 % 3 == 2) * 1]),
        },
        index=[f"cell{i}" for i in range(n)],
    )
    adata = AnnData(
        x_NG, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(GENES)]), layers={keys.LOGNORM: x_NG}
    )
    if unseen is not None:
        adata = adata[~((obs["batch"] == unseen[0]) & (obs["kind"] == unseen[1]))].copy()
    return adata


def test_shift_is_the_effect_in_log1p_units():
    table = gene_shifts(model(), cells(), "kind", draws=2, n_top=GENES)
    of_pair = [
        "size",
        "observed_size",
        "null_size",
        "null_sd",
        "n_cells",
        "n_observed",
        "observed_from",
        "seen",
    ]
    assert list(table.columns) == ["label", "batch", "gene", "shift", "q05", "q95", "observed", *of_pair]
    assert len(table) == 2 * 3 * GENES
    expected = [
        CENTRED_BG[BATCHES.index(b), int(g[1:])] for b, g in zip(table["batch"], table["gene"], strict=True)
    ]
    np.testing.assert_allclose(table["observed"], expected, atol=1e-5)
    assert table.groupby(["label", "gene"])["shift"].sum().abs().max() < 1e-4
    pairs = [table["label"], table["batch"]]
    for of, size in (("shift", "size"), ("observed", "observed_size")):
        rms = np.sqrt((table[of] ** 2).groupby(pairs).mean())
        np.testing.assert_allclose(table.groupby(["label", "batch"])[size].first(), rms, rtol=1e-5)
    assert set(table["n_observed"]) == {13}
    assert set(table["observed_from"]) == {"held-out cells"}
    drawn = table["shift"] / np.array(expected)  # two draws scatter, alike for every gene
    np.testing.assert_allclose(drawn, drawn.iloc[0], rtol=1e-2)  # float32: a mean of 100 cells, less another
    assert abs(drawn.iloc[0] - 1) < 0.3
    assert table["seen"].all()
    assert (table["n_cells"] == 100).all()


def test_shift_interval_spans_the_draws():
    table = gene_shifts(model(), cells(), "kind", draws=200, max_cells=5, n_top=GENES)
    width = (table["q95"] - table["q05"]) / table["shift"].abs()
    np.testing.assert_allclose(width, 2 * 1.645 * 0.1, rtol=0.2)
    assert ((table["q05"] <= table["shift"]) & (table["shift"] <= table["q95"])).all()
    assert (table["n_cells"] == 5).all()


def test_a_factor_makes_intervals_wider_about_the_same_middle():
    plain, wide = model(), model()
    wide.calibration = Calibration(2.0, 3, 30)
    one, other = (gene_shifts(m, cells(), "kind", draws=20, n_top=GENES) for m in (plain, wide))
    np.testing.assert_allclose(other["shift"], one["shift"])
    np.testing.assert_allclose(other["q95"] - other["q05"], 2 * (one["q95"] - one["q05"]), rtol=1e-4)


def test_distances_are_those_of_the_labels_that_all_batches_have():
    adata = cells(unseen=("b", "T"))
    shifts = gene_shifts(model(), adata, "kind", draws=200, n_top=GENES)
    found = batch_distances(shifts).set_index("batch")
    of_b = shifts[shifts["label"] == "B"].drop_duplicates("batch").set_index("batch")
    far = np.sqrt((CENTRED_BG**2).mean(1))  # of B alone
    order = [BATCHES[i] for i in np.argsort(-far)]
    assert list(found.index) == order
    np.testing.assert_allclose(found["observed"], sorted(far)[::-1], rtol=1e-4)
    np.testing.assert_allclose(found["distance"], sorted(far)[::-1], rtol=0.02)
    for name, column in (("null", "null_size"), ("null_sd", "null_sd")):
        np.testing.assert_allclose(found[name], of_b.loc[order, column])


def test_the_null_of_a_distance_is_that_of_permuted_batches():
    rng = np.random.default_rng(0)
    adata = cells(n=600)
    noise = rng.uniform(-1, 1, size=adata.shape).astype(np.float32)
    adata.layers[keys.LOGNORM] = adata.layers[keys.LOGNORM] + noise
    found = batch_distances(gene_shifts(model(), adata, "kind", draws=2))
    assert (found["observed"] > found["null"] + 5 * found["null_sd"]).all()
    adata.layers[keys.LOGNORM] = noise + 3  # nothing differs between batches
    shifts = gene_shifts(model(), adata, "kind", draws=2)
    found = batch_distances(shifts)
    assert (found["observed"] < found["null"] + 4 * found["null_sd"]).all()
    # The mean of n held-out cells, less the average of three such means: variance 1/(3n) (1 - 1/3).
    n_T = shifts.drop_duplicates(["label", "batch"])["n_observed"]
    assert set(n_T) <= {33, 34}
    np.testing.assert_allclose(found["null"], np.sqrt(2 / 3 / (3 * n_T.mean())), rtol=0.1)


def test_batches_without_a_common_label_have_no_distances():
    adata = cells(unseen=("b", "T"))
    adata = adata[~((adata.obs["batch"] == "a") & (adata.obs["kind"] == "B"))].copy()
    shifts = gene_shifts(model(), adata, "kind", draws=2, n_top=2)
    assert batch_distances(shifts).empty
    assert batch_distances(shifts[shifts["batch"] == "a"]).empty


def test_the_largest_shifts_are_kept_for_each_label_and_batch():
    table = gene_shifts(model(), cells(), "kind", draws=2, n_top=3)
    for i, batch in enumerate(BATCHES):
        for label in ("T", "B"):
            kept = table[(table["batch"] == batch) & (table["label"] == label)]
            assert [int(g[1:]) for g in kept["gene"]] == list(np.argsort(-np.abs(CENTRED_BG[i]))[:3])


def test_pairs_never_seen_are_flagged_and_not_checked():
    adata = cells(unseen=("b", "T"))
    shifts = gene_shifts(model(), adata, "kind", draws=2, n_top=GENES)
    of_t = shifts[shifts["label"] == "T"].set_index(["batch", "gene"])
    assert of_t.loc["b", "observed"].isna().all()
    # "b" has no part in the average of this label, and is measured from it all the same.
    average_G = (EFFECT_BG[0] + EFFECT_BG[2]) / 2
    for i, batch in enumerate(BATCHES):
        ratio = of_t.loc[batch, "shift"][[f"g{j}" for j in range(GENES)]] / (EFFECT_BG[i] - average_G)
        np.testing.assert_allclose(ratio, ratio.iloc[0], rtol=1e-2)
    shifts = gene_shifts(model(), adata, "kind", draws=2, n_top=1)
    assert list(zip(*shifts.loc[~shifts["seen"], ["label", "batch"]].to_numpy(), strict=True)) == [
        ("T",),
        ("b",),
    ]
    check = counterfactual_check(model(), adata, "kind")
    assert ("T", "b") not in set(zip(check["label"], check["batch"], strict=True))
    assert len(check) == 5


def test_a_label_of_one_batch_is_measured_from_all_batches():
    adata = cells()
    adata = adata[(adata.obs["kind"] == "B") | (adata.obs["batch"] == "a")].copy()
    of_t = gene_shifts(model(), adata, "kind", draws=2, n_top=GENES).query("label == 'T'")
    assert of_t["observed"].isna().all()
    assert of_t.groupby("gene")["shift"].sum().abs().max() < 1e-4
    assert (of_t.groupby("batch")["size"].first() > 0).all()


def test_agreement_is_judged_against_its_ceiling():
    columns = ["pearson", "ceiling_pearson", "best_wrong_pearson"]
    nan = np.nan
    no_baseline = {"additive_pearson": nan, "gain_se": nan}
    rows = {
        (0.72, 1.0, 0.3): "good",
        (0.36, 0.5, nan): "good",
        (0.72, 1.0, 0.65): "none",  # nearly as good for a wrong batch
        (0.72, 1.0, 0.6): "good",
        (0.4, 1.0, 0.35): "none",
        (0.36, 0.5, 0.32): "none",  # the margin is a share of the ceiling, too
        (0.4, 1.0, 0.0): "some",
        (0.2, 1.0, 0.0): "none",
        (0.49, 0.49, 0.0): TOO_FEW,  # what data without a shift may reach
        (nan, 1.0, 0.0): TOO_FEW,
        (0.5, nan, 0.0): TOO_FEW,
    }
    check = pd.DataFrame(list(rows), columns=columns).assign(**no_baseline)
    assert agreement(check).tolist() == list(rows.values())
    assert set(against_baseline(check)) == {""}


def test_what_is_worse_than_the_baseline_is_not_good():
    rows = {  # pearson, additive_pearson, standard error of their difference
        (0.8, 0.9, 0.01): ("some", "worse"),
        (0.8, 0.9, 0.06): ("good", "tie"),
        (0.8, 0.815, 0.001): ("good", "tie"),  # too small to matter, however sure
        (0.8, 0.7, 0.01): ("good", "better"),
        (0.8, 0.7, 0.06): ("good", "tie"),
        (0.8, 0.9, np.nan): ("some", "worse"),  # a table of an earlier version
        (0.1, 0.9, 0.01): ("none", "worse"),
        (0.46, 0.9, 0.01): ("some", "worse"),
        (0.44, 0.9, 0.01): ("none", "worse"),  # less than half
        (0.44, 0.9, 0.3): ("some", "tie"),
        (0.8, np.nan, np.nan): ("good", ""),
    }
    check = pd.DataFrame(list(rows), columns=["pearson", "additive_pearson", "gain_se"])
    check = check.assign(
        ceiling_pearson=1.0, best_wrong_pearson=0.0, slope=1.0, r2_delta=0.5, additive_r2_delta=0.5
    )
    assert list(zip(agreement(check), against_baseline(check), strict=True)) == list(rows.values())
    assert summarise(check).against == {"better": 1, "tie": 4, "worse": 5}
    assert summarise(check).n_shared == 0


def test_a_tie_is_within_the_noise_of_the_held_out_cells():
    """A prediction that differs from the baseline by noise ties; one of a part of the genes is worse."""
    rng = np.random.default_rng(0)
    adata = cells(n=600)
    adata.layers[keys.LOGNORM] = adata.layers[keys.LOGNORM] + rng.normal(0, 0.5, adata.shape).astype(
        np.float32
    )
    alike = EFFECT_BG + rng.normal(0, 0.02, EFFECT_BG.shape).astype(np.float32)
    assert set(against_baseline(counterfactual_check(model(alike), adata, "kind"))) == {"tie"}
    part = EFFECT_BG * (np.arange(GENES) % 3 > 0)
    check = counterfactual_check(model(part), adata, "kind")
    assert set(against_baseline(check)) == {"worse"}
    assert "good" not in set(agreement(check))
    assert (check["r2_delta"] < check["additive_r2_delta"]).all()
    # The standard error is that of drawing other cells: here of the same size in every pair.
    assert (check["gain_se"] > 0.001).all()
    assert (check["gain_se"] < 0.1).all()


@pytest.mark.parametrize("n_goal", [10, 60])
def test_the_standard_error_of_the_gain_is_its_scatter(n_goal):
    """Drawing the cells anew again and again: the mean standard error is the deviation of the gain."""
    rng = np.random.default_rng(0)
    shift_G = rng.normal(0, 0.2, 300)
    predicted_G, additive_G = (shift_G + rng.normal(0, sd, 300) for sd in (0.1, 0.2))
    goal, source = np.arange(n_goal), np.arange(n_goal, n_goal + 120)
    gains, errors = [], []
    for _ in range(150):
        x_NG = rng.normal(0, 1, (n_goal + 120, 300)).astype(np.float32)
        x_NG[goal] += shift_G
        observed_G = x_NG[goal].mean(0) - x_NG[source].mean(0)
        gains.append(np.corrcoef(predicted_G, observed_G)[0, 1] - np.corrcoef(additive_G, observed_G)[0, 1])
        errors.append(_gain_se(x_NG, goal, source, predicted_G, additive_G, rng))
    assert np.mean(errors) == pytest.approx(np.std(gains), rel=0.15)


def test_pairs_that_trained_are_called_seen():
    adata = cells()
    mine = (adata.obs["batch"] == "a") & (adata.obs["kind"] == "T") & (adata.obs[keys.SPLIT] == "train")
    check = counterfactual_check(model(), adata[~mine.to_numpy()].copy(), "kind").set_index(
        ["label", "batch"]
    )
    assert not check.loc[("T", "a"), "seen"]
    assert np.isnan(check.loc[("T", "a"), "additive_pearson"])
    assert check.drop(("T", "a"))["seen"].all()


def test_observed_means_are_of_held_out_cells_or_say_that_they_are_not():
    adata = cells()
    few = np.flatnonzero(
        (adata.obs["batch"] == "a") & (adata.obs["kind"] == "T") & (adata.obs[keys.SPLIT] == "test")
    )
    adata.obs.iloc[few[5:], adata.obs.columns.get_loc(keys.SPLIT)] = "train"
    train = (adata.obs[keys.SPLIT] == "train").to_numpy()
    adata.layers[keys.LOGNORM][train] += 1  # what a mean of held-out cells must not see
    shifts = gene_shifts(model(), adata, "kind", draws=2, n_top=GENES)
    pairs = shifts.drop_duplicates(["label", "batch"]).set_index(["label", "batch"])["observed_from"]
    # The average batch of "T" has training cells in it, so that no shift of "T" is of held-out cells alone.
    assert set(pairs["T"]) == {"all cells"}
    assert set(pairs["B"]) == {"held-out cells"}
    of_b = shifts[shifts["label"] == "B"]
    expected = [
        CENTRED_BG[BATCHES.index(b), int(g[1:])] for b, g in zip(of_b["batch"], of_b["gene"], strict=True)
    ]
    np.testing.assert_allclose(of_b["observed"], expected, atol=1e-5)
    far = batch_distances(shifts).set_index("batch")["observed_from"]
    assert set(far) == {"held-out and all cells"}
    del adata.obs[keys.SPLIT]
    assert set(gene_shifts(model(), adata, "kind", draws=2)["observed_from"]) == {"all cells"}


def _check(*words: str) -> pd.DataFrame:
    rows = {
        "good": (0.8, 0.9, 0.0),
        "some": (0.4, 0.9, 0.0),
        "none": (0.1, 0.9, 0.0),
        TOO_FEW: (0.9, 0.1, 0.8),
    }
    table = pd.DataFrame(
        [rows[w] for w in words], columns=["pearson", "ceiling_pearson", "best_wrong_pearson"]
    )
    none = dict.fromkeys(("additive_pearson", "gain_se", "r2_delta", "additive_r2_delta"), np.nan)
    return table.assign(slope=2.0, **none)


@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        (["good", "good", "some", "none"], "good"),
        (["good", "some", "none", "none"], "some"),
        (["good", "none", "none"], "none"),
        (["good", "good"], "good"),  # there are no more
        (["good", "good", TOO_FEW], TOO_FEW),
        (["good"] * 3 + [TOO_FEW] * 9, "good"),
        (["good"] * 3 + [TOO_FEW] * 10, TOO_FEW),
        ([TOO_FEW], TOO_FEW),
        ([], TOO_FEW),
    ],
)
def test_the_verdict_on_a_run(words, verdict):
    found = summarise(_check(*words))
    assert found.verdict == verdict
    assert found.tally == {word: words.count(word) for word in ("good", "some", "none", TOO_FEW)}
    assert found.n_judged == len(words) - words.count(TOO_FEW)


def test_pairs_that_another_batch_explains_are_counted():
    table = _check("good", "some", "none", TOO_FEW).set_axis([0, 0, 1, 1])  # an index may repeat
    assert summarise(table).n_shared == 0
    assert summarise(table.assign(best_wrong_pearson=[0.75, 0.39, 0.0, 0.8])).n_shared == 2


def test_medians_are_those_of_the_judged_pairs():
    found = summarise(_check("good", "some", TOO_FEW)).median
    assert found["pearson"] == pytest.approx(0.6)
    assert found["additive_pearson"] is None
    assert summarise(_check(TOO_FEW)).median["pearson"] is None


def test_without_a_shift_hardly_a_pair_is_judged():
    """Halves of real cells agree by luck, as genes go together: a ceiling must exceed that."""
    adata = datasets.hashing()
    prepare(adata, "batch", label_key="cell_type")
    x_NG, _ = log_normalised(adata, list(adata.var_names[adata.var[keys.HVG]]))
    held_out = (adata.obs[keys.SPLIT] == "test").to_numpy()
    ceilings = []
    for seed in range(4):
        permute_batches(adata, "batch", "cell_type", seed=seed)
        rng = np.random.default_rng(seed)
        for (_, batch), rows in adata.obs.groupby(
            ["cell_type", keys.PERMUTED], observed=True
        ).indices.items():
            same = (adata.obs["cell_type"] == adata.obs["cell_type"].iloc[rows[0]]).to_numpy()
            there = (adata.obs[keys.PERMUTED] == batch).to_numpy()
            goal, source = np.flatnonzero(same & there & held_out), np.flatnonzero(same & ~there & held_out)
            ceilings.append(_ceiling(x_NG, goal, source, rng))
    assert len(ceilings) == 48
    assert np.mean(np.array(ceilings) >= LIMITS["ceiling"]) < 0.05
    assert np.mean(np.array(ceilings) >= 0.3) > 0.05  # so that the limit matters


def test_missing_labels_are_left_out():
    adata = cells()
    adata.obs["kind"] = adata.obs["kind"].cat.remove_categories("B")
    for table in (gene_shifts(model(), adata, "kind", draws=2), counterfactual_check(model(), adata, "kind")):
        assert set(table["label"]) == {"T"}


def test_without_a_label_all_cells_are_one_group():
    for table in (gene_shifts(model(), cells(), draws=2), counterfactual_check(model(), cells())):
        assert set(table["label"]) == {"all cells"}


def test_right_predictions_agree_with_held_out_cells():
    check = counterfactual_check(model(), cells(), "kind")
    assert len(check) == 6
    np.testing.assert_allclose(check["pearson"], 1, atol=1e-5)
    np.testing.assert_allclose(check["slope"], 1, atol=1e-4)
    np.testing.assert_allclose(check["additive_pearson"], 1, atol=1e-5)
    assert (check["best_wrong_pearson"] < 0.9).all()
    # Predictions for the two wrong batches are opposite; their average would be 0.
    for batch, best in zip(check["batch"], check["best_wrong_pearson"], strict=True):
        own_G, one_G, other_G = EFFECT_BG[[BATCHES.index(b) for b in [batch, *sorted({*BATCHES} - {batch})]]]
        r = np.corrcoef(one_G - other_G, own_G - (one_G + other_G) / 2)[0, 1]
        assert best == pytest.approx(abs(r), abs=1e-4)
    assert (check["n_target"] * 2 == check["n_source"]).all()


def test_slope_tells_predictions_that_are_too_small():
    check = counterfactual_check(model(strength=0.3), cells(), "kind")
    np.testing.assert_allclose(check["pearson"], 1, atol=1e-5)
    np.testing.assert_allclose(check["slope"], 1 / 0.3, rtol=1e-3)


def test_effects_of_the_wrong_batches_agree_less_than_their_null():
    check = counterfactual_check(model(EFFECT_BG[[1, 2, 0]]), cells(), "kind")
    assert (check["pearson"] < 0.9).all()
    assert (check["best_wrong_pearson"] > check["pearson"]).mean() > 0.5


def test_a_model_without_effects_has_no_correlation():
    check = counterfactual_check(model(strength=0.0), cells(), "kind")
    assert check[["pearson", "best_wrong_pearson"]].isna().all(axis=None)
    assert check["slope"].isna().all()


def test_cells_without_a_difference_have_no_correlation():
    adata = cells()
    adata.layers[keys.LOGNORM] = np.ones(adata.shape, np.float32)
    check = counterfactual_check(model(), adata, "kind")
    assert check["pearson"].isna().all()
    assert (check["slope"] == 0).all()


@pytest.mark.parametrize(("least", "rows"), [(10, 6), (9, 0)])
def test_ten_held_out_cells_are_needed_on_each_side(least, rows):
    adata = cells()
    adata.obs[keys.SPLIT] = "train"
    for batch in BATCHES:
        for kind in ("T", "B"):
            mine = adata.obs_names[(adata.obs["batch"] == batch) & (adata.obs["kind"] == kind)]
            adata.obs.loc[mine[:least], keys.SPLIT] = "test"
    check = counterfactual_check(model(), adata, "kind")
    assert len(check) == rows
    assert list(check.columns[:4]) == ["label", "batch", "seen", "pearson"]


def test_same_seed_same_tables():
    one, two = (gene_shifts(model(), cells(), "kind", draws=3, max_cells=7, seed=4) for _ in range(2))
    pd.testing.assert_frame_equal(one, two)
    one, two = (counterfactual_check(model(), cells(), "kind", max_cells=15, seed=4) for _ in range(2))
    pd.testing.assert_frame_equal(one, two)


@pytest.mark.parametrize(
    ("name", "preset"), [("fixed", "default"), ("random", "default"), ("random", "paper")]
)
def test_shifts_are_those_of_the_counterfactuals(fitted, prepared, name, preset):
    model = fitted(name, preset)
    table = gene_shifts(model, prepared, "cell_type", draws=3, n_top=40, seed=5)
    mine = prepared[prepared.obs["cell_type"] == "NK"]
    batches = model.design.batches
    shown = counterfactual(model, mine, list(batches), draws=3, seed=5)
    mean_BG = np.stack([shown[shown.obs[keys.TARGET] == b].X.mean(0) for b in batches])
    assert table["seen"].all()
    for batch, shift_G in zip(batches, mean_BG - mean_BG.mean(0), strict=True):
        rows = table[(table["batch"] == batch) & (table["label"] == "NK")].set_index("gene")
        np.testing.assert_allclose(rows["shift"][model.genes], shift_G, atol=1e-5)


def test_batches_and_labels_of_any_type_are_found():
    adata, plain = cells(label_of=(" T ", "B")), cells()
    numbered = model()
    numbered.design = Design("batch", ("1", "2", "3"))
    adata.obs["batch"] = adata.obs["batch"].cat.codes + 1.0
    adata.obs["kind"] = adata.obs["kind"].astype(object).replace("B", " ")
    for one, other in (
        (gene_shifts(numbered, adata, "kind", draws=2), gene_shifts(model(), plain, "kind", draws=2)),
        (counterfactual_check(numbered, adata, "kind"), counterfactual_check(model(), plain, "kind")),
    ):
        assert set(one["label"]) == {"T"}
        assert set(one["batch"]) == {"1", "2", "3"}
        assert one.notna().all(axis=None)
        assert len(one) * 2 == len(other)


def test_batches_that_are_alike_are_not_wrong(monkeypatch):
    """The same condition in two donors: no prediction can be told from that for the other donor."""
    alike_BG = EFFECT_BG.copy()
    alike_BG[1] = alike_BG[0] + 0.01
    monkeypatch.setitem(globals(), "EFFECT_BG", alike_BG)
    check = counterfactual_check(model(alike_BG), cells(), "kind").set_index("batch")
    assert check.loc["a", "best_wrong_pearson"].max() < 0.5  # that for c, not that for b
    assert set(agreement(check.reset_index())) == {"good"}
    wrong = counterfactual_check(model(alike_BG[::-1].copy()), cells(), "kind").set_index("batch")
    assert wrong.loc["a", "best_wrong_pearson"].min() > wrong.loc["a", "pearson"].max()


def test_cells_without_their_split_cannot_be_checked():
    adata = cells()
    del adata.obs[keys.SPLIT]
    with pytest.raises(ScmedleyError, match="Pass the cells of the fit, with their split"):
        counterfactual_check(model(), adata, "kind")
