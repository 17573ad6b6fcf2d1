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
    fixed, labels, random, trust, different, verdict = say(verdict="All can be compared.")
    assert numbers(fixed) == [0.05, 0.7, 0.06]  # worst of three, that of PCA, two errors of the difference
    assert "lower than PCA" in fixed
    assert numbers(labels) == [95.0, 95.0, 30.0]
    assert numbers(random) == [0.59, 0.6, 0.59, 0.09, 0.1, 0.09, 0.49, 0.5, 0.49, 0.01, 0.02, 0.01]
    assert numbers(different) == [0.52, 0.1, 0.32, 0.9, 0.8, -0.5, -0.4]
    assert re.findall(r"CD4|IL7R|ACTB|MALAT1", different) == [
        "CD4",
        "IL7R",
    ]  # not what is unsure or contradicted
    assert numbers(trust) == [0.8, 0.79, 0.95, 0.1]
    assert "2 of 2" in trust
    assert verdict == "All can be compared."


def test_a_batch_that_is_left_is_said_to_be():
    assert "is left" not in say(table_of_scores(fixed=0.05, sd=0.03))[0]
    assert "is left" in say(table_of_scores(fixed=0.3))[0]
    assert numbers(say(table_of_scores(fixed=0.12, null_sd=0.07))[0])[-1] == 0.14  # what chance alone reaches
    assert "is left" in say(table_of_scores(fixed=0.15, null_sd=0.07))[0]


def test_the_worst_probe_decides():
    hidden_from_knn = say(table_of_scores(fixed=(0.01, 0.17, 0.75), pca=(0.7, 0.65, 0.6)))[0]
    assert numbers(hidden_from_knn)[:2] == [0.75, 0.7]
    assert "about as high" in hidden_from_knn
    assert "is left" in hidden_from_knn


@pytest.mark.parametrize(("random", "spread", "seen"), [(0.16, 0, True), (0.14, 0, False), (0.3, 0.2, False)])
def test_a_leakage_counts_beyond_luck_and_beyond_the_least(random, spread, seen):
    assert exceeds(table_of_scores(random=random, null=0.1, sd=spread)) == [seen] * 3


def test_random_effects_that_some_probes_do_not_see():
    scores = table_of_scores(random=(0.1, 0.6, 0.5), masked=0.03)
    assert exceeds(scores) == [False, True, True]
    assert exceeds(scores, keys.RANDOM_MASKED, keys.NULL_MASKED) == NONE
    said = say(scores)[2]
    assert "by logistic regression and network, but not by kNN" in said
    assert exceeds(table_of_scores()) == ALL_THREE


def test_a_mask_that_was_never_trained_is_named():
    assert say(hides_batch=True)[2] != say(hides_batch=False)[2]
    assert "new" in say(hides_batch=False)[2]


def test_bad_numbers_are_not_praised():
    trust, fixed, _, random, *more = say(  # what is not to be used comes first
        table_of_scores(fixed=0.8, random=0.12), check=table_of_check(pearson=-0.1, slope=-0.05)
    )
    assert "higher than PCA" in fixed
    assert "no more than its null" in random
    assert trust.startswith("Do not use ")  # the report marks it by these words
    assert -0.1 in numbers(trust)
    assert more == []  # and so no gene is named


def test_what_is_missing_is_said_or_left_out():
    unmeasured = table_of_scores(fixed=NAN, random=NAN, accuracy=None)
    said = say(unmeasured, table_of_shifts(seen=False), table_of_check(n=0))
    assert len(said) == 3  # no leakage, no check, no labels
    assert [numbers(s) for s in said] == [[], [], []]
    no_null = say(table_of_scores(null=None))[2]
    assert numbers(no_null) == [0.59, 0.6, 0.59, 0.49, 0.5, 0.49]
    assert "no null" in no_null
    *_, trust, different = say(check=table_of_check(pearson=NAN))
    assert "could not be checked" in trust
    assert "not checked" in different


def test_baselines_that_do_not_exist_are_not_named():
    assert numbers(say(check=table_of_check(null=NAN, additive=NAN))[3]) == [0.8, 0.95]
    assert numbers(say(check=table_of_check(null=[NAN, 0.3]))[3])[-1] == 0.3


@pytest.mark.parametrize(("additive", "counts"), [(0.9, "0 2 2 0 0 2"), (0.7, "2 2 0 2 0 0")])
def test_a_better_baseline_is_called_better(additive, counts):
    said = say(check=table_of_check(additive=additive))[3]
    # good, judged, in part, better than the baseline, tie, worse
    assert re.findall(r"(?<![.\d])\d+(?!\.?\d)", said) == counts.split()
    assert additive in numbers(said)


def test_observed_means_of_training_cells_are_said_to_be():
    assert "training cells" not in say()[4].replace("training means", "")
    said = say(shifts=table_of_shifts().assign(observed_from="all cells"))[4]
    assert "training cells included" in said


def test_a_prediction_that_fits_another_batch_as_well_is_named():
    assert "another batch" not in say()[3]
    trust = say(check=table_of_check(null=0.75))[0]
    assert trust.startswith("Do not use ")
    assert "in 2 the prediction for another batch" in trust


@pytest.mark.parametrize("cut", [("random",), (NULL_NAME,), ("random", NULL_NAME)])
def test_an_interrupted_network_voids_the_comparison(cut):
    networks = {
        name: {"epochs": 3, "best_epoch": 2, "stopped": "interrupted" if name in cut else "last epoch"}
        for name in ("random", NULL_NAME)
    }
    said = say(networks=networks)[2]
    assert "void" in said
    assert "above its null" not in said
    assert said.count("epoch 3") == len(cut)
    assert "above its null" in say(networks={"fixed": networks["random"]})[2]


def test_genes_come_from_labels_that_agree():
    check = table_of_check(n=1)
    two = pd.concat([check.assign(pearson=0.1), check.assign(label="B")], ignore_index=True)
    *_, different = say(check=two)
    assert "+0.70 in B" in different
    assert "in T" not in different
    one_fails = pd.concat([two[:1], check.assign(batch="b")], ignore_index=True)
    *_, different = say(check=one_fails)
    assert "CD4" not in different


def test_one_judged_pair_of_many_is_no_proof():
    check = pd.concat([table_of_check(n=1), *[table_of_check(ceiling=0.1, n=2)] * 5], ignore_index=True)
    trust = say(check=check)[3]
    assert "only 1 of 11 pairs" in trust
    assert "guesses" in trust
    assert 0.8 in numbers(trust)


def test_no_gene_is_sure():
    assert "none for sure" in say(shifts=table_of_shifts().assign(q05=-1.0, q95=1.0))[4]


def test_two_batches_lie_apart_and_one_alone_nowhere():
    shifts = table_of_shifts()
    two = say(shifts=shifts[shifts.batch != "c"].assign(size=0.25, observed_size=0.26))[4]
    assert two.startswith("Batches a and b")
    assert numbers(two)[:2] == [0.52, 0.2]
    assert len(say(shifts=shifts[shifts.batch == "a"])) == 4


def test_no_batch_is_named_that_lies_no_farther_than_by_chance():
    said = say(shifts=table_of_shifts().assign(observed_size=0.115))[4]
    assert numbers(said) == [0.12, 0.1]
    assert said.startswith("No batch")
    assert "CD4" not in said


def test_batches_that_are_not_distinguishable_are_said_to_be():
    assert "not distinguishable" not in say()[4]
    assert "not distinguishable" in say(shifts=table_of_shifts().assign(null_sd=0.08))[4]


def test_the_farthest_batch_is_that_of_the_cells_and_not_of_noise_or_of_the_model():
    shifts = table_of_shifts()
    sizes = ["size", "observed_size", "null_size", "null_sd"]
    shifts.loc[shifts.batch == "c", sizes] = (9.0, 0.6, 0.59, 0.01)
    said = say(shifts=shifts)[4]
    assert said.startswith("Batch a ")
    assert numbers(said)[0] == 0.52


def test_batches_without_a_common_label_are_not_ranked():
    shifts = table_of_shifts()
    apart = (shifts.label + shifts.batch).isin(["Ta", "Bc"])
    assert "not ranked" in say(shifts=shifts[~apart])[4]


def test_without_labels_none_is_named():
    shifts = table_of_shifts()
    check = table_of_check().assign(label="all cells")
    said = say(shifts=shifts[shifts.label == "T"].assign(label="all cells"), check=check)[4]
    assert "CD4 (+0.90; observed +0.80)" in said


def test_a_difference_within_luck_is_none():
    assert "about as high" in say(table_of_scores(fixed=0.66, pca=0.7, sd=0.02))[0]
    assert "lower than" in say(table_of_scores(fixed=0.64, pca=0.7, sd=0.02))[0]
    assert " 0.00 (" in say(table_of_scores(fixed=-0.001))[0]  # no minus zero


def test_what_cannot_be_compared_comes_first():
    apart = "No two batches share a label."
    assert say(verdict=apart, comparable=False)[0] == apart
    assert say(verdict=apart, comparable=True)[-1] == apart


def test_one_label_has_no_accuracy():
    scores = table_of_scores()
    scores.loc[scores["score"] == "kNN accuracy", "null"] = 1.0
    assert not any(s.startswith("Labels") for s in say(scores))


def test_a_given_embedding_goes_by_its_key():
    assert say(config={"fixed": "X_mine"})[0].startswith("X_mine: ")
