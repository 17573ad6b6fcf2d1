"""The report of a run and the page of an exploration: each one HTML file that opens offline."""

from scmedley.report.build import build as write_report
from scmedley.report.explore import write_exploration

__all__ = ["write_exploration", "write_report"]
