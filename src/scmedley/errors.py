"""The one exception, and the one warning, that are meant for the user."""


class ScmedleyError(ValueError):
    """Something in the data, the settings or the run folder that the user can mend.

    The message says what is wrong, where (key, cell, gene, value) and what to do next.
    The command line prints it as one line and exits with a non-zero code.
    """


class ScmedleyWarning(UserWarning):
    """Something the user should know about a result that is given all the same."""
