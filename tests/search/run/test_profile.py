from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from search.cli import main
from search.data.inputs import write_data
from search.errors import UserError
from search.pixels.canvas import describe_canvas
from search.run import profile as module
from search.run.profile import Profile, run_profile
from search.settings.saved import write_settings
from search.settings.search import SearchSettings
from search.settings.subcommands import ProfileSettings

STAGES = [
    *("read", "decode", "canvas", "gather", "compress"),
    *("augment", "copy", "train", "score"),
]


def profiled(**changes: object) -> tuple[Profile, str]:
    """A profile of a tiny network on the demo set, and what was printed."""
    settings = {
        "backbone": "test_resnet.r160_in1k",
        "image_size": 32,
        "batch_size": 8,
        "device": "cpu",
        "precision": "fp32",
        "workers": 0,
        "limit_train": 40,
        "seconds": 0.02,
    }
    text = io.StringIO()
    given = ProfileSettings(**{**settings, **changes})  # type: ignore[arg-type]
    return run_profile(given, Console(file=text, width=120)), text.getvalue()


def test_every_stage_and_the_whole_are_measured() -> None:
    profile, text = profiled()
    assert [stage.name for stage in profile.stages] == STAGES
    assert all(stage.images_per_second > 0 for stage in profile.stages)
    assert 0 < profile.whole < max(stage.images_per_second for stage in profile.stages)
    for name in (*STAGES, "whole"):
        assert name in text
    assert f"bottleneck: {profile.bottleneck} " in text


def test_a_run_is_profiled_on_its_own_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SearchSettings(out=tmp_path, batch_size=4, image_size=32).resolved()
    write_settings(settings, tmp_path)
    write_data(
        tmp_path, module.read_splits(settings), "study", budget=1, canvas=describe_canvas(40)
    )
    catalogue = Path(module.DEFAULT_PATH).read_bytes()
    (tmp_path / "backbones.yaml").write_bytes(catalogue)
    _, text = profiled(out=tmp_path, image_size=None, batch_size=None, limit_train=None)
    assert "at 32 px from canvases of 40 px, light, batches of 4, fp32" in text


@pytest.mark.parametrize(
    ("speeds", "workers", "expected"),
    [
        ({"train": 50.0}, 0, "train"),
        ({"augment": 40.0, "train": 50.0}, 0, "augment"),
        ({"augment": 40.0, "train": 50.0}, 2, "train"),  # two workers are faster together
        ({"augment": 20.0, "train": 50.0}, 2, "augment"),
        ({"compress": 40.0, "train": 50.0}, 2, "train"),
        ({"compress": 20.0, "train": 50.0}, 2, "compress"),
        # Canvases are made once, and scoring is no part of a training.
        ({"decode": 1.0, "canvas": 1.0, "score": 1.0, "gather": 30.0}, 0, "gather"),
    ],
)
def test_the_bottleneck_is_what_costs_a_training_most(
    speeds: dict[str, float], workers: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = dict.fromkeys(STAGES, 1000.0) | speeds | {"whole": 10.0}
    monkeypatch.setattr(module, "_measured", lambda *_: found.items())
    assert profiled(workers=workers)[0].bottleneck == expected


def test_without_a_cache_canvases_are_part_of_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {name: 1000.0 for name in STAGES if name != "gather"} | {"decode": 30.0, "whole": 10.0}
    monkeypatch.setattr(module, "_measured", lambda *_: found.items())
    assert profiled(cache="off")[0].bottleneck == "decode"


def test_broken_images_are_left_out(tmp_path: Path) -> None:
    table = module.read_splits(SearchSettings(limit_train=6).resolved()).fit
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    damaged = table.assign(path=[str(broken), *table["path"][1:]])
    assert len(module._readable(damaged, 0)) == len(table) - 1
    with pytest.raises(UserError, match="two images that can be read, found 0 of"):
        module._readable(table.assign(path=str(broken)), 0)


def test_a_run_and_a_label_file_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--out", "a", "--train-labels", "b", "--train-images", "c"]) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_training_is_measured_on_random_tensors_in_training_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    modes: list[bool] = []
    plain = module.Training

    def watched(network: torch.nn.Module, *rest: object) -> object:
        network.register_forward_hook(lambda one, *_: modes.append(one.training))
        return plain(network, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "Training", watched)
    profiled()
    # train, score, whole
    changes = [mode for i, mode in enumerate(modes) if i == 0 or mode != modes[i - 1]]
    assert changes == [True, False, True]


def test_scoring_is_measured_as_looks_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """Canvases, in the precision of the training."""
    scored: set[tuple[int, bool]] = set()
    plain = module.Training

    def watched(network: torch.nn.Module, *rest: object) -> object:
        def look(one: torch.nn.Module, images: tuple[torch.Tensor]) -> None:
            if not one.training:
                scored.add((images[0].shape[-1], torch.is_autocast_enabled("cpu")))

        network.register_forward_pre_hook(look)
        return plain(network, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "Training", watched)
    profiled(precision="bf16", canvas=40)
    assert scored == {(40, True)}


def test_what_a_gpu_still_works_on_is_waited_for_once() -> None:
    events: list[str] = []

    def step() -> int:
        events.append("step")
        return 3

    module._speed(step, 0.01, lambda: events.append("wait"))
    assert events[:2] == ["step", "wait"]
    assert events[2:-1] == ["step"] * (len(events) - 3)
    assert events[-1] == "wait"
