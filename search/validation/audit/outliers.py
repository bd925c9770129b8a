"""Images far from the rest: by size, light, colour, detail, or by looking like no other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from search.validation.audit.contents import STATISTICS, Contents

FAR = 8.0
"""Robust standard deviations (the quartiles' distance / 1.35) from the median: of normally
distributed values one in 8e14 is so far out."""

COMPONENTS = 20
"""Of thumbnails; what they leave unexplained is what an image has that the others have not."""

FITTED_TO = 5_000
"""Thumbnails, evenly spread over the list, that the components are fitted to."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Outlier:
    """An image that is far from the rest."""

    row: int
    what: str
    value: float
    median: float
    deviations: float


def find_outliers(contents: Contents) -> tuple[Outlier, ...]:
    """The images that are far out in anything, farthest first, each by what it is farthest in."""
    if len(contents.places) < 2:
        return ()
    measured = _measured(contents)
    values = np.column_stack(list(measured.values()))
    # Ratios count: twice as large is as far as half as large.
    logs = np.log(values + 1.0)
    medians = np.median(logs, axis=0)
    low, high = np.quantile(logs, (0.25, 0.75), axis=0)
    # Where most values are equal, a tenth more or less is one deviation.
    spread = np.maximum((high - low) / 1.35, 0.1)
    deviations = np.abs(logs - medians) / spread
    worst = deviations.argmax(axis=1)
    farthest = deviations.max(axis=1)
    names, centres = list(measured), np.median(values, axis=0)
    return tuple(
        Outlier(
            row=int(row),
            what=names[worst[row]],
            value=float(values[row, worst[row]]),
            median=float(centres[worst[row]]),
            deviations=float(farthest[row]),
        )
        for row in np.argsort(-farthest, kind="stable")
        if farthest[row] > FAR
    )


def _measured(contents: Contents) -> dict[str, Floats]:
    """What images are compared in, each (N,) and not negative."""
    headers = contents.headers
    found = {name: headers[name].to_numpy() for name in ("width", "height", "bytes_per_pixel")}
    found |= dict(zip(STATISTICS, contents.statistics.T, strict=True))
    found["unlike the others"] = _unexplained(contents.thumbs)
    return found


def _unexplained(thumbs: NDArray[np.uint8]) -> Floats:
    """What the common components leave of each thumbnail, in levels of 255, (N,)."""
    places = np.linspace(0, len(thumbs) - 1, min(FITTED_TO, len(thumbs))).round().astype(int)
    components = min(COMPONENTS, len(places) - 1)
    fitted = PCA(components, svd_solver="covariance_eigh").fit(thumbs[places].astype(np.float64))
    found = np.empty(len(thumbs))
    # In pieces: as floats, half a million thumbnails take a gigabyte.
    for start in range(0, len(thumbs), FITTED_TO):
        piece = thumbs[start : start + FITTED_TO].astype(np.float64)
        rest = piece - fitted.inverse_transform(fitted.transform(piece))
        found[start : start + len(piece)] = np.sqrt((rest**2).mean(axis=1))
    return found
