import numpy as np
import pandas as pd
import pytest

from scmedley import keys
from scmedley.pipeline.findings import findings

NAN = float("nan")


def table_of_scores(fixed=0.05, pca=0.7, random=0.6, null=0.1, accuracy=0.95, sd=0.02):
    rows = [
        (key, "kNN leak", "batch", value, 0.0, sd)
        for key, value in ((keys.FIXED, fixed), (keys.PCA, pca), (keys.RANDOM, random), (keys.NULL, null))
        if value is not None
    ]
    rows += [
        (key, "kNN accuracy", "label", accuracy, 0.3, sd)
        for key in (keys.FIXED, keys.PCA)
        if accuracy is not None
    ]
    return pd.DataFrame(rows, columns=["embedding", "score", "of", "value", "null", "null_sd"])


def table_of_shifts(seen=True):
    rows = [
        ("T", "a", "CD4", 0.9, 0.5, 1.2),
        ("T", "a", "IL7R", -0.5, -0.9, -0.1),
        ("T", "a", "ACTB", 0.7, -0.2, 1.5),  # its interval holds 0
        ("T", "b", "CD4", 0.1, 0.05, 0.2),
    ]
    table = pd.DataFrame(rows, columns=["label", "batch", "gene", "shift", "q05", "q95"])
    return table.assign(n_cells=50, seen=seen)


def table_of_check(pearson=0.8, slope=2.0, null=0.1, additive=0.9, ceiling=0.95, n=2):
    columns = {
        "pearson": pearson,
        "slope": slope,
        "wrong_batch_pearson": null,
        "ceiling_pearson": ceiling,
        "additive_pearson": additive,
    }
    return pd.DataFrame({"label": ["T"] * n, "batch": ["a", "b"][:n], **columns})


def say(scores=None, shifts=None, check=None, **record):
    scores, shifts, check = (
        make() if given is None else given
        for given, make in ((scores, table_of_scores), (shifts, table_of_shifts), (check, table_of_check))
    )
    said = findings(scores, shifts, check, record)
    assert all(s.endswith(".") and "nan" not in s and "  " not in s for s in said), said
    return said


def test_good_numbers():
    fixed, labels, random, different, trust, verdict = say(verdict="All can be compared.")
    assert "gives away a held-out cell's batch less than the principal components do" in fixed
    assert "leak 0.05 against 0.70; 0 is chance, ±0.04 by luck" in fixed
    assert "95.0% of held-out cells" in labels
    assert "30.0% by chance" in labels
    assert "it finds real differences" in random
    assert "leak 0.60; 0.10 for the same network" in random
    assert different.startswith("Batch a lies farthest")
    assert different.endswith("Genes: CD4 (+0.90), IL7R (-0.50).")
    assert "its most shifted genes by 0.72 log1p CP10k" in different
    assert "the nearest is b, by 0.10" in different
    assert "correlate with 0.80 (median of 2 pairs of label and batch, 0.95 for a perfect" in trust
    assert ", 0.10 for a wrong batch, 0.90 for the plain difference" in trust
    assert trust.endswith("the observed ones are 2.00 times the size of the predicted.")
    assert verdict == "All can be compared."


def test_bad_numbers_are_not_praised():
    fixed, _, random, _, trust = say(
        table_of_scores(fixed=0.8, random=0.12), check=table_of_check(pearson=-0.1, slope=-0.05)
    )
    assert "more than the principal components do" in fixed
    assert "it finds no more than chance would" in random
    assert "correlate with -0.10" in trust
    assert "-0.05 times the size" in trust


@pytest.mark.parametrize(
    ("random", "spread", "real"), [(0.16, 0.0, True), (0.14, 0.0, False), (0.3, 0.2, False)]
)
def test_a_leak_counts_beyond_luck_and_beyond_the_least(random, spread, real):
    said = say(table_of_scores(random=random, null=0.1, sd=spread))[2]
    assert ("it finds real differences" in said) is real


def test_what_is_missing_is_said_or_left_out():
    empty = table_of_check(n=0)
    said = say(table_of_scores(fixed=NAN, random=NAN, accuracy=None), table_of_shifts(seen=False), empty)
    assert said == [
        "Whether the fixed-effects embedding gives away the batch could not be measured: no label has "
        "enough cells, held out and not, in two batches.",
        "Counterfactuals could not be checked: no label has 10 held-out cells on both sides of a batch.",
        "Without labels, a leak includes differences in composition: batches with other cell types.",
    ]
    assert "is not known" in say(table_of_scores(null=None))[2]
    assert "could not be checked" in say(check=table_of_check(pearson=NAN))[-1]


def test_baselines_that_do_not_exist_are_not_named():
    trust = say(check=table_of_check(null=NAN, additive=NAN, ceiling=NAN))[-1]
    assert "(median of 2 pairs of label and batch); the observed" in trust
    mixed = table_of_check(null=[NAN, 0.3])
    assert "0.30 for a wrong batch" in say(check=mixed)[-1]


def test_no_gene_is_sure():
    shifts = table_of_shifts().assign(q05=-1.0, q95=1.0)
    assert say(shifts=shifts)[3].endswith("Genes: none whose interval excludes 0.")
    assert np.isfinite(shifts["shift"]).all()


def test_a_difference_within_luck_is_none():
    assert "about as much as" in say(table_of_scores(fixed=0.66, pca=0.7, sd=0.02))[0]
    assert "less than" in say(table_of_scores(fixed=0.64, pca=0.7, sd=0.02))[0]
    assert "leak 0.00 against" in say(table_of_scores(fixed=-0.001))[0]


def test_what_cannot_be_compared_comes_first():
    assert (
        say(verdict="No two batches share a label.", comparable=False)[0] == "No two batches share a label."
    )
    assert say(verdict="All can be compared.", comparable=True)[-1] == "All can be compared."


def test_one_label_has_no_accuracy():
    scores = table_of_scores()
    scores.loc[scores["score"] == "kNN accuracy", "null"] = 1.0
    assert not any(s.startswith("Cell types") for s in say(scores))
