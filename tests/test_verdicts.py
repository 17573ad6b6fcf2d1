"""The three verdicts: the rules by number, apart from the words."""

import json
from dataclasses import asdict

import pandas as pd
import pytest

from scmedley import keys
from scmedley.pipeline.checks import few_of_label
from scmedley.pipeline.verdicts import batch_mark, label_mark, lines, verdicts
from test_findings import NAN, table_of_check, table_of_scores


def marks(scores=None, check=None, labels=None, **record):
    scores, check = (
        make() if given is None else given
        for given, make in ((scores, table_of_scores), (check, table_of_check))
    )
    found = verdicts(scores, check, record, labels)
    for verdict in found:
        assert len(verdict.sentence.split("; worst")[0].split()) <= 33, verdict.sentence
        assert verdict.sentence.endswith(".")
        assert "nan" not in verdict.sentence
    json.dumps([asdict(verdict) for verdict in found], allow_nan=False)
    return [verdict.mark for verdict in found]


def test_what_if_of_a_kept_column_is_not_judged():
    """The check is of changes of the batch: its mark says nothing of a column that stays in the latent."""
    kept = {"design": {"keep": ["condition"]}}
    said = [verdicts(table_of_scores(), table_of_check(), about)[2].sentence for about in ({}, kept)]
    assert "condition" not in said[0]
    assert said[1].endswith("; not what-if of condition: what is kept in the latent cannot be changed.")


def test_labels_that_may_be_names_of_clusters_are_no_evidence():
    """They were found in the same cells, so an embedding that keeps them keeps what was computed before."""
    assert marks()[1] == "good"
    assert marks(labels_of_clusters=True)[1] == "unknown"
    said = verdicts(table_of_scores(), table_of_check(), {"labels_of_clusters": True})[1].sentence
    assert said.startswith(f"Not judged: labels may be names of the clusters in obs[{keys.CLUSTER!r}]")


@pytest.mark.parametrize(
    ("leak", "chance", "pca", "error", "mark"),
    [
        (0.03, 0.02, 0.9, 0.05, "good"),  # less than what is called a leakage
        (0.08, 0.09, 0.9, 0.05, "good"),  # within chance
        (0.02, 0.02, 0.02, 0.05, "good"),  # neither does PCA show a batch
        (0.06, 0.04, 0.9, 0.05, "weak"),
        (0.45, 0.04, 0.9, 0.05, "weak"),
        (0.46, 0.04, 0.9, 0.05, "failed"),  # more than half of PCA's is left
        (0.10, 0.04, 0.2, 0.12, "failed"),  # no lower than PCA's as far as these cells show
        (0.95, 0.04, 0.9, 0.05, "failed"),
        (0.05, 0.14, 0.9, 0.05, "weak"),  # lower, but chance reaches too far to show that nothing is left
        (0.05, 0.14, 0.1, 0.12, "unknown"),
    ],
)
def test_rule_of_the_batch(leak, chance, pca, error, mark):
    assert batch_mark(leak, chance, pca, error) == mark
    without = batch_mark(leak, chance, pca, error, has_labels=False)  # cell types count as batch
    assert without == ("unknown" if mark == "failed" else mark)


@pytest.mark.parametrize(
    ("accuracy", "chance", "pca", "error", "mark"),
    [
        (0.97, 0.3, 0.98, 0.01, "good"),
        (1.0, 0.3, 0.9, 0.01, "good"),
        (0.95, 0.3, 0.98, 0.01, "weak"),
        (0.87, 0.3, 0.98, 0.01, "failed"),
        (0.87, 0.3, 0.98, 0.2, "weak"),  # not lower as far as so few cells show
        (0.3, 0.35, 0.38, 0.1, "failed"),  # no better than chance
        (0.3, 0.35, 0.34, 0.1, "unknown"),  # nor is PCA
    ],
)
def test_rule_of_the_labels(accuracy, chance, pca, error, mark):
    assert label_mark(accuracy, chance, pca, error) == mark


def test_a_good_run_and_a_failed_one():
    assert marks() == ["good", "good", "good"]
    scores = table_of_scores(fixed=0.8)
    fixed = (scores.embedding == keys.FIXED) & (scores.score == "kNN accuracy")
    scores.loc[fixed, "value"] = 0.6
    assert marks(scores, table_of_check(pearson=-0.1)) == ["failed", "failed", "failed"]
    assert marks(check=table_of_check(pearson=0.4, null=0.0, additive=0.4))[2] == "weak"


def table_of_labels(**right):
    """Number of right held-out cells in the fixed effects and in PCA, and of all, by label."""
    rows = [
        (key, label, n / of, n, 50, of)
        for label, (fixed, pca, of) in right.items()
        for key, n in ((keys.FIXED, fixed), (keys.PCA, pca))
    ]
    return pd.DataFrame(rows, columns=["embedding", "label", "accuracy", "n_right", "n_train", "n_test"])


def test_a_rare_label_that_is_lost_counts_and_is_named():
    kept = table_of_labels(T=(300, 301, 310), B=(80, 80, 85), DC=(4, 4, 5))
    assert marks(labels=kept)[1] == "good"
    some = table_of_labels(T=(300, 301, 310), B=(80, 80, 85), DC=(3, 4, 5))
    assert marks(labels=some)[1] == "weak"
    nowhere = table_of_labels(T=(300, 301, 310), B=(80, 80, 85), DC=(1, 1, 5))  # nor in PCA
    labels = verdicts(table_of_scores(), table_of_check(), {}, nowhere)[1]
    assert labels.mark == "weak"
    assert "DC 1 of 5 (PCA 1)" in labels.sentence
    lost = table_of_labels(T=(300, 301, 310), B=(80, 80, 85), DC=(1, 19, 20), rarest=(0, 2, 2))
    labels = verdicts(table_of_scores(), table_of_check(), {}, lost)[1]
    assert labels.mark == "failed"
    assert "DC 1 of 20 (PCA 19)" in labels.sentence
    assert "rarest" not in labels.sentence  # two held-out cells show nothing
    assert labels.numbers["mean over labels"] == pytest.approx((300 / 310 + 80 / 85 + 1 / 20) / 3)
    assert marks(table_of_scores(accuracy=0.1), labels=kept)[1] == "unknown"  # the rule of all cells


def test_the_worst_probe_and_its_numbers_count():
    scores = table_of_scores(fixed=(0.01, 0.17, 0.75), pca=(0.7, 0.65, 0.6))
    batch, labels, trust = verdicts(scores, table_of_check(), {})
    assert batch.mark == "failed"
    assert batch.numbers["leakage"] == batch.numbers["leakage, network probe"] == 0.75
    assert batch.numbers["PCA"] == batch.numbers["PCA, kNN probe"] == 0.7
    assert batch.numbers["chance"] == 0.02
    assert labels.numbers["accuracy"] == 0.95
    assert labels.numbers["error of the difference"] == pytest.approx(2 * (2 * 0.95 * 0.05 / 400) ** 0.5)
    assert trust.numbers["pairs, good"] == 2
    assert trust.numbers["median additive_pearson"] == 0.79
    for verdict, shown in (
        (batch, ("0.75", "0.70")),
        (labels, ("95.0%", "30.0%")),
        (trust, ("0.80", "0.79")),
    ):
        assert all(number in verdict.sentence for number in shown)


def test_worse_than_the_plain_difference_is_not_good():
    assert marks(check=table_of_check(additive=0.9))[2] == "weak"
    assert marks(check=table_of_check(pearson=0.44, null=0.0, additive=0.9))[2] == "failed"
    assert (
        "better in 0, tie in 0, worse in 2"
        in verdicts(table_of_scores(), table_of_check(additive=0.9), {})[2].sentence
    )
    assert marks(check=table_of_check(null=0.75))[2] == "failed"  # nor is what fits another batch as well


def test_without_labels_the_pairs_are_batches():
    check = table_of_check().assign(label="all cells")
    assert "2 of 2 batches agree well" in verdicts(table_of_scores(), check, {})[2].sentence
    assert "2 of 2 label-batch pairs" in verdicts(table_of_scores(), table_of_check(), {})[2].sentence


def test_a_model_without_batch_effects_has_no_counterfactuals():
    trust = verdicts(table_of_scores(), None, {})[2]
    assert (trust.mark, trust.sentence[:14]) == ("unknown", "There are none")


def test_what_was_not_measured_is_unknown():
    empty = table_of_check(n=0)
    assert marks(table_of_scores(fixed=NAN, accuracy=None), empty) == ["unknown"] * 3
    assert marks(table_of_scores(pca=NAN))[0] == "unknown"
    assert marks(check=table_of_check(null=NAN, additive=NAN))[2] == "good"  # two batches: no wrong one
    few = pd.concat([table_of_check(n=1), *[table_of_check(ceiling=0.1)] * 5], ignore_index=True)
    assert marks(check=few)[2] == "unknown"
    one_label = table_of_scores()
    one_label.loc[one_label["score"] == "kNN accuracy", "null"] = 1.0
    assert marks(one_label)[1] == "unknown"


def test_without_labels_what_is_read_may_be_cell_types():
    assert marks(table_of_scores(fixed=0.8, accuracy=None))[:2] == ["unknown", "unknown"]
    assert marks(table_of_scores(accuracy=None))[:2] == ["good", "unknown"]


@pytest.mark.parametrize(
    "record",
    [
        {"comparable": False, "verdict": "No two batches share a label."},
        {"networks": {"fixed": {"stopped": "interrupted"}}},
        {"networks": {"random": {"stopped": "interrupted"}}, "config": {"fixed": "X_mine"}},
    ],
)
def test_no_mark_is_better_than_weak_where_the_ground_is_weak(record):
    assert marks(**record) == ["weak"] * 3
    assert marks(table_of_scores(fixed=0.8), **record)[0] == "failed"
    assert marks(networks={"random": {"stopped": "interrupted"}}) == ["good"] * 3


def test_lines_of_the_console():
    record = {"comparable": False, "verdict": "No two batches share a label.", "config": {"fixed": "X_mine"}}
    found = verdicts(table_of_scores(), table_of_check(), record)
    first, batch, *_ = said = lines(record | {"verdicts": [asdict(verdict) for verdict in found]})
    assert first == "No two batches share a label."
    assert batch.startswith("[weak] ")
    assert "X_mine" in batch
    assert len(said) == 4
    assert lines({}) == []
    assert "\n".join(said).isascii()  # any console can print them


def test_labels_with_few_training_cells_are_named():
    part = ["train"] * 70 + ["test"] * 30
    obs = pd.DataFrame({"type": ["T"] * 40 + ["DC"] * 29 + ["B"] + ["DC"] * 30, keys.SPLIT: part})
    (warning,) = few_of_label(obs, "type")
    assert "2 of 3 labels" in warning
    assert "'DC (29)', 'B (1)'" in warning
    assert few_of_label(obs[obs["type"] == "T"], "type") == []
