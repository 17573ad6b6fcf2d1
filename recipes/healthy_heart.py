"""Healthy heart (figshare 20499630), 147 batches, 13 cell types: the paper's experiments 1 to 3.

    scmedley experiment recipes/healthy_heart.py --data FOLDER --out healthy_heart-experiment

The folder holds the h5ad, which is not shipped. Weights are those of the authors' release.
"""

from scmedley.experiment import BASIC, Experiment

SETTINGS = {
    "AEC": {"mse_weight": 100.0, "label_weight": 0.1},
    "FE": {"mse_weight": 600.0, "adversary_weight": 1.0},
    "FEC": {"mse_weight": 2000.0, "adversary_weight": 1.0, "label_weight": 1.0},
    "RE": {"mse_weight": 110.0, "batch_weight": 0.1},
}


def config() -> Experiment:
    """Compare the published networks: latents (1), classifiers on them (2), label heads (3).

    What the paper has not is beside it: the null of permuted batches, and whole samples held out, as each has
    one tissue. Samples of one donor may still be on both sides.
    """
    return Experiment(
        name="Heart",
        data="healthy_heart",
        batch_key="sample",
        targets=("tissue",),
        methods=BASIC,
        preset="paper",
        settings=SETTINGS,
        splits=("cells", "donors"),
        n_top_genes=3000,
        published="Heart",
    )
