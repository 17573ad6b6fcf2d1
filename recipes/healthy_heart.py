"""Healthy heart (figshare 20499630), 147 batches, 13 cell types: the paper's experiments 1 to 3.

    scmedley experiment recipes/healthy_heart.py --data FOLDER --out healthy_heart-experiment

FOLDER holds the h5ad (download it). Loss weights: the authors' release.
"""

from scmedley.datasets.papers import LOSS_WEIGHTS
from scmedley.experiment import BASIC, Experiment


def config() -> Experiment:
    """Compare the published networks: latents (1), classifiers on them (2), label heads (3).

    Not in the paper: the null (permuted batches) and held-out samples. The tissue is a property of a sample:
    each donor gave several, so it cannot be predicted from the donor.
    """
    return Experiment(
        name="Heart, samples held out",
        data="healthy_heart",
        batch_key="sample",
        targets=("tissue",),
        methods=BASIC,
        preset="paper",
        settings=LOSS_WEIGHTS["release"]["Heart"],
        splits=("cells", "donors"),
        n_top_genes=3000,
        published="Heart",
    )
