"""The commands of the command line. Heavy imports are inside the commands, so that --help is quick."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from scmedley import __version__
from scmedley.cli.cells import cluster, effects, explore
from scmedley.cli.options import (
    NO_SETTINGS,
    Explorer,
    Inputs,
    Overwrite,
    Quiet,
    Results,
    RunFolder,
    Settings,
    Threads,
    Unknown,
    UnknownOrAdapt,
    Values,
    with_new_names,
)
from scmedley.cli.printing import (
    must_be_new,
    print_findings,
    sayer,
    warnings_as_lines,
)
from scmedley.keys import ExportFormat
from scmedley.pipeline.config import RunConfig

__all__ = ["app", "with_new_names"]
app = App(
    name="scmedley",
    help="Mixed-effects deep learning for single-cell RNA-seq.",
    help_epilogue="Every command takes --debug: show the full traceback of an error.",
    version=__version__,
    suppress_keyboard_interrupt=False,  # __main__ prints a message for it
)


@app.command
def run(
    inputs: Inputs,
    /,
    *,
    out: Results,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    explorer: Explorer = True,
    config: Settings = NO_SETTINGS,
) -> None:
    """Run the whole analysis: prepare, fit, embed, score, report.

    The folder gets integrated.h5ad, model/, report.html, history.csv, scores.csv, gene_shifts.csv,
    counterfactual_check.csv, run.json and versions.json. The same command resumes an interrupted run.
    """
    from scmedley.pipeline import stages

    how: Any = {"overwrite": overwrite, "say": sayer(quiet), "progress": not quiet}
    how["explorer"] = explorer
    record = stages.run(inputs, out, config, **how)
    print_findings(record, out, quiet)


@app.command
def fit(
    inputs: Inputs,
    /,
    *,
    out: Results,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    config: Settings = NO_SETTINGS,
) -> None:
    """Only prepare and fit: write integrated.h5ad (prepared cells), model/, history.csv and run.json."""
    from scmedley.pipeline import stages

    stages.run(inputs, out, config, overwrite=overwrite, say=sayer(quiet), progress=not quiet, only_fit=True)
    sayer(quiet)(f"Model: {out / 'model'}. Next: scmedley evaluate {out}")


@app.command
def embed(
    folder: RunFolder,
    /,
    *,
    input: Annotated[Path, Parameter(name=["--input", "--cells"])],
    out: Path,
    values: Values = "auto",
    unknown: UnknownOrAdapt = "error",
) -> None:
    """Embed new cells with the model of a run folder, label them, and say which are unlike the training cells.

    Writes the cells with both embeddings in obsm and, in obs, label, probability, mapping confidence, novelty
    and the assigned label; and beside it a page (.html) that shows them on the map of the run.

    Parameters
    ----------
    input
        File of new cells, in any format that run reads.
    out
        New .h5ad file.
    """
    from scmedley.pipeline import query

    page = out.with_suffix(".html")
    must_be_new(out, ".h5ad")
    must_be_new(page, ".html")
    with warnings_as_lines():
        said = query.embed(folder, input, out, page, values=values, unknown=unknown)
    print("\n".join(said))


@app.command
def project(
    folder: RunFolder,
    /,
    *,
    to: Annotated[list[str], Parameter(consume_multiple=True, negative="")],
    out: Path | None = None,
    figure: Path | None = None,
    input: Path | None = None,
    select: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    rows: int = 4,
    draws: int = 0,
    seed: int = 0,
    values: Values = "auto",
    unknown: Unknown = "error",
) -> None:
    """Predict the expression of cells as if they came from other batches (counterfactuals).

    Parameters
    ----------
    to
        Target batches; "mean" is the population mean. With several factors also levels, of which cells keep the
        others: condition=stim, or donor=d7,condition=ctrl, or donor=mean.
    out
        New .zarr (written in chunks, for any number of cells) or .h5ad.
    figure
        New .svg, .png or .pdf: a few cells as pictures, in each batch, and the genes that change most.
    input
        File of cells, in any format that run reads (default: the cells of the run).
    select
        Cells of the run: their names, or one query on obs, as "cell_type == 'B cell'" (default: all cells).
    rows
        Number of cells in the figure, drawn at random with --seed.
    draws
        Posterior draws, 2 or more, for intervals from 5 % to 95 % in --out; X is then the mean of the draws.
        With 0 there are no intervals, and X is the prediction with all effects at their posterior mean.
    seed
        Random seed of the draws and of the cells in the figure.
    """
    from scmedley.pipeline import project as work

    must_be_new(out, ".h5ad", ".zarr")
    must_be_new(figure, ".svg", ".png", ".pdf", option="--figure")
    more: Any = {"rows": rows, "draws": draws, "seed": seed, "unknown": unknown, "values": values}
    with warnings_as_lines():
        said = work.project(folder, to, input=input, select=select or (), out=out, figure=figure, **more)
    print("\n".join(said))


@app.command
def evaluate(folder: RunFolder, /) -> None:
    """Score a run folder again: write scores.csv, gene_shifts.csv and counterfactual_check.csv."""
    from scmedley.pipeline import stages

    with warnings_as_lines():
        record = stages.evaluate(folder)
    print_findings(record, folder, quiet=False, with_report=False)


@app.command
def report(folder: RunFolder, /, *, explorer: Explorer = True) -> None:
    """Write the report (report.html) of a run folder again."""
    from scmedley.pipeline import stages

    print(f"Report: {stages.report(folder, explorer=explorer)}")


@app.command
def export(
    folder: RunFolder,
    /,
    *,
    to: ExportFormat,
    out: Path,
    address: str | None = None,
) -> None:
    """Export a finished run for a viewer or another program.

    Parameters
    ----------
    to
        "cellbrowser": UCSC Cell Browser. "vitess" (or "vitessce"): a view config and the cells in Zarr. "multiqc":
        scores, verdicts and warnings as custom content. "parquet": obs and embeddings; needs the extra export.
    out
        New folder.
    address
        Where the folder will be served, for --to vitess (default: http://localhost:8000).
    """
    from scmedley.pipeline import export as work

    with warnings_as_lines():
        said = work.export(folder, to, out, address=address)
    print("\n".join(said))


@app.command
def name(
    folder: Annotated[Path, Parameter(help="Folder that run --model deepbid or cluster wrote.")],
    names: Path,
    /,
    *,
    out: Path,
    column: str = "cell_type",
) -> None:
    """Turn the names that you chose for clusters into labels: write the cells with a new column of obs.

    Parameters
    ----------
    names
        Table (csv) with the columns cluster and name, such as cluster_evidence.csv with names of yours. Clusters of
        one name become one label.
    out
        New .h5ad file.
    column
        New column of obs.
    """
    from scmedley.pipeline import naming

    must_be_new(out, ".h5ad")
    with warnings_as_lines():
        said = naming.name(folder, names, out, column=column)
    print("\n".join(said))


@app.command
def experiment(
    recipe: Path,
    /,
    *,
    out: Path,
    data: Path | None = None,
    jobs: int | None = None,
    scheduler: str | None = None,
    backed: bool | None = None,
    store: Path | None = None,
    quiet: Quiet = False,
) -> None:
    """Compare methods over cross-validation folds and held-out donors, on the papers' data or on yours.

    The same command resumes an experiment that was interrupted; finished fits are kept.

    Parameters
    ----------
    recipe
        Python file with a function config() that returns an Experiment (see recipes/), or a TOML file.
    out
        Folder for the results: report.html, summary.csv, scores.csv, classified.csv, history.csv, fits.csv.
    data
        Folder of the data, if they do not come with scmedley.
    jobs
        Number of fits at the same time (default: one per core).
    scheduler
        Address of a Dask scheduler (tcp://...). Its workers then do the fits.
    backed
        Prepare the cells on disk, once for all fits (default: their size and the free memory decide). For networks and
        PCA, and splits of cells and donors.
    store
        Folder of the cells prepared on disk (default: store, in the results).
    """
    from scmedley.experiment.config import read_config
    from scmedley.experiment.grid import run as run_grid

    say = sayer(quiet)
    config = read_config(recipe)
    how: Any = {"jobs": jobs, "scheduler": scheduler, "backed": backed, "store": store}
    record = run_grid(config, out, data=data, say=say, progress=not quiet, **how)
    say("\nWhat was found")
    for sentence in record["findings"]:
        say(f"  - {sentence}")
    say(f"\nReport: {(out / 'report.html').resolve()}")


@app.command
def tune(
    input: Path,
    /,
    *,
    batch: str,
    label: str,
    out: Results,
    method: Literal["FE", "FEC"] = "FE",
    trials: int = 30,
    folds: int = 3,
    epochs: int | None = None,
    values: Values = "auto",
    backed: bool | None = None,
    store: Path | None = None,
    seed: int = 0,
    threads: Threads | None = None,
) -> None:
    """Search settings of the fixed-effects network for high label accuracy and low batch leakage.

    Writes trials.csv and best.toml (for run --settings). The same command resumes an interrupted search.

    Parameters
    ----------
    input
        File of cells, in any format that run reads.
    batch
        obs column of the batches.
    label
        obs column of the labels (cell types).
    method
        "FE", or "FEC": the network that also learns the labels.
    trials
        Number of settings to try.
    folds
        Cross-validation folds per trial. A trial that scores below the median of the others is stopped early.
    epochs
        Maximum number of epochs (default: set by the number of cells).
    backed
        Prepare the cells on disk, once for all trials (default: their size and the free memory decide).
    store
        Folder of the cells prepared on disk (default: store, in the results).
    seed
        Random seed.
    threads
        CPU threads (default: all).
    """
    from scmedley.experiment.tune import tune as search

    how: Any = {"method": method, "trials": trials, "folds": folds, "epochs": epochs, "values": values}
    how |= {"backed": backed, "store": store}
    record = search(input, out, batch_key=batch, label_key=label, seed=seed, threads=threads, **how)
    print("\nOn test cells, which were not used in the search (mean over folds)")
    for name, found in record["test"].items():
        print(f"  - {name}: label accuracy {found['accuracy']:.3f}, batch leakage {found['leak']:.3f}")
    print(f"\nSettings: {out / 'best.toml'}")
    gain = {name: found["accuracy"] - max(found["leak"], 0.0) for name, found in record["test"].items()}
    if gain["best"] <= gain["default"]:
        print(
            "The best settings are not better than the default: keep the default (scmedley run without --settings)."
        )
    else:
        print(f"Next: scmedley run {input} --settings {out / 'best.toml'} ...")


app.command(explore)
app.command(cluster)
app.command(effects)


@app.command
def demo(*, out: Results = Path("demo-run"), overwrite: Overwrite = False, explorer: Explorer = True) -> None:
    """Run on data that come with the package: three cell lines, measured with three protocols."""
    from scmedley import datasets

    config = RunConfig(batch="batch", label="cell_type")
    run([datasets.path("sc_mixology")], out=out, overwrite=overwrite, explorer=explorer, config=config)
