"""Blood cells of 8 samples measured with 4 technologies: strong batch effects that are not biology.

    scmedley experiment recipes/pbmc.py --data FOLDER --out pbmc-experiment

FOLDER holds pbmc_8batches_14k.h5ad, which does not come with scmedley.
"""

from scmedley.experiment import BASIC, Experiment

EPOCHS = 60  # default: 118. With 2,000 genes (default: 3,000), five folds take half an hour on two cores


def config() -> Experiment:
    """Compare all networks on held-out cells. Batches are samples, not donors, so no donors are held out."""
    return Experiment(
        name="PBMC, 8 batches",
        data="pbmc_8batches_14k.h5ad",
        label_key="cell_type_broad",
        methods=BASIC,
        settings={name: {"max_epochs": EPOCHS} for name in ("AE", "AEC", "FE", "FEC", "RE")},
        n_top_genes=2000,
    )
