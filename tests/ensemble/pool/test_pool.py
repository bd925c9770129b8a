from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from ensemble.pool.pool import Pool, open_pool
from search.errors import UserError
from search.machine.interruption import Interrupted
from search.pixels.quarantine import Quarantine
from search.training.candidate import Candidate
from search.training.metrics import roc_auc


def edit_metrics(candidate: Path, **changes: Any) -> None:
    path = candidate / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def edit_recipe(candidate: Path, old: str, new: str) -> None:
    path = candidate / "recipe.yaml"
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")


def taint(run: Path, name: str = "0000") -> None:
    """Makes a candidate one that started from weights outside the rule."""
    edit_recipe(run / "candidates" / name, "test_resnet.r160_in1k", "resnet50.fb_swsl_ig1b_ft_in1k")
    edit_recipe(run / "candidates" / name, "weights: none", "weights: hub")


# --- opening


def test_finished_candidates_come_best_first(tiny_pool: Pool) -> None:
    assert set(tiny_pool.names) == {"0000", "0001", "0002", "0003", "0004"}
    aucs = [candidate.metrics["auc"] for candidate in tiny_pool.candidates]
    assert aucs == sorted(aucs, reverse=True)
    assert tiny_pool.best is tiny_pool.candidates[0]
    for name, auc in zip(tiny_pool.names, aucs, strict=True):
        assert roc_auc(tiny_pool.select[name], tiny_pool.select["target"]) == auc


def test_scores_on_report_are_computed_where_they_are_missing(
    tiny_run: Path, tiny_pool: Pool
) -> None:
    assert Candidate(tiny_run / "candidates" / "0002").report_scores is None
    candidate = tiny_pool.get("0002")
    assert candidate.report_scores is not None
    assert candidate.metrics["report"]["auc"] == roc_auc(
        tiny_pool.report["0002"], tiny_pool.report["target"]
    )
    assert set(tiny_pool.report.columns) == {"img_name", "target", "group", *tiny_pool.names}
    assert not set(tiny_pool.report["img_name"]) & set(tiny_pool.select["img_name"])


def test_only_the_missing_scores_are_computed(run_folder: Path) -> None:
    console = Console(record=True, width=200)
    batches: list[int] = []
    open_pool(run_folder, device="cpu", console=console, on_batch=lambda: batches.append(1))
    assert console.export_text().split() == ["scoring", "candidate", "0002", "on", "report"]
    assert len(batches) == 1
    open_pool(run_folder, device="cpu", on_batch=lambda: batches.append(1))
    assert len(batches) == 1


def test_opening_can_be_interrupted(run_folder: Path) -> None:
    def stop() -> None:
        raise Interrupted("interrupted by the user")

    with pytest.raises(Interrupted):
        open_pool(run_folder, device="cpu", on_batch=stop)
    assert Candidate(run_folder / "candidates" / "0002").report_scores is None


def edit_leaderboard(run: Path, name: str, state: str | None) -> None:
    """Gives a trial another state, or removes its row."""
    path = run / "leaderboard.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if state is None:
        table = table[table["candidate"] != name]
    else:
        table.loc[table["candidate"] == name, "state"] = state
    table.to_csv(path, index=False)


@pytest.mark.parametrize("state", [None, "failed", "paused", "pruned"])
def test_what_the_study_does_not_call_complete_is_left_out_and_told(
    state: str | None, run_folder: Path
) -> None:
    edit_leaderboard(run_folder, "0003", state)
    shutil.copytree(run_folder / "candidates" / "0001", run_folder / "candidates" / "0001-copy")
    console = Console(record=True, width=400)
    pool = open_pool(run_folder, device="cpu", console=console)
    assert set(pool.names) == {"0000", "0001", "0002", "0004"}
    assert (
        "left out, because leaderboard.csv does not call them complete: 0001-copy, 0003; if they "
        f"are, `python -m search report --out {run_folder}`"
    ) in console.export_text()
    with pytest.raises(UserError, match=r"found '0003'|says (failed|paused|pruned)"):
        pool.get("0003")


def test_a_complete_trial_whose_folder_is_gone_is_no_candidate(run_folder: Path) -> None:
    shutil.rmtree(run_folder / "candidates" / "0003")
    pool = open_pool(run_folder, device="cpu")
    assert "0003" not in pool.names
    with pytest.raises(UserError, match=r"must be among .* found '0003'"):
        pool.get("0003")


@pytest.mark.parametrize(("given", "expected"), [(None, 0), (1, 1)])
def test_workers_default_to_the_searchs(given: int | None, expected: int, tiny_pool: Pool) -> None:
    assert open_pool(tiny_pool.run, device="cpu", workers=given).runtime.workers == expected


def remove_candidates(run: Path) -> None:
    for name in ("0000", "0001", "0002", "0003"):
        shutil.rmtree(run / "candidates" / name)


def delete_weights(run: Path) -> None:
    for name in ("0000", "0001", "0002", "0003"):
        Candidate(run / "candidates" / name).drop_weights()


def taint_all_but_one(run: Path) -> None:
    for name in ("0000", "0001", "0002", "0003"):
        edit_metrics(run / "candidates" / name, pretraining="ImageNet-22K")


def score_another_split(run: Path) -> None:
    path = run / "candidates" / "0003" / "scores.csv"
    path.write_text(path.read_text("utf-8").replace("1001.png", "other.png"), "utf-8")


def change_the_labels(run: Path) -> None:
    text = (run / "data.yaml").read_text("utf-8")
    (run / "data.yaml").write_text(text.replace("fingerprint: ", "fingerprint: 0"), "utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_candidates, "two finished candidates or more, found 1; search on with `python -m"),
        (delete_weights, "found 1 of 5 finished: the weights of .*0003.* by --keep 10; .*larger"),
        (taint_all_but_one, "broke the pretraining rule.*--allow-tainted"),
        (score_another_split, "candidate 0003 has 1 images more and 1 fewer"),
        (change_the_labels, "another data set"),
        (lambda run: (run / "settings.yaml").unlink(), "must be the folder of a search"),
        (
            lambda run: (run / "leaderboard.csv").unlink(),
            "which candidates are complete, but it is absent; write it with `python -m search rep",
        ),
        (
            lambda run: (run / "leaderboard.csv").write_text("name,value\n1,2\n"),
            "which candidates are complete, but 'candidate'",
        ),
    ],
)
def test_a_run_that_cannot_be_merged_is_refused_in_one_line(
    damage: Callable[[Path], None], message: str, run_folder: Path
) -> None:
    damage(run_folder)
    with pytest.raises(UserError, match=message) as error:
        open_pool(run_folder, device="cpu")
    assert "\n" not in str(error.value)


def test_an_image_that_broke_later_is_left_out_for_all(run_folder: Path, tiny_pool: Pool) -> None:
    row = tiny_pool.splits.select.iloc[0]
    quarantine = Quarantine(run_folder / "quarantine.csv")
    quarantine.add(row["img_name"], row["path"], "truncated")
    pool = open_pool(run_folder, device="cpu")
    assert row["img_name"] not in set(pool.select["img_name"])
    assert len(pool.select) == len(tiny_pool.select) - 1
    assert len(pool.report) == len(tiny_pool.report)


def test_an_image_that_was_mended_later_is_left_out_for_all(
    run_folder: Path, tiny_pool: Pool
) -> None:
    """It was in quarantine when some were scored, and is not any more."""
    name = tiny_pool.splits.select["img_name"].iloc[0]
    scores = run_folder / "candidates" / "0001" / "scores.csv"
    table = pd.read_csv(scores, dtype={"img_name": str})
    table[table["img_name"] != name].to_csv(scores, index=False)
    console = Console(record=True, width=200)
    pool = open_pool(run_folder, device="cpu", console=console)
    assert set(tiny_pool.select["img_name"]) - set(pool.select["img_name"]) == {name}
    assert pool.select[list(pool.names)].notna().all(axis=None)
    assert f"images have no score by 0001, for example {name}: left out" in console.export_text()


# --- choosing by name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("0005", "must be complete, but leaderboard.csv says paused"),
        ("0006", "must be among .* found '0006'; did you mean"),
        ("", "must be among"),
    ],
)
def test_a_name_that_is_no_member_is_refused(name: str, message: str, tiny_pool: Pool) -> None:
    with pytest.raises(UserError, match=message):
        tiny_pool.get(name)


def test_deleted_weights_are_told_with_their_flag(run_folder: Path) -> None:
    Candidate(run_folder / "candidates" / "0003").drop_weights()
    with pytest.raises(UserError, match="deleted by the search's --keep 10"):
        open_pool(run_folder, device="cpu").get("0003")


def test_names_are_put_into_the_pools_order(tiny_pool: Pool) -> None:
    backwards = tuple(reversed(tiny_pool.names))
    assert tuple(c.name for c in tiny_pool.choose([*backwards, backwards[0]])) == tiny_pool.names


@pytest.mark.parametrize("names", [[], ["0001"], ["0001", "0001"]])
def test_one_candidate_is_not_enough(names: list[str], tiny_pool: Pool) -> None:
    with pytest.raises(UserError, match="two candidates or more"):
        tiny_pool.choose(names)


# --- taint


def test_a_tainted_candidate_is_left_out_and_told(run_folder: Path) -> None:
    taint(run_folder)
    console = Console(record=True, width=200)
    pool = open_pool(run_folder, device="cpu", console=console)
    assert "0000" not in pool.names
    assert "candidate 0000 is tainted, left out: " in console.export_text()
    with pytest.raises(UserError, match=r"0000 must not be merged: .*; .*--allow-tainted"):
        pool.get("0000")


def test_a_recorded_taint_counts_whatever_the_recipe_says(run_folder: Path) -> None:
    edit_metrics(run_folder / "candidates" / "0000", pretraining="unknown")
    pool = open_pool(run_folder, device="cpu")
    assert pool.tainted == {"0000": "recorded as pretrained on unknown"}


def test_an_override_is_recorded(run_folder: Path) -> None:
    taint(run_folder)
    pool = open_pool(run_folder, device="cpu", allow_tainted=True)
    assert pool.get("0000").name == "0000"
    (line,) = pool.overrides(["0001", "0000"])
    assert line.startswith("candidate 0000 is tainted and was allowed by --allow-tainted: ")
    assert pool.overrides(["0001"]) == ()


@pytest.mark.parametrize("backbone", ["resnet18.a1_in1k", "test_resnet.r160_in1k"])
def test_weights_of_imagenet_1k_are_no_taint(backbone: str, run_folder: Path) -> None:
    folder = run_folder / "candidates" / "0000"
    edit_recipe(folder, "test_resnet.r160_in1k", backbone)
    edit_recipe(folder, "weights: none", "weights: hub")
    edit_metrics(folder, pretraining="ImageNet-1K")
    assert not open_pool(run_folder, device="cpu").tainted
