"""The leaderboard of studies whose trials ended in every way a trial can end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState, create_trial

from search.errors import UserError
from search.report.leaderboard import (
    COLUMNS,
    INTEGERS,
    ON_SELECT,
    TEXTS,
    read_leaderboard,
    rows_from_study,
    write_leaderboard,
)

DESIGN = (
    "rank, candidate, state, backbone, pretraining, params_thop, params_exact, gmacs, image_size, "
    "epochs, auc, auc_low, auc_high, auc_report, tpr_at_fpr_1e-2, tpr_at_fpr_5e-3, "
    "tpr_at_fpr_1e-3, accuracy, log_loss, tp, fp, tn, fn, learning_rate, weight_decay, "
    "augmentation, batch_size, train_seconds, score_seconds, save_seconds, wait_seconds, "
    "images_per_second, peak_memory_mb, seed, reason, path, trial, auc_seen, "
    "auc_unseen, auc_stress, objective"
)


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(direction="maximize")


def add(
    study: optuna.Study,
    state: str | None,
    auc: float | None = None,
    optuna_state: TrialState | None = None,
    reason: str = "",
    **row: Any,
) -> None:
    """Adds a trial as the study leaves it; a state of None is a trial that told nothing."""
    by_state = {
        "complete": TrialState.COMPLETE,
        "failed": TrialState.FAIL,
        "paused": TrialState.WAITING,
    }
    attributes: dict[str, Any] = {}
    if state is not None:
        row |= {} if auc is None else {"auc": auc}
        attributes = {"state": state, "reason": reason, "row": row}
    optuna_state = optuna_state or by_state.get(str(state), TrialState.PRUNED)
    value = auc if optuna_state == TrialState.COMPLETE else None
    study.add_trial(create_trial(state=optuna_state, value=value, user_attrs=attributes))


def write_metrics(run: Path, name: str, content: dict[str, Any]) -> None:
    folder = run / "candidates" / name
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(content), encoding="utf-8")


def test_columns_are_the_designs_in_its_order() -> None:
    assert ", ".join(COLUMNS) == DESIGN
    assert set(TEXTS) | set(INTEGERS) <= set(COLUMNS)


def test_an_empty_study_has_an_empty_leaderboard(study: optuna.Study, tmp_path: Path) -> None:
    table = rows_from_study(study, tmp_path)
    assert table.empty
    write_leaderboard(table, tmp_path / "leaderboard.csv")
    assert (tmp_path / "leaderboard.csv").read_text("utf-8") == ",".join(COLUMNS) + "\n"


def test_order_and_ranks(study: optuna.Study, tmp_path: Path) -> None:
    add(study, "rejected", reason="too large")  # 0
    add(study, "pruned", 0.6)  # 1
    add(study, "complete", 0.8, params_exact=30)  # 2
    add(study, "failed", reason="NaN")  # 3
    add(study, "complete", 0.9)  # 4
    add(study, "complete", 0.8, params_exact=20)  # 5
    add(study, "pruned")  # 6: never looked at
    add(study, "pruned", 0.95)  # 7
    add(study, "complete", 0.8, params_exact=20)  # 8
    add(study, "complete", 0.8)  # 9: of unknown size
    add(study, "paused")  # 10: stopped before its first look
    add(study, "paused", 0.5)  # 11
    table = rows_from_study(study, tmp_path)
    assert table.index.tolist() == [4, 5, 8, 2, 9, 11, 10, 7, 1, 6, 3, 0]
    assert table["trial"].tolist() == table.index.tolist()
    assert table["rank"].tolist()[:5] == [1, 2, 3, 4, 5]
    assert table["rank"].iloc[5:].isna().all()
    assert table.index.name == "trial"


@pytest.mark.parametrize(
    ("optuna_state", "state", "reason"),
    [
        (TrialState.FAIL, "failed", "process ended"),
        (TrialState.PRUNED, "pruned", ""),
        (TrialState.COMPLETE, "complete", ""),
    ],
)
def test_a_trial_that_told_nothing_is_shown_by_its_optuna_state(
    study: optuna.Study, tmp_path: Path, optuna_state: TrialState, state: str, reason: str
) -> None:
    auc = 0.7 if optuna_state == TrialState.COMPLETE else None
    add(study, None, auc, optuna_state=optuna_state)
    table = rows_from_study(study, tmp_path)
    assert table[["state", "reason"]].to_numpy().tolist() == [[state, reason]]
    assert table["auc"].dropna().tolist() == ([] if auc is None else [auc])


def test_running_and_waiting_trials_are_left_out(study: optuna.Study, tmp_path: Path) -> None:
    add(study, "complete", 0.5)
    study.enqueue_trial({}, user_attrs={"preset": "baseline"})
    running = study.ask()
    running.set_user_attr("row", {"backbone": "resnet18"})
    study.enqueue_trial({})
    assert rows_from_study(study, tmp_path).index.tolist() == [0]


def test_a_paused_trial_is_shown_with_what_it_has_reached(
    study: optuna.Study, tmp_path: Path
) -> None:
    """As the objective: `auc` and its neighbours are on all of select, in fp32."""
    add(study, "paused", 0.65, reason="the time limit was reached", backbone="vit", epochs=0.5)
    table = rows_from_study(study, tmp_path)
    shown = table[["state", "reason", "backbone", "epochs", "objective"]].to_numpy().tolist()
    assert shown == [["paused", "the time limit was reached", "vit", 0.5, 0.65]]
    assert table[list(ON_SELECT)].isna().all(axis=None)
    assert table["rank"].isna().all()


def test_a_paused_trial_that_goes_on_is_left_out_and_one_that_ended_has_ended(
    study: optuna.Study, tmp_path: Path
) -> None:
    add(study, "paused", 0.65)
    assert study.ask().number == 0
    assert rows_from_study(study, tmp_path).empty
    study.tell(0, state=TrialState.FAIL)
    assert rows_from_study(study, tmp_path)["state"].tolist() == ["failed"]


def test_a_row_holds_what_the_trial_told(study: optuna.Study, tmp_path: Path) -> None:
    row = {
        "backbone": "test_vit.r160_in1k",
        "params_exact": 371_778,
        "tpr_at_fpr_1e-3": 0.125,
        "learning_rate": 3e-4,
        "peak_memory_mb": None,
        "n": 400,  # known to metrics.json, not to the leaderboard
    }
    add(study, "complete", 0.75, **row)
    add(study, "failed", reason="first line\nsecond,  line")
    table = rows_from_study(study, tmp_path)
    first = table.iloc[0]
    assert list(table.columns) == list(COLUMNS)
    assert {name: first[name] for name in row if name not in ("n", "peak_memory_mb")} == {
        name: value for name, value in row.items() if name not in ("n", "peak_memory_mb")
    }
    assert pd.isna(first["peak_memory_mb"])
    assert table.iloc[1]["reason"] == "first line second, line"
    assert table.iloc[1]["backbone"] == ""


@pytest.mark.parametrize(
    ("files", "candidate"),
    [
        ((), ""),
        (("recipe.yaml", "checkpoint.pt"), ""),
        (("recipe.yaml", "history.csv"), "0000"),
        (("metrics.json",), "0000"),
    ],
    ids=str,
)
def test_a_candidate_is_named_if_its_folder_has_something_to_show(
    files: tuple[str, ...], candidate: str, study: optuna.Study, tmp_path: Path
) -> None:
    # What the attributes of older runs say does not count, the folder does.
    add(study, "pruned", 0.6, path="somewhere/else")
    folder = tmp_path / "candidates" / "0000"
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).write_text("{}", encoding="utf-8")
    (row,) = rows_from_study(study, tmp_path).to_dict("records")
    assert row["candidate"] == candidate
    assert row["path"] == (f"candidates/{candidate}" if candidate else "")


def test_auc_report_comes_from_the_candidate(study: optuna.Study, tmp_path: Path) -> None:
    for auc in (0.9, 0.8, 0.7):
        add(study, "complete", auc)
    write_metrics(tmp_path, "0000", {"auc": 0.9, "report": {"auc": 0.85}})
    write_metrics(tmp_path, "0001", {"auc": 0.8})
    aucs = rows_from_study(study, tmp_path)["auc_report"]
    assert aucs.iloc[0] == 0.85
    assert aucs.iloc[1:].isna().all()


@pytest.mark.parametrize(
    "content", ['{"auc": ', "[1]", "\0", '{"report": [1]}', '{"report": {"auc": "high"}}']
)
def test_a_damaged_candidate_costs_its_own_figure_only(
    content: str, study: optuna.Study, tmp_path: Path
) -> None:
    for auc in (0.9, 0.8):
        add(study, "complete", auc)
    write_metrics(tmp_path, "0000", {})
    (tmp_path / "candidates" / "0000" / "metrics.json").write_text(content, encoding="utf-8")
    write_metrics(tmp_path, "0001", {"auc": 0.8, "report": {"auc": 0.75}})
    told: list[str] = []
    table = rows_from_study(study, tmp_path, told.append)
    assert table["candidate"].tolist() == ["0000", "0001"]
    assert table["auc_report"].isna().tolist() == [True, False]
    assert table["auc_report"].iloc[1] == 0.75
    if "report" not in content:
        (line,) = told
        assert str(Path("0000") / "metrics.json") in line


def test_csv_keeps_integers_names_and_every_digit(study: optuna.Study, tmp_path: Path) -> None:
    add(
        study, "complete", 0.1 + 0.2, params_thop=11_177_538, tp=40, backbone='with "quotes", comma'
    )
    add(study, "failed", reason="no figures at all")
    write_metrics(tmp_path, "0000", {})
    path = tmp_path / "leaderboard.csv"
    write_leaderboard(rows_from_study(study, tmp_path), path)
    raw = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert raw["params_thop"].tolist() == ["11177538", ""]
    assert raw["tp"].tolist() == ["40", ""]
    assert raw["candidate"].tolist() == ["0000", ""]
    assert raw["rank"].tolist() == ["1", ""]
    assert float(raw["auc"][0]) == 0.1 + 0.2
    assert raw["backbone"][0] == 'with "quotes", comma'


def test_a_leaderboard_is_read_back_as_it_was(study: optuna.Study, tmp_path: Path) -> None:
    path = tmp_path / "leaderboard.csv"
    table = rows_from_study(study, tmp_path)
    write_leaderboard(table, path)
    pd.testing.assert_frame_equal(read_leaderboard(path), table, check_index_type=False)
    add(study, "failed", reason="NA")
    add(study, "complete", 0.1 + 0.2, backbone="NA", params_thop=11_177_538, gmacs=0.5)
    add(study, "paused", 0.2, backbone='with "quotes", comma', epochs=0.1875)
    add(study, "complete", 0.9, seed=2**32 - 1, epochs=2)
    write_metrics(tmp_path, "0001", {"report": {"auc": 0.85}})
    table = rows_from_study(study, tmp_path)
    write_leaderboard(table, path)
    pd.testing.assert_frame_equal(read_leaderboard(path), table)


@pytest.mark.parametrize(
    "content", [None, "", "rank,state\n1,complete\n", "\0\1", "HEAD\n" + "x," * 33 + "x\n"]
)
def test_what_is_no_leaderboard_is_a_user_error(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "leaderboard.csv"
    if content is not None:
        path.write_text(content.replace("HEAD", ",".join(COLUMNS)), encoding="utf-8")
    with pytest.raises(UserError, match=r"leaderboard\.csv must be a leaderboard"):
        read_leaderboard(path)


def test_a_write_that_fails_leaves_the_old_file_alone(
    study: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "leaderboard.csv"
    path.write_text("old", encoding="utf-8")
    table = rows_from_study(study, tmp_path)

    def fail_halfway(self: pd.DataFrame, target: Path, **_: object) -> None:
        Path(target).write_text("half", encoding="utf-8")
        raise OSError("disk full")

    monkeypatch.setattr(pd.DataFrame, "to_csv", fail_halfway)
    with pytest.raises(OSError, match="disk full"):
        write_leaderboard(table, path)
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_objective_ranks_and_not_the_auc(study: optuna.Study, tmp_path: Path) -> None:
    add(study, "complete", 0.9, objective=0.6, auc_unseen=0.3)
    add(study, "complete", 0.8, objective=0.7, auc_unseen=0.6)
    table = rows_from_study(study, tmp_path)
    assert table.index.tolist() == [1, 0]
    assert table["auc_unseen"].tolist() == [0.6, 0.3]


def test_a_leaderboard_from_before_objectives_goes_by_the_auc(
    study: optuna.Study, tmp_path: Path
) -> None:
    add(study, "complete", 0.8)
    add(study, "complete", 0.9)
    path = tmp_path / "leaderboard.csv"
    write_leaderboard(rows_from_study(study, tmp_path), path)
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    before = frame.drop(columns=["auc_seen", "auc_unseen", "auc_stress", "objective"])
    before.to_csv(path, index=False)
    table = read_leaderboard(path)
    assert table["objective"].tolist() == [0.9, 0.8]
    assert table["auc_stress"].isna().all()
