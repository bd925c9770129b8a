"""A model -> an ONNX file whose scores were compared with torch's before anyone gets to see it."""

from __future__ import annotations

import logging
import math
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ensemble.deploy.probes import COUNT, probe_images
from search.errors import UserError
from search.machine.files import write_atomically
from search.training.network import margin

TOLERANCE = 1e-4
"""Largest difference between a score under onnxruntime and under torch."""

INPUT, OUTPUT = "images", "y_pred"
NEEDED = ("onnx", "onnxscript", "onnxruntime")

_PROBE_SEED = 0


class Scorer(nn.Module):
    """What the ONNX graph computes: canvases, uint8 (N, 3, C, C), to probabilities of fake (N,)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(images.float() / 255.0)
        # In double precision, as `search.training.scoring.predict` does.
        return margin(logits.double()).sigmoid()


def export_onnx(model: Any, path: Path) -> float:
    """Writes a model as ONNX: one file, preprocessing inside the graph, any batch size.

    The graph takes `images`, canvases in uint8 RGB (N, 3, C, C), and gives `y_pred`, float64 (N,).
    Making the canvas of a photo is left to the caller, see `search.pixels.canvas.explain`; the
    trunks' own resizing and normalisation are in the graph.

    Args:
        model: maps canvases, RGB in [0, 1], to logits (N, 2), and has their side as `canvas`.
        path: the file to write.

    Returns:
        The largest difference between the two runtimes' scores of the probe images.

    Raises:
        UserError: if the export extra is not installed, torch cannot export one of the model's
            operations, or the scores differ by more than TOLERANCE; no file is left then.
    """
    check_installed()
    scorer = Scorer(model.cpu().eval())
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        raise UserError(f"the exported model must be written to a file, found {path}")
    difference = math.nan

    def write(temporary: Path) -> None:
        nonlocal difference
        _translate(scorer, model.canvas).save(temporary, external_data=False)
        difference = compare(scorer, model.canvas, temporary)
        if not difference <= TOLERANCE:  # NaN too
            raise UserError(
                f"scores under onnxruntime must equal torch's to {TOLERANCE:g}, found a difference "
                f"of {difference:.2g}; no file was written"
            )

    write_atomically(path, write)
    return difference


def check_installed() -> None:
    """
    Raises:
        UserError: if a package that the export needs is absent.
    """
    for name in NEEDED:
        try:
            import_module(name)
        except ImportError:
            raise UserError(
                f"--export onnx needs the package {name}, which is not installed; install "
                "onefold[export]"
            ) from None


def compare(scorer: nn.Module, canvas: int, path: Path) -> float:
    """The largest difference between onnxruntime's and torch's scores of the probe images, in
    batches of several sizes."""
    onnxruntime: Any = import_module("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images = probe_images(_PROBE_SEED, canvas)
    with torch.inference_mode():
        expected = scorer(images).numpy()
    found = [
        session.run([OUTPUT], {INPUT: part.numpy()})[0] for part in images.split([1, COUNT - 1])
    ]
    return float(np.abs(np.concatenate(found) - expected).max())


def _translate(scorer: nn.Module, canvas: int) -> Any:
    """The model as torch's ONNXProgram."""
    # Two images: torch would take a batch of one for a constant.
    example = probe_images(_PROBE_SEED, canvas, count=2)
    loud = logging.getLogger("torch.onnx")
    level = loud.level
    try:
        loud.setLevel(logging.ERROR)
        with warnings.catch_warnings(action="ignore"), torch.inference_mode():
            return torch.onnx.export(
                scorer,
                (example,),
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            )
    except Exception as error:  # the exporter raises most kinds, some with pages of text
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"torch {torch.__version__} must be able to express the model as ONNX, found "
            f"{type(error).__name__}: {reason}"
        ) from error
    finally:
        loud.setLevel(level)
