"""Findings: what they say by rule, name and number; the wording is free."""

import re

import pandas as pd
import pytest

from scmedley import keys
from scmedley.pipeline.findings import NULL_NAME, beyond, findings
from scmedley.pipeline.verdicts import leaks_of

NAN = float("nan")
ALL_THREE, NONE = [True] * 3, [False] * 3


def table_of_scores(
    fixed=0.05, pca=0.7, random=0.6, null=0.1, masked=0.5, accuracy=0.95, sd=0.02, null_sd=0.01
):
    """Scores; a number for each leak stands for the logistic probe, before whose value others read 0.01 less."""
    values = {keys.FIXED: fixed, keys.PCA: pca, keys.RANDOM: random, keys.RANDOM_MASKED: masked}
    values |= {keys.NULL: null, keys.NULL_MASKED: None if null is None else 0.02}
    rows = []
    for key, given in values.items():
        if given is not None:
            three = given if isinstance(given, tuple) else (given - 0.01, given, given - 0.01)
            for probe, value in zip(("kNN", "logistic", "network"), three, strict=True):
                rows.append((key, f"{probe} leak", "batch", value, 0.0, sd))
    rows += [
        (key, "kNN accuracy", "label", accuracy, 0.3, sd)
        for key in (keys.FIXED, keys.PCA)
        if accuracy is not None
    ]
    return pd.DataFrame(rows, columns=["embedding", "score", "of", "value", "null", "se"]).assign(
        null_sd=null_sd, n_cells=400
    )


def table_of_shifts(seen=True):
    rows = [
        ("T", "a", "CD4", 0.9, 0.5, 1.2, 0.8, 0.6),
        ("T", "a", "IL7R", -0.5, -0.9, -0.1, -0.4, 0.6),
        ("T", "a", "ACTB", 0.7, -0.2, 1.5, 0.7, 0.6),  # its interval holds 0
        ("T", "a", "MALAT1", 0.6, 0.2, 1.0, -0.1, 0.6),  # went the other way
        ("T", "b", "CD4", 0.1, 0.05, 0.2, 0.1, 0.2),
        ("T", "c", "CD4", -1.0, -1.5, -0.5, -0.9, 0.3),
        ("B", "a", "CD4", 0.7, 0.5, 1.2, 0.8, 0.4),
        ("B", "b", "CD4", 0.1, 0.05, 0.2, 0.1, 0.2),
        ("B", "c", "CD4", -1.0, -1.5, -0.5, -0.9, 0.3),
        ("NK", "c", "CD4", -9.0, -9.5, -8.5, -9.9, 3.0),  # a label that is in no other batch
    ]
    columns = ["label", "batch", "gene", "shift", "q05", "q95", "observed", "size"]
    table = pd.DataFrame(rows, columns=columns).assign(n_cells=50, n_observed=50, seen=seen)
    table = table.assign(observed_size=table["size"] + 0.02, null_size=0.1, null_sd=0.01)
    return table.assign(observed_from="held-out cells")


def table_of_check(pearson=0.8, slope=2.0, null=0.1, additive=0.79, ceiling=0.95, n=2):
    columns = {
        "pearson": pearson,
        "slope": slope,
        "best_wrong_pearson": null,
        "ceiling_pearson": ceiling,
        "additive_pearson": additive,
        "gain_se": 0.02,
        "r2_delta": 0.55,
        "additive_r2_delta": 0.5,
    }
    return pd.DataFrame({"label": ["T"] * n, "batch": ["a", "b"][:n], **columns})


def say(scores=None, shifts=None, check=None, **record):
    scores, shifts, check = (
        make() if given is None else given
        for given, make in ((scores, table_of_scores), (shifts, table_of_shifts), (check, table_of_check))
    )
    said = findings(scores, shifts, check, record)
    for s in said:
        assert s.endswith(".")
        assert "nan" not in s
        assert "  " not in s
        assert len(re.findall(r"\.( [A-Z]|$)", s)) <= 2, s  # two sentences at most
    return said


def numbers(sentence):
    return [float(n) for n in re.findall(r"-?\d+\.\d+", sentence)]


def exceeds(scores, embedding=keys.RANDOM, null=keys.NULL):
    return list(beyond(leaks_of(scores, embedding), leaks_of(scores, null)).values())


def test_good_numbers():
    random, different, verdict = say(verdict="All can be compared.")
    assert numbers(random) == [0.59, 0.6, 0.09, 0.1, 0.49, 0.5, 0.01, 0.02]
    assert numbers(different) == [0.52, 0.1, 0.32, 0.9, 0.8, -0.5, -0.4]
    assert re.findall(r"CD4|IL7R|ACTB|MALAT1", different) == [
        "CD4",
        "IL7R",
    ]  # not what is unsure or contradicted
    assert verdict == "All can be compared."


@pytest.mark.parametrize(("random", "spread", "seen"), [(0.16, 0, True), (0.14, 0, False), (0.3, 0.2, False)])
def test_a_leakage_counts_beyond_luck_and_beyond_the_least(random, spread, seen):
    assert exceeds(table_of_scores(random=random, null=0.1, sd=spread)) == [seen] * 3


def test_random_effects_that_some_probes_do_not_see():
    scores = table_of_scores(random=(0.1, 0.6, 0.5), masked=0.03)
    assert exceeds(scores) == [False, True, True]
    assert exceeds(scores, keys.RANDOM_MASKED, keys.NULL_MASKED) == NONE
    said = say(scores)[0]
    assert "by logistic regression and network, but not by kNN" in said
    assert exceeds(table_of_scores()) == ALL_THREE


def test_a_mask_that_was_never_trained_is_named():
    assert say(hides_batch=True)[0] != say(hides_batch=False)[0]
    assert "new" in say(hides_batch=False)[0]


def test_bad_numbers_are_not_praised():
    (random,) = say(table_of_scores(random=0.12), check=table_of_check(pearson=-0.1, slope=-0.05))
    assert "no more than its null" in random  # and no gene is named


def test_what_is_missing_is_said_or_left_out():
    unmeasured = table_of_scores(fixed=NAN, random=NAN, accuracy=None)
    (said,) = say(unmeasured, table_of_shifts(seen=False), table_of_check(n=0))
    assert said.startswith("Without labels")
    no_null = say(table_of_scores(null=None))[0]
    assert numbers(no_null) == [0.59, 0.6, 0.49, 0.5]
    assert "no null" in no_null
    assert "not checked" in say(check=table_of_check(pearson=NAN))[1]


def test_observed_means_of_training_cells_are_said_to_be():
    assert "training cells" not in say()[1]
    said = say(shifts=table_of_shifts().assign(observed_from="all cells"))[1]
    assert "training cells included" in said


@pytest.mark.parametrize("cut", [("random",), (NULL_NAME,), ("random", NULL_NAME)])
def test_an_interrupted_network_voids_the_comparison(cut):
    networks = {
        name: {"epochs": 3, "best_epoch": 2, "stopped": "interrupted" if name in cut else "last epoch"}
        for name in ("random", NULL_NAME)
    }
    said = say(networks=networks)[0]
    assert "void" in said
    assert "above its null" not in said
    assert said.count("epoch 3") == len(cut)
    assert "above its null" in say(networks={"fixed": networks["random"]})[0]


def test_genes_come_from_labels_that_agree():
    check = table_of_check(n=1)
    two = pd.concat([check.assign(pearson=0.1), check.assign(label="B")], ignore_index=True)
    *_, different = say(check=two)
    assert "+0.70 in B" in different
    assert "in T" not in different
    one_fails = pd.concat([two[:1], check.assign(batch="b")], ignore_index=True)
    *_, different = say(check=one_fails)
    assert "CD4" not in different


def test_no_gene_is_sure():
    assert "none for sure" in say(shifts=table_of_shifts().assign(q05=-1.0, q95=1.0))[1]


def test_two_batches_lie_apart_and_one_alone_nowhere():
    shifts = table_of_shifts()
    two = say(shifts=shifts[shifts.batch != "c"].assign(size=0.25, observed_size=0.26))[1]
    assert two.startswith("Batches a and b")
    assert numbers(two)[:2] == [0.52, 0.2]
    assert len(say(shifts=shifts[shifts.batch == "a"])) == 1


def test_no_batch_is_named_that_lies_no_farther_than_by_chance():
    said = say(shifts=table_of_shifts().assign(observed_size=0.115))[1]
    assert numbers(said) == [0.12, 0.1]
    assert said.startswith("No batch")
    assert "CD4" not in said


def test_batches_that_are_not_distinguishable_are_said_to_be():
    assert "not distinguishable" not in say()[1]
    said = say(shifts=table_of_shifts().assign(null_sd=0.08))[1]
    assert said.startswith("Batches a and c are farthest from the average batch (0.52 and 0.32 log1p CP10k")
    assert "not distinguishable" in said
    assert "Genes that shift most in a," in said


def test_the_farthest_batch_is_that_of_the_cells_and_not_of_noise_or_of_the_model():
    shifts = table_of_shifts()
    sizes = ["size", "observed_size", "null_size", "null_sd"]
    shifts.loc[shifts.batch == "c", sizes] = (9.0, 0.6, 0.59, 0.01)
    said = say(shifts=shifts)[1]
    assert said.startswith("Batch a ")
    assert numbers(said)[0] == 0.52


def test_batches_without_a_common_label_are_not_ranked():
    shifts = table_of_shifts()
    apart = (shifts.label + shifts.batch).isin(["Ta", "Bc"])
    assert "not ranked" in say(shifts=shifts[~apart])[1]


def test_without_labels_none_is_named():
    shifts = table_of_shifts()
    check = table_of_check().assign(label="all cells")
    said = say(shifts=shifts[shifts.label == "T"].assign(label="all cells"), check=check)[1]
    assert "CD4 (+0.90; observed +0.80)" in said


def test_what_cannot_be_compared_stands_before_the_verdicts_only():
    apart = "No two batches share a label."
    assert apart not in say(verdict=apart, comparable=False)
    assert say(verdict=apart, comparable=True)[-1] == apart
