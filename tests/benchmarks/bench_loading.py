"""Images a second that each augmentation policy delivers, decoded and rendered in one process.

    python tests/benchmarks/bench_loading.py [--images FOLDER] [--canvas 256] [--image-size 224]

Without a folder it makes 512 px JPEG files of noise, which decode slower than photographs.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from cyclopts import run
from PIL import Image
from rich.console import Console
from rich.table import Table

from search.data.augment import POLICIES, Augmentation
from search.data.reading import Reader, train_batches

COUNT = 128
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def make_images(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for number in range(COUNT):
        pixels = generator.integers(0, 256, (512, 512, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.jpg", quality=90)


def main(*, images: Path | None = None, canvas: int = 256, image_size: int = 224) -> None:
    """Measures every policy once over 128 images, after one epoch that warms the file cache."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = images or Path(temporary)
        if images is None:
            make_images(folder)
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        paths = paths[:COUNT]
        table = pd.DataFrame(
            {
                "img_name": [path.name for path in paths],
                "path": [str(path) for path in paths],
                "target": np.arange(len(paths)) % 2,
                "group": [path.name for path in paths],
            }
        )
        results = Table("policy", "images/s", title=f"{len(paths)} images to {image_size} px")
        for name in POLICIES:
            reader = Reader(canvas)
            loader = train_batches(reader, table, Augmentation(name, 0.5), batch_size=32, seed=0)
            for _ in loader:
                pass
            started = time.perf_counter()
            delivered = 0
            for batch in loader:
                delivered += len(batch.show([image_size])[image_size])
            results.add_row(name, f"{delivered / (time.perf_counter() - started):.0f}")
        Console().print(results)


if __name__ == "__main__":
    run(main)
