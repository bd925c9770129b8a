"""Facts of a run come from its folder, never from the machine that reports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search.report.recorded import MISSING, describe_machines, describe_run, named
from tests.search.report.conftest import MACHINE, HandMadeRun


def record(run: Path, name: str, content: Any) -> None:
    folder = run / "candidates" / name
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(content), encoding="utf-8")


def test_facts_come_from_the_folder(night: HandMadeRun) -> None:
    told: list[str] = []
    assert describe_run(night.folder, told.append) == {
        "fit images": "2,000 (1,100 fake)",
        "select images": "2,000 (1,100 fake)",
        "report images": "2,000 (1,100 fake)",
        "split": "unseen: of groups, with forgery methods held out",
        "pool": "demo",
        "starting weights": "none: trained from scratch",
        "budget": "200M parameters, by thop and exactly",
        "epochs of a finished candidate": "8",
        "objective": "AUC",
        "seed": "0",
        "device": "cuda NVIDIA H200, torch 2.15.0",
        "precision": "bf16",
        "versions": "python 3.12.3, torch 2.15.0, timm 1.0.31",
        "notes": "All networks were trained from scratch: --weights none.",
    }
    assert told == []


def test_generated_images_are_told_of(night: HandMadeRun) -> None:
    with (night.folder / "data.yaml").open("a", encoding="utf-8") as file:
        file.write(
            "generated: {samples: 5, kinds: {mixed: 2, self-blended: 3}, seed: 7, version: 0.1.0}\n"
        )
    assert describe_run(night.folder)["generated among fit"] == (
        "5 (2 mixed, 3 self-blended), made of its other images by `search expand` 0.1.0, seed 7"
    )


def test_an_empty_folder_has_only_dashes(tmp_path: Path) -> None:
    told: list[str] = []
    facts = describe_run(tmp_path, told.append)
    assert set(facts.values()) == {MISSING}
    assert len(told) == 2, "settings.yaml and data.yaml"


@pytest.mark.parametrize("name", ["settings.yaml", "data.yaml"])
@pytest.mark.parametrize("content", ["[", "- list", "splits: {fit: 3}\nbudget: much\nnotes: 1", ""])
def test_a_damaged_file_leaves_its_own_facts_blank(
    name: str, content: str, night: HandMadeRun
) -> None:
    whole = describe_run(night.folder)
    (night.folder / name).write_text(content, encoding="utf-8")
    facts = describe_run(night.folder)
    blank = {
        "settings.yaml": {
            *("pool", "starting weights", "epochs of a finished candidate"),
            *("objective", "seed"),
        },
        "data.yaml": {"fit images", "select images", "report images", "split", "notes", "budget"},
    }[name]
    assert {fact for fact, text in whole.items() if facts.get(fact, MISSING) != text} == blank
    assert {facts.get(fact, MISSING) for fact in blank} == {MISSING}


def test_machines_that_differ_are_listed_with_their_candidates(tmp_path: Path) -> None:
    record(tmp_path, "0000", MACHINE)
    record(tmp_path, "0001", MACHINE | {"versions": MACHINE["versions"] | {"torch": "2.11.0"}})  # type: ignore[operator]
    record(tmp_path, "0002", MACHINE | {"device": "cpu AVX2, torch 2.15.0", "precision": "fp32"})
    record(tmp_path, "0003", {})
    assert describe_machines(tmp_path) == {
        "device": (
            "cuda NVIDIA H200, torch 2.15.0 (0000, 0001)\n"
            "cpu AVX2, torch 2.15.0 (0002)\n"
            f"{MISSING} (0003)"
        ),
        "precision": f"bf16 (0000, 0001)\nfp32 (0002)\n{MISSING} (0003)",
        "versions": (
            f"python 3.12.3 (0000, 0001, 0002); {MISSING} (0003)\n"
            f"torch 2.15.0 (0000, 0002); 2.11.0 (0001); {MISSING} (0003)\n"
            f"timm 1.0.31 (0000, 0001, 0002); {MISSING} (0003)"
        ),
    }


def test_what_was_never_recorded_is_a_dash(tmp_path: Path) -> None:
    blank = dict.fromkeys(("device", "precision", "versions"), MISSING)
    assert describe_machines(tmp_path) == blank
    record(tmp_path, "0000", {"auc": 0.9, "versions": "2.15"})
    assert describe_machines(tmp_path) == blank


def test_a_damaged_candidate_is_told_and_counts_as_not_recorded(
    make_run: Callable[[str], HandMadeRun],
) -> None:
    run = make_run("damaged")
    run.add("complete", 1.0)
    run.add("complete", 1.0)
    (run.candidate(0) / "metrics.json").write_text("{")
    told: list[str] = []
    machines = describe_machines(run.folder, told.append)
    assert machines["precision"] == f"{MISSING} (0000)\nbf16 (0001)"
    (line,) = told
    assert str(Path("0000") / "metrics.json") in line


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (1, "0000"),
        (6, "0000, 0001, 0002, 0003, 0004, 0005"),
        (7, "0000, 0001, 0002, 0003, 0004 and 2 more"),
        (17, "0000, 0001, 0002, 0003, 0004 and 12 more"),
    ],
)
def test_many_candidates_are_not_all_named(count: int, text: str) -> None:
    assert named([f"{number:04d}" for number in range(count)]) == text
