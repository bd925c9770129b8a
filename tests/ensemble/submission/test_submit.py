from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from rich.console import Console

from ensemble.network.model import HeadSpec, ModelSpec, TeacherOrigin, build_model, load_model
from ensemble.settings import SubmitSettings
from ensemble.submission.ledger import Ledger
from ensemble.submission.manifest import find_changes
from ensemble.submission.submit import _check_owner, _make_room, run_submit
from ensemble.submission.verify import verify
from search.data.labels import read_list
from search.errors import UserError
from search.machine.device import Runtime, resolve_device
from search.pixels.loading.epochs import eval_batches
from search.pixels.loading.reading import Reader
from search.settings.saved import load_settings
from search.training.candidate import Candidate, copy_state, save_weights
from search.training.scoring import predict

NOON = datetime(2025, 3, 4, 12, tzinfo=UTC)
FILES = {
    "model.safetensors",
    "model.yaml",
    "prediction.csv",
    "model_card.md",
    "rules.json",
    "probes.json",
    "manifest.json",
    "reproduce",
}


def submit(settings: SubmitSettings, now: datetime = NOON) -> str:
    """Submits and returns what was told."""
    text = io.StringIO()
    run_submit(settings, Console(file=text, width=200), clock=lambda: now)
    return text.getvalue()


@pytest.fixture
def settings(run_folder: Path, tmp_path: Path) -> SubmitSettings:
    """Of a submission of the tiny run's validation images, out of order, by candidate 0000."""
    images = load_settings(run_folder).val_images
    assert images is not None
    names = sorted((path.name for path in images.iterdir()), reverse=True)
    listed = tmp_path / "testset_nolabel.txt"
    listed.write_text("\n".join(["img_name", *names, ""]), encoding="utf-8")
    return SubmitSettings(
        run=run_folder, images=images, names=listed, phase="test", model="0000", device="cpu"
    )


def make_fused(run: Path, **changes: Any) -> Path:
    """merged/fused of a ResNet and a ViT, by hand."""
    members = [Candidate(run / "candidates" / name) for name in ("0000", "0002")]
    spec = replace(
        ModelSpec(
            kind="fused",
            trunks=tuple(member.recipe for member in members),
            head=HeadSpec(kind="mean"),
            method="fused",
            merged_from=("0000", "0002"),
        ),
        **changes,
    )
    model = build_model(spec)
    if spec.kind == "fused":
        for trunk, member in zip(model.trunks, members, strict=True):  # type: ignore[arg-type]
            trunk.load_state_dict(member.load().state_dict())
    folder = run / "merged" / "fused"
    folder.mkdir(parents=True)
    spec.save(folder / "model.yaml")
    save_weights(folder / "model.safetensors", copy_state(model))
    shutil.copyfile(members[0].path / "metrics.json", folder / "metrics.json")
    return folder


def compare(run: Path, *rows: tuple[str, str, object]) -> None:
    table = pd.DataFrame(rows, columns=["model", "path", "recommended"])
    table.to_csv(run / "comparison.csv", index=False)


def test_the_folder_is_complete_and_scores_the_list(settings: SubmitSettings) -> None:
    text = submit(settings)
    folder = settings.run / "submission"
    assert {path.name for path in folder.iterdir()} == FILES
    assert find_changes(folder) == []
    model, _ = load_model(folder)
    table = read_list(settings.names, settings.images)
    loader = eval_batches(Reader(model.canvas), table, batch_size=7)
    expected = predict(model, loader, Runtime(resolve_device("cpu"))).scores
    prediction = pd.read_csv(folder / "prediction.csv", dtype={"img_name": str})
    assert prediction.columns.tolist() == ["img_name", "y_pred"]
    assert prediction["img_name"].tolist() == table["img_name"].tolist()
    assert prediction["y_pred"].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert "manifest SHA-256" in text
    assert "1 of 2 submissions made today (UTC), 1 left" in text


@pytest.mark.parametrize("model", ["candidates/0000", "submission", "submission-20250304T120000Z"])
def test_a_model_of_another_run_is_refused(
    model: str, settings: SubmitSettings, tmp_path: Path
) -> None:
    """Its images and samples are not those that the submission would tell of."""
    other = tmp_path / "other"
    shutil.copytree(settings.run, other)
    if not model.startswith("candidates"):
        shutil.copytree(other / "candidates" / "0000", other / model)
    with pytest.raises(UserError, match=rf"give --run {other}"):
        submit(replace(settings, model=str(other / model)))
    assert not (settings.run / "submission").exists()


def test_a_submission_that_was_moved_is_known_by_its_images(
    settings: SubmitSettings, tmp_path: Path
) -> None:
    moved = tmp_path / "moved" / "package"
    (moved / "reproduce").mkdir(parents=True)
    data = moved / "reproduce" / "data.yaml"
    shutil.copyfile(settings.run / "data.yaml", data)
    _check_owner(moved, settings.run)
    content = yaml.safe_load(data.read_text(encoding="utf-8"))
    data.write_text(yaml.safe_dump(content | {"fingerprint": "0" * 64}), encoding="utf-8")
    with pytest.raises(UserError, match=r"found .*package of other images .* the --run that"):
        _check_owner(moved, settings.run)


def test_precision_is_recorded_and_verified_with(settings: SubmitSettings) -> None:
    submit(replace(settings, precision="bf16", batch_size=5))
    folder = settings.run / "submission"
    made = json.loads((folder / "rules.json").read_text("utf-8"))["prediction"]
    assert (made["precision"], made["batch_size"]) == ("bf16", 5)
    checks = verify(folder, settings.images)
    assert all(check.ok for check in checks), checks


def test_scores_are_kept_until_they_are_handed_in(
    settings: SubmitSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ensemble.submission import submit as submission

    with monkeypatch.context() as patch:
        patch.setattr(submission, "write_package", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            submit(settings)
    journal = settings.run / submission.JOURNAL
    assert journal.exists()
    images = len(read_list(settings.names, settings.images))
    assert f"{images} of {images} images were scored before" in submit(settings)
    assert not journal.exists()


def test_the_model_that_the_comparison_recommends_is_taken(settings: SubmitSettings) -> None:
    make_fused(settings.run)
    compare(
        settings.run,
        ("0000", "candidates/0000", False),
        ("teacher ensemble", "", False),
        ("fused", "merged/fused", True),
    )
    submit(replace(settings, model="auto"))
    folder = settings.run / "submission"
    rules = json.loads((folder / "rules.json").read_text(encoding="utf-8"))
    assert rules["one_model"]["kind"] == "fused"
    assert [network["backbone"] for network in rules["pretraining"]["networks"]] == [
        "test_resnet.r160_in1k",
        "test_vit.r160_in1k",
    ]
    counts = [Candidate(settings.run / "candidates" / n).metrics for n in ("0000", "0002")]
    for name in ("params_thop", "params_exact"):
        assert rules["parameters"][name] == sum(metrics[name] for metrics in counts)
    assert rules["generated_samples"] == "none"
    (entry,) = Ledger(settings.run / "ledger.csv").entries
    assert (entry.model, entry.phase, entry.time) == ("merged/fused", "test", NOON)
    assert "fuse --run results/run --members 0000,0002 --head mean" in (
        folder / "reproduce" / "commands.sh"
    ).read_text(encoding="utf-8")


def test_what_it_was_made_from_is_recorded(settings: SubmitSettings) -> None:
    submit(settings)
    folder = settings.run / "submission" / "reproduce"
    assert {path.name for path in folder.iterdir()} == {
        "settings.yaml",
        "backbones.yaml",
        "data.yaml",
        "recipes",
        "images.csv",
        "versions.json",
        "seeds.json",
        "sha256.json",
        "commands.sh",
    }
    hashes = json.loads((folder / "sha256.json").read_text(encoding="utf-8"))
    assert "0000/model.safetensors" in hashes["weights"]
    assert len(hashes["label_files"]) == 3
    found = {**hashes["label_files"], **hashes["weights"]}
    assert all(len(value) == 64 for value in found.values())
    assert json.loads((folder / "versions.json").read_text(encoding="utf-8"))["timm"]
    assert [path.name for path in (folder / "recipes").iterdir()] == ["0000.yaml"]


def test_no_path_of_the_machine_is_in_it(settings: SubmitSettings, tmp_path: Path) -> None:
    run = settings.run
    text = (run / "settings.yaml").read_text(encoding="utf-8")
    (run / "settings.yaml").write_text(
        f"{text}storage: postgresql://me:password@host/db\n", encoding="utf-8"
    )
    recipe = run / "candidates" / "0000" / "recipe.yaml"
    content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    content.update(weights="file", weights_file=str(tmp_path / "start.safetensors"))
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    submit(settings)
    for path in (run / "submission").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"password" not in content
            assert str(tmp_path).encode() not in content
            assert str(settings.images.parents[1]).encode() not in content


@pytest.mark.usefixtures("unverified")
def test_an_earlier_submission_is_kept(settings: SubmitSettings) -> None:
    submit(settings)
    before = (settings.run / "submission" / "manifest.json").read_bytes()
    settings = replace(settings, phase="validation")
    text = submit(replace(settings, model="0002"), NOON)
    submit(settings, NOON)
    kept = settings.run / "submission-20250304T120000Z"
    assert (kept / "manifest.json").read_bytes() == before
    assert (settings.run / "submission-20250304T120000Z-2").is_dir()
    assert str(kept) in text
    assert not list(settings.run.glob(".submission*part"))


@pytest.fixture
def unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a submission's place and day are asked for, it need not pass its verification."""
    monkeypatch.setattr("ensemble.submission.submit._check", lambda _: None)


def counted(run: Path) -> list[str]:
    """Names of the candidates that the ledger counts."""
    return [Path(entry.model).name for entry in Ledger(run / "ledger.csv").entries]


class KilledError(BaseException):
    """Like a kill, it leaves no time to tidy up."""


@pytest.mark.parametrize(
    ("place", "is_counted"), [("Ledger.add", False), ("_place", True), ("_make_room", True)]
)
def test_a_kill_around_the_ledger_is_gone_on_with_and_counted_once(
    settings: SubmitSettings, monkeypatch: pytest.MonkeyPatch, place: str, is_counted: bool
) -> None:
    """Before the entry, after it, and when the earlier submission has made room."""
    submit(replace(settings, model="0001"))
    name = f"ensemble.submission.submit.{place}"
    original = _make_room

    def kill(*arguments: Any) -> None:
        if place == "_make_room":
            original(*arguments)
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(name, kill)
        with pytest.raises(KilledError):
            submit(settings, NOON + timedelta(minutes=1))
    assert counted(settings.run) == ["0001", "0000"][: 1 + is_counted]
    # The day's second and last: refused, if it were counted again.
    text = submit(settings, NOON + timedelta(minutes=2))
    assert ("not counted again" in text) == is_counted
    assert counted(settings.run) == ["0001", "0000"]
    folders = sorted(path.name for path in settings.run.glob("*submission*"))
    assert len(folders) == 2
    assert folders[0] == "submission"
    for folder in folders:
        assert find_changes(settings.run / folder) == []
    assert list(settings.run.glob(".submission.*")) == []


@pytest.mark.usefixtures("unverified")
def test_another_submission_after_a_kill_is_counted_for_itself(
    settings: SubmitSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("ensemble.submission.submit._place", kill)
        with pytest.raises(KilledError):
            submit(settings)
    submit(replace(settings, model="0001"), NOON + timedelta(minutes=1))
    assert counted(settings.run) == ["0000", "0001"]
    assert len(list(settings.run.glob("submission*"))) == 2


def test_what_a_killed_process_left_half_written_goes(settings: SubmitSettings) -> None:
    half = settings.run / ".submission.part"
    half.mkdir()
    (half / "manifest.json").write_text("{")
    (settings.run / ".ledger.csv.123.part").write_text("phase,ti")
    submit(settings)
    assert list(settings.run.glob(".*.part")) == []
    assert find_changes(settings.run / "submission") == []


@pytest.mark.usefixtures("unverified")
def test_the_same_predictions_twice_are_told(settings: SubmitSettings) -> None:
    assert "byte for byte" not in submit(settings, NOON)
    assert "byte for byte" in submit(settings, NOON + timedelta(minutes=1))
    other_phase = replace(settings, phase="validation")
    assert "byte for byte" not in submit(other_phase, NOON + timedelta(minutes=2))


@pytest.mark.usefixtures("unverified")
def test_the_one_over_the_limit_is_refused_unless_forced(settings: SubmitSettings) -> None:
    for minutes in (0, 1):
        submit(settings, NOON + timedelta(minutes=minutes))
    before = (settings.run / "submission" / "manifest.json").read_bytes()
    with pytest.raises(UserError, match=r"2 submissions a day .* 2025-03-05T00:00"):
        submit(settings, NOON + timedelta(minutes=2))
    assert (settings.run / "submission" / "manifest.json").read_bytes() == before
    submit(replace(settings, force=True), NOON + timedelta(minutes=3))
    with pytest.raises(UserError, match="--time-zone must stay UTC"):
        submit(replace(settings, time_zone="Asia/Shanghai"), NOON + timedelta(hours=4, minutes=1))
    submit(settings, NOON + timedelta(hours=12))
    entries = Ledger(settings.run / "ledger.csv").entries
    assert [entry.forced for entry in entries] == [False, False, True, False]


@pytest.mark.usefixtures("unverified")
def test_a_forced_change_of_zone_is_recorded_and_starts_no_new_day(
    settings: SubmitSettings,
) -> None:
    submit(settings, NOON - timedelta(hours=8))
    # At noon in UTC the next day has begun in Kiritimati, 14 hours ahead.
    moved = replace(settings, time_zone="Pacific/Kiritimati", force=True)
    assert "2 of 2 submissions made today (Pacific/Kiritimati), 0 left" in submit(moved, NOON)
    with pytest.raises(UserError, match="2 were made today"):
        submit(settings, NOON + timedelta(minutes=1))
    entries = Ledger(settings.run / "ledger.csv").entries
    assert [(entry.forced, entry.time_zone) for entry in entries] == [
        (False, "UTC"),
        (True, "Pacific/Kiritimati"),
    ]


@pytest.mark.usefixtures("unverified")
def test_the_day_may_end_while_scoring(settings: SubmitSettings) -> None:
    """The quota is that of the moment when the submission is recorded."""
    times = iter([NOON.replace(hour=23, minute=59), *[NOON + timedelta(days=1)] * 9])
    for _ in range(2):
        submit(settings, NOON + timedelta(days=1))
    with pytest.raises(UserError, match="2 were made today"):
        run_submit(settings, Console(quiet=True), clock=lambda: next(times))
    assert len(Ledger(settings.run / "ledger.csv").entries) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"overrides": ("candidate 0000 is tainted",)}, "is tainted"),
        (
            {
                "teachers": (
                    TeacherOrigin("9", "vit_base.augreg_in21k", "hub", "ImageNet-21K", 1.0),
                )
            },
            "teacher vit_base.augreg_in21k: in21k",
        ),
        (
            {"teachers": (TeacherOrigin("9", "resnet50.a1_in1k", "hub", "unknown", 1.0),)},
            "recorded as pretrained on unknown",
        ),
    ],
)
def test_a_model_that_breaks_a_rule_is_refused(
    changes: dict[str, Any], message: str, settings: SubmitSettings
) -> None:
    make_fused(settings.run, **changes)
    with pytest.raises(UserError, match=message):
        submit(replace(settings, model="fused"))
    assert not (settings.run / "submission").exists()
    assert not (settings.run / "ledger.csv").exists()


def test_a_model_over_the_budget_is_refused(settings: SubmitSettings) -> None:
    path = settings.run / "backbones.yaml"
    text = path.read_text(encoding="utf-8").replace("budget: 200000000", "budget: 100000")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"params_exact .* over the budget"):
        submit(settings)


def no_comparison(run: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("prepare", "model", "message"),
    [
        (no_comparison, "auto", r"python -m ensemble compare --run"),
        (lambda run: compare(run), "auto", "must recommend one model, found 0"),
        (
            lambda run: compare(run, ("a", "candidates/0000", 1), ("b", "candidates/0002", 1)),
            "auto",
            "found 2",
        ),
        (lambda run: compare(run, ("a", "merged/gone", True)), "auto", "holds no model"),
        (lambda run: (run / "comparison.csv").write_text("x\n1\n"), "auto", "must be a comparison"),
        (no_comparison, "0009", "one of 0000, .*did you mean '000"),
        (no_comparison, "0005", "weights"),
    ],
)
def test_a_model_that_is_not_there_is_a_user_error(
    prepare: Callable[[Path], None], model: str, message: str, settings: SubmitSettings
) -> None:
    prepare(settings.run)
    with pytest.raises(UserError, match=message):
        submit(replace(settings, model=model))


def break_images(settings: SubmitSettings, tmp_path: Path) -> SubmitSettings:
    """The same submission on a copy of the images of which two cannot be read."""
    images = Path(shutil.copytree(settings.images, tmp_path / "broken"))
    for name in ("1003.png", "1040.png"):
        (images / name).write_bytes(b"damaged")
    return replace(settings, images=images)


def test_unreadable_images_are_refused_unless_a_score_is_given(
    settings: SubmitSettings, tmp_path: Path
) -> None:
    settings = break_images(settings, tmp_path)
    with pytest.raises(
        UserError,
        match=r"1040.png \(none .*\), 1003.png \(none .*--broken",
    ):
        submit(settings)
    submit(replace(settings, broken_score=0.5))
    folder = settings.run / "submission"
    prediction = pd.read_csv(folder / "prediction.csv", dtype={"img_name": str}, index_col=0)
    assert len(prediction) == 48
    assert prediction["y_pred"][["1003.png", "1040.png"]].tolist() == [0.5, 0.5]
    assert (prediction["y_pred"] == 0.5).sum() == 2
    rules = json.loads((folder / "rules.json").read_text(encoding="utf-8"))
    assert rules["prediction"]["unreadable"] == ["1003.png", "1040.png"]
    assert rules["prediction"]["unreadable_score"] == 0.5


def test_a_listed_image_that_is_absent_is_refused(settings: SubmitSettings) -> None:
    with settings.names.open("a", encoding="utf-8") as file:
        file.write("absent.png\n")
    with pytest.raises(UserError, match=r"absent\.png"):
        submit(settings)
    assert not (settings.run / "submission").exists()


def test_nothing_is_left_of_a_submission_that_fails(
    settings: SubmitSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ensemble.submission import submit as submission
    from ensemble.submission.verify import Check

    monkeypatch.setattr(submission, "verify", lambda _: [Check("probes", False, "differ")])
    with pytest.raises(UserError, match="own verification, but probes: differ"):
        submit(settings)
    assert not list(settings.run.glob("*submission*"))
    assert not list(settings.run.glob(".submission*part"))
    assert not (settings.run / "ledger.csv").exists()
