from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from search.catalogue.backbones import Backbone, load_backbones
from search.catalogue.weights import (
    check_weights,
    check_weights_fit,
    fits_image_size,
    locate_weights,
    weights_file,
)
from search.errors import UserError

CATALOGUE = load_backbones()
VIT = CATALOGUE.get("test_vit.r160_in1k")
RESNET = CATALOGUE.get("test_resnet.r160_in1k")

State = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Weights of two networks, as a user would lay them down."""
    for backbone in (VIT, RESNET):
        model = timm.create_model(backbone.architecture, num_classes=1000)
        save_file(model.state_dict(), weights_file(backbone, tmp_path))
    return tmp_path


def edit(folder: Path, backbone: Backbone, change: Callable[[State], object]) -> Path:
    path = weights_file(backbone, folder)
    state = load_file(path)
    change(state)
    save_file(state, path)
    return path


def test_files_that_fit_are_found(folder: Path) -> None:
    check_weights((VIT, RESNET), weights="file", weights_dir=folder)
    path = locate_weights(VIT, weights="file", weights_dir=folder)
    assert path == folder / "test_vit.r160_in1k.safetensors"
    model = timm.create_model(
        "test_vit", pretrained=True, num_classes=2, img_size=96,
        pretrained_cfg_overlay={"file": str(path), "num_classes": 1000},
    )  # fmt: skip
    assert torch.equal(model.cls_token, load_file(path)["cls_token"])


@pytest.mark.parametrize("weights", ["hub", "none"])
def test_other_sources_need_no_file(weights: str) -> None:
    assert locate_weights(VIT, weights=weights, weights_dir=None) is None  # type: ignore[arg-type]


def test_all_missing_files_are_named_at_once(folder: Path) -> None:
    small = CATALOGUE.pool("small")[:3]
    with pytest.raises(UserError) as error:
        check_weights((VIT, *small), weights="file", weights_dir=folder)
    message = str(error.value)
    assert message.startswith(str(folder))
    assert all(f"{backbone.name}.safetensors" in message for backbone in small)
    assert "test_vit" not in message
    with pytest.raises(UserError, match=f"misses {small[0].name}.safetensors"):
        locate_weights(small[0], weights="file", weights_dir=folder)


@pytest.mark.parametrize("name", ["absent", "file.txt"])
def test_the_folder_must_be_one(name: str, tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("")
    for check in (lambda w: check_weights((VIT,), weights="file", weights_dir=w),
                  lambda w: locate_weights(VIT, weights="file", weights_dir=w)):  # fmt: skip
        with pytest.raises(UserError, match="--weights-dir must be a folder, found"):
            check(tmp_path / name)


def drop_classifier(state: State) -> None:
    del state["head.weight"], state["head.bias"]


def ten_classes(state: State) -> None:
    state.update({"head.weight": torch.zeros(10, 64), "head.bias": torch.zeros(10)})


@pytest.mark.parametrize("change", [drop_classifier, ten_classes])
def test_the_classifier_does_not_matter(change: Callable[[State], None], folder: Path) -> None:
    check_weights_fit(edit(folder, VIT, change), VIT)


def test_batch_counters_may_be_absent(folder: Path) -> None:
    def drop(state: State) -> None:
        for name in [name for name in state if name.endswith("num_batches_tracked")]:
            del state[name]

    assert "bn1.num_batches_tracked" in load_file(weights_file(RESNET, folder))
    check_weights_fit(edit(folder, RESNET, drop), RESNET)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("conv1.0.weight"), "1 names differ, first conv1.0.weight (absent)"),
        (lambda s: s.update(more=torch.zeros(1)), "1 names differ, first more (extra)"),
        (lambda s: s.update({"bn1.weight": torch.zeros(7)}), "bn1.weight must have the shape"),
    ],
)
def test_another_networks_file_is_refused(
    change: Callable[[State], object], message: str, folder: Path
) -> None:
    path = edit(folder, RESNET, change)
    with pytest.raises(UserError) as error:
        check_weights((RESNET,), weights="file", weights_dir=folder)
    assert message in str(error.value)
    assert str(error.value).startswith(f"{path} must hold the weights of test_resnet")


def test_swapped_files_are_refused(folder: Path) -> None:
    shutil.copy(weights_file(RESNET, folder), weights_file(VIT, folder))
    with pytest.raises(UserError, match="must hold the weights of test_vit"):
        check_weights_fit(weights_file(VIT, folder), VIT)


def test_a_layout_that_timm_converts_is_accepted(folder: Path) -> None:
    resnet = CATALOGUE.get("test_resnet.r160_in1k")
    convnext = replace(resnet, name="test_convnext2.r160_in1k", architecture="test_convnext2")
    model = timm.create_model("test_convnext2", num_classes=1000)
    state = {}
    for name, tensor in model.state_dict().items():  # As in the paper's repository.
        old = name.replace("stem.", "downsample_layers.0.").replace("conv_dw", "dwconv")
        old = old.replace("mlp.fc1", "pwconv1").replace("mlp.fc2", "pwconv2")
        old = old.replace("head.fc.", "head.").replace("head.norm.", "norm.")
        for stage in range(4):
            old = old.replace(f"stages.{stage}.downsample.", f"downsample_layers.{stage}.")
        state[old.replace(".blocks.", ".")] = tensor
    assert state.keys() != model.state_dict().keys()
    path = weights_file(convnext, folder)
    save_file(state, path)
    check_weights_fit(path, convnext)


@pytest.mark.parametrize("content", [b"", b"not a tensor", b"\x08\0\0\0\0\0\0\0{}"])
def test_a_broken_file_is_refused(content: bytes, folder: Path) -> None:
    path = weights_file(VIT, folder)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"must be a safetensors file|must hold the weights"):
        check_weights_fit(path, VIT)


@pytest.mark.parametrize(
    "name",
    ["tf_efficientnet_lite0.in1k", "tf_efficientnet_lite1.in1k", "mobilenetv2_100.tf_in1k"],
)
def test_the_real_weights_fit(name: str, shared_weights: Path) -> None:
    check_weights((CATALOGUE.get(name),), weights="file", weights_dir=shared_weights)


def test_real_weights_of_another_network_do_not_fit(shared_weights: Path) -> None:
    path = shared_weights / "tf_efficientnet_lite0.in1k.safetensors"
    with pytest.raises(UserError, match="must hold the weights of tf_efficientnet_lite1"):
        check_weights_fit(path, CATALOGUE.get("tf_efficientnet_lite1.in1k"))


@pytest.mark.parametrize(
    ("name", "size", "fits"),
    [
        ("test_resnet.r160_in1k", 32, True),
        ("test_vit.r160_in1k", 32, True),
        ("volo_d1_384.sail_in1k", 384, True),
        ("volo_d1_384.sail_in1k", 224, False),
        ("hiera_base_plus_224.mae_in1k_ft_in1k", 256, False),
        ("maxvit_tiny_tf_512.in1k", 384, True),
    ],
)
def test_some_weights_are_bound_to_their_size(name: str, size: int, fits: bool) -> None:
    assert fits_image_size(CATALOGUE.get(name), size) == fits


def test_binding_is_what_loading_does(folder: Path) -> None:
    """The check without tensors agrees with timm's own loading."""
    cait = Backbone("cait", "cait_xxs24_224", "p", VIT.mean, VIT.std, (96,), fixed_size=224)
    path = folder / "cait.safetensors"
    save_file(timm.create_model("cait_xxs24_224", num_classes=1000).state_dict(), path)
    assert not fits_image_size(cait, 96)
    overlay = {"file": str(path), "num_classes": 1000}
    with pytest.raises(RuntimeError, match="size mismatch"):
        timm.create_model(
            "cait_xxs24_224", pretrained=True, img_size=96, pretrained_cfg_overlay=overlay
        )


def test_none_needs_nothing() -> None:
    check_weights(CATALOGUE.backbones, weights="none", weights_dir=None)
