from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble.deploy.prediction_file import (
    PREDICTION,
    find_faults,
    read_prediction,
    write_prediction,
)
from search.errors import UserError

NAMES = ["b.jpg", "a.jpg", 'folder/odd, "name".png']


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_scores_come_back_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory, scores: list[float]
) -> None:
    path = tmp_path_factory.mktemp("round") / PREDICTION
    names = [f"{number}.jpg" for number in range(len(scores))]
    write_prediction(path, names, scores)
    table = read_prediction(path)
    assert table["img_name"].tolist() == names
    assert table["y_pred"].tolist() == scores


def test_the_file_is_as_the_competition_asks(tmp_path: Path) -> None:
    write_prediction(tmp_path / PREDICTION, NAMES, [0.25, 1.0, 1e-30])
    assert (tmp_path / PREDICTION).read_text(encoding="utf-8").splitlines() == [
        "img_name,y_pred",
        "b.jpg,0.25",
        "a.jpg,1.0",
        '"folder/odd, ""name"".png",1e-30',
    ]


@pytest.mark.parametrize(
    ("names", "scores", "faults"),
    [
        (NAMES, [0.0, 0.5, 1.0], []),
        (NAMES[:2], [0.0, 0.5], ["1 listed images are absent"]),
        ([*NAMES, "c.jpg"], [0.0] * 4, ["1 images are not on the list: c.jpg"]),
        ([*NAMES, "a.jpg"], [0.0] * 4, ["1 images occur more than once: a.jpg"]),
        (NAMES[::-1], [0.0] * 3, ["order"]),
        (NAMES, [0.0, math.nan, 0.5], ["1 scores are not finite numbers: a.jpg"]),
        (NAMES, [0.0, math.inf, 0.5], ["1 scores are not finite numbers: a.jpg"]),
        (NAMES, [-1e-9, 1.5, 0.5], [r"2 scores are outside \[0, 1\]: b.jpg, a.jpg"]),
        (["x", "x"], [2.0, math.nan], ["absent", "not on", "than once", "finite", "outside"]),
    ],
)
def test_every_fault_is_told(names: list[str], scores: list[float], faults: list[str]) -> None:
    table = pd.DataFrame({"img_name": names, "y_pred": scores})
    found = find_faults(table, NAMES)
    assert len(found) == len(faults)
    for text, expected in zip(found, faults, strict=True):
        assert pd.Series([text]).str.contains(expected).all(), text


@pytest.mark.parametrize("scores", [[0.1, 0.2], [0.1, math.nan, 0.3], [0.1, 0.2, 1.2]])
def test_a_faulty_prediction_is_never_written(scores: list[float], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r".+"):
        write_prediction(tmp_path / PREDICTION, NAMES, scores)
    assert not (tmp_path / PREDICTION).exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "columns"),
        ("", "columns"),
        ("name,score\na,0.5\n", "line 1"),
        ("img_name,y_pred\na,0.5\nb\n", "line 3"),
        ("img_name,y_pred\na,0.5,1\n", "line 2"),
        ('img_name,y_pred\n"a,0.5\n', "columns"),
        ("img_name,y_pred\n\xff,0.5\n", "columns"),
    ],
)
def test_what_is_no_prediction_is_a_user_error(
    content: str | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / PREDICTION).write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        read_prediction(tmp_path / PREDICTION)


@pytest.mark.parametrize("text", ["", "high", "nan", "inf", "0x1"])
def test_what_is_no_number_is_a_fault(text: str, tmp_path: Path) -> None:
    (tmp_path / PREDICTION).write_text(f"img_name,y_pred\na,{text}\n", encoding="utf-8")
    assert len(find_faults(read_prediction(tmp_path / PREDICTION), ["a"])) == 1
