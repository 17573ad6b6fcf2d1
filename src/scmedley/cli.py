"""The commands: parse, call, print. Heavy imports are inside the commands, so that --help is quick."""

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
    help="Mixed-effects deep learning for single cells.",
    help_epilogue="Any command takes --debug: show the whole traceback of an error.",
    version=__version__,
    suppress_keyboard_interrupt=False,  # or it ends without a word
)
Settings = Annotated[RunConfig, Parameter(name="*")]
NO_SETTINGS = RunConfig()


@app.command
def run(
    inputs: Annotated[list[Path], Parameter(name="inputs")],
    /,
    *,
    out: Path,
    overwrite: bool = False,
    quiet: bool = False,
    explorer: bool = True,
    config: Settings = NO_SETTINGS,
) -> None:
    """Do everything: prepare, fit, embed, score, report.

    The folder gets integrated.h5ad, model/, report.html, history.csv, scores.csv, gene_shifts.csv,
    counterfactual_check.csv, run.json and versions.json. The same command resumes a run that was cut short.

    Parameters
    ----------
    inputs
        h5ad, Zarr, 10x mtx folder, 10x h5, csv or tsv (also .gz); of several files each is one batch.
    out
        Folder for the results.
    overwrite
        Remove the results of an earlier run in that folder.
    quiet
        Print nothing but errors.
    explorer
        Put cells, their obs and the model into the report, whose maps are interactive then.
    """
    from scmedley.pipeline import stages

    how: Any = {"overwrite": overwrite, "say": _say(quiet), "progress": not quiet}
    how["explorer"] = explorer
    record = stages.run(inputs, out, config, **how)
    _tell(record, out, quiet)


@app.command
def fit(
    inputs: Annotated[list[Path], Parameter(name="inputs")],
    /,
    *,
    out: Path,
    overwrite: bool = False,
    quiet: bool = False,
    config: Settings = NO_SETTINGS,
) -> None:
    """Prepare and fit only: integrated.h5ad (prepared cells), model/, history.csv, run.json.

    Parameters
    ----------
    inputs
        As for run.
    out
        Folder for the results.
    overwrite
        Remove the results of an earlier run in that folder.
    quiet
        Print nothing but errors.
    """
    from scmedley.pipeline import stages

    stages.run(inputs, out, config, overwrite=overwrite, say=_say(quiet), progress=not quiet, only_fit=True)
    _say(quiet)(f"Model: {out / 'model'}. Next: scmedley evaluate {out}")


@app.command
def embed(
    folder: Path,
    /,
    *,
    input: Path,
    out: Path,
    values: ValueKind = "auto",
    unknown: Literal["error", "mean"] = "error",
) -> None:
    """Embed new cells with the model of a run folder; write them with both latents in obsm.

    Parameters
    ----------
    folder
        Run folder.
    input
        New cells, in any of the formats of run.
    out
        h5ad to write.
    values
        As for run.
    unknown
        Batches that the model does not know: "error", or "mean" for the population mean.
    """
    from scmedley import io
    from scmedley.runs.read import read_model

    _must_be_new(out, ".h5ad")
    model = read_model(folder)
    with _warnings_as_lines():
        adata = io.read(input)
        reading = model.decoder.read(adata, values=values)
    with _warnings_as_lines(), io.with_results(adata, out) as said:
        model.embed(adata, unknown=unknown, reading=reading)
    for line in said:
        print(f"scmedley: warning: {out.name}: {line}", file=sys.stderr)
    print(f"{adata.n_obs} cells embedded: {out}")


@app.command
def project(
    folder: Path,
    /,
    *,
    to: Annotated[list[str], Parameter(consume_multiple=True)],
    out: Path | None = None,
    figure: Path | None = None,
    input: Path | None = None,
    select: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    rows: int = 4,
    draws: int = 0,
    seed: int = 0,
    values: ValueKind = "auto",
    unknown: Literal["error", "mean"] = "error",
) -> None:
    """Show cells as if they had come from other batches (counterfactuals).

    Parameters
    ----------
    folder
        Run folder.
    to
        Target batches; "mean" is the population mean.
    out
        .zarr (written chunk by chunk, any size) or .h5ad.
    figure
        .svg, .png or .pdf: a few cells as pictures, in each batch, and the genes that change most.
    input
        Cells of a file, in any of the formats of run (default: the cells of the run).
    select
        Which of the cells of the run: their names, or a query on their obs: "cell_type == 'B cell'" (default: all).
    rows
        Cells in the figure, drawn from those with the seed.
    draws
        Posterior draws, 2 or more, for intervals from 5 % to 95 % in --out; X is then the mean of the draws. With 0
        there are no intervals, and X is the prediction with all effects at their posterior mean.
    seed
        Seed of the draws.
    values
        As for run, of the cells of a file.
    unknown
        Batches that the model does not know: "error", or "mean" for the population mean.
    """
    from scmedley.pipeline import project as work

    _must_be_new(out, ".h5ad", ".zarr")
    _must_be_new(figure, ".svg", ".png", ".pdf", option="--figure")
    more: Any = {"rows": rows, "draws": draws, "seed": seed, "unknown": unknown, "values": values}
    with _warnings_as_lines():
        said = work.project(folder, to, input=input, select=select or (), out=out, figure=figure, **more)
    print("\n".join(said))


@app.command
def evaluate(folder: Path, /) -> None:
    """Score a run folder: scores.csv, gene_shifts.csv, counterfactual_check.csv.

    Parameters
    ----------
    folder
        Run folder.
    """
    from scmedley.pipeline import stages

    with _warnings_as_lines():
        record = stages.evaluate(folder)
    _tell(record, folder, quiet=False, with_report=False)


@app.command
def report(folder: Path, /, *, explorer: bool = True) -> None:
    """Write report.html of a run folder.

    Parameters
    ----------
    folder
        Run folder.
    explorer
        Put cells, their obs and the model into the report, whose maps are interactive then.
    """
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
    quiet: bool = False,
) -> None:
    """Compare methods over folds: the papers' tables, on their data or yours, beside nulls and held-out donors.

    The same command goes on where a stopped experiment was; what is finished is not made again.

    Parameters
    ----------
    recipe
        A Python file with a function config() that gives an Experiment (see recipes/), or a TOML file.
    out
        Folder for the results: report.html, summary.csv, scores.csv, classified.csv, history.csv, fits.csv.
    data
        Folder of the data, where they are not shipped with scmedley.
    jobs
        Fits at one time (default: one a core).
    scheduler
        Address of a Dask scheduler (tcp://...), whose workers then do the fits.
    quiet
        Print nothing but errors.
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
    out: Path,
    method: Literal["FE", "FEC"] = "FE",
    trials: int = 30,
    folds: int = 3,
    epochs: int | None = None,
    values: ValueKind = "auto",
    seed: int = 0,
    threads: int | None = None,
) -> None:
    """Search settings of the fixed-effects network: label accuracy up, batch leak down, on validation cells.

    Writes trials.csv and best.toml (for run --settings). The same command goes on with a stopped search.

    Parameters
    ----------
    input
        Cells, in any of the formats of run.
    batch
        obs column of the batches.
    label
        obs column of the cell types.
    out
        Folder for the results.
    method
        "FE", or "FEC", whose network learns the labels.
    trials
        Settings to try.
    folds
        Fits of each; a trial that falls behind is not carried on.
    epochs
        Epochs at most (default: set by the number of cells).
    values
        As for run.
    seed
        Seed of everything random.
    threads
        CPU threads (default: all).
    """
    from scmedley.experiment.tune import tune as search

    record = search(
        input,
        out,
        batch_key=batch,
        label_key=label,
        method=method,
        trials=trials,
        folds=folds,
        epochs=epochs,
        values=values,
        seed=seed,
        threads=threads,
    )
    print("\nOn test cells, which chose nothing (mean over folds)")
    for name, found in record["test"].items():
        print(f"  - {name}: label accuracy {found['accuracy']:.3f}, batch leak {found['leak']:.3f}")
    print(f"\nSettings: {out / 'best.toml'}")
    gain = {name: found["accuracy"] - max(found["leak"], 0.0) for name, found in record["test"].items()}
    if gain["best"] <= gain["default"]:
        print(
            "They do no better than the default on these cells: keep the default (scmedley run without --settings)."
        )
    else:
        print(f"Next: scmedley run {input} --settings {out / 'best.toml'} ...")


@app.command
def demo(*, out: Path = Path("demo-run"), overwrite: bool = False, explorer: bool = True) -> None:
    """Run on data that come with the package: three cell lines measured with three protocols.

    Parameters
    ----------
    out
        Folder for the results.
    overwrite
        Remove the results of an earlier run in that folder.
    explorer
        Put cells, their obs and the model into the report, whose maps are interactive then.
    """
    from scmedley import datasets

    config = RunConfig(batch="batch", label="cell_type")
    run([datasets.path("sc_mixology")], out=out, overwrite=overwrite, explorer=explorer, config=config)


# Options that were called --cells, each of them.
RENAMED = {"run": "explorer", "report": "explorer", "demo": "explorer", "embed": "input", "project": "select"}
FILES = (".h5ad", ".zarr", ".h5", ".csv", ".tsv", ".gz", ".mtx")


def with_new_names(tokens: list[str]) -> list[str]:
    """Return the arguments with the present names of options, and warn of each old one."""
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
        print(
            f"scmedley: warning: {name} of {tokens[0]} is now {now}; the old name will go.", file=sys.stderr
        )
    return found


def _is_a_file(text: str) -> bool:
    with suppress(OSError):  # a long query is no possible path
        if text and Path(text).exists():
            return True
    return text.lower().endswith(FILES) and not any(sign in text for sign in "=<>!'\"")


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Print what a step warns the user of as one line each, without the place in the code."""
    with heard(lambda line: print(f"scmedley: warning: {line}", file=sys.stderr)):
        yield


def _say(quiet: bool) -> Callable[[str], None]:
    return _nothing if quiet else print


def _nothing(_: str) -> None:
    pass


def _tell(record: dict[str, Any], out: Path, quiet: bool, with_report: bool = True) -> None:
    if quiet:
        return
    from scmedley.pipeline.verdicts import lines

    print("", *lines(record), "\nWhat was found", *(f"  - {s}" for s in record["findings"]), sep="\n")
    print(
        f"\nReport: {(out / 'report.html').resolve()}" if with_report else f"\nScores: {out / 'scores.csv'}"
    )


def _must_be_new(path: Path | None, *suffixes: str, option: str = "--out") -> None:
    if path is None:
        return
    if path.suffix not in suffixes:
        raise ScmedleyError(f"{option} {path} must end in {' or '.join(suffixes)}.")
    if path.exists():
        raise ScmedleyError(f"{path} exists already. Choose another {option}.")
    for left in sorted(path.parent.glob(f".{escape(path.name)}.*{path.suffix}")):
        print(
            f"scmedley: warning: {left} was left by a command that was killed. Unless one is at work now, remove it.",
            file=sys.stderr,
        )
