"""Images a second of several models, measured side by side in one process."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from statistics import median

import torch
from torch import nn

from search.machine.device import exact_float32, is_out_of_memory
from search.machine.interruption import Interruption

# Importing the timer looks for a CUDA compiler, and warns where there is none.
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

from torch.utils.benchmark import Timer  # noqa: E402

BATCH_SIZES = (1, 32)
ROUNDS = 3
"""Measurements of each model, in turn with the others, of which the median is told."""

SECONDS_PER_MEASUREMENT = 0.5

LONG_PASS = 1.0
"""Seconds of a pass on a CPU that is measured once, and may be stopped: asking amid passes makes
models of many layers seem slower, but not by anything that a second shows."""


def measure_speed(
    models: Mapping[str, nn.Module],
    device: torch.device,
    batch_size: int,
    interruption: Interruption,
) -> dict[str, float]:
    """Images a second of models in fp32, by their names.

    The models take turns, so that a machine that slows down or speeds up does so for all.

    Args:
        models: each maps canvases (N, 3, C, C), RGB in [0, 1], to logits, and has their side C
            as `canvas`.
        device: to compute on.
        batch_size: images in one forward pass.
        interruption: asked before every measurement, and amid long passes.

    Returns:
        NaN for a model that does not fit into memory with so large a batch.
    """
    speeds: dict[str, list[float]] = {name: [] for name in models}
    # The timer waits for the current GPU, whichever the models are on.
    current = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with current, torch.inference_mode(), exact_float32():
        for _ in range(ROUNDS):
            for name, model in models.items():
                interruption.check()
                try:
                    seconds = _seconds(model, device, batch_size, interruption)
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    seconds = math.nan
                speeds[name].append(batch_size / seconds)
                model.cpu()
    return {name: median(values) for name, values in speeds.items()}


def _seconds(
    model: nn.Module, device: torch.device, batch_size: int, interruption: Interruption
) -> float:
    """Median time of one forward pass."""
    model.to(device).eval()
    size = int(model.canvas)  # type: ignore[arg-type]
    images = torch.rand(batch_size, 3, size, size, device=device)
    with interruption.amid_passes(device):
        model(images)  # Kernels are chosen and memory is taken at the first call.
        if device.type == "cpu":
            started = time.perf_counter()
            model(images)
            seconds = time.perf_counter() - started
            if seconds >= LONG_PASS:
                return seconds
    timer = Timer(
        "model(images)",
        globals={"model": model, "images": images},
        num_threads=torch.get_num_threads(),
    )
    median_seconds: float = timer.blocked_autorange(min_run_time=SECONDS_PER_MEASUREMENT).median
    return median_seconds
