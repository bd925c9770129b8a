"""`search audit` of many images: seconds and peak memory of its stages.

    python tests/benchmarks/validation/bench_audit.py [--images 20000] [--side 256] [--workers 2]
    python tests/benchmarks/validation/bench_audit.py --labels L --folder F   # images of one's own
    python tests/benchmarks/validation/bench_audit.py --hashes 500000         # the comparison alone

Generated images are JPEGs of blobs and noise, a tenth of them copies. Memory is the peak of this
process and, apart from it, of the largest of the others.
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from cyclopts import App
from PIL import Image
from rich.console import Console

app = App()

COPIES = 10
"""Every so many-th image is a copy of one before."""


@app.default
def measure(
    *,
    images: int = 20_000,
    side: int = 256,
    workers: int = 2,
    labels: Path | None = None,
    folder: Path | None = None,
    hashes: int | None = None,
    quick: bool = False,
) -> None:
    """Audits generated images, those of a folder, or compares random hashes; with `quick` a few."""
    if hashes is not None:
        compare(200 if quick else hashes, workers)
        return
    if quick:
        images, side, workers = 200, 64, 1
    with tempfile.TemporaryDirectory() as place:
        if labels is None or folder is None:
            labels, folder = generate(Path(place), images, side)
        audit(labels, folder, Path(place) / "out", workers)


def generate(place: Path, count: int, side: int) -> tuple[Path, Path]:
    """Writes a label file and its images."""
    generator = np.random.default_rng(0)
    folder = place / "images"
    folder.mkdir()
    lines = ["img_name,target"]
    # One for all: noise is dear to draw.
    noise = generator.normal(0.0, 8.0, (2 * side, 2 * side, 3)).astype(np.float32)
    for number in range(count):
        path = folder / f"{number:08d}.jpg"
        if number % COPIES == COPIES - 1:
            path.write_bytes((folder / f"{number - 1:08d}.jpg").read_bytes())
        else:
            coarse = generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            blobs = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
            top, left = generator.integers(0, side, 2)
            pixels = np.asarray(blobs) + noise[top : top + side, left : left + side]
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, quality=90)
        lines.append(f"{path.name},{int(generator.integers(2))}")
    labels = place / "labels.csv"
    labels.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return labels, folder


def audit(labels: Path, folder: Path, out: Path, workers: int) -> None:
    """Prints what an audit prints, and what it took."""
    from search.settings.subcommands import AuditSettings
    from search.validation.audit.audit import run_audit

    started = time.perf_counter()
    settings = AuditSettings(train_labels=labels, train_images=folder, workers=workers, out=out)
    found = run_audit(settings, Console())
    took(found.images, time.perf_counter() - started, workers, "images")


def compare(count: int, workers: int) -> None:
    """Near copies among random hashes, a tenth of them near another."""
    from search.validation.audit.duplicates import near_links

    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 256, (count, 32), dtype=np.uint8)
    thumbs = generator.integers(0, 256, (count, 256), dtype=np.uint8)
    copied = np.arange(COPIES - 1, count, COPIES)
    hashes[copied], thumbs[copied] = hashes[copied - 1], thumbs[copied - 1]
    hashes[copied, :8] ^= np.uint8(1)
    started = time.perf_counter()
    links = near_links(hashes, thumbs, workers)
    took(count, time.perf_counter() - started, workers, f"hashes, {len(links):,} links")


def took(count: int, seconds: float, workers: int, what: str) -> None:
    """One line."""
    own, others = (
        resource.getrusage(who).ru_maxrss / 1024
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(
        f"{count:,} {what} in {seconds:.1f} s ({1000 * seconds / count:.2f} ms each) with "
        f"{workers} workers; peak memory {own:,.0f} MB, largest other process {others:,.0f} MB"
    )


if __name__ == "__main__":
    app()
