"""Settings of a run: the options of the command line."""

from dataclasses import dataclass
from typing import Literal

from scmedley.keys import ValueKind


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of a run.

    Parameters
    ----------
    batch
        obs column of the batches (donors, samples, protocols). With several input files: name of the new
        column that holds the file of each cell.
    design
        Formula of several factors instead of --batch, as in lme4: "~ condition + age + (1 | study/donor)".
    nested_in
        obs column that the batches belong to, such as the study of a donor.
    covariate
        obs column with effects of its own, such as condition or age; repeat the option for more.
    slope
        Covariate whose effect differs between batches; repeat the option for more.
    keep
        Column of the design whose effects stay in the fixed latent, such as condition; repeat the option for more.
    label
        obs column of the labels (cell types), used for the split, the scores and the report. The networks
        see it only with --learn-labels.
    learn_labels
        Train the fixed-effects network also on the labels of the training cells.
    model
        "mixed": fixed and random effects. "vae": a variational autoencoder of the counts, with batch effects in
        its decoder. "deepbid": one whose latent batches do not move, with clusters and denoised counts. Or the name of
        a model that another package adds (docs/adding-a-model.md).
    preset
        "default", or "paper": the published networks and losses.
    settings
        TOML file with changes to the preset, such as best.toml of scmedley tune: tables [settings.FE],
        [settings.FEC] (with --learn-labels), [settings.RE]; or [settings.VAE]; or [settings.DeepBID].
    clusters
        Number of clusters of --model deepbid (default: as many as the evidence supports).
    donor
        obs column of the donors, for marker genes by donor with --model deepbid.
    denoise
        Write denoised.zarr, the expected expression of every cell in the genes of the model, with --model deepbid.
    fixed
        obsm key of an embedding to use instead of the fixed-effects network (for example X_pca_harmony).
    genes
        Number of highly variable genes to model (default: 3,000; with --model deepbid --preset paper 1,000 of each
        batch, of which the union is used).
    min_genes
        Remove cells in which fewer genes were detected.
    min_cells
        Remove genes that were detected in fewer cells.
    values
        What the matrix holds: "auto" decides by its values; "counts"; or the logarithm of normalised
        counts plus 1: "log1p" (natural), "log2", "log10".
    backed
        Prepare the cells on disk, block by block, and train from there: for files that do not fit in memory.
        integrated.h5ad then holds no matrix. By default cells are prepared on disk if the values in the input take more
        than a quarter of the free memory. The results are the same.
    store
        Folder of the cells prepared on disk (default: store, in the results). Runs on the same file with the same
        batch, label, genes, filters, values and seed can share it: only the first prepares.
    latent
        Latent dimensions of each network (default: 20; with --model vae 10; with --preset paper those of
        the publication).
    epochs
        Maximum number of epochs (default: set by the number of cells).
    null
        Fit the random-effects network a second time, to permuted batches, as the null of its scores.
    draws
        Posterior draws for each interval, 2 or more.
    seed
        Random seed.
    threads
        CPU threads (default: all).
    precision
        Precision of training; "auto" uses bfloat16 if the hardware supports it.
    device
        "auto", "cpu", "cuda", ...
    """

    batch: str = "batch"
    design: str | None = None
    nested_in: str | None = None
    covariate: tuple[str, ...] = ()
    slope: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    label: str | None = None
    learn_labels: bool = False
    model: Literal["mixed", "vae", "deepbid"] | str = (
        "mixed"  # --help lists the choices; other packages add some
    )
    preset: Literal["default", "paper"] = "default"
    settings: str | None = None
    clusters: int | None = None
    donor: str | None = None
    denoise: bool = True
    fixed: str | None = None
    genes: int | None = None
    min_genes: int = 10
    min_cells: int = 3
    values: ValueKind = "auto"
    backed: bool | None = None
    store: str | None = None
    latent: int | None = None
    epochs: int | None = None
    null: bool = True
    draws: int = 30
    seed: int = 0
    threads: int | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
