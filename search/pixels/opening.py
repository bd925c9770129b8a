"""The images of a run, opened for its networks: their reader, with the cache that it reads from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from search.data.inputs import tables
from search.data.splits import Splits
from search.machine.device import Runtime
from search.machine.files import QUARANTINE
from search.machine.progress import Bars, tell_line
from search.pixels.altered import FOLDER, altered_part
from search.pixels.cache import fill_cache, open_cache
from search.pixels.canvas import choose_side, sample_sizes
from search.pixels.loading.reading import Reader
from search.pixels.quarantine import Quarantine


def choose_canvas(splits: Splits, image_sizes: Sequence[int]) -> int:
    """The side of a new run's canvas, from its images and the sizes of its networks."""
    # Of all, whichever this run draws: at another side, no canvas of another run would be of use.
    paths = splits.images or [path for table in tables(splits).values() for path in table["path"]]
    return choose_side(sample_sizes(paths), max(image_sizes))


def add_altered(
    splits: Splits,
    canvas: int,
    run: Path,
    *,
    seed: int,
    console: Console,
    check: Callable[[], None] = lambda: None,
) -> Splits:
    """Splits with some images of select altered, made with a bar where they are missing.

    Args:
        splits: the images.
        canvas: side in pixels.
        run: its folder, which keeps them.
        seed: of the run.
        console: shows the bar.
        check: called now and then; what it raises ends it, and the next time goes on from there.
    """
    with Bars(console, time_left=True, transient=True) as bars:
        bar = bars.add("altering images of select", unit="images", plain="altered")

        def on_done(done: int, missing: int) -> None:
            bar.update(done, missing)
            check()

        part = altered_part(splits.select, canvas, run / FOLDER, seed=seed, on_done=on_done)
    return replace(splits, altered=part)


def open_quarantine(run: Path, console: Console) -> Quarantine:
    """The quarantine of a run, which tells of what it sets aside."""
    return Quarantine(run / QUARANTINE, tell=_teller(console))


def open_reader(
    splits: Splits,
    canvas: int,
    *,
    cache: str,
    runtime: Runtime,
    quarantine: Quarantine,
    console: Console,
) -> Reader:
    """The reader of a run's images.

    Args:
        splits: the images.
        canvas: side in pixels.
        cache: see `open_cache`; what it lacks, `fill` adds.
        runtime: how many processes read, and whether a GPU fetches the batches.
        quarantine: is told of broken images.
        console: is told what is wrong with the cache.
    """
    # What is read most often comes first: select after every epoch of every trial.
    tables = (splits.select, splits.report, splits.fit)
    paths = [path for table in tables for path in table["path"].tolist()]
    return open_reader_of(
        paths,
        canvas,
        cache=cache,
        runtime=runtime,
        quarantine=quarantine,
        console=console,
        among=splits.images,
    )


def open_reader_of(
    paths: Sequence[str],
    canvas: int,
    *,
    cache: str,
    runtime: Runtime,
    quarantine: Quarantine,
    console: Console,
    among: Sequence[str] = (),
) -> Reader:
    """The same for images of any set, those that are read most often first; `among` see
    `open_cache`."""
    tell = _teller(console)
    return Reader.on(
        runtime,
        canvas,
        cache=open_cache(cache, paths, canvas, tell, among=among),
        quarantine=quarantine,
        tell=tell,
    )


def fill(reader: Reader, console: Console, check: Callable[[], None]) -> None:
    """Brings a reader's cache up to date, with a bar; raises what `check` does, and goes on from
    there the next time."""
    if reader.cache is None:
        return
    reader.close()  # workers have the files of before open
    with Bars(console, time_left=True, transient=True) as bars:
        bar = bars.add("caching canvases", unit="images", plain="cached")

        def on_done(done: int, missing: int) -> None:
            bar.update(done, missing)
            check()

        fill_cache(reader.cache, _teller(console), on_done)


def _teller(console: Console) -> Callable[[str], None]:
    return lambda line: tell_line(console, line)
