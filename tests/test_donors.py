"""Groups of donors: the test is Welch's, on means of donors and not on cells."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from scipy.sparse import coo_matrix
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttest_ind

from scmedley.errors import ScmedleyError
from scmedley.evaluate import donor_test


def names(n: int) -> list[str]:
    return [f"g{i}" for i in range(n)]


def cells_of(means: np.ndarray, sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Cells of donors whose means are as given: noise that sums to 0 within each donor."""
    rng = np.random.default_rng(0)
    x, donor = [], []
    for i, (mean, n) in enumerate(zip(means, sizes, strict=True)):
        noise = rng.normal(size=(n, means.shape[1]))
        x.append(mean + noise - noise.mean(0))
        donor += [f"d{i}"] * n
    return np.vstack(x), np.array(donor)


@pytest.mark.parametrize("sparse", [False, True])
def test_donor_test_is_welchs_on_donor_means(sparse: bool) -> None:
    means = np.random.default_rng(1).normal(size=(7, 5))
    means[4:, 2] += 3
    means[:, 3] = 1.0  # no spread, but for rounding
    x, donor = cells_of(means, [3, 30, 5, 8, 4, 40, 6])
    x[:, 3] = 1.0
    group = np.where(np.isin(donor, ["d0", "d1", "d2", "d3"]), "well", "ill")
    table = donor_test(coo_matrix(x) if sparse else x, names(5), donor, group, ("well", "ill"), min_cells=3)
    kept = [0, 1, 2, 4]
    t, p, _ = ttest_ind(means[4:, kept], means[:4, kept], usevar="unequal")  # of statsmodels, not scipy
    tested = table.iloc[kept]
    assert_allclose(tested["t"], t, rtol=1e-6)
    assert_allclose(tested["p"], p, rtol=1e-6)
    assert_allclose(tested["q"], multipletests(p, method="fdr_bh")[1], rtol=1e-6)
    assert_allclose(tested["difference"], (means[4:] - means[:4].mean(0)).mean(0)[kept], rtol=1e-6)
    assert_allclose(tested["mean_1"], means[:4, kept].mean(0), atol=1e-9)
    assert table.loc[3, ["t", "p", "q"]].isna().all()
    assert set(table["n_1"]) == {4}
    assert set(table["n_2"]) == {3}
    assert list(table["gene"]) == names(5)


def test_donor_test_leaves_other_groups_out() -> None:
    means = np.random.default_rng(2).normal(size=(6, 3))
    x, donor = cells_of(means, [4] * 6)
    group = np.repeat(["a", "b", "c"], 8)
    table = donor_test(x, names(3), donor, group, ("c", "a"), min_cells=1)
    assert_allclose(table["difference"], means[:2].mean(0) - means[4:].mean(0))


def test_donor_test_holds_its_level_where_cells_do_not() -> None:
    """Donors differ, groups do not: a test on cells would find nearly every gene."""
    means = np.random.default_rng(3).normal(size=(12, 400))
    x, donor = cells_of(means, [50] * 12)
    group = np.repeat(["a", "b"], 300)
    table = donor_test(x, names(400), donor, group, ("a", "b"))
    of_cells = stats.ttest_ind(x[group == "b"], x[group == "a"], equal_var=False).pvalue
    assert (table["p"] < 0.05).mean() < 0.1 < 0.5 < (of_cells < 0.05).mean()
    assert (table["q"] < 0.05).sum() <= 2


def test_what_donor_test_cannot_do() -> None:
    x, donor = cells_of(np.zeros((4, 2)), [10] * 4)
    group = np.repeat(["a", "b"], 20)
    with pytest.raises(ScmedleyError, match="one donor and one group per row"):
        donor_test(x[1:], names(2), donor, group, ("a", "b"))
    with pytest.raises(ScmedleyError, match="one donor and one group per row"):
        donor_test(x, names(2), donor, group[1:], ("a", "b"))
    with pytest.raises(ScmedleyError, match="one donor and one group per row"):
        donor_test(x, names(3), donor, group, ("a", "b"))
    with pytest.raises(ScmedleyError, match="Group 'c' has 0 donors"):
        donor_test(x, names(2), donor, group, ("a", "c"))
    mixed = pd.Series(group).where(np.arange(40) != 0, "b").to_numpy()
    with pytest.raises(ScmedleyError, match="Donor 'd0' has cells of two groups"):
        donor_test(x, names(2), donor, mixed, ("a", "b"))
    with pytest.raises(ScmedleyError, match="Give two different groups"):
        donor_test(x, names(2), donor, group, ("a", "a"))
    x[3, 1] = np.nan
    with pytest.raises(ScmedleyError, match="Gene 'g1' has values that are not finite"):
        donor_test(x, names(2), donor, group, ("a", "b"))


def test_donor_test_leaves_donors_of_few_cells_out() -> None:
    means = np.random.default_rng(5).normal(size=(6, 3))
    x, donor = cells_of(means, [12, 9, 10, 30, 40, 2])
    group = np.where(np.isin(donor, ["d0", "d1", "d2"]), "a", "b")
    table = donor_test(x, names(3), donor, group, ("a", "b"))
    assert set(table["n_1"]) == {2}
    assert set(table["n_2"]) == {2}
    assert_allclose(table["mean_1"], means[[0, 2]].mean(0), atol=1e-9)
    with pytest.raises(ScmedleyError, match="Group 'a' has 1 donors with at least 11 cells"):
        donor_test(x, names(3), donor, group, ("a", "b"), min_cells=11)


def test_a_table_of_other_genes_is_refused() -> None:
    x, donor = cells_of(np.zeros((4, 2)), [10] * 4)
    table, group = pd.DataFrame(x, columns=["g1", "g0"]), np.repeat(["a", "b"], 20)
    with pytest.raises(ScmedleyError, match="are not the genes"):
        donor_test(table, names(2), donor, group, ("a", "b"))
    assert len(donor_test(table[names(2)], names(2), donor, group, ("a", "b"))) == 2


def test_donor_test_leaves_cells_without_donor_or_group_out() -> None:
    means = np.random.default_rng(4).normal(size=(5, 3))
    x, donor = cells_of(means, [4] * 5)
    group = np.repeat([0, 0, 1, 1, 1], 4)
    wanted = donor_test(x, names(3), donor, group, (0, 1), min_cells=4)
    donor = np.append(donor.astype(object), [None, "d0"])
    group = np.append(group.astype(object), [1, None])
    found = donor_test(np.vstack([x, x[:2]]), names(3), donor, group, (0, 1), min_cells=4)
    pd.testing.assert_frame_equal(found, wanted)
    assert set(found["n_2"]) == {3}
