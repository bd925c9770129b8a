from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from search.validation.audit import contents as module
from search.validation.audit.contents import Contents, look_at
from search.validation.audit.duplicates import NEAR_BITS, find_copies


def seen(paths: list[Path], workers: int = 1) -> Contents:
    names = [path.name for path in paths]
    return look_at([str(path) for path in paths], names, workers, lambda _: None)


def picture(number: int) -> Image.Image:
    """A part of a photograph."""
    left = 100 * number
    return Image.fromarray(load_sample_image("china.jpg")).crop((left, 150, left + 200, 350))


@pytest.mark.parametrize(
    ("form", "options", "side"),
    [
        ("PNG", {}, 200),
        ("JPEG", {"quality": 90}, 200),
        ("JPEG", {"quality": 30}, 200),
        ("WEBP", {"quality": 50}, 200),
        ("JPEG", {"quality": 50}, 100),
        ("PNG", {}, 400),
    ],
)
def test_what_sharing_does_to_an_image_leaves_it_near(
    form: str, options: dict[str, int], side: int, tmp_path: Path
) -> None:
    picture(0).save(tmp_path / "a.png")
    picture(0).resize((side, side)).save(tmp_path / "b", form, **options)
    picture(1).save(tmp_path / "c.png")
    contents = seen([tmp_path / name for name in ("a.png", "b", "c.png")])
    copies = find_copies(contents.checksums, contents.hashes, contents.thumbs)
    assert [one.rows.tolist() for one in copies] == [[0, 1]]
    apart = np.bitwise_count(contents.hashes[0] ^ contents.hashes[2]).sum()
    assert apart > 2 * NEAR_BITS


@pytest.mark.parametrize("chunk", [1, 2, 128])
def test_processes_say_what_one_process_says(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"{number}.jpg" for number in range(5)]
    for number, path in enumerate(paths):
        picture(number).save(path)
    paths[2].write_bytes(b"no image")
    one = seen(paths, 1)
    monkeypatch.setattr(module, "CHUNK", chunk)
    two = seen(paths, 2)
    assert one.places.tolist() == two.places.tolist() == [0, 1, 3, 4]
    assert one.broken.keys() == two.broken.keys() == {2}
    for name in ("checksums", "hashes", "thumbs", "statistics"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert one.headers.equals(two.headers)


def test_a_file_cut_short_is_broken_although_it_is_decoded_small(tmp_path: Path) -> None:
    stream = io.BytesIO()
    picture(0).resize((1600, 1600)).save(stream, "JPEG")
    path = tmp_path / "a.jpg"
    path.write_bytes(stream.getvalue()[:-2000])
    assert "truncated" in seen([path]).broken[0]
