"""Held-out groups: each measure against an independent oracle, baselines against what they must give."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix
from scipy.stats import energy_distance as scipy_energy
from scipy.stats import norm
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from scmedley import keys
from scmedley.evaluate import counterfactual as ho
from scmedley.evaluate.counterfactual import BASELINES, CEILING, HeldOut
from scmedley.experiment.config import NULL, Experiment
from scmedley.experiment.pairs import finding, held_out_pair, verdicts


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a generator."""
    return np.random.default_rng(0)


def group(rng: np.random.Generator, n_genes: int = 60, n: int = 80) -> HeldOut:
    """Return source and target cells with a true change of the mean, and two wrong targets."""
    change_G = rng.normal(0, 1, n_genes)
    source, target = (rng.normal(2, 0.5, (n, n_genes)) for _ in range(2))
    wrong = 2 + rng.normal(0, 1, (2, n_genes))
    return HeldOut(source, target + change_G, wrong)


def test_a_perfect_prediction_and_no_change_have_the_values_they_must(rng: np.random.Generator) -> None:
    held = group(rng)
    perfect = ho.measure(held, held.change_G, held.target_MG)
    for name in ("pearson", "r2", "r2_weighted", "slope", "direction", "rank"):
        assert perfect[name] == pytest.approx(1), name
    assert perfect["n_targets"] == 3
    assert perfect["e_distance"] <= 0  # the very same cells; independent ones have 0 on average, see below
    none = ho.measure(held, np.zeros(60))
    assert (none["r2"], none["r2_weighted"], none["direction"]) == (0, 0, 0.5)
    assert np.isnan(none["pearson"])
    assert np.isnan(none["slope"])
    assert none["e_distance"] > 1
    rounded = ho.measure(
        held, 1e-9 * held.change_G
    )  # of sums in another order: no change, not a perfect direction
    assert np.isnan(rounded["pearson"])
    assert np.isnan(rounded["slope"])
    opposite = ho.measure(held, -held.change_G)
    assert opposite["r2"] == pytest.approx(-3)  # 1 - (2 Δ)² / Δ²
    assert opposite["direction"] == 0
    assert opposite["slope"] == pytest.approx(-1)
    assert all(np.isnan(value) for value in ho.measure(held, np.full(60, np.nan)).values())


def test_r2_and_slope_are_those_of_scikit_learn(rng: np.random.Generator) -> None:
    observed, predicted, weight = rng.normal(size=40), rng.normal(size=40), rng.uniform(size=40)
    # scikit-learn's reference is the mean of what is given: both signs of each gene have the mean 0.
    both, both_predicted = np.r_[observed, -observed], np.r_[predicted, -predicted]
    assert ho.r2_change(observed, predicted) == pytest.approx(r2_score(both, both_predicted))
    expected = r2_score(both, both_predicted, sample_weight=np.r_[weight, weight])
    assert ho.r2_change(observed, predicted, weight) == pytest.approx(expected)
    line = LinearRegression(fit_intercept=False).fit(predicted[:, None], observed)
    assert ho.slope(observed, predicted) == pytest.approx(line.coef_[0])
    assert ho.pearson(observed, predicted) == pytest.approx(np.corrcoef(observed, predicted)[0, 1])
    assert np.isnan(ho.r2_change(np.zeros(3), np.ones(3)))


def test_energy_distance_is_the_double_sum_and_that_of_scipy(rng: np.random.Generator) -> None:
    a, b = rng.normal(0, 1, (7, 3)), rng.normal(1, 1, (5, 3))
    between = np.mean([np.linalg.norm(x - y) for x in a for y in b])
    within = [
        np.mean([np.linalg.norm(x[i] - x[j]) for i in range(len(x)) for j in range(len(x)) if i != j])
        for x in (a, b)
    ]
    assert ho.energy_distance(a, b) == pytest.approx(2 * between - sum(within))
    # scipy's counts a cell's distance of 0 to itself, in 1D, and takes the root.
    one, other = a[:, :1], b[:, :1]
    counted = scipy_energy(one.ravel(), other.ravel()) ** 2
    own = sum(np.abs(x - x.T).sum() / (len(x) * (len(x) - 1)) - np.abs(x - x.T).mean() for x in (one, other))
    assert ho.energy_distance(one, other) == pytest.approx(counted - own)
    assert np.isnan(ho.energy_distance(a[:1], b))


def test_energy_distance_of_one_population_is_0_on_average_and_a_sample_does(
    rng: np.random.Generator,
) -> None:
    found = [ho.energy_distance(*rng.normal(size=(2, 40, 5))) for _ in range(200)]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(200)
    assert np.std(found) > 0
    a, b = rng.normal(0, 1, (900, 5)), rng.normal(0.7, 1, (900, 5))
    whole = ho.energy_distance(a, b, max_cells=900)
    assert ho.energy_distance(a, b, max_cells=300) == pytest.approx(whole, rel=0.2)


def test_reliability_says_how_surely_a_gene_changes(rng: np.random.Generator) -> None:
    source, target = rng.normal(0, 1, (50, 3)), rng.normal(0, 1, (80, 3))
    target[:, 0] += 5
    source[:, 2], target[:, 2] = 1, 1
    weight = ho.reliability(source, target)
    error = source[:, 1].var(ddof=1) / 50 + target[:, 1].var(ddof=1) / 80
    t = (target[:, 1].mean() - source[:, 1].mean()) / np.sqrt(error)
    assert weight[1] == pytest.approx(max(0, 1 - 1 / t**2))
    assert weight[0] > 0.98
    assert weight[2] == 0
    noise = ho.reliability(*rng.normal(0, 1, (2, 50, 2000)))
    # Of a gene of noise, t is standard normal: E max(0, 1 - 1 / t²) = 2 [P(Z > 1) - (φ(1) - P(Z > 1))].
    assert noise.mean() == pytest.approx(2 * (2 * norm.sf(1) - norm.pdf(1)), abs=0.02)


def test_direction_is_of_the_genes_that_change_most() -> None:
    observed, predicted = np.array([3.0, -2, 1, 0.1, 0]), np.array([1.0, 1, 0, -1, 1])
    assert ho.direction_accuracy(observed, predicted, n_top=1) == 1
    assert ho.direction_accuracy(observed, predicted, n_top=2) == 0.5
    assert ho.direction_accuracy(observed, predicted, n_top=3) == 0.5  # the third: half
    assert ho.direction_accuracy(observed, predicted, n_top=5) == pytest.approx(
        1.5 / 4
    )  # the fifth does not change
    assert np.isnan(ho.direction_accuracy(np.zeros(4), np.ones(4)))


def test_the_rank_counts_the_wrong_targets_that_are_nearer() -> None:
    wrong = np.array([[1.0, 0], [3, 0], [9, 0]])
    assert ho.target_rank(np.array([0.0, 0]), np.array([2.0, 0]), wrong) == 2
    assert ho.target_rank(np.array([2.0, 0]), np.array([2.0, 0]), wrong) == 1
    assert ho.target_rank(np.array([8.0, 0]), np.array([2.0, 0]), wrong) == 3  # 9 and 3 are nearer
    assert ho.target_rank(np.array([8.0, 0]), np.array([2.0, 0]), np.empty((0, 2))) == 1


def test_shifts_of_the_other_labels_by_hand() -> None:
    # Batches 0, 1 are sources with weights 3 : 1, batch 2 is held out for label 0; label 3 is in no source batch.
    counts = {
        (0, 0): 9,
        (1, 0): 3,
        (0, 1): 6,
        (1, 1): 5,
        (2, 1): 7,
        (0, 2): 5,
        (1, 2): 4,
        (2, 2): 8,
        (2, 3): 9,
    }
    counts |= {(2, -1): 5}
    batch, label = np.repeat(np.array(list(counts)), list(counts.values()), axis=0).T
    x = np.random.default_rng(1).poisson(2.0, (len(batch), 4)).astype(float)
    found, variance = ho.label_shifts(
        csr_matrix(x), batch, label, batch=2, label=0, weight_B=np.array([9.0, 3, 0])
    )

    def mean(b: int, k: int) -> np.ndarray:
        return x[(batch == b) & (label == k)].mean(axis=0)

    def noise(b: int, k: int) -> np.ndarray:
        return pd.DataFrame(x[(batch == b) & (label == k)]).sem().to_numpy() ** 2

    np.testing.assert_allclose(found[0], mean(2, 1) - 0.75 * mean(0, 1) - 0.25 * mean(1, 1))
    np.testing.assert_allclose(found[1], mean(2, 2) - mean(0, 2))  # 4 cells in batch 1 are too few
    np.testing.assert_allclose(variance[0], noise(2, 1) + 0.75**2 * noise(0, 1) + 0.25**2 * noise(1, 1))
    assert len(found) == 2
    alone, _ = ho.label_shifts(csr_matrix(x), batch, label, batch=2, label=0, weight_B=np.zeros(3))
    assert alone.shape == (0, 4)
    assert np.isnan(ho.shrunk(alone, alone)).all()


def test_shrinkage_is_the_conditional_mean_of_the_gaussian_model(rng: np.random.Generator) -> None:
    """Many genes, so that the moments are near the truth: the oracle conditions the joint Gaussian on all labels."""
    n_labels, n_genes, shared, own, noise = 4, 40_000, 0.5, 0.8, 0.3
    truth = rng.normal(0, np.sqrt(shared), n_genes)
    shifts = truth + rng.normal(0, np.sqrt(own + noise), (n_labels, n_genes))
    found = ho.shrunk(shifts, np.full_like(shifts, noise))
    covariance = shared + (own + noise) * np.eye(n_labels)
    oracle = np.full(n_labels, shared) @ np.linalg.solve(covariance, shifts)
    np.testing.assert_allclose(found, oracle, rtol=0.05)
    new = truth + rng.normal(0, np.sqrt(own), n_genes)  # the shift of a label that was not there
    assert np.mean((new - found) ** 2) < np.mean((new - shifts.mean(axis=0)) ** 2)


def test_shrinkage_at_its_ends(rng: np.random.Generator) -> None:
    same = np.tile(rng.normal(size=50), (3, 1))
    np.testing.assert_allclose(ho.shrunk(same, np.zeros_like(same)), same[0])  # labels agree, no noise
    noise = rng.normal(size=(3, 50)) * 0.1
    assert not ho.shrunk(noise, np.ones_like(noise)).any()  # no more than sampling gives
    one = rng.normal(0, 2, (1, 50))
    known = ho.shrunk(one, np.ones_like(one))
    assert (np.abs(known) < np.abs(one[0])).all()
    assert ho.shrunk(np.zeros((2, 5)), np.zeros((2, 5))).tolist() == [0] * 5


def test_baselines_find_an_additive_world_and_the_ceiling_is_above_them(rng: np.random.Generator) -> None:
    held = group(rng)
    true = held.change_G
    found = ho.baselines(held, np.stack([true, true]), np.zeros((2, 60)))
    assert tuple(found) == BASELINES
    for name in ("additive", "shrunk additive"):
        np.testing.assert_allclose(found[name], true)
    np.testing.assert_allclose(
        held.source_NG.mean(axis=0) + found["mean over batches"], held.other_TG.mean(axis=0)
    )
    top = ho.ceiling(held)
    assert 0.95 < top["r2"] < 1
    assert abs(top["e_distance"]) < 0.1
    assert top["rank"] == 1


def table(values: dict[str, list[float]]) -> pd.DataFrame:
    """Return predictions by method, one value of R²Δ a pair."""
    return pd.DataFrame(
        [{"method": m, "fold": i, "seed": 0, "r2": v} for m, r2 in values.items() for i, v in enumerate(r2)]
    )


@pytest.mark.parametrize(
    ("model", "verdict", "words"),
    [
        ([0.5, 0.6, 0.5, 0.6], "better", "FE is better than the best baseline, shrunk additive"),
        ([0.5, 0.1, 0.4, 0.4], "ties", "FE only ties with the best baseline, shrunk additive"),
        ([0.295, 0.395, 0.295, 0.395], "ties", "only ties"),
        ([0.3, 0.1, 0.4, 0.4], "worse", "FE is worse than the best baseline, shrunk additive"),
        ([0.9, 0.1, 0.1, 0.1], "worse", "better in 1 of 4 pairs"),
    ],
)
def test_a_model_is_good_only_where_the_best_baseline_is_not_better(
    model: list[float], verdict: str, words: str
) -> None:
    given = {
        "additive": [0.2, 0.3, 0.2, 0.3],
        "shrunk additive": [0.3, 0.4, 0.3, 0.4],
        "no change": [0.0] * 4,
    }
    given |= {CEILING: [0.9] * 4, NULL: [0.01] * 4, "FE": model}
    rows = verdicts(table(given)).set_index("method")
    assert rows.loc["FE", "verdict"] == verdict
    assert rows.loc[NULL, "verdict"] == "worse"
    said = finding(table(given))
    assert words in said
    assert "shrunk additive 0.35, additive 0.25, no change 0.00; half-split ceiling 0.90" in said
    assert f"{NULL} is" not in said  # a null is shown, not judged


def test_one_pair_proves_nothing() -> None:
    one = table({"FE": [0.9], "no change": [0.0]})
    assert verdicts(one)["verdict"].tolist() == ["one pair: no verdict"]
    assert "FE differs by 0.90 from the best baseline, no change (one pair: no verdict)." in finding(one)


def test_only_pairs_that_all_predict_are_compared() -> None:
    nan = float("nan")
    given = {"additive": [0.1, 0.1, nan, nan, 0.1], "shrunk additive": [0.2, 0.2, -0.9, -0.9, 0.2]}
    given |= {"mean over batches": [nan] * 5, "no change": [0.0] * 5, "FE": [0.4, 0.5, 0.1, 0.1, 0.3]}
    row = verdicts(table(given)).iloc[0]
    assert (row.baseline, row.n_pairs, row.n_better, row.verdict) == ("shrunk additive", 3, 3, "ties")
    assert row.difference == pytest.approx(0.2)
    said = finding(table(given))
    assert "for the 3 of 5 held-out pairs that all methods predict" in said
    assert "FE 0.40; shrunk additive 0.20, additive 0.10, no change 0.00." in said


def test_of_two_batches_the_mean_over_batches_is_no_change() -> None:
    """Also in float32, whose sums hang on their order."""
    obs = pd.DataFrame(
        {"batch": np.repeat(["a", "b"], 400), "label": np.tile(["k", "l"], 400)}, dtype="category"
    )
    x = np.random.default_rng(0).gamma(1.0, 1.0, (800, 30)).astype(np.float32)
    adata = AnnData(obs=obs.set_axis(map(str, obs.index)), layers={keys.LOGNORM: csr_matrix(x)})
    rows = np.flatnonzero((obs["batch"] == "a") & (obs["label"] == "k"))
    held = held_out_pair(adata, Experiment(name="x", data="x", label_key="label"), rows, 1, 0)
    found = ho.measure(held, ho.baselines(held, np.ones((1, 30)), np.ones((1, 30)))["mean over batches"])
    assert found["r2"] == 0
    assert np.isnan(found["slope"])
