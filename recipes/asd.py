"""Autism (UCSC Cell Browser "autism"), 31 donors, 17 cell types: the paper's experiments 1 to 3.

    scmedley experiment recipes/asd.py --data FOLDER --out asd-experiment

FOLDER holds exprMatrix.tsv.gz and meta.tsv (download them). Loss weights: the authors' release.
"""

from scmedley.datasets.papers import LOSS_WEIGHTS
from scmedley.experiment import BASIC, Experiment


def config() -> Experiment:
    """Compare the published networks: latents (1), classifiers on them (2), label heads (3).

    Not in the paper: the null (permuted batches) and held-out donors.
    """
    return Experiment(
        name="ASD",
        data="asd",
        batch_key="donor",
        targets=("diagnosis",),
        methods=BASIC,
        preset="paper",
        settings=LOSS_WEIGHTS["release"]["ASD"],
        splits=("cells", "donors"),
        n_top_genes=2916,
        published="ASD",
    )
