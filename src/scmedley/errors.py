"""The one exception, and the one warning, that are meant for the user."""

from collections.abc import Sequence


class ScmedleyError(ValueError):
    """Something in the data, the settings or the run folder that the user can mend.

    The message says what is wrong, where (key, cell, gene, value) and what to do next.
    The command line prints it as one line and exits with a non-zero code.
    """


class ScmedleyWarning(UserWarning):
    """Something the user should know about a result that is given all the same."""


def listed(names: Sequence[str], most: int = 5) -> str:
    """Write names as ``'a', 'b' and 3 more``."""
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")


def one_line(error: BaseException) -> str:
    """Return what an error says in one line, with the notes that libraries such as anndata add (which key it was)."""
    words = [str(error), *getattr(error, "__notes__", [])]
    return " ".join(" ".join(words).split())[:400] or type(error).__name__
