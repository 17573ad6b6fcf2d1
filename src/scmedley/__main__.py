"""Console entry point (``scmedley`` or ``python -m scmedley``): an exit code, and one line for each error."""

import errno
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import TextIOWrapper
from typing import Any, cast

from cyclopts import CycloptsError, MissingArgumentError, RepeatArgumentError

from scmedley import caches
from scmedley.cli import app, with_new_names
from scmedley.cli.printing import warn
from scmedley.errors import ScmedleyError, ScmedleyWarning

# System errors that are not a fault of the program: full disk, bad file name, missing permission, size limit.
REFUSED = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.ENAMETOOLONG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
)

RESUMED = ("run", "fit", "demo", "experiment", "tune")  # commands that go on where they were interrupted
COLUMNS = ("--batch", "--label", "--donor", "--site")  # options that name a column of obs

# OpenMP threads that wait then leave their core free. Without this, a fit on a shared machine took 3 to 20
# times as long. PyTorch reads the variable when it is imported, which is later.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def entry() -> None:
    """Run ``main`` as the console script, and exit with ``os._exit``.

    After a full disk, h5py's destructors print tracebacks and may crash while Python shuts down.
    """
    caches.ensure()
    if "--debug" in sys.argv:
        main()
        return
    sys.unraisablehook = lambda _: None
    sys.excepthook = lambda *_: None  # Cython's destructors call it too
    warnings.showwarning = _in_one_line(warnings.showwarning)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        main()
    except SystemExit as end:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # the other end has closed the pipe
                stream.flush()
        os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))


def _in_one_line(show: Callable[..., None]) -> Callable[..., None]:
    """Return what prints our warnings without their position in the code, and others with ``show``."""

    def shown(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        ours = issubclass(category, ScmedleyWarning)
        warn(" ".join(str(message).split())) if ours else show(message, category, *where, **more)

    return shown


def _terminated(*_: object) -> None:
    """Exit as after an error, so that no half-written file stays: schedulers send SIGTERM to stop a job."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    several = sys.modules.get("scmedley.distributed")
    why = ", as torchrun does if another process has ended" if several and several.world().size > 1 else ""
    _fail(f"stopped (SIGTERM{why}). {_next(sys.argv[1:])}", 143, debug=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit 0, or print one line and exit with another code."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in tokens
    tokens = [token for token in tokens if token != "--debug"]
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show must not end the run
        cast(TextIOWrapper, stream).reconfigure(errors="backslashreplace")
    try:
        app(with_new_names(tokens), exit_on_error=False, print_error=False)
    except KeyboardInterrupt:
        _fail(f"interrupted. {_next(tokens)}", 130, debug)
    except RepeatArgumentError as error:
        _fail(f"{error} {_of_repeated(error)}", 2, debug)
    except MissingArgumentError as error:
        command = " ".join(("scmedley", *(error.command_chain or ())))
        what = error.argument.name if error.argument else "an argument"
        _fail(f"{command} needs {what} with a value. Add it; {command} --help lists all options.", 2, debug)
    except CycloptsError as error:
        _fail(f"{error} See scmedley --help.", 2, debug)
    except ScmedleyError as error:
        _fail(str(error), 1, debug)
    except BrokenPipeError:  # `scmedley ... | head`: the output has no reader
        raise SystemExit(128 + signal.SIGPIPE) from None
    except OSError as error:
        if error.errno not in REFUSED:
            _unexpected(error, debug)
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}. Add --debug for the full traceback.", 1, debug)
    except Exception as error:
        _unexpected(error, debug)


def _next(tokens: Sequence[str]) -> str:
    """Return what to do after an interruption."""
    if tokens and tokens[0] in RESUMED:
        return "The same command resumes an unfinished run."
    return "The same command starts from the beginning."


def _of_repeated(error: RepeatArgumentError) -> str:
    """Return what to do about an option that was given twice."""
    if error.token is None or error.token.keyword not in COLUMNS:
        return "Give it once."
    joined = " + '_' + ".join(f"adata.obs[{name!r}].astype(str)" for name in ("donor", "protocol"))
    return f"Join several columns of obs in Python: adata.obs['joined'] = {joined}."


def _unexpected(error: Exception, debug: bool) -> None:
    reason = f"{type(error).__name__}: {error}"
    _fail(f"unexpected error ({reason}). Add --debug for the full traceback.", 70, debug)


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        raise
    several = sys.modules.get("scmedley.distributed")  # imported where it is used
    if several is not None and not several.is_first_to_fail():
        raise SystemExit(code)  # another process has said why
    print("scmedley: error: " + " ".join(message.split()), file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    entry()
