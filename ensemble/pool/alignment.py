"""Scores of several candidates on one split, side by side: one row an image, one column a model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import pandas as pd

from search.errors import UserError

COLUMNS = ("img_name", "target", "group", "unseen", "alteration")
"""Of a split, as far as it has them."""


def align_scores(
    scores: Mapping[str, pd.DataFrame],
    split: pd.DataFrame,
    left_out: Collection[str] = (),
    *,
    limit_fraction: float = 0.0,
    tell: Callable[[str], None] = lambda _: None,
) -> pd.DataFrame:
    """One row an image, one column a model.

    An image that broke and was mended while the models were trained has no score of some of them:
    it is left out for all, as if it were still broken.

    Args:
        scores: tables img_name, target, y_pred by the model's name, rows in any order.
        split: label table that all of them must be about.
        left_out: images that could not be read; they are in no model's column, even if an older
            table still has them.
        limit_fraction: largest share of the split's images that models may lack, in [0, 1].
        tell: given a line on the images that are left out because a model lacks them.

    Returns:
        img_name, target, group, what else the split tells of an image (unseen, alteration), and
        y_pred of each model under its name, in the split's order.

    Raises:
        UserError: if a model was scored on other images, or with other targets, or too many images
            are lacking.
    """
    columns = [name for name in COLUMNS if name in split]
    wanted = split.loc[~split["img_name"].isin(left_out), columns]
    allowed = limit_fraction * len(split)
    found = {
        name: table[~table["img_name"].isin(left_out)].set_index("img_name")
        for name, table in scores.items()
    }
    for name, table in found.items():
        _check(name, table, wanted, allowed)
    lacking = {
        name: wanted.loc[~wanted["img_name"].isin(table.index), "img_name"]
        for name, table in found.items()
    }
    missing = {image for images in lacking.values() for image in images}
    if missing:
        names = ", ".join(name for name, images in lacking.items() if len(images))
        problem = (
            f"{len(missing)} of {len(split)} images have no score by {names}, for example "
            f"{min(missing)}"
        )
        if len(missing) > allowed:
            raise UserError(
                f"at most {limit_fraction:.0%} of a split's images may lack a candidate's score, "
                f"but {problem}; move the folders of these candidates away, or search again"
            )
        tell(f"{problem}: left out for all, since they could not be read when it was scored")
    aligned = wanted[~wanted["img_name"].isin(missing)].reset_index(drop=True)
    for name, table in found.items():
        aligned[name] = table["y_pred"].reindex(aligned["img_name"]).to_numpy()
    return aligned


def _check(name: str, found: pd.DataFrame, wanted: pd.DataFrame, allowed: float) -> None:
    targets = wanted.set_index("img_name")["target"]
    twice = found.index[found.index.duplicated()]
    extra, missing = found.index.difference(targets.index), targets.index.difference(found.index)
    if not len(twice) and not len(extra) and len(missing) <= allowed:
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


def align_altered(
    scores: Mapping[str, pd.DataFrame | None], altered: pd.DataFrame | None
) -> pd.DataFrame | None:
    """Scores of altered images, side by side, of those that all models were scored on: an image may
    have broken, or been mended, in between.

    Args:
        scores: tables img_name, alteration, target, y_pred by the model's name; None of a model
            that was not scored on them.
        altered: the images; None if there are none.

    Returns:
        As `align_scores`, with the `alteration`; None if a model has no scores, or no image of each
        class is left.
    """
    found = {name: table for name, table in scores.items() if table is not None}
    if altered is None or len(found) < len(scores):
        return None
    keys = ["img_name", "alteration"]
    aligned = altered[[name for name in COLUMNS if name in altered]]
    for name, table in found.items():
        own = table.drop_duplicates(keys).rename(columns={"y_pred": name})
        aligned = aligned.merge(own, on=[*keys, "target"], how="inner", sort=False)
    return aligned if aligned["target"].nunique() == altered["target"].nunique() == 2 else None
