"""settings.yaml of a run folder: written, read, and held against what a run is resumed with."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml

from search.errors import UserError
from search.machine.files import BACKBONES, write_yaml_atomically
from search.settings.data import flag
from search.settings.search import SearchSettings

SETTINGS = "settings.yaml"

FORMAT = 4
"""Of a run folder. 1 had neither a format nor checkpoints, 2 no canvas, 3 other parameters and one
look an epoch; their trials cannot go on."""

FREE_ON_RESUME = frozenset(
    {"trials", "timeout", "keep", "device", "workers", "micro_batch_size", "skip_missing", "out"}
    | {"checkpoint_minutes", "cache", "disk", "probe", "precision", "compile"}
)
"""Settings that a resumed run may change without its trials becoming incomparable."""

MOVABLE = frozenset(
    {"train_labels", "train_images", "train_groups", "val_labels", "val_images", "val_groups"}
    | {"weights_dir", "generated"}
)
"""Paths that a resumed run may find elsewhere: the fingerprint of the images tells whether they are
the same."""


def write_settings(settings: SearchSettings, run: Path) -> None:
    """Writes settings.yaml into a run folder."""
    content = {"format": FORMAT, **settings.to_yaml()}
    # A storage URL may hold a password.
    write_yaml_atomically(run / SETTINGS, content, private=settings.storage is not None)


def read_settings(run: Path) -> dict[str, Any] | None:
    """The plain values of a run's settings.yaml without its format; None where there is none yet.

    Raises:
        UserError: if the file is no mapping of known settings, or a run's of another format.
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
    found_format = content.pop("format", 1)
    if found_format != FORMAT:
        raise UserError(
            f"{path} must be of a run of format {FORMAT}, found format {found_format}, which "
            "another version of onefold made: open it with that one, or choose another --out"
        )
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

    from search.machine.files import first_problem

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
    # A run that began before there was a setting has what is the default since.
    saved = {**SearchSettings().to_yaml(), **saved}
    for name in wanted.keys() | saved.keys():
        if name in FREE_ON_RESUME or wanted.get(name) == saved.get(name):
            continue
        if name == "backbones" and wanted.get(name) is not None:
            _check_same_backbones(settings)
            continue
        if name in MOVABLE and None not in (wanted.get(name), saved.get(name)):
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


def _check_same_backbones(settings: SearchSettings) -> None:
    """
    Raises:
        UserError: if --backbones is another file than the run's own copy of it.
    """
    assert settings.backbones is not None
    assert settings.out is not None
    copy = settings.out / BACKBONES
    try:
        same = settings.backbones.read_bytes() == copy.read_bytes()
    except OSError as error:
        raise UserError(f"--backbones must be a file that can be read, found: {error}") from None
    if not same:
        raise UserError(
            f"{settings.out} holds a search with its own {BACKBONES}, found another one in "
            f"{settings.backbones}; leave the flag out to resume, or choose another --out"
        )
