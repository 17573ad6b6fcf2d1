import pandas as pd
import pytest

from scmedley import keys
from scmedley.pipeline.findings import findings

NAN = float("nan")


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
        null_sd=null_sd
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
    assert all(s.endswith(".") and "nan" not in s and "  " not in s for s in said), said
    return said


def test_good_numbers():
    fixed, labels, random, trust, different, verdict = say(verdict="All can be compared.")
    assert "gives away a held-out cell's batch less than the principal components do" in fixed
    assert (
        "the leak is 0.05 (logistic regression) against 0.70 (logistic regression), where 0 is chance"
        in fixed
    )
    assert (
        "All three: kNN 0.04, logistic regression 0.05, network 0.04; principal components 0.69, 0.70, 0."
        in fixed
    )
    assert "The difference is known to ±0.06 with so many held-out cells" in fixed
    assert fixed.endswith("No probe finds more of the batch in it than chance gives.")
    assert "95.0% of held-out cells" in labels
    assert "30.0% by chance" in labels
    assert "tells batches apart beyond its null by all three probes" in random
    assert (
        "leak by kNN 0.59, logistic regression 0.60, network 0.59; 0.09, 0.10, 0.09 for the same network"
        in random
    )
    assert random.endswith(
        "With the batch masked, so that the encoder sees expression alone, it tells batches apart beyond its null by "
        "all three probes (0.49, 0.50, 0.49; null 0.01, 0.02, 0.01)."
    )
    assert different.startswith(
        "Batch a lies farthest from the average batch, by 0.52 log1p CP10k in held-out cells (root mean square over "
        "genes; 0.10 for batches permuted within cell types; 0.50 by the model), before c with 0.32. Genes"
    )
    assert (
        "direction observed: CD4 (+0.90 in T; observed +0.80), IL7R (-0.50 in T; observed -0.40). "
        in different
    )
    assert different.endswith(
        "Agreement with held-out cells in a: 1 of 1 judged label good; 1 could not be judged."
    )
    assert trust == (
        "Counterfactuals: 2 of 2 seen pairs of label and batch good, 0 some; better than the plain difference of "
        "training means in 0, tie in 2, worse in 0. Predicted shifts correlate with those of held-out cells with 0.80 "
        "(median; 0.79 for the plain difference; 0.95 for a perfect prediction, given how few the cells are; 0.10 for "
        "the best of the wrong batches). R² of the shift is 0.55, and 0.50 for the plain difference. The slope of "
        "observed on predicted is 2.00 (1: the right size)."
    )
    assert verdict == "All can be compared."


def test_a_batch_that_is_left_is_said_to_be():
    assert "is left" not in say(table_of_scores(fixed=0.05, sd=0.03))[0]
    assert say(table_of_scores(fixed=0.3))[0].endswith(" Something of the batch is left in it.")
    few = say(table_of_scores(fixed=0.12, null_sd=0.07))[0]
    assert few.endswith("chance alone reaches 0.14: that nothing is left is not shown.")
    assert say(table_of_scores(fixed=0.15, null_sd=0.07))[0].endswith("Something of the batch is left in it.")


def test_the_worst_probe_decides():
    hidden_from_knn = say(table_of_scores(fixed=(0.01, 0.17, 0.75), pca=(0.7, 0.65, 0.6)))[0]
    assert "batch about as much as the principal components do" in hidden_from_knn
    assert "the leak is 0.75 (network) against 0.70 (kNN)" in hidden_from_knn
    assert hidden_from_knn.endswith("Something of the batch is left in it.")


def test_random_effects_that_some_probes_do_not_see():
    said = say(table_of_scores(random=(0.1, 0.6, 0.5), masked=0.03))[2]
    assert (
        "tells batches apart beyond its null by logistic regression and network, but not by kNN (leak" in said
    )
    assert "expression alone, it finds no more than its null does (0.02, 0.03, 0.02; null" in said


def test_a_mask_that_was_never_trained_is_told_of():
    assert "new to it" not in say(hides_batch=True)[2]
    said = say(hides_batch=False)[2]
    assert said.endswith("0.02, 0.01; in training it was always told, so that this is new to it).")


def test_bad_numbers_are_not_praised():
    trust, fixed, _, random, *more = say(  # what is not to be used comes first
        table_of_scores(fixed=0.8, random=0.12), check=table_of_check(pearson=-0.1, slope=-0.05)
    )
    assert "more than the principal components do" in fixed
    assert "finds no more than its null does" in random
    assert trust.startswith("Do not use the counterfactuals and gene shifts of this run: ")
    assert "those of held-out cells with -0.10" in trust
    assert "slope" not in trust  # where the direction is wrong it says nothing of the size
    assert more == []  # and so no gene is named


@pytest.mark.parametrize(
    ("random", "spread", "real"), [(0.16, 0.0, True), (0.14, 0.0, False), (0.3, 0.2, False)]
)
def test_a_leak_counts_beyond_luck_and_beyond_the_least(random, spread, real):
    said = say(table_of_scores(random=random, null=0.1, masked=0.0, sd=spread))[2]
    assert ("beyond its null by all three" in said) is real
    assert ("finds no more than its null does (leak by" in said) is not real


def test_what_is_missing_is_said_or_left_out():
    empty = table_of_check(n=0)
    said = say(table_of_scores(fixed=NAN, random=NAN, accuracy=None), table_of_shifts(seen=False), empty)
    assert said == [
        "Whether the fixed-effects embedding gives away the batch could not be measured: no label has "
        "enough cells, held out and not, in two batches.",
        "Counterfactuals could not be checked: no label has a shift between batches that stands out from the "
        "noise of its held-out cells (they are few, or the batches hardly differ). Take gene shifts as guesses.",
        "Without labels, a leak includes differences in composition: batches with other cell types.",
    ]
    no_null = say(table_of_scores(null=None))[2]
    assert (
        "is not known. With the batch masked, so that the encoder sees expression alone, that leak is"
        in no_null
    )
    *_, trust, different = say(check=table_of_check(pearson=NAN))
    assert "could not be checked" in trust
    assert different.endswith("Agreement with held-out cells in a: no label could be checked.")


def test_baselines_that_do_not_exist_are_not_named():
    trust = say(check=table_of_check(null=NAN, additive=NAN))[3]
    assert "good, 0 some. Predicted shifts" in trust
    assert "0.80 (median; 0.95 for a perfect prediction, given how few the cells are)." in trust
    assert "0.30 for the best of the wrong batches" in say(check=table_of_check(null=[NAN, 0.3]))[3]


def test_a_better_baseline_is_called_better():
    for additive, words in (
        (0.9, "0 of 2 seen pairs of label and batch good, 2 some; better than the plain difference of training means "
              "in 0, tie in 0, worse in 2."),
        (0.7, "2 of 2 seen pairs of label and batch good, 0 some; better than the plain difference of training means "
              "in 2, tie in 0, worse in 0."),
    ):  # fmt: skip
        said = say(check=table_of_check(additive=additive))[3]
        assert words in said
        assert f"{additive:.2f} for the plain difference;" in said


def test_observed_means_of_training_cells_are_said_to_be():
    assert "training cells" not in say()[4]
    said = say(shifts=table_of_shifts().assign(observed_from="all cells"))[4]
    assert "by 0.52 log1p CP10k in all cells (" in said
    assert "Observed means are of all cells: training cells are included. Agreement" in said


def test_a_prediction_that_fits_another_batch_as_well_is_told_of():
    assert "another batch" not in say()[3]
    trust = say(check=table_of_check(null=0.75))[0]
    assert trust.startswith("Do not use the counterfactuals")
    assert " In 2 the prediction for another batch does nearly as well. " in trust


def test_a_null_that_was_interrupted_is_no_comparison():
    done, cut = ({"epochs": 3, "best_epoch": 2, "stopped": s} for s in ("last epoch", "interrupted"))
    null = "random, permuted batches"
    assert "beyond its null" in say(networks={"fixed": cut, "random": done, null: done})[2]
    said = say(networks={"random": done, null: cut})[2]
    assert (
        "network 0.59, and its null, the same network for batch labels permuted within cell types, 0.09"
        in said
    )
    assert "0.09; but the comparison is void, as training was interrupted: of the null after epoch 3." in said
    assert "beyond" not in said
    both = say(networks={"random": cut, null: cut})[2]
    assert "interrupted: of this network after epoch 3, of the null after epoch 3." in both


def test_genes_come_from_labels_that_hold_up():
    check = table_of_check(n=1)
    two = pd.concat([check.assign(pearson=0.1), check.assign(label="B")], ignore_index=True)
    *_, different = say(check=two)
    assert "direction observed: CD4 (+0.70 in B; observed +0.80). " in different
    assert different.endswith("in a: 1 of 2 judged labels good, 1 none.")
    one_fails = pd.concat([two[:1], check.assign(batch="b")], ignore_index=True)
    *_, different = say(check=one_fails)
    assert "No gene is named: no label that was judged agrees. " in different
    assert "CD4" not in different
    assert different.endswith("in a: 1 of 1 judged label none; 1 could not be judged.")


def test_one_judged_pair_of_many_is_no_proof():
    check = pd.concat([table_of_check(n=1), *[table_of_check(ceiling=0.1, n=2)] * 5], ignore_index=True)
    trust = say(check=check)[3]
    assert trust.startswith(
        "Counterfactuals could not be checked well, so take gene shifts as guesses. Only 1 of 11 "
    )
    assert "enough to judge by: 1 good, 0 some; better" in trust
    assert "correlate with those of held-out cells with 0.80" in trust


def test_no_gene_is_sure():
    shifts = table_of_shifts().assign(q05=-1.0, q95=1.0)
    assert "direction observed: none for sure. " in say(shifts=shifts)[4]


def test_two_batches_lie_apart_and_one_alone_nowhere():
    shifts = table_of_shifts()
    sizes = {"size": 0.25, "observed_size": 0.26}
    two = say(shifts=shifts[shifts.batch != "c"].assign(**sizes))[4]
    assert two.startswith(
        "Batches a and b lie 0.52 log1p CP10k in held-out cells (root mean square over genes; "
    )
    assert "genes; 0.20 for batches permuted within cell types; 0.50 by the model) apart. " in two
    assert len(say(shifts=shifts[shifts.batch == "a"])) == 4


def test_no_batch_is_named_that_lies_no_farther_than_by_chance():
    said = say(shifts=table_of_shifts().assign(observed_size=0.115))[4]
    assert said.startswith(
        "No batch is seen to differ: a lies farthest from the average batch, but no farther than by"
    )
    assert "chance: 0.12 log1p CP10k in held-out cells" in said
    assert "; 0.10 for batches permuted within cell types; " in said
    assert "CD4" not in said


def test_batches_that_are_not_told_apart_are_said_to_be():
    assert "before c with 0.32. " in say()[4]
    shifts = table_of_shifts()
    said = say(shifts=shifts.assign(null_sd=0.08))[4]
    assert "before c with 0.32, which these cells do not tell apart. " in said


def test_the_farthest_batch_is_that_of_the_cells_and_not_of_noise_or_of_the_model():
    shifts = table_of_shifts()
    noisy = shifts.batch == "c"
    shifts.loc[noisy, ["size", "observed_size", "null_size", "null_sd"]] = (9.0, 0.6, 0.59, 0.01)
    said = say(shifts=shifts)[4]
    assert said.startswith(
        "Batch a lies farthest from the average batch, by 0.52 log1p CP10k in held-out cells"
    )


def test_batches_without_a_common_label_are_not_ranked():
    shifts = table_of_shifts()
    shifts = shifts[
        ~((shifts.label == "T") & (shifts.batch == "a")) & ~((shifts.label == "B") & (shifts.batch == "c"))
    ]
    assert say(shifts=shifts)[4].startswith("No cell type is in all batches")


def test_without_labels_none_is_named():
    shifts = table_of_shifts()
    check = table_of_check().assign(label="all cells")
    said = say(shifts=shifts[shifts.label == "T"].assign(label="all cells"), check=check)[4]
    assert "CD4 (+0.90; observed +0.80)" in said
    assert said.endswith("Agreement with held-out cells in a: good.")


def test_a_difference_within_luck_is_none():
    assert "about as much as" in say(table_of_scores(fixed=0.66, pca=0.7, sd=0.02))[0]
    assert "less than" in say(table_of_scores(fixed=0.64, pca=0.7, sd=0.02))[0]
    assert "leak is 0.00 (logistic regression) against" in say(table_of_scores(fixed=-0.001))[0]


def test_what_cannot_be_compared_comes_first():
    assert (
        say(verdict="No two batches share a label.", comparable=False)[0] == "No two batches share a label."
    )
    assert say(verdict="All can be compared.", comparable=True)[-1] == "All can be compared."


def test_one_label_has_no_accuracy():
    scores = table_of_scores()
    scores.loc[scores["score"] == "kNN accuracy", "null"] = 1.0
    assert not any(s.startswith("Cell types") for s in say(scores))
