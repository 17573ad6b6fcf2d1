"""``python -m scmedley``."""

from scmedley.cli import main

main()
