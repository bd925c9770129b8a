"""Training steps on the CPU with and without `keep_freed_memory`, in turn, each in its own process.

    python tests/benchmarks/pixels/bench_memory.py [--architecture mobilenetv2_100] \\
        [--image-size 192]

Tells images a second and the share of the processor time that the kernel took, for page faults
mostly.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from cyclopts import run
from rich.console import Console
from rich.table import Table

from search.machine.device import keep_freed_memory
from search.training.network import build_network
from search.training.recipe import Recipe

BATCH_SIZE = 32


def compare(
    *,
    architecture: str = "mobilenetv2_100",
    image_size: int = 192,
    rounds: int = 3,
    steps: int = 8,
    quick: bool = False,
) -> None:
    """Measures both ways `rounds` times; with `quick` a small network once, to see it run."""
    if quick:
        architecture, image_size, rounds, steps = "test_resnet", 32, 1, 2
    # A process of its own each, that need not import torch: memory is kept once and for all.
    context = get_context("fork" if quick else "forkserver")
    context.set_forkserver_preload(["search.training.network"])
    results = Table("round", "freed memory", "images/s", "kernel", title=f"{architecture}")
    for number in range(rounds):
        for way in ("returned", "kept"):
            with ProcessPoolExecutor(1, mp_context=context) as own:
                taken = own.submit(take_steps, way, architecture, image_size, steps)
                speed, kernel = taken.result()
            results.add_row(str(number + 1), way, f"{speed:.1f}", f"{kernel:.0%}")
    Console().print(results)


def take_steps(way: str, architecture: str, image_size: int, count: int) -> tuple[float, float]:
    """Trains for some steps: images a second, and the kernel's share."""
    if way == "kept":
        keep_freed_memory()
    recipe = Recipe(
        backbone=architecture,
        architecture=architecture,
        image_size=image_size,
        canvas=image_size,
        weights="none",
    )
    network = build_network(recipe).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters())
    images = torch.rand(BATCH_SIZE, 3, image_size, image_size)
    images = images.contiguous(memory_format=torch.channels_last)
    targets = torch.arange(BATCH_SIZE) % 2

    def step() -> None:
        torch.nn.functional.cross_entropy(network(images), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    used, started = os.times(), time.perf_counter()
    for _ in range(count):
        step()
    seconds, now = time.perf_counter() - started, os.times()
    system, user = now.system - used.system, now.user - used.user
    return BATCH_SIZE * count / seconds, system / (system + user)


if __name__ == "__main__":
    run(compare)
