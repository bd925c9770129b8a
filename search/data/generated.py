"""Generated samples: their manifest, and how they join the images that are trained on.

`search expand` makes them (see `search.expand`), each of images of fit. A set of them is a folder:

    images/          the samples
    labels.txt       img_name,target; for any tool
    groups.csv       img_name,group: those of their sources
    tool/            the code that computed their bytes
    manifest.json    written last: what each was made of, with which parameters, and its SHA-256

The rules allow them if the tool that made them is submitted. So the manifest and tool/ stay with
what was trained on them, in a folder `generated` of the run and of the submission.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from search.data.labels import NO_METHOD, leaves_folder
from search.errors import UserError
from search.machine.files import (
    copy_atomically,
    file_sha256,
    first_problem,
    read_json,
    write_text_atomically,
)

MANIFEST, UNFINISHED = "manifest.json", "unfinished.jsonl"
IMAGES, TOOL = "images", "tool"
LABELS, GROUPS = "labels.txt", "groups.csv"

GENERATED = "generated"
"""Where a manifest and its tool lie, in a run folder and in a submission's reproduce/; and what the
names of samples begin with where they are trained on."""

FORMAT = 1
"""Of the manifest."""

_STRICT = ConfigDict(extra="forbid")


def _in_folder(name: str) -> str:
    if not name or leaves_folder(name):
        raise ValueError(f"must be relative to its folder and without '..', found '{name}'")
    return name


def _plain(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise ValueError(f"must be a plain file name, found '{name}'")
    return name


NameInFolder = Annotated[str, AfterValidator(_in_folder)]
PlainName = Annotated[str, AfterValidator(_plain)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Target = Literal[0, 1]


@dataclass(frozen=True, config=_STRICT)
class Source:
    """An image of fit that a sample was made of."""

    img_name: NameInFolder
    target: Target
    sha256: Sha256  # of its file


@dataclass(frozen=True, config=_STRICT)
class Sample:
    """A generated image."""

    img_name: PlainName  # in images/
    kind: str
    target: Target
    group: str
    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    parameters: dict[str, Any]  # see `search.expand.kinds`
    sha256: Sha256  # of its file
    method: str = ""  # of forgery, where the images had one


@dataclass(frozen=True, config=_STRICT)
class Head:
    """What all samples of a manifest have in common."""

    version: str
    """Of onefold."""
    tool: dict[PlainName, Sha256]
    """The files in tool/: the code that computed the bytes."""
    libraries: dict[str, str]
    """Versions that decide about bytes as well."""
    seed: int
    plan: Sha256
    """Of what was asked for: kinds, names, sources."""
    format: int = FORMAT


@dataclass(frozen=True, config=_STRICT)
class Manifest:
    """The content of manifest.json."""

    head: Head
    samples: tuple[Sample, ...]

    @property
    def kinds(self) -> dict[str, int]:
        """How many samples there are of each kind."""
        return dict(Counter(sample.kind for sample in self.samples))


@dataclass(frozen=True)
class Generated:
    """The generated samples among the images that are trained on."""

    manifest_sha256: str
    version: str
    seed: int
    kinds: dict[str, int] = field(default_factory=dict)
    left_out: int = 0
    """Samples of the manifest whose sources are not in fit as they were."""

    @property
    def samples(self) -> int:
        """How many are trained on."""
        return sum(self.kinds.values())

    def to_dict(self) -> dict[str, Any]:
        """For data.yaml."""
        return {**asdict(self), "samples": self.samples}


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file.

    Raises:
        UserError: if the file is absent, not yet written, no manifest, or one of another format.
    """
    try:
        content = read_json(path)
    except FileNotFoundError:
        if (path.parent / UNFINISHED).exists():
            raise UserError(
                f"{path.parent} must hold generated samples that are complete, but they are not: "
                f"the same `python -m search expand` goes on with them"
            ) from None
        raise UserError(
            f"{path} must be the manifest of generated samples, found nothing there; "
            "`python -m search expand` makes them, and --from a copy of the manifest makes them "
            "again"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} must be a manifest that onefold wrote, found: {' '.join(str(error).split())}"
        ) from None
    head = content.get("head")
    found = head.get("format") if isinstance(head, dict) else None
    if found is not None and found != FORMAT:
        raise UserError(
            f"{path} must be a manifest of format {FORMAT}, found {found}, which another version "
            "of onefold wrote: use that one"
        )
    try:
        manifest = TypeAdapter(Manifest).validate_python(content)
    except ValidationError as error:
        raise UserError(
            f"{path} must be a manifest that onefold wrote: {first_problem(error)}"
        ) from None
    repeated = [name for name, n in Counter(s.img_name for s in manifest.samples).items() if n > 1]
    if repeated:
        raise UserError(f"{path} must list a sample once, found '{repeated[0]}' twice")
    return manifest


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Writes manifest.json, a sample a line."""
    samples = ",\n".join(sample_line(sample) for sample in manifest.samples)
    head = json.dumps(asdict(manifest.head), ensure_ascii=False)
    write_text_atomically(path, f'{{"head": {head},\n"samples": [\n{samples}\n]}}\n')


def sample_line(sample: Sample) -> str:
    """A sample as JSON without a line break."""
    return json.dumps(asdict(sample), ensure_ascii=False)


def write_tables(folder: Path, samples: Iterable[Sample]) -> None:
    """Writes labels.txt and groups.csv of a set, which has the methods if there are any."""
    columns = ["img_name", "target", "group", "method"]
    rows = [[getattr(sample, column) for column in columns] for sample in samples]
    table = pd.DataFrame(rows, columns=columns)
    grouped = columns[:1] + columns[2 : 4 if table["method"].any() else 3]
    for name, kept in ((LABELS, columns[:2]), (GROUPS, grouped)):
        write_text_atomically(folder / name, table[kept].to_csv(index=False, lineterminator="\n"))


def join(
    fit: pd.DataFrame, folder: Path, tell: Callable[[str], None] = lambda _: None
) -> tuple[pd.DataFrame, Generated]:
    """The images of fit with the generated samples that were made of them alone.

    A sample is taken if each of its sources is in fit: under its name, with its label, and with the
    bytes that it had. So nothing of select or report gets into a training, however the images were
    divided when the samples were made.

    Args:
        fit: label table of what is trained on.
        folder: a set of generated samples.
        tell: given a line on samples that are left out.

    Raises:
        UserError: if the folder holds no complete set, a sample is absent or changed, or none can
            be taken.
    """
    manifest = read_manifest(folder / MANIFEST)
    check_tool(folder, manifest)
    rows = fit.set_index("img_name")
    paths, targets = rows["path"].to_dict(), rows["target"].to_dict()
    named = [
        sample
        for sample in manifest.samples
        if all(targets.get(source.img_name) == source.target for source in sample.sources)
    ]
    sources = {source.img_name: source.sha256 for sample in named for source in sample.sources}
    found = hashes({name: Path(paths[name]) for name in sources})
    changed = {name for name, sha256 in sources.items() if found[name] != sha256}
    taken = [
        sample
        for sample in named
        if not any(source.img_name in changed for source in sample.sources)
    ]
    _tell_left_out(manifest, len(named), len(taken), tell)
    if not taken:
        raise UserError(
            f"{folder} must hold samples made of images of fit, but none of its "
            f"{len(manifest.samples):,} was; make some with `python -m search expand`, from the "
            "same label files and with the same --seed, or with --run"
        )
    _check_samples(folder, taken)
    generated = Generated(
        file_sha256(folder / MANIFEST),
        manifest.head.version,
        manifest.head.seed,
        dict(Counter(sample.kind for sample in taken)),
        len(manifest.samples) - len(taken),
    )
    return pd.concat([fit, _table(taken, folder, rows)], ignore_index=True), generated


def _table(samples: list[Sample], folder: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of samples, in the columns of the label table whose `rows`, by name, are their
    sources."""
    first = rows.loc[[sample.sources[0].img_name for sample in samples]]
    table = pd.DataFrame(
        {
            "img_name": [f"{GENERATED}/{sample.img_name}" for sample in samples],
            "path": [_path(folder, sample) for sample in samples],
            "target": [sample.target for sample in samples],
            # As fit has it now: the group file may be another.
            "group": first["group"].tolist(),
        }
    )
    table["method"] = NO_METHOD
    if (rows["method"] != NO_METHOD).any():
        table["method"] = [
            method_of(sample.kind, sample.target, sample.sources[0].target, method)
            for sample, method in zip(samples, first["method"].tolist(), strict=True)
        ]
    return table


def sample_paths(folder: Path) -> list[str]:
    """Paths of all samples of a set, whichever of them can be trained on; raises as
    `read_manifest`."""
    return [_path(folder, sample) for sample in read_manifest(folder / MANIFEST).samples]


def _path(folder: Path, sample: Sample) -> str:
    return str(folder.absolute() / IMAGES / sample.img_name)


def method_of(kind: str, target: int, source_target: int, source_method: str) -> str:
    """The forgery method of a sample: its source's where that is as real or as fake as before."""
    return source_method if target == source_target else kind


def _tell_left_out(manifest: Manifest, named: int, taken: int, tell: Callable[[str], None]) -> None:
    total = len(manifest.samples)
    reasons = [
        (total - named, "made of images that are not in fit, or have another label there"),
        (named - taken, "made of images that have changed since"),
    ]
    for count, reason in reasons:
        if count:
            tell(f"{count:,} of {total:,} generated samples are left out: {reason}")


def _check_samples(folder: Path, samples: list[Sample]) -> None:
    """
    Raises:
        UserError: if the bytes of a sample are not those of the manifest.
    """
    found = hashes({sample.img_name: folder / IMAGES / sample.img_name for sample in samples})
    wrong = [sample.img_name for sample in samples if found[sample.img_name] != sample.sha256]
    if wrong:
        state = "absent" if found[wrong[0]] is None else "changed"
        raise UserError(
            f"generated samples must be as {folder / MANIFEST} says, {len(wrong):,} of "
            f"{len(samples):,} are not: {wrong[0]} is {state}; make them again with `python -m "
            "search expand --from MANIFEST --out ANOTHER_FOLDER`"
        )


def hashes(paths: Mapping[str, Path]) -> dict[str, str | None]:
    """SHA-256 of files by name; None where there is none that can be read."""

    def of(path: Path) -> str | None:
        try:
            return file_sha256(path)
        except OSError:
            return None

    with ThreadPoolExecutor() as pool:
        return dict(zip(paths, pool.map(of, paths.values()), strict=True))


def keep_record(folder: Path, owner: Path) -> None:
    """Copies the manifest of a set and its tool into `generated` of a run folder.

    Raises:
        UserError: if the tool is absent or not as the manifest says.
    """
    manifest = read_manifest(folder / MANIFEST)
    check_tool(folder, manifest)
    (owner / GENERATED / TOOL).mkdir(parents=True, exist_ok=True)
    for name in record_files(manifest):
        copy_atomically(folder / name, owner / GENERATED / name)


def record_files(manifest: Manifest) -> Iterable[str]:
    """Names of the manifest and of the files of its tool, relative to their folder."""
    return (*(f"{TOOL}/{name}" for name in sorted(manifest.head.tool)), MANIFEST)


def check_tool(folder: Path, manifest: Manifest) -> None:
    """
    Raises:
        UserError: if tool/ lacks a file of the manifest, or has another.
    """
    found = hashes({name: folder / TOOL / name for name in manifest.head.tool})
    for name, sha256 in manifest.head.tool.items():
        if found[name] != sha256:
            state = "absent" if found[name] is None else "another"
            raise UserError(
                f"{folder / TOOL} must hold the code that made the samples, as {MANIFEST} says, "
                f"but {name} is {state}; restore it from a copy"
            )
