"""All images of a data set in one table."""

from __future__ import annotations

import numpy as np
import pandas as pd

from search.data.inputs import tables
from search.data.splits import Splits


def listing(splits: Splits) -> pd.DataFrame:
    """The rows of all splits, with their `split`, and `is_generated` where `search expand` made the
    image: how that wrote the file tells nothing of the images that were given."""
    table = pd.concat(
        [part.assign(split=name) for name, part in tables(splits).items()], ignore_index=True
    )
    samples = 0 if splits.generated is None else splits.generated.samples
    # They join fit, the first table, after the images that were given.
    first, end = len(splits.fit) - samples, len(splits.fit)
    rows = np.arange(len(table))
    return table.assign(is_generated=(first <= rows) & (rows < end))
