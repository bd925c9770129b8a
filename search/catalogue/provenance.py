"""What the weights behind a timm tag were trained on, read from pretraining.yaml; fails closed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from search.errors import UserError
from search.machine.files import first_problem, load_yaml

IMAGENET_1K = "ImageNet-1K"
UNKNOWN = "unknown"

TABLE_PATH = Path(__file__).with_name("pretraining.yaml")


@dataclass(frozen=True)
class Provenance:
    """Whether the rule allows a weight.

    Attributes:
        allowed: known, or declared, to be pretrained on ImageNet-1K alone.
        pretraining: for reports: "ImageNet-1K", "ImageNet-1K (declared)", "unknown", or other data.
        reason: one line: what decided.
    """

    allowed: bool
    pretraining: str
    reason: str


Words = dict[str, str]
"""Regular expression of a whole word -> what the word means."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Weight(_Strict):
    verdict: Literal["in", "out", "unknown"]
    reason: str
    data: str = UNKNOWN


class _ArchitectureWords(_Strict):
    out: Words
    unknown: Words


class _TagWords(_Strict):
    # Not named by their YAML keys, because `in` is a keyword.
    model_config = ConfigDict(alias_generator=lambda name: "in" if name == "inside" else name)
    inside: Words
    recipe: Words
    detail: Words
    out: Words
    unknown: Words


class _Table(_Strict):
    weights: dict[str, _Weight]
    architecture: _ArchitectureWords
    tag: _TagWords
    reviewed: tuple[str, ...]


@cache
def _table(path: Path = TABLE_PATH) -> _Table:
    try:
        table = TypeAdapter(_Table).validate_python(load_yaml(path))
    except ValidationError as error:
        raise UserError(f"{path}: {first_problem(error)}") from error
    groups = (table.architecture, table.tag)
    for pattern in [word for group in groups for words in vars(group).values() for word in words]:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(
                f"{path}: rules must be regular expressions, found {pattern!r}: {error}"
            ) from error
    return table


def provenance(tag: str, declared: str | None = None) -> Provenance:
    """What a weight was pretrained on.

    Args:
        tag: timm's `architecture.tag`, or a name of one's own.
        declared: what backbones.yaml declares. It decides where the table knows nothing, and the
            result says "declared"; it never overrules a tag that names other data.
    """
    found = _look_up(tag)
    if declared is None:
        return found
    if found.pretraining not in (IMAGENET_1K, UNKNOWN):
        return Provenance(
            False, found.pretraining, f"{found.reason}, though {declared} is declared"
        )
    if declared != IMAGENET_1K:
        reason = f"declared as pretrained on {declared}, outside {IMAGENET_1K}"
        return Provenance(False, f"{declared} (declared)", reason)
    return Provenance(True, f"{IMAGENET_1K} (declared)", f"{IMAGENET_1K} by declaration")


def _look_up(name: str) -> Provenance:
    """The verdict of pretraining.yaml, in the order that its head describes."""
    table = _table()
    architecture, _, tag = name.partition(".")
    if not tag:
        return Provenance(
            False, UNKNOWN, f"{name}: timm may change what a bare name loads; pin architecture.tag"
        )
    for pattern, weight in table.weights.items():
        if fnmatchcase(name, pattern):
            return _by_name(tag, weight)
    family, words, rules = architecture.split("_"), tag.split("_"), table.tag
    if found := _first((family, table.architecture.out), (words, rules.out)):
        word, data = found
        return Provenance(False, data, f"{word}: pretrained on {data}, outside {IMAGENET_1K}")
    if found := _first((family, table.architecture.unknown), (words, rules.unknown)):
        return _unknown(f"{found[0]}: {found[1]}")
    known = rules.inside | rules.recipe | rules.detail
    for word in words:
        if not _first(([word], known)):
            return _unknown(f"{word}: not a known word of a tag")
    found = _first((words, rules.inside))
    if not found:
        return _unknown(f"{tag}: nothing in it says {IMAGENET_1K}")
    reviewed = any(fnmatchcase(name, pattern) for pattern in table.reviewed)
    if not reviewed and not _first((words, rules.recipe)):
        return _unknown(f"{tag}: says neither who trained nor how")
    return Provenance(True, IMAGENET_1K, f"{found[0]}: {found[1]}")


def _by_name(tag: str, weight: _Weight) -> Provenance:
    if weight.verdict == "unknown":
        return _unknown(f"{tag}: {weight.reason}")
    allowed = weight.verdict == "in"
    return Provenance(allowed, IMAGENET_1K if allowed else weight.data, f"{tag}: {weight.reason}")


def _unknown(reason: str) -> Provenance:
    remedy = f"take another tag, or review it in search/catalogue/{TABLE_PATH.name}"
    return Provenance(False, UNKNOWN, f"{reason}; {remedy}")


def _first(*groups: tuple[list[str], Words]) -> tuple[str, str] | None:
    """The first word that a rule of its group matches, and what that rule says."""
    for words, rules in groups:
        for word in words:
            for pattern, meaning in rules.items():
                if re.fullmatch(pattern, word):
                    return word, meaning
    return None
