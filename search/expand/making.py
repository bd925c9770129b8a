"""One sample after another: sources are read, parameters drawn or given, files written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from joblib import Parallel, cpu_count, delayed
from PIL import Image, features
from pydantic import TypeAdapter, ValidationError

from search.data.generated import Head, Sample, Source
from search.expand import kinds
from search.expand.kinds import KINDS, Parameters, Unchanged, draw, render, to_bytes
from search.expand.plan import Original, Planned, seed_of
from search.machine.files import file_sha256, first_problem, write_atomically
from search.pixels import images
from search.pixels.images import BrokenImage, read_image

ATTEMPTS = 10
"""Draws of a sample's parameters before its sources are given up: flat ones show no change."""


@dataclass(frozen=True)
class Failure:
    """A sample that could not be made."""

    img_name: str
    reason: str


@dataclass(frozen=True)
class Work:
    """A sample to make; as `expected`, if it was made before."""

    planned: Planned
    expected: Sample | None = None


def again(samples: Iterable[Sample], path_of: Callable[[str], str]) -> list[Work]:
    """What makes samples again; `path_of` tells where an image of a name lies."""

    def planned(sample: Sample) -> Planned:
        sources = tuple(
            Original(source.img_name, path_of(source.img_name), source.target)
            for source in sample.sources
        )
        what = (sample.img_name, sample.kind, sample.target, sample.group, sample.method)
        return Planned(*what, sources)

    return [Work(planned(sample), sample) for sample in samples]


def make_samples(
    works: Sequence[Work], seed: int, folder: Path, workers: int | None
) -> Generator[Sample | Failure, None, None]:
    """Makes samples, several at a time, and gives each as it is done.

    Threads share the work: Pillow and NumPy, which do nearly all of it, let others run meanwhile.

    Args:
        works: what to make.
        seed: of the parameters that are drawn.
        folder: where the files are written.
        workers: threads; None takes one a core.
    """
    threads = min(workers or cpu_count(), max(1, len(works)))
    parallel = Parallel(threads, prefer="threads", return_as="generator_unordered", batch_size=1)
    done: Generator[Sample | Failure, None, None] = parallel(
        delayed(make_sample)(work, seed, folder) for work in works
    )
    return done


def make_sample(work: Work, seed: int, folder: Path) -> Sample | Failure:
    """Makes one sample and writes its file; nothing is written if its bytes are not those
    expected."""
    planned, expected = work.planned, work.expected
    try:
        sources = tuple(_identify(source) for source in planned.sources)
        if expected is not None:
            _check_sources(sources, expected.sources)
        pixels = [read_image(source.path) for source in planned.sources]
        if expected is None:
            content, parameters = _drawn(planned, pixels, seed)
        else:
            parameters = _parameters(expected)
            content = to_bytes(render(pixels, parameters))
    except (_Failed, Unchanged) as error:
        return Failure(planned.img_name, str(error))
    except BrokenImage as error:
        names = " or ".join(source.img_name for source in planned.sources)
        return Failure(planned.img_name, f"{names} cannot be read: {error}")
    sample = Sample(
        img_name=planned.img_name,
        kind=planned.kind,
        target=1 if planned.target else 0,
        group=planned.group,
        sources=sources,
        parameters=asdict(parameters),
        sha256=hashlib.sha256(content).hexdigest(),
        method=planned.method,
    )
    if expected is not None and sample.sha256 != expected.sha256:
        return Failure(planned.img_name, OTHER_BYTES)
    write_atomically(folder / planned.img_name, lambda path: _write(path, content))
    return sample


OTHER_BYTES = "its bytes are others"


class _Failed(Exception):  # noqa: N818 - of one sample
    """Why one cannot be made."""


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _identify(source: Original) -> Source:
    try:
        sha256 = file_sha256(Path(source.path))
    except OSError as error:
        raise _Failed(f"{source.img_name} cannot be read: {error.strerror}") from None
    return Source(source.img_name, 1 if source.target else 0, sha256)


def _check_sources(found: Sequence[Source], expected: Sequence[Source]) -> None:
    for one, other in zip(found, expected, strict=True):
        if one.sha256 != other.sha256:
            raise _Failed(f"{one.img_name} has changed")


def _drawn(planned: Planned, pixels: list[Image.Image], seed: int) -> tuple[bytes, Parameters]:
    generator = np.random.default_rng(seed_of(planned, seed))
    for _ in range(ATTEMPTS):
        parameters = draw(planned.kind, generator)
        try:
            return to_bytes(render(pixels, parameters)), parameters
        except Unchanged as error:
            reason = str(error)
    names = " and ".join(source.img_name for source in planned.sources)
    raise _Failed(f"nothing that was drawn for {names} will do: {reason}")


def _parameters(sample: Sample) -> Parameters:
    if sample.kind not in KINDS:
        raise _Failed(f"its kind '{sample.kind}' is unknown to this version of onefold")
    try:
        found: Parameters = TypeAdapter(KINDS[sample.kind]).validate_python(sample.parameters)
    except ValidationError as error:
        raise _Failed(f"its parameters are none of this version: {first_problem(error)}") from None
    return found


def tool_files() -> dict[str, Path]:
    """The code that computes the bytes of samples, by the names that it has in tool/."""
    return {Path(module.__file__ or "").name: Path(module.__file__ or "") for module in TOOL}


TOOL = (kinds, images)
"""From the pixels' reading to the file's bytes."""


def new_head(seed: int, plan: str) -> Head:
    """The head of a manifest that is written here and now."""
    return Head(
        version=version("onefold"),
        tool={name: file_sha256(path) for name, path in tool_files().items()},
        libraries=libraries(),
        seed=seed,
        plan=plan,
    )


def libraries() -> dict[str, str]:
    """Versions that bytes may depend on."""
    jpeg = features.version("libjpeg_turbo") or features.version("jpg") or "unknown"
    return {"pillow": version("pillow"), "libjpeg": jpeg, "numpy": version("numpy")}


def differences(head: Head) -> list[str]:
    """In what this machine differs from that of a manifest: "pillow 11.0, here 13.0"."""
    here = new_head(head.seed, head.plan)
    told = [
        f"{name} {then}, here {here.libraries.get(name, 'absent')}"
        for name, then in head.libraries.items()
        if here.libraries.get(name) != then
    ]
    if here.tool != head.tool:
        told.append(f"onefold {head.version} with other code in tool/, here {here.version}")
    return told
