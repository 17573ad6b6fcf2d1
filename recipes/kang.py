"""Blood cells with and without interferon beta (Kang et al. 2018): can stimulated cells be predicted?

    scmedley experiment recipes/kang.py --data FOLDER --out kang-experiment

FOLDER holds kang_ifnb_2donors_1556.h5ad, which does not come with scmedley.
"""

from scmedley.experiment import Experiment

EPOCHS = 60  # default: about 200


def config() -> Experiment:
    """Hold out the stimulated cells of each type in turn. Batch: the condition."""
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
