"""Blood cells with and without interferon beta (Kang et al. 2018): can a cell type's stimulated cells be predicted?

    scmedley experiment recipes/kang.py --data FOLDER --out kang-experiment

The folder holds kang_ifnb_2donors_1556.h5ad, which is not shipped.
"""

from scmedley.experiment import Experiment

EPOCHS = 60  # default: about 200


def config() -> Experiment:
    """Hold the stimulated cells of each type out in turn. The condition is the batch."""
    return Experiment(
        name="Interferon beta, 2 donors",
        data="kang_ifnb_2donors_1556.h5ad",
        batch_key="condition",
        methods=("FE", "RE"),
        settings={name: {"max_epochs": EPOCHS} for name in ("FE", "RE")},
        splits=("pairs",),
        pairs=5,
        pair_batches=("stim",),
    )
