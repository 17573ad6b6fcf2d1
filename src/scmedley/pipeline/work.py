"""A run in progress."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from scmedley import io
from scmedley.pipeline.cells import Say
from scmedley.pipeline.config import RunConfig
from scmedley.runs import folder as run_folder
from scmedley.runs.folder import VERSIONS
from scmedley.runs.record import Record, now


@dataclass
class Work:
    """A run in progress: its folder, settings and record."""

    folder: Path
    config: RunConfig
    record: Record
    say: Say = print
    progress: bool = True
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the seconds of a stage."""
        began = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - began, 2)

    def warn(self, sentence: str) -> None:
        """Print a warning and keep it in the record."""
        self.record["warnings"].append(sentence)
        self.say(f"Warning: {sentence}")

    def finish(self, with_report: bool) -> None:
        """Write the record and the report. The status "done" is written last."""
        io.write_json(run_folder.versions(), self.folder / VERSIONS)
        self.record |= {"finished": now(), "seconds": self.seconds}
        if with_report:
            self.record.write("scored")
            write_report_of(self.record, self.say)
        self.record.write("done")


def write_report_of(record: Record, say: Say) -> Path:
    """Write the page of a run, with or without its cells as the record says."""
    from scmedley.report import write_report

    say("Writing the report")
    return write_report(record.path.parent, cells=record.get("report", {}).get("cells", True))
