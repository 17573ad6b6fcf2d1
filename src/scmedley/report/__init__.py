"""The report of a run: one HTML file that opens offline."""

from scmedley.report.build import build

__all__ = ["build"]
