"""Images a second from files to normalised batches: the loader that the challenge hands out,
timm's, and ours with and without its cache, all on the same files in the same run.

    python tests/benchmarks/pixels/bench_pipeline.py --images FOLDER --output pipeline.csv

Without `--images` it makes JPEG files of 512 px. Both policies end in normalised floats of 256 px:
`light` is the challenge's own (resize and flips, onefold's `baseline`), `heavy` adds blur, JPEG,
colour jitter and erasing, drawn alike in all arms (timm's loader has no JPEG). Each arm runs in a
process of its own, as its users would run it, and they take turns, so that a machine that slows
down does so for all; workers have started, files have been read and the cache is filled before
anything is timed.
"""

from __future__ import annotations

import gc
import itertools
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context, set_start_method
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from cyclopts import run
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from timm.data import create_dataset, create_loader
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from search.machine.device import keep_freed_memory, resolve_device
from search.pixels.augmentation.alterations import Steps
from search.pixels.augmentation.augment import POLICIES, Augmentation, Policy, View
from search.pixels.augmentation.degradation import COMPRESS
from search.pixels.cache import fill_cache, open_cache
from search.pixels.loading.epochs import train_batches
from search.pixels.loading.reading import Reader

SIZE, BATCH = 256, 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}

Epoch = Callable[[], Iterable[Tensor]]
"""Makes the normalised batches (N, 3, SIZE, SIZE) of one pass."""


@dataclass(frozen=True)
class Case:
    """What is measured at a time."""

    arm: str
    policy: str
    workers: int


class Files(Dataset[tuple[Tensor, int]]):
    """An image folder as the challenge's starting code reads it."""

    def __init__(self, paths: Sequence[str], transform: Callable[[Image.Image], Tensor]) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB")), index % 2


def transforms_of_the_challenge(policy: str) -> Callable[[Image.Image], Tensor]:
    """Resize, flips and normalisation; heavy with what ours draws as often."""
    flips = [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]
    floats = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    resize = v2.Resize((SIZE, SIZE))
    if policy == "light":
        return v2.Compose([resize, *flips, *floats])
    blur = v2.RandomApply([v2.GaussianBlur(7, (0.1, 1.5))], 0.35)
    # Two in three images: the encoder takes bytes, so it stands before the floats.
    jpeg = v2.RandomApply([v2.PILToTensor(), v2.JPEG((55, 95)), v2.ToPILImage()], 0.65)
    jitter = v2.ColorJitter(0.25, 0.25, 0.25, 0.06)
    return v2.Compose([resize, *flips, blur, jpeg, jitter, *floats, v2.RandomErasing(0.25)])


def draw_heavy(rng: random.Random, _strength: float, side: int) -> View:
    """What `transforms_of_the_challenge` draws, as alterations of a canvas."""
    before: Steps = ()
    if rng.random() < 0.35:
        before += (("blur", (rng.uniform(0.1, 1.5),)),)
    if rng.random() < 0.65:
        before += ((COMPRESS, (0, rng.randint(55, 95), 1)),)
    factors = [rng.uniform(0.75, 1.25) for _ in range(3)]
    jitter = (*factors, rng.uniform(-0.06, 0.06), *rng.sample(range(4), 4))
    after: Steps = (("jitter", jitter),)
    for axis in (-1, -2):
        if rng.random() < 0.5:
            after += (("mirror", (axis,)),)
    if rng.random() < 0.25:
        area, ratio = rng.uniform(0.02, 0.33), math.exp(rng.uniform(-1.2, 1.2))
        height, width = min(1.0, math.sqrt(area * ratio)), min(1.0, math.sqrt(area / ratio))
        box = (rng.uniform(0, 1 - height), rng.uniform(0, 1 - width), height, width)
        after += (("erase", box),)
    return View(before, (0, 0, side, side), after)


HEAVY = Policy("heavy", "what the challenge's loader is measured with", draw_heavy)
POLICIES[HEAVY.name] = HEAVY


def challenge(
    paths: Sequence[str], policy: str, workers: int, _stack: ExitStack, _cache: Path
) -> Epoch:
    """PIL, torchvision's transforms, torch's DataLoader."""
    loader = DataLoader(
        Files(paths, transforms_of_the_challenge(policy)),
        BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        drop_last=True,
    )
    return lambda: (images for images, _ in loader)


def timm_loader(
    paths: Sequence[str], policy: str, workers: int, _stack: ExitStack, _cache: Path
) -> Epoch:
    """timm's `create_loader`, with the augmentations that it has. Its normalisation is part of the
    transforms, since its prefetcher needs a GPU."""
    dataset = create_dataset("", root=str(Path(paths[0]).parent))
    dataset.reader.samples = [(path, 0) for path in paths]
    heavy = policy == "heavy"
    loader = create_loader(
        dataset,
        (3, SIZE, SIZE),
        BATCH,
        is_training=True,
        no_aug=False,
        scale=(1.0, 1.0),
        ratio=(1.0, 1.0),
        hflip=0.5,
        vflip=0.5,
        color_jitter=0.25 if heavy else None,
        gaussian_blur_prob=0.35 if heavy else None,
        re_prob=0.25 if heavy else 0.0,
        mean=MEAN,
        std=STD,
        num_workers=workers,
        use_prefetcher=False,
        persistent_workers=workers > 0,
        device=torch.device("cpu"),
    )
    return lambda: (images for images, _ in loader)


def ours(
    paths: Sequence[str], policy: str, workers: int, stack: ExitStack, cache_folder: Path | None
) -> Epoch:
    """Reader and augmentation as a search uses them, from the cache or decoding as they come."""
    resolve_device("cpu")  # as a search does: it keeps freed memory
    cache = None
    if cache_folder is not None:
        cache = open_cache(str(cache_folder), paths, SIZE, lambda _: None)
        assert cache is not None
        fill_cache(cache, lambda _: None)
    table = pd.DataFrame(
        {"img_name": paths, "path": paths, "target": np.arange(len(paths)) % 2, "group": paths}
    )
    reader = stack.enter_context(Reader(SIZE, workers=workers, cache=cache, renders=True))
    augmentation = Augmentation("baseline" if policy == "light" else HEAVY.name, 0.5)
    loader = train_batches(reader, table, augmentation, batch_size=BATCH, seed=0)
    epochs = itertools.count()

    def epoch() -> Iterator[Tensor]:
        loader.set_epoch(next(epochs))
        for _, batch in loader.numbered(sizes=[SIZE]):
            yield normalised(batch.show([SIZE])[SIZE])

    return epoch


def gather(
    paths: Sequence[str], _policy: str, _workers: int, _stack: ExitStack, _cache: Path
) -> Epoch:
    """Bytes in memory, copied in random order: what no loader can beat."""
    keep_freed_memory()
    canvases = torch.randint(0, 256, (len(paths), 3, SIZE, SIZE), dtype=torch.uint8)

    def epoch() -> Iterator[Tensor]:
        for rows in torch.randperm(len(canvases)).split(BATCH):
            yield normalised(canvases[rows])

    return epoch


ARMS: dict[str, Callable[..., Epoch]] = {
    "challenge": challenge,
    "timm": timm_loader,
    "cold": lambda *arguments: ours(*arguments[:-1], None),
    "warm": ours,
    "gather": gather,
}


def normalised(images: Tensor) -> Tensor:
    """uint8 (N, 3, S, S) as a network takes it."""
    mean, std = (255 * torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return images.float().sub_(mean).div_(std)


def images_per_second(epoch: Epoch) -> float:
    """Of one pass."""
    started, delivered = time.perf_counter(), 0
    for images in epoch():
        delivered += len(images)
    return delivered / (time.perf_counter() - started)


def make_images(folder: Path, count: int, side: int) -> None:
    """Square JPEG files: smooth shapes and a little noise, which decode as photographs do."""
    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float32)
        pixels = (smooth + generator.normal(0, 4, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05d}.jpg", quality=90)


def main(
    *,
    images: Path | None = None,
    output: Path | None = None,
    count: int = 1024,
    repetitions: int = 5,
    workers: tuple[int, ...] = (0, 2, 4),
    quick: bool = False,
) -> None:
    """Measures every arm under every policy.

    Args:
        images: a folder of image files; made ones of 512 px by default.
        output: CSV file; rows for other files that it holds are kept.
        count: images of a pass.
        repetitions: of each measurement, in turn with the others; the median is told, with range.
        workers: processes that load.
        quick: a few images once: whether it works at all.
    """
    side, policies = 512, ("light", "heavy")
    if quick:
        count, repetitions, workers, side, policies = BATCH, 1, (1,), 64, ("heavy",)
    console = Console()
    with tempfile.TemporaryDirectory() as temporary:
        made, cache = Path(temporary) / f"made-{side}px", Path(temporary) / "cache"
        folder = images or made
        if images is None:
            made.mkdir()
            make_images(made, count, side)
        paths = [str(path) for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
        paths = paths[:count]
        rows = []
        for policy, number in itertools.product(policies, workers):
            cases = [Case(arm, policy, number) for arm in ARMS]
            start = "fork" if quick else "forkserver"
            found = measure(cases, paths, cache, repetitions, console, start)
            challenged = statistics.median(found[cases[0]])
            rows += [
                {
                    "files": folder.parent.name if images else folder.name,
                    **vars(case),
                    "images_per_second": round(statistics.median(speeds), 1),
                    "lowest": round(min(speeds), 1),
                    "highest": round(max(speeds), 1),
                    "times_challenge": round(statistics.median(speeds) / challenged, 2),
                }
                for case, speeds in found.items()
            ]
    table = pd.DataFrame(rows)
    console.print(table.to_string(index=False), highlight=False, soft_wrap=True)
    if output is not None:
        write(table, output)


def measure(
    cases: Sequence[Case],
    paths: Sequence[str],
    cache: Path,
    repetitions: int,
    console: Console,
    start: str,
) -> dict[Case, list[float]]:
    """Images a second of each case, in turn, each in a process of its own.

    Args:
        cases: what is measured.
        paths: of the images.
        cache: folder for their canvases.
        repetitions: of each case.
        console: shows the progress.
        start: how the processes are started, see `multiprocessing`.
    """
    speeds: dict[Case, list[float]] = {case: [] for case in cases}
    # What it has imported, its processes need not import again.
    context: Any = get_context(start)
    context.set_forkserver_preload(["search.pixels.loading.epochs", "timm.data", "torchvision"])
    with ExitStack() as stack, Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring", total=len(cases) * (repetitions + 1))
        processes = {}
        for case in cases:
            progress.update(task, description=f"{case.arm}, {case.policy}, {case.workers} workers")
            own = ProcessPoolExecutor(1, mp_context=context)
            processes[case] = stack.enter_context(own)
            own.submit(open_arm, case, paths, cache).result()
            own.submit(run_arm).result()  # starts the workers, warms the file cache
            progress.advance(task)
            stack.callback(own.submit, close_arm)
        for _, (case, own) in itertools.product(range(repetitions), processes.items()):
            speeds[case].append(own.submit(run_arm).result())
            progress.advance(task)
    return speeds


_STACK = ExitStack()
_EPOCH: list[Epoch] = []
"""Of the arm that this process measures."""


def open_arm(case: Case, paths: Sequence[str], cache: Path) -> None:
    """In the arm's process, before everything."""
    if sys.platform.startswith("linux"):
        set_start_method("fork", force=True)  # of its workers, which start at once
    _EPOCH.append(ARMS[case.arm](paths, case.policy, case.workers, _STACK, cache))


def run_arm() -> float:
    """One pass; its images a second."""
    return images_per_second(_EPOCH[0])


def close_arm() -> None:
    """Ends the arm's workers."""
    _EPOCH.clear()
    _STACK.close()
    gc.collect()


def write(table: pd.DataFrame, output: Path) -> None:
    """Replaces the rows for these files, and keeps those for others."""
    if output.exists():
        before = pd.read_csv(output)
        table = pd.concat([before[~before["files"].isin(table["files"])], table])
    output.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(output, index=False)


if __name__ == "__main__":
    run(main)
