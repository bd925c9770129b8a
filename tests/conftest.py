"""What every test shares: no network, one thread, a cache of its own."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.blank import blank

# Before torch is imported anywhere: tests must neither reach a hub nor fight over the cores.
os.environ["HF_HUB_OFFLINE"] = "1"
# Tiny networks gain nothing by threads, which wait for each other actively: with as many processes
# as cores all would crawl.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts what runs in its background deaf to Ctrl-C, which some tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).parents[1].parent / "shared"


LONGEST = frozenset(
    {
        "test_nothing_is_lost_wherever_a_process_is_killed",
        "test_a_model_near_the_budget_goes_all_the_way",
    }
)
"""Tests of a minute: begun last, they would keep one core busy while the others wait."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first."""
    items.sort(key=lambda item: getattr(item, "originalname", item.name) not in LONGEST)


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the session, for all of its processes."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def cache(session_folder: Path) -> Path:
    """One cache for the whole session, away from the user's; two processes may fill it at once."""
    folder = session_folder / "cache"
    folder.mkdir(exist_ok=True)
    os.environ["ONEFOLD_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def made_once(session_folder: Path) -> Callable[[str, Callable[[Path], object]], Path]:
    """Makes what takes long for all processes of the session: given a name and what fills a new
    folder, the folder. Tests must not change it."""

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder = session_folder / name
        with FileLock(session_folder / f"{name}.lock"):
            is_made = session_folder / f"{name}.made"
            if not is_made.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of one that failed
                folder.mkdir()
                make(folder)
                is_made.touch()
        return folder

    return made


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
    """One pixel each, where nobody looks at them."""
    blank(monkeypatch.setattr)


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes a folder answer as a read-only file system does; the tests' user may write anywhere."""

    def make(folder: Path) -> None:
        original = os.open

        def refuse(path: object, flags: int, *more: object, **options: object) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR) and str(path).startswith(str(folder)):
                raise OSError(30, "Read-only file system", str(path))
            return original(path, flags, *more, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "open", refuse)

    return make


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
