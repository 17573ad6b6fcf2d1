"""The report of a run: one HTML file that opens offline."""

from scmedley.report.build import build as write_report

__all__ = ["write_report"]
