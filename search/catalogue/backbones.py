"""backbones.yaml -> Backbone records; unknown keys, tags and pools are errors with a suggestion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import timm
from pydantic import ConfigDict, Field, StrictInt, TypeAdapter, ValidationError, field_validator
from pydantic.dataclasses import dataclass

from search.catalogue.dimensions import DIMENSIONS, Dimension, read_dimensions
from search.catalogue.kinds import LEARNING_RATE, BackboneKind, DropPath, LearningRate, read_kinds
from search.catalogue.timm_models import architectures, pretrained_names, unknown_name
from search.errors import UserError
from search.machine.files import check_keys, first_problem, load_yaml, suggestion
from search.pixels.canvas import LARGEST_SIDE, SMALLEST_SIDE
from search.training.network import REACHING_OUT

_IN_CHECKOUT = Path(__file__).parents[2] / "backbones.yaml"

DEFAULT_PATH = _IN_CHECKOUT if _IN_CHECKOUT.exists() else Path(__file__).with_name("backbones.yaml")
"""The file at the top of a checkout; what is installed without one carries a copy."""

Triple = tuple[float, float, float]
WeightsSource = Literal["hub", "file", "none"]
ImageSize = Annotated[StrictInt, Field(ge=SMALLEST_SIDE, le=LARGEST_SIDE)]

RESERVED_ARGUMENTS = REACHING_OUT | {"num_classes", "drop_path_rate", "img_size"}
"""Arguments of timm.create_model that the search sets itself."""

MOST_NAMED = 8
"""Backbones that an error names."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Backbone:
    """A timm network that may be searched, complete: what the file leaves out comes from timm."""

    name: str
    """timm's `architecture.tag`, or a declared name; weight files are called after it."""
    architecture: str
    """Name that timm.create_model builds, without a tag."""
    pool: str
    mean: Triple
    """Per-channel mean of RGB in [0, 1] that the weights were trained with."""
    std: Triple
    """Per-channel standard deviation, likewise."""
    image_sizes: tuple[ImageSize, ...]
    """Sides in pixels to choose from; the first one is the default."""
    learning_rate: LearningRate = LEARNING_RATE
    drop_path: DropPath | None = None
    """None where the architecture has none."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of timm.create_model."""
    pretraining: str | None = None
    """Data that the weights were trained on, if the file declares it."""
    source: str | None = None
    """Where declared weights come from."""
    kind: str | None = None
    """Name of a kind in the file, whose recipe is tried first; None: what is good for most."""
    centre: dict[str, Any] = field(default_factory=dict)
    """Values of dimensions that are known to be good for its kind, by name."""
    recipe_source: str | None = None
    """Where they are known from."""
    fixed_size: int | None = None
    """Side in pixels that the weights are bound to by position; None where any size will do."""
    in_timm: bool = True
    """Whether timm's hub has weights of this name."""

    @property
    def declared(self) -> bool:
        """Whether the pretraining stands on the file's word."""
        return self.pretraining is not None or not self.in_timm

    def create_args(self, image_size: int) -> dict[str, Any]:
        """Arguments of timm.create_model for an image size in pixels, `num_classes` aside."""
        size = {} if self.fixed_size is None else {"img_size": image_size}
        return {**self.model_args, **size}

    def network_fields(self, image_size: int) -> dict[str, Any]:
        """The fields of a Recipe that say which network it is, for an image size in pixels."""
        return {
            "backbone": self.name,
            "architecture": self.architecture,
            "model_args": self.create_args(image_size),
            "mean": self.mean,
            "std": self.std,
            "image_size": image_size,
        }

    @field_validator("image_sizes")
    @classmethod
    def _check_sizes(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if not sizes or len(set(sizes)) < len(sizes):
            raise ValueError(f"must list at least one size, each once, found {list(sizes)}")
        return sizes

    @field_validator("model_args")
    @classmethod
    def _check_model_args(cls, value: dict[str, Any]) -> dict[str, Any]:
        reserved = sorted(RESERVED_ARGUMENTS & value.keys())
        if reserved:
            raise ValueError(
                f"must leave {reserved[0]} to the search, found {value[reserved[0]]!r}"
            )
        return value


ENTRY_KEYS = (
    "architecture",
    "model_args",
    "mean",
    "std",
    "image_sizes",
    "learning_rate",
    "drop_path",
    "kind",
    "pretraining",
    "source",
)
"""What an entry of backbones.yaml may set."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Catalogue:
    """The backbones that may be searched, and the rule that they must keep."""

    budget: Annotated[StrictInt, Field(gt=0)]
    """Largest number of parameters, counted by thop and counted exactly."""
    pretraining: str
    """The pretraining rule in words, for reports."""
    backbones: tuple[Backbone, ...]
    dimensions: dict[str, Dimension] = field(default_factory=lambda: dict(DIMENSIONS))
    """What else is searched, by name."""

    @property
    def pools(self) -> tuple[str, ...]:
        """Names of the pools, in the file's order."""
        return tuple(dict.fromkeys(backbone.pool for backbone in self.backbones))

    def pool(self, names: str) -> tuple[Backbone, ...]:
        """The backbones of a pool, in the file's order.

        Args:
            names: of a pool; or of several pools and backbones, with commas between them.

        Raises:
            UserError: if there is no such pool or backbone.
        """
        wanted = [name.strip() for name in names.split(",")]
        known = (*self.pools, *(backbone.name for backbone in self.backbones))
        for name in wanted:
            if name not in known:
                raise UserError(
                    f"pool must be one of {', '.join(self.pools)}, or name backbones of the file, "
                    f"found '{name}'{suggestion(name, known)}"
                )
        return tuple(b for b in self.backbones if b.pool in wanted or b.name in wanted)

    def get(self, name: str) -> Backbone:
        """The backbone of a name.

        Raises:
            UserError: if there is none.
        """
        for backbone in self.backbones:
            if backbone.name == name:
                return backbone
        names = [backbone.name for backbone in self.backbones]
        more = ", ..." if len(names) > MOST_NAMED else ""
        raise UserError(
            f"backbone '{name}' must be in the backbones file, which has "
            f"{', '.join(names[:MOST_NAMED])}{more}{suggestion(name, names)}"
        )


def load_backbones(path: Path = DEFAULT_PATH) -> Catalogue:
    """Reads a backbones file.

    Raises:
        UserError: naming the file, if it cannot be read, has an unknown, repeated or ill-typed key,
            or names an architecture or a tag that timm does not have.
    """
    content = load_yaml(path)
    try:
        return _read_catalogue(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _read_catalogue(content: Any) -> Catalogue:
    top = ("budget", "pretraining", "pools")
    optional = ("kinds", "space")
    if not isinstance(content, dict):
        raise UserError(f"the file must be a mapping with the keys {', '.join(top)}")
    check_keys(content, (*top, *optional), "the backbones file")
    missing = [key for key in top if key not in content]
    if missing:
        raise UserError(f"the file must have the key '{missing[0]}'")
    pools = content["pools"]
    if not isinstance(pools, dict) or not pools:
        raise UserError("'pools' must map pool names to backbones")
    dimensions = read_dimensions(content.get("space", {}))
    kinds = read_kinds(content.get("kinds", {}), dimensions)
    backbones: list[Backbone] = []
    for pool, entries in pools.items():
        if not isinstance(entries, dict) or not entries:
            raise UserError(f"pool '{pool}' must map backbone names to their settings")
        for name, entry in entries.items():
            first = next((backbone for backbone in backbones if backbone.name == name), None)
            if first is not None:
                raise UserError(
                    f"backbone '{name}' must be in one pool, found in '{first.pool}' and '{pool}'"
                )
            settings = {} if entry is None else entry
            backbones.append(_read_backbone(str(name), str(pool), settings, kinds))
    try:
        return Catalogue(
            budget=content["budget"],
            pretraining=content["pretraining"],
            backbones=tuple(backbones),
            dimensions=dimensions,
        )
    except ValidationError as error:
        raise UserError(first_problem(error)) from error


def _read_backbone(name: str, pool: str, entry: Any, kinds: Mapping[str, BackboneKind]) -> Backbone:
    if not isinstance(entry, dict):
        raise UserError(f"backbone '{name}' must be a mapping of settings, found {entry!r}")
    check_keys(entry, ENTRY_KEYS, f"backbone '{name}'")
    in_timm = name in pretrained_names()
    architecture = entry.get("architecture", name.partition(".")[0])
    if not in_timm and "architecture" not in entry:
        raise UserError(unknown_name(name))
    if architecture not in architectures():
        raise UserError(
            f"architecture of backbone '{name}' must be one of timm's, found '{architecture}'"
            f"{suggestion(architecture, architectures())}"
        )
    if in_timm and architecture != name.partition(".")[0]:
        raise UserError(
            f"architecture of backbone '{name}' must be the one in its name, found '{architecture}'"
        )
    for key in ("mean", "std"):
        if not in_timm and key not in entry:
            raise UserError(f"backbone '{name}' must state its {key}, because timm has no such tag")
    kind = entry.get("kind")
    if kind is not None and str(kind) not in kinds:
        known = ", ".join(kinds) or "none"
        raise UserError(
            f"kind of backbone '{name}' must be one of the file's kinds ({known}), found '{kind}'"
            f"{suggestion(str(kind), list(kinds))}"
        )
    recipe = None if kind is None else kinds[str(kind)]
    native = timm.get_pretrained_cfg(name if in_timm else architecture)
    size = native.input_size[-1] if native else 224
    settings = {
        "mean": native.mean if native else None,
        "std": native.std if native else None,
        "image_sizes": (size,),
        **(recipe.entry if recipe else {}),
        **entry,
        "centre": dict(recipe.centre) if recipe else {},
        "recipe_source": recipe.source if recipe else None,
        "architecture": architecture,
        "fixed_size": size if native and native.fixed_input_size else None,
        "in_timm": in_timm,
    }
    try:
        return TypeAdapter(Backbone).validate_python({"name": name, "pool": pool, **settings})
    except ValidationError as error:
        raise UserError(f"backbone '{name}': {first_problem(error)}") from error
