"""Loaders: the same batches whatever the workers and whenever a broken image is found."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from search.errors import UserError
from search.pixels.augmentation.augment import Augmentation, render
from search.pixels.augmentation.geometry import resize
from search.pixels.cache import DamagedCacheError
from search.pixels.canvas import read_canvas
from search.pixels.loading.batches import NO_TARGET, Batch
from search.pixels.loading.epochs import Loader, eval_batches, train_batches, view_seed
from search.pixels.loading.reading import Reader
from search.pixels.loading.slots import Slots
from search.pixels.loading.workers import GRACE_SECONDS, Canvases, Request
from search.pixels.quarantine import Quarantine

SIZE, CANVAS = 16, 20
STRONG = Augmentation("strong", 0.5)


def training(
    table: pd.DataFrame,
    *,
    workers: int = 0,
    quarantine: Quarantine | None = None,
    augmentation: Augmentation = STRONG,
    **options: Any,
) -> Loader:
    """Training batches from a reader of their own."""
    reader = Reader(CANVAS, workers=workers, quarantine=quarantine)
    return train_batches(reader, table, augmentation, **{"batch_size": 4, "seed": 1, **options})


def evaluation(
    table: pd.DataFrame,
    *,
    batch_size: int = 5,
    workers: int = 0,
    quarantine: Quarantine | None = None,
    pin_memory: bool = False,
) -> Loader:
    reader = Reader(CANVAS, workers=workers, quarantine=quarantine, pin_memory=pin_memory)
    return eval_batches(reader, table, batch_size=batch_size)


def make_table(folder: Path, rows: int) -> pd.DataFrame:
    """Images of noise; every fourth is real."""
    generator = np.random.default_rng(0)
    names = [f"{row}.png" for row in range(rows)]
    for name in names:
        noise = generator.integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
    return pd.DataFrame(
        {
            "img_name": names,
            "path": [str(folder / name) for name in names],
            "target": [int(row % 4 > 0) for row in range(rows)],
            "group": names,
        }
    )


@pytest.fixture
def table(tmp_path: Path) -> pd.DataFrame:
    return make_table(tmp_path, 22)


def spoil(table: pd.DataFrame, *rows: int) -> None:
    for row in rows:
        Path(table["path"][row]).write_bytes(b"")


def epoch_of(loader: Loader, epoch: int = 0) -> list[Batch]:
    loader.set_epoch(epoch)
    return list(loader)


def rows_of(batches: list[Batch]) -> list[list[int]]:
    return [batch.indices.tolist() for batch in batches]


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    assert rows_of(one) == rows_of(other)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.canvases, b.canvases)
        assert torch.equal(a.show([SIZE])[SIZE], b.show([SIZE])[SIZE])
        assert torch.equal(a.targets, b.targets)
        assert torch.equal(a.seeds, b.seeds)


def test_blended_reals_are_fakes_to_all_that_follow(table: pd.DataFrame) -> None:
    plain = epoch_of(training(table, batch_size=4))
    batches = epoch_of(training(table, batch_size=4, blended=0.5))
    assert rows_of(batches) == rows_of(plain)
    blended = 0
    for batch, own in zip(batches, plain, strict=True):
        is_blended = batch.seeds < 0
        blended += int(is_blended.sum())
        assert (batch.targets == torch.where(is_blended, 1, own.targets)).all()
        assert not (is_blended & (own.targets == 1)).any()
        same = (batch.show([SIZE])[SIZE] == own.show([SIZE])[SIZE]).flatten(1).all(1)
        assert torch.equal(same, ~is_blended)
    assert blended
    with pytest.raises(UserError, match="less than 1, found 1"):
        training(table, batch_size=4, blended=1.0)


def test_a_batch_of_groups_has_both_classes_of_each(table: pd.DataFrame) -> None:
    pairs = table.assign(target=[n % 2 for n in range(len(table))]).assign(
        group=[f"group {n // 2}" for n in range(len(table))]
    )
    loader = training(pairs, batch_size=4, batch_order="groups")
    seen = []
    for batch in epoch_of(loader, 1):
        found = pairs.iloc[batch.indices.tolist()]
        assert (found.groupby("group")["target"].nunique() == 2).all()
        seen += batch.indices.tolist()
    assert len(set(seen)) == len(seen) >= len(table) - 3


def test_a_training_batch_says_what_it_holds(table: pd.DataFrame) -> None:
    loader = training(table, batch_size=4, seed=3)
    batches = epoch_of(loader, 2)
    assert len(batches) == len(loader) == 5  # the last two images are dropped
    for batch in batches:
        assert batch.canvases.shape == (4, 3, CANVAS, CANVAS)
        assert batch.canvases.dtype == torch.uint8
        assert batch.augmentation == STRONG
        for column in (batch.targets, batch.indices, batch.seeds):
            assert (column.shape, column.dtype) == ((4,), torch.int64)
        shown = batch.show([SIZE, 12])
        assert shown[12].shape == (4, 3, 12, 12)
        for canvas, image, target, row, seed in zip(
            *(batch.canvases, shown[SIZE], batch.targets),
            *(batch.indices.tolist(), batch.seeds.tolist()),
            strict=True,
        ):
            assert target == table["target"][row]
            assert seed == view_seed(3, 2, row)
            prepared = STRONG.prepare(read_canvas(table["path"][row], CANVAS), seed)
            assert torch.equal(canvas, prepared)
            alone = render(prepared[None], torch.tensor([seed]), STRONG, SIZE)
            assert torch.equal(image, alone[0])
    rows = [row for batch in rows_of(batches) for row in batch]
    assert len(set(rows)) == 20


@pytest.mark.parametrize("balance", [False, True])
def test_order_and_views_do_not_depend_on_workers(table: pd.DataFrame, balance: bool) -> None:
    spoil(table, 5)
    loaders = [
        training(table, batch_size=4, seed=1, balance=balance, workers=workers)
        for workers in (0, 2)
    ]
    for epoch in (0, 1):  # the second with the same, persistent workers
        assert_same(*(epoch_of(loader, epoch) for loader in loaders))


def test_epochs_differ_and_come_again(table: pd.DataFrame) -> None:
    loader = training(table, batch_size=4, seed=1)
    first, second, again = epoch_of(loader, 0), epoch_of(loader, 1), epoch_of(loader, 0)
    assert_same(first, again)
    assert rows_of(first) != rows_of(second)
    assert rows_of(epoch_of(training(table, batch_size=4, seed=2))) != rows_of(first)


def test_loading_leaves_the_global_generator_alone(table: pd.DataFrame) -> None:
    loader = training(table, batch_size=4, seed=1)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    epoch_of(loader)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("rows", "batch_size", "sizes"), [(5, 2, [2, 2]), (3, 4, [3]), (4, 4, [4])]
)
def test_incomplete_last_batch(
    tmp_path: Path, rows: int, batch_size: int, sizes: list[int]
) -> None:
    loader = training(make_table(tmp_path, rows), batch_size=batch_size, seed=0)
    assert [len(batch.targets) for batch in loader] == sizes
    assert len(loader) == len(sizes)


def test_balanced_draws_favour_no_class(tmp_path: Path) -> None:
    table = make_table(tmp_path, 200)
    loader = training(table, augmentation=Augmentation("none", 0.0), batch_size=50, balance=True)
    targets = torch.cat([batch.targets for batch in loader])
    # Binomial(200, 1/2) is within 36 of 100 with probability 1 - 3e-7; unbalanced it is 150.
    assert int(targets.sum()) == pytest.approx(100, abs=36)


def test_broken_images_are_set_aside_once(
    table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(table, 7)
    quarantine = Quarantine(tmp_path / "quarantine.csv")
    loader = training(table, batch_size=11, seed=1, quarantine=quarantine)
    found = epoch_of(loader)
    assert sorted(len(batch.targets) for batch in found) == [10, 11]
    assert pd.read_csv(tmp_path / "quarantine.csv").values.tolist() == [
        ["7.png", table["path"][7], "the file is empty"]
    ]
    read = []

    def reading(path: str, side: int) -> torch.Tensor:
        read.append(path)
        return read_canvas(path, side)

    monkeypatch.setattr("search.pixels.loading.workers.read_canvas", reading)
    # Known from the start, the image is not read, and all else is as it was.
    known = training(table, batch_size=11, seed=1, quarantine=Quarantine(quarantine.path))
    assert_same(epoch_of(known), found)
    assert_same(epoch_of(loader), found)
    assert len(read) == 42
    assert table["path"][7] not in read


def test_worker_processes_report_broken_images(table: pd.DataFrame, tmp_path: Path) -> None:
    content = {
        2: b"",
        9: b"no image",
        13: Path(table["path"][13]).read_bytes()[:300],
    }
    for row, data in content.items():
        Path(table["path"][row]).write_bytes(data)
    quarantine = Quarantine(tmp_path / "quarantine.csv", limit_fraction=0.2)
    loader = evaluation(table, batch_size=5, workers=2, quarantine=quarantine)
    rows = [row for batch in loader for row in batch.indices.tolist()]
    assert rows == [row for row in range(22) if row not in content]
    assert quarantine.names == {"2.png", "9.png", "13.png"}


def test_too_many_broken_images_end_it(table: pd.DataFrame, tmp_path: Path) -> None:
    spoil(table, 3, 4)
    quarantine = Quarantine(tmp_path / "quarantine.csv")
    with pytest.raises(
        UserError, match="at most 5% of a set's images may be broken, found 2 of 22"
    ):
        epoch_of(training(table, batch_size=4, seed=0, quarantine=quarantine))
    # The next loader knows before it reads.
    with pytest.raises(UserError, match="at most 5%"):
        next(iter(evaluation(table, batch_size=4, quarantine=quarantine)))


@pytest.mark.parametrize("trains", [True, False])
def test_all_images_broken(table: pd.DataFrame, trains: bool) -> None:
    spoil(table, *range(len(table)))
    loader = training(table, batch_size=4, seed=0) if trains else evaluation(table, batch_size=4)
    for _ in range(2):  # found out, and known
        with pytest.raises(
            UserError, match=r"found 2[02] of 22 images to be broken, for example .*0\.png"
        ):
            epoch_of(loader)


def test_training_batches_of_one_image_are_skipped(tmp_path: Path) -> None:
    table = make_table(tmp_path, 4)
    order = rows_of(epoch_of(training(table, batch_size=2, seed=0)))
    spoil(table, order[0][0])
    loader = training(table, batch_size=2, seed=0)
    for _ in range(2):  # found out, and known
        assert rows_of(epoch_of(loader)) == order[1:]
    assert len(loader) == 2
    left = sorted(set(range(4)) - {order[0][0]})
    assert rows_of(epoch_of(evaluation(table, batch_size=4))) == [left]


def test_evaluation_keeps_the_order_and_only_resizes(table: pd.DataFrame) -> None:
    batches = epoch_of(evaluation(table, batch_size=5))
    assert rows_of(batches) == [list(range(i, min(i + 5, 22))) for i in range(0, 22, 5)]
    canvas = read_canvas(table["path"][5], CANVAS)
    assert torch.equal(batches[1].canvases[0], canvas)
    assert torch.equal(batches[1].show([SIZE])[SIZE][0], resize(canvas[None], SIZE)[0])
    assert torch.cat([batch.targets for batch in batches]).tolist() == table["target"].tolist()


def test_unlabelled_lists_have_no_targets(table: pd.DataFrame) -> None:
    batch = next(iter(evaluation(table.drop(columns="target"), batch_size=5)))
    assert batch.targets.tolist() == [NO_TARGET] * 5


@pytest.mark.parametrize("batch_size", [1, 0, -3])
def test_batches_too_small(table: pd.DataFrame, batch_size: int) -> None:
    with pytest.raises(UserError, match=f"batch size must be at least 2, found {batch_size}"):
        training(table, batch_size=batch_size, seed=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_one_pool_of_workers_reads_all_tables(table: pd.DataFrame, workers: int) -> None:
    """A reading that was left behind neither mixes with the next one nor goes on after it."""
    with Reader(CANVAS, workers=workers) as reader:
        train = train_batches(reader, table, STRONG, batch_size=4, seed=1)
        select = eval_batches(reader, table.iloc[:9], batch_size=2)
        expected = epoch_of(training(table))
        left = iter(train)
        assert next(left).indices.tolist() == expected[0].indices.tolist()
        assert_same(epoch_of(select), epoch_of(evaluation(table.iloc[:9], batch_size=2)))
        with pytest.raises(RuntimeError, match="one table at a time"):
            next(left)
        assert_same(epoch_of(train), expected)


@pytest.mark.parametrize("broken", [[], [5], [0, 1, 2, 3]])
def test_workers_make_the_views_that_are_asked_for(table: pd.DataFrame, broken: list[int]) -> None:
    """The same as are made where one trains, and none of the canvases travel."""
    for row in broken:
        spoil(table, row)

    def read(workers: int) -> list[Batch]:
        with Reader(CANVAS, workers=workers, renders=True) as reader:
            loader = train_batches(reader, table, STRONG, batch_size=4, seed=1)
            return [batch for _, batch in loader.numbered(sizes=(SIZE, 12))]

    expected, found = read(0), read(2)
    assert rows_of(found) == rows_of(expected)
    for one, other in zip(found, expected, strict=True):
        assert not len(one.canvases)
        assert len(other.canvases)
        for size in (SIZE, 12):
            assert torch.equal(one.show([size])[size], other.show([size])[size])


def test_slots_grow_and_are_given_back(
    table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches that were received stay as they are, whatever is read into their slots later."""
    names: set[str] = set()

    def remembered(count: int, size: int) -> Slots:
        slots = Slots(count, size)
        names.add(slots.take().memory)
        return slots

    monkeypatch.setattr("search.pixels.loading.workers.Slots", remembered)
    with Reader(CANVAS, workers=2) as reader:
        small = list(eval_batches(reader, table, batch_size=1))
        large = list(eval_batches(reader, table, batch_size=9))
        again = list(eval_batches(reader, table, batch_size=1))
    expected = torch.stack([read_canvas(path, CANVAS) for path in table["path"]])
    for batches in (small, large, again):
        assert torch.equal(torch.cat([batch.canvases for batch in batches]), expected)
    assert len(names) == 2
    for name in names:
        with pytest.raises(FileNotFoundError):
            SharedMemory(name)


def test_a_reader_that_is_dropped_gives_its_slots_back(table: pd.DataFrame) -> None:
    reader = Reader(CANVAS, workers=1)
    batches = iter(eval_batches(reader, table, batch_size=4))
    next(batches)
    (slots,) = reader._requests._slots
    name = slots.take().memory
    SharedMemory(name).close()
    del reader, batches, slots
    gc.collect()
    with pytest.raises(FileNotFoundError):
        SharedMemory(name)


def test_a_batch_of_which_nothing_is_left_needs_no_slot(
    table: pd.DataFrame, tmp_path: Path
) -> None:
    """All of the first batch are known to be broken before anything is read."""
    for row in range(4):
        spoil(table, row)
    for _ in range(2):
        quarantine = Quarantine(tmp_path / "quarantine.csv", 0.5)
        batches = epoch_of(evaluation(table, batch_size=4, workers=1, quarantine=quarantine))
        assert rows_of(batches)[0] == [4, 5, 6, 7]


def test_workers_that_are_no_copies_hand_over_batches(tmp_path: Path) -> None:
    """Those of a server of processes, as those that are spawned, find memory by its name."""
    Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(tmp_path / "a.png")
    program = tmp_path / "program.py"
    program.write_text(f"""
import multiprocessing, sys
import pandas as pd
from search.pixels.loading.epochs import eval_batches
from search.pixels.loading.reading import Reader
if __name__ == "__main__":
    multiprocessing.set_start_method("forkserver")
    table = pd.DataFrame({{"img_name": ["a"] * 8, "path": [{str(tmp_path / "a.png")!r}] * 8}})
    with Reader(8, workers=1) as reader:
        for size in (1, 3, 1):
            for batch in eval_batches(reader, table, batch_size=size):
                assert (batch.canvases == 7).all()
""")
    told = subprocess.run(
        [sys.executable, str(program)], check=False, capture_output=True, text=True, timeout=200
    )
    assert told.returncode == 0, told.stderr
    assert "leaked" not in told.stderr


def test_workers_can_be_spawned(table: pd.DataFrame) -> None:
    """What a spawned or forkserver worker is given survives pickling and works alike."""
    paths = table["path"][3:5].tolist()
    request = Request(paths, [1, 0], [3, 4], [5, 6], [-1, -1], STRONG)
    canvases = Canvases(CANVAS, None)
    copied, copied_request = pickle.loads(pickle.dumps((canvases, request)))  # noqa: S301
    one, other = canvases.read(request), copied.read(copied_request)
    assert one.batch is not None
    assert other.batch is not None
    assert torch.equal(one.batch.canvases, other.batch.canvases)
    assert pickle.loads(pickle.dumps(one)).batch.indices.tolist() == [3, 4]  # noqa: S301


class Damaged:
    """A cache whose every canvas is."""

    def copy(self, _row: int, _path: str, _into: np.ndarray) -> bool:
        raise DamagedCacheError("the cache is damaged")


def test_a_damaged_cache_is_told_with_a_broken_image(tmp_path: Path) -> None:
    canvases = Canvases(CANVAS, Damaged())  # type: ignore[arg-type]
    request = Request([str(tmp_path / "none.png")], [1], [0], [5], [0], None)
    read = canvases.read(request)
    assert [image.index for image in read.broken] == [0]
    assert read.cache_problem == "the cache is damaged"
    assert canvases.read(request).cache_problem == "", "told twice"


class HitByABusError(Augmentation):
    """Dies as by writing to shared memory that is not there."""

    def prepare(self, canvas: torch.Tensor, seed: int) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGBUS)
        return canvas


class Refusing(Augmentation):
    def prepare(self, canvas: torch.Tensor, seed: int) -> torch.Tensor:
        raise RuntimeError("another reason")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is shared otherwise")
def test_too_little_shared_memory_is_told_with_the_remedy(
    table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(UserError, match=r"shared memory .*; use --workers 0, or .*--shm-size"):
        epoch_of(training(table, workers=1))
    # No worker waits for what will not come.
    assert not multiprocessing.active_children()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is shared otherwise")
def test_a_worker_that_died_of_shared_memory_is_told_with_the_remedy(table: pd.DataFrame) -> None:
    loader = training(table, augmentation=HitByABusError("none", 0.0), workers=1)
    with pytest.raises(UserError, match=r"shared memory .*; use --workers 0, or .*--shm-size"):
        epoch_of(loader)


def test_workers_that_cannot_be_started_are_told_with_the_remedy(
    table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # of a semaphore, in /dev/shm

    loader = training(table, batch_size=4, seed=0, workers=1)
    monkeypatch.setattr(torch.utils.data.DataLoader, "_get_iterator", fail)
    with pytest.raises(UserError, match="use --workers 0"):
        next(iter(loader))


@pytest.mark.parametrize("mixed", [0.0, 0.5])
def test_workers_of_a_reader_that_is_dropped_end_at_once(table: pd.DataFrame, mixed: float) -> None:
    """Nothing that they hold leads back to the reader: the garbage collector may come late."""
    before = set(multiprocessing.active_children())
    gc.disable()
    try:
        loader = training(table, workers=1, mixed=mixed)
        batches = iter(loader)
        next(batches)
        assert set(multiprocessing.active_children()) - before
        del batches, loader
        assert not set(multiprocessing.active_children()) - before
    finally:
        gc.enable()


def test_other_errors_of_workers_stay_what_they_are(table: pd.DataFrame) -> None:
    loader = training(table, augmentation=Refusing("none", 0.0), workers=1)
    with pytest.raises(RuntimeError, match="another reason"):
        next(iter(loader))
    assert not multiprocessing.active_children()  # nor are they waited for


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU")
@pytest.mark.parametrize("workers", [0, 2])
def test_pinned_batches(table: pd.DataFrame, workers: int) -> None:
    batches = epoch_of(evaluation(table, batch_size=5, workers=workers, pin_memory=True))
    assert all(batch.canvases.is_pinned() for batch in batches)
    assert all(batch.targets.is_pinned() for batch in batches)
    assert_same(batches, epoch_of(evaluation(table, batch_size=5)))


def test_workers_that_are_left_end_with_the_process(tmp_path: Path) -> None:
    """They outlive a SIGTERM for a while, and a process that waited for that would seem to hang."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    program = f"""
import pandas as pd
from search.pixels.loading.reading import Reader
from search.pixels.loading.epochs import eval_batches
table = pd.DataFrame({{"img_name": ["a"] * 8, "path": [{str(tmp_path / "a.png")!r}] * 8}})
batches = iter(eval_batches(Reader(8, workers=1), table, batch_size=1))
next(batches)
"""
    ended = subprocess.run([sys.executable, "-c", program], timeout=GRACE_SECONDS, check=False)
    assert ended.returncode == 0
