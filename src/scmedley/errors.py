"""The exception and the warning for the user, and helpers for their messages."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral


class ScmedleyError(ValueError):
    """Error in the data, the settings or the run folder that the user can correct.

    The message says what is wrong, where (key, cell, gene, value) and what to do next.
    The command line prints it as one line and exits with a non-zero code.
    """


class ScmedleyWarning(UserWarning):
    """Warning about a result that is returned nevertheless."""


def warn(message: str) -> None:
    """Warn the user; the warning shows the line that called the calling function."""
    warnings.warn(message, ScmedleyWarning, stacklevel=3)


@contextmanager
def heard(say: Callable[[str], None] | None = None) -> Iterator[list[str]]:
    """Collect the messages of :class:`ScmedleyWarning` in a list, each once; pass other warnings on.

    ``say`` receives each message too, also if the body raises: the warning may explain the error.
    """
    messages: list[str] = []
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ScmedleyWarning)
            yield messages
    finally:
        messages += dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, ScmedleyWarning))
        if say is not None:
            for line in messages:
                say(line)
        for one in caught:
            if not issubclass(one.category, ScmedleyWarning):
                warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def listed(names: Sequence[str], most: int = 5) -> str:
    """Return names as ``'a', 'b' and 3 more``."""
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")


def one_line(error: BaseException) -> str:
    """Return the message of an error in one line, with the notes of libraries such as anndata (which key)."""
    words = [str(error), *getattr(error, "__notes__", [])]
    return " ".join(" ".join(words).split())[:400] or type(error).__name__


def is_whole(value: object) -> bool:
    """Return whether a value is a whole number of Python or NumPy; a truth value is not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_seed(seed: int) -> None:
    """Raise if the random seed is no whole number, or out of range."""
    if not (is_whole(seed) and 0 <= seed < 2**32):
        raise ScmedleyError(f"seed {seed!r} must be between 0 and {2**32 - 1}, a whole number.")
