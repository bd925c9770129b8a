from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from search.catalogue.backbones import DEFAULT_PATH, Backbone, Catalogue, load_backbones
from search.catalogue.provenance import provenance
from search.catalogue.timm_models import build_on_meta
from search.errors import UserError

CATALOGUE = load_backbones()

OPENING = "budget: 200_000_000\npretraining: ImageNet-1K alone\n"
DECLARED = """
  own.tag:
    architecture: mobilenetv2_100
    model_args: {pad_type: same}
    mean: [0.5, 0.5, 0.5]
    std: [0.25, 0.25, 0.25]
    pretraining: ImageNet-1K
    source: somewhere
"""


def load(tmp_path: Path, pool: str) -> Catalogue:
    """Reads a file with one pool of these entries."""
    return load_text(tmp_path, f"{OPENING}pools:\n p:\n{pool}\n")


def load_text(tmp_path: Path, text: str) -> Catalogue:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return load_backbones(path)


def test_the_shipped_file_holds_what_it_promises() -> None:
    assert CATALOGUE.budget == 200_000_000
    assert CATALOGUE.pools == ("demo", "small", "strong")
    assert len(CATALOGUE.backbones) >= 30
    names = {backbone.name for backbone in CATALOGUE.backbones}
    assert {
        "tf_efficientnet_lite0.in1k",
        "tf_efficientnet_lite1.in1k",
        "mobilenetv2_100.tf_in1k",
        "resnet18.a1_in1k",
        "volo_d4_448.sail_in1k",
    } <= names
    assert all(backbone.name.startswith("test_") for backbone in CATALOGUE.pool("demo"))
    assert [b.name for b in CATALOGUE.backbones if b.declared] == ["mobilenetv2_100.tf_in1k"]


@pytest.mark.parametrize("backbone", CATALOGUE.backbones, ids=lambda backbone: backbone.name)
def test_every_shipped_weight_is_of_imagenet_1k(backbone: Backbone) -> None:
    assert provenance(backbone.name, backbone.pretraining).allowed


@pytest.mark.parametrize("backbone", CATALOGUE.backbones, ids=lambda backbone: backbone.name)
def test_every_shipped_backbone_builds_within_its_pool(backbone: Backbone) -> None:
    size = backbone.image_sizes[-1]
    stochastic = {"drop_path_rate": backbone.drop_path[1]} if backbone.drop_path else {}
    model = build_on_meta(backbone.architecture, {**backbone.create_args(size), **stochastic})
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    low, high = {"demo": (0, 1), "small": (1, 12), "strong": (20, 195)}[backbone.pool]
    assert low <= millions <= high


def test_a_pool_can_be_named_by_its_backbones() -> None:
    chosen = CATALOGUE.pool("tf_efficientnet_lite0.in1k, resnet18.a1_in1k,demo")
    assert [backbone.name for backbone in chosen] == [
        *(backbone.name for backbone in CATALOGUE.pool("demo")),
        "resnet18.a1_in1k",
        "tf_efficientnet_lite0.in1k",
    ]


@pytest.mark.parametrize(
    "backbone", [*CATALOGUE.pool("demo"), *CATALOGUE.pool("small")[:4]], ids=lambda b: b.name
)
def test_small_backbones_run_forward_at_every_size(backbone: Backbone) -> None:
    for size in backbone.image_sizes:
        model = build_on_meta(backbone.architecture, backbone.create_args(size))
        with torch.inference_mode():
            assert model(torch.zeros(1, 3, size, size, device="meta")).shape == (1, 2)


def test_what_the_file_leaves_out_comes_from_timm(tmp_path: Path) -> None:
    backbone = load(tmp_path, "  tf_efficientnetv2_s.in1k:").backbones[0]
    assert backbone == Backbone(
        name="tf_efficientnetv2_s.in1k",
        architecture="tf_efficientnetv2_s",
        pool="p",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        image_sizes=(300,),
    )
    assert not backbone.declared


def test_what_the_file_states_wins(tmp_path: Path) -> None:
    entry = "{mean: [0, 0.1, 0.2], std: [1, 2, 3], image_sizes: [96, 64], drop_path: [0, 0.1], "
    entry += "learning_rate: [1e-4, 1e-2], model_args: {drop_rate: 0.1}}"
    backbone = load(tmp_path, f"  test_resnet.r160_in1k: {entry}").get("test_resnet.r160_in1k")
    assert (backbone.mean, backbone.std) == ((0, 0.1, 0.2), (1, 2, 3))
    assert backbone.image_sizes == (96, 64)
    assert backbone.drop_path == (0, 0.1)
    assert backbone.learning_rate == (1e-4, 1e-2)
    assert backbone.create_args(96) == {"drop_rate": 0.1}


def test_a_declared_backbone(tmp_path: Path) -> None:
    backbone = load(tmp_path, DECLARED).get("own.tag")
    assert backbone.declared
    assert not backbone.in_timm
    assert backbone.architecture == "mobilenetv2_100"
    assert backbone.create_args(192) == {"pad_type": "same"}
    assert backbone.std == (0.25, 0.25, 0.25)


@pytest.mark.parametrize(
    ("name", "size", "arguments"),
    [
        ("test_vit.r160_in1k", 64, {"img_size": 64}),
        ("test_resnet.r160_in1k", 64, {}),
        ("maxvit_tiny_tf_512.in1k", 384, {"img_size": 384}),
        ("caformer_s36.sail_in1k_384", 256, {}),
    ],
)
def test_only_architectures_bound_to_a_size_are_told_it(
    name: str, size: int, arguments: dict[str, Any]
) -> None:
    assert CATALOGUE.get(name).create_args(size) == arguments


def test_records_are_frozen_and_checked_when_replaced() -> None:
    backbone = CATALOGUE.get("test_vit.r160_in1k")
    assert replace(backbone, image_sizes=(32,)).image_sizes == (32,)
    with pytest.raises(FrozenInstanceError):
        backbone.pool = "other"  # type: ignore[misc]
    with pytest.raises(ValueError, match="at least one size"):
        replace(backbone, image_sizes=())


ENTRY_ERRORS = [
    (
        "  resnet18.a1_in1k: {learning_rat: [1, 2]}",
        "unknown key 'learning_rat' in backbone 'resnet18.a1_in1k'; did you mean 'learning_rate'?",
    ),
    (
        "  resnet18.a1_in1k: {colour: 1}",
        "unknown key 'colour' in backbone 'resnet18.a1_in1k'; known are architecture,",
    ),
    ("  resnet18.a1_in1: ", "must have a tag that timm knows; did you mean 'resnet18.a1_in1k'?"),
    ("  resnet18.@: ", "must have a tag that timm knows; did you mean 'resnet18."),
    ("  resnet18: ", "must pin its weights, because timm may change what a bare name loads"),
    ("  resnet81.a1_in1k: ", "must be a timm architecture.tag; did you mean 'resnet18.a1_in1k'?"),
    ("  mobilenetv2_100.tf_in1k: ", "must have a tag that timm knows; did you mean"),
    ("  resnet18.a1_in1k: 5", "must be a mapping of settings, found 5"),
    (
        "  resnet18.a1_in1k: {learning_rate: [1.0e-2, 1.0e-4]}",
        "learning_rate must be 0 < low <= high, found (low=0.01, high=0.0001)",
    ),
    ("  resnet18.a1_in1k: {learning_rate: [0, 1]}", "must be 0 < low <= high, found (low=0"),
    ("  resnet18.a1_in1k: {learning_rate: fast}", "learning_rate: "),
    ("  resnet18.a1_in1k: {learning_rate: [.nan, 1]}", "must be 0 < low <= high, found (low=nan"),
    ("  resnet18.a1_in1k: {drop_path: [0.3, 0.1]}", "drop_path must be 0 <= low <= high < 1"),
    ("  resnet18.a1_in1k: {drop_path: [0, 1]}", "drop_path must be 0 <= low <= high < 1"),
    ("  resnet18.a1_in1k: {image_sizes: 224}", "image_sizes: "),
    ("  resnet18.a1_in1k: {image_sizes: []}", "image_sizes must list at least one size"),
    ("  resnet18.a1_in1k: {image_sizes: [224, 224]}", "each once, found [224, 224]"),
    (
        "  resnet18.a1_in1k: {image_sizes: [224.5]}",
        "image_sizes.0: input should be a valid integer",
    ),
    ("  resnet18.a1_in1k: {image_sizes: [0]}", "greater than or equal to 16, found 0"),
    ("  resnet18.a1_in1k: {mean: [0.5]}", "mean"),
    ("  resnet18.a1_in1k: {model_args: {num_classes: 3}}", "must leave num_classes to the search"),
    ("  resnet18.a1_in1k: {architecture: resnet34}", "must be the one in its name"),
    ("  own.tag: {architecture: mobilenetv2_1000}", "did you mean 'mobilenetv2_100'?"),
    ("  own.tag: {architecture: mobilenetv2_100}", "must state its mean"),
    ("  own.tag: {architecture: mobilenetv2_100, mean: [0, 0, 0]}", "must state its std"),
]


@pytest.mark.parametrize(("pool", "message"), ENTRY_ERRORS)
def test_a_wrong_entry_is_told_in_one_line(pool: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load(tmp_path, pool)
    assert message in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "mine.yaml"))
    assert "\n" not in str(error.value)


FILE_ERRORS = [
    ("", "must be a mapping with the keys budget, pretraining, pools"),
    ("[1]", "must be a mapping"),
    ("a: [", "mine.yaml line 1: "),
    ("buget: 1\npools: {}", "unknown key 'buget' in the backbones file; did you mean 'budget'?"),
    ("budget: 1\npretraining: x", "must have the key 'pools'"),
    (OPENING + "pools: {}", "'pools' must map pool names to backbones"),
    (OPENING + "pools: {small: [resnet18]}", "pool 'small' must map backbone names"),
    (OPENING + "pools: {small: }", "pool 'small' must map backbone names"),
    (
        OPENING + "pools:\n p: {resnet18.a1_in1k: }\n q: {resnet18.a1_in1k: }",
        "'resnet18.a1_in1k' must be in one pool, found in 'p' and 'q'",
    ),
    (
        OPENING + "pools:\n p:\n  resnet18.a1_in1k:\n  resnet18.a1_in1k:",
        "mine.yaml line 6: a key must not be repeated, found 'resnet18.a1_in1k' twice",
    ),
    (OPENING + "budget: 1\npools: {}", "a key must not be repeated, found 'budget' twice"),
    ("budget: many\npretraining: x\npools: {p: {resnet18.a1_in1k: }}", "budget: "),
    ("budget: true\npretraining: x\npools: {p: {resnet18.a1_in1k: }}", "budget: "),
    ("budget: 0\npretraining: x\npools: {p: {resnet18.a1_in1k: }}", "budget: "),
    ("budget: 1\npretraining: 5\npools: {p: {resnet18.a1_in1k: }}", "pretraining: "),
    ("budget: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
]


@pytest.mark.parametrize(("text", "message"), FILE_ERRORS)
def test_a_wrong_file_is_told_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load_text(tmp_path, text)
    assert message in str(error.value)
    assert "mine.yaml" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_an_unreadable_file(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"mine.yaml must be a readable file"):
        load_backbones(path)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: CATALOGUE.pool("smal"), "found 'smal'; did you mean 'small'?"),
        (lambda: CATALOGUE.pool("zzz"), "pool must be one of demo, small, strong, or name"),
        (lambda: CATALOGUE.pool("demo,resnet18.a1_in1"), "did you mean 'resnet18.a1_in1k'?"),
        (lambda: CATALOGUE.get("resnet18.a1_in1"), "did you mean 'resnet18.a1_in1k'?"),
    ],
)
def test_unknown_pools_and_backbones(ask: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        ask()
    assert message in str(error.value)


def test_the_file_survives_being_written_by_a_program(tmp_path: Path) -> None:
    content = yaml.safe_load(DEFAULT_PATH.read_text())
    again = load_text(tmp_path, yaml.safe_dump(content, sort_keys=False))
    assert again == CATALOGUE


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("any") / "mine.yaml"
    path.write_text(f"{OPENING}pools:\n p:\n  resnet18.a1_in1k:\n   {text}", encoding="utf-8")
    message = ""
    try:
        assert load_backbones(path).backbones
    except UserError as error:
        message = str(error)
    assert "\n" not in message
