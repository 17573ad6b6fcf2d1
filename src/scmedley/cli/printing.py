"""What the commands print, and their check of files to write."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

from scmedley.errors import ScmedleyError, heard


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Print each warning to the user as one line, without its position in the code."""
    with heard(warn):
        yield


def warn(line: str) -> None:
    """Print a warning."""
    print(f"scmedley: warning: {line}", file=sys.stderr)


def sayer(quiet: bool) -> Callable[[str], None]:
    """Return ``print``, or with ``quiet`` a function that does nothing."""
    return (lambda _: None) if quiet else print


def print_findings(record: dict[str, Any], out: Path, quiet: bool, with_report: bool = True) -> None:
    """Print verdicts and findings of a run, and where its report or its scores are."""
    if quiet:
        return
    from scmedley.pipeline.verdicts import lines

    print("", *lines(record), "\nWhat was found", *(f"  - {s}" for s in record["findings"]), sep="\n")
    if with_report and record["config"].get("model") == "deepbid" and record["config"].get("label") is None:
        print(
            f"\nTo name the clusters: copy {out / 'cluster_evidence.csv'}, write your names into its column name "
            f"(markers.csv and the report have the marker genes), then: scmedley name {out} COPY.csv --out named.h5ad"
        )
    print("\nLeakage, null and the other words are explained in the report and in docs/honest-evaluation.md.")
    print(
        f"\nReport: {(out / 'report.html').resolve()}" if with_report else f"\nScores: {out / 'scores.csv'}"
    )


def must_be_new(path: Path | None, *suffixes: str, option: str = "--out") -> None:
    """Raise unless the file is new and has one of these suffixes."""
    if path is None:
        return
    if path.suffix not in suffixes:
        raise ScmedleyError(f"{option} {path} must end in {' or '.join(suffixes)}. Choose another name.")
    if path.exists():
        raise ScmedleyError(f"{path} exists already. Choose another {option}.")
    warn_of_leftovers(path)


def warn_of_leftovers(path: Path) -> None:
    """Warn of temporary files or folders of ``path``, which only a command that was killed can leave."""
    mark = re.compile(re.escape(f".{path.name}.") + r"[0-9a-f]{8}" + re.escape(path.suffix))
    for left in sorted(path.parent.glob(f".{escape(path.name)}.*")):
        if mark.fullmatch(left.name):
            warn(f"{left} was left by a command that was killed. Remove it, if no other command is running.")
