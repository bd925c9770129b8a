from __future__ import annotations

import hashlib
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter
from scipy.ndimage import affine_transform

from search.expand.kinds import (
    KINDS,
    MARGIN,
    Mask,
    Mixed,
    SelfBlended,
    Unchanged,
    _moved,
    _weights,
    draw,
    draw_mask,
    render,
    to_bytes,
)
from tests.search.expand.conftest import forged, photograph

MIDDLE = Mask(((0.3, 0.3), (0.7, 0.3), (0.7, 0.7), (0.3, 0.7)), 0.02, 1.0)
PLAIN = SelfBlended(
    mask=MIDDLE,
    altered="inside",
    gains=(1.1, 1.0, 1.0),
    offsets=(0, 8, 0),
    detail="kept",
    amount=0.0,
    matrix=(1.0, 0.0, 0.0, 1.0),
    shift=(0.0, 0.0),
)
"""Without any float but those of the colours."""


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.int64)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn_survives_the_manifest_and_says_it_all(kind: str) -> None:
    real = photograph(0)
    for seed in range(20):
        parameters = draw(kind, np.random.default_rng(seed))
        assert parameters == draw(kind, np.random.default_rng(seed))
        text = TypeAdapter(KINDS[kind]).dump_json(parameters)
        assert TypeAdapter(KINDS[kind]).validate_json(text) == parameters
        assert TypeAdapter(KINDS[kind]).validate_python(asdict(parameters)) == parameters
        try:
            content = to_bytes(render([real, forged(real, 0)], parameters))
        except Unchanged:
            continue
        assert content == to_bytes(render([real, forged(real, 0)], parameters))
        assert content != to_bytes(real)


def test_bytes_are_those_of_other_machines() -> None:
    """A real one's gradient, so that no decoder has a say: the manifest promises these bytes."""
    ramp = np.add.outer(np.arange(48) * 3, np.arange(64) * 2)[..., None] + [0, 20, 40]
    image = Image.fromarray((ramp % 256).astype(np.uint8))
    turned = replace(PLAIN, matrix=(0.99, -0.05, 0.05, 0.99), shift=(0.01, -0.02))
    content = to_bytes(render([image], turned))
    assert hashlib.sha256(content).hexdigest()[:12] == EXPECTED


EXPECTED = "64b593e5dfd8"


def test_a_self_blended_image_is_altered_inside_the_mask_alone() -> None:
    real = photograph(1)
    blended = render([real], PLAIN)
    changed = (levels(blended) != levels(real)).any(axis=-1)
    inside = levels(_weights(MIDDLE, real.size)) > 0
    assert not changed[~inside].any()
    assert changed[inside].mean() > 0.8
    softer = replace(PLAIN, detail="resampled", amount=0.5)
    outside = render([real], replace(softer, altered="outside"))
    assert (levels(outside) != levels(real)).any(axis=-1)[~inside].mean() > 0.8
    full = levels(_weights(MIDDLE, real.size)) == 255
    assert (levels(outside)[full] == levels(blended)[full]).all()


@pytest.mark.parametrize("detail", ["sharpened", "resampled", "compressed"])
def test_the_detail_is_altered(detail: str) -> None:
    real = photograph(2)
    amount = {"sharpened": 150.0, "resampled": 0.5, "compressed": 50.0}[detail]
    plain = replace(PLAIN, gains=(1.0, 1.0, 1.0), offsets=(0, 0, 0))
    with pytest.raises(Unchanged, match="must differ from the real one"):
        render([real], plain)
    blended = render([real], replace(plain, detail=detail, amount=amount))  # type: ignore[arg-type]
    rough = [np.abs(np.diff(levels(one)[20:44, 20:44], axis=1)).mean() for one in (blended, real)]
    assert (rough[0] > rough[1]) == (detail == "sharpened")


def test_moving_is_what_a_library_does() -> None:
    image = photograph(3, 48)
    a, b, c, d = matrix = (1.03, -0.05, 0.05, 1.03)
    box = (5, 10, 40, 48)
    moved = levels(_moved(image, replace(PLAIN, matrix=matrix, shift=(0.02, -0.01)), box))
    middle = np.array([23.5, 23.5])
    inverse = np.array([[d, c], [b, a]])  # of (row, column)
    offset = middle - inverse @ middle + 48 * np.array([-0.01, 0.02])
    for channel in range(3):
        plane = levels(image)[..., channel].astype(float)
        expected = affine_transform(plane, inverse, offset, order=1, mode="nearest")
        assert np.abs(moved[..., channel] - expected[10:48, 5:40]).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("outside", ["real", "fake"])
def test_a_mix_has_the_pixels_of_both(outside: str) -> None:
    real = photograph(4)
    fake = forged(real, 4)
    mixed = levels(render([real, fake], Mixed(MIDDLE, outside)))  # type: ignore[arg-type]
    one, other = (real, fake) if outside == "real" else (fake, real)
    weights = levels(_weights(MIDDLE, real.size))
    assert (mixed[weights == 0] == levels(one)[weights == 0]).all()
    assert (mixed[weights == 255] == levels(other)[weights == 255]).all()


def test_a_mix_that_shows_the_real_image_alone_is_refused() -> None:
    real = photograph(5)
    corner = Mask(((0.08, 0.08), (0.2, 0.08), (0.08, 0.2)), 0.01, 1.0)
    with pytest.raises(Unchanged, match="must keep what makes the fake one"):
        render([real, forged(real, 5)], Mixed(corner, "real"))
    with pytest.raises(Unchanged):
        render([real, real], Mixed(MIDDLE, "real"))


def test_a_mix_of_two_sizes_has_that_of_what_surrounds() -> None:
    real = photograph(6)
    fake = photograph(7, 40)
    assert render([real, fake], Mixed(MIDDLE, "real")).size == (64, 64)
    assert render([real, fake], Mixed(MIDDLE, "fake")).size == (40, 40)


def test_masks_stay_clear_of_the_border_and_are_as_large_as_a_face() -> None:
    shares = []
    for seed in range(100):
        mask = draw_mask(np.random.default_rng(seed))
        assert all(MARGIN <= value <= 1 - MARGIN for point in mask.outline for value in point)
        shares.append((levels(_weights(replace(mask, strength=1.0), (64, 64))) > 127).mean())
    assert min(shares) > 0.03
    assert 0.1 < np.median(shares) < 0.4
