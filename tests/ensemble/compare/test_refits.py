"""Refits beside merged models: no figure on a split that one has seen."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
from rich.console import Console

from ensemble.compare.compare import run_compare
from ensemble.compare.recommended import choose_model
from ensemble.network.model import Method, load_model
from ensemble.pool.pool import Pool
from search.errors import UserError
from search.machine.files import REFITS
from search.report.page import _merged, _refits
from search.run.refit_plan import _name
from search.settings.subcommands import RefitSettings
from search.training.candidate import Candidate
from search.training.train import train
from tests.ensemble.conftest import CPU, refit


@pytest.fixture
def compared(pool: Pool) -> tuple[Pool, pd.DataFrame, str]:
    for trained_on in ("fit", "fit+select", "all"):
        refit(pool, trained_on)
    told = io.StringIO()
    run_compare(pool, Console(file=told, width=200))
    table = pd.read_csv(pool.run / "comparison.csv").set_index("model")
    return pool, table, told.getvalue()


def test_a_refit_is_blank_where_it_was_trained(compared: tuple[Pool, pd.DataFrame, str]) -> None:
    pool, table, told = compared
    figures = ["auc_select", "auc", "difference"]
    known = table.loc[["refit-fit", "refit-fit+select", "refit-all"], figures].notna()
    assert known.to_numpy().tolist() == [
        [True, True, True],
        [False, True, True],
        [False, False, False],
    ]
    on_report = ["auc_low", "p_value", "tpr_at_fpr_1e-2"]
    assert table.loc["refit-all", on_report].isna().all()
    assert table.loc["refit-fit+select", on_report].notna().all()
    assert table.loc["refit-all", "trained_on"] == "all"
    # Who was trained on select is compared last, and recommended never.
    assert set(table.index[-2:]) == {"refit-fit+select", "refit-all"}
    chosen = table.index[table["recommended"]]
    assert len(chosen) == 1
    assert not set(chosen) & {"refit-fit+select", "refit-all"}
    allowed = table["allowed"] & table["auc_select"].notna()
    assert table.loc[chosen[0], "auc_select"] == table.loc[allowed, "auc_select"].max()
    for name in ("refit-fit+select", "refit-all"):
        assert f"submit it by its name, --model {name}" in told
    assert "--model refit-fit\n" not in told
    # Report, which only compare had to score it on.
    assert Candidate(pool.run / REFITS / "refit-fit+select").report_scores is not None


def test_scores_that_should_not_be_there_are_not_read(pool: Pool) -> None:
    """Whatever put them there: the recipe says what was seen."""
    found = refit(pool, "all")
    other = pool.best.path / "scores_report.csv"
    (found.path / "scores_report.csv").write_bytes(other.read_bytes())
    table = run_compare(pool, Console(quiet=True)).set_index("model")
    assert pd.isna(table.loc["refit-all", "auc"])


OTHERS = [name for name in get_args(Method) if name not in ("candidate", "refit")]


@pytest.mark.parametrize("name", [*OTHERS, "auto", "0007", "12345"])
def test_a_refit_cannot_have_the_name_of_another_model(name: str, tmp_path: Path) -> None:
    """Not even of one that is yet to be made."""
    settings = RefitSettings(run=tmp_path, name=name)
    with pytest.raises(UserError, match=f"must not mean another model of the run, found '{name}'"):
        _name(settings, Candidate(tmp_path / "0001"))


def test_a_refit_is_chosen_and_loaded_by_its_name(pool: Pool) -> None:
    found = refit(pool, "fit+select")
    choice = choose_model(pool.run, found.name)
    assert choice.name == f"{REFITS}/{found.name}"
    _, spec = load_model(choice.folder)
    assert (spec.method, spec.merged_from) == ("refit", (pool.best.name,))
    assert spec.trunks[0].trained_on == "fit+select"


def test_a_refit_that_is_not_complete_is_called_so(pool: Pool) -> None:
    folder = pool.run / REFITS / "half"
    recipe = replace(pool.best.recipe, trained_on="all")
    train(recipe, pool.splits, folder, len(pool.splits.fit), runtime=CPU)
    with pytest.raises(UserError, match="its training is not complete"):
        load_model(folder)


def test_a_refit_is_merged_with_nothing(pool: Pool) -> None:
    found = refit(pool, "fit+select")
    assert found.name not in pool.names
    with pytest.raises(UserError, match="must not have been trained on what it is chosen by"):
        pool.choose([pool.best.name, found.name])


def test_the_page_shows_the_same_blanks(compared: tuple[Pool, pd.DataFrame, str]) -> None:
    pool, table, _ = compared
    assert [row["model"] for row in _merged(pool.run)] == table.index.tolist()
    rows = {row["name"]: row for row in _refits(pool.run, print)}
    shown = {
        name: [split for split in ("select", "report") if "auc" in row[split]]
        for name, row in rows.items()
    }
    assert shown == {
        "refit-fit": ["select", "report"],
        "refit-fit+select": ["report"],
        "refit-all": [],
    }
    assert all(row["refit_of"] == pool.best.name for row in rows.values())
