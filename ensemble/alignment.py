"""Scores of several models, image by image: one table, or one line that says what differs."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pandas as pd

from search.errors import UserError


def align_scores(
    scores: Mapping[str, pd.DataFrame], split: pd.DataFrame, left_out: Collection[str] = ()
) -> pd.DataFrame:
    """One row an image, one column a model.

    Args:
        scores: tables img_name, target, y_pred by the model's name, rows in any order.
        split: label table that all of them must be about.
        left_out: images that could not be read; they are in no model's column, even if an older
            table still has them.

    Returns:
        img_name, target, and y_pred of each model under its name, in the split's order.

    Raises:
        UserError: if a model was scored on other images, or with other targets.
    """
    wanted = split.loc[~split["img_name"].isin(left_out), ["img_name", "target"]]
    aligned = wanted.reset_index(drop=True)
    for name, table in scores.items():
        found = table[~table["img_name"].isin(left_out)].set_index("img_name")
        _check(name, found, aligned)
        aligned[name] = found["y_pred"].reindex(aligned["img_name"]).to_numpy()
    return aligned


def _check(name: str, found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    targets = wanted.set_index("img_name")["target"]
    twice = found.index[found.index.duplicated()]
    extra, missing = found.index.difference(targets.index), targets.index.difference(found.index)
    if not len(twice) and not len(extra) and not len(missing):
        differing = found.index[found["target"] != targets.reindex(found.index)]
        if not len(differing):
            return
        problem = f"{len(differing)} other targets, for example of {differing[0]}"
    elif len(twice):
        problem = f"{len(twice)} images twice, for example {twice[0]}"
    else:
        example = extra[0] if len(extra) else missing[0]
        problem = f"{len(extra)} images more and {len(missing)} fewer, for example {example}"
    raise UserError(
        f"candidates must be scored on the same split of {len(targets)} images, but candidate "
        f"{name} has {problem}; move its folder away, or search again"
    )
