"""Reading images of all kinds."""

from __future__ import annotations

import errno
import io
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search.pixels import images
from search.pixels.images import BrokenImage, read_image

SIZE = (24, 16)  # width, height


def gradient(mode: str = "RGB") -> Image.Image:
    """Red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, SIZE[0]), np.linspace(0, 255, SIZE[1]))
    return Image.fromarray(np.stack([x, y, x * 0], -1).astype(np.uint8)).convert(mode)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("RGB", "png"),
        ("RGB", "jpg"),
        ("RGB", "webp"),
        ("RGB", "bmp"),
        ("RGBA", "png"),
        ("RGBA", "webp"),
        ("L", "png"),
        ("L", "jpg"),
        ("LA", "png"),
        ("1", "png"),
        ("P", "png"),
        ("CMYK", "jpg"),
        ("CMYK", "tif"),
        ("YCbCr", "jpg"),
    ],
)
def test_all_modes_become_rgb(mode: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"image.{suffix}"
    original = gradient(mode)
    original.save(path)
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", SIZE)
    tolerance = 40 if suffix in {"jpg", "webp"} else 2
    assert np.abs(pixels(image) - pixels(original.convert("RGB"))).mean() < tolerance


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = (256 * np.arange(256) + 200).astype(np.uint16).reshape(16, 16)
    for name in ("grey.png", "grey.tif"):
        Image.fromarray(values).save(tmp_path / name)
        assert pixels(read_image(tmp_path / name))[..., 0].ravel().tolist() == list(range(256))


def test_transparency_is_laid_over_black(tmp_path: Path) -> None:
    layers = np.zeros((2, 3, 4), np.uint8)
    layers[..., 0] = 200  # red, under alpha 0, 128 and 255
    layers[..., 3] = [0, 128, 255]
    Image.fromarray(layers, "RGBA").save(tmp_path / "rgba.png")
    assert pixels(read_image(tmp_path / "rgba.png"))[0].tolist() == [
        [0, 0, 0],
        [100, 0, 0],
        [200, 0, 0],
    ]
    palette = gradient().quantize(8)
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((0, 0)))
    assert pixels(read_image(tmp_path / "palette.png"))[0, 0].tolist() == [0, 0, 0]
    gradient("L").point(lambda value: value or 7).save(tmp_path / "grey.png", transparency=7)
    assert pixels(read_image(tmp_path / "grey.png"))[0, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, suffix: str, tmp_path: Path) -> None:
    turned = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a.swapaxes(0, 1)[:, ::-1],
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: a.swapaxes(0, 1)[::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    gradient().save(tmp_path / f"image.{suffix}", exif=exif, quality=95)
    expected = turned(pixels(gradient()))
    image = pixels(read_image(tmp_path / f"image.{suffix}"))
    assert image.shape == expected.shape
    assert np.abs(image - expected).mean() < 8


def test_damaged_exif_neither_loses_the_picture_nor_warns(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    gradient().save(tmp_path / "image.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff broken")
    assert read_image(tmp_path / "image.jpg").size == SIZE
    assert len(recwarn) == 0


@pytest.mark.parametrize(("name", "kind"), [("a.webp", "WEBP"), ("a.png", "PNG"), ("a.jpg", "MPO")])
def test_first_frame_of_several(name: str, kind: str, tmp_path: Path) -> None:
    black = Image.new("RGB", SIZE)
    gradient().save(tmp_path / name, kind, save_all=True, append_images=[black])
    assert pixels(read_image(tmp_path / name)).max() > 200


def encoded(suffix: str, size: tuple[int, int] = (64, 64), mode: str = "RGB") -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(stream, suffix)
    return stream.getvalue()


BROKEN = {
    "empty": (b"", "the file is empty"),
    "text": (b"this is no image\n" * 100, "none of the formats JPEG, "),
    "zeros": (bytes(4096), "none of the formats JPEG, "),
    "truncated jpeg": (encoded("JPEG")[:-2000], "truncated"),
    "truncated png": (encoded("PNG")[:-2000], ""),
    "truncated webp": (encoded("WEBP")[:-2000], ""),
    "header alone": (encoded("JPEG")[:20], ""),
    "damaged png": (encoded("PNG")[:200] + bytes(500) + encoded("PNG")[700:], ""),
    "floats": (encoded("TIFF", mode="F"), "float pixels, whose range is unknown"),
    "gif": (b"GIF89a" + bytes(500), "none of the formats JPEG, "),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "none of the formats"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_have_a_reason(kind: str, tmp_path: Path) -> None:
    content, reason = BROKEN[kind]
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BrokenImage, match=r".") as raised:
            read_image(path)
    assert reason in str(raised.value)
    assert str(tmp_path) not in str(raised.value)


def test_absent_files_and_folders(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.jpg", tmp_path):
        with pytest.raises(BrokenImage, match=os.strerror(2 if path != tmp_path else 21)):
            read_image(path)


@pytest.mark.parametrize("limit", [300, 100])  # Pillow warns above the limit, raises above twice
def test_decompression_bombs(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gradient().save(tmp_path / "image.png")  # 384 pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(BrokenImage, match=f"more than {limit} pixels"):
        read_image(tmp_path / "image.png")


def test_running_out_of_memory_is_not_the_files_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradient().save(tmp_path / "image.png")

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(MemoryError):
        read_image(tmp_path / "image.png")


def fail_first(times: int, number: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The file system fails so many times; gives the pauses that were made."""
    pauses: list[float] = []
    failures = iter([OSError(number, os.strerror(number))] * times)
    original = Image.open

    def open_image(*arguments: object, **options: object) -> Image.Image:
        for failure in failures:
            raise failure
        return original(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image, "open", open_image)
    monkeypatch.setattr(images.time, "sleep", pauses.append)
    return pauses


def test_a_bad_moment_of_the_file_system_costs_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradient().save(tmp_path / "image.png")
    pauses = fail_first(2, errno.EIO, monkeypatch)
    assert read_image(tmp_path / "image.png").size == SIZE
    assert pauses == list(images.PAUSES_SECONDS)


def test_a_lasting_failure_of_the_file_system_breaks_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradient().save(tmp_path / "image.png")
    fail_first(9, errno.EIO, monkeypatch)
    with pytest.raises(BrokenImage, match="Input/output error"):
        read_image(tmp_path / "image.png")


def test_a_machine_without_descriptors_blames_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradient().save(tmp_path / "image.png")
    pauses = fail_first(9, errno.EMFILE, monkeypatch)
    with pytest.raises(OSError, match="open files"):
        read_image(tmp_path / "image.png")
    assert not pauses
