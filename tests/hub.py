"""A hub that starting weights are fetched from, without a network."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import EntryNotFoundError

from search.catalogue import downloads

BYTES = 3_000_000
"""Of each file."""


class Hub:
    """A hub in memory, and the cache that it is fetched into."""

    def __init__(self, names: Sequence[str]) -> None:
        self.files = {(f"timm/{name}", "model.safetensors") for name in names}
        self.cache: set[tuple[str, str]] = set()
        self.asked: list[str] = []
        self.fetched: list[str] = []
        self.failing: dict[str, BaseException] = {}
        self.answers = True

    def stand_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Answers in the place of the real one."""
        monkeypatch.setattr(downloads, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(downloads, "try_to_load_from_cache", self.cached)
        monkeypatch.setattr(downloads, "get_hf_file_metadata", self.metadata)
        monkeypatch.setattr(downloads, "hf_hub_download", self.download)

    def cached(self, repository: str, file: str, revision: str | None = None) -> str | None:
        return "/cached" if (repository, file) in self.cache else None

    def metadata(self, url: str, timeout: float) -> Any:
        self.asked.append(url)
        assert timeout <= 10
        if not self.answers:
            raise ConnectionError("no route")
        if not any(f"{repository}/resolve/main/{file}" in url for repository, file in self.files):
            raise EntryNotFoundError("no such file")
        return SimpleNamespace(size=BYTES)

    def download(
        self, repository: str, file: str, *, revision: str | None = None, tqdm_class: Any = None
    ) -> str:
        if (repository, file) not in self.files:
            raise EntryNotFoundError("no such file")
        bar = tqdm_class(total=BYTES, initial=BYTES // 3, unit="B", name="x", disable=None)
        bar.update(BYTES // 3)
        if repository in self.failing:
            raise self.failing[repository]
        bar.update(BYTES // 3)
        self.fetched.append(f"{repository}/{file}")
        self.cache.add((repository, file))
        return "/cached"
