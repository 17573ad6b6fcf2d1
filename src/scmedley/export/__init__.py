"""Exports of a run: files that viewers of cells and pipelines read."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scmedley.export import cellbrowser, multiqc, parquet, vitessce
from scmedley.keys import ExportFormat
from scmedley.runs.read import Run

__all__ = ["FORMATS", "Format"]


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes
    ----------
    write
        Write a run into an empty folder, and return notes about what is not in it.
    then
        What to do with the folder; ``{out}`` stands for it, quoted for a shell.
    """

    write: Callable[[Run, Path], list[str]]
    then: str


FORMATS: dict[ExportFormat, Format] = {
    "cellbrowser": Format(
        cellbrowser.write, "cbBuild -i {out}/cellbrowser.conf -o html -p 8888   (pip install cellbrowser)"
    ),
    "vitess": Format(
        vitessce.write,
        "serve the folder {out} (npx http-server {out} --cors -p 8000), then open {out}/vitessce.json in Vitessce.",
    ),
    "multiqc": Format(multiqc.write, "multiqc {out}   (pip install multiqc)"),
    "parquet": Format(
        parquet.write, "read obs.parquet in {out}, with pandas.read_parquet or arrow::read_parquet."
    ),
}
FORMATS["vitessce"] = FORMATS["vitess"]  # the name of the viewer, for those who type it in full
