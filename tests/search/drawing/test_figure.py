"""The page that figures are drawn on: names that can be read, colours that stand out."""

from __future__ import annotations

import numpy as np
import pytest

from search.drawing.figure import DARK, LIGHT, Theme, name_points, new_figure


@pytest.mark.parametrize("seed", range(5))
def test_names_beside_points_stay_inside_and_apart(seed: int) -> None:
    generator = np.random.default_rng(seed)
    x, y = generator.uniform(size=(2, 12))
    _, (axes,) = new_figure(LIGHT, 3.5)
    axes.plot(x, y, "o")
    name_points(axes, LIGHT, x, y, [f"convnextv2_nano_{place}" for place in range(12)])
    frame = axes.get_window_extent()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) >= 3
    assert axes.texts[0].get_text() == f"convnextv2_nano_{y.argmax()}"
    for place, box in enumerate(boxes):
        assert frame.x0 <= box.x0 < box.x1 <= frame.x1
        assert not any(box.overlaps(other) for other in boxes[:place])


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_the_page(theme: Theme) -> None:
    """WCAG 2.2: 4.5 to 1 for text, 3 to 1 for graphics."""

    def luminance(colour: str) -> float:
        channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        return float(linear @ [0.2126, 0.7152, 0.0722])

    def contrast(colour: str) -> float:
        low, high = sorted([luminance(colour), luminance(theme.background)])
        return (high + 0.05) / (low + 0.05)

    assert min(contrast(theme.text), contrast(theme.muted)) >= 4.5
    assert min(map(contrast, theme.series)) >= 3
