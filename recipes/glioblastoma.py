"""Glioblastoma of 5 patients, untreated and with panobinostat: can a patient's treated cells be predicted?

    scmedley experiment recipes/glioblastoma.py --data FOLDER --out glioblastoma-experiment

FOLDER holds glioblastoma_panobinostat_5patients_300g.h5ad, which does not come with scmedley (Zhao et al.
2021, GSE148842; the 300 genes of the example data of the R package lemur).
"""

from scmedley.experiment import Experiment

EPOCHS = 30  # default: 65


def config() -> Experiment:
    """Hold out the treated cells of each patient in turn. Batch: the condition. Label: the patient."""
    return Experiment(
        name="Glioblastoma, panobinostat",
        data="glioblastoma_panobinostat_5patients_300g.h5ad",
        batch_key="condition",
        label_key="donor",
        methods=("FE", "RE", "RE, permuted batches"),
        settings={name: {"max_epochs": EPOCHS} for name in ("FE", "RE")},
        splits=("pairs",),
        pairs=5,
        pair_batches=("panobinostat",),
    )
