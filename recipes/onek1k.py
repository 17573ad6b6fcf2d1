"""OneK1K, 40 donors: blood cells with the donor as the batch, and the donor's sex as what must not be read from it.

scmedley experiment recipes/onek1k.py --out onek1k-experiment
"""

from scmedley.experiment import BASIC, Experiment

EPOCHS = 30  # default: 55. So that 5 folds of cells and 5 of donors take half an hour on two cores


def config() -> Experiment:
    """Compare all networks with cells split and with donors held out."""
    return Experiment(
        name="OneK1K, 40 donors",
        data="onek1k",
        targets=("sex",),
        methods=BASIC,
        settings={name: {"max_epochs": EPOCHS} for name in ("AE", "AEC", "FE", "FEC", "RE")},
        splits=("cells", "donors"),
    )
