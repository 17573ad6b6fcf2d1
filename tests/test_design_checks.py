"""Checks of a design: what cannot be separated is refused with its table, and weak spots are named."""

import numpy as np
import pandas as pd
import pytest

from scmedley.data.design_checks import check_design
from scmedley.data.terms import Terms
from scmedley.datasets import simulate
from scmedley.errors import ScmedleyError


@pytest.fixture(scope="module")
def obs() -> pd.DataFrame:
    """Twenty donors of four studies; each donor has both conditions, and an age."""
    return simulate(1200, 2, n_studies=4).obs


def checked(formula: str, obs: pd.DataFrame) -> list[str]:
    return check_design(Terms.of(formula, obs), obs)


def refused(formula: str, obs: pd.DataFrame) -> str:
    with pytest.raises(ScmedleyError) as error:
        checked(formula, obs)
    return str(error.value)


def test_a_sound_design_has_no_warning(obs) -> None:
    assert checked("~ condition + age + (1 | study/donor) + (condition | donor)", obs) == []
    assert checked("~ condition * cell_type + (1 | donor)", obs) == []  # an interaction holds its parts


def test_a_condition_that_is_the_study_is_refused_with_the_table() -> None:
    obs = simulate(600, 2, condition="confounded").obs
    n = obs["condition"].value_counts()
    table = f"ctrl: s0 {n['ctrl']}, s1 0;\n  stim: s0 0, s1 {n['stim']}"
    words = refused("~ condition + study + (1 | donor)", obs)
    assert "The effects of condition cannot be separated: it is determined by study." in words
    assert table in words
    words = refused("~ condition + (1 | study/donor)", obs)
    assert "cannot be separated from those of study: no two levels of study are alike" in words
    assert table in words
    # Without the study, donors are the replicates: that all of them differ in the study, no column says.
    assert checked("~ condition + (1 | donor)", obs) == []


def test_terms_that_others_determine_together_or_in_part(obs) -> None:
    three = obs.assign(site=np.where(obs["study"] == "s3", "far", obs["condition"].astype(str)))
    assert "site cannot be separated" not in " ".join(checked("~ site + (1 | donor)", three))
    assert "it is partly determined by" in refused("~ site + study + (1 | donor)", three)
    half = obs.assign(half=np.where(obs["study"].isin(["s0", "s1"]), "a", "b"))
    half["dose"] = (half["half"] == "a").astype(float) + (half["condition"] == "stim").astype(float)
    assert "(all of 'condition', 'dose' together)" in refused("~ half + condition + dose", half)


def test_random_terms_that_cannot_be_separated(obs) -> None:
    words = refused("~ condition + (1 | study) + (1 | centre)", obs.assign(centre=obs["study"]))
    assert "have the same 4 levels" in words
    between = simulate(600, 2, condition="between").obs
    words = refused("~ condition + (condition | donor)", between)
    assert "Each donor has cells of one condition only" in words
    assert "(1 | donor)" in words
    assert "age has one value in each of the 20 levels of donor" in refused(
        "~ condition + (age | donor)", obs
    )
    two = obs[obs["donor"].isin(["d00", "d01"])]
    assert "levels of donor are alike in 'age'" in refused("~ age + (1 | donor)", two)


def test_one_value_is_refused(obs) -> None:
    words = refused("~ condition + (1 | donor)", obs[obs["condition"] == "ctrl"])
    assert "All cells have condition = 'ctrl'" in words


def test_few_levels_and_single_cells(obs) -> None:
    (words,) = checked("~ age + (1 | condition) + (1 | donor)", obs)
    assert words.startswith("condition has 2 levels ('ctrl', 'stim')")
    (words,) = checked("~ condition + (1 | cell)", obs.assign(cell=obs.index))
    assert "1,200 of 1,200 levels of cell have one cell" in words


def test_a_column_of_donors_that_varies_within_one(obs) -> None:
    age = obs["age"].where(np.arange(len(obs)) != 0, 99.0)
    (words,) = checked("~ age + (1 | donor)", obs.assign(age=age))
    assert "several in 1 of 20 ('d00'" in words
    assert "99.0: 1 cells" in words
    assert "obs['age']" in words
    sex = pd.Series(np.where(obs["donor"].cat.codes % 2, "f", "m"), obs.index)
    assert checked("~ sex + (1 | donor)", obs.assign(sex=sex)) == []
    sex.iloc[0] = "f" if sex.iloc[0] == "m" else "m"
    (words,) = checked("~ sex + (1 | donor)", obs.assign(sex=sex))
    assert "correct obs['sex']" in words


def test_levels_of_one_donor(obs) -> None:
    site = np.where(obs["donor"] == "d07", "solo", "other")
    (words,) = checked("~ site + (1 | donor)", obs.assign(site=site))
    assert words.startswith("Level 'solo' of site has cells of one donor only")
    few = obs[(obs["study"] != "s0") | (obs["donor"] == "d00")]
    words = " ".join(checked("~ condition + (1 | study/donor)", few))
    assert "Level 's0' of study has cells of one study/donor only" in words


def test_condition_between_studies() -> None:
    obs = simulate(600, 2, condition="confounded", n_studies=4).obs
    (words,) = checked("~ condition + (1 | study/donor)", obs)
    assert "Each study has one condition only" in words
    assert "comparison of 4 levels of study" in words
    assert "s0: ctrl" in words


def test_combinations_without_cells(obs) -> None:
    some = obs[~((obs["condition"] == "stim") & obs["cell_type"].isin(["type1", "type2"]))]
    (words,) = checked("~ condition + cell_type + (1 | donor)", some)
    assert "2 of 6 combinations of condition and cell_type have no cells ('stim with type1'" in words
    assert "stim: type0" in words
    some = obs[~((obs["condition"] == "stim") & (obs["donor"] == "d03"))]
    (words,) = checked("~ condition + (condition | donor)", some)
    assert "1 of 40 combinations of condition and donor have no cells ('stim with d03')" in words
    assert checked("~ condition + (1 | donor)", some) == []


def test_an_index_with_the_name_of_a_column_and_paths_in_both_orders(obs) -> None:
    assert checked("~ condition + (1 | donor)", obs.rename_axis("donor")) == []
    assert "have the same 20 levels" in refused("~ (1 | study/donor) + (1 | donor/study)", obs)
