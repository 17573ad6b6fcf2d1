"""OneK1K, blood cells of 40 donors. Batch: the donor. Target: the donor's sex.

scmedley experiment recipes/onek1k.py --out onek1k-experiment
"""

from scmedley.experiment import BASIC, Experiment

EPOCHS = 30  # default: 55. 5 folds of cells and 5 of donors then take half an hour on two cores


def config() -> Experiment:
    """Compare all networks on held-out cells and on held-out donors."""
    return Experiment(
        name="OneK1K, 40 donors",
        data="onek1k",
        targets=("sex",),
        methods=BASIC,
        settings={name: {"max_epochs": EPOCHS} for name in ("AE", "AEC", "FE", "FEC", "RE")},
        splits=("cells", "donors"),
    )
