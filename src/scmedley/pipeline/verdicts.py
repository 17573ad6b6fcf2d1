"""Three questions about a run. Each answer is a mark, one short sentence and the numbers behind it.

The rules of the marks; the first that holds is taken.

Is the batch out? Measured by batch leakage: 0 is chance, 1 means that the batch of every cell is recognised.
The worst of three probes counts. "Chance" is two standard deviations of that probe on permuted batches.

- good: within chance or below ``LEAK_SEEN``, and chance is at most ``CHANCE_MOST``;
- weak: lower than PCA's by more than two standard errors, and at most half of it;
- unknown: not measured; within chance where chance is above ``CHANCE_MOST``; or without labels, where
  differences in cell types count as batch leakage;
- failed: otherwise.

Are the labels kept? Measured by the share of held-out cells whose nearest neighbours give their label, over all
cells and as the mean over the labels with at least ``LEAST_HELD_OUT`` held-out cells, where rare labels count
like frequent ones. The worse of both marks is taken. It is not good if one of these labels is found in less than
``LEAST_FOUND`` of its held-out cells, even if PCA finds no more.

- unknown: no labels or only one; labels that may be names of clusters of the same cells
  (``labels_of_clusters`` of the record), which are no independent evidence; or PCA is not better than chance (two
  standard deviations above the null);
- failed: not better than chance, or below PCA by more than ``LOST_SOME`` and more than two standard errors;
- good: at most ``LOST_LITTLE`` below PCA; weak: otherwise.

Can the counterfactuals be trusted? By the verdict of :func:`scmedley.interpret.check.summarise` ("good";
"some": weak; "none": failed; too few pairs: unknown). There, a pair is not good if the plain difference of
training means predicts it better, and does not agree at all if that is far better.

No mark is better than weak if some batches share no label (``comparable`` of the record is false), or if
training of the judged network (with a given embedding, of the random-effects network) was interrupted.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from scmedley import keys
from scmedley.evaluate.probes import PROBES, ProbeName
from scmedley.interpret.check import ALL, TOO_FEW, summarise
from scmedley.models.catalogue import maps_of, run_row

Mark = Literal["good", "weak", "failed", "unknown"]

LEAK_SEEN = 0.05  # a leakage that exceeds its null by less counts as none
CHANCE_MOST = 0.1  # where chance is higher, a leakage within chance shows nothing
ONE_LABEL = 0.999  # accuracy by chance above which there is only one label
LOST_LITTLE, LOST_SOME = 0.02, 0.1  # loss of label accuracy
LEAST_HELD_OUT = 3  # held-out cells of a label that counts in the mean over labels
LEAST_FOUND = 0.5  # share of the held-out cells of such a label
MOST_NAMED = 3  # labels that lose most
BY_CHECK: dict[str, Mark] = {"good": "good", "some": "weak", "none": "failed", TOO_FEW: "unknown"}


@dataclass(frozen=True)
class Verdict:
    """The answer to one question: mark, sentence, and the known numbers by name."""

    question: str
    mark: Mark
    sentence: str
    numbers: dict[str, float]


def verdicts(
    scores: pd.DataFrame,
    check: pd.DataFrame | None,
    record: dict[str, Any],
    labels: pd.DataFrame | None = None,
) -> list[Verdict]:
    """Return the answers to the three questions, from the tables and the record of a run.

    ``check`` is ``None`` if the model has no batch effects, ``labels`` the table of
    :func:`scmedley.evaluate.label_accuracy`.
    """
    config, networks = record.get("config", {}), record.get("networks", {})
    given, model = config.get("fixed"), config.get("model", "mixed")
    judged = maps_of(model)[0]
    row = run_row(model)
    trained = model if row is not None else "random" if given else "fixed"
    cut = networks.get(trained, {}).get("stopped") == "interrupted"
    name = "fixed-effects" if row is None else row.name
    capped = cut or not record.get("comparable", True)
    suffix = "; training was interrupted." if cut else "."
    return [
        Verdict(question, "weak" if capped and mark == "good" else mark, words + suffix, _known(numbers))
        for question, (mark, words, numbers) in (
            (f"Is the batch out of {given or f'the {name} embedding'}?", _batch(scores, judged)),
            (
                "Are the labels kept?",
                _labels(scores, judged, labels, of_clusters=bool(record.get("labels_of_clusters"))),
            ),
            (
                "Can the counterfactuals (what-if) be trusted?",
                _trust(check, [*(record.get("design") or {}).get("keep", ())]),
            ),
        )
    ]


def lines(record: dict[str, Any]) -> list[str]:
    """Return the verdicts of a record as lines for the console. What cannot be compared comes first."""
    first = [] if record.get("comparable", True) else [record["verdict"]]
    return first + [f"[{v['mark']}] {v['question']} {v['sentence']}" for v in record.get("verdicts", [])]


def batch_mark(leak: float, chance: float, pca: float, error: float, has_labels: bool = True) -> Mark:
    """Return the mark of a batch leakage; ``error`` is two standard errors of its difference from PCA's."""
    within_chance = leak <= max(chance, LEAK_SEEN)
    if within_chance and chance <= CHANCE_MOST:
        return "good"
    if leak < pca - error and leak <= pca / 2:
        return "weak"
    return "unknown" if within_chance or not has_labels else "failed"


def label_mark(accuracy: float, chance: float, pca: float, error: float) -> Mark:
    """Return the mark of a label accuracy; ``error`` is two standard errors of its difference from PCA's."""
    if pca <= chance:
        return "unknown"
    lost = pca - accuracy
    if accuracy <= chance or lost > max(LOST_SOME, error):
        return "failed"
    return "good" if lost <= LOST_LITTLE else "weak"


def row_of(scores: pd.DataFrame, embedding: str, score: str, of: str) -> pd.Series | None:
    """Return one row of the table of scores, or ``None`` if it has no value."""
    rows = scores[(scores.embedding == embedding) & (scores.score == score) & (scores.of == of)]
    return None if rows.empty or not np.isfinite(rows.value.iloc[0]) else rows.iloc[0]


def leaks_of(scores: pd.DataFrame, embedding: str) -> dict[ProbeName, pd.Series]:
    """Return the batch leakage of an embedding, by probe."""
    rows = {probe: row_of(scores, embedding, f"{probe} leak", "batch") for probe in PROBES}
    return {probe: row for probe, row in rows.items() if row is not None}


def worst_of(leaks: dict[ProbeName, pd.Series]) -> ProbeName:
    """Return the probe with the highest leakage."""
    return max(leaks, key=lambda probe: float(leaks[probe].value))


def two_errors(one: pd.Series, other: pd.Series) -> float:
    """Return two standard errors of the difference of two leakages.

    Conservative: taken as measured on different cells; on the same cells the true error is smaller.
    """
    return 2 * float(np.hypot(one.se, other.se))


def _batch(scores: pd.DataFrame, judged: str) -> tuple[Mark, str, dict[str, float]]:
    fixed, pca = leaks_of(scores, judged), leaks_of(scores, keys.PCA)
    if not (fixed and pca):
        return "unknown", "Not measured: no label has enough held-out and other cells in two batches", {}
    worst, best = fixed[worst_of(fixed)], pca[worst_of(pca)]
    chance, error = 2 * float(worst.null_sd), two_errors(worst, best)
    has_labels = bool((scores.of == "label").any())
    mark = batch_mark(worst.value, chance, best.value, error, has_labels)
    left = (
        "some is left" if worst.value > max(chance, LEAK_SEEN) else "too few cells to show that none is left"
    )
    opening = {
        "good": "No leakage beyond chance",
        "weak": f"Lower leakage than PCA, but {left}",
        "failed": "The batch can still be predicted",
        "unknown": "Too few held-out cells" if has_labels else "Without labels, cell types count as batch",
    }[mark]
    words = f"{opening}: worst of three probes {worst.value:z.2f} (chance up to {chance:.2f}, PCA {best.value:z.2f})"
    numbers = {"leakage": worst.value, "chance": chance, "PCA": best.value, "error of the difference": error}
    numbers |= {f"leakage, {probe} probe": row.value for probe, row in fixed.items()}
    return mark, words, numbers | {f"PCA, {probe} probe": row.value for probe, row in pca.items()}


def _labels(
    scores: pd.DataFrame, judged: str, labels: pd.DataFrame | None, of_clusters: bool
) -> tuple[Mark, str, dict[str, float]]:
    fixed, pca = (row_of(scores, key, "kNN accuracy", "label") for key in (judged, keys.PCA))
    if fixed is None or pca is None:
        return "unknown", "Not measured: there are no labels", {}
    if fixed.null > ONE_LABEL:
        return "unknown", "Not measured: all cells have one label", {}
    error = 2 * math.sqrt(sum(p * (1 - p) for p in (fixed.value, pca.value)) / fixed.n_cells)
    mark = label_mark(fixed.value, fixed.null + 2 * fixed.null_sd, pca.value, error)
    words = (
        f"{fixed.value:.1%} of held-out cells get their label from their neighbours "
        f"(chance {fixed.null:.1%}, PCA {pca.value:.1%})"
    )
    numbers = {
        "accuracy": fixed.value,
        "chance": fixed.null,
        "PCA": pca.value,
        "error of the difference": error,
    }
    if of_clusters:
        why = f"Not judged: labels may be names of the clusters in obs[{keys.CLUSTER!r}], found in the same cells"
        return "unknown", f"{why}; {words}", numbers
    counted = None if labels is None else side_by_side(labels, judged)
    if mark == "unknown" or counted is None or len(counted) < 2:
        return mark, words, numbers
    by_label = mark_by_label(counted)
    missed = counted.fixed < LEAST_FOUND
    if by_label == "good" and missed.any():
        by_label = "weak"
    mark = max(mark, by_label, key=("unknown", "good", "weak", "failed").index)
    means = counted[["fixed", "pca"]].mean()
    words += f", {means.fixed:.1%} as the mean over labels (PCA {means.pca:.1%})"
    lost = counted[missed | (counted.pca - counted.fixed > LOST_LITTLE)].head(MOST_NAMED)
    if len(lost):
        named = [
            f"{name} {row.right_fixed:g} of {row.n_test:g} (PCA {row.right_pca:g})"
            for name, row in lost.iterrows()
        ]
        words += f"; worst: {', '.join(named)}"
    return mark, words, numbers | {"mean over labels": means.fixed, "mean over labels, PCA": means.pca}


def side_by_side(labels: pd.DataFrame, judged: str) -> pd.DataFrame:
    """Return one row for each label that counts in the mean: accuracies and numbers of cells.

    Labels that are mostly not found come first, then those that lose most against PCA.
    """
    own = labels[labels.n_test >= LEAST_HELD_OUT].set_index("label")
    fixed, pca = (own[own.embedding == key] for key in (judged, keys.PCA))
    table = pd.DataFrame(
        {
            "fixed": fixed.accuracy,
            "pca": pca.accuracy,
            "right_fixed": fixed.n_right,
            "right_pca": pca.n_right,
            "n_test": fixed.n_test,
        }
    ).dropna()
    order = table.assign(lost=table.fixed - table.pca, found=table.fixed >= LEAST_FOUND)
    return table.loc[order.sort_values(["found", "lost"], kind="stable").index]


def mark_by_label(counted: pd.DataFrame) -> Mark:
    """Return the mark of the mean accuracy over labels, from :func:`side_by_side`.

    One right and one wrong cell are added to each label for the standard error: without them, 0 of 3 would be
    certain.
    """
    n = counted.n_test + 2
    share = [(counted[right] + 1) / n for right in ("right_fixed", "right_pca")]
    error = 2 * math.sqrt(sum(float((p * (1 - p) / n).sum()) for p in share)) / len(counted)
    return label_mark(counted.fixed.mean(), 1 / len(counted), counted.pca.mean(), error)


def _trust(check: pd.DataFrame | None, kept: list[str]) -> tuple[Mark, str, dict[str, float]]:
    if check is None:
        return "unknown", "There are none: the decoder of this model has no batch effects", {}
    found, of_labels = summarise(check), set(check.label) != {ALL}
    mark, median = BY_CHECK[found.verdict], found.median
    numbers: dict[str, float] = {f"pairs, {word}": n for word, n in found.tally.items()}
    numbers |= {f"pairs against the plain difference, {word}": n for word, n in found.against.items()}
    numbers["pairs, wrong batch does nearly as well"] = found.n_shared
    numbers |= {f"median {name}": math.nan if value is None else value for name, value in median.items()}
    if mark == "unknown":
        judged = (
            f"only {found.n_judged} of {sum(found.tally.values())} {'pairs' if of_labels else 'batches'}"
            if found.n_judged
            else f"no {'pair' if of_labels else 'batch'}"
        )
        return (
            mark,
            f"{judged.capitalize()} could be judged on held-out cells; take gene shifts as guesses",
            numbers,
        )
    names = {
        "best_wrong_pearson": "wrong batch",
        "additive_pearson": "plain difference of means",
    }
    baselines = ", ".join(
        f"{what} {median[name]:z.2f}" for name, what in names.items() if median[name] is not None
    )
    if sum(found.against.values()):
        baselines += f": {', '.join(f'{word} in {n}' for word, n in found.against.items())}"
    agree = f"{found.tally['good']} of {found.n_judged} {'label-batch pairs' if of_labels else 'batches'} agree well"
    words = (
        f"{'Do not use: ' * (mark == 'failed')}{agree} with held-out cells; correlation {median['pearson']:z.2f}"
        f"{f' ({baselines})' * bool(baselines)}"
    )
    if kept:
        words += f"; not what-if of {', '.join(kept)}: what is kept in the latent cannot be changed"
    return mark, words, numbers


def _known(numbers: dict[str, float]) -> dict[str, float]:
    """Return the finite numbers as Python floats, for JSON."""
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}
