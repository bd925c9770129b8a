from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from search.catalogue.backbones import load_backbones
from search.errors import UserError
from search.machine.device import Runtime
from search.machine.interruption import Interrupted, Interruption
from search.pixels.loading.epochs import eval_batches
from search.pixels.loading.reading import Reader
from search.settings.search import SearchSettings
from search.study import probing
from search.study.decisions.layout import Rules
from search.study.prior import PROBE, Probe, read_probes
from search.study.probing import (
    BATCH,
    Allotment,
    cross_validated_auc,
    frozen_features,
    is_worth_probing,
    probe_pool,
)
from search.training.network import build_network
from search.training.recipe import Recipe
from search.training.scoring import to_device
from tests.search.study.decisions.test_space import SPACE

CPU = Runtime(torch.device("cpu"), 0)
CANVAS = 32
RECIPE = Recipe(
    backbone="test_resnet.r160_in1k",
    architecture="test_resnet",
    canvas=CANVAS,
    image_size=CANVAS,
    weights="none",
)
DEMO = tuple(
    replace(backbone, image_sizes=(CANVAS,)) for backbone in load_backbones().pool("demo")[:3]
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No speed is measured for long."""
    monkeypatch.setattr("search.training.arithmetic.ENOUGH_SECONDS", 0.0)


@pytest.fixture(scope="module")
def fit(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """40 images of noise in 20 groups; fakes are brighter."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    rows = []
    for number in range(40):
        target = number // 2 % 2
        pixels = generator.integers(0, 180, (CANVAS, CANVAS, 3)) + 60 * target
        path = folder / f"{number:02d}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        rows.append((path.name, str(path), target, f"g{number // 2}"))
    return pd.DataFrame(rows, columns=["img_name", "path", "target", "group"])


@pytest.fixture
def plan(fit: pd.DataFrame) -> Any:
    """Of a search of three miniatures that start from weights, which are made up here."""
    space = replace(SPACE, backbones=DEMO, canvas=CANVAS, weights="none")
    return SimpleNamespace(
        settings=SearchSettings(seed=0),
        splits=SimpleNamespace(fit=fit),
        space=space,
        runtime=CPU,
        rules=Rules(first_look=40, trials=10, longest=80),
    )


def limited(plan: Any, seconds: float) -> Any:
    return SimpleNamespace(
        **{**vars(plan), "settings": SearchSettings(timeout=timedelta(seconds=seconds))}
    )


Probed = Callable[..., Probe]


def run_probe(
    plan: Any, run: Path, interruption: Interruption | None = None
) -> tuple[tuple[Probe, ...], list[str]]:
    lines: list[str] = []
    found = probe_pool(plan, run, Reader(CANVAS), interruption or Interruption(), lines.append)
    return found, lines


def test_no_group_is_on_both_sides_of_a_fold() -> None:
    """Features that say which group an image is of, and nothing of its target beside."""
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 8)
    targets = pd.Series(np.repeat(generator.integers(0, 2, 60), 8))
    features = generator.normal(size=(60, 50))[groups] + generator.normal(0, 0.1, (480, 50))
    known = cross_validated_auc(features, targets, pd.Series(groups.astype(str)))
    leaked = cross_validated_auc(features, targets, pd.Series(np.arange(480).astype(str)))
    assert known is not None
    assert leaked is not None
    assert known[0] < 0.65
    assert leaked[0] > 0.9
    assert known[2] == leaked[2] == 5
    assert 0 < known[1] < 0.3


@pytest.mark.parametrize(
    ("targets", "groups"),
    [
        ([0, 0, 0, 0], "abcd"),
        ([0, 0, 0, 1], "abcd"),
        ([0, 1, 0, 1], "aaaa"),
        ([0, 1, 1, 0], "aabb"),
    ],
    ids=["one class", "one fake", "one group", "a fold each"],
)
def test_few_images_are_validated_where_that_can_be_done(targets: list[int], groups: str) -> None:
    features = np.arange(8.0).reshape(4, 2)
    found = cross_validated_auc(features, pd.Series(targets), pd.Series(list(groups)))
    assert (found is None) is (groups != "aabb")


def test_features_are_those_before_the_classifier(fit: pd.DataFrame) -> None:
    network = build_network(RECIPE)
    found = frozen_features(network, fit, Reader(CANVAS), CPU, "fp32")
    (batch,) = eval_batches(Reader(CANVAS), fit, batch_size=len(fit))
    with torch.inference_mode():
        logits = network(to_device(batch, CPU))
        classifier: Any = network.trunk.get_classifier()  # type: ignore[operator]
        again = classifier(torch.from_numpy(found.features).float())
    torch.testing.assert_close(again, logits, atol=1e-5, rtol=1e-4)
    assert found.indices.tolist() == list(range(len(fit)))
    assert found.images_per_second > 0


def test_a_slow_network_sees_fewer_images(fit: pd.DataFrame) -> None:
    answers = iter([True, False])
    network = build_network(RECIPE)
    found = frozen_features(network, fit, Reader(CANVAS), CPU, "fp32", lambda: next(answers))
    assert found.features.shape == (2 * BATCH, 96)


def test_features_that_are_not_finite_are_no_features(fit: pd.DataFrame) -> None:
    network = build_network(RECIPE)
    next(network.parameters()).data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        frozen_features(network, fit, Reader(CANVAS), CPU, "fp32")


def test_a_pool_is_probed_once(plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, lines = run_probe(plan, tmp_path)
    assert [probe.backbone for probe in found] == [backbone.name for backbone in DEMO]
    for probe in found:
        assert (probe.images, probe.folds, probe.kept, probe.reason) == (40, 5, True, "")
        assert probe.auc is not None
        assert (probe.images_per_second or 0) > 0
        assert not probe.is_estimated
    assert read_probes(tmp_path) == list(found)
    assert lines[0].startswith("probing 3 of 3 backbones: features of 40 images of fit")
    assert "tried in the order of their probes" in lines[-1]
    monkeypatch.setattr(probing, "_probed", None)
    assert run_probe(plan, tmp_path) == (found, [])


def test_the_same_seed_gives_the_same_probes(plan: Any, tmp_path: Path) -> None:
    plan.space = replace(plan.space, backbones=DEMO[:1])
    aucs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        ((probe,), _) = run_probe(plan, tmp_path / name)
        aucs.append(probe.auc)
    assert aucs[0] == aucs[1]


def test_ctrl_c_costs_the_backbone_that_was_probed_and_no_other(
    plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interruption, features = Interruption(), probing.frozen_features
    seen: list[str] = []

    def counted(network: Any, *arguments: Any) -> Any:
        seen.append(type(network.trunk).__name__)
        interruption.requested = len(seen) == 2
        return features(network, *arguments)

    monkeypatch.setattr(probing, "frozen_features", counted)
    with pytest.raises(Interrupted):
        run_probe(plan, tmp_path, interruption)
    (kept,) = read_probes(tmp_path)
    assert kept.kept is None
    interruption.requested = False
    found, lines = run_probe(plan, tmp_path, interruption)
    assert len(seen) == 4
    assert lines[0].startswith("probing 2 of 3 backbones")
    assert found[0] == replace(kept, kept=True)


def test_a_broken_backbone_is_told_and_stays(
    plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(recipe: Recipe) -> Any:
        if recipe.backbone == DEMO[1].name:
            raise UserError("weights must be\nreadable")
        return build_network(recipe)

    monkeypatch.setattr(probing, "build_network", build)
    found, lines = run_probe(plan, tmp_path)
    assert [probe.auc is None for probe in found] == [False, True, False]
    assert found[1].kept
    assert found[1].reason == "could not be probed: weights must be readable"
    assert any("could not be probed: weights must be readable" in line for line in lines)


def test_images_at_fault_stop_it(
    plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise UserError("more than 5% are broken")

    monkeypatch.setattr(probing, "frozen_features", fail)
    with pytest.raises(UserError, match="more than 5%"):
        run_probe(plan, tmp_path)
    assert not (tmp_path / PROBE).exists()


def test_it_takes_its_share_of_the_time_and_no_more(
    plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    def probed(
        _plan: Any, backbone: Any, _table: Any, _reader: Any, allotment: Allotment, _: Any
    ) -> Probe:
        given.append(allotment.whole - time.monotonic())
        # The first is quick, and leaves its time to the others; the second takes all of it.
        return Probe(backbone.name, CANVAS, seconds=[2.0, 48.0, 0.0][len(given) - 1])

    monkeypatch.setattr(probing, "_probed", probed)
    run_probe(limited(plan, 1_000), tmp_path, Interruption(1_000))
    assert given == pytest.approx([50 / 3, 48 / 2, 0], abs=1)


def test_without_time_it_is_kept_unseen(plan: Any, fit: pd.DataFrame) -> None:
    arguments = (plan, DEMO[0], fit, Reader(CANVAS))
    found = probing._probed(*arguments, Allotment.of(0.0), Interruption())
    assert found == Probe(
        DEMO[0].name, CANVAS, reason="not probed: the share of the time for it is used up"
    )


def test_a_speed_that_cannot_be_measured_in_time_is_estimated(
    plan: Any, fit: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = probing.frozen_features

    def at_30(*arguments: Any) -> Any:
        return replace(features(*arguments), images_per_second=30.0)

    monkeypatch.setattr(probing, "frozen_features", at_30)
    # 256 images of training would take it 26 s.
    found = probing._probed(plan, DEMO[0], fit, Reader(CANVAS), Allotment.of(20.0), Interruption())
    assert (found.images_per_second, found.is_estimated) == (10.0, True)
    assert found.auc is not None
    assert "trains about 10 images/s" in probing.describe_probe(found)


@pytest.mark.parametrize(
    ("weights", "backbones", "expected"),
    [("hub", 3, True), ("file", 2, True), ("none", 3, False), ("hub", 1, False)],
)
def test_what_is_worth_probing(weights: Any, backbones: int, expected: bool, plan: Any) -> None:
    space = replace(plan.space, weights=weights, backbones=DEMO[:backbones])
    plan.space = space
    assert is_worth_probing(plan) is expected
