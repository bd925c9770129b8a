"""settings.yaml of a run folder: what its search was told, so that a resumed one is the same."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml

from search.data.atomic import write_text_atomically
from search.errors import UserError
from search.settings import SearchSettings, flag

SETTINGS = "settings.yaml"

FREE_ON_RESUME = frozenset(
    {"trials", "timeout", "keep", "device", "workers", "micro_batch_size", "skip_missing", "out"}
)
"""Settings that a resumed run may change without its trials becoming incomparable."""


def write_settings(settings: SearchSettings, run: Path) -> None:
    """Writes settings.yaml into a run folder."""
    text = yaml.safe_dump(settings.to_yaml(), sort_keys=False, allow_unicode=True)
    # A storage URL may hold a password.
    write_text_atomically(run / SETTINGS, text, private=settings.storage is not None)


def read_settings(run: Path) -> dict[str, Any] | None:
    """The plain values of a run's settings.yaml; None where there is none yet.

    Raises:
        UserError: if the file is no mapping of known settings.
    """
    path = run / SETTINGS
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} must be readable YAML: {' '.join(str(error).split())}") from None
    known = {field.name for field in fields(SearchSettings)}
    if not isinstance(content, dict):
        found = "an empty file" if content is None else f"{type(content).__name__}"
        raise UserError(f"{path} must hold settings of a search, found {found}")
    if not set(content) <= known:
        unknown = ", ".join(sorted(map(str, set(content) - known)))
        raise UserError(f"{path} must hold settings of a search, found unknown {unknown}")
    return content


def load_settings(run: Path) -> SearchSettings:
    """The settings of an existing run.

    Raises:
        UserError: if the folder holds no run, or a setting is ill-typed.
    """
    # Light to import until a run is opened: the command line reads this module for its --help.
    from pydantic import TypeAdapter, ValidationError

    from search.strict_yaml import first_problem

    content = read_settings(run)
    if content is None:
        raise UserError(
            f"{run} must be the folder of a search, but it has no {SETTINGS}; start one with "
            f"`python -m search run --out {run}`"
        )
    typed = dict(content)
    if "timeout" in typed:
        # As it is written, seconds with their unit; anything else is left to be refused.
        with suppress(ValueError):
            typed["timeout"] = float(str(typed["timeout"]).removesuffix("s"))
    try:
        settings = TypeAdapter(SearchSettings).validate_python(typed)
    except ValidationError as error:
        raise UserError(f"{run / SETTINGS}: {first_problem(error)}") from None
    return replace(settings.resolved(), out=run.absolute())


def check_resumable(settings: SearchSettings, saved: Mapping[str, Any]) -> None:
    """Refuses changes that would make a run's trials incomparable.

    Raises:
        UserError: naming the first setting that differs.
    """
    wanted = settings.to_yaml()
    for name in wanted.keys() | saved.keys():
        if name in FREE_ON_RESUME or wanted.get(name) == saved.get(name):
            continue
        if name == "storage":  # A URL may hold a password.
            raise UserError(
                f"{settings.out} holds a search with another --storage; leave the flag out to "
                "resume, or choose another --out"
            )
        raise UserError(
            f"{settings.out} holds a search with {flag(name)} {saved.get(name)}, found "
            f"{flag(name)} {wanted.get(name)}; leave the flag out to resume, or choose "
            "another --out"
        )
