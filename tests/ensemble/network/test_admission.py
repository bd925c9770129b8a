"""Specs that ask for more than the competition allows get no memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import ensemble.network.model
from ensemble.network.admission import BUDGET, admit
from ensemble.network.heads import HeadKind
from ensemble.network.model import HeadSpec, ModelSpec, build_model, load_model
from ensemble.submission.verify import verify
from search.errors import UserError
from search.training.candidate import WEIGHTS
from search.training.recipe import Recipe

VIT = Recipe(
    backbone="test_vit.r160_in1k",
    architecture="test_vit",
    model_args={"img_size": 32},
    image_size=32,
    canvas=32,
    weights="none",
)


@pytest.fixture
def no_real_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a network was built before it was counted")

    monkeypatch.setattr(ensemble.network.model, "build_network", fail)
    empty = torch.nn.Parameter.__new__

    def on_meta_only(cls: Any, data: Any = None, requires_grad: bool = True) -> Any:
        assert data is None or data.device.type == "meta"
        return empty(cls, data, requires_grad)

    monkeypatch.setattr(torch.nn.Parameter, "__new__", on_meta_only)


def laughs() -> list[Any]:
    """Nine references of nine references...: small in YAML, endless to walk."""
    nested: list[Any] = ["ha"]
    for _ in range(30):
        nested = [nested] * 9
    return nested


HOSTILE = [
    ({"model_args": {"embed_dim": 4096, "depth": 12}}, "at most 200,000,000 parameters"),
    ({"model_args": {"embed_dim": 4096, "depth": 4096}}, "at most 200,000,000 parameters"),
    ({"model_args": {"embed_dim": 2, "num_heads": 1, "depth": 4096}}, "over 30,000 modules"),
    ({"model_args": {"embed_dim": 10**9}}, "at most 4096, found one of 30 bits"),
    ({"model_args": {"depth": 16**5000}}, "at most 4096, found one of 20001 bits"),
    ({"model_args": {"img_size": [32, -(10**7)]}}, "at most 4096, found one of 24 bits"),
    ({"model_args": {"mlp_ratio": 1e12}}, "at most 4096, found 1000000000000.0"),
    ({"model_args": {"mlp_ratio": float("nan")}}, "at most 4096, found nan"),
    ({"model_args": {"mlp_ratio": 4096.0, "embed_dim": 4096}}, "at most 200,000,000 parameters"),
    ({"model_args": {"block_args": {"deep": [{"er": 10**6}]}}}, "at most 4096"),
    ({"model_args": {"depths": laughs()}}, "at most 256 items"),
    ({"model_args": {"depths": [[]] * 300}}, "at most 256 items"),
    ({"model_args": {"no_such_argument": 1}}, "must be what timm's test_vit takes"),
    ({"image_size": 10**6}, r"image_size must be in \[1, 1024\], found 1000000"),
    ({"image_size": 1025}, r"image_size must be in \[1, 1024\]"),
    ({"canvas": 1025}, r"canvas must be in \[1, 1024\], found 1025"),
    ({"image_size": 0}, r"image_size must be in \[1, 1024\]"),
    ({"architecture": "vit_giant_patch14_224", "model_args": {}}, "vit_giant_patch14_224"),
]


@pytest.mark.usefixtures("no_real_networks")
@pytest.mark.parametrize(("changes", "message"), HOSTILE)
def test_a_hostile_trunk_is_refused_before_it_gets_memory(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build_model(ModelSpec(kind="single", trunks=(replace(VIT, **changes),)))


@pytest.mark.usefixtures("no_real_networks")
def test_trunks_are_counted_together() -> None:
    """Each is within the budget, both are not."""
    large = replace(VIT, architecture="vit_large_patch16_224", model_args={}, image_size=224)
    (trunk,) = admit([replace(large, architecture="vit_base_patch16_224")])
    assert 80_000_000 < sum(p.numel() for p in trunk.parameters()) < BUDGET
    spec = ModelSpec(
        kind="fused",
        trunks=(replace(large, architecture="vit_base_patch16_224"),) * 3,
        head=HeadSpec("mean"),
    )
    with pytest.raises(UserError, match=r"found 257,400,582: .* over the budget by 57,400,582"):
        build_model(spec)


@pytest.mark.usefixtures("no_real_networks")
def test_the_head_is_counted_too() -> None:
    spec = ModelSpec(kind="fused", trunks=(VIT, VIT), head=HeadSpec("mlp", 2_000_000))
    with pytest.raises(UserError, match="at most 200,000,000 parameters, found 26"):
        build_model(spec)


@pytest.mark.parametrize("kind", ["mean", "weights", "mlp"])
def test_the_count_is_that_of_the_network(kind: HeadKind) -> None:
    counted: list[int] = []
    spec = ModelSpec(kind="fused", trunks=(VIT, VIT), head=HeadSpec(kind, 8 * (kind == "mlp")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ensemble.network.model, "check_count", counted.append)
        model = build_model(spec)
    assert counted == [sum(parameter.numel() for parameter in model.parameters())]


@pytest.mark.usefixtures("no_real_networks")
def test_verify_and_load_refuse_a_hostile_folder(tmp_path: Path) -> None:
    spec = ModelSpec(kind="single", trunks=(VIT,))
    spec.save(tmp_path / "model.yaml")
    content = yaml.safe_load((tmp_path / "model.yaml").read_text("utf-8"))
    content["trunks"][0]["model_args"] = {"embed_dim": 4096, "depth": 4096}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(content), "utf-8")
    (tmp_path / WEIGHTS).write_bytes(b"")
    failed = {check.name: check.detail for check in verify(tmp_path) if not check.ok}
    assert "at most 200,000,000 parameters" in failed["module"]
    with pytest.raises(UserError, match="at most 200,000,000 parameters"):
        load_model(tmp_path)


def test_nothing_counts_afterwards() -> None:
    """The hooks are gone, after a refusal too."""
    with pytest.raises(UserError):
        admit([replace(VIT, model_args={"embed_dim": 4096, "depth": 4096})])
    assert admit([VIT])
    for hooks in ("parameter", "buffer", "module"):
        assert not getattr(torch.nn.modules.module, f"_global_{hooks}_registration_hooks")
