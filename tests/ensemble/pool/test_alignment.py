from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from ensemble.pool.alignment import align_altered, align_scores
from search.errors import UserError
from search.training.candidate import load_table

SPLIT = pd.DataFrame({"img_name": ["a", "b", "c"], "target": [0, 1, 1], "group": ["x", "x", "y"]})


def scores(names: str, targets: list[int], values: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"img_name": list(names), "target": targets, "y_pred": values})


def test_rows_in_any_order_are_aligned_by_name() -> None:
    aligned = align_scores(
        {"x": scores("cab", [1, 0, 1], [0.3, 0.1, 0.2]), "y": scores("abc", [0, 1, 1], [4, 5, 6])},
        SPLIT,
    )
    assert aligned["img_name"].tolist() == ["a", "b", "c"]
    assert aligned["group"].tolist() == ["x", "x", "y"]
    assert aligned["x"].tolist() == [0.1, 0.2, 0.3]
    assert aligned["y"].tolist() == [4, 5, 6]


def test_images_whose_names_look_like_missing_values_are_aligned(tmp_path: Path) -> None:
    split = SPLIT.assign(img_name=["NA", "null", "nan"])
    split[["img_name", "target"]].assign(y_pred=[0.1, 0.2, 0.3]).to_csv(tmp_path / "x", index=False)
    aligned = align_scores({"x": load_table(tmp_path / "x")}, split)
    assert aligned["img_name"].tolist() == ["NA", "null", "nan"]
    assert aligned["x"].tolist() == [0.1, 0.2, 0.3]


def test_broken_images_are_in_no_column() -> None:
    whole, part = scores("abc", [0, 1, 1], [1, 2, 3]), scores("ac", [0, 1], [4, 5])
    aligned = align_scores({"x": whole, "y": part}, SPLIT, left_out={"b"})
    assert aligned[["x", "y"]].to_numpy().tolist() == [[1, 4], [3, 5]]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (scores("ab", [0, 1], [1, 2]), "0 images more and 1 fewer, for example c"),
        (scores("abcd", [0, 1, 1, 1], [1, 2, 3, 4]), "1 images more and 0 fewer, for example d"),
        (scores("abd", [0, 1, 1], [1, 2, 3]), "1 images more and 1 fewer"),
        (scores("abca", [0, 1, 1, 0], [1, 2, 3, 4]), "1 images twice, for example a"),
        (scores("abc", [0, 0, 1], [1, 2, 3]), "1 other targets, for example of b"),
    ],
)
def test_scores_of_another_split_are_refused(table: pd.DataFrame, message: str) -> None:
    with pytest.raises(UserError, match=f"candidate 0007 has {message}"):
        align_scores({"0001": scores("abc", [0, 1, 1], [1, 2, 3]), "0007": table}, SPLIT)


HUNDRED = pd.DataFrame({"img_name": [f"{i:02}" for i in range(100)], "target": [0, 1] * 50})
HUNDRED["group"] = HUNDRED["img_name"]


def scored(*lacking: int, split: pd.DataFrame = HUNDRED) -> pd.DataFrame:
    """A score of every image of the split but some: its row."""
    rows = split.drop(index=list(lacking))
    return rows.assign(y_pred=rows.index.to_numpy() / len(split))


def test_an_image_that_was_broken_for_a_while_is_left_out_for_all() -> None:
    lines: list[str] = []
    tables = {"0001": scored(), "0002": scored(7, 9), "0003": scored(7, 3), "0004": scored()}
    aligned = align_scores(tables, HUNDRED, {"05"}, limit_fraction=0.05, tell=lines.append)
    shared = [row for row in range(100) if row not in (3, 5, 7, 9)]
    assert aligned["img_name"].tolist() == [f"{row:02}" for row in shared]
    for name in tables:
        assert aligned[name].tolist() == [row / 100 for row in shared]
    assert lines == [
        "3 of 100 images have no score by 0002, 0003, for example 03: left out for all, since they "
        "could not be read when it was scored"
    ]


def test_nothing_is_told_where_nothing_is_left_out() -> None:
    tables = {"0001": scored(), "0002": scored()}
    lines: list[str] = []
    assert len(align_scores(tables, HUNDRED, limit_fraction=0.05, tell=lines.append)) == 100
    assert not lines


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([scored(), scored(*range(6))], "candidate 1 has 0 images more and 6 fewer"),
        ([scored(1, 2, 3), scored(4, 5, 6)], "at most 5% .* 6 of 100 images have no score by 0, 1"),
        ([scored(), scored(4).replace("07", "x")], "candidate 1 has 1 images more and 2 fewer"),
        (
            [scored(), scored(4).assign(target=lambda t: 1 - t["target"])],
            "candidate 1 has 99 other targets",
        ),
    ],
)
def test_more_than_a_few_lacking_images_are_another_split(
    tables: list[pd.DataFrame], message: str
) -> None:
    named = {str(number): table for number, table in enumerate(tables)}
    with pytest.raises(UserError, match=message):
        align_scores(named, HUNDRED, limit_fraction=0.05)


def test_altered_images_are_those_that_all_models_were_scored_on() -> None:
    altered = pd.DataFrame(
        [(f"{n}.png", n % 2, f"g{n}", kind) for kind in (0, 1) for n in range(4)],
        columns=["img_name", "target", "group", "alteration"],
    )
    whole = altered[["img_name", "alteration", "target"]].assign(y_pred=0.25)
    # One was scored before an image broke, the other in another order.
    more = pd.concat([whole, whole.iloc[:1].assign(img_name="9.png")])
    fewer = whole[whole["img_name"] != "2.png"].iloc[::-1].assign(y_pred=0.5)
    found = align_altered({"a": more, "b": fewer}, altered)
    assert found is not None
    assert found["img_name"].tolist() == ["0.png", "1.png", "3.png"] * 2
    assert found["alteration"].tolist() == [0, 0, 0, 1, 1, 1]
    assert found[["a", "b"]].to_numpy().tolist() == [[0.25, 0.5]] * 6
    assert align_altered({"a": more, "b": None}, altered) is None
    assert align_altered({"a": more}, None) is None
    assert align_altered({"a": whole[whole["target"] == 0]}, altered) is None
