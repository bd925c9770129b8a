"""The command line `python -m ensemble`: heavy imports inside the handlers."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number
from filelock import FileLock, Timeout
from rich.console import Console

from ensemble.settings import (
    TOLERANCE,
    CompareSettings,
    DistillSettings,
    MergeSettings,
    PredictSettings,
    RunSettings,
    SubmitSettings,
    TrainedMergeSettings,
)
from search.errors import UserError, loading, run_app
from search.machine.progress import tell_line
from search.settings.data import AtLeastZero
from search.settings.subcommands import StressSettings

if TYPE_CHECKING:
    from ensemble.pool.pool import Pool
    from search.machine.interruption import Interruption

app = App(
    name="python -m ensemble",
    help="Merge a run's best candidates into the one model that may be submitted.",
    help_format="plaintext",
    version_flags=[],
    suppress_keyboard_interrupt=False,  # `run_app` tells of it and returns 130
)


LOCK = ".merging.lock"
"""Held by whoever merges in a run folder; a search may go on meanwhile, for candidates are only
read."""

GOES_ON = "the same command goes on from there"
STARTS_ANEW = "the same command starts anew"


@dataclass
class _Merging:
    """A run that this process alone merges."""

    settings: RunSettings
    console: Console
    interruption: Interruption
    after_stop: str = GOES_ON
    """How to go on if it is stopped now; what is scored while the pool is opened is kept."""

    def amid_passes(self) -> AbstractContextManager[None]:
        """See `Interruption.amid_passes`."""
        from search.machine.device import resolve_device

        return self.interruption.amid_passes(resolve_device(self.settings.device))

    def open_pool(self, after_stop: str) -> Pool:
        """Opens the run's pool.

        Args:
            after_stop: how to go on if it is stopped after that.
        """
        from ensemble.pool.pool import open_pool

        settings = self.settings
        pool = open_pool(
            settings.run,
            device=settings.device,
            workers=settings.workers,
            allow_tainted=isinstance(settings, MergeSettings) and settings.allow_tainted,
            cache=settings.cache if isinstance(settings, MergeSettings) else None,
            console=self.console,
            on_batch=self.interruption.check,
        )
        self.after_stop = after_stop
        return pool


@app.command
def distill(*, settings: DistillSettings) -> None:
    """Distil the best candidates into one student, then compare it with all other models."""
    started = time.monotonic()
    console = Console()
    with loading(console):
        from ensemble.compare.compare import run_compare
        from ensemble.distill.distill import run_distill

    with _merging(settings, console, started) as merging:
        with merging.amid_passes():
            pool = merging.open_pool(GOES_ON)
            run_distill(pool, settings, console, merging.interruption)
        merging.after_stop = _comparison(settings)
        run_compare(pool, console, merging.interruption)


@app.command
def fuse(
    *,
    settings: TrainedMergeSettings,
    members: str = "auto",
    head: Literal["weights", "mean", "mlp"] = "weights",
    finetune_epochs: Annotated[int, Parameter(validator=Number(gte=0))] = 0,
) -> None:
    """Fuse several candidates into one network under the budget.

    Parameters
    ----------
    members
        auto: the set that is best on select and fits the budget; or names: 0003,0007.
    head
        learned convex weights of the logits, mean of the probabilities, or an MLP on features.
    finetune_epochs
        Epochs of training all of it together afterwards.
    """
    started = time.monotonic()
    console = Console()
    with loading(console):
        from ensemble.fuse.fuse import run_fuse

    with _merging(settings, console, started) as merging, merging.amid_passes():
        run_fuse(
            merging.open_pool(GOES_ON if finetune_epochs else STARTS_ANEW),
            members=_names(members),
            head=head,
            finetune_epochs=finetune_epochs,
            discard=settings.discard,
            checkpoint_minutes=settings.checkpoint_minutes,
            console=console,
            interruption=merging.interruption,
        )
        _tell(console, _comparison(settings))


@app.command
def soup(
    *,
    settings: MergeSettings,
    method: Literal["greedy", "uniform"] = "greedy",
    members: str = "auto",
) -> None:
    """Average the weights of candidates that started from the same weights.

    Parameters
    ----------
    method
        greedy adds a candidate only if the soup is not worse on select; uniform averages all.
    members
        auto: the largest set that can be averaged; or names: 0003,0007.
    """
    started = time.monotonic()
    console = Console()
    with loading(console):
        from ensemble.soup.soup import run_soup

    with _merging(settings, console, started) as merging, merging.amid_passes():
        run_soup(
            merging.open_pool(STARTS_ANEW),
            method,
            members=_names(members),
            console=console,
            interruption=merging.interruption,
        )
        _tell(console, _comparison(settings))


@app.command
def compare(*, settings: CompareSettings) -> None:
    """Compare every merged model with the best single one on report, and recommend one.

    With --name, --labels and --images, all are scored on a set from elsewhere as well, which is
    never chosen by.
    """
    started = time.monotonic()
    console = Console()
    with loading(console):
        from ensemble.compare.compare import run_compare
        from ensemble.compare.elsewhere import open_elsewhere

    with _merging(settings, console, started) as merging:
        # A model that was scored elsewhere keeps its scores.
        with merging.amid_passes():
            pool = merging.open_pool(STARTS_ANEW if settings.name is None else GOES_ON)
        source = open_elsewhere(pool, settings, console)
        run_compare(pool, console, merging.interruption, source)


@app.command
def submit(*, settings: SubmitSettings) -> None:
    """Package a model and its predictions for handing in, verified against every rule."""
    console = Console()
    with loading(console):
        from ensemble.submission.submit import run_submit

    run_submit(settings, console)


@app.command
def predict(path: Path | None = None, /, *, settings: PredictSettings) -> None:
    """Score an image, a folder or a list, or export the model.

    Parameters
    ----------
    path
        An image, a folder, or a list (.txt, .csv or .tsv with the header img_name).
    """
    from dataclasses import replace

    console = Console(stderr=True)
    with loading(console):
        from ensemble.deploy.predict import run_predict

    run_predict(replace(settings, path=path), console)


@app.command
def stress(*, settings: StressSettings) -> None:
    """Score a model on altered images, as `python -m search stress` does; fused ones as well."""
    console = Console()
    with loading(console):
        from ensemble.network.model import load_model
        from ensemble.submission.manifest import MANIFEST
        from search.validation.stress.stress import run_stress

    if settings.out is None and (settings.model / MANIFEST).exists():
        raise UserError(
            f"a submission must stay as it is, found {MANIFEST} in {settings.model}; give --out"
        )
    run_stress(settings, console, lambda folder: load_model(folder)[0])


@app.command
def verify(
    folder: Path,
    /,
    *,
    images: Path | None = None,
    device: str = "cpu",
    workers: Annotated[int | None, AtLeastZero] = None,
    tolerance: Annotated[float, Parameter(validator=Number(gte=0, lt=1))] = TOLERANCE,
) -> None:
    """Verify a submission folder on its own: rebuild, recount, rescore, compare hashes.

    Parameters
    ----------
    folder
        The submission.
    images
        Folder of the listed images, to recompute their scores too.
    device
        auto, cpu, cuda, cuda:1 or mps.
    workers
        Processes that decode images. Default: chosen by the machine.
    tolerance
        Largest difference of a recomputed score; 1e-3 allows for the rounding of another device.
    """
    console = Console()
    with loading(console):
        from ensemble.submission.verify import run_verify

    run_verify(folder, images, console, device=device, workers=workers, tolerance=tolerance)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0, 2 for bad input, 130 after Ctrl-C.

    Args:
        arguments: as on the command line; default: those of this process.
    """
    return run_app(app, sys.argv[1:] if arguments is None else arguments)


@contextmanager
def _merging(settings: RunSettings, console: Console, started: float) -> Iterator[_Merging]:
    """Merges a run in this process alone.

    Ctrl-C and the time limit, which counts from `started`, ask for a clean end: what runs inside
    ends there, and a line tells how to go on. The time limit was the user's wish and no failure;
    after Ctrl-C a script must not go on as if the merge had come to its end.
    """
    from search.machine.interruption import Interrupted, Interruption

    timeout = settings.timeout if isinstance(settings, MergeSettings) else None
    interruption = Interruption(None if timeout is None else timeout.total_seconds(), started)
    merging = _Merging(settings, console, interruption)
    with _alone(settings.run), interruption.handling_signals():
        try:
            yield merging
        except Interrupted as reason:
            _tell(console, f"{reason}: {merging.after_stop}")
            if interruption.requested:
                raise KeyboardInterrupt from None


@contextmanager
def _alone(run: Path) -> Iterator[None]:
    """Lets one process at a time merge in a run folder, and tidies up after one that was killed.

    Raises:
        UserError: if another one is at it, or the folder is no run or cannot be written to.
    """
    from ensemble.network.model import finish_all_replacing
    from search.machine.files import (
        CANDIDATES,
        COMPARISON,
        ELSEWHERE,
        MERGED,
        REFITS,
        drop_unfinished_writes,
    )
    from search.settings.saved import load_settings

    load_settings(run)  # no lock is left where there is no run
    lock = FileLock(run / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{run} must be merged by one process at a time, and another one is at it; wait for it"
        ) from None
    except OSError as error:
        raise UserError(
            f"{run} must be a folder that merging can write to, found: {error}; copy it to one"
        ) from None
    try:
        # A search may be at work on other files of the run.
        drop_unfinished_writes(run, f"{Path(COMPARISON).stem}*")
        for folder in (run / MERGED).glob("*"):
            drop_unfinished_writes(folder)
        for folder in (run / ELSEWHERE).glob("*"):
            drop_unfinished_writes(folder)
        for folder in (*(run / CANDIDATES).glob("*"), *(run / REFITS).glob("*")):
            drop_unfinished_writes(folder, f"{ELSEWHERE}-*")
        finish_all_replacing(run)
        yield
    finally:
        lock.release()


def _comparison(settings: RunSettings) -> str:
    """A comparison of before is gone: it recommends what it measured."""
    return f"compare all models with: python -m ensemble compare --run {settings.run}"


def _tell(console: Console, line: str) -> None:
    tell_line(console, line)


def _names(members: str) -> list[str] | None:
    """auto -> None; 0003,0007 -> the names."""
    return None if members == "auto" else [name.strip() for name in members.split(",")]
