"""``python -m scmedley``."""

from scmedley.cli import entry

entry()
