"""The competition's rules as code: parameter budget and pretraining -> a Verdict with reasons."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, distributions
from typing import Any, get_args

import timm
import torch
from joblib import Memory
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import nn

from search.catalogue.backbones import Backbone, Catalogue, WeightsSource
from search.catalogue.provenance import provenance
from search.catalogue.timm_models import build_on_meta
from search.catalogue.weights import fits_image_size
from search.errors import UserError
from search.machine.files import cache_folder, suggestion


@dataclass(frozen=True)
class Counts:
    """Size and cost of a network.

    Attributes:
        params_thop: parameters as the rule's counter sees them; it misses some, and counts a module
            with two parents twice.
        params_exact: every parameter once.
        macs: multiply-accumulates of one image, by thop.
    """

    params_thop: int
    params_exact: int
    macs: int


@dataclass(frozen=True)
class Verdict:
    """Whether the rules allow a backbone at an image size, and why not.

    Attributes:
        backbone: name in the backbones file.
        allowed: no reason speaks against it.
        reasons: one line for each rule that is broken.
        params_thop: parameters by thop, with two classes; 0 if it cannot be built.
        params_exact: parameters counted exactly, likewise.
        gmacs: 1e9 multiply-accumulates of one image.
        pretraining: "ImageNet-1K", "ImageNet-1K (declared)", "none (from scratch)", "unknown"...
        counter: distribution and version that counted `params_thop`.
        image_size: side in pixels.
    """

    backbone: str
    allowed: bool
    reasons: tuple[str, ...]
    params_thop: int
    params_exact: int
    gmacs: float
    pretraining: str
    counter: str
    image_size: int


def judge(backbone: Backbone, image_size: int, budget: int, *, weights: WeightsSource) -> Verdict:
    """Applies every rule to a backbone before anything of it is trained.

    The counts are kept on disk for each pair of architecture and size and the versions of timm,
    torch and the counter, so that a second run pays nothing.

    Args:
        backbone: a record of the backbones file.
        image_size: side in pixels.
        budget: largest number of parameters, for both counts.
        weights: where starting weights come from; with "none" no pretraining is judged.
    """
    measured = _measured(backbone, image_size)
    counts = measured.counts
    reasons = [measured.problem] if measured.problem else []
    reasons += over_budget(counts, budget)
    pretraining = "none (from scratch)"
    if weights != "none":
        found = provenance(backbone.name, backbone.pretraining)
        pretraining = found.pretraining
        if not found.allowed:
            reasons.append(found.reason)
        if weights == "hub" and not backbone.in_timm:
            reasons.append("its weights are not on timm's hub: they need --weights-dir")
        if not measured.takes_weights and not measured.problem:
            reasons.append(
                f"its weights are bound to {backbone.fixed_size} px and do not load at {image_size}"
            )
    return Verdict(
        backbone=backbone.name,
        allowed=not reasons,
        reasons=tuple(reasons),
        params_thop=counts.params_thop,
        params_exact=counts.params_exact,
        gmacs=counts.macs / 1e9,
        pretraining=pretraining,
        counter=counter(),
        image_size=image_size,
    )


def over_budget(counts: Counts, budget: int) -> list[str]:
    """One line for each count that exceeds the budget."""
    return [
        f"{name} {_millions(count, budget)} is over the budget of {_millions(budget, count)}"
        for name, count in (
            ("params_thop", counts.params_thop),
            ("params_exact", counts.params_exact),
        )
        if count > budget
    ]


def count_parameters(model: nn.Module, image_size: int) -> Counts:
    """Counts a network's parameters, by thop and exactly, and its multiply-accumulates.

    Works on a copy without content: thop leaves buffers behind (102 state-dict keys on ResNet-50),
    and needs shapes only, so that 200M parameters cost neither memory nor arithmetic.

    Args:
        model: takes images (1, 3, image_size, image_size); is left as it was.
        image_size: side in pixels.
    """
    exact = sum(parameter.numel() for parameter in model.parameters())
    shape = (1, 3, image_size, image_size)
    try:
        image = torch.zeros(shape, device="meta")
        macs, params = _profile()(_copy_to_meta(model).eval(), inputs=(image,), verbose=False)
    except (RuntimeError, NotImplementedError):  # It holds tensors that are no buffers.
        image = torch.zeros(shape, device=next(model.parameters()).device)
        macs, params = _profile()(copy.deepcopy(model).eval(), inputs=(image,), verbose=False)
    return Counts(params_thop=int(params), params_exact=exact, macs=int(macs))


@cache
def counter() -> str:
    """The distribution that provides `thop`, with its version.

    ultralytics-thop installs under the same import name and counts differently.
    """
    found = sorted({f"{one.name} {one.version}" for one in distributions() if _provides_thop(one)})
    return ", ".join(found) or "thop (version unknown)"


def _provides_thop(distribution: Distribution) -> bool:
    """Read as text: importlib's `packages_distributions` parses the records of everything that is
    installed, which took ten times as long."""
    packages = distribution.read_text("top_level.txt")
    if packages is not None:
        return "thop" in packages.split()
    return "\nthop/" in "\n" + (distribution.read_text("RECORD") or "")


@cache
def _profile() -> Callable[..., tuple[float, float]]:
    """thop's counter, imported when first needed, without the warnings of distutils."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from thop import profile
        except ModuleNotFoundError as error:
            raise UserError(
                f"the rules need thop, which found no module '{error.name}'; "
                "run: pip install thop setuptools"
            ) from error
    function: Callable[..., tuple[float, float]] = profile
    return function


def _copy_to_meta(model: nn.Module) -> nn.Module:
    """A deep copy whose parameters and buffers have shapes but no content; sharing is kept."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        empty = parameter.detach().to("meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.to("meta")
    return copy.deepcopy(model, memo)


@dataclass(frozen=True)
class _Measured:
    """What is kept between runs."""

    counts: Counts
    problem: str | None
    """Why it cannot be built at this size."""
    takes_weights: bool
    """Whether its weights can be loaded at this size."""


def _measured(backbone: Backbone, image_size: int) -> _Measured:
    """The measurements of a backbone at a size, from the cache where they are."""
    arguments = backbone.create_args(image_size)
    versions = [timm.__version__, torch.__version__, counter()]
    key = json.dumps(
        [backbone.architecture, arguments, backbone.fixed_size, image_size, versions], default=repr
    )
    folder = cache_folder() / "counts"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        keep = Memory(folder, verbose=0).cache(_measure, ignore=["backbone", "image_size"])
    except OSError:  # A read-only home: count again each time.
        keep = _measure
    measured: _Measured = keep(key, backbone, image_size)
    return measured


def _measure(key: str, backbone: Backbone, image_size: int) -> _Measured:  # noqa: ARG001
    """Builds and counts; a failure is a result too. `key` holds all that the result depends on."""
    try:
        model = build_on_meta(backbone.architecture, backbone.create_args(image_size))
        counts = count_parameters(model, image_size)
        return _Measured(counts, None, fits_image_size(backbone, image_size))
    except UserError:
        raise
    except Exception as error:  # timm and torch raise anything for sizes and arguments they refuse.
        reason = " ".join(str(error).split())[:160]
        problem = f"cannot be built for images of {image_size} px: {reason}"
        return _Measured(Counts(0, 0, 0), problem, False)


def _millions(count: int, other: int) -> str:
    """ "232.2M"; every digit where a tenth of a million would not tell it from the other one."""
    short, other_short = f"{count / 1e6:.1f}M", f"{other / 1e6:.1f}M"
    return f"{count:,}" if short == other_short else short


def backbones_table(catalogue: Catalogue, pool: str | None, weights: str) -> Table:
    """One row for each backbone.

    Args:
        catalogue: the backbones file.
        pool: only this pool; None takes all.
        weights: hub, file or none: what the verdict on the pretraining is about.

    Raises:
        UserError: if there is no such pool, or no such source of weights.
    """
    source = _source(weights)
    backbones = catalogue.backbones if pool is None else catalogue.pool(pool)
    table = Table(
        title=f"At most {catalogue.budget / 1e6:.1f}M parameters; {catalogue.pretraining}",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        caption=_sources_of_recipes(backbones),
        caption_justify="left",
    )
    table.add_column("backbone", overflow="fold")
    table.add_column("pool", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    for name in ("thop", "exact", "GMACs"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("sizes")
    table.add_column("pretraining")
    table.add_column("allowed", overflow="fold")
    for backbone in backbones:
        verdict = judge(backbone, backbone.image_sizes[0], catalogue.budget, weights=source)
        table.add_row(
            backbone.name,
            backbone.pool,
            backbone.kind or "",
            f"{verdict.params_thop / 1e6:.2f}M",
            f"{verdict.params_exact / 1e6:.2f}M",
            f"{verdict.gmacs:.2f}",
            ", ".join(str(size) for size in backbone.image_sizes),
            verdict.pretraining,
            "yes" if verdict.allowed else f"no: {'; '.join(verdict.reasons)}",
            style=None if verdict.allowed else "dim",
        )
    return table


def _sources_of_recipes(backbones: Sequence[Backbone]) -> str | None:
    """Where the recipe that each kind begins with is known from, a line a kind."""
    sources = {b.kind: b.recipe_source for b in backbones if b.kind is not None}
    return "\n".join(f"{kind}: {source}" for kind, source in sources.items()) or None


def _source(weights: str) -> WeightsSource:
    for known in get_args(WeightsSource):
        if weights == known:
            source: WeightsSource = known
            return source
    known_sources = get_args(WeightsSource)
    raise UserError(
        f"--weights must be one of {', '.join(known_sources)}, found '{weights}'"
        f"{suggestion(weights, known_sources)}"
    )
