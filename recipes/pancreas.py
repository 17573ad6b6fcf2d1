"""Pancreas cells of 8 data sets and 5 technologies, 500 cells: few cells and large batch effects.

scmedley experiment recipes/pancreas.py --out pancreas-experiment
"""

from scmedley.experiment import BASIC, Experiment


def config() -> Experiment:
    """Compare all networks and Harmony (if installed) with two random seeds, on held-out cells and pairs."""
    return Experiment(
        name="Pancreas, 8 data sets",
        data="pancreas",
        methods=(*BASIC, "Harmony"),
        seeds=(0, 1),
        splits=("cells", "pairs"),
        pair_cells=10,
    )
