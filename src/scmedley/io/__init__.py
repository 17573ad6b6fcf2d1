"""Read files of cells in common formats, and write files completely or not at all."""

from scmedley.io.reading import read, read_embedding
from scmedley.io.writing import (
    add_results,
    check_columns,
    check_place,
    replacing,
    sha256,
    with_results,
    write_csv,
    write_h5ad,
    write_json,
)

__all__ = [
    "add_results",
    "check_columns",
    "check_place",
    "read",
    "read_embedding",
    "replacing",
    "sha256",
    "with_results",
    "write_csv",
    "write_h5ad",
    "write_json",
]
