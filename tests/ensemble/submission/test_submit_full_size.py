from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from rich.console import Console

from ensemble.deploy import export
from ensemble.deploy.export import export_onnx
from ensemble.network.model import HeadSpec, ModelSpec, build_model, load_model
from ensemble.settings import SubmitSettings
from ensemble.submission.submit import run_submit
from ensemble.submission.verify import Check, verify
from search.settings.saved import load_settings
from search.training.candidate import save_weights
from search.training.recipe import Recipe

MEMORY_LIMIT_GIB = 10


def trunk(backbone: str, image_size: int) -> Recipe:
    name = backbone.partition(".")[0]
    return Recipe(
        backbone=backbone,
        architecture=name,
        image_size=image_size,
        canvas=256,
        weights="hub",
    )


@pytest.mark.timeout(1200)  # 30 s of one core, but on a busy machine several times that
def test_a_model_near_the_budget_goes_all_the_way(
    run_folder: Path,
    tmp_path: Path,
    peak_gib: Callable[[], float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """195M parameters of two real backbones, with random weights: saved, submitted, verified and
    exported."""
    for name in export.NEEDED:
        pytest.importorskip(name)
    spec = ModelSpec(
        kind="fused",
        trunks=(trunk("vgg11.tv_in1k", 64), trunk("wide_resnet50_2.tv_in1k", 96)),
        head=HeadSpec(kind="mean"),
        method="fused",
    )
    folder = run_folder / "merged" / "fused"
    folder.mkdir(parents=True)
    spec.save(folder / "model.yaml")
    save_weights(folder / "model.safetensors", build_model(spec).state_dict())
    # All that is built from here on is loaded: what it starts with goes unseen.
    for name in ("kaiming_uniform_", "kaiming_normal_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)
    images = load_settings(run_folder).val_images
    assert images is not None
    listed = tmp_path / "list.txt"
    listed.write_text("img_name\n1000.png\n1001.png\n", encoding="utf-8")
    # A submission is verified before it takes its place; once more would take as long again.
    checks: dict[str, Check] = {}

    def noted(folder: Path) -> list[Check]:
        found = verify(folder)
        checks.update({check.name: check for check in found})
        return found

    monkeypatch.setattr("ensemble.submission.submit.verify", noted)
    submission = run_submit(
        SubmitSettings(
            run=run_folder, images=images, names=listed, phase="test", model="fused", device="cpu"
        ),
        Console(quiet=True),
        clock=lambda: datetime(2025, 3, 4, tzinfo=UTC),
    )
    assert all(check.ok for check in checks.values()), checks
    counts = checks["parameters"].detail
    exact = int(counts.partition(" exactly")[0].rpartition(" ")[2].replace(",", ""))
    assert 180_000_000 <= exact <= 200_000_000
    model, _ = load_model(submission)
    assert export_onnx(model, tmp_path / "model.onnx") <= export.TOLERANCE
    assert (tmp_path / "model.onnx").stat().st_size >= 4 * exact
    assert peak_gib() < MEMORY_LIMIT_GIB
