"""Which samples are made of which images: before any is opened, from the label table and a seed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from search.data.generated import method_of
from search.data.labels import NO_METHOD
from search.errors import UserError
from search.expand.kinds import KINDS
from search.machine.files import suggestion
from search.pixels.loading.pairing import GroupedReals

DEFAULT_SHARE = 0.25
"""Samples to each image of fit, unless --count or --share says it."""

LONGEST_STEM = 60
"""Characters of its source's name that a sample's name begins with."""

_Rows = NDArray[np.int64]
_Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class Original:
    """An image of fit."""

    img_name: str
    path: str
    target: int


@dataclass(frozen=True)
class Planned:
    """A sample that is to be made."""

    img_name: str
    kind: str
    target: int
    group: str
    method: str  # "" where fit has none
    sources: tuple[Original, ...]


def read_kinds(kinds: str | None, fit: pd.DataFrame) -> tuple[str, ...]:
    """The kinds that --kinds names; by default those that are fakes and that fit has images for.

    Raises:
        UserError: if a kind is unknown.
    """
    if kinds is None:
        mixable = len(_pairs(fit, np.random.default_rng(0))) > 0
        return ("self-blended", "mixed") if mixable else ("self-blended",)
    wanted = tuple(dict.fromkeys(name.strip() for name in kinds.split(",")))
    for name in wanted:
        if name not in KINDS:
            raise UserError(
                f"--kinds must be among {', '.join(KINDS)}, found '{name}'{suggestion(name, KINDS)}"
            )
    return wanted


def plan_samples(
    fit: pd.DataFrame, kinds: Sequence[str], count: int, seed: int
) -> tuple[Planned, ...]:
    """As many samples as asked for, of each kind alike, with as many of each source as can be.

    Args:
        fit: label table of what is trained on.
        kinds: see `search.expand.kinds`.
        count: of samples.
        seed: of the choice.

    Raises:
        UserError: if fit has no image that a kind can be made of, or there are fewer samples than
            kinds.
    """
    if count < len(kinds):
        raise UserError(
            f"each kind must have a sample, found {count} for {len(kinds)} kinds "
            f"({', '.join(kinds)}); raise --count or --share"
        )
    columns: _Columns = fit.to_dict("list")  # type: ignore[assignment]
    has_methods = bool((fit["method"] != NO_METHOD).any())
    planned: list[Planned] = []
    for number, kind in enumerate(kinds):
        # By the kind, not its place: other kinds beside it change nothing.
        generator = np.random.default_rng([seed, list(KINDS).index(kind)])
        share = count // len(kinds) + (number < count % len(kinds))
        sources = _sources(fit, kind, share, generator)
        for place in range(share):
            copy, row = divmod(place, len(sources))
            planned.append(
                _planned(columns, kind, sources[row].tolist(), copy, has_methods=has_methods)
            )
    return tuple(planned)


def seed_of(sample: Planned, seed: int) -> list[int]:
    """Of a sample's own parameters: the others, and their order, change nothing."""
    digest = hashlib.sha256(sample.img_name.encode("utf-8")).digest()
    return [seed, int.from_bytes(digest[:8], "big")]


def plan_sha256(planned: Sequence[Planned]) -> str:
    """SHA-256 in hex of a plan, without the place where its images lie."""
    digest = hashlib.sha256()
    for sample in planned:
        content = asdict(sample)
        for source in content["sources"]:
            del source["path"]
        digest.update(json.dumps(content, sort_keys=True).encode())
    return digest.hexdigest()


def _sources(fit: pd.DataFrame, kind: str, count: int, generator: np.random.Generator) -> _Rows:
    """Rows of fit in the order in which they are used, (N, 1) or, of a real and a fake, (N, 2)."""
    targets = fit["target"].to_numpy()
    if kind == "self-blended":
        reals = np.flatnonzero(targets == 0)
        if not len(reals):
            raise UserError(
                "self-blended samples are made of real images, but fit has none; add real images, "
                "or choose other --kinds"
            )
        return generator.permutation(reals)[:, None]
    if kind == "mixed":
        pairs = _pairs(fit, generator)
        if not len(pairs):
            raise UserError(
                "mixed samples are made of a real and a fake of one group, but no group of fit has "
                "both; add --train-groups, or choose other --kinds"
            )
        return generator.permutation(pairs)
    return _in_proportion(targets, min(count, len(targets)), generator)[:, None]


def _pairs(fit: pd.DataFrame, generator: np.random.Generator) -> _Rows:
    """Rows (N, 2) of each fake and a real image of its group; fakes without one are left out."""
    targets = fit["target"].to_numpy()
    groups = pd.factorize(fit["group"])[0]
    reals = GroupedReals.of(groups, generator.permutation(np.flatnonzero(targets == 0)))
    fakes = np.flatnonzero(targets == 1)
    fakes = fakes[reals.counts[groups[fakes]] > 0]
    of_fakes = groups[fakes]
    drawn = generator.integers(0, np.maximum(1, reals.counts[of_fakes]))
    return np.stack([reals.rows[reals.starts[of_fakes] + drawn], fakes], axis=1)


def _in_proportion(targets: _Rows, count: int, generator: np.random.Generator) -> _Rows:
    """Rows drawn so that both classes have the same share of theirs, to the nearest image: what all
    of them have in common must not tell the classes apart."""
    fakes = round(count * float(targets.mean()))
    rows = [
        generator.permutation(np.flatnonzero(targets == target))[:number]
        for target, number in ((0, count - fakes), (1, fakes))
    ]
    return generator.permutation(np.concatenate(rows))


def _planned(fit: _Columns, kind: str, rows: list[int], copy: int, *, has_methods: bool) -> Planned:
    sources = tuple(
        Original(*(fit[column][row] for column in ("img_name", "path", "target"))) for row in rows
    )
    first, last = rows[0], rows[-1]
    target = sources[0].target if kind == "recompressed" else 1
    method = NO_METHOD
    if has_methods:
        method = method_of(kind, target, sources[0].target, fit["method"][first])
    return Planned(
        # A mixed one is called after the fake, of which each has its own.
        img_name=sample_name(fit["img_name"][last], kind, copy),
        kind=kind,
        target=target,
        group=fit["group"][last],
        method=method,
        sources=sources,
    )


def sample_name(source: str, kind: str, copy: int) -> str:
    """A plain file name from that of a source, which may have folders, and a number."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", source.rpartition(".")[0] or source)[-LONGEST_STEM:]
    # Names may differ in what was replaced, cut off, or is no difference to a file system.
    digest = hashlib.sha256(source.encode("utf-8")).hexdigest()[:8]
    return f"{stem.lstrip('-') or 'image'}-{digest}-{kind}-{copy}.bmp"
