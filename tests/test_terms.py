"""Terms of designs: formulas, levels, rows, and targets by level."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from scmedley import keys
from scmedley.data.design import Design
from scmedley.data.factors import Factors
from scmedley.data.terms import Terms, formula_of
from scmedley.errors import ScmedleyError

FULL = "~ condition + age + (1 | study/donor) + (condition | donor)"


@pytest.fixture
def obs() -> pd.DataFrame:
    """Donors 1 and 2 of study a, and donors 1 and 2 of study b, which are others; two conditions each."""
    return pd.DataFrame(
        {
            "condition": ["c", "s"] * 4,
            "donor": list("11221122"),
            "study": list("aaaabbbb"),
            "age": [20.0, 20, 30, 30, 40, 40, 50, 50],
        },
        index=[f"cell{i}" for i in range(8)],
    )


def learnt(obs: pd.DataFrame, formula: str = FULL) -> Terms:
    return Terms.of(formula, obs)


def test_a_formula_is_terms_with_their_levels(obs) -> None:
    found = {term.name: (term.random, term.levels) for term in learnt(obs).terms}
    donors = ("a/1", "a/2", "b/1", "b/2")
    assert found == {
        "condition": (False, ("c", "s")),
        "age": (False, ("age",)),
        "study": (True, ("a", "b")),
        "study/donor": (True, donors),
        "study/donor:condition": (True, tuple(f"{d}:{c}" for d in donors for c in "cs")),
    }


def test_plain_arguments_are_the_same_design(obs) -> None:
    formula = formula_of("donor", "study", ["condition", "age"], ["condition"])
    written = learnt(obs, "~ condition + age + (1 | study/donor) + (condition | study/donor)")
    assert learnt(obs, formula).terms == written.terms
    assert "study:condition" in [term.name for term in written.terms]


def test_donors_of_the_same_name_in_two_studies_are_two(obs) -> None:
    level_NT, _ = learnt(obs).rows(obs)
    nested = [term.name for term in learnt(obs).terms].index("study/donor")
    assert level_NT[:, nested].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_the_matrix_by_hand(obs) -> None:
    terms = learnt(obs, "~ age + (age | donor)")
    assert [term.name for term in terms.terms] == ["age", "donor", "age | donor"]
    age_N = (obs["age"].to_numpy() - 35) / obs["age"].to_numpy().std()
    one_hot = (obs["donor"].to_numpy()[:, None] == ["1", "2"]).astype(float)
    expected = np.hstack([age_N[:, None], one_hot, one_hot * age_N[:, None]])
    assert_allclose(terms.matrix(*terms.rows(obs)).toarray(), expected)


def test_values_with_slashes_and_colons_stay_apart(obs) -> None:
    obs["donor"] = ["x/y", "x/y", "x:y", "x:y", "x/y", "x/y", "x:y", "x:y"]
    terms = learnt(obs)
    assert terms.values_of("donor") == ("x/y", "x:y")
    assert terms.values_of("condition") == ("c", "s")
    level_NT, _ = terms.rows(terms.targeted(obs, {"donor": "a/x/y"}))
    assert (level_NT[:, 3] == 0).all()


def test_two_levels_of_one_name_are_refused() -> None:
    obs = pd.DataFrame({"study": ["a", "a/b"], "donor": ["b/c", "c"]})
    with pytest.raises(ScmedleyError, match=r"same name 'a/b/c'.*Rename"):
        learnt(obs, "~ (1 | study/donor)")
    obs = pd.DataFrame({"x": ["a · b", "a"], "y": ["c", "b · c"]})
    with pytest.raises(
        ScmedleyError, match="combinations of the columns of the design have the name 'a · b · c'"
    ):
        Design.of_terms(obs, learnt(obs, "~ (1 | x) + (1 | y)"), keys.BATCH)


def test_renaming_levels_renames_and_changes_nothing_else(obs) -> None:
    other = obs.assign(donor=pd.Categorical(obs["donor"]).rename_categories({"1": "zoe", "2": "adam"}))
    mine, theirs = learnt(obs), learnt(other)
    assert theirs.terms[3].levels == ("a/zoe", "a/adam", "b/zoe", "b/adam")
    for one, two in zip(mine.rows(obs), theirs.rows(other), strict=True):
        assert_array_equal(one, two)


def test_permuting_levels_permutes_the_matrix(obs) -> None:
    order = [1, 0]
    other = obs.assign(condition=pd.Categorical(obs["condition"], categories=["s", "c"]))
    formula = "~ condition + (1 | donor)"
    mine, theirs = learnt(obs, formula), learnt(other, formula)
    one, two = (t.matrix(*t.rows(o)).toarray() for t, o in ((mine, obs), (theirs, other)))
    assert_array_equal(one[:, [*order, 2, 3]], two)


def test_unknown_levels_are_the_population_mean(obs) -> None:
    new = pd.DataFrame(
        {"condition": ["s", "x"], "donor": ["9", "1"], "study": ["a", "b"], "age": [35.0, np.nan]}
    )
    level_NT, value_NT = learnt(obs).rows(new)
    assert_array_equal(level_NT, [[1, 0, 0, -1, -1], [-1, -1, 1, 2, -1]])
    assert_array_equal(value_NT, [[1, 0, 1, 0, 0], [0, 0, 1, 1, 0]])
    assert learnt(obs).unknown(level_NT).tolist() == [True, True]


def test_new_levels_come_after_the_known_ones(obs) -> None:
    terms = learnt(obs)
    more = obs.iloc[:2].assign(donor="0", condition=["c", "new"])
    extended = terms.extended(more)
    assert extended.terms[3].levels == (*terms.terms[3].levels, "a/0")
    assert extended.terms[0].levels == ("c", "s", "new")
    assert extended.first(terms.sizes) == terms
    for one, two in zip(terms.rows(obs), extended.rows(obs), strict=True):
        assert_array_equal(one, two)


def test_targets_keep_the_other_levels(obs) -> None:
    terms = learnt(obs)
    there = terms.targeted(obs, {"condition": "s"})
    assert (there["condition"] == "s").all()
    pd.testing.assert_frame_equal(there.drop(columns="condition"), obs[list(there)].drop(columns="condition"))
    own = terms.rows(terms.targeted(obs, {"donor": "mean"}))[0]
    assert (own[:, 3:] == -1).all()
    assert (own[:, :3] >= 0).all()


def test_a_nested_target_takes_its_study_along(obs) -> None:
    obs["donor"] = list("11223344")
    there = learnt(obs).targeted(obs, {"donor": "3"})
    assert (there["study"] == "b").all()
    both = learnt(obs).targeted(obs, {"study": "b", "donor": 4})
    assert learnt(obs).terms[3].levels[learnt(obs).rows(both)[0][0, 3]] == "b/4"
    with pytest.raises(ScmedleyError, match=r"'3' in \{'study': 'a'\}"):
        learnt(obs).targeted(obs, {"study": "a", "donor": "3"})


def test_an_ambiguous_donor_needs_its_path(obs) -> None:
    with pytest.raises(ScmedleyError, match="several donor '1': 'a/1', 'b/1'"):
        learnt(obs).targeted(obs, {"donor": "1"})


def test_another_study_has_no_donor_of_the_same_name(obs) -> None:
    """Donor 1 of study b is not donor 1 of study a; cells that stay in their study keep their donor."""
    level_NT, _ = learnt(obs).rows(learnt(obs).targeted(obs, {"study": "b"}))
    assert level_NT[:, 2].tolist() == [1] * 8
    assert level_NT[:, 3].tolist() == [-1] * 4 + [2, 2, 3, 3]


@pytest.mark.parametrize(
    ("to", "says"),
    [
        ({"sex": "f"}, "no column 'sex'"),
        ({"condition": "x"}, "No cell of the fit has condition = 'x'. Choose 'mean'.*model.adapt"),
        ({"age": "old"}, "continuous, so it needs a number"),
    ],
)
def test_unknown_targets(obs, to, says) -> None:
    with pytest.raises(ScmedleyError, match=says):
        learnt(obs).targeted(obs, to)


@pytest.mark.parametrize(
    ("formula", "says"),
    [
        ("gene ~ condition", "must begin with '~'"),
        ("~ (1 |", "cannot be read"),
        ("~ sex + (1 | donor)", "not a column of obs"),
        ("~ log(age) + (1 | donor)", "Compute it as a column"),
        ("~ condition donor", "missing before 'donor', such as a '\\+'"),
        ("~ condition %in% donor", "cannot be read"),
        ("~ condition ~ donor", "more than one '~'"),
        ("~ condition[s] + (1 | donor)", "Compute it as a column"),
        ("~ constant + (1 | donor)", "All cells have constant = 1"),
        ("~ age ~ condition", "more than one '~'"),
        ("~ age % 2", "missing before '%'"),
        ("~ huge", "too large to compute with"),
        ("~ gap + (1 | donor)", r"1 of 8 cells have no value in obs\['gap'\]"),
    ],
)
def test_formulas_that_cannot_be_used(obs, formula, says) -> None:
    obs["constant"], obs["gap"] = 1.0, ["x"] * 7 + [None]
    obs["huge"] = obs["age"] * 1e300
    with pytest.raises(ScmedleyError, match=says):
        learnt(obs, formula)


def test_two_columns_of_one_name(obs) -> None:
    twice = pd.concat([obs, obs[["condition"]]], axis=1)
    with pytest.raises(ScmedleyError, match="several columns 'condition'"):
        learnt(twice)


def test_factors_of_one_column() -> None:
    assert Factors.of("donor") == Factors("donor")
    assert Factors.of("~ (1 | donor)").batch_key == "donor"
    assert not Factors.of("~ (1 | donor)").formula
    kept = Factors.of("~ condition + (condition | donor)", keep=["condition"])
    assert (kept.batch_key, kept.formula) == ("donor", "")
    assert Factors.of("donor", covariates="condition").formula == "~ condition + (1 | donor)"


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"batch_key": "~ condition + (1 | donor)", "keep": ["age"]}, "keep names 'age'"),
        ({"batch_key": "~ (1 | donor)", "keep": ["donor"]}, "leaves no term"),
        ({"batch_key": "~ (1 | donor)", "covariates": ["age"]}, "either a formula or a column"),
        ({"batch_key": None, "covariates": ["age"]}, "need batch_key"),
        ({"batch_key": "donor", "covariates": ["donor"]}, "in two roles"),
        ({"batch_key": "donor", "nested_in": "study", "covariates": ["study"]}, "in two roles"),
        ({"batch_key": "~ scmedley_batch + (1 | donor)"}, "Rename this column"),
    ],
)
def test_arguments_that_exclude_each_other(asked, says) -> None:
    with pytest.raises(ScmedleyError, match=says):
        Factors.of(**asked)


def test_too_many_combinations() -> None:
    obs = pd.DataFrame({"donor": ["a", "b"] * 1001, "age": np.linspace(0, 1, 2002)})
    with pytest.raises(ScmedleyError, match=r"2,002 different combinations; at most 2,000.*bin it"):
        Design.of_terms(obs, learnt(obs, "~ age + (1 | donor)"), keys.BATCH)


def test_combinations_and_their_codes(obs) -> None:
    design = Design.of_terms(obs, learnt(obs), keys.BATCH)
    assert design.batches[:2] == ("a/1 · c · age 20", "a/2 · c · age 30")
    assert_array_equal(design.names(obs), np.take(design.batches, design.codes(obs)))
    matrix_BL, term_L = design.matrix()
    assert_allclose(
        matrix_BL[design.codes(obs)], design.terms.matrix(*design.terms.rows(obs)).toarray(), rtol=1e-6
    )
    assert term_L.tolist() == [-1] * 3 + [2] * 2 + [3] * 4 + [4] * 8


def test_a_bar_in_the_name_of_a_column_is_no_formula() -> None:
    assert Factors.of("sample|lane") == Factors("sample|lane")
    assert Factors.of("(1 | donor)").batch_key == "donor"


def test_new_combinations_have_levels_of_their_own_terms(obs) -> None:
    design = Design.of_terms(obs.iloc[:-1], learnt(obs.iloc[:-1]), keys.BATCH)
    there = obs.iloc[-2:].assign(donor=["2", "9"])
    wider = design.seeing(pd.concat([there.assign(condition="s"), there.assign(condition="new")]))
    names = {term.name: term.levels for term in wider.terms.terms}
    assert names["study/donor"] == ("a/1", "a/2", "b/1", "b/2")
    assert names["study/donor:condition"][-2:] == ("b/2:c", "b/2:s")
    assert wider.trained() == design


def test_an_unseen_combination_of_known_levels(obs) -> None:
    design = Design.of_terms(obs.iloc[:-1], learnt(obs), keys.BATCH)
    assert design.codes(obs)[-1] == -1
    wider = design.seeing(obs)
    assert wider.codes(obs)[-1] == design.n_batches
    assert (wider.n_adapted, wider.trained().batches) == (1, design.batches)
    assert design.seeing(obs.iloc[:-1]) is design
    with pytest.raises(ScmedleyError, match="does not know the batches of these cells: 1 cells"):
        design.known_codes(obs.assign(donor=[*"1122112", "9"]))


def test_new_levels_may_be_targets(obs) -> None:
    obs["donor"] = list("11223344")
    terms = learnt(obs)
    assert set(
        terms.targeted(obs, {"donor": "c/9"}, new=True)[["study", "donor"]].itertuples(index=False)
    ) == {("c", "9")}
    known = terms.targeted(obs, {"donor": "3"}, new=True)  # a known donor takes its study along
    assert known.equals(terms.targeted(obs, {"donor": "3"}))
    with pytest.raises(ScmedleyError, match="No cell of the fit has donor = '9'"):
        terms.targeted(obs, {"donor": "9"})


def test_a_fixed_factor_may_have_slopes(obs) -> None:
    terms = learnt(obs, "~ condition + (age | condition)").terms
    assert [(term.name, term.random) for term in terms] == [("condition", False), ("age | condition", True)]
