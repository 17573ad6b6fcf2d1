"""What a run found, in plain words, each number beside its null or baseline."""

from typing import Any

import numpy as np
import pandas as pd

from scmedley import keys
from scmedley.evaluate.counterfactual import ALL, TOO_FEW, agreement, summarise
from scmedley.evaluate.shifts import batch_distances
from scmedley.gene_names import shown_in

NULL_NAME = "random, permuted batches"  # the network that is the null of the random effects
LEAK_SEEN = 0.05  # a leak that exceeds its null by less, or by less than its error, is called nothing to find


def findings(
    scores: pd.DataFrame, shifts: pd.DataFrame, check: pd.DataFrame, record: dict[str, Any]
) -> list[str]:
    """Give the findings as sentences, the most important first."""
    has_labels = bool((scores.of == "label").any())
    said = [
        _fixed(scores),
        _labels(scores),
        _random(scores, has_labels, record.get("networks", {})),
        _most_different(shifts, check),
    ]
    said.insert(0 if summarise(check).verdict == "none" else 3, _trust(check))
    if not has_labels:
        said.append(
            "Without labels, a leak includes differences in composition: batches with other cell types."
        )
    if record.get("verdict"):  # what cannot be compared comes before what was found by comparing
        said.insert(len(said) if record.get("comparable", True) else 0, record["verdict"])
    return [sentence for sentence in said if sentence]


def _row(scores: pd.DataFrame, embedding: str, score: str, of: str) -> pd.Series | None:
    rows = scores[(scores.embedding == embedding) & (scores.score == score) & (scores.of == of)]
    return None if rows.empty or not np.isfinite(rows.value.iloc[0]) else rows.iloc[0]


def _fixed(scores: pd.DataFrame) -> str:
    fixed, pca = (_row(scores, key, "kNN leak", "batch") for key in (keys.FIXED, keys.PCA))
    if fixed is None or pca is None:
        return (
            "Whether the fixed-effects embedding gives away the batch could not be measured: no label has "
            "enough cells, held out and not, in two batches."
        )
    gap, error = fixed.value - pca.value, _error(fixed, pca)
    left = ""
    if fixed.value > max(fixed.null + 2 * float(fixed.se), LEAK_SEEN):
        left = " Something of the batch is left in it."
    much = "about as much as" if abs(gap) <= error else "less than" if gap < 0 else "more than"
    return (
        f"Fixed effects: this embedding gives away a held-out cell's batch {much} the principal components do "
        f"(leak {fixed.value:z.2f} against {pca.value:z.2f}, a difference known to ±{error:.2f} with so many "
        f"held-out cells, and less well with one fit alone; 0 is chance, 1 is all).{left}"
    )


def _error(one: pd.Series, other: pd.Series) -> float:
    """Give two standard errors of the difference of two leaks.

    As if they were measured on different cells: the same cells make it smaller, so that this is on the safe side.
    """
    return 2 * float(np.hypot(one.se, other.se))


def _labels(scores: pd.DataFrame) -> str:
    fixed, pca = (_row(scores, key, "kNN accuracy", "label") for key in (keys.FIXED, keys.PCA))
    if fixed is None or pca is None or fixed.null > 0.999:  # one label only
        return ""
    return (
        f"Cell types: {fixed.value:.1%} of held-out cells have neighbours of their own label in the "
        f"fixed-effects embedding ({pca.value:.1%} in the principal components, {fixed.null:.1%} by chance)."
    )


def _random(scores: pd.DataFrame, has_labels: bool, networks: dict[str, Any]) -> str:
    random, null = (_row(scores, key, "kNN leak", "batch") for key in (keys.RANDOM, keys.NULL))
    if random is None:
        return ""
    if null is None:
        return (
            f"Random effects: this embedding tells batches apart with a leak of {random.value:z.2f}. No network was "
            "trained on permuted batches, so how much of that is the label being read back is not known."
        )
    margin = random.value - null.value
    within = " within cell types" if has_labels else ""
    cut = [
        f"of {what} after epoch {networks[name]['epochs']}"
        for name, what in (("random", "this network"), (NULL_NAME, "the null"))
        if networks.get(name, {}).get("stopped") == "interrupted"
    ]
    if cut:
        return (
            f"Random effects: this embedding has a leak of {random.value:z.2f}, and its null, the same network for "
            f"batch labels permuted{within}, {null.value:z.2f}; but the comparison is void, as training was "
            f"interrupted: {', '.join(cut)}. Run again with --overwrite to compare."
        )
    least = max(_error(random, null), LEAK_SEEN)
    verdict = "tells batches apart beyond its null" if margin > least else "finds no more than its null does"
    return (
        f"Random effects: this embedding {verdict} (leak {random.value:z.2f}; {null.value:z.2f} for the same "
        f"network, fitted once, to batch labels permuted{within})."
    )


def _most_different(shifts: pd.DataFrame, check: pd.DataFrame) -> str:
    """Name the batch farthest from the average and its genes, unless check or null speak against them."""
    seen, distances = shifts[shifts.seen], batch_distances(shifts)
    if seen.empty or summarise(check).verdict == "none" or shifts.batch.nunique() < 2:
        return ""
    if distances.empty:
        return "No cell type is in all batches, so it is not said which batch differs most from the others."
    said, stands_out = _farthest(distances, "" if set(seen.label) == {ALL} else " within cell types")
    if not stands_out:
        return said
    batch = distances.batch.iloc[0]
    own = seen[seen.batch == batch]
    words = agreement(check).set_axis(check.label)[(check.batch == batch).to_numpy()]
    judged = words[words != TOO_FEW]
    if judged.empty:
        trusted = own
    else:
        trusted = own[own.label.isin(judged.index[judged != "none"])]
    named = "No gene is named: no label that was judged agrees"
    if not trusted.empty:
        named = f"Genes that shift most there, and were seen to: {_genes(trusted)}"
    return (
        f"{said} {named}. Agreement with held-out cells in {batch}: {_judged(judged, own.label.nunique())}."
    )


def _farthest(distances: pd.DataFrame, within: str) -> tuple[str, bool]:
    """Say which batch lies farthest, and whether the cells themselves lie farther apart than permuted ones."""
    first, second = distances.iloc[0], distances.iloc[1]
    times = (
        2 if len(distances) == 2 else 1
    )  # two batches lie twice as far from each other as from their average
    beside = (
        f"root mean square over genes; observed {times * first.observed:.2f}, and {times * first.null:.2f} for batches "
        f"permuted{within}"
    )
    if first.observed <= first.null + 2 * first.null_sd:
        far = f"{first.batch} lies farthest from the average batch, but no farther than by chance"
        return f"No batch is seen to differ: {far} ({beside}).", False
    interval = f"{times * first.distance:.2f} [{times * first.q05:.2f}, {times * first.q95:.2f}] log1p CP10k"
    if times == 2:
        return f"Batches {first.batch} and {second.batch} lie {interval} apart ({beside}).", True
    said = (
        f"Batch {first.batch} lies farthest from the average batch, by {interval}, before {second.batch} with"
    )
    unsure = ", which this fit does not tell apart" if second.q95 >= first.q05 else ""
    return f"{said} {second.distance:.2f}{unsure} ({beside}).", True


def _judged(words: "pd.Series[str]", n_labels: int) -> str:
    """Say how many of the labels of a batch were judged, and how."""
    if words.empty:
        return "no label could be checked" if n_labels > 1 else "it could not be checked"
    if n_labels == 1:
        return str(words.iloc[0])
    n = words.value_counts()
    said = ", ".join(f"{n[word]} {word}" for word in ("good", "some", "none") if word in n)
    said = said.replace(" ", f" of {len(words)} judged label{'s' * (len(words) > 1)} ", 1)
    few = n_labels - len(words)
    return said + (f"; {few} could not be judged" if few else "")


def _genes(own: pd.DataFrame) -> str:
    """List the largest shifts whose interval excludes 0 and whose sign is the observed one."""
    sure = own[((own.q05 > 0) | (own.q95 < 0)) & (np.sign(own.observed) == np.sign(own["shift"]))]
    order = sure["shift"].abs().sort_values(ascending=False, kind="stable").index
    top = shown_in(sure.loc[order]).drop_duplicates("gene").head(5)
    where = "" if set(own.label) == {ALL} else " in {label}"
    named = [
        f"{row.gene} ({row.shift:+.2f}{where.format(label=row.label)}; observed {row.observed:+.2f})"
        for row in top.itertuples()
    ]
    return ", ".join(named) or "none for sure"


def _trust(check: pd.DataFrame) -> str:
    found = summarise(check)
    if not found.n_judged:
        return (
            "Counterfactuals could not be checked: no label has a shift between batches that stands out from the "
            "noise of its held-out cells (they are few, or the batches hardly differ). Take gene shifts as guesses."
        )
    beside = [
        f"{found.tally['good']} of {found.n_judged} pairs of label and batch good, {found.tally['some']} some",
        *_bounds(found.median),
    ]
    if found.n_shared:
        beside.insert(
            1,
            f"in {found.n_shared} not particular to the batch: the prediction for another does nearly as well",
        )
    verdict, size = "Counterfactuals", ""
    if found.verdict == TOO_FEW:
        verdict = (
            "Counterfactuals could not be checked well, so take gene shifts as guesses. Only "
            f"{found.n_judged} of {len(check)} pairs of label and batch have cells and shift enough to judge by; there"
        )
    elif found.verdict == "none":
        verdict = "Do not use the counterfactuals and gene shifts of this run"
    else:
        size = f"; the slope of observed on predicted is {found.median['slope']:z.2f} (1: the right size)"
    return (
        f"{verdict}: predicted and observed shifts of held-out cells correlate with "
        f"{found.median['pearson']:z.2f} ({'; '.join(beside)}){size}."
    )


def _bounds(median: dict[str, float | None]) -> list[str]:
    """Give what a correlation stands beside: its ceiling, the best wrong batch and the baseline."""
    said = [
        f"{median[name]:z.2f} for {what}"
        for name, what in (
            ("ceiling_pearson", "a perfect prediction, given how few the cells are"),
            ("best_wrong_pearson", "the best of the wrong batches"),
        )
        if median[name] is not None
    ]
    model, additive = median["pearson"], median["additive_pearson"]
    if model is not None and additive is not None:
        plain = "the plain difference of training means"
        better = round(additive, 2) > round(model, 2)
        said.append(f"{plain} does better, at {additive:z.2f}" if better else f"{additive:z.2f} for {plain}")
    return said
