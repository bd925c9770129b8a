"""rules.json: what shows that a model keeps the competition's rules, and how it is recomputed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import nn

from ensemble.network.admission import BUDGET
from ensemble.network.model import ModelSpec, TeacherOrigin
from ensemble.pool.eligibility import ALLOWED, FROM_SCRATCH
from search.catalogue.provenance import IMAGENET_1K, provenance
from search.catalogue.rules import Counts, count_parameters, counter, over_budget
from search.training.candidate import WEIGHTS
from search.training.recipe import Recipe

RULES = "rules.json"

NO_SAMPLES = "none"
"""What rules.json says of generated samples where there are none."""


@dataclass(frozen=True)
class NetworkRecord:
    """What one network that a model is made of, or was taught by, had been trained on before."""

    role: Literal["trunk", "teacher"]
    backbone: str  # timm's architecture.tag, or a declared name
    weights: Literal["hub", "file", "none"]  # where its starting weights came from
    declared: str | None  # pretraining that the user's backbones file declares
    pretraining: str
    allowed: bool
    reason: str  # what decided


def record_networks(
    spec: ModelSpec, declared: Mapping[str, str | None]
) -> tuple[NetworkRecord, ...]:
    """Where every trunk and every teacher of a model comes from, by their tags.

    Args:
        spec: its trunks and teachers are looked at.
        declared: pretraining by backbone name, as the user declared it; names may be absent.
    """
    trunks = [_record("trunk", recipe, declared) for recipe in spec.trunks]
    teachers = [_record("teacher", teacher, declared) for teacher in spec.teachers]
    return (*trunks, *teachers)


def describe_rules(
    model: nn.Module,
    image_size: int,
    spec: ModelSpec,
    *,
    budget: int,
    declared: Mapping[str, str | None],
    generated_samples: Mapping[str, Any] | str = NO_SAMPLES,
) -> dict[str, Any]:
    """The content of rules.json.

    Args:
        model: what `spec` describes.
        image_size: side in pixels at which it is counted.
        spec: see there.
        budget: the run's; the competition's holds besides.
        declared: see `record_networks`.
        generated_samples: what was made of the training images and trained on as well.
    """
    counts = count_parameters(model, image_size)
    networks = record_networks(spec, declared)
    return {
        "one_model": {
            "kind": spec.kind,
            "weights_files": [WEIGHTS],
            "forward_passes_per_image": 1,
        },
        "parameters": {
            "budget": min(budget, BUDGET),
            "params_thop": counts.params_thop,
            "params_exact": counts.params_exact,
            "gmacs": counts.macs / 1e9,
            "image_size": image_size,
            "counter": counter(),
        },
        "pretraining": {"rule": IMAGENET_1K, "networks": [asdict(network) for network in networks]},
        "generated_samples": generated_samples,
        "overrides": list_overrides(spec, networks),
        "broken_rules": find_breaches(counts, min(budget, BUDGET), spec, networks),
    }


def find_breaches(
    counts: Counts, budget: int, spec: ModelSpec, networks: tuple[NetworkRecord, ...]
) -> list[str]:
    """One line for each rule that a model breaks; nothing if it may be submitted."""
    breaches = over_budget(counts, budget)
    for network in dict.fromkeys(networks):
        if not network.allowed:
            breaches.append(f"{network.role} {network.backbone}: {network.reason}")
    return [*breaches, *spec.overrides]


def list_overrides(spec: ModelSpec, networks: tuple[NetworkRecord, ...]) -> list[str]:
    """What stands on the user's word: the spec's overrides, and declared pretraining."""
    words = [
        f"{network.backbone}: pretraining {network.declared} is declared in the backbones file"
        for network in networks
        if network.declared is not None
    ]
    return list(dict.fromkeys([*spec.overrides, *words]))


def _record(
    role: Literal["trunk", "teacher"],
    network: Recipe | TeacherOrigin,
    declared: Mapping[str, str | None],
) -> NetworkRecord:
    backbone, weights = network.backbone, network.weights
    if weights == "none":
        return NetworkRecord(role, backbone, weights, None, FROM_SCRATCH, True, "no pretraining")
    word = declared.get(backbone)
    found = provenance(backbone, word)
    allowed, pretraining, reason = found.allowed, found.pretraining, found.reason
    if allowed and isinstance(network, TeacherOrigin) and network.pretraining not in ALLOWED:
        # Both must allow it: today's judgement of the tag, and what was recorded when it taught.
        allowed, pretraining = False, network.pretraining
        reason = f"recorded as pretrained on {pretraining}"
    return NetworkRecord(role, backbone, weights, word, pretraining, allowed, reason)
