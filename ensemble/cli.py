"""The command line `python -m ensemble`: heavy imports inside the handlers."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.console import Console

from ensemble.settings import (
    TOLERANCE,
    DistillSettings,
    MergeSettings,
    PredictSettings,
    RunSettings,
    SubmitSettings,
    TrainedMergeSettings,
)
from search.errors import loading, run_app
from search.settings import AtLeastZero

if TYPE_CHECKING:
    from ensemble.pool import Pool
    from search.interruption import Interruption

app = App(
    name="python -m ensemble",
    help="Merge a run's best candidates into the one model that may be submitted.",
    help_format="plaintext",
    version_flags=[],
    suppress_keyboard_interrupt=False,  # `run_app` tells of it and returns 130
)


@app.command
def distill(*, settings: DistillSettings) -> None:
    """Distil the best candidates into one student, then compare it with all other models."""
    started = time.monotonic()
    console = Console()
    with loading(console):
        from ensemble.compare.compare import run_compare
        from ensemble.distill.distill import run_distill

    with _opened(settings, console, started) as (pool, interruption):
        run_distill(pool, settings, console, interruption)
        run_compare(pool, console, interruption.check)


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
        auto: the set with the best AUC on select that fits the budget; or names: 0003,0007.
    head
        learned convex weights of the logits, mean of the probabilities, or an MLP on features.
    finetune_epochs
        Epochs of training all of it together afterwards.
    """
    started = time.monotonic()
    console = Console()
    with loading(console):
        from ensemble.fuse.fuse import run_fuse

    with _opened(settings, console, started) as (pool, interruption):
        run_fuse(
            pool,
            members=_names(members),
            head=head,
            finetune_epochs=finetune_epochs,
            discard=settings.discard,
            checkpoint_minutes=settings.checkpoint_minutes,
            console=console,
            interruption=interruption,
        )
    _point_to_comparison(settings, console)


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

    with _opened(settings, console, started) as (pool, interruption):
        run_soup(pool, method, members=_names(members), console=console, interruption=interruption)
    _point_to_comparison(settings, console)


@app.command
def compare(*, settings: RunSettings) -> None:
    """Compare every merged model with the best single one on report, and recommend one."""
    started = time.monotonic()
    console = Console()
    with loading(console):
        from ensemble.compare.compare import run_compare

    with _opened(settings, console, started) as (pool, interruption):
        run_compare(pool, console, interruption.check)


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
def _opened(
    settings: RunSettings, console: Console, started: float
) -> Iterator[tuple[Pool, Interruption]]:
    """Opens a run's pool; Ctrl-C and the time limit, which counts from `started`, ask for a clean
    end."""
    from ensemble.network.model import finish_all_replacing
    from ensemble.pool import open_pool
    from search.interruption import Interrupted, Interruption

    timeout = settings.timeout if isinstance(settings, MergeSettings) else None
    interruption = Interruption(None if timeout is None else timeout.total_seconds(), started)
    with interruption.handling_signals():
        try:
            pool = open_pool(
                settings.run,
                device=settings.device,
                workers=settings.workers,
                allow_tainted=isinstance(settings, MergeSettings) and settings.allow_tainted,
                console=console,
                on_batch=interruption.check,
            )
            finish_all_replacing(settings.run)
            yield pool, interruption
        except Interrupted as reason:
            if not interruption.requested:
                console.print(str(reason))
            raise KeyboardInterrupt from None


def _point_to_comparison(settings: RunSettings, console: Console) -> None:
    """A comparison of before is gone: it recommends what it measured."""
    console.print(
        f"compare all models with: python -m ensemble compare --run {settings.run}",
        highlight=False,
        soft_wrap=True,
    )


def _names(members: str) -> list[str] | None:
    """auto -> None; 0003,0007 -> the names."""
    return None if members == "auto" else [name.strip() for name in members.split(",")]
