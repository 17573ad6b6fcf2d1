"""Effects of a condition on the shares of labels."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from anndata import AnnData

from scmedley.errors import ScmedleyError, ScmedleyWarning
from scmedley.interpret import composition, condition_effects
from scmedley.interpret.composition import COLUMNS, PSEUDOCOUNT

KEYS = ("condition", "donor", "type")


def cells(n_labels: int = 5, n_donors: int = 8, change: float = 2.0, paired: bool = False, seed: int = 0):
    """Cells of which a label becomes more frequent by ``change`` (log2); two genes, each high in one label."""
    rng = np.random.default_rng(seed)
    rows = []
    for d in range(n_donors):
        share_K = rng.dirichlet(np.full(n_labels, 10.0))
        for condition in ("ctrl", "stim") if paired else (("ctrl", "stim")[d >= n_donors // 2],):
            mine_K = share_K.copy()
            mine_K[0] *= 2**change if condition == "stim" else 1
            n = rng.integers(150, 400)
            rows += [(f"d{d}", condition, f"t{k}") for k in rng.choice(n_labels, n, p=mine_K / mine_K.sum())]
    obs = pd.DataFrame(
        rows, columns=["donor", "condition", "type"], index=[f"c{i}" for i in range(len(rows))]
    )
    mean_NG = np.full((len(rows), 40), 3.0)
    mean_NG[(obs["type"] == "t0").to_numpy(), 0] = 40
    return AnnData(rng.poisson(mean_NG).astype(np.float32), obs.astype("category"))


def ratios(adata: AnnData) -> pd.DataFrame:
    n = pd.crosstab([adata.obs["donor"], adata.obs["condition"]], adata.obs["type"]).astype(float)
    n = n[n.sum(axis=1) > 0]
    size = n.sum(axis=1)
    logs = np.log2(n.add(PSEUDOCOUNT * size / size.mean(), axis=0))
    return logs.sub(logs.mean(axis=1), axis=0)


@pytest.mark.parametrize("paired", [True, False])
def test_it_is_the_regression_of_centred_log_ratios(paired):
    adata = cells(paired=paired)
    found = composition(adata, *KEYS)
    assert tuple(found.columns) == COLUMNS
    y = ratios(adata)
    samples = y.index.to_frame(index=False)
    donors = pd.get_dummies(samples["donor"].astype(str)) if paired else np.ones(len(samples))
    x = np.column_stack([donors, samples["condition"] == "stim"]).astype(float)
    for row in found.itertuples():
        there = sm.OLS(y[row.label].to_numpy(), x).fit()
        np.testing.assert_allclose(
            [row.effect, row.se, row.p], [there.params[-1], there.bse[-1], there.pvalues[-1]]
        )
    first = found.iloc[0]
    assert first["label"] == "t0"
    assert first["q"] < 0.05
    assert first["share"] > 2 * first["share_reference"]
    assert set(found["donors"]) == {8}
    assert found["cells"].sum() == adata.n_obs


def test_shares_of_each_sample_add_up():
    adata = cells()
    shares = pd.DataFrame(composition(adata, *KEYS).attrs["shares"])
    assert len(shares) == 8 * 5
    np.testing.assert_allclose(shares.groupby(["donor", "condition"])["share"].sum(), 1)
    by_hand = pd.crosstab(adata.obs["donor"], adata.obs["type"], normalize="index").stack()
    np.testing.assert_allclose(
        shares.set_index(["donor", "label"])["share"].sort_index(), by_hand.sort_index()
    )


def test_permuted_conditions_are_rarely_called():
    rng = np.random.default_rng(0)
    called = []
    for seed in range(10):
        adata = cells(12, 10, 0.0, seed=seed)
        own = dict(
            zip(adata.obs["donor"].cat.categories, rng.permutation(["a"] * 5 + ["b"] * 5), strict=True)
        )
        adata.obs["condition"] = adata.obs["donor"].astype(str).map(own)
        found = composition(adata, *KEYS)
        called.append((found["p"] < 0.05).mean())
        assert (found["df"] > 8).all()  # moderated: more than each label has
    assert np.mean(called) < 0.12


def test_composition_alone_gives_effects_on_all_cells():
    adata = cells(change=3.0)
    together = condition_effects(adata, "condition", "donor").set_index("gene").loc["0"]
    assert together["q"] < 0.05
    apart = condition_effects(adata, *KEYS).query("gene == '0'")
    assert apart["q"].min() > 0.05


def test_one_donor_in_a_group_has_no_test():
    adata = cells(n_donors=4)
    found = composition(adata[adata.obs["donor"] != "d3"].copy(), *KEYS)
    assert found["effect"].notna().all()
    assert found["p"].isna().all()
    assert found["reason"].str.startswith("1 donor in a group").all()


def test_a_continuous_condition_gives_slopes():
    adata = cells()
    adata.obs["age"] = adata.obs["donor"].astype(str).str[1:].astype(float)
    found = composition(adata, "age", "donor", "type")
    assert set(found["contrast"]) == {"age, per unit"}
    assert found["p"].notna().all()


def test_one_label_has_no_composition():
    adata = cells()
    with pytest.raises(ScmedleyError, match="needs two or more"):
        composition(adata[adata.obs["type"] == "t0"].copy(), *KEYS)
    with pytest.raises(ScmedleyError, match="min_donors=1"):
        composition(adata, *KEYS, min_donors=1)


def test_nothing_is_said_where_nothing_can_be():
    adata = cells()
    adata.obs["study"] = adata.obs["condition"].astype(str)
    found = composition(adata, *KEYS, nested_in="study")
    assert found["effect"].isna().all()
    assert found["reason"].str.startswith("confounded").all()
    with pytest.warns(ScmedleyWarning):
        condition_effects(adata, *KEYS, nested_in="study")
