from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml

from ensemble.network.heads import HeadKind
from ensemble.network.model import (
    FusedNetwork,
    HeadSpec,
    ModelSpec,
    TeacherOrigin,
    build_model,
    feature_size,
    load_model,
    load_spec,
)
from search.catalogue.rules import count_parameters
from search.catalogue.timm_models import build_on_meta
from search.errors import UserError
from search.training.candidate import WEIGHTS, copy_state, save_weights
from search.training.network import build_network
from search.training.recipe import Recipe

VIT = Recipe(
    backbone="test_vit.r160_in1k",
    architecture="test_vit",
    model_args={"img_size": 32},
    mean=(0.1, 0.2, 0.3),
    image_size=32,
    canvas=32,
    weights="none",
)
RESNET = Recipe(
    backbone="test_resnet.r160_in1k",
    architecture="test_resnet",
    image_size=48,
    canvas=32,
    weights="none",
)
FUSED = ModelSpec(
    kind="fused",
    trunks=(VIT, RESNET),
    head=HeadSpec("mlp", 8),
    method="fused",
    merged_from=("0001", "0002"),
    teachers=(TeacherOrigin("0003", "resnet18.a1_in1k", "hub", "ImageNet-1K", 0.5),),
    overrides=("candidate 0002 is tainted",),
    notes=("äöü: a note",),
)


def fused(kind: HeadKind) -> FusedNetwork:
    spec = replace(FUSED, head=HeadSpec(kind, 8 if kind == "mlp" else 0))
    model = build_model(spec)
    assert isinstance(model, FusedNetwork)
    return model


def test_a_spec_comes_back_from_disk(tmp_path: Path) -> None:
    FUSED.save(tmp_path / "model.yaml")
    assert ModelSpec.load(tmp_path / "model.yaml") == FUSED
    assert [path.name for path in tmp_path.iterdir()] == ["model.yaml"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "single"}, "single network has one trunk and no head, found 2"),
        ({"trunks": []}, "two trunks or more and a head, found 0"),
        ({"head": None}, "two trunks or more and a head"),
        ({"kind": "triple"}, "kind"),
        ({"extra": 1}, "extra"),
        ({"head": {"kind": "max"}}, r"head\.kind"),
        ({"trunks": [{"backbone": "x"}]}, r"trunks\.0\.architecture"),
    ],
)
def test_a_spec_that_was_tampered_with_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.yaml"
    FUSED.save(path)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text("utf-8")) | change), "utf-8")
    with pytest.raises(UserError, match=message) as error:
        ModelSpec.load(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("size", [(32, 32), (48, 48), (64, 40)])
def test_one_batch_of_any_size_goes_to_every_trunk_as_it_needs_it(size: tuple[int, int]) -> None:
    model = fused("mean")
    images = torch.rand(3, 3, *size)
    with torch.inference_mode():
        expected = [build_network(recipe, pretrained=False)(images) for recipe in (VIT, RESNET)]
        probabilities = model(images).softmax(-1)
    mean = torch.stack(expected).softmax(-1).mean(0)
    torch.testing.assert_close(probabilities, mean)
    assert model.image_size == 48
    assert not model.training


@pytest.mark.parametrize("kind", get_args(HeadKind))
def test_features_of_all_trunks_come_with_the_logits(kind: HeadKind) -> None:
    model, images = fused(kind), torch.rand(2, 3, 48, 48)
    with torch.inference_mode():
        features, logits = model.forward_with_features(images)
        torch.testing.assert_close(logits, model(images))
    assert features.shape == (2, 64 + 96)


@pytest.mark.parametrize("kind", get_args(HeadKind))
def test_every_parameter_is_in_one_group(kind: HeadKind) -> None:
    model = fused(kind)
    groups = model.parameter_groups(0.05, 0.7)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())
    assert max(group["lr_scale"] for group in groups) == 1.0


@pytest.mark.parametrize(
    ("kind", "by_thop", "exactly"),
    [("mean", 0, 0), ("weights", 0, 2), ("mlp", 160 * 8 + 8 + 18, 160 * 8 + 8 + 18)],
)
def test_both_counts_are_the_sums_over_trunks_and_head(
    kind: HeadKind, by_thop: int, exactly: int
) -> None:
    model = fused(kind)
    parts = [count_parameters(build_network(r, pretrained=False), 48) for r in (VIT, RESNET)]
    counts = count_parameters(model, model.image_size)
    assert counts.params_thop == sum(part.params_thop for part in parts) + by_thop
    assert counts.params_exact == sum(part.params_exact for part in parts) + exactly
    assert counts.macs >= sum(part.macs for part in parts)


@pytest.mark.parametrize(
    "name", ["test_vit", "test_resnet", "test_efficientnet", "test_convnext", "test_mambaout"]
)
def test_the_feature_size_is_known_before_a_pass(name: str) -> None:
    recipe = replace(RESNET, architecture=name, model_args={}, image_size=160)
    features, _ = build_network(recipe, pretrained=False).forward_with_features(
        torch.zeros(1, 3, 160, 160)
    )
    assert feature_size(build_on_meta(name, {})) == features.shape[1]


def test_a_fused_model_comes_back_from_its_folder(tmp_path: Path) -> None:
    model = fused("mlp")
    FUSED.save(tmp_path / "model.yaml")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    save_weights(tmp_path / WEIGHTS, copy_state(model))
    loaded, spec = load_model(tmp_path)
    images = torch.rand(2, 3, 40, 40)
    with torch.inference_mode():
        assert torch.equal(loaded(images), model(images))
    assert spec == FUSED


def test_a_candidates_folder_is_a_model_of_one_trunk(tiny_run: Path) -> None:
    loaded, spec = load_model(tiny_run / "candidates" / "0002")
    assert (spec.kind, spec.method, spec.merged_from) == ("single", "candidate", ("0002",))
    assert spec.trunks[0].architecture == "test_vit"
    assert loaded(torch.rand(1, 3, 32, 32)).shape == (1, 2)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    FUSED.save(tmp_path / "model.yaml")
    state = copy_state(fused("mlp"))
    save_weights(tmp_path / WEIGHTS, state | {"trunks.0.extra": torch.zeros(1)})
    with pytest.raises(UserError, match="very network"):
        load_model(tmp_path)


def test_a_folder_without_weights_tells_the_remedy(run_folder: Path) -> None:
    with pytest.raises(UserError, match="its training is not complete"):
        load_model(run_folder / "candidates" / "0005")
    (run_folder / "candidates" / "0001" / WEIGHTS).unlink()
    with pytest.raises(UserError, match="--keep"):
        load_model(run_folder / "candidates" / "0001")


def test_any_other_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.yaml"):
        load_spec(tmp_path)
