"""`submit`: a model and a list of images -> a folder to hand in, and its entry in the ledger."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from ensemble.compare.recommended import Choice, choose_model
from ensemble.deploy.journal import open_journal
from ensemble.deploy.prediction_file import PREDICTION, examples
from ensemble.deploy.scoring import Scored, open_runtime, score_images
from ensemble.network.evidence import describe_rules
from ensemble.network.model import FusedNetwork, ModelSpec, load_model
from ensemble.pool.eligibility import judge_origin
from ensemble.settings import SubmitSettings
from ensemble.submission.ledger import LEDGER, Entry, Ledger
from ensemble.submission.manifest import MANIFEST
from ensemble.submission.package import Content, write_package
from ensemble.submission.reproduce import FOLDER, recipes_behind
from ensemble.submission.samples import BlendingCode, describe_samples
from ensemble.submission.verify import verify
from search.catalogue.backbones import Catalogue, load_backbones
from search.data.inputs import DATA, check_data
from search.data.labels import read_list
from search.errors import UserError
from search.machine.device import describe_device, resolve_precision
from search.machine.files import BACKBONES, check_writable, file_sha256
from search.machine.progress import tell_line
from search.settings.saved import load_settings
from search.training.candidate import Candidate
from search.training.network import Network

SUBMISSION = "submission"
JOURNAL = ".scores-to-hand-in.journal"
_WAITING = f".{SUBMISSION}."
"""Begins the hidden names of packages that are being made, or wait to take their place."""


def run_submit(
    settings: SubmitSettings,
    console: Console,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Path:
    """Scores the listed images, writes RUN/submission, verifies it and records it in the ledger.

    Scores are kept in a journal as they come, until they are handed in.

    The folder is complete or not there. One that is there already is not lost: it becomes
    submission-<time>. If a process is killed, the same command goes on; what it has counted is not
    counted again.

    Args:
        settings: see there.
        console: told of the progress and of what was written.
        clock: gives the present time with an offset from UTC.

    Returns:
        The submission's folder.

    Raises:
        UserError: if the day's submissions are used up, the model breaks a rule or is another
            run's, the run folder cannot be written to, or an image is absent or cannot be read;
            nothing but the journal was written then.
    """
    run = settings.run
    seed = load_settings(run).seed
    check_writable(run)
    ledger = Ledger(run / LEDGER, settings.time_zone)
    begun = _finish_begun(run, ledger)
    if begun is None:
        _check_quota(ledger, settings, clock())
    choice = choose_model(run, settings.model)
    _check_owner(choice.folder, run)
    model, spec = load_model(choice.folder)
    catalogue = load_backbones(run / BACKBONES)
    recipes = recipes_behind(run, choice.folder, spec)
    samples = describe_samples(run, spec, recipes, BlendingCode.here())
    rules = _judge(model, spec, catalogue, choice, samples)
    table = read_list(settings.names, settings.images, tell=partial(tell_line, console))
    tell_line(console, f"scoring {len(table):,} images with {choice.name}")
    runtime = open_runtime(settings.device, settings.workers)
    precision = resolve_precision(settings.precision, runtime.device)
    how: dict[str, Any] = {"batch_size": settings.batch_size, "precision": precision}
    journal = open_journal(run / JOURNAL, choice.folder, spec, table, runtime=runtime, **how)
    scored = score_images(model, table, runtime=runtime, console=console, journal=journal, **how)
    prediction = complete_scores(scored, table, settings.broken_score)
    rules["prediction"] = {
        "phase": settings.phase,
        "images": len(prediction),
        "device": describe_device(runtime.device),
        **how,
        "unreadable": sorted(broken.img_name for broken in scored.broken),
        "unreadable_score": settings.broken_score if scored.broken else None,
    }
    content = Content(choice, model, spec, rules, prediction, seed)
    with ledger.lock(), _temporary_folder(run) as folder:
        manifest = write_package(folder, settings, content)
        _check(folder)
        now = clock()
        sha256 = file_sha256(folder / PREDICTION)
        if begun is not None and begun.is_for(settings.phase, choice.name, sha256):
            _tell_begun(console, run / SUBMISSION, begun, ledger)
            journal.delete()
            return run / SUBMISSION
        forced = _check_quota(ledger, settings, now)
        twin = ledger.find(settings.phase, sha256)
        entry = Entry(settings.phase, now, choice.name, sha256, forced, ledger.zone.key)
        kept = _count(folder, entry, ledger)
    journal.delete()
    if twin is not None:
        tell_line(
            console,
            f"these predictions equal, byte for byte, those of {twin.model} that were submitted at "
            f"{twin.time.isoformat(timespec='minutes')}: handing them in again gains nothing",
        )
    if kept is not None:
        tell_line(console, f"the earlier submission is now {kept}")
    _tell(console, run / SUBMISSION, manifest, ledger, settings, clock())
    return run / SUBMISSION


def _check_owner(folder: Path, run: Path) -> None:
    """A submission tells of the images and generated samples of its run.

    Raises:
        UserError: if the model is another run's, by where it lies or, of a submission, by the
            images that it says it was made of.
    """
    rule = f"--model must be of the run {run}, whose images and samples a submission tells of"
    # A submission lies in its run's folder, every other model in a folder there.
    around = folder.resolve().parents[:2]
    owner = next((parent for parent in around if (parent / DATA).exists()), None)
    if owner is not None and owner != run.resolve():
        raise UserError(f"{rule}, found {folder}; give --run {owner}")
    told = folder / FOLDER
    if (told / DATA).exists() and _fingerprint(told) != _fingerprint(run):
        raise UserError(
            f"{rule}, found {folder} of other images or samples; give the --run that it was made in"
        )


def _fingerprint(folder: Path) -> str:
    """Of the images and samples of a run, or of a submission's reproduce/."""
    return str(check_data(folder)["fingerprint"])


def complete_scores(
    scored: Scored, table: pd.DataFrame, broken_score: float | None
) -> pd.DataFrame:
    """img_name and y_pred of every listed image, in the list's order.

    Args:
        scored: scores of the images that could be read.
        table: the list.
        broken_score: of the others.

    Raises:
        UserError: if there are others, and no score was given for them.
    """
    if scored.broken and broken_score is None:
        shown = [f"{broken.img_name} ({broken.reason})" for broken in scored.broken]
        raise UserError(
            f"every listed image must get a score, but {len(scored.broken)} of {len(table)} cannot "
            f"be read: {examples(shown)}; "
            "mend them, or give them all one score with --broken-score 0.5, which is recorded"
        )
    scores = scored.table.set_index("path")["y_pred"]
    filled = scores.reindex(table["path"])
    if broken_score is not None and scored.broken:
        filled = filled.fillna(broken_score)
    return pd.DataFrame({"img_name": table["img_name"], "y_pred": filled.to_numpy()})


def _check_quota(ledger: Ledger, settings: SubmitSettings, now: datetime) -> bool:
    """Whether the submission is one beyond the rules; raises unless it is forced."""
    quota = ledger.quota(settings.phase, now)
    if not settings.force:
        ledger.check_zone()
        quota.check()
    return quota.is_spent or ledger.changes_zone


def _judge(
    model: Network | FusedNetwork,
    spec: ModelSpec,
    catalogue: Catalogue,
    choice: Choice,
    generated_samples: dict[str, Any] | str,
) -> dict[str, Any]:
    rules = describe_rules(
        model,
        model.image_size,
        spec,
        budget=catalogue.budget,
        declared={backbone.name: backbone.pretraining for backbone in catalogue.backbones},
        generated_samples=generated_samples,
    )
    broken = list(rules["broken_rules"])
    if spec.method in ("candidate", "refit") and not broken:
        # What was recorded when it was trained counts besides today's judgement of its tag.
        origin = judge_origin(Candidate(choice.folder), catalogue)
        broken += [] if origin.allowed else [origin.reason]
    if broken:
        raise UserError(
            f"{choice.name} must keep the rules to be submitted, but {'; '.join(broken)}; choose "
            "another --model"
        )
    return rules


def _check(folder: Path) -> None:
    """A submission that its own verification refuses must not be handed in."""
    failed = [check for check in verify(folder) if not check.ok]
    if failed:
        told = "; ".join(f"{check.name}: {check.detail}" for check in failed)
        raise UserError(f"the new submission must pass its own verification, but {told}")


def _count(folder: Path, entry: Entry, ledger: Ledger) -> Path | None:
    """Enters a whole package in the ledger, and lets it take its place; returns where the one
    before it is now."""
    run = folder.parent
    # Its name says which entry is its own: killed amid this, the next command knows what to do.
    waiting = run / f"{_WAITING}{_stamp(entry.time)}"
    folder.rename(waiting)
    # First the entry: a submission that nobody counted would be worse than a lost one.
    ledger.add(entry)
    return _place(waiting, entry)


def _place(waiting: Path, entry: Entry) -> Path | None:
    """Gives a package that is counted the submission's name; see `_make_room`."""
    folder = waiting.with_name(SUBMISSION)
    kept = _make_room(folder, entry.time)
    waiting.rename(folder)
    return kept


def _finish_begun(run: Path, ledger: Ledger) -> Entry | None:
    """Takes up what killed processes left: what is counted takes its place, else it is deleted.

    Returns:
        The entry of what took its place, which must not be counted again.
    """
    if not any(run.glob(f"{_WAITING}*")):
        return None
    begun: Entry | None = None
    with ledger.lock():
        counted = {_stamp(entry.time): entry for entry in ledger.entries}
        for waiting in sorted(run.glob(f"{_WAITING}*")):
            entry = counted.get(waiting.name.removeprefix(_WAITING))
            if entry is None:
                shutil.rmtree(waiting)
            else:
                _place(waiting, entry)
                begun = entry
    return begun


def _stamp(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y%m%dT%H%M%S.%fZ}"


@contextmanager
def _temporary_folder(run: Path) -> Iterator[Path]:
    """Only under the ledger's lock, by which leftovers are known as such."""
    folder = run / f"{_WAITING}part"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make_room(folder: Path, now: datetime) -> Path | None:
    """Moves an earlier submission out of the way; returns where it is now."""
    if not folder.exists():
        return None
    stamp = f"{folder.name}-{now.astimezone(UTC):%Y%m%dT%H%M%SZ}"
    names = (stamp if number == 1 else f"{stamp}-{number}" for number in range(1, 1000))
    kept = next(folder.with_name(name) for name in names if not folder.with_name(name).exists())
    folder.rename(kept)
    return kept


def _tell(
    console: Console,
    folder: Path,
    manifest: str,
    ledger: Ledger,
    settings: SubmitSettings,
    now: datetime,
) -> None:
    quota = ledger.quota(settings.phase, now)
    left = max(0, quota.limit - quota.made)
    tell_line(console, f"wrote {folder}, verified; manifest SHA-256 {manifest}")
    tell_line(
        console,
        f"{settings.phase} phase: {quota.made} of {quota.limit} submissions made today "
        f"({ledger.zone.key}), {left} left; those of other runs are not counted here, but by the "
        "competition",
    )


def _tell_begun(console: Console, folder: Path, begun: Entry, ledger: Ledger) -> None:
    tell_line(
        console,
        f"{folder} was verified and counted at "
        f"{begun.time.astimezone(ledger.zone).isoformat(timespec='minutes')} by a process that "
        "ended before it could say so: it is in its place now, and not counted again; manifest "
        f"SHA-256 {file_sha256(folder / MANIFEST)}",
    )
