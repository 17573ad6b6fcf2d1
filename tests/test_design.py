"""Batch names and codes: what is learnt, what is not known, and its words."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal

from scmedley.data.design import Design
from scmedley.data.terms import Terms
from scmedley.errors import ScmedleyError


def obs(*donors, **options) -> pd.DataFrame:
    return pd.DataFrame({"donor": pd.Categorical(donors, **options)})


@pytest.fixture
def design() -> Design:
    return Design("donor", ("d1", "d2", "d3"))


def test_learns_used_categories_in_their_order() -> None:
    table = obs("b", "a", "b", categories=["c", "b", "a"])
    assert Design.of(table, "donor") == Design("donor", ("b", "a"))
    assert Design.of(table, "donor").n_batches == 2


def test_codes_are_by_name_whatever_the_categories(design: Design) -> None:
    assert_array_equal(design.codes(obs("d3", "d1", "d2", categories=["d3", "d2", "d1", "d0"])), [2, 0, 1])
    assert_array_equal(design.codes(pd.DataFrame({"donor": ["d2", "d9", "d1"]})), [1, -1, 0])
    assert_array_equal(design.codes(obs("d2", np.nan)), [1, -1])
    assert design.codes(obs("d1")).dtype == np.int64


def test_numbers_as_batches_are_names() -> None:
    table = pd.DataFrame({"donor": [10, 2, 10]})
    learnt = Design.of(table, "donor")
    assert learnt.batches == ("2", "10")
    assert_array_equal(learnt.codes(table), [1, 0, 1])
    assert_array_equal(learnt.codes(obs("10", "2")), [1, 0])


def test_without_the_column_nothing_is_known(design: Design) -> None:
    assert_array_equal(design.codes(pd.DataFrame(index=["a", "b"])), [-1, -1])
    with pytest.raises(ScmedleyError, match=r"obs has no column 'donor'"):
        design.known_codes(pd.DataFrame(index=["a"]))
    with pytest.raises(ScmedleyError, match=r"no column 'donor'\. It has \['patient'\]"):
        Design.of(pd.DataFrame({"patient": ["a"]}), "donor")


def test_unknown_batches_are_named(design: Design) -> None:
    with pytest.raises(
        ScmedleyError, match=r"2 cells are of batches \['new'\].*'d1', 'd2', 'd3'.*unknown='mean'"
    ):
        design.known_codes(obs("d1", "new", "new"))
    assert_array_equal(design.known_codes(obs("d1", "new"), "mean"), [0, -1])
    assert_array_equal(design.known_codes(obs("d1", "d3")), [0, 2])


def test_code_of_one_batch(design: Design) -> None:
    assert [design.code(name) for name in ("d1", "d3", "mean")] == [0, 2, -1]
    with pytest.raises(ScmedleyError, match=r"no batch 'd9'.*'mean'.*'d1', 'd2', 'd3'"):
        design.code("d9")


@pytest.mark.parametrize(
    ("name", "meaning"), [("mean", "the population mean"), ("own", "each cell's own batch")]
)
def test_names_that_stand_for_no_batch_are_refused(name: str, meaning: str) -> None:
    with pytest.raises(ScmedleyError, match=f"batch named '{name}', which is reserved for {meaning}"):
        Design.of(obs(name, "d1"), "donor")


def test_a_level_given_as_a_batch_of_several_factors_names_its_column() -> None:
    obs = pd.DataFrame({"condition": ["ctrl", "stim"] * 2, "donor": ["a", "a", "b", "b"]})
    terms = Terms.of("~ condition + (1 | donor)", obs)
    with pytest.raises(ScmedleyError, match=r"no batch 'stim'.* condition=LEVEL"):
        Design.of_terms(obs, terms, terms.formula).code("stim")
