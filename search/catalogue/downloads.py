"""Starting weights that are fetched from timm's hub into its cache, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import timm
import torch
from huggingface_hub import (
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.constants import HF_HUB_OFFLINE
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.utils.tqdm import tqdm
from rich.console import Console

from search.errors import UserError
from search.machine.files import write_atomically
from search.machine.progress import Bar, Bars, tell_line

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""What timm looks for in a repository of the hub, in this order."""

HUB_TIMEOUT_SECONDS = 5.0

SILENCE_SECONDS = 30.0
"""After which another server is given up."""

PIECE_BYTES = 2**20
"""Of what comes from other servers: so often it is asked whether to go on."""

Advance = Callable[[float], None]
"""Told of the bytes that came since the last call."""


def fetch_weights(
    names: Sequence[str],
    console: Console | None = None,
    on_progress: Callable[[], None] = lambda: None,
) -> None:
    """Downloads the weights that are not cached to where timm looks for them.

    What was fetched stays: after an interruption it goes on with the rest, within a file of the hub
    too. Nobody is asked if everything is cached.

    Args:
        names: timm's `architecture.tag`.
        console: shows a bar on a terminal, else a line for each weight; default: quiet.
        on_progress: called as bytes arrive and after every file; what it raises ends the download.

    Raises:
        UserError: if some cannot be had: which, why, and what to do instead.
    """
    absent = [name for name in dict.fromkeys(names) if not is_cached(name)]
    if not absent:
        return
    if HF_HUB_OFFLINE:
        raise _unavailable("is switched off (HF_HUB_OFFLINE)", absent, len(names))
    if not _hub_answers(absent[0]):
        raise _unavailable("does not answer", absent, len(names))
    console = console or Console(quiet=True)
    failed: dict[str, str] = {}
    with Bars(console, of_bytes=True) as bars:
        bar: Bar | None = None
        for number, name in enumerate(absent, start=1):
            # Here too: the hub's client may swallow what is raised while bytes arrive.
            on_progress()
            if bar is not None:
                bar.hide()
            size, text = _size(name), f"weights {number}/{len(absent)}: {name}"
            bar = bars.add(text, size)
            if not bar.is_live:
                told = "" if size is None else f", {size / 1e6:,.0f} MB"
                tell_line(console, f"fetching {text}{told}")
            try:
                _download(name, _counting(bar, on_progress))
            except Exception as error:  # The hub's client chooses its HTTP library and its errors.
                failed[name] = " ".join(str(error).split())[:200] or type(error).__name__
                if not _hub_answers(name):
                    break
        on_progress()
    missing = [name for name in absent if not is_cached(name)]
    if missing:
        first = next(iter(failed), missing[0])
        reason = failed.get(first, "it is not in the cache")
        raise _unavailable(f"failed at {first} ({reason})", missing, len(names))


def _counting(bar: Bar, on_progress: Callable[[], None]) -> Advance:
    """Shows the bytes that came in a bar, and asks whether to go on."""
    came = 0.0

    def advance(size: float) -> None:
        nonlocal came
        came += size
        bar.update(int(came))
        on_progress()

    return advance


def is_cached(name: str) -> bool:
    """Whether timm finds a weight without asking anybody."""
    config = timm.get_pretrained_cfg(name)
    if config is None:
        return False
    if config.hf_hub_id:
        repository, revision = _repository(config)
        return any(
            isinstance(try_to_load_from_cache(repository, file, revision=revision), str)
            for file in _files(config)
        )
    return bool(config.url) and _cached_file(config).is_file()


def _unavailable(state: str, missing: Sequence[str], wanted: int) -> UserError:
    files = ", ".join(f"{name}.safetensors" for name in missing)
    return UserError(
        f"starting weights must come from timm's hub, but it {state} and {len(missing)} of "
        f"{wanted} are not in its cache; try again, which goes on where it ended, or use --weights "
        f"none, or --weights-dir DIR with {files}"
    )


def _repository(config: Any) -> tuple[str, str | None]:
    """The repository's name and revision; timm writes them as one, name@revision."""
    name, _, revision = str(config.hf_hub_id).partition("@")
    return name, revision or None


def _files(config: Any) -> tuple[str, ...]:
    """Names that a weight may have in its repository, what timm prefers first."""
    name: str | None = config.hf_hub_filename
    if not name:
        return HUB_FILES
    if name.endswith(".bin"):
        return (f"{name.removesuffix('.bin')}.safetensors", name)
    return (name,)


def _cached_file(config: Any) -> Path:
    """Where torch.hub.load_state_dict_from_url, and so timm, keeps what a plain URL gives."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(config.url).path).name


def _download(name: str, advance: Advance) -> None:
    config: Any = timm.get_pretrained_cfg(name)
    if not config.hf_hub_id:
        path = _cached_file(config)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: _stream(config.url, temporary, advance))
        return
    repository, revision = _repository(config)
    arguments: dict[str, Any] = {"revision": revision}
    # Of the versions that pyproject.toml allows, older ones report nothing within a file.
    if "tqdm_class" in signature(hf_hub_download).parameters:
        arguments["tqdm_class"] = _reporting_to(advance)
    *preferred, last = _files(config)
    for file in preferred:
        try:
            hf_hub_download(repository, file, **arguments)
        except EntryNotFoundError:
            continue
        return
    hf_hub_download(repository, last, **arguments)


def _stream(url: str, path: Path, advance: Advance) -> None:
    """Fetches a file in pieces; torch.hub's own function cannot be stopped between them."""
    with urlopen(url, timeout=SILENCE_SECONDS) as answer, path.open("wb") as file:  # noqa: S310 - timm's own addresses
        while piece := answer.read(PIECE_BYTES):
            file.write(piece)
            advance(len(piece))


def _reporting_to(advance: Advance) -> type[tqdm]:
    """What the hub's client takes for a bar: it draws nothing and passes on what it is told."""

    class Reporting(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]
            advance(kwargs.get("initial") or 0)

        def update(self, n: float | None = 1) -> bool | None:
            advance(n or 0)
            return None

    return Reporting


def _size(name: str) -> int | None:
    """Bytes of a weight on the hub; None where nobody tells."""
    config: Any = timm.get_pretrained_cfg(name)
    if not config.hf_hub_id:
        return None
    repository, revision = _repository(config)
    for file in _files(config):
        try:
            url = hf_hub_url(repository, file, revision=revision)
            return get_hf_file_metadata(url, timeout=HUB_TIMEOUT_SECONDS).size
        except Exception:  # noqa: S112 - its download tells what is wrong
            continue
    return None


def _hub_answers(name: str) -> bool:
    """Whether the hub can be asked for a weight; tried once and briefly."""
    config = timm.get_pretrained_cfg(name)
    if config is None:
        return False
    if not config.hf_hub_id:
        return True  # The few on other servers: their download tells.
    repository, revision = _repository(config)
    try:
        url = hf_hub_url(repository, _files(config)[0], revision=revision)
        get_hf_file_metadata(url, timeout=HUB_TIMEOUT_SECONDS)
    except EntryNotFoundError:  # An answer: the weights lie there under their other name.
        return True
    except Exception:  # Connection errors come from an HTTP library that the hub's client chooses.
        return False
    return True
