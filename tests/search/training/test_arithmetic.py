from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from search.data.splits import Splits
from search.machine.device import Runtime, compile_anew
from search.machine.interruption import Interrupted
from search.training import arithmetic as module
from search.training import train as training_module
from search.training.arithmetic import (
    DEFAULT,
    Arithmetic,
    choose_arithmetic,
    describe_machine,
    training_speed,
)
from search.training.candidate import copy_state
from search.training.network import Network, build_network
from search.training.recipe import Recipe
from search.training.train import train
from tests.search.training.small import SMALL
from tests.stopping import StopAfter

CPU = Runtime(torch.device("cpu"))
RECIPE = Recipe(
    backbone="test_resnet.r160_in1k",
    # A processor without bf16 takes long over every layer.
    architecture=SMALL,
    image_size=32,
    canvas=32,
    weights="none",
    batch_size=8,
    epochs=2,
    precision="auto",
)
BF16 = Arithmetic("bf16", channels_last=False)
EVEN = {"fp32 channels_last": 1.0, "fp32": 1.0, "bf16 channels_last": 1.0, "bf16": 1.0}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONEFOLD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Clock:
    """A time in which every forward pass takes as long as its arithmetic says."""

    def __init__(self, seconds: dict[str, float], setting_up: float = 0.0) -> None:
        self.seconds, self.now = seconds, 0.0
        self.setting_up = setting_up
        self.seen: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def forward(self, images: Tensor) -> None:
        half = torch.is_autocast_enabled("cpu")
        is_last = images.is_contiguous(memory_format=torch.channels_last)
        name = str(Arithmetic("bf16" if half else "fp32", is_last))
        self.now += self.seconds[name] + (0.0 if name in self.seen else self.setting_up)
        self.seen.append(name)


class Timed(Network):
    """Tells the clock of each forward pass; may spoil its logits in bf16."""

    def __init__(self, clock: Clock, spoil: Callable[[Tensor], Tensor]) -> None:
        nn.Module.__init__(self)
        self.inner, self.image_size = build_network(RECIPE), 32
        self.clock, self.spoil = clock, spoil

    def __deepcopy__(self, _: Any) -> Timed:
        twin = Timed(self.clock, self.spoil)
        twin.load_state_dict(self.state_dict())
        return twin

    def forward(self, images: Tensor) -> Tensor:
        self.clock.forward(images)
        logits: Tensor = self.inner(images)
        return self.spoil(logits) if torch.is_autocast_enabled("cpu") else logits

    def parameter_groups(
        self, weight_decay: float, lowest_layer_scale: float
    ) -> list[dict[str, Any]]:
        return self.inner.parameter_groups(weight_decay, lowest_layer_scale)


def choose(
    monkeypatch: pytest.MonkeyPatch,
    seconds: dict[str, float],
    spoil: Callable[[Tensor], Tensor] = lambda logits: logits,
    setting_up: float = 0.0,
) -> tuple[Arithmetic, str, Clock]:
    """What is chosen where a step takes so many seconds, by precision and layout, and the first of
    each some more."""
    clock = Clock(EVEN | seconds, setting_up)
    told: list[str] = []
    network = Timed(clock, spoil)
    before = copy_state(network)
    with monkeypatch.context() as patch:
        patch.setattr(module.time, "perf_counter", clock.perf_counter)
        found = choose_arithmetic(network, RECIPE, CPU, told.append)
    assert all(torch.equal(before[name], tensor) for name, tensor in copy_state(network).items())
    (line,) = told
    return found, line, clock


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({}, "fp32 channels_last"),
        ({"bf16": 0.98}, "fp32 channels_last"),  # noise
        ({"bf16": 0.5}, "bf16"),
        ({"bf16 channels_last": 0.4, "bf16": 0.5}, "bf16 channels_last"),
        ({"fp32": 0.7, "bf16": 0.8}, "fp32"),
    ],
)
def test_the_fastest_wins(
    seconds: dict[str, float], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert str(choose(monkeypatch, seconds)[0]) == expected


def test_one_line_tells_the_choice_and_what_it_was_chosen_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, line, _ = choose(monkeypatch, {"fp32 channels_last": 0.1, "bf16": 0.2})
    assert line == "test_resnet.r160_in1k: fp32 channels_last, 80 images/s (bf16 40)"


def fail(_: Tensor) -> Tensor:
    raise RuntimeError("not implemented for 'BFloat16'")


@pytest.mark.parametrize(
    "spoil", [lambda x: x + torch.tensor([1.0, 0.0]), lambda x: x * float("nan"), fail]
)
def test_an_arithmetic_that_fails_or_disagrees_never_wins(
    spoil: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = {"bf16": 0.4, "bf16 channels_last": 0.4}
    assert choose(monkeypatch, fast)[0].precision == "bf16"
    with monkeypatch.context() as patch:
        patch.setattr(module, "_read", lambda *_: None)
        found, line, _ = choose(monkeypatch, fast, spoil)
    assert found == DEFAULT
    assert "bf16" not in line


@pytest.mark.parametrize(("seconds", "steps"), [(50.0, 1), (3.5, 2), (2.5, 3)])
def test_a_hopeless_arithmetic_is_given_up(
    seconds: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, clock = choose(monkeypatch, {"bf16": seconds, "bf16 channels_last": seconds})
    assert clock.seen.count("bf16") == clock.seen.count("bf16 channels_last") == steps
    assert clock.seen.count("fp32 channels_last") >= module.FIRST_STEPS


def test_a_first_step_that_sets_up_gives_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _, _ = choose(monkeypatch, {"bf16": 0.5}, setting_up=4.0)
    assert found == BF16


@pytest.mark.parametrize(("kind", "gives_up"), [("cpu", True), ("cuda", False)])
def test_a_gpus_first_step_gives_nothing_up(
    kind: str, gives_up: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It loads and tunes its kernels."""
    limits: list[float | None] = []

    def measure(
        _network: Any, recipe: Recipe, _runtime: Any, _batch: Any, limit: float | None, _check: Any
    ) -> Any:
        limits.append(limit)
        return module._Measured(Arithmetic(recipe.precision, recipe.channels_last), (0.7,), 100.0)

    monkeypatch.setattr(module, "_measure", measure)
    monkeypatch.setattr(module, "native_half_precision", lambda _: "bf16")
    runtime = Runtime(torch.device(kind))
    module._measure_all(build_network(RECIPE), RECIPE, runtime, lambda: None)
    assert limits[0] is None
    assert [limit is not None for limit in limits[1:]] == [gives_up] * (len(limits) - 1)
    assert len(limits) >= 4


def test_every_network_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch compiles a function for a few networks, eight by default, and runs others as they
    are."""
    compiled: list[object] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network: plain(network, backend=backend))
    with torch._dynamo.config.patch(recompile_limit=1):
        for number in range(1, 4):
            network = compile_anew(nn.Sequential(nn.Linear(number, 2)))
            network(torch.zeros(3, number))
            assert len(compiled) == number


def test_what_was_measured_is_kept_for_this_machine_and_network(
    monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    first, line, _ = choose(monkeypatch, {"bf16": 0.5})
    again, told, clock = choose(monkeypatch, {"fp32": 0.1})
    assert (again, told, clock.seen) == (first, line, [])
    (kept,) = (own_cache / "arithmetic").iterdir()
    assert json.loads(kept.read_text())["key"]["machine"] == describe_machine(CPU.device)
    kept.write_text("damaged")
    assert choose(monkeypatch, {"fp32": 0.1})[0] == Arithmetic("fp32", channels_last=False)
    # Another batch is another measurement.
    choose_arithmetic(build_network(RECIPE), replace(RECIPE, batch_size=4), CPU, lambda _: None)
    assert len(list((own_cache / "arithmetic").iterdir())) == 2


def test_a_speed_is_that_of_the_steps_that_will_be_taken(
    monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    clock = Clock({**EVEN, "bf16": 0.5})
    network = Timed(clock, lambda logits: logits)
    monkeypatch.setattr(module.time, "perf_counter", clock.perf_counter)
    as_told = replace(RECIPE, precision="bf16", channels_last=False)
    assert training_speed(network, as_told, CPU) == pytest.approx(RECIPE.batch_size / 0.5)
    assert set(clock.seen) == {"bf16"}
    assert not own_cache.exists()
    assert training_speed(network, RECIPE, CPU) == pytest.approx(RECIPE.batch_size / 0.5)
    # Nothing is measured twice,
    measured = len(clock.seen)
    assert choose_arithmetic(network, RECIPE, CPU, lambda _: None) == BF16
    assert training_speed(network, RECIPE, CPU) == pytest.approx(RECIPE.batch_size / 0.5)
    assert len(clock.seen) == measured
    # but where an earlier version kept no speed.
    (kept,) = (own_cache / "arithmetic").iterdir()
    content = json.loads(kept.read_text())
    del content["images_per_second"]
    kept.write_text(json.dumps(content))
    assert training_speed(network, RECIPE, CPU) == pytest.approx(RECIPE.batch_size / 0.5)
    assert len(clock.seen) > measured


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_a_network_that_cannot_be_trained_has_no_speed(
    precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build_network(RECIPE)
    monkeypatch.setattr(Network, "forward", lambda _self, images: fail(images))
    assert training_speed(network, replace(RECIPE, precision=precision), CPU) is None


def test_a_cache_that_cannot_be_written_costs_time_only(
    monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    own_cache.write_text("no folder")
    assert choose(monkeypatch, {"bf16": 0.5})[0] == BF16


def test_global_generators_stay_where_they_are() -> None:
    before = torch.get_rng_state()
    found = choose_arithmetic(build_network(RECIPE), RECIPE, CPU, lambda _: None)
    assert torch.equal(before, torch.get_rng_state())
    assert not found.compile


@pytest.mark.parametrize(
    ("again", "expected"),
    [(80.0, "fp32 channels_last"), (69.0, "fp32 channels_last"), (20.0, "bf16")],
)
def test_fp32_is_measured_once_more_before_it_loses(
    again: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may have held it up the first time."""
    speeds = {"fp32 channels_last": [10.0, again], "fp32": [9.0]}
    speeds |= {"bf16 channels_last": [60.0], "bf16": [70.0]}

    def measure(_network: nn.Module, recipe: Recipe, *_: Any) -> module._Measured:
        assert recipe.precision != "auto"
        arithmetic = Arithmetic(recipe.precision, recipe.channels_last, recipe.compile)
        return module._Measured(arithmetic, (0.7,) * 3, speeds[str(arithmetic)].pop(0))

    monkeypatch.setattr(module, "_measure", measure)
    told: list[str] = []
    network = build_network(RECIPE)
    assert str(choose_arithmetic(network, RECIPE, CPU, told.append)) == expected
    assert not any(speeds.values())


def test_compiling_is_tried_only_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Arithmetic] = []
    speeds = {"fp32 compiled": 30.0, "bf16": 20.0}

    def measure(_: Any, recipe: Recipe, *__: Any) -> Any:
        assert recipe.precision != "auto"
        found = Arithmetic(recipe.precision, recipe.channels_last, recipe.compile)
        measured.append(found)
        speed = speeds.get(str(found).replace(" channels_last", ""), 10.0)
        return module._Measured(found, (0.7,), speed)

    monkeypatch.setattr(module, "_measure", measure)
    network = build_network(RECIPE)
    assert choose_arithmetic(network, RECIPE, CPU, lambda _: None).precision == "bf16"
    assert not any(arithmetic.compile for arithmetic in measured)
    asked = choose_arithmetic(network, replace(RECIPE, compile=True), CPU, lambda _: None)
    assert asked == Arithmetic("fp32", channels_last=True, compile=True)
    assert [a.precision for a in measured if a.compile] == ["fp32", "bf16"]


def test_a_training_is_written_down_as_it_was_computed(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_module, "choose_arithmetic", lambda *_: BF16)
    candidate = train(RECIPE, splits, tmp_path / "a", runtime=CPU)
    assert candidate.recipe == replace(RECIPE, precision="bf16")
    assert candidate.metrics["precision"] == "bf16"


def test_going_on_keeps_the_arithmetic_that_was_begun_with(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_module, "choose_arithmetic", lambda *_: BF16)
    for name in ("a", "b"):
        with pytest.raises(Interrupted):
            train(RECIPE, splits, tmp_path / name, None, StopAfter(3), runtime=CPU)
    monkeypatch.setattr(training_module, "choose_arithmetic", lambda *_: DEFAULT)
    assert train(RECIPE, splits, tmp_path / "a", runtime=CPU).recipe.precision == "bf16"
    # Another machine may be fast in another one.
    monkeypatch.setattr(training_module, "describe_machine", lambda _: "another")
    assert train(RECIPE, splits, tmp_path / "b", runtime=CPU).recipe.precision == "fp32"


def test_a_stop_while_measuring_leaves_at_the_next_step_and_the_training_goes_on(
    splits: Splits, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        train(RECIPE, splits, tmp_path / "a", None, StopAfter(2), runtime=CPU)
    assert not list((tmp_path / "cache").glob("arithmetic/*"))  # half a measurement is none
    assert train(RECIPE, splits, tmp_path / "a", runtime=CPU).is_complete
