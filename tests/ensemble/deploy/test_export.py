from __future__ import annotations

import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from ensemble.deploy import export
from ensemble.deploy.export import INPUT, OUTPUT, Scorer, check_installed, compare, export_onnx
from ensemble.deploy.scoring import score_images
from ensemble.network.model import FusedNetwork, HeadSpec, fuse_networks
from search.errors import UserError
from search.machine.device import Runtime
from search.pixels.canvas import explain
from search.training.network import build_network
from search.training.recipe import Recipe
from tests.ensemble.conftest import photographs

CANVAS = 40


def recipe(architecture: str, image_size: int, **model_args: Any) -> Recipe:
    return Recipe(
        backbone=f"{architecture}.r160_in1k",
        architecture=architecture,
        model_args=model_args,
        image_size=image_size,
        canvas=CANVAS,
        weights="none",
    )


def two_sizes() -> FusedNetwork:
    """Trunks above and below the canvas: the one enlarges it, the other shrinks it."""
    networks = [
        build_network(recipe("test_vit", 48, img_size=48, depth=1)),
        build_network(recipe("test_resnet", 32)),
    ]
    for each in networks:
        # Fresh heads say nearly the same of every image.
        for parameter in each.trunk.get_classifier().parameters():  # type: ignore[operator, union-attr]
            parameter.data.mul_(6)
    return fuse_networks(networks, HeadSpec("weights"))


@pytest.fixture(scope="module")
def onnx_installed() -> None:
    for name in export.NEEDED:
        pytest.importorskip(name)


@pytest.fixture(scope="module")
def exported(
    onnx_installed: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FusedNetwork, Path]:
    """A model and its file: a translation takes seconds."""
    model, path = two_sizes(), tmp_path_factory.mktemp("export") / "new" / "model.onnx"
    assert export_onnx(model, path) <= 1e-4
    return model, path


def test_the_file_scores_as_torch_does_whatever_the_batch(
    exported: tuple[FusedNetwork, Path],
) -> None:
    import onnxruntime

    model, path = exported
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(path)
    generator = torch.Generator().manual_seed(0)
    for count in (1, 2, 5):
        images = torch.randint(
            0, 256, (count, 3, CANVAS, CANVAS), dtype=torch.uint8, generator=generator
        )
        (found,) = session.run([OUTPUT], {INPUT: images.numpy()})
        with torch.inference_mode():
            expected = Scorer(model)(images)
        assert found.shape == (count,)
        assert found.dtype == np.float64
        assert found == pytest.approx(expected.numpy(), abs=1e-4)


def test_an_exported_model_scores_what_a_plain_function_makes_of_the_files(
    exported: tuple[FusedNetwork, Path], tmp_path: Path
) -> None:
    import onnxruntime

    model, path = exported
    table = photographs(tmp_path)
    runtime, console = Runtime(torch.device("cpu")), Console(quiet=True)
    expected = score_images(model, table, runtime=runtime, console=console).table["y_pred"]
    made: dict[str, Any] = {}
    exec(explain(model.canvas), made)  # noqa: S102 - our own text
    canvases = np.stack([np.asarray(made["canvas"](path)) for path in table["path"]])
    session = onnxruntime.InferenceSession(path)
    (found,) = session.run([OUTPUT], {INPUT: canvases.transpose(0, 3, 1, 2)})
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_comparison_sees_other_weights(exported: tuple[FusedNetwork, Path]) -> None:
    model, path = deepcopy(exported[0]), exported[1]
    with torch.no_grad():
        trunk: Any = model.trunks[1]
        trunk.trunk.get_classifier().weight[1].add_(0.01)
    assert compare(Scorer(model), CANVAS, path) > 1e-4


class Program:
    """Stands for a translation."""

    def save(self, path: Path, *, external_data: bool) -> None:
        assert not external_data
        path.write_bytes(b"onnx")


@pytest.mark.usefixtures("onnx_installed")
def test_a_file_that_scores_otherwise_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_translate", lambda *_: Program())
    monkeypatch.setattr(export, "compare", lambda *_: float("nan"))
    with pytest.raises(UserError, match="must equal torch's"):
        export_onnx(build_network(recipe("test_resnet", 48)), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


class Inexpressible(nn.Module):
    canvas = 32

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.tensor(np.linalg.svd(images.numpy())[1])[:, 0, :2]


@pytest.mark.usefixtures("onnx_installed")
def test_what_onnx_cannot_express_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be able to express"):
        export_onnx(Inexpressible(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", export.NEEDED)
def test_without_the_extra_the_remedy_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in export.NEEDED:
        monkeypatch.setitem(sys.modules, other, sys)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"package {name}, .* install onefold\[export\]"):
        check_installed()
