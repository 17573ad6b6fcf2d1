"""What a run found, in plain words, each number beside its null or baseline."""

from typing import Any

import numpy as np
import pandas as pd

from scmedley import keys

LEAK_SEEN = 0.05  # a leak below this, or within two spreads of its null, is called nothing to find


def findings(
    scores: pd.DataFrame, shifts: pd.DataFrame, check: pd.DataFrame, record: dict[str, Any]
) -> list[str]:
    """Give the findings as sentences, the most important first."""
    has_labels = bool((scores.of == "label").any())
    said = [
        _fixed(scores),
        _labels(scores),
        _random(scores, has_labels),
        _most_different(shifts),
        _trust(check),
    ]
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
    luck = 2 * float(np.hypot(fixed.null_sd, pca.null_sd))
    gap = fixed.value - pca.value
    much = "about as much as" if abs(gap) <= luck else "less than" if gap < 0 else "more than"
    return (
        f"Fixed effects: this embedding gives away a held-out cell's batch {much} the principal components do "
        f"(leak {fixed.value:z.2f} against {pca.value:z.2f}; 0 is chance, ±{2 * fixed.null_sd:.2f} by luck, 1 is all)."
    )


def _labels(scores: pd.DataFrame) -> str:
    fixed, pca = (_row(scores, key, "kNN accuracy", "label") for key in (keys.FIXED, keys.PCA))
    if fixed is None or pca is None or fixed.null > 0.999:  # one label only
        return ""
    return (
        f"Cell types: {fixed.value:.1%} of held-out cells have neighbours of their own label in the "
        f"fixed-effects embedding ({pca.value:.1%} in the principal components, {fixed.null:.1%} by chance)."
    )


def _random(scores: pd.DataFrame, has_labels: bool) -> str:
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
    luck = max(2 * float(np.hypot(random.null_sd, null.null_sd)), LEAK_SEEN)
    verdict = "it finds real differences" if margin > luck else "it finds no more than chance would"
    return (
        f"Random effects: {verdict} between batches (leak {random.value:z.2f}; {null.value:z.2f} for the same "
        f"network, fitted once, on batch labels permuted{within})."
    )


def _most_different(shifts: pd.DataFrame) -> str:
    seen = shifts[shifts.seen]
    if seen.empty:
        return ""
    size = seen.groupby("batch", sort=True)["shift"].apply(lambda s: float(np.sqrt((s**2).mean())))
    batch = str(size.idxmax())
    own = seen[seen.batch == batch]
    sure = own[(own.q05 > 0) | (own.q95 < 0)]
    by_gene = sure.groupby("gene")["shift"].mean()
    genes = by_gene.abs().sort_values(ascending=False, kind="stable").index[:5]
    named = ", ".join(f"{gene} ({by_gene[gene]:+.2f})" for gene in genes) or "none whose interval excludes 0"
    return (
        f"Batch {batch} lies farthest from the population mean, all batch effects at zero (its most shifted "
        f"genes by {size[batch]:.2f} log1p CP10k, root mean square; the nearest is {size.idxmin()}, by "
        f"{size.min():.2f}). Genes: {named}."
    )


def _trust(check: pd.DataFrame) -> str:
    usable = check.dropna(subset=["pearson"])
    if usable.empty:
        return (
            "Counterfactuals could not be checked: no label has 10 held-out cells on both sides of a batch."
        )
    beside = [f"median of {len(usable)} pairs of label and batch"]
    beside += [
        f"{usable[name].median():z.2f} for {what}"
        for name, what in (
            ("ceiling_pearson", "a perfect prediction, given how few the cells are"),
            ("wrong_batch_pearson", "a wrong batch"),
            ("additive_pearson", "the plain difference of training means"),
        )
        if usable[name].notna().any()
    ]
    return (
        "Counterfactuals: predicted and observed shifts of held-out cells correlate with "
        f"{usable.pearson.median():z.2f} ({', '.join(beside)}); "
        f"the observed ones are {usable.slope.median():z.2f} times the size of the predicted."
    )
