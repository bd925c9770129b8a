"""The one exception whose text is meant for the user, and how a command tells of it."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any

from cyclopts import CoercionError, CycloptsError
from rich.console import Console

DEBUG = "--debug"

STOPPED, STOPPED_STATUS = "stopped", 130
"""What Ctrl-C ends with: the word on standard error and the exit status, 128 + SIGINT."""


REFUSALS = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO}
    | {errno.ENAMETOOLONG}
)
"""What a file system refuses, for reasons that the user can mend."""


class UserError(Exception):
    """Something the user can mend: bad input, a broken rule, a missing file.

    The message is one line that states the rule, what was found, and the remedy. The command
    line prints it without a traceback and exits with status 2.
    """


class Interrupted(BaseException):
    """What runs shall be closed, because of Ctrl-C or the time limit; the message is its reason.

    A request and no error: like KeyboardInterrupt no Exception, so that what forgives the failures
    of others does not swallow it.
    """


def _accepted(error: Exception) -> str:
    """What would have been accepted, where the parser does not say so."""
    is_duration = isinstance(error, CoercionError) and error.target_type is timedelta
    return " A duration is a number with its unit: 90m, 8h, 1d, 1h30m." if is_duration else ""


@contextmanager
def loading(console: Console) -> Iterator[None]:
    """Tells on a terminal that a command has begun, while it imports its libraries.

    Ctrl-C ends the process there and then. Nothing was begun, and an exception in the middle of an
    import is swallowed by some libraries and turned into an ImportError by others.
    """
    status = console.status("loading torch and timm")

    def end(_number: int, _frame: FrameType | None) -> None:
        status.stop()  # It gives the terminal its cursor back.
        print(STOPPED, file=sys.stderr, flush=True)
        os._exit(STOPPED_STATUS)

    is_main = threading.current_thread() is threading.main_thread()
    # Who ignores Ctrl-C, as nohup does, or handles it, goes on doing so.
    takes_over = is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with status:
        if takes_over:
            signal.signal(signal.SIGINT, end)
        try:
            yield
        finally:
            if takes_over:
                signal.signal(signal.SIGINT, signal.default_int_handler)


def run_app(app: Any, arguments: Sequence[str]) -> int:
    """Runs a command of an App; what the user can mend is told in one line on standard error.

    `--debug`, anywhere among the arguments, shows tracebacks.
    """
    debug = DEBUG in arguments
    errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    try:
        app(
            [argument for argument in arguments if argument != DEBUG],
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
    except (UserError, CycloptsError) as error:
        if debug:
            raise
        errors.print(f"error: {' '.join(str(error).split())}{_accepted(error)}")
        return 2
    except ArithmeticError as error:
        # A loss or a score that is not finite: the settings are at fault.
        if debug:
            raise
        errors.print(f"error: {' '.join(str(error).split())}")
        return 2
    except OSError as error:
        if debug or error.errno not in REFUSALS:
            raise
        # What a write fails with has no name.
        where = error.filename or "the folder that is written to"
        errors.print(
            f"error: {where} must be open to this user and its disk must have room, "
            f"found: {error.strerror}; mend that, and give the same command again"
        )
        return 2
    except RuntimeError as error:
        if debug or "out of memory" not in str(error):
            raise
        errors.print(
            f"error: one image must fit into the device's memory, found: "
            f"{' '.join(str(error).split())[:200]}; choose a smaller --image-size or model, or "
            "--device cpu"
        )
        return 2
    except (KeyboardInterrupt, Interrupted):
        if debug:
            raise
        errors.print(STOPPED)
        return STOPPED_STATUS
    return 0
