"""Settings of a run, as the command line takes them."""

from dataclasses import dataclass
from typing import Literal

from scmedley.keys import ValueKind


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of a run.

    Parameters
    ----------
    batch
        obs column of the batches (donors, samples, protocols). With several input files, the name
        to give the column that says which file a cell is from.
    label
        obs column of the cell types. It is for the split, the scores and the report; the networks see
        it only with --learn-labels.
    learn_labels
        Train the fixed-effects network on the labels of the training cells too.
    preset
        "default", or "paper" for the published networks and losses.
    settings
        TOML file with changes to the preset, as scmedley tune writes it: tables [settings.FE], [settings.FEC]
        (with --learn-labels), [settings.RE].
    fixed
        obsm key of an embedding to take as the fixed part (for example X_pca_harmony).
    genes
        Highly variable genes to model.
    min_genes
        Cells with fewer genes found are removed.
    min_cells
        Genes found in fewer cells are removed.
    values
        What the matrix holds, where the evidence should not decide: "counts", or logarithms of normalised
        counts plus 1: "log1p" (natural), "log2", "log10".
    latent
        Latent dimensions of both networks (preset's: 50).
    epochs
        Epochs at most (default: set by the number of cells).
    null
        Fit the random-effects network once more on permuted batch labels, as the null of its scores.
    draws
        Posterior draws behind each interval.
    seed
        Seed of everything random.
    threads
        CPU threads (default: all).
    precision
        Numbers in which networks are trained; "auto" takes bfloat16 where the hardware has it.
    device
        "auto", "cpu", "cuda", ...
    """

    batch: str = "batch"
    label: str | None = None
    learn_labels: bool = False
    preset: Literal["default", "paper"] = "default"
    settings: str | None = None
    fixed: str | None = None
    genes: int = 3000
    min_genes: int = 10
    min_cells: int = 3
    values: ValueKind = "auto"
    latent: int | None = None
    epochs: int | None = None
    null: bool = True
    draws: int = 30
    seed: int = 0
    threads: int | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
