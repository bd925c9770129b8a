from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ensemble.network.evidence import describe_rules
from ensemble.network.model import HeadSpec, ModelSpec, TeacherOrigin, build_model
from ensemble.submission.card import SUMMARIES, render_card
from search.data.splits import SEEN
from search.training.recipe import Recipe

RESNET = Recipe(
    backbone="test_resnet.r160_in1k",
    architecture="test_resnet",
    image_size=32,
    canvas=32,
    weights="hub",
)
FUSED = ModelSpec(
    kind="fused",
    trunks=(RESNET, RESNET),
    head=HeadSpec(kind="mean"),
    method="fused",
    merged_from=("0003", "0007"),
)
DISTILLED = ModelSpec(
    kind="single",
    trunks=(RESNET,),
    method="distilled",
    teachers=(TeacherOrigin("0003", "volo_d1_224.sail_in1k", "hub", "ImageNet-1K", 1.0),),
    notes=("Its teacher was asked live.",),
)
FIGURES = {
    "auc": 0.91234,
    "auc_low": 0.9,
    "auc_high": float("nan"),
    "tpr_at_fpr_1e-2": None,
    "accuracy": 0.8,
    "log_loss": 0.5,
}
DATA = {"splits": {"fit": {"images": 7, "real": 3, "fake": 4, "groups": 5}}}


def card(spec: ModelSpec, **changes: Any) -> str:
    rules = describe_rules(
        build_model(spec),
        32,
        spec,
        budget=200_000_000,
        declared={"test_resnet.r160_in1k": "ImageNet-1K"},
    )
    arguments = {
        "title": "demo: fused",
        "metrics": {**FIGURES, "report": FIGURES},
        "data": DATA,
        "objective": "auc",
    }
    return render_card(spec=spec, rules=rules, **{**arguments, **changes})


def test_it_says_what_was_merged_and_from_which_weights() -> None:
    text = card(FUSED, reason="highest AUC on report")
    assert text.startswith("# demo: fused\n")
    row = "| trunk | `test_resnet.r160_in1k` | hub | ImageNet-1K (declared) | kept: "
    assert text.count(row) == 2
    assert "Made from 0003, 0007 of the search" in text
    assert "Overrides: test_resnet.r160_in1k: pretraining ImageNet-1K is declared" in text
    assert "| head | the mean of the trunks' probabilities |" in text
    assert "recommended: highest AUC on report." in text


def test_teachers_and_notes_are_in_it() -> None:
    text = card(DISTILLED)
    assert "| teacher | `volo_d1_224.sail_in1k` | hub | ImageNet-1K |" in text
    assert "> **Its teacher was asked live.**" in text
    assert "Taught by 0003 x 1.00: names of" in text


@pytest.mark.parametrize(
    ("metrics", "head", "row"),
    [
        (
            {**FIGURES, "report": FIGURES},
            "| figure | select | report |",
            "0.9123 (95% over groups: 0.9000 to",
        ),
        (FIGURES, "| figure | select |", "| TPR at FPR 1e-2 | \N{EN DASH} |"),
        ({}, "None were recorded.", "Limits"),
    ],
)
def test_figures_are_shown_as_far_as_they_are_known(
    metrics: dict[str, Any], head: str, row: str
) -> None:
    text = card(FUSED, metrics=metrics)
    assert head in text.splitlines()
    assert row in text


UNSEEN = {
    "kind": "unseen",
    "methods": {"fit": ["a", "b"], "select": ["c"], "report": ["d"]},
    "found_by": None,
    "left_out": 1234,
}


@pytest.mark.parametrize(
    ("division", "expected", "refused"),
    [
        ({"kind": "group"}, "Images of one group are in one split only. No other", "--split"),
        (None, "Images of one group are in one split only. No other", "--split"),
        ({"kind": "random"}, "divided image by image (`--split random`)", "one split only"),
        (UNSEEN, "fit a, b; select c; report d, as files name them; 1,234 images", "found by"),
        (UNSEEN | {"found_by": "20 clusters of x"}, "found by 20 clusters of x; 1,234", "as files"),
    ],
)
def test_it_says_how_images_were_divided(
    division: dict[str, Any] | None, expected: str, refused: str
) -> None:
    text = card(FUSED, data=DATA if division is None else {**DATA, "division": division})
    assert expected in text
    assert refused not in text.partition("## Data")[2].partition("## Figures")[0]


def test_what_was_chosen_by_and_measured_besides_is_in_it() -> None:
    figures = {**FIGURES, "auc_unseen": 0.71234, "auc_stress": 0.81234}
    text = card(
        FUSED,
        metrics={**figures, "report": {**FIGURES, "auc_unseen": 0.6}},
        objective="auc_unseen",
    )
    assert "| models were chosen by | AUC on unseen methods on select |" in text
    assert "| AUC on forgery methods that fit lacks | 0.7123 | 0.6000 |" in text
    assert "| AUC under stress, of altered images | 0.8123 | \N{EN DASH} |" in text
    assert "that fit has" not in text
    assert "that fit lacks" not in card(FUSED)


def test_every_table_is_well_formed() -> None:
    """Each block of lines with bars has a head, a rule, and rows of as many cells."""
    spec = DISTILLED
    text = card(spec, title="a | b\nc")
    assert text.startswith("# a \\| b c\n")
    blocks: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    tables = [block for block in blocks if block]
    assert len(tables) == 4
    for table in tables:
        cells = {line.replace("\\|", "").count("|") for line in table}
        assert len(cells) == 1, table
        assert set(table[1]) == {"|", "-"}


def test_data_that_were_not_recorded_are_said_to_be_so() -> None:
    assert "recorded nothing of its data" in card(FUSED, data={})
    assert "| fit | 7 | 3 | 4 | 5 | training |" in card(FUSED)


def test_every_way_to_make_a_model_has_a_summary() -> None:
    from typing import get_args

    from ensemble.network.model import Method

    assert set(SUMMARIES) == set(get_args(Method))


@pytest.mark.parametrize(
    ("trained_on", "columns", "told"),
    [
        ("fit", "select | report |", None),
        ("fit+select", "report |", "It was trained on select, which"),
        ("all", None, "It was trained on select and report, which"),
    ],
)
def test_a_refit_shows_no_figure_of_what_it_was_trained_on(
    trained_on: Any, columns: str | None, told: str | None
) -> None:
    recipe = replace(RESNET, epochs=2.5, trained_on=trained_on)
    spec = ModelSpec(kind="single", trunks=(recipe,), method="refit", merged_from=("0007",))
    sizes = {"images": 7, "real": 3, "fake": 4, "groups": 5}
    text = card(spec, data={"splits": dict.fromkeys(("fit", "select", "report"), sizes)})
    assert f"| training | 2.5 epochs on {' and '.join(SEEN[trained_on])} |" in text
    assert "Its recipe is that of 0007" in text
    assert ("0.9123" in text) == (columns is not None)
    if columns is not None:
        assert f"| figure | {columns}" in text
    assert ("was chosen by and flatters" in text) == (trained_on == "fit")
    assert ("It was trained on" in text) == (told is not None)
    assert (told or "") in text
    rows = {"fit": "training", "select": "choosing the recipe, then training", "report": "training"}
    for name, use in rows.items():
        assert (f"| {name} | 7 | 3 | 4 | 5 | {use} |" in text) == (name in SEEN[trained_on])
