"""`search expand`: makes generated samples, or those of a manifest again, in a folder of their own.

A sample that is made is recorded in unfinished.jsonl at once; manifest.json takes its place when
all are. So a command that was stopped goes on with what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import fields, replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from search.data.demo import make_demo
from search.data.generated import (
    GROUPS,
    IMAGES,
    LABELS,
    MANIFEST,
    TOOL,
    UNFINISHED,
    Head,
    Manifest,
    Sample,
    check_tool,
    hashes,
    read_manifest,
    write_manifest,
    write_tables,
)
from search.data.inputs import read_splits
from search.errors import UserError
from search.expand.journal import SampleJournal
from search.expand.making import (
    Failure,
    Work,
    again,
    differences,
    make_samples,
    new_head,
    tool_files,
)
from search.expand.plan import DEFAULT_SHARE, Planned, plan_samples, plan_sha256, read_kinds
from search.machine.files import (
    cache_folder,
    copy_atomically,
    drop_unfinished_writes,
    file_sha256,
    short_path,
)
from search.machine.interruption import Interruption
from search.machine.progress import Bars, tell_line
from search.settings.saved import load_settings
from search.settings.subcommands import ExpandSettings

LOCK = ".lock"

OWN = frozenset({IMAGES, TOOL, LABELS, GROUPS, MANIFEST, UNFINISHED, LOCK})
"""What may lie in a folder that is written to."""

MOST_TOLD = 3
"""Samples that are told of those that could not be made."""


def run_expand(settings: ExpandSettings, console: Console) -> Path:
    """Makes generated samples in a folder, or goes on with them; returns the folder.

    Args:
        settings: see there.
        console: shows the progress.

    Raises:
        UserError: for bad input, before anything is written; or if samples of a manifest cannot be
            made again as they were, after the others are written.
        Interrupted: after Ctrl-C; the same command goes on.
    """
    out = settings.out.expanduser().absolute()
    _check_out(out)
    if settings.manifest is None:
        manifest = _expand(settings, out, console)
    else:
        manifest = _repeat(settings, settings.manifest.expanduser().absolute(), out, console)
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in manifest.kinds.items())
    tell_line(
        console,
        f"{short_path(out)} holds {len(manifest.samples):,} samples ({kinds}), manifest SHA-256 "
        f"{file_sha256(out / MANIFEST)}",
    )
    tell_line(console, f"train on them with: python -m search run --generated {short_path(out)}")
    return out


def _expand(settings: ExpandSettings, out: Path, console: Console) -> Manifest:
    """Makes samples of the images of fit, as many as are missing."""
    planned = _plan(settings, console)
    head = new_head(settings.seed, plan_sha256(planned))
    with _owned(out), SampleJournal(out / UNFINISHED) as journal:
        finished = read_manifest(out / MANIFEST) if (out / MANIFEST).exists() else None
        begun = journal.head if finished is None else finished.head
        if begun is not None:
            _check_same(out, begun, head)
        if finished is not None:
            paths = {source.img_name: source.path for one in planned for source in one.sources}
            _mend(out, finished, paths.__getitem__, settings.workers, console)
            (out / UNFINISHED).unlink(missing_ok=True)
            return finished
        samples = _make_missing(out, head, planned, journal, settings.workers, console)
        manifest = Manifest(head, samples)
        _complete(out, manifest, tool_files())
        write_manifest(out / MANIFEST, manifest)
        (out / UNFINISHED).unlink()
    return manifest


def _plan(settings: ExpandSettings, console: Console) -> tuple[Planned, ...]:
    if settings.run is None:
        # Where these images would be searched there may be a run, which is not what is asked for.
        search = replace(settings.images_settings().resolved(), out=None)
    else:
        # Samples of samples would have no source that the rules know.
        search = replace(load_settings(settings.run), generated=None)
    fit = read_splits(search, lambda line: tell_line(console, line)).fit
    kinds = read_kinds(settings.kinds, fit)
    share = DEFAULT_SHARE if settings.share is None else settings.share
    count = settings.count or max(len(kinds), round(share * len(fit)))
    return plan_samples(fit, kinds, count, settings.seed)


def _make_missing(
    out: Path,
    head: Head,
    planned: Sequence[Planned],
    journal: SampleJournal,
    workers: int | None,
    console: Console,
) -> tuple[Sample, ...]:
    """Makes what the journal lacks; returns all samples, in the plan's order."""
    journal.begin(head, journal.samples.keys() - _missing(out, journal.samples.values()))
    works = [Work(one) for one in planned if one.img_name not in journal.samples]
    failures = _make(out, works, head.seed, workers, console, journal.add)
    samples = [journal.samples[one.img_name] for one in planned if one.img_name in journal.samples]
    if not samples:
        raise UserError(
            f"samples must be made of images that can be read and altered, but none of "
            f"{len(planned):,} could: {_examples(failures)}; mend the images, or choose other "
            "--kinds"
        )
    if failures:
        tell_line(
            console,
            f"{len(failures):,} of {len(planned):,} samples cannot be made and are left out: "
            f"{_examples(failures)}",
        )
    return tuple(samples)


def _repeat(settings: ExpandSettings, path: Path, out: Path, console: Console) -> Manifest:
    """Makes the samples of a manifest again."""
    manifest = read_manifest(path)
    tool = _tool_of(path, manifest)
    folder = _images_of(settings)
    if not folder.is_dir():
        raise UserError(f"{folder} must be the folder of the training images, found none there")
    with _owned(out):
        is_other = (out / MANIFEST).exists() and file_sha256(out / MANIFEST) != file_sha256(path)
        if is_other or (out / UNFINISHED).exists():
            raise UserError(f"{out} holds samples of another manifest; choose another --out")
        _mend(out, manifest, partial(_path_in, folder), settings.workers, console)
        _complete(out, manifest, tool)
        copy_atomically(path, out / MANIFEST)
    return manifest


def _tool_of(path: Path, manifest: Manifest) -> dict[str, Path]:
    """The files of a manifest's tool: those beside it, or this version's own if they are the
    same. They are kept with the samples, and never run."""
    beside = path.parent / TOOL
    if beside.is_dir():
        check_tool(path.parent, manifest)
        return {name: beside / name for name in manifest.head.tool}
    own = tool_files()
    if {name: file_sha256(file) for name, file in own.items()} != manifest.head.tool:
        raise UserError(
            f"{path} was written by other code ({'; '.join(differences(manifest.head))}), which "
            f"must lie beside it in {TOOL}/; copy that folder, too"
        )
    return own


def _images_of(settings: ExpandSettings) -> Path:
    """The folder of the training images."""
    if settings.train_images is not None:
        return settings.train_images.expanduser().absolute()
    run = None if settings.run is None else load_settings(settings.run)
    if run is None or run.train_images is None:
        return make_demo(cache_folder() / "demo").train_images
    return run.train_images


def _path_in(folder: Path, name: str) -> str:
    return str(folder / name.replace("\\", "/"))


def _mend(
    out: Path,
    manifest: Manifest,
    path_of: Callable[[str], str],
    workers: int | None,
    console: Console,
) -> None:
    """Makes samples again that are absent or changed.

    Raises:
        UserError: if one does not come out as it was.
    """
    missing = _missing(out, manifest.samples)
    works = again([one for one in manifest.samples if one.img_name in missing], path_of)
    failures = _make(out, works, manifest.head.seed, workers, console)
    if failures:
        told = differences(manifest.head)
        raise UserError(
            f"samples must come out with the same bytes, {len(failures):,} of {len(works):,} do "
            f"not: {_examples(failures)}"
            + (f"; they were made with {'; '.join(told)}: use those versions" if told else "")
        )


def _make(
    out: Path,
    works: Sequence[Work],
    seed: int,
    workers: int | None,
    console: Console,
    on_made: Callable[[Sample], object] = lambda _: None,
) -> list[Failure]:
    """Makes samples, with a bar; returns those that could not be made, in the order of their
    names."""
    interruption = Interruption()
    failures: list[Failure] = []
    with (
        interruption.handling_signals(),
        Bars(console, time_left=True, transient=True) as bars,
        closing(make_samples(works, seed, out / IMAGES, workers)) as results,
    ):
        bar = bars.add("making samples", len(works), unit="samples", plain="made")
        for number, result in enumerate(results, 1):
            if isinstance(result, Failure):
                failures.append(result)
            else:
                on_made(result)
            bar.update(number)
            if interruption.requested and number < len(works):
                tell_line(
                    console,
                    f"interrupted after {number:,} of {len(works):,} samples: the same command "
                    "goes on",
                )
                interruption.check()
    return sorted(failures, key=lambda failure: failure.img_name)


def _missing(out: Path, samples: Iterable[Sample]) -> set[str]:
    """Names of the samples whose files are absent or changed."""
    expected = {sample.img_name: sample.sha256 for sample in samples}
    found = hashes({name: out / IMAGES / name for name in expected})
    return {name for name, sha256 in expected.items() if found[name] != sha256}


def _complete(out: Path, manifest: Manifest, tool: Mapping[str, Path]) -> None:
    """Writes all but the manifest."""
    (out / TOOL).mkdir(exist_ok=True)
    for name, path in tool.items():
        copy_atomically(path, out / TOOL / name)
    write_tables(out, manifest.samples)


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out must be a folder, found the file {out}")
    others = sorted(path.name for path in out.glob("*") if not _is_own(path.name))
    if others:
        raise UserError(
            f"--out must be a folder of generated samples alone, but {out} holds {others[0]}; "
            "choose another one"
        )


def _is_own(name: str) -> bool:
    """Whether a file may lie there, or is what a killed writer left of one that may."""
    return name in OWN or any(fnmatch(name, f".{own}.*.part") for own in OWN)


def _check_same(out: Path, found: Head, wanted: Head) -> None:
    """
    Raises:
        UserError: if a folder holds samples that this command would not make.
    """
    differing = [f.name for f in fields(Head) if getattr(found, f.name) != getattr(wanted, f.name)]
    if differing:
        told = {"plan": "images, --kinds or number of samples", "tool": "code of the tool"}
        names = ", ".join(told.get(name, name) for name in differing)
        raise UserError(
            f"{out} holds samples of other settings ({names}); choose another --out, or delete it"
        )


@contextmanager
def _owned(out: Path) -> Iterator[None]:
    """Makes the folder and keeps other commands out of it."""
    try:
        (out / IMAGES).mkdir(parents=True, exist_ok=True)
        with FileLock(out / LOCK, timeout=0):
            for folder in (out, out / IMAGES, out / TOOL):
                drop_unfinished_writes(folder)
            yield
    except Timeout:
        raise UserError(
            f"{out} must be written by one process at a time, and another one is at it; wait for "
            "it, or choose another --out"
        ) from None
    except OSError as error:
        raise UserError(
            f"{out} must take what is written, found: {error}; make room, and the same command "
            "goes on"
        ) from error


def _examples(failures: Sequence[Failure]) -> str:
    shown = [f"{one.img_name}: {one.reason}" for one in failures[:MOST_TOLD]]
    return ", ".join(shown) + (", ..." if len(failures) > MOST_TOLD else "")
