from __future__ import annotations

import math
from pathlib import Path

import pytest
from PIL import Image

from search.pixels.images import BrokenImage
from search.validation.audit.headers import FEATURES, jpeg_quality, read_header, read_headers


def written(folder: Path, name: str, **options: object) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 20), (200, 30, 90)).save(path, **options)  # type: ignore[arg-type]
    return path


def test_the_quality_is_the_one_that_pillow_was_told(tmp_path: Path) -> None:
    for quality in range(1, 101):
        path = written(tmp_path, "a.jpg", quality=quality)
        assert read_header(str(path), "a.jpg")["quality"] == quality


def test_a_table_of_another_encoder_has_the_nearest_quality() -> None:
    assert jpeg_quality([1] * 64) == 100
    assert jpeg_quality([255] * 64) == 1


def test_a_header_has_every_feature(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0131] = "Maker", "One", "Editor 2"
    exif[0x0132] = "2024:02:03 04:05:06"
    path = written(tmp_path, "a/IMG_0042.jpg", progressive=True, subsampling=0, exif=exif)
    row = read_header(str(path), "a/IMG_0042.jpg")
    assert row.keys() == {feature.name for feature in FEATURES}
    expected = {
        "format": "JPEG",
        "mode": "RGB",
        "width": 40,
        "height": 20,
        "pixels": 800,
        "aspect": 2.0,
        "bytes": path.stat().st_size,
        "subsampling": "0",
        "progressive": "True",
        "exif_tags": 4,
        "camera": "Maker One",
        "software": "Editor 2",
        "taken": 1706933106.0,
        "modified": path.stat().st_mtime,
        "name_length": 8,
        "name_digits": 0.5,
        "name_number": 42.0,
        "name_prefix": "img_",
        "name_extension": ".jpg",
        "name_folder": "a",
    }
    assert {name: row[name] for name in expected} == expected


def test_what_a_file_has_not_is_none_or_nan(tmp_path: Path) -> None:
    row = read_header(str(written(tmp_path, "a.png")), "a.png")
    for name in ("quality", "taken", "name_number"):
        assert math.isnan(row[name])
    for name in ("tables", "subsampling", "camera", "software", "orientation"):
        assert row[name] == "none"


def test_a_file_that_cannot_be_read_is_broken_and_left_out_of_the_table(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8\xff")
    paths = [str(written(tmp_path, "a.png")), str(tmp_path / "b.jpg"), str(tmp_path / "absent")]
    for path in paths[1:]:
        with pytest.raises(BrokenImage):
            read_header(path, "b.jpg")
    table = read_headers(paths, ["a.png", "b.jpg", "absent"])
    assert list(table.index) == [0]
    assert list(table) == [feature.name for feature in FEATURES]
