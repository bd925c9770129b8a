from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from search.cli import main
from search.data.generated import MANIFEST, UNFINISHED, read_manifest
from search.data.inputs import read_splits
from search.data.labels import read_labels
from search.errors import Interrupted, UserError
from search.expand import making
from search.expand.expand import run_expand
from search.settings.subcommands import ExpandSettings

QUIET = Console(quiet=True)


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def told(settings: ExpandSettings) -> str:
    text = io.StringIO()
    run_expand(settings, Console(file=text, width=200))
    return text.getvalue()


def again(made: Path, settings: ExpandSettings, out: str = "again") -> ExpandSettings:
    return ExpandSettings(
        manifest=made / MANIFEST, train_images=settings.train_images, out=made.with_name(out)
    )


def test_a_set_can_be_read_and_crosses_no_split(made: Path, settings: ExpandSettings) -> None:
    manifest = read_manifest(made / MANIFEST)
    assert manifest.kinds == {"self-blended": 4, "mixed": 4, "recompressed": 4}
    table = read_labels(made / "labels.txt", made / "images", made / "groups.csv")
    assert len(table) == 12 == len(list((made / "images").iterdir()))
    fit = read_splits(settings.images_settings()).fit
    assert set(table["group"]) <= set(fit["group"])
    sources = {source.img_name for sample in manifest.samples for source in sample.sources}
    assert sources <= set(fit["img_name"])
    assert set(table["target"]) == {0, 1}
    assert all(Image.open(path).size == (64, 64) for path in table["path"])


def test_the_same_bytes_come_of_any_number_of_workers_in_any_order(
    made: Path, settings: ExpandSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    backwards = making.make_samples
    monkeypatch.setattr(
        "search.expand.expand.make_samples",
        lambda works, *rest: backwards(works[::-1], *rest),
    )
    other = run_expand(replace(settings, workers=3, out=made.with_name("other")), QUIET)
    assert content(other) == content(made)
    seeded = replace(settings, seed=1, out=made.with_name("seeded"))
    names = {name for name in content(made) if name.startswith("images/")}
    mine, theirs = content(made), content(run_expand(seeded, QUIET))
    assert not any(mine[name] == theirs.get(name) for name in names)


def test_a_manifest_makes_the_same_bytes_again(made: Path, settings: ExpandSettings) -> None:
    text = told(again(made, settings))
    assert content(made.with_name("again")) == content(made)
    assert "12 samples (4 self-blended, 4 mixed, 4 recompressed)" in text


def interrupt_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while so many samples are made."""
    plain = making.make_sample
    made = []

    def make(*arguments: Any) -> Any:
        made.append(1)
        if len(made) == count:
            import signal

            signal.raise_signal(signal.SIGINT)
        return plain(*arguments)

    monkeypatch.setattr("search.expand.making.make_sample", make)


def test_an_interrupted_command_goes_on_with_what_is_missing(
    settings: ExpandSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = replace(settings, workers=1)
    with monkeypatch.context() as patch:
        interrupt_after(5, patch)
        with pytest.raises(Interrupted):
            run_expand(settings, QUIET)
    begun = content(settings.out)
    assert MANIFEST not in begun
    journal = settings.out / UNFINISHED
    done = len(journal.read_text("utf-8").splitlines()) - 1
    assert 5 <= done < 12
    with pytest.raises(UserError, match="complete, but they are not: the same `python -m search"):
        read_manifest(settings.out / MANIFEST)
    with pytest.raises(UserError, match=r"other settings \(seed, images"):
        run_expand(replace(settings, seed=1), QUIET)
    # A kill amid a line, and a file that was lost.
    journal.write_bytes(journal.read_bytes() + b'{"img_name": "half')
    next((settings.out / "images").iterdir()).unlink()
    makes: list[str] = []
    plain = making.make_sample
    monkeypatch.setattr(
        "search.expand.making.make_sample",
        lambda work, *rest: (makes.append(work.planned.img_name), plain(work, *rest))[1],
    )
    run_expand(settings, QUIET)
    assert len(makes) == 12 - done + 1
    monkeypatch.undo()
    whole = run_expand(replace(settings, out=tmp_path / "whole"), QUIET)
    assert content(settings.out) == content(whole)


def test_a_complete_set_is_mended(made: Path, settings: ExpandSettings) -> None:
    before = content(made)
    first, second = sorted((made / "images").iterdir())[:2]
    first.unlink()
    second.write_bytes(b"other")
    run_expand(settings, QUIET)
    assert content(made) == before


@pytest.mark.parametrize(
    "part", [".manifest.json.7.part", ".groups.csv.7.part", "tool/.kinds.py.7.part"]
)
def test_what_a_kill_left_of_a_file_is_dropped(
    part: str, made: Path, settings: ExpandSettings
) -> None:
    before = content(made)
    (made / MANIFEST).unlink()
    (made / part).write_text("half", encoding="utf-8")
    run_expand(replace(settings, workers=1), QUIET)
    assert content(made) == before


def test_a_run_on_these_images_decides_nothing(
    settings: ExpandSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A run without --out would lie there, and its division is not that of another command."""
    assert settings.train_groups is not None
    groups = pd.read_csv(settings.train_groups)
    fakes = groups["img_name"].str.startswith("f")
    groups["method"] = groups["group"].str[-1].map(int).mod(3).map(str).where(fakes, "")
    groups.to_csv(settings.train_groups, index=False)
    settings = replace(settings, split="unseen", kinds="self-blended", count=2, workers=1)
    before = content(run_expand(settings, QUIET))
    monkeypatch.chdir(tmp_path)
    run = settings.default_out
    run.mkdir(parents=True)
    (run / "settings.yaml").touch()
    assert content(run_expand(replace(settings, out=tmp_path / "other"), QUIET)) == before


def test_methods_that_a_search_would_find_are_not_found_here(settings: ExpandSettings) -> None:
    settings = replace(settings, kinds="self-blended", count=2, workers=1)
    text = told(replace(settings, split="unseen"))
    assert "no group file names a forgery method" in text
    by_group = run_expand(replace(settings, out=settings.out.with_name("other")), QUIET)
    assert content(by_group) == content(settings.out)


def change_source(made: Path, images: Path) -> str:
    source = read_manifest(made / MANIFEST).samples[0].sources[0].img_name
    Image.new("RGB", (64, 64)).save(images / source)
    return f"{source} has changed"


def remove_source(made: Path, images: Path) -> str:
    source = read_manifest(made / MANIFEST).samples[0].sources[0].img_name
    (images / source).unlink()
    return f"{source} cannot be read: No such file"


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path, Path], None]:
    def tamper(made: Path, _images: Path) -> None:
        found = json.loads((made / MANIFEST).read_text("utf-8"))
        change(found)
        (made / MANIFEST).write_text(json.dumps(found), encoding="utf-8")

    return tamper


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (change_source, None),
        (remove_source, None),
        (
            edit(lambda found: found["samples"][0]["parameters"].update(altered="both")),
            "its parameters are none of this version: altered: input should be 'inside'",
        ),
        (edit(lambda found: found["samples"][0].update(sha256="0" * 64)), "its bytes are others"),
        (edit(lambda found: found["samples"][0].update(kind="swap")), "its kind 'swap' is unknown"),
        (
            edit(lambda found: found["head"].update(format=9)),
            "must be a manifest of format 1, found 9",
        ),
        (edit(lambda found: found.pop("head")), "must be a manifest that onefold wrote: head"),
        (
            edit(lambda found: found["samples"][0].update(img_name="../x.bmp")),
            "must be a plain file name, found '../x.bmp'",
        ),
        (
            edit(lambda found: found["samples"][0]["sources"][0].update(img_name="a\\..\\..\\x")),
            "must be relative to its folder and without '..'",
        ),
        (
            edit(lambda found: found["head"]["tool"].update({"kinds.py": "0" * 64})),
            "must hold the code that made the samples, as manifest.json says, but kinds.py is",
        ),
        (
            lambda made, _: (made / MANIFEST).write_text("{"),
            "must be a manifest that onefold wrote",
        ),
        (lambda made, _: (made / MANIFEST).unlink(), "found nothing there"),
    ],
)
def test_what_comes_out_otherwise_is_told(
    tamper: Callable[[Path, Path], Any], message: str | None, made: Path, settings: ExpandSettings
) -> None:
    assert settings.train_images is not None
    found = tamper(made, settings.train_images)
    with pytest.raises(UserError, match=re.escape(message or found)):
        run_expand(again(made, settings), QUIET)
    assert not (made.with_name("again") / MANIFEST).exists()


def test_other_versions_are_told_where_bytes_differ(made: Path, settings: ExpandSettings) -> None:
    def change(found: dict[str, Any]) -> None:
        found["head"]["libraries"]["pillow"] = "1.0"
        found["samples"][3]["sha256"] = "0" * 64

    edit(change)(made, made)
    with pytest.raises(UserError, match=r"1 of 12 do not: .*they were made with pillow 1\.0, here"):
        run_expand(again(made, settings), QUIET)


def test_images_that_cannot_be_read_are_left_out(settings: ExpandSettings) -> None:
    assert settings.train_images is not None
    wanted = replace(settings, kinds="recompressed", count=29)
    fit = read_splits(settings.images_settings()).fit
    Path(fit["path"][0]).write_bytes(b"broken")
    text = told(wanted)
    copies = -(-29 // len(fit))
    assert "of 29 samples cannot be made and are left out: " in text
    assert 29 - copies <= len(read_manifest(settings.out / MANIFEST).samples) < 29


def test_fakes_that_would_show_no_change_are_not_made(
    settings: ExpandSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.expand.kinds.SMALLEST_CHANGE", 256.0)
    with pytest.raises(UserError, match=r"none of 4 could: .*must differ from the real one"):
        run_expand(replace(settings, kinds="self-blended", count=4), QUIET)


def test_a_folder_that_holds_other_things_is_left_alone(
    made: Path, settings: ExpandSettings
) -> None:
    assert settings.train_images is not None
    other_part = made.with_name("download") / ".download.part"
    other_part.parent.mkdir()
    other_part.touch()
    for out, message in [
        (settings.train_images, "generated samples alone, but .* holds"),
        (settings.train_images / "f0.png", "must be a folder, found the file"),
        (other_part.parent, r"generated samples alone, but .* holds \.download\.part"),
    ]:
        with pytest.raises(UserError, match=message):
            run_expand(replace(settings, out=out), QUIET)
    with pytest.raises(UserError, match=r"holds samples of other settings \(seed, images"):
        run_expand(replace(settings, seed=3), QUIET)
    other = run_expand(replace(settings, seed=3, out=made.with_name("other")), QUIET)
    with pytest.raises(UserError, match="samples of another manifest"):
        run_expand(again(other, settings, "generated"), QUIET)


def test_the_command_line_makes_a_set_and_its_twin(
    settings: ExpandSettings, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = [
        "--train-labels",
        f"{settings.train_labels}",
        "--train-images",
        f"{settings.train_images}",
    ]
    groups = ["--train-groups", f"{settings.train_groups}"]
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    assert main(["expand", *data, *groups, "--share", "0.3", "--out", one]) == 0
    assert "train on them with: python -m search run --generated" in capsys.readouterr().out
    manifest = str(Path(one) / MANIFEST)
    assert main(["expand", "--from", manifest, *data[2:], "--out", two]) == 0
    assert content(Path(one)) == content(Path(two))
    assert main(["expand", "--from", manifest, *data[2:], "--count", "3", "--out", two]) == 2
    assert "--from says what is made: leave --count out" in capsys.readouterr().err


def test_a_set_of_a_tool_elsewhere_needs_its_code(made: Path, settings: ExpandSettings) -> None:
    shutil.rmtree(made / "tool")
    run_expand(again(made, settings), QUIET)  # This version's is the same.
    assert (made.with_name("again") / "tool" / "kinds.py").is_file()
    edit(lambda found: found["head"]["tool"].update({"kinds.py": "0" * 64}))(made, made)
    with pytest.raises(UserError, match="must lie beside it in tool/"):
        run_expand(again(made, settings, "third"), QUIET)


def test_labels_are_for_any_tool(made: Path) -> None:
    labels = pd.read_csv(made / "labels.txt")
    samples = read_manifest(made / MANIFEST).samples
    assert labels.columns.tolist() == ["img_name", "target"]
    assert dict(labels.itertuples(index=False)) == {one.img_name: one.target for one in samples}
