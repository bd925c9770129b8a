"""The one exception whose text is meant for the user, and how a command tells of it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from cyclopts import CoercionError, CycloptsError
from rich.console import Console
from rich.status import Status

DEBUG = "--debug"


class UserError(Exception):
    """Something the user can mend: bad input, a broken rule, a missing file.

    The message is one line that states the rule, what was found, and the remedy. The command
    line prints it without a traceback and exits with status 2.
    """


def _accepted(error: Exception) -> str:
    """What would have been accepted, where the parser does not say so."""
    is_duration = isinstance(error, CoercionError) and error.target_type is timedelta
    return " A duration is a number with its unit: 90m, 8h, 1d, 1h30m." if is_duration else ""


def loading(console: Console) -> Status:
    """Tells on a terminal that a command has begun, while it imports its libraries."""
    return console.status("loading torch and timm")


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
    except RuntimeError as error:
        if debug or "out of memory" not in str(error):
            raise
        errors.print(
            f"error: one image must fit into the device's memory, found: "
            f"{' '.join(str(error).split())[:200]}; choose a smaller --image-size or model, or "
            "--device cpu"
        )
        return 2
    except KeyboardInterrupt:
        if debug:
            raise
        errors.print("stopped")
        return 130
    return 0
