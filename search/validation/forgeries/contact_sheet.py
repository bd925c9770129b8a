"""A few fakes of each method side by side, for the user's eyes."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from search.data.assignment import SPLITS
from search.data.splits import Splits
from search.data.unseen import LEFT_OUT
from search.machine.files import write_atomically
from search.pixels.images import BrokenImage, read_image

CONTACT_SHEET = "split.png"
"""It shows images of the data set: it stays in the run folder."""

SHOWN = 10
"""Fakes of a method."""
SIDE, GAP, TITLE = 96, 4, 18
"""In pixels: of an image, between images, and the height of a method's line of text."""


def write_contact_sheet(splits: Splits, path: Path, seed: int) -> None:
    """Draws a row of fakes for each method, those of fit first.

    Args:
        splits: what was divided by method; others have nothing to show.
        path: the PNG file.
        seed: of which fakes are shown.
    """
    if splits.division is None:
        return
    rows = pd.concat([splits.fit, splits.select, splits.report], ignore_index=True)
    fakes = rows[rows["target"] == 1]
    division = splits.division.rows
    listed = division[(division["target"] == 1) & (division["split"] != LEFT_OUT)]
    counts = listed["method"].value_counts()
    owners = splits.division.methods
    methods = sorted(owners, key=lambda method: (SPLITS.index(owners[method]), method))
    width, height = SHOWN * (SIDE + GAP) + GAP, TITLE + SIDE + GAP
    sheet = Image.new("RGB", (width, height * len(methods)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TITLE - 5)
    generator = np.random.default_rng(seed)
    for number, method in enumerate(methods):
        top = number * height
        text = f"{owners[method]}: {method}, {counts[method]:,} fakes"
        draw.text((GAP, top), text, fill="black", font=font)
        paths = fakes["path"][fakes["method"] == method].to_numpy()
        for place, shown in enumerate(generator.permutation(paths)[:SHOWN]):
            with suppress(BrokenImage):
                image = read_image(shown).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
                sheet.paste(image, (GAP + place * (SIDE + GAP), top + TITLE))
    write_atomically(path, lambda temporary: sheet.save(temporary, "PNG"))
