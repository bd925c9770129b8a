"""The fastest arithmetic for a network on this machine: measured, because no rule replaces it.

On two cores with AMX bf16 trains a ResNet-18 2.6 times as fast as fp32, and an EfficientNet-Lite
1.5 times slower.
"""

from __future__ import annotations

import copy
import hashlib
import json
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search.machine.device import (
    Precision,
    Runtime,
    compile_anew,
    fast_float32,
    library_versions,
    native_half_precision,
)
from search.machine.files import cache_folder, read_json, write_json_atomically
from search.pixels.loading.batches import Batch, Shown
from search.training.network import NUM_CLASSES
from search.training.recipe import Recipe
from search.training.step import OptimizerStep, make_optimizer

MOST_IMAGES_ON_A_CPU = 16
"""Of a measured batch; 32 take twice the time and say the same."""

FIRST_STEPS = 3
"""Whose losses are compared; the first of them warms up and is not timed."""

MOST_STEPS, ENOUGH_SECONDS = 8, 2.0
"""Of one arithmetic, whichever comes first."""

HOPELESS = 3.0
"""On a CPU an arithmetic whose second step takes so many times that of the best so far is not
pursued: processors without bf16 take 20 times as long."""

SETTING_UP_SECONDS = 5.0
"""What a first step on a CPU may take besides, to make kernels and lay out weights: for a small
network more than its warm steps. If it takes longer still, no second one is waited for."""

AGREEMENT = 0.05
"""Largest relative difference between a loss and that of fp32."""

SAME = 0.95
"""Share of the highest speed that counts as equal: what stands first in the list then wins, so that
noise does not choose."""

LEARNING_RATE = 1e-4
"""Of the measured steps: small, for the losses to be comparable."""


@dataclass(frozen=True)
class Arithmetic:
    """How the steps of a training are computed."""

    precision: Precision
    channels_last: bool
    compile: bool = False

    def __str__(self) -> str:
        layout = " channels_last" if self.channels_last else ""
        return f"{self.precision}{layout}{' compiled' if self.compile else ''}"

    def applied(self, recipe: Recipe) -> Recipe:
        """The recipe, computed like this."""
        return replace(recipe, **asdict(self))


DEFAULT = Arithmetic("fp32", channels_last=True)


@dataclass(frozen=True)
class _Measured:
    arithmetic: Arithmetic
    losses: tuple[float, ...]  # of the first steps
    images_per_second: float


def choose_arithmetic(
    network: nn.Module,
    recipe: Recipe,
    runtime: Runtime,
    tell: Callable[[str], None],
    check: Callable[[], None] = lambda: None,
) -> Arithmetic:
    """The fastest arithmetic whose loss agrees with that of fp32, from the cache or measured now.

    Args:
        network: maps what it is shown of a batch to logits (N, 2), has `image_sizes` and
            `parameter_groups`; it is copied, and stays as it is.
        recipe: its canvas and batch sizes are used, and `compile`, which asks for torch.compile to
            be tried.
        runtime: the device.
        tell: given one line on what was found.
        check: called before every step; an Interrupted that it raises ends it.
    """
    known = _known(network, recipe, runtime, check)
    if known is None:
        return DEFAULT
    tell(known["line"])
    return Arithmetic(**known["arithmetic"])


def training_speed(
    network: nn.Module, recipe: Recipe, runtime: Runtime, check: Callable[[], None] = lambda: None
) -> float | None:
    """Images/s of the steps of a recipe: those of the arithmetic that a training will choose, from
    the same cache or measured for it, or of the one that the recipe asks for. None if no step
    works; arguments as for `choose_arithmetic`."""
    if recipe.precision == "auto":
        known = _known(network, recipe, runtime, check)
        return None if known is None else float(known["images_per_second"])
    plain, batch = _plain(recipe, runtime)
    try:
        measured = _measure(network, plain, runtime, batch, None, check)
    except Exception:
        return None
    return None if measured is None else measured.images_per_second


def _known(
    network: nn.Module, recipe: Recipe, runtime: Runtime, check: Callable[[], None]
) -> dict[str, Any] | None:
    """What is known of a network's arithmetic on this machine; None if nothing works."""
    key = _key(network, recipe, runtime)
    path = cache_folder() / "arithmetic" / f"{_digest(key)}.json"
    known = _read(path, key)
    if known is None:
        found = _measure_all(network, recipe, runtime, check)
        if not found:
            return None
        best = _best(found)
        known = {
            "key": key,
            "arithmetic": asdict(best.arithmetic),
            "images_per_second": best.images_per_second,
            "line": _describe(recipe, best, found),
        }
        # Without a cache it is measured again in the next process.
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomically(path, known)
    return known


def describe_machine(device: torch.device) -> str:
    """What an arithmetic is chosen for: the device's name, threads, and versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    versions = library_versions()
    threads = "" if device.type == "cuda" else f", {torch.get_num_threads()} threads"
    return f"{device.type} {name}{threads}, torch {torch.__version__}, timm {versions['timm']}"


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _key(network: nn.Module, recipe: Recipe, runtime: Runtime) -> dict[str, Any]:
    """All that the choice depends on; of a network its name, its kind (trial, student, fused) and
    its sizes."""
    sizes: Any = network.image_sizes
    return {
        "machine": describe_machine(runtime.device),
        "backbone": recipe.backbone,
        "network": type(network).__name__,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "image_sizes": list(sizes),
        "canvas": recipe.canvas,
        "batch_size": recipe.batch_size,
        "micro_batch_size": recipe.micro_batch_size,
        "compile": recipe.compile,
    }


def _digest(key: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]


def _read(path: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """What was measured before; None if there is nothing that can be read."""
    try:
        content = read_json(path)
        Arithmetic(**content["arithmetic"])
        float(content["images_per_second"])
        return content if content["key"] == key and isinstance(content["line"], str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _candidates(device: torch.device) -> list[Arithmetic]:
    """What is tried, the one to prefer among equals first."""
    half = native_half_precision(device)
    precisions: list[Precision] = ["fp32"] if half is None else ["fp32", half]
    return [Arithmetic(precision, layout) for precision in precisions for layout in (True, False)]


def _measure_all(
    network: nn.Module, recipe: Recipe, runtime: Runtime, check: Callable[[], None]
) -> list[_Measured]:
    """Every arithmetic that works, fp32 first; none if not even that does, as the training will
    say itself."""
    plain, batch = _plain(recipe, runtime)
    images = plain.batch_size
    found: list[_Measured] = []

    def measure(arithmetic: Arithmetic) -> None:
        quickest = max((m.images_per_second for m in found), default=0.0)
        limit = None
        # A GPU loads and tunes kernels in its first steps, which say nothing of the next.
        if quickest and runtime.device.type == "cpu" and not arithmetic.compile:
            limit = HOPELESS * images / quickest
        # An operation that bf16 lacks, no compiler, too little memory: the others are tried.
        try:
            measured = _measure(network, arithmetic.applied(plain), runtime, batch, limit, check)
        except Exception:
            return
        if measured is not None and (not found or _agree(measured, found[0])):
            found.append(measured)

    for arithmetic in _candidates(runtime.device):
        if found or arithmetic.precision == "fp32":
            measure(arithmetic)
    if found and _best(found).arithmetic.precision != "fp32":
        # Once more: what else the machine did while fp32 was measured must not choose.
        rival = _best([m for m in found if m.arithmetic.precision == "fp32"])
        measure(rival.arithmetic)
        same = [m for m in found if m.arithmetic == rival.arithmetic]
        quicker = max(same, key=lambda m: m.images_per_second)
        found[:] = [quicker if m is rival else m for m in found if m is rival or m not in same]
    if recipe.compile:
        # Compiling takes a minute: of each precision, only its faster layout.
        for precision in dict.fromkeys(m.arithmetic.precision for m in found):
            same = [m for m in found if m.arithmetic.precision == precision]
            measure(replace(_best(same).arithmetic, compile=True))
    return found


def _plain(recipe: Recipe, runtime: Runtime) -> tuple[Recipe, Batch]:
    """What is measured of a recipe, and on which batch."""
    images = recipe.micro_batch_size or recipe.batch_size
    if runtime.device.type == "cpu":
        images = min(images, MOST_IMAGES_ON_A_CPU)
    # Its optimizer's settings and its mixing take no time to speak of.
    plain = replace(
        recipe,
        batch_size=images,
        micro_batch_size=None,
        learning_rate=LEARNING_RATE,
        mixup_alpha=0.0,
        cutmix_alpha=0.0,
        compile=False,
    )
    return plain, random_batch(images, recipe.canvas)


def _measure(
    network: nn.Module,
    recipe: Recipe,
    runtime: Runtime,
    batch: Batch,
    limit: float | None,
    check: Callable[[], None],
) -> _Measured | None:
    """
    Args:
        network: copied.
        recipe: precision, layout and compilation are what is measured.
        runtime: the device.
        batch: trained on in every step.
        limit: seconds of a second step that is not worth a third; None has no limit.
        check: called before every step.
    """
    trained = copy.deepcopy(network).to(runtime.device).train()
    if recipe.channels_last:
        trained = cast(Any, trained).to(memory_format=torch.channels_last)
    compiled: Any = compile_anew(trained) if recipe.compile else trained
    step = OptimizerStep(compiled, make_optimizer(trained, recipe, runtime), _loss, recipe, runtime)
    losses: list[float] = []
    seconds: list[float] = []
    # The same drop-outs in each.
    devices = [runtime.device] if runtime.on_cuda else []
    with torch.random.fork_rng(devices), fast_float32(runtime.device):
        torch.manual_seed(0)
        while len(losses) < FIRST_STEPS or (
            len(losses) < MOST_STEPS and sum(seconds[1:]) < ENOUGH_SECONDS
        ):
            check()
            started = time.perf_counter()
            losses.append(step(batch).item())  # waits for the GPU
            seconds.append(time.perf_counter() - started)
            most = [] if limit is None else [limit + SETTING_UP_SECONDS, limit]
            if any(taken > own for taken, own in zip(seconds, most, strict=False)):
                return None
    # The quickest step: whatever else the machine did meanwhile only slowed the others.
    arithmetic = Arithmetic(step.precision, recipe.channels_last, recipe.compile)
    speed = len(batch.targets) / min(seconds[1:])
    return _Measured(arithmetic, tuple(losses[:FIRST_STEPS]), speed)


def _loss(network: nn.Module, batch: Shown) -> Tensor:
    return F.cross_entropy(network(batch.images).float(), batch.targets)


def random_batch(images: int, side: int) -> Batch:
    """So many canvases of noise, of a side in pixels, with random targets."""
    generator = torch.Generator().manual_seed(0)
    return Batch(
        canvases=torch.randint(
            0, 256, (images, 3, side, side), dtype=torch.uint8, generator=generator
        ),
        targets=torch.randint(0, NUM_CLASSES, (images,), generator=generator),
        indices=torch.arange(images),
        seeds=torch.zeros(images, dtype=torch.int64),
    )


def _agree(measured: _Measured, exact: _Measured) -> bool:
    return all(
        abs(loss - expected) <= AGREEMENT * abs(expected)  # False for NaN
        for loss, expected in zip(measured.losses, exact.losses, strict=True)
    )


def _best(found: Sequence[_Measured]) -> _Measured:
    highest = max(measured.images_per_second for measured in found)
    return next(m for m in found if m.images_per_second >= SAME * highest)


def _describe(recipe: Recipe, best: _Measured, found: Sequence[_Measured]) -> str:
    """ "mobilenetv2_100: fp32 channels_last, 54 images/s (bf16 43)": the best of each of the others
    in parentheses."""
    others = {}
    for measured in sorted(found, key=lambda m: m.images_per_second):
        arithmetic = measured.arithmetic
        if (arithmetic.precision, arithmetic.compile) != (
            best.arithmetic.precision,
            best.arithmetic.compile,
        ):
            name = f"{arithmetic.precision}{' compiled' if arithmetic.compile else ''}"
            others[name] = f"{name} {measured.images_per_second:.0f}"
    told = f" ({', '.join(others.values())})" if others else ""
    speed = f"{best.images_per_second:.0f} images/s"
    return f"{recipe.backbone}: {best.arithmetic}, {speed}{told}"
