"""The one exception, and the one warning, that are meant for the user."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


class ScmedleyError(ValueError):
    """Something in the data, the settings or the run folder that the user can mend.

    The message says what is wrong, where (key, cell, gene, value) and what to do next.
    The command line prints it as one line and exits with a non-zero code.
    """


class ScmedleyWarning(UserWarning):
    """Something the user should know about a result that is given all the same."""


def warn(message: str) -> None:
    """Warn the user, as if from the caller of the function that calls this."""
    warnings.warn(message, ScmedleyWarning, stacklevel=3)


@contextmanager
def heard(say: Callable[[str], None] | None = None) -> Iterator[list[str]]:
    """Collect the messages of :class:`ScmedleyWarning` in a list, each once; other warnings go where they go.

    Each message is given to ``say`` too, before an error of the body goes on: it may be what led to the error.
    """
    said: list[str] = []
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ScmedleyWarning)
            yield said
    finally:
        said += dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, ScmedleyWarning))
        if say is not None:
            for line in said:
                say(line)
        for one in caught:
            if not issubclass(one.category, ScmedleyWarning):
                warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def listed(names: Sequence[str], most: int = 5) -> str:
    """Write names as ``'a', 'b' and 3 more``."""
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")


def one_line(error: BaseException) -> str:
    """Return what an error says in one line, with the notes that libraries such as anndata add (which key it was)."""
    words = [str(error), *getattr(error, "__notes__", [])]
    return " ".join(" ".join(words).split())[:400] or type(error).__name__


def check_seed(seed: int) -> None:
    """Say which seeds there are."""
    if not 0 <= seed < 2**32:
        raise ScmedleyError(f"seed {seed} must lie between 0 and {2**32 - 1}.")
