"""Healthy heart (figshare 20499630), 147 batches, 13 cell types: the paper's experiments 1 to 3.

    scmedley experiment recipes/healthy_heart.py --data FOLDER --out healthy_heart-experiment

The folder holds the h5ad, which is not shipped. Weights are those of the authors' release.
"""

from scmedley.datasets.papers import LOSS_WEIGHTS
from scmedley.experiment import BASIC, Experiment


def config() -> Experiment:
    """Compare the published networks: latents (1), classifiers on them (2), label heads (3).

    What the paper has not is beside it: the null of permuted batches, and whole samples held out. The tissue is
    a property of a sample: each donor gave several, so that who the donor is does not tell it.
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
