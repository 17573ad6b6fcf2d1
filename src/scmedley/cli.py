"""The commands of the command line. Heavy imports are inside the commands, so that --help is quick."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from scmedley import __version__
from scmedley.errors import ScmedleyError, heard
from scmedley.keys import ValueKind
from scmedley.pipeline.config import RunConfig

app = App(
    name="scmedley",
    help="Mixed-effects deep learning for single-cell RNA-seq.",
    help_epilogue="Every command takes --debug: show the full traceback of an error.",
    version=__version__,
    suppress_keyboard_interrupt=False,  # __main__ prints a message for it
)
FORMATS = "h5ad, Zarr, 10x mtx folder, 10x h5, csv or tsv (also .gz)"
Inputs = Annotated[
    list[Path], Parameter(name="inputs", help=f"{FORMATS}. With several files, each file is one batch.")
]
RunFolder = Annotated[Path, Parameter(help="Run folder: the folder that run or fit wrote.")]
Results = Annotated[Path, Parameter(help="Folder for the results.")]
Overwrite = Annotated[bool, Parameter(help="Remove the results of an earlier run in that folder.")]
Quiet = Annotated[bool, Parameter(help="Print only errors.")]
Explorer = Annotated[
    bool, Parameter(help="Put the cells, obs and the model into the report: its maps are then interactive.")
]
Values = Annotated[ValueKind, Parameter(help="What the matrix of the file holds: see scmedley run --help.")]
Unknown = Annotated[
    Literal["error", "mean"],
    Parameter(
        help='For cells of batches that were not in training: stop ("error"), or use the population mean ("mean").'
    ),
]
UnknownOrAdapt = Annotated[
    Literal["error", "mean", "adapt"],
    Parameter(
        help='For cells of batches that were not in training: stop ("error"), use the population mean ("mean"), '
        'or first learn the effects of these batches ("adapt").'
    ),
]
Settings = Annotated[RunConfig, Parameter(name="*")]
NO_SETTINGS = RunConfig()


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

    how: Any = {"overwrite": overwrite, "say": _say(quiet), "progress": not quiet}
    how["explorer"] = explorer
    record = stages.run(inputs, out, config, **how)
    _print_findings(record, out, quiet)


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

    stages.run(inputs, out, config, overwrite=overwrite, say=_say(quiet), progress=not quiet, only_fit=True)
    _say(quiet)(f"Model: {out / 'model'}. Next: scmedley evaluate {out}")


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
    _must_be_new(out, ".h5ad")
    _must_be_new(page, ".html")
    with _warnings_as_lines():
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
        Target batches; "mean" is the population mean.
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

    _must_be_new(out, ".h5ad", ".zarr")
    _must_be_new(figure, ".svg", ".png", ".pdf", option="--figure")
    more: Any = {"rows": rows, "draws": draws, "seed": seed, "unknown": unknown, "values": values}
    with _warnings_as_lines():
        said = work.project(folder, to, input=input, select=select or (), out=out, figure=figure, **more)
    print("\n".join(said))


@app.command
def evaluate(folder: RunFolder, /) -> None:
    """Score a run folder again: write scores.csv, gene_shifts.csv and counterfactual_check.csv."""
    from scmedley.pipeline import stages

    with _warnings_as_lines():
        record = stages.evaluate(folder)
    _print_findings(record, folder, quiet=False, with_report=False)


@app.command
def report(folder: RunFolder, /, *, explorer: Explorer = True) -> None:
    """Write the report (report.html) of a run folder again."""
    from scmedley.pipeline import stages

    print(f"Report: {stages.report(folder, explorer=explorer)}")


@app.command
def experiment(
    recipe: Path,
    /,
    *,
    out: Path,
    data: Path | None = None,
    jobs: int | None = None,
    scheduler: str | None = None,
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
    """
    from scmedley.experiment.config import read_config
    from scmedley.experiment.grid import run as run_grid

    say = _say(quiet)
    config = read_config(recipe)
    record = run_grid(config, out, data=data, jobs=jobs, scheduler=scheduler, say=say, progress=not quiet)
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
    seed: int = 0,
    threads: int | None = None,
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
    seed
        Random seed.
    threads
        CPU threads (default: all).
    """
    from scmedley.experiment.tune import tune as search

    how: Any = {"method": method, "trials": trials, "folds": folds, "epochs": epochs, "values": values}
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


@app.command
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
    threads: int | None = None,
) -> None:
    """Show what is in the files before any model: obs, batches, labels, counts per cell, their distribution.

    The folder gets report.html, a CSV for each table, explore.json and versions.json. The matrix is read in
    blocks of cells: h5ad and Zarr may be larger than the memory.

    Parameters
    ----------
    batch, donor, site, label
        obs columns (default: chosen by their names, as the output says).
    compare
        Compare two normalisations, log1p of counts per 10,000 and analytic Pearson residuals, on 5,000 cells.
    seed
        Random seed of these cells.
    threads
        CPU threads (default: all).
    """
    from scmedley.pipeline import explore as work

    roles: Any = {"batch": batch, "donor": donor, "site": site, "label": label}
    how: Any = {"values": values, "compare": compare, "seed": seed, "progress": not quiet}
    found = work.write(inputs, out, overwrite=overwrite, threads=threads, **roles, **how)
    say = _say(quiet)
    say(f"\n{found.n_cells:,} cells x {found.n_genes:,} genes\n\nWhat was found")
    for sentence in found.findings():
        say(f"  - {sentence}")
    if found.missing:
        say("\nNot shown")
        for name, reason in found.missing.items():
            say(f"  - {name}: {reason}")
    for sentence in found.warnings:
        _warn(sentence)
    say(f"\nReport: {(out / 'report.html').resolve()}")


@app.command
def demo(*, out: Results = Path("demo-run"), overwrite: Overwrite = False, explorer: Explorer = True) -> None:
    """Run on data that come with the package: three cell lines, measured with three protocols."""
    from scmedley import datasets

    config = RunConfig(batch="batch", label="cell_type")
    run([datasets.path("sc_mixology")], out=out, overwrite=overwrite, explorer=explorer, config=config)


# The present name of the option that was called --cells, by command.
RENAMED = {"run": "explorer", "report": "explorer", "demo": "explorer", "project": "select"}
FILES = (".h5ad", ".zarr", ".h5", ".csv", ".tsv", ".gz", ".mtx")


def with_new_names(tokens: list[str]) -> list[str]:
    """Return the arguments with the present names of options, and warn about each old one."""
    found = list(tokens)
    for i, token in enumerate(tokens):
        name, equals, value = token.partition("=")
        if name not in ("--cells", "--no-cells") or tokens[0] not in RENAMED:
            continue
        option = RENAMED[tokens[0]]
        if option == "select" and _is_a_file(value or (tokens[i + 1 : i + 2] or [""])[0]):
            option = "input"
        found[i] = name.replace("cells", option) + equals + value
        now = found[i].partition("=")[0]
        _warn(f"{name} of {tokens[0]} is now {now}. The old name will be removed.")
    return found


def _is_a_file(text: str) -> bool:
    with suppress(OSError):  # a long query is not a valid path
        if text and Path(text).exists():
            return True
    return text.lower().endswith(FILES) and not any(sign in text for sign in "=<>!'\"")


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Print each warning to the user as one line, without its position in the code."""
    with heard(_warn):
        yield


def _warn(line: str) -> None:
    print(f"scmedley: warning: {line}", file=sys.stderr)


def _say(quiet: bool) -> Callable[[str], None]:
    return (lambda _: None) if quiet else print


def _print_findings(record: dict[str, Any], out: Path, quiet: bool, with_report: bool = True) -> None:
    if quiet:
        return
    from scmedley.pipeline.verdicts import lines

    print("", *lines(record), "\nWhat was found", *(f"  - {s}" for s in record["findings"]), sep="\n")
    print("\nLeakage, null and the other words are explained in the report and in docs/honest-evaluation.md.")
    print(
        f"\nReport: {(out / 'report.html').resolve()}" if with_report else f"\nScores: {out / 'scores.csv'}"
    )


def _must_be_new(path: Path | None, *suffixes: str, option: str = "--out") -> None:
    if path is None:
        return
    if path.suffix not in suffixes:
        raise ScmedleyError(f"{option} {path} must end in {' or '.join(suffixes)}. Choose another name.")
    if path.exists():
        raise ScmedleyError(f"{path} exists already. Choose another {option}.")
    for left in sorted(path.parent.glob(f".{escape(path.name)}.*{path.suffix}")):
        _warn(f"{left} was left by a command that was killed. Remove it, if no other command is running.")
