from __future__ import annotations

import copy
from dataclasses import replace
from importlib.metadata import distributions, packages_distributions, version
from io import StringIO
from pathlib import Path

import pytest
import timm
import torch
from rich.console import Console
from torch import nn

import search.catalogue.rules
from search.catalogue.backbones import Backbone, load_backbones
from search.catalogue.rules import (
    Counts,
    Verdict,
    backbones_table,
    count_parameters,
    counter,
    judge,
    over_budget,
)
from search.catalogue.timm_models import build_on_meta
from search.errors import UserError
from tests.processes import Process

CATALOGUE = load_backbones()
BUDGET = CATALOGUE.budget
VIT = CATALOGUE.get("test_vit.r160_in1k")
RESNET = CATALOGUE.get("test_resnet.r160_in1k")
SMALL = 100_000


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONEFOLD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def backbone_of(name: str, **changes: object) -> Backbone:
    """A record for any timm tag."""
    return replace(
        RESNET, name=name, architecture=name.partition(".")[0], image_sizes=(224,), **changes
    )


@pytest.mark.parametrize(
    ("architecture", "thop_millions", "exact_millions"),
    [
        ("resnet50", 23.512, 23.512),
        ("vit_base_patch16_224", 85.610, 85.800),
        ("swinv2_base_window8_256", 65.933, 86.896),
        ("beitv2_base_patch16_224", 64.348, 85.764),
        ("dm_nfnet_f0", 21.852, 68.422),
        ("resnetv2_152x2_bit", 0.008, 232.246),
    ],
)
def test_counts_measured_before(
    architecture: str, thop_millions: float, exact_millions: float
) -> None:
    size = timm.get_pretrained_cfg(architecture).input_size[-1]
    counts = count_parameters(build_on_meta(architecture, {}), size)
    assert counts.params_thop / 1e6 == pytest.approx(thop_millions, abs=6e-4)
    assert counts.params_exact / 1e6 == pytest.approx(exact_millions, abs=6e-4)


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_vit", "test_convnext", "test_nfnet", "test_efficientnet_gn"]
)
@pytest.mark.filterwarnings("ignore:distutils")
def test_counting_without_content_equals_thop_on_real_tensors(name: str) -> None:
    from thop import profile

    model = timm.create_model(name, num_classes=2)
    counts = count_parameters(model, 160)
    macs, params = profile(
        copy.deepcopy(model), inputs=(torch.zeros(1, 3, 160, 160),), verbose=False
    )
    assert (counts.macs, counts.params_thop) == (macs, params)


def test_counting_leaves_the_network_as_it_was() -> None:
    model = timm.create_model("test_resnet", num_classes=2).train()
    before = copy.deepcopy(model.state_dict())
    hooks = [len(module._forward_hooks) for module in model.modules()]
    count_parameters(model, 64)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not any("total_" in name for name, _ in model.named_buffers())
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert model.training
    assert next(model.parameters()).device.type == "cpu"


class Shared(nn.Module):
    """One layer under two parents, a bare parameter, and a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 2)
        self.again = nn.Sequential(self.first)
        self.scale = nn.Parameter(torch.ones(7))
        self.offset = torch.zeros(2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.first(images.mean((2, 3))) * self.scale[:2] + self.offset


def test_exact_counts_each_parameter_once_and_thop_does_not() -> None:
    counts = count_parameters(Shared(), 16)
    assert counts.params_exact == 3 * 2 + 2 + 7
    assert counts.params_thop == 2 * (3 * 2 + 2)


@pytest.mark.parametrize(
    ("thop_count", "exact", "expected"),
    [
        (200_000_000, 200_000_000, []),
        (8_000, 232_246_000, ["params_exact 232.2M is over the budget of 200.0M"]),
        (201_000_000, 199_000_000, ["params_thop 201.0M is over the budget of 200.0M"]),
        (0, 200_000_001, ["params_exact 200,000,001 is over the budget of 200,000,000"]),
    ],
)
def test_both_counts_must_keep_the_budget(thop_count: int, exact: int, expected: list[str]) -> None:
    assert over_budget(Counts(thop_count, exact, 0), 200_000_000) == expected


def test_a_verdict_is_complete() -> None:
    verdict = judge(VIT, 64, BUDGET, weights="hub")
    assert verdict == Verdict(
        backbone="test_vit.r160_in1k",
        allowed=True,
        reasons=(),
        params_thop=verdict.params_thop,
        params_exact=verdict.params_exact,
        gmacs=verdict.gmacs,
        pretraining="ImageNet-1K",
        counter=counter(),
        image_size=64,
    )
    model = timm.create_model("test_vit", num_classes=2, img_size=64)
    assert verdict.params_exact == sum(parameter.numel() for parameter in model.parameters())
    assert 0 < verdict.params_thop < verdict.params_exact
    assert 0 < verdict.gmacs < judge(VIT, 96, BUDGET, weights="hub").gmacs


@pytest.mark.parametrize(
    ("backbone", "size", "budget", "weights", "reasons", "pretraining"),
    [
        (
            VIT, 64, SMALL, "none",
            ["params_thop 0.3M is over the budget of 0.1M",
             "params_exact 0.3M is over the budget of 0.1M"],
            "none (from scratch)",
        ),
        (
            backbone_of("resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k"), 224, BUDGET, "hub",
            ["params_exact 232.2M is over the budget of 200.0M",
             "in21k: pretrained on ImageNet-21K, outside ImageNet-1K"],
            "ImageNet-21K",
        ),
        (
            backbone_of("convnext_tiny.fb_in22k_ft_in1k"), 224, BUDGET, "file",
            ["in22k: pretrained on ImageNet-22K, outside ImageNet-1K"],
            "ImageNet-22K",
        ),
        (
            backbone_of("convnext_tiny.fb_in22k_ft_in1k"), 224, BUDGET, "none",
            [], "none (from scratch)",
        ),
        (
            backbone_of("edgenext_small.usi_in1k", pretraining="ImageNet-1K"), 224, BUDGET, "hub",
            [], "ImageNet-1K (declared)",
        ),
        (
            CATALOGUE.get("mobilenetv2_100.tf_in1k"), 224, BUDGET, "file",
            [], "ImageNet-1K (declared)",
        ),
        (
            CATALOGUE.get("mobilenetv2_100.tf_in1k"), 224, BUDGET, "hub",
            ["its weights are not on timm's hub: they need --weights-dir"],
            "ImageNet-1K (declared)",
        ),
        (
            CATALOGUE.get("volo_d1_384.sail_in1k"), 224, BUDGET, "hub",
            ["its weights are bound to 384 px and do not load at 224"], "ImageNet-1K",
        ),
        (
            CATALOGUE.get("volo_d1_384.sail_in1k"), 224, BUDGET, "none",
            [], "none (from scratch)",
        ),
    ],
)  # fmt: skip
def test_verdicts(
    backbone: Backbone,
    size: int,
    budget: int,
    weights: str,
    reasons: list[str],
    pretraining: str,
) -> None:
    verdict = judge(backbone, size, budget, weights=weights)  # type: ignore[arg-type]
    assert list(verdict.reasons) == reasons
    assert verdict.allowed == (not reasons)
    assert verdict.pretraining == pretraining


@pytest.mark.parametrize(
    ("backbone", "size"),
    [(VIT, 70), (replace(RESNET, model_args={"no_such_argument": 1}), 64)],
)
def test_what_cannot_be_built_is_rejected_not_raised(backbone: Backbone, size: int) -> None:
    verdict = judge(backbone, size, BUDGET, weights="none")
    assert not verdict.allowed
    assert verdict.reasons[0].startswith(f"cannot be built for images of {size} px: ")
    assert "\n" not in verdict.reasons[0]
    assert (verdict.params_thop, verdict.params_exact) == (0, 0)


def test_the_demo_pool_keeps_the_rules() -> None:
    for backbone in CATALOGUE.pool("demo"):
        verdict = judge(backbone, backbone.image_sizes[0], BUDGET, weights="hub")
        assert verdict.allowed, verdict


# Each of these resamples something else when its weights are loaded at another size. All others
# were checked once (timm 1.0.31, torch 2.15); here they would take two minutes.
@pytest.mark.parametrize(
    "name",
    [
        "deit_tiny_patch16_224.fb_in1k",
        "tiny_vit_5m_224.in1k",
        "volo_d4_448.sail_in1k",
        "deit3_base_patch16_384.fb_in1k",
        "mvitv2_base.fb_in1k",
        "maxvit_tiny_tf_512.in1k",
    ],
)
def test_backbones_keep_the_rules_at_every_size(name: str) -> None:
    backbone = CATALOGUE.get(name)
    for size in backbone.image_sizes:
        verdict = judge(backbone, size, BUDGET, weights="hub")
        assert verdict.allowed, verdict


def test_a_second_run_counts_nothing(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []

    def count(model: nn.Module, image_size: int) -> Counts:
        counted.append(image_size)
        return count_parameters(model, image_size)

    monkeypatch.setattr(search.catalogue.rules, "count_parameters", count)
    first = judge(VIT, 64, BUDGET, weights="hub")
    assert counted == [64]
    assert judge(VIT, 64, BUDGET, weights="hub") == first
    assert not judge(VIT, 64, SMALL, weights="none").allowed
    assert counted == [64]
    judge(VIT, 96, BUDGET, weights="hub")
    judge(replace(VIT, model_args={"drop_rate": 0.1}), 64, BUDGET, weights="hub")
    assert counted == [64, 96, 64]
    monkeypatch.setattr(timm, "__version__", "99")
    judge(VIT, 64, BUDGET, weights="hub")
    assert counted == [64, 96, 64, 64]
    assert any(own_cache.rglob("*.pkl"))


def test_an_unwritable_cache_only_costs_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ONEFOLD_CACHE", str(tmp_path / "file" / "cache"))
    assert judge(RESNET, 64, BUDGET, weights="none").allowed


def test_the_counter_is_the_one_that_the_rule_names() -> None:
    assert counter().startswith("thop 0.1.1")
    assert "ultralytics" not in counter()
    names = sorted(set(packages_distributions()["thop"]))
    assert counter() == ", ".join(f"{name} {version(name)}" for name in names)


def test_the_counter_tells_a_double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {
        "thop-1": {"RECORD": "thop/__init__.py,,\nthop-1.dist-info/METADATA,,\n"},
        "ultralytics_thop-2": {"RECORD": "README,,\n", "top_level.txt": "tests\nthop\n"},
        "thopper-3": {"RECORD": "thopper/__init__.py,,\nother/thop/__init__.py,,\n"},
        "nothing-4": {},
    }
    for name, files in installed.items():
        folder = tmp_path / f"{name}.dist-info"
        folder.mkdir()
        project, _, number = name.replace("_", "-").rpartition("-")
        metadata = f"Metadata-Version: 2.1\nName: {project}\nVersion: {number}\n"
        for file, content in {"METADATA": metadata, **files}.items():
            (folder / file).write_text(content)
    monkeypatch.setattr(
        search.catalogue.rules, "distributions", lambda: distributions(path=[str(tmp_path)])
    )
    counter.cache_clear()
    try:
        assert counter() == "thop 1, ultralytics-thop 2"
    finally:
        counter.cache_clear()


def test_thop_is_imported_late_and_without_a_word(tmp_path: Path, own_cache: Path) -> None:
    """After all that the commands import."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, warnings\n"
        "import search.catalogue.rules as rules, search.catalogue.backbones as b\n"
        "warnings.filterwarnings('always', category=DeprecationWarning, module='thop.profile')\n"
        "assert 'search.run.search' in sys.modules and 'thop' not in sys.modules\n"
        "backbone = b.load_backbones().get('test_resnet.r160_in1k')\n"
        "assert rules.judge(backbone, 64, 10**9, weights='none').allowed\n"
        "assert 'thop' in sys.modules\n"
    )
    process = Process(tmp_path / "told.txt", str(program))
    assert (process.wait(), process.told) == (0, "")


def printed(budget: int, pool: str | None, weights: str) -> str:
    console = Console(file=StringIO(), width=240)
    console.print(backbones_table(replace(CATALOGUE, budget=budget), pool, weights))
    file = console.file
    assert isinstance(file, StringIO)
    return file.getvalue()


def test_every_backbone_has_a_row_with_its_verdict() -> None:
    text = printed(310_000, "demo", "hub")
    rows = {line.split()[0]: line for line in text.splitlines() if line.startswith(" test_")}
    assert list(rows) == [backbone.name for backbone in CATALOGUE.pool("demo")]
    assert "0.30M" in rows["test_vit.r160_in1k"]
    sizes = CATALOGUE.get("test_vit.r160_in1k").image_sizes
    assert f" {', '.join(map(str, sizes))} " in rows["test_vit.r160_in1k"]
    assert "ImageNet-1K" in rows["test_vit.r160_in1k"]
    assert "yes" in rows["test_vit.r160_in1k"]
    assert "no: params_thop 0.4M is over the budget of 0.3M" in rows["test_resnet.r160_in1k"]
    assert "At most 0.3M parameters; pretrained on ImageNet-1K alone" in text


def test_all_pools_without_one_named() -> None:
    few = replace(CATALOGUE, backbones=CATALOGUE.backbones[:2] + CATALOGUE.pool("small")[:1])
    table = backbones_table(few, None, "none")
    assert table.row_count == 3


@pytest.mark.parametrize(
    ("pool", "weights", "message"),
    [
        ("smal", "hub", "did you mean 'small'"),
        ("demo", "hubs", "--weights must be one of hub, file, none, found 'hubs'; did you mean"),
    ],
)
def test_wrong_questions(pool: str, weights: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        backbones_table(CATALOGUE, pool, weights)
