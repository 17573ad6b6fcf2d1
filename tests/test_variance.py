"""Shares of variance by term: estimates against statsmodels' REML and against what was simulated."""

import warnings

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from anndata import AnnData
from numpy.testing import assert_allclose
from scipy.sparse import csr_matrix

import scmedley as sm
from scmedley import pl
from scmedley.data.terms import Terms
from scmedley.errors import ScmedleyError, heard
from scmedley.interpret.reml import Components, reml
from scmedley.interpret.variance import cross_products
from test_pl import drawn


def gaussian(
    n_studies: int, n_donors: int, n_cells: int, n_genes: int, sd: tuple[float, float]
) -> tuple[np.ndarray, pd.DataFrame]:
    """Values of cells of donors in studies, whose effects have these standard deviations; the residual's is 1."""
    rng = np.random.default_rng(0)
    study_D = np.repeat(np.arange(n_studies), n_donors)
    donor_N = np.repeat(np.arange(len(study_D)), rng.integers(n_cells // 2, 2 * n_cells, len(study_D)))
    y_NG = rng.normal(size=(len(donor_N), n_genes)) + 3
    y_NG += (sd[0] * rng.normal(size=(n_studies, n_genes)))[study_D[donor_N]]
    y_NG += (sd[1] * rng.normal(size=(len(study_D), n_genes)))[donor_N]
    obs = pd.DataFrame({"donor": donor_N % n_donors, "study": study_D[donor_N]}).astype(str)
    obs["dose"] = rng.normal(size=len(obs))
    return y_NG + 0.3 * obs[["dose"]].to_numpy(), obs


def fitted(y_NG: np.ndarray, obs: pd.DataFrame, formula: str) -> Components:
    data, _ = cross_products(y_NG, obs, Terms.of(formula, obs))
    ((_, found),) = reml(data)
    assert found.converged_G.all()
    return found


def test_variances_are_those_of_statsmodels() -> None:
    y_NG, obs = gaussian(6, 4, 12, 3, (0.8, 0.6))
    found = fitted(y_NG, obs, "~ dose + (1 | study/donor)")
    vc = {"donor": "0 + C(path)"}
    for g in range(3):
        table = obs.assign(y=y_NG[:, g], path=obs["study"] + obs["donor"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own optimiser
            model = smf.mixedlm("y ~ dose", table, groups="study", re_formula="1", vc_formula=vc)
            theirs = model.fit(method="powell")  # its default optimisers stop early for one of these
            assert theirs.converged
        expected = [theirs.cov_re.iloc[0, 0], theirs.vcomp[0], theirs.scale]
        assert_allclose([*found.random_GT[g], found.residual_G[g]], expected, rtol=0.01)


@pytest.mark.parametrize(("low", "usual", "named"), [(0.05, 0.4, True), (0.4, 0.4, False), (0.4, 0.05, True)])
def test_a_gene_that_crowds_out_the_others_is_named(low: float, usual: float, named: bool) -> None:
    """Also if it does so in the cells of one small donor alone, and its mean share is low."""
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {"donor": np.repeat(list("abcd"), [5, 25, 25, 25])}, index=[f"c{i}" for i in range(80)]
    )
    strong_N = np.where(obs["donor"] == "a", low, usual)
    x_NG = [rng.multinomial(2000, np.r_[strong, np.full(19, (1 - strong) / 19)]) for strong in strong_N]
    adata = AnnData(csr_matrix(np.array(x_NG, np.float32)), obs=obs)
    with heard() as said:
        sm.interpret.variance_split(adata, "~ (1 | donor)", progress=False)
    with heard() as also:
        sm.LinearMixed("~ (1 | donor)").fit(adata)
    for lines in (said, also):
        assert (
            any("The gene 0 has 5% to 40% of the counts, by level of donor" in line for line in lines)
            is named
        )


def test_variances_of_studies_and_donors_within_them() -> None:
    y_NG, obs = gaussian(12, 6, 8, 150, (0.5, 0.4))
    found = fitted(y_NG, obs, "~ dose + (1 | study/donor)")
    assert_allclose(found.random_GT.mean(0), [0.25, 0.16], rtol=0.1)
    assert found.residual_G.mean() == pytest.approx(1, rel=0.02)
    # Without any, most estimates of one of them are at 0, and none below.
    null = fitted(*gaussian(12, 6, 8, 150, (0, 0)), "~ (1 | study/donor)")
    assert (null.random_GT == 0).any(1).mean() > 0.5
    assert null.random_GT.min() == 0
    assert null.random_GT.mean() < 0.01


@pytest.fixture(scope="module")
def cells() -> AnnData:
    """Cells of 12 donors in two studies, and a gene that no cell expresses."""
    adata = sm.datasets.simulate(1500, 40, n_donors=12, condition_size=1.0, study_size=2.0, depth=4000)
    adata.X = csr_matrix(adata.X.toarray() * (np.arange(40) != 7))
    return adata


def split(cells: AnnData, formula: str, **options) -> pd.DataFrame:
    """Shares, without the warnings about few levels."""
    with heard():
        return sm.interpret.variance_split(cells, formula, progress=False, **options)


def test_shares_of_cells_with_known_effects(cells) -> None:
    formula = "~ (1 | cell_type) + (1 | condition) + (1 | study/donor)"
    with heard() as words:
        shares = sm.interpret.variance_split(cells, formula)
    assert sum(" levels (" in line for line in words) == 3
    assert "condition has 2 levels" in words[1]
    assert list(shares) == ["cell_type", "condition", "study", "study/donor", "residual"]
    assert shares.iloc[7].isna().all()
    shares = shares.dropna()
    assert_allclose(shares.sum(axis=1), 1)
    assert shares.to_numpy().min() >= 0
    assert shares.attrs["not_converged"] == []
    responds = cells.varm["condition"]["type0"] != 0
    assert shares["condition"][responds].mean() > 5 * shares["condition"][~responds].mean()
    assert shares["cell_type"].mean() > 0.1
    shuffled = cells.copy()
    for name in ("condition", "cell_type"):
        shuffled.obs[name] = np.random.default_rng(0).permutation(cells.obs[name])
    assert split(shuffled, formula)[["condition", "cell_type"]].mean().max() < 0.002


def test_shares_of_fixed_terms_are_those_of_least_squares(cells) -> None:
    shares = split(cells, "~ study + age + study:age", genes=["g3", "g5"])
    assert list(shares.index) == ["g3", "g5"]
    y_NG = np.log1p(10_000 * cells.X.toarray() / np.asarray(cells.X.sum(1)))[:, [3, 5]]
    study = pd.get_dummies(cells.obs["study"]).astype(float)
    x_NL = np.c_[study, study.mul(cells.obs["age"], axis=0)]
    left_NG = y_NG - x_NL @ np.linalg.lstsq(x_NL, y_NG, rcond=None)[0]
    residual_G = (left_NG**2).sum(0) / (len(y_NG) - 4)
    assert_allclose(shares["residual"], residual_G / (residual_G + (y_NG - left_NG).var(0)), rtol=1e-5)
    assert_allclose(shares.sum(axis=1), 1)


def test_averages_of_samples_have_less_residual(cells) -> None:
    formula = "~ (1 | condition) + (1 | donor)"
    by_cell, by_sample = split(cells, formula), split(cells, formula, by=["donor", "condition"])
    assert by_sample.attrs["observations"] == 24
    assert by_sample["residual"].mean() < by_cell["residual"].mean()
    with pytest.raises(ScmedleyError, match=r"obs\['condition'\] has several values in 12 of 12"):
        split(cells, formula, by=["donor"])


def test_what_cannot_be_split(cells) -> None:
    with pytest.raises(ScmedleyError, match="no gene 'none'"):
        split(cells, "~ (1 | donor)", genes=["none"])
    with pytest.raises(ScmedleyError, match="it is determined by donor"):
        split(cells, "~ donor + study")


def test_genes_of_one_name_and_no_variable_genes(cells) -> None:
    twice = cells.copy()
    twice.var_names = ["g0", *twice.var_names[:-1]]
    assert split(twice, "~ (1 | donor)").index[:2].tolist() == ["g0", "g0"]
    assert len(split(twice, "~ (1 | donor)", genes=["g0"])) == 1
    twice.var["highly_variable"] = False
    assert len(split(twice, "~ (1 | donor)")) == cells.n_vars


def test_figures_of_shares(cells) -> None:
    shares = split(cells, "~ (1 | cell_type) + (1 | condition) + (1 | study/donor)")
    figure = pl.variance_split(shares)
    drawn(figure)
    (ax,) = figure.axes
    terms = [text.get_text() for text in ax.get_xticklabels()]
    assert terms == [*shares.drop(columns="residual").mean().sort_values(ascending=False).index, "residual"]
    assert {text.get_text() for text in ax.texts} == set(shares.drop(columns="residual").idxmax())
    figure = pl.variance_genes(shares, ["condition", "study"], n_top=3)
    drawn(figure)
    (ax,) = figure.axes
    genes = [text.get_text() for text in ax.get_yticklabels()]
    assert genes[:3] == list(shares["condition"].nlargest(3).index)
    assert len(set(genes)) == 6
    ends = [sum(bar.get_width() for bar in bars) for bars in zip(*ax.containers, strict=True)]
    assert_allclose(ends, 1)
    with pytest.raises(ScmedleyError, match="no term 'sex'"):
        pl.variance_genes(shares, ["sex"])
    with pytest.raises(ScmedleyError, match="no gene with shares"):
        pl.variance_split(shares.iloc[[7]])
