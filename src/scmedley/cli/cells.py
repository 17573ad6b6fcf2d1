"""Commands about a file of cells, which fit no network: explore, cluster, effects."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from scmedley.cli.options import FORMATS, Overwrite, Quiet, Results, Threads, Values, Whole
from scmedley.cli.printing import sayer, warn, warn_of_leftovers, warnings_as_lines


def explore(
    inputs: Annotated[
        list[Path], Parameter(name="inputs", help=f"{FORMATS}. Several files are explored together.")
    ],
    /,
    *,
    out: Results,
    batch: str | None = None,
    donor: str | None = None,
    site: str | None = None,
    label: str | None = None,
    values: Values = "auto",
    compare: bool = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    seed: int = 0,
    threads: Threads | None = None,
) -> None:
    """Show what is in the files before any model: obs, batches, labels, counts per cell, their distribution.

    The folder gets report.html, a CSV for each table, explore.json and versions.json. The matrix is read in
    blocks of cells: h5ad and Zarr may be larger than the memory.

    Parameters
    ----------
    batch
        obs column of the batches (default: chosen by its name, as the output says).
    donor
        obs column of the donors (default: chosen by its name).
    site
        obs column of the sites or studies (default: chosen by its name).
    label
        obs column of the labels, such as cell types (default: chosen by its name).
    compare
        Compare two normalisations, log1p of counts per 10,000 and analytic Pearson residuals, on 5,000 cells.
    seed
        Random seed of these cells.
    threads
        CPU threads (default: all).
    """
    from scmedley.pipeline import explore as work

    warn_of_leftovers(out)
    roles: Any = {"batch": batch, "donor": donor, "site": site, "label": label}
    how: Any = {"values": values, "compare": compare, "seed": seed, "progress": not quiet}
    found = work.write(inputs, out, overwrite=overwrite, threads=threads, **roles, **how)
    say = sayer(quiet)
    say(f"\n{found.n_cells:,} cells x {found.n_genes:,} genes\n\nWhat was found")
    for sentence in found.findings():
        say(f"  - {sentence}")
    if found.missing:
        say("\nNot shown")
        for name, reason in found.missing.items():
            say(f"  - {name}: {reason}")
    for sentence in found.warnings:
        warn(sentence)
    say(f"\nReport: {(out / 'report.html').resolve()}")


def cluster(
    input: Path,
    /,
    *,
    use: str,
    out: Results = Path("clusters"),
    batch: str | None = None,
    label: str | None = None,
    donor: str | None = None,
    k: Whole | None = None,
    level: Whole | None = None,
    values: Values = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    seed: int = 0,
    threads: Threads | None = None,
) -> None:
    """Find clusters in an embedding of a file, each with the evidence that it stands, and their marker genes.

    The folder gets clustered.h5ad (the cells, with clusters in obs and memberships in obsm), clusters.csv,
    cluster_evidence.csv, cluster_tree.csv, cluster_by_batch.csv, cluster_by_label.csv, markers.csv, cluster.json
    and versions.json.

    Parameters
    ----------
    input
        File of cells with an embedding: h5ad or Zarr.
    use
        obsm key of the embedding, such as X_pca_harmony. If the file has none: scanpy.pp.pca writes X_pca, and
        scmedley run the latents of its models.
    batch
        obs column of the batches, for cluster_by_batch.csv. Clusters are found without it.
    label
        obs column of the labels, for cluster_by_label.csv and the names of clusters. Clusters are found without it.
    donor
        obs column of the donors, for the markers by donor. Clusters are found without it.
    k
        Number of clusters (default: as many as the evidence supports).
    level
        So many clusters more (1, 2: finer) or fewer (-1, -2: coarser) than the evidence supports.
    seed
        Random seed.
    threads
        CPU threads (default: all).
    """
    from scmedley.pipeline import clusters as work

    warn_of_leftovers(out)
    asked: Any = {"use": use, "batch": batch, "label": label, "donor": donor, "k": k, "level": level}
    how: Any = {"values": values, "seed": seed, "threads": threads, "overwrite": overwrite}
    say = sayer(quiet)
    with warnings_as_lines():
        found = work.cluster(input, out, say=say, **asked, **how)
    say("\nWhat was found")
    for sentence in found["findings"]:
        say(f"  - {sentence}")
    say(f"\nCells and tables: {out.resolve()}")


def effects(
    input: Path,
    /,
    *,
    condition: str,
    donor: str,
    out: Results = Path("effects"),
    label: str | None = None,
    reference: str | None = None,
    covariate: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    nested_in: str | None = None,
    min_cells: Whole = 10,
    min_donors: Whole = 2,
    total: str | None = None,
    values: Values = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    threads: Threads | None = None,
) -> None:
    """Estimate the effects of a condition on genes and on composition, with donors as replicates.

    The folder gets effects.html, effects.csv, composition.csv and shares.csv (with --label), variance.csv,
    sample_distances.csv, sample_association.csv, effects.json and versions.json.

    Parameters
    ----------
    input
        File of cells, in any format that run reads.
    condition
        obs column of the condition: levels such as ctrl and stim, or numbers such as a dose or an age.
    donor
        obs column of the donors (patients, animals, cultures). Cells of one donor are no replicates.
    label
        obs column of the labels, such as cell types; each is tested alone (default: all cells together).
    reference
        Level of the condition that the others are compared with (default: one that is named like a control, or
        the first).
    covariate
        obs columns that effects are adjusted for, such as age or sex.
    nested_in
        obs column of the studies in which donors are nested; effects are adjusted for it.
    min_cells
        Samples (a donor under a condition) with fewer cells of a label are left out.
    min_donors
        Donors of each level that a test needs; with fewer, effects have no interval and no p-value.
    total
        obs column of each cell's counts over all genes, if the file has a part of the genes, such as a panel
        (default: depths are estimated from the genes of the file).
    threads
        CPU threads (default: all).
    """
    from scmedley.pipeline import effects as work

    warn_of_leftovers(out)
    asked: Any = {"condition": condition, "donor": donor, "label": label, "reference": reference}
    asked |= {"covariates": covariate or (), "nested_in": nested_in, "total": total, "values": values}
    how: Any = {"min_cells": min_cells, "min_donors": min_donors, "threads": threads, "overwrite": overwrite}
    say = sayer(quiet)
    with warnings_as_lines():
        found = work.effects(input, out, say=say, progress=not quiet, **asked, **how)
    for sentence in found["warnings"]:
        warn(sentence)
    say("\nWhat was found")
    for sentence in found["findings"]:
        say(f"  - {sentence}")
    say(f"\nReport: {(out / 'effects.html').resolve()}")
