"""How far a prediction can be trusted, in words: once, for the report, its explorer and ``scmedley project``.

The keys are the words of :mod:`scmedley.interpret.check`.
"""

from scmedley.interpret.check import TOO_FEW

UNUSABLE = "Do not use: over this run, predictions did not agree with held-out cells."
DISAGREED = "predictions did not agree with held-out cells: draw no conclusion"
UNCHECKED = "the prediction was not checked on held-out cells: take it as a guess"
AGREED = {
    "good": "predictions agreed well with held-out cells: fit to rank genes by",
    "some": "predictions agreed somewhat with held-out cells: trust the direction of strong changes only",
    "none": DISAGREED,
    TOO_FEW: "too few held-out cells, or too small a shift, to check the prediction: take it as a guess",
}
COMPARED = {
    "better": " Better than the plain difference of training means.",
    "tie": " A tie with the plain difference of training means.",
    "worse": " Worse than the plain difference of training means.",
}
# Of the whole run, after how many pairs agreed.
ADVICE = {
    "good": "Use those that agree well to rank genes; confirm single genes elsewhere.",
    "some": "Trust the direction of strong shifts, not their size and not single genes.",
    "none": "Do not draw conclusions from the counterfactuals of this run.",
    TOO_FEW: "These are too few to speak for the others: take the counterfactuals of this run as guesses.",
}
# Of labels in target batches that ``scmedley project`` shows; a pair that agrees needs none.
UNSEEN, WORSE = "never seen", "worse"
CAUTIONS = {
    UNSEEN: "never seen together, so this is an extrapolation that no cell of these data backs",
    "none": DISAGREED,
    WORSE: "the plain difference of training means predicts held-out cells better",
    TOO_FEW: "the prediction was not checked, or too little was held out to check it: take it as a guess",
}


def judged(agreement: str, against: str) -> str:
    """Return what the check said of one pair, and how it compares with the plain difference of training means."""
    return f"{AGREED[agreement]}.{'' if agreement == TOO_FEW else COMPARED.get(against, '')}"
