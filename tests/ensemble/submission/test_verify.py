from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file, save_file

from ensemble.network.model import HeadSpec, ModelSpec, build_model
from ensemble.settings import SubmitSettings
from ensemble.submission.manifest import find_changes, write_manifest
from ensemble.submission.submit import run_submit
from ensemble.submission.verify import run_verify, verify
from search.errors import UserError
from search.settings.saved import load_settings
from search.training.candidate import Candidate, copy_state, save_weights

UNREADABLE = "1007.png"


@pytest.fixture(scope="module")
def submitted(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A submission of a fused network, and its images, one of which cannot be read."""
    base = tmp_path_factory.mktemp("submitted")
    run = Path(shutil.copytree(tiny_run, base / "run"))
    members = [Candidate(run / "candidates" / name) for name in ("0000", "0002")]
    spec = ModelSpec(
        kind="fused",
        trunks=tuple(member.recipe for member in members),
        head=HeadSpec(kind="weights"),
        method="fused",
        merged_from=("0000", "0002"),
    )
    folder = run / "merged" / "fused"
    folder.mkdir(parents=True)
    spec.save(folder / "model.yaml")
    save_weights(folder / "model.safetensors", copy_state(build_model(spec)))
    source = load_settings(run).val_images
    assert source is not None
    images = base / "images"
    images.mkdir()
    for path in sorted(source.iterdir())[:12]:
        shutil.copyfile(path, images / path.name)
    (images / UNREADABLE).write_bytes(b"damaged")
    listed = base / "list.txt"
    names = sorted(path.name for path in images.iterdir())
    listed.write_text("\n".join(["img_name", *names, ""]), encoding="utf-8")
    settings = SubmitSettings(
        run=run,
        images=images,
        names=listed,
        phase="validation",
        model="fused",
        broken_score=0.25,
        device="cpu",
    )
    now = datetime(2025, 3, 4, tzinfo=UTC)
    return run_submit(settings, Console(quiet=True), clock=lambda: now), images


@pytest.fixture
def folder(submitted: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the submission that a test may tamper with, far from its run."""
    return Path(shutil.copytree(submitted[0], tmp_path / "elsewhere"))


def failed(folder: Path, images: Path | None = None) -> dict[str, str]:
    return {check.name: check.detail for check in verify(folder, images) if not check.ok}


def test_an_untouched_submission_passes_on_its_own(
    folder: Path, submitted: tuple[Path, Path]
) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    checks = verify(folder, submitted[1])
    assert {check.name: check.ok for check in checks} == dict.fromkeys(
        [
            *("files", "module", "parameters", "pretraining"),
            *("samples", "prediction", "probes", "images"),
        ],
        True,
    )
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def edit_json(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        change(content)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    return tamper


def edit_spec(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        content = yaml.safe_load((folder / "model.yaml").read_text(encoding="utf-8"))
        change(content)
        (folder / "model.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")

    return tamper


def edit_prediction(change: Callable[[list[str]], object]) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        lines = (folder / "prediction.csv").read_text(encoding="utf-8").splitlines()
        change(lines)
        text = "\n".join([*lines, ""])
        (folder / "prediction.csv").write_text(text, encoding="utf-8")

    return tamper


def set_line(number: int, text: str) -> Callable[[list[str]], None]:
    return lambda lines: lines.__setitem__(number, text)


def edit_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    return tamper


def change_weight(state: dict[str, torch.Tensor]) -> None:
    state["head.raw"] += torch.tensor([1.0, 0.0])


def add_trunk(folder: Path) -> None:
    """One more trunk, in the spec and in the weights: the module loads, and is a larger one."""
    edit_spec(lambda spec: spec["trunks"].append(spec["trunks"][0]))(folder)
    spec = ModelSpec.load(folder / "model.yaml")
    save_weights(folder / "model.safetensors", copy_state(build_model(spec)))


def flip_byte(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-10] ^= 0x10
    path.write_bytes(content)


TAMPERINGS: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    # What each breaks besides the manifest, that is: even if the manifest is written anew.
    "a byte of the weights": (flip_byte, set()),
    "a weight": (edit_weights(change_weight), {"probes", "images"}),
    "a weight that is NaN": (
        edit_weights(lambda state: state["head.raw"].fill_(float("nan"))),
        {"probes", "images"},
    ),
    "an added parameter": (
        edit_weights(lambda state: state.update(extra=torch.zeros(3))),
        {"module", "parameters", "pretraining", "probes", "images"},
    ),
    "an added trunk": (add_trunk, {"parameters", "pretraining", "probes", "images"}),
    "another normalisation": (
        edit_spec(lambda spec: spec["trunks"][0].update(mean=[0.1, 0.1, 0.1])),
        {"probes", "images"},
    ),
    "another recipe in reproduce": (
        lambda folder: (folder / "reproduce" / "recipes" / "0000.yaml").write_text("epochs: 1"),
        {"samples"},
    ),
    "another backbone's tag": (
        edit_spec(
            lambda spec: spec["trunks"][0].update(
                backbone="vit_base_patch16_224.augreg_in21k", weights="hub"
            )
        ),
        {"pretraining"},
    ),
    "a hidden teacher": (
        edit_json("rules.json", lambda rules: rules["pretraining"]["networks"].pop()),
        {"pretraining"},
    ),
    "a smaller count": (
        edit_json("rules.json", lambda rules: rules["parameters"].update(params_exact=1000)),
        {"parameters"},
    ),
    "a larger budget": (
        edit_json("rules.json", lambda rules: rules["parameters"].update(budget=300_000_000)),
        {"parameters"},
    ),
    "a budget below the count": (
        edit_json("rules.json", lambda rules: rules["parameters"].update(budget=1000)),
        {"parameters", "pretraining"},
    ),
    "an override that is hidden": (
        edit_spec(lambda spec: spec.update(overrides=["tainted"])),
        {"pretraining"},
    ),
    "a missing row": (edit_prediction(lambda lines: lines.pop(3)), {"prediction", "images"}),
    "a row too many": (
        edit_prediction(lambda lines: lines.append("extra.png,0.5")),
        {"prediction"},
    ),
    "a duplicate row": (
        edit_prediction(lambda lines: lines.append(lines[1])),
        {"prediction", "images"},
    ),
    "a NaN score": (edit_prediction(set_line(5, "1004.png,nan")), {"prediction", "images"}),
    "a score above 1": (edit_prediction(set_line(5, "1004.png,1.1")), {"prediction", "images"}),
    "another score": (edit_prediction(set_line(5, "1004.png,0.123")), {"images"}),
    "another header": (
        edit_prediction(set_line(0, "name,score")),
        {"prediction", "images"},
    ),
    "other rows' order": (
        edit_prediction(lambda lines: lines.append(lines.pop(1))),
        {"prediction"},
    ),
    "an image off the list": (
        lambda folder: (folder / "reproduce" / "images.csv").write_text("img_name\n1000.png\n"),
        {"prediction", "images"},
    ),
    "another probe's score": (
        edit_json("probes.json", lambda probes: probes["scores"].__setitem__(0, 0.9)),
        {"probes"},
    ),
    "fewer probes": (
        edit_json(
            "probes.json", lambda probes: (probes["scores"].clear(), probes["margins"].clear())
        ),
        {"probes"},
    ),
    "no seed of the probes": (
        edit_json("probes.json", lambda probes: probes.pop("seed")),
        {"probes"},
    ),
    "another unreadable image": (
        edit_json("rules.json", lambda rules: rules["prediction"]["unreadable"].append("1000.png")),
        {"images"},
    ),
    "a removed file": (
        lambda folder: (folder / "rules.json").unlink(),
        {"parameters", "pretraining", "samples", "images"},
    ),
    "removed weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        {"module", "parameters", "pretraining", "probes", "images"},
    ),
    "an added file": (lambda folder: (folder / "second.safetensors").touch(), {"module"}),
    "no JSON": (
        lambda folder: (folder / "rules.json").write_text("[]"),
        {"parameters", "pretraining", "samples", "images"},
    ),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_tampering_is_found(name: str, folder: Path, submitted: tuple[Path, Path]) -> None:
    tamper, expected = TAMPERINGS[name]
    tamper(folder)
    assert find_changes(folder)  # what the check of the files tells, without the others
    write_manifest(folder)
    assert set(failed(folder, submitted[1])) == expected


def shift_scores(folder: Path, by: float) -> None:
    """Moves the scores of the probes and of a listed image."""
    edit_json(
        "probes.json",
        lambda probes: probes.__setitem__("scores", [s + by for s in probes["scores"]]),
    )(folder)

    def move(lines: list[str]) -> None:
        name, score = lines[1].split(",")
        lines[1] = f"{name},{float(score) + by}"

    edit_prediction(move)(folder)
    write_manifest(folder)


@pytest.mark.parametrize(
    ("by", "tolerance", "failing", "is_elsewhere"),
    [
        (1e-6, 1e-5, set(), False),
        (3e-5, 1e-5, {"probes", "images"}, False),
        (3e-5, 1e-5, {"probes", "images"}, True),
        (3e-5, 1e-3, set(), False),
        (3e-3, 1e-3, {"probes", "images"}, True),
    ],
)
def test_rounding_is_forgiven_only_if_the_user_says_so(
    by: float,
    tolerance: float,
    failing: set[str],
    is_elsewhere: bool,
    folder: Path,
    submitted: tuple[Path, Path],
) -> None:
    if is_elsewhere:
        device = "cuda NVIDIA H100, torch 2.11.0"
        edit_json("probes.json", lambda probes: probes.update(device=device))(folder)
        edit_json("rules.json", lambda rules: rules["prediction"].update(device=device))(folder)
    shift_scores(folder, by)
    checks = {check.name: check for check in verify(folder, submitted[1], tolerance=tolerance)}
    assert {name for name, check in checks.items() if not check.ok} == failing
    told = {name for name, check in checks.items() if "recorded on cuda NVIDIA" in check.detail}
    assert told == (failing if is_elsewhere else set())


def test_a_removed_manifest_is_found(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    assert "manifest.json" in failed(folder)["files"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "hf-hub:someone/else"}, "timm's own"),
        ({"architecture": "local-dir:x"}, "timm's own"),
        ({"model_args": {"checkpoint_path": "x.pth"}}, "must not load anything"),
        ({"model_args": {"pretrained": True}}, "must not load anything"),
        ({"model_args": {"pretrained_cfg_overlay": {"file": "x"}}}, "must not load anything"),
        ({"model_args": {"no_such_argument": 1}}, "no_such_argument"),
    ],
)
def test_a_spec_that_reaches_out_is_never_built(
    changes: dict[str, Any], message: str, folder: Path
) -> None:
    edit_spec(lambda spec: spec["trunks"][0].update(changes))(folder)
    assert message in failed(folder)["module"]


def test_yaml_that_would_run_code_is_refused(folder: Path) -> None:
    (folder / "model.yaml").write_text('!!python/object/apply:os.system ["true"]', encoding="utf-8")
    assert "could not determine a constructor" in failed(folder)["module"]


def test_images_from_elsewhere_are_told(
    folder: Path, submitted: tuple[Path, Path], tmp_path: Path
) -> None:
    images = Path(shutil.copytree(submitted[1], tmp_path / "images"))
    shutil.copyfile(images / "1000.png", images / "1001.png")
    assert failed(folder, images)["images"].startswith("1 of 11 scores differ")
    (images / UNREADABLE).unlink()
    assert UNREADABLE in failed(folder, images)["images"]
    shutil.copyfile(images / "1000.png", images / UNREADABLE)
    assert "unreadable" in failed(folder, images)["images"]


def test_the_command_tells_every_check_and_fails_loudly(folder: Path) -> None:
    text = io.StringIO()
    console = Console(file=text, width=80)
    assert all(check.ok for check in run_verify(folder, None, console))
    assert "manifest SHA-256" in text.getvalue()
    edit_prediction(set_line(5, "1004.png,nan"))(folder)
    (folder / "extra").touch()
    text.truncate(0)
    with pytest.raises(UserError, match="2 of 7 failed: files, prediction"):
        run_verify(folder, None, console)
    assert (
        "FAILED files: extra is not in the manifest; prediction.csv has changed" in text.getvalue()
    )
    assert "ok     parameters" in text.getvalue()


def test_what_is_no_folder_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be the folder of a submission"):
        verify(tmp_path / "absent")
