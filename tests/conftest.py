"""What every test shares: no network, one thread, a cache of its own."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# Before torch is imported anywhere: tests must neither reach a hub nor fight over the cores.
os.environ["HF_HUB_OFFLINE"] = "1"
# Tiny networks gain nothing by threads, which wait for each other actively: with as many processes
# as cores all would crawl.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts what runs in its background deaf to Ctrl-C, which some tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).parents[1].parent / "shared"


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the whole session, away from the user's."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["ONEFOLD_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real faces in the challenge's format."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("the real faces of shared/data are not on this machine")
    return folder


@pytest.fixture(scope="session")
def shared_weights() -> Path:
    """Real ImageNet weights."""
    folder = SHARED / "weights"
    if not folder.is_dir():
        pytest.skip("the real weights of shared/weights are not on this machine")
    return folder
