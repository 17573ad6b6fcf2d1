"""Effects of a condition with donors as replicates."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats

from donors_in_groups import donors_in_groups
from scmedley.errors import ScmedleyError, ScmedleyWarning
from scmedley.interpret import composition, condition_effects
from scmedley.interpret.condition_effects import ALL_CELLS, COLUMNS, PRIOR, depths

KEYS = ("condition", "donor", "type")


def of(table: pd.DataFrame, label: str, contrast: str = "stim - ctrl") -> pd.DataFrame:
    """Return the rows of a label and contrast in the order of the genes."""
    rows = table[(table["label"] == label) & (table["contrast"] == contrast)].set_index("gene")
    return rows.loc[sorted(rows.index, key=lambda gene: int(gene[1:]))]


def pseudobulk(adata, label: str) -> tuple[pd.DataFrame, np.ndarray]:
    """Return samples and log2 counts per million, by hand."""
    mine = adata[adata.obs["type"] == label]
    counts = pd.DataFrame(mine.X.toarray().astype(float), columns=mine.var_names)
    groups = [mine.obs["donor"].astype(str).to_numpy(), mine.obs["condition"].astype(str).to_numpy()]
    sums = counts.groupby(groups).sum()
    size = sums.sum(axis=1).to_numpy()[:, None]
    return sums.index.to_frame(index=False, name=["donor", "condition"]), np.log2(
        1e6 * (sums.to_numpy() + PRIOR * size / size.mean()) / size
    )


@pytest.mark.parametrize("paired", [True, False])
def test_few_genes_give_the_plain_regression_of_statsmodels(paired):
    adata = donors_in_groups(6, 9, 3, paired=paired)  # too few genes for pooled variances and for weights
    found = condition_effects(adata, *KEYS)
    assert tuple(found.columns) == COLUMNS
    for label in ("A", "B"):
        samples, y_SG = pseudobulk(adata, label)
        x = np.column_stack([pd.get_dummies(samples["donor"]) if paired else np.ones(len(samples))])
        x = np.column_stack([x, samples["condition"] == "stim"]).astype(float)
        rows = of(found, label)
        for g, row in enumerate(rows.itertuples()):
            there = sm.OLS(y_SG[:, g], x).fit()
            known = [there.params[-1], there.bse[-1], there.tvalues[-1], there.df_resid, there.pvalues[-1]]
            np.testing.assert_allclose([row.effect, row.se, row.t, row.df, row.p], known, rtol=1e-6)
            np.testing.assert_allclose([row.q05, row.q95], there.conf_int(0.10)[-1], rtol=1e-6)
        np.testing.assert_allclose(rows["q"], stats.false_discovery_control(rows["p"]))
        assert set(rows["design"]) == {"paired" if paired else "groups"}
        assert set(rows["donors"]) == {6}
        assert (found.groupby("label")["p"].diff().dropna() >= 0).all()


def test_true_effects_are_found_in_their_label_and_intervals_cover_them():
    adata = donors_in_groups(6, 200, 20, paired=True, cells=(20, 100), change=1.5)
    found = condition_effects(adata, *KEYS)
    b = of(found, "B")
    truth = np.zeros(200)
    truth[:20] = 1.5 * np.where(np.arange(20) % 2, -1, 1)
    # Medians of ratios are not moved by 10 % of the genes.
    covered = (b["q05"] <= truth) & (truth <= b["q95"])
    assert 0.85 < covered.mean() < 0.96
    assert np.corrcoef(b["effect"], truth)[0, 1] > 0.85
    called = b["q"] < 0.05
    assert called[:20].sum() >= 14
    assert called[20:].sum() <= 3
    assert (of(found, "A")["q"] < 0.05).sum() <= 2


def test_p_values_are_uniform_where_nothing_differs():
    p = []
    designs = [(8, False, (20, 60)), (4, True, (20, 60)), (8, False, (5, 150)), (6, True, (20, 60))]
    for seed, (n, paired, cells) in enumerate(designs):
        adata = donors_in_groups(n, 400, paired=paired, cells=cells, seed=seed)
        if n == 6:  # mixed: two donors have one condition each
            lost = {"d0": "ctrl", "d1": "stim"}
            adata = adata[
                adata.obs["donor"].astype(str).map(lost) != adata.obs["condition"].astype(str)
            ].copy()
        p.append(condition_effects(adata, *KEYS)["p"].dropna())
        assert len(p[-1]) > 600
        assert stats.kstest(p[-1], "uniform").statistic < 0.08
    assert (pd.concat(p) < 0.05).mean() == pytest.approx(0.05, abs=0.025)


def test_shallow_samples_do_not_seem_to_express_more():
    adata = donors_in_groups(8, 300)
    shallow = adata.obs["condition"] == "stim"
    rng = np.random.default_rng(1)
    x = adata.X.toarray()
    x[shallow] = rng.binomial(x[shallow].astype(int), 0.2)
    adata.X = x
    assert abs(condition_effects(adata, *KEYS)["t"].mean()) < 0.15


def test_one_donor_in_a_group_gives_an_effect_without_a_test():
    adata = donors_in_groups(4, 30)
    adata = adata[adata.obs["donor"] != "d3"].copy()
    with pytest.warns(ScmedleyWarning, match="No test for 'A', 'B', stim - ctrl: 1 donor in a group"):
        found = condition_effects(adata, *KEYS)
    assert found["effect"].notna().all()
    assert found[["q05", "q95", "se", "t", "df", "p", "q"]].isna().all(axis=None)
    assert found["reason"].str.startswith("1 donor in a group (ctrl: 2, stim: 1)").all()
    assert found.groupby("label")["effect"].apply(lambda own: own.abs().is_monotonic_decreasing).all()
    adata = donors_in_groups(1, 30, paired=True)
    with pytest.warns(ScmedleyWarning, match="1 donor with both conditions"):
        found = condition_effects(adata, *KEYS)
    assert found["effect"].notna().all()
    assert found[["q05", "p", "influence"]].isna().all(axis=None)


def test_more_donors_can_be_demanded():
    with pytest.warns(ScmedleyWarning, match="a test needs 5"):
        assert condition_effects(donors_in_groups(8, 30), *KEYS, min_donors=5)["p"].isna().all()


def test_a_label_that_a_donor_lacks():
    adata = donors_in_groups(6, 30, paired=True)
    lost = (adata.obs["donor"] == "d2") & (adata.obs["type"] == "B") & (adata.obs["condition"] == "stim")
    gone = (adata.obs["donor"] == "d3") & (adata.obs["type"] == "B")
    found = condition_effects(adata[~(lost | gone)].copy(), *KEYS)
    rows = found.drop_duplicates("label").set_index("label")
    assert rows.loc["A", ["donors", "design"]].tolist() == [6, "paired"]
    assert rows.loc["B", ["donors", "design", "donors_by_level"]].tolist() == [5, "mixed", "ctrl: 5, stim: 4"]
    assert found["p"].notna().all()
    none = adata[~((adata.obs["type"] == "B") & (adata.obs["condition"] == "stim"))].copy()
    with pytest.warns(ScmedleyWarning, match="no donor has enough cells with 'stim'"):
        rows = of(condition_effects(none, *KEYS), "B")
    assert rows[["effect", "p"]].isna().all(axis=None)


def test_samples_of_few_cells_are_left_out():
    adata = donors_in_groups(6, 30, paired=True)
    few = (adata.obs["donor"] == "d0") & (adata.obs["condition"] == "ctrl") & (adata.obs["type"] == "A")
    kept = ~few | (few.cumsum() <= 4)
    found = condition_effects(adata[kept].copy(), *KEYS, min_cells=5)
    assert found.set_index("label").loc["A", "donors_by_level"].iloc[0] == "ctrl: 5, stim: 6"


def test_neither_the_order_of_cells_nor_the_kind_of_matrix_changes_anything():
    adata = donors_in_groups(6, 30, 3)
    first = condition_effects(adata, *KEYS)
    order = np.random.default_rng(0).permutation(adata.n_obs)
    mixed = adata[order].copy()
    mixed.X = mixed.X.toarray()
    pd.testing.assert_frame_equal(condition_effects(mixed, *KEYS), first)


def test_influence_names_the_donor_that_makes_an_effect():
    adata = donors_in_groups(8, 60)
    x = adata.X.toarray()
    rng = np.random.default_rng(0)
    x[:, 7] = rng.poisson(np.where(adata.obs["donor"] == "d6", 160, 5))
    adata.X = x
    row = of(condition_effects(adata, *KEYS), "A").loc["g7"]
    assert row["influential_donor"] == "d6"
    assert row["effect"] == pytest.approx(np.log2(32) / 4, abs=0.4)
    assert row["effect"] + row["influence"] == pytest.approx(0, abs=0.4)


def test_slopes_levels_and_references():
    adata = donors_in_groups(8, 30)
    dose = {f"d{d}": float(d % 4) for d in range(8)}
    adata.obs["dose"] = adata.obs["donor"].astype(str).map(dose)
    found = condition_effects(adata, "dose", "donor")
    assert set(found["label"]) == {ALL_CELLS}
    assert set(found["contrast"]) == {"dose, per unit"}
    as_levels = condition_effects(adata, "dose", "donor", reference="1")
    assert list(dict.fromkeys(as_levels["contrast"])) == ["0 - 1", "2 - 1", "3 - 1"]
    one, two = (
        of(condition_effects(adata, *KEYS), "A"),
        of(condition_effects(adata, *KEYS, reference="stim"), "A", "ctrl - stim"),
    )
    np.testing.assert_allclose(one["effect"], -two["effect"])
    # Per hundredth: a hundredth of the slope, and the same t.
    adata.obs["dose"] *= 100
    smaller = of(condition_effects(adata, "dose", "donor"), ALL_CELLS, "dose, per unit")
    found = of(found, ALL_CELLS, "dose, per unit")
    np.testing.assert_allclose(smaller["effect"] * 100, found["effect"])
    np.testing.assert_allclose(smaller["t"], found["t"])


def with_studies(confounded: bool):
    """Eight donors in two studies; each study has both conditions, or one."""
    adata = donors_in_groups(8, 40)
    place = adata.obs["donor"].astype(str).str[1:].astype(int)
    adata.obs["study"] = np.where(place >= 4 if confounded else place % 2, "two", "one")
    adata.obs["number"] = (place // 2).astype(str)  # the same name in both studies
    return adata


def test_donors_of_the_same_name_in_two_studies_are_two():
    with pytest.warns(ScmedleyWarning, match="the 4 names of .* count as 8 donors"):
        found = condition_effects(with_studies(False), "condition", "number", "type", nested_in="study")
    assert set(found["donors"]) == {8}
    assert set(found["design"]) == {"groups"}
    assert found["influential_donor"].str.match("(one|two)/[0-3]").all()


def test_a_condition_that_the_study_determines_has_no_effect():
    adata = with_studies(True)
    with pytest.warns(ScmedleyWarning, match="confounded: obs 'study' determines the condition"):
        found = condition_effects(adata, *KEYS, nested_in="study")
    assert found[["effect", "p"]].isna().all(axis=None)
    assert condition_effects(adata, *KEYS)["p"].notna().all()


def test_effects_are_adjusted_for_covariates():
    adata = donors_in_groups(8, 40)
    place = adata.obs["donor"].astype(str).str[1:].astype(int).to_numpy()
    adata.obs["age"] = np.array([1.0, 5, 3, 4, 6, 8, 5, 9])[place]
    x = adata.X.toarray()
    x[:, 0] = np.random.default_rng(0).poisson(2.0 ** adata.obs["age"].to_numpy())
    adata.X = x
    plain, adjusted = (of(condition_effects(adata, *KEYS, covariates=c), "A") for c in ((), ["age"]))
    assert plain.loc["g0", "effect"] > 2
    assert abs(adjusted.loc["g0", "effect"]) < 0.5
    # The age of donors that are compared with themselves says nothing more.
    paired = donors_in_groups(6, 40, paired=True)
    paired.obs["age"] = paired.obs["donor"].astype(str).str[1:].astype(float)
    one, two = (of(condition_effects(paired, *KEYS, covariates=c), "A") for c in ((), "age"))
    np.testing.assert_allclose(one["effect"], two["effect"])


def test_covariates_may_have_the_names_of_our_own_columns():
    adata = donors_in_groups(8, 40)
    place = adata.obs["donor"].astype(str).str[1:].astype(int).to_numpy()
    adata.obs["age"] = np.array([1.0, 5, 3, 4, 6, 8, 5, 9])[place]
    expected = condition_effects(adata, *KEYS, covariates=["age"])
    for name in ("donor", "condition", "cells"):
        adata.obs = adata.obs.rename(columns={KEYS[0]: "arm", KEYS[1]: "patient"})
        renamed = adata.copy()
        renamed.obs = renamed.obs.rename(columns={"age": name})
        found = condition_effects(renamed, "arm", "patient", KEYS[2], covariates=[name])
        pd.testing.assert_frame_equal(found, expected)


def test_rounding_errors_are_no_variance():
    adata = donors_in_groups(6, 5, paired=True, cells=(30, 30))
    x = np.full(adata.shape, 3.0)
    x[(adata.obs["condition"] == "stim").to_numpy(), 0] = 6
    adata.X = x
    found = condition_effects(adata, *KEYS)
    assert (found.loc[found["gene"] == "g0", "effect"] > 0.5).all()
    assert found[["q05", "q95", "p", "q"]].isna().all(axis=None)
    assert set(found["reason"]) == {"no variance"}
    assert set(composition(adata, *KEYS)["reason"]) == {"no variance"}


def test_genes_with_few_counts_are_not_tested():
    adata = donors_in_groups(6, 30)
    x = adata.X.toarray()
    x[:, 4] = 0
    x[0, 4] = 1
    adata.X = x
    rows = of(condition_effects(adata, *KEYS), "A")
    assert rows.loc["g4", "reason"] == "fewer than 5 counts in the mean sample"
    assert np.isnan(rows.loc["g4", ["t", "p", "q", "q05"]].to_numpy(float)).all()
    assert rows["p"].notna().sum() == 29


def test_median_ratios_are_not_moved_by_a_few_strong_genes():
    rng = np.random.default_rng(0)
    count_SG = rng.poisson(100 * rng.lognormal(0, 0.3, 100), (6, 100)).astype(float)
    count_SG[:3, :3] *= 100
    size_S = depths(count_SG, count_SG.sum(1))
    assert np.ptp(np.log(size_S)) < 0.15
    assert np.ptp(np.log(count_SG.sum(1))) > 1
    few_SG = count_SG[:, :40]
    np.testing.assert_array_equal(depths(few_SG, few_SG.sum(1)), few_SG.sum(1))


def test_given_totals_are_the_depths():
    """A panel most of whose genes fall: the middle gene hides it, counts over all genes do not."""
    adata = donors_in_groups(4, 100, paired=True, cells=(40, 60))
    stim = (adata.obs["condition"] == "stim").to_numpy()
    total_N = np.asarray(adata.X.sum(1)).ravel() + 1000.0
    rng = np.random.default_rng(0)
    x_NG = adata.X.toarray()
    x_NG[np.ix_(stim, np.arange(80))] = rng.binomial(x_NG[np.ix_(stim, np.arange(80))].astype(int), 0.5)
    adata.X, adata.obs["n_umi"] = x_NG, total_N
    fallen = [f"g{g}" for g in range(80)]
    alone, given = (
        of(condition_effects(adata, *KEYS, total_key=key), "A").loc[fallen, "effect"].median()
        for key in (None, "n_umi")
    )
    assert abs(alone) < 0.3
    assert given == pytest.approx(-1, abs=0.2)
    adata.obs["n_umi"] = 3.0
    for wrong_N in (adata.obs["n_umi"], np.where(np.arange(adata.n_obs) == 1, np.inf, total_N)):
        adata.obs["n_umi"] = wrong_N
        with pytest.raises(ScmedleyError, match="less than the counts of the genes of the file"):
            condition_effects(adata, *KEYS, total_key="n_umi")
    with pytest.raises(ScmedleyError, match="holds no numbers"):
        condition_effects(adata, *KEYS, total_key="donor")


def test_what_cannot_be_asked():
    adata = donors_in_groups(4, 10)
    with pytest.raises(ScmedleyError, match="condition key 'conditon' is not a column of obs"):
        condition_effects(adata, "conditon", "donor")
    with pytest.raises(ScmedleyError, match="'donor' has two roles"):
        condition_effects(adata, "condition", "donor", covariates=["donor"])
    with pytest.raises(ScmedleyError, match="reference 'x' is no level"):
        condition_effects(adata, *KEYS, reference="x")
    with pytest.raises(ScmedleyError, match="min_donors=1"):
        condition_effects(adata, *KEYS, min_donors=1)
    adata.obs["half"] = np.where(np.arange(adata.n_obs) % 2, "a", "b")
    with pytest.raises(ScmedleyError, match=r"obs\['half'\] has several values in the cells of donor 'd0'"):
        condition_effects(adata, *KEYS, covariates=["half"])
    with pytest.raises(ScmedleyError, match="different value"):
        condition_effects(adata[adata.obs["condition"] == "ctrl"].copy(), *KEYS)


def test_samples_that_are_given_as_donors_are_noticed():
    adata = donors_in_groups(4, 30, paired=True)
    adata.obs["sample"] = adata.obs["donor"].astype(str) + adata.obs["condition"].astype(str)
    adata.obs["age"] = adata.obs["donor"].astype(str).str[1:].astype(int) + 40
    with pytest.warns(
        ScmedleyWarning, match=r"obs\['sample'\] has one condition, and is a level of obs\['donor'\]"
    ):
        condition_effects(adata, "condition", "sample", "type")
    condition_effects(adata, *KEYS)  # no warning, which would be an error here
    condition_effects(donors_in_groups(6, 30), *KEYS)


def test_missing_values_are_left_out_with_a_warning():
    adata = donors_in_groups(8, 30)
    adata.obs.loc[adata.obs_names[:5], "donor"] = np.nan
    with pytest.warns(ScmedleyWarning, match=r"left out \(donor: 5\)"):
        found = condition_effects(adata, *KEYS)
    pd.testing.assert_frame_equal(found, condition_effects(adata[5:].copy(), *KEYS))


def test_log_normalised_values_work_with_a_warning():
    adata = donors_in_groups(6, 60, 6, paired=True)
    counts = condition_effects(adata, *KEYS)
    x = adata.X.toarray()
    adata.X = np.log1p(1e4 * x / x.sum(1, keepdims=True)).astype(np.float32)
    with pytest.warns(ScmedleyWarning, match="no counts: samples are means"):
        logs = condition_effects(adata, *KEYS)
    assert np.corrcoef(of(counts, "B")["effect"], of(logs, "B")["effect"])[0, 1] > 0.95
