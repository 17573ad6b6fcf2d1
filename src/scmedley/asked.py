"""What the user may say that values are; a file of its own, so that ``--help`` is quick."""

from typing import Literal

Asked = Literal["auto", "counts", "log1p", "log2", "log10"]
