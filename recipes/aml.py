"""Acute myeloid leukaemia (GSE116256), 19 donors, 21 healthy and malignant cell types: experiments 1 to 3.

    scmedley experiment recipes/aml.py --data FOLDER --out aml-experiment

FOLDER holds GEO's GSM*_*.dem.txt.gz and .anno.txt.gz (download them). Loss weights: the authors' release.
"""

from scmedley.datasets.papers import LOSS_WEIGHTS
from scmedley.experiment import BASIC, Experiment


def config() -> Experiment:
    """Compare the published networks: latents (1), classifiers on them (2), label heads (3).

    Not in the paper: the null (permuted batches) and held-out donors.
    """
    return Experiment(
        name="AML",
        data="aml",
        batch_key="donor",
        targets=("patient_group",),
        methods=BASIC,
        preset="paper",
        settings=LOSS_WEIGHTS["release"]["AML"],
        splits=("cells", "donors"),
        n_top_genes=2916,
        published="AML",
    )
