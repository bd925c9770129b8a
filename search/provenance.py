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
from search.strict_yaml import first_problem, load_yaml

IMAGENET_1K = "ImageNet-1K"
UNKNOWN = "unknown"

TABLE_PATH = Path(__file__).with_name("pretraining.yaml")


@dataclass(frozen=True)
class Provenance:
    """Whether the rule allows a weight.

    Attributes:
        allowed: known, or declared, to be pretrained on ImageNet-1K alone.
        pretraining: for reports: "ImageNet-1K", "ImageNet-1K (declared)", "ImageNet-22K", "unknown".
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
        return _unknown(
            f"{name}: a name without a tag leaves the weights to timm; pin architecture.tag"
        )
    for pattern, weight in table.weights.items():
        if fnmatchcase(name, pattern):
            return _of_weight(tag, weight)
    architecture_words = architecture.split("_")
    words = tag.split("_")
    for where, rules in ((architecture_words, table.architecture.out), (words, table.tag.out)):
        for word in where:
            data = _meaning(word, rules)
            if data is not None:
                return Provenance(
                    False, data, f"{word}: pretrained on {data}, outside {IMAGENET_1K}"
                )
    for where, rules in (
        (architecture_words, table.architecture.unknown),
        (words, table.tag.unknown),
    ):
        for word in where:
            why = _meaning(word, rules)
            if why is not None:
                return _unknown(f"{word}: {why}")
    neutral = (table.tag.inside, table.tag.recipe, table.tag.detail)
    for word in words:
        if all(_meaning(word, rules) is None for rules in neutral):
            return _unknown(f"{word}: a word of the tag that {TABLE_PATH.name} does not know")
    inside = [word for word in words if _meaning(word, table.tag.inside) is not None]
    if not inside:
        return _unknown(f"{tag}: nothing in the tag says {IMAGENET_1K}")
    has_recipe = any(_meaning(word, table.tag.recipe) is not None for word in words)
    if not has_recipe and not any(fnmatchcase(name, pattern) for pattern in table.reviewed):
        return _unknown(f"{tag}: says neither who trained nor how, and was not reviewed")
    return Provenance(True, IMAGENET_1K, f"{inside[0]}: {_meaning(inside[0], table.tag.inside)}")


def _of_weight(tag: str, weight: _Weight) -> Provenance:
    if weight.verdict == "unknown":
        return _unknown(f"{tag}: {weight.reason}")
    allowed = weight.verdict == "in"
    return Provenance(allowed, IMAGENET_1K if allowed else weight.data, f"{tag}: {weight.reason}")


def _unknown(reason: str) -> Provenance:
    return Provenance(False, UNKNOWN, reason)


def _meaning(word: str, rules: Words) -> str | None:
    return next((text for rule, text in rules.items() if re.fullmatch(rule, word)), None)
