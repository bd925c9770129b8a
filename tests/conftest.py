"""What every test shares: no network, one thread, a cache of its own."""

from __future__ import annotations

import gc
import io
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

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
    """One cache for the whole session, away from the user's, and for all of its processes: two may
    fill it at once."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    folder.mkdir(exist_ok=True)
    os.environ["ONEFOLD_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def imported_for_good() -> Iterator[None]:
    """A search collects garbage after every piece of a trial: to look through all of torch each
    time took two fifths of an end-to-end test."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def no_power_cut() -> Iterator[None]:
    """Every file waits for the disk before it gets its name, which only a power cut could tell."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A figure takes a fifth of a second to draw: one pixel will do where nobody looks at it."""
    stream = io.BytesIO()
    Image.new("RGB", (1, 1)).save(stream, "PNG")

    def write(_figure: Figure, path: Path, **_options: object) -> None:
        path.write_bytes(stream.getvalue())

    monkeypatch.setattr(Figure, "savefig", write)


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
