"""Acute myeloid leukaemia (GSE116256), 19 donors, 21 cell types, malignant ones too: experiments 1 to 3.

    scmedley experiment recipes/aml.py --data FOLDER --out aml-experiment

The folder holds GEO's GSM*_*.dem.txt.gz and .anno.txt.gz, which are not shipped. Weights: the authors' release.
"""

from scmedley.datasets.papers import LOSS_WEIGHTS
from scmedley.experiment import BASIC, Experiment


def config() -> Experiment:
    """Compare the published networks: latents (1), classifiers on them (2), label heads (3).

    What the paper has not is beside it: the null of permuted batches, and donors held out.
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
