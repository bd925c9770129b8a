"""Loaders: the same batches whatever the workers and whenever a broken image is found."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from search.data.augment import eval_transform, train_transform
from search.data.batches import (
    GRACE_SECONDS,
    NO_TARGET,
    Batch,
    Images,
    Loader,
    collate,
    eval_loader,
    read_image,
    train_loader,
    view,
    view_seed,
)
from search.data.quarantine import Quarantine
from search.errors import UserError

SIZE = 16
TRANSFORM = train_transform("strong", 0.5, SIZE)


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
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.targets, b.targets)
        assert torch.equal(a.seeds, b.seeds)


def test_a_training_batch_says_what_it_holds(table: pd.DataFrame) -> None:
    loader = train_loader(table, TRANSFORM, batch_size=4, seed=3)
    batches = epoch_of(loader, 2)
    assert len(batches) == len(loader) == 5  # the last two images are dropped
    for batch in batches:
        assert (batch.images.shape, batch.images.dtype) == ((4, 3, SIZE, SIZE), torch.uint8)
        for column in (batch.targets, batch.indices, batch.seeds):
            assert (column.shape, column.dtype) == ((4,), torch.int64)
        for image, target, row, seed in zip(
            batch.images, batch.targets, batch.indices.tolist(), batch.seeds.tolist(), strict=True
        ):
            assert target == table["target"][row]
            assert seed == view_seed(3, 2, row)
            assert torch.equal(image, view(read_image(table["path"][row]), TRANSFORM, seed))
    rows = [row for batch in rows_of(batches) for row in batch]
    assert len(set(rows)) == 20


@pytest.mark.parametrize("balance", [False, True])
def test_order_and_views_do_not_depend_on_workers(table: pd.DataFrame, balance: bool) -> None:
    spoil(table, 5)
    loaders = [
        train_loader(table, TRANSFORM, batch_size=4, seed=1, balance=balance, workers=workers)
        for workers in (0, 2)
    ]
    for epoch in (0, 1):  # the second with the same, persistent workers
        assert_same(*(epoch_of(loader, epoch) for loader in loaders))


def test_epochs_differ_and_come_again(table: pd.DataFrame) -> None:
    loader = train_loader(table, TRANSFORM, batch_size=4, seed=1)
    first, second, again = epoch_of(loader, 0), epoch_of(loader, 1), epoch_of(loader, 0)
    assert_same(first, again)
    assert rows_of(first) != rows_of(second)
    assert rows_of(epoch_of(train_loader(table, TRANSFORM, batch_size=4, seed=2))) != rows_of(first)


def test_loading_leaves_the_global_generator_alone(table: pd.DataFrame) -> None:
    loader = train_loader(table, TRANSFORM, batch_size=4, seed=1)
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
    loader = train_loader(make_table(tmp_path, rows), TRANSFORM, batch_size=batch_size, seed=0)
    assert [len(batch.targets) for batch in loader] == sizes
    assert len(loader) == len(sizes)


def test_balanced_draws_favour_no_class(tmp_path: Path) -> None:
    table = make_table(tmp_path, 200)
    loader = train_loader(table, eval_transform(2), batch_size=50, seed=0, balance=True)
    targets = torch.cat([batch.targets for batch in loader])
    # Binomial(200, 1/2) is within 36 of 100 with probability 1 - 3e-7; unbalanced it is 150.
    assert int(targets.sum()) == pytest.approx(100, abs=36)


def test_broken_images_are_set_aside_once(
    table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(table, 7)
    quarantine = Quarantine(tmp_path / "quarantine.csv")
    loader = train_loader(table, TRANSFORM, batch_size=11, seed=1, quarantine=quarantine)
    found = epoch_of(loader)
    assert sorted(len(batch.targets) for batch in found) == [10, 11]
    assert pd.read_csv(tmp_path / "quarantine.csv").values.tolist() == [
        ["7.png", table["path"][7], "the file is empty"]
    ]
    read = []
    monkeypatch.setattr(
        "search.data.batches.read_image", lambda path: read.append(path) or read_image(path)
    )
    # Known from the start, the image is not read, and all else is as it was.
    known = train_loader(
        table, TRANSFORM, batch_size=11, seed=1, quarantine=Quarantine(quarantine.path)
    )
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
    loader = eval_loader(table, SIZE, batch_size=5, workers=2, quarantine=quarantine)
    rows = [row for batch in loader for row in batch.indices.tolist()]
    assert rows == [row for row in range(22) if row not in content]
    assert quarantine.names == {"2.png", "9.png", "13.png"}


def test_too_many_broken_images_end_it(table: pd.DataFrame, tmp_path: Path) -> None:
    spoil(table, 3, 4)
    quarantine = Quarantine(tmp_path / "quarantine.csv")
    with pytest.raises(
        UserError, match="at most 5% of a set's images may be broken, found 2 of 22"
    ):
        epoch_of(train_loader(table, TRANSFORM, batch_size=4, seed=0, quarantine=quarantine))
    # The next loader knows before it reads.
    with pytest.raises(UserError, match="at most 5%"):
        next(iter(eval_loader(table, SIZE, batch_size=4, quarantine=quarantine)))


@pytest.mark.parametrize("training", [True, False])
def test_all_images_broken(table: pd.DataFrame, training: bool) -> None:
    spoil(table, *range(len(table)))
    loader = (
        train_loader(table, TRANSFORM, batch_size=4, seed=0)
        if training
        else eval_loader(table, SIZE, batch_size=4)
    )
    for _ in range(2):  # found out, and known
        with pytest.raises(
            UserError, match=r"found 2[02] of 22 images to be broken, for example .*0\.png"
        ):
            epoch_of(loader)


def test_training_batches_of_one_image_are_skipped(tmp_path: Path) -> None:
    table = make_table(tmp_path, 4)
    order = rows_of(epoch_of(train_loader(table, TRANSFORM, batch_size=2, seed=0)))
    spoil(table, order[0][0])
    loader = train_loader(table, TRANSFORM, batch_size=2, seed=0)
    for _ in range(2):  # found out, and known
        assert rows_of(epoch_of(loader)) == order[1:]
    assert len(loader) == 2
    left = sorted(set(range(4)) - {order[0][0]})
    assert rows_of(epoch_of(eval_loader(table, SIZE, batch_size=4))) == [left]


def test_evaluation_keeps_the_order_and_only_resizes(table: pd.DataFrame) -> None:
    batches = epoch_of(eval_loader(table, SIZE, batch_size=5))
    assert rows_of(batches) == [list(range(i, min(i + 5, 22))) for i in range(0, 22, 5)]
    assert torch.equal(batches[1].images[0], eval_transform(SIZE)(read_image(table["path"][5])))
    assert torch.cat([batch.targets for batch in batches]).tolist() == table["target"].tolist()


def test_unlabelled_lists_have_no_targets(table: pd.DataFrame) -> None:
    batch = next(iter(eval_loader(table.drop(columns="target"), SIZE, batch_size=5)))
    assert batch.targets.tolist() == [NO_TARGET] * 5


@pytest.mark.parametrize("batch_size", [1, 0, -3])
def test_batches_too_small(table: pd.DataFrame, batch_size: int) -> None:
    with pytest.raises(UserError, match=f"batch size must be at least 2, found {batch_size}"):
        train_loader(table, TRANSFORM, batch_size=batch_size, seed=0)


def test_workers_can_be_spawned(table: pd.DataFrame) -> None:
    """What a spawned or forkserver worker is given survives pickling and works alike."""
    images = Images(table, TRANSFORM)
    copied, copied_collate = pickle.loads(pickle.dumps((images, collate)))  # noqa: S301
    draws = [(3, 5), (4, 6)]
    one, other = collate([images[d] for d in draws]), copied_collate([copied[d] for d in draws])
    assert one.batch is not None
    assert torch.equal(one.batch.images, other.batch.images)
    assert pickle.loads(pickle.dumps(one)).batch.indices.tolist() == [3, 4]  # noqa: S301


def without_room(image: torch.Tensor, *_: object) -> torch.Tensor:
    """A transform that keeps its process from making files, those in shared memory too."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    return TRANSFORM(image)


def hit_by_a_bus_error(image: torch.Tensor, *_: object) -> torch.Tensor:
    """A transform that dies as by writing to shared memory that is not there."""
    os.kill(os.getpid(), signal.SIGBUS)
    return TRANSFORM(image)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is shared otherwise")
@pytest.mark.parametrize("transform", [without_room, hit_by_a_bus_error])
def test_too_little_shared_memory_is_told_with_the_remedy(
    table: pd.DataFrame, transform: Any
) -> None:
    loader = train_loader(table, transform, batch_size=4, seed=0, workers=1)
    with pytest.raises(UserError, match=r"shared memory .*; use --workers 0, or .*--shm-size"):
        next(iter(loader))


def test_workers_that_cannot_be_started_are_told_with_the_remedy(
    table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # of a semaphore, in /dev/shm

    loader = train_loader(table, TRANSFORM, batch_size=4, seed=0, workers=1)
    monkeypatch.setattr(torch.utils.data.DataLoader, "_get_iterator", fail)
    with pytest.raises(UserError, match="use --workers 0"):
        next(iter(loader))


def test_other_errors_of_workers_stay_what_they_are(table: pd.DataFrame) -> None:
    loader = train_loader(table, refuse, batch_size=4, seed=0, workers=1)
    with pytest.raises(RuntimeError, match="another reason"):
        next(iter(loader))
    assert not multiprocessing.active_children()  # nor are they waited for


def refuse(*_: object) -> torch.Tensor:
    raise RuntimeError("another reason")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU")
def test_pinned_batches(table: pd.DataFrame) -> None:
    batches = epoch_of(eval_loader(table, SIZE, batch_size=5, pin_memory=True))
    assert all(batch.images.is_pinned() for batch in batches)


def test_workers_that_are_left_end_with_the_process(tmp_path: Path) -> None:
    """They outlive a SIGTERM for a while, and a process that waited for that would seem to hang."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    program = f"""
import pandas as pd
from search.data.batches import GRACE_SECONDS, eval_loader
table = pd.DataFrame({{"img_name": ["a"] * 8, "path": [{str(tmp_path / "a.png")!r}] * 8}})
batches = iter(eval_loader(table, 8, batch_size=1, workers=1))
next(batches)
"""
    ended = subprocess.run([sys.executable, "-c", program], timeout=GRACE_SECONDS, check=False)
    assert ended.returncode == 0
